"""Names, options, and what is said about wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from deqgen.gradients import (
    JFB,
    GradientEstimator,
    Implicit,
    Phantom,
    Unrolled,
    available_gradients,
    make_gradient,
    register_gradient,
)


def test_names_and_objects() -> None:
    assert make_gradient("unrolled", steps=6) == Unrolled(6)
    assert make_gradient("phantom", damping=0.2, mode="neumann") == Phantom(5, 0.2, "neumann")
    assert make_gradient("jfb") == JFB()
    assert isinstance(make_gradient("implicit", solver="broyden"), Implicit)
    mine = Unrolled(3)
    assert make_gradient(mine) is mine
    assert {"implicit", "phantom", "jfb", "unrolled"} <= set(available_gradients())


def test_an_estimator_of_ones_own() -> None:
    class Mine:
        keeps_answer = False

        def differentiate(self, f: Any, z0: Any, args: Any, forward: Any) -> Any: ...

    register_gradient("mine-for-this-test")(Mine)
    assert isinstance(make_gradient("mine-for-this-test"), GradientEstimator)
    with pytest.raises(ValueError, match="exists already"):
        register_gradient("mine-for-this-test")(Mine)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        (["implict"], {}, ValueError, "Did you mean 'implicit'"),
        (["unrolled"], {"step": 3}, TypeError, "Did you mean 'steps'"),
        (["jfb"], {"steps": 3}, TypeError, "Allowed: none"),
        ([Unrolled(2)], {"steps": 3}, TypeError, "go with a name"),
        ([Unrolled], {}, TypeError, "no gradient estimator"),
        ([3], {}, TypeError, "no gradient estimator"),
        (["unrolled"], {"steps": 0}, ValueError, "at least 1"),
        (["unrolled"], {"every": 0}, ValueError, "at least 1"),
        (["unrolled"], {"steps": 6, "every": 4}, ValueError, "every=4 does not divide steps=6"),
        (["phantom"], {"steps": 0}, ValueError, "at least 1"),
        (["phantom"], {"damping": 0.0}, ValueError, r"\(0, 1\]"),
        (["phantom"], {"damping": 1.5}, ValueError, r"\(0, 1\]"),
        (["phantom"], {"mode": "neuman"}, ValueError, "Did you mean 'neumann'"),
        (["implicit"], {"max_steps": 0}, ValueError, "at least 1"),
        (["implicit"], {"solver": "andersen"}, ValueError, "anderson"),
    ],
)
def test_mistakes(
    arguments: list[Any], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make_gradient(*arguments, **options)
