"""Passes of a language model over one row, in one kernel: they give all that the ops give one by one."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from nocopy.device import cuda, cuda_walk
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape import Space, Tensor, validate
from nocopy.tape.ops import BY_CODE
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.test_cuda_fuse import SIZES, Bench
from tests.device.values import normal

F32, F16, BF16, I32 = DType.F32, DType.F16, DType.BF16, DType.I32
LAUNCHES = ["walk"]
NEAR = {F32: 5e-5, F16: 2e-3, BF16: 2e-2}
"""How near results are to the reference's, by the cache's type: in f32, what 16 bits of activations and 21 of
scores allow, where 8 or 11 would not do."""
NEAR_BLOCKS = 2e-4
"""The same of weights in blocks, where the 16 bits are of a run's largest activation."""


@pytest.fixture
def bench(device: cuda.CudaDevice, driver: EmulatedDriver) -> Bench:
    """Whose device walks."""
    driver.walks = True
    return Bench(device, driver)


@pytest.fixture
def wide(driver: EmulatedDriver, request: pytest.FixtureRequest) -> Bench:
    """The same with blocks enough for several parts of attention."""
    driver.multiprocessors = 8
    driver.chip = replace(driver.chip, multiprocessors=8)
    found: Bench = request.getfixturevalue("bench")
    return found


@dataclass
class Shape:
    """Of a small model and its cache."""

    k: int = 256
    heads: int = 4
    groups: int = 2
    n: int = 64
    hidden: int = 512
    vocabulary: int = 130
    layers: int = 2
    context: int = 300
    weights: DType = BF16
    others: tuple[tuple[str, DType], ...] = ()
    cache: DType = F16
    bias: bool = False
    interleaved: bool = False
    window: int = 0


class Model:
    """Records passes of a model on a bench; the cache is noise up to the first position."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.bench, self.shape, s = bench, shape, shape
        q, kv = s.heads * s.n, s.groups * s.n
        sizes = {"q": (q, s.k), "k": (kv, s.k), "v": (kv, s.k), "o": (s.k, q)}
        sizes |= {"gate": (s.hidden, s.k), "up": (s.hidden, s.k), "down": (s.k, s.hidden)}
        self.layers = [
            {
                name: bench.weight(*size, dict(s.others).get(name, s.weights), 7 * i + j)
                for j, (name, size) in enumerate(sizes.items())
            }
            for i in range(s.layers)
        ]
        self.table = bench.weight(s.vocabulary, s.k, s.weights, 99)
        self.norms = [bench.norm(s.k) for _ in range(2 * s.layers + 1)]
        self.biases = bench.put(normal(5, q), F32, Space.WEIGHTS) if s.bias else None
        frequencies = bench.put(np.linspace(1, 0.1, s.n // 2), F32, Space.GUEST)
        self.turns = {"q": frequencies, "k": frequencies}
        cache = normal(3, s.layers, s.context, 2 * kv)
        self.caches = [bench.put(layer, s.cache, Space.GUEST) for layer in cache]
        self.x, self.h = bench.room(1, s.k), bench.room(1, s.k)
        self.rows = {name: bench.room(1, rows) for name, (rows, _) in sizes.items()}
        self.attended, self.gated = bench.room(1, q), bench.room(1, s.hidden)

    def step(self, token: Tensor, position: Tensor, logits: Tensor) -> None:
        """One pass."""
        tape, s = self.bench.tape, self.shape
        tape.gather(self.x, self.table, token)
        for i, weights in enumerate(self.layers):
            tape.rmsnorm(self.h, self.x, self.norms[2 * i], 1e-5)
            for name in "qkv":
                tape.matmul(self.rows[name], self.h, weights[name].T)
                if name == "q" and self.biases:
                    tape.binary("add", self.rows[name], self.rows[name], self.biases)
            for name, count in (("q", s.heads), ("k", s.groups)):
                turned = heads(self.rows[name], count)
                tape.rope(turned, turned, self.turns[name], position, interleaved=s.interleaved)
            width, cache = s.groups * s.n, self.caches[i]
            parts = [cache.offset + half * width * s.cache.itemsize for half in range(2)]
            shape, steps = (s.context, width), (2 * width, 1)
            halves = [Tensor(cache.space, at, shape, s.cache, steps) for at in parts]
            for half, name in zip(halves, "kv", strict=True):
                tape.scatter(half, self.rows[name], position)
            shape, steps = (s.context, s.groups, s.n), (2 * width, s.n, 1)
            keys, values = (Tensor(cache.space, at, shape, s.cache, steps) for at in parts)
            tape.attention(
                heads(self.attended, s.heads), heads(self.rows["q"], s.heads), keys, values, position,
                scale=s.n**-0.5, window=s.window,
            )  # fmt: skip
            tape.matmul(self.rows["o"], self.attended, weights["o"].T)
            tape.binary("add", self.x, self.x, self.rows["o"])
            tape.rmsnorm(self.h, self.x, self.norms[2 * i + 1], 1e-5)
            tape.matmul(self.rows["gate"], self.h, weights["gate"].T)
            tape.matmul(self.rows["up"], self.h, weights["up"].T)
            tape.glu("silu", self.gated, self.rows["gate"], self.rows["up"])
            tape.matmul(self.rows["down"], self.gated, weights["down"].T)
            tape.binary("add", self.x, self.x, self.rows["down"])
        tape.rmsnorm(self.h, self.x, self.norms[-1], 1e-5)
        tape.matmul(logits, self.h, self.table.T)

    def play(self, position: int, steps: int = 1) -> list[str]:
        """Record steps, each with the likeliest token after the last, and play them on both devices.

        What lies in the guest's pages must agree. Returns the kernels that were launched.
        """
        bench, s = self.bench, self.shape
        tokens = bench.put(np.arange(steps + 1) + 17, I32, Space.GUEST)
        positions = bench.put(np.arange(steps) + position, I32, Space.GUEST)
        hidden, last = bench.room(1, s.vocabulary), bench.room(1, s.vocabulary, space=Space.GUEST)
        for i in range(steps):
            logits = last if i == steps - 1 else hidden
            self.step(element(tokens, i), element(positions, i), logits)
            bench.tape.argmax(element(tokens, i + 1), logits)
        tape = validate(bytes(bench.tape), SIZES)
        before = {space: b.copy() for space, b in bench.bytes.items()}
        bench._play(bench.reference, tape)
        wanted = [bench.array(t).copy() for t in (tokens, last, *self.caches)]
        for space, b in bench.bytes.items():
            b[:] = before[space]
        bench.driver.launched.clear()
        bench._play(bench.gpu, tape)
        got = [bench.array(t) for t in (tokens, last, *self.caches)]
        assert got[0].tolist() == wanted[0].tolist()
        near = max(NEAR[s.cache], NEAR_BLOCKS if s.weights in QUANTISED else 0)
        for a, b in zip(got[1:], wanted[1:], strict=True):
            apart = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            assert apart <= near * np.abs(b.astype(np.float64)).max()
        return [name for name in bench.driver.launched if name != "copy_words"]


def heads(x: Tensor, count: int) -> Tensor:
    return Tensor(x.space, x.offset, (1, count, x.shape[1] // count), F32)


def element(x: Tensor, index: int) -> Tensor:
    return Tensor(x.space, x.offset + 4 * index, (1,), I32)


@pytest.mark.parametrize("position", [0, 127, 128, 299])
def test_a_pass_is_one_kernel(bench: Bench, position: int) -> None:
    """With one part of the tokens and with several."""
    assert Model(bench, Shape(layers=1 + (position == 299))).play(position) == LAUNCHES


@pytest.mark.parametrize("position", [63, 127, 300, 720, 1500])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(groups=1),
        Shape(groups=1, cache=F32),
        Shape(heads=2, n=128, weights=F16),
        Shape(heads=8, groups=1, k=512, weights=DType.Q8_0),
    ],
    ids=["one job", "f32 cache", "each head its own", "two jobs a group"],
)
def test_parts_of_the_tokens(wide: Bench, shape: Shape, position: int) -> None:
    """One, then two; several, as many as there are blocks for, and parts of up to four tiles a warp."""
    shape = replace(shape, layers=1, context=1504, hidden=256)
    assert Model(wide, shape).play(position, 2) == LAUNCHES


def test_passes_after_each_other_are_one_kernel(bench: Bench) -> None:
    """Across the place where another part of the tokens begins."""
    assert Model(bench, Shape(layers=1)).play(126, 4) == LAUNCHES


@pytest.mark.parametrize("weights", [F16, *sorted(QUANTISED)], ids=lambda d: d.name)
def test_weights_of_all_types(bench: Bench, weights: DType) -> None:
    k = 2048 if weights is DType.Q6_K else 256
    sizes = Shape(k=k, hidden=k, heads=8, groups=2, n=k // 8, layers=1, vocabulary=34)
    assert Model(bench, replace(sizes, weights=weights, cache=F32)).play(70) == LAUNCHES


@pytest.mark.parametrize("weights", [F16, BF16, DType.Q8_0, DType.Q4_K], ids=lambda d: d.name)
@pytest.mark.parametrize(("k", "hidden"), [(512, 4096), (256, 14336), (4096, 256), (1536, 1280)])
def test_rows_in_chunks(bench: Bench, weights: DType, k: int, hidden: int) -> None:
    """One chunk, several, more than are awaited together, and some that are not whole."""
    shape = Shape(weights=weights, k=k, hidden=hidden, heads=4, groups=1, n=64, layers=1, vocabulary=34)
    assert Model(bench, shape).play(5) == LAUNCHES


@pytest.mark.parametrize("others", ["down", "v", "k", "q", "k v", "v down"])
@pytest.mark.parametrize(("cache", "layers"), [(F32, 1), (F16, 2)], ids=["f32", "f16"])
def test_weights_of_several_types(bench: Bench, others: str, cache: DType, layers: int) -> None:
    """As files in K-quants have them: a run goes on from one type to another, also where queries, keys and
    values differ.
    """
    shape = Shape(weights=DType.Q4_K, k=256, hidden=256, heads=4, groups=2, n=64, layers=layers, cache=cache)
    shape = replace(shape, others=tuple((name, DType.Q5_K) for name in others.split()))
    assert Model(bench, shape).play(70, 2) == LAUNCHES


def test_halves_and_blocks(bench: Bench) -> None:
    """Tiles of different sizes, of which one warp brings the smaller ones."""
    shape = Shape(weights=BF16, others=(("v", DType.Q8_0), ("down", DType.Q4_0)))
    assert Model(bench, shape).play(70, 2) == LAUNCHES


@pytest.mark.parametrize(
    "shape",
    [
        Shape(cache=F32),
        Shape(cache=BF16, interleaved=True),
        Shape(heads=2, groups=2, n=128),
        Shape(heads=8, groups=1, n=32),
        Shape(heads=10, groups=1, n=128, k=512, bias=True),
        Shape(k=2304, hidden=512, layers=1, vocabulary=6),
        Shape(window=40),
    ],
    ids=[
        "f32 cache",
        "bf16 cache",
        "each head its own",
        "many heads",
        "odd heads",
        "several chunks",
        "window",
    ],
)
def test_shapes(bench: Bench, shape: Shape) -> None:
    assert Model(bench, replace(shape, layers=1)).play(130, 2) == LAUNCHES


@pytest.mark.parametrize("weights", [BF16, DType.Q8_0, DType.Q4_K], ids=lambda d: d.name)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_so(bench: Bench, weights: DType, value: float) -> None:
    """One such activation among those that share a scale."""
    model = Model(bench, Shape(weights=weights, layers=1))
    bench.array(model.norms[1])[..., 3] = value
    tokens, position = bench.put([5], I32, Space.GUEST), bench.put([9], I32, Space.GUEST)
    logits = bench.room(1, 130, space=Space.GUEST)
    model.step(tokens, position, logits)
    bench._play(bench.gpu, validate(bytes(bench.tape), SIZES))
    assert bench.driver.launched.count("walk") == 1
    assert np.isnan(bench.array(logits)).all()


def test_a_row_outside_the_cache_is_not_written(bench: Bench) -> None:
    assert Model(bench, Shape(context=8)).play(8) == LAUNCHES


@pytest.mark.parametrize(("layers", "walks"), [(1, True), (2, False)])
def test_what_somebody_reads_later_is_written(bench: Bench, layers: int, walks: bool) -> None:
    """Results that lie in scratch, if a record outside the run takes them; nothing is written twice, since
    blocks would not write in order."""
    model = Model(bench, Shape(layers=layers))
    copy = bench.room(1, 512, space=Space.GUEST)
    tokens, position = bench.put([5], I32, Space.GUEST), bench.put([9], I32, Space.GUEST)
    model.step(tokens, position, bench.room(1, 130, space=Space.GUEST))
    bench.tape.unary("neg", copy, model.gated)
    tape = validate(bytes(bench.tape), SIZES)
    bench._play(bench.reference, tape)
    wanted = bench.array(copy).copy()
    bench.array(copy)[...] = 0
    bench._play(bench.gpu, tape)
    np.testing.assert_allclose(bench.array(copy), wanted, rtol=1e-3, atol=1e-3)
    assert ("walk" in bench.driver.launched) == walks


@pytest.mark.parametrize("ends", [False, True], ids=["read later", "the last record"])
def test_what_attention_makes_is_not_lost(bench: Bench, ends: bool) -> None:
    """Blocks hand it on without writing it: where somebody else reads it, no pass is one kernel."""
    model = Model(bench, Shape(layers=2))
    model.attended = bench.room(1, 256, space=Space.GUEST)
    tokens, position = bench.put([5], I32, Space.GUEST), bench.put([9], I32, Space.GUEST)
    model.step(tokens, position, bench.room(1, 130, space=Space.GUEST))
    tape = validate(bytes(bench.tape), SIZES)
    if ends:
        last = max(i for i, r in enumerate(tape.records) if BY_CODE[int(r["opcode"])].name == "attention")
        tape = validate(tape.records[: last + 1].tobytes(), SIZES)
    bench._play(bench.reference, tape)
    wanted = bench.array(model.attended).copy()
    bench.array(model.attended)[...] = 0
    bench._play(bench.gpu, tape)
    np.testing.assert_allclose(bench.array(model.attended), wanted, rtol=1e-2, atol=1e-2)


def test_queries_and_keys_that_turn_otherwise_are_launched_one_by_one(bench: Bench) -> None:
    model = Model(bench, Shape(layers=1))
    model.turns["k"] = bench.put(np.linspace(0.9, 0.2, 32), F32, Space.GUEST)
    assert model.play(9) != LAUNCHES


def test_weights_that_are_not_faster_so_are_launched_one_by_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_walk, "FASTER", frozenset({DType.Q8_0}))
    assert "walk" not in Model(bench, Shape(layers=1)).play(3)


def test_rows_longer_than_lanes_can_hold_are_launched_one_by_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_walk, "MOST_STEPS", 1)
    assert Model(bench, Shape(layers=1, hidden=4096)).play(3) != LAUNCHES
