"""How the commands and the code of the pages are made small, and what is not run at all.

This is the file to edit when a page gains a command. Everything in it is text that a reader of a
page would recognise; how it is applied stands in ``commands.py`` and ``stage.py``.
"""

from __future__ import annotations

SMALLER: list[tuple[str, str]] = [
    # Numbers of pairs, images, seeds, processes.
    (r"--count[ =]\d+", "--count 12"),
    (r"--(images|evaluate-images|sample-images|save-images)[ =]\d+", r"--\1 16"),
    (r"--evaluate-count[ =]\d+", "--evaluate-count 12"),
    (r"--warmup-images[ =]\d+", "--warmup-images 8"),
    (r"--batch-size[ =]\d+", "--batch-size 8"),
    (r"--epochs[ =]\d+", "--epochs 1"),
    (r"--microbatch[ =]\d+", "--microbatch 4"),
    (r"--seeds[ =]\d+-\d+", "--seeds 0-7"),
    (r"--nproc[_-]per[_-]node[ =]\S+", "--nproc_per_node=2"),
    (r"--nnodes[ =]\d+", "--standalone"),
    (r"--rdzv[_-]\w+[ =]\S+", ""),
    (r"--num_processes[ =]\d+", "--num_processes 2"),
    (r"--preset[ =]\w+", "--preset smoke"),
    # Models, and the folders of runs that are named after them.
    (r"\bGET-[TMSB]/[124]\+?", "GET-N/4"),
    (r"\bGET-[TMSB]-[124]\b", "GET-N-4"),
    (r"\bViT-(?:S|B|L|XL)/[24]", "ViT-N/4"),
    # What we do not have: a GPU, and the weights of published feature networks.
    (r"--device[ =]cuda(:\d)?", "--device cpu"),
    (r"\bdiffusers:[\w-]+/", ""),  # a name on the Hub is a folder here
    (r"--features[ =](inception|dinov2\S*)", "--features tiny.pt"),
    (r"--evaluate-features[ =]inception", "--evaluate-features tiny.pt"),
]
"""(pattern, what it becomes), applied in turn to the text of a command."""

ADDED: dict[str, list[str]] = {
    "distill": ["--images 16", "--batch-size 8", "--sample-images 0"],
    "evaluate": ["--count 12"],
    "examples/train_classifier.py": ["--batch-size 8", "--epochs 1"],
    "examples/train_teacher.py": ["--images 8", "--batch-size 4", "--no-compile"],
    "examples/measure_teacher.py": ["--count 12"],
    "examples/early_exit.py": ["--count 12"],
}
"""subcommand or script -> options that it gets where the page leaves them to large defaults."""

LONG = (
    "examples/distill_",
    "examples/ablate_",
    "examples/scaling",
    "examples/stochastic_",
    "benchmarks/",
)
"""Scripts of which only the options are read, since tests of their own (tests/examples,
tests/benchmarks) run them: with ``--preset smoke``, or part by part."""

CODE: list[tuple[str, str]] = [
    (r'"diffusers:[\w-]+/', '"'),
    (r'device="cuda(:\d)?"', 'device="cpu"'),
    (r"\bcount=10_?000\b", "count=12"),
    (r"\bcount=50_?000\b", "count=12"),
    (r"\bGET-B/2", "GET-T/2"),
    (r"\bnum_workers=\d+", "num_workers=0"),
]
"""(pattern, what it becomes), applied to the Python of pages; what it prints must not change."""

NOT_RUN: dict[str, str] = {
    "tensorboard --logdir runs": "a server, which does not end",
    ".venv/bin/pre-commit install": "it changes the clone that the tests run in",
}
"""command as printed -> why it is not run; all others are, or the test of their page fails."""

NO_COMMAND = {"toml", "json", "yaml", "text", "bibtex", "diff", "mermaid", "math"}
"""Languages of blocks that hold nothing to run; so do MyST's directives, ``{note}`` and so on."""
