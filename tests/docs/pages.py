"""The pages of the documentation as a reader on GitHub has them: blocks, links, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

REPOSITORY = Path(__file__).resolve().parents[2]

HERE = "here"

# Results are made by commands that take hours, and stand beside them; the rest is made by a build.
_NOT_WRITTEN = ("results", "gallery", "auto_examples", "_build", "_static", "_templates")


@dataclass(frozen=True)
class Block:
    """What stands between two fences, or a table whose last column is headed "here".

    Args:
        language: the first word after the opening fence, "" where there is none; "here" of a table.
        text: the lines between, less the indentation of the fence.
        line: number of the first of them in the page.
        after: the kind of block directly before it, with blank lines between at most; "" for none.
    """

    language: str
    text: str
    line: int
    after: str


@dataclass(frozen=True)
class Page:
    """One Markdown file; ``name`` is its path in the repository."""

    path: Path
    name: str

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self) -> list[Block]:
        return list(_blocks(self.text))

    def prose(self) -> str:
        """The page with its blocks blanked out."""
        lines = self.text.splitlines()
        for block in (block for block in self.blocks() if block.language != HERE):
            for number in range(block.line - 1, block.line - 1 + block.text.count("\n")):
                lines[number] = ""
        return "\n".join(lines)

    def links(self) -> list[str]:
        """Targets of links and pictures that are no addresses, in order."""
        prose = re.sub(r"`[^`\n]*`", "`code`", self.prose())
        inline = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose)
        named = re.findall(r"^\[[^\]^]+\]:\s+(\S+)", prose, flags=re.MULTILINE)
        html = re.findall(r"<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"", prose)
        return [unquote(link) for link in (*inline, *named, *html) if not _is_address(link)]

    def anchors(self) -> set[str]:
        """What ``#...`` of a link may name: headings as GitHub turns them, and MyST's labels."""
        prose, seen = self.prose(), dict[str, int]()
        found = set(re.findall(r"^\(([\w-]+)\)=", prose, flags=re.MULTILINE))
        for heading in re.findall(r"^#+\s+(.+?)\s*#*$", prose, flags=re.MULTILINE):
            slug = _slug(heading)
            seen[slug] = seen.get(slug, -1) + 1
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        return found


def _is_address(link: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*:", link) is not None


def _slug(heading: str) -> str:
    """A heading as GitHub and MyST make an anchor of it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def _blocks(text: str) -> Iterator[Block]:
    fence = re.compile(r"^(\s*)(`{3,}|~{3,})\s*(.*?)\s*$")
    lines, number, before = text.splitlines(), 0, ""
    while number < len(lines):
        opening = fence.match(lines[number])
        number += 1
        if opening is None and re.search(r"\| here[^|]*\|$", lines[number - 1]):
            first = number
            while number < len(lines) and lines[number].startswith("|"):
                number += 1
            yield Block(HERE, "".join(f"{line}\n" for line in lines[first:number]), first + 1, "")
        elif opening is None:
            before = before if not lines[number - 1].strip() else ""
        if opening is None:
            continue
        indent, marks, info = opening.groups()
        first = number
        closing = re.compile(rf"^\s*{re.escape(marks[0])}{{{len(marks)},}}\s*$")
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        inside = [line.removeprefix(indent) for line in lines[first:number]]
        language = _language(info)
        yield Block(language, "".join(f"{line}\n" for line in inside), first + 1, before)
        before, number = language, number + 1


def _language(info: str) -> str:
    """``python`` of ``python``, ``{code-block} python``; a directive's name keeps its braces."""
    words = info.split()
    if words and words[0] in ("{code-block}", "{code}", "{sourcecode}"):
        words = words[1:]
    return words[0] if words else ""


@cache
def pages() -> tuple[Page, ...]:
    """README, CONTRIBUTING, all written pages of docs/ and the model cards."""
    found = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    found += [
        path
        for path in sorted((REPOSITORY / "docs").rglob("*.md"))
        if not {*path.relative_to(REPOSITORY / "docs").parts} & {*_NOT_WRITTEN}
    ]
    found += sorted((REPOSITORY / "deqgen" / "assets").glob("*.md"))
    return tuple(Page(path, str(path.relative_to(REPOSITORY))) for path in found)
