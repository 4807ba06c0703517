"""From a raw network to a denoiser: all that the four preconditionings have in common.

``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`` (EDM, arXiv 2206.00364, equation 7).

Letters: B samples, C channels, S image side, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import Parameter, signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from deqgen.layers.embeddings import check_label, check_sigma
from deqgen.layers.errors import ShapeError
from deqgen.teachers.names import unknown
from deqgen.teachers.networks import NETWORKS
from deqgen.teachers.sampler import Sampler
from deqgen.teachers.schedules import Karras


class Scalings(NamedTuple):
    """The four scalings at some noise levels; the first three ``(B, 1, 1, 1)`` or 1."""

    c_skip: Tensor | float
    c_out: Tensor | float
    c_in: Tensor | float
    c_noise: Tensor  # (B, 1, 1, 1), what the network is told


class Preconditioner(nn.Module):
    """What the four share: a :class:`~deqgen.teachers.Denoiser` whose network is ``model``.

    Attributes:
        model: the raw network, ``(x, c_noise (B,), one-hot (B, K) or None) -> F``.
        sigma_min: lowest noise level that it was made for; EDM's sampler goes no lower.
        sigma_max: highest noise level that it was made for; EDM's sampler starts no higher.
        use_fp16: run the network in float16 on a GPU, also where a teacher's precision is
            ``"float32"``: so the file has it, and False undoes it. Autocast to another type comes
            first. A CPU runs it in float32, or in what autocast says.
    """

    model: nn.Module
    sigma_min: float
    sigma_max: float

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        model_type: str,
        model_kwargs: Mapping[str, Any],
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        for name, size, least in (
            ("img_resolution", img_resolution, 1),
            ("img_channels", img_channels, 1),
            ("label_dim", label_dim, 0),
        ):
            if type(size) is not int or size < least:
                raise ValueError(f"{name} must be an integer from {least} on, got {size!r}")
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.use_fp16 = label_dim, use_fp16
        self.model_type, self.model_kwargs = model_type, dict(model_kwargs)
        if model_type not in NETWORKS:
            raise ValueError(unknown("model_type", model_type, NETWORKS))
        network = NETWORKS[model_type]
        given = {"img_resolution", "in_channels", "out_channels", "label_dim"}
        allowed = [*(signature(network).parameters.keys() - given), *own_options(type(self))]
        for option in model_kwargs:
            if option not in allowed:
                raise TypeError(unknown(f"option of {model_type}", option, allowed))
        self.model = network(
            img_resolution, img_channels, out_channels or img_channels, label_dim, **model_kwargs
        )

    @property
    def num_classes(self) -> int:
        """Classes of the network; the index ``num_classes`` stands for "no class"."""
        return self.label_dim

    @property
    def label_dropout(self) -> float:
        """How often training hid the class; 0: the network has never learnt "no class"."""
        return float(self.model.label_dropout)  # type: ignore[arg-type]

    def scalings(self, sigma: Tensor) -> Scalings:
        """The scalings at noise levels ``sigma``, ``(B, 1, 1, 1)`` float32."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network was trained at: all of them, but for iDDPM."""
        return sigma

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            x: noisy images, ``(B, C, S, S)``.
            sigma: their noise levels, ``(B,)``, positive.
            label: classes, ``(B,)`` int64; ``None`` or the index ``num_classes`` is "no class".

        Returns:
            Clean images, float32, ``(B, C, S, S)``.

        Raises:
            ValueError, TypeError: inputs that do not fit the network. Under ``torch.compile`` the
                values of ``label`` are not looked at (a :class:`Teacher` has done that before),
                and one out of range acts as "no class".
        """
        self._check(x, sigma, label)
        x = x.to(torch.float32)
        at = self.scalings(sigma.to(torch.float32).reshape(-1, 1, 1, 1))
        with self._precision(x):
            raw = self.model(at.c_in * x, at.c_noise.flatten(), self._one_hot(label, x))
        # An iDDPM network also estimates a variance, in channels after these.
        raw = raw[:, : self.img_channels].to(torch.float32)  # (B, C, S, S)
        clean: Tensor = at.c_skip * x + at.c_out * raw  # (B, C, S, S)
        return clean

    def _check(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> None:
        shape = (self.img_channels, self.img_resolution, self.img_resolution)
        if x.ndim != 4 or tuple(x.shape[1:]) != shape:
            raise ShapeError(
                f"this network takes images (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}"
            )
        check_sigma(sigma, len(x), wanted=True)
        if label is not None:
            check_label(label, self.label_dim or None, len(x), null=True)

    def _one_hot(self, label: Tensor | None, x: Tensor) -> Tensor | None:
        """Rows ``(B, K)``, zeros for "no class"; ``None`` for an unconditional network."""
        if not self.label_dim:
            return None
        if label is None:
            return x.new_zeros(len(x), self.label_dim)  # (B, K)
        classes = torch.arange(self.label_dim, device=x.device)  # (K,)
        return (label[:, None] == classes).to(x.dtype)  # (B, K)

    def _precision(self, x: Tensor) -> AbstractContextManager[object]:
        if self.use_fp16 and x.is_cuda and not torch.is_autocast_enabled("cuda"):
            return torch.autocast("cuda", dtype=torch.float16)
        return nullcontext()

    def default_sampler(self) -> Sampler:
        """EDM's 18 Heun steps from 80 to 0.002, within ``sigma_min`` and ``sigma_max``.

        Levels are clamped at both ends, as EDM's sampler does. That sampler also moves each level
        to :meth:`round_sigma`, which matters to iDDPM alone; here only c_noise is rounded.
        """
        usual = Karras()
        low = max(usual.sigma_min, self.sigma_min)
        high = min(usual.sigma_max, self.sigma_max)
        return Sampler(schedule=Karras(sigma_min=low, sigma_max=high))

    def teacher_header(self) -> dict[str, Any]:
        """What a teacher's file must say to build this denoiser again."""
        side = self.img_resolution
        return {
            "architecture": "edm",
            "config": {"class_name": type(self).__name__, "kwargs": self._arguments()},
            "image_shape": [self.img_channels, side, side],
            "num_classes": self.label_dim,
            "sampler": self.default_sampler().describe(),
        }

    def _arguments(self) -> dict[str, Any]:
        """What the constructor was given beyond its defaults, as plain data."""
        own = {name: getattr(self, name) for name in own_options(type(self))}
        defaults = {name: p.default for name, p in signature(type(self)).parameters.items()}
        changed = {name: value for name, value in own.items() if value != defaults[name]}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in {**changed, **self.model_kwargs}.items()
        }


def check_positive(**values: object) -> None:
    """Refuse arguments that are not positive finite numbers, by name."""
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < cast(float, value) < math.inf:
            raise ValueError(f"{name} must be a positive finite number, got {value!r}")


def own_options(kind: type[Preconditioner]) -> list[str]:
    """Names of the constructor's arguments, without those that go to the network."""
    parameters = signature(kind).parameters.items()
    return [name for name, p in parameters if p.kind is not Parameter.VAR_KEYWORD]
