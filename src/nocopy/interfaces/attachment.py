"""A guest's memory on a device: the import, the scratch memory, the programs, and growth."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from nocopy.device.protocol import Device, Pages, Program
from nocopy.errors import (
    ClosedError,
    DeadlineError,
    DeviceLostError,
    Error,
    MemoryLimitError,
    UsageError,
)
from nocopy.interfaces.programs import Programs
from nocopy.interfaces.scratch import Scratch
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import Hold, LinearMemory
from nocopy.tape.record import Space
from nocopy.tape.validate import DEFAULT_WORK_LIMIT, Tape, validate

_locks: weakref.WeakKeyDictionary[Device, threading.Lock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


@dataclass(frozen=True)
class ComputeLimits:
    """What one guest may use of a device.

    Args:
        scratch: bytes of device-only memory.
        work: elements or multiply-adds that one submit may cost; 2**40 take some seconds on a CPU.
    """

    scratch: int = 1 << 30
    work: int = DEFAULT_WORK_LIMIT

    def __post_init__(self) -> None:
        for name in ("scratch", "work"):
            value = getattr(self, name)
            if not 0 <= value < 1 << 63:
                raise UsageError(f"{name}={value!r} was asked for; a limit is a number from 0 up")


class Grip:
    """What a guest has on a device, and the hold on its memory that goes with it.

    It refers to nobody who refers to it, so that a guest that is dropped without being closed can still be
    taken off its device before its pages are unmapped.
    """

    def __init__(self, device: Device, memory: LinearMemory, limits: ComputeLimits) -> None:
        self.name = device.info.name
        self.lock = _lock_of(device)
        self.scratch = Scratch(device, limits.scratch)
        self.programs = Programs()
        self.pages: Pages | None = None
        self.lost = self.closed = False
        self._hold: Hold = memory.hold(f"the {self.name} device")

    def close(self) -> None:
        """Give everything back to the device and let go of the memory."""
        with self.lock:
            self._let_go()

    def abandon(self) -> None:
        """Close, for the garbage collector, which may run while this very thread is on the device."""
        if self.lock.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self.lock.release()
        else:
            _abandoned.append(self)

    def _let_go(self) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            self.programs.clear()
            self.scratch.close()
            if self.pages is not None:
                self.pages.close()
        except BaseException:
            self._hold.leak()  # the device may still write there
            raise
        if self.lost:
            self._hold.leak()  # so may what was playing when it got lost
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


class Attachment:
    """One guest's memory, imported into one device.

    The device may be shared with other guests, on other threads too: they take turns. The memory stays held,
    and so cannot be closed, until `close()`.

    Args:
        device: borrowed; it must stay open until `close()`.
        memory: the guest's.
        limits: what the guest may use.
        ledger: counts the bytes.
        on_refusal: gets the reason when the memory was to grow and the device could not follow.
        on_move: called before the scratch memory moves to other pages.

    Raises:
        CopyRefusedError: the device could only copy and was opened without allow_copy.
        DeviceError: the device refuses the memory.
    """

    def __init__(
        self,
        device: Device,
        memory: LinearMemory,
        *,
        limits: ComputeLimits,
        ledger: Ledger,
        on_refusal: Callable[[Error], None] = lambda _error: None,
        on_move: Callable[[], None] = lambda: None,
    ) -> None:
        self.device, self.memory, self.limits, self.ledger = device, memory, limits, ledger
        self.grip = Grip(device, memory, limits)
        self._on_refusal, self._on_move = on_refusal, on_move
        self._playing = False
        try:
            with self._turn(None):
                self._follow(memory.size)
        except BaseException:
            self.grip.close()
            raise
        self._stop_following = memory.on_grow(Follower(self))
        self._finalizer = weakref.finalize(self, self.grip.abandon)
        self._finalizer.atexit = False  # the system takes everything back anyway, and a play may be under way

    @property
    def pages(self) -> Pages | None:
        """The import; None while the memory has no bytes."""
        return self.grip.pages

    # Playing

    def play(self, records: bytes, *, time_left: float | None = None) -> Program:
        """Check records that nobody else can change, and play them to their end.

        Args:
            records: whole records of 256 bytes.
            time_left: seconds until whoever asked must be done; None means no limit.

        Raises:
            TapeError: a record is refused; nothing was played.
            MemoryLimitError: they need more scratch than the guest may have.
            DeadlineError: there was not enough time.
            DeviceError: the device failed.
            ClosedError: this attachment or the device is closed.
        """
        until = None if time_left is None else time.monotonic() + time_left
        # Checking a long tape takes Python a second: not while others wait for the device.
        tape = None if records in self.grip.programs else self._validate(records)
        with self._turn(until):
            program = self.grip.programs.get(records) or self._compile(tape or self._validate(records))
            self._playing = True
            try:
                self.device.play(program, timeout=_rest(until))
            except DeviceLostError:
                self.grip.lost = True
                raise
            finally:
                self._playing = False
        return program

    def _validate(self, records: bytes) -> Tape:
        sizes = {Space.GUEST: self.memory.size, Space.SCRATCH: self.limits.scratch}
        return validate(records, sizes, work_limit=self.limits.work)

    def _compile(self, tape: Tape) -> Program:
        grip = self.grip
        if tape.sizes.get(Space.SCRATCH, 0) > grip.scratch.nbytes:
            self._on_move()
            grip.programs.clear()
            grip.scratch.grow(tape.sizes[Space.SCRATCH])
        spaces = {Space.GUEST: grip.pages, Space.SCRATCH: grip.scratch.pages}
        program = self.device.compile(tape, {s: p for s, p in spaces.items() if p is not None})
        grip.programs.add(bytes(tape), program)
        return program

    @contextmanager
    def _turn(self, until: float | None) -> Generator[None]:
        """Wait for the device, at most until a time."""
        rest = _rest(until)
        if not self.grip.lock.acquire(timeout=-1 if rest is None else min(rest, threading.TIMEOUT_MAX)):
            raise DeadlineError(
                "a submit waited for the device until the deadline; other guests were using it"
            )
        try:
            if self.grip.closed:
                raise ClosedError("the device was asked for; the guest is detached from it")
            yield
        finally:
            self.grip.lock.release()
            if _abandoned:
                _close_abandoned()

    # Growing

    def check_growth(self, old: int, new: int) -> None:
        """Refuse growth while the device is at work on the memory."""
        if self._playing:
            self._refuse(
                MemoryLimitError(
                    f"growing from {old} to {new} bytes was asked for while the device plays;"
                    " grow between submits"
                )
            )

    def follow(self, size: int) -> None:
        """Have the device follow the memory to a size."""
        try:
            with self._turn(None):
                self._follow(size)
        except Error as error:
            self._refuse(error)

    def _refuse(self, error: Error) -> None:
        self._on_refusal(error)
        raise error

    def _follow(self, size: int) -> None:
        """Import exactly `size` bytes; drop the programs if the device sees them elsewhere now."""
        grip = self.grip
        before = grip.pages.device_address if grip.pages else None
        if grip.pages is None:
            grip.pages = self._share(size)
        elif size > grip.pages.nbytes:
            grip.pages.grow(size)
        elif size < grip.pages.nbytes:  # somebody who was asked after us refused the growth
            grip.pages.close()
            grip.pages = self._share(size)
        if before != (grip.pages.device_address if grip.pages else None):
            grip.programs.clear()

    def _share(self, size: int) -> Pages | None:
        return self.device.share(self.memory.address, size, ledger=self.ledger) if size else None

    # Ending

    def close(self) -> None:
        """Give everything back to the device and let go of the memory. Closing again does nothing.

        Raises:
            DeviceError: the device did not let go; the pages stay mapped until the process ends.
        """
        self._stop_following()
        self._finalizer.detach()
        self.grip.close()


class Follower:
    """Tells an attachment when its memory grows, without keeping it alive."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = weakref.ref(attachment)

    def before(self, old: int, new: int) -> None:
        """See `GrowthHook`."""
        attachment = self._attachment()
        if attachment is not None:
            attachment.check_growth(old, new)

    def after(self, size: int) -> None:
        """See `GrowthHook`."""
        attachment = self._attachment()
        if attachment is not None:
            attachment.follow(size)


def _lock_of(device: Device) -> threading.Lock:
    """The lock that all guests of a device share: a device serves one thread at a time."""
    with _locks_lock:
        return _locks.setdefault(device, threading.Lock())


def _rest(until: float | None) -> float | None:
    """Seconds left.

    Raises:
        DeadlineError: none.
    """
    if until is None:
        return None
    rest = until - time.monotonic()
    if rest <= 0:
        raise DeadlineError("a submit was asked for after the deadline. Raise the deadline, or submit less.")
    return rest
