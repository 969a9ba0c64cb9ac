"""The cpu player: every instruction-set level and number of threads, deadlines, the native library."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from nocopy import native
from nocopy.device.cpu import CpuDevice, default_threads, open_device
from nocopy.device.protocol import Mode
from nocopy.device.reference import ReferenceDevice
from nocopy.errors import ClosedError, DeadlineError, DeviceUnavailableError, UsageError
from nocopy.memory.dtype import ALL, DType
from nocopy.tape import Space, TapeBuilder, Tensor
from tests.device.conftest import open_or_skip

F32, F16, BF16 = DType.F32, DType.F16, DType.BF16
MIB = 1 << 20

open_or_skip("cpu").close()
LEVELS = native.levels()


@pytest.fixture(scope="module", params=[(level, n) for level in LEVELS for n in (1, 2, 5)], ids=str)
def player(request: pytest.FixtureRequest) -> Iterator[CpuDevice]:
    """A device of each level, with one thread, two, and more than this machine may have cores."""
    level, threads = request.param
    device = open_device(threads=threads, level=level)
    yield device
    device.close()


class Pair:
    """The same tensors twice: for the cpu and for the reference."""

    def __init__(self, device: CpuDevice, nbytes: int) -> None:
        self.devices = (device, ReferenceDevice())
        self.pages = [d.allocate(nbytes) for d in self.devices]
        self.nbytes, self.used, self.tape = nbytes, 0, TapeBuilder()
        self.outputs: list[Tensor] = []

    def tensor(self, shape, dtype=F32, values=None, transposed=False) -> Tensor:
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        offset, self.used = self.used, self.used + -(-size // 64) * 64
        assert self.used <= self.nbytes
        stored = shape[::-1] if transposed else shape
        if values is not None:
            for pages in self.pages:
                into = pages.array()[offset : offset + size].view(dtype.numpy).reshape(stored)
                into[...] = (values.T if transposed else values).astype(dtype.numpy)
        tensor = Tensor(Space.GUEST, offset, stored, dtype)
        if transposed:
            tensor = Tensor(Space.GUEST, offset, shape, dtype, tensor.strides[::-1])
        return tensor

    def play(self):
        for device, pages in zip(self.devices, self.pages, strict=True):
            program = device.compile(self.tape.build({Space.GUEST: self.nbytes}), {Space.GUEST: pages})
            device.play(program)

    def results(self, out: Tensor) -> list[np.ndarray]:
        size = int(np.prod(out.shape, dtype=int)) * out.dtype.itemsize
        found = []
        for pages in self.pages:
            raw = pages.array()[out.offset : out.offset + size].view(out.dtype.numpy)
            transposed = len(out.shape) == 2 and out.strides[0] == 1 and out.strides[1] != 1
            found.append(
                (raw.reshape(out.shape[::-1]).T if transposed else raw.reshape(out.shape)).astype(np.float64)
            )
        return found


SHAPES = [
    (1, 1, 1), (3, 3, 3), (1, 700, 33), (700, 1, 33), (2, 50, 5000), (7, 129, 64), (8, 2100, 40), (9, 9, 9),
    (12, 32, 384), (13, 33, 385), (64, 64, 64), (65, 31, 100), (33, 1, 0), (200, 400, 300), (1000, 10, 70),
    (300, 300, 800), (25, 17, 9000),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
def test_products_of_every_shape_and_layout(player, shape, layout):
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    pair = Pair(player, 16 * MIB)
    out = pair.tensor((m, n), values=np.full((m, n), np.nan))
    a = pair.tensor((m, k), values=rng.standard_normal((m, k)), transposed=layout[0] == "t")
    b = pair.tensor((k, n), values=rng.standard_normal((k, n)), transposed=layout[1] == "t")
    pair.tape.matmul(out, a, b, scale=0.5)
    pair.play()
    ours, right = pair.results(out)
    np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-5 * np.sqrt(k + 1))


@pytest.mark.parametrize("out_dtype", [F32, F16, BF16])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("shape", [(1, 100, 90), (5, 40, 400), (50, 60, 800), (100, 1, 20)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_products_of_every_dtype_sum_in_f32(player, dtype, out_dtype, shape, transposed):
    m, n, k = shape
    rng = np.random.default_rng(k)
    pair = Pair(player, 4 * MIB)
    out = pair.tensor((m, n), out_dtype, transposed=transposed)
    a = pair.tensor((m, k), dtype, rng.standard_normal((m, k)))
    b = pair.tensor((k, n), dtype, rng.standard_normal((k, n)), transposed=transposed)
    pair.tape.matmul(out, a, b)
    pair.play()
    ours, right = pair.results(out)
    # A sum of k products near a rounding boundary of the output may fall on either side of it.
    step = {F32: 1e-5, F16: 2**-10, BF16: 2**-7}[out_dtype]
    np.testing.assert_allclose(ours, right, rtol=step, atol=1e-4)


def test_batches_share_a_broadcast_matrix(player):
    rng = np.random.default_rng(3)
    pair = Pair(player, 8 * MIB)
    a_values, b_values = rng.standard_normal((6, 5, 20, 30)), rng.standard_normal((30, 40))
    out = pair.tensor((6, 5, 20, 40))
    a, b = pair.tensor((6, 5, 20, 30), values=a_values), pair.tensor((30, 40), values=b_values)
    pair.tape.matmul(out, a, b)
    one = pair.tensor((6, 5, 1, 40))
    pair.tape.matmul(one, Tensor(Space.GUEST, a.offset, (6, 5, 1, 30), F32, a.strides), b)
    pair.play()
    for result in (out, one):
        ours, right = pair.results(result)
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


def test_a_product_larger_than_one_block(player):
    m, n, k = 2050, 2080, 40
    rng = np.random.default_rng(4)
    pair = Pair(player, 40 * MIB)
    out = pair.tensor((m, n))
    a, b = (pair.tensor(s, values=rng.standard_normal(s)) for s in ((m, k), (k, n)))
    half = pair.tensor((m, n), F16)
    pair.tape.matmul(out, a, b)
    pair.tape.matmul(half, a, b)
    pair.play()
    ours, right = pair.results(out)
    np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)
    ours, right = pair.results(half)
    np.testing.assert_allclose(ours, right, rtol=2**-10, atol=1e-2)


CONVOLUTIONS = [
    # n, c, h, w, o, cg, kh, kw, stride, pad, dilation
    (2, 3, 20, 31, 16, 3, 3, 3, 2, 1, 1),
    (1, 32, 14, 14, 32, 1, 3, 3, 1, 1, 1),
    (1, 24, 9, 9, 40, 24, 1, 1, 1, 0, 1),
    (1, 3, 40, 600, 3, 1, 5, 5, 1, 2, 2),
    (1, 8, 12, 12, 24, 4, 3, 2, 1, 3, 1),
    (3, 1, 7, 7, 1, 1, 9, 9, 1, 4, 1),
    (1, 2, 5, 700, 2, 2, 1, 11, 3, 5, 300),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_convolutions_of_networks_and_filters(player, case, dtype):
    n, c, h, w, o, cg, kh, kw, stride, pad, dilation = case
    oh = max(1, (h + 2 * pad - dilation * (kh - 1) - 1) // stride + 1)
    ow = max(1, (w + 2 * pad - dilation * (kw - 1) - 1) // stride + 1)
    rng = np.random.default_rng(c)
    pair = Pair(player, 8 * MIB)
    out = pair.tensor((n, o, oh, ow))
    x = pair.tensor((n, c, h, w), dtype, rng.standard_normal((n, c, h, w)))
    weight = pair.tensor((o, cg, kh, kw), dtype, rng.standard_normal((o, cg, kh, kw)))
    bias = pair.tensor((o,), values=rng.standard_normal(o))
    s, p, d = (stride, stride), (pad, pad), (dilation, dilation)
    pair.tape.conv2d(out, x, weight, bias, stride=s, pad=p, dilation=d)
    pair.play()
    ours, right = pair.results(out)
    np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [70_000, 300_000])
def test_lines_longer_than_scratch_memory(player, n):
    rng = np.random.default_rng(n)
    pair = Pair(player, 16 * MIB)
    x = pair.tensor((2, n), F16, rng.standard_normal((2, n)))
    outs = [pair.tensor((2, n)) for _ in range(2)]
    sums = [pair.tensor((2,)) for _ in range(4)]
    best, values, indices = pair.tensor((2,), DType.I32), pair.tensor((2, 9)), pair.tensor((2, 9), DType.I32)
    pair.tape.softmax(outs[0], x)
    pair.tape.layernorm(outs[1], x)
    for function, out in zip(("sum", "mean", "max", "min"), sums, strict=True):
        pair.tape.reduce(function, out, x)
    pair.tape.argmax(best, x)
    pair.tape.topk(values, indices, x)
    pair.play()
    for out in (*outs, *sums[1:]):
        ours, right = pair.results(out)
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-6)
    for out in (best, values, indices):
        ours, right = pair.results(out)
        assert np.array_equal(ours, right)
    ours, right = pair.results(sums[0])
    np.testing.assert_allclose(ours, right, atol=n * 2e-8)


def test_transposes_of_every_element_size(player):
    rng = np.random.default_rng(5)
    pair = Pair(player, 8 * MIB)
    pairs = []
    for dtype in sorted(ALL):
        values = rng.integers(0, 100, (333, 517))
        pairs.append(
            (pair.tensor((333, 517), dtype), pair.tensor((333, 517), dtype, values, transposed=True))
        )
    for out, x in pairs:
        pair.tape.copy(out, x)
    pair.play()
    for out, _ in pairs:
        ours, right = pair.results(out)
        assert np.array_equal(ours, right)


# -- the player as a thing ----------------------------------------------------------------------------------


def test_info_names_level_and_threads(player):
    assert player.info.mode is Mode.SAME_POINTER
    assert player.info.details["simd"] in LEVELS
    assert int(player.info.details["threads"]) in (1, 2, 5)


def long_tape(device: CpuDevice):
    pages = device.allocate(64 * MIB)
    tape = TapeBuilder()
    a = Tensor(Space.GUEST, 0, (1024, 1024), F32)
    out = Tensor(Space.GUEST, 16 * MIB, (1024, 1024), F32)
    for _ in range(500):
        tape.matmul(out, a, a)
    return device.compile(tape.build({Space.GUEST: pages.nbytes}), {Space.GUEST: pages})


def test_a_deadline_stops_a_tape_soon(player):
    program = long_tape(player)
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"0\.05 s"):
        player.play(program, timeout=0.05)
    assert time.monotonic() - start < 2
    with pytest.raises(DeadlineError):
        player.play(program, timeout=0)


def test_one_long_record_stops_soon(player):
    pages = player.allocate(MIB)
    tape = TapeBuilder()
    out = Tensor(Space.GUEST, 0, (1, 64), F32)
    a = Tensor(Space.GUEST, 4096, (1, 2**30), F32, (0, 0))
    b = Tensor(Space.GUEST, 8192, (2**30, 64), F32, (0, 1))
    tape.matmul(out, a, b)
    program = player.compile(tape.build({Space.GUEST: MIB}), {Space.GUEST: pages})
    start = time.monotonic()
    with pytest.raises(DeadlineError):
        player.play(program, timeout=0.05)
    assert time.monotonic() - start < 2


def test_after_a_deadline_the_player_plays_on(player):
    with pytest.raises(DeadlineError):
        player.play(long_tape(player), timeout=0.01)
    pair = Pair(player, MIB)
    out, x = pair.tensor((1000,)), pair.tensor((1000,), values=np.arange(1000.0))
    pair.tape.unary("square", out, x)
    pair.play()
    ours, right = pair.results(out)
    assert np.array_equal(ours, right)


def test_threads_take_turns():
    with_turns = open_device(threads=2)
    pairs = [Pair(with_turns, 4 * MIB) for _ in range(4)]
    for i, pair in enumerate(pairs):
        out, x = pair.tensor((300_000,)), pair.tensor((300_000,), values=np.full(300_000, i))
        pair.tape.binary("add", out, x, x)
        pair.outputs.append(out)
    threads = [threading.Thread(target=lambda p=p: [p.play() for _ in range(20)]) for p in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, pair in enumerate(pairs):
        assert np.all(pair.results(pair.outputs[0])[0] == 2 * i)
    with_turns.close()


def test_idle_threads_cost_nothing():
    device = open_device(threads=4)
    pair = Pair(device, 4 * MIB)
    out, x = pair.tensor((500_000,)), pair.tensor((500_000,), values=np.ones(500_000))
    pair.tape.unary("exp", out, x)
    pair.play()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03
    device.close()


def test_a_forked_child_plays_alone_and_ends():
    code = """
import os, warnings
warnings.simplefilter("ignore")
import numpy as np
from nocopy.device.cpu import open_device
from nocopy.tape import *
from nocopy.memory.dtype import ALL, DType
device = open_device(threads=3)
pages = device.allocate(1 << 22)
x = Tensor(Space.GUEST, 0, (1 << 20,), DType.F32)
tape = TapeBuilder(); tape.fill(x, 1.5)
program = device.compile(tape.build({Space.GUEST: 1 << 22}), {Space.GUEST: pages})
device.play(program)
child = os.fork()
if child == 0:
    device.play(program, timeout=10)
    device.close()
    os._exit(int(pages.array().view(np.float32).sum() != 1.5 * (1 << 20)))
assert os.waitpid(child, 0)[1] == 0
device.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_closed_device_or_program_refuses():
    device = open_device(threads=1)
    pages = device.allocate(4096)
    tape = TapeBuilder()
    tape.fill(Tensor(Space.GUEST, 0, (4,), F32), 1)
    built = tape.build({Space.GUEST: 4096})
    program = device.compile(built, {Space.GUEST: pages})
    other = device.compile(built, {Space.GUEST: pages})
    other.close()
    with pytest.raises(ClosedError):
        device.play(other)
    pages.close()
    with pytest.raises(ClosedError):
        device.play(program)
    device.close()
    device.close()
    with pytest.raises(ClosedError):
        device.play(program)
    with pytest.raises(ClosedError):
        _ = device.player


# -- choosing ----------------------------------------------------------------------------------------


def test_the_environment_chooses_threads_and_level(monkeypatch):
    monkeypatch.setenv("NOCOPY_THREADS", "3")
    monkeypatch.setenv("NOCOPY_SIMD", LEVELS[0])
    device = open_device()
    assert dict(device.info.details) == {"simd": LEVELS[0], "threads": "3"}
    device.close()


@pytest.mark.parametrize("value", ["0", "-1", "many", "257", ""])
def test_a_wrong_number_of_threads_is_named(monkeypatch, value):
    monkeypatch.setenv("NOCOPY_THREADS", value)
    with pytest.raises(UsageError, match="NOCOPY_THREADS"):
        default_threads()


def test_a_wrong_level_is_named():
    with pytest.raises(UsageError, match=r"sse9.*" + LEVELS[0]):
        open_device(level="sse9")


def test_threads_follow_the_cores_of_the_process(monkeypatch):
    monkeypatch.delenv("NOCOPY_THREADS", raising=False)
    if hasattr(os, "sched_getaffinity"):
        assert default_threads() == len(os.sched_getaffinity(0))


def test_without_the_library_the_device_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY_NAME", "libnocopy-absent.so")
    monkeypatch.delenv("NOCOPY_LIBRARY", raising=False)
    with pytest.raises(DeviceUnavailableError, match=r"compiler") as e:
        native.path()
    assert e.value.name == "cpu"
    monkeypatch.setenv("NOCOPY_LIBRARY", str(tmp_path / "gone.so"))
    with pytest.raises(DeviceUnavailableError, match="NOCOPY_LIBRARY"):
        native.path()


def test_a_library_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("NOCOPY_LIBRARY", str(broken))
    with pytest.raises(DeviceUnavailableError, match=r"broken\.so cannot be loaded"):
        native.library.__wrapped__()


def test_an_opcode_that_the_library_does_not_know_is_refused():
    device = open_device(threads=1)
    record = (ctypes.c_uint16 * 128)(1, 999)
    status = native.library().nocopy_play(device.player, record, 1, native.Bases(), -1.0)
    assert status == native.UNKNOWN_OP
    device.close()
