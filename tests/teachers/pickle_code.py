"""Files that try to run code: by its name, by its attributes, by instructions, inside storages."""

from __future__ import annotations

from pathlib import Path

from tests.teachers.pickle_parts import (
    Attack,
    blob,
    call,
    legacy,
    named,
    network,
    storage,
    text,
    whole,
)


def asks(name: str, does: str, data: bytes, words: str | None = None) -> Attack:
    return Attack(name, does, data, True, words or f"it asks for {name},")


def functions(trap: Path) -> list[Attack]:
    """Ask for a function and call it; a call of one of the first four would touch the trap."""
    shell = text(f"touch {trap}")
    source = text(f"__import__('pathlib').Path({str(trap)!r}).touch()")
    evil = b"\x80\x02cposix\nsystem\n(" + text(f"touch {trap}") + b"tR."
    return [
        asks("posix.system", "runs a shell command (protocol 0)", evil),
        asks("os.system", "the same by protocol 4", whole(call("os", "system", shell))),
        asks("builtins.eval", "evaluates source", whole(call("builtins", "eval", source))),
        asks("builtins.exec", "executes source", whole(call("builtins", "exec", source))),
        asks("__builtin__.eval", "by its name of old", whole(call("__builtin__", "eval", source))),
        asks(
            "builtins.getattr",
            "reaches for attributes of what is allowed",
            whole(call("builtins", "getattr", named("collections", "OrderedDict"), text("x"))),
        ),
        asks(
            "subprocess.Popen", "starts a process", whole(call("subprocess", "Popen", shell, b"N"))
        ),
        asks(
            "importlib.import_module",
            "imports a module",
            whole(call("importlib", "import_module", text("antigravity"))),
        ),
        asks("pickle.loads", "a pickle in a pickle", whole(call("pickle", "loads", blob(evil)))),
        asks("torch.load", "torch's reader, unrestricted", whole(call("torch", "load", blob(b"")))),
        asks("torch.hub.load", "downloads and runs", whole(call("torch.hub", "load", text("a/b")))),
    ]


def detours(trap: Path) -> list[Attack]:
    """Reach for more than they name."""
    shell = text(f"touch {trap}")
    return [
        asks(
            "torch.os.system",
            "walks from an allowed module to another (dots in the name)",
            whole(call("torch", "os.system", shell)),
        ),
        asks(
            "collections.OrderedDict.__init__.__globals__",
            "walks from an allowed name into its module",
            whole(named("collections", "OrderedDict.__init__.__globals__")),
        ),
        asks(
            "torch_utils.persistence._reconstruct_persistent_obj.__globals__",
            "the same from EDM's own function",
            whole(named("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__")),
        ),
        asks(
            "functools.partial",
            "wraps a function for later",
            whole(call("functools", "partial", named("os", "system"))),
        ),
        asks(
            "copyreg._reconstructor",
            "makes an object of any class",
            whole(named("copyreg", "_reconstructor")),
        ),
        asks(
            "numpy.core.multiarray._reconstruct",
            "an array, which may hold objects",
            whole(named("numpy.core.multiarray", "_reconstruct")),
        ),
        asks(
            "numpy object dtype",
            "a scalar that is a pickled object",
            whole(
                call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("O8"))),
            ),
            "the NumPy dtype 'O8'",
        ),
    ]


def instructions(trap: Path) -> list[Attack]:
    """Use other instructions than those of plain data."""
    shell = text(f"touch {trap}")
    return [
        asks("INST", "calls without REDUCE", b"(" + shell + b"ios\nsystem\n.", "instruction INST"),
        asks(
            "OBJ",
            "calls without REDUCE",
            whole(b"(", named("collections", "OrderedDict"), b"o"),
            "instruction OBJ",
        ),
        asks(
            "NEWOBJ_EX",
            "makes an object with keywords",
            whole(named("collections", "OrderedDict"), b")}\x92"),
            "instruction NEWOBJ_EX",
        ),
        *(
            asks(
                name,
                "a global by its number in copyreg's registry, which no find_class sees",
                whole(data, b"(", shell, b"tR"),
                f"instruction {name}",
            )
            for name, data in (
                ("EXT1", b"\x82\x01"),
                ("EXT2", b"\x83\x01\x00"),
                ("EXT4", b"\x84\x01\x00\x00\x00"),
            )
        ),
        asks(
            "persistent id",
            "refers to something outside the pickle",
            whole(shell, b"Q"),
            "a persistent id",
        ),
        asks("PERSID", "the same as text", b"Pposix.system\n.", "instruction PERSID"),
        asks(
            "REDUCE of a string",
            "calls what is no function",
            whole(text("os.system"), b")R"),
            "type str, which",
        ),
        asks(
            "BUILD of a dict",
            "sets __dict__ and calls __setstate__",
            whole(b"}}", text("__setstate__"), named("collections", "OrderedDict"), b"sb"),
            "it sets the state of a dict",
        ),
        asks(
            "BUILD of a function",
            "replaces __reduce__ or __code__ of an allowed function",
            whole(named("torch.storage", "_load_from_bytes"), b"}b"),
            "it sets the state of a Name",
        ),
    ]


def parts(trap: Path) -> list[Attack]:
    """Hide code in storages, attributes and names of classes."""
    evil = b"\x80\x02cposix\nsystem\n(" + text(f"touch {trap}") + b"tR."
    return [
        asks(
            "storage: pickle",
            "a plain pickle where a torch file should be",
            whole(storage(evil)),
            "it asks for posix.system,",
        ),
        asks(
            "storage: torch file",
            "a legacy torch file whose storage is a shell command",
            whole(storage(legacy(part=evil))),
            "it asks for posix.system,",
        ),
        asks(
            "storage: reference",
            "a legacy torch file whose persistent id holds a function",
            whole(storage(legacy(part=b"\x80\x02(" + text("module") + b"cos\nsystem\ntQ."))),
            "it asks for os.system,",
        ),
        Attack(
            "storage: module",
            "a legacy torch file with torch's record of a class and its source",
            whole(storage(legacy(part=b"\x80\x02(" + text("module") + text("x") + b"tQ."))),
            False,
            "refers to something that is no storage",
        ),
        Attack(
            "storage: zip",
            "a torch file of the newer format, compressed parts and all",
            whole(storage(b"PK\x03\x04" + evil)),
            False,
            "a storage is a zip file",
        ),
        Attack(
            "__class__ in a state",
            "a module's attributes that would change its class and methods",
            network(lambda m: m.__dict__.update({"__class__": "os", "__setstate__": "system"})),
            False,
            "a network of 20 tensors and more",
        ),
        Attack(
            "class_name os.system",
            "EDM's record of a class that is none of EDM's",
            network(class_name="os.system"),
            False,
            "unknown preconditioner 'os.system'",
        ),
    ]
