"""What the page of app.py shows: nine images and how their residuals fall, as HTML and SVG.

Letters: B samples, C channels, H and W pixels, T evaluations of the cell.
"""

from __future__ import annotations

import io
import math
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from deqgen.data.noise import SEED_LIMIT, generators_for, noise_for
from deqgen.data.sample_writers import to_pixels
from deqgen.models import EquilibriumModel, GenerativeModel
from deqgen.solvers import NewtonKrylov, Solver, Tolerance

SHOWN = 9  # images: that of the seed asked for, large, and those of the seeds that follow

_LEAST = 1e-16  # residual that is drawn
# By default it asks for forward mode, which fused attention does not have on a CPU.
_INSTEAD: dict[str, Solver[Any]] = {"newton_krylov": NewtonKrylov(jvp="difference")}

CSS = """
.deqgen-images { display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px; }
.deqgen-images figure { position: relative; margin: 0; }
.deqgen-images figure:first-child { grid-column: span 2; grid-row: span 2; }
.deqgen-images img { display: block; width: 100%; border-radius: 4px; image-rendering: pixelated; }
.deqgen-images figcaption { position: absolute; left: 4px; bottom: 4px; padding: 0 5px;
  max-width: calc(100% - 8px); box-sizing: border-box; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; border-radius: 4px; font-size: 11px; line-height: 17px; color: white;
  background: #0009; }
.deqgen-curve svg { display: block; width: 100%; max-width: 440px; height: auto; }
.deqgen-curve text { fill: currentColor; stroke: none; }
.deqgen-curve .first { color: var(--color-accent, currentColor); stroke: currentColor; }
.deqgen-curve p, .deqgen-said { font-size: 13px; opacity: .8; margin: 4px 0 0; }
.deqgen-said[role=alert] { color: #c2410c; opacity: 1; font-weight: 600; }
@media (max-width: 640px) {
  .deqgen-images { grid-template-columns: repeat(4, 1fr); }
  .deqgen-images figcaption { left: 2px; bottom: 2px; max-width: calc(100% - 4px);
    font-size: 10px; line-height: 14px; }
}
"""


@dataclass(frozen=True)
class Choice:
    """What a visitor asks for.

    Args:
        seed: of the first image, a whole number.
        label: class of all images; None takes the classes in turn, by the seed.
        solver: name; None for the model's own.
        steps: iterations of the solver; most solvers evaluate the cell once in each.
    """

    seed: float | None
    label: int | None = None
    solver: str | None = None
    steps: int = 6


@dataclass(frozen=True)
class Drawn:
    """What came of it.

    Attributes:
        seeds: B of them.
        labels: B of them, or None for an unconditional model.
        images: about [-1, 1], (B, C, H, W).
        residual: ||f(z) - z|| relative to the first, (T, B); None without an equilibrium.
        evaluations: of the cell, those included that a solver makes within a step.
        seconds: that it took.
    """

    seeds: Sequence[int]
    labels: Sequence[int] | None
    images: Tensor
    residual: Tensor | None
    evaluations: int
    seconds: float


@torch.no_grad()
def draw(model: GenerativeModel, choice: Choice) -> Drawn:
    """Generate the images of a choice; their whole budget is spent.

    Raises:
        ValueError: a seed or number of steps out of range, an unknown solver.
    """
    started = time.perf_counter()
    seeds, classes = _seeds(choice.seed), model.config.num_classes
    labels = None
    if classes:
        labels = [seed % classes if choice.label is None else choice.label for seed in seeds]
    options: dict[str, object] = {}
    if isinstance(model, EquilibriumModel):
        spend_all = Tolerance(atol=0.0, rtol=0.0)
        options = {"max_steps": choice.steps, "tol": spend_all, "trace": True}
        if choice.solver:
            options["solver"] = _INSTEAD.get(choice.solver, choice.solver)
    generators = generators_for(seeds)
    noise = noise_for(generators, model.config.image_shape)  # (B, C, H, W)
    label = None if labels is None else torch.tensor(labels)  # (B,)
    out = model(noise, label, generator=generators, **options)
    residual, evaluations = None, 1
    if out.equilibrium is not None:
        trace = out.equilibrium.solution.trace.residual  # (T, B)
        residual, evaluations = trace / trace[0], out.equilibrium.solution.nfe
    seconds = time.perf_counter() - started
    return Drawn(seeds, labels, out.image, residual, evaluations, seconds)


def images_html(drawn: Drawn, class_names: Sequence[str]) -> str:
    """The images, the first one large; browsers enlarge them without smoothing."""
    figures = []
    for place, pixels in enumerate(to_pixels(drawn.images)):
        name = class_names[drawn.labels[place]] if drawn.labels is not None else ""
        seed = f"seed {drawn.seeds[place]}"
        full = f"{seed}, {name}" if name else seed
        caption = escape(full if place == 0 else name or seed)
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, format="png")
        data = b64encode(picture.getvalue()).decode()
        figures.append(
            f'<figure title="{escape(full)}"><img alt="{escape(full)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    return f'<div class="deqgen-images">{"".join(figures)}</div>'


def said_html(drawn: Drawn) -> str:
    """In one line what it took, and how far it got."""
    took = f"{len(drawn.seeds)} images in {drawn.seconds * 1e3:.0f} ms"
    if drawn.residual is None:
        return f'<p class="deqgen-said">{took}, one pass: this model has no equilibrium.</p>'
    least = float(_finite(drawn.residual[:, 0]).min())
    return (
        f'<p class="deqgen-said">{took}, {drawn.evaluations} evaluations of the cell. '
        f"Least residual of seed {drawn.seeds[0]}: {least:.2g} of the first.</p>"
    )


def error_html(sentence: str) -> str:
    """A mistake, in one sentence."""
    return f'<p class="deqgen-said" role="alert">{escape(" ".join(sentence.split()))}</p>'


def curve_svg(residual: Tensor) -> str:
    """How residuals (T, B) fall: the first sample's bold, with a dot where its image was taken."""
    count = len(residual)
    heights, marks = _axis(_finite(residual))

    def x(place: int) -> float:
        return 44 + 308 * (place / (count - 1) if count > 1 else 0.5)

    parts = []
    for value, mark in marks.items():
        at = heights(value)
        parts.append(
            f'<path d="M44 {at:.1f}H352" opacity=".18"/>'
            f'<text x="37" y="{at + 4:.1f}" text-anchor="end">{mark}</text>'
        )
    for place in range(0, count, max(1, math.ceil(count / 10))):
        parts.append(f'<text x="{x(place):.1f}" y="180" text-anchor="middle">{place + 1}</text>')
    for sample in reversed(range(residual.shape[1])):  # the first one on top
        points = [
            f"{x(place):.1f},{heights(value):.1f}"
            for place, value in enumerate(residual[:, sample].tolist())
            if math.isfinite(value)
        ]
        style = 'class="first" stroke-width="2.5"' if sample == 0 else 'opacity=".35"'
        parts.append(f'<polyline points="{" ".join(points)}" {style}/>')
    best = int(residual[:, 0].nan_to_num(torch.inf).argmin())
    if math.isfinite(value := float(residual[best, 0])):
        dot = f'cx="{x(best):.1f}" cy="{heights(value):.1f}"'
        parts.append(f'<circle class="first" {dot} r="4" fill="currentColor"/>')
    return (
        '<svg viewBox="0 0 360 200" role="img" aria-label="residual by iteration" fill="none" '
        f'stroke="currentColor" stroke-width="1.2" font-size="12">{"".join(parts)}'
        '<text x="198" y="198" text-anchor="middle">iteration</text></svg>'
    )


def _axis(values: Tensor) -> tuple[Callable[[float], float], dict[float, str]]:
    """Where a residual is drawn, and what is marked: a logarithmic axis from a decade on."""
    least, most = max(float(values.min()), _LEAST), max(float(values.max()), _LEAST)
    if most / least < 10:
        step = 10 ** math.floor(math.log10(max(most - least, 1e-3 * most)))
        step *= 2 if (most - least) / step > 4 else 1
        low = math.floor(least / step + 1e-9)
        high = max(math.ceil(most / step - 1e-9), low + 1)
        marks = {step * mark: f"{step * mark:.6g}" for mark in range(low, high + 1)}
        return _between(step * low, step * high), marks
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    scale = _between(low, high)
    return (
        lambda value: scale(math.log10(max(value, _LEAST))),
        {
            10.0**power: f'10<tspan dy="-4" font-size="9">{power}</tspan>'
            for power in range(low, high + 1, math.ceil((high - low) / 5))
        },
    )


def _between(low: float, high: float) -> Callable[[float], float]:
    """Heights in the picture, from ``low`` at the bottom to ``high`` at the top."""
    return lambda value: 12 + 148 * (high - value) / (high - low)


def curve_html(drawn: Drawn) -> str:
    """The curve with its caption; nothing without an equilibrium."""
    if drawn.residual is None:
        return ""
    first = drawn.seeds[0]
    return (
        f'<div class="deqgen-curve">{curve_svg(drawn.residual)}<p>Residual ‖f(z) − z‖, relative to '
        f"the first one. Bold: seed {first}; the dot is the iterate whose image is shown. Thin: "
        "the eight others.</p></div>"
    )


def _seeds(first: float | None) -> list[int]:
    most = SEED_LIMIT - SHOWN
    if first is None or not 0 <= first <= most or first != int(first):
        raise ValueError(f"The seed is a whole number from 0 to {most:,}.")
    return list(range(int(first), int(first) + SHOWN))


def _finite(values: Tensor) -> Tensor:
    """What is finite and above zero among some residuals, or 1: what a logarithm can show."""
    shown = values[values.isfinite() & (values > 0)]
    return shown if len(shown) else torch.ones(1)
