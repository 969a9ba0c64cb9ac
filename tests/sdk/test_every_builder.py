"""A C program that uses every builder: the same records as Python's, the same results as the reference's."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from nocopy.interfaces.host import DeviceGuest
from nocopy.memory.dtype import DType
from nocopy.tape import OPS, Space, TapeBuilder, Tensor, reference, validate
from tests.device.conftest import NAMES, open_or_skip
from tools.guest_compiler import BARE32, BARE64, compile_guest

EXPORTS = ("arena_at", "bytes_at", "indices_at", "records_at", "build", "count", "what", "play")
FLOATS = 4096


@pytest.fixture(scope="session", params=[BARE32, BARE64])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("every") / "every.wasm"
    flags = [f"-Wl,--export={name}" for name in EXPORTS]
    source = Path(__file__).with_name("every_builder.c")
    return compile_guest([source], out, target=request.param, flags=flags).read_bytes()


def f32(at: int, *shape: int, dtype: DType = DType.F32) -> Tensor:
    return Tensor(Space.GUEST, at, shape, dtype)


def same_in_python(guest: DeviceGuest) -> TapeBuilder:
    """What every_builder.c builds."""
    arena = guest.call("arena_at")

    def at(i: int, *shape: int, dtype: DType = DType.F32) -> Tensor:
        return f32(arena + 4 * i, *shape, dtype=dtype)

    a, b, row, x = at(0, 6, 8), at(64, 5, 8), at(128, 8), at(144, 1, 4, 7, 6)
    kernel, bias, product, sums = at(320, 4, 2, 3, 3), at(400, 4), at(1024, 6, 5), at(1088, 6, 8)
    squares = Tensor(Space.SCRATCH, 256, (6, 8), DType.F32)
    hwc_as_chw = Tensor(Space.GUEST, guest.call("bytes_at"), (3, 4, 4), DType.U8, (1, 12, 3))
    tape = TapeBuilder()
    tape.matmul(product, a, Tensor(b.space, b.offset, (8, 5), b.dtype, (1, 8)), 0.5)
    tape.binary("add", sums, a, row)
    tape.unary("square", squares, sums)
    tape.clamp(at(1152, 6, 8), squares, -0.5, 0.5)
    tape.reduce("max", at(1216, 8), Tensor(a.space, a.offset, (8, 6), a.dtype, (1, 8)))
    tape.softmax(at(1232, 6, 8), a, 2.0)
    tape.rmsnorm(at(1296, 6, 8), a, row, 1e-5)
    tape.layernorm(at(1360, 6, 8), a, row, None, 1e-5)
    tape.gather(at(1424, 8, 8), a, f32(guest.call("indices_at"), 8, dtype=DType.I32))
    tape.argmax(at(1488, 6, dtype=DType.I32), a)
    tape.topk(at(1504, 6, 3), at(1536, 6, 3, dtype=DType.I32), a)
    tape.conv2d(at(1568, 1, 4, 4, 3), x, kernel, bias, stride=(2, 2), pad=(1, 1))
    tape.conv2d(at(1632, 1, 4, 5, 4), x, kernel)
    tape.resize(at(1728, 1, 4, 5, 9), x)
    tape.fill(Tensor(sums.space, sums.offset + 4, (6, 4), sums.dtype, (8, 2)), 3.0)
    tape.copy(hwc_as_chw, Tensor(x.space, x.offset + 4 * 6, (3, 4, 4), x.dtype, (42, 6, 1)))
    heads, keys, last = at(1920, 3, 2, 8), at(0, 6, 1, 8), f32(guest.call("indices_at"), 3, dtype=DType.I32)
    tape.rope(heads, at(64, 3, 2, 8), at(400, 4), last, interleaved=True, scale=1.0)
    tape.attention(at(1968, 3, 2, 8), heads, keys, keys, last, scale=0.5, softcap=5.0, window=4)
    tape.scatter(at(2016, 6, 8), at(0, 3, 8), last)
    tape.glu("silu", at(2064, 6, 8), a, sums)
    recent = f32(guest.call("indices_at"), 1, 4, dtype=DType.I32)
    tape.penalize(at(2112, 6, 8), a, recent, at(400, 1, 4))
    state = at(1488, 1, 5, dtype=DType.I32)
    tape.sample(at(2160, 6, dtype=DType.I32), a, at(404, 6, 3), state, ahead=7)
    return tape


def test_uses_every_op(module: bytes) -> None:
    with DeviceGuest(module, device="reference") as guest:
        assert guest.call("build") == 0
        raw = guest.memory.read(guest.call("records_at"), guest.call("count") * 256)
    codes = {struct.unpack_from("<H", raw, i + 2)[0] for i in range(0, len(raw), 256)}
    assert codes == {op.code for op in OPS}


def test_writes_the_records_that_python_writes(module: bytes) -> None:
    with DeviceGuest(module, device="reference") as guest:
        assert guest.call("build") == 0
        raw = guest.memory.read(guest.call("records_at"), guest.call("count") * 256)
        assert raw == bytes(same_in_python(guest))


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_the_reference_computes(module: bytes, name: str) -> None:
    device = open_or_skip(name)
    with DeviceGuest(module, device=device) as guest:
        rng = np.random.default_rng(0)
        guest.memory.view(FLOATS, "f32", guest.call("arena_at"))[:] = rng.normal(size=FLOATS)
        guest.memory.view(8, "i32", guest.call("indices_at"))[:] = [0, 5, 2, 2, -7, 99, 1, 4]
        assert guest.call("build") == 0
        records = guest.memory.read(guest.call("records_at"), guest.call("count") * 256)
        expected = np.frombuffer(bytearray(guest.memory.buffer()), np.uint8)
        spaces = {Space.GUEST: expected, Space.SCRATCH: np.zeros(4096, np.uint8)}
        reference.play(validate(records, {s: a.size for s, a in spaces.items()}), spaces)
        assert guest.call("play") == 0
        start = guest.call("arena_at")
        regions = (
            (0, 1488, "f32"),
            (1488, 16, "i32"),
            (1504, 32, "f32"),
            (1536, 32, "i32"),
            (1568, 2528, "f32"),
        )
        for at, n, dtype in regions:
            got = guest.memory.view(n, dtype, start + 4 * at).numpy()
            want = expected[start + 4 * at :][: 4 * n].view(got.dtype)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        at = guest.call("bytes_at")
        assert np.array_equal(guest.memory.view(48, "u8", at).numpy(), expected[at : at + 48])
    device.close()
