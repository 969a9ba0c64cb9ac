"""Host pages and small tapes for the tests of the CUDA device."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nocopy.memory.dtype import DType
from nocopy.tape import Space, Tape, TapeBuilder, Tensor

PAGE = mmap.PAGESIZE
Array = np.ndarray[Any, Any]


def host_pages(nbytes: int) -> Array:
    """Page-aligned zeros."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def tape_of(build: Callable[[TapeBuilder], None], sizes: Mapping[Space, int]) -> Tape:
    builder = TapeBuilder()
    build(builder)
    return builder.build(sizes)


def negation(n: int = 256, offset: int = 0) -> Tape:
    """Negates n f32 in place."""
    x = Tensor(Space.GUEST, offset, (n,), DType.F32)
    return tape_of(lambda b: b.unary("neg", x, x), {Space.GUEST: offset + 4 * n})


def tensor(offset: int, *shape: int, dtype: DType = DType.F32, strides: tuple[int, ...] = ()) -> Tensor:
    return Tensor(Space.GUEST, offset, shape, dtype, strides)
