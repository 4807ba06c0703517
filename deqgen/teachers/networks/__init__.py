"""Networks of published diffusion teachers, with the parameter names of their files.

Mental model, in five lines:
1. ``SongUNet`` is DDPM++ and NCSN++ (arXiv 2011.13456), ``DhariwalUNet`` is ADM (arXiv 2105.05233).
2. Both are one ``UNetBlock`` in two styles, and take an image, a number for its noise, a class row.
3. They are raw: what they are fed and what their output means is said by a preconditioner.
4. Layers are called as EDM (arXiv 2206.00364) calls them, so its state dicts load strictly.
5. The code is ours, under this project's licence; NVIDIA's weights are CC BY-NC-SA 4.0.
"""

from deqgen.teachers.networks.dhariwal import DhariwalUNet
from deqgen.teachers.networks.song import SongUNet

NETWORKS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
}
"""The networks, by the names that EDM's files give them."""

__all__ = ["NETWORKS", "DhariwalUNet", "SongUNet"]
