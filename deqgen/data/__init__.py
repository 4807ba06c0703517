"""Data: noise that belongs to a seed, and what a teacher made of it.

Mental model, in five lines:
1. A sample is its seed: ``noise_for(seeds, shape)`` gives the same noise in any batch, any order.
2. ``write_pairs(teacher, directory, ...)`` asks the teacher once and stores noise, image and label.
3. A pair depends on (seed, index) alone; kill the writer at any instant and run the same command.
4. ``manifest.json`` says how the pairs were made, what they cost, and each shard's checksum.
5. ``PairDataset(directory or URL)`` maps the shards into memory and gathers a whole batch per call.
"""

from deqgen.data.cifar10 import read_cifar10
from deqgen.data.dataset import PairDataset
from deqgen.data.image_folder import ImageFolder, ImageSourceError, center_crop
from deqgen.data.image_writer import write_image_zip
from deqgen.data.images import ImageZip, ImageZipError, iterate_image_zip, to_float, to_uint8
from deqgen.data.manifest import Manifest, PairError, ShardRecord
from deqgen.data.merge import merge_pairs
from deqgen.data.noise import generators_for, noise_for, pair_seeds
from deqgen.data.official import import_get
from deqgen.data.pairs import PairSource, write_pairs

__all__ = [
    "ImageFolder",
    "ImageSourceError",
    "ImageZip",
    "ImageZipError",
    "Manifest",
    "PairDataset",
    "PairError",
    "PairSource",
    "ShardRecord",
    "center_crop",
    "generators_for",
    "import_get",
    "iterate_image_zip",
    "merge_pairs",
    "noise_for",
    "pair_seeds",
    "read_cifar10",
    "to_float",
    "to_uint8",
    "write_image_zip",
    "write_pairs",
]
