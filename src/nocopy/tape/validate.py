"""The validator: records in, a `Tape` out, or a `TapeError` that names the record and what is wrong.

The caller hands in bytes that nobody else can change (a copy of what a guest wrote). All arithmetic is on
Python integers, so nothing can overflow. What is checked, for every record: version, opcode, function,
unused fields are zero, dims, parameters; and for every operand: dtype, space, alignment, its number of
elements, that its furthest element lies inside its space, that no output element is written twice, and that
an output overlaps no other operand (except an element-wise op that writes exactly over its input).

Two rules refuse more than they must, because the exact answer costs too much to compute:
    - an output's axes, sorted by stride, must each step past everything that the smaller ones span;
    - operands overlap when the ranges from their first to their last byte do, even if they interleave.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from nocopy.errors import TapeError
from nocopy.memory.dtype import DType
from nocopy.tape.ops import BY_CODE, Op, Operand
from nocopy.tape.record import (
    MAX_AXES,
    MAX_DIMS,
    MAX_OPERANDS,
    MAX_PARAMS,
    RECORD,
    RECORD_BYTES,
    VERSION,
    Space,
)

_OPERAND = f"QHHI{MAX_AXES}I"
_FIELDS = struct.Struct("<4H" + _OPERAND * MAX_OPERANDS + f"{MAX_DIMS}I{MAX_PARAMS}I")
assert _FIELDS.size == RECORD_BYTES

MAX_RECORDS = 65536
MAX_ELEMENTS = 2**48
"""Elements of one operand, repeated ones included and an empty axis counted as one: a player may multiply
any of an operand's dims in 64 bits."""
DEFAULT_WORK_LIMIT = 2**40
"""Elements or multiply-adds that one tape may cost: some seconds on a CPU."""

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Extent:
    """The bytes [start, stop) of a space that an operand touches, and whether it is written."""

    space: Space
    start: int
    stop: int
    written: bool


@dataclass(frozen=True, eq=False)
class Tape:
    """Validated records. Read-only; valid for spaces at least as large as those it was checked against.

    `records` is a read-only array of dtype `RECORD`. `extents` lists what each record touches, one tuple per
    record. `sizes` is the number of bytes that the tape needs of each space. `work` is its cost in elements
    written or multiply-adds, whichever is more for each record.
    """

    records: Records
    extents: tuple[tuple[Extent, ...], ...]
    sizes: Mapping[Space, int]
    work: int

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def address(self) -> int:
        """Of the first record, for native code."""
        return self.records.ctypes.data

    def __bytes__(self) -> bytes:
        return self.records.tobytes()

    def ops(self) -> list[Op]:
        """The op of each record."""
        return [BY_CODE[int(code)] for code in self.records["opcode"]]


def validate(
    records: bytes | bytearray | memoryview | Records,
    spaces: Mapping[Space, int],
    *,
    work_limit: int = DEFAULT_WORK_LIMIT,
) -> Tape:
    """Check records against the sizes of the spaces that they may use.

    Args:
        records: whole records of 256 bytes, or an array of dtype `RECORD`. They are copied first.
        spaces: the size in bytes of every space that the tape may touch; other spaces are refused.
        work_limit: the most elements or multiply-adds that the whole tape may cost.

    Raises:
        TapeError: a record is refused; the message names the record, the op, the field and the values.
    """
    raw = records.tobytes() if isinstance(records, np.ndarray) else bytes(records)
    if len(raw) % RECORD_BYTES:
        raise TapeError(f"a tape of {len(raw)} bytes was given; it must be a multiple of {RECORD_BYTES}")
    if len(raw) // RECORD_BYTES > MAX_RECORDS:
        raise TapeError(
            f"a tape of {len(raw) // RECORD_BYTES} records was given; at most {MAX_RECORDS} are allowed"
        )
    array: Records = np.frombuffer(raw, RECORD)
    work = 0
    extents: list[tuple[Extent, ...]] = []
    sizes: dict[Space, int] = {}
    accepted: dict[bytes, tuple[int, tuple[Extent, ...]]] = {}
    for index in range(len(array)):
        record = raw[index * RECORD_BYTES : (index + 1) * RECORD_BYTES]
        if record not in accepted:  # steps of a model are the same records again, but for their positions
            accepted[record] = _Check(index, _FIELDS.unpack(record), spaces).run()
        cost, touched = accepted[record]
        work += cost
        if work > work_limit:
            name = BY_CODE[int(array["opcode"][index])].name
            raise TapeError(
                f"record {index} ({name}): the tape costs more than {work_limit} elements;"
                " split it or raise the work limit",
                index,
            )
        extents.append(touched)
        for e in touched:
            sizes[e.space] = max(sizes.get(e.space, 0), e.stop)
    return Tape(array, tuple(extents), sizes, work)


class _Check:
    """One record under examination."""

    def __init__(self, index: int, fields: tuple[int, ...], spaces: Mapping[Space, int]) -> None:
        self.index, self.spaces = index, spaces
        self.version, self.opcode, self.function, self.reserved = fields[:4]
        width = 4 + MAX_AXES
        self.operands = [fields[4 + i * width : 4 + (i + 1) * width] for i in range(MAX_OPERANDS)]
        self.raw_dims = fields[-MAX_DIMS - MAX_PARAMS : -MAX_PARAMS]
        self.raw_params = fields[-MAX_PARAMS:]
        self.op: Op | None = None

    def fail(self, what: str) -> NoReturn:
        name = f" ({self.op.name})" if self.op else ""
        raise TapeError(f"record {self.index}{name}: {what}", self.index)

    def run(self) -> tuple[int, tuple[Extent, ...]]:
        op = self._header()
        dims = self._dims(op)
        params = self._params(op)
        wrong = op.check(dims, params)
        if wrong:
            self.fail(wrong)
        extents: list[tuple[Operand, int, Extent]] = []
        for slot, spec in enumerate(op.operands):
            extent = self._operand(slot, spec, dims)
            if extent is not None:
                extents.append((spec, slot, extent))
        for slot in range(len(op.operands), len(self.operands)):
            self._unused(slot)
        self._aliasing(op, extents)
        # An op over an empty axis still writes its output: a sum over nothing is 0.
        written = (prod(dims[a] for a in spec.axes) for spec in op.outputs)
        return max(op.work(dims), *written), tuple(e for _, _, e in extents)

    def _header(self) -> Op:
        if self.version != VERSION:
            self.fail(f"version {self.version}; this host plays version {VERSION}")
        op = BY_CODE.get(self.opcode)
        if op is None:
            self.fail(f"opcode {self.opcode} is unknown; known are 1 to {max(BY_CODE)}")
        self.op = op
        if self.function >= max(1, len(op.functions)):
            known = f"0 to {len(op.functions) - 1}" if op.functions else "only 0"
            self.fail(f"function {self.function} is unknown; this op has {known}")
        if self.reserved:
            self.fail(f"the reserved field is {self.reserved}; it must be 0")
        return op

    def _dims(self, op: Op) -> dict[str, int]:
        if any(self.raw_dims[len(op.dims) :]):
            self.fail(f"dims past the first {len(op.dims)} must be 0")
        dims = dict(zip(op.dims, self.raw_dims, strict=False))
        for name, size in dims.items():
            if size >= 2**31:
                self.fail(f"dim {name} is {size}; at most {2**31 - 1} is allowed")
        for name in op.nonzero:
            if dims[name] == 0:
                self.fail(f"dim {name} is 0; this op needs at least 1")
        return dims

    def _params(self, op: Op) -> dict[str, float]:
        if any(self.raw_params[len(op.params) :]):
            self.fail(f"params past the first {len(op.params)} must be 0")
        values: dict[str, float] = {"function": self.function}
        for i, spec in enumerate(op.params):
            raw = self.raw_params[i]
            if spec.kind == "u32" and not spec.low <= raw <= spec.high:
                self.fail(f"param {spec.name} is {raw}; {spec.low} to {spec.high} is allowed")
            values[spec.name] = raw if spec.kind == "u32" else struct.unpack("<f", struct.pack("<I", raw))[0]
        return values

    def _operand(self, slot: int, spec: Operand, dims: Mapping[str, int]) -> Extent | None:
        offset, dtype, space, reserved, *strides = self.operands[slot]
        if dtype == DType.NONE and spec.optional:
            self._unused(slot)
            return None
        where = f"operand {spec.name}"
        if dtype not in spec.dtypes:
            allowed = ", ".join(d.name.lower() for d in sorted(spec.dtypes))
            self.fail(f"{where} has dtype {dtype}; allowed are {allowed}")
        if space not in self.spaces:
            allowed = ", ".join(s.name.lower() for s in self.spaces)
            self.fail(f"{where} lies in space {space}; this tape may use {allowed}")
        if reserved:
            self.fail(f"{where}: the reserved field is {reserved}; it must be 0")
        if any(strides[len(spec.axes) :]):
            self.fail(f"{where} has {len(spec.axes)} axes; strides past them must be 0")
        kind = DType(dtype)
        if offset % kind.alignment:
            self.fail(f"{where} starts at byte {offset}, which is not a multiple of {kind.alignment}")
        shape = [dims[a] for a in spec.axes]
        if kind.block > 1:
            self._blocks(where, spec, shape, strides, kind.block)
        if prod(max(1, size) for size in shape) > MAX_ELEMENTS:
            self.fail(f"{where} has shape {tuple(shape)}; at most {MAX_ELEMENTS} elements are allowed")
        stop = offset + _span(shape, strides) // kind.block * kind.itemsize
        limit = self.spaces[Space(space)]
        if stop > limit:
            self.fail(f"{where} ends at byte {stop} of space {Space(space).name.lower()}, which has {limit}")
        if spec.out and not _injective(shape, strides):
            self.fail(f"{where}: strides {strides[: len(shape)]} of shape {shape} write an element twice")
        return Extent(Space(space), offset, stop, spec.out)

    def _blocks(self, where: str, spec: Operand, shape: list[int], strides: list[int], block: int) -> None:
        """Every block lies whole along one axis."""
        along = spec.axes.index(spec.blocks)
        if strides[along] != 1 or shape[along] % block:
            self.fail(
                f"{where} has {shape[along]} elements with stride {strides[along]} along {spec.blocks};"
                f" its type needs stride 1 and a multiple of {block}"
            )
        if any(stride % block for axis, stride in enumerate(strides) if axis != along):
            self.fail(f"{where} has strides {tuple(strides)}; its type needs multiples of {block}")

    def _unused(self, slot: int) -> None:
        offset, dtype, space, reserved, *strides = self.operands[slot]
        if offset or dtype or space or reserved or any(strides):
            self.fail(f"operand {slot} is unused and must be all zero")

    def _aliasing(self, op: Op, extents: list[tuple[Operand, int, Extent]]) -> None:
        for spec, slot, out in extents:
            if not out.written:
                continue
            for other_spec, other_slot, other in extents:
                if slot == other_slot or out.space != other.space:
                    continue
                if max(out.start, other.start) >= min(out.stop, other.stop):
                    continue  # apart, or one of them is empty
                same = self.operands[slot] == self.operands[other_slot]
                if op.elementwise and same and len(spec.axes) == len(other_spec.axes):
                    continue
                self.fail(
                    f"operand {spec.name} (bytes {out.start} to {out.stop}) overlaps {other_spec.name}"
                    f" (bytes {other.start} to {other.stop}); use separate bytes"
                    + (" or exactly the same tensor" if op.elementwise else "")
                )


def _span(shape: list[int], strides: list[int]) -> int:
    """Elements from the first to the last one touched, inclusive; 0 for an empty tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))


def _injective(shape: list[int], strides: list[int]) -> bool:
    """True if no two indices name the same element.

    Sufficient, not necessary: every axis must step over all that the smaller-strided axes span.
    """
    if 0 in shape:
        return True
    reach = 0
    for stride, size in sorted((t, s) for s, t in zip(shape, strides, strict=False) if s > 1):
        if stride <= reach:
            return False
        reach += (size - 1) * stride
    return True
