"""From records to kernel launches, for Vulkan and Metal: which kernel, which arguments, how many groups.

A launch is one dispatch of one kernel under `kernels/gpu/`. The addresses of its operands are resolved here,
once; playing a program again changes nothing in it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from typing import Any

import numpy as np

from nocopy.memory.dtype import DType
from nocopy.tape.ops import BY_CODE, Op
from nocopy.tape.record import MAX_AXES, MAX_DIMS, MAX_OPERANDS, MAX_PARAMS, Space
from nocopy.tape.validate import Extent, Tape

THREADS = 256
"""Threads of every workgroup, as in kernels/gpu/tensor.slang."""
TILE = 64
"""Outputs a side that one workgroup of matmul computes, as in kernels/gpu/matmul.slang."""
SPAN = 32
"""Elements of a row that one thread of scatter writes, as in kernels/gpu/scatter.slang."""
SETS = 32
"""Sets of rows that scatter's threads share out, as in kernels/gpu/scatter.slang."""
MAX_GROUPS = 65535
"""Workgroups of a launch: what every Vulkan device allows; kernels loop over the rest."""
CONSTANTS = 5
"""Specialisation constants of every kernel: the function and the dtypes of the first four operands."""

ARGS = np.dtype(
    [
        ("address", "<u8", (MAX_OPERANDS,)),
        ("strides", "<u4", (MAX_OPERANDS, MAX_AXES)),
        ("dims", "<u4", (MAX_DIMS,)),
        ("params", "<u4", (MAX_PARAMS,)),
        ("count", "<u8"),
        ("lanes", "<u4"),
        ("groups", "<u4"),
        ("derived", "<f4", (8,)),
    ]
)
"""The argument block, `Args` in kernels/gpu/tensor.slang."""
ARGS_BYTES = ARGS.itemsize
assert ARGS_BYTES == 256

Resolve = Callable[[Space, int, int], int]
"""The device address of byte `start` of a space, whose bytes up to `stop` one kernel reaches from there."""


@dataclass(frozen=True)
class Launch:
    """One dispatch. `barrier`: what ran before must be complete and visible before this starts."""

    kernel: str
    constants: tuple[int, ...]
    args: bytes
    groups: int
    barrier: bool


def kernel_code(name: str, suffix: str) -> bytes:
    """The generated code of a kernel: suffix "spv" or "metal"."""
    return (files("nocopy") / "kernels" / "gpu" / "generated" / f"{name}.{suffix}").read_bytes()


def launches(tape: Tape, resolve: Resolve) -> Iterator[Launch]:
    """The launches of a tape in order; a record that writes no elements has none."""
    since_barrier: list[Extent] = []
    for record, extents in zip(tape.records, tape.extents, strict=True):
        op = BY_CODE[int(record["opcode"])]
        dims = {name: int(size) for name, size in zip(op.dims, record["dims"], strict=False)}
        if all(prod(dims[a] for a in out.axes) == 0 for out in op.outputs) or dims.get("r") == 0:
            continue
        barrier = _conflict(since_barrier, extents)
        if barrier:
            since_barrier = []
        since_barrier += [e for e in extents if e.stop > e.start]
        yield _launch(op, record, dims, extents, resolve, barrier)


def _conflict(earlier: Sequence[Extent], now: Sequence[Extent]) -> bool:
    """True if one of them writes what the other touches."""
    return any(
        a.space == b.space and a.start < b.stop and b.start < a.stop and (a.written or b.written)
        for a in earlier
        for b in now
    )


def _launch(
    op: Op, record: Any, dims: dict[str, int], extents: Sequence[Extent], resolve: Resolve, barrier: bool
) -> Launch:
    args = np.zeros((), ARGS)
    args["dims"], args["params"] = record["dims"], record["params"]
    args["strides"] = record["operands"]["strides"]
    dtypes = [int(dtype) for dtype in record["operands"]["dtype"]]
    present = (slot for slot, dtype in enumerate(dtypes) if dtype != DType.NONE)
    for slot, extent in zip(present, extents, strict=True):
        if extent.stop > extent.start:
            args["address"][slot] = resolve(extent.space, extent.start, extent.stop)
    kernel, lanes, count = SHAPES.get(op.name, _grid)(op, args, dims)
    per_group = 1 if kernel in ("matmul", "topk", "attention", "sample") else THREADS // lanes
    groups = min(-(-count // per_group), MAX_GROUPS)
    args["count"], args["lanes"], args["groups"] = count, lanes, groups
    constants = (int(record["function"]), *dtypes[: CONSTANTS - 1])
    return Launch(kernel, constants, args.tobytes(), groups, barrier)


# -- one function for each way to cut an op into items: (kernel, lanes that share an item, items) --

Shape = tuple[str, int, int]


def _grid(op: Op, args: Any, dims: dict[str, int]) -> Shape:
    """An elementwise op over four axes, with as many of them merged as lie contiguously in all operands."""
    slots = range(len(op.operands))
    shape, strides = merge_axes(
        tuple(dims.values()), [tuple(int(s) for s in args["strides"][slot]) for slot in slots]
    )
    args["dims"][:MAX_AXES] = shape
    for slot in slots:
        args["strides"][slot] = strides[slot]
    return op.name, 1, prod(shape)


def merge_axes(
    shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The same elements with fewer axes: four again, merged to the right, the leftmost of size 1."""
    merged: list[tuple[int, tuple[int, ...]]] = []
    for axis in reversed(range(len(shape))):
        size, steps = shape[axis], tuple(s[axis] for s in strides)
        if size == 1:
            continue
        if merged:
            inner, inner_steps = merged[0]
            follows = all(s == inner * t for s, t in zip(steps, inner_steps, strict=True))
            if follows and size * inner < 2**31:
                merged[0] = (size * inner, inner_steps)
                continue
        merged.insert(0, (size, steps))
    missing = MAX_AXES - len(merged)
    padded = [(1, (0,) * len(strides))] * missing + merged
    return tuple(size for size, _ in padded), [
        tuple(steps[i] for _, steps in padded) for i in range(len(strides))
    ]


def _rows(op: Op, args: Any, dims: dict[str, int]) -> Shape:
    """An op over the last axis: lanes share a row, unless its elements lie further apart than the rows."""
    rows, n = dims["d0"] * dims["d1"] * dims["d2"], dims["n"]
    x = next(slot for slot, operand in enumerate(op.operands) if operand.name == "x")
    along, across = int(args["strides"][x][3]), int(args["strides"][x][2])
    if 0 < across < along and dims["d2"] >= 16 * THREADS:
        return op.name, 1, rows
    return op.name, _lanes(n, 8), rows


def _lanes(n: int, each: int) -> int:
    """A power of two of lanes that leaves each about `each` of n elements."""
    wanted = -(-n // each)
    return min(THREADS, 1 << max(0, (wanted - 1).bit_length()))


def _matmul(_op: Op, args: Any, dims: dict[str, int]) -> Shape:
    """Tiles; or outputs one by one where a tile would be mostly empty and the operands still stream well."""
    m, n, k = dims["m"], dims["n"], dims["k"]
    batch = dims["b0"] * dims["b1"]
    (a_m, a_k), (b_k, b_n) = args["strides"][1][2:], args["strides"][2][2:]
    few = min(m, n) <= 4
    if few and k >= 32 and (a_k == 1 or m <= 4) and (b_k == 1 or n <= 4):
        return "matvec", _lanes(k, 16), batch * m * n
    if few and max(m, n) >= 16 * THREADS and (b_n == 1 if m <= 4 else a_m == 1):
        return "matvec", 1, batch * m * n
    return "matmul", 1, batch * -(-m // TILE) * -(-n // TILE)


def _topk(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "topk", 1, dims["d0"] * dims["d1"] * dims["d2"]


def _gather(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "gather", 1, dims["r"] * dims["w"]


def _rope(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "rope", 1, dims["r"] * dims["h"] * (dims["n"] - dims["f"])


def _scatter(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "scatter", 1, SETS * -(-dims["w"] // SPAN)


def _attention(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "attention", _lanes(dims["n"], 1), dims["r"] * dims["h"] * -(-dims["n"] // THREADS)


def _penalize(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "penalize", 1, dims["r"] * dims["n"]


def _sample(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "sample", 1, dims["r"]


def _conv2d(_op: Op, _args: Any, dims: dict[str, int]) -> Shape:
    return "conv2d", 1, prod(dims[d] for d in ("n", "o", "oh", "ow"))


def _resize(_op: Op, args: Any, dims: dict[str, int]) -> Shape:
    args["derived"][:2] = dims["h"] / dims["oh"], dims["w"] / dims["ow"]
    return "resize", 1, prod(dims[d] for d in ("n", "c", "oh", "ow"))


SHAPES: dict[str, Callable[[Op, Any, dict[str, int]], Shape]] = {
    "matmul": _matmul,
    "reduce": _rows,
    "softmax": _rows,
    "rmsnorm": _rows,
    "layernorm": _rows,
    "argmax": _rows,
    "topk": _topk,
    "gather": _gather,
    "rope": _rope,
    "scatter": _scatter,
    "attention": _attention,
    "conv2d": _conv2d,
    "resize": _resize,
    "penalize": _penalize,
    "sample": _sample,
}


def pack_constants(constants: Sequence[int]) -> bytes:
    """Specialisation constants as the u32 values that both APIs take."""
    return struct.pack(f"<{CONSTANTS}I", *constants)
