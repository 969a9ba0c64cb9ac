"""A few rows' pass through a language model: joined launches give all that the ops give one by one."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.device import cuda_fuse
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape import Space, Tensor
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.test_cuda_fuse import Bench, bench  # noqa: F401
from tests.device.values import normal

F32, F16, BF16, I32, Q8_0 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.Q8_0
WEIGHTS = [F16, BF16, *sorted(QUANTISED)]


def rows_of(x: Tensor, start: int, stop: int) -> Tensor:
    step = x.strides[0] * x.dtype.itemsize
    return Tensor(x.space, x.offset + start * step, (stop - start, *x.shape[1:]), x.dtype, x.strides)


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda d: d.name)
@pytest.mark.parametrize(("rows", "k", "n"), [(8, 2048, 34), (3, 4096, 10)])
def test_a_norm_and_its_products_are_one_launch(
    bench: Bench, dtype: DType, rows: int, k: int, n: int
) -> None:
    x, h = bench.put(normal(1, rows, k)), bench.room(rows, k)
    bench.tape.rmsnorm(h, x, bench.norm(k), 1e-5)
    for i in range(2):
        bench.tape.matmul(bench.room(rows, n), h, bench.weight(n, k, dtype, i).T, 0.5)
    assert bench.judge() == [f"fused_rows_{dtype.name.lower()}"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(2, 8),
    k=st.sampled_from([128, 256, 384, 1024, 1920, 2304, 3072]),
    pairs=st.integers(1, 70),
    dtype=st.sampled_from([F16, BF16, Q8_0, DType.Q4_0, DType.Q4_K]),
    gap=st.sampled_from([0, 4, 64]),
)
def test_any_shape_is_what_the_reference_makes_of_it(
    bench: Bench, rows: int, k: int, pairs: int, dtype: DType, gap: int
) -> None:
    """Rows may have gaps between them; a chunk, a unit and a block's share of units may be incomplete."""
    bench.clear()
    k = -(-k // 256) * 256 if dtype.block > 1 else k
    wide, out = bench.put(normal(1, rows, k + gap)), bench.room(rows, 2 * pairs + gap)
    x = Tensor(wide.space, wide.offset, (rows, k), F32, wide.strides)
    y = Tensor(out.space, out.offset, (rows, 2 * pairs), F32, out.strides)
    bench.tape.matmul(y, x, bench.weight(2 * pairs, k, dtype).T)
    assert bench.judge() == [f"fused_rows_{dtype.name.lower()}"]


class Sequences:
    """Keys and values of several sequences, each with a cache and a position of its own."""

    def __init__(self, bench: Bench, rows: int, cache: DType, tokens: int = 9) -> None:
        self.bench, self.rows, self.tokens = bench, rows, tokens
        self.heads, self.groups, self.n = 4, 2, 32
        self.q = bench.room(rows, self.heads * self.n)
        self.k, self.v = (bench.room(rows, self.groups * self.n) for _ in range(2))
        self.positions = bench.put(np.arange(rows) * 2 % tokens, I32, Space.GUEST)
        self.frequencies = bench.put(np.linspace(1, 0.1, self.n // 2), F32, Space.GUEST)
        self.caches = [
            bench.put(normal(20 + i, tokens, 2 * self.groups * self.n), cache, Space.GUEST)
            for i in range(rows)
        ]
        self.out = bench.room(rows, self.heads * self.n)

    def project(self, x: Tensor, *types: DType, bias: bool = False) -> None:
        bench, k = self.bench, x.shape[1]
        for i, row in enumerate((self.q, self.k, self.v)):
            bench.tape.matmul(row, x, bench.weight(row.shape[1], k, types[i] if types else BF16, i).T)
            if bias and i == 0:
                bench.tape.binary("add", row, row, bench.put(normal(5, row.shape[1]), F32, Space.WEIGHTS))

    def heads_of(self, x: Tensor) -> Tensor:
        return Tensor(
            x.space, x.offset, (x.shape[0], x.shape[1] // self.n, self.n), x.dtype, (x.strides[0], self.n, 1)
        )

    def turn(self, *, interleaved: bool = False) -> None:
        for x in (self.q, self.k):
            turned = self.heads_of(x)
            self.bench.tape.rope(
                turned, turned, self.frequencies, self.positions, interleaved=interleaved, scale=0.9
            )

    def half(self, i: int, which: int) -> Tensor:
        """Keys or values of a cache: [tokens, width]."""
        both, width = self.caches[i], self.groups * self.n
        at = both.offset + which * width // both.dtype.block * both.dtype.itemsize
        return Tensor(both.space, at, (self.tokens, width), both.dtype, (2 * width, 1))

    def join(self, i: int) -> None:
        at = rows_of(self.positions, i, i + 1)
        for which, x in enumerate((self.k, self.v)):
            self.bench.tape.scatter(self.half(i, which), rows_of(x, i, i + 1), at)

    def attend(self, i: int, out: Tensor | None = None) -> None:
        keys, values = (self.in_groups(self.half(i, which)) for which in (0, 1))
        self.bench.tape.attention(
            self.heads_of(rows_of(self.out, i, i + 1)) if out is None else out,
            self.heads_of(rows_of(self.q, i, i + 1)),
            keys,
            values,
            rows_of(self.positions, i, i + 1),
            scale=0.2,
        )

    def in_groups(self, x: Tensor) -> Tensor:
        return Tensor(
            x.space, x.offset, (self.tokens, self.groups, self.n), x.dtype, (x.strides[0], self.n, 1)
        )


@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
@pytest.mark.parametrize("cache", [F32, F16, BF16], ids=lambda d: d.name)
def test_sequences_are_projected_turned_cached_and_attended_to_in_two_launches(
    bench: Bench, interleaved: bool, cache: DType
) -> None:
    rows, k = 5, 256
    x, h = bench.put(normal(1, rows, k)), bench.room(rows, k)
    bench.tape.rmsnorm(h, x, bench.norm(k), 1e-5)
    them = Sequences(bench, rows, cache)
    them.project(h, bias=True)
    them.turn(interleaved=interleaved)
    for i in range(rows):
        them.join(i)
        them.attend(i)
    name = cache.name.lower()
    assert bench.judge() == ["fused_rows_bf16", f"attention_rows_grouped_{name}"]


def test_of_weights_of_several_types_each_run_of_one_is_a_launch(bench: Bench) -> None:
    """As files in K-quants have them."""
    x, h = bench.put(normal(1, 3, 256)), bench.room(3, 256)
    bench.tape.rmsnorm(h, x, bench.norm(256), 1e-5)
    them = Sequences(bench, 3, F16)
    them.project(h, DType.Q4_K, DType.Q4_K, DType.Q5_K, bias=True)
    them.turn()
    for i in range(3):
        them.join(i)
        them.attend(i)
    assert bench.judge() == ["fused_rows_q4_k", "fused_rows_q5_k", "attention_rows_grouped_f16"]


@pytest.mark.parametrize("tokens", [1, 300, 700])
def test_sequences_of_any_length_are_attended_to_at_once(
    bench: Bench, driver: EmulatedDriver, tokens: int
) -> None:
    """Long ones by several blocks, whose parts the last one joins."""
    driver.multiprocessors = 12
    them = Sequences(bench, 3, F16, tokens)
    for x, seed in ((them.q, 1), (them.k, 2), (them.v, 3)):
        bench.array(x)[...] = normal(seed, *x.shape)
    bench.array(them.positions)[...] = [tokens - 1, tokens // 2, 0]
    for i in range(3):
        them.join(i)
        them.attend(i)
    assert bench.judge() == ["scatter"] * 6 + ["attention_rows_grouped_f16"]


def test_a_row_outside_its_cache_is_not_written(bench: Bench) -> None:
    them = Sequences(bench, 4, F16)
    them.project(bench.put(normal(1, 4, 256)))
    bench.array(them.positions)[...] = [-1, 9, 2**31 - 1, 3]
    them.turn()
    for i in range(4):
        them.join(i)
    assert bench.judge() == ["fused_rows_bf16"]


def test_rows_of_one_sequence_join_its_cache_in_the_same_launch(bench: Bench) -> None:
    """A short prompt: all rows have one cache; attention over it is not of one row."""
    them = Sequences(bench, 4, F16)
    them.project(bench.put(normal(1, 4, 256)))
    them.turn()
    for which, x in enumerate((them.k, them.v)):
        bench.tape.scatter(them.half(0, which), x, them.positions)
    keys, values = (them.in_groups(them.half(0, which)) for which in (0, 1))
    bench.tape.attention(
        them.heads_of(them.out), them.heads_of(them.q), keys, values, them.positions, scale=0.2
    )
    assert bench.judge() == ["fused_rows_bf16", "attention_grouped_f16"]


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_tanh"])
def test_a_gate_and_a_residual_are_part_of_their_products(bench: Bench, function: str) -> None:
    rows, k, hidden = 6, 256, 512
    x, stream = bench.put(normal(1, rows, k)), bench.put(normal(2, rows, k))
    gate, up, gated = (bench.room(rows, hidden) for _ in range(3))
    bench.tape.matmul(gate, x, bench.weight(hidden, k, BF16, 3).T)
    bench.tape.matmul(up, x, bench.weight(hidden, k, BF16, 4).T)
    bench.tape.glu(function, gated, gate, up)
    down = bench.room(rows, k)
    bench.tape.matmul(down, gated, bench.weight(k, hidden, BF16, 5).T)
    bench.tape.binary("add", stream, stream, down)
    assert bench.judge() == ["fused_rows_bf16", "fused_rows_bf16"]


def test_infinite_and_missing_numbers_stay_what_they_are(bench: Bench) -> None:
    values = normal(1, 2, 256)
    values[0, 3], values[1, 5] = np.inf, np.nan
    y = bench.room(2, 8)
    weight = bench.put(np.abs(normal(2, 8, 256)) + 0.1, BF16, Space.WEIGHTS)
    bench.tape.matmul(y, bench.put(values), weight.T)
    assert bench.play_on_gpu() == ["fused_rows_bf16"]
    assert np.isposinf(bench.array(y)[0]).all()
    assert np.isnan(bench.array(y)[1]).all()


def over_its_own_rows(bench: Bench, x: Tensor) -> None:
    """The result lies where all blocks read."""
    h = bench.room(*x.shape)
    bench.tape.rmsnorm(h, x, bench.norm(256), 1e-5)
    bench.tape.matmul(x, h, bench.weight(256, 256).T)


def one_over_the_other(bench: Bench, x: Tensor) -> None:
    y = bench.room(x.shape[0], 64)
    bench.tape.matmul(y, x, bench.weight(64, 256, BF16, 1).T)
    bench.tape.matmul(y, x, bench.weight(64, 256, BF16, 2).T)


def added_to_its_own_rows(bench: Bench, x: Tensor) -> None:
    y = bench.room(*x.shape)
    bench.tape.matmul(y, x, bench.weight(256, 256).T)
    bench.tape.binary("add", x, x, y)


def attended_to_before_another_joins_the_same_cache(bench: Bench, x: Tensor) -> None:
    them = Sequences(bench, x.shape[0], F32)
    them.caches = them.caches[:1] * x.shape[0]
    them.project(x)
    them.turn()
    for i in range(x.shape[0]):
        them.join(i)
        them.attend(i)


def attended_to_over_what_joins_next(bench: Bench, x: Tensor) -> None:
    """The result of the first sequence lies where the second one's keys do."""
    them = Sequences(bench, x.shape[0], F32)
    them.project(x)
    them.turn()
    over = Tensor(them.k.space, them.k.offset, (1, 4, 32), F32)
    for i in range(x.shape[0]):
        them.join(i)
        them.attend(i, over if i == 0 else None)


def turned_after_it_was_attended_to(bench: Bench, x: Tensor) -> None:
    them = Sequences(bench, x.shape[0], F32)
    them.project(x)
    turned = them.heads_of(them.k)
    bench.tape.rope(turned, turned, them.frequencies, them.positions)
    for i in range(x.shape[0]):
        them.join(i)
        them.attend(i)
    turned = them.heads_of(them.q)
    bench.tape.rope(turned, turned, them.frequencies, them.positions)


HAZARDS: dict[Callable[[Bench, Tensor], None], int] = {
    over_its_own_rows: 1,
    one_over_the_other: 1,
    added_to_its_own_rows: 1,
    attended_to_before_another_joins_the_same_cache: 2,
    attended_to_over_what_joins_next: 2,
    turned_after_it_was_attended_to: 2,
}


@pytest.mark.parametrize("build", HAZARDS, ids=lambda f: f.__name__)
def test_what_would_read_or_write_out_of_order_is_not_joined(
    bench: Bench, build: Callable[[Bench, Tensor], None]
) -> None:
    build(bench, bench.put(normal(1, 4, 256)))
    assert len(bench.judge(last_only=True)) > HAZARDS[build]


@pytest.mark.parametrize(
    ("n", "k"), [(33, 256), (32, 250), (1, 256)], ids=["odd rows", "no whole words", "one row"]
)
def test_other_shapes_are_played_one_by_one(bench: Bench, n: int, k: int) -> None:
    bench.tape.matmul(bench.room(4, n), bench.put(normal(1, 4, k)), bench.weight(n, k).T)
    (kernel,) = bench.judge()
    assert not kernel.startswith("fused")


def test_weights_in_f32_keep_f32_arithmetic(bench: Bench) -> None:
    bench.tape.matmul(bench.room(4, 64), bench.put(normal(1, 4, 256)), bench.weight(64, 256, F32).T)
    assert not any(name.startswith("fused") for name in bench.judge())


def test_nine_rows_are_too_many(bench: Bench) -> None:
    bench.tape.matmul(bench.room(9, 64), bench.put(normal(1, 9, 256)), bench.weight(64, 256, BF16).T)
    assert not any(name.startswith("fused") for name in bench.play_on_gpu())


@pytest.mark.parametrize(
    ("shared", "joined"), [(228 << 10, True), (164 << 10, True), (100 << 10, True), (32 << 10, False)]
)
@pytest.mark.parametrize("k", [2048, 6144])
def test_a_chip_with_little_shared_memory_keeps_less_or_nothing(
    bench: Bench, driver: EmulatedDriver, shared: int, joined: bool, k: int
) -> None:
    """Of the rows all chunks, or one at a time, for all units or for some units at a time."""
    driver.chip = cuda_fuse.Chip(3, shared, shared - 1024)
    x, h = bench.put(normal(1, 8, k)), bench.room(8, k)
    bench.tape.rmsnorm(h, x, bench.norm(k), 1e-5)
    bench.tape.matmul(bench.room(8, 128), h, bench.weight(128, k).T)
    assert (bench.judge() == ["fused_rows_bf16"]) == joined
