"""What a folder of pairs holds, in words for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deqgen.data.manifest import Manifest
from deqgen.data.remote import RemoteFolder, default_cache, is_remote


def describe_pairs(directory: str | Path) -> str:
    """Describe a folder of pairs, finished or not, on some ten lines.

    Args:
        directory: the folder, or an fsspec path to it; of the latter the manifest alone is read.

    Raises:
        PairError: there is no manifest, or it is damaged.
    """
    if is_remote(directory):
        manifest = RemoteFolder(str(directory), default_cache()).manifest()
        sizes = [record.size for record in manifest.shards]
    else:
        manifest = Manifest.read(Path(directory))
        shards = (Path(directory) / "shards").glob("pairs-*.safetensors")
        sizes = [path.stat().st_size for path in shards]
    settings = manifest.settings
    teacher = settings["teacher"]
    lines = {
        "teacher": _teacher(teacher),
        "sampler": _plain(teacher.get("sampler")) or "not recorded",
        "guidance": _plain(teacher.get("guidance")),
        "evaluations": f"{manifest.nfe} a pair, {manifest.nfe * manifest.count:,} in all",
        "pairs": f"{manifest.count:,}{_progress(manifest, len(sizes))}",
        "seeds": _seeds(settings),
        "labels": _labels(settings),
        "tensors": _tensors(manifest),
        "size": _size(sum(sizes)),
        "made from": _origin(settings),
    }
    width = max(map(len, lines))
    return f"{directory}\n" + "\n".join(
        f"  {name.ljust(width)}  {text}" for name, text in lines.items() if text
    )


def _teacher(teacher: dict[str, Any]) -> str:
    weights = teacher.get("weights_sha256")
    precision = f", {teacher['precision']}" if "precision" in teacher else ""
    return f"{teacher.get('name')}{precision}" + (f", weights {weights[:16]}..." if weights else "")


def _plain(entry: Any) -> str:
    return json.dumps(entry).replace('"', "").strip("{}") if entry else ""


def _progress(manifest: Manifest, shards: int) -> str:
    if manifest.complete:
        return f" in {len(manifest.shards)} shards, complete"
    return f", not complete: {shards} shards so far; the same command goes on"


def _seeds(settings: dict[str, Any]) -> str:
    if "merged" in settings:
        return "those of the merged sets"
    rule = settings.get("seed_rule", "not recorded")
    return f"set {settings['seed']}: {rule}" if "seed" in settings else str(rule)


def _labels(settings: dict[str, Any]) -> str:
    classes = settings["teacher"].get("num_classes")
    return f"{settings.get('labels')}, {classes} classes" if classes else "none"


def _tensors(manifest: Manifest) -> str:
    return ", ".join(
        f"{name} {row['dtype']} {tuple(row['shape'])}".replace(" ()", "")
        for name, row in manifest.tensors.items()
    )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


def _origin(settings: dict[str, Any]) -> str:
    if "merged" in settings:
        return f"{len(settings['merged'])} sets"
    if "imported" in settings:
        return f"{settings['imported']['files']} files of {settings['imported']['format']}"
    return ""
