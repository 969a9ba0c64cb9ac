"""The language ops on every instruction-set level and number of threads; what only the cpu's kernels do."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nocopy import native
from nocopy.device.cpu import open_device
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape import Space, Tensor
from tests.device.arena import Arena, Batch
from tests.device.conftest import open_or_skip
from tests.device.test_conformance_language import attend, cached
from tests.device.values import normal

F32, F16, BF16, I32, Q8_0 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.Q8_0

open_or_skip("cpu").close()


@pytest.fixture(scope="module", params=[(level, n) for level in native.levels() for n in (1, 5)], ids=str)
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Guarded pages and a device of each level, with one thread and with more than there may be cores."""
    level, threads = request.param
    device = open_device(threads=threads, level=level)
    arena = Arena(device)
    yield arena
    arena.close()
    device.close()


def times_weights(batch: Batch, dtype: DType, a: np.ndarray, n: int) -> None:
    """Record a @ weights.T."""
    weight = cached(batch, 1, (n, a.shape[1]), dtype)
    batch.tape.matmul(batch.room((len(a), n)), batch.put(a), weight.T)


@pytest.mark.parametrize("dtype", [F32, BF16, *sorted(QUANTISED)], ids=lambda d: d.name)
def test_rows_times_weights(arena: Arena, dtype):
    """As few rows as decoding has, more, and enough for panels; weights that end within a strip."""
    batch = Batch(arena)
    for m in (1, 2, 3, 4, 7, 9, 33, 70):
        times_weights(batch, dtype, normal(m, m, 768), 101)
    batch.judge()


@pytest.mark.parametrize("dtype", [F32, BF16, *sorted(QUANTISED)], ids=lambda d: d.name)
def test_a_row_times_weights_does_not_depend_on_how_many_rows_there_are(arena: Arena, dtype):
    """Up to eight: sequences that are decoded together have the logits that each has alone, bit for bit."""
    batch, a = Batch(arena), normal(1, 8, 768)
    weight = cached(batch, 1, (101, 768), dtype)
    found = []
    for m in (1, 2, 3, 4, 7, 8):
        found.append(batch.room((m, 101)))
        batch.tape.matmul(found[-1], batch.put(a[:m]), weight.T)
    batch.judge()
    for tensor in found:
        np.testing.assert_array_equal(batch.array(tensor)[0], batch.array(found[0])[0])


@pytest.mark.parametrize("dtype", [DType.Q4_0, DType.Q6_K], ids=lambda d: d.name)
def test_rows_longer_than_any_piece(arena: Arena, dtype):
    batch = Batch(arena)
    for m in (1, 3, 10):
        times_weights(batch, dtype, normal(m, m, 33024), 5)
    batch.judge()


@pytest.mark.parametrize("dtype", sorted(QUANTISED), ids=lambda d: d.name)
def test_activations_of_any_size(arena: Arena, dtype):
    """Blocks of zeros, one huge value among small ones, sizes that integers cannot hold, NaN, infinity."""
    batch = Batch(arena)
    ordinary = normal(1, 1, 512)
    for at, value in ((slice(0, 32), 0.0), (7, 1e4), (40, 1e35), (3, np.nan), (300, -np.inf)):
        a = ordinary.copy()
        a[0, at] = value
        times_weights(batch, dtype, a, 9)
    times_weights(batch, dtype, ordinary * np.float32(1e-34), 9)
    times_weights(batch, dtype, ordinary * 0, 9)
    batch.judge()


@pytest.mark.parametrize("cache", [F16, Q8_0], ids=lambda d: d.name)
def test_long_caches_are_cut_along_the_tokens(arena: Arena, cache):
    batch = Batch(arena)
    attend(batch, (1, 4, 64, 3000, 1), k=cache, v=cache)
    attend(batch, (2, 2, 32, 1500, 1), k=cache, v=cache, last=[1400, 3], window=1000)
    batch.judge()


@given(st.integers(1, 2048), st.booleans())
@example(1793, True)  # parts of whole tiles reach beyond: 7 of 320 tokens
@example(1793, False)
@settings(max_examples=15, deadline=None)
def test_nothing_is_read_behind_the_last_token(arena: Arena, tokens: int, keys: bool):
    """Keys or values that end where the memory does."""
    batch, shape = Batch(arena), (tokens, 1, 16)
    nbytes = 2 * prod(shape)
    end = Tensor(Space.KV, arena.sizes[Space.KV] - nbytes, shape, F16)
    arena.bytes[Space.KV][-nbytes:] = normal(1, prod(shape)).astype(np.float16).view(np.uint8)
    cache = [end, cached(batch, 2, shape, F16)] if keys else [cached(batch, 2, shape, F16), end]
    last, q = batch.put(np.array([tokens - 1]), I32), batch.put(normal(3, 1, 2, 16))
    batch.tape.attention(batch.room((1, 2, 16)), q, *cache, last, scale=0.25)
    batch.judge()


@pytest.mark.parametrize("cache", [F32, F16, BF16, Q8_0], ids=lambda d: d.name)
def test_few_queries_take_all_groups_of_some_tokens(arena: Arena, cache):
    """1 to 7 heads to a group, heads that fill no vectors, rows that see different tokens."""
    batch = Batch(arena)
    for heads, groups in ((3, 3), (10, 5), (9, 3), (14, 2)):
        attend(batch, (1, heads, 64, 300, groups), k=cache, v=cache)
        attend(batch, (3, heads, 32, 203, groups), k=cache, v=cache, last=[202, -1, 70], window=90)
    if cache != Q8_0:
        attend(batch, (2, 4, 42, 77, 2), k=cache, v=cache)
    batch.judge()


def test_many_queries_of_one_group(arena: Arena):
    """More heads to a group than one task takes; rows that end within a tile."""
    batch = Batch(arena)
    attend(batch, (3, 71, 64, 90, 1))
    attend(batch, (150, 2, 32, 150, 1), k=F16, v=F16)
    batch.judge()


def test_heads_wider_than_the_tiles(arena: Arena):
    batch = Batch(arena)
    attend(batch, (2, 2, 1100, 20, 1), last=[19, -1])
    attend(batch, (1, 1, 1056, 9, 1), k=Q8_0, v=Q8_0, softcap=3.0)
    batch.judge()
