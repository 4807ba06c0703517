"""Feature networks by name, path and address; and files that are damaged, strange or mean harm."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import socket
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deqgen.evaluation import (
    CifarClassifier,
    EvaluationInputError,
    FeatureNetwork,
    features,
    fingerprint,
    load_classifier,
    load_features,
)
from deqgen.evaluation.inception import InceptionV3
from deqgen.teachers.download import DownloadError, cached_path
from tests.evaluation.patterns import patterns
from tests.evaluation.ruled import ruled_weights
from tests.evaluation.scripted import Tiny, scripted


def published() -> OrderedDict[str, Tensor]:
    """A state dict with the names, order and types of the published one, counters and all."""
    network = InceptionV3()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in network.state_dict().items():
        shapes[name] = tuple(value.shape)
        if name.endswith("running_var"):
            shapes[name.replace("running_var", "num_batches_tracked")] = ()
    weights = ruled_weights(shapes)
    state = OrderedDict((k, v.float() if v.ndim else v) for k, v in weights.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pth file that promises its own hash, in the format of the years it is from."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(published(), path, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"pt_inception-{digest[:8]}.pth"))


def test_the_classifier_is_one(tmp_path: Path) -> None:
    network: FeatureNetwork = load_features()
    classifier = load_classifier()
    assert isinstance(network, CifarClassifier)
    assert (network.name, network.distance) == ("cifar10", "fd_cifar10")
    assert network.fingerprint == fingerprint(classifier) == load_features("cifar10").fingerprint
    for mine, its in zip(
        network.measure(patterns(2)), classifier.measure(patterns(2)), strict=True
    ):
        assert mine is not None and torch.equal(mine, its)
    save_file(classifier.state_dict(), tmp_path / "own.safetensors")
    assert load_features(tmp_path / "own.safetensors").fingerprint == classifier.fingerprint


def test_the_published_state_dict_loads(weights: Path, tmp_path: Path) -> None:
    network: FeatureNetwork = load_features(weights)
    assert isinstance(network, InceptionV3)
    assert (network.name, network.distance) == ("inception", "fid")
    assert (network.num_features, network.num_classes) == (2048, 1008)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    wanted = published()
    assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())
    torch.save(published(), tmp_path / "today.pth")
    assert load_features(tmp_path / "today.pth").fingerprint == network.fingerprint
    save_file(network.state_dict(), tmp_path / "inception.safetensors")
    same = load_features(str(tmp_path / "inception.safetensors"))
    assert same.fingerprint == network.fingerprint


def test_inception_is_what_the_environment_names(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEQGEN_INCEPTION", str(weights))
    assert isinstance(load_features("inception"), InceptionV3)
    monkeypatch.setenv("DEQGEN_INCEPTION", str(tmp_path / "nowhere.pth"))
    with pytest.raises(
        EvaluationInputError, match=r"\$DEQGEN_INCEPTION: there is no file .*nowhere"
    ):
        load_features("inception")
    other = scripted(Tiny(), tmp_path / "tiny.pt")
    monkeypatch.setenv("DEQGEN_INCEPTION", str(other))
    with pytest.raises(EvaluationInputError, match=r"tiny\.pt holds tiny, not the network of FID"):
        load_features("inception")


def test_else_it_is_downloaded_once_and_held_against_its_hash(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fetch(url: str, **options: Any) -> Path:
        asked.update(options, url=url)
        return weights

    monkeypatch.delenv("DEQGEN_INCEPTION", raising=False)
    monkeypatch.setattr(features, "fetch", fetch)
    assert load_features("inception").name == "inception"
    assert asked["url"].endswith("/pt_inception-2015-12-05-6726825d.pth")
    assert asked["sha256"].startswith("6726825d") and len(asked["sha256"]) == 64
    assert asked["size"] == 95_628_359 and "Apache" in asked["notice"]
    by_address = dict(asked)
    load_features(asked["url"])
    assert asked == by_address, "the same address, given by the user, is held against the same hash"
    load_features("https://example.org/a.pth")
    assert asked["url"] == "https://example.org/a.pth"


def test_a_copy_in_the_cache_that_was_cut_short_is_not_used(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEQGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("DEQGEN_INCEPTION", raising=False)
    place = cached_path(features.INCEPTION_URL)
    place.parent.mkdir(parents=True)
    place.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DownloadError, match="1,000 bytes, not 95,628,359"):
        load_features("inception")


def test_without_a_network_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DEQGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("DEQGEN_INCEPTION", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(DownloadError, match="on another machine and put it at") as said:
        load_features("inception")
    assert str(cached_path(features.INCEPTION_URL)) in str(said.value)
    assert "Apache License 2.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("incepton", r"Did you mean 'inception'\? Available: cifar10, inception\. Or give.*\.pth"),
        ("dinov2", r"unknown feature network 'dinov2'.*as for DINOv2"),
        ("weights/net.npz", r"unknown feature network 'weights/net\.npz'.*\.safetensors"),
        ("nowhere.safetensors", r"no file of a feature network at nowhere\.safetensors"),
        (
            "https://x.org/inception-2015-12-05.pkl",
            r"pickle.*6726825d\.pth.*inception-2015-12-05\.pt ",
        ),
        ("network.PKL", "is a pickle, which could run code"),
    ],
)
def test_unknown_names_and_pickles_get_one_sentence(name: str, message: str) -> None:
    with pytest.raises(EvaluationInputError, match=message):
        load_features(name)


def test_a_file_that_is_not_what_its_name_promises_is_refused(
    weights: Path, tmp_path: Path
) -> None:
    other = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    shutil.copy(weights, other)
    with pytest.raises(EvaluationInputError, match=r"6726825d\.pth is not the file that its name"):
        load_features(other)
    unpromised = other.rename(tmp_path / "inception-2015-12-05.pth")  # a date is no hash
    assert load_features(unpromised).name == "inception"


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm-was-done",)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "pickle"])
def test_a_pickle_that_means_harm_is_refused_and_does_not_run(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "harm.pth"
    content = {"Conv2d_1a_3x3.conv.weight": _Harm()}
    torch.save(content, path) if zipped else path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(
        EvaluationInputError, match=r"refused.*mkdir.*no code of it was run"
    ) as said:
        load_features(path)
    assert not (tmp_path / "harm-was-done").exists() and "\n" not in str(said.value)
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert (tmp_path / "harm-was-done").exists(), "it would have"


def test_damaged_files_are_one_sentence(weights: Path, tmp_path: Path) -> None:
    whole = weights.read_bytes()
    tensors = tmp_path / "cut.safetensors"
    save_file({"whiten.weight": torch.zeros(9)}, tensors)
    tensors.write_bytes(tensors.read_bytes()[:-4])
    for name, content in {
        "cut.pth": whole[: len(whole) // 2],
        "page.pt": b"<html>",
        "empty.pth": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(EvaluationInputError, match=f"{path.name} is damaged") as said:
            load_features(path)
        assert "\n" not in str(said.value)


def test_files_of_other_things_name_what_is_wrong(tmp_path: Path) -> None:
    ours = published()
    torchvisions = {**ours, "AuxLogits.fc.bias": torch.zeros(9), "fc.bias": torch.zeros(1000)}
    short = {name: value for name, value in ours.items() if not name.startswith("Mixed_7c.branch1")}
    for content, message in [
        (
            torchvisions,
            "InceptionV3 as it is built here: missing nothing; unexpected AuxLogits.fc.bias",
        ),
        ({**ours, "fc.bias": torch.zeros(1000)}, r"fc\.bias should have shape \(1008,\)"),
        (short, r"missing Mixed_7c\.branch1x1\.bn\.bias.* and 1 more; unexpected nothing"),
        ({**ours, "fc.bias": torch.full((1008,), torch.nan)}, r"fc\.bias holds what is no finite"),
        ({"layer.weight": torch.zeros(2)}, r"holds no network that is known.*but layer\.weight"),
        ({"model": {"a": torch.zeros(2)}}, r"dict of tensors by name, and its 'model' is a dict"),
        (torch.zeros(3), "dict of tensors by name, and holds a Tensor"),
        ({"whiten.weight": torch.zeros(2)}, "is not a CifarClassifier"),
    ]:
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(EvaluationInputError, match=message):
            load_features(tmp_path / "x.pth")
