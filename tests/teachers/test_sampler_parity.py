"""Sampling beside recordings of the original EDM implementation, deterministic and stochastic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from deqgen.teachers import Churn, Sampler, sample
from deqgen.teachers.preconditioning import PRECONDITIONERS

NAMES = ["edm_ddpmpp", "edm_ncsnpp", "edm_adm", "vp_ddpmpp"]
CHURN = Churn(amount=20, low=0.05, high=50, noise=1.003)


def recording(path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network with its weights, and the recorded inputs and outputs."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = PRECONDITIONERS[metadata["preconditioning"]](**json.loads(metadata["config"]))
    weights = network.state_dict().keys()
    network.load_state_dict({name: tensors.pop(f"weights.{name}") for name in weights})
    return network.eval().requires_grad_(False), tensors


@pytest.mark.parametrize("churn", [None, CHURN], ids=["deterministic", "churned"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_recorded(shared: Path, name: str, churn: Churn | None) -> None:
    network, recorded = recording(shared / "parity" / f"{name}.safetensors")
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    noise = torch.stack([torch.randn(3, 16, 16, generator=g) for g in generators])
    torch.testing.assert_close(noise, recorded["latents"], rtol=0, atol=0)
    label = recorded["label_onehot"].argmax(1) if "label_onehot" in recorded else None
    images = sample(
        network, noise, label, sampler=Sampler(steps=6, churn=churn), generators=generators
    )
    expected = recorded["heun6" if churn is None else "heun6_churn20"]
    # The random weights under VP give images of some 300, of which float32 leaves seven digits.
    atol = 1e-5 if name.startswith("edm") else 1e-6 * expected.abs().max().item()
    torch.testing.assert_close(images, expected, rtol=0, atol=atol)
