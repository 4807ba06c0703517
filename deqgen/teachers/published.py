"""Published teachers by name: ``load_teacher("edm-cifar10-uncond-vp")`` downloads it once.

These are the checkpoints of EDM (arXiv 2206.00364), under CC BY-NC-SA 4.0. NVIDIA publishes no
hashes for them, and we have none that we computed ourselves: the hash of the first download is
recorded in the cache and expected from then on (:mod:`deqgen.teachers.download`). Whatever is in a
file, none of it is run (:mod:`deqgen.teachers.edm_file`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deqgen.teachers.download import fetch
from deqgen.teachers.edm_file import load_edm
from deqgen.teachers.registry import register_teacher
from deqgen.teachers.teacher import Teacher, check_options

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
_LICENCE = (
    "The weights of {name} were published by NVIDIA under CC BY-NC-SA 4.0: name the source "
    "(Karras et al. 2022, arXiv 2206.00364), no commercial use, share alike."
)


@dataclass(frozen=True)
class Published:
    """A checkpoint on the internet.

    Attributes:
        url: its address.
        size: its number of bytes, ``None`` where we have not seen the file.
        sha256: its hash, ``None`` where we have not seen the file.
    """

    url: str
    size: int | None = None
    sha256: str | None = None


PUBLISHED = {
    "edm-cifar10-uncond-vp": Published(f"{_EDM}/edm-cifar10-32x32-uncond-vp.pkl"),
    "edm-cifar10-uncond-ve": Published(f"{_EDM}/edm-cifar10-32x32-uncond-ve.pkl"),
    "edm-cifar10-cond-vp": Published(f"{_EDM}/edm-cifar10-32x32-cond-vp.pkl"),
    "edm-cifar10-cond-ve": Published(f"{_EDM}/edm-cifar10-32x32-cond-ve.pkl"),
    "edm-ffhq-uncond-vp": Published(f"{_EDM}/edm-ffhq-64x64-uncond-vp.pkl"),
    "edm-ffhq-uncond-ve": Published(f"{_EDM}/edm-ffhq-64x64-uncond-ve.pkl"),
    "edm-afhqv2-uncond-vp": Published(f"{_EDM}/edm-afhqv2-64x64-uncond-vp.pkl"),
    "edm-afhqv2-uncond-ve": Published(f"{_EDM}/edm-afhqv2-64x64-uncond-ve.pkl"),
    "edm-imagenet64-cond-adm": Published(f"{_EDM}/edm-imagenet-64x64-cond-adm.pkl"),
}


def fetch_published(name: str) -> Path:
    """The checkpoint of this name, downloaded once; raises as ``fetch`` of ``download.py``."""
    known, notice = PUBLISHED[name], _LICENCE.format(name=name)
    return fetch(known.url, size=known.size, sha256=known.sha256, notice=notice)


def _load(name: str, **options: Any) -> Teacher:
    check_options(options)  # before the download
    return load_edm(fetch_published(name), **{"name": name, **options})


for _name in PUBLISHED:
    register_teacher(_name, partial(_load, _name))
