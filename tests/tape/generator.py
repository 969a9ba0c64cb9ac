"""Makes records: mostly right ones of every op and layout, and mutations at the edges of every field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from nocopy.memory.dtype import DType
from nocopy.tape.ops import OPS, Op, Operand
from nocopy.tape.record import MAX_AXES, MAX_DIMS, MAX_OPERANDS, MAX_PARAMS, RECORD, VERSION, Space
from tests.tape.choices import Choices, chance, one_of

SIZES = {Space.GUEST: 65536, Space.WEIGHTS: 8192, Space.SCRATCH: 16384, Space.KV: 4096}
"""Bytes of each space in generated tapes."""

MAX_SIZE = 2048
"""Elements over all dims of a generated record."""

AXIS = (1, 1, 2, 2, 3, 3, 4, 5, 7, 0)
LONG_AXIS = (16, 17, 31, 33, 64, 100, 255, 257)
EDGES = (0, 1, 2, 3, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1)
DTYPE_EDGES = (*DType, 6, 15, max(DType) + 1)
WIDE_EDGES = (*EDGES, 2**63, 2**64 - 4, 2**64 - 1)
FLOAT_BITS = (0, 0x3F800000, 0xBF800000, 0x3727C5AC, 0x7FC00000, 0x7F800000, 0xFF800000, 1, 0x80000000)


def tape(choices: Choices, sizes: Mapping[Space, int] = SIZES, longest: int = 4) -> bytes:
    """One to `longest` records, about one in three of them mutated."""
    records: list[bytes] = []
    for _ in range(choices.integer(1, longest)):
        raw = bytearray(record(choices, sizes).tobytes())
        if chance(choices, 3):
            mutate(choices, raw)
        records.append(bytes(raw))
    return b"".join(records)


def record(choices: Choices, sizes: Mapping[Space, int] = SIZES) -> Any:
    """One record that is right unless its operands do not fit their spaces."""
    op = one_of(choices, OPS)
    dtypes = [one_of(choices, sorted(spec.dtypes)) for spec in op.operands]
    dims = _dims(choices, op, dtypes)
    r = np.zeros((), RECORD)
    r["version"], r["opcode"] = VERSION, op.code
    r["function"] = choices.integer(0, max(0, len(op.functions) - 1))
    if op.name == "reduce" and dims["n"] == 0:
        r["function"] = 0  # only a sum has a value over nothing
    r["dims"][: len(op.dims)] = [dims[name] for name in op.dims]
    free = {space: one_of(choices, (0, 4, 64, 4096)) for space in sizes}
    for slot, spec in enumerate(op.operands):
        if spec.optional and chance(choices, 3):
            continue
        first = op.operands[0]
        if op.elementwise and not spec.out and spec.axes == first.axes and chance(choices, 4):
            r["operands"][slot] = r["operands"][0]  # in place
            continue
        r["operands"][slot] = _operand(choices, spec, dtypes[slot], dims, free)
    for i, param in enumerate(op.params):
        if param.kind == "u32":
            r["params"][i] = one_of(choices, (param.low, 1, 2, 3, 1, param.high))
        else:
            r["params"][i] = one_of(choices, (*FLOAT_BITS, choices.integer(0, 2**32 - 1)))
    return r


def _dims(choices: Choices, op: Op, dtypes: Sequence[DType]) -> dict[str, int]:
    dims = {name: one_of(choices, AXIS) for name in op.dims}
    whole = _axes_of_blocks(op, dtypes)
    if chance(choices, 3):
        dims[one_of(choices, op.dims)] = one_of(choices, LONG_AXIS)
    for name in op.nonzero:
        dims[name] = max(1, dims[name])
    for name, block in whole.items():
        dims[name] = block * min(dims[name], 2)
    if op.name == "topk":
        dims["k"] = min(dims["k"], dims["n"])
    while prod(max(1, size) for size in dims.values()) > MAX_SIZE:
        widest = max(dims.keys() - whole.keys(), key=lambda name: (dims[name], name))
        dims[widest] //= 2
    if op.name == "topk":
        dims["k"] = min(dims["k"], dims["n"])
    if op.name == "conv2d":
        groups = choices.integer(1, 3)
        dims["cg"] = min(dims["cg"], 8)
        dims["c"], dims["o"] = dims["cg"] * groups, groups * choices.integer(0, 3)
    if op.name == "rope":
        dims["f"] = min(dims["f"], dims["n"] // 2)
    if op.name == "attention":
        dims["h"] = min(dims["h"], 6) // dims["g"] * dims["g"]
    if op.name in ("penalize", "sample"):
        dims |= {"o": 4} if op.name == "penalize" else {"o": 3, "s": 5}
    return dims


def _axes_of_blocks(op: Op, dtypes: Sequence[DType]) -> dict[str, int]:
    """The dims that must be multiples of a block, and of which."""
    axes: dict[str, int] = {}
    for spec, dtype in zip(op.operands, dtypes, strict=True):
        if dtype.block > 1:
            axes[spec.blocks] = max(dtype.block, axes.get(spec.blocks, 1))
    return axes


def _operand(
    choices: Choices, spec: Operand, dtype: DType, dims: Mapping[str, int], free: dict[Space, int]
) -> Any:
    shape = [dims[axis] // (dtype.block if axis == spec.blocks else 1) for axis in spec.axes]
    strides = layout(choices, shape, repeat=not spec.out)
    if dtype.block > 1:
        strides = _strides_of_blocks(spec, dtype, shape, strides)
    span = 0 if 0 in shape else dtype.block + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    space = one_of(choices, tuple(free)) if chance(choices, 2) else Space.GUEST
    start = -(-free[space] // dtype.alignment) * dtype.alignment
    start += dtype.alignment * one_of(choices, (0, 0, 1, 3))
    free[space] = start + -(-span // dtype.block) * dtype.itemsize
    if dtype.block > 1:
        strides[spec.axes.index(spec.blocks)] = 1
    return (start, dtype, space, 0, (*strides, *(0,) * (MAX_AXES - len(strides))))


def _strides_of_blocks(spec: Operand, dtype: DType, shape: list[int], strides: list[int]) -> list[int]:
    """In elements; blocks follow each other along their axis, the other axes step over its run."""
    along = spec.axes.index(spec.blocks)
    step = dtype.block * max(1, shape[along])
    return [dtype.block if axis == along else step * s for axis, s in enumerate(strides)]


def layout(choices: Choices, shape: list[int], *, repeat: bool) -> list[int]:
    """Strides: the axes in any order, with gaps; repeated or overlapping ones if `repeat`."""
    order = list(range(len(shape)))
    for i in range(len(order) - 1):
        if chance(choices, 3):
            j = choices.integer(i, len(order) - 1)
            order[i], order[j] = order[j], order[i]
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step * one_of(choices, (1, 1, 1, 1, 2, 3))
        step = strides[axis] * max(1, shape[axis])
        if repeat and chance(choices, 5):
            strides[axis] = one_of(choices, (0, 0, 1))
        elif chance(choices, 12):
            strides[axis] -= 1  # an output may now write an element twice, or just not
    return strides


# -- mutations ----------------------------------------------------------------------------------------


def mutate(choices: Choices, raw: bytearray) -> None:
    """Spoil one to three fields of a record, in place."""
    r = np.frombuffer(raw, RECORD)[0:1].reshape(())
    for _ in range(choices.integer(1, 3)):
        one_of(choices, (_header, _offset, _stride, _dim, _param, _swap, _flip))(choices, r, raw)


def _edge(choices: Choices, old: int, edges: tuple[int, ...], bits: int) -> int:
    return one_of(choices, (*edges, old + 1, old - 1, old * 2)) % 2**bits


def _header(choices: Choices, r: Any, _raw: bytearray) -> None:
    field = one_of(choices, ("version", "opcode", "opcode", "function", "reserved"))
    r[field] = _edge(choices, int(r[field]), EDGES, 16)


def _offset(choices: Choices, r: Any, _raw: bytearray) -> None:
    operand = r["operands"][choices.integer(0, MAX_OPERANDS - 1)]
    field, edges, bits = one_of(
        choices,
        (("offset", WIDE_EDGES, 64), ("offset", WIDE_EDGES, 64), ("dtype", DTYPE_EDGES, 16),
         ("space", tuple(range(5)), 16), ("reserved", EDGES, 32)),
    )  # fmt: skip
    operand[field] = _edge(choices, int(operand[field]), edges, bits)


def _stride(choices: Choices, r: Any, _raw: bytearray) -> None:
    strides = r["operands"][choices.integer(0, MAX_OPERANDS - 1)]["strides"]
    axis = choices.integer(0, MAX_AXES - 1)
    strides[axis] = _edge(choices, int(strides[axis]), EDGES, 32)


def _dim(choices: Choices, r: Any, _raw: bytearray) -> None:
    at = choices.integer(0, MAX_DIMS - 1)
    r["dims"][at] = _edge(choices, int(r["dims"][at]), EDGES, 32)


def _param(choices: Choices, r: Any, _raw: bytearray) -> None:
    at = choices.integer(0, MAX_PARAMS - 1)
    r["params"][at] = _edge(choices, int(r["params"][at]), EDGES, 32)


def _swap(choices: Choices, r: Any, _raw: bytearray) -> None:
    a, b = choices.integer(0, MAX_OPERANDS - 1), choices.integer(0, MAX_OPERANDS - 1)
    r["operands"][a] = r["operands"][b]


def _flip(choices: Choices, _r: Any, raw: bytearray) -> None:
    raw[choices.integer(0, len(raw) - 1)] ^= 1 << choices.integer(0, 7)
