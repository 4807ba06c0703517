"""Pictures of samples on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen import create_model, generate
from deqgen.data.sample_writers import to_pixels
from deqgen.training import TrainConfig
from deqgen.training.distributed import make_accelerator
from deqgen.training.hooks import Moment
from deqgen.training.looks import SampleGrid, as_colours


@pytest.mark.parametrize("classes", [None, 3])
def test_the_grid_is_of_the_first_seeds_and_classes_in_turn(
    tmp_path: Path, classes: int | None
) -> None:
    model = create_model("GET-N/4", image_size=8, num_classes=classes).eval()
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)  # zero at the start
    moment = Moment(96, model, make_accelerator(TrainConfig(images=96)), tmp_path)
    SampleGrid(4)(moment)
    SampleGrid(4)(moment)  # again, after a kill
    images = generate(model, range(4), [0, 1, 2, 0] if classes else None)
    pixels = to_pixels(images)
    path = tmp_path / "samples" / "000000000096.png"
    found = np.asarray(Image.open(path))
    assert found.shape == (16, 16, 3)
    assert np.array_equal(found[:8, 8:], pixels[1]) and np.array_equal(found[8:, :8], pixels[2])
    assert not np.array_equal(pixels[0], pixels[3])
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_latents_are_shown_in_units_of_their_largest_value(channels: int, shown: int) -> None:
    images = 5 * torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    colours = as_colours(images)
    assert colours.shape == (2, shown, 4, 4)
    assert channels in (1, 3) or float(colours.abs().max()) == 1.0
    assert channels not in (1, 3) or colours is images
    assert as_colours(torch.zeros(1, 4, 2, 2)).abs().max() == 0
