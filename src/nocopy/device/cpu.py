"""The cpu device: one C call plays a tape on a team of threads, with the widest vectors the machine has."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nocopy import native
from nocopy.device.protocol import DeviceInfo, Mode, OnDemand, Pages, Program, check_range, check_spaces
from nocopy.device.reference import HostPages, span
from nocopy.errors import ClosedError, DeadlineError, DeviceError, UsageError
from nocopy.memory.ledger import Ledger
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

MAX_THREADS = 256
_NO_TIMEOUT = -1.0


class CpuProgram:
    """A tape with the base addresses that it plays over."""

    def __init__(self, tape: Tape, spaces: Mapping[Space, HostPages]) -> None:
        self.tape = tape
        self.bases = native.Bases()
        self.pages = tuple(spaces.values())
        for space, pages in spaces.items():
            self.bases[space] = pages.address
        self.records = tape.address
        self.count = len(tape)
        self.base_pointer = ctypes.addressof(self.bases)
        self.closed = False

    def close(self) -> None:
        """Forget the spaces."""
        self.closed = True
        self.pages = ()


class CpuDevice:
    """Plays tapes with the native library. The calling thread takes part."""

    def __init__(self, threads: int, level: str | None) -> None:
        lib = native.library()
        names = native.levels()
        if level is not None and level not in names:
            raise UsageError(f"instruction-set level {level!r} was asked for; there are {', '.join(names)}")
        player = lib.nocopy_player_create(threads, level.encode() if level else None)
        if not player:
            raise DeviceError(
                f"a player with {threads} threads was asked for; the system refused the threads or"
                f" {threads} MiB of scratch memory. Ask for fewer: NOCOPY_THREADS=1"
            )
        self._play, self._expect = lib.nocopy_play, lib.nocopy_populate
        self._player: int | None = player
        self._finalizer = weakref.finalize(self, lib.nocopy_player_destroy, player)
        details = {"simd": level or names[-1], "threads": str(threads)}
        self._info = DeviceInfo("cpu", _product(), Mode.SAME_POINTER, 0, details)
        self._on_close: list[weakref.WeakMethod[Callable[[], None]]] = []

    @property
    def info(self) -> DeviceInfo:
        """What it is; `details` has `simd` (the instruction-set level) and `threads`."""
        return self._info

    @property
    def player(self) -> int:
        """The `nocopy_player*`, for the native side of guest calls. Valid until the device is closed.

        Raises:
            ClosedError: the device is closed.
        """
        self._check_open()
        assert self._player is not None
        return self._player

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
            raise DeviceError(f"allocating {nbytes} bytes was asked for; the system has less: {e}") from e
        return HostPages(ctypes.addressof(ctypes.c_char.from_buffer(owner)), nbytes, owner=owner)

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> None:
        """See `Device.near`: host pages are this device's own."""
        del address, nbytes, ledger

    def expect(self, ranges: Sequence[tuple[int, int, bool]]) -> None:
        """See `Device.expect`: threads of the team do it before they join what is played."""
        wanted = b"".join([native.RANGE.pack(*each) for each in ranges])
        self._expect(self.player, wanted, len(ranges))

    def room(self) -> None:
        """See `Device.room`: host pages are its own."""

    def place(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[HostPages, list[int]]:
        """See `Device.place`; nothing moves."""
        del progress
        self._check_open()
        return span(ranges, ledger)

    def compile(self, tape: Tape, spaces: Mapping[Space, Pages]) -> CpuProgram:
        """See `Device.compile`."""
        self._check_open()
        check_spaces(tape, spaces)
        mine = {space: pages for space, pages in spaces.items() if isinstance(pages, HostPages)}
        if len(mine) != len(spaces):
            raise UsageError("pages of another device were given; share them with this one first")
        if any(pages.closed for pages in mine.values()):
            raise ClosedError("compiling was asked for; pages that the tape would use are closed")
        return CpuProgram(tape, mine)

    def play(self, program: Program, *, timeout: float | None = None, then: Program | None = None) -> None:
        """See `Device.play`. It stops between chunks of a record, so within some milliseconds."""
        del then
        self._check_open()
        if not isinstance(program, CpuProgram) or program.closed:
            raise ClosedError("playing was asked for; the program is closed")
        for pages in program.pages:
            if pages.closed:
                raise ClosedError("playing was asked for; pages that the program uses are closed")
        limit = _NO_TIMEOUT if timeout is None else max(timeout, 0.0)
        status = self._play(self.player, program.records, program.count, program.base_pointer, limit)
        if status != native.OK:
            raise _failure(status, program.tape, timeout)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have a bound method called before the player goes away, unless its object has gone before.

        For native code that has the player's address.
        """
        self._on_close.append(weakref.WeakMethod(callback))

    def settle(self) -> None:
        """See `Device.settle`: nothing plays on here."""

    def close(self) -> None:
        """See `Device.close`."""
        callbacks, self._on_close = self._on_close, []
        for reference in callbacks:
            callback = reference()
            if callback is not None:
                callback()
        self._player = None
        self._finalizer()

    def _check_open(self) -> None:
        if self._player is None:
            raise ClosedError("the cpu device was used after it was closed; open it again")


def _failure(status: int, tape: Tape, timeout: float | None) -> Exception:
    if status == native.DEADLINE:
        return DeadlineError(
            f"a tape of {len(tape)} records ran longer than {timeout} s; give it more time or less work"
        )
    return DeviceError(f"the native library ended with status {status}; install nocopy again")


def default_threads() -> int:
    """`NOCOPY_THREADS`, else the cores that this process may use, at most 256.

    Raises:
        UsageError: `NOCOPY_THREADS` is not a number from 1 to 256.
    """
    asked = os.environ.get("NOCOPY_THREADS")
    if asked is None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux; macOS has none
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return min(cores, MAX_THREADS)
    if not asked.isdecimal() or not 1 <= int(asked) <= MAX_THREADS:
        raise UsageError(f"NOCOPY_THREADS is {asked!r}; it must be a number from 1 to {MAX_THREADS}")
    return int(asked)


def _product() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def open_device(
    *, allow_copy: bool = False, threads: int | None = None, level: str | None = None
) -> CpuDevice:
    """Open the cpu. It never needs to copy, so `allow_copy` changes nothing.

    Args:
        allow_copy: as every device has it.
        threads: threads that play, the caller's included; `default_threads()` when left out.
        level: instruction-set level, one of `native.levels()`; else `NOCOPY_SIMD`, else the best.

    Raises:
        DeviceUnavailableError: the native library is not there; the message says how to get it.
        UsageError: a number of threads or a level that does not exist.
    """
    del allow_copy
    count = default_threads() if threads is None else threads
    if not 1 <= count <= MAX_THREADS:
        raise UsageError(f"{count} threads were asked for; 1 to {MAX_THREADS} are possible")
    return CpuDevice(count, level or os.environ.get("NOCOPY_SIMD"))
