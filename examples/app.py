"""A page to play with a trained model: seed, class, solver and iterations, images and residuals.

    make app                                                # or, with the extra demo installed,
    python examples/app.py
    python examples/app.py --model runs/distill_cifar-demo/student.safetensors --port 8000

It is served on this machine alone, at http://127.0.0.1:7860, and asks nothing of the network: not
for the page, not for its fonts, not for a model. Ctrl-C ends it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Read when the libraries are imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"

import tyro

from deqgen.evaluation import CIFAR10_CLASSES
from deqgen.models import (
    EquilibriumModel,
    GenerativeModel,
    embedded_models,
    open_model,
    parameter_count,
)
from deqgen.solvers import available_solvers
from page.view import CSS, Choice, curve_html, draw, error_html, images_html, said_html

HERE = "127.0.0.1"
IN_TURN = "all in turn"

PAGE_CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto; }
"""


@dataclass(frozen=True)
class Options:
    """What to show, and where."""

    model: str = "get-nano-cifar10"
    """An embedded model, a .safetensors file, a folder, or a training run."""
    port: int = 7860
    """Of the page, on this machine."""


class Page:
    """What the page's controls do.

    Args:
        model: on the CPU.
        name: what it is called.
    """

    def __init__(self, model: GenerativeModel, name: str) -> None:
        self.model, self.name = model.eval(), name
        classes = model.config.num_classes or 0
        known = name in embedded_models() and classes == len(CIFAR10_CLASSES)
        self.class_names: Sequence[str] = (
            CIFAR10_CLASSES if known else [f"class {number}" for number in range(classes)]
        )

    def show(self, seed: float | None, label: str, solver: str, steps: int) -> tuple[Any, Any, str]:
        """Images, curve and a sentence; after a mistake the sentence alone, and None for them."""
        try:
            chosen = None if label == IN_TURN else list(self.class_names).index(label)
            drawn = draw(self.model, Choice(seed, chosen, solver, int(steps)))
        except (ValueError, TypeError, RuntimeError) as error:
            return None, None, error_html(str(error))
        return images_html(drawn, self.class_names), curve_html(drawn), said_html(drawn)

    def heading(self) -> str:
        """The page's first lines."""
        model, config = self.model, self.model.config
        side = config.image_size
        parts = [
            f"**{self.name}**",
            model.architecture,
            f"{parameter_count(model):,} parameters",
            f"{side}×{side}",
            f"{config.num_classes} classes" if config.num_classes else "unconditional",
        ]
        return f"# Images from an equilibrium\n{' · '.join(parts)}"


def build(page: Page) -> Any:
    """The page as gradio's Blocks."""
    import gradio as gr

    def show(*asked: Any) -> list[Any]:
        return [gr.skip() if part is None else part for part in page.show(*asked)]

    model = page.model
    solves = isinstance(model, EquilibriumModel)
    names = [name for name in available_solvers() if not name.startswith("torchdeq/")]
    own = page.model.config.solver if solves else None
    solvers = names if own in names else ["", *names]  # "": an object, the model's own
    budget = model.config.max_steps if solves else 1
    with gr.Blocks(title=f"deqgen: {page.name}") as blocks:
        gr.Markdown(page.heading())
        with gr.Row():
            with gr.Column(scale=3, min_width=260):
                seed = gr.Number(0, label="Seed of the noise", precision=0, elem_id="seed")
                more = gr.Button("Next seeds", size="sm", elem_id="more")
                label = gr.Dropdown(
                    [IN_TURN, *page.class_names],
                    value=IN_TURN,
                    label="Class",
                    visible=bool(page.class_names),
                    elem_id="label",
                )
                solver = gr.Dropdown(
                    solvers, value=own or "", label="Solver", visible=solves, elem_id="solver"
                )
                steps = gr.Slider(
                    1,
                    max(30, 2 * budget),
                    value=budget,
                    step=1,
                    label="Iterations",
                    info=f"The model's own: {budget}.",
                    visible=solves,
                    elem_id="steps",
                )
                said = gr.HTML(elem_id="said")
            with gr.Column(scale=7, min_width=320):
                images = gr.HTML(elem_id="images")
                curve = gr.HTML(elem_id="curve")
        asked = [seed, label, solver, steps]
        gr.on(
            [blocks.load, *(each.change for each in asked)],
            show,
            asked,
            [images, curve, said],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        more.click(
            lambda first: (first or 0) + 9, seed, seed, queue=False, api_visibility="private"
        )
    return blocks


def serve(page: Page, port: int) -> None:
    """Serve the page on this machine until Ctrl-C.

    Raises:
        OSError: the port is taken, or none.
        ModuleNotFoundError: gradio is not installed.
    """
    check_port(port)
    import gradio as gr

    # Fonts by their names on this machine: nothing is fetched for them.
    theme = gr.themes.Default(
        primary_hue="teal",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    blocks = build(page)
    blocks.launch(
        server_name=HERE,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        theme=theme,
        css=CSS + PAGE_CSS,
    )
    print(f"{page.name}: open http://{HERE}:{port} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


def check_port(port: int) -> None:
    """Refuse a port that cannot be had, in a sentence that tells what to do."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HERE, port))
        except (OSError, OverflowError) as error:
            said = f"port {port} cannot be had ({error}); choose another with --port"
            raise OSError(said) from None


def main(options: Options) -> None:
    model = open_model(options.model)
    if model.config.channels not in (1, 3):
        raise ValueError(f"{options.model} gives {model.config.channels} channels, latents")
    if getattr(model.config, "noise_level", False):
        raise ValueError(f"{options.model} is a denoiser, which takes noise levels")
    serve(Page(model, options.model), options.port)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        main(options)
    except KeyboardInterrupt:
        sys.exit(0)
    except ModuleNotFoundError as error:
        sys.exit(f"app: {error}; the page needs the extra demo: pip install 'deqgen[demo]'")
    except (ValueError, OSError) as error:
        sys.exit(f"app: {error}")
