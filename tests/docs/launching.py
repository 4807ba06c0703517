"""What stands behind ``torchrun``, ``accelerate launch`` and ``make`` on a page."""

from __future__ import annotations

import re
import shlex

from torch.distributed.run import get_args_parser

from tests.docs.pages import REPOSITORY


def behind_launcher(words: tuple[str, ...], at: str) -> tuple[str, ...]:
    """The command that each process runs; the launcher's own options are checked by its parser."""
    if words[0] == "torchrun":
        parser, rest = get_args_parser(), list(words[1:])
    else:
        from accelerate.commands.launch import launch_command_parser

        assert words[1] == "launch", at
        parser, rest = launch_command_parser(), list(words[2:])
    try:
        options = parser.parse_args(rest)
    except SystemExit:
        raise AssertionError(f"{at}\n{words[0]} does not take these options") from None
    module = ("-m",) if options.module else ()
    return ("python", *module, options.training_script, *options.training_script_args)


def make_recipe(words: list[str], at: str) -> tuple[str, ...] | None:
    """The Python script that a target of the Makefile runs, with ``ARGS``; None if it is none."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    for name in settings:
        assert re.search(rf"^{name} \?=", makefile, flags=re.MULTILINE), f"{at}\nno {name}"
    (target,) = (word for word in words if "=" not in word)
    rule = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, flags=re.MULTILINE)
    assert rule is not None, f"{at}\nthe Makefile has no target {target}"
    script = re.search(r"\$\(RUN\) (examples/\S+\.py) \$\(ARGS\)", rule[1])
    if script is None or target == "app":  # `make app` is a server, which does not end
        return None
    given = re.sub(r"--preset[ =]\w+|--device[ =]\w+", "", settings.get("ARGS", ""))
    return ("python", script[1], *shlex.split(given), "--preset", "smoke")
