"""Raw networks made denoisers: the four preconditionings of EDM (arXiv 2206.00364, Table 1).

EDM's own, and those under which the networks of Score-SDE (VP and VE, arXiv 2011.13456) and of
improved DDPM (arXiv 2102.09672) were trained, all as functions of sigma, so that one sampler serves
them all. Arguments and names of parameters are those of EDM's files, whose state dicts load
strictly.

The code is our own. The weights that NVIDIA published for it are under CC BY-NC-SA 4.0: whoever
uses them has to name their source, to stay non-commercial and to share alike.

Letters: B samples, C channels, S image side, K classes, M time steps of a discrete schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deqgen.teachers.edm import Preconditioning
from deqgen.teachers.names import unknown
from deqgen.teachers.preconditioner import Preconditioner, Scalings, check_positive


class EDMPrecond(Preconditioner):
    """EDM's own preconditioning (arXiv 2206.00364, Table 1, last column; equation 7).

    Args:
        img_resolution: side of the square images (S).
        img_channels: their channels (C).
        label_dim: classes (K), 0 for an unconditional network.
        use_fp16: half precision on a GPU; see :class:`Preconditioner`.
        sigma_min: lowest noise level it is meant for.
        sigma_max: highest noise level it is meant for.
        sigma_data: standard deviation of the data.
        model_type: ``"DhariwalUNet"`` or ``"SongUNet"``.
        model_kwargs: further arguments of the network.

    Raises:
        ValueError: unknown ``model_type``, or what the network refuses.
        TypeError: an option that the network does not have.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs
        )
        check_positive(sigma_data=sigma_data)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data

    def scalings(self, sigma: Tensor) -> Scalings:
        """Unit variance of the network's input and target at every level."""
        at = Preconditioning.at(sigma, self.sigma_data)
        return Scalings(at.c_skip, at.c_out, 1 / at.total, at.c_noise)


class VPPrecond(Preconditioner):
    """Variance preserving (arXiv 2011.13456, equation 11; arXiv 2206.00364, Table 1, column VP).

    ``sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``, t in [epsilon_t, 1].

    Args:
        img_resolution: side of the square images (S).
        img_channels: their channels (C).
        label_dim: classes (K), 0 for an unconditional network.
        use_fp16: half precision on a GPU; see :class:`Preconditioner`.
        beta_d: extent of the noise level's schedule.
        beta_min: its start.
        M: time steps of the original training, which scale c_noise.
        epsilon_t: least time of the original training.
        model_type: ``"SongUNet"`` or ``"DhariwalUNet"``.
        model_kwargs: further arguments of the network.

    Raises:
        ValueError, TypeError: as :class:`EDMPrecond`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs
        )
        check_positive(beta_d=beta_d, beta_min=beta_min, M=M, epsilon_t=epsilon_t)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        self.sigma_min, self.sigma_max = self.sigma(epsilon_t), self.sigma(1.0)

    def sigma(self, t: float) -> float:
        """Noise level at time ``t``."""
        return math.sqrt(math.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """Time at noise levels ``sigma``, in their shape."""
        # Not log1p, more exact below 0.01: the networks were trained and judged with this.
        log_scale = (1 + sigma**2).log()
        root = (self.beta_min**2 + 2 * self.beta_d * log_scale).sqrt()
        return (root - self.beta_min) / self.beta_d

    def scalings(self, sigma: Tensor) -> Scalings:
        """The network estimates the noise, from an image of unit variance and its time."""
        return Scalings(1.0, -sigma, (sigma**2 + 1).rsqrt(), (self.M - 1) * self.sigma_inv(sigma))


class VEPrecond(Preconditioner):
    """Variance exploding (arXiv 2011.13456, equation 9; arXiv 2206.00364, Table 1, column VE).

    Args:
        img_resolution: side of the square images (S).
        img_channels: their channels (C).
        label_dim: classes (K), 0 for an unconditional network.
        use_fp16: half precision on a GPU; see :class:`Preconditioner`.
        sigma_min: lowest noise level of the original training.
        sigma_max: highest noise level of the original training.
        model_type: ``"SongUNet"`` or ``"DhariwalUNet"``.
        model_kwargs: further arguments of the network.

    Raises:
        ValueError, TypeError: as :class:`EDMPrecond`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs
        )
        check_positive(sigma_min=sigma_min, sigma_max=sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def scalings(self, sigma: Tensor) -> Scalings:
        """The network estimates minus the noise, from the image as it is."""
        return Scalings(1.0, sigma, 1.0, (0.5 * sigma).log())


class iDDPMPrecond(Preconditioner):
    """Improved DDPM (arXiv 2102.09672, equation 17; arXiv 2206.00364, Table 1, column iDDPM).

    The network was trained at M noise levels ``u``; others are told apart only to the nearest.

    Args:
        img_resolution: side of the square images (S).
        img_channels: their channels (C).
        label_dim: classes (K), 0 for an unconditional network.
        use_fp16: half precision on a GPU; see :class:`Preconditioner`.
        C_1: least ratio of successive alpha bars, which caps beta.
        C_2: offset of the cosine schedule.
        M: time steps of the original training.
        model_type: ``"DhariwalUNet"`` or ``"SongUNet"``.
        model_kwargs: further arguments of the network.

    Raises:
        ValueError, TypeError: as :class:`EDMPrecond`.
    """

    u: Tensor  # (M + 1,), decreasing, the last 0

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution,
            img_channels,
            label_dim,
            use_fp16,
            model_type,
            model_kwargs,
            out_channels=2 * img_channels,
        )
        check_positive(C_1=C_1, C_2=C_2, M=M)
        self.C_1, self.C_2, self.M = C_1, C_2, M
        levels = [0.0]
        for step in range(M, 0, -1):
            ratio = max(self.alpha_bar(step - 1) / self.alpha_bar(step), C_1)
            levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
        self.register_buffer("u", torch.tensor(levels[::-1], dtype=torch.float32))
        self.sigma_min, self.sigma_max = levels[1], levels[-1]

    def alpha_bar(self, step: int) -> float:
        """Share of the signal's variance left at a step, counted from the noisiest (0) to M."""
        return math.sin(0.5 * math.pi * step / self.M / (self.C_2 + 1)) ** 2

    def nearest_step(self, sigma: Tensor) -> Tensor:
        """Indices into ``u`` of the levels nearest to ``sigma``, in its shape."""
        return (self.u - sigma[..., None].to(self.u.dtype)).abs().argmin(dim=-1)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest of the levels ``u``, in the shape and dtype of ``sigma``."""
        return self.u[self.nearest_step(sigma)].to(sigma.dtype)

    def scalings(self, sigma: Tensor) -> Scalings:
        """The network estimates the noise, from an image of unit variance and its time step."""
        c_noise = (self.M - 1 - self.nearest_step(sigma)).to(torch.float32)
        return Scalings(1.0, -sigma, (sigma**2 + 1).rsqrt(), c_noise)


PRECONDITIONERS: dict[str, type[Preconditioner]] = {
    kind.__name__: kind for kind in (EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond)
}


def build_preconditioned(config: Mapping[str, Any]) -> Preconditioner:
    """Build from ``{"class_name": ..., "kwargs": {...}}``, with fresh weights.

    Raises:
        KeyError: an entry is missing.
        ValueError, TypeError: an unknown class, or arguments that it refuses.
    """
    name = config["class_name"]
    if name not in PRECONDITIONERS:
        raise ValueError(unknown("preconditioner", name, PRECONDITIONERS))
    return PRECONDITIONERS[name](**config["kwargs"])
