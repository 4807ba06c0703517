"""Numbered run folders: claimed once, found again, kept from others."""

from __future__ import annotations

import errno
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from deqgen.data.manifest import differences, first_difference
from deqgen.training import run_folder
from deqgen.training.run_folder import (
    FINISHED,
    RunFolderError,
    begin_run,
    check_run,
    next_run,
    numbered,
    training_in,
    unfinished_run,
)

CONFIG: dict[str, Any] = {"model": {"name": "GET-N/8", "width": 4}, "run": {"desc": ""}, "seed": 0}


def changed(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes}


def test_numbers_go_up_and_names_are_fit_for_a_disk(tmp_path: Path) -> None:
    first = begin_run(tmp_path / "runs", "GET-N/8-pairs set", CONFIG)
    assert first == tmp_path / "runs" / "00000-GET-N-8-pairs-set"
    assert json.loads((first / "config.json").read_text()) == CONFIG
    (tmp_path / "runs" / "00007").mkdir()  # of a process that was killed between two calls
    (tmp_path / "runs" / "notes").mkdir()
    assert next_run(tmp_path / "runs", "b/c").name == "00008-b-c"
    assert begin_run(tmp_path / "runs", "b/c", CONFIG).name == "00008-b-c"
    assert [number for number, _ in numbered(tmp_path / "runs")] == [0, 7, 8]


def begin_many(outdir: Path, label: str, start: Any) -> None:
    start.wait()
    for _ in range(20):
        begin_run(outdir, label, {})


def test_no_number_is_given_twice(tmp_path: Path) -> None:
    """Four processes with labels of their own, so that no two folders have one name anyway."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    children = [
        context.Process(target=begin_many, args=(tmp_path, label, start)) for label in "abcd"
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert [number for number, _ in numbered(tmp_path)] == list(range(80))


def test_a_number_that_was_taken_meanwhile_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process made its folder, and gave it its name, after this one had looked."""
    look, seen = run_folder._next_number, []

    def late(outdir: Path) -> str:
        seen.append(look(outdir))
        if len(seen) == 1:
            (tmp_path / "00000-other").mkdir()
        return seen[-1]

    monkeypatch.setattr(run_folder, "_next_number", late)
    assert begin_run(tmp_path, "mine", CONFIG).name == "00001-mine"
    assert seen == ["00000", "00001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000-other", "00001-mine"]


def test_the_newest_unfinished_run_of_a_configuration(tmp_path: Path) -> None:
    assert unfinished_run(tmp_path / "runs", CONFIG) is None
    old, new = (begin_run(tmp_path, "a", CONFIG) for _ in range(2))
    begin_run(tmp_path, "b", changed(seed=1))
    damaged = begin_run(tmp_path, "c", CONFIG)
    (damaged / "config.json").write_text("{")
    (tmp_path / "00009").mkdir()  # another process is about to give it its name
    (tmp_path / "00009" / "config.json").write_text(json.dumps(CONFIG))
    assert unfinished_run(tmp_path, CONFIG) == new
    assert unfinished_run(tmp_path, changed(model={"name": "GET-N/8", "width": 5})) is None
    described = changed(run={"desc": "again"})
    assert unfinished_run(tmp_path, described) is None
    assert unfinished_run(tmp_path, described, free=["run"]) == new
    (new / FINISHED).write_text("{}")
    assert unfinished_run(tmp_path, CONFIG) == old


def test_every_differing_setting_is_named(tmp_path: Path) -> None:
    folder = begin_run(tmp_path, "a", changed(betas=(0.9, 0.99)))
    check_run(folder, changed(betas=(0.9, 0.99)))  # JSON knows no tuples
    other = changed(betas=(0.9, 0.5), seed=3, model={"name": "ViT-N/8", "width": 4})
    with pytest.raises(RunFolderError) as raised:
        check_run(folder, other, free=["seed", "mod"])  # no name is the beginning of another
    said = str(raised.value)
    assert "model.name was 'GET-N/8' and is now 'ViT-N/8'" in said
    assert "betas was [0.9, 0.99] and is now [0.9, 0.5]" in said
    assert "seed" not in said and "width" not in said
    check_run(folder, other, free=["seed", "model", "betas"])
    with pytest.raises(RunFolderError, match="is not the folder of a run"):
        check_run(tmp_path / "none", CONFIG)


def test_differences_come_in_order() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 0, "c": 2}, "e": 4}
    assert [path for path, _ in differences(old, new)] == ["a.b", "d", "e"]
    assert first_difference(old, new) == "a.b was 1 and is now 0"
    assert first_difference(old, old) is None


def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with (
        training_in(tmp_path),
        pytest.raises(RunFolderError, match="another process is training in"),
        training_in(tmp_path),
    ):
        pass
    with training_in(tmp_path):
        pass


def test_where_no_folder_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file is a file; runs need a folder"):
        begin_run(tmp_path / "file", "a", CONFIG)

    def refuse(code: int) -> None:
        def mkdir(*_: Any, **__: Any) -> None:
            raise OSError(code, errno.errorcode[code])

        monkeypatch.setattr(Path, "mkdir", mkdir)

    refuse(errno.EACCES)
    with pytest.raises(RunFolderError, match=r"no run folder can be made in .*runs: EACCES"):
        begin_run(tmp_path / "runs", "a", CONFIG)
    refuse(errno.ENOSPC)
    with pytest.raises(OSError, match="ENOSPC"):
        begin_run(tmp_path / "runs", "a", CONFIG)


def test_a_name_that_is_too_long_leaves_nothing(tmp_path: Path) -> None:
    for make in (lambda: begin_run(tmp_path, "ü" * 125, {}), lambda: next_run(tmp_path, "x" * 250)):
        with pytest.raises(RunFolderError, match="would have 256 bytes, and a disk takes 255"):
            make()
    assert list(tmp_path.iterdir()) == []
    assert begin_run(tmp_path, "x" * 249, CONFIG).is_dir()


def test_a_claim_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(RunFolderError, match=r"no run folder can be made in .*: broken"):
            begin_run(tmp_path, "a", CONFIG)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(run_folder, "write_json", fail)
    with pytest.raises(RunFolderError, match="broken"):
        begin_run(tmp_path, "a", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_json", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*runs'"):
        begin_run(tmp_path / "runs", "a", CONFIG)


def test_a_configuration_of_another_kind(tmp_path: Path) -> None:
    folder = begin_run(tmp_path, "a", CONFIG)
    for text in ("[1]", "3", "{", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(RunFolderError, match=r"config\.json is damaged"):
            check_run(folder, CONFIG)
        assert unfinished_run(tmp_path, CONFIG) is None
