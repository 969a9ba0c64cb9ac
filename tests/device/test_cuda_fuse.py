"""One row's pass through a language model: fused launches give all that the ops give one by one."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from nocopy.device import cuda
from nocopy.device.protocol import Pages
from nocopy.device.reference import ReferenceDevice
from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape import Space, TapeBuilder, Tensor, blocks, validate
from tests.device.arena import assert_untouched
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.cuda_tapes import PAGE, host_pages
from tests.device.values import normal

F32, F16, BF16, I32, Q8_0 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.Q8_0
SIZES = {Space.GUEST: 64 * PAGE, Space.WEIGHTS: 2048 * PAGE, Space.SCRATCH: 128 * PAGE}


class Bench:
    """The same tape on the emulated GPU and on the reference, over equal bytes."""

    def __init__(self, gpu: cuda.CudaDevice, driver: EmulatedDriver) -> None:
        self.gpu, self.driver, self.reference = gpu, driver, ReferenceDevice()
        self.tape = TapeBuilder()
        self.bytes = {space: host_pages(size) for space, size in SIZES.items()}
        self._tops = dict.fromkeys(SIZES, 0)
        driver.memory_bytes = 1 << 26

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

    def judge(self) -> list[str]:
        """Play it on both; every byte of guest and scratch must agree. The kernels that were launched."""
        tape = validate(bytes(self.tape), SIZES)
        before = {space: b.copy() for space, b in self.bytes.items()}
        self._play(self.reference, tape)
        wanted = {space: b.copy() for space, b in self.bytes.items()}
        for space, b in self.bytes.items():
            b[:] = before[space]
        self.driver.launched.clear()
        self._play(self.gpu, tape)
        assert_untouched("cuda", tape, before, self.bytes)
        for record in tape.records:
            self._compare(record, wanted)
        return [name for name in self.driver.launched if not name.startswith("copy")]

    def _play(self, device: Any, tape: Any) -> None:
        pages: dict[Space, Pages] = {}
        for space, b in self.bytes.items():
            if space is Space.WEIGHTS:
                pages[space], _ = device.place([(b.ctypes.data, len(b))])
            else:
                pages[space] = device.share(b.ctypes.data, len(b))
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
            tolerance = 2e-2 if dtype is BF16 else 2e-3 if dtype is F16 else 2e-5
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
