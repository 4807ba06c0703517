from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deqgen import create_model
from deqgen.training import train
from deqgen.training.optimizers import hidden_matrices, make_optimizers
from tests.training.toy import Regression, config, same, small_model, state

muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")


class Blocks(nn.Module):
    """A map in, two blocks, a map out."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(8, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)  # (B, 8)
        for block in self.blocks:
            x = x + block(x)  # (B, 8)
        y: torch.Tensor = self.last(x)  # (B, 2)
        return y


def run(directory: Path, **changes: Any) -> None:
    settings = config(optimizer="muon", save_images=800, **changes)
    train(Blocks(), Regression(), settings, directory, progress=False)


@muon
def test_muon_moves_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = create_model("GET-N/4", image_size=8, num_classes=3)
    of_muon, of_adamw = make_optimizers(model, config(optimizer="muon", weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moved = {names[id(p)] for group in of_muon.param_groups for p in group["params"]}
    assert moved == {
        name
        for name, parameter in model.named_parameters()
        if "blocks." in name and parameter.ndim == 2
    }
    others = {names[id(p)] for group in of_adamw.param_groups for p in group["params"]}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved | others == trained and not moved & others
    for optimizer in (of_muon, of_adamw):
        assert optimizer.defaults["lr"] == 1e-2 and optimizer.defaults["weight_decay"] == 0.1


@muon
def test_muon_lowers_the_loss_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole", images=800)
    run(tmp_path / "halves", images=400)
    run(tmp_path / "halves", images=800)
    assert same(state(tmp_path / "whole"), state(tmp_path / "halves"))
    assert state(tmp_path / "whole")["optimizers"][0]["state"]


@muon
def test_a_step_of_muon_is_orthogonal_and_of_adamws_size() -> None:
    """Root mean square 0.2 times the rate (arXiv 2502.16982, section 2.2)."""
    model = Blocks()
    before = [matrix.detach().clone() for matrix in hidden_matrices(model)]
    optimizer = make_optimizers(model, config(optimizer="muon", learning_rate=1.0))[0]
    model(torch.randn(16, 4)).square().sum().backward()
    optimizer.step()
    for old, matrix in zip(before, hidden_matrices(model), strict=True):
        moved = (matrix.detach() - old) / (0.2 * 8**0.5)
        values = torch.linalg.svdvals(moved)
        assert float(values.median()) > 0.6 and float(values.max()) < 1.3


def test_models_without_blocks_and_without_weights() -> None:
    with pytest.raises(ValueError, match="Sequential has none; use 'adamw'"):
        make_optimizers(small_model(), config(optimizer="muon"))
    with pytest.raises(ValueError, match="no weight of the model requires a gradient"):
        make_optimizers(small_model().requires_grad_(False), config())


def test_a_pytorch_without_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.optim.Muon", raising=False)
    with pytest.raises(ImportError, match=r"optimizer 'muon' needs PyTorch 2\.9, and this is"):
        make_optimizers(Blocks(), config(optimizer="muon"))
