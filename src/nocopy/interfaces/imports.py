"""The table of what the import module `nocopy` provides: the C header and the linker are made from it."""

from __future__ import annotations

import numpy as np

from nocopy.interfaces.model_imports import MODEL_IMPORTS
from nocopy.interfaces.signature import Import, Param
from nocopy.tape.record import VERSION

MODULE = "nocopy"
INTERFACE_VERSION = VERSION
"""What `version()` returns: the version of the records, which the functions of this table share."""

MAX_TEXT = 4096
"""Bytes of one log line or error message that are kept; a longer one is cut there and says so."""


IMPORTS: tuple[Import, ...] = (
    Import("version", (), "The version of this interface and of its records: 1."),
    Import(
        "describe",
        (Param("info", "ptr", "nocopy_device_info *"), Param("len", "i32", "uint32_t")),
        "Write what the device is: at most `len` bytes of a nocopy_device_info. Returns the bytes of the\n"
        "whole struct, so a guest built for an older, shorter one keeps working. With `len` 0 nothing is\n"
        "written.",
    ),
    Import(
        "submit",
        (Param("records", "ptr", "const nocopy_record *"), Param("count", "i32", "uint32_t")),
        "Play `count` records in order and return when their results are in memory. The host copies the\n"
        "records first: what is written to them meanwhile changes nothing. Nothing is played if any record\n"
        "is refused.",
    ),
    Import(
        "last_error",
        (Param("text", "ptr", "char *"), Param("len", "i32", "uint32_t")),
        "Write what the last failed call was about: at most `len` bytes of UTF-8, the last of them a NUL.\n"
        "Returns the bytes of the whole message without its NUL; 0 if no call has failed yet.",
    ),
    Import(
        "log",
        (
            Param("level", "i32", "int32_t"),
            Param("text", "ptr", "const char *"),
            Param("len", "i32", "uint32_t"),
        ),
        "Hand a line of UTF-8 to the host's log. `level` is one of NOCOPY_LOG_*.",
    ),
    Import(
        "checkpoint",
        (Param("label", "ptr", "const char *"), Param("len", "i32", "uint32_t")),
        "Ask to be frozen, or simply to go on, from here: once the host's present call has returned, it may\n"
        "freeze the guest, and calls your export `nocopy_resume`, here or wherever the guest is thawed. So\n"
        "return from what you are doing, down to the host. `nocopy_label` gives the label then.",
    ),
    Import(
        "label",
        (Param("text", "ptr", "char *"), Param("len", "i32", "uint32_t")),
        "Write the label of the last checkpoint: at most `len` bytes of UTF-8, the last of them a NUL.\n"
        "Returns the bytes of the whole label without its NUL; 0 if there was none.",
    ),
    Import(
        "clone",
        (Param("info", "ptr", "nocopy_clone_info *"), Param("len", "i32", "uint32_t")),
        "Write which copy of itself this guest is: at most `len` bytes of a nocopy_clone_info. Returns the\n"
        "bytes of the whole struct. Whoever draws random numbers compares it with the last one that it saw.",
    ),
    *MODEL_IMPORTS,
)

CLONE_INFO = np.dtype([("generation", "<u8"), ("index", "<u8"), ("random", "<u8")])
"""`clone`'s struct. Fields are only ever appended."""

CLONE_INFO_DOC = {
    "generation": "how often this guest, or one that it was cloned from, was thawed or forked",
    "index": "which of the clones of one fork; 0 for a guest that was started or thawed",
    "random": "drawn by the host for this clone: no two that ever run have the same",
}

RESUME = "nocopy_resume"
"""The export that goes on after a checkpoint: () -> i32, its exit status."""

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

BY_NAME: dict[str, Import] = {i.name: i for i in IMPORTS}
