"""States of every shape, and clear words for those that do not fit."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from deqgen_solvers import StateError, StateTypeError, solve
from deqgen_solvers.state import Layout, take_rows


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


def pair() -> Pair:
    return Pair(torch.zeros(3, 2), torch.zeros(3, 4, 5))


def test_flatten_and_back() -> None:
    tree = {
        "x": [torch.randn(3, 2, 2), torch.randn(3)],
        "y": Pair(torch.randn(3, 1, dtype=torch.float64), torch.randn(3, 2).half()),
    }
    layout = Layout(tree)
    flat = layout.flatten(tree)
    assert flat.shape == (3, 8) and flat.dtype == torch.float64 and layout.unknowns == 8
    back = layout.unflatten(flat)
    assert isinstance(back["y"], Pair) and isinstance(back["x"], list)
    for left, right in zip((*tree["x"], *tree["y"]), (*back["x"], *back["y"]), strict=True):
        assert left.dtype == right.dtype and torch.equal(left, right)


@pytest.mark.parametrize(
    ("dtypes", "work", "columns"),
    [
        ([torch.float16], torch.float32, 2),
        ([torch.float16, torch.bfloat16], torch.float32, 4),
        ([torch.float32, torch.float64], torch.float64, 4),
        ([torch.complex64], torch.complex64, 2),
        ([torch.complex64, torch.complex128], torch.complex128, 4),
        ([torch.complex64, torch.float32], torch.float32, 6),
        ([torch.complex128, torch.float16], torch.float64, 6),
    ],
)
def test_working_dtype(dtypes: list[torch.dtype], work: torch.dtype, columns: int) -> None:
    tree = [torch.randn(3, 2).to(dtype) for dtype in dtypes]
    layout = Layout(tree)
    flat = layout.flatten(tree)
    assert flat.dtype == work and flat.shape == (3, columns)
    for left, right in zip(tree, layout.unflatten(flat), strict=True):
        assert left.dtype == right.dtype and torch.equal(left, right)


def test_rounding_goes_to_each_leafs_dtype() -> None:
    layout = Layout((torch.zeros(1, 1).bfloat16(), torch.zeros(1, 1)))
    flat = torch.tensor([[1.001, 1.001]])
    assert layout.round(flat).tolist() == [[1.0, flat[0, 1].item()]]
    exact = Layout(torch.zeros(1, 2))
    assert exact.round(flat) is flat


@pytest.mark.parametrize(
    ("error", "pattern", "z0"),
    [
        (StateTypeError, r"z0: .* torch.int64", torch.zeros(2, 2, dtype=torch.int64)),
        (StateTypeError, r"z0\['m'\]: .* torch.bool", {"m": torch.zeros(2, dtype=torch.bool)}),
        (StateTypeError, r"z0\[1\]: .* got float", (torch.zeros(2), 1.0)),
        (StateTypeError, r"z0: .* got NoneType", None),
        (StateError, "holds no tensor", ()),
        (StateError, r"z0\['a'\]\[0\]: .* no axis", {"a": [torch.tensor(1.0)]}),
        (StateError, r"z0\[1\]: 3 samples, but z0\[0\] has 2", (torch.zeros(2), torch.zeros(3))),
        (StateError, "on meta", (torch.zeros(2), torch.zeros(2, device="meta"))),
    ],
)
def test_bad_start(error: type[Exception], pattern: str, z0: object) -> None:
    def never(z: object) -> object:
        raise AssertionError("f was called")

    with pytest.raises(error, match=pattern):
        solve(never, z0)


@pytest.mark.parametrize(
    ("pattern", "f"),
    [
        (r"f\(z\): expected a tuple, as in z0, got Tensor", lambda z: z.a),
        (r"f\(z\): expected a tuple, as in z0, got list", lambda z: list(z)),
        (r"f\(z\): expected the entries \[0, 1\].* got \[0\]", lambda z: (z.a,)),
        (r"f\(z\)\[0\]: expected a tensor", lambda z: (None, z.b)),
        (r"f\(z\)\[1\]: got shape \(3, 20\).* \(3, 4, 5\)", lambda z: (z.a, z.b.flatten(1))),
        (r"f\(z\)\[0\]: got shape \(1, 2\)", lambda z: (z.a[:1], z.b)),
        (r"f\(z\)\[1\]: got torch.float64 .* autocast", lambda z: (z.a, z.b.double())),
        (r"f\(z\)\[0\]: got a tensor on meta", lambda z: (z.a.to("meta"), z.b)),
    ],
)
@pytest.mark.parametrize("budget", [False, True])
def test_what_f_returns_is_checked(pattern: str, f: object, budget: bool) -> None:
    with pytest.raises(StateError, match=pattern):
        solve(f, pair(), **({"tol": None} if budget else {}))


def test_what_f_returns_is_checked_at_every_call() -> None:
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * z + 1 if calls < 3 else z[:, :1]

    with pytest.raises(StateError, match=r"got shape \(2, 1\) for a state of shape \(2, 3\)"):
        solve(f, torch.zeros(2, 3))


def test_missing_key() -> None:
    with pytest.raises(StateError, match=r"entries \['x'\], as in z0, got \['y'\]"):
        solve(lambda z: {"y": z["x"]}, {"x": torch.zeros(2, 2)})
    with pytest.raises(StateError, match=r"expected a dict, as in z0, got tuple"):
        solve(lambda z: (z["x"],), {"x": torch.zeros(2, 2)})


def test_dict_subclasses_pass() -> None:
    z0 = OrderedDict(a=torch.ones(2, 1), b=torch.ones(2, 2))
    solution = solve(lambda z: {"b": z["b"] / 2, "a": z["a"] / 2}, z0)
    assert list(solution.z) == ["a", "b"] and solution.converged.all()


def test_take_rows() -> None:
    rows = torch.tensor([2, 0])
    tree = {"a": Pair(torch.arange(3), torch.arange(6).reshape(3, 2)), "b": (4, None, "c")}
    taken = take_rows(tree, rows)
    assert isinstance(taken["a"], Pair)
    assert taken["a"].a.tolist() == [2, 0] and taken["a"].b.tolist() == [[4, 5], [0, 1]]
    assert taken["b"] == (4, None, "c")
    scalar = torch.tensor(5.0)
    assert take_rows([scalar], rows)[0] is scalar


@dataclass(frozen=True)
class Context:
    x: Tensor
    shared: Tensor | None = None
    rows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.x.shape[0])


def test_dataclasses_among_the_args_are_gathered() -> None:
    context = Context(torch.arange(3.0))
    taken = take_rows(context, torch.tensor([2, 0]))
    assert taken.x.tolist() == [2.0, 0.0] and taken.rows == 3
    assert context.x.tolist() == [0.0, 1.0, 2.0]


def test_a_shared_tensor_in_a_dataclass_is_refused() -> None:
    context = Context(torch.ones(3, 1), shared=torch.ones(5))
    with pytest.raises(StateError, match=r"args\[0\]\.shared: with compact=True"):
        solve(lambda z, c: 0.1 * z + c.x, torch.zeros(3, 1), (context,), compact=True)
