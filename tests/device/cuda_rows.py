"""Tapes over a model's weights and a session's cache, on a CUDA device that may be emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.device.cuda import CudaDevice
from nocopy.device.protocol import Pages
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder, Tensor, blocks, validate
from tests.device.cuda_tapes import PAGE, host_pages
from tests.device.values import normal

SIZES = {
    Space.GUEST: 256 * PAGE,
    Space.WEIGHTS: 1024 * PAGE,
    Space.SCRATCH: 1024 * PAGE,
    Space.KV: 512 * PAGE,
}
Array = npt.NDArray[Any]


class Place:
    """Room in every space, a tape, and a device that plays it."""

    def __init__(self, device: CudaDevice) -> None:
        self.device, self.tape = device, TapeBuilder()
        self.bytes = {space: host_pages(size) for space, size in SIZES.items()}
        self._tops = dict.fromkeys(SIZES, 0)

    def room(self, *shape: int, dtype: DType = DType.F32, space: Space = Space.SCRATCH) -> Tensor:
        """Bytes that nothing else has, from a multiple of 64 on."""
        at = self._tops[space]
        nbytes = int(np.prod(shape)) // dtype.block * dtype.itemsize
        self._tops[space] = at + -(-nbytes // 64) * 64
        assert self._tops[space] <= SIZES[space]
        return Tensor(space, at, shape, dtype)

    def array(self, t: Tensor) -> Array:
        """The elements of a tensor without gaps, in place; the blocks of one that has blocks."""
        dtype = blocks.LAYOUTS[t.dtype] if t.dtype.block > 1 else t.dtype.numpy
        raw = self.bytes[Space(t.space)][t.offset :]
        count = int(np.prod(t.shape)) // t.dtype.block
        shape = (*t.shape[:-1], t.shape[-1] // t.dtype.block)
        return raw[: count * t.dtype.itemsize].view(dtype).reshape(shape)

    def values(self, t: Tensor) -> npt.NDArray[np.float64]:
        """The same decoded, in float64."""
        found = self.array(t)
        return (blocks.decode(found, t.dtype) if t.dtype.block > 1 else found).astype(np.float64)

    def put(self, values: Any, dtype: DType = DType.F32, space: Space = Space.SCRATCH) -> Tensor:
        values = np.asarray(values)
        tensor = self.room(*values.shape, dtype=dtype, space=space)
        self.array(tensor)[...] = values.astype(dtype.numpy)
        return tensor

    def random(
        self,
        *shape: int,
        dtype: DType = DType.F32,
        space: Space = Space.SCRATCH,
        seed: int = 1,
        scale: float = 1,
    ) -> Tensor:
        """Normal values, or random blocks of ordinary scales."""
        if dtype.block == 1:
            return self.put(normal(seed, *shape, scale=scale), dtype, space)
        tensor, rng = self.room(*shape, dtype=dtype, space=space), np.random.default_rng(seed)
        found = self.array(tensor)
        found.view(np.uint8)[...] = rng.integers(
            0, 256, (*found.shape[:-1], found.shape[-1] * found.itemsize)
        )
        for field in {"d", "dmin"} & set(found.dtype.fields or ()):
            found[field] = rng.normal(0, 0.02 * scale, found.shape)
        return tensor

    def weight(self, n: int, k: int, dtype: DType, seed: int = 2) -> Tensor:
        scale = 0.1 if dtype.block == 1 else 0.07  # a deviation of 0.1 either way, for q8_0
        return self.random(n, k, dtype=dtype, space=Space.WEIGHTS, seed=seed, scale=scale)

    def play(self) -> None:
        """Play what was recorded, and begin anew."""
        tape = validate(bytes(self.tape), SIZES)
        pages: dict[Space, Pages] = {}
        for space, b in self.bytes.items():
            if space is Space.WEIGHTS:
                pages[space], _ = self.device.place([(b.ctypes.data, len(b))])
            else:
                pages[space] = self.device.share(b.ctypes.data, len(b))
        program = self.device.compile(tape, pages)
        try:
            self.device.play(program)
        finally:
            program.close()
            for p in pages.values():
                p.close()
        self.tape = TapeBuilder()
