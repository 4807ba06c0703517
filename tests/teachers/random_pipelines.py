"""Small random pipelines, saved by diffusers itself, and what their tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqgen.teachers import DiscreteDenoiser, Teacher

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,  # with a learned variance
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
}


def save_pipelines(diffusers: Any, folder: Path) -> None:
    """Folders ``unet``, ``classes`` (a U-Net with 5 class embeddings) and ``dit``."""
    torch.manual_seed(1)
    scheduler = diffusers.DDPMScheduler()
    unet = diffusers.UNet2DModel(**UNET)
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "unet")
    unet = diffusers.UNet2DModel(**UNET, num_class_embeds=5)
    diffusers.DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder / "classes")
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, scaling_factor=0.25)
    transformer = diffusers.DiTTransformer2DModel(**DIT)
    dit = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
    dit.save_pretrained(folder / "dit")


def edit(path: Path, *removed: str, **changes: Any) -> None:
    data = {k: v for k, v in json.loads(path.read_text()).items() if k not in removed}
    path.write_text(json.dumps({**data, **changes}))


def denoiser_of(teacher: Teacher) -> DiscreteDenoiser:
    assert isinstance(teacher.denoiser, DiscreteDenoiser)
    return teacher.denoiser


def noisy(batch: int, channels: int) -> Tensor:
    return torch.randn(batch, channels, 8, 8, dtype=torch.float64)
