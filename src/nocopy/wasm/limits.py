"""What a guest may use: memory, time, fuel, tables. Exceeding one ends that guest and touches no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import wasmtime

from nocopy.errors import DeadlineError, UsageError
from nocopy.wasm import capi
from nocopy.wasm.calls import Calls
from nocopy.wasm.guard import cover_entry

TICK: Final = 0.01
"""Seconds between two epochs: how late a deadline may be noticed. One tick costs the running guest 2 us."""
NEVER: Final = 1 << 62
"""Epochs until a guest without a deadline is looked at."""


@dataclass(frozen=True)
class Limits:
    """What one guest may use.

    Args:
        memory: bytes of all its linear memories together (and of its GC heap); None means no limit. A
        `memory.grow`     beyond it gives the guest -1, as WebAssembly says; a module that starts out
        beyond it is a MemoryLimitError.
        deadline: seconds of wall-clock time that one call from the host may take; None means no limit.
        fuel: units of Wasmtime's fuel, about one per instruction, for the guest's whole life; None means
        not to count,     which makes tight loops 1.7 times faster.
        table_elements: entries of any one table; each costs the host 8 bytes.
    """

    memory: int | None = None
    deadline: float | None = None
    fuel: int | None = None
    table_elements: int = 10_000_000

    def __post_init__(self) -> None:
        for name in ("memory", "deadline", "fuel", "table_elements"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 63:
                raise UsageError(f"{name}={value!r} was asked for; a limit is a number from 0 up, or None")


class Ticker:
    """Advances an engine's epoch while anyone needs it; a daemon thread that exists only then."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._users = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def users(self) -> int:
        """How many need it now."""
        return self._users

    def acquire(self) -> None:
        """Have epochs advance until `release`."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._stop = threading.Event()
                threading.Thread(
                    target=self._run, args=(self._stop,), name="nocopy-ticker", daemon=True
                ).start()

    def release(self) -> None:
        """Need it no longer."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stop.set()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(TICK):
            self._tick()


class Clock:
    """Ends one guest's calls at their deadline, and lets Python handle signals while WebAssembly runs.

    While it is armed, Wasmtime calls back once per epoch. Entering Python there is what makes Ctrl-C work
    in a guest that never calls the host.
    """

    def __init__(self, store: wasmtime.Store, ticker: Ticker, limits: Limits, calls: Calls) -> None:
        self._ticker = ticker
        self._deadline = limits.deadline
        self._calls = calls
        self._context = capi.context(store)
        self._callback = capi.EpochCallback(self._look())
        capi.store_epoch_deadline_callback(capi.address(store.ptr()), self._callback, None, None)
        capi.context_set_epoch_deadline(self._context, NEVER)
        self._closed = False
        if self._deadline is not None:
            # For the guest's whole life: starting the thread for each call would cost 100 us.
            ticker.acquire()

    def close(self) -> None:
        """Let the ticker go."""
        if not self._closed and self._deadline is not None:
            self._ticker.release()
        self._closed = True

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """Have signals handled inside, even without a deadline."""
        self._ticker.acquire()
        self.begin()
        try:
            yield
        finally:
            self.end()
            self._ticker.release()

    def _look(self) -> Callable[..., int]:
        calls = self._calls

        def look(_context: int, _data: int, delta: Any, _kind: Any) -> int:
            try:
                delta[0] = 1
                self.check()
                return 0
            except BaseException as error:
                calls.error = error
                return capi.error_new(b"interrupted")

        return cover_entry(look)

    def _late(self) -> DeadlineError:
        return DeadlineError(
            f"the guest ran longer than the {self._deadline} s that one call may take. "
            "Raise the deadline, or give the guest less to do."
        )

    def check(self) -> None:
        """Raise DeadlineError if the outermost call has run longer than it may."""
        if time.monotonic() >= self._calls.deadline_at:
            raise self._late()

    def time_left(self) -> float | None:
        """Seconds that the outermost call has left; None without a deadline."""
        return self._calls.time_left()

    def begin(self) -> None:
        """Start the time of the outermost call."""
        calls = self._calls
        calls.depth += 1
        if calls.depth == 1:
            if self._deadline is not None:
                calls.deadline_at = time.monotonic() + self._deadline
            capi.context_set_epoch_deadline(self._context, 1)

    def end(self) -> None:
        """End what `begin` started."""
        calls = self._calls
        calls.depth -= 1
        if calls.depth == 0:
            calls.deadline_at = float("inf")
            capi.context_set_epoch_deadline(self._context, NEVER)
