"""A device that keeps caches in memory of its own, as a GPU does: it has only so much, and can get lost."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nocopy.device.protocol import Near, Program
from nocopy.device.reference import HostPages, ReferenceDevice
from nocopy.errors import DeviceError, DeviceLostError
from nocopy.memory.ledger import Ledger


@dataclass
class NearPages(HostPages):
    """Memory that stands in for host pages. See `Near`."""

    device: LosableDevice = field(kw_only=True)
    home: int = field(kw_only=True)

    def flush(self, start: int, stop: int) -> None:
        self._copy(self.home + start, self.address + start, stop - start)

    def reload(self, start: int, stop: int) -> None:
        self._copy(self.address + start, self.home + start, stop - start)

    def copy(self, source: Near, nbytes: int) -> None:
        self._copy(self.address, source.device_address, nbytes)

    def _copy(self, to: int, source: int, nbytes: int) -> None:
        self.device.check()
        ctypes.memmove(to, source, nbytes)

    def close(self) -> None:
        if not self.closed:
            self.device.held -= self.nbytes
        super().close()


class LosableDevice(ReferenceDevice):
    """`lose()` fills what it had with noise; the next use raises DeviceLostError, later ones ClosedError."""

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        super().__init__()
        self.memory_bytes, self.held, self.plays = memory_bytes, 0, 0
        self._own: list[HostPages] = []
        self._losing = False

    def check(self) -> None:
        if self._losing:
            self._losing = False
            self.close()
            raise DeviceLostError("a kernel failed: an illegal address was encountered")
        self._check_open()

    def lose(self) -> None:
        self._losing = True
        for pages in self._own:
            if not pages.closed:
                pages.array()[:] = 0xA5

    def room(self) -> int:  # type: ignore[override]
        return self.memory_bytes - self.held

    def allocate(self, nbytes: int) -> HostPages:
        self.check()
        pages = super().allocate(nbytes)
        self._own.append(pages)
        return pages

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> NearPages:  # type: ignore[override]
        if nbytes > self.room():
            raise DeviceError(f"{nbytes} bytes were asked for; {self.room()} are free")
        room = self.allocate(nbytes)
        self.held += nbytes
        pages = NearPages(room.address, nbytes, owner=room.owner, device=self, home=address)
        self._own.append(pages)
        return pages

    def place(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[HostPages, list[int]]:
        self.check()
        return super().place(ranges, ledger=ledger, progress=progress)

    def play(self, program: Program, *, timeout: float | None = None, then: Program | None = None) -> None:
        self.check()
        self.plays += 1
        super().play(program, timeout=timeout, then=then)
