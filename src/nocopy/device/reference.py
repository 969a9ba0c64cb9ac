"""The reference device: a Python loop over NumPy. Always there; the oracle; the one to read first."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.device.protocol import DeviceInfo, Mode, OnDemand, Pages, Program, check_range, check_spaces
from nocopy.errors import ClosedError, DeadlineError, DeviceError
from nocopy.memory.ledger import Ledger
from nocopy.tape import reference
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape


@dataclass
class HostPages:
    """Host pages: a pointer is all that the CPU needs. `owner` keeps allocated ones alive."""

    address: int
    nbytes: int
    ledger: Ledger | None = None
    owner: Any = None
    mode: Mode = Mode.SAME_POINTER
    closed: bool = field(default=False, init=False)

    @property
    def device_address(self) -> int:
        """The same as the host's."""
        return self.address

    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes as a writable array."""
        if self.closed:
            raise ClosedError("these pages were used after they were closed")
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.address))

    def grow(self, nbytes: int) -> None:
        """Follow the memory."""
        if self.ledger:
            self.ledger.shared += nbytes - self.nbytes
        self.nbytes = nbytes

    def close(self) -> None:
        """Forget the pages."""
        self.closed = True
        self.owner = None


@dataclass
class HostProgram:
    """A tape with its spaces."""

    tape: Tape
    spaces: Mapping[Space, HostPages]
    closed: bool = False

    def close(self) -> None:
        """Forget the tape's spaces."""
        self.closed = True


def span(ranges: Sequence[tuple[int, int]], ledger: Ledger | None) -> tuple[HostPages, list[int]]:
    """One space over all ranges, from the lowest address to the highest, and where each begins in it."""
    base = min(address for address, _ in ranges)
    end = max(address + nbytes for address, nbytes in ranges)
    if ledger:
        ledger.shared += sum(nbytes for _, nbytes in ranges)
    return HostPages(base, end - base, ledger), [address - base for address, _ in ranges]


class ReferenceDevice:
    """Plays tapes with `tape.reference`."""

    def __init__(self) -> None:
        self._closed = False

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return DeviceInfo("reference", f"NumPy {np.__version__}", Mode.SAME_POINTER, 0, {})

    def share(
        self,
        address: int,
        nbytes: int,
        *,
        ledger: Ledger | None = None,
        on_demand: OnDemand | None = None,
    ) -> HostPages:
        """See `Device.share`."""
        del on_demand
        self._check_open()
        check_range(address, nbytes, mmap.PAGESIZE)
        if ledger:
            ledger.shared += nbytes
        return HostPages(address, nbytes, ledger)

    def allocate(self, nbytes: int) -> HostPages:
        """See `Device.allocate`."""
        self._check_open()
        try:
            owner = mmap.mmap(-1, max(nbytes, 1))
        except (OSError, OverflowError) as e:
            raise DeviceError(f"{nbytes} bytes of memory were asked for; the system refused: {e}") from e
        return HostPages(ctypes.addressof(ctypes.c_char.from_buffer(owner)), nbytes, owner=owner)

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> None:
        """See `Device.near`: host pages are this device's own."""
        del address, nbytes, ledger

    def expect(self, ranges: Sequence[tuple[int, int, bool]]) -> None:
        """See `Device.expect`: it takes no hint."""

    def room(self) -> None:
        """See `Device.room`: host pages are its own."""

    def place(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[HostPages, list[int]]:
        """See `Device.place`: one space that begins at the lowest range and spans all; nothing moves."""
        del progress
        return span(ranges, ledger)

    def compile(self, tape: Tape, spaces: Mapping[Space, Pages]) -> HostProgram:
        """See `Device.compile`."""
        self._check_open()
        check_spaces(tape, spaces)
        held = {s: p for s, p in spaces.items() if isinstance(p, HostPages)}
        if any(pages.closed for pages in held.values()):
            raise ClosedError("compiling was asked for; a space's pages are closed")
        return HostProgram(tape, held)

    def play(self, program: Program, *, timeout: float | None = None, then: Program | None = None) -> None:
        """See `Device.play`. It stops between records."""
        del then
        self._check_open()
        if not isinstance(program, HostProgram) or program.closed:
            raise ClosedError("playing was asked for; the program is closed")
        spaces = {s: p.array() for s, p in program.spaces.items()}
        deadline = None if timeout is None else time.monotonic() + timeout
        for done, record in enumerate(program.tape.records):
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineError(
                    f"a tape of {len(program.tape)} records ran longer than {timeout} s; {done} were played"
                )
            reference.play_record(record, spaces)

    def settle(self) -> None:
        """See `Device.settle`: nothing plays on here."""

    def close(self) -> None:
        """See `Device.close`."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the reference device was used after it was closed; open it again")


def open_device(*, allow_copy: bool = False) -> ReferenceDevice:
    """Open it; it never needs to copy, so `allow_copy` changes nothing."""
    del allow_copy
    return ReferenceDevice()
