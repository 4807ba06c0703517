"""Toy EDM networks and weights by a rule, so that a fixture needs to hold outputs only.

``python -m tests.teachers.edm_networks`` records tests/golden/edm_networks.safetensors anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from deqgen.teachers.preconditioner import Preconditioner
from deqgen.teachers.preconditioning import build_preconditioned

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "edm_networks.safetensors"
SIDE = 16
SIGMA = (0.05, 7.5)

SONG = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
NCSN = {
    **SONG,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
SKIP = {**SONG, "channel_mult": [1, 2, 2], "encoder_type": "skip", "decoder_type": "skip"}

TOYS: dict[str, tuple[str, dict[str, Any]]] = {
    "edm-ddpmpp": ("EDMPrecond", {"model_type": "SongUNet", "label_dim": 4, **SONG}),
    "edm-ncsnpp": ("EDMPrecond", {"model_type": "SongUNet", "augment_dim": 9, **NCSN}),
    "edm-adm": ("EDMPrecond", {"label_dim": 4, "augment_dim": 9, **ADM}),
    "vp-ddpmpp": ("VPPrecond", SONG),
    "ve-ncsnpp": ("VEPrecond", NCSN),
    "ve-skip": ("VEPrecond", SKIP),
    "iddpm-adm": ("iDDPMPrecond", {"label_dim": 4, **ADM}),
}


def toy(name: str, **changes: Any) -> Preconditioner:
    """The toy network of this name, its weights by the rule, in evaluation mode."""
    class_name, options = TOYS[name]
    kwargs = {"img_resolution": SIDE, "img_channels": 3, **options, **changes}
    return by_rule(build_preconditioned({"class_name": class_name, "kwargs": kwargs})).eval()


@torch.no_grad()
def by_rule(module: Preconditioner) -> Preconditioner:
    """Overwrite all parameters and frequencies, in the order of their names; none becomes zero.

    NumPy's RandomState is frozen: its numbers are the same in every version and on every machine.
    """
    draws = np.random.RandomState(7)
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith(("resample_filter", ".u")) or name == "u":
            continue
        normal = torch.from_numpy(draws.standard_normal(tuple(tensor.shape)))
        if name.endswith("freqs"):
            tensor.copy_(16 * normal)
        elif tensor.ndim > 1:
            tensor.copy_(normal / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.1 * normal + (name.endswith("weight")))  # norms near 1, biases near 0
    return module


def inputs(network: Preconditioner) -> tuple[Tensor, Tensor, Tensor | None]:
    """Noisy images ``(2, 3, 16, 16)``, their levels, and a class each where there are any."""
    sigma = torch.tensor(SIGMA)
    normal = np.random.RandomState(8).standard_normal((2, 3, SIDE, SIDE))
    x = torch.from_numpy(normal).float() * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    return x, sigma, torch.tensor([3, 0]) if network.num_classes else None


@torch.no_grad()
def denoised(name: str) -> Tensor:
    """Output of the toy network on :func:`inputs`, ``(2, 3, 16, 16)``."""
    network = toy(name)
    out: Tensor = network(*inputs(network))
    return out


if __name__ == "__main__":
    save_file({name: denoised(name).contiguous() for name in TOYS}, GOLDEN)
