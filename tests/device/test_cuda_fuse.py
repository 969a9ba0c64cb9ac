"""One row's pass through a language model: fused launches give all that the ops give one by one."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nocopy.device import cuda, cuda_fuse
from nocopy.device.protocol import OnDemand, Pages
from nocopy.device.reference import ReferenceDevice
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape import Space, TapeBuilder, Tensor, blocks, validate
from tests.device.arena import assert_untouched
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.cuda_tapes import PAGE, host_pages
from tests.device.values import normal

F32, F16, BF16, I32, Q8_0 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.Q8_0
SIZES = {Space.GUEST: 512 * PAGE, Space.WEIGHTS: 8192 * PAGE, Space.SCRATCH: 128 * PAGE}


class Bench:
    """The same tape on the emulated GPU and on the reference, over equal bytes."""

    def __init__(self, gpu: cuda.CudaDevice, driver: EmulatedDriver) -> None:
        self.gpu, self.driver, self.reference = gpu, driver, ReferenceDevice()
        self.tape, self.on_demand = TapeBuilder(), False
        self.bytes = {space: host_pages(size) for space, size in SIZES.items()}
        self._tops = dict.fromkeys(SIZES, 0)
        driver.memory_bytes = 1 << 27

    def room(self, *shape: int, dtype: DType = F32, space: Space = Space.SCRATCH) -> Tensor:
        """Bytes that nothing else has."""
        nbytes = int(np.prod(shape)) // dtype.block * dtype.itemsize
        at = self._tops[space]
        self._tops[space] = at + -(-nbytes // 64) * 64
        assert self._tops[space] <= SIZES[space]
        return Tensor(space, at, shape, dtype)

    def array(self, t: Tensor) -> npt.NDArray[Any]:
        raw = self.bytes[Space(t.space)][t.offset :]
        return raw[: int(np.prod(t.shape)) * t.dtype.itemsize].view(t.dtype.numpy).reshape(t.shape)

    def put(self, values: Any, dtype: DType = F32, space: Space = Space.SCRATCH) -> Tensor:
        values = np.asarray(values)
        tensor = self.room(*values.shape, dtype=dtype, space=space)
        self.array(tensor)[...] = values.astype(dtype.numpy)
        return tensor

    def weight(self, rows: int, k: int, dtype: DType = BF16, seed: int = 2) -> Tensor:
        """[rows, k] in the weights space."""
        if dtype.block == 1:
            return self.put(0.1 * normal(seed, rows, k), dtype, Space.WEIGHTS)
        tensor = self.room(rows, k, dtype=dtype, space=Space.WEIGHTS)
        rng = np.random.default_rng(seed)
        count = rows * k // dtype.block
        raw = np.frombuffer(
            rng.integers(0, 256, count * dtype.itemsize, np.uint8).tobytes(), blocks.LAYOUTS[dtype]
        ).copy()
        for field in {"d", "dmin"} & set(raw.dtype.fields or ()):
            raw[field] = rng.normal(0, 0.02, count)
        self.bytes[Space.WEIGHTS][tensor.offset : tensor.offset + raw.nbytes] = raw.view(np.uint8)
        return tensor

    def norm(self, k: int) -> Tensor:
        return self.put(1 + 0.1 * normal(9, k), F32, Space.WEIGHTS)

    def clear(self) -> None:
        """Begin another tape."""
        self.tape, self._tops = TapeBuilder(), dict.fromkeys(SIZES, 0)

    def play_on_gpu(self) -> list[str]:
        """Play it on the GPU alone: the kernels that were launched."""
        self.driver.launched.clear()
        self._play(self.gpu, validate(bytes(self.tape), SIZES))
        return [name for name in self.driver.launched if name != "copy_words"]

    def judge(self, *, last_only: bool = False) -> list[str]:
        """Play it on both; results, or what is left of them, must agree. The kernels that were launched."""
        tape = validate(bytes(self.tape), SIZES)
        before = {space: b.copy() for space, b in self.bytes.items()}
        self._play(self.reference, tape)
        wanted = {space: b.copy() for space, b in self.bytes.items()}
        for space, b in self.bytes.items():
            b[:] = before[space]
        self.driver.launched.clear()
        self._play(self.gpu, tape)
        assert_untouched("cuda", tape, before, self.bytes)
        for number, record in enumerate(tape.records):
            later = any(
                e.written and e.start < out.stop and out.start < e.stop and e.space == out.space
                for es in tape.extents[number + 1 :]
                for e in es
                for out in tape.extents[number]
                if out.written
            )
            if not (last_only and later):
                self._compare(record, wanted)
        return [name for name in self.driver.launched if name != "copy_words"]

    def _play(self, device: Any, tape: Any) -> None:
        pages: dict[Space, Pages] = {}
        for space, b in self.bytes.items():
            if space is Space.WEIGHTS:
                pages[space], _ = device.place([(b.ctypes.data, len(b))])
            else:
                wanted = OnDemand(lambda *_: None, lambda: None) if self.on_demand else None
                pages[space] = device.share(b.ctypes.data, len(b), on_demand=wanted)
        program = device.compile(tape, pages)
        device.play(program)
        program.close()
        for p in pages.values():
            p.close()

    def _compare(self, record: Any, wanted: Any) -> None:
        from nocopy.tape.ops import BY_CODE

        op = BY_CODE[int(record["opcode"])]
        dims = dict(zip(op.dims, (int(d) for d in record["dims"]), strict=False))
        for slot, spec in enumerate(op.operands):
            if not spec.out:
                continue
            operand = record["operands"][slot]
            dtype, space = DType(int(operand["dtype"])), Space(int(operand["space"]))
            shape = [dims[a] for a in spec.axes]
            step = [int(s) * dtype.itemsize for s in operand["strides"][: len(shape)]]
            if dtype.block > 1:
                continue

            def view(
                raw: Any, operand: Any = operand, dtype: Any = dtype, shape: Any = shape, step: Any = step
            ):
                return np.ndarray(shape, dtype.numpy, raw, int(operand["offset"]), step).astype(np.float64)

            got, want = view(self.bytes[space]), view(wanted[space])
            rounded = DType(int(record["operands"][2]["dtype"])) if op.name == "attention" else dtype
            tolerance = 2e-2 if rounded is BF16 else 2e-3 if rounded is F16 else 2e-5
            scale = np.abs(want).max(initial=1e-6)
            assert np.abs(got - want).max(initial=0) <= tolerance * scale, f"{op.name} slot {slot}"


@pytest.fixture
def bench(device: cuda.CudaDevice, driver: EmulatedDriver) -> Bench:
    return Bench(device, driver)


WEIGHTS = [F32, F16, BF16, *sorted(QUANTISED)]


@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda d: d.name)
@pytest.mark.parametrize(("k", "n"), [(2048, 34), (4096, 6)])
def test_a_norm_and_its_products_are_one_launch(bench: Bench, dtype: DType, k: int, n: int) -> None:
    x, h = bench.put(normal(1, 1, k)), bench.room(1, k)
    bench.tape.rmsnorm(h, x, bench.norm(k), 1e-5)
    for i in range(3):
        bench.tape.matmul(bench.room(1, n), h, bench.weight(n, k, dtype, i).T, 0.5)
    assert bench.judge() == [f"fused_{dtype.name.lower()}"]


@pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
@pytest.mark.parametrize("cache", [F32, F16, BF16], ids=lambda d: d.name)
def test_turned_and_cached_results_are_one_launch(bench: Bench, interleaved: bool, cache: DType) -> None:
    """Queries with a bias, keys and values, of which keys and values go to a row of a token-major cache."""
    project(bench, [BF16] * 3, cache, interleaved=interleaved)
    assert bench.judge() == ["fused_bf16"]


@pytest.mark.parametrize("types", ["BF16 BF16 Q8_0", "Q4_K Q5_K Q4_K", "Q8_0 Q4_0 Q4_0"])
def test_of_weights_of_several_types_each_run_of_one_is_a_launch(bench: Bench, types: str) -> None:
    """As files in K-quants have them."""
    project(bench, [DType[name] for name in types.split()], F16)
    names = [
        name for name, before in zip(types.split(), [None, *types.split()], strict=False) if name != before
    ]
    assert bench.judge() == [f"fused_{name.lower()}" for name in names]


def project(bench: Bench, types: list[DType], cache: DType, *, interleaved: bool = False) -> None:
    """Queries, keys and values with weights of these types."""
    k, heads, groups, n, tokens = 256, 4, 2, 32, 9
    x, h = bench.put(normal(1, 1, k)), bench.room(1, k)
    tape = bench.tape
    tape.rmsnorm(h, x, bench.norm(k), 1e-5)
    rows = [bench.room(1, count * n) for count in (heads, groups, groups)]
    for i, row in enumerate(rows):
        tape.matmul(row, h, bench.weight(row.shape[1], k, types[i], i).T)
        if i == 0:
            tape.binary("add", row, row, bench.put(normal(5, row.shape[1]), F32, Space.WEIGHTS))
    position = bench.put([7], I32, Space.GUEST)
    frequencies = bench.put(np.linspace(1, 0.1, n // 2), F32, Space.GUEST)
    for row, count in zip(rows, (heads, groups), strict=False):
        turned = Tensor(row.space, row.offset, (1, count, n), F32)
        tape.rope(turned, turned, frequencies, position, interleaved=interleaved, scale=0.9)
    width = groups * n
    both = bench.room(tokens, 2 * width, dtype=cache, space=Space.GUEST)
    for half, row in enumerate(rows[1:]):
        at = both.offset + half * width * cache.itemsize
        tape.scatter(Tensor(Space.GUEST, at, (tokens, width), cache, (2 * width, 1)), row, position)


@pytest.mark.parametrize("position", [-1, 9, 2**31 - 1])
def test_a_row_outside_the_cache_is_not_written(bench: Bench, position: int) -> None:
    x, y = bench.put(normal(1, 1, 256)), bench.room(1, 64)
    bench.tape.matmul(y, x, bench.weight(64, 256).T)
    bench.tape.scatter(
        bench.room(9, 64, dtype=F16, space=Space.GUEST), y, bench.put([position], I32, Space.GUEST)
    )
    assert bench.judge() == ["fused_bf16"]


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_tanh"])
def test_a_gate_and_a_residual_are_part_of_their_products(bench: Bench, function: str) -> None:
    k, hidden = 256, 513
    x, stream = bench.put(normal(1, 1, k)), bench.put(normal(2, 1, k))
    gate, up, gated = (bench.room(1, hidden - 1) for _ in range(3))
    bench.tape.matmul(gate, x, bench.weight(hidden - 1, k, BF16, 3).T)
    bench.tape.matmul(up, x, bench.weight(hidden - 1, k, BF16, 4).T)
    bench.tape.glu(function, gated, gate, up)
    down = bench.room(1, k)
    bench.tape.matmul(down, gated, bench.weight(k, hidden - 1, BF16, 5).T)
    bench.tape.binary("add", stream, stream, down)
    assert bench.judge() == ["fused_bf16", "fused_bf16"]


def test_weights_of_two_types_are_two_launches(bench: Bench) -> None:
    x, h = bench.put(normal(1, 1, 256)), bench.room(1, 256)
    bench.tape.rmsnorm(h, x, bench.norm(256), 1e-5)
    bench.tape.matmul(bench.room(1, 32), h, bench.weight(32, 256, BF16).T)
    bench.tape.matmul(bench.room(1, 32), h, bench.weight(32, 256, Q8_0).T)
    assert bench.judge() == ["fused_bf16", "fused_q8_0"]


def over_its_own_row(bench: Bench, x: Tensor) -> None:
    """The result lies where all blocks read."""
    h = bench.room(1, 256)
    bench.tape.rmsnorm(h, x, bench.norm(256), 1e-5)
    bench.tape.matmul(x, h, bench.weight(256, 256).T)


def added_to_its_own_row(bench: Bench, x: Tensor) -> None:
    y = bench.room(1, 256)
    bench.tape.matmul(y, x, bench.weight(256, 256).T)
    bench.tape.binary("add", x, x, y)


def one_over_the_other(bench: Bench, x: Tensor) -> None:
    y = bench.room(1, 64)
    bench.tape.matmul(y, x, bench.weight(64, 256, BF16, 1).T)
    bench.tape.matmul(y, x, bench.weight(64, 256, BF16, 2).T)


def half_over_the_other(bench: Bench, x: Tensor) -> None:
    y = bench.room(1, 128)
    other = Tensor(y.space, y.offset + 128, (1, 64), F32)
    bench.tape.matmul(Tensor(y.space, y.offset, (1, 64), F32), x, bench.weight(64, 256, BF16, 1).T)
    bench.tape.matmul(other, x, bench.weight(64, 256, BF16, 2).T)


def cached_before_it_turns(bench: Bench, x: Tensor) -> None:
    y, position = bench.room(1, 64), bench.put([3], I32, Space.GUEST)
    frequencies = bench.put(np.linspace(1, 0.1, 32), F32, Space.GUEST)
    bench.tape.matmul(y, x, bench.weight(64, 256).T)
    bench.tape.scatter(bench.room(9, 64, space=Space.GUEST), y, position)
    turned = Tensor(y.space, y.offset, (1, 1, 64), F32)
    bench.tape.rope(turned, turned, frequencies, position)


HAZARDS: list[Callable[[Bench, Tensor], None]] = [
    over_its_own_row,
    added_to_its_own_row,
    one_over_the_other,
    half_over_the_other,
    cached_before_it_turns,
]


@pytest.mark.parametrize("build", HAZARDS, ids=lambda f: f.__name__)
def test_what_would_read_or_write_out_of_order_is_not_fused(
    bench: Bench, build: Callable[[Bench, Tensor], None]
) -> None:
    build(bench, bench.put(normal(1, 1, 256)))
    assert len(bench.judge(last_only=True)) > 1


@pytest.mark.parametrize(
    ("n", "k"), [(33, 256), (32, 250), (1, 256)], ids=["odd rows", "no whole pieces", "one row"]
)
def test_other_shapes_are_played_one_by_one(bench: Bench, n: int, k: int) -> None:
    bench.tape.matmul(bench.room(1, n), bench.put(normal(1, 1, k)), bench.weight(n, k).T)
    (kernel,) = bench.judge()
    assert not kernel.startswith("fused")


def test_weights_in_host_pages_or_written_by_the_tape_are_not_streamed(bench: Bench) -> None:
    x, weight = bench.put(normal(1, 1, 256)), bench.weight(64, 256, F32)
    bench.tape.matmul(bench.room(1, 64), x, weight.T)
    bench.tape.fill(Tensor(Space.WEIGHTS, weight.offset, (4,), F32), 1.0)
    tape = validate(bytes(bench.tape), SIZES)
    pages: dict[Space, Pages] = {
        space: bench.gpu.share(b.ctypes.data, len(b)) for space, b in bench.bytes.items()
    }
    bench.gpu.play(bench.gpu.compile(tape, pages))
    assert not any(name.startswith("fused") for name in bench.driver.launched)


@pytest.mark.parametrize(("shared", "fused"), [(100 << 10, True), (32 << 10, False)])
def test_a_chip_with_little_shared_memory_uses_less_or_none(
    bench: Bench, driver: EmulatedDriver, shared: int, fused: bool
) -> None:
    driver.chip = cuda_fuse.Chip(3, shared, shared - 1024)
    bench.tape.matmul(bench.room(1, 64), bench.put(normal(1, 1, 2048)), bench.weight(64, 2048).T)
    assert (bench.judge() == ["fused_bf16"]) == fused


@pytest.mark.parametrize("on_demand", [False, True], ids=["registered", "on demand"])
def test_words_that_many_records_read_are_fetched_once(
    bench: Bench, driver: EmulatedDriver, on_demand: bool
) -> None:
    """From host pages, at the start of a play; and what the tape itself writes is never a stale copy."""
    bench.on_demand = on_demand
    table = bench.put(normal(1, 40, 8), F32, Space.GUEST)
    written, kept = (bench.put([i], I32, Space.GUEST) for i in (3, 5))
    for i in range(40):
        bench.tape.gather(bench.room(1, 8), table, kept if i % 2 else written)
    bench.tape.argmax(written, bench.put(normal(4, 1, 30)))
    bench.tape.gather(bench.room(1, 8), table, written)
    assert bench.judge(last_only=True)[-1] == "gather"
    assert driver.launched[0] == "copy_words"


def test_words_that_lie_apart_take_few_launches(bench: Bench, driver: EmulatedDriver) -> None:
    """One word each, and one that is many, of which a thread does not take more than one."""
    table = bench.put(normal(1, 40, 8), F32, Space.GUEST)
    places: list[Tensor] = []
    for i in range(20):
        places.append(bench.put([i], I32, Space.GUEST))
        bench.put(np.zeros(100), F32, Space.GUEST)
    many = bench.put(np.arange(700) % 40, I32, Space.GUEST)
    for place in (*places, many):
        bench.tape.gather(bench.room(*place.shape, 8), table, place)
    assert bench.judge() == ["gather"] * 21
    assert driver.launched == ["copy_words"] * 2 + ["gather"] * 21
