"""The noise that decides a churned image, put together from all that its sampler drew.

With churn an image is a function of its first noise e and of the fresh noise w_1 ... w_N of the
steps. If the data were Gaussian, all of them would enter through one sum alone,

    effective = a_0 e + a_1 w_1 + ... + a_N w_N,    a_0^2 + ... + a_N^2 = 1,

in the axes in which the data's components are independent: fine detail, which is decided late,
would have its weight on the last draws, and what is coarse on the first. The axes taken here are
those of a cosine transform and of the principal colours, and the weights come from the sampler
itself, run on the Gaussian denoiser with the images' variances. The effective noise is standard
normal, as the first noise is, so that a student of it is sampled from as any other.

Nothing of this is stored with pairs: a pair's seed gives all draws once more.

Letters: B samples, N steps, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqgen.data import PairDataset, generators_for, noise_for
from deqgen.teachers import Churn, Sampler, sample


@dataclass(frozen=True, kw_only=True)
class GivenChurn(Churn):
    """Churn with fresh noise that is given, not drawn.

    Attributes:
        levels: the sampler's noise levels, by which a step is known.
        fresh: what the steps add, ``(N, B, C, H, W)``, in a list of one: set it before each batch.
    """

    levels: tuple[float, ...]
    fresh: list[Tensor]

    def add(
        self, x: Tensor, sigma: float, raised: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """As :meth:`Churn.add`, with the step's own noise."""
        fresh = self.fresh[0][self.levels.index(sigma)].to(x)  # (B, C, H, W)
        return x + math.sqrt(raised**2 - sigma**2) * self.noise * fresh


def given(sampler: Sampler) -> tuple[Sampler, list[Tensor]]:
    """The sampler with churn that is given, and the list to put it in."""
    churn, fresh = sampler.churn, [torch.empty(0)]
    assert churn is not None
    options = {"amount": churn.amount, "low": churn.low, "high": churn.high, "noise": churn.noise}
    return replace(
        sampler, churn=GivenChurn(**options, levels=tuple(sampler.sigmas()), fresh=fresh)
    ), fresh


def drawn_noise(sampler: Sampler, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """All that the seeds' generators gave: the first noise and that of each step.

    Of pairs whose labels were not drawn (``labels="uniform"``, the default, or ``"none"``).

    Returns:
        ``(N + 1, B, C, H, W)`` float64.
    """
    generators = generators_for(seeds)
    first = noise_for(generators, shape).double()  # (B, C, H, W)
    fresh = [
        [torch.randn(tuple(shape), generator=g, dtype=torch.float64) for g in generators]
        for _ in range(sampler.steps)
    ]
    return torch.stack([first, *map(torch.stack, fresh)])


@dataclass(frozen=True)
class Axes:
    """Axes in which images are nearly uncorrelated, and their variances along them.

    Attributes:
        colours: principal colours, orthonormal rows, ``(C, C)``.
        variance: of the images' coefficients, ``(C, H, W)``.
    """

    colours: Tensor
    variance: Tensor

    @classmethod
    def of(cls, images: Tensor, labels: Tensor | None = None) -> Axes:
        """Those of images ``(B, C, H, W)``, about the mean image of each class."""
        centred = about_means(images.double(), labels)
        pixels = centred.transpose(0, 1).flatten(1)  # (C, B*H*W)
        colours = torch.linalg.eigh(pixels @ pixels.T)[1].T.flip(0)  # (C, C)
        coefficients = cls(colours, torch.empty(0)).transform(centred)  # (B, C, H, W)
        return cls(colours, coefficients.square().mean(0).clamp_min(1e-8))

    def transform(self, x: Tensor) -> Tensor:
        """Coefficients of ``(..., C, H, W)``; orthonormal, so that white noise stays white."""
        waves = cosines(x.shape[-2]) @ x.double() @ cosines(x.shape[-1]).T  # (..., C, H, W)
        return torch.einsum("dc,...chw->...dhw", self.colours, waves)

    def inverse(self, x: Tensor) -> Tensor:
        """Images again, from coefficients."""
        pixels = cosines(x.shape[-2]).T @ x @ cosines(x.shape[-1])  # (..., C, H, W)
        # One layout for all images: a compiled teacher is compiled anew for another.
        return torch.einsum("dc,...dhw->...chw", self.colours, pixels).contiguous()


def cosines(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II), ``(size, size)`` float64, frequency first."""
    place = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (place + 0.5) * place[:, None])
    waves[0] /= math.sqrt(2)
    return waves * math.sqrt(2 / size)


def about_means(x: Tensor, groups: Tensor | None) -> Tensor:
    """``x`` (B, ...) less the mean of its group; of all, where there are none."""
    if groups is None:
        return x - x.mean(0)
    x = x.clone()
    for group in groups.unique():
        x[groups == group] -= x[groups == group].mean(0)
    return x


class EffectiveNoise:
    """The sum of all draws that would decide the image if data were Gaussian along the axes.

    Args:
        sampler: with churn.
        axes: of the images that it makes.

    Attributes:
        weights: a_0 ... a_N along the axes, of squares that sum to one, ``(N + 1, C, H, W)``.
    """

    def __init__(self, sampler: Sampler, axes: Axes) -> None:
        self.sampler, self.axes = sampler, axes
        self.weights = impulses(sampler, axes.variance)
        self.weights /= self.weights.square().sum(0).sqrt()

    def of(self, draws: Tensor) -> Tensor:
        """Effective noise ``(B, C, H, W)`` of draws ``(N + 1, B, C, H, W)``, rounded to half.

        As noise from a seed is, so that a student is trained on what it is later given.
        """
        along = sum(a * self.axes.transform(w) for a, w in zip(self.weights, draws, strict=True))
        return self.axes.inverse(along).half().float()

    def draws_given(self, effective: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Draws ``(N + 1, B, C, H, W)``, random but for the effective noise that they have.

        Those of N + 1 independent ones, moved along the weights until their sum is right: this is
        how Gaussians are conditioned on a sum.
        """
        shape = (self.sampler.steps + 1, *effective.shape[1:])
        free = [torch.randn(shape, generator=g, dtype=torch.float64) for g in generators]
        along = torch.stack(free, dim=1)  # (N + 1, B, C, H, W), along the axes
        a = self.weights[:, None]  # (N + 1, 1, C, H, W)
        along += a * (self.axes.transform(effective) - (a * along).sum(0))
        return self.axes.inverse(along)


def impulses(sampler: Sampler, variance: Tensor) -> Tensor:
    """How much of each draw is in the image, for Gaussian data of this variance.

    The denoiser of N(0, s^2) is ``x s^2 / (s^2 + sigma^2)``: all is linear, and the image of one
    draw alone is its weight.

    Returns:
        ``(N + 1, C, H, W)`` float64, the first noise first.
    """
    chosen, fresh = given(sampler)
    alone = torch.eye(sampler.steps + 1, dtype=torch.float64)[:, :, None, None, None]
    draws = alone.expand(-1, -1, *variance.shape)  # (draw, sample, C, H, W)
    fresh[0] = draws[1:]

    def denoiser(x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        return x * variance / (variance + sigma.view(-1, 1, 1, 1).square())

    unused = [torch.Generator()] * len(alone)
    return sample(denoiser, draws[0], sampler=chosen, generators=unused)


def effective_noise_of(pairs: PairDataset, effective: EffectiveNoise, batch: int) -> Tensor:
    """The effective noise of all pairs, from their seeds, ``(len, C, H, W)`` float32."""
    if pairs.manifest.settings["labels"] == "random":
        raise ValueError("the generators of these pairs also drew labels; use labels='uniform'")
    rows = [
        effective.of(drawn_noise(effective.sampler, seeds.tolist(), pairs.image_shape))
        for seeds in pairs.seeds().split(batch)
    ]
    return torch.cat(rows)
