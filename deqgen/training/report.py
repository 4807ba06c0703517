"""``report.html``: a run in one file, to be read in any browser, on any screen, without a network.

A report is a function of the run's folder alone, so it may be written again at any time.
"""

from __future__ import annotations

import base64
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from deqgen.atomic import write_text
from deqgen.training.curves import curve_svg
from deqgen.training.environment import read_sessions
from deqgen.training.evaluations import EVALUATIONS, read_evaluations
from deqgen.training.report_page import PAGE, STYLE
from deqgen.training.run import STATS
from deqgen.training.run_folder import CONFIG, FINISHED, RunFolderError, read_config
from deqgen.training.stats import read_stats

REPORT = "report.html"
SAMPLES = "samples"
_MOST_ROWS, _MOST_GRIDS = 2000, 12
# Logarithmic curves of these; a learning rate may be zero.
_LOG = ("loss", "gradient_norm")
_CURVES = ("loss", "learning_rate", "gradient_norm")


def write_report(directory: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run, replacing the one that is there as a whole.

    Args:
        directory: holds ``config.json``, and as much as there is yet of ``environment.json``,
            ``stats.jsonl``, ``evaluations.jsonl``, ``samples/*.png`` and ``finished.json``. What
            is damaged of the records is left out, with a warning that names the file.

    Returns:
        Its path.

    Raises:
        OSError: the disk is full or not writable.
    """
    directory = Path(directory)
    config = _config(directory)
    rows = read_stats(directory / STATS)
    evaluations = read_evaluations(directory / EVALUATIONS)
    name = directory.resolve().name
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="lead">{_state(directory, rows, config)}</p>',
        _section("Over the training images", _curves(rows, evaluations)),
        _section("Evaluation", _evaluations(evaluations)),
        _section("Samples", _samples(sorted((directory / SAMPLES).glob("*.png")))),
        _section("Configuration", _configuration(config)),
        _section("Environment", _environment(read_sessions(directory))),
        _section("Every row of the log", _stats(rows)),
    ]
    path = directory / REPORT
    write_text(path, PAGE.format(title=escape(name), style=STYLE, body="\n".join(body)))
    return path


def _state(directory: Path, rows: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> str:
    """One sentence: how far it is, how long it took, where the loss is."""
    trained = [row for row in rows if "loss" in row]
    if not trained:
        return "No row of the log has been written yet."
    training = config.get("training")
    last, total = trained[-1], training.get("images") if isinstance(training, dict) else None
    done = "Finished" if (directory / FINISHED).is_file() else "Not finished"
    length = f" of {total:,}" if isinstance(total, int) else ""
    return (
        f"{done}: {int(last['images']):,}{length} images in {_duration(rows[-1]['seconds'])}, "
        f"loss {last['loss']:.4g}."
    )


def _curves(rows: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, Any]]) -> str:
    thinned = thin(rows, _MOST_ROWS)
    plots = [
        curve_svg(
            key.replace("_", " "),
            [(row["images"], row[key]) for row in thinned if row.get(key) is not None],
            log=key in _LOG,
        )
        for key in _CURVES
        if any(key in row for row in thinned)
    ]
    for key in dict.fromkeys(key for line in evaluations for key in line["numbers"]):
        found = [(e["images"], e["numbers"][key]) for e in evaluations if key in e["numbers"]]
        plots.append(curve_svg(key, [(x, y) for x, y in found if y is not None]))
    return f'<div class="curves">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>'


def _samples(paths: Sequence[Path]) -> str:
    if not paths:
        return ""
    shown = thin(paths, _MOST_GRIDS)
    note = "The averaged weights, the same noise each time."
    if len(shown) < len(paths):
        note += f" {len(shown)} of the {len(paths)} pictures in {SAMPLES}/."
    figures = []
    for path in reversed(shown):  # the newest first
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        caption = f"{int(path.stem):,} images" if path.stem.isdigit() else escape(path.stem)
        figures.append(
            f'<figure><img alt="samples after {caption}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<p>{note}</p><div class="grids">{"".join(figures)}</div>'


def _evaluations(lines: Sequence[Mapping[str, Any]]) -> str:
    """The numbers with what differs in their fingerprints, and below what the prints share."""
    if not lines:
        return ""
    names = list(dict.fromkeys(key for line in lines for key in line["numbers"]))
    prints = [line["fingerprint"] for line in lines]
    keys = list(dict.fromkeys(key for found in prints for key in found))
    differing = [key for key in keys if any(p.get(key) != prints[0].get(key) for p in prints)]
    rows = [
        [
            f"{line['images']:,}",
            *(number(line["numbers"].get(name)) for name in names),
            *(number(line["fingerprint"].get(key)) for key in differing),
        ]
        for line in lines
    ]
    shared = {key: prints[0][key] for key in keys if key not in differing}
    applying = {key: value for key, value in shared.items() if value is not None}
    table = _table(["after images", *names, *differing], rows)
    return f"{table}<h3>All of them measured as</h3>{_pairs_table(applying)}"


def _configuration(config: Mapping[str, Any]) -> str:
    """A table a section."""
    return "".join(
        f"<h3>{escape(name)}</h3>"
        f"{_pairs_table(section if isinstance(section, Mapping) else {name: section})}"
        for name, section in config.items()
    )


def _environment(sessions: Sequence[Mapping[str, Any]]) -> str:
    """The newest session's; earlier ones fold away."""
    parts = [_pairs_table(sessions[-1])] if sessions else []
    for index, session in reversed(list(enumerate(sessions[:-1], 1))):
        parts.append(
            f"<details><summary>session {index} of {len(sessions)}</summary>"
            f"{_pairs_table(session)}</details>"
        )
    return "".join(parts)


def _stats(rows: Sequence[Mapping[str, float]]) -> str:
    if not rows:
        return ""
    shown = thin(rows, _MOST_ROWS)
    names = list(dict.fromkeys(key for row in shown for key in row))
    table = _table(names, [[number(row.get(name)) for name in names] for row in shown])
    count = f"{len(shown):,} of {len(rows):,}" if len(shown) < len(rows) else f"{len(rows):,}"
    return f"<details><summary>{count} rows, as in {STATS}</summary>{table}</details>"


def thin(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def number(value: Any) -> str:
    """A number of a table as text: whole ones whole, others to six digits; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    return f"{int(value):,}" if math.isfinite(value) and value == int(value) else f"{value:.6g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _pairs_table(data: Any) -> str:
    """Nested settings as rows of a dotted name and a value."""
    if not data:
        return ""
    rows = "".join(
        f"<tr><th>{_breakable(name)}</th><td>{escape(_as_text(value))}</td></tr>"
        for name, value in _flat(data)
    )
    return f'<table class="settings">{rows}</table>'


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _breakable(name: str) -> str:
    """A name that a narrow screen may break where a reader would."""
    return re.sub(r"([._])", r"\1<wbr>", escape(name))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _config(directory: Path) -> dict[str, Any]:
    """The configuration; nothing if there is none."""
    if not (directory / CONFIG).is_file():
        return {}
    try:
        return read_config(directory)
    except RunFolderError:
        warnings.warn(f"{directory / CONFIG} is damaged; the report lacks it", stacklevel=3)
        return {}
