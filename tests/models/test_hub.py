"""Models as folders, and on the Hub without the Hub."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from deqgen.gradients import Implicit, Unrolled
from deqgen.models import (
    GET,
    GenerativeModel,
    GETConfig,
    ModelFileError,
    UnsavableError,
    ViT,
    load_model,
    register_model,
    save_model,
)
from deqgen_solvers import Anderson, Broyden
from tests.models.test_behaviour import LABEL, noise, small

FILES = ["README.md", "config.json", "model.safetensors"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["GET", "ViT"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small(name).to(dtype).eval()
    assert model.save_pretrained(tmp_path / "new" / "folder") is None
    assert names(tmp_path / "new" / "folder") == FILES
    before = torch.get_rng_state()
    again = GenerativeModel.from_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(before, torch.get_rng_state())
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    assert {p.dtype for p in again.parameters()} == {dtype}
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    with torch.no_grad():
        assert torch.equal(again(noise(), LABEL).image, model(noise(), LABEL).image)


def test_solver_and_gradient_come_back_with_their_options(tmp_path: Path) -> None:
    solver, gradient = Anderson(memory=8), Unrolled(6, every=2, checkpoint=True)
    small(solver=solver, gradient=gradient).save_pretrained(tmp_path)
    again = GET.from_pretrained(tmp_path)
    assert (again.config.solver, again.config.gradient) == (solver, gradient)
    assert (again.deq.solver, again.deq.gradient) == (solver, gradient)
    assert len(again.train()(noise(), LABEL).images) == 3


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    class Mine(GET):
        architecture = "mine/hub"

    @register_model("mine/hub")
    def build(**fields: Any) -> Mine:
        return Mine(GETConfig(**fields))

    Mine(GETConfig(**small(solver=Anderson(memory=8)).config.__dict__)).save_pretrained(tmp_path)
    for cls in (Mine, GET, GenerativeModel):
        model = cls.from_pretrained(tmp_path, max_steps=9)
        assert isinstance(model, Mine)
        assert (model.deq.solver, model.config.max_steps) == (Anderson(memory=8), 9)
    with pytest.raises(ModelFileError, match="describes a mine/hub, and ViT was asked for"):
        ViT.from_pretrained(tmp_path)


def test_what_was_set_on_the_layer_is_saved(tmp_path: Path) -> None:
    model = small(solver="anderson")
    model.deq.gradient = Implicit(max_steps=9)
    model.save_pretrained(tmp_path)
    again = GET.from_pretrained(tmp_path)
    assert (again.config.solver, again.deq.gradient) == ("anderson", Implicit(max_steps=9))
    again.deq.solver = Broyden(memory=3)
    path = save_model(again, tmp_path / "other.safetensors")
    assert load_model(path).deq.solver == Broyden(memory=3)


def test_a_callback_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    small(seed=1).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = small(seed=2)
    model.deq.gradient = Implicit(callback=print)
    with pytest.raises(UnsavableError, match=r"GETConfig\.gradient\.callback is <built-in"):
        model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="takes no config"):
        small(seed=2).save_pretrained(tmp_path, config={"width": 3})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_architecture_is_refused_with_both_names(tmp_path: Path) -> None:
    small("ViT").save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="describes a ViT, and GET was asked for"):
        GET.from_pretrained(tmp_path)
    assert isinstance(ViT.from_pretrained(tmp_path), ViT)


def test_fields_can_be_overridden_if_the_weights_still_fit(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    model = GET.from_pretrained(tmp_path, max_steps=3, solver=Anderson(memory=8))
    assert (model.config.max_steps, model.deq.solver) == (3, Anderson(memory=8))
    assert load_model(tmp_path, max_steps=4).config.max_steps == 4


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"widht": 64}, TypeError, "GET has no option 'widht'. Did you mean 'width'"),
        ({"width": "64"}, TypeError, "width must be an integer, got '64'"),
        ({"heads": 5}, ValueError, "heads=5 does not divide width=32"),
        ({"width": 64}, ModelFileError, r"width overridden.*\(1, 16, 64\).*holds \(1, 16, 32\)"),
        ({"depth": 3}, ModelFileError, r"depth overridden: missing blocks\.2.*unexpected nothing"),
        ({"num_classes": None}, ModelFileError, "unexpected y_embedder"),
    ],
)
def test_overrides_that_do_not_fit(
    overrides: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    small().save_pretrained(tmp_path)
    with pytest.raises(error, match=says):
        GenerativeModel.from_pretrained(tmp_path, **overrides)


def change_config(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["config"].update(fields)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("no weights", FileNotFoundError, "model.safetensors"),
        ("no config", FileNotFoundError, "is missing; it says which model"),
        ("a list", ModelFileError, r"config\.json has format 'list'"),
        ("a run", ModelFileError, r"config\.json has format None"),
        ("truncated", ModelFileError, "damaged"),
        ("width", ModelFileError, r"should have shape \(.*64.*the file holds \(.*32"),
        ("solver", ModelFileError, r"config\.json: .*Did you mean 'memory'"),
    ],
)
def test_damaged_folders(how: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "a list":
        config.write_text("[]")
    elif how == "a run":
        config.write_text('{"seed": 0}')
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "width":
        change_config(tmp_path, width=64)
    else:
        change_config(tmp_path, solver={"solver": "anderson", "options": {"memry": 8}})
    with pytest.raises(error, match=says):
        GenerativeModel.from_pretrained(tmp_path)


def test_files_and_folders_are_read_either_way(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "folder")
    for place in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        assert load_model(place).config == model.config
        assert GET.from_pretrained(str(place)).config == model.config
    path = save_model(model, tmp_path / "file" / "model.safetensors")
    for place in (path, path.parent):
        assert load_model(place).config == model.config
        assert GET.from_pretrained(place).config == model.config


def test_whichever_was_written_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small(max_steps=3).save_pretrained(tmp_path)
    save_model(small(max_steps=4), path)
    assert load_model(tmp_path).config.max_steps == load_model(path).config.max_steps == 4
    small(max_steps=5).save_pretrained(tmp_path)
    assert load_model(tmp_path).config.max_steps == load_model(path).config.max_steps == 5
    assert names(tmp_path) == FILES


def test_the_card_says_what_the_model_is(tmp_path: Path) -> None:
    small(solver=Anderson(memory=8)).bfloat16().save_pretrained(
        tmp_path, model_card_kwargs={"license": "mit", "notes": "Trained on *shapes*."}
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.license) == ("deqgen", "mit")
    for part in ("# GET, 8x8, 5 classes", "bfloat16", "Anderson(memory=8", "Trained on *shapes*."):
        assert part in card.text
    small("ViT", num_classes=None).save_pretrained(tmp_path / "vit")
    card = ModelCard.load(tmp_path / "vit" / "README.md")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "# ViT, 8x8, unconditional" in card.text


def test_the_code_on_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small().save_pretrained("mine")
    code = (tmp_path / "mine" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("path or name of this folder", "mine"), found)
    assert found["images"].shape == (4, 3, 8, 8)


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    small().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


class Api:
    """What `push_to_hub` asks of the Hub, recorded."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, **_: Any) -> None:
        pass

    def create_repo(self, **options: Any) -> Any:
        self.calls.append(("create", options))
        return type("Url", (), {"repo_id": f"me/{options['repo_id'].split('/')[-1]}"})

    def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
        model = GenerativeModel.from_pretrained(folder_path)
        card = (folder_path / "README.md").read_text()
        self.calls.append(("upload", {**options, "names": names(folder_path), "card": card}))
        return f"https://hub/{type(model).__name__}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    monkeypatch.setattr(Api, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    return Api.calls


def test_push_to_hub(hub: list[tuple[str, dict[str, Any]]]) -> None:
    card = {"notes": "From a test.", "license": "mit"}
    url = small().push_to_hub("me/toy", private=True, model_card_kwargs=card)
    assert url == "https://hub/GET"
    (first, created), (second, uploaded) = hub
    assert (first, second) == ("create", "upload")
    assert (created["repo_id"], created["private"]) == ("me/toy", True)
    assert (uploaded["repo_id"], uploaded["names"]) == ("me/toy", FILES)
    assert "From a test." in uploaded["card"]


def test_save_and_push_at_once(hub: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    url = small("ViT").save_pretrained(tmp_path / "toy", push_to_hub=True, commit_message="hello")
    assert url == "https://hub/ViT"
    assert names(tmp_path / "toy") == FILES
    assert hub[0][1]["repo_id"] == "toy"
    assert hub[1][1]["commit_message"] == "hello"


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    small().save_pretrained(tmp_path)
    monkeypatch.setattr("deqgen.models.hub.snapshot_download", download)
    model = GenerativeModel.from_pretrained("me/toy", revision="v1", token="secret")
    assert isinstance(model, GET)
    assert (asked["name"], asked["revision"], asked["token"]) == ("me/toy", "v1", "secret")
    assert sorted(asked["allow_patterns"]) == FILES[1:]


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (None, "and local_files_only=True keeps from asking the Hugging Face Hub at URL. Leave it"),
        (OfflineModeIsEnabled("no"), "and HF_HUB_OFFLINE keeps from asking the Hugging Face Hub"),
        (ConnectionError("no\n route"), "Hub at URL could not be reached: no route. Check the net"),
        (TimeoutError(), "could not be reached: TimeoutError. Check the network, or give the path"),
    ],
    ids=["local", "offline", "network", "silent"],
)
def test_where_the_hub_cannot_be_asked(
    cause: Exception | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("words of the Hub's") from cause

    monkeypatch.setattr("deqgen.models.hub.snapshot_download", download)
    with pytest.raises(ModelFileError) as caught:
        GenerativeModel.from_pretrained("me/toy")
    said = str(caught.value)
    assert said.startswith(
        "'me/toy' is no file or folder here, no whole copy was fetched before, and "
    )
    assert says.replace("URL", huggingface_hub.constants.ENDPOINT) in said
    assert "words" not in said and "deqgen list --kind embedded" in said
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)


@pytest.mark.parametrize("down", [False, True], ids=["answer", "down"])
def test_what_the_hub_answers_is_passed_on(down: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        if down:  # of which the Hub's own class wants the whole answer, a matter of its version
            raise LocalEntryNotFoundError("no\n luck") from HfHubHTTPError.__new__(HfHubHTTPError)
        raise OSError("no\n luck")

    monkeypatch.setattr("deqgen.models.hub.snapshot_download", download)
    with pytest.raises(
        ModelFileError, match="folder here, and the Hub gave nothing for it: no luck"
    ):
        GenerativeModel.from_pretrained("me/toy")


@pytest.mark.parametrize("name", ["me/there-is-none", "no/such/folder", "/no/such/folder"])
def test_what_is_nowhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"'{name}' is no file or folder here"):
        GET.from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


def test_models_can_still_be_copied_and_pickled() -> None:
    model = small()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.config == model.config
        assert torch.equal(twin.qkv_inj.weight, model.qkv_inj.weight)
