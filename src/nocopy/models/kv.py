"""The KV cache's layout: token-major, the same on every device: what one wrote, every other can read.

    token t, layer l, half h (0 keys, 1 values), group g, element i
    element index = ((t * layers + l) * 2 + h) * groups * head + g * head + i

Elements are f32, f16, bf16 or Q8_0 blocks (32 elements in 34 bytes, along the head). Token-major, because one
more token then dirties the fewest pages: what a snapshot has to write is what was added.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.models.config import Config
from nocopy.tape import Space, Tensor

CACHE_TYPES = (DType.F16, DType.Q8_0, DType.F32, DType.BF16)


@dataclass(frozen=True)
class Cache:
    """Where one sequence's keys and values lie: `capacity` tokens from byte `offset` of `space`."""

    config: Config
    space: Space
    offset: int
    capacity: int
    dtype: DType

    def __post_init__(self) -> None:
        if self.dtype not in CACHE_TYPES or self.config.head % self.dtype.block:
            raise UsageError(
                f"a KV cache of {self.dtype.name.lower()} with heads of {self.config.head} elements was asked"
                " for; use f16, or q8_0 where the head is a multiple of 32"
            )

    @property
    def token_elements(self) -> int:
        """Elements that one token takes, over all layers."""
        return self.config.layers * 2 * self.config.kv_width

    @cached_property
    def token_bytes(self) -> int:
        """Bytes that one token takes, over all layers."""
        return self.token_elements // self.dtype.block * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return self.capacity * self.token_bytes

    def rows(self, layer: int, half: int) -> Tensor:
        """Keys (half 0) or values (half 1) of a layer: [capacity, groups * head]."""
        width = self.config.kv_width
        skip = (layer * 2 + half) * width // self.dtype.block * self.dtype.itemsize
        return Tensor(
            self.space, self.offset + skip, (self.capacity, width), self.dtype, (self.token_elements, 1)
        )

    def keys(self, layer: int) -> Tensor:
        """[capacity, groups, head]."""
        return self._grouped(self.rows(layer, 0))

    def values(self, layer: int) -> Tensor:
        """[capacity, groups, head]."""
        return self._grouped(self.rows(layer, 1))

    def _grouped(self, rows: Tensor) -> Tensor:
        shape = (self.capacity, self.config.groups, self.config.head)
        return Tensor(rows.space, rows.offset, shape, rows.dtype, (rows.strides[0], self.config.head, 1))
