"""Loading a guest's module: from a file, from bytes, from text; checked before anything of it runs."""

from __future__ import annotations

from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Final

import wasmtime
from blake3 import blake3

from nocopy.errors import InvalidModuleError, UsageError
from nocopy.wasm.cursor import Malformed
from nocopy.wasm.engine import Engine
from nocopy.wasm.exposed import Exposed, expose
from nocopy.wasm.sections import COMPONENT, HEADER


def read_source(source: str | bytes | bytearray | PathLike[str]) -> tuple[bytes, str]:
    """Return a module's binary and a name for it.

    Args:
        source: the binary; the text format, as a `str` that begins with "(" or ";;" or as bytes; or the
        path of a     file that has either.

    Raises:
        UsageError: the file cannot be read.
        InvalidModuleError: neither binary nor text.
    """
    name = "module"
    if isinstance(source, str) and source.lstrip().startswith(("(", ";;")):
        data = source.encode()
    elif isinstance(source, bytes | bytearray):
        data = bytes(source)
    else:
        path = Path(source)
        name = path.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"the module {str(path)!r} was to be read: {error.strerror}. Check the path."
            ) from None
    if data.startswith(b"\0asm"):
        return data, name
    if data.lstrip()[:1] not in (b"(", b";"):
        raise InvalidModuleError(
            f"{name} was to be loaded; it is not WebAssembly: it begins with {data[:8]!r}, not with "
            r"b'\0asm' nor with '('. Give a .wasm or .wat file."
        )
    try:
        return bytes(wasmtime.wat2wasm(data)), name
    except wasmtime.WasmtimeError as error:
        raise InvalidModuleError(f"{name} was to be loaded; its text is not WebAssembly: {error}") from None


class Module:
    """A compiled module, which any number of guests of the same engine can be made from.

    Args:
        source: as in `read_source`.
        engine: that compiles it.

    Raises:
        UsageError: the file cannot be read.
        InvalidModuleError: not a core module, not valid, or with a shared memory.
    """

    def __init__(self, source: str | bytes | bytearray | PathLike[str], engine: Engine) -> None:
        self.engine = engine
        self.binary, self.name = read_source(source)
        if self.binary.startswith(COMPONENT):
            raise InvalidModuleError(
                f"{self.name} was to be loaded; it is a component, and only core modules have "
                "a linear memory that can be shared. Build it for wasm32-wasip1 (or another core target)."
            )
        if not self.binary.startswith(HEADER):
            raise InvalidModuleError(
                f"{self.name} was to be loaded; its header {self.binary[:8]!r} is not that of WebAssembly "
                "version 1. Build it again."
            )
        try:
            wasmtime.Module.validate(engine.wasmtime, self.binary)
            binary, self.exposed = self._expose()
            self.wasmtime = wasmtime.Module(engine.wasmtime, binary)
        except wasmtime.WasmtimeError as error:
            raise InvalidModuleError(f"{self.name} was to be loaded; it is not valid: {error}") from None
        self.imports: Final = [(i.module, i.name or "", i.type) for i in self.wasmtime.imports]
        self.exports: Final = {
            e.name: e.type for e in self.wasmtime.exports if e.name not in self.exposed.names
        }
        kinds = [*(kind for _, _, kind in self.imports), *self.exports.values()]
        if any(isinstance(kind, wasmtime.MemoryType) and kind.is_shared for kind in kinds):
            raise InvalidModuleError(shared_memory(self.name))

    def _expose(self) -> tuple[bytes, Exposed]:
        """The module with what freezing needs exported; see `exposed.py`.

        Raises:
            InvalidModuleError: Wasmtime takes it, and it uses a proposal that is not known here.
        """
        try:
            return expose(self.binary)
        except Malformed as error:
            raise InvalidModuleError(
                f"{self.name} was to be loaded; Wasmtime finds it valid, and nocopy cannot read it: {error}. "
                "Build it without the newest proposals."
            ) from error

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3 of the module's bytes as they were given: 32 bytes."""
        return blake3(self.binary).digest()


def shared_memory(name: str) -> str:
    """Why a module with a shared memory is refused."""
    return (
        f"{name} was to be loaded; it has a shared memory, which is for several threads: one could write "
        "while a device computes, and a guest here runs on one. Build it without threads."
    )
