"""The reference against float64 formulas of its own, literal results, and exact integer semantics."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from nocopy.errors import TapeError
from nocopy.memory.dtype import NUMPY, DType
from nocopy.tape import OPS, Space, TapeBuilder, Tensor, arrays, reference, validate
from tests.tape import generator, truth
from tests.tape.choices import Seeded

F32, F16, BF16, I32, U8 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.U8
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    np.inf,
    -np.inf,
    np.nan,
    1e-40,
    -1e-40,
    6e-8,
    65504.0,
    65520.0,
    3e38,
    0.5,
    2.5,
]


def contents(seed: int, nbytes: int) -> np.ndarray:
    """Bytes that read as ordinary numbers in each float dtype, with special ones among them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 2, nbytes // 4).astype(np.float32)
    values[rng.random(len(values)) < 0.02] = rng.choice(np.array(SPECIAL, np.float32))
    return np.frombuffer(values.tobytes(), np.uint8).copy()


def test_generated_records_mean_what_float64_says():
    """Every op and layout, one in fifty inputs special; the same seeds each time."""
    played = Counter[str]()
    for seed in range(1500):
        record = generator.record(Seeded(seed))
        try:
            validate(record.tobytes(), generator.SIZES)
        except TapeError:
            continue
        before = {space: contents(seed + 1, n) for space, n in generator.SIZES.items()}
        after = {space: array.copy() for space, array in before.items()}
        reference.play_record(record, after)
        assert truth.disagreement(record, before, after) == "", f"seed {seed}"
        played[reference.BY_CODE[int(record["opcode"])].name] += 1
    assert min(played[op.name] for op in OPS) >= 20, played


def play(method, *args, out, **kwargs):
    """Play one op on arrays; returns the outputs. `out` is (shape, dtype) or a list of them."""
    builder, offset, tensors = TapeBuilder(), 0, []
    outs = out if isinstance(out, list) else [out]
    arrays = [np.zeros(shape, dtype) for shape, dtype in outs]
    arrays += [a for a in args if isinstance(a, np.ndarray)]
    image = b""
    for array in arrays:
        tensors.append(Tensor(Space.GUEST, offset, array.shape, DType.of(array.dtype)))
        padded = array.tobytes() + bytes(-array.nbytes % 16)
        image, offset = image + padded, offset + len(padded)
    names = iter(tensors[len(outs) :])
    plain = [next(names) if isinstance(a, np.ndarray) else a for a in args]
    head = [plain.pop(0)] if plain and isinstance(plain[0], str) else []
    getattr(builder, method)(*head, *tensors[: len(outs)], *plain, **kwargs)
    memory = np.frombuffer(image, np.uint8).copy()
    reference.play(builder.build({Space.GUEST: len(memory)}), {Space.GUEST: memory})
    results = []
    for tensor, array in zip(tensors, arrays[: len(outs)], strict=False):
        stop = tensor.offset + array.nbytes
        results.append(memory[tensor.offset : stop].view(array.dtype).reshape(array.shape))
    return results if isinstance(out, list) else results[0]


def f32(*values):
    return np.array(values, np.float32)


# -- conversions ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_float_widens_to_its_own_value(dtype):
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    y = play("copy", x, out=(x.shape, np.float32))
    np.testing.assert_array_equal(y, x.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
    back = play("copy", y, out=(x.shape, dtype))
    same = back.view(np.uint16) == x.view(np.uint16)
    assert (same | np.isnan(x.astype(np.float32))).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrowing_rounds_half_to_even(dtype):
    """Between neighbours: their midpoint goes to the even one, a hair more or less to the nearer one."""
    finite = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)
    finite = np.unique(finite[np.isfinite(finite)])
    low, high = finite[:-1].astype(np.float64), finite[1:].astype(np.float64)
    middle = ((low + high) / 2).astype(np.float32)
    kept = (low + high) / 2 == middle.astype(np.float64)
    low, high, middle = low[kept], high[kept], middle[kept]
    y = play("copy", middle, out=(middle.shape, dtype))
    assert ((y.view(np.uint16) & 1) == 0).all()
    assert ((y == low) | (y == high)).all()
    more = play("copy", np.nextafter(middle, np.float32(np.inf)), out=(middle.shape, dtype))
    less = play("copy", np.nextafter(middle, np.float32(-np.inf)), out=(middle.shape, dtype))
    np.testing.assert_array_equal(more.astype(np.float64), high)
    np.testing.assert_array_equal(less.astype(np.float64), low)


def exact_integer(value: float, low: int, high: int) -> int:
    """Half to even and saturating, on fractions."""
    if np.isnan(value):
        return 0
    if np.isinf(value):
        return high if value > 0 else low
    return min(max(round(Fraction(float(value))), low), high)


@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("dtype", "low", "high"), [(np.int32, -(2**31), 2**31 - 1), (np.uint8, 0, 255)])
def test_floats_become_integers_exactly(source, dtype, low, high):
    x = [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 254.5, 255.5, 256.0, -1.0, 1e9, 2147483520.0, 2147483648.0,
         -2147483648.0, -2147483904.0, 1e30, -1e30, np.inf, -np.inf, np.nan, 16777217.0, 65504.0]  # fmt: skip
    with np.errstate(over="ignore"):
        x = np.array(x, np.float32).astype(source)
    y = play("copy", x, out=(x.shape, dtype))
    assert y.tolist() == [exact_integer(float(v), low, high) for v in x]


def test_integers_saturate_and_widen():
    x = np.array([-(2**31), -1, 0, 1, 255, 256, 2**31 - 1], np.int32)
    assert play("copy", x, out=(x.shape, np.uint8)).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert play("copy", np.arange(256, dtype=np.uint8), out=((256,), np.int32)).tolist() == list(range(256))
    assert play("copy", x, out=(x.shape, np.float32)).tolist() == [float(np.float32(int(v))) for v in x]
    assert np.isposinf(play("copy", f32(65520.0), out=((1,), np.float16)))[0]
    assert play("copy", f32(65519.996), out=((1,), np.float16))[0] == 65504


@pytest.mark.parametrize("dtype", NUMPY.values(), ids=str)
def test_a_copy_keeps_every_bit(dtype):
    rng = np.random.default_rng(0)
    x = np.frombuffer(rng.bytes(4096 * dtype.itemsize), dtype)
    assert play("copy", x, out=(x.shape, dtype)).tobytes() == x.tobytes()


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [(2.5, np.int32, 2), (-3.5, np.int32, -4), (300.0, np.uint8, 255), (-1.0, np.uint8, 0),
     (float("nan"), np.int32, 0), (float("inf"), np.int32, 2**31 - 1), (1e5, np.float16, np.inf)],
)  # fmt: skip
def test_fill_converts_as_copy_does(value, dtype, says):
    assert play("fill", value, out=((3,), dtype)).tolist() == [says] * 3


# -- literal results --------------------------------------------------------------------------


def test_resize_of_a_ramp():
    y = play("resize", f32(0, 1).reshape(1, 1, 1, 2), out=((1, 1, 1, 4), np.float32))
    assert y.ravel().tolist() == [0, 0.25, 0.75, 1]
    y = play("resize", f32(0, 1, 2, 3).reshape(1, 1, 1, 4), out=((1, 1, 1, 2), np.float32))
    assert y.ravel().tolist() == [0.5, 2.5]
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    np.testing.assert_array_equal(play("resize", x, out=(x.shape, np.float32)), x)


def test_conv2d_agrees_with_scipy():
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(1, 1, 9, 11)).astype(np.float32), rng.normal(size=(1, 1, 3, 4)).astype(np.float32)
    y = play("conv2d", x, w, out=((1, 1, 7, 8), np.float32))
    np.testing.assert_allclose(y[0, 0], signal.correlate2d(x[0, 0], w[0, 0], "valid"), rtol=1e-5, atol=1e-5)
    y = play("conv2d", x, w[..., :3], out=(x.shape, np.float32), pad=(1, 1))
    np.testing.assert_allclose(
        y[0, 0], signal.correlate2d(x[0, 0], w[0, 0, :, :3], "same"), rtol=1e-5, atol=1e-5
    )


def test_conv2d_strides_dilates_and_groups():
    x = np.arange(2 * 5 * 5, dtype=np.float32).reshape(1, 2, 5, 5)
    w = np.zeros((4, 1, 2, 2), np.float32)
    w[:, 0, 1, 1] = (1, 2, 3, 4)  # picks the pixel one dilation further
    y = play(
        "conv2d", x, w, f32(0, 0, 0, 100), out=((1, 4, 2, 2), np.float32), stride=(2, 1), dilation=(1, 3)
    )
    picked = x[0][:, 1:4:2, 3:5]
    np.testing.assert_array_equal(y[0], [picked[0], 2 * picked[0], 3 * picked[1], 4 * picked[1] + 100])


def test_ties_and_nan_in_topk_and_argmax():
    x = f32(1, 5, np.nan, 5, -np.inf, 5)
    assert play("argmax", x, out=((), np.int32)) == 1
    values, indices = play("topk", x, out=[((5,), np.float32), ((5,), np.int32)])
    assert values.tolist() == [5, 5, 5, 1, -np.inf]
    assert indices.tolist() == [1, 3, 5, 0, 2]
    assert play("argmax", f32(np.nan, np.nan), out=((), np.int32)) == 0


def test_topk_over_more_than_one_block_keeps_ties_in_order(monkeypatch):
    x = np.random.default_rng(0).integers(0, 9, (3, 100)).astype(np.float32)
    whole = play("topk", x, out=[((3, 40), np.float32), ((3, 40), np.int32)])
    monkeypatch.setattr(arrays, "BLOCK", 16)
    blocks = play("topk", x, out=[((3, 40), np.float32), ((3, 40), np.int32)])
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_products_in_blocks_give_the_same(monkeypatch, block):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, s).astype(np.float32) for s in ((2, 3, 10), (10, 4)))
    x, w = (rng.integers(-4, 5, s).astype(np.float32) for s in ((2, 6, 4, 5), (4, 3, 2, 2)))
    monkeypatch.setattr(arrays, "BLOCK", block)
    np.testing.assert_array_equal(play("matmul", a, b, out=((2, 3, 4), np.float32)), a @ b)
    y = play("conv2d", x, w, out=((2, 4, 3, 4), np.float32))
    monkeypatch.undo()
    np.testing.assert_array_equal(y, play("conv2d", x, w, out=((2, 4, 3, 4), np.float32)))


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_attention_some_tokens_at_a_time_gives_the_same(monkeypatch, softcap):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(0, 2, s).astype(np.float32) for s in ((3, 4, 8), (50, 2, 8), (50, 2, 8)))
    last = np.array([49, 20, -1], np.int32)
    given = {"out": (q.shape, np.float32), "scale": 1.0, "softcap": softcap}
    whole = play("attention", q, k, v, last, **given)
    monkeypatch.setattr(arrays, "BLOCK", 8 * 7)
    np.testing.assert_allclose(play("attention", q, k, v, last, **given), whole, rtol=1e-5, atol=1e-6)
    assert not whole[2].any()


def test_gather_clamps_indices():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    indices = np.array([-(2**31), -1, 0, 2, 3, 2**31 - 1], np.int32)
    y = play("gather", table, indices, out=((6, 2), np.float32))
    assert y[:, 0].tolist() == [0, 0, 0, 4, 4, 4]


def test_a_masked_row_of_a_softmax():
    y = play("softmax", f32(-np.inf, 1, -np.inf, 1), out=((4,), np.float32))
    assert y.tolist() == [0, 0.5, 0, 0.5]
    assert np.isnan(play("softmax", f32(-np.inf, -np.inf), out=((2,), np.float32))).all()


def test_layernorm_does_not_cancel_far_from_zero():
    x = (4096 + np.arange(64, dtype=np.float32) / 64).reshape(1, 64)
    y = play("layernorm", x, None, None, 0.0, out=(x.shape, np.float32))
    exact = x.astype(np.float64) - x.astype(np.float64).mean()
    np.testing.assert_allclose(y, exact / exact.std(), rtol=2e-3)


def test_records_see_what_earlier_ones_wrote():
    builder, t = TapeBuilder(), Tensor(Space.GUEST, 0, (4,), F32)
    builder.fill(t, 2.0)
    builder.unary("square", t, t)
    builder.binary("add", t, t, t)
    memory = np.zeros(16, np.uint8)
    reference.play(builder.build({Space.GUEST: 16}), {Space.GUEST: memory})
    assert memory.view(np.float32).tolist() == [8, 8, 8, 8]


HOSTILE = """
import resource, sys
import numpy as np
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder, Tensor, reference
F32, F16, I32 = DType.F32, DType.F16, DType.I32
t = lambda offset, shape, dtype=F32, strides=(): Tensor(Space.GUEST, offset, shape, dtype, strides)
b = TapeBuilder()
b.reduce("sum", t(0, (64,)), t(4096, (64, 2**23), F16, (1, 1)))
b.reduce("max", t(256, ()), t(4096, (2**28,), F16, (0,)))
b.argmax(t(512, (2,), I32), t(4096, (2, 2**23), F16, (1, 0)))
b.topk(t(528, (2, 1)), t(544, (2, 1), I32), t(4096, (2, 2**23), F16, (1, 0)))
b.matmul(t(560, (1, 1)), t(4096, (1, 2**27), F16, (0, 0)), t(4096, (2**27, 1), F16, (0, 0)))
b.conv2d(t(576, (1, 1, 2, 2)), t(4096, (1, 1, 2**23, 2**24), F16, (0,) * 4), t(4096, (1, 1, 3, 3), F16))
b.resize(t(592, (1, 1, 2, 2)), t(4096, (1, 1, 2**23, 2**24), F16, (0,) * 4))
b.fill(t(600, (1,), I32), 2**31)
b.attention(t(608, (1, 1, 1)), t(612, (1, 1, 1)), t(4096, (2**27, 1, 1), F16, (0, 0, 0)),
            t(4096, (2**27, 1, 1), DType.BF16, (0, 0, 0)), t(600, (1,), I32), scale=1.0)
b.scatter(t(616, (1, 1)), t(4096, (2**27, 1), F16, (0, 0)), t(600, (2**27,), I32, (0,)))
b.matmul(t(2**25, (1, 2**24), F16), t(4096, (1, 32)), t(8192, (32, 2**24), DType.Q8_0, (1, 0)))
tape = b.build({Space.GUEST: 2**26})
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
reference.play(tape, {Space.GUEST: np.zeros(2**26, np.uint8)})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_repeats_cost_time_and_not_memory():
    """Records that name up to 2**47 elements of a 64 MiB space play within 2 GiB of address space."""
    limit = 2 << 30
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(limit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
