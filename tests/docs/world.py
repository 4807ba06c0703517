"""The files that pages take for granted, made small: pairs, students, checkpoints, archives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from deqgen import cli
from deqgen.data import write_image_zip
from deqgen.models import create_model, save_model
from deqgen.teachers import load_teacher, save_teacher
from tests.commands.distilling import toy_pairs
from tests.data.test_cifar10 import SPLITS, archive, binary, rows
from tests.data.test_official import official
from tests.evaluation.scripted import Tiny, scripted
from tests.evaluation.tiny import tiny_model
from tests.models.released import entries, write
from tests.teachers.edm_networks import by_rule
from tests.teachers.official import entries as snapshot
from tests.teachers.official import pickled, recorded


def pairs(path: Path, seed: int = 0) -> None:
    toy_pairs(path, side=32, num_classes=10, seed=seed)


def student(path: Path) -> None:
    save_model(tiny_model(10, image_size=32, patch_size=8), path)


def student_folder(path: Path) -> None:
    tiny_model(10, image_size=32, patch_size=8).save_pretrained(path)


def run_folder(path: Path) -> None:
    """A run that has ended, under the name that the page gives it."""
    beside = path.with_name(f"{path.name}.world")
    pairs(beside / "pairs")
    options = ["--model", "GET-N/8", "--images", "16", "--batch-size", "8", "--outdir", str(beside)]
    assert cli.main(["distill", str(beside / "pairs"), *options, "--sample-images", "0"]) == 0
    (made,) = beside.glob("00000-*")
    made.rename(path)
    shutil.rmtree(beside)


def released_get(path: Path) -> None:
    """A checkpoint of locuslab/get, of a published width."""
    sizes = {"depth": 1, "deq_depth": 1, "num_classes": None if "uncond" in path.name else 10}
    write(path, entries(create_model("GET-T/4", **sizes), input_size=32, num_classes=10))


def get_pairs(path: Path) -> None:
    """Pairs as the scripts of locuslab/get write them."""
    with patch("tests.data.test_official.SHAPE", (3, 32, 32)):
        official(path, classes=10)


def released_edm(path: Path) -> None:
    """A checkpoint of EDM, 32x32: their format, a toy of their network."""
    kwargs = {
        "img_resolution": 32,
        "img_channels": 3,
        "label_dim": 0 if "uncond" in path.name else 10,
        "model_type": "SongUNet",
        "model_channels": 16,
        "channel_mult": [1, 1],
        "num_blocks": 1,
        "attn_resolutions": [],
    }
    from deqgen.teachers import EDMPrecond

    path.write_bytes(pickled(snapshot(recorded(by_rule(EDMPrecond(**kwargs)), **kwargs))))


def teacher_file(path: Path) -> None:
    save_teacher(load_teacher("cifar10-small"), path)


def pipeline(path: Path) -> None:
    """A pipeline of diffusers with random weights, 8x8."""
    import diffusers

    from tests.teachers.random_pipelines import UNET

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**UNET)
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.1)  # clean images well within [-1, 1]
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(path)


def latent_pipeline(path: Path) -> None:
    """A class-conditional one on latents, with its autoencoder."""
    import diffusers

    from tests.teachers.random_pipelines import save_pipelines

    beside = path.with_name(f"{path.name}.world")
    save_pipelines(diffusers, beside)
    (beside / "dit").rename(path)
    shutil.rmtree(beside)


def image_zip(path: Path) -> None:
    write_image_zip(path, pixels(), [i % 10 for i in range(len(pixels()))])


def image_folder(path: Path) -> None:
    from PIL import Image

    for number, image in enumerate(pixels()):
        file = path / f"class-{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def image_npz(path: Path) -> None:
    np.savez(path, arr_0=pixels())


def moments(path: Path) -> None:
    """Of the features of ``tiny.pt``, as EDM keeps them."""
    features = np.random.default_rng(0).normal(size=(50, 5))
    np.savez(path, mu=features.mean(0), sigma=np.cov(features, rowvar=False))


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


def cifar_archive(path: Path) -> None:
    names = [*SPLITS["train"], *SPLITS["test"]]
    archive(path, {f"{name}.bin": binary(*rows(i)) for i, name in enumerate(names)})


def inception(path: Path) -> None:
    """FID's network with random weights: 96 MB."""
    from deqgen.evaluation.inception import InceptionV3

    torch.save(InceptionV3().state_dict(), path)


FILES: list[tuple[str, Callable[[Path], object]]] = [
    ("pairs", pairs),
    ("pairs-[0-9]", partial(pairs, seed=1)),
    ("student*.safetensors", student),
    ("student", student_folder),
    ("get-b-cond", student_folder),
    ("runs/0*-*", run_folder),
    ("runs/*/student.safetensors", student),
    ("GET-*.pth", released_get),
    ("*inception*.pth", inception),
    ("*.pkl", released_edm),
    ("edm-*.safetensors", teacher_file),
    ("teacher.safetensors", teacher_file),
    ("ddpm*", pipeline),
    ("DiT*", latent_pipeline),
    ("cifar10-*.npz", moments),
    ("samples*.npz", image_npz),
    ("*.zip", image_zip),
    ("photos", image_folder),
    ("ILSVRC/*", image_folder),
    ("cifar-10-binary.tar.gz", cifar_archive),
    ("get-pairs", get_pairs),
    ("tiny.pt", lambda path: scripted(Tiny(), path)),
]
"""(pattern of a path, what makes it); the first that matches counts."""


class World:
    """Makes each file once, in ``root``, and hands out copies."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def provide(self, name: str, folder: Path) -> bool:
        """Put the file of this name into the folder, unless it is there; False if none has it."""
        name = name.removeprefix("./").rstrip("/")
        maker = next((make for pattern, make in FILES if fnmatchcase(name, pattern)), None)
        if maker is None or (folder / name).exists():
            return maker is not None
        kept, wanted = self.root / name, folder / name
        for path in (kept, wanted):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            maker(kept)
        if kept == wanted:
            return True
        if kept.is_dir():
            shutil.copytree(kept, wanted)
        else:
            wanted.hardlink_to(kept)
            for beside in kept.parent.glob(f"{kept.stem}.json"):
                shutil.copy(beside, wanted.parent)
        return True
