"""Networks trained on a discrete noise schedule, seen as a denoiser over sigma.

Such a network (DDPM, arXiv 2006.11239, and its descendants) sees ``x_t = sqrt(abar_t) x0 +
sqrt(1 - abar_t) noise`` at integer times t. Divided by ``sqrt(abar_t)`` that is ``x = x0 + sigma
noise`` with ``sigma_t = sqrt((1 - abar_t) / abar_t)``, so scaling the input and looking up the time
is all there is to do (EDM, arXiv 2206.00364, appendix C.3).

Letters: B samples, C channels, H height, W width, T levels of the schedule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deqgen.teachers.names import unknown

# (x (B,C,H,W), sigma (B,1,1,1), network's output (B,C,H,W)) -> x0 (B,C,H,W)
Reading = Callable[[Tensor, Tensor, Tensor], Tensor]


def _from_noise(x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """The network predicts the noise."""
    return x - sigma * output


def _from_velocity(x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """The network predicts ``sqrt(abar) noise - sqrt(1 - abar) x0`` (arXiv 2202.00512)."""
    square = sigma**2 + 1  # (B, 1, 1, 1), 1 / abar
    return x / square - sigma / square.sqrt() * output


def _from_clean(x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
    """The network predicts the clean image."""
    return output


PREDICTIONS: dict[str, Reading] = {
    "epsilon": _from_noise,
    "v_prediction": _from_velocity,
    "sample": _from_clean,
}


class DiscreteDenoiser(nn.Module):
    """A network with integer times as a denoiser over continuous noise levels.

    Between two levels of the schedule the time is fractional, interpolated linearly in the log of
    sigma; a sinusoidal time embedding takes it as it is. Outside ``[sigma_min, sigma_max]`` the
    time stays at the nearest end, and the input is still scaled by the true sigma.

    A last level without any signal (abar = 0, "zero terminal SNR", arXiv 2305.08891) has no finite
    sigma and is left out; so is a last level that stands for one with a placeholder.

    Args:
        network: ``(x_t, t, label) -> prediction`` with ``x_t`` ``(B, C, H, W)``, ``t`` ``(B,)``
            float32 in ``[0, T - 1]`` and ``label`` ``(B,)`` int64 or ``None``. The prediction may
            have 2C channels; the second half, a learned variance, is dropped.
        alphas_cumprod: abar, ``(T,)``, strictly decreasing, between 0 and 1.
        prediction_type: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``: what it predicts.
        num_classes: the label that means "no class" to the network; ``None`` if it has no such
            label.

    Attributes:
        sigmas: the levels the network was trained at, ``(T,)`` float64, increasing.
        num_classes: as given.

    Raises:
        ValueError: an unknown prediction type, or levels that are not a noise schedule.
    """

    sigmas: Tensor

    def __init__(
        self,
        network: nn.Module,
        alphas_cumprod: Tensor,
        *,
        prediction_type: str = "epsilon",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTIONS:
            raise ValueError(unknown("prediction type", prediction_type, PREDICTIONS))
        self.network = network
        self.prediction_type = prediction_type
        self.num_classes = num_classes
        # Not in the state dict: it follows from the schedule's options, up to a last digit that
        # depends on the machine, and must not change the hash of the weights.
        self.register_buffer("sigmas", _levels(alphas_cumprod), persistent=False)

    @property
    def sigma_min(self) -> float:
        """The lowest noise level the network was trained at."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The highest noise level the network was trained at."""
        return float(self.sigmas[-1])

    def describe(self) -> dict[str, Any]:
        """What decides the estimates beside the network, as plain data.

        The levels as a hash, of four digits each, so that it seldom hangs on the rounding of a
        machine. A network whose config records both, as that of a pipeline does, says it itself.
        """
        config = getattr(self.network, "config", None)
        if hasattr(config, "prediction_type") and hasattr(config, "schedule"):
            return {}
        levels = " ".join(f"{level:.4g}" for level in self.sigmas.tolist())
        return {
            "prediction_type": self.prediction_type,
            "sigmas_sha256": hashlib.sha256(levels.encode()).hexdigest(),
        }

    def timestep(self, sigma: Tensor) -> Tensor:
        """The network's time, ``(B,)`` float64 in ``[0, T - 1]``, of noise levels ``(B,)``."""
        known = self.sigmas.to(torch.float64).log()  # (T,)
        wanted = sigma.to(torch.float64).log().clamp(known[0], known[-1])  # (B,)
        above = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)  # (B,)
        low, high = known[above - 1], known[above]  # (B,) each
        return above - 1 + (wanted - low) / (high - low)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            x: noisy images, ``(B, C, H, W)``.
            sigma: their noise levels, ``(B,)``, positive.
            label: classes, ``(B,)`` int64; ``None`` or the index ``num_classes`` is "no class".

        Returns:
            Clean images, ``(B, C, H, W)``, in the dtype of x.

        Raises:
            ValueError: the network gives neither C nor 2C channels.
        """
        if label is None and self.num_classes is not None:
            label = torch.full(x.shape[:1], self.num_classes, device=x.device)  # (B,)
        level = sigma.to(x.dtype).reshape(-1, 1, 1, 1)  # (B, 1, 1, 1)
        scaled = x / (level**2 + 1).sqrt()  # (B, C, H, W), x_t
        time = self.timestep(sigma).to(torch.float32)  # (B,)
        output = self.network(scaled, time, label)  # (B, C or 2C, H, W)
        channels = x.shape[1]
        if output.shape[1] not in (channels, 2 * channels):
            raise ValueError(
                f"a network on {channels} channels must give {channels}, or {2 * channels} with a "
                f"learned variance, and this one gave {output.shape[1]}"
            )
        prediction = output[:, :channels].to(x.dtype)  # (B, C, H, W)
        return PREDICTIONS[self.prediction_type](x, level, prediction)


def _levels(alphas_cumprod: Tensor) -> Tensor:
    """Noise levels of a schedule, ``(T,)`` or one less, float64; ValueError if it is none."""
    abar = alphas_cumprod.detach().to(torch.float64)  # (T,)
    if abar.ndim != 1 or len(abar) < 3:
        raise ValueError(f"a noise schedule needs at least 3 levels, got {tuple(abar.shape)}")
    sigmas = ((1 - abar) / abar).sqrt()  # (T,)
    if not sigmas[-2] < sigmas[-1] < torch.inf:
        sigmas = sigmas[:-1]
    rising = bool((sigmas[1:] > sigmas[:-1]).all())
    if not (rising and sigmas[0] > 0 and bool(sigmas.isfinite().all())):
        raise ValueError(
            "a noise schedule needs alphas_cumprod that decrease strictly from below 1 to above 0 "
            f"(the last may be 0), got {float(abar[0]):.6g} to {float(abar[-1]):.6g}"
        )
    return sigmas
