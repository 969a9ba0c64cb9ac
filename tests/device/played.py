"""Plays one record on a device over spaces full of awkward numbers, and judges the result."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.device.protocol import Device, Pages
from nocopy.errors import TapeError
from nocopy.tape.record import Space
from nocopy.tape.validate import validate
from tests.tape.choices import Choices, one_of
from tests.tape.generator import SIZES
from tests.tape.truth import disagreement

WORK_LIMIT = 2**21
AWKWARD = np.array(
    [0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 1e-3, 3.14159, 100, -88.5, 1e10, -1e30, 3e38, 1e-30, 65504, 65520,
     2**31, -(2.0**31), 255.5, np.inf, -np.inf, np.nan, 1e-40, 16777217, 0.1, 7, 2, 3],
    np.float32,
)  # fmt: skip


def awkward_bytes(seed: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """Bytes that are ordinary numbers, special values or noise, as f32 and as halves of them."""
    rng = np.random.default_rng(seed)
    count = nbytes // 4
    numbers = rng.standard_normal(count).astype(np.float32)
    halves = rng.standard_normal(count * 2).astype(np.float16).view(np.uint32)
    noise = rng.integers(0, 2**32, count, np.uint32)
    special = AWKWARD[rng.integers(0, len(AWKWARD), count)].view(np.uint32)
    kind = rng.integers(0, 8, count)
    mixed = np.select([kind < 4, kind < 6, kind < 7], [numbers.view(np.uint32), halves, special], noise)
    return mixed.astype(np.uint32).view(np.uint8)


class Spaces:
    """Host pages for every space, shared with a device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.arrays: dict[Space, npt.NDArray[np.uint8]] = {}
        self.pages: dict[Space, Pages] = {}
        unit = 65536
        for space, nbytes in SIZES.items():
            size = -(-nbytes // unit) * unit
            owner = mmap.mmap(-1, size + unit)
            start = ctypes.addressof(ctypes.c_char.from_buffer(owner))
            skip = -start % unit
            self.arrays[space] = np.frombuffer(owner, np.uint8)[skip : skip + nbytes]
            self.pages[space] = device.share(start + skip, size)

    def close(self) -> None:
        for pages in self.pages.values():
            pages.close()

    def judge(self, record: Any, seed: int) -> str | None:
        """Play a record; what is wrong with the result, "" if nothing, None if it may not be played."""
        try:
            tape = validate(record.tobytes(), SIZES, work_limit=WORK_LIMIT)
        except TapeError:
            return None
        before = {space: awkward_bytes(seed + space, len(a)) for space, a in self.arrays.items()}
        for space, array in self.arrays.items():
            array[:] = before[space]
        program = self.device.compile(tape, self.pages)
        self.device.play(program)
        program.close()
        after = {space: a.copy() for space, a in self.arrays.items()}
        return disagreement(record, before, after) or stray_write(tape, before, after)


def stray_write(tape: Any, before: dict[Space, Any], after: dict[Space, Any]) -> str:
    """Where bytes changed that no output spans, or ""."""
    for space, old in before.items():
        changed = old != after[space]
        for extent in tape.extents[0]:
            if extent.written and extent.space == space:
                changed[extent.start : extent.stop] = False
        if changed.any():
            return f"byte {int(np.argmax(changed))} of space {space.name} changed; no output spans it"
    return ""


def random_record(choices: Choices) -> tuple[Any, int]:
    """A record and a seed for the bytes it is played on."""
    from tests.tape.generator import record

    return record(choices), one_of(choices, range(1000))
