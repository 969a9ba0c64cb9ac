"""The judge itself: a player with a flaw does not pass, and a byte too far ends the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from nocopy.device.reference import HostProgram, ReferenceDevice
from nocopy.memory.dtype import DType
from nocopy.tape import Space, Tensor, reference
from tests.device.arena import Arena, Batch
from tests.device.values import normal

F32, F16, I32, U8 = DType.F32, DType.F16, DType.I32, DType.U8


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(ReferenceDevice(), {Space.GUEST: 1 << 20}, scratch=0)
    yield arena
    arena.close()


@pytest.fixture
def after_play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[np.ndarray], None]], None]:
    """Let a flaw change the memory behind the device's back, after each play."""

    def install(flaw: Callable[[np.ndarray], None]) -> None:
        play = ReferenceDevice.play

        def flawed(self: ReferenceDevice, program: HostProgram, *, timeout: float | None = None) -> None:
            play(self, program, timeout=timeout)
            flaw(program.spaces[Space.GUEST].array())

        monkeypatch.setattr(ReferenceDevice, "play", flawed)

    return install


def judge(arena: Arena, record: Callable[[Batch], Tensor]) -> None:
    batch = Batch(arena)
    record(batch)
    batch.judge()


def product(batch: Batch) -> Tensor:
    out = batch.room((8, 8), gap=2)
    batch.tape.matmul(out, batch.put(normal(1, 8, 64)), batch.put(normal(2, 64, 8)))
    return out


def test_a_right_player_passes(arena: Arena):
    judge(arena, product)


@pytest.mark.parametrize(
    "where", ["before the output", "in a gap of the output", "after it", "at the very end"]
)
def test_one_changed_byte_that_no_output_owns_is_found(arena: Arena, after_play, where: str):
    out = product(Batch(arena))
    last = out.offset + 4 * (2 * 63) + 3
    at = {"before": out.offset - 1, "in": out.offset + 4, "after": last + 1, "at": -1}[
        where.partition(" ")[0]
    ]

    def flaw(memory: np.ndarray) -> None:
        memory[at] ^= 0x80

    after_play(flaw)
    with pytest.raises(AssertionError, match="changed 1 bytes of guest that no output owns"):
        judge(arena, product)


FLAWS = {
    "products rounded to f16": ("matmul", lambda a: a.astype(np.float16).astype(np.float32)),
    "products that lose a term in 64": ("matmul", lambda a: a * np.float32(63 / 64)),
    "sums off by 2**-17": ("reduce", lambda a: a * np.float32(1 + 2**-17)),
    "exp off by 2**-19": ("unary", lambda a: a * np.float32(1 + 2**-19)),
    "softmax off by 2**-17": ("softmax", lambda a: a * np.float32(1 - 2**-17)),
    "rmsnorm without eps": ("rmsnorm", lambda a: a * np.float32(1 + 4e-5)),
    "attention off by 2**-16": ("attention", lambda a: a * np.float32(1 + 2**-16)),
    "rope off by 2**-19": ("rope", lambda a: a * np.float32(1 + 2**-19)),
    "glu off by 2**-19": ("glu", lambda a: a * np.float32(1 + 2**-19)),
    "the last element forgotten": ("copy", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, 0, a)),
    "a lost sign of zero": ("copy", lambda a: a + np.float32(0)),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_results_that_are_a_little_wrong_are_found(arena: Arena, monkeypatch: pytest.MonkeyPatch, flaw: str):
    op, spoil = FLAWS[flaw]
    right = reference.MEANING[op]

    def wrong(operands, params):
        right(operands, params)
        operands[0][...] = spoil(operands[0])

    batch = Batch(arena)
    x = batch.put(np.where(normal(1, 8, 64) > 1, -0.0, 0.1 * normal(1, 8, 64)))
    positive = batch.put(np.abs(normal(3, 8, 64)))
    match op:
        case "matmul":
            product(batch)
        case "reduce":
            batch.tape.reduce("sum", batch.room((8,)), positive)
        case "unary":
            batch.tape.unary("exp", batch.room((8, 64)), x)
        case "copy":
            batch.tape.copy(batch.room((8, 64)), x)
        case "attention":
            q, k, v = (batch.put(0.1 * normal(i, 8, 2, 32)) for i in (1, 2, 3))
            batch.tape.attention(batch.room((8, 2, 32)), q, k, v, batch.put([5] * 8, I32), scale=0.1)
        case "rope":
            frequencies, positions = batch.put([1.0, 0.1]), batch.put(np.arange(8), I32)
            batch.tape.rope(batch.room((8, 1, 4)), batch.put(normal(1, 8, 1, 4)), frequencies, positions)
        case "glu":
            batch.tape.glu("silu", batch.room((8, 64)), x, positive)
        case "rmsnorm":
            batch.tape.rmsnorm(batch.room((8, 64)), x, None, 1e-6)
        case _:
            batch.tape.softmax(batch.room((8, 64)), x)
    batch.judge()
    monkeypatch.setitem(reference.MEANING, op, wrong)
    with pytest.raises(AssertionError, match="elements are wrong"):
        batch.judge()


def test_conversion_that_truncates_is_found(arena: Arena, monkeypatch: pytest.MonkeyPatch):
    def truncate(operands, _params):
        out, x = operands
        out[...] = np.trunc(x).astype(np.int32)

    monkeypatch.setitem(reference.MEANING, "copy", truncate)
    batch = Batch(arena)
    batch.tape.copy(batch.room((3,), I32), batch.put([0.25, 1.75, 2.5]))
    with pytest.raises(AssertionError, match="1 of 3 elements are wrong"):
        batch.judge()


@pytest.mark.parametrize("at", [0, 2, 33, 34])
def test_one_wrong_byte_of_a_block_is_found(arena: Arena, monkeypatch: pytest.MonkeyPatch, at: int):
    """In the scale, in the first and the last quant; and in a row that no index names."""
    right = reference.MEANING["scatter"]

    def wrong(operands, params):
        right(operands, params)
        operands[0].view(np.uint8).reshape(-1)[at] ^= 1

    monkeypatch.setitem(reference.MEANING, "scatter", wrong)
    batch = Batch(arena)
    batch.tape.scatter(batch.room((2, 32), DType.Q8_0), batch.put(normal(1, 1, 32)), batch.put([0], I32))
    with pytest.raises(AssertionError, match="scatter: row"):
        batch.judge()


def test_rows_mixed_from_two_sources_are_found(arena: Arena, monkeypatch: pytest.MonkeyPatch):
    def mixed(operands, _params):
        out, x, _ = operands
        out[1, :3], out[1, 3:] = x[0, :3], x[1, 3:]

    monkeypatch.setitem(reference.MEANING, "scatter", mixed)
    batch = Batch(arena)
    batch.tape.scatter(batch.room((2, 6)), batch.put(normal(1, 2, 6)), batch.put([1, 1], I32))
    with pytest.raises(AssertionError, match="scatter: row 1"):
        batch.judge()


def test_ties_taken_from_the_end_are_found(arena: Arena, monkeypatch: pytest.MonkeyPatch):
    def last(operands, _params):
        out, x = operands
        out[...] = x.shape[-1] - 1 - np.argmax(x[..., ::-1], -1)

    monkeypatch.setitem(reference.MEANING, "argmax", last)
    batch = Batch(arena)
    batch.tape.argmax(batch.room((), I32), batch.put([1, 3, 3, 2]))
    with pytest.raises(AssertionError, match=r"out\[0, 0, 0\] is np.int32\(2\)"):
        batch.judge()


@pytest.mark.skipif(sys.platform == "win32", reason="signals end processes on POSIX only")
@pytest.mark.parametrize("at", ["region.address - 1", "region.address + region.nbytes"])
def test_a_byte_outside_the_region_ends_the_process(at: str):
    code = (
        f"import ctypes; from tests.device.region import *; region = Region(PAGE); ctypes.memset({at}, 0, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0
