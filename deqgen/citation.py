"""What to cite for what was used."""

from __future__ import annotations

_GET = """@inproceedings{geng2023onestep,
  title     = {One-Step Diffusion Distillation via Deep Equilibrium Models},
  author    = {Geng, Zhengyang and Pokle, Ashwini and Kolter, J. Zico},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2401.08639}
}"""

_EDM = """@inproceedings{karras2022elucidating,
  title     = {Elucidating the Design Space of Diffusion-Based Generative Models},
  author    = {Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  note      = {arXiv:2206.00364}
}"""

_DEQ = """@inproceedings{bai2019deep,
  title     = {Deep Equilibrium Models},
  author    = {Bai, Shaojie and Kolter, J. Zico and Koltun, Vladlen},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2019},
  note      = {arXiv:1909.01377}
}"""


def cite() -> str:
    """BibTeX of the papers that the flagship rests on: GET, EDM and deep equilibrium models."""
    return "\n\n".join((_GET, _EDM, _DEQ))
