"""Launches for what a model does with many rows: its products and its attention, on tensor cores.

A product of more than `FEWEST` f32 rows with a weight in 16 bits or blocks reads those rows rounded to 16
bits, from one place in device memory (`Room`). Whatever makes the rows (norm, gate, attention) writes them
there in that form; where nothing else reads them, only there. A residual that a product is added to is added
by the product. Models know nothing of this: the tape is the same on every device. Only weights
(`Space.WEIGHTS`) and a session's cache (`Space.KV`) are met like this; a guest's own tensors are multiplied
in f32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from nocopy.device.cuda_attention import attend
from nocopy.device.cuda_blas import WORKSPACE_BYTES, BlasLaunch, Product
from nocopy.device.cuda_by_rows import ByRows, picks, turns, whole_words
from nocopy.device.cuda_keep import keep
from nocopy.device.cuda_launch import (
    ASKING_PRODUCTS,
    BLOCKS_PER_SM,
    AnyLaunch,
    Fields,
    Launch,
    Plan,
    Shape,
    bases_of,
    plan,
)
from nocopy.device.cuda_many import FEWEST, Many, Rows, any_many, dense_rows, find_many
from nocopy.device.cuda_records import Records
from nocopy.memory.dtype import BLOCKS, DType
from nocopy.tape.builder import TapeBuilder
from nocopy.tape.ops import BINARY
from nocopy.tape.record import Space, Tensor
from nocopy.tape.validate import Extent

FEW = 64
"""Rows that `tensor_product_few` takes, which decodes a weight of blocks where it multiplies it."""
FEW_COLUMNS, FEW_WARPS, SLICE_BYTES = 16, 4, 256
TILE, TILE_SHARED = 128, 4 * 2 * 128 * 64
"""Sides of a tile of `tensor_product`, and the bytes of its stages."""
LONGEST_CALL = 2**40
"""Multiply-adds of a product up to which the library takes it, whose kernels cannot be asked to stop: some
4 ms, so that a graph of them ends within seconds."""


@dataclass(frozen=True)
class Held:
    """Rows whose 16 bits are there, as they were after record `since`."""

    rows: Rows
    since: int


class Prefill:
    """Makes launches of one tape's records.

    Args:
        records: what is to be played; weights lie in the GPU's memory.
        multiprocessors: of the GPU.
        stop: device address of the word that asks long kernels to stop; 0 for none.
        blas: there is a library for products.
        groups: warpgroups multiply.
    """

    def __init__(
        self, records: Records, multiprocessors: int, stop: int, *, blas: bool, groups: bool
    ) -> None:
        self._records, self._extents, self._addresses = records, records.tape.extents, records.addresses
        self._multiprocessors, self._stop, self._blas, self._groups = multiprocessors, stop, blas, groups
        self._by_rows = ByRows(records.addresses, multiprocessors, stop)
        self._products: dict[int, Many | None] = {}
        self._coarse: set[int] = set()
        """Products whose results are bf16, and gates that read them."""
        self._held: Held | None = None
        self._places = _Places(0, 0, 0)
        self._active = records.weights_stay and any_many(records.tape)
        found = [p for i in range(len(records)) if self._active and (p := self._product(i))]
        self._sizes = (
            2 * WORKSPACE_BYTES if blas and found else 0,
            max((_up(2 * p.rows.m * p.rows.k) for p in found), default=0),
            max((_up(2 * p.n * p.rows.k) for p in found if self._unpacks(p)), default=0),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the launches use; they keep nothing there from one play to the next."""
        return sum(self._sizes)

    def place(self, address: int) -> None:
        """Say where that memory is; call this before `group`."""
        blas, rows, _ = self._sizes
        self._places = _Places(address, address + blas, address + blas + rows)

    @property
    def beside(self) -> int:
        """Device address of working memory for the library's products that play beside others."""
        return self._places.blas + WORKSPACE_BYTES

    def group(self, first: int) -> tuple[Plan, int] | None:
        """The launches that play the records from `first` on, and how many they play; None if others do."""
        if not self._active:
            return None
        fields = self._records[first]
        if fields.op.name == "matmul" and self._product(first):
            return self._multiply(first)
        if fields.op.name in ("rmsnorm", "glu", "attention") and not fields.empty():
            return self._make(first)
        if fields.op.name == "gather" and picks(fields):
            return self._by_rows.launch(fields, "gather_rows", fields.named["r"]), 1
        return self._turn(first) if fields.op.name == "rope" and turns(fields) else None

    # Records

    def _product(self, index: int) -> Many | None:
        """The product that a record is, if tensor cores take it."""
        if index >= len(self._records):
            return None
        if index not in self._products:
            self._products[index] = find_many(self._records[index], self._addresses)
        return self._products[index]

    def _few(self, p: Many) -> bool:
        """True if the weight is multiplied where it is decoded."""
        return p.rows.m <= FEW and not (self._blas and p.dtype not in BLOCKS)

    def _unpacks(self, p: Many) -> bool:
        return p.dtype in BLOCKS and not self._few(p)

    # Who makes rows

    def _make(self, at: int) -> tuple[Plan, int] | None:
        """A norm, a gate or attention that writes what the product after it reads; a norm may write f32 too,
        and the product come after one of fewer rows.
        """
        fields, p = self._records[at], self._product(at + 1)
        both = fields.op.name == "rmsnorm" and whole_words(fields) and fields.words(0)
        if p is None and both:
            p = self._product(at + 2)
        if p is not None and self._made(fields) != replace(p.rows, half=DType.F32):
            p = None
        alone = p is not None and self._dead(at, at + 1, p.rows)
        if p is None or not (alone or both):
            found = self._attention(fields) if fields.op.name == "attention" else None
            return (Plan((found,)), 1) if found else None
        written, to = Fields.unpack(self._records.raw[at]), 0 if alone else 3
        written.operands[to] = written.operands[0]
        self._point(written, to, self._places.rows, p.rows.half, dense_rows(written, p.rows.k))
        for slot in (1, 2) if at in self._coarse else ():
            address = written.address(slot, self._addresses)
            self._point(written, slot, address, DType.BF16, written.strides[slot])
        self._held = Held(p.rows, at)
        if fields.op.name == "attention":
            found = self._attention(written)
            if found:
                return Plan((found,)), 1
        elif whole_words(fields):
            if fields.op.name == "glu":
                return self._by_rows.launch(written, "gate_rows", p.rows.m), 1
            return self._by_rows.norm(written, p.rows), 1
        return plan(written.pack(), self._addresses, self._stop, self._multiprocessors), 1

    def _made(self, fields: Fields) -> Rows | None:
        """What a record writes, as rows."""
        d, strides = fields.named, fields.strides[0]
        if fields.dtype(0) is not DType.F32:
            return None
        if fields.op.name == "attention":
            if strides[2] != 1 or (d["h"] > 1 and strides[1] != d["n"]):
                return None
            m, k, row = d["r"], d["h"] * d["n"], strides[0]
        else:
            *outer, m, k = (d[axis] for axis in fields.op.operands[0].axes)
            if prod(outer) != 1 or strides[3] != 1:
                return None
            row = strides[2]
        return Rows(fields.address(0, self._addresses), m, k, row, DType.F32)

    def _dead(self, at: int, after: int, rows: Rows | None) -> bool:
        """True if no record from `after` on reads what record `at` writes in f32 before it is overwritten.

        Products that read `rows`, in 16 bits, do not count until others' rows take their place. A tape with
        weights is a model's, whose scratch ends with it.
        """
        out, there = self._extents[at][0], True
        for index in range(after, len(self._records)):
            p = self._product(index)
            reads = [e for e in self._extents[index] if not e.written and _overlap(e, out)]
            if reads and not (there and p and p.rows == rows and len(reads) == 1):
                return False
            there = there and (p is None or p.rows == rows)
            if any(e.written and _covers(e, out) for e in self._extents[index]) and self._dense(index):
                return True
        return out.space == Space.SCRATCH

    def _dense(self, index: int) -> bool:
        """True if the first output of a record leaves no byte of its range out."""
        fields, extent = self._records[index], self._extents[index][0]
        count = prod(fields.named[axis] for axis in fields.op.outputs[0].axes)
        dtype = fields.dtype(0)
        scatters = fields.op.name == "scatter"
        return not scatters and count // dtype.block * dtype.itemsize == extent.stop - extent.start

    def _turn(self, at: int) -> tuple[Plan, int]:
        """A rotation, of keys on their way to the cache together with their values."""
        kept = keep(self._records, at)
        if kept is not None and self._dead(at, at + 3, None):
            return self._by_rows.launch(kept, "keep_rows", kept.named["r"]), 3
        fields = self._records[at]
        return self._by_rows.launch(fields, "rope_rows", fields.named["r"]), 1

    # Products

    def _multiply(self, at: int) -> tuple[Plan, int]:
        """A product, or two of one shape; rounds their rows first if that has not been done."""
        p = self._product(at)
        assert p is not None
        launches: list[AnyLaunch] = []
        if not self._ready(p.rows, at):
            launches += self._round(at, p.rows)
            self._held = Held(p.rows, at - 1)
        if at not in self._coarse and self._is_gate(at):
            self._coarse |= {at, at + 1, at + 2}
        twin = self._product(at + 1)
        if twin is not None and self._twins(at, p, twin):
            launches += [self._call(at, p, p.out, p.out_row, twin=twin)]
            return Plan(tuple(launches)), 2
        target = self._residual(at, p)
        out, out_row = target or (p.out, p.out_row)
        launches += self._launches(at, p, out, out_row, add=target is not None)
        return Plan(tuple(launches)), 2 if target else 1

    def _ready(self, rows: Rows, at: int) -> bool:
        """True if their 16 bits are there, and what they were made of has not been written since."""
        held = self._held
        if held is None or held.rows != rows:
            return False
        source = self._extents[at][1]
        return not any(
            e.written and _overlap(e, source) for i in range(held.since + 1, at) for e in self._extents[i]
        )

    def _round(self, at: int, rows: Rows) -> tuple[AnyLaunch, ...]:
        """Copies rows to 16 bits."""
        offset, _, space, _ = self._records[at].operands[1]
        to = (self._places.rows - self._addresses[Space(space)]) % 2**64
        tape, shape = TapeBuilder(), (rows.m, rows.k)
        tape.copy(
            Tensor(Space(space), to, shape, rows.half),
            Tensor(Space(space), offset, shape, DType.F32, (rows.row, 1)),
        )
        return plan(bytes(tape), self._addresses, self._stop, self._multiprocessors).launches

    def _residual(self, at: int, p: Many) -> tuple[int, int] | None:
        """What the next record adds the product to, in place: address and row; None if it does not."""
        if at + 1 >= len(self._records):
            return None
        fields = self._records[at + 1]
        if fields.op.name != "binary" or fields.header[2] != BINARY.index("add"):
            return None
        d = fields.named
        if (d["d0"] * d["d1"], d["d2"], d["d3"]) != (1, p.rows.m, p.n):
            return None
        places = [(fields.address(slot, self._addresses), fields.strides[slot][2]) for slot in range(3)]
        target, *inputs = places
        plain = all(fields.dtype(s) is DType.F32 and fields.strides[s][3] == 1 for s in range(3))
        if (
            not plain
            or target == (p.out, p.out_row)
            or sorted(inputs) != sorted((target, (p.out, p.out_row)))
        ):
            return None
        if _overlap(self._extents[at + 1][0], self._extents[at][0]) or not self._dead(at, at + 2, None):
            return None
        return target

    def _twins(self, at: int, p: Many, other: Many) -> bool:
        """True if the library takes a product and the next at once."""
        out, touched = self._extents[at][0], self._extents[at + 1]
        if any(_overlap(out, e) for e in touched):
            return False
        alike = replace(other, weight=p.weight, out=p.out) == p
        apart = (other.weight - p.weight) % 2 == 0 and (other.out - p.out) % 4 == 0
        return alike and apart and self._blas and p.dtype not in BLOCKS and 2 * p.work <= LONGEST_CALL

    def _is_gate(self, at: int) -> bool:
        """True if two products of the library are all that a gate reads, and nothing else reads them: what
        they hand on may be bf16, where the f32 would have been.
        """
        pair, after = [self._product(at), self._product(at + 1)], self._product(at + 3)
        if after is None or self._records[at + 2].op.name != "glu":
            return False
        products = [p for p in pair if p is not None and self._by_library(p) and p.rows.half is DType.BF16]
        gate, outs = self._records[at + 2], [self._extents[i][0] for i in (at, at + 1)]
        places = {(gate.address(s, self._addresses), gate.strides[s][2]) for s in (1, 2)}
        rows = replace(after.rows, half=DType.F32)
        return (
            len(products) == 2
            and products[0].rows == products[1].rows
            and places == {(p.out, p.out_row) for p in products}
            and all((p.rows.m, p.n) == (rows.m, rows.k) and p.out_row % 8 == 0 == p.n % 8 for p in products)
            and not _overlap(*outs)
            and whole_words(gate)
            and self._made(gate) == rows
            and self._dead(at + 2, at + 3, after.rows)
            and all(self._dead(i, at + 3, None) for i in (at, at + 1))
        )

    def _by_library(self, p: Many) -> bool:
        return self._blas and not self._few(p) and p.work <= LONGEST_CALL

    def _call(
        self, at: int, p: Many, out: int, out_row: int, *, add: bool = False, twin: Many | None = None
    ) -> BlasLaunch:
        r, dtype = p.rows, DType.BF16 if at in self._coarse else DType.F32
        product = Product(
            r.m, p.n, r.k, r.half, self._places.rows, r.k, p.weight, p.weight_row, out, out_row, p.scale, add,
            out_dtype=dtype,
        )  # fmt: skip
        if twin is not None:
            steps = (twin.weight - p.weight) // 2, (twin.out - p.out) // dtype.itemsize
            product = replace(product, count=2, weight_step=steps[0], out_step=steps[1])
        return BlasLaunch(product, self._places.blas)

    def _launches(self, at: int, p: Many, out: int, out_row: int, *, add: bool) -> list[AnyLaunch]:
        """The launches of one product that is written, or added, to `out`."""
        fields = Fields.unpack(self._records.raw[at])
        self._point(fields, 0, out, DType.F32, (0, 0, out_row, 1))
        self._point(fields, 1, self._places.rows, p.rows.half, (0, 0, p.rows.k, 1))
        version, opcode, _, reserved = fields.header
        fields.header = version, opcode, int(add), reserved
        stop = self._stop if p.work >= ASKING_PRODUCTS else 0
        bases = bases_of(self._addresses)
        if self._few(p):
            bands = -(-p.rows.m // 16)
            shared = FEW_WARPS * (16 * bands + FEW_COLUMNS) * SLICE_BYTES
            blocks = min(-(-p.n // FEW_COLUMNS), BLOCKS_PER_SM * self._multiprocessors)
            shape = Shape("tensor_product", f"tensor_product_few_{p.dtype.name.lower()}", blocks, (128, 1))
            return [Launch(shape, fields.pack(), bases, stop, shared)]
        launches: list[AnyLaunch] = []
        if p.dtype in BLOCKS:
            unpacked = Fields.unpack(self._records.raw[at])
            self._point(unpacked, 0, self._places.weight, DType.BF16, (0, 0, p.rows.k, 1))
            blocks = min(-(-p.n * p.rows.k // 2048), 4 * BLOCKS_PER_SM * self._multiprocessors)
            shape = Shape("unpack", f"unpack_{p.dtype.name.lower()}", blocks, (256, 1))
            launches.append(Launch(shape, unpacked.pack(), bases, stop))
            self._point(fields, 2, self._places.weight, DType.BF16, (0, 0, 1, p.rows.k))
            p = replace(p, weight=self._places.weight, weight_row=p.rows.k)
        if self._by_library(p):
            return [*launches, self._call(at, p, out, out_row, add=add)]
        tiles = -(-p.rows.m // TILE) * -(-p.n // TILE)
        shape = Shape("tensor_product", f"tensor_product_{p.rows.half.name.lower()}", tiles, (256, 1))
        return [*launches, Launch(shape, fields.pack(), bases, stop, TILE_SHARED)]

    def _point(self, fields: Fields, slot: int, address: int, dtype: DType, strides: Sequence[int]) -> None:
        """Have an operand name other memory."""
        _, _, space, reserved = fields.operands[slot]
        fields.operands[slot] = (address - self._addresses[Space(space)]) % 2**64, dtype, space, reserved
        fields.strides[slot] = list(strides)

    def _attention(self, fields: Fields) -> Launch | None:
        """The launch of an attention that tensor cores take."""
        if fields.named["r"] <= FEWEST:
            return None
        return attend(fields, self._addresses, self._multiprocessors, self._stop, groups=self._groups)


@dataclass(frozen=True)
class _Places:
    """Device addresses: of the library's working memory, of rows in 16 bits, of a decoded weight."""

    blas: int
    rows: int
    weight: int


def _overlap(a: Extent, b: Extent) -> bool:
    return a.space == b.space and a.start < b.stop and b.start < a.stop


def _covers(a: Extent, b: Extent) -> bool:
    return a.space == b.space and a.start <= b.start and b.stop <= a.stop


def _up(nbytes: int) -> int:
    """Rounded up to what the library likes addresses to be multiples of."""
    return -(-nbytes // 256) * 256
