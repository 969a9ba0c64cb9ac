"""A guest that hands every call of the host on to the module `nocopy`: a test can say anything to it."""

from __future__ import annotations

from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.imports import IMPORTS
from nocopy.tape import TapeBuilder

RECORDS = 1024
"""Where `submit` puts records."""


def text(*, memory64: bool = False, pages: int = 1, maximum: int | str = "") -> str:
    """The module in the text format."""
    word = "i64" if memory64 else "i32"
    lines: list[str] = []
    for i in IMPORTS:
        params = " ".join(i.kinds(memory64=memory64))
        lines.append(f'(import "nocopy" "{i.name}" (func ${i.name} (param {params}) (result i32)))')
    for i in IMPORTS:
        gets = " ".join(f"(local.get {n})" for n in range(len(i.params)))
        params = " ".join(i.kinds(memory64=memory64))
        lines.append(f'(func (export "{i.name}") (param {params}) (result i32) (call ${i.name} {gets}))')
    lines.append(f'(memory (export "memory") {word if memory64 else ""} {pages} {maximum})')
    lines.append(f'(func (export "grow") (param {word}) (result {word}) (memory.grow (local.get 0)))')
    lines.append('(func (export "spin") (loop (br 0)))')
    lines.append('(func (export "trap") unreachable)')
    return "(module " + "\n".join(lines) + ")"


def submit(guest: DeviceGuest, tape: TapeBuilder | bytes, at: int = RECORDS) -> int:
    """Write records into the guest's memory and have the guest submit them."""
    raw = bytes(tape)
    guest.memory.write(at, raw)
    return guest.call("submit", at, len(raw) // 256)


def last_error(guest: DeviceGuest) -> str:
    """What the guest reads as the last error."""
    size = guest.call("last_error", 0, 0)
    guest.call("last_error", 0, size + 1)
    return guest.memory.read(0, size).decode()
