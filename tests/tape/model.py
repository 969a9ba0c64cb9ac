"""The validator's rules again, by enumeration: every element of every operand as a Python integer.

Nothing is shared with the validator but the op table. `faults` says what is wrong with a record;
`conservative` says whether one of the two documented rules refuses it although its bytes do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Any

from nocopy.memory.dtype import DType
from nocopy.tape.ops import BY_CODE, REDUCE, Op, Operand
from nocopy.tape.record import Space

ENUMERABLE = 20_000
"""Elements over all operands that are worth enumerating in a test."""


def plain(record: Any) -> dict[str, Any]:
    """A record as Python integers."""
    return {
        "head": tuple(int(record[f]) for f in ("version", "opcode", "function", "reserved")),
        "operands": [
            (int(o["offset"]), int(o["dtype"]), int(o["space"]), int(o["reserved"]),
             tuple(int(s) for s in o["strides"]))
            for o in record["operands"]
        ],
        "dims": tuple(int(d) for d in record["dims"]),
        "params": tuple(int(p) for p in record["params"]),
    }  # fmt: skip


def enumerable(record: Any) -> bool:
    """True if enumerating every operand is quick."""
    op = BY_CODE.get(int(record["opcode"]))
    if op is None:
        return True
    dims = dict(zip(op.dims, (int(d) for d in record["dims"]), strict=False))
    # `product` lists every axis first, also beside an empty one.
    return sum(prod(max(1, dims[a]) for a in spec.axes) for spec in op.operands) <= ENUMERABLE


def starts(record: Any, slot: int) -> list[int]:
    """The byte offset of each element of an operand, or of each block."""
    op, fields = BY_CODE[int(record["opcode"])], plain(record)
    dims = dict(zip(op.dims, fields["dims"], strict=False))
    offset, number, _, _, strides = fields["operands"][slot]
    dtype, spec = DType(number), op.operands[slot]
    ranges = [range(0, dims[a], dtype.block if a == spec.blocks else 1) for a in spec.axes]
    return [
        offset + sum(i * s for i, s in zip(at, strides, strict=False)) // dtype.block * dtype.itemsize
        for at in product(*ranges)
    ]


def touched(record: Any, slot: int) -> set[int]:
    """Every byte of an operand's elements."""
    size = DType(int(record["operands"][slot]["dtype"])).itemsize
    return {byte for start in starts(record, slot) for byte in range(start, start + size)}


def faults(record: Any, sizes: Mapping[Space, int]) -> set[str]:
    """What is wrong, by name; empty if the record keeps to the rules."""
    fields = plain(record)
    version, opcode, function, reserved = fields["head"]
    if version != 1 or opcode not in BY_CODE:
        return {"head"}
    op = BY_CODE[opcode]
    wrong = set[str]()
    if reserved or function not in range(max(1, len(op.functions))):
        wrong.add("head")
    wrong |= _dim_faults(op, fields["dims"], function) | _param_faults(op, fields["params"])
    for slot in range(5):
        wrong |= _operand_faults(op, fields, slot, sizes)
    if not wrong:
        wrong |= _write_faults(op, record)
    return wrong


def conservative(record: Any) -> bool:
    """True if a documented rule refuses the record though `faults` finds nothing."""
    op = BY_CODE[int(record["opcode"])]
    fields = plain(record)
    dims = dict(zip(op.dims, fields["dims"], strict=False))
    present = [s for s in range(len(op.operands)) if fields["operands"][s][1]]
    for slot in present:
        if not op.operands[slot].out or not starts(record, slot):
            continue
        strides = fields["operands"][slot][4]
        axes = sorted(
            (t, dims[a]) for a, t in zip(op.operands[slot].axes, strides, strict=False) if dims[a] > 1
        )
        if any(t <= sum((n - 1) * s for s, n in axes[:i]) for i, (t, _) in enumerate(axes)):
            return True
        for other in present:
            if other != slot and _ranges_meet(record, slot, other) and not _in_place(op, fields, slot, other):
                return True
    return False


def _dim_faults(op: Op, dims: tuple[int, ...], function: int) -> set[str]:
    d = dict(zip(op.dims, dims, strict=False))
    ok = not any(dims[len(op.dims) :]) and max(dims) < 2**31 and all(d[name] for name in op.nonzero)
    if op.name == "topk":
        ok = ok and d["k"] <= d["n"]
    if op.name == "reduce" and d["n"] == 0:
        ok = ok and function == REDUCE.index("sum")
    if op.name == "conv2d" and ok:
        ok = d["c"] > 0 and d["c"] % d["cg"] == 0 and d["o"] % (d["c"] // d["cg"]) == 0
    if op.name == "rope":
        ok = ok and d["f"] + d["f"] <= d["n"]
    if op.name == "penalize":
        ok = ok and d["o"] == 4 and d["w"] <= 4096
    if op.name == "sample":
        ok = ok and (d["o"], d["s"]) == (3, 5) and d["n"] <= 2**21
    if op.name == "attention" and ok:
        ok = d["h"] % d["g"] == 0
    ok = ok and all(prod(max(1, d[a]) for a in o.axes) <= 2**48 for o in op.operands)
    return set() if ok else {"dims"}


def _param_faults(op: Op, params: tuple[int, ...]) -> set[str]:
    ok = not any(params[len(op.params) :])
    for spec, value in zip(op.params, params, strict=False):
        ok = ok and (spec.kind == "f32" or spec.low <= value <= spec.high)
    return set() if ok else {"params"}


def _operand_faults(op: Op, fields: dict[str, Any], slot: int, sizes: Mapping[Space, int]) -> set[str]:
    offset, dtype, space, reserved, strides = fields["operands"][slot]
    spec = op.operands[slot] if slot < len(op.operands) else None
    if spec is None or (spec.optional and dtype == 0):
        return {"unused"} if any((offset, dtype, space, reserved, *strides)) else set()
    if dtype not in spec.dtypes or space not in sizes or reserved or any(strides[len(spec.axes) :]):
        return {"operand"}
    dims = dict(zip(op.dims, fields["dims"], strict=False))
    # The furthest element is at the far corner, as strides are not negative.
    corner = [dims[a] - 1 for a in spec.axes]
    kind = DType(dtype)
    if kind.block > 1 and not _whole_blocks(spec, kind, corner, strides):
        return {"blocks"}
    last = sum(i * s for i, s in zip(corner, strides, strict=False)) // kind.block
    end = offset if -1 in corner else offset + kind.itemsize * (last + 1)
    wrong = {"bounds"} if end > sizes[Space(space)] else set[str]()
    return wrong | ({"alignment"} if offset % min(2 if kind.block > 1 else 4, kind.itemsize) else set())


def _whole_blocks(spec: Operand, kind: DType, corner: list[int], strides: tuple[int, ...]) -> bool:
    """True if blocks lie along one axis, whole, and every other axis steps over whole blocks."""
    for axis, furthest, stride in zip(spec.axes, corner, strides, strict=False):
        if axis == spec.blocks and (stride != 1 or (furthest + 1) % kind.block):
            return False
        if axis != spec.blocks and stride % kind.block:
            return False
    return True


def _write_faults(op: Op, record: Any) -> set[str]:
    fields, wrong = plain(record), set[str]()
    present = [s for s in range(len(op.operands)) if fields["operands"][s][1]]
    for slot in (s for s in present if op.operands[s].out):
        writes = starts(record, slot)
        if len(set(writes)) < len(writes):
            wrong.add("twice")
        for other in present:
            if other == slot or fields["operands"][other][2] != fields["operands"][slot][2]:
                continue
            if touched(record, slot) & touched(record, other) and not _in_place(op, fields, slot, other):
                wrong.add("overlap")
    return wrong


def _in_place(op: Op, fields: dict[str, Any], slot: int, other: int) -> bool:
    same = fields["operands"][slot] == fields["operands"][other]
    return op.elementwise and same and op.operands[slot].axes == op.operands[other].axes


def _ranges_meet(record: Any, slot: int, other: int) -> bool:
    if record["operands"][slot]["space"] != record["operands"][other]["space"]:
        return False
    a, b = touched(record, slot), touched(record, other)
    return bool(a) and bool(b) and min(a) <= max(b) and min(b) <= max(a)
