"""What a fuzzer calls: bytes in, a hostile tape made of them, played between guard pages and canaries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nocopy.device.protocol import Device
from nocopy.errors import TapeError
from nocopy.tape import Space, validate
from nocopy.tape.record import RECORD_BYTES
from tests.device.arena import Arena
from tests.tape import generator
from tests.tape.choices import Choices, Consumed, chance

SHARED = {s: n for s, n in generator.SIZES.items() if s is not Space.SCRATCH}
WORK_LIMIT = 2**20
"""Elements or multiply-adds of one tape, so that each takes milliseconds at most."""
TIMEOUT = 20.0
"""Seconds; a tape within the work limit that takes longer is a bug."""
FRESH = 200
"""Tapes after which the memory is filled with new noise: results of results decay into NaN."""


def hostile(data: bytes) -> bytes:
    """A tape: mostly records that are nearly right, sometimes the bytes themselves."""
    choices = Consumed(data)
    if chance(choices, 16):
        body = data[1:]
        return body[: len(body) // RECORD_BYTES * RECORD_BYTES]
    return generator.tape(choices)


class Target:
    """A device in an arena.

    Args:
        device: plays what the validator accepts.
        note: called with a tape before it is played, so that it is known if the process dies.
    """

    def __init__(self, device: Device, note: Callable[[bytes], None] = lambda _tape: None) -> None:
        self.arena = Arena(device, SHARED, generator.SIZES[Space.SCRATCH])
        self._note = note
        self.executions = self.accepted = 0
        self.arena.scatter(0)

    def from_bytes(self, data: bytes) -> None:
        """Run the tape that a fuzzer's bytes stand for."""
        self.run(hostile(data))

    def from_choices(self, choices: Choices) -> None:
        """Run a tape drawn from choices."""
        self.run(generator.tape(choices))

    def run(self, raw: bytes) -> None:
        """Validate; if accepted, play and check every byte that no output owns.

        Raises:
            AssertionError: a byte outside the outputs has changed.
            nocopy.Error: the device failed; a tape that was accepted must play.
        """
        self.executions += 1
        try:
            tape = validate(raw, self.arena.sizes, work_limit=WORK_LIMIT)
        except TapeError:
            return
        self.accepted += 1
        if self.accepted % FRESH == 0:
            self.arena.scatter(self.accepted)
        before = self.arena.snapshot()
        self._note(raw)
        self.arena.play(tape, timeout=TIMEOUT)
        self.arena.assert_untouched(tape, before)

    def close(self) -> None:
        """Unmap the arena."""
        self.arena.close()


def noise(seed: int, size: int = 512) -> bytes:
    """Bytes for `from_bytes` where no fuzzer makes them."""
    return np.random.default_rng(seed).bytes(size)
