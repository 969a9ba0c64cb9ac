"""Finds launches of a tape that one kernel can play to the end (kernels/cuda/walk.cu), and makes its stages.

A run is what decoding consists of: products of one row as `cuda_fuse` groups them, attention of that row,
the look-up of a token's row, the likeliest token. Each step's row is what the step before it made, or, of the
first step, in memory. Blocks hand rows on through places of an exchange; a place is taken again only by a
step after the last one that reads it, since by then every block has. Results that lie in scratch and that
no record outside the run reads are not written at all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from nocopy.device.cuda_fuse import Chip, Group
from nocopy.device.cuda_launch import Fields, Launch, Plan, Shape
from nocopy.device.cuda_records import Records
from nocopy.device.cuda_walk_flow import flow
from nocopy.device.cuda_walk_stage import (
    ARGMAX,
    ATTENTION,
    CANDIDATE_WORDS,
    GATHER,
    MOST_PARTS,
    MOST_STEPS,
    NO_TAG,
    PRODUCT,
    STAGE,
    Kept,
    Stage,
)
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape.ops import GLU
from nocopy.tape.record import Space

WALK = struct.Struct("<3Q12I")
"""`nocopy_walk` there."""
THREADS, STREAMED = 288, 4
"""Of a block, but for warps that start copies; pairs of a tile for each of these. More warps than that bring
weights sooner, and what blocks wait for later.
"""
SUMS_BYTES = 2 * 64 * 8 * 8
"""Of shared memory: two rounds' sums of 64 pairs by eight warps."""
SLOT_BARRIERS = 2 * 8
"""Bytes of a slot's barriers."""
MOST_SLOTS = 64
"""Of a ring: small rows need no more."""
WORD_BYTES = 16
"""What addresses and steps of rows are multiples of: lanes read so many at once."""
REPLICAS = 2
"""Of a row that all blocks read, each one of them: readers of one line are served one after another."""
STAGES_HELD = 16
"""As in walk_stage.cuh."""
OTHER_BYTES = 1024
"""Of shared memory: what is known of each warp's best and squares, barriers and shares of stages."""
TURNS, ROTATION_BYTES = 4, 8
"""Stages whose positions and rotations are in shared memory; bytes of a rotation."""
UPPER_HALVES = 0xF0F0F0F0
"""Of each byte."""
FEWEST_PRODUCTS = 5
"""Products of a run that is worth a kernel of its own: those of a layer and the head."""
CACHES = frozenset({DType.F32, DType.F16, DType.BF16})
FASTER = frozenset({DType.F16, DType.BF16, *QUANTISED})
"""Weights with which a run measured faster than its launches one by one."""


@dataclass(frozen=True)
class Step:
    """Launches that play `count` records from `first` on; `groups` if they are fused products of one row."""

    plan: Plan
    first: int
    count: int
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class WalkLaunch:
    """The launch of a run: `stages` in device memory, `exchange` words behind them, whose tags are 0 at each
    start. If each place is used an even number of times, `again`, the end leaves them so.
    """

    shape: Shape
    stages: bytes
    exchange: int
    again: bool
    shared: int
    tail: tuple[int, ...]
    stop: int

    @property
    def grid(self) -> int:
        """Blocks, which all run at the same time."""
        return self.shape.blocks

    def argument(self, workspace: int) -> bytes:
        """`nocopy_walk`, with the address of the stages."""
        return WALK.pack(workspace, workspace + len(self.stages), self.stop, *self.tail)


@dataclass
class Place:
    """Words of the exchange: how often they were written so far, and the last stage that reads them."""

    word: int
    words: int
    uses: int = 0
    read: int = -1


@dataclass
class Run:
    """Stages so far, and what they have made."""

    stages: list[Stage] = field(default_factory=list[Stage])
    rows: dict[int, tuple[Place, int]] = field(default_factory=dict[int, "tuple[Place, int]"])
    """By the address of a row of f32: its place and how many words it has."""
    owned: dict[int, int] = field(default_factory=dict[int, int])
    """By the address of a row in memory: how many pairs blocks share it out as."""
    heads: tuple[Group, Place] | None = None
    """The products, of weights of all types, whose results the next attention takes."""
    best: tuple[int, int] | None = None
    """The address of logits, and how many, of which the stage before this one knows the likeliest."""
    token: int = 0
    """The address where the last token that was found lies."""


class Walks:
    """Joins steps of one tape.

    Args:
        records: what is to be played, as the steps were made from it.
        chip: the GPU.
        stop: device address of the word that asks a kernel to stop; 0 for none.
    """

    def __init__(self, records: Records, chip: Chip, stop: int) -> None:
        self._records, self._addresses = records, records.addresses
        self._chip, self._stop = chip, stop
        self._places: dict[tuple[str, int], list[Place]] = {}
        self._words = 0

    def join(self, steps: Sequence[Step]) -> Iterator[Plan]:
        """The plans of the steps, those of a run replaced by one."""
        at = 0
        while at < len(steps):
            launch, count = self._run(steps, at)
            if launch is None:
                yield steps[at].plan
                at += 1
            else:
                yield Plan((launch,))
                at += count

    # A run

    def _run(self, steps: Sequence[Step], first: int) -> tuple[WalkLaunch | None, int]:
        self._places, self._words = {}, 0
        run, count = Run(), 0
        while first + count < len(steps) and self._take(run, steps[first + count]):
            count += 1
        products = sum(stage.kind == PRODUCT for stage in run.stages)
        weights = {stage.dtype for stage in run.stages if stage.kind == PRODUCT}
        if products < FEWEST_PRODUCTS or not weights <= FASTER:
            return None, 0
        records = range(steps[first].first, steps[first + count - 1].first + steps[first + count - 1].count)
        return self._launch(run, records), count

    def _take(self, run: Run, step: Step) -> bool:
        """Add a step to the run, if it fits."""
        if step.groups:
            return self._take_products(run, step.groups)
        fields = self._records[step.first]
        launch = step.plan.launches[0] if step.plan.launches else None
        if not isinstance(launch, Launch) or step.count != 1:
            return False
        take = {"attention": self._take_attention, "gather": self._take_gather, "argmax": self._take_argmax}
        return fields.op.name in take and take[fields.op.name](run, fields, launch)

    def _take_products(self, run: Run, groups: Sequence[Group]) -> bool:
        """Add products of one row; more than one group if their weights are of more than one type."""
        index, group = len(run.stages), replace(groups[0], products=[p for g in groups for p in g.products])
        found = run.rows.get(group.x)
        if found is None and index:
            return False
        if found is not None and found[1] != group.k:
            return False
        run.rows.clear()
        width = group.products[0].rows if group.gate else sum(p.rows for p in group.products)
        residual = group.products[0].residual
        stages = [Stage(PRODUCT, g.products[0].dtype, pairs=_pairs(g), group=g) for g in groups]
        if residual and run.owned.get(residual, stages[0].pairs[0]) != stages[0].pairs[0]:
            return False
        if any(stage.steps > MOST_STEPS or not stage.turns_alike for stage in stages):
            return False
        if found is not None:
            for i, stage in enumerate(stages):
                stage.source, stage.source_tag = self._read(found[0], index + i)
        run.heads = run.best = None
        if residual or group.gate:
            at = residual or group.gated
            place = self._publish(run, stages[0], "gated" if group.gate else "row", at, width)
            if residual:
                run.owned[residual] = stages[0].pairs[0]
        elif any(p.cache for p in group.products):
            place = self._place("heads", width, index)
            word, tag = place.word, self._write(place)
            for stage, part in zip(stages, groups, strict=True):
                stage.target, stage.target_tag = word, tag
                word += sum(p.rows for p in part.products)
            run.heads = group, place
        elif len(group.products) == 1:
            run.best = group.products[0].out, width
        else:
            return False
        run.stages += stages
        return True

    def _take_attention(self, run: Run, fields: Fields, launch: Launch) -> bool:
        if run.heads is None or launch.shape.source != "attention_row" or fields.dtype(2) not in CACHES:
            return False
        group, place = run.heads
        d, n = fields.named, fields.named["n"]
        outs = [p.out for p in group.products]
        starts = [sum(p.rows for p in group.products[:i]) for i in range(len(outs))]
        caches = [p.cache for p in group.products]
        q, k, v, last = (fields.address(slot, self._addresses) for slot in range(1, 5))
        if q not in outs or k not in caches or v not in caches or last != group.positions:
            return False
        query, key, value = outs.index(q), caches.index(k), caches.index(v)
        rows = (d["h"] * n, d["g"] * n, d["g"] * n)
        found = tuple(group.products[i].rows for i in (query, key, value))
        heads = [(d[axis], fields.strides[slot][1]) for slot, axis in enumerate("hhgg")]
        whole = all(step == n for count, step in heads if count > 1)
        dtypes = {group.products[i].cache_dtype for i in (key, value)}
        if (
            found != rows
            or not whole
            or n % 8
            or dtypes != {fields.dtype(2)}
            or any(address % WORD_BYTES for address in (k, v))
            or any(fields.strides[slot][0] * fields.dtype(2).itemsize % WORD_BYTES for slot in (2, 3))
            or fields.dtype(0) is not DType.F32
        ):
            return False
        side = Stage(ATTENTION, fields.dtype(2), launch=launch).heads_at_once
        jobs = d["g"] * -(-(d["h"] // d["g"]) // side)
        splits = min(self._chip.multiprocessors // jobs, MOST_PARTS)
        if not splits:
            return False
        index = len(run.stages)
        stage = Stage(ATTENTION, fields.dtype(2), attended=(fields.address(0, self._addresses), d["h"] * n))
        stage.launch = replace(launch, shape=replace(launch.shape, splits=splits))
        stage.source, stage.source_tag = self._read(place, index)
        stage.source += starts[query]
        stage.keys, stage.values = starts[key] - starts[query], starts[value] - starts[query]
        parts = self._place("parts", jobs * splits * side * (n + 2), index)
        stage.partial, stage.partial_tag = parts.word, self._write(parts)
        self._read(parts, index)
        self._publish(run, stage, "attention", *stage.attended)
        run.heads = run.best = None
        run.stages.append(stage)
        return True

    def _take_gather(self, run: Run, fields: Fields, launch: Launch) -> bool:
        width, at = fields.named["w"], fields.address(0, self._addresses)
        plain = fields.strides[0][1] == fields.strides[1][1] == 1 and fields.operands[1][2] == Space.WEIGHTS
        if fields.named["r"] != 1 or not plain or width % 4 or fields.dtype(0) is not DType.F32:
            return False
        if run.stages and (run.token == 0 or fields.address(2, self._addresses) != run.token):
            return False
        if run.owned.get(at, width // 2) != width // 2:
            return False
        stage = Stage(GATHER, fields.dtype(1), pairs=(width // 2,), launch=launch)
        stage.source_tag = 0 if run.stages else NO_TAG
        self._publish(run, stage, "embedding", at, width)
        run.owned[at] = width // 2
        run.heads = run.best = None
        run.stages.append(stage)
        return True

    def _take_argmax(self, run: Run, fields: Fields, launch: Launch) -> bool:
        d = fields.named
        row = fields.address(1, self._addresses), d["n"]
        if (
            run.best is None
            or d["d0"] * d["d1"] * d["d2"] != 1
            or run.best != row
            or fields.strides[1][3] != 1
        ):
            return False
        if fields.dtype(1) is not DType.F32:
            return False
        index = len(run.stages)
        place = self._place("best", CANDIDATE_WORDS * self._chip.multiprocessors, index - 1)
        head = run.stages[-1]
        head.best, head.best_tag = place.word, self._write(place)
        stage = Stage(ARGMAX, DType.I32, launch=launch)
        stage.source, stage.source_tag = self._read(place, index)
        run.token, run.heads, run.best = fields.address(0, self._addresses), None, None
        run.stages.append(stage)
        return True

    # The exchange

    def _place(self, kind: str, words: int, stage: int) -> Place:
        """Words that no stage from this one on still reads."""
        words = -(-words // 4) * 4
        places = self._places.setdefault((kind, words), [])
        for place in places:
            if place.read < stage:
                return place
        places.append(Place(self._words, words))
        self._words += words
        return places[-1]

    def _write(self, place: Place) -> int:
        """The tag of what is written there next."""
        place.uses += 1
        return place.uses % 2

    def _read(self, place: Place, stage: int) -> tuple[int, int]:
        place.read = max(place.read, stage)
        return place.word, place.uses % 2

    def _publish(self, run: Run, stage: Stage, kind: str, at: int, width: int) -> Place:
        """A place for the row that lies at an address when ops are played one by one."""
        place = self._place(kind, width, len(run.stages))
        # Until the next stage has read it, whatever that is.
        place.read = len(run.stages) + 1
        stage.target, stage.target_tag, stage.replicas = place.word, self._write(place), REPLICAS
        run.rows.clear()
        run.rows[at] = place, width
        return place

    # The launch

    def _launch(self, run: Run, records: range) -> WalkLaunch | None:
        shares = [max(stage.pairs) for stage in run.stages if stage.pairs]
        grid = min(self._chip.multiprocessors, *shares)
        slot_bytes = max(stage.slot_bytes for stage in run.stages)
        row_words = max(stage.row_words(grid) for stage in run.stages)
        turns = max(stage.turns for stage in run.stages)
        known = TURNS * (4 + ROTATION_BYTES * turns)
        fixed = row_words * 4 + SUMS_BYTES + STAGES_HELD * STAGE.size + known + OTHER_BYTES
        slots = min((self._chip.block_shared_bytes - fixed) // (slot_bytes + SLOT_BARRIERS), MOST_SLOTS)
        if slots < 2 or any(stage.jobs > grid for stage in run.stages):
            return None
        kept = Kept(self._records.tape, records, self._addresses)
        stages = b"".join(stage.pack(grid, kept) for stage in run.stages)
        if not kept.possible:
            return None
        products = [stage for stage in run.stages if stage.group]
        tail = (
            len(run.stages), slots, slot_bytes, *flow(products, self._chip.bytes_per_cycle, slots),
            row_words, turns, UPPER_HALVES, REPLICAS, self._words, 0,
        )  # fmt: skip
        shared = fixed + slots * (slot_bytes + SLOT_BARRIERS)
        streamers = max(stage.tile // STREAMED for stage in products)
        shape = Shape("walk", "walk", grid, (THREADS + 32 * streamers, 1), defines=_defines(run.stages))
        again = not any(place.uses % 2 for places in self._places.values() for place in places)
        return WalkLaunch(shape, stages, REPLICAS * self._words, again, shared, tail, self._stop)


def _pairs(group: Group) -> tuple[int, ...]:
    """Pairs of rows of each of a group's products, or of both behind a gate."""
    return (group.products[0].rows,) if group.gate else tuple(p.rows // 2 for p in group.products)


def _defines(stages: Sequence[Stage]) -> tuple[str, ...]:
    """What the kernel is compiled for: see walk_stage.cuh."""
    products, attention = ([s for s in stages if s.kind == kind] for kind in (PRODUCT, ATTENTION))
    sides = {s.heads_at_once for s in attention}
    defines = [
        f"WALK_WEIGHTS={_set(s.dtype for s in products)}",
        f"WALK_CACHES={_set(s.dtype for s in attention)}",
        f"WALK_STEPS={_set(s.steps for s in products)}",
        f"WALK_WHOLE={int(all(s.whole for s in products))}",
        f"WALK_HEAD_GROUPS={-(-max((s.head for s in attention), default=0) // 64)}",
        f"WALK_HEADS={sides.pop() if len(sides) == 1 else 0}",
    ]
    if {s.group.gate for s in products if s.group} <= {0, 1 + GLU.index("silu")}:
        defines.append("ONLY_SILU")
    if not any(s.softcap for s in attention):
        defines.append("NO_SOFTCAP")
    return tuple(defines)


def _set(members: Iterable[int]) -> int:
    return sum(1 << member for member in set(members))
