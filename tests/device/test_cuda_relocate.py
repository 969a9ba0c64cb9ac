"""Launches that were moved are those that a planning for the same addresses would have made."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.device.cuda_blas import BlasLaunch
from nocopy.device.cuda_fuse import Chip
from nocopy.device.cuda_launch import Branch, Shape
from nocopy.device.cuda_pages import CudaPages, DevicePages, RegisteredPages
from nocopy.device.cuda_plan import Planner
from nocopy.device.cuda_relocate import Moved, Planned
from nocopy.memory.dtype import DType
from nocopy.tape import Space, Tape, TapeBuilder, Tensor, validate
from tests.device.test_conformance import generated
from tests.tape.choices import Drawn

F32, F16, I32 = DType.F32, DType.F16, DType.I32
SIZES = dict.fromkeys(Space, 1 << 24)
K, ROWS, STEPS = 256, 512, 8


class Gpu:
    """What planning asks of a driver; `begin` says where the next allocation lies."""

    chip = Chip(8, 233472, 232448, 12.8)
    multiprocessors, stop_address, walks, groups = 8, 4096, True, False

    def __init__(self) -> None:
        self.begin, self.allocated = 0, set[int]()

    def allocate(self, nbytes: int) -> int:
        address, self.begin = self.begin, self.begin + (-(-nbytes // 512) * 512)
        self.allocated.add(address)
        return address

    def free(self, address: int) -> None:
        self.allocated.remove(address)


class Host(RegisteredPages):
    """Pages of which only the address matters."""

    def __init__(self, address: int) -> None:
        CudaPages.__init__(self, None, address, SIZES[Space.GUEST], address, lambda _: None)


class Own(DevicePages):
    """The same in the GPU's memory."""

    def __init__(self, address: int) -> None:
        CudaPages.__init__(self, None, 0, SIZES[Space.GUEST], address, lambda _: None)


def used(guest: int, kv: int) -> Mapping[Space, CudaPages]:
    return {
        Space.GUEST: Host(guest << 32),
        Space.WEIGHTS: Own(1 << 50),
        Space.SCRATCH: Own(1 << 51),
        Space.KV: Own(kv << 26 | 1 << 52),
    }


class Plans:
    """One GPU's plans of a tape for sessions at several places."""

    def __init__(self, tape: Tape, *, blas: bool = False) -> None:
        self.tape, self.gpu, self.blas = tape, Gpu(), blas
        self.planner = Planner(self.gpu, blas=blas)

    def at(self, guest: int, kv: int, begin: int) -> list[Any]:
        """What is launched there; allocations begin at `begin`."""
        return self._launched(self.planner, guest, kv, begin)

    def anew(self, guest: int, kv: int, begin: int) -> list[Any]:
        """The same from a planner that knows nothing."""
        return self._launched(Planner(self.gpu, blas=self.blas), guest, kv, begin)

    def _launched(self, planner: Planner, guest: int, kv: int, begin: int) -> list[Any]:
        self.gpu.begin = begin << 20
        frees: list[Any] = []
        pages = {space: used(guest, kv)[space] for space in self.tape.sizes}
        launches, workspace = planner.launches(self.tape, pages, frees)
        for free in frees:
            free()
        assert not self.gpu.allocated
        self.moved = any(isinstance(launch, Moved) for launch in launches)
        return [
            x
            if isinstance(x, BlasLaunch | Branch)
            else (x.shape, x.grid, x.shared, x.argument(workspace), getattr(x, "stages", b""))
            for x in launches
        ]


def language_model(r: int = 1, steps: int = STEPS) -> Tape:
    """Steps of r tokens each: a look-up, products, rotation, a cache, attention, the likeliest token."""
    at = {space: count(0, 1 << 18) for space in Space}

    def room(space: Space, dtype: DType, *shape: int) -> Tensor:
        return Tensor(space, next(at[space]), shape, dtype)

    table, head, down = (room(Space.WEIGHTS, F16, rows, k) for rows, k in ((ROWS, K), (K, K), (K, ROWS)))
    up, norm, turns = (
        room(Space.WEIGHTS, F16, ROWS, K),
        room(Space.WEIGHTS, F32, K),
        room(Space.GUEST, F32, 32),
    )
    tokens, positions = room(Space.GUEST, I32, r * steps + r), room(Space.GUEST, I32, r * steps)
    keys, values = (room(Space.KV, F16, 64, K) for _ in "kv")
    x, h, q, k, v, o = (room(Space.SCRATCH, F32, r, K) for _ in "xhqkvo")
    wide, other, logits = (room(Space.SCRATCH, F32, r, ROWS) for _ in range(3))
    tape = TapeBuilder()

    def heads(y: Tensor) -> Tensor:
        return Tensor(y.space, y.offset, (r, 4, 64), y.dtype)

    def part(y: Tensor, i: int) -> Tensor:
        return Tensor(Space.GUEST, y.offset + 4 * r * i, (r,), I32)

    for i in range(steps):
        token, position = part(tokens, i), part(positions, i)
        tape.gather(x, table, token)
        for _ in range(2):
            tape.rmsnorm(h, x, norm, 1e-5)
            for y in (q, k, v):
                tape.matmul(y, h, head.T)
            for y in (q, k):
                tape.rope(heads(y), heads(y), turns, position)
            for cache, y in ((keys, k), (values, v)):
                tape.scatter(cache, y, position)
            cached = [Tensor(c.space, c.offset, (64, 4, 64), F16) for c in (keys, values)]
            tape.attention(heads(o), heads(q), *cached, position, scale=0.125)
            tape.matmul(q, o, head.T)
            tape.binary("add", x, x, q)
            tape.rmsnorm(h, x, norm, 1e-5)
            for y in (wide, other):
                tape.matmul(y, h, up.T)
            tape.glu("silu", wide, wide, other)
            tape.matmul(q, wide, down.T)
            tape.binary("add", x, x, q)
        tape.rmsnorm(h, x, norm, 1e-5)
        tape.matmul(logits, h, table.T)
        tape.argmax(part(tokens, i + 1), logits)
    return validate(bytes(tape), SIZES, work_limit=2**62)


@pytest.fixture(scope="module")
def tape() -> Tape:
    return language_model()


@pytest.mark.parametrize(
    ("rows", "blas", "kernel"),
    [(1, False, "walk"), (4, False, "fused_rows_f16"), (64, False, "gate_rows"), (64, True, "gate_rows")],
)
def test_a_pass_is_moved_to_where_a_third_session_lies(rows: int, blas: bool, kernel: str) -> None:
    plans = Plans(language_model(rows, STEPS if rows == 1 else 1), blas=blas)
    plans.at(1, 1, 1)
    plans.at(2, 5, 9)
    assert not plans.moved
    for place in ((7, 3, 30), (1, 1, 1), (2, 3, 30)):
        found = plans.at(*place)
        assert plans.moved
        assert found == plans.anew(*place)
    assert any(isinstance(each, tuple) and each[0].kernel == kernel for each in found)
    assert any(isinstance(each, BlasLaunch) for each in found) == blas


def test_what_lay_where_it_lay_before_is_not_moved(tape: Tape) -> None:
    """It is not known then which words go with it."""
    plans = Plans(tape)
    plans.at(1, 1, 1)
    plans.at(2, 1, 3)
    for place, moved in (((3, 1, 8), True), ((3, 2, 8), False), ((4, 7, 9), True)):
        found = plans.at(*place)
        assert plans.moved == moved
        assert found == plans.anew(*place)


def test_addresses_that_differ_by_as_much_are_not_told_apart() -> None:
    one, two = (planned(a, b) for a, b in ((1 << 20, 2 << 20), (3 << 20, 4 << 20)))
    one.learn(two)
    assert raw(one, 5 << 20, 6 << 20) == raw(planned(5 << 20, 6 << 20), 5 << 20, 6 << 20)
    assert one.moved((7 << 20, 9 << 20)) is None
    one.learn(planned(5 << 20, 5 << 20))
    assert raw(one, 7 << 20, 9 << 20) == raw(planned(7 << 20, 9 << 20), 7 << 20, 9 << 20)


def test_other_launches_teach_nothing() -> None:
    one = planned(1 << 20, 2 << 20)
    for other in (planned(3 << 20, 5 << 20, grid=2), planned(3 << 20, 5 << 20, number=8)):
        one.learn(other)
        assert one.moved((3 << 20, 5 << 20)) is None


def test_addresses_that_are_multiples_of_less_are_planned_for() -> None:
    """Launches are chosen by that."""
    one = planned(1 << 20, 2 << 20)
    one.learn(planned(3 << 20, 5 << 20))
    assert one.moved((3 << 20, 6 << 20)) is not None
    assert one.moved((3 << 20, (6 << 20) + 16)) is None


def planned(a: int, b: int, *, grid: int = 1, number: int = 7) -> Planned:
    """A launch with two addresses and a number."""
    words = np.array([a + 64, number, b, a, 2**64 - 1 - number], np.uint64).tobytes()
    return Planned([Moved(Shape("unary", "unary", grid, (32, 1)), grid, 0, words)], 0, (a, b))


def raw(found: Planned, *addresses: int) -> list[bytes]:
    launches = found.moved(addresses)
    assert launches is not None
    return [launch.argument(0) for launch in launches]


@given(st.data())
def test_any_tape(data: st.DataObject) -> None:
    tape = TapeBuilder()  # plans are kept where there are weights
    tape.copy(Tensor(Space.GUEST, 1 << 22, (8,), F32), Tensor(Space.WEIGHTS, 64, (8,), F32))
    plans = Plans(validate(generated(Drawn(data.draw), 3) + bytes(tape), SIZES, work_limit=2**62))
    for place, moved in (((1, 1, 1), False), ((2, 5, 9), False), ((7, 3, 30), True)):
        found = plans.at(*place)
        assert plans.moved == moved
        assert found == plans.anew(*place)


def test_plans_of_a_guests_own_tapes_are_not_kept() -> None:
    """Nobody else plays them."""
    tape = TapeBuilder()
    tape.unary("neg", Tensor(Space.GUEST, 0, (8,), F32), Tensor(Space.GUEST, 0, (8,), F32))
    plans = Plans(validate(bytes(tape), SIZES))
    for place in ((1, 1, 1), (2, 5, 9), (7, 3, 30)):
        assert plans.at(*place) == plans.anew(*place)
        assert not plans.moved
