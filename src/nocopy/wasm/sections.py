"""The outermost layer of the WebAssembly binary format: a header, then sections."""

from __future__ import annotations

from typing import Final, NamedTuple

from nocopy.wasm.cursor import Cursor

HEADER: Final = b"\0asm\1\0\0\0"
COMPONENT: Final = b"\0asm\x0d\0\1\0"


class Section(NamedTuple):
    """One section: its number and its content."""

    number: int
    content: bytes


def write_number(value: int) -> bytes:
    """Encode as unsigned LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def split(binary: bytes) -> list[Section]:
    """Split a module into its sections.

    Raises:
        Malformed: a section does not fit.
    """
    cursor, sections = Cursor(binary, len(HEADER)), list[Section]()
    while cursor.left:
        number = cursor.byte()
        sections.append(Section(number, cursor.take(cursor.number())))
    return sections


def join(sections: list[Section]) -> bytes:
    """Undo `split`."""
    return HEADER + b"".join(bytes((n,)) + write_number(len(content)) + content for n, content in sections)
