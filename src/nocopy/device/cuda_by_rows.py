"""Launches of kernels/cuda/prefill.cu: what stands between products of many rows, in words of 16 bytes."""

from __future__ import annotations

from collections.abc import Mapping

from nocopy.device.cuda_launch import ASKING_WORK, BLOCKS_PER_SM, Fields, Launch, Plan, Shape, bases_of
from nocopy.device.cuda_many import FEWEST, Rows
from nocopy.memory.dtype import DType
from nocopy.tape.record import Space

WARP_NORM, NORM_WARPS, NORM_BLOCKS, MOST_PAIRS = 1024, 8, 4, 256
"""Elements of a row that a warp of `norm_rows` holds, warps of a block, and blocks of a multiprocessor; pairs
whose angles a block of `rope_rows` does."""


class ByRows:
    """Makes the launches.

    Args:
        addresses: the device address of each space.
        multiprocessors: of the GPU.
        stop: device address of the word that asks long kernels to stop; 0 for none.
    """

    def __init__(self, addresses: Mapping[Space, int], multiprocessors: int, stop: int) -> None:
        self._addresses, self._multiprocessors, self._stop = addresses, multiprocessors, stop

    def norm(self, fields: Fields, rows: Rows) -> Plan:
        """As many warps as hold a row take it, or more while the GPU has room for them."""
        warps = 1 << (-(-rows.k // WARP_NORM) - 1).bit_length()
        while warps < NORM_WARPS and 2 * warps * rows.m <= NORM_WARPS * NORM_BLOCKS * self._multiprocessors:
            warps *= 2
        return self.launch(fields, "norm_rows", -(-rows.m * warps // NORM_WARPS), warps)

    def launch(self, fields: Fields, kernel: str, blocks: int, splits: int = 1) -> Plan:
        """A launch of kernels/cuda/prefill.cu."""
        most = BLOCKS_PER_SM * self._multiprocessors
        shape = Shape("prefill", kernel, min(blocks, most), (256, 1), splits)
        stop = self._stop if fields.op.work(fields.named) >= ASKING_WORK else 0
        return Plan((Launch(shape, fields.pack(), bases_of(self._addresses), stop),))


def whole_words(fields: Fields) -> bool:
    """True if kernels can read a norm's or a gate's f32 inputs in 16-byte words."""
    if fields.op.name == "glu":
        return all(fields.dtype(s) is DType.F32 and fields.words(s) for s in (1, 2))
    weight = fields.dtype(2) is DType.NONE or (fields.dtype(2) is DType.F32 and fields.words(2))
    held = fields.dtype(1) is DType.F32 and fields.words(1) and fields.named["n"] <= NORM_WARPS * WARP_NORM
    return weight and held


def picks(fields: Fields) -> bool:
    """True if rows of floats are looked up, in 16-byte words."""
    plain = fields.dtype(0) is DType.F32 and all(fields.words(s) for s in (0, 1))
    return fields.named["r"] > FEWEST and plain and fields.named["w"] % 8 == 0


def turns(fields: Fields) -> bool:
    """True if a rotation is one of whole heads, in 16-byte words."""
    d = fields.named
    whole = 2 * d["f"] == d["n"] and 0 < d["f"] <= MOST_PAIRS and d["f"] % 4 == 0
    plain = all(fields.dtype(s) is DType.F32 and fields.words(s) for s in (0, 1))
    return d["r"] > FEWEST and d["h"] > 0 and whole and plain
