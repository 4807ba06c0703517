"""Where a solve starts from. Nothing here draws from the global generator.

Letters: B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Generator, Tensor

Generators: TypeAlias = Generator | Sequence[Generator] | None
"""One generator for the batch, one a sample, or None for one recorded draw."""


def normal_start(
    batch: int,
    shape: Sequence[int],
    generator: Generators = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal initial states, drawn in float32 on the generators' own devices.

    Args:
        batch: samples (B).
        shape: shape of one state, without the batch.
        generator: one a sample: sample i depends on its own generator alone. A single one: sample i
            takes its i-th draw. None: every sample gets the same draw, that of a CPU generator with
            seed 0, so that nothing but the other inputs tells samples apart.
        device: where the result lives; default: the default device.
        dtype: what the result is rounded to; default: float32.

    Returns:
        ``(B, *shape)``.

    Raises:
        ValueError: if the number of generators is not B.
        TypeError: if something else than generators is given.
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    if generator is None:
        draw = torch.randn(*shape, generator=Generator().manual_seed(0), device="cpu")
        return draw.to(device, dtype).expand(batch, *shape)  # (B, *shape)
    own = per_sample(generator, batch)
    if not own:
        return torch.empty(0, *shape, device=device, dtype=dtype)
    rows = [torch.randn(*shape, generator=g, device=g.device, dtype=torch.float32) for g in own]
    return torch.stack([row.to(device) for row in rows]).to(dtype)  # (B, *shape)


def per_sample(generator: Generator | Sequence[Generator], batch: int) -> list[Generator]:
    """The generator of each of ``batch`` samples; a single one serves them all, in order.

    Raises:
        ValueError: if the number of generators is not ``batch``.
        TypeError: if something else than generators is given.
    """
    own = [generator] * batch if isinstance(generator, Generator) else list(generator)
    for one in own:
        if not isinstance(one, Generator):
            raise TypeError(
                f"generator must be a torch.Generator, or a sequence of one a sample; got {one!r}."
            )
    if len(own) != batch:
        raise ValueError(f"got {len(own)} generators for {batch} samples; give one a sample.")
    return own
