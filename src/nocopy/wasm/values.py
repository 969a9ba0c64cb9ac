"""Numbers that cross between Python and WebAssembly: their names, C types and ranges, and code that moves
them.

An argument array holds one value every 16 bytes; results overwrite it from its start. Moving a value must
cost tens of nanoseconds, so the code for a signature is generated once, from the table, without loops or
type tests.
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
    ctype: type[Any]
    inside: str
    """Condition on `{0}` that holds for what fits.

    WebAssembly's integers have no sign, so both readings do.
    """


_INSIDE_32: Final = "-0x80000000 <= {0} <= 0xFFFFFFFF"
_INSIDE_64: Final = "-0x8000000000000000 <= {0} <= 0xFFFFFFFFFFFFFFFF"

VALUE_TYPES: Final = {
    "i32": ValueType("i32", ctypes.c_int32, _INSIDE_32),
    "u32": ValueType("i32", ctypes.c_uint32, _INSIDE_32),
    "i64": ValueType("i64", ctypes.c_int64, _INSIDE_64),
    "u64": ValueType("i64", ctypes.c_uint64, _INSIDE_64),
    "f32": ValueType("f32", ctypes.c_float, ""),
    "f64": ValueType("f64", ctypes.c_double, ""),
}
"""By name. `u32` and `u64` are WebAssembly's i32 and i64, read as unsigned.

The way to declare an address or a length.
"""


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


class Layout(NamedTuple):
    """How generated code reaches the values of one signature."""

    pointer: Any
    """The ctypes pointer type of the argument array."""
    open: str
    """Statement that prepares access, "" if none is needed; the pointer is called `v`."""
    params: tuple[str, ...]
    """An expression for each parameter."""
    results: tuple[str, ...]
    """An expression for each result; it can be assigned to."""


def layout(types: Signature) -> Layout:
    """Return the fastest access for a signature.

    Indexing a typed pointer costs half of what a structure's field does, but needs one C type for all
    values. A result may go through any C type of its WebAssembly type, since only its bits count.
    """
    params = [VALUE_TYPES[name] for name in types.params]
    results = [VALUE_TYPES[name] for name in types.results]
    ctypes_used = {p.ctype for p in params} or {r.ctype for r in results[:1]} or {ctypes.c_int32}
    wasm_used = {value.wasm for value in (*params, *results)}
    if len(ctypes_used) == 1 and len(wasm_used) <= 1:
        ctype = ctypes_used.pop()
        step = SLOT // ctypes.sizeof(ctype)
        return Layout(
            ctypes.POINTER(ctype),
            "",
            tuple(f"v[{i * step}]" for i in range(len(params))),
            tuple(f"v[{i * step}]" for i in range(len(results))),
        )
    return Layout(
        ctypes.POINTER(_slots(params, results)),
        "s = v[0]",
        tuple(f"s.p.a{i}" for i in range(len(params))),
        tuple(f"s.r.a{i}" for i in range(len(results))),
    )


def _slots(params: Sequence[ValueType], results: Sequence[ValueType]) -> type[Any]:
    """A union of two structures, parameters and results, with one value every 16 bytes."""

    def structure(values: Sequence[ValueType]) -> type[Any]:
        fields: list[Any] = []
        for i, value in enumerate(values):
            fields.append((f"a{i}", value.ctype))
            fields.append((f"_{i}", ctypes.c_byte * (SLOT - ctypes.sizeof(value.ctype))))
        return type("Slots", (ctypes.Structure,), {"_fields_": fields})

    both = [("p", structure(params)), ("r", structure(results))]
    return type("ArgumentsAndResults", (ctypes.Union,), {"_fields_": both})


def fits(types: Sequence[str], names: Sequence[str]) -> str:
    """A condition that holds when every named value is inside its type, or "True"."""
    conditions = [VALUE_TYPES[t].inside.format(n) for t, n in zip(types, names, strict=True)]
    return " and ".join(c for c in conditions if c) or "True"


def misfit(what: str, types: Sequence[str], values: Sequence[Any]) -> UsageError:
    """The error for values that are not numbers of these types, or outside them."""
    return UsageError(
        f"{what}: {', '.join(map(repr, values)) or 'nothing'} was given; "
        f"{', '.join(types) or 'nothing'} is needed. Pass numbers that fit."
    )
