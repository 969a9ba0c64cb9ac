"""The numbers of the interface: errors, element types, targets, and encodings, which differ by dialect."""

from __future__ import annotations

from enum import Enum, IntEnum

import numpy as np

from nocopy.errors import NnError


class Errno(IntEnum):
    """`nn-errno` of the specification; from 100 on, WasmEdge's for language models."""

    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_ENCODING = 2
    MISSING_MEMORY = 3
    BUSY = 4
    RUNTIME_ERROR = 5
    UNSUPPORTED_OPERATION = 6
    TOO_LARGE = 7
    NOT_FOUND = 8
    END_OF_SEQUENCE = 100
    CONTEXT_FULL = 101
    PROMPT_TOO_LONG = 102
    MODEL_NOT_FOUND = 103


class Target(IntEnum):
    """`execution-target`; AUTO is WasmEdge's."""

    CPU = 0
    GPU = 1
    TPU = 2
    AUTO = 3


class TensorType(IntEnum):
    """`tensor-type`, as the specification and all hosts number it today."""

    F16 = 0
    F32 = 1
    F64 = 2
    U8 = 3
    I32 = 4
    I64 = 5

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The same for NumPy."""
        return _DTYPES[self]


_DTYPES: dict[TensorType, np.dtype[np.generic]] = {
    TensorType.F16: np.dtype("<f2"),
    TensorType.F32: np.dtype("<f4"),
    TensorType.F64: np.dtype("<f8"),
    TensorType.U8: np.dtype("u1"),
    TensorType.I32: np.dtype("<i4"),
    TensorType.I64: np.dtype("<i8"),
}
OLD_TYPES = {0: TensorType.F16, 1: TensorType.F32, 2: TensorType.U8, 3: TensorType.I32}
"""The numbers until 64-bit types came (wasi-nn issue 54, 2023), which WAMR's module `wasi_nn` still has."""


class Encoding(Enum):
    """What a model is written in; the value is WasmEdge's name for it, which `--nn-preload` takes."""

    OPENVINO = "openvino"
    ONNX = "onnx"
    TENSORFLOW = "tensorflow"
    PYTORCH = "pytorch"
    TENSORFLOWLITE = "tensorflowlite"
    GGML = "ggml"
    AUTODETECT = "autodetect"
    NEURALSPEED = "neuralspeed"
    WHISPER = "whisper"
    MLX = "mlx"
    PIPER = "piper"
    CHATTTS = "chattts"
    OPENVINOGENAI = "openvinogenai"
    BITNET = "bitnet"


class Dialect(Enum):
    """Whose numbers a guest uses for encodings."""

    SPEC = "spec"
    WASMEDGE = "wasmedge"
    WAMR = "wamr"


_COMMON = (
    Encoding.OPENVINO,
    Encoding.ONNX,
    Encoding.TENSORFLOW,
    Encoding.PYTORCH,
    Encoding.TENSORFLOWLITE,
)
ENCODINGS: dict[Dialect, dict[int, Encoding]] = {
    # The specification's WITX says 5 for autodetect, its WIT 5 for ggml and 6 for autodetect. A GGUF file
    # tells what it is, so both can be read as autodetect.
    Dialect.SPEC: dict(enumerate((*_COMMON, Encoding.AUTODETECT, Encoding.AUTODETECT))),
    Dialect.WAMR: dict(enumerate((*_COMMON, Encoding.GGML, Encoding.AUTODETECT))),
    Dialect.WASMEDGE: dict(enumerate((*_COMMON, Encoding.AUTODETECT, Encoding.GGML, Encoding.NEURALSPEED)))
    | {
        9: Encoding.WHISPER,
        10: Encoding.MLX,
        11: Encoding.PIPER,
        12: Encoding.CHATTTS,
        13: Encoding.OPENVINOGENAI,
        14: Encoding.BITNET,
    },
}


def encoding_of(number: int, dialect: Dialect) -> Encoding:
    """The encoding that a guest means.

    Raises:
        NnError: the dialect has no such number.
    """
    found = ENCODINGS[dialect].get(number)
    if found is None:
        known = ", ".join(f"{n} {e.value}" for n, e in ENCODINGS[dialect].items())
        raise NnError(
            Errno.INVALID_ENCODING,
            f"encoding {number} was asked for; in the dialect {dialect.value} there are {known}."
            " Choose another with --wasi-nn-dialect.",
        )
    return found
