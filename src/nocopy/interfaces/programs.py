"""Accepted tapes, compiled, by their exact bytes: one that comes again is neither checked nor compiled."""

from __future__ import annotations

from collections import OrderedDict

from nocopy.device.protocol import Program

MAX_PROGRAMS = 64
MAX_BYTES = 16 << 20
"""Bytes of records whose programs are kept; a tape of 65536 records is 16 MiB."""


class Programs:
    """The programs of one guest that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Program] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, records: bytes) -> bool:
        return records in self._kept

    def get(self, records: bytes) -> Program | None:
        """The program of these records, if it is kept."""
        program = self._kept.get(records)
        if program is not None:
            self._kept.move_to_end(records)
        return program

    def add(self, records: bytes, program: Program) -> None:
        """Keep a program, and close those that were used longest ago to make room."""
        self._kept[records] = program
        self._bytes += len(records)
        while len(self._kept) > MAX_PROGRAMS or (self._bytes > MAX_BYTES and len(self._kept) > 1):
            oldest, old = self._kept.popitem(last=False)
            self._bytes -= len(oldest)
            old.close()

    def clear(self) -> None:
        """Close them all."""
        while self._kept:
            records, program = self._kept.popitem()
            self._bytes -= len(records)
            program.close()
