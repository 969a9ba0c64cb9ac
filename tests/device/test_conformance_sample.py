"""Conformance of how tokens are chosen: sample and penalize. Every device draws the very same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.memory.dtype import DType
from nocopy.tape import Tensor
from nocopy.tape.reference_sample import LOG2_E
from tests.device.arena import Arena, Batch
from tests.device.values import REAL, SPECIAL, normal

F32, I32 = DType.F32, DType.I32
NAN, INF = float("nan"), float("inf")


def words(top_k: int = 0, seed: int = 1, draw: int = 0) -> list[int]:
    """`state` of a row, as the i32 that hold its bits."""
    raw = [seed % 2**32, seed >> 32, draw % 2**32, draw >> 32]
    return [top_k, *(w - 2**32 if w >= 2**31 else w for w in raw)]


def draw(
    batch: Batch, x: Tensor, options: Sequence[Any], states: Sequence[list[int]], ahead: int = 0
) -> Tensor:
    """Record a draw from each row; options and states repeat if they are fewer."""
    rows = range(x.shape[0])
    out = batch.room((x.shape[0],), I32)
    batch.tape.sample(
        out,
        x,
        batch.put([options[i % len(options)] for i in rows]),
        batch.put([states[i % len(states)] for i in rows], I32),
        ahead=ahead,
    )
    return out


@pytest.mark.parametrize("n", [1, 2, 7, 64, 255, 2049])
def test_every_filter_alone_and_with_the_others(arena: Arena, n):
    batch = Batch(arena)
    choices = list(product((1.0, 0.4), (1.0, 0.8, 0.0), (0.0, 0.05, 1.0), (0, 2, 40, n + 1)))
    x = batch.put(normal(n, len(choices), n, scale=3))
    options = [(LOG2_E / t, p, m) for t, p, m, _ in choices]
    draw(batch, x, options, [words(k, 5 + i, i) for i, (*_, k) in enumerate(choices)], 3)
    batch.judge()


def test_rows_of_a_large_vocabulary(arena: Arena):
    """A device may share out a row, and take another way where top_k leaves few."""
    batch = Batch(arena)
    options = [(LOG2_E, 0.95, 0.05), (LOG2_E, 0.5, 0), (0.3, 1, 0)]
    for top_k in (0, 40, 700):
        x = batch.put(normal(top_k, 3, 20000, scale=3))
        draw(batch, x, options, [words(top_k, seed) for seed in range(3)])
    batch.judge()


def test_scores_of_every_type_and_layout(arena: Arena):
    batch = Batch(arena)
    for dtype, order in product(REAL, ((0, 1), (1, 0))):
        x = batch.put(normal(3, 5, 300, scale=4), dtype, order=order)
        draw(batch, x, [(LOG2_E, 0.9, 0.02)], [words(50, seed) for seed in range(5)])
        repeated = Tensor(x.space, x.offset, x.shape, dtype, (0, x.strides[1]))
        draw(batch, repeated, [(LOG2_E, 0.9, 0.02)], [words(50, seed) for seed in range(5)])
    batch.judge()


def test_equal_scores_go_by_their_index(arena: Arena):
    batch = Batch(arena)
    few = np.random.default_rng(1).integers(0, 3, (24, 500))
    for values in (few, np.zeros((24, 500)), np.where(few == 0, 0.0, -0.0)):
        x = batch.put(values)
        options = [(LOG2_E, p, m) for p, m in product((1.0, 0.7), (0.0, 0.5))]
        found = draw(batch, x, options, [words((0, 3, 77, 400)[seed % 4], seed) for seed in range(24)])
        first = draw(batch, x, [(1e-30, 1.0, 0.0), (0.0, 1.0, 0.0)], [words(1)])
    batch.judge()
    assert (batch.array(first) == np.argmax(batch.array(x), -1)).all()
    assert len(set(batch.array(found).tolist())) > 8


def test_temperature_zero_takes_the_likeliest(arena: Arena):
    """And so does what is no number, or too small to be one on every device."""
    batch = Batch(arena)
    x = batch.put(normal(1, 6, 700))
    steepness = [0.0, -1.0, NAN, 1e-40, -INF, -0.0]
    found = draw(batch, x, [(s, 0.5, 0.5) for s in steepness], [words(3, 9, 9)])
    batch.judge()
    assert (batch.array(found) == batch.array(x).argmax(-1)).all()


def test_a_temperature_next_to_nothing_draws_among_the_largest(arena: Arena):
    batch = Batch(arena)
    x = batch.put(np.tile([1.0, 2.0, 2.0, 2.0 - 2**-22, -INF], (40, 1)))
    found = draw(batch, x, [(INF, 1.0, 0.0), (3e38, 1.0, 0.0)], [words(0, seed) for seed in range(40)])
    batch.judge()
    assert set(batch.array(found).tolist()) == {1, 2}


def test_what_is_no_number_is_never_drawn(arena: Arena):
    batch = Batch(arena)
    rows = normal(1, 8, 90)
    rows[0, ::2], rows[1, 1:], rows[2, :-1], rows[3], rows[4] = NAN, -INF, NAN, NAN, -INF
    rows[5, 7], rows[6] = INF, 3.4e38
    rows[6, 0] = -3.4e38
    for options in ((LOG2_E, 0.9, 0.1), (0.0, 1.0, 0.0), (0.1, 1.0, 0.0)):
        found = draw(batch, batch.put(rows), [options], [words(k, 3) for k in (0, 60)])
        special = draw(batch, batch.put(np.tile(SPECIAL[np.isfinite(SPECIAL)], (9, 1))), [options], [words()])
        assert special.shape == (9,)
    batch.judge()
    assert batch.array(found)[[3, 4, 5]].tolist() == [-1] * 3
    assert batch.array(found)[[1, 2]].tolist() == [0, 89]


def test_filters_out_of_range_filter_nothing_or_all_but_one(arena: Arena):
    batch = Batch(arena)
    x = batch.put(normal(2, 12, 200))
    parts = [NAN, -1.0, 2.0, INF, -INF, 1e-40]
    draw(batch, x, [(LOG2_E, p, 0.0) for p in parts], [words(0), words(-5), words(2**31 - 1)])
    draw(batch, x, [(LOG2_E, 1.0, p) for p in parts], [words(-(2**31))])
    batch.judge()


def test_seed_and_number_of_the_draw_are_64_bits_each(arena: Arena):
    batch = Batch(arena)
    x = batch.put(np.zeros((12, 3000)))
    numbers = (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
    states = [words(0, seed, n) for seed in (7, 2**64 - 1) for n in numbers]
    found = [draw(batch, x, [(1.0, 1.0, 0.0)], states, ahead) for ahead in (0, 1, 2**31 - 1)]
    batch.judge()
    assert batch.array(found[1])[2] == batch.array(found[0])[3]  # the draw after 2^32 - 1
    assert batch.array(found[1])[5] == batch.array(found[0])[0]  # the draw after 2^64 - 1


def test_drawn_as_often_as_the_weights_say(arena: Arena):
    """1,000 draws: 0.055 is 3.5 standard deviations of a half."""
    batch = Batch(arena)
    x = batch.put([np.log([0.5, 0.25, 0.15, 0.1])])
    every = Tensor(x.space, x.offset, (1000, 4), F32, (0, 1))
    found = draw(batch, every, [(LOG2_E, 1.0, 0.0)], [words(0, 42, i) for i in range(1000)])
    cut = draw(batch, every, [(LOG2_E / 2, 0.8, 0.0)], [words(0, 42, i) for i in range(1000)])
    batch.judge()
    shares = np.bincount(batch.array(found), minlength=4) / 1000
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.15, 0.1], atol=0.055)
    roots = np.sqrt([0.5, 0.25, 0.15, 0.0])
    shares = np.bincount(batch.array(cut), minlength=4) / 1000
    np.testing.assert_allclose(shares, roots * [1, 1, 1, 0] / roots.sum(), atol=0.055)


@pytest.mark.parametrize("shape", ["like logits", "nearly flat", "one stands out"])
def test_a_whole_vocabulary(arena: Arena, shape):
    """More elements than the threads of a GPU's block, or than one of them is worth."""
    batch, n = Batch(arena), 20000
    x = {
        "like logits": normal(1, 2, n, scale=2.5),
        "nearly flat": normal(2, 2, n, scale=1e-4),
        "one stands out": np.eye(2, n, 777) * 30,
    }[shape]
    values = batch.put(x)
    for k, p, m in ((0, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.95, 0.05), (9000, 0.5, 0.0), (0, 1.0, 0.2)):
        draw(batch, values, [(LOG2_E / 0.8, p, m)], [words(k, 11, 1), words(k, 12, 2)])
    batch.judge()


@given(st.data())
def test_any_scores_and_options(arena: Arena, data):
    batch = Batch(arena)
    score = st.sampled_from(SPECIAL.tolist()) | st.floats(-20, 20, width=32)
    number = st.floats(width=32) | st.floats(0, 1, width=32)
    rows, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    x = batch.put(data.draw(st.lists(st.lists(score, min_size=n, max_size=n), min_size=rows, max_size=rows)))
    options = data.draw(st.lists(st.tuples(number, number, number), min_size=rows, max_size=rows))
    i32 = st.integers(-(2**31), 2**31 - 1)
    states = [
        [data.draw(st.integers(-1, 45) | i32), *data.draw(st.tuples(i32, i32, i32, i32))] for _ in range(rows)
    ]
    draw(batch, x, options, states, data.draw(st.integers(0, 2**31 - 1)))
    batch.judge()


# -- penalize -------------------------------------------------------------------------------------------


def test_recent_tokens_cost_once_each_by_their_sign_and_their_number(arena: Arena):
    batch = Batch(arena)
    for out, dtype, w in product(REAL, REAL, (0, 1, 5, 70)):
        x = batch.put(normal(w, 3, 50, scale=4), dtype, order=(1, 0))
        recent = np.random.default_rng(w).integers(-5, 60, (3, w))
        options = np.array([(0.8, 1.25, 0.5, 0.25), (1.0, 1.0, 0.0, 3.0), (0.1, 9.0, -1.0, 0.0)])
        batch.tape.penalize(
            batch.room((3, 50), out, gap=2), x, batch.put(recent, I32, order=(1, 0)), batch.put(options)
        )
    batch.judge()


def test_penalties_of_special_scores(arena: Arena):
    batch = Batch(arena)
    for options in (
        (0.5, 2.0, 0.1, 0.1),
        (0.0, 0.0, 0.0, 0.0),
        (INF, -INF, NAN, 1.0),
        (1.0, 1.0, 1e30, 3e38),
    ):
        x = batch.put([SPECIAL])
        recent = batch.put([[*range(len(SPECIAL)), 3, 3, 2**31 - 1, -(2**31)]], I32)
        batch.tape.penalize(batch.room((1, len(SPECIAL))), x, recent, batch.put([options]))
    batch.judge()


def test_penalties_round_each_step_the_same_everywhere(arena: Arena):
    """A fused multiply and add would give other scores, and now and then another token."""
    batch = Batch(arena)
    n = 1000
    values, options = normal(1, 1, n, scale=5), np.array([[0.7, 1.3, 0.3, 0.07]], np.float32)
    recent = np.random.default_rng(2).integers(0, n, (1, 600))
    out = batch.room((1, n))
    batch.tape.penalize(out, batch.put(values), batch.put(recent, I32), batch.put(options))
    batch.judge()
    times = np.bincount(recent[0], minlength=n).astype(np.float32)
    shrink, grow, frequency, presence = options[0]
    scaled = np.where(values[0] > 0, values[0] * shrink, values[0] * grow)
    wanted = np.where(times > 0, scaled - times * frequency - presence, values[0])
    np.testing.assert_array_equal(batch.array(out)[0], wanted)


EMPTY = {
    "penalize": lambda b: b.tape.penalize(
        b.room((2, 0)), b.room((2, 0)), b.room((2, 3), I32), b.room((2, 4))
    ),
    "penalize r": lambda b: b.tape.penalize(
        b.room((0, 9)), b.room((0, 9)), b.room((0, 3), I32), b.room((0, 4))
    ),
    "sample": lambda b: b.tape.sample(b.room((0,), I32), b.room((0, 9)), b.room((0, 3)), b.room((0, 5), I32)),
}


@pytest.mark.parametrize("case", EMPTY)
def test_empty_outputs_write_nothing(arena: Arena, case):
    batch = Batch(arena)
    EMPTY[case](batch)
    batch.judge()
