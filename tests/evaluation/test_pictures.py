from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen.evaluation.pictures import save_curves, save_rows


def test_rows_show_the_images_that_were_given(tmp_path: Path) -> None:
    red = torch.full((3, 3, 8, 8), -1.0)
    red[:, 0] = 1.0
    save_rows({"a": red, "b": -red}, tmp_path / "r.png", columns=["x", "y", "z"])
    with Image.open(tmp_path / "r.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ([255, 0, 0], [0, 255, 255]):
        assert (pixels == colour).all(axis=1).mean() > 0.1


def test_rows_must_fit_together(tmp_path: Path) -> None:
    images = torch.zeros(2, 1, 4, 4)
    save_rows({"a": images}, tmp_path / "gray.png")
    with pytest.raises(ValueError, match="of one length"):
        save_rows({"a": images, "b": images[:1]}, tmp_path / "r.png")
    with pytest.raises(ValueError, match="2 columns need as many titles, got 1"):
        save_rows({"a": images}, tmp_path / "r.png", columns=["x"])


def test_curves(tmp_path: Path) -> None:
    save_curves({"GET": ([1, 2, 3], [3.0, 2.0, 1.0]), "ViT": ([1], [2.0])}, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (720, 432)
