"""Finds records that launches of kernels/cuda/fused_rows.cu can play together, for two to eight rows.

What `cuda_fuse` does for one row, for a token of each of several sequences: a norm or none, up to three
products, and what takes their results one by one. Rows go to caches of their own. Where a model lets each
sequence's keys and values join its cache and attends to it, one sequence after another, all join first, and
one launch attends for all of them (kernels/cuda/attention_row.cu).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import prod

from nocopy.device.cuda_fuse import (
    FUSED,
    MAX_PRODUCTS,
    RESERVED_BYTES,
    Chip,
    FusedLaunch,
    Group,
    Product,
)
from nocopy.device.cuda_launch import (
    ARGUMENT,
    COUNTERS,
    MAX_WORKSPACE,
    SHORTEST_SPLIT,
    Fields,
    Launch,
    Plan,
    Shape,
    plan,
)
from nocopy.device.cuda_records import Records, Touched, interleaved, overlap
from nocopy.memory.dtype import DType
from nocopy.tape.ops import BINARY, ROPE
from nocopy.tape.record import Space

MOST_ROWS = 8
"""Rows of a launch: half of those of a matrix instruction, since each is two there."""
ROWS = struct.Struct(f"<{FUSED.size}s{MAX_PRODUCTS * MOST_ROWS}Q{MAX_PRODUCTS + 5}I2I")
"""`nocopy_fused_rows` in kernels/cuda/fused_rows.cu."""
ATTENTION_ROWS = struct.Struct(f"<{ARGUMENT.size}s{MOST_ROWS * 5}Q")
"""`nocopy_attention_rows` in kernels/cuda/attention_row.cu."""
UNIT_PAIRS, UNITS_AT_ONCE = 4, 4
"""Pairs of a weight's rows that are multiplied at once, and units whose sums a block keeps, as in
fused_rows.cu."""
UNIT_ROWS = 2 * UNIT_PAIRS
CHUNKS = {
    DType.F16: (128, 256), DType.BF16: (128, 256),
    DType.Q8_0: (128, 144), DType.Q4_0: (128, 80), DType.Q4_K: (256, 144),
    DType.Q5_K: (256, 176), DType.Q6_K: (256, 240),
}  # fmt: skip
"""Elements of k that a warp takes at a time, and the bytes of each of a unit's eight rows in a slot."""
WARPS, ENOUGH = tuple(range(16, 7, -1)), 0.85
"""Warps that a block may have: most of those that share out the chunks of a row this well, or best."""
FEWEST_WARPS = 4
"""Warps of a block where shared memory is scarce."""
FEWEST_SLOTS, MOST_SLOTS = 2, 4
"""Slots of a warp."""


@dataclass(frozen=True)
class Table:
    """f32 [rows, width] whose rows are contiguous: where it begins, elements from row to row."""

    address: int
    step: int

    def range(self, rows: int, width: int) -> tuple[int, int]:
        """The addresses [start, stop) of its bytes."""
        return self.address, self.address + 4 * ((rows - 1) * self.step + width)


@dataclass
class RowsGroup:
    """Records that are played together, so far. `base` is of the first row; steps are in elements."""

    rows: int
    base: Group
    x_step: int
    normed_step: int = 0
    gated_step: int = 0
    residual_step: int = 0
    position_step: int = 0
    outs: list[Table] = field(default_factory=list[Table])
    caches: list[list[int]] = field(default_factory=list[list[int]])
    """Of each product the address of each row's cache; 0 for none."""
    held: int = 1
    apart: list[int] = field(default_factory=list[int])
    """Attention in between, which launches of their own play afterwards."""

    def target(self, out: Table, width: int) -> int | None:
        """Which product a table is the whole result of."""
        products = zip(self.outs, self.base.products, strict=True)
        return next((i for i, (own, p) in enumerate(products) if (own, p.rows) == (out, width)), None)

    def place(self, address: int, width: int) -> tuple[int, int] | None:
        """Which product's result has a row of so many elements at an address, and which row."""
        for i, (out, product) in enumerate(zip(self.outs, self.base.products, strict=True)):
            row, rest = divmod(address - out.address, 4 * out.step)
            if product.rows == width and rest == 0 and 0 <= row < self.rows:
                return i, row
        return None

    def by_type(self) -> list[RowsGroup]:
        """The group, as one for each run of products with weights of one type; see `Group`."""
        parts: list[RowsGroup] = []
        at = 0
        for base in self.base.by_type():
            own = slice(at, at + len(base.products))
            parts.append(replace(self, base=base, outs=self.outs[own], caches=self.caches[own]))
            at = own.stop
        return parts

    def pack(self) -> bytes:
        """The bytes of `nocopy_fused_rows`."""
        caches = [c for each in self.caches for c in each]
        missing = MAX_PRODUCTS - len(self.outs)
        return ROWS.pack(
            self.base.pack(), *caches, *[0] * (MOST_ROWS * missing),
            *(out.step for out in self.outs), *[0] * missing,
            self.residual_step, self.x_step, self.normed_step, self.gated_step, self.position_step,
            self.rows, self.held,
        )  # fmt: skip


@dataclass(frozen=True)
class AttentionRowsLaunch:
    """Attention of one row of each of several sequences; `places`: the addresses of each one's operands."""

    shape: Shape
    launch: Launch
    places: tuple[tuple[int, ...], ...]
    shared: int = 0

    @property
    def grid(self) -> int:
        """Blocks."""
        return self.shape.blocks

    def argument(self, workspace: int) -> bytes:
        """`nocopy_attention_rows`."""
        flat = [address for each in self.places for address in each]
        missing = 5 * MOST_ROWS - len(flat)
        return ATTENTION_ROWS.pack(self.launch.argument(workspace), *flat, *[0] * missing)


class RowsFuser:
    """Makes launches of one tape's records. Arguments as for `Fuser`; `stop` as for `plan`."""

    def __init__(self, records: Records, chip: Chip, stop: int) -> None:
        self._records, self._chip, self._stop = records, chip, stop
        self._addresses = records.addresses

    def group(self, first: int) -> tuple[Plan, int] | None:
        """The launches that play the records from `first` on, and how many they play; None if others do."""
        if not self._records.weights_stay:
            return None
        if self._records.find(first, "scatter") or self._records.find(first, "attention"):
            return self._attend(first)
        group, at = self._norm(first)
        group, at = self._products(group, at)
        if group is None:
            return None
        stop = self._finish(group, at)
        parts = group.by_type()
        launches = tuple(launch for part in parts if (launch := self._launch(part)))
        if len(launches) < len(parts) or not self._independent(group, first, stop):
            return None
        joined = self._joined(group.apart)
        after = [joined] if joined else [self._plan(index) for index in group.apart]
        return _together([Plan(launches), *after]), stop - first

    # Records

    def _plan(self, index: int) -> Plan:
        return plan(self._records.raw[index], self._addresses, self._stop, self._chip.multiprocessors)

    def _table(self, fields: Fields, slot: int, rows: int, width: int) -> Table | None:
        """An operand that is f32 [rows, width]."""
        axes = fields.op.operands[slot].axes
        *outer, m, n = (fields.named[axis] for axis in axes)
        row, element = fields.strides[slot][len(axes) - 2 : len(axes)]
        if fields.dtype(slot) is not DType.F32 or (prod(outer), m, n) != (1, rows, width):
            return None
        if element != 1 or (rows > 1 and row < width):
            return None
        return Table(fields.address(slot, self._addresses), row)

    def _line(self, fields: Fields, slot: int, count: int) -> int:
        """The address of f32 [count] of the weights that all rows share; 0 if an operand is not that."""
        axes = fields.op.operands[slot].axes
        strides = fields.strides[slot][: len(axes)]
        named = fields.named
        outer = all(step == 0 or named[axis] == 1 for axis, step in zip(axes[:-1], strides, strict=False))
        plain = fields.dtype(slot) is DType.F32 and fields.operands[slot][2] == Space.WEIGHTS
        if not (plain and outer and named[axes[-1]] == count and strides[-1] == 1):
            return 0
        return fields.address(slot, self._addresses)

    def _norm(self, index: int) -> tuple[RowsGroup | None, int]:
        """A norm that the products after it read; and the record after it."""
        fields = self._records.find(index, "rmsnorm")
        if fields is None or fields.dtype(2) is DType.NONE:
            return None, index
        rows, k = fields.named["d2"], fields.named["n"]
        normed, x = (self._table(fields, slot, rows, k) for slot in range(2))
        norm = self._line(fields, 2, k)
        if not (1 < rows <= MOST_ROWS and normed and x and norm) or norm % 16 or not _in_words(x):
            return None, index
        base = Group(k, x.address, norm, normed.address, fields.scalar(0))
        return RowsGroup(rows, base, x.step, normed.step), index + 1

    def _products(self, group: RowsGroup | None, at: int) -> tuple[RowsGroup | None, int]:
        """Products of the rows with weights, each with its bias; and the record after them."""
        while group is None or len(group.base.products) < MAX_PRODUCTS:
            found = self._product(group, at)
            if found is None:
                break
            group, product, out = found
            at += 1
            bias = self._bias(group.rows, product, out, at)
            if bias:
                product, at = replace(product, bias=bias), at + 1
            group.base.products.append(product)
            group.outs.append(out)
            group.caches.append([0] * MOST_ROWS)
        return (group if group and group.base.products else None), at

    def _product(self, group: RowsGroup | None, index: int) -> tuple[RowsGroup, Product, Table] | None:
        """Rows times the transpose of a weight whose rows are whole 16-byte words in device memory."""
        fields = self._records.find(index, "matmul")
        if fields is None or fields.operands[2][2] != Space.WEIGHTS or fields.dtype(2) not in CHUNKS:
            return None
        d, dtype, steps = fields.named, fields.dtype(2), fields.strides[2]
        rows, k, n = d["m"], d["k"], d["n"]
        weight, row_bytes = fields.address(2, self._addresses), steps[3] // dtype.block * dtype.itemsize
        whole = k % max(128, dtype.block) == 0 and not (weight % 16 or row_bytes % 16)
        if not (1 < rows <= MOST_ROWS and d["b0"] * d["b1"] == 1 and steps[2] == 1 and n > 1 and whole):
            return None
        x, out = self._table(fields, 1, rows, k), self._table(fields, 0, rows, n)
        if not x or not out or not _in_words(x):
            return None
        if group is None:
            group = RowsGroup(rows, Group(k, x.address), x.step)
        base = group.base
        wanted = Table(base.normed, group.normed_step) if base.normed else Table(base.x, group.x_step)
        if (rows, k, x) != (group.rows, base.k, wanted):
            return None
        return group, Product(weight, out.address, n, row_bytes, dtype, fields.scalar(0)), out

    # What becomes of products

    def _bias(self, rows: int, product: Product, out: Table, index: int) -> int:
        fields = self._added(index)
        if fields is None or any(self._table(fields, slot, rows, product.rows) != out for slot in (0, 1)):
            return 0
        return self._line(fields, 2, product.rows)

    def _added(self, index: int) -> Fields | None:
        """The fields of a record, if it is an addition."""
        fields = self._records.find(index, "binary")
        return fields if fields and fields.header[2] == BINARY.index("add") else None

    def _finish(self, group: RowsGroup, at: int) -> int:
        """Take what follows into the group; the record after it."""
        if self._gate(group, at) or self._residual(group, at):
            return at + 1
        while True:
            if self._records.find(at, "attention") and any(map(any, group.caches)):
                group.apart.append(at)
            elif not (self._turn(group, at) or self._cache(group, at)):
                return at
            at += 1

    def _gate(self, group: RowsGroup, index: int) -> bool:
        fields, products = self._records.find(index, "glu"), group.base.products
        if fields is None or len(products) != 2 or len({(p.rows, p.dtype) for p in products}) > 1:
            return False
        gated, *inputs = (self._table(fields, slot, group.rows, products[0].rows) for slot in range(3))
        if not gated or inputs != group.outs:
            return False
        group.base.gate, group.base.gated, group.gated_step = 1 + fields.header[2], gated.address, gated.step
        return True

    def _residual(self, group: RowsGroup, index: int) -> bool:
        fields, product = self._added(index), group.base.products[0]
        if fields is None or len(group.base.products) != 1:
            return False
        target, *inputs = (self._table(fields, slot, group.rows, product.rows) for slot in range(3))
        if not target or target == group.outs[0] or None in inputs or set(inputs) != {target, group.outs[0]}:
            return False
        group.base.products[0] = replace(product, residual=target.address)
        group.residual_step = target.step
        return True

    def _turn(self, group: RowsGroup, index: int) -> bool:
        fields = self._records.find(index, "rope")
        if fields is None or fields.named["r"] != group.rows or fields.dtype(1) is not DType.F32:
            return False
        d, steps = fields.named, fields.strides[0]
        whole = 2 * d["f"] == d["n"] and (d["h"] == 1 or steps[1] == d["n"]) and steps[2] == 1
        found = group.target(Table(fields.address(1, self._addresses), steps[0]), d["h"] * d["n"])
        frequencies = fields.address(2, self._addresses) if fields.strides[2][0] == 1 or d["f"] == 1 else 0
        if found is None or not whole or not frequencies or not self._positions(group, fields, 3, 0):
            return False
        product = group.base.products[found]
        in_place = fields.operands[0] == fields.operands[1] and steps == fields.strides[1]
        if not in_place or product.turn or any(group.caches[found]) or group.apart:
            return False
        group.base.products[found] = replace(
            product,
            frequencies=frequencies,
            head=d["n"],
            turn=1 + ROPE.index("interleaved") if fields.header[2] else 1,
            turn_scale=fields.scalar(0),
        )
        return True

    def _cache(self, group: RowsGroup, index: int) -> bool:
        """Some rows of a product that join a cache, before what attends to others before them."""
        fields = self._records.find(index, "scatter")
        if fields is None or fields.dtype(0).block > 1 or fields.strides[0][1] != 1:
            return False
        rows, width, cache = fields.named["r"], fields.named["w"], fields.dtype(0)
        x = self._table(fields, 1, rows, width)
        place = group.place(x.address, width) if x else None
        if x is None or place is None or any(self._conflict(index, other) for other in group.apart):
            return False
        found, first = place
        product, step = group.base.products[found], group.outs[found].step
        row_bytes = fields.strides[0][0] * cache.itemsize
        alike = (cache, fields.named["t"], row_bytes)
        if (rows > 1 and x.step != step) or any(group.caches[found][first : first + rows]):
            return False
        have = product.cache_dtype, product.cache_rows, product.cache_row_bytes
        if (any(group.caches[found]) and have != alike) or not self._positions(group, fields, 2, first):
            return False
        group.base.products[found] = replace(
            product, cache_dtype=cache, cache_rows=fields.named["t"], cache_row_bytes=row_bytes
        )
        for row in range(first, first + rows):
            group.caches[found][row] = fields.address(0, self._addresses)
        return True

    def _positions(self, group: RowsGroup, fields: Fields, slot: int, first: int) -> bool:
        """True if an operand is the positions of rows from `first` on; the first such operand sets them."""
        at, step, count = fields.address(slot, self._addresses), fields.strides[slot][0], fields.named["r"]
        if not group.base.positions:
            if first or count != group.rows:
                return False
            group.base.positions, group.position_step = at, step
        same = count == 1 or step == group.position_step
        return same and at == group.base.positions + 4 * first * group.position_step

    # The group as a whole

    def _conflict(self, a: int, b: int) -> bool:
        """True if the order of two records matters."""
        return any(
            overlap(mine.range, other.range) and (mine.written or other.written)
            for mine in self._records.touched(a)
            for other in self._records.touched(b)
        )

    def _independent(self, group: RowsGroup, first: int, stop: int) -> bool:
        """True if no part of the group reads or writes what another part writes; see `Fuser`.

        Here some rows of a result may be named again, which those that made them go on with.
        """
        base, rows = group.base, group.rows
        passed = [out.range(rows, p.rows) for out, p in zip(group.outs, base.products, strict=True)]
        if base.gated:
            gated = Table(base.gated, group.gated_step).range(rows, base.products[0].rows)
            passed += [gated] if gated not in passed else []
        if base.normed:
            passed.append(Table(base.normed, group.normed_step).range(rows, base.k))
        if base.products[0].residual:
            passed.append(
                Table(base.products[0].residual, group.residual_step).range(rows, base.products[0].rows)
            )
        x = Table(base.x, group.x_step).range(rows, base.k)
        if any(overlap(a, b) for a, b in combinations([*passed, x], 2)):
            return False

        def within(a: Touched) -> int | None:
            return next((i for i, p in enumerate(passed) if p[0] <= a.range[0] and a.range[1] <= p[1]), None)

        found = [t for i in range(first, stop) if i not in group.apart for t in self._records.touched(i)]
        return all(
            (within(a) is not None and within(a) == within(b) and not (a.table or b.table))
            or interleaved(a, b)
            for a, b in combinations(found, 2)
            if (a.written or b.written) and overlap(a.range, b.range)
        )

    def _launch(self, group: RowsGroup) -> FusedLaunch[RowsGroup] | None:
        base, dtype = group.base, group.base.products[0].dtype
        pairs = base.pairs
        if not pairs:
            return None
        units = -(-pairs // UNIT_PAIRS)
        blocks = min(self._chip.multiprocessors, units)
        chunk, row_bytes = CHUNKS[dtype]
        chunks, again = -(-base.k // chunk), -(-units // blocks) > UNITS_AT_ONCE
        best = max(WARPS, key=lambda w: (min(chunks / (-(-chunks // w) * w), ENOUGH), w))
        half = self._chip.shared_bytes // 2 - RESERVED_BYTES
        whole = self._chip.block_shared_bytes
        # Rows that are read once need not stay; that they stay is worth the room of a second block.
        for warps, every, room in (
            (best, True, half), (best, True, whole), (best, False, half), (best, False, whole),
            (FEWEST_WARPS, False, whole),
        ):  # fmt: skip
            held = -(-chunks // warps) if every else 1
            each = 2 * UNITS_AT_ONCE * 256 + 4 * MOST_ROWS + held * chunk * 4 * group.rows
            kept = warps * each + 4 * MOST_ROWS
            slots = (room - kept) // (warps * UNIT_ROWS * row_bytes)
            if slots < FEWEST_SLOTS or (held > 1 and not again):
                continue
            base.chunk, base.slots, group.held = chunk, min(slots, MOST_SLOTS), held
            shape = Shape("fused_rows", f"fused_rows_{dtype.name.lower()}", blocks, (32 * warps, 1))
            return FusedLaunch(shape, group, kept + base.slots * warps * UNIT_ROWS * row_bytes)
        return None

    # Attention of several sequences

    def _attend(self, first: int) -> tuple[Plan, int] | None:
        """Keys and values that join their caches, then attention of all sequences at once."""
        joining: list[int] = []
        attending: list[int] = []
        at = first
        while True:
            if self._records.find(at, "attention"):
                attending.append(at)
            elif self._records.find(at, "scatter") and not any(self._conflict(at, i) for i in attending):
                joining.append(at)
            else:
                break
            at += 1
        joined = self._joined(attending)
        if joined is None:
            return None
        return _together([*map(self._plan, joining), joined]), at - first

    def _joined(self, indices: Sequence[int]) -> Plan | None:
        """One launch for attention of one row each that differ in where operands lie; None if they do not."""
        if not 1 < len(indices) <= MOST_ROWS or any(
            self._conflict(a, b) for a, b in combinations(indices, 2)
        ):
            return None
        launches = [each for index in indices for each in self._plan(index).launches]
        shapes = {each.shape for each in launches if isinstance(each, Launch)}
        one = launches[0]
        if not isinstance(one, Launch) or shapes != {one.shape} or one.shape.source != "attention_row":
            return None
        every = [self._records[index] for index in indices]
        alike = [(f.dims, f.params, [s[1:] for s in f.strides[:2]], f.strides[2:4]) for f in every]
        types = [[f.dtype(slot) for slot in range(5)] for f in every]
        same = all(a == alike[0] and t == types[0] for a, t in zip(alike, types, strict=True))
        if not same:
            return None
        d, rows = every[0].named, len(indices)
        jobs, state = one.shape.blocks // one.shape.splits, d["h"] * (d["n"] + 2) * 4
        most = min(-(-d["t"] // SHORTEST_SPLIT), MAX_WORKSPACE // (rows * state))
        splits = max(1, min(2 * self._chip.multiprocessors // (rows * jobs), most))
        if rows * jobs > COUNTERS:
            splits = 1
        kernel = one.shape.kernel.replace("attention_row", "attention_rows")
        shape = replace(one.shape, kernel=kernel, blocks=rows * jobs * splits, splits=splits)
        launch = replace(one, shape=replace(one.shape, splits=splits))
        places = tuple(tuple(f.address(slot, self._addresses) for slot in range(5)) for f in every)
        workspace = rows * state * splits if splits > 1 else 0
        return Plan((AttentionRowsLaunch(shape, launch, places),), workspace)


def _together(plans: Sequence[Plan]) -> Plan:
    """Plans one after another, which use the same workspace."""
    launches = tuple(launch for each in plans for launch in each.launches)
    return Plan(launches, max(each.workspace for each in plans))


def _in_words(x: Table) -> bool:
    """True if every row is whole 16-byte words."""
    return x.address % 16 == 0 and x.step % 4 == 0
