"""Attention of many rows over a session's cache, on tensor cores: which kernel takes it.

`attention_tensor.cu` multiplies by warps, `attention_group.cu` by warpgroups, with more rows a block. Where
there are too few of those blocks for the GPU the first is taken, and where there are too few of its own none:
attention.cu shares out tokens too, so that all multiprocessors have work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nocopy.device.cuda_launch import ASKING_PRODUCTS, Fields, Launch, Shape, bases_of
from nocopy.memory.dtype import BLOCKS, DType
from nocopy.tape.record import Space

HEADS = (64, 128)
"""Elements of a head that kernels are made for; the next larger takes what is between."""
CACHES = (DType.F16, DType.BF16, DType.Q8_0)
TILE_TOKENS = 64
"""Tokens that a block takes at a time."""
MOST_TOKENS = 2**31 - TILE_TOKENS
"""That kernels count."""
SHARE, GROUP_SHARE = 0.25, 0.5
"""Blocks a multiprocessor from which on each kernel is worth it."""
GROUP_THREADS, GROUP_ROWS = 128, 64
"""Of a warpgroup."""


@dataclass(frozen=True)
class Kernel:
    """A kernel for heads of one size: the rows and threads of a block, its shared memory, and how many blocks
    a multiprocessor it needs.
    """

    source: str
    rows: int
    threads: int
    shared: int
    share: float


def attend(
    fields: Fields, addresses: Mapping[Space, int], multiprocessors: int, stop: int, *, groups: bool
) -> Launch | None:
    """The launch of an attention of many rows; None if tensor cores do not take it.

    Args:
        fields: the record.
        addresses: the device address of each space.
        multiprocessors: of the GPU.
        stop: device address of the word that asks long kernels to stop; 0 for none.
        groups: whether warpgroups multiply.
    """
    d, dtype, n = fields.named, fields.dtype(2), fields.named["n"]
    spaces = {fields.operands[slot][2] for slot in (2, 3)}
    cached = spaces == {Space.KV} and dtype in CACHES and dtype is fields.dtype(3) and d["t"] < MOST_TOKENS
    read = dtype in BLOCKS or (fields.words(2) and fields.words(3))
    heads = n <= max(HEADS) and n % 8 == 0 and fields.strides[0][2] == fields.strides[1][2] == 1
    rows = fields.dtype(1) is DType.F32 and fields.words(1)
    written = fields.dtype(0) is DType.F32 or fields.words(0)
    if not (cached and read and heads and rows and written):
        return None
    head = min(h for h in HEADS if n <= h)
    kernels = [_by_groups(head)] if groups and dtype not in BLOCKS else []
    for kernel in (*kernels, _by_warps(head)):
        jobs = -(-d["r"] // kernel.rows) * d["h"]
        if jobs >= kernel.share * multiprocessors:
            name = f"{kernel.source}_{head}_{dtype.name.lower()}"
            shape = Shape(kernel.source, name, jobs, (kernel.threads, 1))
            asked = stop if fields.op.work(d) >= ASKING_PRODUCTS else 0
            return Launch(shape, fields.pack(), bases_of(addresses), asked, kernel.shared)
    return None


def _by_warps(head: int) -> Kernel:
    """Four warps; two tiles of keys and of values, and two words of each row."""
    rows = 128 if head == 64 else 64
    return Kernel("attention_tensor", rows, 128, 2 * _tile_bytes(head) + 8 * rows, SHARE)


def _by_groups(head: int) -> Kernel:
    """Three warpgroups with rows, or two, and one that brings keys and values. Four tiles, each with two
    barriers, and queries, from a multiple of 1024; two words of each row.
    """
    groups = 3 if head == 64 else 2
    rows = GROUP_ROWS * groups
    shared = 1024 + 4 * (_tile_bytes(head) + 16) + 2 * head * rows + 8 * rows
    return Kernel("attention_group", rows, GROUP_THREADS * (groups + 1), shared, GROUP_SHARE)


def _tile_bytes(head: int) -> int:
    """Of keys and values in 16 bits."""
    return 2 * TILE_TOKENS * head * 2
