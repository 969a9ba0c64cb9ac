"""Pages that a GPU reaches through several buffers.

Drivers limit the size of a buffer (4 GiB less 2 MiB is common, half of the memory on a Mac), so pages are
imported in chunks. The device addresses of two chunks need not follow each other; an operand that crosses
from one to the next gets a window: an import of its own, made when a program first needs it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from nocopy.device.protocol import Mode, check_range
from nocopy.errors import ClosedError, DeviceError
from nocopy.memory.ledger import Ledger


class Chunk(Protocol):
    """A buffer that a device made. `mapped` is the host address of memory that is not imported; else 0."""

    @property
    def device_address(self) -> int:
        """Address of the first byte as kernels see it."""
        ...

    @property
    def mapped(self) -> int:
        """See the class."""
        ...


class Maker(Protocol):
    """Makes chunks, of at most `limit` bytes each; imports start and end at multiples of `alignment`."""

    @property
    def limit(self) -> int:
        """Bytes of the largest chunk."""
        ...

    @property
    def alignment(self) -> int:
        """Bytes."""
        ...

    @property
    def product(self) -> str:
        """The hardware's name."""
        ...

    def make(self, address: int, nbytes: int) -> Chunk:
        """Import host pages, upload them, or allocate that many bytes.

        Raises:
            DeviceError: the driver refuses.
        """
        ...

    def destroy(self, chunk: Chunk) -> None:
        """Let go of a chunk."""
        ...


@dataclass(eq=False)
class ChunkedPages:
    """A range that kernels reach: chunks in order, and windows over their seams. See `Pages`.

    `imported` says whether the chunks hold what the host pages hold: are those pages, or were made from them.
    `generation` rises when device addresses change; programs compiled before are refused.
    """

    maker: Maker
    address: int
    nbytes: int
    mode: Mode
    imported: bool
    ledger: Ledger | None = None
    forget: Callable[[ChunkedPages], None] = lambda _: None
    generation: int = field(default=0, init=False)
    closed: bool = field(default=False, init=False)
    chunks: list[Chunk] = field(default_factory=list[Chunk], init=False)
    windows: dict[tuple[int, int], Chunk] = field(default_factory=dict[tuple[int, int], Chunk], init=False)

    def __post_init__(self) -> None:
        self.chunks = self._make_chunks(self.nbytes)

    @property
    def device_address(self) -> int:
        """Address of the first byte as kernels see it."""
        return self.chunks[0].device_address if self.chunks else 0

    def _make_chunks(self, nbytes: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        limit = self.maker.limit
        try:
            for start in range(0, nbytes, limit):
                chunk = self.maker.make(self.address + start, min(limit, nbytes - start))
                chunks.append(chunk)
        except DeviceError:
            self._destroy(chunks)
            raise
        return chunks

    def _destroy(self, buffers: list[Chunk]) -> None:
        for buffer in buffers:
            self.maker.destroy(buffer)

    def resolve(self, start: int, stop: int) -> int:
        """The device address of byte `start`, from which the bytes up to `stop` follow.

        Raises:
            ClosedError: the pages are closed.
            DeviceError: no single buffer can hold them.
        """
        if self.closed:
            raise ClosedError("compiling a tape was asked for; its pages are closed")
        limit = self.maker.limit
        chunk = start // limit
        if stop <= (chunk + 1) * limit or self._contiguous():
            return self.chunks[chunk].device_address + start % limit
        alignment = self.maker.alignment
        low, high = start // alignment * alignment, -(-stop // alignment) * alignment
        if high - low > limit or not self.imported:
            raise DeviceError(
                f"an operand over bytes {start} to {stop} was asked for; {self.maker.product} reaches at most"
                f" {limit} bytes at once"
                + ("" if self.imported else f", and here none across a multiple of {limit}")
                + "; use smaller tensors"
            )
        if (low, high) not in self.windows:
            self.windows[low, high] = self.maker.make(self.address + low, high - low)
        return self.windows[low, high].device_address + start - low

    def _contiguous(self) -> bool:
        """True if chunks follow each other in the device's addresses, as the host's own addresses do."""
        first, limit = self.device_address, self.maker.limit
        return all(c.device_address == first + i * limit for i, c in enumerate(self.chunks))

    def buffers(self) -> list[Chunk]:
        """Every buffer over these pages."""
        return [*self.chunks, *self.windows.values()]

    def staged(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """For bytes [start, stop): pieces as (host address, address of the staged copy, size)."""
        limit = self.maker.limit
        pieces: list[tuple[int, int, int]] = []
        while start < stop:
            end = min(stop, (start // limit + 1) * limit)
            copy = self.chunks[start // limit].mapped + start % limit
            pieces.append((self.address + start, copy, end - start))
            start = end
        return pieces

    def grow(self, nbytes: int) -> None:
        """See `Pages.grow`: imports the whole range anew, then lets go of the old import."""
        if self.closed:
            raise ClosedError("growing was asked for; these pages are closed")
        check_range(self.address, nbytes, self.maker.alignment)
        if nbytes == self.nbytes:
            return
        before = [c.device_address for c in self.chunks]
        moved = bool(self.windows)
        self._replace(nbytes)
        moved |= before != [c.device_address for c in self.chunks[: len(before)]]
        self.generation += moved
        if self.ledger and self.imported:
            self.ledger.shared += nbytes - self.nbytes
        self.nbytes = nbytes

    def _replace(self, nbytes: int) -> None:
        """Make the chunks anew for `nbytes`. If that fails the old ones stay, or come back."""
        old, windows = self.chunks, list(self.windows.values())
        try:
            self.chunks = self._make_chunks(nbytes)
            self._destroy([*old, *windows])
        except DeviceError:
            if not self.imported:
                raise
            # A driver may refuse to import pages twice, so give the old import back and try once more.
            self._destroy([*old, *windows])
            self.chunks = []
            try:
                self.chunks = self._make_chunks(nbytes)
            except DeviceError:
                self.chunks = self._make_chunks(self.nbytes)
                self.windows = {}
                self.generation += 1
                raise
        self.windows = {}

    def close(self) -> None:
        """See `Pages.close`."""
        if self.closed:
            return
        self.closed = True
        self.forget(self)
        self._destroy(self.buffers())
        self.chunks, self.windows = [], {}


@dataclass(eq=False)
class JoinedPages:
    """Read-only ranges of host pages, one after the other in one space. See `Pages` and `Device.place`.

    Their device addresses need not follow each other, so an operand lies in one range.
    """

    parts: Sequence[ChunkedPages]
    forget: Callable[[JoinedPages], None] = lambda _: None
    closed: bool = field(default=False, init=False)
    generation: int = field(default=0, init=False)
    address: int = field(default=0, init=False)
    starts: list[int] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        *self.starts, self.nbytes = accumulate((part.nbytes for part in self.parts), initial=0)

    @property
    def device_address(self) -> int:
        """Address of the first range as kernels see it."""
        return self.parts[0].device_address

    @property
    def mode(self) -> Mode:
        """How the device reaches them."""
        return self.parts[0].mode

    def resolve(self, start: int, stop: int) -> int:
        """See `ChunkedPages.resolve`."""
        index = bisect_right(self.starts, start) - 1
        part, first = self.parts[index], self.starts[index]
        if stop - first > part.nbytes:
            raise DeviceError(
                f"an operand over bytes {start} to {stop} was asked for; it crosses from one placed range to"
                f" the next at byte {first + part.nbytes}"
            )
        return part.resolve(start - first, stop - first)

    def buffers(self) -> list[Chunk]:
        """Every buffer over these pages."""
        return [buffer for part in self.parts for buffer in part.buffers()]

    def grow(self, nbytes: int) -> None:
        """Refuse: what was placed keeps its size.

        Raises:
            DeviceError: always.
        """
        raise DeviceError(f"growing to {nbytes} bytes was asked for; placed ranges keep their size")

    def close(self) -> None:
        """See `Pages.close`."""
        if self.closed:
            return
        self.closed = True
        self.forget(self)
        for part in self.parts:
            part.close()


@dataclass
class Upload:
    """Counts what is copied into a device's memory."""

    ledger: Ledger | None
    progress: Callable[[int], None] | None
    done: int = 0

    def add(self, nbytes: int) -> None:
        """Count bytes, and tell of them while `progress` is there."""
        self.done += nbytes
        if self.ledger:
            self.ledger.uploaded += nbytes
        if self.progress:
            self.progress(self.done)


def join(
    maker: Maker, ranges: Sequence[tuple[int, int]], mode: Mode, forget: Callable[[JoinedPages], None]
) -> JoinedPages:
    """One space over ranges of host pages, (address, bytes) each, all made by the same maker.

    Raises:
        DeviceError: the maker cannot make one of them; those before are let go of.
    """
    parts: list[ChunkedPages] = []
    try:
        for address, nbytes in ranges:
            parts.append(ChunkedPages(maker, address, nbytes, mode, True))
    except DeviceError:
        for part in parts:
            part.close()
        raise
    return JoinedPages(parts, forget)
