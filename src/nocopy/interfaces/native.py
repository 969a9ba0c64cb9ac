"""`submit` in native code: a tape that was accepted before plays with no Python between guest and kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from nocopy import native
from nocopy.errors import DeadlineError, DeviceError
from nocopy.interfaces.compute import Compute
from nocopy.interfaces.imports import MODULE
from nocopy.interfaces.programs import MAX_PROGRAMS
from nocopy.tape.record import RECORD_BYTES, Space
from nocopy.wasm import HostFunction, NativeFunction
from nocopy.wasm.calls import Calls
from nocopy.wasm.hostcall import python_callback

NO_TIMEOUT = -1.0


@runtime_checkable
class NativeDevice(Protocol):
    """A device whose plays are one call of the native library."""

    @property
    def player(self) -> int:
        """Address of its `nocopy_player`."""
        ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have a bound method called before the player goes away."""
        ...


class NativeSubmit:
    """The native side of one guest's `submit`, and what it falls back to.

    Args:
        compute: of the guest; gets every call that the native side cannot answer.
        submit: the same function in Python.
        calls: of the guest.
        device: of the guest.
    """

    def __init__(self, compute: Compute, submit: HostFunction, calls: Calls, device: NativeDevice) -> None:
        self._compute = compute
        self._library = native.library()
        fallback = HostFunction(self._fall_back, submit.params, submit.results)
        self._callback = python_callback(fallback, f"{MODULE}.submit", calls)
        config = native.HostConfig(
            player=device.player,
            timeout_s=NO_TIMEOUT,
            memory64=submit.params[0] == "u64",
            capacity=MAX_PROGRAMS,
            fallback=ctypes.cast(self._callback, native.HOST_FUNCTION),
        )
        self.host: int = self._library.nocopy_host_create(ctypes.byref(config)) or 0
        """Address of the `nocopy_host`."""
        if not self.host:
            raise DeviceError("the native side of submit was asked for; there is no memory for it")
        self._settings = self._library.nocopy_host_settings(self.host).contents
        compute.on_accepted, compute.on_move = self._remember, self.forget
        device.on_close(self._give_up)

    def _fall_back(self, pointer: int, count: int) -> int:
        """Answer a call that the native side could not."""
        status = self._library.nocopy_host_status(self.host)
        if status == native.OK:
            return self._compute.submit(pointer, count)
        return self._compute.guarded(lambda: self._fail(status))

    def _fail(self, status: int) -> int:
        if status == native.DEADLINE:
            raise DeadlineError("a tape ran longer than it may")
        raise DeviceError(f"a tape was played by the native library; it failed with status {status}")

    def _remember(self, records: bytes) -> None:
        """Let the native side answer next time."""
        attached = self._compute.attachment
        memory, scratch = attached.memory, attached.grip.scratch.pages
        self._settings.memory = self._settings.bases[Space.GUEST] = memory.address
        self._settings.memory_bytes = ctypes.cast(memory.size_address, ctypes.POINTER(ctypes.c_size_t))
        self._settings.bases[Space.SCRATCH] = scratch.address if scratch else None
        self._library.nocopy_host_remember(self.host, records, len(records) // RECORD_BYTES)

    def forget(self) -> None:
        """Have every call go to Python until a tape is played there again."""
        self._library.nocopy_host_forget(self.host)

    def _give_up(self) -> None:
        """Have every call go to Python for good: the player is going away."""
        self._settings.player = None
        self.forget()

    def __del__(self) -> None:
        if getattr(self, "host", 0):
            self._library.nocopy_host_destroy(self.host)


def native_submit(compute: Compute, submit: HostFunction, calls: Calls) -> NativeFunction | None:
    """`submit` for the linker if the device plays natively; None if Python has to start its plays."""
    device: Any = compute.device
    if not isinstance(device, NativeDevice):
        return None
    side = NativeSubmit(compute, submit, calls, device)
    return NativeFunction(
        native.address("nocopy_host_submit"), side.host, submit.params, submit.results, keep=side
    )
