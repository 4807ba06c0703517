"""A frozen diffusion model with its sampling settings: noise in, image out.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from deqgen.teachers.guidance import Guidance, null_label_of
from deqgen.teachers.names import unknown
from deqgen.teachers.protocol import CountingDenoiser, Denoiser
from deqgen.teachers.sampler import Sampler, check_generators, sample

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


class Teacher:
    """What a student learns from: the map from noise (and class) to image.

    ``sample`` is deterministic: the same noise and label give the same image; a ``stochastic``
    teacher, whose sampler has churn, also needs the sample's generator in the same state. Row i of
    a batch does not depend on its batch mates, up to the rounding of the network's precision:
    libraries choose other kernels for other batch sizes. For the same bits, use the same batches,
    device and number of threads.

    Args:
        denoiser: the model. If it is a module it is frozen: evaluation mode, no gradients, moved to
            ``device``.
        image_shape: ``(C, H, W)`` of one image.
        num_classes: number of classes, 0 for an unconditional teacher.
        sampler: method, schedule, steps, churn; EDM's 18 Heun steps by default.
        guidance: classifier-free guidance, a :class:`Guidance` or its scale; ``None`` for none.
        name: what manifests and tables call it.
        class_names: one a class, or empty.
        device: where to run; ``None`` leaves the denoiser where it is.
        precision: ``"float32"``, or ``"bfloat16"`` to run the network (never the sampler's state)
            under autocast.
        compile: run the network through ``torch.compile``; the first batch then takes longer.

    Raises:
        ValueError: unknown precision, a denoiser with another number of classes or another shape
            of images, guidance without classes, guidance or no classes (``num_classes=0``) for a
            class-conditional network that was trained without ever hiding the class, or a wrong
            number of class names.
        TypeError: a sampler, a guidance or a number of classes that is none.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        image_shape: Sequence[int],
        num_classes: int = 0,
        sampler: Sampler | None = None,
        guidance: Guidance | float | None = None,
        name: str = "teacher",
        class_names: Sequence[str] = (),
        device: torch.device | str | None = None,
        precision: str = "float32",
        compile: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.image_shape = tuple(int(size) for size in image_shape)
        self.num_classes = num_classes
        self.sampler = Sampler() if sampler is None else sampler
        scale = 1.0 if guidance is None else guidance
        self.guidance = scale if isinstance(scale, Guidance) else Guidance(scale=scale)
        self.name = name
        self.class_names = tuple(class_names)
        self.precision = precision
        self.compile = compile
        self._check()
        self._weights_hash: str | None = None
        if isinstance(denoiser, nn.Module):
            denoiser.eval().requires_grad_(False).to(device)
            # Twice as fast in bfloat16 on a CPU; torch's own types do not know this argument.
            cast(Any, denoiser).to(memory_format=torch.channels_last)
        self.device = _device_of(denoiser, device)
        # Freezing lays the weights out once, for the kernels that will read them.
        frozen: Any = {"freezing": True}
        run = torch.compile(cast(Any, denoiser), options=frozen) if compile else denoiser
        self._counter = CountingDenoiser(self._in_precision(run))

    def _check(self) -> None:
        if len(self.image_shape) != 3:
            raise ValueError(f"image_shape must be (C, H, W), got {self.image_shape}")
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        if not isinstance(self.sampler, Sampler):
            raise TypeError(f"sampler must be a Sampler or None, got {self.sampler!r}")
        known = _shape_known(self.denoiser)
        if known not in (None, self.image_shape):
            raise ValueError(
                f"the denoiser takes images {known}, image_shape is {self.image_shape}"
            )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.num_classes} classes")
        self._check_classes()

    def _check_classes(self) -> None:
        if type(self.num_classes) is not int or self.num_classes < 0:
            raise TypeError(f"num_classes must be an integer from 0 on, got {self.num_classes!r}")
        guided, classes = self.guidance.scale != 1, getattr(self.denoiser, "num_classes", None)
        if guided and not self.num_classes:
            raise ValueError("guidance needs a class-conditional teacher, and num_classes is 0")
        if guided:
            null_label_of(self.denoiser)
        if classes is not None and self.num_classes not in (classes, 0):
            raise ValueError(
                f"the denoiser has {classes} classes, num_classes is {self.num_classes}"
            )
        free = bool(classes) and not self.num_classes
        if (guided or free) and getattr(self.denoiser, "label_dropout", None) == 0:
            raise ValueError(
                'this network was trained with label_dropout 0 and has never learnt "no class": it '
                "can be sampled with its classes only, and without guidance"
            )

    def _in_precision(self, run: Denoiser) -> Denoiser:
        """Pin the autocast state, so that a caller's own autocast cannot change the images."""
        dtype = PRECISIONS[self.precision]
        kind = self.device.type

        def call(x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
            with torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                return run(x, sigma, label)

        return call

    @property
    def nfe(self) -> int:
        """Network evaluations one image costs, counted; a guided evaluation counts as two."""
        return self.sampler.nfe(self.guidance)

    @property
    def stochastic(self) -> bool:
        """Whether ``sample`` needs generators, because the sampler has churn."""
        return self.sampler.stochastic

    @property
    def evaluations(self) -> int:
        """Network evaluations spent so far, counted row by row over all calls of ``sample``."""
        return self._counter.rows

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Turn noise into images.

        Args:
            noise: standard normal, ``(B, C, H, W)``.
            label: ``(B,)`` integers in ``0..num_classes - 1``; ``None`` for an unconditional
                teacher.
            generators: for a stochastic teacher one on the CPU a sample, which have already given
                the noise (and the class); a deterministic one ignores them.

        Returns:
            Images in about [-1, 1], ``(B, C, H, W)`` float32, on the teacher's device.

        Raises:
            ValueError: wrong shapes, labels out of range, labels missing or not asked for, or a
                stochastic teacher without one generator a sample.
        """
        if tuple(noise.shape[1:]) != self.image_shape or noise.ndim != 4:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"teacher {self.name!r} takes noise of shape (B, {expected}), "
                f"got {tuple(noise.shape)}"
            )
        self._check_label(label, len(noise))
        check_generators(self.sampler, generators, len(noise))
        if len(noise) == 0:
            return torch.empty(noise.shape, device=self.device)
        images = sample(
            self._counter,
            noise.to(self.device, torch.float32),
            None if label is None else label.to(self.device, torch.int64),
            sampler=self.sampler,
            guidance=self.guidance,
            null_label=self.num_classes,
            generators=generators,
        )
        return images.to(torch.float32)

    def _check_label(self, label: Tensor | None, batch: int) -> None:
        if label is None:
            if self.num_classes:
                raise ValueError(
                    f"teacher {self.name!r} is class-conditional: give labels in "
                    f"0..{self.num_classes - 1}, or use teacher.unconditional()"
                )
            return
        if not self.num_classes:
            raise ValueError(f"teacher {self.name!r} is unconditional and takes no labels")
        if label.shape != (batch,) or label.is_floating_point():
            raise ValueError(
                f"label must be {batch} integers, got {label.dtype} of shape {tuple(label.shape)}"
            )
        low, high = (int(label.min()), int(label.max())) if batch else (0, 0)
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {low}..{high}")

    def replace(self, **changes: Any) -> Teacher:
        """Return a teacher that shares the denoiser and differs in the named arguments.

        Raises:
            ValueError: another ``device``, to which the shared denoiser, and so this teacher's
                too, would move.
        """
        device = changes.get("device")
        if "denoiser" not in changes and device not in (None, self.device, str(self.device)):
            raise ValueError(
                f"teachers made by replace share one denoiser, which is on {self.device} and "
                f"cannot be on {device} as well: load the teacher again with "
                f"device={str(device)!r}"
            )
        options: dict[str, Any] = {
            "denoiser": self.denoiser,
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "sampler": self.sampler,
            "guidance": self.guidance,
            "name": self.name,
            "class_names": self.class_names,
            "device": self.device,
            "precision": self.precision,
            "compile": self.compile,
        }
        return Teacher(**{**options, **changes})

    def unconditional(self) -> Teacher:
        """Return the same model without its classes: no labels, no guidance, half the cost.

        Raises:
            ValueError: the network has never learnt "no class".
        """
        return self.replace(num_classes=0, class_names=(), guidance=None)

    def describe(self) -> dict[str, Any]:
        """All that decides the images, as plain data for manifests.

        The device, compilation and batch size are left out: they change the images by rounding
        alone.
        """
        return {
            "name": self.name,
            "denoiser": describe_denoiser(self.denoiser),
            "weights_sha256": self._hash(),
            "sampler": self.sampler.describe(),
            "guidance": self.guidance.describe(),
            "precision": self.precision,
            "nfe": self.nfe,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
        }

    def _hash(self) -> str | None:
        if self._weights_hash is None and isinstance(self.denoiser, nn.Module):
            self._weights_hash = weights_sha256(self.denoiser)
        return self._weights_hash


def describe_denoiser(denoiser: Callable[..., Tensor]) -> dict[str, Any]:
    """Type and, where the network has a dataclass ``config`` or describes itself, its options.

    A method ``describe`` of the denoiser adds what decides its estimates beside that.
    """
    network = getattr(denoiser, "network", denoiser)
    config = getattr(network, "config", None)
    described: dict[str, Any] = {"type": type(denoiser).__name__, "network": type(network).__name__}
    if is_dataclass(config) and not isinstance(config, type):
        # Tuples become lists, as they do in a manifest that was written and read again.
        described["config"] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(config).items()
        }
    elif callable(header := getattr(denoiser, "teacher_header", None)):
        described["config"] = header()["config"]
    if callable(describe := getattr(denoiser, "describe", None)):
        described |= describe()
    return described


def check_options(options: Mapping[str, Any], *others: str) -> None:
    """Refuse options that a teacher does not have; the denoiser comes from the file.

    Raises:
        TypeError: it names the nearest of those there are, and of ``others``.
    """
    allowed = [name for name in signature(Teacher).parameters if name != "denoiser"]
    for option in options:
        if option not in allowed:
            raise TypeError(unknown("option of a teacher", option, [*allowed, *others]))


def _shape_known(denoiser: Denoiser) -> tuple[int, int, int] | None:
    """The images (C, S, S) that a denoiser takes, where it or its network's config says so."""
    config = getattr(getattr(denoiser, "network", denoiser), "config", None)
    channels = getattr(denoiser, "img_channels", getattr(config, "channels", None))
    side = getattr(denoiser, "img_resolution", getattr(config, "image_size", None))
    if isinstance(channels, int) and isinstance(side, int):
        return channels, side, side
    return None


def weights_sha256(module: nn.Module) -> str:
    """Hash of a module's names, dtypes, shapes and bytes, whatever its device and memory format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # (numel,)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _device_of(denoiser: Denoiser, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if isinstance(denoiser, nn.Module):
        first = next(iter(denoiser.parameters()), None)
        if first is not None:
            return first.device
    return torch.device("cpu")
