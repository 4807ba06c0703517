"""A reference by any name of an object leads to where the API documents it.

``deqgen.layers.DEQ`` is also ``deqgen.DEQ``, ``deqgen.layers.deq.DEQ`` (where it is written, which
is what annotations say) and, in a docstring beside it, ``DEQ``. All of them are the same object,
and one of them stands on a page of the API.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_COLON = "\N{FULLWIDTH COLON}"
_ROOMS = ("deqgen", "deqgen_solvers")

# What annotations call things of others, and where the others document them.
_ELSEWHERE = {
    "torch._C.Generator": "torch.Generator",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "Module": "torch.nn.Module",
    "nn.Module": "torch.nn.Module",
    "Tensor": "torch.Tensor",
    "Path": "pathlib.Path",
    "accelerate.accelerator.Accelerator": "accelerate.Accelerator",
    "torch.export.exported_program.ExportedProgram": "torch.export.ExportedProgram",
}


def find(name: str) -> Any:
    """The object of a dotted name, or None."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None


def documented(env: BuildEnvironment) -> dict[str, Any]:
    """Name to object, of all that has a place in the API."""
    names = env.domains.python_domain.objects
    return {
        name: find(name)
        for name, entry in names.items()
        if not entry.aliased and name.split(".")[0] in _ROOMS
    }


def place(env: BuildEnvironment, node: pending_xref) -> str | None:
    """The documented name of what a reference means."""
    target = node["reftarget"].strip("~.!")
    if not hasattr(env, "deqgen_documented"):
        env.deqgen_documented = documented(env)  # type: ignore[attr-defined]
    names: dict[str, Any] = env.deqgen_documented
    full = [target, f"{node.get('py:module')}.{target}", f"{node.get('py:class')}.{target}"]
    for found in (find(name) for name in full if name.split(".")[0] in _ROOMS):
        for name, value in names.items():
            if found is not None and value is found:
                return name
    if node.get("reftype") == "mod":  # a module without a page of its own: its room's
        while target and target not in names:
            target = target.rpartition(".")[0]
        return target or None
    # Names that only a type checker imports stay as they are written: the last part decides.
    same = [name for name in names if name.rpartition(".")[2] == target.rpartition(".")[2]]
    return same[0] if len(same) == 1 else None


def hide_colons(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from taking what precedes a colon in an attribute's docstring for a type."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(":", _COLON)


def show_colons(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Undo :func:`hide_colons` once napoleon has been."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Answer a reference that Sphinx itself could not resolve."""
    if node.get("refdomain") != "py":
        return None
    name = place(env, node)
    if name is None:  # then it is for intersphinx, which is asked next
        node["reftarget"] = _ELSEWHERE.get(node["reftarget"], node["reftarget"])
        return None
    domain, document = env.domains.python_domain, node["refdoc"]
    return domain.resolve_xref(env, document, app.builder, "obj", name, node, content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.connect("missing-reference", resolve, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
