"""A guest that hands every call on to wasi-nn, and its calls with NumPy arrays where it has pointers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.wasi_nn.encoding import Errno, TensorType
from nocopy.interfaces.wasi_nn.grants import NnLimits
from nocopy.interfaces.wasi_nn.imports import MODULE, OLD_PARAMS, PARAMS

PAGE = 65536
OUT, RECORD, DIMS, PARTS, NAME, CONFIG = 0x10, 0x40, 0x80, 0x200, 0x400, 0x800
"""Where arguments lie, in the first page; tensors lie from the second on."""
ONNX = 1
TYPES = {t.dtype: t for t in TensorType}
WIDTHS = {1: TensorType.U8, 2: TensorType.F16, 4: TensorType.I32, 8: TensorType.I64}


def text(
    module: str = MODULE, names: Iterable[str] | None = None, *, old: bool = False, pages: int = 1
) -> str:
    """The module in the text format: it exports what it imports, under the same names."""
    lines: list[str] = []
    for name in PARAMS if names is None else names:
        params = (OLD_PARAMS if old and name in OLD_PARAMS else PARAMS)[name]
        kinds = "i32 " * len(params)
        gets = " ".join(f"(local.get {n})" for n in range(len(params)))
        lines.append(f'(import "{module}" "{name}" (func ${name} (param {kinds}) (result i32)))')
        lines.append(f'(func (export "{name}") (param {kinds}) (result i32) (call ${name} {gets}))')
    lines.sort(key=lambda line: not line.startswith("(import"))
    lines.append(f'(memory (export "memory") {pages})')
    lines.append('(func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))')
    return "(module " + "\n".join(lines) + ")"


def type_of(array: npt.NDArray[Any]) -> TensorType:
    """What a guest calls an array's type: by its width, if the interface has no number for it."""
    return TYPES.get(array.dtype) or WIDTHS[array.dtype.itemsize]


def limits(**kw: int) -> NnLimits:
    """Limits of a guest that may bring models."""
    return NnLimits(**{"model_bytes": 1 << 30} | kw)


class NnGuest:
    """The guest and its calls."""

    def __init__(
        self, source: str | None = None, *, pages: int = 33, device: Any = "reference", **kw: Any
    ) -> None:
        kw.setdefault("nn_limits", limits())
        self.guest = DeviceGuest(source or text(pages=pages), device=device, log=lambda *_: None, **kw)
        self.memory = self.guest.memory
        self.next = PAGE

    def __enter__(self) -> NnGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.close()

    @property
    def error(self) -> str:
        """What the last failed call was about."""
        return self.guest.last_error

    @property
    def ledger(self) -> dict[str, int]:
        """What was copied."""
        counts = self.guest.ledger.as_dict()
        return {k: counts[k] for k in ("uploaded", "downloaded", "staged")}

    def call(self, name: str, *args: int) -> int:
        """Call any import."""
        return self.guest.call(name, *args)

    def ok(self, name: str, *args: int) -> None:
        """Call an import that must not fail."""
        assert self.call(name, *args) == Errno.SUCCESS, self.error

    def refused(self, errno: Errno, message: str, name: str, *args: int) -> None:
        """Call an import that must fail."""
        assert self.call(name, *args) == errno, (name, args, self.error)
        assert message in self.error

    def u32(self, at: int = OUT) -> int:
        """A number that was written."""
        return int.from_bytes(self.memory.read(at, 4), "little")

    def put(self, data: bytes | npt.NDArray[Any], at: int | None = None, align: int = 64) -> int:
        """Write bytes, in the next place that is free; return where."""
        raw = data if isinstance(data, bytes) else data.tobytes()
        at = self.room(len(raw), align) if at is None else at
        self.memory.write(at, raw)
        return at

    def room(self, nbytes: int, align: int = 64) -> int:
        """Bytes that are free."""
        at = -(-self.next // align) * align
        self.next = at + nbytes
        if self.next > self.memory.size:
            self.memory.grow(-(-self.next // PAGE) * PAGE)
        return at

    # Graphs

    def load(self, *parts: bytes, encoding: int = ONNX, target: int = 0) -> int:
        """Load a model; return its handle."""
        self.ok("load", *self.parts(*parts), encoding, target, OUT)
        return self.u32()

    def parts(self, *parts: bytes) -> tuple[int, int]:
        """Write an array of builders."""
        lists = [(self.put(part), len(part)) for part in parts]
        self.memory.write(PARTS, b"".join(struct.pack("<II", *each) for each in lists))
        return PARTS, len(parts)

    def name(self, name: str | bytes) -> tuple[int, int]:
        """Write a name."""
        raw = name if isinstance(name, bytes) else name.encode()
        self.memory.write(NAME, raw)
        return NAME, len(raw)

    def load_by_name(self, name: str) -> int:
        """Load a model; return its handle."""
        self.ok("load_by_name", *self.name(name), OUT)
        return self.u32()

    def context(self, graph: int) -> int:
        """Make a context; return its handle."""
        self.ok("init_execution_context", graph, OUT)
        return self.u32()

    # Tensors

    def tensor(
        self, at: int, kind: int, shape: Sequence[int], nbytes: int, *, rank: int | None = None
    ) -> int:
        """Write a tensor's record; return where."""
        self.memory.write(DIMS, struct.pack(f"<{len(shape)}I", *shape))
        record = struct.pack("<IIB3xII", DIMS, len(shape) if rank is None else rank, kind, at, nbytes)
        self.memory.write(RECORD, record)
        return RECORD

    def set_input(self, context: int, index: int, array: npt.NDArray[Any], at: int | None = None) -> int:
        """Write an array and give it as an input; return where it lies."""
        at = self.put(array, at)
        self.ok("set_input", context, index, self.tensor(at, type_of(array), array.shape, array.nbytes))
        return at

    def get_output(self, context: int, index: int, nbytes: int, at: int | None = None) -> bytes:
        """Fetch an output; the bytes that were written."""
        at = self.room(nbytes) if at is None else at
        self.ok("get_output", context, index, at, nbytes, OUT)
        return self.memory.read(at, self.u32())

    def infer(self, context: int, inputs: Sequence[npt.NDArray[Any]], sizes: Sequence[int]) -> list[bytes]:
        """All inputs in, all outputs out."""
        for index, array in enumerate(inputs):
            self.set_input(context, index, array)
        self.ok("compute", context)
        return [self.get_output(context, index, size) for index, size in enumerate(sizes)]


def identity(nbytes: int) -> bytes:
    """A model whose output is its input: f32 of that many bytes."""
    return model(["Identity"], nbytes // 4)


def model(operators: Sequence[str], count: int | str = 4, dtype: Any = np.float32) -> bytes:
    """A chain of operators of one input, from x to y."""
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["x", *(f"t{i}" for i in range(1, len(operators))), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(operators)]
    return built(nodes, [("x", kind, [count])], [("y", kind, [count])])


def built(nodes: Any, inputs: Any, outputs: Any, initializers: Any = (), opset: int = 20) -> bytes:
    """A model of nodes; inputs and outputs are (name, type, shape)."""
    from onnx import helper

    values = [[helper.make_tensor_value_info(*port) for port in ports] for ports in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *values, list(initializers))
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
