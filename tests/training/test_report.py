"""report.html: one file, whole, with every number in it, that asks the network for nothing."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqgen.data.sample_writers import write_grid
from deqgen.training.curves import HEIGHT, WIDTH, curve_svg, short
from deqgen.training.evaluations import EVALUATIONS, add_evaluation, read_evaluations
from deqgen.training.report import number, thin, write_report

VOID = {"meta", "img", "wbr", "path", "circle", "polyline"}


class Page(HTMLParser):
    """All elements and texts; fails on a tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


ROWS = [
    {
        "images": 64 * step,
        "loss": 1.5 / step,
        "learning_rate": 1e-4 * step,
        "gradient_norm": 0.123456789 * step,
        "seconds": 1.25 * step,
    }
    for step in range(1, 9)
]
ROWS.insert(4, {"images": 256, "fd_cifar10": 140.123456, "seconds": 6.0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "00003-GET-N-8-<pairs>"
    folder.mkdir()
    config = {"model": {"name": "GET-N/8", "config": {"width": 4}}, "training": {"images": 512}}
    (folder / "config.json").write_text(json.dumps(config))
    sessions = [{"python": "3.10", "packages": {"torch": "2.6"}}, {"python": "3.11"}]
    (folder / "environment.json").write_text(json.dumps(sessions))
    (folder / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for images in (256, 512):
        fingerprint = {"features": "cifar10", "seeds": "0..15", "model_hash": f"{images:x}"}
        add_evaluation(
            folder / EVALUATIONS, images, {"fd_cifar10": 140.123456, "is": 1.5}, fingerprint
        )
        pixels = np.full((5, 4, 4, 3), images // 4, dtype=np.uint8)
        write_grid(folder / "samples" / f"{images:012d}.png", [pixels], 5)
    return folder


def written(folder: Path) -> tuple[str, Page]:
    text = write_report(folder).read_text(encoding="utf-8")
    return text, Page(text)


def test_every_number_of_the_statistics_is_in_it(folder: Path) -> None:
    _, page = written(folder)
    cells = {text.replace(",", "") for text in page.texts}
    for row in ROWS:
        for value in row.values():
            assert f"{value:.6g}" in cells
    assert "Not finished: 512 of 512 images in 10 s, loss 0.1875." in page.text
    (folder / "finished.json").write_text("{}")
    assert "Finished: 512 of 512 images" in written(folder)[1].text


def test_it_needs_no_network_and_no_script(folder: Path) -> None:
    text, page = written(folder)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert re.findall(r"url\(", text) == []
    metas = [attributes for tag, attributes in page.elements if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert "prefers-color-scheme: dark" in text


def test_samples_are_the_files_newest_first(folder: Path) -> None:
    _, page = written(folder)
    sources = [a["src"] for tag, a in page.elements if tag == "img"]
    files = sorted((folder / "samples").glob("*.png"), reverse=True)
    found = [base64.b64decode((source or "").partition(",")[2]) for source in sources]
    assert found == [file.read_bytes() for file in files]


def test_evaluations_show_what_differs_in_the_table_and_the_rest_once(folder: Path) -> None:
    _, page = written(folder)
    assert "after images fd_cifar10 is model_hash 256 140.123 1.5 100" in page.text
    assert page.texts.count("0..15") == 1


def test_names_and_settings_are_text(folder: Path) -> None:
    _, page = written(folder)
    assert "00003-GET-N-8-<pairs>" in page.texts
    assert "GET-N/8" in page.texts and "session 1 of 2" in page.text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    text, page = written(tmp_path)
    assert "No row of the log has been written yet." in page.text and len(text) < 10_000


def test_a_long_run_stays_a_small_file(folder: Path) -> None:
    rows = [{**ROWS[0], "images": 64 * step} for step in range(1, 20_001)]
    (folder / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text, page = written(folder)
    assert len(text) < 1_000_000
    assert "2,000 of 20,000 rows" in page.text and "1,280,000" in page.texts


@given(st.integers(0, 50), st.integers(2, 20))
def test_thinning_keeps_order_and_both_ends(count: int, most: int) -> None:
    kept = thin(range(count), most)
    assert len(kept) == min(count, most) and kept == sorted(set(kept))
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


points = st.lists(st.tuples(st.integers(0, 10**9), st.floats(-1e30, 1e30)), min_size=1, max_size=20)


@given(points, st.booleans())
def test_a_curve_stays_in_its_frame(values: list[tuple[float, float]], log: bool) -> None:
    svg = curve_svg("a < b", [*values, (5, math.nan), (6, math.inf)], log=log)
    page = Page(svg)
    drawn = [a for tag, a in page.elements if tag == "polyline"]
    numbers = re.findall(r"-?[\d.]+", " ".join(a["points"] or "" for a in drawn))
    assert len(numbers) == (2 * len(values) if len(values) > 1 else 0)
    for x, y in zip(numbers[::2], numbers[1::2], strict=True):
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT
    assert "nan" not in svg and "inf" not in svg


def test_axes_have_a_few_round_numbers() -> None:
    page = Page(curve_svg("loss", [(0, 0.011), (1_000_000, 0.9)], log=True))
    across, up = ["0", "200k", "400k", "600k", "800k", "1M"], ["0.02", "0.05", "0.1", "0.2", "0.5"]
    assert page.texts == ["loss (log)", *across, *up]
    page = Page(curve_svg("loss", [(0, 0.0), (50, -3.0)], log=True))  # what has no logarithm
    assert page.texts == ["loss", "0", "10", "20", "30", "40", "50", "-3", "-2", "-1", "0"]
    assert "nothing to show yet" in curve_svg("loss", [])
    assert Page(curve_svg("rate", [(5, 0.25)])).texts[0] == "rate"  # one point has no range
    found = [short(value) for value in (0, 3e-7, 1500, 2e7, -1.5e9)]
    assert found == ["0", "3e-07", "1.5k", "20M", "-1.5G"]


def test_narrow_ticks_are_told_apart_and_fit() -> None:
    page = Page(curve_svg("fid", [(0, 144.31), (50, 144.405)]))
    up = page.texts[7:]
    assert up == ["144.32", "144.34", "144.36", "144.38", "144.4"]
    page = Page(curve_svg("fid", [(0, 14431.2), (1, 14431.6)]))
    up = page.texts[7:]
    assert up == ["14.4312k", "14.4313k", "14.4314k", "14.4315k", "14.4316k"]
    labels = [a for tag, a in page.elements if tag == "text" and a["class"] == "y"]
    assert all(float(a["x"] or 0) >= 7 * len("14.4312k") for a in labels)  # of 13 pixels' type


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_no_two_ticks_have_one_label(low: float, room: float, log: bool) -> None:
    page = Page(curve_svg("a", [(0, low), (1, low + room)], log=log))
    for kind in "xy":
        labels = [
            a["y" if kind == "y" else "x"] for t, a in page.elements if a.get("class") == kind
        ]
        assert len(set(labels)) == len(labels)
    up = page.texts[7:]
    assert len(set(up)) == len(up) >= 2


def test_damaged_records_are_left_out_and_named(folder: Path) -> None:
    whole = (folder / EVALUATIONS).read_text()
    count = len(whole.splitlines())
    bad = ['{"images": 3', "3", '{"images": 1, "numbers": {"a": "b"}, "fingerprint": {}}']
    (folder / EVALUATIONS).write_text("\n".join([*bad, whole]))
    (folder / "config.json").write_text("[1]")
    (folder / "environment.json").write_text("{")
    with (
        pytest.warns(UserWarning, match=rf"3 of {3 + count} lines of .*evaluations\.jsonl"),
        pytest.warns(UserWarning, match=r"config\.json is damaged"),
        pytest.warns(UserWarning, match=r"environment\.json is damaged"),
    ):
        _, page = written(folder)
    assert "140.123" in page.text and "Not finished: 512 images" in page.text


def test_numbers_of_tables() -> None:
    found = [number(value) for value in (None, 3, 3.0, 0.1234567, 12_800_000, math.inf, "a<b")]
    assert found == ["–", "3", "3", "0.123457", "12,800,000", "inf", "a&lt;b"]


def test_evaluations_beyond_a_resumption_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / EVALUATIONS
    for images, value in ((10, 1.0), (20, 2.0), (10, 3.0)):
        add_evaluation(path, images, {"fid": value}, {})
    lines: list[dict[str, Any]] = read_evaluations(path)
    assert [(line["images"], line["numbers"]) for line in lines] == [(10, {"fid": 3.0})]
    assert read_evaluations(tmp_path / "none") == []
