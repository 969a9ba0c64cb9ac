"""Products of many rows, which tensor cores take: what a record says of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nocopy.device.cuda_launch import Fields
from nocopy.memory.dtype import BLOCKS, DType
from nocopy.tape.ops import BY_NAME
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

FEWEST = 8
"""Rows up to which products stay in f32: reading the weight takes longer than multiplying with it."""
WORD = 16
"""Bytes that rows of a weight in 16 bits begin on a multiple of."""


@dataclass(frozen=True)
class Rows:
    """[m,k] f32: the address of its first element and elements from row to row; and the 16 bits wanted."""

    address: int
    m: int
    k: int
    row: int
    half: DType


@dataclass(frozen=True)
class Many:
    """A product that tensor cores take: out[m,n] = scale * rows[m,k] weight[n,k]."""

    rows: Rows
    n: int
    dtype: DType
    weight: int
    weight_row: int
    out: int
    out_row: int
    scale: float
    work: int


def find_many(fields: Fields, addresses: Mapping[Space, int]) -> Many | None:
    """The product that a record is, if tensor cores take it; `addresses` are the spaces' on the device."""
    if fields.op.name != "matmul" or fields.operands[2][2] != Space.WEIGHTS:
        return None
    d, dtype = fields.named, fields.dtype(2)
    m, n, k = d["m"], d["n"], d["k"]
    out, a, w = (list(strides) for strides in fields.strides[:3])
    if n == 1:
        w[3], out[3] = k, 1
    halves = dtype in (DType.F16, DType.BF16)
    weight, row_bytes = fields.address(2, addresses), w[3] // dtype.block * dtype.itemsize
    many = d["b0"] * d["b1"] == 1 and m > FEWEST and n > 0 and k > 0 and k % 8 == 0
    types = fields.dtype(0) is fields.dtype(1) is DType.F32 and (halves or dtype in BLOCKS)
    dense = out[3] == a[3] == w[2] == 1 and min(a[2], w[3]) >= k and out[2] >= n
    if not (many and types and dense) or (halves and (weight % WORD or row_bytes % WORD)):
        return None
    half = DType.F16 if dtype is DType.F16 else DType.BF16
    rows = Rows(fields.address(1, addresses), m, k, a[2], half)
    scale = fields.scalar(0)
    return Many(rows, n, dtype, weight, w[3], fields.address(0, addresses), out[2], scale, m * n * k)


def any_many(tape: Tape) -> bool:
    """True if a product or an attention has more than `FEWEST` rows."""
    opcodes, dims = tape.records["opcode"], tape.records["dims"]
    products = (opcodes == BY_NAME["matmul"].code) & (dims[:, 2] > FEWEST)
    attentions = (opcodes == BY_NAME["attention"].code) & (dims[:, 0] > FEWEST)
    return bool((products | attentions).any())


def dense_rows(fields: Fields, k: int) -> list[int]:
    """Strides of an output whose rows of k elements lie one after the other."""
    if fields.op.name == "attention":
        return [k, fields.named["n"], 1, 0]
    return [0, 0, k, 1]
