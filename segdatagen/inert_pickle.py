"""Pickles read as data: what they say is built of lists, dicts and plain values, and nothing that they name is called.

`pickletools` tells the opcodes apart; this module keeps the stack that they work on. A class or function is only ever a
name here, never looked up; what it would have made is an `Unbuilt`, unless the caller knows the name. It does not know
what a pickle is of, nor where it comes from.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KEYS = (str, int, float, bool, bytes, type(None))
"""Types of dict keys that stay as they are. Hashing what a pickle has nested deeply would exhaust the C stack."""
IGNORED = {"PROTO", "FRAME"}
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Opcodes whose argument is the value."""
EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
}


class BrokenPickle(Exception):
    """The bytes are no whole pickle, or one of a form that is not read here."""


@dataclass(frozen=True, eq=False)
class Named:
    """A class or function by its dotted name. It is not looked up."""

    name: str


@dataclass(frozen=True, eq=False)
class Unbuilt:
    """What a call of `name` would have made. The call was not made."""

    name: str


Builders = Mapping[str, Callable[[tuple[Any, ...]], Any]]
"""What stands for a call of a dotted name, given its arguments: the only calls that a pickle can cause."""


def evaluate(data: bytes, builders: Builders, persistent: Callable[[Any], Any]) -> Any:
    """The value that a pickle holds. Sets come as lists, frozen sets as tuples, objects as `Unbuilt`.

    `persistent` stands for ids of objects that lie outside the pickle. Raises BrokenPickle, and what these raise.
    """
    machine = _Machine(builders, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise BrokenPickle(f"no whole pickle: {str(error) or type(error).__name__}") from error
    raise BrokenPickle("no whole pickle: it does not end")


class _Machine:
    """The stack, the marks in it, and the memo of a pickle."""

    def __init__(self, builders: Builders, persistent: Callable[[Any], Any]) -> None:
        self._builders = builders
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "POP": self._pop,
            "POP_MARK": self._pop_mark,
            "DUP": lambda _: self._push(self._stack[-1]),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._remember),
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda slot: self._push(self._memo[slot])),
            "TUPLE": lambda _: self._push(tuple(self._since_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "LIST": lambda _: self._push(self._since_mark()),
            "FROZENSET": lambda _: self._push(tuple(self._since_mark())),
            "DICT": lambda _: self._push(into({}, self._since_mark())),
            "APPEND": lambda _: self._extend([self.pop()]),
            **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda _: self._extend(self._since_mark())),
            "SETITEM": lambda _: self._set_items([self.pop(), self.pop()][::-1]),
            "SETITEMS": lambda _: self._set_items(self._since_mark()),
            "GLOBAL": lambda name: self._push(Named(name.replace(" ", "."))),
            "STACK_GLOBAL": self._named,
            **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda code: self._push(Named(f"extension {code}"))),
            "REDUCE": lambda _: self._call(self.pop()),
            "NEWOBJ": lambda _: self._call(self.pop()),
            "NEWOBJ_EX": lambda _: self._call([self.pop(), self.pop()][1]),
            "INST": lambda name: self._push(self._made(Named(name.replace(" ", ".")), tuple(self._since_mark()))),
            "OBJ": self._object,
            "BUILD": self._ignore_state,
            "PERSID": lambda text: self._push(self._persistent(text)),
            "BINPERSID": lambda _: self._push(self._persistent(self.pop())),
        }

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in VALUES:
            self._push(argument)
        elif name in EMPTY:
            self._push(EMPTY[name]())
        elif name in self._steps:
            self._steps[name](argument)
        elif name not in IGNORED:
            raise BrokenPickle(f"a pickle with the opcode {name}, which is not read")

    def pop(self) -> Any:
        """Take the uppermost value."""
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        found, self._stack = self._stack, self._below.pop()
        return found

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _ignore_state(self, _: Any) -> None:
        """What an object would have been told of itself."""
        self.pop()

    def _remember(self, slot: int) -> None:
        self._memo[slot] = self._stack[-1]

    def _tuple(self, count: int) -> None:
        self._push(tuple([self.pop() for _ in range(count)][::-1]))

    def _extend(self, values: list[Any]) -> None:
        """To a list; what is a list only by its class is `Unbuilt`, and stays so."""
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(values)

    def _set_items(self, flat: list[Any]) -> None:
        if isinstance(self._stack[-1], dict):
            into(self._stack[-1], flat)

    def _named(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise BrokenPickle("a pickle that names something by what is no text")
        self._push(Named(f"{module}.{name}"))

    def _call(self, arguments: Any) -> None:
        self._push(self._made(self.pop(), arguments))

    def _object(self, _: Any) -> None:
        callee, *arguments = self._since_mark()
        self._push(self._made(callee, tuple(arguments)))

    def _made(self, callee: Any, arguments: Any) -> Any:
        name = callee.name if isinstance(callee, Named) else type(callee).__name__
        if isinstance(callee, Named) and name in self._builders and isinstance(arguments, tuple):
            return self._builders[name](arguments)
        return Unbuilt(name)


def into(mapping: dict[Any, Any], flat: list[Any]) -> dict[Any, Any]:
    """Put key, value, key, value, ... into a dict. A key that is no plain value is kept as an `Unbuilt` of its type."""
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        mapping[key if isinstance(key, KEYS) else Unbuilt(type(key).__name__)] = value
    return mapping
