"""Just enough of the WebAssembly binary format to move a module's start function to an export.

Wasmtime runs the start function inside instantiation, when nobody can know yet where the memory lies. As
an export it is called right after instantiation, with the memory known and imported into the device.
WebAssembly defines start as the last step of instantiation, so the order of everything is the same.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HEADER: Final = b"\0asm\1\0\0\0"
COMPONENT: Final = b"\0asm\x0d\0\1\0"
_EXPORT, _START = 7, 8
_FUNCTION: Final = b"\0"


class Section(NamedTuple):
    """One section: its number and its content."""

    number: int
    content: bytes


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """Decode an unsigned LEB128 number of at most 32 bits; return it and the position after it.

    Raises:
        ValueError: it is too long, or the data ends.
    """
    value = 0
    for i in range(5):
        if at + i >= len(data):
            break
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError(f"no number at byte {at}")


def write_number(value: int) -> bytes:
    """Encode as unsigned LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def split(binary: bytes) -> list[Section]:
    """Split a valid module into its sections.

    Raises:
        ValueError: a section does not fit.
    """
    at, sections = len(HEADER), list[Section]()
    while at < len(binary):
        number = binary[at]
        size, start = read_number(binary, at + 1)
        at = start + size
        if at > len(binary):
            raise ValueError(f"section {number} ends after the module does")
        sections.append(Section(number, binary[start:at]))
    return sections


def join(sections: list[Section]) -> bytes:
    """Undo `split`."""
    return HEADER + b"".join(bytes((n,)) + write_number(len(content)) + content for n, content in sections)


def start_to_export(binary: bytes, name: str) -> bytes | None:
    """Return the module with its start function exported as `name` instead, or None if it has none.

    Args:
        binary: a module that Wasmtime has found valid.
        name: of the export; the module must not have one of that name.
    """
    sections = split(binary)
    starts = [i for i, section in enumerate(sections) if section.number == _START]
    if not starts:
        return None
    place = starts[0]
    encoded = name.encode()
    entry = write_number(len(encoded)) + encoded + _FUNCTION + sections[place].content
    # The export section comes right before the start section, so a new one can take its place.
    del sections[place]
    for i, section in enumerate(sections):
        if section.number == _EXPORT:
            count, rest = read_number(section.content, 0)
            sections[i] = Section(_EXPORT, write_number(count + 1) + section.content[rest:] + entry)
            return join(sections)
    sections.insert(place, Section(_EXPORT, write_number(1) + entry))
    return join(sections)
