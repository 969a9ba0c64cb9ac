"""An ONNX model that ONNX Runtime has loaded: its session, and what its inputs and outputs are."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from nocopy.device.cpu import default_threads
from nocopy.errors import NnError, UsageError
from nocopy.interfaces.wasi_nn.encoding import Errno, Target, TensorType
from nocopy.interfaces.wasi_nn.onnx_file import Summary, summarise
from nocopy.interfaces.wasi_nn.onnx_ops import can_wait, cannot_fail

INSTALL: Final = "pip install 'nocopy[onnx]'"
MOST_SIGNATURES: Final = 256
"""Sets of input shapes whose output shapes are remembered."""


@dataclass(frozen=True)
class ElementType:
    """How elements of a model cross the interface."""

    number: int
    """`TensorProto.DataType`."""
    itemsize: int
    given: TensorType
    """What a guest calls it: itself, or the type of the same width if the interface has no number for it."""


_F16, _F32, _F64, _U8, _I32, _I64 = TensorType
ELEMENTS: Final = {
    "tensor(float)": ElementType(1, 4, _F32),
    "tensor(uint8)": ElementType(2, 1, _U8),
    "tensor(int8)": ElementType(3, 1, _U8),
    "tensor(uint16)": ElementType(4, 2, _F16),
    "tensor(int16)": ElementType(5, 2, _F16),
    "tensor(int32)": ElementType(6, 4, _I32),
    "tensor(int64)": ElementType(7, 8, _I64),
    "tensor(bool)": ElementType(9, 1, _U8),
    "tensor(float16)": ElementType(10, 2, _F16),
    "tensor(double)": ElementType(11, 8, _F64),
    "tensor(uint32)": ElementType(12, 4, _I32),
    "tensor(uint64)": ElementType(13, 8, _I64),
    "tensor(bfloat16)": ElementType(16, 2, _F16),
    "tensor(float8e4m3fn)": ElementType(17, 1, _U8),
    "tensor(float8e4m3fnuz)": ElementType(18, 1, _U8),
    "tensor(float8e5m2)": ElementType(19, 1, _U8),
    "tensor(float8e5m2fnuz)": ElementType(20, 1, _U8),
    "tensor(float8e8m0)": ElementType(24, 1, _U8),
}
"""By ONNX Runtime's name. Strings, sequences, maps and 4-bit types do not cross."""
FLOATS: Final = frozenset({_F16, _F32, _F64})


@dataclass(frozen=True)
class Port:
    """One input or output of a model."""

    name: str
    kind: str
    """ONNX Runtime's name of the type."""
    element: ElementType | None
    """None if it cannot cross."""
    shape: tuple[int | None, ...] | None
    """None for an axis that may have any length, or for a rank that is not given."""

    @property
    def fixed(self) -> bool:
        """Whether the whole shape is known."""
        return self.shape is not None and None not in self.shape


class OnnxModel:
    """A session, which any number of guests may use.

    Args:
        model: the file, or its bytes.
        name: for messages.
        target: where it runs.

    Raises:
        NnError: it is not ONNX, names files that it may not, or ONNX Runtime refuses it.
    """

    def __init__(self, model: Path | bytes, name: str, target: Target) -> None:
        runtime = load_runtime()
        summary = summarise(memoryview(model), name) if isinstance(model, bytes) else _summarise(model)
        if isinstance(model, bytes):
            refuse_external(summary, name)
        else:
            check_external(summary, model)
        self.provider = provider(runtime.get_available_providers(), target)
        source = model if isinstance(model, bytes) else os.fspath(model)
        try:
            self.session: Any = runtime.InferenceSession(
                source, _options(runtime), providers=list(dict.fromkeys((self.provider, CPU)))
            )
        except Exception as error:
            raise NnError(
                load_errno(error), f"the model {name} was to be loaded; {one_line(error)}"
            ) from None
        self.inputs = [_port(p, summary.shaped) for p in self.session.get_inputs()]
        self.outputs = [_port(p, summary.shaped) for p in self.session.get_outputs()]
        integers = any(p.element is not None and p.element.given not in FLOATS for p in self.inputs)
        tensors = all(p.element is not None for p in (*self.inputs, *self.outputs))
        self.can_wait = tensors and can_wait(summary.operators, integers=integers)
        self.repeats = (
            len(self.outputs) == 1
            and self.provider == CPU
            and all(p.kind != "tensor(bool)" for p in self.inputs)
        )
        """Whether a run is the same as the one before, if it is bound to the same bytes."""
        self._shapes: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}
        self._fixed = self._fixed_shapes() if cannot_fail(summary.operators) else None

    def _fixed_shapes(self) -> list[tuple[int, ...]] | None:
        """The outputs' shapes, if the inputs can have one set of shapes only."""
        if not all(p.fixed for p in (*self.inputs, *self.outputs)):
            return None
        return [tuple(n for n in p.shape or () if n is not None) for p in self.outputs]

    def output_shapes(self, signature: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]] | None:
        """The outputs' shapes for inputs of these shapes, if they are known before the run."""
        return self._fixed or self._shapes.get(signature)

    def learn(self, signature: tuple[tuple[int, ...], ...], shapes: list[tuple[int, ...]]) -> None:
        """Remember what came out."""
        if len(self._shapes) >= MOST_SIGNATURES:
            self._shapes.clear()
        self._shapes[signature] = shapes


CPU, CUDA, COREML = "CPUExecutionProvider", "CUDAExecutionProvider", "CoreMLExecutionProvider"


def provider(available: Sequence[str], target: Target) -> str:
    """The part of ONNX Runtime that runs a model.

    Raises:
        NnError: there is none for this target here.
    """
    gpu = next((p for p in (CUDA, COREML) if p in available), None)
    if target is Target.CPU or (target is Target.AUTO and gpu is None):
        return CPU
    if gpu is None or target is Target.TPU:
        raise NnError(
            Errno.UNSUPPORTED_OPERATION,
            f"the target {target.name.lower()} was asked for; ONNX Runtime has {', '.join(available)} here."
            " Use the target cpu, or for an NVIDIA GPU: pip install onnxruntime-gpu",
        )
    return gpu


def load_runtime() -> Any:
    """The package onnxruntime.

    Raises:
        NnError: it is not installed.
    """
    try:
        runtime: Any = import_module("onnxruntime")
    except ImportError as error:
        raise NnError(
            Errno.UNSUPPORTED_OPERATION,
            f"an ONNX model was asked for; ONNX Runtime cannot be loaded: {error}. Install it: {INSTALL}",
        ) from None
    _share_arena(runtime)
    return runtime


_arena = threading.Lock()
_arenas: list[int] = []


def _share_arena(runtime: Any) -> None:
    """Have all sessions allocate from one arena with a limit, so that no model takes the whole machine.

    The limit is three quarters of the memory; it holds for the process.
    """
    with _arena:
        if _arenas:
            return
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _arenas.append(memory * 3 // 4)
        info = runtime.OrtMemoryInfo(
            "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
        )
        runtime.create_and_register_allocator(info, runtime.OrtArenaCfg({"max_mem": _arenas[0]}))


def _options(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if "NOCOPY_THREADS" in os.environ:
        options.intra_op_num_threads = default_threads()
    return options


def _port(argument: Any, shaped: set[str]) -> Port:
    element, name = ELEMENTS.get(argument.type), str(argument.name)
    shape = tuple(n if isinstance(n, int) and n >= 0 else None for n in argument.shape)
    return Port(name, str(argument.type), element, shape if shape or name in shaped else None)


def load_errno(error: Exception) -> Errno:
    """What a guest gets when ONNX Runtime refuses a model."""
    kinds = {"NotImplemented": Errno.UNSUPPORTED_OPERATION}
    kinds |= dict.fromkeys(("InvalidProtobuf", "InvalidGraph", "NoModel"), Errno.INVALID_ENCODING)
    return kinds.get(type(error).__name__, Errno.RUNTIME_ERROR)


def one_line(error: Exception) -> str:
    """What ONNX Runtime says, without the places in its own sources."""
    return " ".join(str(error).split())[:500]


# Files


def _summarise(path: Path) -> Summary:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)
            try:
                return summarise(view, path.name)
            finally:
                view.release()
    except (OSError, ValueError) as error:
        raise NnError(
            Errno.NOT_FOUND, f"the model '{path}' was to be loaded; it cannot be read: {error}"
        ) from None


def refuse_external(summary: Summary, name: str) -> None:
    """Refuse a model from a guest that names files.

    Raises:
        NnError: it does.
    """
    if summary.external:
        raise NnError(
            Errno.UNSUPPORTED_OPERATION,
            f"the model {name} was to be loaded; its weights lie in other files, which a guest cannot name."
            " Put them into the model, or have the host grant it: --nn-model NAME=FILE",
        )


def check_external(summary: Summary, path: Path) -> None:
    """Refuse a granted model whose weights lie outside of its own folder.

    Raises:
        NnError: they do.
    """
    folder = path.resolve().parent
    for location in summary.locations:
        if not (folder / location).resolve().is_relative_to(folder):
            raise NnError(
                Errno.UNSUPPORTED_OPERATION,
                f"the model '{path}' was to be loaded; its weights lie in {location!r}, outside of"
                " its folder. Move them there.",
            )


_models: weakref.WeakValueDictionary[object, OnnxModel] = weakref.WeakValueDictionary()
_models_lock = threading.Lock()


def shared_model(path: Path, target: Target) -> OnnxModel:
    """The model in a file; guests that use the same file at the same time share it.

    Raises:
        NnError: as `OnnxModel`.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise NnError(
            Errno.NOT_FOUND, f"the model '{path}' was to be loaded; it cannot be read: {error.strerror}"
        ) from None
    key = (path.resolve(), found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, target)
    with _models_lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = OnnxModel(path, path.name, target)
        return model


def require_runtime(name: str) -> None:
    """Refuse to grant an ONNX model that nothing here can play.

    Raises:
        UsageError: ONNX Runtime is not installed.
    """
    try:
        load_runtime()
    except NnError as error:
        raise UsageError(f"the model {name!r} was to be granted; {error}") from None
