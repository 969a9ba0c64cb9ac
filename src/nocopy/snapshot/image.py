"""A frozen guest that has no name: the pages of its memories in a file that nobody else can open.

Forks of a running guest map it copy-on-write, so that they share what none of them has written. It goes away
with the last of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Final, Self

from nocopy.errors import MemoryLimitError
from nocopy.memory.pages import map_file
from nocopy.snapshot.format import PAGE
from nocopy.snapshot.scan import bytes_at, nonzero_pages, runs
from nocopy.snapshot.write import Source

Ranges = list[tuple[int, int]]
MOST: Final = 16
"""Ranges that are mapped for one memory. A process has some 65,000 mappings for all of its guests."""


class Image:
    """Memories as they are now.

    Args:
        memories: nothing may write to them meanwhile.

    Raises:
        MemoryLimitError: there is no room for their pages.
    """

    def __init__(self, memories: Sequence[Source]) -> None:
        self._files: list[int] = []
        self._ranges: list[Ranges] = []
        try:
            for memory in memories:
                self._add(memory)
        except BaseException:
            self.close()
            raise

    def _add(self, memory: Source) -> None:
        ranges = [(a * PAGE, b * PAGE) for a, b in runs(nonzero_pages(memory.address, memory.size))]
        file = _nameless_file()
        self._files.append(file)
        try:
            os.ftruncate(file, memory.size)
            data = bytes_at(memory.address, memory.size).data
            for start, end in ranges:
                at = start
                while at < end:
                    at += os.pwrite(file, data[at:end], at)
        except OSError as error:
            raise MemoryLimitError(
                f"{memory.size} bytes of a memory were to be shared; the system says: {error.strerror}"
            ) from error
        self._ranges.append(_joined(ranges))

    def place(self, index: int, address: int) -> Ranges:
        """Map a memory's pages copy-on-write over a fresh range; returns the ranges [start, end) of them."""
        for start, end in self._ranges[index]:
            map_file(self._files[index], start, address + start, end - start)
        return list(self._ranges[index])

    def close(self) -> None:
        """Let go of the file; what is mapped stays. Twice is allowed."""
        while self._files:
            os.close(self._files.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nocopy", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _joined(ranges: Ranges) -> Ranges:
    """The same bytes in few enough ranges to map; the smallest gaps go in: the file is zero there too."""
    if len(ranges) <= MOST:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda i: ranges[i][0] - ranges[i - 1][1])
    kept = sorted(gaps[len(gaps) - MOST + 1 :])
    starts, ends = [0, *kept], [*kept, len(ranges)]
    return [(ranges[a][0], ranges[b - 1][1]) for a, b in zip(starts, ends, strict=True)]
