"""Commands about images: archives in EDM's layout, and statistics of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

Source = Annotated[Path, arg(metavar="SRC")]
Archive = Annotated[Path, arg(metavar="OUT.zip")]


def cifar10(src: Source, out: Archive, /, split: Literal["train", "test"] = "train") -> None:
    """Make an EDM-style image archive of CIFAR-10 from the file its authors distribute.

    Nothing is downloaded, and nothing in the file is run.

    Args:
        src: cifar-10-binary.tar.gz (recommended: plain bytes) or cifar-10-python.tar.gz.
        out: The archive to write: PNG files and dataset.json.
        split: The 50,000 images to train on, or the 10,000 to test on.
    """
    from deqgen.data.cifar10 import read_cifar10
    from deqgen.data.image_writer import write_image_zip

    images, labels = read_cifar10(src, split)
    written = write_image_zip(out, images, labels, progress=True)
    print(f"{out}: {written:,} images of 32x32, {len(set(labels))} classes.")


def imagenet64(src: Source, out: Archive, /, size: int = 64) -> None:
    """Make an EDM-style image archive of ImageNet from its folder of synset folders.

    Classes are numbered in the sorted order of the synsets. Images are cropped as for ADM, the
    usual preparation of ImageNet 64x64: halved by averaging while twice too large, then resized
    bicubically, and the middle is kept.

    Args:
        src: The folder of the training images, such as ILSVRC/Data/CLS-LOC/train.
        out: The archive to write: PNG files and dataset.json.
        size: Side of the images, in pixels.
    """
    _write_folder(src, out, size, classes=True)


def folder(src: Source, out: Archive, /, size: int) -> None:
    """Make an EDM-style image archive of a folder of images; its subfolders are the classes.

    Images of any size become squares as for ADM: halved by averaging while twice too large, then
    resized bicubically, and the middle is kept. Grey, palette and CMYK images become RGB, and
    whatever is transparent becomes white.

    Args:
        src: The folder. Classes are numbered in the sorted order of the subfolders; without
            subfolders there are none.
        out: The archive to write: PNG files and dataset.json.
        size: Side of the images, in pixels.
    """
    _write_folder(src, out, size, classes=False)


def stats(
    src: Annotated[Path, arg(metavar="ZIP")],
    out: Annotated[Path, arg(metavar="OUT.npz")],
    /,
    features: str = "cifar10",
    split: str | None = None,
) -> None:
    """Write the mean and covariance of an archive's features, in EDM's format (mu, sigma).

    By default the features are those of the CIFAR-10 classifier that ships with deqgen, not
    Inception's, so a distance to them is no FID. The classifier sees 32x32 pixels: images of a
    multiple of that size are averaged down first, and images of any other size are refused.

    Args:
        src: An EDM-style image archive.
        out: The file to write.
        features: The network that looks at the images: a name, a file or a URL, as for deqgen
            evaluate.
        split: Which part of its data set the archive is, such as train; stands beside every number
            that is measured against this file.
    """
    from dataclasses import replace

    from deqgen.evaluation import load_features
    from deqgen.evaluation.statistics import archive_reference, save_statistics
    from deqgen.processes import pick_device

    if out.suffix != ".npz":  # known before the long part
        raise ValueError(f"statistics are a .npz file, got {str(out)!r}")
    network = load_features(features, device=pick_device())
    reference = archive_reference(src, classifier=network, progress=True)
    if split is not None:
        reference = replace(reference, split=split)
    save_statistics(reference, out)
    whose = (
        "the CIFAR-10 classifier that ships with deqgen (not Inception's)"
        if features == "cifar10"
        else f"the {network.name} network"
    )
    print(f"{out}: mu and sigma of {len(reference.mean)} features of {whose}; {reference.name}.")


def _write_folder(src: Path, out: Path, size: int, *, classes: bool) -> None:
    from deqgen.data.image_folder import ImageFolder, ImageSourceError
    from deqgen.data.image_writer import write_image_zip

    if size < 1:
        raise ValueError(f"--size must be at least 1, got {size}")
    found = ImageFolder.find(src)
    if classes and found.labels is None:
        raise ImageSourceError(
            f"{src} holds images and no folders; ImageNet's classes are its synset folders, "
            "such as n01440764 (for images without classes there is deqgen data folder)"
        )
    written = write_image_zip(
        out, found.cropped(size), found.labels, count=len(found.paths), progress=True
    )
    named = f"{len(found.classes)} classes" if found.classes else "no classes"
    print(f"{out}: {written:,} images of {size}x{size}, {named}.")


COMMANDS: Mapping[str, Callable[..., None]] = {
    "cifar10": cifar10,
    "imagenet64": imagenet64,
    "folder": folder,
    "stats": stats,
}
