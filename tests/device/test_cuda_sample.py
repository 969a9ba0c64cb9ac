"""How tokens are chosen by the CUDA kernels, without a GPU: by one block a row, and by several."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nocopy.device import cuda
from nocopy.device.cuda_launch import MAX_WORKSPACE, SAMPLE_KERNELS, plan
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder
from tests.device import test_conformance_sample as conformance
from tests.device.arena import Arena, Batch
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.cuda_tapes import tensor
from tests.device.test_conformance_sample import draw, words
from tests.device.values import normal

SPLIT = ["sample_largest", *SAMPLE_KERNELS]


@pytest.fixture
def arena(device: cuda.CudaDevice) -> Iterator[Arena]:
    """Guarded pages that the emulated device shares."""
    arena = Arena(device)
    yield arena
    arena.close()


@pytest.mark.parametrize("multiprocessors", [1, 400])
def test_one_block_and_many_draw_the_same(arena: Arena, driver: EmulatedDriver, multiprocessors: int) -> None:
    """With 400 multiprocessors a row of 5,000 is shared by five blocks."""
    driver.multiprocessors = multiprocessors
    batch = Batch(arena)
    for scores in (normal(1, 6, 5000, scale=3), np.zeros((6, 5000)), np.eye(6, 5000) * 9 - 30):
        options = [(1.44, 1, 0), (2, 0.9, 0.05), (0.7, 0.5, 0), (0, 1, 0)]
        draw(batch, batch.put(scores), options, [words(k, k) for k in (0, 40, 1500)])
    special = normal(2, 4, 4500)
    special[0], special[1, 4000], special[2, :4499] = np.nan, np.inf, -np.inf
    draw(batch, batch.put(special), [(1.0, 0.9, 0.0)], [words(7)])
    batch.judge()
    assert driver.launched == (["sample"] * 4 if multiprocessors == 1 else SPLIT * 4)


def test_what_blocks_hand_on_stays_within_bounds() -> None:
    """Too many rows take a block each, however many multiprocessors there are."""
    for rows, kernel in ((8, "sample_largest"), (2000, "sample")):
        tape = TapeBuilder()
        tape.sample(
            tensor(0, rows, dtype=DType.I32),
            tensor(65536, rows, 128256, strides=(0, 1)),
            tensor(16384, rows, 3, strides=(0, 1)),
            tensor(20000, rows, 5, dtype=DType.I32, strides=(0, 1)),
        )
        found = plan(bytes(tape), {Space.GUEST: 0}, 0, 1 << 20)
        assert found.launches[0].shape.kernel == kernel
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
