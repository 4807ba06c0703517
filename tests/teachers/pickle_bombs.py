"""Files that try to fill the memory or to take forever."""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

import torch

from deqgen.teachers.preconditioning import PRECONDITIONERS
from tests.teachers.official import Persistent, pickled, recorded
from tests.teachers.pickle_parts import (
    EMPTY,
    NONE,
    Attack,
    blob,
    entry,
    integer,
    legacy,
    named,
    network,
    storage,
    tensor,
    text,
    whole,
)

GIGABYTES_10 = struct.pack("<Q", 10 * 2**30)


def claims() -> list[Attack]:
    """Claim lengths and indices that they do not have."""
    return [
        *(
            Attack(name, f"claims 10 GB and ends ({what})", data, refused, words)
            for name, what, data, refused, words in (
                ("BINBYTES8", "bytes", b"\x80\x04\x8e" + GIGABYTES_10, False, "bytes in a bytes8"),
                ("BINUNICODE8", "text", b"\x80\x04\x8d" + GIGABYTES_10, False, "in a unicodestr"),
                ("BYTEARRAY8", "bytes", b"\x80\x05\x96" + GIGABYTES_10, False, "in a bytearray8"),
                ("LONG4", "2 GB integer", b"\x80\x04\x8b\xff\xff\xff\x7f", False, "long4"),
                ("FRAME", "a frame", b"\x80\x04\x95" + GIGABYTES_10, False, "before seeing STOP"),
            )
        ),
        Attack(
            "LONG_BINPUT",
            "memo index 2**32 - 1, for which a table would need 32 GB",
            whole(b"]r\xff\xff\xff\xff"),
            False,
            "this holds a value of type list",
        ),
        Attack(
            "PUT", "memo index 10**30", whole(b"]p" + b"1" + b"0" * 30 + b"\n"), False, "type list"
        ),
        Attack(
            "INT",
            "an integer of 100,000 digits",
            whole(b"I" + b"9" * 10**5 + b"\n"),
            False,
            "4300 digits",
        ),
        Attack(
            "LONG4 of 1 MB",
            "an integer whose decimal digits would take minutes",
            whole(b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6),
            True,
            "more than 128 bits",
        ),
    ]


def structures() -> list[Attack]:
    """Containers that are small in the file and huge to whoever walks them."""
    return [
        Attack(
            "laughing list",
            "10**64 lists",
            entry(laughs(b"]", b"l")),
            False,
            "of type list, no net",
        ),
        Attack(
            "laughing arguments",
            "the same among a network's arguments",
            network(channel_mult=_laughing()),
            False,
            "channel_mult is of type list",
        ),
        Attack(
            "laughing key",
            "a nested tuple as a key, whose hash takes 10**64 steps",
            whole(b"}", laughs(EMPTY, b"t"), b"Ns"),
            True,
            "type tuple as a key",
        ),
        Attack(
            "colliding keys",
            "100,000 integers of equal hash as keys, 5 * 10**9 comparisons",
            whole(b"}(", b"".join(integer(n * (2**61 - 1)) + NONE for n in range(1, 10**5)), b"u"),
            True,
            "type int as a key",
        ),
        Attack(
            "long keys",
            "two equal keys of 4 MB, compared 200,000 times",
            whole(
                *(text("k" * 2**22) + b"\x94" for _ in "ab"),
                b"}",
                b"h\x00Ns",
                b"h\x01Ns" * (2 * 10**5),
            ),
            True,
            "a long string as a key",
        ),
        Attack(
            "deep lists", "100,000 lists in lists", _deep(b"]", b"a"), False, "of type list, no net"
        ),
        Attack(
            "deep tuples",
            "100,000 tuples",
            entry(EMPTY + b"\x85" * 100_000),
            False,
            "of type tuple, no net",
        ),
        Attack(
            "deep dicts", "100,000 dicts", _deep(b"}" + text("k"), b"s"), False, "type dict, no"
        ),
        Attack("a list in itself", "a cycle", entry(b"]\x94h\x00a"), False, "of type list, no net"),
    ]


def repetitions() -> list[Attack]:
    """Do what is cheap for the file and dear for the reader, again and again."""
    return [
        Attack(
            "two million sets",
            "216 bytes of memory for each byte of the file",
            whole(b"\x8f" * 2_000_000),
            True,
            "more than 1,000,000 instructions",
        ),
        Attack(
            "a storage again and again",
            "one torch file of 4 MB, decoded 100,000 times",
            whole(
                *(blob(legacy(2**20, struct.pack("<Q", 2**20) + bytes(2**22))), b"\x94"),
                *(named("torch.storage", "_load_from_bytes"), b"\x94"),
                b"h\x01h\x00\x85R" * 10**5,
            ),
            True,
            "more bytes than the file has",
        ),
        Attack(
            "a set again and again",
            "one list of 10,000 names, made a set 10,000 times",
            whole(
                *(b"](", text("a") * 10**4, b"e\x94", named("builtins", "set"), b"\x94"),
                b"h\x01h\x00\x85R" * 10**4,
            ),
            True,
            "more than 1,000,000 instructions",
        ),
    ]


def tensors() -> list[Attack]:
    """Storages and tensors of other sizes than they claim."""
    return [
        *(
            Attack(f"storage of {count:,}", does, whole(storage(legacy(count))), False, words)
            for count, does, words in (
                (2**32, "claims 16 GB, brings 16 bytes", "claims 4,294,967,296 elements"),
                (2**70, "claims more than can be counted", "elements and brings 16"),
                (-1, "a negative number of elements", "is no storage"),
            )
        ),
        Attack(
            "storage claimed twice",
            "a claim of 16 GB, dropped for a claim of 16 bytes",
            whole(storage(legacy(part=claimed_twice(), body=struct.pack("<Q", 4) + bytes(16)))),
            False,
            "claims several storages",
        ),
        Attack(
            "storage and another value",
            "a torch file that leaves two values",
            whole(storage(b"\x80\x02NN." + legacy())),
            False,
            "more than one value",
        ),
        Attack(
            "storage of another length",
            "says 4 elements in one place and 2**40 in the other",
            whole(storage(legacy(4, struct.pack("<Q", 2**40) + bytes(16)))),
            False,
            "does not fit",
        ),
        *(
            Attack(f"tensor {name}", does, entry(tensor(*view)), False, words)
            for name, does, view, words in (
                ("of stride 0", "4 TB out of 16 bytes", (0, [2**20, 2**20], [0, 0]), "beyond its"),
                ("too long", "reads beyond its storage", (0, [5], [1]), "beyond its storage of 4"),
                ("too far", "the same by its offset", (1, [4], [1]), "beyond its storage of 4"),
                ("before", "a negative offset", (-1, [4], [1]), "an impossible shape"),
                ("backwards", "a negative stride", (3, [4], [-1]), "an impossible shape"),
                ("of 2**60", "a size that overflows", (0, [2**60, 16], [1, 1]), "impossible shape"),
                ("of 1000 axes", "a shape without end", (0, [1] * 1000, [1] * 1000), "short tuple"),
            )
        ),
    ]


def networks() -> list[Attack]:
    """Networks larger than the file that describes them."""
    return [
        Attack(
            "modules with 2**60 paths",
            "each module holds the next one twice",
            network(shared_modules),
            False,
            "is in it twice",
        ),
        Attack(
            "weights that share memory",
            "one storage of 0.6 MB under all tensors of a network that takes 21 MB",
            shared_memory(),
            False,
            "its tensors share memory",
        ),
        Attack("a module in itself", "a cycle of modules", network(itself), False, "in it twice"),
        *(
            Attack(f"arguments: {name}", does, network(**kwargs), False, words)
            for name, does, kwargs, words in (
                ("blocks", "a network of 10**6 blocks", {"num_blocks": 10**6}, "it holds 0"),
                ("levels", "of 10**5 levels", {"channel_mult": [1] * 10**5}, "channel_mult is of"),
                ("steps", "a schedule of 10**9 steps", {"M": 10**9}, "M is of type int"),
                ("text", "10 MB of text", {"model_type": "x" * 10**7}, "model_type is of type str"),
                ("dict", "a dict", {"model_type": {}}, "model_type is of type dict"),
                ("misspelt", "an option nobody has", {"num_blocks": 0, "exec": "x"}, "'exec'"),
                (
                    "width",
                    "2**40 channels, terabytes of weights",
                    {"num_blocks": 0, "model_channels": 2**20, "channel_mult": [2**20]},
                    "cannot be built|do not fit",
                ),
            )
        ),
    ]


def laughs(start: bytes, combine: bytes, levels: int = 64) -> bytes:
    """Each level holds the one before it ten times."""
    data = start + b"\x940"
    for level in range(levels):
        data += b"(" + (b"h" + bytes([level])) * 10 + combine + b"\x940"
    return data + b"h" + bytes([levels])


def _laughing() -> list[Any]:
    value: list[Any] = []
    for _ in range(64):
        value = [value] * 10
    return value


def _deep(open_: bytes, close: bytes, depth: int = 100_000) -> bytes:
    return entry(open_ * depth + NONE + close * depth)


def claimed_twice() -> bytes:
    """The fourth pickle of a torch file, with two claims."""
    good = legacy()
    start = good.index(b"\x80\x02(X\x07\x00\x00\x00storage") + 2
    second = good[start : good.index(b"\x80\x02]", start)]  # with its STOP
    first = text("storage") + b"ctorch\nFloatStorage\n" + text("another") + text("cpu")
    return b"\x80\x02(" + first + integer(2**32) + NONE + b"tQ0" + second


class View:
    """A tensor of a storage that others share too."""

    def __init__(self, storage: object, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> Any:
        stride = torch.empty(self.shape, device="meta").stride()
        arguments = (self.storage, 0, self.shape, stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


def shared_memory() -> bytes:
    """A whole network, all of whose tensors are views of one storage in float16."""
    options = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "num_blocks": 4}
    options |= {"model_channels": 128, "channel_mult": [1], "attn_resolutions": []}
    with torch.device("meta"):
        network = PRECONDITIONERS["EDMPrecond"](**options)
    largest = max(held.numel() for held in network.state_dict().values())
    half = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(largest, dtype=torch.float16).untyped_storage(),
        dtype=torch.float16,
        _internal=True,
    )
    copy = recorded(network, **options)
    for module in copy.modules():
        for entries in (module._parameters, module._buffers):
            for name, held in entries.items():
                if held is not None:
                    entries[name] = View(half, tuple(held.shape))  # type: ignore[assignment]
    return pickled({"ema": copy})


def shared_modules(module: torch.nn.Module) -> None:
    for _ in range(60):
        below = Persistent("SongUNet", "")
        module.a = module.b = below
        module = below


def itself(module: torch.nn.Module) -> None:
    module.__dict__["_modules"]["model"] = module
