"""A damaged manifest or record: found, and mended by the command that made the set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deqgen.data import PairDataset, PairError, write_pairs
from tests.data.stub import StubTeacher, everything
from tests.data.test_faults import SETTINGS


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("undisturbed")
    write_pairs(StubTeacher(), directory, **SETTINGS)
    return everything(directory)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def resume(directory: Path, undisturbed: dict[str, bytes]) -> None:
    """Verify says to run the command once more; that mends everything without the teacher."""
    with pytest.raises(PairError, match=r"is missing or damaged|is damaged|holds no pairs"):
        PairDataset(directory, verify=True)
    teacher = StubTeacher()
    assert write_pairs(teacher, directory, **SETTINGS).complete
    assert teacher.images == 0
    assert everything(directory) == undisturbed


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "begun"])
@pytest.mark.parametrize("damage", ["deleted", "empty", "checksum", "settings"])
def test_a_damaged_manifest_is_written_again(
    tmp_path: Path, undisturbed: dict[str, bytes], damage: str, whole: bool
) -> None:
    if whole:
        write_pairs(StubTeacher(), tmp_path, **SETTINGS)
    else:
        write_pairs(StubTeacher(), tmp_path, rank=0, world=2, **SETTINGS)
    manifest = tmp_path / "manifest.json"
    content = manifest.read_bytes()
    if damage == "deleted":
        manifest.unlink()
    elif damage == "empty":
        manifest.write_bytes(b"")
    else:
        flip(manifest, content.index(b'"sha256": "' if damage == "checksum" else b'"stub"') + 12)
    if whole:
        resume(tmp_path, undisturbed)
    else:
        write_pairs(StubTeacher(), tmp_path, rank=0, world=2, **SETTINGS)
        assert manifest.read_bytes() == content
    with pytest.raises(PairError, match="other settings: seed was 1 and is now 2"):
        write_pairs(StubTeacher(), tmp_path, **{**SETTINGS, "seed": 2})


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_damaged_manifest_of_another_set_is_left(tmp_path: Path, damage: str) -> None:
    write_pairs(StubTeacher(), tmp_path, **SETTINGS)
    manifest = tmp_path / "manifest.json"
    manifest.unlink() if damage == "deleted" else flip(manifest, 100)
    before = everything(tmp_path)
    with pytest.raises(PairError, match="choose a new folder"):
        write_pairs(StubTeacher(), tmp_path, **{**SETTINGS, "seed": 2})
    assert everything(tmp_path) == before


@pytest.mark.parametrize("key", ["sha256", "settings", "start", "file", "missing"])
def test_a_damaged_record_is_mended_from_the_manifest(
    tmp_path: Path, undisturbed: dict[str, bytes], key: str
) -> None:
    write_pairs(StubTeacher(), tmp_path, **SETTINGS)
    record = tmp_path / "shards" / "pairs-000007.json"
    if key == "missing":
        record.unlink()
    else:
        before, found, after = record.read_bytes().partition(b'"' + key.encode() + b'": ')
        damaged = re.sub(rb"[0-9]", lambda digit: b"%d" % (int(digit[0]) ^ 1), after, count=1)
        record.write_bytes(before + found + damaged)
    resume(tmp_path, undisturbed)
