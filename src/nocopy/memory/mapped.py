"""Which host pages a GPU of this process has mapped with CUDA: the device writes it down, views look it up.

It is how a view knows what it may hand to CuPy or PyTorch while memory knows nothing of devices. What is
registered with CUDA is so for the whole process, and so is this table.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from dataclasses import dataclass


@dataclass(frozen=True)
class Mapping:
    """Host bytes [start, stop), and where kernels of GPU `number` see the first of them."""

    start: int
    stop: int
    device_address: int
    number: int = 0


_lock = threading.Lock()
_starts: list[int] = []
_mappings: dict[int, Mapping] = {}


def add(mapping: Mapping) -> None:
    """Write down pages that were registered; ranges do not overlap, because CUDA refuses that."""
    with _lock:
        if mapping.start not in _mappings:
            insort(_starts, mapping.start)
        _mappings[mapping.start] = mapping


def remove(start: int) -> None:
    """Forget the pages that begin at an address. Twice is allowed."""
    with _lock:
        if _mappings.pop(start, None) is not None:
            _starts.remove(start)


def find(start: int, stop: int) -> Mapping | None:
    """How kernels reach host bytes [start, stop); None unless all of them are mapped, one after the other.

    An empty range is one byte: what lies nowhere has no address.
    """
    stop = max(stop, start + 1)
    with _lock:
        at = bisect_right(_starts, start) - 1
        if at < 0:
            return None
        first = reached = _mappings[_starts[at]]
        while reached.stop < stop:
            following = _mappings.get(reached.stop)
            if following is None or following.number != first.number:
                return None
            if following.device_address - following.start != first.device_address - first.start:
                return None
            reached = following
        if start >= reached.stop:
            return None
        offset = first.device_address - first.start
        return Mapping(start, stop, start + offset, first.number)
