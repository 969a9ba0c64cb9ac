"""How tokens are chosen by the CUDA kernels, without a GPU: by one block a row, and by several."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.device import cuda
from nocopy.device.cuda_launch import MAX_WORKSPACE, plan
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder
from tests.device import test_conformance_sample as conformance
from tests.device.arena import Arena, Batch
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.cuda_tapes import tensor
from tests.device.test_conformance_sample import draw, words
from tests.device.values import normal


@pytest.fixture
def arena(device: cuda.CudaDevice) -> Iterator[Arena]:
    """Guarded pages that the emulated device shares."""
    arena = Arena(device)
    yield arena
    arena.close()


@pytest.mark.parametrize("multiprocessors", [1, 12])
def test_one_block_and_several_draw_the_same(
    arena: Arena, driver: EmulatedDriver, multiprocessors: int
) -> None:
    """With 12 multiprocessors a row of 5,000 is shared by two blocks, which wait for each other."""
    driver.multiprocessors = multiprocessors
    batch = Batch(arena)
    for scores in (normal(1, 6, 5000, scale=3), np.zeros((6, 5000)), np.eye(6, 5000) * 9 - 30):
        options = [(1.44, 1, 0), (2, 0.9, 0.05), (0.7, 0.5, 0), (0, 1, 0)]
        draw(batch, batch.put(scores), options, [words(k, k) for k in (0, 40, 1500)])
    special = normal(2, 4, 4500)
    special[0], special[1, 4000], special[2, :4499] = np.nan, np.inf, -np.inf
    draw(batch, batch.put(special), [(1.0, 0.9, 0.0)], [words(7)])
    batch.judge()
    assert driver.launched == ["sample"] * 4


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(20_000, 30_000),
    scale=st.sampled_from([0.01, 1.0, 6.0]),
    options=st.tuples(
        st.sampled_from([0.2, 1.44]), st.sampled_from([0.3, 0.95, 1.0]), st.sampled_from([0.0, 0.05])
    ),
    top_k=st.sampled_from([0, 1, 40, 64, 65, 6000]),
    seed=st.integers(0, 2**64 - 1),
)
def test_blocks_that_share_a_row_draw_what_the_reference_draws(
    arena: Arena,
    driver: EmulatedDriver,
    n: int,
    scale: float,
    options: tuple[float, ...],
    top_k: int,
    seed: int,
) -> None:
    """Few keys are left to the last block to list them, many to all; rounded scores have ties."""
    driver.multiprocessors = 8
    driver.launched.clear()
    batch = Batch(arena)
    draw(
        batch, batch.put(np.round(normal(seed % 1000, 1, n, scale=scale), 2)), [options], [words(top_k, seed)]
    )
    batch.judge()
    assert driver.launched == ["sample"]


@pytest.mark.parametrize(
    ("rows", "n", "multiprocessors", "splits"),
    [
        (1, 128256, 132, 63),
        (8, 128256, 132, 16),
        (200, 128256, 132, 1),
        (1, 2**21, 132, 132),
        (1, 900, 132, 1),
    ],
)
def test_no_more_blocks_wait_for_each_other_than_run_at_the_same_time(
    rows: int, n: int, multiprocessors: int, splits: int
) -> None:
    tape = TapeBuilder()
    tape.sample(
        tensor(0, rows, dtype=DType.I32),
        tensor(65536, rows, n, strides=(0, 1)),
        tensor(16384, rows, 3, strides=(0, 1)),
        tensor(20000, rows, 5, dtype=DType.I32, strides=(0, 1)),
    )
    found = plan(bytes(tape), {Space.GUEST: 0}, 0, multiprocessors)
    assert found.launches[0].shape.splits == splits
    assert found.launches[0].shape.blocks <= multiprocessors
    assert found.workspace <= MAX_WORKSPACE


def test_penalties_of_a_long_row_are_shared_out(arena: Arena, driver: EmulatedDriver) -> None:
    batch = Batch(arena)
    driver.multiprocessors = 8
    recent = np.random.default_rng(1).integers(-9, 5000, (2, 300))
    recent[:, 100:] = recent[:, 100:101] // np.arange(1, 201)
    batch.tape.penalize(
        batch.room((2, 5000)),
        batch.put(normal(1, 2, 5000)),
        batch.put(recent, DType.I32),
        batch.put([(0.8, 1.25, 0.5, 0.25)]),
    )
    batch.judge()
    assert driver.launched == ["penalize"]


@pytest.mark.parametrize(
    "test",
    [
        lambda arena: conformance.test_every_filter_alone_and_with_the_others(arena, 64),
        conformance.test_scores_of_every_type_and_layout,
        conformance.test_temperature_zero_takes_the_likeliest,
        conformance.test_a_temperature_next_to_nothing_draws_among_the_largest,
        conformance.test_what_is_no_number_is_never_drawn,
        conformance.test_filters_out_of_range_filter_nothing_or_all_but_one,
        conformance.test_seed_and_number_of_the_draw_are_64_bits_each,
        conformance.test_recent_tokens_cost_once_each_by_their_sign_and_their_number,
        conformance.test_penalties_of_special_scores,
        conformance.test_penalties_round_each_step_the_same_everywhere,
    ],
)
def test_kernels_mean_what_the_reference_means(arena: Arena, test) -> None:
    test(arena)
