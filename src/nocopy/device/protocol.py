"""The whole contract of a device. Read `device/reference.py` next: it is the shortest one.

Ownership: the caller owns host pages and keeps them mapped until `Pages.close()` has returned. A device owns
what it allocates. Closing a device closes its pages and programs. Nothing here is thread-safe: one thread at
a time per device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from nocopy.errors import UsageError
from nocopy.memory.ledger import Ledger
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape


class Mode(StrEnum):
    """How a device reaches host pages."""

    SAME_POINTER = "same-pointer"  # the same pages at the same address
    MAPPED = "mapped"  # the same pages at another address
    STAGED = "staged"  # a copy before and after each play; refused unless copies are allowed


@dataclass(frozen=True)
class DeviceInfo:
    """What a device says of itself.

    `name` is what `--device` takes. `product` is the hardware's own name. `mode` is how it reaches host
    pages. `memory_bytes` is its own memory; 0 if it has none. `details` are facts worth printing (driver,
    instruction set, threads). `software` is true for a GPU interface that runs on the CPU. `pins` is true if
    imported pages are locked in memory, which ends their being shared copy-on-write. `rows` is how many rows
    of a long prompt a pass takes best. `follows` is true if it starts a program behind the one that plays.
    `few_shapes` is true if a few more rows cost less than compiling a pass for another number of them.
    """

    name: str
    product: str
    mode: Mode
    memory_bytes: int
    details: Mapping[str, str]
    software: bool = False
    pins: bool = False
    rows: int = 512
    follows: bool = False
    few_shapes: bool = False


@dataclass(frozen=True)
class OnDemand:
    """Import pages when a program that is compiled first needs them, and not before.

    For pages that are shared with others copy-on-write: a device that pins pages ends that.

    Args:
        own: called with the first byte and the end of a range before it is imported; makes its pages plain.
        moved: called when an import gave way to a larger one, so that programs must be compiled again.
    """

    own: Callable[[int, int], object]
    moved: Callable[[], None]


class Pages(Protocol):
    """A range of bytes that a device can reach: imported host pages, or memory of its own."""

    @property
    def address(self) -> int:
        """Host address of the first byte; 0 if the CPU cannot reach it."""
        ...

    @property
    def device_address(self) -> int:
        """Address of the first byte as kernels see it."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    @property
    def mode(self) -> Mode:
        """How the device reaches them."""
        ...

    def grow(self, nbytes: int) -> None:
        """Follow host pages that grew in place; `device_address` may change.

        Call it while nothing plays. Programs compiled before must be compiled again if `device_address`
        changed. Counts the new bytes as shared.

        Raises:
            DeviceError: the device cannot import that much; the old range stays imported.
        """
        ...

    def close(self) -> None:
        """Let go of the pages, after all that plays has ended. Closing twice is allowed."""
        ...


class Near(Pages, Protocol):
    """Memory of a device's own that stands in for a range of host pages until `flush`.

    Offsets are bytes from the start of the range. Nothing is copied by itself.
    """

    def flush(self, start: int, stop: int) -> None:
        """Copy bytes [start, stop) to the host pages; counts them as downloaded."""
        ...

    def reload(self, start: int, stop: int) -> None:
        """Copy bytes [start, stop) from the host pages; counts them as uploaded."""
        ...

    def copy(self, source: Near, nbytes: int, *, start: int = 0, to: int = 0) -> None:
        """Copy bytes from byte `start` of another range of the same device to byte `to`, without the host."""
        ...


class Program(Protocol):
    """A tape made ready for a device and its spaces. Keeps nothing alive."""

    @property
    def tape(self) -> Tape:
        """What it plays."""
        ...

    def close(self) -> None:
        """Free what it holds on the device. Closing twice is allowed."""
        ...


class Device(Protocol):
    """A thing that plays tapes."""

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        ...

    def share(
        self,
        address: int,
        nbytes: int,
        *,
        ledger: Ledger | None = None,
        on_demand: OnDemand | None = None,
    ) -> Pages:
        """Make host pages reachable without copying them.

        Args:
            address: start of the pages, a multiple of the host's page size.
            nbytes: size, a multiple of the host's page size; more than 0.
            ledger: counts the bytes as shared when they are imported, and as staged whenever they must be
                copied.
            on_demand: import only what programs need; ignored by a device that does not pin pages.

        Raises:
            UsageError: the address or size is not aligned, or the size is 0.
            CopyRefusedError: only a copy would do and the device was opened without allow_copy.
            DeviceError: the driver refuses.
            ClosedError: the device is closed.
        """
        ...

    def allocate(self, nbytes: int) -> Pages:
        """Allocate zero-filled memory that only kernels need to reach; `address` may be 0.

        Raises:
            DeviceError: there is not that much; the message names what was asked and what there is.
            ClosedError: the device is closed.
        """
        ...

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> Near | None:
        """Make memory for what kernels read again and again, such as a KV cache, beside the host's.

        Args:
            address: the host bytes that it stands in for; they stay mapped until it is closed.
            nbytes: their number.
            ledger: counts what is copied between them.

        Returns:
            The memory, zero-filled; None on a device for which host pages are as near as its own.

        Raises:
            DeviceError: there is not that much; the message names what was asked and what there is.
            ClosedError: the device is closed.
        """
        ...

    def expect(self, ranges: Sequence[tuple[int, int, bool]]) -> None:
        """Make host pages ready, while the caller goes on, that programs of this device will soon touch.

        A hint, for pages that were mapped from a file: without it, each is made ready when it is touched.

        Args:
            ranges: address and bytes of whole pages, and whether they will be written, in the order in which
                they will be needed.
        """
        ...

    def room(self) -> int | None:
        """Bytes of its own memory that weights, caches and scratch may still take; None if it cannot tell, or
        has none of its own.

        Raises:
            ClosedError: the device is closed.
        """
        ...

    def place(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Pages, list[int]]:
        """Make read-only host ranges, such as the mapped files of a model, one space for kernels.

        A device that shares memory with the CPU uses them where they lie; one that does not copies them once.

        Args:
            ranges: (address, size in bytes) of each; multiples of the page size; they stay mapped.
            ledger: counts the bytes as shared or as uploaded.
            progress: called with the bytes copied so far.

        Returns:
            The space, and the byte of it at which each range begins.

        Raises:
            DeviceError: there is too little memory; the message names both sizes.
        """
        ...

    def compile(self, tape: Tape, spaces: Mapping[Space, Pages]) -> Program:
        """Make a tape ready to play over these spaces.

        Raises:
            UsageError: a space that the tape uses is missing or smaller than the tape needs.
            DeviceError: the device cannot play it.
            ClosedError: the device or a space is closed.
        """
        ...

    def play(self, program: Program, *, timeout: float | None = None, then: Program | None = None) -> None:
        """Play a program to its end: when this returns, its results are visible to the CPU.

        Args:
            program: compiled by this device.
            timeout: seconds; None for the device's own limit: ten minutes on cuda, none on the others.
            then: what will be played next, and reads nothing that the host writes in between. A device that
                `follows` starts it right behind; it may write its results at any time from now on, until it
                was played, or `settle` was called. Others ignore it.

        Raises:
            DeadlineError: it took longer than `timeout` seconds (on devices that can stop).
            DeviceLostError: the device failed for good; host pages keep their contents.
            ClosedError: the device, the program or a space that it was compiled for is closed.
        """
        ...

    def settle(self) -> None:
        """Have nothing play on behind the last play: what was started with `then` is not wanted any more.

        Raises:
            DeviceLostError: it failed, or does not end.
        """
        ...

    def close(self) -> None:
        """Close pages, programs and the device. Closing twice is allowed."""
        ...


def check_range(address: int, nbytes: int, page: int) -> None:
    """Refuse a host range that no device could import.

    Raises:
        UsageError: not aligned to `page` bytes, or empty.
    """
    if nbytes <= 0 or address % page or nbytes % page:
        raise UsageError(
            f"sharing {nbytes} bytes at {address:#x} was asked for;"
            f" address and size must be multiples of the page size, {page}, and the size more than 0"
        )


def check_spaces(tape: Tape, spaces: Mapping[Space, Pages]) -> None:
    """Refuse spaces that are too small for a tape.

    Raises:
        UsageError: a space is missing or smaller than the tape needs.
    """
    for space, needed in tape.sizes.items():
        have = spaces[space].nbytes if space in spaces else 0
        if have < needed or space not in spaces:
            raise UsageError(f"the tape needs {needed} bytes of space {space.name.lower()}; {have} are there")
