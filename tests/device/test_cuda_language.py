"""The CUDA kernels of language models that only large or particular shapes choose, without a GPU.

What they compute at other shapes, `test_conformance_language.py` asks on an emulated driver
(`test_cuda_driver.py`).
"""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nocopy.device import cuda
from nocopy.device.cuda_launch import MAX_WORKSPACE, plan
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape import Space, TapeBuilder, Tensor, validate
from tests.device.arena import Arena, Batch
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.cuda_tapes import tensor
from tests.device.values import normal

F32, F16, BF16, I32, Q8_0 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.Q8_0
WEIGHTS = [F32, F16, BF16, *sorted(QUANTISED)]


@pytest.fixture
def batch(device: cuda.CudaDevice) -> Iterator[Batch]:
    """Guarded pages that the emulated device shares."""
    arena = Arena(device)
    yield Batch(arena)
    arena.close()


def words(batch: Batch, seed: int, *shape: int, dtype: DType = F32) -> Tensor:
    """Normal values from a 16-byte boundary on."""
    room = batch.room((int(np.prod(shape)) + 8,), dtype)
    x = Tensor(room.space, -(-room.offset // 16) * 16, shape, dtype)
    batch.array(x)[...] = normal(seed, *shape).astype(dtype.numpy)
    return x


def weight(batch: Batch, rows: int, k: int, dtype: DType) -> Tensor:
    """A weight [k, rows] whose elements along k are contiguous."""
    if dtype.block > 1:
        return batch.put_blocks((k, rows), dtype, 2, order=(1, 0))
    return words(batch, 2, rows, k, dtype=dtype).T


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda d: d.name)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 3, 1280), (1, 33, 256), (3, 2, 1024), (4, 9, 512)])
def test_few_rows_take_the_weight_in_whole_words(
    batch: Batch, driver: EmulatedDriver, dtype: DType, m: int, n: int, k: int
) -> None:
    batch.tape.matmul(batch.room((m, n)), words(batch, 1, m, k), weight(batch, n, k, dtype), 0.5)
    batch.judge()
    assert driver.launched == [f"matvec_{'few_' if m > 1 else ''}{dtype.name.lower()}"]


@pytest.mark.parametrize(
    ("what", "offset", "k", "stride"),
    [("a begins between words", 4, 256, 256), ("rows of a begin between words", 0, 256, 258)],
)
def test_what_is_not_in_whole_words_is_read_by_elements(
    batch: Batch, driver: EmulatedDriver, what: str, offset: int, k: int, stride: int
) -> None:
    base = words(batch, 1, 2, 300)
    a = Tensor(base.space, base.offset + offset, (2, k), F32, (stride, 1))
    batch.tape.matmul(batch.room((2, 5)), a, weight(batch, 5, k, F16))
    batch.tape.matmul(batch.room((2, 5)), a, weight(batch, 5, k, Q8_0))
    batch.judge()
    assert driver.launched == ["matmul_narrow", "matmul_blocks_small"], what


@pytest.mark.parametrize(("multiprocessors", "size"), [(1, "large"), (4, "medium"), (99, "small")])
def test_blocks_are_multiplied_in_tiles(
    batch: Batch, driver: EmulatedDriver, multiprocessors: int, size: str
) -> None:
    driver.multiprocessors = multiprocessors
    for dtype in sorted(QUANTISED):
        batch.tape.matmul(batch.room((70, 66)), words(batch, 1, 70, 256), weight(batch, 66, 256, dtype))
    batch.judge()
    assert set(driver.launched) == {f"matmul_blocks_{size}"}


def test_q8_0_rounds_as_the_reference_next_to_a_half(batch: Batch) -> None:
    """Each row has scale 1, so that its values are the quotients."""
    halves = np.arange(-127, 127, dtype=np.float32)[:, None] + np.float32(0.5)
    far = np.array([-np.inf, np.inf], np.float32)
    rows = np.concatenate([np.full_like(halves, 127), halves, np.nextafter(halves, far)], axis=1)
    x = batch.put(np.pad(rows, ((0, 0), (0, 28))))
    batch.tape.scatter(batch.room(x.shape, Q8_0), x, batch.put(np.arange(len(rows)), I32))
    batch.judge()


@pytest.mark.parametrize("cache", [F32, F16, BF16, Q8_0], ids=lambda d: d.name)
@pytest.mark.parametrize(("heads", "groups"), [(7, 1), (4, 2), (2, 2)])
def test_tokens_are_split_among_blocks_and_joined(
    batch: Batch, driver: EmulatedDriver, cache: DType, heads: int, groups: int
) -> None:
    driver.multiprocessors = 8
    shape = (700, groups, 32)

    def values(seed: int) -> Tensor:
        if cache is Q8_0:
            return batch.put_blocks(shape, cache, seed)
        return words(batch, seed, *shape, dtype=cache)

    k, v = values(2), values(3)
    rows = ([640], 0), ([5], 0), ([-1], 0), ([640], 300), ([699], 0), ([699, 3], 100)
    for last, window in rows:
        q, seen = words(batch, 1, len(last), heads, 32), batch.put(last, I32)
        batch.tape.attention(
            batch.room((len(last), heads, 32)), q, k, v, seen, scale=0.2, window=window, softcap=20.0
        )
    batch.judge()
    name = f"{'grouped_' if heads > groups else ''}{cache.name.lower()}"
    assert driver.launched == [f"attention_row_{name}"] * 5 + [f"attention_{name}", "attention_join"]


def test_a_workspace_is_freed_with_its_program(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    arena = Arena(device)
    held = len(driver.allocated)
    tape = TapeBuilder()
    tape.attention(
        tensor(0, 1, 2, 32), tensor(4096, 1, 2, 32), tensor(8192, 900, 1, 32), tensor(8192, 900, 1, 32),
        tensor(256, 1, dtype=I32), scale=1.0,
    )  # fmt: skip
    ready = validate(bytes(tape), arena.sizes)
    program = device.compile(ready, arena.pages)
    assert len(driver.allocated) == held + 1
    program.close()
    assert len(driver.allocated) == held
    driver.refuse.add("graph")
    with pytest.raises(Exception, match="graph refused"):
        device.compile(ready, arena.pages)
    assert len(driver.allocated) == held
    driver.refuse.clear()
    arena.close()


@pytest.mark.parametrize("rows", [1, 2, 64, 512])
@pytest.mark.parametrize("tokens", [1, 4096, 131072])
def test_splits_are_bounded(rows: int, tokens: int) -> None:
    """By the tokens that there may be, by the multiprocessors that there are, and in memory."""
    tape = TapeBuilder()
    tape.attention(
        tensor(0, rows, 32, 64), tensor(0, rows, 32, 64), tensor(0, tokens, 8, 64, dtype=F16),
        tensor(0, tokens, 8, 64, dtype=F16), tensor(0, rows, dtype=I32), scale=1.0,
    )  # fmt: skip
    chosen = plan(bytes(tape), {Space.GUEST: 0}, 0, 132)
    splits = chosen.launches[0].shape.splits
    assert splits <= max(1, tokens // 128)
    assert chosen.launches[0].grid <= max(2 * 132, rows * 8)
    assert chosen.workspace <= MAX_WORKSPACE
    assert (splits > 1) == (chosen.workspace > 0)
    assert (len(chosen.launches) == 2) == (splits > 1 and rows > 1)
    if rows == 1 and tokens == 131072:
        assert splits == 16


def test_a_long_row_is_searched_by_several_blocks(batch: Batch, driver: EmulatedDriver) -> None:
    for rows, at in ((1, 4999), (2, 0), (1, 2500)):
        values = normal(at, rows, 5000)
        values[:, at] = values[:, 4000] = 9
        values[:, 7] = np.nan
        batch.tape.argmax(batch.room((rows,), I32), batch.put(values))
    batch.tape.argmax(batch.room((1,), I32), batch.put(np.full((1, 4500), np.nan)))
    batch.judge()
    assert driver.launched == ["argmax_split", "argmax", "argmax_split", "argmax_split"]
