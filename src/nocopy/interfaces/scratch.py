"""Scratch: memory that only kernels reach, allocated for a guest when a tape first needs it."""

from __future__ import annotations

from collections.abc import Callable

from nocopy.device.protocol import Device, Pages
from nocopy.errors import MemoryLimitError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.tape.builder import TapeBuilder
from nocopy.tape.record import Space, Tensor

STEP = 1 << 20
"""Bytes: sizes are multiples of this, so that small tapes do not each move the memory."""


class Scratch:
    """One guest's scratch memory. It is zero at first and keeps its contents when it grows.

    Args:
        device: that has it.
        limit: bytes that it may have.
    """

    def __init__(self, device: Device, limit: int) -> None:
        self._device, self.limit = device, limit
        self.pages: Pages | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that are there now."""
        return self.pages.nbytes if self.pages else 0

    def grow(self, nbytes: int) -> None:
        """Have at least `nbytes`, in other pages. Programs over the old ones must be closed before.

        Raises:
            MemoryLimitError: it would be more than the limit.
            DeviceError: the device does not have that much; what was there stays.
        """
        if nbytes > self.limit:
            raise MemoryLimitError(
                f"{nbytes} bytes of scratch were asked for; this guest may have {self.limit}."
                " Use less, or raise the limit."
            )
        larger = self._device.allocate(min(_round_up(max(nbytes, 2 * self.nbytes)), _round_up(self.limit)))
        if self.pages is not None:
            try:
                self._move(self.pages, larger)
            except BaseException:
                larger.close()
                raise
            self.pages.close()
        self.pages = larger

    def read(self, ledger: Ledger) -> LinearMemory | None:
        """A copy of it in a memory that the CPU reaches, the caller's to close; None if there is none.

        Raises:
            DeviceError: the device does not give it back.
        """
        if self.pages is None:
            return None
        memory = LinearMemory(self.nbytes, reserve=self.nbytes, guard=0)
        try:
            self._exchange(memory, lambda shared, own: self._move(own, shared))
        except BaseException:
            memory.close()
            raise
        if self._device.info.memory_bytes:
            ledger.downloaded += memory.size
        return memory

    def write(self, memory: LinearMemory, ledger: Ledger) -> None:
        """Have exactly what `read` gave. Errors as in `grow`."""
        self.grow(memory.size)
        self._exchange(memory, self._move)
        if self._device.info.memory_bytes:
            ledger.uploaded += memory.size

    def _exchange(self, memory: LinearMemory, move: Callable[[Pages, Pages], None]) -> None:
        assert self.pages is not None
        shared = self._device.share(memory.address, memory.size)
        try:
            move(shared, self.pages)
        finally:
            shared.close()

    def _move(self, old: Pages, new: Pages) -> None:
        """Copy what is in `old` to the start of `new`, on the device: the CPU may reach neither."""
        shape = (old.nbytes // STEP, STEP)
        tape = TapeBuilder()
        tape.copy(Tensor(Space.SCRATCH, 0, shape, DType.U8), Tensor(Space.WEIGHTS, 0, shape, DType.U8))
        spaces = {Space.SCRATCH: new, Space.WEIGHTS: old}
        program = self._device.compile(tape.build({s: p.nbytes for s, p in spaces.items()}), spaces)
        try:
            self._device.play(program)
        finally:
            program.close()

    def close(self) -> None:
        """Give it back to the device."""
        pages, self.pages = self.pages, None
        if pages is not None:
            pages.close()


def _round_up(nbytes: int) -> int:
    return -(-nbytes // STEP) * STEP
