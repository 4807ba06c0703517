"""The peak of a piece of work is that of its tensors."""

from __future__ import annotations

import pytest
import torch

from deqgen.memory import peak_memory


def test_tensors_that_live_at_the_same_time_add_up() -> None:
    x = torch.ones(1000, 1000)
    assert 8_000_000 <= peak_memory(lambda: x.exp().exp()) <= 8_000_100


def test_what_is_freed_before_the_next_does_not_count_twice() -> None:
    x = torch.ones(1000, 1000)
    run = lambda: [x.exp() for _ in range(1)].clear()  # noqa: E731
    assert 4_000_000 <= peak_memory(run) <= 4_000_100


def test_what_was_held_before_does_not_count() -> None:
    held = [torch.ones(1000, 1000)]
    assert peak_memory(lambda: held[0].sum()) < 1_000
    assert peak_memory(held.clear) == 0


def test_a_device_that_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="not device 'meta'"):
        peak_memory(lambda: None, "meta")
