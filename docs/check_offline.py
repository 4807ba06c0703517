"""Fail if a built page would ask a server for anything: a script, a style, a font, a picture.

python docs/check_offline.py docs/_build/html
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# What a browser fetches by itself; a link that a reader may follow is no request.
_IN_PAGES = re.compile(
    r"""<(?:script|img|iframe|video|audio|source|embed|object)\b[^>]*?\b(?:src|srcset|data)=
    ["']?\s*((?:https?:)?//[^"'\s>]+)
    |<link\b(?=[^>]*rel=["'](?:stylesheet|icon|preload|prefetch|preconnect|dns-prefetch|modulepreload))
    [^>]*?href=["']((?:https?:)?//[^"'\s>]+)""",
    re.VERBOSE,
)
_IN_STYLES = re.compile(r"""(?:@import|url\()\s*["']?((?:https?:)?//[^"')\s]+)""")


def requests(page: Path) -> list[str]:
    """Addresses that one page or style asks for."""
    text = page.read_text(encoding="utf-8", errors="replace")
    pattern = _IN_PAGES if page.suffix == ".html" else _IN_STYLES
    found = [match[1] or match[match.lastindex or 1] for match in pattern.finditer(text)]
    return found + ([] if page.suffix != ".html" else _IN_STYLES.findall(text))


def main(folder: Path) -> int:
    """Check all pages and styles; the exit status."""
    pages = sorted(p for p in folder.rglob("*") if p.suffix in (".html", ".css"))
    bad = [f"{page}: {address}" for page in pages for address in requests(page)]
    print("\n".join(bad) or f"{len(pages)} pages and styles ask no server for anything")
    return 1 if bad or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
