"""Commands about noise/image pairs: make them, check them, put sets together, import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    from deqgen.data import Manifest


def make(
    out: Annotated[str, arg(metavar="OUT")],
    /,
    teacher: Annotated[str, arg(metavar="NAME|PATH|diffusers:ID")],
    count: int,
    seed: int = 0,
    labels: Literal["uniform", "random"] = "uniform",
    batch_size: int = 256,
    shard_size: int = 4096,
    image_dtype: Literal["uint8", "float16", "float32"] = "uint8",
    device: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    compile: bool = False,
) -> None:
    """Let a teacher turn noise into images, and keep both. Interrupted, the same command goes on.

    With several GPUs: torchrun --standalone --nproc_per_node=N -m deqgen pairs make OUT ...

    Args:
        out: Folder for the manifest and the shards.
        teacher: A teacher's name, its file, a checkpoint of EDM (.pkl), or a pipeline of diffusers
            (a folder, or diffusers:ID for one on the Hub).
        count: Pairs in all, over all processes.
        seed: Of the set, 0 to 428; sets of different seeds can be merged.
        labels: Equally many of each class, or drawn at random as EDM does.
        batch_size: Samples the teacher is given at a time.
        shard_size: Pairs a file.
        image_dtype: Bytes are for images; latents need float16 or float32.
        device: Such as cuda:1 or cpu; auto takes the process's own GPU where there is one.
        precision: Of the teacher's network.
        compile: Compile the teacher's network; the first batch then takes longer.
    """
    from deqgen.data import write_pairs
    from deqgen.processes import pick_device
    from deqgen.teachers import load_teacher

    loaded = load_teacher(teacher, device=pick_device(device), precision=precision, compile=compile)
    if image_dtype == "uint8" and loaded.image_shape[0] not in (1, 3):
        raise ValueError(
            f"teacher {loaded.name!r} gives {loaded.image_shape[0]} channels, which looks like "
            "latents; bytes keep [-1, 1] alone: use --image-dtype float16 or float32."
        )
    manifest = write_pairs(
        loaded,
        out,
        count=count,
        seed=seed,
        batch_size=batch_size,
        shard_size=shard_size,
        image_dtype=image_dtype,
        labels=labels,
        progress=True,
    )
    if manifest.complete:
        _say(out, manifest)


def verify(directory: Annotated[str, arg(metavar="DIR")], /) -> None:
    """Read a set of pairs whole and compare every checksum; name the first file that is damaged.

    Args:
        directory: The folder, or an fsspec path to it, such as s3://bucket/pairs.
    """
    from tqdm import tqdm

    from deqgen.data import PairDataset

    pairs = PairDataset(directory)
    with tqdm(total=len(pairs.manifest.shards), unit="shard", desc="verify") as bar:
        pairs.verify(progress=lambda _: bar.update())
    print(f"{directory}: all {len(pairs):,} pairs are whole.")


def info(directory: Annotated[str, arg(metavar="DIR")], /) -> None:
    """Say what a folder of pairs holds, how it was made, what it cost and whether it is complete.

    Args:
        directory: The folder, or an fsspec path to it, such as s3://bucket/pairs.
    """
    from deqgen.data.describe import describe_pairs

    print(describe_pairs(directory))


def merge(
    out: Annotated[str, arg(metavar="OUT")],
    directories: Annotated[tuple[Path, ...], arg(metavar="DIR...")],
    /,
) -> None:
    """Make one set of several that the same teacher made with different seeds.

    Shards are checked, then linked or copied, and every pair keeps its seed.

    Args:
        out: The new folder.
        directories: Folders of finished sets.
    """
    from deqgen.data import merge_pairs

    _say(out, merge_pairs(out, directories))


def import_get(
    directory: Annotated[Path, arg(metavar="DIR")],
    out: Annotated[str, arg(metavar="OUT")],
    /,
    nfe: int = 35,
    image_dtype: Literal["uint8", "float16", "float32"] = "uint8",
) -> None:
    """Import the folders latent/ and image/ that the scripts of locuslab/get made.

    Nothing in the files is run. Interrupted, the same command goes on.

    Args:
        directory: Holds latent/ and image/.
        out: Folder for the manifest and the shards.
        nfe: Evaluations of the teacher a pair; the files do not tell.
        image_dtype: Of the stored images.
    """
    from deqgen.data.official import import_get as bring_in

    _say(out, bring_in(directory, out, nfe=nfe, image_dtype=image_dtype, progress=True))


def _say(out: str, manifest: Manifest) -> None:
    print(
        f"{out}: {manifest.count:,} pairs in {len(manifest.shards)} shards, complete; "
        f"{manifest.nfe * manifest.count:,} evaluations of the teacher."
    )


COMMANDS: Mapping[str, Callable[..., None]] = {
    "make": make,
    "verify": verify,
    "info": info,
    "merge": merge,
    "import-get": import_get,
}
