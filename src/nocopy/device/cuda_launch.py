"""From a record to kernel launches: which kernels, how many blocks of which shape, and their one argument.

Pure arithmetic, no CUDA: the choices here decide speed, never results.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import prod
from typing import Protocol, TypeAlias

from nocopy.device.cuda_blas import BlasLaunch
from nocopy.memory.dtype import BLOCKS, DType
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
ARGUMENT = struct.Struct(f"<{RECORD_BYTES}s{len(Space)}QQQQ")
"""`nocopy_launch` in kernels/cuda/record.cuh: the record, one address a space, that of the stop word, that of
the workspace, splits."""

BLOCKS_PER_SM = 8
"""Blocks of 256 threads that fill a multiprocessor (2048 threads on sm_80 and sm_90)."""
ASKING_WORK = 2**20
ASKING_PRODUCTS = 2**25
"""Elements, or multiply-adds of matmul and attention, from which on a kernel looks whether it should stop.
Looking costs a microsecond; below, a kernel ends within one or two milliseconds though all its operands lie
behind a bus, and a graph of such kernels within one or two seconds."""
NARROW = 4
"""Rows that `matmul_narrow` and `matvec_few` handle at a time."""
FEW = 8
"""Rows up to which products go by rows of the weight: a pass over a token of each of several sequences."""
WORD = 16
"""Bytes of a load: what kernels that read whole words need addresses to be a multiple of."""
WARPS = 8
"""Warps of a block of attention."""
SPAN = 256
"""Elements of a head that a warp of attention holds."""
SHORTEST_PART = 1024
"""Elements of a row that are worth a block of argmax."""
SHORTEST_SPLIT = 128
"""Tokens that are worth a block of attention."""
SAMPLE_BUCKETS, SAMPLE_SHARED = 2048, 74040
"""BUCKETS, and the bytes of a Desk in kernels/cuda/sample.cu."""
MOST_SHARERS = 512
"""Blocks of a row of sample, at most."""
SAMPLE_PART, PENALIZE_PART = 2048, 4096
"""Elements of a row that are worth a block; each of penalize reads the recent tokens, perhaps over a bus."""
COUNTERS = 1024
"""Words of 32 bits before a workspace, zero between launches, in which blocks count themselves."""
MAX_WORKSPACE = 2**26
"""Bytes that the splits of one record may hand on."""


@dataclass(frozen=True)
class Shape:
    """A kernel and its threads: `source` is the file under kernels/cuda, compiled with the macros `defines`;
    `block` the threads in x and y.
    """

    source: str
    kernel: str
    blocks: int
    block: tuple[int, int]
    splits: int = 1
    defines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """One kernel launch; `shared`: bytes of dynamic shared memory of each block.

    Its argument is complete once the workspace's address is known.
    """

    shape: Shape
    record: bytes
    bases: tuple[int, ...]
    stop: int
    shared: int = 0

    @property
    def grid(self) -> int:
        """Blocks, as far as a grid holds them; kernels loop over the rest."""
        return max(1, min(self.shape.blocks, 2**31 - 1))

    def argument(self, workspace: int) -> bytes:
        """`nocopy_launch`, with the device address of a workspace."""
        return ARGUMENT.pack(self.record, *self.bases, self.stop, workspace, self.shape.splits)


class KernelLaunch(Protocol):
    """What a device needs to know of a launch."""

    @property
    def shape(self) -> Shape:
        """Kernel and threads."""
        ...

    @property
    def grid(self) -> int:
        """Blocks."""
        ...

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory of each block."""
        ...

    def argument(self, workspace: int) -> bytes:
        """The kernel's one argument, with the device address of a workspace."""
        ...


class Branch(Enum):
    """Between launches: those from `APART` on play beside those from `BACK` on; what is behind `MEET` comes
    after both.
    """

    APART = auto()
    BACK = auto()
    MEET = auto()


AnyLaunch: TypeAlias = KernelLaunch | BlasLaunch | Branch


@dataclass(frozen=True)
class Plan:
    """The launches of a record, in order, and the bytes of device memory that they hand results on in."""

    launches: tuple[AnyLaunch, ...] = ()
    workspace: int = 0


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

    def address(self, slot: int, spaces: Mapping[Space, int]) -> int:
        """The device address of an operand, by those of the spaces."""
        offset, _, space, _ = self.operands[slot]
        return (spaces[Space(space)] + offset) % 2**64

    def dtype(self, slot: int) -> DType:
        """Element type of an operand."""
        return DType(self.operands[slot][1])

    def scalar(self, param: int) -> float:
        """A parameter that is f32."""
        return struct.unpack("<f", struct.pack("<I", self.params[param]))[0]

    def words(self, slot: int) -> bool:
        """True if rows of a float operand are whole words: its last axis contiguous, all else on WORDs."""
        axes, size = self.op.operands[slot].axes, self.dtype(slot).itemsize
        *outer, last = self.strides[slot][: len(axes)]
        starts = [self.operands[slot][0], self.named[axes[-1]] * size, *(step * size for step in outer)]
        return self.dtype(slot).is_float and last == 1 and not any(at % WORD for at in starts)

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


def bases_of(addresses: Mapping[Space, int]) -> tuple[int, ...]:
    """The address of each space, 0 for one that a tape does not use: what a `Launch` is handed."""
    return tuple(addresses.get(space, 0) for space in Space)


def plan(record: bytes, spaces: Mapping[Space, int], stop: int, multiprocessors: int) -> Plan:
    """Choose the launches for a validated record.

    Args:
        record: its 256 bytes.
        spaces: the device address of each space that it uses.
        stop: device address of the word that asks long kernels to stop; 0 for none.
        multiprocessors: of the GPU.

    Returns:
        The launches; none if the record writes nothing.
    """
    fields = Fields.unpack(record)
    if fields.empty():
        return Plan()
    asking = ASKING_PRODUCTS if fields.op.name in ("matmul", "attention") else ASKING_WORK
    if fields.op.work(fields.named) < asking:
        stop = 0
    shape = GEOMETRY[fields.op.name](fields, multiprocessors)
    bases = bases_of(spaces)
    shapes, workspace, shared = [shape], 0, 0
    if shape.kernel == "argmax_split":
        workspace = 8 * shape.blocks
    elif shape.kernel == "sample":
        workspace = shape.blocks // shape.splits * _sample_bytes(fields, shape.splits)
        shared = SAMPLE_SHARED
    elif shape.splits > 1 and fields.op.name == "attention":
        workspace = _state_bytes(fields) * shape.splits
        if shape.source != "attention_row":  # its last block joins
            shapes += [_join(fields, shape.splits, multiprocessors)]
    return Plan(tuple(Launch(each, fields.pack(), bases, stop, shared) for each in shapes), workspace)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _per_element(source: str, out_dims: Sequence[str] = ()) -> Callable[[Fields, int], Shape]:
    """One thread for each output element until the GPU is full, then several."""

    def geometry(fields: Fields, multiprocessors: int) -> Shape:
        if fields.op.dims == ("d0", "d1", "d2", "d3"):
            _merge_axes(fields)
        total = prod(fields.named[d] for d in out_dims or fields.op.dims)
        blocks = min(_ceil(total, 256), multiprocessors * BLOCKS_PER_SM)
        return Shape(source, fields.op.name, blocks, (256, 1))

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
        return Shape(source, fields.op.name, blocks, (team, height))

    return geometry


def _topk(fields: Fields, multiprocessors: int) -> Shape:
    d = fields.named
    rows = d["d0"] * d["d1"] * d["d2"]
    threads = 256 if d["n"] <= 65536 else 1024
    return Shape("topk", "topk", min(rows, multiprocessors * BLOCKS_PER_SM), (threads, 1))


def _matmul(fields: Fields, multiprocessors: int) -> Shape:
    if fields.named["m"] <= FEW and _reads_weight_rows(fields):
        return _matvec(fields, multiprocessors)
    blocks = fields.dtype(2) in BLOCKS
    if fields.named["n"] <= NARROW < fields.named["m"] and not blocks:
        _transpose_product(fields)
    d = fields.named
    batches = d["b0"] * d["b1"]
    if d["m"] <= NARROW and not blocks:
        width = 8 if fields.strides[2][2] < fields.strides[2][3] else 32
        return Shape("matmul", "matmul_narrow", batches * _ceil(d["n"], width), (256, 1))

    def tiles(side: int) -> int:
        return batches * _ceil(d["m"], side) * _ceil(d["n"], side)

    source = "matmul_blocks" if blocks else "matmul"
    for size, side in (("large", 128), ("medium", 64)):
        if tiles(side) >= multiprocessors:
            return Shape(source, f"{source}_{size}", tiles(side), (256, 1))
    return Shape(source, f"{source}_small", tiles(32), (256, 1))


def _reads_weight_rows(fields: Fields) -> bool:
    """True if matvec.cu can read the operands: a in words of f32, b in words or blocks along k."""
    if fields.dtype(1) is not DType.F32 or not fields.words(1):
        return False
    if fields.dtype(2) in BLOCKS:
        return True
    size, strides = fields.dtype(2).itemsize, fields.strides[2]
    starts = [fields.operands[2][0], fields.named["k"] * size, *(strides[axis] * size for axis in (0, 1, 3))]
    return strides[2] == 1 and not any(at % WORD for at in starts)


def _matvec(fields: Fields, multiprocessors: int) -> Shape:
    """A warp for each column; where they are few and long, a block."""
    d = fields.named
    columns = d["b0"] * d["b1"] * _ceil(d["m"], NARROW) * d["n"]
    name = fields.dtype(2).name.lower()
    kernel = f"matvec_{name}" if d["m"] == 1 else f"matvec_few_{name}"
    if columns < 8 * multiprocessors and d["k"] >= 1024:
        return Shape("matvec", kernel, columns, (256, 1))
    return Shape("matvec", kernel, min(_ceil(columns, 4), 4 * multiprocessors * BLOCKS_PER_SM), (32, 4))


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
        return Shape("conv2d", "conv2d_tiles", tiles, (256, 1))
    outputs = d["n"] * d["o"] * pixels
    if outputs >= 256 * multiprocessors or taps <= 16:
        team, height = 1, 256
    else:
        team, height = (32, 8) if taps < 4096 else (256, 1)
    blocks = min(_ceil(outputs, height), multiprocessors * BLOCKS_PER_SM)
    return Shape("conv2d", "conv2d_direct", blocks, (team, height))


def _rope(fields: Fields, multiprocessors: int) -> Shape:
    d = fields.named
    blocks = _ceil(d["r"] * d["h"] * (d["n"] - d["f"]), 256)
    return Shape("rope", "rope", min(blocks, multiprocessors * BLOCKS_PER_SM), (256, 1))


def _scatter(fields: Fields, multiprocessors: int) -> Shape:
    return Shape("scatter", "scatter", min(fields.named["r"], multiprocessors * BLOCKS_PER_SM), (256, 1))


def _attention(fields: Fields, multiprocessors: int) -> Shape:
    """Up to 8 rows share a block; tokens are split until the GPU has two blocks a multiprocessor."""
    d = fields.named
    kernel, heads = _attention_kernel(fields)
    if d["r"] == 1 and kernel != "attention_any" and fields.words(1) and fields.dtype(1) is DType.F32:
        return _attention_row(fields, kernel, heads, multiprocessors)
    rows = 1 << min(d["r"], WARPS).bit_length() - 1
    jobs = _ceil(d["r"], rows) * d["g"] * _ceil(d["h"] // d["g"], heads) * _ceil(d["n"], SPAN)
    most = min(_ceil(d["t"], SHORTEST_SPLIT), MAX_WORKSPACE // _state_bytes(fields))
    splits = max(1, min(2 * multiprocessors // jobs, most))
    return Shape("attention", kernel, jobs * splits, (32 * WARPS // rows, rows), splits)


def _argmax(fields: Fields, multiprocessors: int) -> Shape:
    """A team for each row; where rows are few and long, several blocks."""
    d = fields.named
    rows = d["d0"] * d["d1"] * d["d2"]
    splits = min(_ceil(d["n"], SHORTEST_PART), 2 * multiprocessors // rows)
    if splits < 4:
        return _per_row("topk")(fields, multiprocessors)
    return Shape("topk", "argmax_split", rows * splits, (256, 1), splits)


def _sample_bytes(fields: Fields, splits: int) -> int:
    """Bytes that the blocks of a row of sample hand on: counts, sums of parts and of buckets, keys."""
    return 8 * (1 + splits + 2 * SAMPLE_BUCKETS + fields.named["n"])


def _sample(fields: Fields, multiprocessors: int) -> Shape:
    """Blocks that share a row wait for each other: there are no more than run at the same time."""
    d = fields.named
    splits = min(_ceil(d["n"], SAMPLE_PART), multiprocessors // d["r"], MOST_SHARERS)
    if splits > 1 and d["r"] <= COUNTERS and d["r"] * _sample_bytes(fields, splits) <= MAX_WORKSPACE:
        return Shape("sample", "sample", d["r"] * splits, (512, 1), splits)
    most = max(1, MAX_WORKSPACE // _sample_bytes(fields, 1))
    return Shape("sample", "sample", min(d["r"], most, multiprocessors), (512, 1))


def _penalize(fields: Fields, multiprocessors: int) -> Shape:
    d = fields.named
    splits = max(1, min(_ceil(d["n"], PENALIZE_PART), 2 * multiprocessors // d["r"]))
    blocks = min(d["r"] * splits, multiprocessors * BLOCKS_PER_SM)
    return Shape("sample", "penalize", blocks, (256, 1), splits)


def _attention_row(fields: Fields, kernel: str, heads: int, multiprocessors: int) -> Shape:
    """One row: at most a block for each multiprocessor; those that have no tokens end at once."""
    d = fields.named
    jobs = d["g"] * _ceil(d["h"] // d["g"], heads)
    most = min(_ceil(d["t"], SHORTEST_SPLIT), MAX_WORKSPACE // _state_bytes(fields))
    splits = max(1, min(multiprocessors // jobs, most)) if jobs <= COUNTERS else 1
    name = kernel.replace("attention", "attention_row")
    return Shape("attention_row", name, jobs * splits, (32 * WARPS, 1), splits)


def _attention_kernel(fields: Fields) -> tuple[str, int]:
    """The kernel that reads k and v best, and the heads that it takes at once."""
    dtype, n = fields.dtype(2), fields.named["n"]
    if dtype is not fields.dtype(3) or n > SPAN:
        return "attention_any", 1
    # A lane takes eight elements, which must all be there.
    if dtype not in BLOCKS and not (fields.words(2) and fields.words(3) and n % 8 == 0):
        return "attention_any", 1
    name = dtype.name.lower()
    if fields.named["h"] > fields.named["g"]:
        return f"attention_grouped_{name}", 4
    return f"attention_{name}", 1


def _state_bytes(fields: Fields) -> int:
    """Bytes that one split of attention hands on: largest, sum and n values for each row and head."""
    d = fields.named
    return d["r"] * d["h"] * (d["n"] + 2) * 4


def _join(fields: Fields, splits: int, multiprocessors: int) -> Shape:
    d = fields.named
    blocks = min(_ceil(d["r"] * d["h"] * d["n"], 256), multiprocessors * BLOCKS_PER_SM)
    return Shape("attention", "attention_join", blocks, (256, 1), splits)


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
    "argmax": _argmax,
    "topk": _topk,
    "conv2d": _conv2d,
    "resize": _per_element("resize", ("n", "c", "oh", "ow")),
    "rope": _rope,
    "scatter": _scatter,
    "attention": _attention,
    "glu": _per_element("glu"),
    "penalize": _penalize,
    "sample": _sample,
}
"""How each op is launched. An op that is missing here cannot be played."""
assert set(GEOMETRY) == {op.name for op in BY_CODE.values()}
