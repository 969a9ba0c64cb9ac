"""docs/snapshot.md against the code."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from nocopy.snapshot import format as numbers
from nocopy.snapshot import manifest
from nocopy.snapshot.typed_json import Length, Range

PAGE = Path("docs/snapshot.md").read_text()
TYPES = [t for t in vars(manifest).values() if is_dataclass(t) and t.__module__ == manifest.__name__]


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, heading
    table = [line.strip("| \n").split(" | ") for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip(" `|") for cell in row] for row in table[2:]]


def named(kind) -> str:
    """A type as the document calls it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        known = {
            Range(0, 2**32 - 1): "u32",
            Range(0, 2**64 - 1): "u64",
            Range(0, 2**48): "size",
            Range(-1, 2**31): "i64",
            Length(32, 32): "digest",
        }
        return known.get(arguments[1]) or named(arguments[0])
    if origin is Literal:
        quoted = [f'"{value}"' for value in arguments]
        return "`, `".join(quoted[:-1]) + f"` or `{quoted[-1]}"
    if origin is tuple:
        return f"{named(arguments[0])}[]"
    if origin in (UnionType, Union):
        return f"{named(arguments[0])}?"
    return {str: "text"}.get(kind, kind.__name__)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_field_of_the_manifest_is_documented(kind):
    hints = get_type_hints(kind, include_extras=True)
    wanted = [[field.name, named(hints[field.name])] for field in fields(kind)]
    assert [row[:2] for row in rows(kind.__name__)] == wanted


def test_every_type_of_the_document_is_there():
    headings = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(kind.__name__ for kind in TYPES)


def test_defects_are_documented():
    assert dict(rows("Defects")) == numbers.DEFECTS


def test_sizes_are_documented():
    header = rows("Header")
    assert [int(row[0]) for row in header] == [0, 8, 12, 16, 24, 32, 40, 48, 56, 64, 68, 72, 76]
    assert sum(int(row[1]) for row in header) == numbers.HEADER.size
    entry = rows("Chunks and their table")
    assert [int(row[0]) for row in entry] == [numbers.ENTRY.fields[n][1] for n in numbers.ENTRY.names]
    for value in (numbers.PAGE, numbers.CHUNK, numbers.LIMITS["manifest"][0]):
        assert f"{value:,}" in PAGE
