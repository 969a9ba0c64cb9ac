"""Numbers that cross between Python and WebAssembly: their names and formats, and code that moves them.

An argument array holds one value every 16 bytes; results overwrite it from its start. Moving a value must
cost tens of nanoseconds, so the code for a signature is generated once, from the table, without loops or type
tests. It indexes memoryviews of the array, one for each format: that is faster than ctypes, and refuses what
does not fit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import wasmtime

from nocopy.errors import UsageError
from nocopy.wasm.capi import SLOT


class ValueType(NamedTuple):
    """One way to see a WebAssembly number from Python."""

    wasm: str
    load: str
    """The memoryview format to read it in."""
    store: str
    """The formats to write it in: for an integer two, since it may be given as signed or unsigned."""


VALUE_TYPES: Final = {
    "i32": ValueType("i32", "i", "iI"),
    "u32": ValueType("i32", "I", "iI"),
    "i64": ValueType("i64", "q", "qQ"),
    "u64": ValueType("i64", "Q", "qQ"),
    "f32": ValueType("f32", "f", "f"),
    "f64": ValueType("f64", "d", "d"),
}
"""By name. `u32` and `u64` are WebAssembly's i32 and i64, read as unsigned.

That is the way to declare an address or a length.
"""
_BYTES: Final = {"i": 4, "I": 4, "f": 4, "q": 8, "Q": 8, "d": 8}


class Signature(NamedTuple):
    """The types that go in and come out, by name."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"

    def wasm(self) -> wasmtime.FuncType:
        """The WebAssembly type."""
        kinds = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64}
        kinds |= {"f32": wasmtime.ValType.f32, "f64": wasmtime.ValType.f64}
        return wasmtime.FuncType(
            [kinds[VALUE_TYPES[name].wasm]() for name in self.params],
            [kinds[VALUE_TYPES[name].wasm]() for name in self.results],
        )


def signature(params: Sequence[str], results: Sequence[str]) -> Signature:
    """Check the names and return the signature.

    Raises:
        UsageError: a name that is not in `VALUE_TYPES`.
    """
    for name in (*params, *results):
        if name not in VALUE_TYPES:
            raise UsageError(
                f"a value of type {name!r} was asked for; numbers cross as one of {', '.join(VALUE_TYPES)}"
            )
    return Signature(tuple(params), tuple(results))


class Access(NamedTuple):
    """How generated code reaches the values of one signature: by memoryviews called `v_` and their format."""

    formats: tuple[str, ...]
    loads: tuple[str, ...]
    """An expression for each value that is read."""
    stores: tuple[str, ...]
    """A statement for each value that is written; TypeError or ValueError if it does not fit."""


def access(loads: Sequence[str], stores: Sequence[str], names: Sequence[str]) -> Access:
    """Return the code for one signature.

    Args:
        loads: types that are read, in the order of the array.
        stores: types that are written, likewise.
        names: variables that hold what is written.
    """
    reads = [(VALUE_TYPES[t].load, i) for i, t in enumerate(loads)]
    writes: list[str] = []
    used = {f for f, _ in reads}
    for i, (t, name) in enumerate(zip(stores, names, strict=True)):
        store = VALUE_TYPES[t].store
        either = f"(v_{store[0]} if {name} < 0 else v_{store[1]})" if len(store) > 1 else f"v_{store}"
        writes.append(f"{either}[{_place(store[0], i)}] = {name}")
        used.update(store)
    return Access(tuple(sorted(used)), tuple(f"v_{f}[{_place(f, i)}]" for f, i in reads), tuple(writes))


def _place(form: str, i: int) -> int:
    return i * (SLOT // _BYTES[form])


def views(address: int, count: int, formats: Sequence[str]) -> tuple[memoryview[Any], ...]:
    """Memoryviews of `count` values at an address, one for each format; they do not keep it alive."""
    raw = memoryview((ctypes.c_byte * (SLOT * count)).from_address(address)).cast("B")
    return tuple(raw.cast(form) for form in formats)  # pyright: ignore


def misfit(what: str, types: Sequence[str], values: Sequence[Any]) -> UsageError:
    """The error for values that are not numbers of these types, or outside them."""
    return UsageError(
        f"{what}: {', '.join(map(repr, values)) or 'nothing'} was given; "
        f"{', '.join(types) or 'nothing'} is needed. Pass numbers that fit."
    )
