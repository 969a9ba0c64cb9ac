"""cuBLASLt, reduced to the one product that we ask of it: out = scale * a w', of f16 or bf16, summed in f32.

NVIDIA's library knows its chips' tensor cores better than a kernel of ours. It is called through ctypes
while a graph is captured, so that a play costs no call. Which of its algorithms takes a shape is asked once
for each shape. Without the library, kernels/cuda/tensor_product.cu takes the same products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from nocopy.errors import DeviceError
from nocopy.memory.dtype import DType

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for sm_90; less bars some algorithms that split the sum."""

# cublasLt.h, stable since version 11: cublasComputeType_t, cudaDataType, and attributes' numbers.
_COMPUTE_F32 = 68
_TYPES = {DType.F32: 0, DType.F16: 2, DType.BF16: 14}
_TRANSPOSE_A = 3  # cublasLtMatmulDescAttributes_t
_BATCH_COUNT, _BATCH_STEP = 5, 6  # cublasLtMatrixLayoutAttribute_t
_MAX_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t
_BEST_ALIGNMENT = 256

_POINTER = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_POINTER,),
    "cublasLtDestroy": (_POINTER,),
    "cublasLtMatmulDescCreate": (_POINTER, ctypes.c_int, ctypes.c_int),
    "cublasLtMatmulDescDestroy": (_POINTER,),
    "cublasLtMatmulDescSetAttribute": (_POINTER, ctypes.c_int, _POINTER, ctypes.c_size_t),
    "cublasLtMatrixLayoutCreate": (_POINTER, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_POINTER,),
    "cublasLtMatrixLayoutSetAttribute": (_POINTER, ctypes.c_int, _POINTER, ctypes.c_size_t),
    "cublasLtMatmulPreferenceCreate": (_POINTER,),
    "cublasLtMatmulPreferenceDestroy": (_POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": (_POINTER, ctypes.c_int, _POINTER, ctypes.c_size_t),
    "cublasLtMatmulAlgoGetHeuristic": (*(_POINTER,) * 7, ctypes.c_int, _POINTER, _POINTER),
    "cublasLtMatmul": (*(_POINTER,) * 14, ctypes.c_size_t, _POINTER),
}


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True)
class Product:
    """out[m,n] = scale * sum over k of a[m,k] weight[n,k], plus what out holds if `add`.

    `a`, `weight` and `out` are device addresses; `a_row` and the like are elements from one row to the next.
    `dtype` is that of a and weight, `out_dtype` that of out: F32, or BF16 where that is theirs too. `count`
    such products have the same a; the addresses of weights and outs are `weight_step` and `out_step` elements
    apart.
    """

    m: int
    n: int
    k: int
    dtype: DType
    a: int
    a_row: int
    weight: int
    weight_row: int
    out: int
    out_row: int
    scale: float
    add: bool = False
    count: int = 1
    weight_step: int = 0
    out_step: int = 0
    out_dtype: DType = DType.F32


@dataclass(frozen=True)
class BlasLaunch:
    """A product that the library takes; `workspace` is the device address of its working memory."""

    product: Product
    workspace: int


class Blas:
    """The library, on the context that is current when it is made.

    Args:
        library: libcublasLt.

    Raises:
        DeviceError: the library does not start on this GPU.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._calls: dict[str, Any] = {}
        for name, types in _SIGNATURES.items():
            call = getattr(library, name)
            call.argtypes, call.restype = types, ctypes.c_int
            self._calls[name] = call
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        self.version = version_name(int(library.cublasLtGetVersion()))
        self._algorithms: dict[tuple[Any, ...], _Found] = {}
        self._handle = _POINTER()
        self._ask("cublasLtCreate", ctypes.byref(self._handle))

    def close(self) -> None:
        """Let the library go; its context must be current."""
        self._ask("cublasLtDestroy", self._handle)

    def launcher(
        self, product: Product, workspace: int, stream: int
    ) -> tuple[Callable[[], int], Callable[[], None]]:
        """A call that puts a product on a stream, and one that frees what it holds.

        Args:
            product: what to compute.
            workspace: device address of `WORKSPACE_BYTES` that nothing else uses meanwhile.
            stream: its handle.

        Raises:
            DeviceError: the library has no algorithm for it.
        """
        held = _Held(self._ask)
        try:
            descriptions = self._describe(product, held)
            found = self._algorithm(product, descriptions)
        except BaseException:
            held.free()
            raise
        operation, weight, a, out = descriptions
        factors = (ctypes.c_float * 2)(product.scale, float(product.add))
        scale, keep = (_POINTER(ctypes.addressof(factors) + at) for at in (0, 4))
        matmul, handle, on = self._calls["cublasLtMatmul"], self._handle, _POINTER(stream)
        to = _POINTER(product.out)

        def start(_keep: Any = (factors, found)) -> int:
            status = matmul(
                handle, operation, scale, product.weight, weight, product.a, a, keep, to, out, to, out,
                ctypes.byref(found.algorithm), workspace, WORKSPACE_BYTES, on,
            )  # fmt: skip
            self._check(status, "cublasLtMatmul")
            return 0

        return start, held.free

    def _describe(self, p: Product, held: _Held) -> tuple[_POINTER, ...]:
        """The operation and the three matrices, which the library reads column by column."""
        operation = held.make("MatmulDesc", _COMPUTE_F32, _TYPES[DType.F32])
        self._set("MatmulDesc", operation, _TRANSPOSE_A, ctypes.c_int32(1))
        weight = held.make("MatrixLayout", _TYPES[p.dtype], p.k, p.n, p.weight_row)
        a = held.make("MatrixLayout", _TYPES[p.dtype], p.k, p.m, p.a_row)
        out = held.make("MatrixLayout", _TYPES[p.out_dtype], p.n, p.m, p.out_row)
        if p.count > 1:
            for layout, step in ((weight, p.weight_step), (a, 0), (out, p.out_step)):
                self._set("MatrixLayout", layout, _BATCH_COUNT, ctypes.c_int32(p.count))
                self._set("MatrixLayout", layout, _BATCH_STEP, ctypes.c_int64(step))
        return operation, weight, a, out

    def _algorithm(self, p: Product, descriptions: tuple[_POINTER, ...]) -> _Found:
        steps = p.weight_step * p.dtype.itemsize, 0, p.out_step * p.out_dtype.itemsize
        alignments = [_alignment(at, step) for at, step in zip((p.weight, p.a, p.out), steps, strict=True)]
        alignments.append(alignments[-1])
        key = (
            p.m, p.n, p.k, p.dtype, p.out_dtype, p.a_row, p.weight_row, p.out_row, p.add, p.count, *alignments
        )  # fmt: skip
        if key not in self._algorithms:
            held = _Held(self._ask)
            try:
                wishes = held.make("MatmulPreference")
                self._set("MatmulPreference", wishes, _MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE_BYTES))
                for which, alignment in zip(_ALIGNMENTS, alignments, strict=True):
                    self._set("MatmulPreference", wishes, which, ctypes.c_uint32(alignment))
                found, count = _Found(), ctypes.c_int()
                operation, weight, a, out = descriptions
                self._ask(
                    "cublasLtMatmulAlgoGetHeuristic",
                    self._handle, operation, weight, a, out, out, wishes, 1,
                    ctypes.byref(found), ctypes.byref(count),
                )  # fmt: skip
            finally:
                held.free()
            if not count.value or found.state:
                raise DeviceError(
                    f"a product of {p.m} x {p.k} by {p.k} x {p.n} in {p.dtype.name.lower()} was asked for;"
                    f" cuBLASLt {self.version} has no algorithm for it. Report it."
                )
            self._algorithms[key] = found
        return self._algorithms[key]

    def _set(self, kind: str, what: _POINTER, attribute: int, value: Any) -> None:
        name = f"cublasLt{kind}SetAttribute"
        self._ask(name, what, attribute, ctypes.byref(value), ctypes.sizeof(value))

    def _ask(self, name: str, *arguments: Any) -> None:
        self._check(self._calls[name](*arguments), name)

    def _check(self, status: int, name: str) -> None:
        if status:
            raise DeviceError(f"{name} failed with cublasStatus {status}")


class _Held:
    """Descriptions made for one product, freed together."""

    def __init__(self, ask: Callable[..., None]) -> None:
        self._ask = ask
        self._made: list[tuple[str, _POINTER]] = []

    def make(self, kind: str, *arguments: Any) -> _POINTER:
        made = _POINTER()
        self._ask(f"cublasLt{kind}Create", ctypes.byref(made), *arguments)
        self._made.append((kind, made))
        return made

    def free(self) -> None:
        while self._made:
            kind, made = self._made.pop()
            self._ask(f"cublasLt{kind}Destroy", made)


def _alignment(address: int, step: int) -> int:
    """Bytes that an address, and others `step` bytes apart, are a multiple of, as far as it matters."""
    both = address | step | _BEST_ALIGNMENT
    return both & -both


def version_name(version: int) -> str:
    """`cublasLtGetVersion`'s number as people write it: 130100 is "13.1.0"."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def load_blas() -> ctypes.CDLL | None:
    """The library, from the `nvidia-cublas` package or the system; None if there is none."""
    try:
        pathfinder = import_module("cuda.pathfinder")
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (ImportError, RuntimeError, OSError):  # RuntimeError: pathfinder did not find it
        return None
