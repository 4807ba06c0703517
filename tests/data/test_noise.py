from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqgen.data import generators_for, noise_for, pair_seeds

SHAPE = (3, 4, 4)
SEEDS = st.integers(0, 2**32 - 1)


@given(seeds=st.lists(SEEDS, min_size=1, max_size=6), data=st.data())
def test_noise_belongs_to_its_seed_and_not_to_its_batch(
    seeds: list[int], data: st.DataObject
) -> None:
    together = noise_for(seeds, SHAPE)
    chosen = data.draw(st.lists(st.integers(0, len(seeds) - 1), max_size=5))
    again = noise_for([seeds[i] for i in chosen], SHAPE)
    assert torch.equal(again, together[chosen])


def test_noise_is_the_first_draw_rounded_through_half() -> None:
    draw = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    noise = noise_for([5], SHAPE)
    assert noise.dtype == torch.float32
    assert torch.equal(noise[0], draw.half().float())
    assert torch.equal(noise, noise.half().float())


def test_generators_go_on_after_the_noise() -> None:
    (generator,) = generators_for([8])
    noise = noise_for([generator], SHAPE)
    assert torch.equal(noise, noise_for([8], SHAPE))
    second = torch.randn(3, generator=generator)
    reference = torch.Generator().manual_seed(8)
    torch.randn(SHAPE, generator=reference)
    assert torch.equal(second, torch.randn(3, generator=reference))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    noise_for(range(4), SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal() -> None:
    noise = noise_for(range(400), (8, 8))
    assert abs(noise.mean().item()) < 4 / 160  # four standard errors of 25,600 draws
    assert abs(noise.std().item() - 1) < 4 / 226


def test_no_seeds_give_an_empty_batch() -> None:
    assert noise_for([], SHAPE).shape == (0, *SHAPE)


@given(seed=st.integers(0, 428), index=st.integers(0, 4_967_295))
def test_pair_seeds_are_apart_from_peoples_and_from_each_other(seed: int, index: int) -> None:
    (value,) = pair_seeds(seed, [index])
    assert 10_000_000 <= value < 2**32
    assert divmod(value, 10_000_000) == (seed + 1, index)


@pytest.mark.parametrize(
    ("seed", "index"),
    [(-1, 0), (429, 0), (428, 4_967_296), (0, 10_000_000), (0, -1), (10**9, 0)],
)
def test_pair_seeds_out_of_range_are_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\."):
        pair_seeds(seed, [index])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_collide_are_refused(seed: int) -> None:
    # The generator keeps 32 bits: 2**32 + 5 would silently be 5.
    with pytest.raises(ValueError, match=rf"0\.\.4294967295, got {seed}"):
        noise_for([seed], SHAPE)
