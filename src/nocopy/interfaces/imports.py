"""The table of what the import module `nocopy` provides: the C header and the linker are made from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MODULE = "nocopy"
INTERFACE_VERSION = 1
"""What `version()` returns. It changes when a function of this table changes its meaning, never otherwise."""

MAX_TEXT = 4096
"""Bytes of one log line or error message that are kept; a longer one is cut there and says so."""


@dataclass(frozen=True)
class Param:
    """One parameter. `kind` is "ptr" or "size" (i32; i64 in a memory64 guest), or "i32"."""

    name: str
    kind: str
    c_type: str


@dataclass(frozen=True)
class Import:
    """One function that a guest may import; all return an i32: 0 or more, or a negative error code."""

    name: str
    params: tuple[Param, ...]
    doc: str

    def kinds(self, *, memory64: bool) -> tuple[str, ...]:
        """The Wasm types of the parameters."""
        word = "i64" if memory64 else "i32"
        return tuple("i32" if p.kind == "i32" else word for p in self.params)


IMPORTS: tuple[Import, ...] = (
    Import("version", (), "The version of this interface: 1."),
    Import(
        "describe",
        (Param("info", "ptr", "nocopy_device_info *"), Param("len", "size", "size_t")),
        "Write what the device is: at most `len` bytes of a nocopy_device_info. Returns the bytes of the\n"
        "whole struct, so a guest built for an older, shorter one keeps working. With `len` 0 nothing is\n"
        "written.",
    ),
    Import(
        "submit",
        (Param("records", "ptr", "const nocopy_record *"), Param("count", "size", "size_t")),
        "Play `count` records in order and return when their results are in memory. The host copies the\n"
        "records first: what is written to them meanwhile changes nothing. Nothing is played if any record\n"
        "is refused.",
    ),
    Import(
        "last_error",
        (Param("text", "ptr", "char *"), Param("len", "size", "size_t")),
        "Write what the last failed call was about: at most `len` bytes of UTF-8, the last of them a NUL.\n"
        "Returns the bytes of the whole message without its NUL; 0 if no call has failed yet.",
    ),
    Import(
        "log",
        (
            Param("level", "i32", "int32_t"),
            Param("text", "ptr", "const char *"),
            Param("len", "size", "size_t"),
        ),
        "Hand a line of UTF-8 to the host's log. `level` is one of NOCOPY_LOG_*.",
    ),
)

LOG_LEVELS = ("debug", "info", "warning", "error")
"""Their index is the number that a guest passes."""

DEVICE_INFO = np.dtype(
    [
        ("version", "<u4"),
        ("mode", "<u4"),
        ("software", "<u4"),
        ("max_records", "<u4"),
        ("memory_bytes", "<u8"),
        ("scratch_bytes", "<u8"),
        ("work_limit", "<u8"),
        ("name", "S24"),
        ("product", "S192"),
    ]
)
"""`describe`'s struct. Fields are only ever appended."""

DEVICE_INFO_DOC = {
    "version": "INTERFACE_VERSION of the host",
    "mode": "one of NOCOPY_MODE_*",
    "software": "1 for a GPU interface that runs on the CPU",
    "max_records": "the most records of one submit",
    "memory_bytes": "the device's own memory; 0 if it has none",
    "scratch_bytes": "what this guest may use of NOCOPY_SPACE_SCRATCH",
    "work_limit": "elements or multiply-adds that one submit may cost",
    "name": 'UTF-8 with a NUL: "cpu", "cuda", ...',
    "product": "UTF-8 with a NUL: the hardware's own name",
}
