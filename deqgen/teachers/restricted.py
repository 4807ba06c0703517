"""A reader of pickles that builds plain data and can do nothing else.

Safety. A pickle is a program for a small stack machine; Python's own machine imports whatever the
program names and calls it. This one imports nothing and calls nothing but the few functions of a
:class:`Vocabulary`, which are ours, take plain data and return plain data; a name that is not among
them stops the reading at once, and the error tells the name. Source code inside a file stays a
string: it is neither compiled nor looked at. Lengths and indices in the program are claims, and
cost nothing until there are bytes behind them: instructions come from
:func:`pickletools.genops`, which returns no more than the stream holds, the memo is a dict, and no
value is walked, compared or hashed beyond its first level, so that shared, cyclic or deeply nested
containers are as cheap as flat ones. A :class:`Budget` bounds instructions and decoded bytes, by a
constant and by the size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pickletools import genops
from typing import IO, NoReturn, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

# The largest network of EDM, the ImageNet one, takes some 100,000. One takes about two
# microseconds and leaves at most an empty set behind, 216 bytes.
MAX_INSTRUCTIONS = 1_000_000
_LONGEST_KEY = 1024  # characters; a longer string would be compared each time it is used again
_LARGEST_INTEGER = 2**127


class UnsafePickleError(ValueError):
    """A pickle asks for something that plain data does not need. Nothing of it was run."""


class DamagedPickleError(ValueError):
    """A pickle is truncated, contradicts itself, or is no pickle."""


@dataclass
class Budget:
    """What a file may still cost.

    Attributes:
        bytes: that may be decoded from inside the file; at first the size of the file.
        instructions: that may be executed.
    """

    bytes: int
    instructions: int = MAX_INSTRUCTIONS

    def spend(self, *, instructions: int = 0, bytes: int = 0) -> None:
        """Take from what is left.

        Raises:
            UnsafePickleError: it is not enough.
        """
        self.instructions -= instructions
        self.bytes -= bytes
        if self.instructions < 0:
            raise UnsafePickleError(
                f"it has more than {MAX_INSTRUCTIONS:,} instructions, many times what the largest "
                "network of EDM needs; nothing in it was run."
            )
        if self.bytes < 0:
            raise UnsafePickleError(
                "its parts would decode to more bytes than the file has; nothing in it was run."
            )


@runtime_checkable
class Buildable(Protocol):
    """A value that takes its state after it was made."""

    def build(self, state: object, /) -> None: ...


@dataclass(frozen=True)
class Vocabulary:
    """The global names that a pickle may use, and what they mean here.

    Attributes:
        calls: what may be called with a tuple of plain data. A ``ValueError`` that is none of this
            module's is told as damage, and so is any other exception.
        values: names that stand for a value.
        persistent: what a reference to something outside the pickle stands for; ``None`` refuses
            them.
    """

    calls: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    values: Mapping[str, object] = field(default_factory=dict)
    persistent: Callable[[object], object] | None = None


@dataclass(frozen=True)
class _Name:
    """A name from ``calls`` on the stack."""

    name: str


def read_pickle(stream: IO[bytes], vocabulary: Vocabulary, budget: Budget) -> object:
    """Read one pickle, which leaves one value, and stop after it.

    Args:
        stream: open for reading; its ``read(n)`` must not set aside memory for more than there is
            left, which holds for ``BytesIO`` and ``mmap`` and not for plain files.
        vocabulary: what the pickle may ask for.
        budget: what it may cost; is used up.

    Returns:
        ``None``, booleans, numbers, strings, bytes, tuples, lists, dicts and sets of strings, and
        what the vocabulary makes.

    Raises:
        UnsafePickleError: it asks for anything else, by the name of that.
        DamagedPickleError: it is truncated or no pickle.
    """
    machine = _Machine(vocabulary, budget)
    try:
        for opcode, argument, _ in genops(stream):
            budget.spend(instructions=1)
            machine.execute(opcode.name, argument)
    except (UnsafePickleError, DamagedPickleError):
        raise
    except ValueError as error:
        raise DamagedPickleError(f"it is truncated or no pickle ({shown(str(error))}).") from None
    result = machine.pop()
    if machine.stack or machine.marks:
        raise DamagedPickleError("it ends with more than one value.")
    return result


def shown(text: str) -> str:
    """A string of unknown origin, short and safe to print."""
    short = text if len(text) <= 80 else f"{text[:80]}..."
    return short if re.fullmatch(r"[ -~]*", short) else ascii(short)


class _Machine:
    """A stack, the marks in it and a memo, as in :mod:`pickle`, section "opcodes"."""

    def __init__(self, vocabulary: Vocabulary, budget: Budget) -> None:
        self.vocabulary, self.budget = vocabulary, budget
        self.stack: list[object] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, object] = {}

    def execute(self, opcode: str, argument: object) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _INTEGERS:
            self.stack.append(_checked_integer(argument))
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        else:
            raise UnsafePickleError(
                f"it uses the pickle instruction {opcode}, which plain data does not need; nothing "
                "in it was run."
            )

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise DamagedPickleError("it takes more from its stack than it has put there.")
        return self.stack.pop()

    def top(self, kind: type[T]) -> T:
        """The topmost value, which must be a ``kind`` and not a kind of it."""
        value = self.pop()
        self.stack.append(value)
        if type(value) is not kind:
            raise UnsafePickleError(
                f"it fills a value of type {type(value).__name__} as if it were a {kind.__name__}; "
                "nothing in it was run."
            )
        return value

    def items(self) -> list[object]:
        """All values above the last mark."""
        if not self.marks:
            raise DamagedPickleError("it refers to a mark that it has not set.")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def values(self, count: int) -> list[object]:
        """The topmost values, lowest first."""
        return [self.pop() for _ in range(count)][::-1]

    # What the instructions do, by name in _ACTIONS.

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def remember(self, index: object) -> None:
        value = self.pop()
        self.stack.append(value)
        assert isinstance(index, int), "pickletools reads an index as an int"
        self.memo[index] = value

    def recall(self, index: object) -> None:
        assert isinstance(index, int), "pickletools reads an index as an int"
        if index not in self.memo:
            raise DamagedPickleError("it refers to a value that it has not made.")
        self.stack.append(self.memo[index])

    def append(self, items: list[object]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[object]) -> None:
        self.top(set).update(checked_key(item) for item in items)

    def new_dict(self, items: list[object]) -> None:
        self.stack.append({})
        self.set_items(items)

    def set_items(self, items: list[object]) -> None:
        if len(items) % 2:
            raise DamagedPickleError("it gives a dict a key without a value.")
        entries = zip(items[::2], items[1::2], strict=True)
        self.top(dict).update((checked_key(key), value) for key, value in entries)

    def name(self, module: object, name: object) -> None:
        """Push what a global name stands for. Dots in it are letters like others."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedPickleError("it has a global name that is no text.")
        full = f"{module}.{name}"
        if full in self.vocabulary.values:
            self.stack.append(self.vocabulary.values[full])
        elif full in self.vocabulary.calls:
            self.stack.append(_Name(full))
        else:
            raise UnsafePickleError(
                f"it asks for {shown(full)}, and nothing but tensors, plain containers and the "
                "records of EDM's networks is let in; nothing in it was run."
            )

    def call(self) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, _Name):
            _refuse_call(called)
        if type(arguments) is not tuple:
            raise DamagedPickleError(f"it gives {called.name} something else than arguments.")
        try:
            self.stack.append(self.vocabulary.calls[called.name](*arguments))
        except (UnsafePickleError, DamagedPickleError):
            raise
        except Exception as error:  # wrong arguments may fail anywhere
            said = shown(str(error) or type(error).__name__)
            raise DamagedPickleError(
                f"what it gives {called.name} does not fit ({said})."
            ) from None

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if not isinstance(target, Buildable):
            raise UnsafePickleError(
                f"it sets the state of a {type(target).__name__.strip('_')}, which has none; "
                "nothing in it was run."
            )
        target.build(state)
        self.stack.append(target)

    def refer(self) -> None:
        if self.vocabulary.persistent is None:
            raise UnsafePickleError(
                "it refers to something outside itself (a persistent id); nothing in it was run."
            )
        self.stack.append(self.vocabulary.persistent(self.pop()))

    def protocol(self, number: object) -> None:
        if number not in range(6):
            raise DamagedPickleError(f"it has the pickle protocol {number}, and 5 is the last.")


def checked_key(key: object) -> str:
    """A key of a dict or an entry of a set: a string of moderate length.

    Others could be made to collide, or to take exponential time to hash.
    """
    if type(key) is not str or len(key) > _LONGEST_KEY:
        kind = "a long string" if type(key) is str else f"a value of type {type(key).__name__}"
        raise UnsafePickleError(
            f"it uses {kind} as a key, where names are expected; nothing in it was run."
        )
    return key


def _checked_integer(value: object) -> int:
    if not isinstance(value, int) or not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
        raise UnsafePickleError("it has an integer of more than 128 bits; nothing in it was run.")
    return value


def _refuse_call(called: object) -> NoReturn:
    raise UnsafePickleError(
        f"it calls a value of type {type(called).__name__}, which is no function; nothing in it "
        "was run."
    )


_LITERALS = {
    *("FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_ACTIONS: Mapping[str, Callable[[_Machine, object], object]] = {
    "PROTO": lambda m, number: m.protocol(number),
    "FRAME": lambda m, size: None,  # frames are for speed; their sizes are claims
    "STOP": lambda m, _: None,
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop() if len(m.stack) > (m.marks or [0])[-1] else m.items(),
    "POP_MARK": lambda m, _: m.items(),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.items())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.values(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.values(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.values(3))),
    "LIST": lambda m, _: m.stack.append(m.items()),
    "DICT": lambda m, _: m.new_dict(m.items()),
    "APPEND": lambda m, _: m.append(m.values(1)),
    "APPENDS": lambda m, _: m.append(m.items()),
    "SETITEM": lambda m, _: m.set_items(m.values(2)),
    "SETITEMS": lambda m, _: m.set_items(m.items()),
    "ADDITEMS": lambda m, _: m.add(m.items()),
    "PUT": lambda m, index: m.remember(index),
    "BINPUT": lambda m, index: m.remember(index),
    "LONG_BINPUT": lambda m, index: m.remember(index),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, index: m.recall(index),
    "BINGET": lambda m, index: m.recall(index),
    "LONG_BINGET": lambda m, index: m.recall(index),
    "GLOBAL": lambda m, name: m.name(*str(name).split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.values(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.refer(),
}
