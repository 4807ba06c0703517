"""examples/app.py: what the page shows, and the page itself in a browser."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen.data.sample_writers import to_pixels
from deqgen.models import create_model, open_model, save_model
from deqgen.sampling import generate
from deqgen.solvers import available_solvers
from tests.examples.running import here, start
from tests.models.test_behaviour import small

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]


@pytest.fixture
def view(examples: Path) -> Any:
    return importlib.import_module("page.view")


@pytest.fixture
def page(examples: Path) -> Any:
    return importlib.import_module("app").Page(open_model("get-nano-cifar10"), "get-nano-cifar10")


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_the_images_are_those_of_generate(page: Any) -> None:
    images, curve, said = page.show(3, "all in turn", "picard", 6)
    shown = pictures(images)
    seeds = list(range(3, 12))
    wanted = to_pixels(generate(page.model, seeds, [seed % 10 for seed in seeds]))
    assert np.abs(np.stack(shown).astype(int) - wanted.astype(int)).max() <= 1
    assert "seed 3, cat" in images and ">truck<" in images
    assert "9 images in" in said and "6 evaluations of the cell" in said
    assert curve.count("<polyline") == 9 and "Bold: seed 3" in curve


def test_each_control_has_its_effect(page: Any) -> None:
    first = page.show(0, "all in turn", "picard", 6)
    for asked in ((1, "all in turn", "picard", 6), (0, "dog", "picard", 6)):
        assert page.show(*asked)[0] != first[0]
    for asked in ((0, "all in turn", "anderson", 6), (0, "all in turn", "picard", 12)):
        images, curve, _ = page.show(*asked)
        assert images != first[0] and curve != first[1]
    line = re.findall(r'points="([^"]+)" class="first"', page.show(0, "dog", "picard", 12)[1])
    assert len(line) == 1 and len(line[0].split()) == 12


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None, float("inf"), float("nan")])
def test_a_mistake_is_one_sentence(seed: Any, page: Any) -> None:
    images, curve, said = page.show(seed, "dog", "picard", 6)
    assert images is None and curve is None
    assert 'role="alert">The seed is a whole number from 0 to 4,294,967,287.</p>' in said
    assert "&lt;" in page.show(0, "dog", "<b>", 6)[2]
    assert 'role="alert"' in page.show(0, "unicorn", "picard", 6)[2]


def test_every_solver_on_offer_gives_images(page: Any) -> None:
    """Newton's method too, whose forward mode fused attention does not have on a CPU."""
    for solver in available_solvers():
        if not solver.startswith("torchdeq/"):
            assert len(pictures(page.show(0, "all in turn", solver, 2)[0])) == 9, solver


def test_a_model_without_classes_or_equilibrium(examples: Path) -> None:
    app = importlib.import_module("app")
    model = small("ViT", num_classes=None, channels=1)
    images, curve, said = app.Page(model, "vit.safetensors").show(0, "all in turn", "", 1)
    assert len(pictures(images)) == 9 and pictures(images)[0].shape == (8, 8, 3)
    assert curve == "" and "no equilibrium" in said and ">seed 1<" in images
    heading = app.Page(small(), "a.safetensors").heading()
    assert "5 classes" in heading and "GET" in heading


def test_the_axis_holds_every_residual(view: Any) -> None:
    """Heights fall as values rise, all within the picture; marks are round and within too."""
    for values in ([1.0, 0.9, 1.03], [1.0, 1e-3, 2e-9], [1.0], [1.0, 40.0], [1.0, 1e-300]):
        heights, marks = view._axis(torch.tensor(values, dtype=torch.float64))
        at = [heights(value) for value in sorted(values)]
        assert at == sorted(at, reverse=True)
        assert all(11.9 <= each <= 160.1 for each in [*at, *map(heights, marks)])
        assert 2 <= len(marks) <= 8
    assert list(view._axis(torch.tensor([1.0, 0.85]))[1].values()) == ["0.8", "0.9", "1"]


def test_a_curve_with_gaps(view: Any) -> None:
    residual = torch.tensor([[1.0, 1.0], [0.1, torch.nan], [torch.inf, torch.nan]])
    svg = view.curve_svg(residual)
    first, second = (
        len(points.split()) for points in reversed(re.findall(r'points="([^"]+)"', svg))
    )
    assert (first, second) == (2, 1)
    assert "nan" not in svg and "inf" not in svg
    assert "nan" not in view.curve_svg(torch.full((3, 2), torch.nan))


def test_the_command_ends_in_a_sentence(tmp_path: Path) -> None:
    latent = save_model(small(channels=4), tmp_path / "latent.safetensors")
    noisy = save_model(small(noise_level=True), tmp_path / "noisy.safetensors")
    with patch.dict(sys.modules, {"gradio": None}):
        for arguments, message in (
            (("--model", latent), "gives 4 channels, latents"),
            (("--model", noisy), "is a denoiser"),
            (("--model", "get-nano-cifr10"), "Did you mean 'get-nano-cifar10'?"),
            (("--model", tmp_path / "none.safetensors"), "there is no model at"),
            ((), "the page needs the extra demo: pip install 'deqgen[demo]'"),
        ):
            done = here("app.py", *arguments)
            assert done.returncode == 1 and message in done.stderr
            assert "Traceback" not in done.stderr


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page, served by a process of its own."""
    if MISSING:
        pytest.skip(f"needs {', '.join(MISSING)}")
    port = free_port()
    served = start("app.py", "--port", port)
    try:
        assert served.stdout is not None
        said = served.stdout.readline()
        assert f"open http://127.0.0.1:{port} " in said, served.communicate()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        served.terminate()
        served.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(address: str, width: int) -> None:
    """Controls change picture and curve; nothing is asked for elsewhere; mistakes are told."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.set_default_timeout(300_000)
        expect.set_options(timeout=300_000)
        requests: list[str] = []
        errors: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(address)
        line, picture = tab.locator("#curve polyline.first"), tab.locator("#images img").first
        expect(tab.locator("#images img")).to_have_count(9)
        expect(line).to_have_count(1)
        before = line.get_attribute("points"), picture.get_attribute("src")
        assert len(str(before[0]).split()) == 6

        tab.locator("#steps input[type=range]").focus()
        for _ in range(3):
            tab.keyboard.press("ArrowRight")
        expect(tab.locator("#said")).to_contain_text("9 evaluations of the cell")
        expect(line).not_to_have_attribute("points", str(before[0]))
        expect(picture).not_to_have_attribute("src", str(before[1]))
        assert len(str(line.get_attribute("points")).split()) == 9

        tab.locator("#more").click()
        expect(tab.locator("#images figcaption").first).to_have_text("seed 9, truck")
        tab.locator("#seed input").fill("-1")
        expect(tab.locator("#said [role=alert]")).to_contain_text("The seed is a whole number")
        expect(tab.locator("#images img")).to_have_count(9)
        box = tab.locator("body").evaluate("body => body.scrollWidth")
        assert box <= width  # nothing sticks out sideways
        browser.close()
    elsewhere = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert len(requests) > 3 and elsewhere == [] and errors == []


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = here("app.py", "--port", port)
    assert done.returncode == 1 and done.stderr.startswith(f"app: port {port} cannot be had")
    assert "port -1 cannot be had" in here("app.py", "--port", "-1").stderr


def test_an_unconditional_deq_unet(examples: Path) -> None:
    app = importlib.import_module("app")
    options = {"width": 16, "scales": 2, "groups": 4, "patch_size": 4, "image_size": 16}
    page = app.Page(create_model("DEQ-UNet-T", **options), "unet")
    images, curve, said = page.show(0, "all in turn", "anderson", 4)
    assert len(pictures(images)) == 9 and "4 evaluations" in said and "iteration" in curve
