"""Where a device is put to the proof: guarded pages full of canaries, and a judge of what it did to them.

Every byte of the shared spaces is arbitrary before a play. Afterwards, the bytes that belong to an output
must be right (`tests/tape/truth.py`) and all others must be as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.device.protocol import Device, Pages
from nocopy.memory.dtype import DType
from nocopy.tape import RECORD, Space, Tape, TapeBuilder, Tensor, validate
from nocopy.tape.blocks import LAYOUTS
from nocopy.tape.ops import BY_CODE
from tests.device.region import PAGE, Region
from tests.tape import truth

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

SHARED = {Space.GUEST: 96 * 65536, Space.WEIGHTS: 65536, Space.KV: 65536}
"""Bytes of the spaces that an arena shares; multiples of any host's page size."""
SCRATCH = 1 << 20


class Arena:
    """A device with a guarded region for each shared space, and scratch space of the device's own."""

    def __init__(self, device: Device, sizes: Mapping[Space, int] = SHARED, scratch: int = SCRATCH) -> None:
        self.device = device
        self.regions = {space: Region(-(-n // PAGE) * PAGE) for space, n in sizes.items()}
        self.pages: dict[Space, Pages] = {
            space: device.share(region.address, region.nbytes) for space, region in self.regions.items()
        }
        self.sizes = {space: region.nbytes for space, region in self.regions.items()}
        if scratch:
            self.pages[Space.SCRATCH] = device.allocate(scratch)
            self.sizes[Space.SCRATCH] = scratch

    @property
    def bytes(self) -> dict[Space, Bytes]:
        """The shared bytes themselves."""
        return {space: region.bytes for space, region in self.regions.items()}

    def snapshot(self) -> dict[Space, Bytes]:
        """A copy of the shared bytes."""
        return {space: b.copy() for space, b in self.bytes.items()}

    def scatter(self, seed: int) -> None:
        """Fill the shared bytes with noise: the canaries."""
        rng = np.random.default_rng(seed)
        for b in self.bytes.values():
            b[:] = rng.integers(0, 256, len(b), np.uint8)

    def play(self, tape: Tape, *, timeout: float = 240) -> None:
        """Compile, play once, free the program. 240 s: a software GPU on a busy machine is slow."""
        program = self.device.compile(tape, self.pages)
        try:
            self.device.play(program, timeout=timeout)
        finally:
            program.close()

    def judge(self, raw: bytes) -> Tape:
        """Play records that do not feed one another and check every byte of every shared space."""
        tape = validate(raw, self.sizes)
        before = self.snapshot()
        self.play(tape)
        after = self.bytes
        for number, record in enumerate(tape.records):
            wrong = truth.disagreement(record, before, after)
            assert not wrong, f"{self.device.info.name}, record {number} of {len(tape)}: {wrong}"
        self.assert_untouched(tape, before)
        return tape

    def assert_untouched(self, tape: Tape, before: Mapping[Space, Bytes]) -> None:
        """Every byte that no output owns is as it was."""
        assert_untouched(self.device.info.name, tape, before, self.bytes)

    def close(self) -> None:
        """Let the device go of the pages, then unmap them."""
        for pages in self.pages.values():
            pages.close()
        for region in self.regions.values():
            region.close()


def assert_untouched(
    player: str, tape: Tape, before: Mapping[Space, Bytes], after: Mapping[Space, Bytes]
) -> None:
    """Fail if a byte that no output of the tape owns differs from before to after."""
    changed = {space: before[space] != b for space, b in after.items()}
    for record in tape.records:
        for slot, spec in enumerate(BY_CODE[int(record["opcode"])].operands):
            space = Space(int(record["operands"][slot]["space"]))
            if spec.out and space in changed:
                size = DType(int(record["operands"][slot]["dtype"])).itemsize
                for byte in range(size):
                    changed[space][truth.places(record, slot) + byte] = False
    for space, mask in changed.items():
        at = np.flatnonzero(mask)
        assert not len(at), (
            f"{player} changed {len(at)} bytes of {space.name.lower()} that no output owns,"
            f" the first at {at[0]}; records {[op.name for op in tape.ops()][:8]}"
        )


class Batch:
    """Places tensors in an arena, collects records over them, plays them all at once and judges each.

    Tensors lie apart from each other, at offsets that are aligned as their dtype asks and mostly to nothing
    more.
    """

    def __init__(self, arena: Arena, seed: int = 0) -> None:
        self.arena, self.tape = arena, TapeBuilder()
        self._free = dict.fromkeys(arena.regions, 0)
        self._placed = 0
        arena.scatter(seed)

    def room(
        self,
        shape: Sequence[int],
        dtype: DType = DType.F32,
        *,
        order: Sequence[int] | None = None,
        gap: int = 1,
        space: Space = Space.GUEST,
    ) -> Tensor:
        """Room for an output, full of noise.

        Args:
            shape: its shape.
            dtype: its element type.
            order: its axes from the slowest to the fastest in memory; row-major if left out.
            gap: elements from one to the next along the fastest axis.
            space: where it lies.
        """
        strides, step = [0] * len(shape), gap
        for axis in reversed(order if order is not None else range(len(shape))):
            strides[axis] = step
            step *= max(1, shape[axis])
        self._placed += 1
        size = dtype.alignment
        offset = -(-self._free[space] // size) * size + size * (self._placed * 5 % 8 + 1)
        self._free[space] = offset + -(-step // dtype.block) * dtype.itemsize
        assert self._free[space] <= self.arena.regions[space].nbytes, "the arena is full"
        return Tensor(space, offset, tuple(shape), dtype, tuple(strides))

    def put(self, values: Any, dtype: DType = DType.F32, **layout: Any) -> Tensor:
        """An input with these values; the layout as in `room`."""
        array = np.asarray(values)
        with np.errstate(all="ignore"):
            array = array.astype(dtype.numpy)
        tensor = self.room(array.shape, dtype, **layout)
        self.array(tensor)[...] = array
        return tensor

    def put_blocks(self, shape: Sequence[int], dtype: DType, seed: int, **layout: Any) -> Tensor:
        """An input of random blocks whose scales are ordinary numbers; the layout as in `room`.

        The blocks lie along the axis that is the fastest in memory.
        """
        tensor = self.room(shape, dtype, **layout)
        rng = np.random.default_rng(seed)
        blocks = np.frombuffer(
            rng.integers(0, 256, prod(shape) // dtype.block * dtype.itemsize, np.uint8).tobytes(),
            LAYOUTS[dtype],
        ).copy()
        for field in {"d", "dmin"} & set(LAYOUTS[dtype].fields or ()):
            blocks[field] = rng.normal(0, 0.02, len(blocks))
        memory = self.arena.regions[tensor.space].bytes
        memory[tensor.offset : tensor.offset + blocks.nbytes] = blocks.view(np.uint8)
        return tensor

    def array(self, tensor: Tensor) -> Array:
        """The tensor's elements in place."""
        return view(self.arena.regions[tensor.space].bytes, tensor)

    def judge(self) -> None:
        """Play what was recorded; every output and every other byte must be right."""
        if len(self.tape):
            self.arena.judge(bytes(self.tape))


def view(memory: Bytes, tensor: Tensor) -> Array:
    """A tensor's elements in the bytes of its space."""
    dtype = tensor.dtype.numpy
    strides = [s * dtype.itemsize for s in tensor.strides]
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    return np.ndarray(tensor.shape, dtype, memory, tensor.offset, strides)


def records(raw: bytes) -> Array:
    """Bytes as records that can be changed."""
    return np.frombuffer(bytearray(raw), RECORD)
