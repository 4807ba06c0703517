"""Optimizers: which weights are moved by which rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from deqgen.training.config import TrainConfig


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """AdamW for all trained weights, or Muon for the hidden matrices and AdamW for the rest.

    Muon replaces a matrix's momentum by the nearest orthogonal matrix (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon). Its steps are scaled to the size of AdamW's (Liu et
    al. 2025, arXiv 2502.16982, section 2.2), so that one learning rate and one decay serve both.

    Raises:
        ValueError, ImportError: as :func:`check_optimizer`.
    """
    check_optimizer(model, config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    hidden = hidden_matrices(model) if config.optimizer == "muon" else []
    chosen = {id(weight) for weight in hidden}
    others = [weight for weight in trained if id(weight) not in chosen]
    rate, decay = config.learning_rate, config.weight_decay
    optimizers: list[Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(
            torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        optimizers.append(
            AdamW(others, lr=rate, betas=config.betas, weight_decay=decay, fused=True)
        )
    return optimizers


def check_optimizer(model: nn.Module, config: TrainConfig) -> None:
    """Refuse what no optimizer can be made for.

    Raises:
        ValueError: the model has no weights to train, or no hidden matrices for Muon.
        ImportError: this PyTorch has no Muon.
    """
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError("there is nothing to train: no weight of the model requires a gradient")
    if config.optimizer != "muon":
        return
    if not hidden_matrices(model):
        raise ValueError(
            "optimizer 'muon' is for the matrices of transformer blocks, and "
            f"{type(model).__name__} has none; use 'adamw'"
        )
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(f"optimizer 'muon' needs PyTorch 2.9, and this is {torch.__version__}")


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of the linear maps inside blocks, which are the modules of an ``nn.ModuleList``.

    The maps into and out of the network, embeddings, kernels and vectors are not among them: their
    rows are not directions of one space, which is what Muon makes orthogonal.
    """
    blocks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    found = {
        id(part.weight): part.weight
        for block in blocks
        for part in block.modules()
        if isinstance(part, nn.Linear) and part.weight.requires_grad
    }
    return list(found.values())
