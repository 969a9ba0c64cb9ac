"""A guest's memory on a device: the import, the scratch memory, the programs, and growth."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass

from nocopy.device.protocol import Device, OnDemand, Pages, Program
from nocopy.errors import Error, MemoryLimitError, UsageError
from nocopy.interfaces.grip import Grip
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.tape.record import Space
from nocopy.tape.validate import DEFAULT_WORK_LIMIT, Tape, validate


@dataclass(frozen=True)
class ComputeLimits:
    """What one guest may use of a device.

    Args:
        scratch: bytes of device-only memory.
        work: elements or multiply-adds that one submit, or one pass of a model, may cost; 2**40 take some
            seconds on a CPU. Prompts are fed in as many passes as that needs.
        models: handles of models that are open at once.
        sessions: sessions that are open at once.
        pinned: bytes of its memory that open sessions may lie in.
    """

    scratch: int = 1 << 30
    work: int = DEFAULT_WORK_LIMIT
    models: int = 8
    sessions: int = 64
    pinned: int = 1 << 36

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < 1 << 63:
                raise UsageError(f"{name}={value!r} was asked for; a limit is a number from 0 up")


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
        self.grip = Grip(device, memory, limits.scratch)
        self._on_refusal, self._on_move = on_refusal, on_move
        try:
            with self.grip.turn(None):
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

        def program() -> Program:
            return self.grip.programs.get(records) or self._compile(tape or self._validate(records))

        return self.grip.play(program, until)

    def _validate(self, records: bytes) -> Tape:
        sizes = {Space.GUEST: self.memory.size, Space.SCRATCH: self.limits.scratch}
        return validate(records, sizes, work_limit=self.limits.work)

    def _compile(self, tape: Tape) -> Program:
        grip = self.grip
        scratch = tape.sizes.get(Space.SCRATCH)
        if scratch is not None:
            scratch = max(scratch, 1)  # operands without elements name the space too
            if scratch > grip.scratch.nbytes:
                self._on_move()
                grip.programs.clear()
                grip.scratch.grow(scratch)
        spaces = {Space.GUEST: grip.pages, Space.SCRATCH: grip.scratch.pages}
        program = self.device.compile(tape, {s: p for s, p in spaces.items() if p is not None})
        grip.programs.add(bytes(tape), program)
        return program

    # Growing

    def check_growth(self, old: int, new: int) -> None:
        """Refuse growth while the device is at work on the memory."""
        if self.grip.playing:
            self._refuse(
                MemoryLimitError(
                    f"growing from {old} to {new} bytes was asked for while the device plays;"
                    " grow between submits"
                )
            )

    def follow(self, size: int) -> None:
        """Have the device follow the memory to a size."""
        try:
            with self.grip.turn(None):
                self._follow(size)
        except Error as error:
            self._refuse(error)

    def _refuse(self, error: Error) -> None:
        self._on_refusal(error)
        raise error

    def _follow(self, size: int) -> None:
        """Import exactly `size` bytes; drop the programs if the device sees them elsewhere now."""
        grip = self.grip
        old, before = grip.pages, grip.pages.device_address if grip.pages else None
        if grip.pages is None:
            grip.pages = self._share(size)
        elif size > grip.pages.nbytes:
            grip.pages.grow(size)
        elif size < grip.pages.nbytes:  # somebody who was asked after us refused the growth
            grip.pages.close()
            grip.pages = self._share(size)
        if grip.pages is not old or before != (grip.pages.device_address if grip.pages else None):
            grip.moved()

    def _share(self, size: int) -> Pages | None:
        if not size:
            return None
        if not self.memory.borrowed:
            return self.device.share(self.memory.address, size, ledger=self.ledger)
        on_demand = OnDemand(self.memory.own, self.grip.moved)
        return self.device.share(self.memory.address, size, ledger=self.ledger, on_demand=on_demand)

    # Ending

    def close(self) -> None:
        """Give everything back to the device and let go of the memory. Closing again does nothing.

        Raises:
            DeviceError: the device did not let go; the pages stay mapped until the process ends.
        """
        self._stop_following()
        self._finalizer.detach()
        self.grip.close()

    def leave(self) -> None:
        """Let go of a device that may be lost; the memory goes on with another."""
        self._stop_following()
        self._finalizer.detach()
        self.grip.leave()


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
