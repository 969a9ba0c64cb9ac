"""Finds and loads the native library; its functions through ctypes. `kernels/cpu/nocopy.h` is the contract.

The library is optional: without a C++ compiler nocopy installs without it, and `library()` says so.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Any

import nocopy
from nocopy.errors import DeviceUnavailableError
from nocopy.tape.record import RECORD_BYTES, VERSION

SPACES = 4
OK, DEADLINE, UNKNOWN_OP = 0, 1, 2
"""What `nocopy_play` returns."""

LIBRARY_NAME = "libnocopy.dylib" if sys.platform == "darwin" else "libnocopy.so"
FIX = (
    "Install a C++20 compiler (Debian: apt-get install g++; macOS: xcode-select --install)"
    " and install nocopy again: pip install --force-reinstall --no-deps nocopy"
)

HOST_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
)
"""wasmtime's unchecked host function: trap = f(env, caller, values, count); values lie 16 bytes apart."""

Bases = ctypes.c_void_p * SPACES


class HostConfig(ctypes.Structure):
    """`nocopy_host_config`: what a guest's `nocopy.submit` runs on."""

    _fields_ = (
        ("player", ctypes.c_void_p),
        ("memory", ctypes.c_void_p),
        ("memory_bytes", ctypes.POINTER(ctypes.c_size_t)),
        ("bases", Bases),
        ("timeout_s", ctypes.c_double),
        ("memory64", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("fallback", HOST_FUNCTION),
        ("fallback_env", ctypes.c_void_p),
    )


RANGE = Struct("@3Q")
"""`nocopy_range`."""
_P, _U32, _U64, _I32 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "nocopy_level": (ctypes.c_char_p, (_U32,)),
    "nocopy_player_create": (_P, (_U32, ctypes.c_char_p)),
    "nocopy_player_destroy": (None, (_P,)),
    "nocopy_play": (_I32, (_P, _P, _U64, _P, ctypes.c_double)),
    "nocopy_populate": (None, (_P, ctypes.c_char_p, _U64)),
    "nocopy_host_create": (_P, (ctypes.POINTER(HostConfig),)),
    "nocopy_host_destroy": (None, (_P,)),
    "nocopy_host_settings": (ctypes.POINTER(HostConfig), (_P,)),
    "nocopy_host_submit": (_P, (_P, _P, _P, ctypes.c_size_t)),
    "nocopy_host_remember": (_I32, (_P, _P, _U64)),
    "nocopy_host_forget": (None, (_P,)),
    "nocopy_host_status": (_I32, (_P,)),
    "nocopy_host_hits": (_U64, (_P,)),
    "nocopy_host_version": (_P, (_P, _P, _P, ctypes.c_size_t)),
    "nocopy_tape_version": (_U32, ()),
}
assert RECORD_BYTES == 256


def path() -> Path:
    """Where the library lies: `NOCOPY_LIBRARY` if set, else beside the package's modules.

    Raises:
        DeviceUnavailableError: it was not built; the message says how to get it.
    """
    chosen = os.environ.get("NOCOPY_LIBRARY")
    places = [Path(chosen)] if chosen else [Path(p) / LIBRARY_NAME for p in nocopy.__path__]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(p) for p in places)
    fix = f"Unset NOCOPY_LIBRARY or make it name {LIBRARY_NAME}." if chosen else FIX
    raise DeviceUnavailableError("cpu", f"the native library was not found at {looked}", fix)


@cache
def library() -> ctypes.CDLL:
    """The loaded library with typed functions. Calls release Python's lock.

    Raises:
        DeviceUnavailableError: it was not built, cannot be loaded, or belongs to another version of nocopy.
    """
    where = path()
    try:
        lib = ctypes.CDLL(str(where))
    except OSError as e:
        raise DeviceUnavailableError("cpu", f"{where} cannot be loaded: {e}", FIX) from e
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(lib, name, None)
        if function is None:
            raise DeviceUnavailableError(
                "cpu", f"{where} has no function {name}: it is of another version", FIX
            )
        function.restype, function.argtypes = result, arguments
    found = lib.nocopy_tape_version()
    if found != VERSION:
        raise DeviceUnavailableError("cpu", f"{where} plays tape version {found}; this is {VERSION}", FIX)
    return lib


def address(function: str) -> int:
    """Address of a function of the library, for APIs that take C function pointers.

    Raises:
        DeviceUnavailableError: as `library` does.
    """
    pointer = ctypes.cast(getattr(library(), function), ctypes.c_void_p).value
    assert pointer is not None
    return pointer


def levels() -> list[str]:
    """Instruction-set levels that this build has and this machine can run, best last."""
    found: list[str] = []
    while (name := library().nocopy_level(len(found))) is not None:
        found.append(name.decode())
    return found
