"""Exports what a module keeps to itself and a frozen guest must not lose: mutable globals, memories, tables.

The module gets exports, and one more table with every function that a reference can be to, so that what is
in a table can be named by its index. No index changes, no instruction, nothing that the module does. The
names are reserved: they begin with a prefix that no export of the module's own has, and are never shown.

The start function becomes an export as well. Wasmtime runs it inside instantiation, when nobody can know yet
where the memory lies; as an export it is called right after, with the memory known and imported into the
device. WebAssembly defines start as the last step of instantiation, so the order of everything is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nocopy.wasm.cursor import Constant, Cursor, Limits, Malformed
from nocopy.wasm.sections import Section, join, split, write_number

PREFIX: Final = "nocopy:"
_IMPORT, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT = 2, 4, 5, 6, 7, 8, 9
_ORDER: Final = (1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
"""Section numbers in the order in which they stand."""
_KINDS: Final = {0: "function", 1: "table", 2: "memory", 3: "global", 4: "tag"}
_NUMBER_OF: Final = {name: number for number, name in _KINDS.items()}


@dataclass(frozen=True)
class ExposedGlobal:
    """A mutable global: its index, its type as `Cursor.type` names it, and the export that reaches it."""

    index: int
    type: str
    export: str


@dataclass(frozen=True)
class ExposedMemory:
    """A memory, and the export that reaches it; `named` is the module's own name for it."""

    index: int
    limits: Limits
    export: str
    named: str | None


@dataclass(frozen=True)
class ExposedTable:
    """A table, the export that reaches it, and what is in it at first: function indices, None for null.

    `initial` is None if that cannot be read from the module.
    """

    index: int
    type: str
    limits: Limits
    export: str
    initial: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Exposed:
    """What was exported. `names` are the reserved names; `start` is the start function's.

    `functions` are those that references can be to, in the order of the table that `function_table` exports.
    """

    globals: tuple[ExposedGlobal, ...] = ()
    memories: tuple[ExposedMemory, ...] = ()
    tables: tuple[ExposedTable, ...] = ()
    functions: tuple[int, ...] = ()
    function_table: str | None = None
    start: str | None = None
    names: frozenset[str] = frozenset()


@dataclass
class _Table:
    type: str
    limits: Limits
    elements: list[int | None] | None


@dataclass
class _Contents:
    """What was found in a module, by index."""

    globals: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    memories: list[Limits] = field(default_factory=list[Limits])
    tables: list[_Table] = field(default_factory=list[_Table])
    exports: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    names: list[str] = field(default_factory=list[str])
    functions: set[int] = field(default_factory=set[int])
    start: int | None = None


MOST_ELEMENTS: Final = 1 << 20
"""Elements of a table whose first contents are worked out."""


def expose(binary: bytes) -> tuple[bytes, Exposed]:
    """Return the module with what it keeps to itself exported, and under which names.

    The start function becomes an export too, and is not run by instantiation any more.

    Args:
        binary: a module that Wasmtime has found valid.

    Raises:
        Malformed: it cannot be read, or uses a proposal that is not known here.
    """
    sections = split(binary)
    found = _read(sections)
    prefix = PREFIX
    while any(name.startswith(prefix) for name in found.names):
        prefix = f"{prefix}{len(prefix)}:"
    added: list[tuple[str, str, int]] = []

    def reach(kind: str, index: int) -> str:
        """The export of an item: the module's own, or a new one."""
        own = found.exports.get((kind, index))
        if own is None:
            own = f"{prefix}{kind}:{index}"
            added.append((own, kind, index))
        return own

    globals_ = tuple(
        ExposedGlobal(i, kind, reach("global", i))
        for i, (kind, mutable) in enumerate(found.globals)
        if mutable
    )
    memories = tuple(
        ExposedMemory(i, limits, reach("memory", i), found.exports.get(("memory", i)))
        for i, limits in enumerate(found.memories)
    )
    tables = tuple(
        ExposedTable(i, table.type, table.limits, reach("table", i), _initial(table))
        for i, table in enumerate(found.tables)
    )
    functions = tuple(sorted(found.functions)) if tables else ()
    function_table = None
    if functions:
        function_table = f"{prefix}functions"
        added.append((function_table, "table", len(found.tables)))
        _add_table(sections, len(found.tables), functions)
    start = None
    if found.start is not None:
        start = f"{prefix}start"
        added.append((start, "function", found.start))
        sections = [section for section in sections if section.number != _START]
    entries = [_text(name) + bytes((_NUMBER_OF[kind],)) + write_number(i) for name, kind, i in added]
    _append(sections, _EXPORT, entries)
    names = frozenset(name for name, _, _ in added)
    exposed = Exposed(globals_, memories, tables, functions, function_table, start, names)
    return (join(sections) if added else binary), exposed


def _text(name: str) -> bytes:
    raw = name.encode()
    return write_number(len(raw)) + raw


def _append(sections: list[Section], number: int, entries: list[bytes]) -> None:
    """Add entries to a section that is a vector; make the section if there is none."""
    if not entries:
        return
    for i, section in enumerate(sections):
        if section.number == number:
            cursor = Cursor(section.content)
            count = cursor.number()
            rest = section.content[cursor.at :]
            sections[i] = Section(number, write_number(count + len(entries)) + rest + b"".join(entries))
            return
    rank = _ORDER.index(number)
    before = [i for i, s in enumerate(sections) if s.number and _ORDER.index(s.number) < rank]
    place = before[-1] + 1 if before else 0
    sections.insert(place, Section(number, write_number(len(entries)) + b"".join(entries)))


def _add_table(sections: list[Section], index: int, functions: tuple[int, ...]) -> None:
    """Add a table that holds these functions."""
    size = write_number(len(functions))
    _append(sections, _TABLE, [b"\x70\x01" + size + size])
    # An active segment of a table with a number, from element 0, of function indices.
    head = b"\x02" + write_number(index) + b"\x41\x00\x0b" + b"\x00"
    _append(sections, _ELEMENT, [head + size + b"".join(map(write_number, functions))])


def _initial(table: _Table) -> tuple[int | None, ...] | None:
    return None if table.elements is None else tuple(table.elements)


def _read(sections: list[Section]) -> _Contents:
    found = _Contents()
    readers = {
        _IMPORT: _read_import,
        _TABLE: _read_table,
        _MEMORY: _read_memory,
        _GLOBAL: _read_global,
        _EXPORT: _read_export,
        _ELEMENT: _read_element,
    }
    for section in sections:
        if section.number and section.number not in _ORDER:
            raise Malformed(f"section {section.number} is of no known proposal")
        cursor = Cursor(section.content)
        if section.number == _START:
            found.start = cursor.number()
        elif section.number in readers:
            for _ in range(cursor.count()):
                readers[section.number](cursor, found)
        else:
            continue
        if cursor.left:
            raise Malformed(f"section {section.number} has {cursor.left} bytes too many")
    return found


def _read_import(cursor: Cursor, found: _Contents) -> None:
    cursor.name()
    cursor.name()
    match cursor.byte():
        case 0:
            cursor.number()
        case 1:
            found.tables.append(_Table(cursor.type(), cursor.limits(), None))
        case 2:
            found.memories.append(cursor.limits())
        case 3:
            found.globals.append(_global_type(cursor))
        case 4:
            cursor.byte()
            cursor.number()
        case kind:
            raise Malformed(f"nothing is imported as kind {kind}")


def _global_type(cursor: Cursor) -> tuple[str, bool]:
    kind, mutable = cursor.type(), cursor.byte()
    if mutable > 1:
        raise Malformed(f"a global before byte {cursor.at} has the mutability {mutable}")
    return kind, bool(mutable)


def _read_table(cursor: Cursor, found: _Contents) -> None:
    filled = cursor.left and cursor.data[cursor.at] == 0x40
    if filled:
        cursor.take(2)
    kind, limits = cursor.type(), cursor.limits()
    value = cursor.constant() if filled else Constant(None, ())
    found.functions.update(value.functions)
    known = limits.minimum <= MOST_ELEMENTS and (not filled or len(value.functions) == 1)
    first = value.functions[0] if value.functions else None
    found.tables.append(_Table(kind, limits, [first] * limits.minimum if known else None))


def _read_memory(cursor: Cursor, found: _Contents) -> None:
    found.memories.append(cursor.limits())


def _read_global(cursor: Cursor, found: _Contents) -> None:
    kind = _global_type(cursor)
    found.functions.update(cursor.constant().functions)
    found.globals.append(kind)


def _read_export(cursor: Cursor, found: _Contents) -> None:
    name, number, index = cursor.name(), cursor.byte(), cursor.number()
    if number not in _KINDS:
        raise Malformed(f"nothing is exported as kind {number}")
    kind = _KINDS[number]
    found.names.append(name)
    found.exports.setdefault((kind, index), name)
    if kind == "function":
        found.functions.add(index)


def _read_element(cursor: Cursor, found: _Contents) -> None:
    """One of the eight forms of the specification, section 5.5.12; the flags' bits choose."""
    flags = cursor.number()
    if flags > 7:
        raise Malformed(f"an element segment before byte {cursor.at} has the flags {flags:#x}")
    active, expressions = not flags & 1, bool(flags & 4)
    table = cursor.number() if active and flags & 2 else 0
    offset = cursor.constant() if active else Constant(None, ())
    found.functions.update(offset.functions)
    if flags & 3:
        if expressions:
            cursor.type()
        elif cursor.byte():
            raise Malformed(f"an element segment before byte {cursor.at} holds no functions")
    items: list[int | None] = []
    plain = True
    for _ in range(cursor.count()):
        if expressions:
            value = cursor.constant()
            found.functions.update(value.functions)
            items.append(value.functions[0] if value.functions else None)
            plain = False
        else:
            index = cursor.number()
            items.append(index)
            found.functions.add(index)
    if active:
        _fill(found, table, offset.integer, items if plain else None)


def _fill(found: _Contents, index: int, start: int | None, items: list[int | None] | None) -> None:
    """Work out what an active segment leaves in its table."""
    if index >= len(found.tables):
        raise Malformed(f"an element segment is for table {index}; there are {len(found.tables)}")
    table = found.tables[index]
    if table.elements is None:
        return
    if start is None or items is None or start + len(items) > len(table.elements):
        table.elements = None
        return
    table.elements[start : start + len(items)] = items
