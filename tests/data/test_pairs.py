from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from deqgen.data import PairDataset, PairError, noise_for, pair_seeds, to_uint8, write_pairs
from deqgen.teachers import CountingDenoiser, Sampler, Teacher
from tests.data.stub import StubTeacher, everything, same


def write(teacher: Any, directory: Path, **options: Any) -> Any:
    defaults = {"count": 23, "seed": 2, "batch_size": 5, "shard_size": 8}
    return write_pairs(teacher, directory, **{**defaults, **options})


def test_what_is_stored_is_what_the_teacher_saw_and_said(tmp_path: Path) -> None:
    teacher = StubTeacher()
    write(teacher, tmp_path, image_dtype="float16")
    pairs = PairDataset(tmp_path).__getitems__(range(23))
    seeds = pair_seeds(2, range(23))
    noise, label = noise_for(seeds, teacher.image_shape), torch.arange(23) % 3
    assert torch.equal(pairs["noise"], noise)
    assert torch.equal(pairs["label"], label)
    assert pairs["seed"].tolist() == seeds
    assert torch.equal(pairs["image"], teacher.sample(noise, label).half().float())


def test_bytes_are_the_nearest_to_the_image(tmp_path: Path) -> None:
    teacher = StubTeacher()
    write(teacher, tmp_path)
    raw = PairDataset(tmp_path, decode=False).__getitems__(range(23))
    image = teacher.sample(raw["noise"].float(), raw["label"])
    assert raw["image"].dtype == torch.uint8 and raw["noise"].dtype == torch.float16
    assert torch.equal(raw["image"], to_uint8(image))
    decoded = PairDataset(tmp_path).__getitems__(range(23))["image"]
    assert (decoded - image).abs().max() <= 0.5 / 127.5 + 1e-6


@settings(max_examples=15)
@given(batch=st.integers(1, 30), shard=st.integers(1, 30))
def test_a_pair_depends_on_seed_and_index_alone(
    tmp_path_factory: pytest.TempPathFactory, batch: int, shard: int
) -> None:
    directory = tmp_path_factory.mktemp("pairs")
    write(StubTeacher(), directory, batch_size=batch, shard_size=shard, labels="random", count=11)
    pairs = PairDataset(directory, decode=False).__getitems__(range(11))
    plain = tmp_path_factory.mktemp("plain")
    write(StubTeacher(), plain, batch_size=1, shard_size=40, labels="random", count=17)
    assert same(pairs, PairDataset(plain, decode=False).__getitems__(range(11)))


def test_uniform_labels_are_balanced_and_random_ones_follow_the_noise(tmp_path: Path) -> None:
    write(StubTeacher(), tmp_path / "uniform", count=30)
    label = PairDataset(tmp_path / "uniform").__getitems__(range(30))["label"]
    assert set(Counter(label.tolist()).values()) == {10}
    write(StubTeacher(), tmp_path / "random", count=30, labels="random")
    label = PairDataset(tmp_path / "random").__getitems__(range(30))["label"]
    expected = []
    for seed in pair_seeds(2, range(30)):
        generator = torch.Generator().manual_seed(seed)
        torch.randn((2, 4, 4), generator=generator)  # EDM's order: latents, then the class
        expected.append(int(torch.randint(3, (), generator=generator)))
    assert label.tolist() == expected and len(set(expected)) == 3


def test_an_unconditional_teacher_gives_pairs_without_labels(tmp_path: Path) -> None:
    manifest = write(StubTeacher(num_classes=0), tmp_path)
    dataset = PairDataset(tmp_path)
    assert manifest.settings["labels"] == "none" and dataset.num_classes == 0
    assert dataset[3].keys() == {"noise", "image", "seed"}


def test_the_manifest_says_how_and_at_what_cost(tmp_path: Path) -> None:
    write(StubTeacher(), tmp_path)
    data = json.loads((tmp_path / "manifest.json").read_text())
    assert data["complete"] and data["version"] == 1 and data["format"] == "deqgen-pairs"
    assert (data["nfe_per_pair"], data["nfe_total"]) == (7, 7 * 23)
    assert data["settings"]["teacher"]["sampler"] == {"steps": 4}
    assert data["settings"]["count"] == 23 and data["settings"]["seed"] == 2
    assert data["tensors"]["noise"] == {"dtype": "F16", "shape": [2, 4, 4]}
    assert [shard["count"] for shard in data["shards"]] == [8, 8, 7]
    assert all(len(shard["sha256"]) == 64 for shard in data["shards"])


def test_the_evaluations_in_the_manifest_are_those_a_real_teacher_spent(tmp_path: Path) -> None:
    counter = CountingDenoiser(lambda x, sigma, label: x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2))
    teacher = Teacher(counter, image_shape=(1, 2, 2), sampler=Sampler(steps=3))
    manifest = write(teacher, tmp_path, image_dtype="float16")
    total = json.loads((tmp_path / "manifest.json").read_text())["nfe_total"]
    assert counter.rows == teacher.evaluations == total == 23 * 5 == manifest.nfe * 23


def test_a_finished_set_is_left_alone(tmp_path: Path) -> None:
    write(StubTeacher(), tmp_path)
    before, teacher = everything(tmp_path), StubTeacher()
    assert write(teacher, tmp_path, batch_size=11).complete  # another batch size is no other set
    assert everything(tmp_path) == before and teacher.images == 0


def test_two_processes_give_the_set_of_one(tmp_path: Path) -> None:
    write(StubTeacher(), tmp_path / "one")
    first = write(StubTeacher(), tmp_path / "two", rank=1, world=2)
    assert not first.complete
    with pytest.raises(PairError, match="is not finished; 2 of 3 shards are missing"):
        PairDataset(tmp_path / "two")
    teacher = StubTeacher()
    assert write(teacher, tmp_path / "two", rank=0, world=2).complete
    assert teacher.images == 8 + 7  # shards 0 and 2
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_torchrun_says_which_shards_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write(StubTeacher(), tmp_path / "one").complete
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="RANK=1 is set in the environment but WORLD_SIZE is not"):
        write(StubTeacher(), tmp_path / "half")
    monkeypatch.setenv("WORLD_SIZE", "2")
    teacher = StubTeacher()
    assert not write(teacher, tmp_path / "two").complete
    assert teacher.images == 8  # shard 1
    assert write(teacher, tmp_path / "two", rank=0, world=1).complete  # what is given wins
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(ValueError, match="RANK must be a whole number, got 'two'"):
        write(teacher, tmp_path / "two")


@pytest.mark.parametrize("labels", ["uniform", "random"])
def test_a_stochastic_teacher_goes_on_with_the_generators(tmp_path: Path, labels: str) -> None:
    class Stochastic(StubTeacher):
        stochastic = True

        def sample(
            self,
            noise: Tensor,
            label: Tensor | None = None,
            generators: list[torch.Generator] | None = None,
        ) -> Tensor:
            assert generators is not None
            churn = [torch.rand(noise.shape[1:], generator=g) for g in generators]
            return super().sample(noise, label) / 2 + torch.stack(churn) / 4

    for name, batch in (("a", 5), ("b", 23)):
        options: Any = {"labels": labels, "batch_size": batch, "image_dtype": "float32"}
        write(Stochastic(), tmp_path / name, **options)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    pair = PairDataset(tmp_path / "a")[7]
    generator = torch.Generator().manual_seed(30_000_007)
    torch.randn((2, 4, 4), generator=generator)  # EDM's order: latents, class, churn
    if labels == "random":
        torch.randint(3, (), generator=generator)
    churn = torch.rand((2, 4, 4), generator=generator)
    plain = StubTeacher().sample(pair["noise"][None], pair["label"][None])[0]
    assert torch.equal(pair["image"], plain / 2 + churn / 4)


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 1, 1), (5, 3, 7)])
def test_any_shape_and_all_that_a_latent_teacher_computed(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    class Latent(StubTeacher):
        image_shape = shape

        def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return super().sample(noise, label) * 9  # far beyond [-1, 1]

    write(Latent(), tmp_path, image_dtype="float32")
    pairs = PairDataset(tmp_path, verify=True).__getitems__(range(23))
    assert pairs["image"].dtype == torch.float32 and pairs["image"].shape == (23, *shape)
    assert torch.equal(pairs["image"], Latent().sample(pairs["noise"], pairs["label"]))
    assert PairDataset(tmp_path).manifest.tensors["image"]["dtype"] == "F32"


def test_shards_are_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    for dtype in ("uint8", "float16", "float32"):
        write(StubTeacher(), tmp_path / dtype, image_dtype=dtype)
        path = tmp_path / dtype / "shards" / "pairs-000001.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata(), list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        assert save(tensors, metadata=metadata) == path.read_bytes()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"count": 24}, "count was 23 and is now 24"),
        ({"seed": 3}, "seed was 2 and is now 3"),
        ({"shard_size": 9}, "shard_size was 8 and is now 9"),
        ({"labels": "random"}, "labels was 'uniform' and is now 'random'"),
        ({"image_dtype": "float16"}, "image_dtype was 'uint8' and is now 'float16'"),
        ({"teacher": StubTeacher(steps=5)}, r"teacher\.sampler\.steps was 4 and is now 5"),
        ({"teacher": StubTeacher(num_classes=4)}, r"teacher\.num_classes was 3 and is now 4"),
    ],
)
def test_other_settings_do_not_resume(
    tmp_path: Path, options: dict[str, Any], difference: str
) -> None:
    write(StubTeacher(), tmp_path)
    before = everything(tmp_path)
    with pytest.raises(PairError, match=difference):
        write(**{"teacher": StubTeacher(), "directory": tmp_path, **options})
    assert everything(tmp_path) == before


def test_shards_of_other_settings_are_not_taken_for_ours(tmp_path: Path) -> None:
    write(StubTeacher(), tmp_path / "a", seed=1)
    write(StubTeacher(), tmp_path / "b", seed=2)
    for path in (tmp_path / "a" / "shards").iterdir():
        path.rename(tmp_path / "b" / "shards" / path.name)
    with pytest.raises(PairError, match=r"pairs-000000.safetensors .* other settings"):
        write(StubTeacher(), tmp_path / "b", seed=2)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(PairError, match=r"is not empty and holds no manifest\.json"):
        write(StubTeacher(), tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["thesis.tex"]
    with pytest.raises(PairError, match="could not make the folder"):
        write(StubTeacher(), tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"shard_size": -1}, "shard_size must be at least 1"),
        ({"rank": 2, "world": 2}, r"rank must lie in 0\.\.1, got 2"),
        ({"image_dtype": "uint"}, "Did you mean 'uint8'"),
        ({"labels": "unifrom"}, "Did you mean 'uniform'"),
        ({"labels": "none"}, r"teacher\.unconditional\(\)"),
        ({"seed": 429}, r"must lie in 0\.\.428, got 429"),
        ({"count": 10_000_001}, r"must lie in 0\.\.9999999"),
    ],
)
def test_bad_arguments_are_named_before_any_work(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        write(StubTeacher(), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_an_image_that_is_not_finite_is_not_stored(tmp_path: Path) -> None:
    # Batches of 5 in shards of 8 are 0-4, 5-7, 8-12, 13-15, ...
    class BrokenAtEleven(StubTeacher):
        def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
            image = super().sample(noise, label)
            if len(self.batches) == 3:
                image[3, 0, 0, 0] = torch.nan
            return image

    with pytest.raises(PairError, match="image of pair 11 is not finite"):
        write(BrokenAtEleven(), tmp_path)
    teacher = StubTeacher()
    assert write(teacher, tmp_path).complete
    assert teacher.images == 15  # the first shard was kept


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    class Cropped(StubTeacher):
        def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return super().sample(noise, label)[:, :1]

    with pytest.raises(PairError, match=r"gave images \(5, 1, 4, 4\) for \(5, 2, 4, 4\)"):
        write(Cropped(), tmp_path)


def test_the_progress_bar_counts_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(StubTeacher(), tmp_path, progress=True)
    assert "23/23" in capsys.readouterr().err
    write(StubTeacher(), tmp_path)
    write(StubTeacher(), tmp_path / "other", progress=True, rank=1, world=2)
    assert capsys.readouterr().err == ""
    write(StubTeacher(), tmp_path / "other", progress=True, rank=0, world=2)
    assert "15/15" in capsys.readouterr().err


def giving(image: Callable[[Tensor], Tensor]) -> StubTeacher:
    class Giving(StubTeacher):
        def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return image(noise)

    return Giving()


@pytest.mark.parametrize(
    "image",
    [lambda x: x, lambda x: x * 5, lambda x: (x.tanh() + 1) * 127.5],
    ids=["latents", "unscaled latents", "bytes"],
)
def test_bytes_are_for_images(tmp_path: Path, image: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(PairError, match=r"the teacher's images lie in .* latents need image_dtype"):
        write(giving(image), tmp_path / "a", batch_size=23)
    write(giving(image), tmp_path / "b", image_dtype="float16")


def test_images_that_overstep_are_clipped(tmp_path: Path) -> None:
    """A teacher's rounding, the rim of a strongly guided image, one wild number of 736."""

    def wild(noise: Tensor) -> Tensor:
        image = noise.sign() * 1.6
        image[0, 0, 0, 0] = 40.0
        return image

    write(giving(wild), tmp_path, batch_size=23)
    assert PairDataset(tmp_path)[0]["image"].abs().unique().tolist() == [1.0]
