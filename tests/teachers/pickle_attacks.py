"""Files that mean harm, or that are broken: what each does, and what comes of it.

``python -m tests.teachers.pickle_attacks`` prints the table. A file that tries to run code touches
the trap; those that try to hang or to fill the memory are harmless only to a reader that is not
taken in.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from deqgen.teachers import TeacherError, UnsafePickleError, load_edm
from tests.teachers import pickle_bombs, pickle_code
from tests.teachers.pickle_parts import STOP, Attack, call, entry, network, text, whole


def damage() -> list[Attack]:
    """Files that are no pickles, or not whole."""
    return [
        Attack(name, does, data, False, words)
        for name, does, data, words in (
            ("empty", "nothing", b"", "it is empty"),
            ("text", "no pickle", b"<html>404</html>", "opcode"),
            ("zip", "what torch.save writes", b"PK\x03\x04....", "it is a zip file"),
            ("STOP", "ends before it begins", STOP, "takes more from its stack"),
            ("no mark", "refers to a mark that is not there", whole(b"]e"), "a mark"),
            ("below a mark", "takes what is under a mark", whole(b"](a"), "takes more"),
            ("no memo", "refers to a value that is not there", whole(b"h\x07"), "has not made"),
            ("odd dict", "a key without a value", whole(b"}(", text("a"), b"u"), "without a value"),
            ("UTF-8", "text that is none", whole(b"X\x01\x00\x00\x00\xff"), "truncated or no"),
            ("protocol 9", "a later format", b"\x80\x09N.", "protocol 9"),
            ("two values", "leaves more than it says", whole(b"NN"), "more than one value"),
            ("a number", "no dict", whole(b"K\x07"), "value of type int"),
            ("no ema", "a dict without a network", whole(b"}", text("x"), b"Ns"), "holds x"),
            ("ema", "a network that is a number", entry(b"K\x07"), "of type int, no network"),
            (
                "meta",
                "a record that is none",
                entry(call("torch_utils.persistence", "_reconstruct_persistent_obj", b"}")),
                "not of a class",
            ),
            (
                "arguments",
                "a function with too many arguments",
                entry(call("collections", "OrderedDict", b"NNN")),
                "does not fit",
            ),
            (
                "no state",
                "a record without tensors",
                network(lambda m: m.__dict__.pop("_parameters")),
                "no _param",
            ),
        )
    ] + [
        Attack(
            "filled string", "items for a string", whole(text("a"), b"Na"), True, "type str as if"
        ),
        Attack("filled set", "a set of lists", whole(b"\x8f(]\x90"), True, "type list as a key"),
    ]


def attacks(trap: Path) -> list[Attack]:
    return [
        *pickle_code.functions(trap),
        *pickle_code.detours(trap),
        *pickle_code.instructions(trap),
        *pickle_code.parts(trap),
        *pickle_bombs.claims(),
        *pickle_bombs.structures(),
        *pickle_bombs.repetitions(),
        *pickle_bombs.tensors(),
        *pickle_bombs.networks(),
        *damage(),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trap, path = Path(folder, "trap"), Path(folder, "attack.pkl")
        for attack in attacks(trap):
            path.write_bytes(attack.data)
            try:
                load_edm(path)
                outcome = "LOADED"
            except (UnsafePickleError, TeacherError) as error:
                said = str(error).replace(str(path), "it")
                outcome = f"{type(error).__name__}: {said}"
            ran = " CODE WAS RUN" if trap.exists() else ""
            print(f"| {attack.name} | {attack.does} | {outcome[:160]}{ran} |")


if __name__ == "__main__":
    main()
