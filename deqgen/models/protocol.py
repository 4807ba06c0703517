"""What a generative model is here. Read this file first.

A model turns noise into images in one call and always returns a :class:`GeneratorOutput`, in
training and in evaluation, whatever its architecture. It is described by a frozen config that
survives JSON.

Letters: B samples, C channels, H and W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from torch import Tensor, nn

from deqgen.gradients import Equilibrium, State
from deqgen.layers import Generators, ShapeError, check_label, check_sigma, grid_side
from deqgen.models.choices import decode, encode
from deqgen.models.errors import unknown_option
from deqgen.models.hub import Pretrained
from deqgen_solvers import Solver, Tolerance

Stopping: TypeAlias = Tolerance | Literal["model"] | None
"""A tolerance, the model's own, or none: a bare budget."""


@dataclass(frozen=True)
class GeneratorOutput:
    """What every model returns.

    Attributes:
        image: ``(B, C, H, W)``, about [-1, 1], in the dtype of the model's weights, autocast or
            not; in float32 if it is a denoised image (``sigma``).
        images: every image that a loss may supervise, in order; the last one is ``image``.
        equilibrium: the DEQ layer's result; None for a model without one.
    """

    image: Tensor
    images: tuple[Tensor, ...]
    equilibrium: Equilibrium | None


M = TypeVar("M", bound="ModelConfig")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What all models have in common; an architecture adds its own fields.

    Args:
        image_size: side of the square images, in pixels.
        channels: channels of the images.
        patch_size: side of a patch, in pixels; divides ``image_size``.
        num_classes: classes the model is conditional on; None for an unconditional model.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, or a patch that does not divide the image.
    """

    image_size: int = 32
    channels: int = 3
    patch_size: int = 2
    num_classes: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_field(type(self).__name__, field, getattr(self, field.name))
        grid_side(self.image_size, self.patch_size)

    @property
    def patch(self) -> int:
        """The patch size, by its short name."""
        return self.patch_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return grid_side(self.image_size, self.patch_size) ** 2

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, names and options, ready for JSON; ``from_dict`` is the way back.

        Raises:
            UnsavableError: (a TypeError) if a field holds what JSON cannot, such as a callback.
        """
        return {
            field.name: encode(getattr(self, field.name), f"{type(self).__name__}.{field.name}")
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls: type[M], values: dict[str, Any]) -> M:
        """Build a config from what ``to_dict`` returned; values that are objects stay as they are.

        Raises:
            TypeError: if a field is unknown; the nearest one is named.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise TypeError(unknown_option(cls.__name__, name, known))
        return cls(**{name: decode(value) for name, value in values.items()})


class GenerativeModel(nn.Module, Pretrained):
    """Base class of models that turn noise into images in one call.

    A subclass sets ``architecture`` to the name under which :func:`register_model` can rebuild it
    from the fields of its config, and implements ``forward``. It may set ``references``, what
    :func:`deqgen.cite` prints for it. ``save_pretrained``,
    ``from_pretrained`` and ``push_to_hub`` come from :class:`~deqgen.models.hub.Pretrained`.
    """

    architecture: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ()
    config: ModelConfig

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        *,
        max_steps: int | None = None,
        tol: Stopping = "model",
        solver: str | Solver[Any] | None = None,
        trace: bool = False,
        generator: Generators = None,
        z0: State | None = None,
        sigma: Tensor | None = None,
    ) -> GeneratorOutput:
        """Generate images, or denoise them if the model takes noise levels.

        Args:
            noise: ``(B, C, H, W)``, standard normal, any floating dtype. With ``sigma``: clean
                images plus ``sigma`` times standard normal noise.
            label: ``(B,)`` int64 for a conditional model, else None. A model with noise levels
                also takes the index ``num_classes``, for "no class".
            max_steps: most evaluations of an equilibrium model's cell, but for those that a solver
                makes within a step; this and the next five are accepted and ignored by other
                models.
            tol: when a sample has converged, ``Tolerance(atol=0.0, rtol=0.05)`` for instance; None
                for a bare budget of which the last image counts. In evaluation, under
                ``torch.no_grad()``, samples that have converged leave the batch;
                ``equilibrium.solution.steps`` says when each did.
            solver: name or object, in place of the model's.
            trace: keep all residuals in ``equilibrium.solution.trace``; needs a tolerance.
            generator: where an equilibrium model's z0 comes from: one generator a sample, one for
                all, or None for the draw of seed 0, the same for every sample.
            z0: the initial state itself, in place of ``generator``.
            sigma: ``(B,)``, positive: the standard deviation of the noise, for a model that was
                built with ``noise_level=True``, else None. The images are then estimates of the
                clean ones; :class:`ModelDenoiser` makes a diffusion model of it.
        """
        raise NotImplementedError

    def write_fixed_buffers(self) -> None:
        """Write the buffers that are not saved with the weights, if there are any."""

    def stages(self) -> Sequence[nn.Module]:
        """Modules that a forward pass calls once each, using their weights in no other way.

        A training with ``shard=True`` makes the weights of one of them at a time whole. All others,
        such as those of a cell that is evaluated many times, are whole throughout a step.
        """
        return ()

    def saved_config(self) -> ModelConfig:
        """The config that goes into a file; an architecture adds what was set on it since."""
        return self.config

    @property
    def takes_noise_level(self) -> bool:
        """Whether it is a denoiser, called with ``sigma``, and not a one-step generator."""
        return bool(getattr(self.config, "noise_level", False))

    def check_inputs(
        self, noise: Tensor, label: Tensor | None, sigma: Tensor | None = None
    ) -> None:
        """Raise a ValueError or TypeError that says what is wrong with the inputs."""
        if not isinstance(noise, Tensor) or not noise.is_floating_point():
            got = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
            raise TypeError(f"noise must be a floating-point tensor, got {got}.")
        wanted = self.config.image_shape
        if noise.ndim != 4 or tuple(noise.shape[1:]) != wanted:
            raise ShapeError(
                f"noise must have shape (B, {', '.join(map(str, wanted))}) for this model "
                f"(channels={self.config.channels}, image_size={self.config.image_size}); "
                f"got {tuple(noise.shape)}."
            )
        if label is not None and not isinstance(label, Tensor):
            raise TypeError(f"label must be a tensor (B,) of int64, got {type(label).__name__}.")
        levels = self.takes_noise_level
        check_label(label, self.config.num_classes, noise.shape[0], null=levels)
        check_sigma(sigma, noise.shape[0], wanted=levels)


def parameter_count(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; the fixed positions count unless ``trainable_only``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def _check_field(owner: str, field: dataclasses.Field[Any], value: Any) -> None:
    kind = str(field.type)
    if value is None and "None" in kind:
        return
    if kind.startswith("int"):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{owner}: {field.name} must be an integer, got {value!r}.")
        if value < 1:
            raise ValueError(f"{owner}: {field.name} must be at least 1, got {value}.")
    elif kind == "float":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{owner}: {field.name} must be a number, got {value!r}.")
        if not value >= 0:
            raise ValueError(f"{owner}: {field.name} must be 0 or more, got {value}.")
    elif kind == "bool" and not isinstance(value, bool):
        raise TypeError(f"{owner}: {field.name} must be True or False, got {value!r}.")
    elif kind == "str" and not isinstance(value, str):
        raise TypeError(f"{owner}: {field.name} must be a name, got {value!r}.")
