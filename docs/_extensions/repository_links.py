"""Links of a page that lead out of ``docs/``, as they do on a code host, lead on in the build too.

A Markdown file of the repository that has a page here becomes that page; a folder of results
becomes the page of results. Any other file needs nothing: MyST copies it into the build, as a
download.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "deqgen/assets": "cards/index.md",
    "examples/gallery": "gallery/index.rst",
    "docs/results": "results/index.md",
}

_LINK = re.compile(r"(?<=\]\()[^)#:\s]+(?=[)#])")


def page_of(path: str) -> str | None:
    """The page, relative to docs/, of a file or folder of the repository; None: leave the link."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("deqgen/assets/") and path.endswith(".md"):
        return "cards/" + path.rpartition("/")[2]
    if path.startswith("docs/results/") and "." not in path:
        return PAGES["docs/results"]
    return None


def rewrite(app: Sphinx, name: str, source: list[str]) -> None:
    """Rewrite the links of one page."""
    docs = Path(app.srcdir)
    folder = (docs / name).parent

    def replaced(link: re.Match[str]) -> str:
        path = os.path.relpath(os.path.normpath(folder / link[0]), docs.parent)
        page = page_of(Path(path).as_posix())
        return link[0] if page is None else os.path.relpath(docs / page, folder)

    source[0] = _LINK.sub(replaced, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
