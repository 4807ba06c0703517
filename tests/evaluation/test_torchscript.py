"""Feature networks in TorchScript: how they are called, and what their programs may not do."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from deqgen.data.images import to_uint8
from deqgen.evaluation import EvaluationInputError, load_features
from tests.evaluation import scripted as nets
from tests.evaluation.patterns import patterns
from tests.evaluation.scripted import Tiny, scripted


def test_it_is_called_with_bytes_and_gives_logits_without_biases(tmp_path: Path) -> None:
    net = Tiny().eval()
    network = load_features(scripted(net, tmp_path / "small.pt"))
    assert (network.name, network.distance) == ("small", "fd_small")
    assert (network.num_features, network.num_classes) == (5, 7)
    images = patterns(40)  # more than one part
    features, logits = network.measure(images)
    assert features.dtype == torch.float32 and features.shape == (40, 5)
    assert not features.requires_grad and logits is not None and not logits.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(features, net(to_uint8(images), return_features=True))
        without_bias = net(to_uint8(images), no_output_bias=True)
        torch.testing.assert_close(logits.softmax(dim=1), without_bias)
        assert not torch.allclose(logits.softmax(dim=1), net(to_uint8(images)))


def test_its_fingerprint_is_of_the_whole_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = load_features(scripted(Tiny(), tmp_path / "one.pt"))
    two = load_features(scripted(Tiny(), tmp_path / "two.pt"))
    again = load_features(tmp_path / "one.pt")
    assert one.fingerprint == again.fingerprint != two.fingerprint
    assert len(one.fingerprint) == 16


def test_a_network_of_fids_size_is_called_inception(tmp_path: Path) -> None:
    network = load_features(scripted(nets.Large(), tmp_path / "inception-2015-12-05.pt"))
    assert (network.name, network.distance) == ("inception", "fid")
    assert network.measure(patterns(1))[0].shape == (1, 2048)


def test_a_network_without_classes_has_no_logits(tmp_path: Path) -> None:
    network = load_features(scripted(nets.Headless(), tmp_path / "headless.pt"))
    features, logits = network.measure(patterns(2))
    assert features.shape == (2, 3) and logits is None and network.num_classes is None


@pytest.mark.parametrize(
    ("net", "word"),
    [(nets.Writer(), "save"), (nets.Reader(), "from_file"), (nets.Profiler(), "ops.profiler")],
    ids=["writer", "reader", "other-library"],
)
def test_a_program_that_could_reach_files_is_refused_before_it_runs(
    net: nn.Module, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = scripted(net, tmp_path / "harm.pt")
    with pytest.raises(
        EvaluationInputError, match=rf"uses '{word}'.*Nothing of it was run"
    ) as said:
        load_features(path)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "written-by-torchscript").exists()


def test_the_writer_would_have_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the check, this program writes its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deqgen.evaluation.torchscript.check_program", lambda path: None)
    load_features(scripted(nets.Writer(), tmp_path / "harm.pt"))
    assert (tmp_path / "written-by-torchscript").exists()


@pytest.mark.parametrize("folder", ["CODE", "code"])
def test_a_program_is_found_wherever_torch_would_find_it(folder: str, tmp_path: Path) -> None:
    """Torch looks names up without regard to case; a second copy of a name changes nothing."""
    path, changed = scripted(nets.Writer(), tmp_path / "harm.pt"), tmp_path / "changed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        new.writestr("harm/code/innocent.py", b"")
        for name in old.namelist():
            new.writestr(name.replace("/code/", f"/{folder}/"), old.read(name))
    with pytest.raises(EvaluationInputError, match="uses 'save'"):
        load_features(changed)


def test_a_name_that_is_put_together_is_refused(tmp_path: Path) -> None:
    path, changed = scripted(nets.Writer(), tmp_path / "harm.pt"), tmp_path / "changed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            hidden = old.read(name).replace(b"torch.save(", rb'getattr(torch, "\x73ave")(')
            new.writestr(name, hidden if name.endswith(".py") else old.read(name))
    with pytest.raises(EvaluationInputError, match="uses 'getattr'"):
        load_features(changed)


def test_children_with_numbers_for_names_are_no_harm(tmp_path: Path) -> None:
    network = load_features(scripted(nets.Stacked(), tmp_path / "stacked.pt"))
    assert network.measure(patterns(2))[0].shape == (2, 4)


def test_what_hides_before_an_archive_is_refused(tmp_path: Path) -> None:
    path = scripted(Tiny(), tmp_path / "net.pt")
    path.write_bytes(b"\0\0\0\0PTMF" + path.read_bytes())
    with pytest.raises(EvaluationInputError, match="does not begin as an archive"):
        load_features(path)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nets.Stranger(), r"cannot be called as net\(images, return_features=True\).*at most 2"),
        (nets.Picky(), r"cannot be called as .*: RuntimeError: mat1 and mat2"),
        (nets.Flat(), r"should give features \(B, F\), and gave \(2,\)"),
    ],
    ids=["signature", "channels", "shape"],
)
def test_another_signature_is_one_sentence(net: nn.Module, message: str, tmp_path: Path) -> None:
    path = scripted(net, tmp_path / "net.pt")
    with pytest.raises(EvaluationInputError, match=message) as said:
        load_features(path)
    assert "\n" not in str(said.value) and str(path) in str(said.value)


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    path = scripted(Tiny(), tmp_path / "net.pt")
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(EvaluationInputError, match="damaged") as said:
        load_features(path)
    assert "\n" not in str(said.value)


def test_damage_inside_is_one_sentence(tmp_path: Path) -> None:
    path, changed = scripted(Tiny(), tmp_path / "net.pt"), tmp_path / "changed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"" if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(EvaluationInputError, match=r"changed\.pt is damaged") as said:
        load_features(changed)
    assert "\n" not in str(said.value)
