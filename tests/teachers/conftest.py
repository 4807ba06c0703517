from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deqgen.teachers.edm import EDMDenoiser
from deqgen.teachers.unet import UNet, UNetConfig
from tests.teachers.random_pipelines import save_pipelines


@pytest.fixture
def denoiser() -> EDMDenoiser:
    """A U-Net of a few thousand parameters, none of them zero, so that everything matters."""
    config = UNetConfig(
        image_size=8,
        num_classes=4,
        widths=(16, 32),
        blocks=(1, 1),
        attention=(False, True),
        embedding=16,
    )
    network = EDMDenoiser(UNet(config))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
            parameter.add_(0.02)
    return network


@pytest.fixture(scope="session")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="diffusers is an extra: deqgen[diffusers]")


@pytest.fixture(scope="session")
def pipelines(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small random pipelines."""
    folder = tmp_path_factory.mktemp("pipelines")
    save_pipelines(diffusers, folder)
    return folder


@pytest.fixture
def pipeline_copy(pipelines: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A pipeline of one's own to spoil."""
    return lambda name: Path(shutil.copytree(pipelines / name, tmp_path / name))
