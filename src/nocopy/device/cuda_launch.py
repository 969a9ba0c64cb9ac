"""From a record to a kernel launch: which kernel, how many blocks of which shape, and its one argument.

Pure arithmetic, no CUDA: the choices here decide speed, never results.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from nocopy.tape.ops import BY_CODE, Op
from nocopy.tape.record import (
    MAX_AXES,
    MAX_DIMS,
    MAX_OPERANDS,
    MAX_PARAMS,
    RECORD_BYTES,
    Space,
)

RECORD_FIELDS = struct.Struct("<4H" + f"QHHI{MAX_AXES}I" * MAX_OPERANDS + f"{MAX_DIMS}I{MAX_PARAMS}I")
ARGUMENT = struct.Struct(f"<{RECORD_BYTES}s{len(Space)}QQ")
"""`nocopy_launch` in kernels/cuda/record.cuh: the record, one address a space, that of the stop word."""

BLOCKS_PER_SM = 8
"""Blocks of 256 threads that fill a multiprocessor (2048 threads on sm_80 and sm_90)."""
ASKING_WORK = 2**16
"""Elements or multiply-adds from which on a kernel looks whether it should stop: below, it ends within
microseconds, and looking costs one."""
NARROW = 4
"""Rows that `matmul_narrow` handles at a time."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch: `source` is the file under kernels/cuda, `block` the threads in x and y."""

    source: str
    kernel: str
    grid: int
    block: tuple[int, int]
    argument: bytes


@dataclass
class Fields:
    """The fields of one record, unpacked so that they can be rewritten."""

    op: Op
    header: tuple[int, ...]
    operands: list[tuple[int, int, int, int]]
    strides: list[list[int]]
    dims: list[int]
    params: tuple[int, ...]

    @classmethod
    def unpack(cls, record: bytes) -> Fields:
        """The fields of a validated record of 256 bytes."""
        fields = RECORD_FIELDS.unpack(record)
        width = 4 + MAX_AXES
        operands = [fields[4 + i * width : 4 + (i + 1) * width] for i in range(MAX_OPERANDS)]
        return cls(
            BY_CODE[fields[1]],
            fields[:4],
            [(o[0], o[1], o[2], o[3]) for o in operands],
            [list(o[4:]) for o in operands],
            list(fields[-MAX_DIMS - MAX_PARAMS : -MAX_PARAMS]),
            fields[-MAX_PARAMS:],
        )

    def pack(self) -> bytes:
        """A record of 256 bytes again."""
        flat: list[int] = list(self.header)
        for operand, strides in zip(self.operands, self.strides, strict=True):
            flat += [*operand, *strides]
        return RECORD_FIELDS.pack(*flat, *self.dims, *self.params)

    @property
    def named(self) -> dict[str, int]:
        """The dims under their names."""
        return dict(zip(self.op.dims, self.dims, strict=False))

    def empty(self) -> bool:
        """True if nothing is written."""
        dims = self.named
        return all(any(dims[axis] == 0 for axis in out.axes) for out in self.op.outputs)


def plan(record: bytes, spaces: Mapping[Space, int], stop: int, multiprocessors: int) -> Launch | None:
    """Choose the launch for a validated record.

    Args:
        record: its 256 bytes.
        spaces: the device address of each space that it uses.
        stop: device address of the word that asks long kernels to stop; 0 for none.
        multiprocessors: of the GPU.

    Returns:
        The launch; None if the record writes nothing.
    """
    fields = Fields.unpack(record)
    if fields.empty():
        return None
    if fields.op.work(fields.named) < ASKING_WORK:
        stop = 0
    source, kernel, blocks, block = GEOMETRY[fields.op.name](fields, multiprocessors)
    bases = [spaces.get(space, 0) for space in Space]
    grid = max(1, min(blocks, 2**31 - 1))
    return Launch(source, kernel, grid, block, ARGUMENT.pack(fields.pack(), *bases, stop))


Shape = tuple[str, str, int, tuple[int, int]]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _per_element(source: str, out_dims: Sequence[str] = ()) -> Callable[[Fields, int], Shape]:
    """One thread for each output element until the GPU is full, then several."""

    def geometry(fields: Fields, multiprocessors: int) -> Shape:
        if fields.op.dims == ("d0", "d1", "d2", "d3"):
            _merge_axes(fields)
        total = prod(fields.named[d] for d in out_dims or fields.op.dims)
        blocks = min(_ceil(total, 256), multiprocessors * BLOCKS_PER_SM)
        return source, fields.op.name, blocks, (256, 1)

    return geometry


def _merge_axes(fields: Fields) -> None:
    """Join neighbouring axes that every operand walks as one, so that kernels divide less."""
    used = range(len(fields.op.operands))
    dims: list[int] = []
    strides: list[list[int]] = [[] for _ in used]
    for axis in range(MAX_AXES):
        size = fields.dims[axis]
        if size == 1:
            continue
        steps = [fields.strides[slot][axis] for slot in used]
        joins = dims and dims[-1] * size < 2**31
        if joins and all(strides[slot][-1] == steps[slot] * size for slot in used):
            dims[-1] *= size
            for slot in used:
                strides[slot][-1] = steps[slot]
        else:
            dims.append(size)
            for slot in used:
                strides[slot].append(steps[slot])
    missing = MAX_AXES - len(dims)
    fields.dims[:MAX_AXES] = [1] * missing + dims
    for slot in used:
        fields.strides[slot] = [0] * missing + strides[slot]


def _team(fields: Fields, n: int, rows: int, multiprocessors: int) -> tuple[int, int]:
    """Threads that take a row together, and rows that a block takes at a time (kernels/cuda/rows.cuh)."""
    x = next(slot for slot, operand in enumerate(fields.op.operands) if operand.name == "x")
    row_steps = [s for s, d in zip(fields.strides[x], fields.dims, strict=False) if d > 1][:-1]
    rows_are_neighbours = n > 1 and bool(row_steps) and row_steps[-1] < fields.strides[x][3]
    if n <= NARROW or (rows_are_neighbours and rows >= 32 * multiprocessors):
        return 1, 256
    if n <= 1024:
        return 32, 8
    return (256, 1) if rows >= 2 * multiprocessors else (1024, 1)


def _per_row(source: str) -> Callable[[Fields, int], Shape]:
    def geometry(fields: Fields, multiprocessors: int) -> Shape:
        d = fields.named
        rows = d["d0"] * d["d1"] * d["d2"]
        team, height = _team(fields, d["n"], rows, multiprocessors)
        blocks = min(_ceil(rows, height), multiprocessors * BLOCKS_PER_SM)
        return source, fields.op.name, blocks, (team, height)

    return geometry


def _topk(fields: Fields, multiprocessors: int) -> Shape:
    d = fields.named
    rows = d["d0"] * d["d1"] * d["d2"]
    threads = 256 if d["n"] <= 65536 else 1024
    return "topk", "topk", min(rows, multiprocessors * BLOCKS_PER_SM), (threads, 1)


def _matmul(fields: Fields, multiprocessors: int) -> Shape:
    if fields.named["n"] <= NARROW < fields.named["m"]:
        _transpose_product(fields)
    d = fields.named
    batches = d["b0"] * d["b1"]
    if d["m"] <= NARROW:
        width = 8 if fields.strides[2][2] < fields.strides[2][3] else 32
        return "matmul", "matmul_narrow", batches * _ceil(d["n"], width), (256, 1)

    def tiles(side: int) -> int:
        return batches * _ceil(d["m"], side) * _ceil(d["n"], side)

    for kernel, side in (("matmul_large", 128), ("matmul_medium", 64)):
        if tiles(side) >= multiprocessors:
            return "matmul", kernel, tiles(side), (256, 1)
    return "matmul", "matmul_small", tiles(32), (256, 1)


def _transpose_product(fields: Fields) -> None:
    """Rewrite out = a b as its transpose: out' = b' a'."""
    _, _, m, n, *_ = fields.dims
    fields.dims[2:4] = n, m
    for slot in range(3):
        s = fields.strides[slot]
        s[2], s[3] = s[3], s[2]
    fields.operands[1], fields.operands[2] = fields.operands[2], fields.operands[1]
    fields.strides[1], fields.strides[2] = fields.strides[2], fields.strides[1]


def _conv2d(fields: Fields, multiprocessors: int) -> Shape:
    d = fields.named
    groups = d["c"] // d["cg"]
    per_group, pixels, taps = d["o"] // groups, d["oh"] * d["ow"], d["cg"] * d["kh"] * d["kw"]
    if per_group >= 16 and pixels >= 32 and taps >= 16:
        tiles = d["n"] * groups * _ceil(per_group, 64) * _ceil(pixels, 64)
        return "conv2d", "conv2d_tiles", tiles, (256, 1)
    outputs = d["n"] * d["o"] * pixels
    if outputs >= 256 * multiprocessors or taps <= 16:
        team, height = 1, 256
    else:
        team, height = (32, 8) if taps < 4096 else (256, 1)
    blocks = min(_ceil(outputs, height), multiprocessors * BLOCKS_PER_SM)
    return "conv2d", "conv2d_direct", blocks, (team, height)


GEOMETRY: dict[str, Callable[[Fields, int], Shape]] = {
    "copy": _per_element("copy"),
    "fill": _per_element("copy"),
    "unary": _per_element("unary"),
    "clamp": _per_element("unary"),
    "binary": _per_element("binary"),
    "matmul": _matmul,
    "reduce": _per_row("reduce"),
    "softmax": _per_row("softmax"),
    "rmsnorm": _per_row("norm"),
    "layernorm": _per_row("norm"),
    "gather": _per_element("gather", ("r", "w")),
    "argmax": _per_row("topk"),
    "topk": _topk,
    "conv2d": _conv2d,
    "resize": _per_element("resize", ("n", "c", "oh", "ow")),
}
"""How each op is launched. An op that is missing here cannot be played."""
assert set(GEOMETRY) == {op.name for op in BY_CODE.values()}
