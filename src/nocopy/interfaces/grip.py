"""What a guest has on a device, and its turns there: a device serves one guest at a time."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from nocopy.device.protocol import Device, Pages, Program
from nocopy.errors import ClosedError, DeadlineError, DeviceError, DeviceLostError
from nocopy.interfaces.programs import Programs
from nocopy.interfaces.scratch import Scratch
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import Hold, LinearMemory


class Turns:
    """What all guests of one device share; touch `shared` only while the lock is held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shared: dict[Any, Any] = {}


_turns: weakref.WeakKeyDictionary[Device, Turns] = weakref.WeakKeyDictionary()
_turns_lock = threading.Lock()


def turns_of(device: Device) -> Turns:
    """The turns of a device; the same object each time."""
    with _turns_lock:
        return _turns.setdefault(device, Turns())


class Dependent(Protocol):
    """Something that has compiled programs over the guest's memory, such as the guest's sessions.

    Called while the lock is held. It must not refer to the guest or its attachment.
    """

    def moved(self, pages: Pages | None) -> None:
        """Drop what was compiled: the device sees the memory as `pages` from now on."""
        ...

    def close(self) -> None:
        """Give everything back to the device."""
        ...


class Grip:
    """What a guest has on a device, and the hold on its memory that goes with it.

    It refers to nobody who refers to it, so that a guest that is dropped without being closed can still be
    taken off its device before its pages are unmapped.
    """

    def __init__(self, device: Device, memory: LinearMemory, scratch: int) -> None:
        self.device, self.name = device, device.info.name
        self.turns = turns_of(device)
        self.scratch = Scratch(device, scratch)
        self.programs = Programs()
        self.pages: Pages | None = None
        self.dependents: list[Dependent] = []
        self.lost = self.closed = self.playing = False
        self._hold: Hold = memory.hold(f"the {self.name} device")

    @contextmanager
    def turn(self, until: float | None) -> Generator[None]:
        """Wait for the device, at most until a time.

        Raises:
            DeadlineError: other guests were using it until then.
            ClosedError: the guest is detached.
        """
        self._begin(until)
        try:
            yield
        finally:
            self._end()

    def _begin(self, until: float | None) -> None:
        left = rest(until)
        if not self.turns.lock.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise DeadlineError(
                "a submit waited for the device until the deadline; other guests were using it"
            )
        if self.closed:
            self._end()
            raise ClosedError("the device was asked for; the guest is detached from it")

    def _end(self) -> None:
        self.turns.lock.release()
        if _abandoned:
            _close_abandoned()

    def play(
        self,
        make: Callable[[], Program],
        until: float | None,
        then: Callable[[], Program] | None = None,
    ) -> Program:
        """Wait for the device, make a program, and play it to its end.

        Args:
            make: compiles, or finds what was compiled before.
            until: when it must be done, by `time.monotonic()`.
            then: makes what the device may start behind it; the caller settles that before the guest goes on.

        Raises:
            DeadlineError: there was not enough time.
            DeviceError: the device failed.
            ClosedError: the guest is detached, or the device is closed.
        """
        self._begin(until)  # not `turn`: a context manager would cost every submit a microsecond
        try:
            program = make()
            self.playing = True
            behind = None if then is None else then()
            self.device.play(program, timeout=rest(until), then=behind)
        except DeviceLostError:
            self.lost = True
            raise
        finally:
            self.playing = False
            self._end()
        return program

    def read_scratch(self, ledger: Ledger) -> LinearMemory | None:
        """What is in the scratch memory; see `Scratch.read`."""
        with self.turn(None):
            return self.scratch.read(ledger)

    def write_scratch(self, memory: LinearMemory, ledger: Ledger) -> None:
        """Put back what was in the scratch memory; see `Scratch.write`."""
        with self.turn(None):
            self.scratch.write(memory, ledger)

    def moved(self) -> None:
        """Drop all programs: the device sees the memory elsewhere now."""
        self.programs.clear()
        for dependent in self.dependents:
            dependent.moved(self.pages)

    def close(self) -> None:
        """Give everything back to the device and let go of the memory."""
        with self.turns.lock:
            self._let_go()

    def abandon(self) -> None:
        """Close, for the garbage collector, which may run while this very thread is on the device."""
        if self.turns.lock.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self.turns.lock.release()
        else:
            _abandoned.append(self)

    def leave(self) -> None:
        """Close, while the memory goes on with another device; what this one may still write stays mapped."""
        with self.turns.lock, suppress(DeviceError):
            self._let_go(warn=False)

    def _let_go(self, *, warn: bool = True) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            for dependent in self.dependents:
                dependent.close()
            self.programs.clear()
            self.scratch.close()
            if self.pages is not None:
                self.pages.close()
        except BaseException:
            self._hold.leak()  # the device may still write there
            raise
        if self.lost:
            self._hold.leak()  # so may what was playing when it got lost
            if warn:
                warnings.warn(
                    f"the {self.name} device was lost while it played on a guest's memory, which stays mapped"
                    " until the process ends",
                    ResourceWarning,
                    stacklevel=2,
                )
        self._hold.release()


_abandoned: list[Grip] = []
"""Grips whose device was busy when the garbage collector found them; the next turn that ends closes them."""


def _close_abandoned() -> None:
    for _ in range(len(_abandoned)):
        _abandoned.pop(0).abandon()


def rest(until: float | None) -> float | None:
    """Seconds left.

    Raises:
        DeadlineError: none.
    """
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise DeadlineError("a submit was asked for after the deadline. Raise the deadline, or submit less.")
    return left
