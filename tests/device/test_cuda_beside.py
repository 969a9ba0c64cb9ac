"""Branches share nothing that one of them writes, and hold every launch once, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.device import cuda_plan
from nocopy.device.cuda_beside import beside, pieces
from nocopy.device.cuda_blas import WORKSPACE_BYTES, BlasLaunch
from nocopy.device.cuda_launch import AnyLaunch, Branch
from nocopy.device.cuda_records import Records
from nocopy.device.cuda_walk import Step
from nocopy.memory.dtype import DType
from nocopy.tape import Space, Tape, TapeBuilder, Tensor, validate
from tests.device.cuda_rows import SIZES
from tests.device.test_cuda_relocate import Plans

F32, F16, BF16, I32 = DType.F32, DType.F16, DType.BF16, DType.I32
ROWS, WIDTH, BUFFERS = 16, 64, 5


def found(tape: Tape) -> tuple[Records, list[Step], list[Step]]:
    """A tape's records and steps, and the steps with branches."""
    seen: list[Any] = []

    def spy(records: Records, steps: Sequence[Step], workspace: int) -> Iterator[Step]:
        joined = list(beside(records, steps, workspace))
        seen.extend((records, list(steps), joined))
        return iter(joined)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_plan, "beside", spy)
        Plans(tape, blas=True).at(1, 1, 1)
    return seen[0], seen[1], seen[2]


def name(launch: AnyLaunch) -> str:
    assert not isinstance(launch, Branch)
    return f"product of {launch.product.n}" if isinstance(launch, BlasLaunch) else launch.shape.kernel


def split(step: Step) -> tuple[list[AnyLaunch], list[AnyLaunch]]:
    """The launches of the first and of the second branch."""
    launches = list(step.plan.launches)
    back = launches.index(Branch.BACK)
    assert (launches[0], launches[-1]) == (Branch.APART, Branch.MEET)
    return launches[back + 1 : -1], launches[1:back]


class Buffers:
    """Rows, weights and a cache, and a tape over them."""

    def __init__(self) -> None:
        size = 4 * ROWS * WIDTH
        self.rows = [Tensor(Space.SCRATCH, i * size, (ROWS, WIDTH), F32) for i in range(BUFFERS)]
        self.weight = Tensor(Space.WEIGHTS, 0, (WIDTH, WIDTH), BF16)
        self.frequencies = Tensor(Space.GUEST, 0, (16,), F32)
        self.positions = Tensor(Space.GUEST, 256, (ROWS,), I32)
        self.caches = [Tensor(Space.KV, 2 * i * WIDTH, (64, WIDTH), F16, (2 * WIDTH, 1)) for i in range(2)]
        self.tape = TapeBuilder()

    def heads(self, i: int) -> Tensor:
        return Tensor(Space.SCRATCH, self.rows[i].offset, (ROWS, 2, 32), F32)

    def product(self, to: int, of: int) -> None:
        self.tape.matmul(self.rows[to], self.rows[of], self.weight.T)

    def rope(self, of: int) -> None:
        self.tape.rope(self.heads(of), self.heads(of), self.frequencies, self.positions)

    def scatter(self, cache: int, of: int) -> None:
        self.tape.scatter(self.caches[cache], self.rows[of], self.positions)

    def valid(self) -> Tape:
        return validate(bytes(self.tape), SIZES)


def test_queries_play_beside_keys_and_values() -> None:
    b = Buffers()
    q, half = b.rows[1], WIDTH // 2
    k, v = (Tensor(Space.SCRATCH, b.rows[i].offset, (ROWS, half), F32) for i in (2, 3))
    turned = Tensor(k.space, k.offset, (ROWS, 2, half // 2), F32)
    frequencies = Tensor(Space.GUEST, 0, (half // 4,), F32)
    caches = [Tensor(Space.KV, half * 2 * i, (64, half), F16, (WIDTH, 1)) for i in range(2)]
    b.tape.rmsnorm(b.rows[0], b.rows[4], None, 1e-5)
    for i, out in enumerate((q, k, v)):
        b.tape.matmul(out, b.rows[0], Tensor(Space.WEIGHTS, 8192 * i, (out.shape[1], WIDTH), BF16).T)
    b.rope(1)
    b.tape.rope(turned, turned, frequencies, b.positions)
    for cache, rows in zip(caches, (k, v), strict=True):
        b.tape.scatter(cache, rows, b.positions)
    keys, values = (Tensor(Space.KV, c.offset, (64, 1, half), F16, (WIDTH, half, 1)) for c in caches)
    b.tape.attention(b.heads(4), b.heads(1), keys, values, b.positions, scale=1.0)
    _, steps, joined = found(b.valid())
    (branches,) = [step for step in joined if Branch.APART in step.plan.launches]
    first, second = split(branches)
    assert [name(launch) for launch in steps[0].plan.launches] == ["norm_rows"]
    assert [name(launch) for launch in first] == ["product of 64", "rope_rows"]
    assert [name(launch) for launch in second] == ["product of 32", "keep_rows"]
    assert (branches.first, branches.count) == (1, 7)
    assert name(joined[-1].plan.launches[0]).startswith("attention")


def test_a_product_of_what_the_one_before_wrote_comes_after_it() -> None:
    b = Buffers()
    b.product(1, 0)
    b.product(2, 1)
    _, _, joined = found(b.valid())
    assert not [step for step in joined if Branch.APART in step.plan.launches]


def test_a_norm_that_makes_a_products_rows_is_in_no_branch() -> None:
    """They lie where the products before it may still read theirs, which the tape does not say."""
    b, between_words = Buffers(), Tensor(Space.GUEST, 4100, (ROWS, WIDTH), F32)
    b.tape.rmsnorm(b.rows[0], b.rows[4], None, 1e-5)
    for i in (1, 2, 3):
        b.product(i, 0)
    b.tape.rmsnorm(b.rows[4], between_words, None, 1e-5)
    b.product(1, 4)
    _, steps, joined = found(b.valid())
    (branches,) = [step for step in joined if Branch.APART in step.plan.launches]
    assert [name(launch) for step in steps for launch in step.plan.launches][-2] == "rmsnorm"
    assert [name(launch) for each in split(branches) for launch in each] == 2 * ["product of 64"]


@st.composite
def tapes(draw: st.DrawFn) -> Tape:
    """A norm, products of its rows, and what may be done with them, in any order."""
    b, which = Buffers(), st.integers(0, BUFFERS - 1)
    b.tape.rmsnorm(b.rows[0], b.rows[1], None, 1e-5)
    for to in draw(st.lists(st.integers(1, BUFFERS - 1), min_size=2, max_size=4)):
        b.product(to, 0)
    for _ in range(draw(st.integers(0, 8))):
        kind, of = draw(st.sampled_from(["product", "rope", "scatter", "add"])), draw(which)
        if kind == "product":
            b.product(draw(st.integers(1, BUFFERS - 1)), 0)
        elif kind == "rope":
            b.rope(of)
        elif kind == "scatter":
            b.scatter(draw(st.integers(0, 1)), of)
        else:
            to = draw(which)
            b.tape.binary("add", b.rows[to], b.rows[to], b.rows[of])
    return b.valid()


@given(tapes())
def test_branches_share_nothing_that_one_of_them_writes(tape: Tape) -> None:
    records, steps, joined = found(tape)
    by_launch = {id(step.plan.launches[0]): step for step in steps if len(step.plan.launches) == 1}
    places = [each.workspace for s in steps for each in s.plan.launches if isinstance(each, BlasLaunch)]
    at = 0
    for step in joined:
        assert step.first == (steps[at].first if at < len(steps) else len(records))
        if Branch.APART not in step.plan.launches:
            assert step is steps[at]
            at += 1
            continue
        first, second = split(step)
        inside = steps[at : at + len(first) + len(second)]
        others = [s for s in inside if id(s.plan.launches[0]) not in {id(launch) for launch in first}]
        assert [by_launch[id(launch)] for launch in first] == [s for s in inside if s not in others]
        own = [s.plan.launches[0] for s in others]
        assert second == [
            replace(e, workspace=places[0] + WORKSPACE_BYTES) if isinstance(e, BlasLaunch) else e for e in own
        ]
        for one in (by_launch[id(launch)] for launch in first):
            for other in others:
                assert not collides(tape, one, other)
        at += len(inside)
    assert at == len(steps)


def collides(tape: Tape, one: Step, other: Step) -> bool:
    """True if a byte that one of them may write is the other's too: cells of the caches, else ranges."""

    def cells(step: Step) -> list[tuple[int, set[int], bool]]:
        made = []
        for i in range(step.first, step.first + step.count):
            for e in tape.extents[i]:
                span = np.arange(e.start, e.stop)
                if e.space == Space.KV and e.written:  # rows of one cache, between those of the other
                    span = span[(span - e.start) % (4 * WIDTH) < 2 * WIDTH]
                made.append((int(e.space), set(span.tolist()), e.written))
        return made

    return any(
        a[0] == b[0] and (a[2] or b[2]) and not a[1].isdisjoint(b[1])
        for a in cells(one)
        for b in cells(other)
    )


@given(st.lists(st.sampled_from(["one", "both"]), max_size=12), st.integers(1, 5))
def test_pieces_hold_every_launch_in_order_and_cut_no_branch(kinds: list[str], most: int) -> None:
    launch = BlasLaunch(None, 0)  # type: ignore[arg-type]
    launches = list[AnyLaunch]()
    for kind in kinds:
        branches = [Branch.APART, launch, launch, Branch.BACK, launch, Branch.MEET]
        launches += branches if kind == "both" else [launch]
    cut = list(pieces(launches, most))
    assert [each for piece in cut for each in piece] == launches
    for piece in cut:
        assert piece.count(Branch.APART) == piece.count(Branch.MEET)
        assert len(piece) < most + 6
    assert all(len(piece) >= most for piece in cut[:-1])
