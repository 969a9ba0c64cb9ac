"""Finds records of a tape that launches of kernels/cuda/fused.cu can play together, and makes those launches.

A group is what a language model does with one row: a norm or none, up to three products with weights, and
the steps that take the products' results one by one (bias, rotation, KV cache, gate, residual). What is
written is what the records would have written, all of it; a group is only made where no part of it reads what
another part writes in between. Weights of one type are one launch; of a group with more types each run of one
is, next to each other. Models know nothing of this: the tape is the same on every device.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby
from typing import Generic, Protocol, TypeAlias, TypeVar

from nocopy.device.cuda_launch import Fields, Shape
from nocopy.device.cuda_records import Records, interleaved, overlap
from nocopy.memory.dtype import DType
from nocopy.tape.ops import BINARY, ROPE
from nocopy.tape.record import Space

PRODUCT = struct.Struct("<7Q6I2f")
"""`nocopy_product` in kernels/cuda/fused.cu."""
FUSED = struct.Struct(f"<{3 * PRODUCT.size}s5Q5If2I")
"""`nocopy_fused` there."""
MAX_PRODUCTS = 3
WARPS = 8
"""Warps of a block."""
PIECE_BYTES = 2048
"""Bytes of a weight's row that one copy moves: two rows' make a slot."""
MAX_SLOTS = 2
"""Slots of a warp's ring: three or four leave less room beside a block, and measured slower."""
MAX_PIECES = 1024
"""Pieces of pairs whose sums a block keeps at a time, as in fused.cu."""
HEAD_BYTES = MAX_PIECES * 8 + 16 * 4 + WARPS * MAX_SLOTS * 8
"""Shared memory of a block beside ring and row: sums, squares, barriers."""
RESERVED_BYTES = 1024
"""Shared memory that the system takes of each block."""
STEP = {
    DType.F32: 128, DType.F16: 256, DType.BF16: 256, DType.Q8_0: 256, DType.Q4_0: 256,
    DType.Q4_K: 256, DType.Q5_K: 256, DType.Q6_K: 2048,
}  # fmt: skip
"""Elements of which a piece has a multiple: all lanes have work, and the bytes are whole 16-byte words."""


@dataclass(frozen=True)
class Chip:
    """What decides a launch's shape: multiprocessors, shared memory of each and of a block, in bytes, and the
    bytes that memory brings to each in a cycle, going by its clocks; infinite where they are not known.
    """

    multiprocessors: int
    shared_bytes: int
    block_shared_bytes: int
    bytes_per_cycle: float = math.inf


@dataclass(frozen=True)
class Product:
    """One weight and what becomes of its product. Addresses; 0 where there is none."""

    weight: int
    out: int
    rows: int
    row_bytes: int
    dtype: DType
    scale: float
    bias: int = 0
    residual: int = 0
    cache: int = 0
    cache_row_bytes: int = 0
    cache_dtype: DType = DType.NONE
    cache_rows: int = 0
    frequencies: int = 0
    head: int = 0
    turn: int = 0
    turn_scale: float = 1.0

    def pack(self) -> bytes:
        """The bytes of `nocopy_product`."""
        return PRODUCT.pack(
            self.weight, self.out, self.bias, self.residual, self.cache, self.cache_row_bytes,
            self.frequencies, self.rows, self.row_bytes, self.cache_dtype, self.cache_rows, self.head,
            self.turn, self.scale, self.turn_scale,
        )  # fmt: skip


@dataclass
class Group:
    """Records that are played together, so far. Addresses; 0 where there is none.

    `chunk` elements of a row are copied at a time, to one of `slots` of a warp.
    """

    k: int
    x: int
    norm: int = 0
    normed: int = 0
    eps: float = 0.0
    positions: int = 0
    gate: int = 0
    gated: int = 0
    products: list[Product] = field(default_factory=list[Product])
    chunk: int = 0
    slots: int = 0

    @property
    def pairs(self) -> int:
        """Pairs of rows of the weights, one after the other or combined; 0 if some row has no other."""
        if any(p.turn and p.head % 2 for p in self.products):
            return 0
        if self.gate:
            return self.products[0].rows
        return 0 if any(p.rows % 2 for p in self.products) else sum(p.rows // 2 for p in self.products)

    def by_type(self) -> list[Group]:
        """The group, as one for each run of products with weights of one type; the first writes `normed`."""
        runs = [list(run) for _, run in groupby(self.products, lambda p: p.dtype)]
        return [replace(self, products=run, normed=0 if i else self.normed) for i, run in enumerate(runs)]

    def pack(self) -> bytes:
        """The bytes of `nocopy_fused`."""
        chunks = -(-self.k // self.chunk)
        return FUSED.pack(
            b"".join(p.pack() for p in self.products).ljust(MAX_PRODUCTS * PRODUCT.size, b"\0"),
            self.x, self.norm, self.normed, self.positions, self.gated, len(self.products), self.k, self.gate,
            self.chunk, self.slots, self.eps, -(-(2**32) // chunks) % 2**32, 0,
        )  # fmt: skip


class Packed(Protocol):
    """The argument of a kernel."""

    def pack(self) -> bytes:
        """Its bytes."""
        ...


G = TypeVar("G", bound=Packed)


@dataclass(frozen=True)
class FusedLaunch(Generic[G]):
    """One launch of a fused kernel."""

    shape: Shape
    group: G
    shared: int

    @property
    def grid(self) -> int:
        """Blocks."""
        return self.shape.blocks

    def argument(self, workspace: int) -> bytes:
        """The packed group, which needs no workspace."""
        del workspace
        return self.group.pack()


Fused: TypeAlias = tuple[tuple[FusedLaunch[Group], ...], int]
"""Launches, and how many records they play."""


class Fuser:
    """Makes groups of one tape's records.

    Args:
        records: what is to be played; weights lie in the GPU's memory.
        chip: the GPU.
    """

    def __init__(self, records: Records, chip: Chip) -> None:
        self._records, self._chip = records, chip
        self._addresses = records.addresses
        self._known: dict[bytes, list[tuple[list[bytes], Fused]]] = {}

    def group(self, first: int) -> Fused | None:
        """The launches that play the records from `first` on, and how many they play; None if others do."""
        if not self._records.weights_stay:
            return None
        # Tokens that are fed ahead are the same records again, but for those that name a position.
        raw = self._records.raw
        known = self._known.setdefault(raw[first], [])
        for records, fused in known:
            if raw[first : first + len(records)] == records:
                return fused
        found = self._group(first)
        if found:
            known.append((raw[first : first + found[1] + 1], found))  # the last one ends the group
        return found

    def _group(self, first: int) -> Fused | None:
        at, group = first, self._norm(first)
        if group is not None:
            at += 1
        group, at = self._products(group, at)
        if group is None:
            return None
        stop = self._finish(group, at)
        if not self._independent(group, first, stop):
            return None
        parts = group.by_type()
        launches = tuple(launch for part in parts if (launch := self._launch(part)))
        return (launches, stop - first) if len(launches) == len(parts) else None

    # Records

    def _row(self, fields: Fields, slot: int, count: int, dtype: DType = DType.F32) -> int:
        """The address of an operand that is `count` elements one after the other; 0 if it is not."""
        axes = [fields.named[axis] for axis in fields.op.operands[slot].axes]
        strides = fields.strides[slot]
        wide = [(n, s) for n, s in zip(axes, strides, strict=False) if n != 1]
        if fields.dtype(slot) is not dtype or wide != [(count, 1)]:
            return 0
        return fields.address(slot, self._addresses)

    def _vector(self, fields: Fields, slot: int, count: int) -> int:
        """The same for whole 16-byte words."""
        at = self._row(fields, slot, count)
        return 0 if at % 16 else at

    def _in_weights(self, fields: Fields, slot: int) -> bool:
        return fields.operands[slot][2] == Space.WEIGHTS

    def _norm(self, index: int) -> Group | None:
        fields = self._records.find(index, "rmsnorm")
        if fields is None or fields.dtype(2) is DType.NONE or not self._in_weights(fields, 2):
            return None
        k = fields.named["n"]
        normed, x, norm = (self._vector(fields, slot, k) for slot in range(3))
        if not (normed and x and norm):
            return None
        return Group(k, x, norm, normed, fields.scalar(0))

    def _products(self, group: Group | None, at: int) -> tuple[Group | None, int]:
        """Products of one row with weights, each with its bias; and the record after them."""
        products: list[Product] = []
        while len(products) < MAX_PRODUCTS:
            product = self._product(group, at)
            if product is None:
                break
            if group is None:
                group = Group(self._records[at].named["k"], self._records[at].address(1, self._addresses))
            at += 1
            bias = self._bias(product, at)
            if bias:
                product, at = replace(product, bias=bias), at + 1
            products.append(product)
        if group is None or not products:
            return None, at
        group.products = products
        return group, at

    def _product(self, group: Group | None, index: int) -> Product | None:
        """One row times the transpose of a weight whose rows are whole 16-byte words in device memory."""
        fields = self._records.find(index, "matmul")
        if fields is None or not self._in_weights(fields, 2) or fields.dtype(2) not in STEP:
            return None
        d, dtype = fields.named, fields.dtype(2)
        k, n, steps = d["k"], d["n"], fields.strides[2]
        if d["b0"] * d["b1"] * d["m"] != 1 or steps[2] != 1 or k % STEP[dtype]:
            return None
        x, out = self._vector(fields, 1, k), self._row(fields, 0, n)
        if not x or not out or (group is not None and (x, k) != (group.normed or group.x, group.k)):
            return None
        weight, row_bytes = fields.address(2, self._addresses), steps[3] // dtype.block * dtype.itemsize
        if weight % 16 or row_bytes % 16 or n < 2:
            return None
        return Product(weight, out, n, row_bytes, dtype, fields.scalar(0))

    # What becomes of products

    def _bias(self, product: Product, index: int) -> int:
        fields = self._binary(index, product.out, product.rows)
        if fields is None or not self._in_weights(fields, 2):
            return 0
        return self._row(fields, 2, product.rows)

    def _binary(self, index: int, target: int, count: int) -> Fields | None:
        """An addition to `count` elements in place."""
        fields = self._records.find(index, "binary")
        if fields is None or fields.header[2] != BINARY.index("add"):
            return None
        same = self._row(fields, 0, count) == self._row(fields, 1, count) == target
        return fields if same else None

    def _finish(self, group: Group, at: int) -> int:
        """Take what follows into the group; the record after it."""
        if self._gate(group, at) or self._residual(group, at):
            return at + 1
        while self._turn(group, at) or self._cache(group, at):
            at += 1
        return at

    def _gate(self, group: Group, index: int) -> bool:
        fields = self._records.find(index, "glu")
        if fields is None or len(group.products) != 2 or len({(p.rows, p.dtype) for p in group.products}) > 1:
            return False
        rows = group.products[0].rows
        gated, *inputs = (self._row(fields, slot, rows) for slot in range(3))
        if not gated or inputs != [p.out for p in group.products]:
            return False
        group.gate, group.gated = 1 + fields.header[2], gated
        return True

    def _residual(self, group: Group, index: int) -> bool:
        product = group.products[0]
        fields = self._records.find(index, "binary")
        if fields is None or len(group.products) != 1 or fields.header[2] != BINARY.index("add"):
            return False
        target, *inputs = (self._row(fields, slot, product.rows) for slot in range(3))
        if not target or target == product.out or sorted(inputs) != sorted((target, product.out)):
            return False
        group.products[0] = replace(product, residual=target)
        return True

    def _turn(self, group: Group, index: int) -> bool:
        fields = self._records.find(index, "rope")
        if fields is None or fields.named["r"] != 1:
            return False
        d = fields.named
        heads = d["h"] * d["n"]
        whole = 2 * d["f"] == d["n"] and (d["h"] == 1 or fields.strides[0][1] == d["n"])
        found = self._target(group, fields, 1, heads) if whole and fields.strides[0][2] == 1 else None
        frequencies, positions = self._row(fields, 2, d["f"]) or 0, self._position(group, fields, 3)
        if found is None or fields.operands[0] != fields.operands[1] or not (frequencies and positions):
            return False
        if (
            fields.strides[0] != fields.strides[1]
            or group.products[found].turn
            or group.products[found].cache
        ):
            return False
        group.positions = positions
        group.products[found] = replace(
            group.products[found],
            frequencies=frequencies,
            head=d["n"],
            turn=1 + ROPE.index("interleaved") if fields.header[2] else 1,
            turn_scale=fields.scalar(0),
        )
        return True

    def _cache(self, group: Group, index: int) -> bool:
        fields = self._records.find(index, "scatter")
        if fields is None or fields.named["r"] != 1 or fields.dtype(0).block > 1 or fields.strides[0][1] != 1:
            return False
        found = self._target(group, fields, 1, fields.named["w"]) if fields.strides[1][1] == 1 else None
        positions = self._position(group, fields, 2)
        if found is None or not positions or group.products[found].cache:
            return False
        group.positions = positions
        group.products[found] = replace(
            group.products[found],
            cache=fields.address(0, self._addresses),
            cache_row_bytes=fields.strides[0][0] * fields.dtype(0).itemsize,
            cache_dtype=fields.dtype(0),
            cache_rows=fields.named["t"],
        )
        return True

    def _target(self, group: Group, fields: Fields, slot: int, count: int) -> int | None:
        """Which product an operand is the whole result of."""
        if fields.dtype(slot) is not DType.F32:
            return None
        at = fields.address(slot, self._addresses)
        return next((i for i, p in enumerate(group.products) if (p.out, p.rows) == (at, count)), None)

    def _position(self, group: Group, fields: Fields, slot: int) -> int:
        """The address of the row's position; 0 if the group has another one already."""
        at = fields.address(slot, self._addresses)
        return at if group.positions in (0, at) else 0

    # The group as a whole

    def _independent(self, group: Group, first: int, stop: int) -> bool:
        """True if no part of the group reads or writes what another part writes.

        Some ranges of bytes are passed on and may be named again: the normed row, which every block makes for
        itself, and each result, which the thread that made it goes on with.
        """
        passed = [(p.out, p.out + 4 * p.rows) for p in group.products]
        if group.gated and (group.gated, group.gated + 4 * group.products[0].rows) not in passed:
            passed.append((group.gated, group.gated + 4 * group.products[0].rows))
        if group.normed:
            passed.append((group.normed, group.normed + 4 * group.k))
        passed += [(p.residual, p.residual + 4 * p.rows) for p in group.products if p.residual]
        if any(overlap(a, b) for a, b in combinations([*passed, (group.x, group.x + 4 * group.k)], 2)):
            return False
        touched = [t for index in range(first, stop) for t in self._records.touched(index)]
        return all(
            (a.range == b.range in passed and not (a.table or b.table)) or interleaved(a, b)
            for a, b in combinations(touched, 2)
            if (a.written or b.written) and overlap(a.range, b.range)
        )

    def _launch(self, group: Group) -> FusedLaunch[Group] | None:
        dtype, pairs = group.products[0].dtype, group.pairs
        if not pairs:
            return None
        most = max(PIECE_BYTES // dtype.itemsize * dtype.block // STEP[dtype], 1) * STEP[dtype]
        chunks = -(-group.k // most)
        group.chunk = min(-(-group.k // chunks // STEP[dtype]) * STEP[dtype], group.k)
        slot_bytes = 2 * group.chunk // dtype.block * dtype.itemsize
        base = HEAD_BYTES + -(-group.k // STEP[dtype]) * STEP[dtype] * 4
        group.slots = self._slots(base, WARPS * slot_bytes)
        if not group.slots or chunks > MAX_PIECES // WARPS:
            return None
        blocks = min(self._chip.multiprocessors, pairs)
        shape = Shape("fused", f"fused_{dtype.name.lower()}", blocks, (32 * WARPS, 1))
        return FusedLaunch(shape, group, base + group.slots * WARPS * slot_bytes)

    def _slots(self, base: int, each: int) -> int:
        """As many slots as leave room for the next kernel's block beside this one; at least two, or none."""
        half = (self._chip.shared_bytes // 2 - RESERVED_BYTES - base) // each
        most = (self._chip.block_shared_bytes - base) // each
        return max(min(half, MAX_SLOTS), min(most, 2)) if most >= 2 else 0
