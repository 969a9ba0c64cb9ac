"""WASI's `poll_oneoff`, which is how a guest sleeps, in a form that a deadline and Ctrl-C can end.

Wasmtime's own sleeps in native code: no epoch interrupts it, and Python sees no signal. Here the wait
happens in Python and ends with the call's deadline. A file is always ready; standard input is ready when
this process's is, if it was granted.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from nocopy.errors import UsageError
from nocopy.memory.linear import LinearMemory
from nocopy.wasm.hostcall import HostFunction
from nocopy.wasm.limits import Clock

NAME: Final = "poll_oneoff"
SUCCESS, FAULT, INVALID = 0, 21, 28
"""`errno` values of WASI preview 1."""
MOST: Final = 1024
"""Subscriptions in one call."""
LONGEST: Final = 3600.0
"""Seconds of one wait; a longer one is several."""
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
_EVENT: Final = struct.Struct("<QHB5xQH6x")
_CLOCK, _ABSOLUTE = 0, 1
_CLOCKS: Final = {0: time.time_ns, 1: time.monotonic_ns}


class Subscription(NamedTuple):
    """One thing to wait for; `subscription` of the specification, with the clock's fields."""

    userdata: int
    kind: int
    target: int
    """The clock, or the file descriptor."""
    timeout: int
    precision: int
    flags: int

    def due(self, now: int) -> int | None:
        """When it is ready, by `time.monotonic_ns`; None for a clock that is not there."""
        if self.kind != _CLOCK:
            return now
        read = _CLOCKS.get(self.target)
        if read is None:
            return None
        return now + self.timeout - (read() if self.flags & _ABSOLUTE else 0)


def poll_oneoff(memory: Callable[[], LinearMemory], clock: Clock, *, stdin: bool) -> HostFunction:
    """Return the host function.

    Args:
        memory: gives the guest's memory.
        clock: the guest's, which says when its time is up.
        stdin: file descriptor 0 is this process's standard input.
    """

    def poll(subscriptions: int, events: int, count: int, ready_count: int) -> int:
        if not 0 < count <= MOST:
            return INVALID
        try:
            data = memory().read(subscriptions, count * _SUBSCRIPTION.size)
            memory().check(events, count * _EVENT.size)
            memory().check(ready_count, 4)
        except UsageError:
            return FAULT
        wanted = [Subscription(*fields) for fields in _SUBSCRIPTION.iter_unpack(data)]
        ready = _wait(wanted, clock, stdin=stdin)
        memory().write(events, b"".join(ready))
        memory().write(ready_count, struct.pack("<I", len(ready)))
        return SUCCESS

    return HostFunction(poll, ("u32",) * 4, ("i32",))


def _wait(wanted: list[Subscription], clock: Clock, *, stdin: bool) -> list[bytes]:
    """Wait until something is ready, and return the events.

    Raises:
        DeadlineError: the call's time is up first.
    """
    start = time.monotonic_ns()
    dues = [(each, each.due(start)) for each in wanted]
    waits_for_stdin = stdin and any(each.kind == 1 and each.target == 0 for each in wanted)
    first = min((due for each, due in dues if due is not None and not _is_stdin(each, stdin)), default=None)
    if any(due is None for _, due in dues):
        first = start
    typed = _sleep(first, clock, stdin=waits_for_stdin)
    now = time.monotonic_ns()
    events: list[bytes] = []
    for each, due in dues:
        if due is None:
            events.append(_EVENT.pack(each.userdata, INVALID, each.kind, 0, 0))
        elif typed if _is_stdin(each, stdin) else due <= now:
            events.append(_EVENT.pack(each.userdata, SUCCESS, each.kind, int(each.kind != _CLOCK), 0))
    return events


def _is_stdin(each: Subscription, stdin: bool) -> bool:
    return stdin and each.kind == 1 and each.target == 0


def _sleep(until: int | None, clock: Clock, *, stdin: bool) -> bool:
    """Wait until a time of `monotonic_ns`, or for standard input.

    Return whether that has something to read.
    """
    while True:
        clock.check()
        left = clock.time_left()
        rest = LONGEST if until is None else min((until - time.monotonic_ns()) / 1e9, LONGEST)
        span = max(rest if left is None else min(rest, left), 0.0)
        if stdin:
            if select.select([0], [], [], span)[0]:
                return True
        else:
            time.sleep(span)
        if until is not None and time.monotonic_ns() >= until:
            return False
