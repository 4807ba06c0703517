"""The table of commands is that of the pages, and pages are read as a reader reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deqgen.commands import COMMANDS, Group
from tests.docs.commands import commands, commands_of, parse
from tests.docs.installing import check_pip
from tests.docs.launching import behind_launcher, make_recipe
from tests.docs.pages import Page, pages
from tests.docs.stage import Stage, files_of, files_read
from tests.docs.table import NOT_RUN
from tests.docs.world import World

TEXT = """# The title, `code` and a [link](a.md)

```console
$ deqgen pairs make pairs --count 5 \\
    --teacher x      # a comment
# a comment alone
ls
```

```
make demo   # installs
```

```
pairs/
```

1. A list

   ```python
   print("a # b")
   ```

   ```text
   a # b
   ```

(label)=
## The title
## The title
"""


@pytest.fixture
def page(tmp_path: Path) -> Page:
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    return Page(path, "page.md")


def test_what_a_page_holds(page: Page) -> None:
    console, plain, tree, python, text = page.blocks()
    assert [c.words for c in commands(console)] == [
        ("deqgen", "pairs", "make", "pairs", "--count", "5", "--teacher", "x"),
        ("ls",),
    ]
    assert [c.text for c in commands(plain)] == ["make demo"] and not commands(tree)
    assert (python.text, python.line, python.after) == ('print("a # b")\n', 21, "")
    assert (text.text, text.after) == ("a # b\n", "python")
    assert page.links() == ["a.md"]
    assert page.anchors() == {"the-title-code-and-a-link", "the-title", "the-title-1", "label"}


def test_a_command_becomes_small() -> None:
    small = parse("A=1 deqgen distill pairs --model GET-B/2+ --images 6400000").smaller()
    assert small.environment == {"A": "1"}
    assert small.words[3:7] == ("--model", "GET-N/4", "--images", "16")
    assert small.words[7:] == ("--batch-size", "8", "--sample-images", "0")


@pytest.mark.parametrize(
    "text", ["ls", "deqgen lst", "python nothing.py", "make tea", "pip install deqgen[tea]"]
)
def test_what_cannot_be_run_is_noticed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"```console\n{text}\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:2"):
        Stage(Page(path, "page.md"), World(tmp_path), tmp_path).play()


@pytest.mark.parametrize(
    "text",
    ["```python\nprint(1)\n```\n\n```text\n2\n```\n", "```ruby\n1\n```\n"],
    ids=["output", "language"],
)
def test_wrong_blocks_are_noticed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(AssertionError, match=r"page\.md"):
        Stage(Page(path, "page.md"), World(tmp_path), tmp_path).play()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("`deqgen list GET*`, `--kynd models`", "Perhaps you meant: --kind"),
        ("`--batch-size 4`", "no command stands above --batch-size 4"),
        ("`deqgen lst GET*`", "page.md:3"),
        ("`create_modell(1)`", "create_modell"),
    ],
)
def test_a_table_that_is_wrong_is_noticed(
    row: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in the last column is run; what stands in the first is not."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "page.md"
    path.write_text(f"| there | here |\n|---|---|\n| `there(1)` | {row} and `words` |\n")
    with pytest.raises((AssertionError, ValueError, NameError), match=says):
        Stage(Page(path, "page.md"), World(tmp_path), tmp_path).play()


def test_launchers_and_make() -> None:
    words = ("torchrun", "--standalone", "--nproc_per_node=2", "-m", "deqgen", "list", "GET*")
    assert behind_launcher(words, "") == ("python", "-m", "deqgen", "list", "GET*")
    words = ("accelerate", "launch", "--num_processes", "2", "-m", "deqgen", "list")
    assert behind_launcher(words, "") == ("python", "-m", "deqgen", "list")
    assert make_recipe(["demo", "ARGS=--preset paper --device cuda"], "") == (
        *("python", "examples/distill_cifar.py", "--preset", "smoke"),
    )
    assert make_recipe(["lint"], "") is None


def test_pip() -> None:
    for words in (["deqgen[diffusers,export]"], ["-e", ".[dev]"], ["torch"]):
        check_pip(["install", *words], "")
    with pytest.raises(AssertionError, match="do not depend on tea"):
        check_pip(["install", "tea"], "")


def test_what_is_read_is_not_what_is_written() -> None:
    assert files_read('save_model(m, "a"); load_model("b")') == {"b"}
    assert files_read('main(["sample", "c"])') == set()
    assert files_of(["pairs", "import-get", "pairs", "b"]) == {"pairs"}
    assert files_of(["data", "stats", "a", "b", "--features", "c"]) == {"a", "--features", "c"}
    assert files_of(["sample", "a", "--out", "b"]) == {"a", "--out"}


def test_the_list_of_what_is_not_run_is_not_longer_than_needed() -> None:
    printed = {command.text for page in pages() for command in commands_of(page)}
    assert set(NOT_RUN) <= printed


def test_every_subcommand_stands_on_a_page() -> None:
    printed = [c.words for page in pages() for c in commands_of(page)]
    shown = {
        words[i + 1 : i + 3] for words in printed for i, w in enumerate(words) if w == "deqgen"
    }
    for name, entry in COMMANDS.items():
        if isinstance(entry, Group):
            missing = {(name, each) for each in entry.commands} - shown
            assert not missing
        else:
            assert name in {words[0] for words in shown if words}
