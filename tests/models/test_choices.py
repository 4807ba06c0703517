"""Solvers and gradient estimators in a config, through JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.gradients import (
    JFB,
    SHINE,
    Implicit,
    Phantom,
    Reversible,
    StochasticJFB,
    Unrolled,
    available_gradients,
    make_gradient,
)
from deqgen.models import GETConfig, UnsavableError, create_model
from deqgen.models.choices import decode, encode
from deqgen_solvers import (
    GMRES,
    Anderson,
    AndersonTypeI,
    Broyden,
    MissingPackageError,
    NewtonKrylov,
    Picard,
    Tolerance,
    available_solvers,
    make_solver,
)
from deqgen_solvers.registry import registered_name

OBJECTS = [
    Picard(damping=0.5),
    Anderson(memory=8),
    Anderson(ridge=1e-3, damping=0.9),
    AndersonTypeI(memory=3),
    Broyden(memory=30, line_search=True),
    GMRES(restart=5),
    NewtonKrylov(forcing=0.1),
    Unrolled(6, every=2, checkpoint=True),
    Implicit(solver=Anderson(memory=8), tol=Tolerance(rtol=1e-3), order=2, warm_start=True),
    Implicit(solver="picard", tol=None, max_steps=7),
    Phantom(steps=3, damping=0.9, mode="neumann"),
    JFB(),
    SHINE(refine=2),
    Reversible(steps=4, beta=0.7),
    StochasticJFB(no_grad=(2, 5)),
    Tolerance(atol=0.0, rtol=0.1),
]


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value, "here"), allow_nan=False)))


@pytest.mark.parametrize("value", OBJECTS, ids=repr)
def test_an_object_comes_back_equal(value: Any) -> None:
    again = there_and_back(value)
    assert type(again) is type(value)
    assert again == value


@pytest.mark.parametrize("name", available_solvers())
def test_every_solver_in_the_registry_has_its_name(name: str) -> None:
    solver = make_solver(name)
    assert encode(solver, "here") == {"solver": name, "options": {}}
    assert there_and_back(solver) == solver


@pytest.mark.parametrize("name", available_gradients())
def test_every_estimator_in_the_registry_has_its_name(name: str) -> None:
    gradient = make_gradient(name)
    assert encode(gradient, "here") == {"gradient": name, "options": {}}
    assert there_and_back(gradient) == gradient


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert encode(Unrolled(6, every=2), "here") == {
        "gradient": "unrolled",
        "options": {"steps": 6, "every": 2},
    }
    written = encode(Implicit(solver=GMRES(restart=30), tol=Tolerance(atol=0.0, rtol=1e-5)), "here")
    assert written["options"] == {"solver": {"solver": "gmres", "options": {"restart": 30}}}


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "picard", (1, (2, 3)), {"a": (1, "b")}])
def test_plain_data_stays_what_it_is(value: Any) -> None:
    assert there_and_back(value) == value


def test_state_is_no_option() -> None:
    """A generator does not count when two estimators are compared, and is not written."""
    gradient = StochasticJFB(generator=torch.Generator().manual_seed(5))
    assert encode(gradient, "here") == {"gradient": "stochastic-jfb", "options": {}}


def test_a_config_with_objects_survives_json() -> None:
    config = GETConfig(solver=Anderson(memory=8), gradient=Unrolled(6, every=2, checkpoint=True))
    assert GETConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    names = GETConfig(solver="anderson", gradient="jfb").to_dict()
    assert (names["solver"], names["gradient"]) == ("anderson", "jfb")


def test_a_model_gets_the_objects() -> None:
    solver, gradient = Broyden(memory=30), Implicit(max_steps=9)
    sizes = {"image_size": 8, "width": 32, "heads": 4, "depth": 1}
    model = create_model("GET-N/4", solver=solver, gradient=gradient, **sizes)
    assert (model.deq.solver, model.deq.gradient) == (solver, gradient)


@dataclass(frozen=True, kw_only=True)
class Unregistered:
    step_size: float = 1.0

    def init(self, z0: Tensor) -> None:
        return None

    def step(self, f: Any, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
        return fz, None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Implicit(callback=print), r"here\.callback is <built-in function print>, which a file"),
        (Implicit(solver=Unregistered()), r"here\.solver is Unregistered\(step_size=1\.0\)"),
        (Unregistered(), "objects of a registered dataclass"),
        (float("nan"), "here is nan"),
        (float("inf"), "here is inf"),
        ((1, torch.ones(2)), "here is tensor"),
        ({"a": {"b": object()}}, r"here\['a'\]\['b'\] is <object"),
        ({1: 2}, "here is {1: 2}"),
    ],
    ids=range(8),
)
def test_what_json_cannot_hold_is_refused(value: Any, says: str) -> None:
    with pytest.raises(UnsavableError, match=says):
        encode(value, "here")


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ({"solver": "andersen", "options": {}}, ValueError, "Did you mean 'anderson'"),
        ({"solver": "anderson", "options": {"memry": 8}}, TypeError, "Did you mean 'memory'"),
        ({"solver": "anderson", "options": {"memory": 0}}, ValueError, "memory"),
        ({"gradient": "unrolled", "options": {"evry": 2}}, TypeError, "Did you mean 'every'"),
        ({"gradient": "nothing", "options": {}}, ValueError, "unknown gradient"),
        ({"stopping": "never", "options": {}}, ValueError, "Available: tolerance"),
        ({"stopping": "tolerance", "options": {"tol": 1}}, TypeError, "Options: atol, rtol"),
    ],
)
def test_wrong_data(data: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        decode(data)


def test_a_solver_of_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deqgen_solvers.registry._missing", lambda name: "torchdeq")
    with pytest.raises(MissingPackageError, match="pip install torchdeq"):
        decode({"solver": "torchdeq/anderson", "options": {}})


def test_a_solver_that_another_package_brings_is_found_by_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Point:
        value = f"{Unregistered.__module__}:Unregistered"

        def load(self) -> type[Unregistered]:
            return Unregistered

    monkeypatch.setattr("deqgen_solvers.registry._installed", lambda: {"theirs": Point()})
    monkeypatch.setattr("deqgen_solvers.registry._REGISTERED", {})
    assert registered_name(Unregistered()) == "theirs"
    assert there_and_back(Unregistered(step_size=0.5)) == Unregistered(step_size=0.5)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"solver": Anderson}, TypeError, r"Did you mean Anderson\(\)"),
        ({"solver": 3}, TypeError, "got 3"),
        ({"gradient": Unrolled}, TypeError, "is no gradient estimator"),
        ({"gradient": None}, TypeError, "None is no gradient estimator"),
    ],
)
def test_wrong_objects_in_a_config(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        GETConfig(**options)
