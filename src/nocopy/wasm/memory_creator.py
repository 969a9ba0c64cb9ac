"""Makes Wasmtime put every linear memory into pages of ours.

Wasmtime calls `new_memory` for each memory that a module defines, then reads base and size through
`get_memory`, and asks `grow_memory` to commit more. The base must not move while the reservation is
honoured, and a `LinearMemory` never moves.

Memories that the host makes itself (`wasmtime.Memory`, `wasmtime.SharedMemory`) do not come from here, so
`linking.py` gives imported ones from a provider module. Shared ones are refused: see `module.py`. Where
copy-on-write initialisation is on, Wasmtime aborts the process for a module with a data segment (its issue
10740), so `engine.py` turns it off. A store's GC heap does come from here, and is no memory of the guest's.

The callbacks are made once and never freed: Wasmtime may drop a memory while Python is shutting down.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn

from nocopy.errors import ClosedError, UsageError
from nocopy.memory.linear import GUARD, RESERVE, Hold, LinearMemory
from nocopy.memory.pages import round_up
from nocopy.memory.quota import Quota
from nocopy.wasm import capi
from nocopy.wasm.calls import Calls
from nocopy.wasm.guard import cover_entry

WASM_PAGE: Final = 64 << 10
GUEST: Final = "a running guest"
"""The name under which Wasmtime holds its memories."""
_UNBOUNDED: Final = (1 << 64) - 1


class _Born(NamedTuple):
    memory: LinearMemory
    hold: Hold
    calls: Calls


class _Owner(threading.local):
    """Whose memories are being made on this thread."""

    quota: Quota | None = None
    calls: Calls = Calls()


_owner = _Owner()
_alive: dict[int, _Born] = {}
_keys = itertools.count(1)


@contextmanager
def owner(quota: Quota, calls: Calls) -> Generator[None]:
    """Charge the memories that Wasmtime makes on this thread to `quota`, and keep exceptions in `calls`."""
    _owner.quota, _owner.calls = quota, calls
    try:
        yield
    finally:
        del _owner.quota, _owner.calls


def at(address: int) -> LinearMemory | None:
    """The memory with this base address, if it was made here and Wasmtime still has it."""
    for born in tuple(_alive.values()):
        if born.memory.address == address:
            return born.memory
    return None


def alive() -> int:
    """How many memories Wasmtime has from here."""
    return len(_alive)


def _only_the_guest(_size: int) -> NoReturn:
    raise UsageError("growing a guest's inner memory was asked for; only the guest's own code can grow it")


def _nobody(_size: int) -> NoReturn:
    raise ClosedError("growing the memory of a closed guest was asked for; start the guest again")


def reservation(*, minimum: int, maximum: int, asked: int, is_64: bool, limit: int | None) -> int:
    """Bytes of address space to reserve, so that the memory can grow in place as far as it may.

    Wasmtime asks for 4 GiB, all that a 32-bit memory can use. A 64-bit one can use more: as much as its
    maximum, the guest's limit and the machine's memory allow.
    """
    wanted = max(asked, RESERVE, minimum)
    if is_64:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        reach = min(maximum, physical if limit is None else min(limit, physical))
        wanted = max(wanted, round_up(reach, WASM_PAGE))
    return wanted


def _new_memory(
    _env: int, kind: int, minimum: int, maximum: int, reserved: int, guard: int, result: int
) -> int:
    try:
        quota = _owner.quota
        reserve = reservation(
            minimum=minimum,
            maximum=maximum,
            asked=reserved,
            is_64=capi.memorytype_is64(kind),
            limit=None if quota is None else quota.limit,
        )
        memory = LinearMemory(
            minimum, maximum=max(maximum, minimum), reserve=reserve, guard=max(guard, GUARD), limit=quota
        )
        memory.grow_through = _only_the_guest
        key = next(_keys)
        _alive[key] = _Born(memory, memory.hold(GUEST), _owner.calls)
        callbacks = capi.LinearMemoryCallbacks.from_address(result)
        callbacks.env = key
        callbacks.get_memory, callbacks.grow_memory = GET_MEMORY, GROW_MEMORY
        callbacks.finalizer = FINALIZE
        return 0
    except BaseException as error:
        _owner.calls.error = error
        return capi.error_new(str(error).encode())


def _get_memory(env: int, size: Any, capacity: Any) -> int:
    try:
        memory = _alive[env].memory
    except BaseException as error:  # a signal handler raised; the table always has the key
        memory = _alive[env].memory
        _alive[env].calls.error = error
    size[0] = memory.size
    capacity[0] = memory.pages.reserve
    return memory.address


def _grow_memory(env: int, new_size: int) -> int:
    # Whatever the reason for refusing, the guest gets -1: growth may fail at any time in WebAssembly.
    try:
        _alive[env].memory.grow_in_place(new_size)
        return 0
    except BaseException as error:
        if not isinstance(error, Exception):
            _alive[env].calls.error = error
        return capi.error_new(str(error).encode())


def _finalize(env: int) -> None:
    try:
        _release(env)
    except BaseException:  # a signal handler raised, perhaps before the memory was let go
        _release(env)
        raise  # nobody in C takes it: Python reports it


def _release(env: int) -> None:
    born = _alive.pop(env, None)
    if born is None:
        return
    # The pages live on for as long as a device, an array or anyone else refers to them.
    born.memory.grow_through = _nobody
    born.hold.release()


NEW_MEMORY: Final = capi.NewMemory(cover_entry(_new_memory))
GET_MEMORY: Final = capi.GetMemory(cover_entry(_get_memory))
GROW_MEMORY: Final = capi.GrowMemory(cover_entry(_grow_memory))
FINALIZE: Final = capi.Finalizer(cover_entry(_finalize))
CREATOR: Final = capi.MemoryCreatorCallbacks(None, NEW_MEMORY, capi.NO_FINALIZER)

_incref = ctypes.PyDLL(None).Py_IncRef
_incref.restype = None
_incref.argtypes = [ctypes.py_object]
for _immortal in (NEW_MEMORY, GET_MEMORY, GROW_MEMORY, FINALIZE):
    _incref(_immortal)
