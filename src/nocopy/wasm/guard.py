"""C callbacks in Python that never lose an exception.

When Python code that C calls through ctypes raises, ctypes prints the exception and returns whatever its
stack held. Wasmtime would take that for a pointer and crash. So every callback here catches everything and
returns a value it chose.

Two exceptions escape an ordinary `try`. One is a RecursionError on entering the callback; `leave_room`
rules it out before C is entered. The other: a signal handler that raises (Ctrl-C) runs at the callback's very
first instruction, which lies before the `try` block. `cover_entry` extends the block's range in the code
object's exception table back to instruction 0; the format is described in CPython's
InternalDocs/exception_handling.md and is the same since 3.11.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, cast

ROOM: Final = 8
"""Levels of recursion, frames and calls into C, that a callback needs to fail and still return a value."""
FRAMES: Final = 4
"""How many of them are frames."""
_NESTED: Any = functools.reduce(lambda inner, _: (inner,), range(ROOM), ())

P = ParamSpec("P")
R = TypeVar("R")


class Range(NamedTuple):
    """One entry of an exception table; positions and lengths are in code units of two bytes."""

    start: int
    length: int
    target: int
    depth_lasti: int


def read_table(table: bytes) -> list[Range]:
    """Decode an exception table.

    Numbers of 6 bits a byte, high part first, bit 6 set on all but the last byte.
    """

    def numbers() -> Iterator[int]:
        value = 0
        for byte in table:
            value = value << 6 | byte & 63
            if not byte & 64:
                yield value
                value = 0

    flat = list(numbers())
    return [Range(*flat[i : i + 4]) for i in range(0, len(flat), 4)]


def write_table(ranges: list[Range]) -> bytes:
    """Encode an exception table; bit 7 marks the first byte of an entry."""
    table = bytearray()
    for entry in ranges:
        first = len(table)
        for number in entry:
            parts = [number & 63]
            while number := number >> 6:
                parts.append(number & 63 | 64)
            table.extend(reversed(parts))
        table[first] |= 128
    return bytes(table)


def cover_entry(function: Callable[P, R]) -> Callable[P, R]:
    """Extend the `try` that is the function's whole body to cover its first instruction too.

    The function must begin with `try:` and catch `BaseException`.
    """
    plain = cast("FunctionType", function)
    code = plain.__code__
    ranges = sorted(read_table(code.co_exceptiontable))
    if not ranges or ranges[0].depth_lasti:
        raise AssertionError(f"{plain.__qualname__} does not begin with a try block")
    start, length, target, depth = ranges[0]
    ranges[0] = Range(0, start + length, target, depth)
    plain.__code__ = code.replace(co_exceptiontable=write_table(ranges))
    return function


if sys.version_info >= (3, 12):

    def leave_room(levels: int = FRAMES) -> None:
        """Raise RecursionError here, where it is harmless, if a callback from C could not begin.

        Such a callback cannot catch its own RecursionError, whatever its table says. Python's frames and C's
        recursion are counted apart; nested tuples make `isinstance` use the second kind. Costs 0.15 us.
        """
        if levels:
            leave_room(levels - 1)
        else:
            isinstance(0, _NESTED)

else:

    def leave_room() -> None:
        """Raise RecursionError here, where it is harmless, if a callback from C could not begin.

        Such a callback cannot catch its own RecursionError, whatever its table says. Python's frames and C's
        recursion are counted together; nested tuples make `isinstance` use up eight at once. Costs 0.08 us.
        """
        isinstance(0, _NESTED)


def compile_function(source: str, name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Compile the one function `name` in `source` with `names` as its globals.

    For code generated from tables.
    """
    exec(compile(source, f"<nocopy {name}>", "exec"), names)
    return names[name]
