"""What every preconditioned network checks, and what one cannot be asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deqgen.teachers import Teacher
from deqgen.teachers.preconditioning import PRECONDITIONERS
from tests.teachers.edm_networks import toy


def test_a_network_that_never_learnt_no_class_is_only_sampled_with_its_classes() -> None:
    options: dict[str, Any] = {"image_shape": (3, 16, 16), "num_classes": 4}
    teacher = Teacher(toy("edm-ddpmpp"), **options)
    for refused in (
        lambda: teacher.replace(guidance=2.0),
        teacher.unconditional,
        lambda: teacher.replace(num_classes=0),
    ):
        with pytest.raises(ValueError, match='label_dropout 0 and has never learnt "no class"'):
            refused()
    assert Teacher(toy("edm-ddpmpp", label_dropout=0.1), **options).unconditional().nfe == 35
    assert Teacher(toy("edm-ddpmpp", label_dim=0), image_shape=(3, 16, 16)).num_classes == 0


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("EDMPrecond", {"sigma_data": math.nan}, "sigma_data must be a positive .*, got nan"),
        ("EDMPrecond", {"sigma_data": "x"}, "sigma_data must be .*, got 'x'"),
        ("VPPrecond", {"beta_d": -1.0}, "beta_d must be"),
        ("VEPrecond", {"sigma_max": ()}, "sigma_max must be"),
        ("iDDPMPrecond", {"M": 0}, "M must be"),
        ("EDMPrecond", {"img_channels": 3.0}, "img_channels must be an integer from 1 on"),
        ("EDMPrecond", {"label_dim": -1}, "label_dim must be an integer from 0 on, got -1"),
    ],
)
def test_impossible_numbers_are_named(name: str, changes: dict[str, Any], words: str) -> None:
    kwargs = {"img_resolution": 16, "img_channels": 3, **changes}
    with pytest.raises(ValueError, match=words):
        PRECONDITIONERS[name](**kwargs)
