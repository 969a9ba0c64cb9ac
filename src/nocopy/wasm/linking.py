"""What a module needs before it can be instantiated, and what it means when that fails."""

from __future__ import annotations

from typing import Final

import wasmtime

from nocopy.errors import InvalidModuleError, MemoryLimitError
from nocopy.wasm.module import Module, shared_memory
from nocopy.wasm.traps import convert

MEMORY: Final = "memory"
"""The name under which a guest exports its memory, by convention."""


def provide_memory(store: wasmtime.Store, kind: wasmtime.MemoryType) -> wasmtime.Memory:
    """A memory for a guest that imports one: made by a module, because the host's own bypass our pages."""
    limits = kind.limits
    address = "i64" if kind.is_64 else "i32"
    maximum = "" if limits.max is None else limits.max
    text = f'(module (memory (export "{MEMORY}") {address} {limits.min} {maximum}))'
    provider = wasmtime.Module(store.engine, text)
    memory = wasmtime.Instance(store, provider, []).exports(store)[MEMORY]
    assert isinstance(memory, wasmtime.Memory)
    return memory


def require_all(linker: wasmtime.Linker, store: wasmtime.Store, module: Module) -> None:
    """Check that everything the module imports is there.

    Raises:
        InvalidModuleError: something is not; the message names all of it.
    """
    missing: list[str] = []
    for place, name, _kind in module.imports:
        try:
            linker.get(store, place, name)
        except wasmtime.WasmtimeError:
            missing.append(f"{place}.{name}")
    if missing:
        raise InvalidModuleError(
            f"{module.name} imports {', '.join(missing)}; nothing provides that. "
            "Pass host functions for it, or build the guest without it."
        )


def failure(
    error: wasmtime.WasmtimeError | wasmtime.Trap, pending: BaseException | None, name: str
) -> BaseException:
    """Return the exception for an instantiation that failed.

    Args:
        error: what Wasmtime reports.
        pending: what our memory creator raised, if that is why.
        name: of the module.
    """
    if pending is not None:
        return pending
    if isinstance(error, wasmtime.Trap):
        return convert(error, None)
    text = str(error)
    if "exceeds" in text and "limits" in text:
        return MemoryLimitError(f"{name} was to be started; {text}. Raise the limit.")
    if "shared memory" in text:
        return InvalidModuleError(shared_memory(name))
    return InvalidModuleError(f"{name} was to be started; {text}. Check what it imports.")
