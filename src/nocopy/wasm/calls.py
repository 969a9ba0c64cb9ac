"""What a call into a guest leaves behind for the caller.

One record per guest, shared by all its functions.
"""

from __future__ import annotations

import threading
import time

from nocopy.wasm import capi


class Calls:
    """The state of the calls that are running in one guest.

    Wasmtime's bindings are not safe for several threads on one store, so one thread may be inside at a
    time. That thread may enter again, from a host function.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """What a callback raised; the outermost Python frame raises it again once WebAssembly has unwound."""
        self.lock = threading.RLock()
        self.depth = 0
        self.deadline_at = float("inf")
        """When the outermost call must have ended, by `time.monotonic()`."""

    def inside(self) -> bool:
        """True if this thread is inside the guest."""
        return self.lock._is_owned()  # pyright: ignore

    def time_left(self) -> float | None:
        """Seconds until the deadline of the outermost call, negative past it; None without a deadline."""
        return None if self.deadline_at == float("inf") else self.deadline_at - time.monotonic()

    def fail(self, error: BaseException) -> int:
        """Keep the exception and return a trap that ends the guest."""
        self.error = error
        return capi.trap_new(b"a host function raised", 22)

    def take(self) -> BaseException | None:
        """Return the exception that a callback left, if any, and forget it."""
        error, self.error = self.error, None
        return error
