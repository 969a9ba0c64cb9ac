"""The peer: a host of wasi-nn that copies as Wasmtime's does with ONNX.

Wasmtime's sources (crates/wasi-nn, 2026) copy an input four times: out of the guest's memory into a vector
(`witx.rs`, `to_vec`), into the context (`backend/onnx.rs`, `clone`), and in `compute` into bytes (`to_vec`)
and then into floats. An output is copied four times too: into floats (`to_vec`), bytes, out of the context
(`clone`), and into the guest. Each copy but the last allocates. Here each is one memcpy; Wasmtime converts
element by element in two of them, so it cannot be faster than this.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.interfaces.wasi_nn.layout import TENSOR, U32
from nocopy.memory.linear import LinearMemory
from nocopy.wasm import HostFunction

Bytes = npt.NDArray[np.uint8]


class CopyingNn:
    """The five functions of `wasinn.c`, over a session of ONNX Runtime with one input and one output of f32.

    Args:
        session: an `onnxruntime.InferenceSession`.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.memory: LinearMemory | None = None
        """The guest's; set once it is there."""
        self.copied = 0
        """Bytes that were copied."""
        self._input: tuple[tuple[int, ...], Bytes] | None = None
        self._output: Bytes | None = None

    def functions(self) -> dict[tuple[str, str], HostFunction]:
        """What the guest imports."""
        counts = {"load": 5, "init_execution_context": 2, "set_input": 3, "compute": 1, "get_output": 5}
        return {
            ("wasi_ephemeral_nn", name): HostFunction(getattr(self, name), ("u32",) * count, ("i32",))
            for name, count in counts.items()
        }

    def _copy(self, data: Bytes) -> Bytes:
        self.copied += data.nbytes
        return data.copy()

    def load(self, _parts: int, _count: int, _encoding: int, _target: int, graph: int) -> int:
        """There is one model already."""
        return self._tell(graph, 1)

    def init_execution_context(self, _graph: int, context: int) -> int:
        """There is one context."""
        return self._tell(context, 1)

    def set_input(self, _context: int, _index: int, tensor: int) -> int:
        """Copy the guest's tensor twice."""
        memory = self._memory()
        dimensions, rank, _, at, size = TENSOR.unpack(memory.read(tensor, TENSOR.size))
        shape = struct.unpack(f"<{rank}I", memory.read(dimensions, 4 * rank))
        self._input = shape, self._copy(self._copy(bytes_at(memory.check(at, size), size)))
        return 0

    def compute(self, _context: int) -> int:
        """Copy the input twice more, run, and copy the output twice."""
        assert self._input is not None
        shape, data = self._input
        given = self._copy(self._copy(data)).view(np.float32).reshape(shape)
        name = self.session.get_inputs()[0].name
        (result,) = self.session.run(None, {name: given})
        self._output = self._copy(self._copy(result.reshape(-1).view(np.uint8)))
        return 0

    def get_output(self, _context: int, _index: int, out: int, size: int, written: int) -> int:
        """Copy the output twice more, the last time to the guest."""
        assert self._output is not None
        data = self._copy(self._output)
        assert data.nbytes <= size
        ctypes.memmove(self._memory().check(out, size), data.ctypes.data, data.nbytes)
        self.copied += data.nbytes
        return self._tell(written, data.nbytes)

    def _memory(self) -> LinearMemory:
        assert self.memory is not None
        return self.memory

    def _tell(self, at: int, number: int) -> int:
        self._memory().write(at, U32.pack(number))
        return 0


def bytes_at(address: int, size: int) -> Bytes:
    """Memory as an array."""
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))
