"""Where a session's bytes lie: one region of a linear memory, laid out the same on every device.

    tokens       i32 [chunk]          what one pass reads: token ids,
    positions    i32 [chunk]          and where they stand in the sequence
    frequencies  f32 [pairs]          rotary frequencies, global layers
    local        f32 [pairs]          the same for local layers, if the model has them
    logits       f32 [vocabulary]     of the last token, after each pass
    choice       f32 [3]              how to draw a token from logits: `options` of the op sample
    penalties    f32 [4]              what recent tokens cost: `options` of the op penalize
    draws        i32 [2, 5]           top_k, seed and number of the draw: `state` of the op sample; a row
                                      for each of two plays that follow each other
    cache        `models/kv.py`       keys and values, token-major, on a multiple of 64 KiB, or of 2 MiB

Each part begins on a multiple of 64 bytes. What each pass writes anew is apart from the cache, so that a
session that was thawed shares the cache's pages and has the others for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.models.config import Config, Rope
from nocopy.models.graph import Batch
from nocopy.models.kv import Cache
from nocopy.tape import Space, Tensor
from nocopy.tape.ops import CHOICE, DRAW, PENALTIES

ALIGNMENT = 64
PAGE = 65536
"""A WebAssembly page: the cache starts on one, so that a snapshot's pages are cache or not."""


@dataclass(frozen=True)
class Region:
    """The layout of one session from byte `offset` of the guest space.

    `boundary` is what the cache begins on a multiple of: 64 KiB, or 2 MiB for a larger cache in a memory of
    its own, which can then be mapped from a file in pieces of 2 MiB.

    `near` says that the device keeps the cache in memory of its own, which kernels reach as `Space.KV`, from
    byte `near_at` on; its place in the region is then where it comes back to.
    """

    config: Config
    offset: int
    context: int
    chunk: int
    kv: DType
    boundary: int = PAGE
    near: bool = False
    near_at: int = 0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of all fields, a model's numbers among them: a region is a key of each pass."""
        return hash(
            (self.config, self.offset, self.context, self.chunk, self.kv, self.boundary, self.near_at)
        )

    def __post_init__(self) -> None:
        if self.offset % PAGE:
            raise UsageError(
                f"a session at byte {self.offset} was asked for; it must start on a multiple of {PAGE} bytes"
            )
        if not 0 < self.context <= self.config.context:
            raise UsageError(
                f"a context of {self.context} tokens was asked for; this model has 1 to {self.config.context}"
            )

    @cached_property
    def tokens(self) -> Tensor:
        """i32 [chunk]."""
        return Tensor(Space.GUEST, self.offset, (self.chunk,), DType.I32)

    @cached_property
    def positions(self) -> Tensor:
        """i32 [chunk]."""
        return self._after(self.tokens, self.chunk, DType.I32)

    @cached_property
    def frequencies(self) -> dict[Rope, Tensor]:
        """f32 [pairs] for each rotation that the model has."""
        found: dict[Rope, Tensor] = {}
        last = self.positions
        for rope in (self.config.rope, self.config.local_rope):
            if rope is not None and rope not in found:
                last = found[rope] = self._after(last, len(rope.frequencies), DType.F32)
        return found

    @cached_property
    def logits(self) -> Tensor:
        """f32 [vocabulary]."""
        last = [self.positions, *self.frequencies.values()][-1]
        return self._after(last, self.config.vocabulary, DType.F32)

    @cached_property
    def choice(self) -> Tensor:
        """f32 [1, 3]."""
        return row(self._after(self.logits, len(CHOICE), DType.F32))

    @cached_property
    def penalties(self) -> Tensor:
        """f32 [1, 4]."""
        return row(self._after(self.choice, len(PENALTIES), DType.F32))

    @cached_property
    def draws(self) -> tuple[Tensor, Tensor]:
        """i32 [1, 5] each."""
        first = self._after(self.penalties, len(DRAW), DType.I32)
        return row(first), row(replace(first, offset=_end(first)))

    @cached_property
    def home(self) -> int:
        """The byte of the memory at which the cache begins."""
        return _up(_end(self.draws[1]), self.boundary)

    @cached_property
    def cache(self) -> Cache:
        """Keys and values of `context` tokens, where kernels reach them."""
        space, offset = (Space.KV, self.near_at) if self.near else (Space.GUEST, self.home)
        return Cache(self.config, space, offset, self.context, self.kv)

    @cached_property
    def nbytes(self) -> int:
        """Size of the region: a multiple of 64 KiB."""
        return _up(self.home + self.cache.nbytes, PAGE) - self.offset

    def used(self, length: int) -> list[tuple[int, int]]:
        """The bytes that hold anything of a session of so many tokens: (first, one past the last)."""
        return [(self.offset, _end(self.draws[1])), (self.home, self.home + length * self.cache.token_bytes)]

    def batch(self, rows: int, first: int = 0) -> Batch:
        """A pass over `rows` of tokens and positions, from `first` on."""
        tokens, positions = (part(x, first, rows) for x in (self.tokens, self.positions))
        return Batch(tokens, positions, positions, self.frequencies, ((0, rows, self.cache),))

    def _after(self, previous: Tensor, count: int, dtype: DType) -> Tensor:
        return Tensor(Space.GUEST, _up(_end(previous), ALIGNMENT), (count,), dtype)


def part(x: Tensor, first: int, count: int) -> Tensor:
    """[count] of [n], from element `first` on."""
    return Tensor(x.space, x.offset + first * x.dtype.itemsize, (count,), x.dtype)


def row(x: Tensor) -> Tensor:
    """[n] seen as [1, n]."""
    return Tensor(x.space, x.offset, (1, *x.shape), x.dtype)


def _end(tensor: Tensor) -> int:
    return tensor.offset + tensor.shape[-1] * tensor.dtype.itemsize


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
