"""Conformance of sizes: more groups than 65535, memory that grows, offsets and strides past 4 GiB."""

from __future__ import annotations

import numpy as np
import pytest

from nocopy.device import launches
from nocopy.device.protocol import Device, Mode
from nocopy.errors import DeviceError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.tape import Space, TapeBuilder, Tensor
from tests.device.arena import Arena, Batch
from tests.device.region import PAGE, Region
from tests.device.values import normal, whole

F32, F16, I32, U8 = DType.F32, DType.F16, DType.I32, DType.U8
MANY = 65_537 + 16
"""More than the 65535 groups that an axis of a GPU dispatch may have."""


def test_more_rows_than_a_dispatch_has_groups(device: Device):
    arena = Arena(device, {Space.GUEST: 48 << 20}, scratch=0)
    batch = Batch(arena)
    x = batch.put(normal(1, MANY, 5))
    for function in ("sum", "max"):
        batch.tape.reduce(function, batch.room((MANY,)), x)
    batch.tape.softmax(batch.room((MANY, 5), F16), x)
    batch.tape.rmsnorm(batch.room((MANY, 5)), x, batch.put(normal(2, 5)))
    batch.tape.layernorm(batch.room((MANY, 5)), x)
    batch.tape.argmax(batch.room((MANY,), I32), x)
    batch.tape.gather(
        batch.room((MANY, 3)), batch.put(normal(3, 9, 3)), batch.put(np.arange(MANY) % 11 - 1, I32)
    )
    positions = batch.put(np.arange(MANY), I32)
    heads = Tensor(x.space, x.offset, (MANY, 1, 5), F32, (5, 5, 1))
    batch.tape.rope(batch.room((MANY, 1, 5)), heads, batch.put([0.5, 1e-3]), positions)
    places = batch.put(np.random.default_rng(1).permutation(5000), I32)
    some = Tensor(x.space, x.offset, (5000, 5), F32)
    batch.tape.scatter(batch.room((5000, 5), F16), some, places)
    batch.tape.glu("silu", batch.room((MANY, 5)), x, x)
    w = batch.put(normal(4, 5, 1))
    batch.tape.matmul(batch.room((MANY, 1)), x, w)
    columns = Tensor(x.space, x.offset, (5, MANY), F32, (1, 5))
    batch.tape.matmul(batch.room((1, MANY)), Tensor(w.space, w.offset, (1, 5), F32), columns)
    batch.judge()
    arena.close()


@pytest.fixture
def many(device: Device, monkeypatch: pytest.MonkeyPatch) -> int:
    """More groups than a dispatch has. A software GPU takes some 0.2 ms to start each: it may have fewer."""
    if not device.info.software:
        return MANY
    monkeypatch.setattr(launches, "MAX_GROUPS", 509)
    return 509 + 18


@pytest.mark.parametrize("case", ["topk", "attention", "first batch axis", "second batch axis"])
def test_more_groups_of_many_threads_than_a_dispatch_has(device: Device, many: int, case: str):
    arena = Arena(device, {Space.GUEST: 8 << 20}, scratch=0)
    batch = Batch(arena)
    if case == "topk":
        batch.tape.topk(batch.room((many, 2)), batch.room((many, 2), I32), batch.put(normal(1, many, 5)))
    elif case == "attention":
        q, k, v = (batch.put(normal(i, rows, 1, 3)) for i, rows in ((1, many), (2, 4), (3, 4)))
        last = batch.put(np.arange(many) % 6 - 1, I32)
        batch.tape.attention(batch.room((many, 1, 3)), q, k, v, last, scale=0.5)
    else:
        batches = (many, 1) if case.startswith("first") else (1, many)
        a, b = batch.put(normal(5, *batches, 2, 3), F16), batch.put(normal(6, 3, 2))
        batch.tape.matmul(batch.room((*batches, 2, 2)), a, b)
    batch.judge()
    arena.close()


def test_more_images_and_channels_than_a_dispatch_has_groups(device: Device):
    arena = Arena(device, {Space.GUEST: 16 << 20}, scratch=0)
    batch = Batch(arena)
    many_images, many_channels = batch.put(normal(1, MANY, 1, 2, 2)), batch.put(normal(2, 1, MANY, 2, 2))
    batch.tape.conv2d(batch.room((MANY, 2, 1, 1)), many_images, batch.put(normal(3, 2, 1, 2, 2)))
    batch.tape.conv2d(
        batch.room((1, MANY, 1, 2)), batch.put(normal(4, 1, 2, 1, 2)), batch.put(normal(5, MANY, 2, 1, 1))
    )
    batch.tape.resize(batch.room((MANY, 1, 1, 3)), many_images)
    batch.tape.resize(batch.room((1, MANY, 3, 1)), many_channels)
    batch.judge()
    arena.close()


def test_more_elements_than_a_dispatch_has_threads_in_one_axis(device: Device):
    """65535 groups of 256 are 2**24 - 256 elements; here are some more, in a row and as bytes."""
    n = 2**24 + 1003
    region = Region(-(-(9 * n + 64) // (16 * PAGE)) * 16 * PAGE)
    pages = device.share(region.address, region.nbytes)
    a, b = (Tensor(Space.GUEST, 4 * n * i, (n,), F32) for i in range(2))
    small = Tensor(Space.GUEST, 8 * n, (n,), U8)
    memory = region.bytes
    x, y = memory[: 8 * n].view(np.float32).reshape(2, n)
    memory[8 * n :] = 77
    x[:], y[:] = whole(1, n), np.arange(n) % 97
    expected = x + y
    tape = TapeBuilder()
    tape.binary("add", a, a, b)
    tape.copy(small, b)
    program = device.compile(tape.build({Space.GUEST: region.nbytes}), {Space.GUEST: pages})
    device.play(program)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(memory[8 * n : 9 * n], np.arange(n) % 97)
    assert (memory[9 * n :] == 77).all()
    program.close()
    pages.close()
    region.close()


def test_a_device_follows_memory_that_grows(device: Device):
    first, last = 16 * PAGE, 64 * PAGE
    region, ledger = Region(first, last - first), Ledger()
    pages = device.share(region.address, region.nbytes, ledger=ledger)
    assert ledger.shared == first
    for size in (first, 2 * first, last):
        if size > first:
            region.grow(size)
            pages.grow(size)
        assert (pages.nbytes, pages.address, ledger.shared) == (size, region.address, size)
        tape = TapeBuilder()
        tape.fill(Tensor(Space.GUEST, size - 16, (4,), I32), size)  # its very end
        tape.copy(Tensor(Space.GUEST, 0, (4,), I32), Tensor(Space.GUEST, size - 16, (4,), I32))
        program = device.compile(tape.build({Space.GUEST: size}), {Space.GUEST: pages})
        device.play(program)
        assert region.bytes[:16].view(np.int32).tolist() == [size] * 4
        assert region.bytes[-16:].view(np.int32).tolist() == [size] * 4
        program.close()
    assert ledger.copied == 0 or device.info.mode is Mode.STAGED
    pages.close()
    region.close()


def test_offsets_and_strides_past_four_gib(device: Device):
    """Two elements 4 GiB apart, at an offset past 4 GiB: 32-bit index arithmetic would fold them together."""
    region = Region(9 << 30)
    try:
        pages = device.share(region.address, region.nbytes)
    except DeviceError as e:
        region.close()
        pytest.skip(f"{device.info.name} cannot share 9 GiB: {e}")
    far = Tensor(Space.GUEST, (4 << 30) + 12, (2, 3), F32, (2**30, 5))
    near = Tensor(Space.GUEST, 64, (2, 3), F32)
    out = Tensor(Space.GUEST, (8 << 30) + 4096, (2, 3), F32)
    memory = region.bytes
    memory[64:88].view(np.float32)[:] = range(1, 7)
    tape = TapeBuilder()
    tape.copy(far, near)
    tape.binary("add", out, far, near)
    program = device.compile(tape.build({Space.GUEST: region.nbytes}), {Space.GUEST: pages})
    device.play(program)
    at = (8 << 30) + 4096
    assert memory[at : at + 24].view(np.float32).tolist() == [2, 4, 6, 8, 10, 12]
    for row in range(2):
        start = (4 << 30) + 12 + (row << 32)
        assert memory[start : start + 44].view(np.float32)[::5].tolist() == [3 * row + i for i in (1, 2, 3)]
        folded = start % 2**32
        assert not memory[folded : folded + 44].any()
    program.close()
    pages.close()
    region.close()
