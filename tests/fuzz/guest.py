"""Hostile tapes from where they come from: a guest submits the bytes that lie in its own memory.

The guest hands every call on to the module `nocopy`, so the host says where it submits from and how much.
Its memory is the tape's data as well: a tape may overwrite the records that it was made of. A second guest on
the same device must not notice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nocopy.device.protocol import Device
from nocopy.errors import TapeError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.host import DeviceGuest
from nocopy.tape import Space, Tape, validate
from nocopy.tape.record import RECORD_BYTES
from nocopy.tape.validate import MAX_RECORDS
from tests.device.arena import assert_untouched
from tests.fuzz.target import FRESH, WORK_LIMIT
from tests.interfaces import passthrough
from tests.tape import generator
from tests.tape.choices import Choices, Consumed, chance, one_of

PAGE = 65536
START, MOST = 2, 6
"""Pages of the guest's memory: at first, and when it has grown."""
SCRATCH = generator.SIZES[Space.SCRATCH]
RECORDS = PAGE + 4096
"""Where records mostly lie: inside the memory that generated operands reach by mutation only."""


class GuestTarget:
    """Two guests on a device: one submits, the other must stay as it is.

    Args:
        device: plays what the validator accepts.
        note: called with a tape before it is submitted.
    """

    def __init__(self, device: Device, note: Callable[[bytes], None] = lambda _tape: None) -> None:
        limits = ComputeLimits(scratch=SCRATCH, work=WORK_LIMIT)
        source = passthrough.text(pages=START, maximum=MOST)
        self.guest = DeviceGuest(source, device=device, compute_limits=limits)
        self.bystander = DeviceGuest(source, device=device, compute_limits=limits)
        self._note, self._name = note, device.info.name
        self.executions = self.accepted = 0
        self.scatter(0)
        self._bystander_bytes = self.bystander.memory.read(0, self.bystander.memory.size)

    def scatter(self, seed: int) -> None:
        """Fill both memories with noise."""
        rng = np.random.default_rng(seed)
        self.guest.memory.write(0, rng.bytes(self.guest.memory.size))
        if not self.executions:
            self.bystander.memory.write(0, rng.bytes(self.bystander.memory.size))

    def from_bytes(self, data: bytes) -> None:
        """Run what a fuzzer's bytes stand for."""
        self.run(Consumed(data))

    def run(self, choices: Choices) -> None:
        """Write a tape into the guest, have it submitted once or twice, check every byte of both guests.

        Raises:
            AssertionError: an accepted tape was refused, a refused one played, or a byte changed that no
                output owns.
        """
        self.executions += 1
        if self.executions % FRESH == 0:
            self.scatter(self.executions)
        if chance(choices, 40) and self.guest.memory.size < MOST * PAGE:
            assert self.guest.call("grow", 1) >= 0
        size = self.guest.memory.size
        raw = generator.tape(choices, {Space.GUEST: PAGE, Space.SCRATCH: SCRATCH})
        at, count = one_of(choices, (RECORDS, RECORDS, RECORDS, 0, 4, 4097, 40_000)), len(raw) // RECORD_BYTES
        self.guest.memory.write(at, raw)
        if chance(choices, 12):
            at, count = self._somewhere(choices, at, count)
        accepted = False
        for _ in range(choices.integer(1, 2)):  # the second time, it may be found among those known
            accepted = self._submit(at, count, size)
        self.accepted += accepted
        untouched = self.bystander.memory.read(0, self.bystander.memory.size)
        assert untouched == self._bystander_bytes, f"{self._name} changed the memory of another guest"

    def _somewhere(self, choices: Choices, at: int, count: int) -> tuple[int, int]:
        """An address and a count that a guest should not use."""
        size = self.guest.memory.size
        addresses = (
            at,
            at + 1,
            size,
            size - 256,
            size - 255,
            size + 1,
            2**31 - 1,
            2**31,
            2**32 - 256,
            2**32 - 1,
        )
        counts = (count, count + 1, 0, MAX_RECORDS, MAX_RECORDS + 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
        return one_of(choices, addresses), one_of(choices, counts)

    def _submit(self, at: int, count: int, size: int) -> bool:
        """True if the tape was accepted; fails if it should not have been, or the other way round."""
        before = self.guest.memory.read(0, size)
        tape = self._verdict(before, at, count)
        if tape is not None:
            self._note(bytes(tape))
        code = self.guest.call("submit", at, count)
        assert (code == 0) == (tape is not None), (
            f"submit({at}, {count}) gave {code}; {self.guest.last_error}"
        )
        after = np.frombuffer(self.guest.memory.read(0, size), np.uint8)
        played = tape if tape is not None else validate(b"", {})
        # Scratch memory is the device's own; what happens there is seen once it is copied out.
        assert_untouched(
            self._name, played, {Space.GUEST: np.frombuffer(before, np.uint8)}, {Space.GUEST: after}
        )
        return tape is not None

    def _verdict(self, memory: bytes, at: int, count: int) -> Tape | None:
        end = at + count * RECORD_BYTES
        if count > MAX_RECORDS or end > len(memory):
            return None
        sizes = {Space.GUEST: len(memory), Space.SCRATCH: SCRATCH}
        try:
            return validate(memory[at:end], sizes, work_limit=WORK_LIMIT)
        except TapeError:
            return None

    def close(self) -> None:
        """Close both guests."""
        self.guest.close()
        self.bystander.close()
