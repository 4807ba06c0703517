"""``deqgen.cite``: every name has its papers, each once, and the entries are sound."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import deqgen
from deqgen import cite, cli
from deqgen.citation import references
from deqgen.gradients import Implicit, available_gradients, make_gradient
from deqgen.models import embedded_models, list_models
from deqgen.models.embedded import EMBEDDED
from deqgen.models.registry import find_preset
from deqgen_solvers import Anderson, Broyden, available_solvers, make_solver
from tests.models.test_behaviour import small

METHODS = [make_solver(name) for name in available_solvers()] + [
    make_gradient(name) for name in available_gradients()
]
PRESETS = (find_preset(name) for name in list_models())
MODELS = list(dict.fromkeys(preset.model for preset in PRESETS if preset is not None))
USED: list[Any] = [*map(type, METHODS), *MODELS]


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),$", text, flags=re.MULTILINE)


def test_without_arguments_the_flagship() -> None:
    assert keys(cite()) == ["geng2023onestep", "karras2022elucidating", "bai2019deep"]
    assert deqgen.cite is cite


@pytest.mark.parametrize("kind", USED, ids=[kind.__name__ for kind in USED])
def test_everything_registered_has_references_that_its_docstring_names(kind: Any) -> None:
    """The year or the arXiv number of each stands in the docstring of the class or of its file."""
    assert kind.references and set(kind.references) <= references().keys()
    said = f"{kind.__doc__} {sys.modules[kind.__module__].__doc__}"
    for key in kind.references:
        entry = references()[key]
        year = re.search(r"year\s+= \{(\d{4})\}", entry)
        arxiv = re.search(r"arXiv:(\d{4}\.\d{5})", entry)
        assert year is not None and year[1] in key
        assert year[1] in said or (arxiv is not None and arxiv[1] in said), key


@pytest.mark.parametrize("name", [*list_models(), *embedded_models()])
def test_every_model(name: str) -> None:
    found = keys(cite(name))
    assert found and "%" not in cite(name)
    assert len(found) == len(set(found))


def test_an_entry_is_bibtex() -> None:
    for key, entry in references().items():
        assert entry.isascii() and entry.count("{") == entry.count("}")
        depth = 0
        for place, letter in enumerate(entry):
            depth += {"{": 1, "}": -1}.get(letter, 0)
            assert depth > 0 or place < entry.index("{") or place == len(entry) - 1, key
        fields = dict(re.findall(r"^  (\w+)\s+= \{(.*?)\},?$", entry, re.MULTILINE | re.DOTALL))
        assert {"title", "author", "year"} <= fields.keys(), key
        kinds = {"inproceedings": "booktitle", "article": "journal", "techreport": "institution"}
        kind = entry[1 : entry.index("{")]
        assert kinds.get(kind, "note") in fields, key
        family = re.sub(r"[^a-z]", "", fields["author"].split(",")[0].lower())
        assert re.sub(r"[^a-z].*", "", key) == family.removesuffix(r"\"a"), key


def test_every_entry_is_used_and_no_key_is_there_twice() -> None:
    used = {key for kind in USED for key in kind.references}
    used |= {key for each in EMBEDDED.values() for key in each.references}
    assert used == references().keys()
    texts = list(references().values())
    titles = [re.search(r"title\s+= \{(.*?)\},\n", text, re.DOTALL) for text in texts]
    assert len({title[1] for title in titles if title}) == len(texts)


def test_a_model_brings_its_solver_and_gradient() -> None:
    get = ["geng2023onestep", "bai2019deep"]
    assert keys(cite("GET-T/2")) == [*get, "banach1922operations"]
    own = small()
    own.deq.solver = Broyden()
    assert keys(cite(own)) == [*get, "broyden1965class", "byrd1994representations"]
    given = keys(cite(own, solver=Anderson(memory=3), gradient=Implicit()))
    assert given == [*get, "anderson1965iterative", "walker2011anderson"]
    assert keys(cite("ViT-B/2")) == ["dosovitskiy2021image", "geng2023onestep"]
    assert keys(cite(solver="anderson", gradient="jfb"))[-1] == "fung2022jfb"
    assert {"karras2022elucidating", "lu2022dpmsolverpp"} <= {*keys(cite("get-nano-cifar10"))}
    assert next(iter(small().parameters())).device == torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Halfway:
    """A solver of one's own that names nothing."""

    def init(self, z0: torch.Tensor) -> None:
        return None

    def step(self, f: Any, z: torch.Tensor, fz: torch.Tensor, state: None) -> Any:
        return (z + fz) / 2, None


class Named(Halfway):
    """Its entry comes along."""

    references = ("@misc{me2026halfway,\n  title = {Halfway}\n}", "bai2019deep")


class Wrong(Halfway):
    references = ("bai2019deeep",)


def test_what_is_not_ours() -> None:
    assert cite(solver=Halfway()) == "% Halfway names no reference"
    assert keys(cite(solver=Named(), gradient="implicit")) == ["me2026halfway", "bai2019deep"]
    with pytest.raises(ValueError, match=r"reference of Wrong 'bai2019deeep'.*'bai2019deep'"):
        cite(solver=Wrong())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "GET-T2"}, ValueError, "Did you mean 'GET-T/2'"),
        ({"model": "get-nano-cifr10"}, ValueError, "Did you mean 'get-nano-cifar10'"),
        ({"model": 3}, TypeError, "expected a name or a model, got 3"),
        ({"solver": "andersen"}, ValueError, "anderson"),
        ({"gradient": "phantm"}, ValueError, "Did you mean 'phantom'"),
        ({"solver": Anderson}, TypeError, "Anderson"),
    ],
)
def test_mistakes(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        cite(**options)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cite", "--solver", "broyden"]) == 0
    assert capsys.readouterr().out == cite(solver="broyden") + "\n"
    assert cli.main(["cite", "--model", "GET-T2"]) == 2
    assert "Did you mean 'GET-T/2'" in capsys.readouterr().err
