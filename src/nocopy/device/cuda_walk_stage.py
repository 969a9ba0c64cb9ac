"""The stages of `cuda_walk`: what each needs of a block, and its bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nocopy.device.cuda_fuse import FUSED, Group, Product
from nocopy.device.cuda_launch import Fields, Launch
from nocopy.device.cuda_records import overlap
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

STAGE = struct.Struct(f"<21I12x{FUSED.size}s")
"""`nocopy_stage` in kernels/cuda/walk.cu."""
PRODUCT, ATTENTION, GATHER, ARGMAX = range(4)
"""`StageKind` there."""
NO_TAG, NOWHERE = 2, 2**32 - 1
CANDIDATE_WORDS = 4
WARPS = 8
"""Of a block, those that compute."""
STEP_ELEMENTS, MOST_STEPS = 2048, 16
"""Of a row: elements that warps share out, and that a slot has; how often at most, since lanes hold all in
registers.
"""
TILE, TILE_OF_BLOCKS = 4, 8
"""Pairs of rows that come to the ring together, as in walk_stage.cuh."""
MOST_PARTS = 32
"""Parts of the tokens of one attention stage."""


@dataclass
class Stage:
    """One stage of a run, still without its blocks' shares."""

    kind: int
    dtype: DType
    source: int = 0
    source_tag: int = NO_TAG
    target: int = NOWHERE
    target_tag: int = 0
    best: int = NOWHERE
    best_tag: int = 0
    partial: int = NOWHERE
    partial_tag: int = 0
    keys: int = 0
    values: int = 0
    pairs: tuple[int, ...] = ()
    group: Group | None = None
    launch: Launch | None = None
    replicas: int = 1
    """Of its results in the exchange."""
    attended: tuple[int, int] = 0, 0
    """Address and elements of the row that attention makes, which blocks hand on and do not write."""

    @property
    def head(self) -> int:
        """Elements of a head of attention; 0 for another stage."""
        return self._attention.named["n"] if self._attention else 0

    @property
    def heads_at_once(self) -> int:
        """Heads that a block of attention takes: `AttentionJob::at_once`; 0 for another stage."""
        if not self._attention:
            return 0
        d = self._attention.named
        return 4 if d["h"] > d["g"] else 1

    @property
    def softcap(self) -> int:
        """The bits of the cap on an attention's scores; 0 for none."""
        return self._attention.params[1] if self._attention else 0

    @property
    def jobs(self) -> int:
        """Blocks that a stage of attention needs; 0 for another stage."""
        if not self._attention or not self.launch:
            return 0
        d = self._attention.named
        return d["g"] * -(-(d["h"] // d["g"]) // self.heads_at_once) * self.launch.shape.splits

    @property
    def _attention(self) -> Fields | None:
        return Fields.unpack(self.launch.record) if self.launch and self.kind == ATTENTION else None

    @property
    def nbytes(self) -> int:
        """Bytes of a product's weights; 0 for another stage."""
        if not self.group:
            return 0
        rows = sum(p.rows for p in self.group.products)
        return rows * self.group.k // self.dtype.block * self.dtype.itemsize

    @property
    def steps(self) -> int:
        """Steps of a product's row; 0 for another stage."""
        return -(-self.group.k // STEP_ELEMENTS) if self.group else 0

    @property
    def turns(self) -> int:
        """Rotations that a product's rows need."""
        return max((p.head // 2 for p in self._turned), default=0)

    @property
    def turns_alike(self) -> bool:
        """Whether all of its weights whose rows turn have the same rotations."""
        return len({(p.frequencies, p.head, p.turn_scale) for p in self._turned}) <= 1

    @property
    def _turned(self) -> list[Product]:
        return [p for p in self.group.products if p.turn] if self.group else []

    @property
    def whole(self) -> bool:
        """Whether all steps of a product's row are whole."""
        return self.group is not None and self.group.k % STEP_ELEMENTS == 0

    @property
    def tile(self) -> int:
        """Pairs of a tile."""
        return TILE_OF_BLOCKS if self.dtype in QUANTISED else TILE

    @property
    def piece_bytes(self) -> int:
        """Bytes of a row in a slot; 0 for another stage than a product."""
        if not self.group:
            return 0
        return min(STEP_ELEMENTS, self.group.k) // self.dtype.block * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from a row of a slot to the next: so many beyond a multiple of 128 that the rows that a warp
        reads together lie in different banks.
        """
        beyond = 16 if self.dtype in QUANTISED else 64
        return -(-(self.piece_bytes - beyond) // 128) * 128 + beyond

    @property
    def tile_bytes(self) -> int:
        """Bytes of a whole slot of weights."""
        return 2 * self.tile * self.piece_bytes

    @property
    def slot_bytes(self) -> int:
        """The same as it lies in shared memory."""
        return 2 * self.tile * self.stride if self.group else 0

    def row_words(self, grid: int) -> int:
        """Words of shared memory that the stage's row takes, and the states of attention behind it."""
        if self.group:
            return 0
        if self.kind == ARGMAX:
            return CANDIDATE_WORDS * grid
        n, heads = self.head, self.heads_at_once
        seen = WARPS * heads * (n + 2)
        return -(-((heads + 2) * n + seen) // 4) * 4

    def pack(self, grid: int, kept: Kept) -> bytes:
        """`nocopy_stage`, for so many blocks."""
        pairs = (*self.pairs, 0, 0, 0)[:3]
        return STAGE.pack(
            self.kind, self.dtype, self.source, self.source_tag, self.target, self.target_tag, self.best,
            self.best_tag, self.partial, self.partial_tag,
            *(p // grid for p in pairs), *(p % grid for p in pairs), self.keys, self.values,
            self.steps, self.stride, self.replicas, self._argument(kept),
        )  # fmt: skip

    def _argument(self, kept: Kept) -> bytes:
        if self.launch:
            if kept.row(*self.attended):
                kept.possible = False
            return self.launch.argument(0)
        assert self.group
        group = replace(self.group, chunk=STEP_ELEMENTS, normed=kept.row(self.group.normed, self.group.k))
        if group.normed:
            kept.possible = False
        shares = self.pairs[0]
        group.gated = kept.row(group.gated, shares)
        group.products = [
            replace(p, out=kept.row(p.out, p.rows), residual=kept.row(p.residual, p.rows, shares=shares))
            for p in group.products
        ]
        return group.pack()


class Kept:
    """Which results of a run must be in memory."""

    def __init__(self, tape: Tape, records: range, addresses: Mapping[Space, int]) -> None:
        self.possible = True
        self._scratch: list[tuple[int, int]] = []
        self._read: list[tuple[int, int]] = []
        self._written: dict[tuple[int, int], int] = {}
        for index, extents in enumerate(tape.extents):
            for e in extents:
                found = addresses[e.space] + e.start, addresses[e.space] + e.stop
                if index in records and e.space == Space.SCRATCH:
                    self._scratch.append(found)
                elif index not in records and not e.written:
                    self._read.append(found)

    def row(self, at: int, rows: int, *, shares: int = 0) -> int:
        """The address of a row of f32, or 0 if nobody reads it. `shares`: what blocks share it out as."""
        span = at, at + 4 * rows
        if not at:
            return 0
        if (
            not shares
            and _within(span, self._scratch)
            and not any(overlap(span, read) for read in self._read)
        ):
            return 0
        for other, theirs in self._written.items():
            if overlap(span, other) and not (shares and other == span and theirs == shares):
                self.possible = False
        self._written[span] = shares
        return at


def _within(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(start <= span[0] and span[1] <= stop for start, stop in spans)
