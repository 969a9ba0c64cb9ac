"""What an instance holds besides its memories: its mutable globals and its tables, out and in again.

Values are taken as they lie in memory, so that the payload of a NaN survives, and by type only through the
module's own bytes: asking Wasmtime's Python package for the type of a vector ends the process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import wasmtime

from nocopy.errors import MemoryLimitError, UsageError
from nocopy.wasm import capi
from nocopy.wasm.exposed import Exposed, ExposedTable

KINDS: Final = {"i32": (0, 4), "i64": (1, 8), "f32": (2, 4), "f64": (3, 8), "v128": (4, 16)}
"""Wasmtime's number of a type, and the bytes of a value."""
FUNCREF: Final = 5

Exports = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GlobalValue:
    """A mutable global: its index, its type, and its value as it lies in memory."""

    index: int
    type: str
    value: bytes


@dataclass(frozen=True, slots=True)
class TableValue:
    """A table: its index, and the index of the function in each element, None for null."""

    index: int
    elements: tuple[int | None, ...]


class State(NamedTuple):
    """What an instance holds besides its memories; of tables, those that have changed."""

    globals: tuple[GlobalValue, ...]
    tables: tuple[TableValue, ...]


def check_freezable(exposed: Exposed) -> None:
    """Refuse what cannot be taken out of an instance.

    Raises:
        UsageError: a mutable global or a table holds references that have no number.
    """
    for each in exposed.globals:
        if each.type not in KINDS:
            raise UsageError(
                f"freezing was asked for; global {each.index} of the module is a mutable reference, which has"
                " no bytes that could be kept. Build the guest without it."
            )
    for table in exposed.tables:
        if table.type != "funcref" and table.initial != ():
            raise UsageError(
                f"freezing was asked for; table {table.index} of the module holds references that are not to"
                " functions, and have no bytes that could be kept. Build the guest without it."
            )


def read_globals(store: wasmtime.Store, exports: Exports, exposed: Exposed) -> tuple[GlobalValue, ...]:
    """The values of all mutable globals. `check_freezable` comes first."""
    context, value = capi.context(store), capi.Value()
    found: list[GlobalValue] = []
    for each in exposed.globals:
        handle = exports[each.export]._global
        capi.global_get(context, ctypes.addressof(handle), ctypes.addressof(value))
        kind, size = KINDS[each.type]
        assert value.kind == kind
        found.append(GlobalValue(each.index, each.type, bytes(value.bits)[:size]))
    return tuple(found)


def write_globals(
    store: wasmtime.Store, exports: Exports, exposed: Exposed, values: tuple[GlobalValue, ...]
) -> None:
    """Set all mutable globals.

    Raises:
        UsageError: the values are those of another module.
    """
    wanted = [(each.index, each.type) for each in exposed.globals]
    given = [(value.index, value.type) for value in values]
    if wanted != given:
        raise UsageError(f"values for the globals {given} were given; the module's mutable ones are {wanted}")
    context, raw = capi.context(store), capi.Value()
    for each, value in zip(exposed.globals, values, strict=True):
        raw.kind = KINDS[each.type][0]
        ctypes.memmove(raw.bits, value.value, len(value.value))
        handle = exports[each.export]._global
        error = capi.global_set(context, ctypes.addressof(handle), ctypes.addressof(raw))
        if error:
            raise AssertionError(str(capi.take_error(error)))


class Tables:
    """The tables of functions of one instance.

    A function is known by the address that Wasmtime has for it: the same for as long as the instance lives.

    Args:
        store: of the instance.
        exports: its exports.
        exposed: which of them are meant.
        most: elements that a table may have.
    """

    def __init__(self, store: wasmtime.Store, exports: Exports, exposed: Exposed, most: int) -> None:
        self._context, self._exports, self._exposed = capi.context(store), exports, exposed
        self._most = most
        self._value = capi.Value()
        functions = (
            [] if exposed.function_table is None else list(self._values(exports[exposed.function_table]))
        )
        self._index_of = dict(zip(functions, exposed.functions, strict=True))
        self._function_of = dict(zip(exposed.functions, functions, strict=True))

    def read(self) -> tuple[TableValue, ...]:
        """The tables that do not hold what they held at first.

        Raises:
            UsageError: an element is a function that the module has not named, such as the host's.
        """
        found: list[TableValue] = []
        for table in self._exposed.tables:
            if table.type == "funcref":
                elements = self._elements(table)
                if elements != table.initial:
                    found.append(TableValue(table.index, elements))
        return tuple(found)

    def write(self, values: tuple[TableValue, ...]) -> None:
        """Fill tables of an instance that was just made; those that are not given stay as they are.

        Raises:
            UsageError: there is no such table, no such function, or more elements than it may have.
        """
        tables = {table.index: table for table in self._exposed.tables if table.type == "funcref"}
        for value in values:
            if value.index not in tables:
                raise UsageError(f"elements of table {value.index} were given; the module has no such table")
            self._write(tables[value.index], value.elements)

    def _elements(self, table: ExposedTable) -> tuple[int | None, ...]:
        elements: list[int | None] = []
        for function in self._values(self._exports[table.export]):
            if function and function not in self._index_of:
                raise UsageError(
                    f"freezing was asked for; element {len(elements)} of table {table.index} is a function of"
                    " another module or of the host, which has no number that could be kept"
                )
            elements.append(self._index_of[function] if function else None)
        return tuple(elements)

    def _write(self, table: ExposedTable, elements: tuple[int | None, ...]) -> None:
        exported = self._exports[table.export]
        handle = ctypes.addressof(exported._table)
        self._value.kind, more = FUNCREF, len(elements) - capi.table_size(self._context, handle)
        ctypes.memset(self._value.bits, 0, 16)
        if more < 0:
            raise UsageError(f"{len(elements)} elements of table {table.index} were given; it has more")
        if len(elements) > self._most:
            raise MemoryLimitError(
                f"table {table.index} was to have {len(elements)} elements; {self._most} are allowed."
                " Raise the limit on table elements."
            )
        if more:
            value, before = ctypes.addressof(self._value), ctypes.byref(ctypes.c_uint64())
            error = capi.table_grow(self._context, handle, more, value, before)
            if error:
                raise UsageError(
                    f"{len(elements)} elements of table {table.index} were given; {capi.take_error(error)}"
                )
        store = int.from_bytes(bytes(exported._table)[:8], "little")
        for i, index in enumerate(elements):
            if index is not None and index not in self._function_of:
                raise UsageError(
                    f"function {index} was to be in table {table.index}; the module makes no reference to it"
                )
            function = 0 if index is None else self._function_of[index]
            bits = (store if function else 0).to_bytes(8, "little") + function.to_bytes(8, "little")
            ctypes.memmove(self._value.bits, bits, 16)
            error = capi.table_set(self._context, handle, i, ctypes.addressof(self._value))
            if error:
                raise AssertionError(str(capi.take_error(error)))

    def _values(self, table: wasmtime.Table) -> Iterator[int]:
        """The address of the function in each element; 0 for null."""
        handle, at = ctypes.addressof(table._table), ctypes.addressof(self._value)  # pyright: ignore
        for i in range(capi.table_size(self._context, handle)):
            if not capi.table_get(self._context, handle, i, at):
                raise AssertionError(f"element {i} was asked for; the table shrank")
            bits = bytes(self._value.bits)
            yield int.from_bytes(bits[8:16], "little") if any(bits[:8]) else 0
