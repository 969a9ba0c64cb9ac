"""Matrix products on a device, beside NumPy's BLAS on the same pages.

Both use all cores that the process may use; NOCOPY_THREADS and OPENBLAS_NUM_THREADS change that, one each.
NumPy has no matrix product for bf16, so its side of those rows converts to f32 first, as its users do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.device.protocol import Device, Pages
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.tape import Space, TapeBuilder, Tensor

SECONDS = 6.0  # for each case
SETTLE = 0.25  # OpenBLAS has threads that spin for 0.1 to 0.2 s after a product
SEED = 1


@dataclass(frozen=True)
class Case:
    """out[m,n] = a[m,k] @ b[k,n]; `transposed` means that b lies as [n,k], as weights do."""

    name: str
    m: int
    n: int
    k: int
    dtype: DType = DType.F32
    transposed: bool = False

    @property
    def nbytes(self) -> int:
        """What its three tensors need, each on 64 bytes."""
        sizes = (
            self.m * self.n * 4,
            self.m * self.k * self.dtype.itemsize,
            self.k * self.n * self.dtype.itemsize,
        )
        return sum(-(-size // 64) * 64 for size in sizes)

    @property
    def is_product(self) -> bool:
        """Whether arithmetic limits it; a matrix times a vector is limited by memory."""
        return min(self.m, self.n) > 1


CASES = (
    *(Case(f"f32 {n} x {n} x {n}", n, n, n) for n in (256, 512, 1024, 2048)),
    Case("bf16 1024 x 1024 x 1024", 1024, 1024, 1024, DType.BF16),
    Case("f32 vector 4096 x matrix 4096 x 4096", 1, 4096, 4096),
    Case("f32 matrix 4096 x 4096 x vector 4096", 4096, 1, 4096),
    Case("bf16 vector 4096 x transposed matrix 4096 x 4096", 1, 4096, 4096, DType.BF16, transposed=True),
)


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Time each of `CASES`: products in GFLOP/s, matrix times vector in GB/s of the matrix."""
    found: list[Row] = []
    for i, case in enumerate(CASES):
        progress(case.name, i / len(CASES))
        page = 1 << 16
        with LinearMemory(-(-case.nbytes // page) * page) as memory:
            pages = device.share(memory.address, memory.size)
            try:
                found.append(_compare(device, memory, pages, case))
            finally:
                pages.close()
    return found


def rate(device: Device) -> float:
    """GFLOP/s of an f32 product of 1024 x 1024 matrices."""
    case = Case("", 1024, 1024, 1024)
    with LinearMemory(-(-case.nbytes // 65536) * 65536) as memory:
        pages = device.share(memory.address, memory.size)
        try:
            return _compare(device, memory, pages, case)["value"]
        finally:
            pages.close()


def _compare(device: Device, memory: LinearMemory, pages: Pages, case: Case) -> Row:
    out, a, b = _tensors(case)
    tape = TapeBuilder()
    tape.matmul(out, a, b)
    program = device.compile(tape.build({Space.GUEST: pages.nbytes}, work_limit=2**50), {Space.GUEST: pages})
    views = [memory.view(t.shape, t.dtype, t.offset, t.strides).numpy() for t in (a, b)]
    rng = np.random.default_rng(SEED)
    for view in views:
        view[...] = rng.standard_normal(view.shape, np.float32).astype(view.dtype)
    contenders = {"ours": lambda: device.play(program), "numpy": _peer(case, *views)}
    times = interleaved(contenders, seconds=SECONDS, settle=SETTLE)
    program.close()
    if case.is_product:
        amount, unit = 2e-9 * case.m * case.n * case.k, "GFLOP/s"
    else:
        amount, unit = 1e-9 * case.k * case.n * case.m * case.dtype.itemsize, "GB/s"
    return row(case.name, amount / times["ours"], unit, "numpy", amount / times["numpy"])


def _tensors(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    def after(t: Tensor) -> int:
        return t.offset + -(-t.shape[0] * t.shape[1] * t.dtype.itemsize // 64) * 64

    out = Tensor(Space.GUEST, 0, (case.m, case.n), DType.F32)
    a = Tensor(Space.GUEST, after(out), (case.m, case.k), case.dtype)
    strides = (1, case.k) if case.transposed else ()
    return out, a, Tensor(Space.GUEST, after(a), (case.k, case.n), case.dtype, strides)


def _peer(case: Case, a: np.ndarray, b: np.ndarray) -> Callable[[], None]:
    out = np.empty((case.m, case.n), np.float32)

    def product() -> None:
        np.matmul(a.astype(np.float32, copy=False), b.astype(np.float32, copy=False), out=out)

    return product
