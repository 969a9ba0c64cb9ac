"""Products and attention of many rows on tensor cores: what they compute, and which records they take.

Without a GPU in the emulator; with one also there, by the library and by our own kernels.
"""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.device import cuda, cuda_attention
from nocopy.device.cuda_blas import BlasLaunch
from nocopy.device.cuda_compile import Compiler, cache_directory
from nocopy.device.cuda_driver import WARPGROUPS, Driver
from nocopy.device.cuda_launch import Fields, Launch, Plan
from nocopy.device.cuda_many import FEWEST
from nocopy.device.cuda_prefill import Prefill
from nocopy.device.cuda_records import Records
from nocopy.device.cuda_room import Room
from nocopy.device.cuda_words import Words, redirected
from nocopy.device.reference import ReferenceDevice
from nocopy.memory.dtype import BLOCKS, DType
from nocopy.tape import Space, Tensor, validate
from tests.device.conftest import open_or_skip
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401
from tests.device.cuda_rows import SIZES, Place
from tests.device.cuda_tapes import host_pages

F32, F16, BF16, I32, Q8_0 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.Q8_0
WEIGHTS = [F16, BF16, *sorted(BLOCKS)]
F64 = npt.NDArray[np.float64]
U = 2.0**-24


@pytest.fixture(scope="module", params=["emulated", "library", "kernels"])
def device(request: pytest.FixtureRequest) -> Iterator[cuda.CudaDevice]:
    """The emulated GPU; a real one with cuBLASLt; a real one without."""
    if request.param == "emulated":
        driver = EmulatedDriver(request.getfixturevalue("library"), memory_bytes=1 << 27)
        opened = emulated(driver)
    elif request.param == "library":
        found = open_or_skip("cuda")
        assert isinstance(found, cuda.CudaDevice)
        if not found.info.details["products"].startswith("cuBLASLt"):
            found.close()
            pytest.skip("cuBLASLt is not installed")
        opened = found
    else:
        open_or_skip("cuda").close()
        real = Driver()
        opened = cuda.CudaDevice(real, Compiler(real.capability, cache_directory()), allow_copy=True)
    yield opened
    opened.close()


@pytest.fixture
def place(device: cuda.CudaDevice, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(cuda_attention, "SHARE", 0)  # small attentions are taken too, on any GPU
    return Place(device)


@pytest.fixture
def emulation(library: Any) -> Iterator[tuple[Place, list[str]]]:
    """A place on the emulated GPU, and the names of the kernels that it launches."""
    driver = EmulatedDriver(library, memory_bytes=1 << 27)
    opened = emulated(driver)
    yield Place(opened), driver.launched
    opened.close()


def halves(values: F64, dtype: DType) -> F64:
    """Rounded to 16 bits."""
    return values.astype(np.float32).astype(dtype.numpy).astype(np.float64)


def product_bounds(a: F64, w: F64, scale: float) -> tuple[F64, F64]:
    """The exact product, and how far f32 sums in any order, cut off as tensor cores do, may lie from it."""
    return scale * (a @ w.T), 4 * U * (8 * np.sqrt(a.shape[1]) + 2) * abs(scale) * (abs(a) @ abs(w.T)) + 1e-30


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda d: d.name)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.sampled_from([9, 31, 64, 65]),
    n=st.sampled_from([1, 2, 15, 33]),
    k=st.sampled_from([1, 2, 3]),
    scale=st.sampled_from([1.0, -0.5]),
)
def test_a_product_is_that_of_rounded_rows(
    device: cuda.CudaDevice, dtype: DType, m: int, n: int, k: int, scale: float
) -> None:
    place = Place(device)
    k *= max(dtype.block, 8)
    half = F16 if dtype is F16 else BF16
    a, w, out = place.random(m, k), place.weight(n, k, dtype), place.room(m, n, space=Space.GUEST)
    place.tape.matmul(out, a, w.T, scale)
    place.play()
    weight = halves(place.values(w), half)
    exact, slack = product_bounds(halves(place.values(a), half), weight, scale)
    assert (abs(place.values(out) - exact) <= slack).all()


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda d: d.name)
def test_the_documented_error_bound_holds(place: Place, dtype: DType) -> None:
    """Against the exact product of what is stored: 2^-8 of the magnitudes' product for bf16 and blocks."""
    a, w, out = place.random(40, 512), place.weight(48, 512, dtype), place.room(40, 48, space=Space.GUEST)
    place.tape.matmul(out, a, w.T)
    place.play()
    x, y = place.values(a), place.values(w)
    unit = 2.0**-11 if dtype is F16 else 2.0**-8
    assert (abs(place.values(out) - x @ y.T) <= unit * (abs(x) @ abs(y.T))).all()


@pytest.mark.parametrize("m", [1, FEWEST])
def test_few_rows_stay_in_f32(emulation: tuple[Place, list[str]], m: int) -> None:
    place, launched = emulation
    a, w, out = place.random(m, 256), place.weight(16, 256, BF16), place.room(m, 16)
    place.tape.matmul(out, a, w.T)
    place.play()
    assert not [name for name in launched if "tensor" in name]


def test_a_guests_own_tensors_stay_in_f32(emulation: tuple[Place, list[str]]) -> None:
    place, launched = emulation
    a, out = place.random(40, 256, space=Space.GUEST), place.room(40, 16, space=Space.GUEST)
    for dtype in (BF16, Q8_0):
        w = place.random(16, 256, dtype=dtype, space=Space.GUEST)
        place.tape.matmul(out, a, w.T)
    kept = place.random(64, 2, 64, dtype=F16, space=Space.GUEST)
    q, last = place.random(64, 2, 64), place.put(np.arange(64), I32)
    place.tape.attention(place.room(64, 2, 64), q, kept, kept, last, scale=0.1)
    place.play()
    assert launched
    assert not [name for name in launched if "tensor" in name]


def test_weights_in_f32_stay_in_f32(emulation: tuple[Place, list[str]]) -> None:
    place, launched = emulation
    a, w, out = place.random(40, 256), place.weight(16, 256, F32), place.room(40, 16)
    place.tape.matmul(out, a, w.T)
    place.play()
    assert not [name for name in launched if "tensor" in name]


@pytest.mark.parametrize(
    ("dtype", "m", "names"),
    [
        (BF16, 20, ["copy", "tensor_product_few_bf16"]),
        (F16, 65, ["copy", "tensor_product_f16"]),
        (DType.Q4_K, 64, ["copy", "tensor_product_few_q4_k"]),
        (DType.Q6_K, 65, ["copy", "unpack_q6_k", "tensor_product_bf16"]),
    ],
)
def test_rows_decide_where_blocks_are_decoded(
    emulation: tuple[Place, list[str]], dtype: DType, m: int, names: list[str]
) -> None:
    place, launched = emulation
    a, w, out = place.random(m, 512), place.weight(16, 512, dtype), place.room(m, 16)
    place.tape.matmul(out, a, w.T)
    place.play()
    assert launched == names


# -- attention ------------------------------------------------------------------------------------------


@pytest.fixture(params=["warps", "warpgroups"])
def attending(place: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place on a GPU whose attention is multiplied by warps, or by four of them together."""
    driver, groups = place.device.driver, request.param == "warpgroups"
    if groups and driver.capability != WARPGROUPS:
        pytest.skip(f"{driver.product} has no warpgroups that multiply")
    monkeypatch.setattr(driver, "groups", groups)
    monkeypatch.setattr(cuda_attention, "GROUP_SHARE", 0)
    return place


def attended(q: F64, k: F64, v: F64, last: Any, scale: float, softcap: float, window: int) -> F64:
    """Attention in float64."""
    rows, heads, _ = q.shape
    tokens, groups, _ = k.shape
    out = np.zeros_like(q)
    for r in range(rows):
        stop = min(int(last[r]) + 1, tokens)
        start = max(0, stop - window) if window else 0
        if stop <= start:
            continue
        for h in range(heads):
            g = h // (heads // groups)
            scores = scale * (k[start:stop, g] @ q[r, h])
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[r, h] = weights @ v[start:stop, g] / weights.sum()
    return out


def attend(
    place: Place, shape: tuple[int, int, int, int, int], cache: DType, last: Any, **params: Any
) -> None:
    """Play attention over a token-major cache and compare it with float64's."""
    rows, heads, groups, n, tokens = shape
    # Values lie behind keys, and something else behind them.
    kept = place.random(tokens, 3 * groups * n, dtype=cache, space=Space.KV, seed=5)
    step = groups * n // cache.block * cache.itemsize
    keys, values = (
        Tensor(Space.KV, kept.offset + i * step, (tokens, groups, n), cache, (3 * groups * n, n, 1))
        for i in range(2)
    )
    q, out = place.random(rows, heads, n, seed=6), place.room(rows, heads, n, space=Space.GUEST)
    place.array(out)[...] = 7
    seen = place.put(last, I32)
    given = {"scale": n**-0.5, "softcap": 0.0, "window": 0} | params
    place.tape.attention(out, q, keys, values, seen, **given)
    place.play()
    all_values = place.values(kept).reshape(tokens, 3, groups, n)
    exact = attended(place.values(q), all_values[:, 0], all_values[:, 1], last, **given)
    largest = abs(all_values).max()
    unit = 2.0**-8 if cache is BF16 else 2.0**-11
    assert abs(place.values(out) - exact).max() <= 4 * unit * largest


@pytest.mark.parametrize("cache", [F16, BF16, Q8_0], ids=lambda d: d.name)
@pytest.mark.parametrize(
    ("rows", "heads", "groups", "n", "tokens"),
    [
        (9, 4, 1, 32, 9),
        (64, 2, 2, 64, 64),
        (65, 4, 2, 64, 200),
        (70, 2, 1, 128, 130),
        (33, 1, 1, 96, 257),
        (250, 2, 1, 64, 700),
    ],
)
def test_attention_of_many_rows(
    attending: Place, cache: DType, rows: int, heads: int, groups: int, n: int, tokens: int
) -> None:
    attend(attending, (rows, heads, groups, n, tokens), cache, np.arange(rows) + tokens - rows)


@pytest.mark.parametrize("n", [8, 40, 72, 120])
def test_attention_of_heads_between_those_of_kernels(attending: Place, n: int) -> None:
    attend(attending, (20, 2, 2, n, 70), F16, np.arange(20) + 50)


@pytest.mark.parametrize("window", [0, 1, 5, 64, 100])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_of_windows_caps_and_rows_that_see_nothing(
    attending: Place, window: int, softcap: float
) -> None:
    last = np.random.default_rng(3).integers(-3, 140, 66)
    last[:4] = -1, 129, 2**31 - 1, -(2**31)
    attend(attending, (66, 2, 1, 64, 130), F16, last, window=window, softcap=softcap)


@pytest.mark.parametrize("step", [0.5, 2.0, 7.0, 30.0, -30.0])
def test_attention_where_later_tokens_score_higher(attending: Place, step: float) -> None:
    """By powers of two a tile: what is summed up stays as it is, or is lowered at times, or each time."""
    place, tokens, n = attending, 320, 64
    tiles = np.arange(tokens) // 64
    keys, values = (place.room(tokens, 1, n, dtype=F16, space=Space.KV) for _ in "kv")
    place.array(keys)[...] = (tiles * step)[:, None, None] / n
    place.array(keys)[:, 0, 0] += np.random.default_rng(2).normal(0, 0.1, tokens)
    place.array(values)[...] = np.random.default_rng(1).standard_normal((tokens, 1, n))
    q, out = place.put(np.full((70, 1, n), np.log(2))), place.room(70, 1, n, space=Space.GUEST)
    last = tokens - 70 + np.arange(70)
    place.tape.attention(out, q, keys, values, place.put(last, I32), scale=1.0)
    place.play()
    exact = attended(*(place.values(t) for t in (q, keys, values)), last, 1.0, 0.0, 0)
    assert abs(place.values(out) - exact).max() <= 2.0**-9 * abs(place.values(values)).max()


def test_tokens_that_no_row_sees_are_not_read(attending: Place) -> None:
    place = attending
    kept = place.random(200, 2, 1, 64, dtype=F16, space=Space.KV)
    place.array(kept)[:10] = place.array(kept)[150:] = np.nan
    keys, values = (Tensor(Space.KV, kept.offset + 128 * i, (200, 1, 64), F16, (128, 64, 1)) for i in (0, 1))
    q, out = place.random(70, 2, 64), place.room(70, 2, 64, space=Space.GUEST)
    last = place.put(80 + np.arange(70), I32)
    place.tape.attention(out, q, keys, values, last, scale=0.1, window=71)
    place.play()
    assert np.isfinite(place.array(out)).all()


# -- a layer --------------------------------------------------------------------------------------------


class Layers:
    """Two layers of a language model over one scratch, as models/graph.py records them."""

    WIDTH, HIDDEN, HEADS, GROUPS, HEAD = 128, 256, 4, 2, 32

    def __init__(self, place: Place, rows: int, dtype: DType, cache: DType = F16) -> None:
        self.place, self.rows, p = place, rows, place
        width, kv = self.WIDTH, self.GROUPS * self.HEAD
        self.x = p.random(rows, width, space=Space.GUEST, scale=0.5)
        self.positions = p.put(np.arange(rows), I32, Space.GUEST)
        self.frequencies = p.put(10.0 ** -np.arange(self.HEAD // 2), F32, Space.GUEST)
        self.kept = p.room(rows, 2, 2, kv, dtype=cache, space=Space.KV)
        shapes = [(width, width), (kv, width), (kv, width), (width, width)]
        shapes += [(self.HIDDEN, width), (self.HIDDEN, width), (width, self.HIDDEN)]
        self.weights = [
            [p.weight(n, k, dtype, 10 * i + j) for j, (n, k) in enumerate(shapes)] for i in range(2)
        ]
        self.norms = [p.put(1 + 0.1 * np.arange(width) / width, F32, Space.WEIGHTS) for _ in range(4)]
        shared = [width, width, kv, kv, width, width, width, self.HIDDEN, self.HIDDEN, self.HIDDEN, width]
        self.scratch = [p.room(rows, n) for n in shared]

    def record(self) -> None:
        for layer in range(2):
            self._layer(layer)

    def _layer(self, layer: int) -> None:
        t, kv = self.place.tape, self.GROUPS * self.HEAD
        normed, q, k, v, mixed, o, again, gate, up, gated, down = self.scratch
        wq, wk, wv, wo, w_gate, w_up, w_down = self.weights[layer]
        t.rmsnorm(normed, self.x, self.norms[2 * layer], 1e-5)
        for out, w in ((q, wq), (k, wk), (v, wv)):
            t.matmul(out, normed, w.T)
        for x, heads in ((q, self.HEADS), (k, self.GROUPS)):
            turned = self._heads(x, heads)
            t.rope(turned, turned, self.frequencies, self.positions)
        places = []
        for half, x in enumerate((k, v)):
            skip = (layer * 2 + half) * kv // self.kept.dtype.block * self.kept.dtype.itemsize
            rows = Tensor(Space.KV, self.kept.offset + skip, (self.rows, kv), self.kept.dtype, (4 * kv, 1))
            t.scatter(rows, x, self.positions)
            shape = (self.rows, self.GROUPS, self.HEAD)
            places.append(Tensor(Space.KV, rows.offset, shape, rows.dtype, (4 * kv, self.HEAD, 1)))
        t.attention(
            self._heads(mixed, self.HEADS), self._heads(q, self.HEADS), *places, self.positions, scale=0.2
        )
        t.matmul(o, mixed, wo.T)
        t.binary("add", self.x, self.x, o)
        t.rmsnorm(again, self.x, self.norms[2 * layer + 1], 1e-5)
        t.matmul(gate, again, w_gate.T)
        t.matmul(up, again, w_up.T)
        t.glu("silu", gated, gate, up)
        t.matmul(down, gated, w_down.T)
        t.binary("add", self.x, self.x, down)

    def _heads(self, x: Tensor, count: int) -> Tensor:
        n = x.shape[1] // count
        return Tensor(x.space, x.offset, (x.shape[0], count, n), x.dtype, (x.strides[0], n, 1))


def disagreement(place: Place, wanted: dict[Space, npt.NDArray[np.uint8]], x: Tensor) -> float:
    """How far f32 values lie from the reference's, root mean square, relative to their own."""
    at = slice(x.offset, x.offset + 4 * int(np.prod(x.shape)))
    found, right = (b[Space(x.space)][at].view(np.float32) for b in (place.bytes, wanted))
    return float(np.sqrt(np.mean((found - right) ** 2) / max(np.mean(right**2), 1e-30)))


def reference_of(place: Place, tape: bytes) -> dict[Space, npt.NDArray[np.uint8]]:
    """All bytes after the reference has played a tape over a copy of them."""
    device, copies = ReferenceDevice(), {space: host_pages(len(b)) for space, b in place.bytes.items()}
    for space, b in place.bytes.items():
        copies[space][:] = b
    pages = {space: device.share(b.ctypes.data, len(b)) for space, b in copies.items()}
    device.play(device.compile(validate(tape, SIZES), pages))
    return copies


@pytest.mark.parametrize(
    ("rows", "dtype", "cache"),
    [(17, BF16, F16), (70, F16, Q8_0), (70, Q8_0, F16), (17, Q8_0, Q8_0)],
    ids=lambda v: getattr(v, "name", None),
)
def test_layers_give_what_the_reference_gives(place: Place, rows: int, dtype: DType, cache: DType) -> None:
    layers = Layers(place, rows, dtype, cache)
    layers.record()
    # What is read later is there.
    copies = [place.room(*tensor.shape, space=Space.GUEST) for tensor in layers.scratch]
    for copy, tensor in zip(copies, layers.scratch, strict=True):
        place.tape.copy(copy, tensor)
    wanted = reference_of(place, bytes(place.tape))
    place.play()
    assert disagreement(place, wanted, layers.x) <= 0.02
    assert max(disagreement(place, wanted, copy) for copy in copies) <= 0.04


def test_what_nobody_reads_need_not_be_there(place: Place) -> None:
    layers = Layers(place, 70, BF16)
    layers.record()
    wanted = reference_of(place, bytes(place.tape))
    place.play()
    assert disagreement(place, wanted, layers.x) <= 0.02


def test_attention_of_few_blocks_is_shared_out_by_tokens(emulation: tuple[Place, list[str]]) -> None:
    place, launched = emulation
    place.device.driver.multiprocessors = 8
    for heads in (1, 2):
        kept = place.random(64, 1, 64, dtype=F16, space=Space.KV)
        q, last = place.random(64, heads, 64), place.put(np.arange(64), I32)
        place.tape.attention(place.room(64, heads, 64), q, kept, kept, last, scale=0.1)
    place.play()
    assert [name for name in launched if name.startswith("attention")] == [
        "attention_f16",
        "attention_tensor_64_f16",
    ]


def test_a_layer_takes_few_launches(emulation: tuple[Place, list[str]]) -> None:
    """Norms and gates write 16 bits only, residuals are added by products."""
    place, launched = emulation
    layers = Layers(place, 70, BF16)
    layers.record()
    place.play()
    product = "tensor_product_bf16"
    layer = [
        "norm_rows", product, product, product, "rope_rows", "keep_rows", "attention_tensor_64_f16", product,
        "norm_rows", product, product, "gate_rows", product,
    ]  # fmt: skip
    assert [name for name in launched if not name.startswith("copy")] == 2 * layer


@pytest.mark.parametrize(
    ("dtype", "read", "handed_on"),
    [
        (BF16, False, [BF16, BF16]),
        (Q8_0, False, [BF16] * 4),
        (F16, False, [F32, F32]),
        (BF16, True, [BF16, F32]),
    ],
)
def test_products_that_only_a_gate_reads_are_handed_on_in_16_bits(
    emulation: tuple[Place, list[str]], dtype: DType, read: bool, handed_on: list[DType]
) -> None:
    """By the library, two layers; of the last one somebody else may read what the gate does."""
    place, _ = emulation
    layers = Layers(place, 70, dtype)
    layers.record()
    gate = layers.scratch[7]
    if read:
        place.tape.copy(place.room(*gate.shape, space=Space.GUEST), gate)
    tape, addresses = validate(bytes(place.tape), SIZES), {space: (space + 1) << 40 for space in SIZES}
    records = Records(tape, redirected(tape, Words(()), addresses, 0), addresses)
    prefill = Prefill(records, 132, 0, blas=True, groups=False)
    prefill.place(1 << 50)
    at, products, gates = 0, list[DType](), list[DType]()
    while at < len(records):
        plan, count = prefill.group(at) or (Plan(()), 1)
        for launch in plan.launches:
            if isinstance(launch, BlasLaunch) and launch.product.n == layers.HIDDEN:
                products.append(launch.product.out_dtype)
            elif isinstance(launch, Launch) and launch.shape.kernel == "gate_rows":
                gates.append(Fields.unpack(launch.record).dtype(1))
        at += count
    assert products == handed_on
    assert gates == handed_on[:: len(handed_on) // 2]


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("m", "k", "shift"),
    [(9, 128, 0), (20, 2056, 0), (12, 136, 1), (21, 1024, 0), (19, 1032, 0), (10, 4104, 0), (9, 8200, 0)],
)
def test_rows_are_made_as_norms_and_gates_make_them(
    place: Place, function: str, m: int, k: int, shift: int
) -> None:
    """An identity as the weight shows the rows; some begin between words."""
    whole = [place.random(m * (k + 4), seed=seed, scale=5) for seed in (1, 2)]
    x, y = (Tensor(t.space, t.offset + 4 * shift, (m, k), F32, (k + 4, 1)) for t in whole)
    made = [place.room(m, k) for _ in range(2)]
    eye, norm = (
        place.put(np.eye(16, k), BF16, Space.WEIGHTS),
        place.put(np.linspace(0.5, 2, k), F32, Space.WEIGHTS),
    )
    out = [place.room(m, 16, space=Space.GUEST) for _ in range(2)]
    place.tape.rmsnorm(made[0], x, norm, 1e-5)
    place.tape.matmul(out[0], made[0], eye.T)
    place.tape.glu(function, made[1], x, y)
    place.tape.matmul(out[1], made[1], eye.T)
    for t in made:
        place.tape.fill(t, 0.0)
    wanted = reference_of(place, bytes(place.tape))
    place.play()
    for o in out:
        at = slice(o.offset, o.offset + 64 * m)
        found, right = (b[Space.GUEST][at].view(np.float32) for b in (place.bytes, wanted))
        assert np.allclose(found, right, rtol=2.0**-7, atol=1e-6)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("first", ["one row", "nothing"])
def test_a_norm_of_which_one_row_is_read_in_f32_rounds_all_for_a_product(
    emulation: tuple[Place, list[str]], first: str, shift: int
) -> None:
    """As in a model's last layer, whose queries are those of the last token. Rows may begin between words."""
    place, launched = emulation
    m, k = 20, 128
    x, whole, w = place.random(m, k), place.room(m * k + 4), place.weight(k, k, BF16)
    normed = Tensor(whole.space, whole.offset + 4 * shift, (m, k), F32)
    last = Tensor(normed.space, normed.offset + 4 * k * (m - 1), (1, k), F32)
    norm, out = place.put(np.linspace(0.5, 2, k), F32, Space.WEIGHTS), place.room(m, k, space=Space.GUEST)
    one = place.room(1, k, space=Space.GUEST)
    place.tape.rmsnorm(normed, x, norm, 1e-5)
    if first == "one row":
        place.tape.matmul(one, last, w.T)
    place.tape.matmul(out, normed, w.T)
    if first == "nothing":
        place.tape.matmul(one, last, w.T)
    wanted = reference_of(place, bytes(place.tape))
    place.play()
    assert ("norm_rows" in launched, "copy" in launched) == (not shift, bool(shift))
    for t in (out, one):
        at = slice(t.offset, t.offset + 4 * t.shape[0] * k)
        found, right = (b[Space.GUEST][at].view(np.float32) for b in (place.bytes, wanted))
        assert np.allclose(found, right, rtol=2.0**-6, atol=0.05 if t is out else 1e-4)


@pytest.mark.parametrize(
    ("dtype", "width"),
    [*((dtype, width) for dtype in (F32, F16, BF16) for width in (64, 2080, 36)), (Q8_0, 64), (Q8_0, 2080)],
)
def test_rows_are_looked_up_to_the_bit(emulation: tuple[Place, list[str]], dtype: DType, width: int) -> None:
    """As without products of many rows; indices beyond the table are the nearest."""
    place, launched = emulation
    table, indices = place.weight(7, width, dtype), place.put([0, 6, 3, -5, 2**31 - 1, 7, 1, 2, 4, 5], I32)
    first, second = (place.room(10, width, space=Space.GUEST) for _ in range(2))
    place.tape.gather(first, table, indices)
    place.play()
    place.tape.matmul(place.room(20, 16), place.random(20, 256), place.weight(16, 256, BF16).T)
    place.tape.gather(second, table, indices)
    place.play()
    words = dtype is not Q8_0 and width % 8 == 0
    assert [name for name in launched if name.startswith("gather")] == [
        "gather",
        "gather_rows" if words else "gather",
    ]
    assert np.array_equal(place.array(first), place.array(second))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("cache", [F16, BF16, F32, Q8_0], ids=lambda d: d.name)
@pytest.mark.parametrize(("heads", "other"), [(2, ""), (1, ""), (2, "reader"), (2, "indices"), (2, "values")])
def test_keys_are_turned_on_their_way_to_the_cache(
    emulation: tuple[Place, list[str]], interleaved: bool, cache: DType, heads: int, other: str
) -> None:
    """To the bit as the three records do it: of rows nowhere, beyond the cache, and of the last of equals."""
    place, launched = emulation
    rows, n, tokens = 12, 32, 40
    positions = place.put([-1, -1, 3, 4, 5, 4, 39, 40, 2**31 - 1, 7, 8, 0], I32)
    frequencies = place.put(np.linspace(1, 1e-4, n // 2), F32)
    weight = place.weight(16, 128, BF16)  # without one of a model nothing is joined
    found: list[bytes] = []
    for joined in (True, False):
        place.tape.matmul(place.room(rows, 16), place.random(rows, 128), weight.T)
        first, second = (place.random(rows, heads * n, seed=seed) for seed in (7, 8))
        turned = Tensor(first.space, first.offset, (rows, heads, n), F32)
        kept = place.room(tokens, 3, heads * n, dtype=cache, space=Space.KV)
        step = heads * n // cache.block * cache.itemsize
        keys, values = (
            Tensor(Space.KV, kept.offset + i * step, (tokens, heads * n), cache, (3 * heads * n, 1))
            for i in ((0, 1) if other != "values" else (1, 0))
        )
        place.tape.rope(turned, turned, frequencies, positions, interleaved=interleaved)
        again = place.put(place.array(positions), I32) if other == "indices" else positions
        place.tape.scatter(keys, first, positions)
        place.tape.scatter(values, second, again)
        if other == "reader" or not joined:
            place.tape.copy(place.room(rows, heads * n), first)
        launched.clear()
        place.play()
        assert ("keep_rows" in launched) == (joined and not other and cache is not Q8_0)
        found.append(place.array(kept).tobytes())
    assert found[0] == found[1]
    assert any(found[0])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "n"), [(1, 8), (3, 64), (2, 128)])
def test_heads_are_turned_to_the_bit_as_rope_turns_them(
    emulation: tuple[Place, list[str]], heads: int, n: int, interleaved: bool
) -> None:
    place, launched = emulation
    first, second = place.random(11, heads, n), place.random(11, heads, n)
    positions = place.put([0, -1, 5, 4095, 2**24 + 1, *range(6)], I32)
    frequencies = place.put(np.linspace(1, 1e-4, n // 2), F32)
    w, a, out = place.weight(16, 256, BF16), place.random(20, 256), place.room(20, 16)
    given = {"interleaved": interleaved, "scale": 1.25}
    place.tape.matmul(out, a, w.T)  # a pass of many rows
    place.tape.rope(first, first, frequencies, positions, **given)
    place.play()
    place.tape.rope(second, second, frequencies, positions, **given)
    place.play()
    assert [name for name in launched if name.startswith("rope")] == ["rope_rows", "rope"]
    assert np.array_equal(place.array(first), place.array(second))


@pytest.mark.parametrize("reader", ["add", "another product of other rows between"])
def test_rows_that_others_read_are_written_in_f32_too(place: Place, reader: str) -> None:
    m, k = 20, 128
    x, other, normed = place.random(m, k), place.random(m, k, seed=4), place.room(m, k)
    w, out = place.weight(k, k, BF16), [place.room(m, k, space=Space.GUEST) for _ in range(3)]
    t = place.tape
    t.rmsnorm(normed, x, None, 1e-5)
    t.matmul(out[0], normed, w.T)
    if reader == "add":
        t.binary("add", out[1], normed, normed)
    else:
        t.matmul(out[2], other, w.T)
        t.matmul(out[1], normed, w.T)
    t.fill(normed, 0.0)
    wanted = reference_of(place, bytes(t))
    place.play()
    for o in out:
        assert disagreement(place, wanted, o) <= 0.02


def test_rows_that_are_written_between_are_rounded_again(place: Place) -> None:
    m, k = 20, 128
    x, w = place.random(m, k), place.weight(k, k, BF16)
    first, second = (place.room(m, k, space=Space.GUEST) for _ in range(2))
    t = place.tape
    t.matmul(first, x, w.T)
    t.binary("mul", x, x, x)
    t.matmul(second, x, w.T)
    wanted = reference_of(place, bytes(t))
    place.play()
    for o in (first, second):
        assert disagreement(place, wanted, o) <= 0.02


def test_a_sum_whose_product_is_read_again_keeps_the_product(place: Place) -> None:
    m, k = 20, 128
    a, x, y = place.random(m, k), place.random(m, k, space=Space.GUEST, seed=3), place.room(m, k)
    w, after = place.weight(k, k, BF16), place.room(m, k, space=Space.GUEST)
    t = place.tape
    t.matmul(y, a, w.T)
    t.binary("add", x, x, y)
    t.copy(after, y)
    t.fill(y, 0.0)
    wanted = reference_of(place, bytes(t))
    place.play()
    for o in (x, after):
        assert disagreement(place, wanted, o) <= 0.02


# -- memory ---------------------------------------------------------------------------------------------


def test_programs_share_the_room_and_the_last_one_frees_it(library: Any) -> None:
    driver = EmulatedDriver(library)
    with driver.current():
        room = Room(driver)
        small, free_small = room.hold(4096)
        again, free_again = room.hold(1000)
        assert small == again
        large, free_large = room.hold(8192)
        assert large != small
        assert set(driver.allocated) == {small, large}
        free_small()
        free_again()
        assert set(driver.allocated) == {large}
        free_large()
        assert not driver.allocated
        _, free = room.hold(1)
        free()
        assert not driver.allocated
