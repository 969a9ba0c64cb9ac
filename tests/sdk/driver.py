"""A guest that calls any builder of the C header, with arguments that the test writes into its memory."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path

import wasmtime

from nocopy.memory.dtype import DType
from nocopy.tape.ops import OPS, Op
from nocopy.tape.record import RECORD_BYTES, Space, Tensor
from tools.guest_compiler import BARE32, BARE64, compile_guest

CAPACITY = 4
SOURCE = """\
#include "nocopy.h"

#define EXPORT(name) __attribute__((export_name(#name)))

nocopy_record records[{capacity}];
nocopy_tensor tensors[5];
uint32_t params[12];
nocopy_tape tape;

EXPORT(records_at) void *records_at(void) {{ return records; }}
EXPORT(tensors_at) void *tensors_at(void) {{ return tensors; }}
EXPORT(params_at) void *params_at(void) {{ return params; }}
EXPORT(begin) void begin(uint32_t capacity) {{ tape = nocopy_tape_over(records, capacity); }}
EXPORT(count) uint32_t count(void) {{ return tape.count; }}

static float real(uint32_t i) {{
    float value;
    __builtin_memcpy(&value, &params[i], 4);
    return value;
}}

EXPORT(what) const char *what(void) {{ return tape.what; }}

EXPORT(transposed) void transposed(void) {{ tensors[0] = nocopy_transposed(tensors[0]); }}
EXPORT(permuted) void permuted(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {{
    tensors[0] = nocopy_permuted(tensors[0], a, b, c, d);
}}
EXPORT(sliced) void sliced(uint32_t axis, uint32_t start, uint32_t stop, uint32_t step) {{
    tensors[0] = nocopy_sliced(tensors[0], axis, start, stop, step);
}}
EXPORT(selected) void selected(uint32_t axis, uint32_t index) {{
    tensors[0] = nocopy_selected(tensors[0], axis, index);
}}
EXPORT(reshaped) void reshaped(uint32_t axes) {{ tensors[0] = nocopy_reshaped(tensors[0], axes, params); }}
EXPORT(tensor_in) void tensor_in(uint32_t axes) {{
    tensors[0] = nocopy_tensor_in(tensors[0].space, tensors[0].offset, tensors[0].dtype, axes, params);
}}
EXPORT(by_axes) void by_axes(uint32_t axes) {{
    const void *at = (const void *)(uintptr_t)tensors[0].offset;
    uint32_t t = tensors[0].dtype;
    const uint32_t *n = params;
    switch (axes) {{
    case 0: tensors[0] = nocopy_0d(at, t); break;
    case 1: tensors[0] = nocopy_1d(at, t, n[0]); break;
    case 2: tensors[0] = nocopy_2d(at, t, n[0], n[1]); break;
    case 3: tensors[0] = nocopy_3d(at, t, n[0], n[1], n[2]); break;
    default: tensors[0] = nocopy_4d(at, t, n[0], n[1], n[2], n[3]); break;
    }}
}}
EXPORT(elements) uint64_t elements(void) {{ return nocopy_elements(tensors[0]); }}
EXPORT(itemsize) uint32_t itemsize(uint32_t dtype) {{ return nocopy_itemsize(dtype); }}

EXPORT(build) int32_t build(uint32_t op, uint32_t function) {{
    (void)function;
    switch (op) {{
{cases}
    default: return 1;
    }}
}}
"""
TENSOR = struct.Struct("<Q3I4I4I4x")
INVALID = TENSOR.pack(0, 0, 0, 0xFF, *[0] * 8)
"""What the header's constructors return for an impossible request."""


def case(op: Op) -> str:
    """The line of the switch that calls the builder of `op`."""
    arguments = ["&tape"] + (["function"] if op.functions else [])
    arguments += [f"tensors[{i}]" for i in range(len(op.operands))]
    arguments += [f"real({i})" if p.kind == "f32" else f"params[{i}]" for i, p in enumerate(op.params)]
    return f"    case {op.code}: return nocopy_{op.name}({', '.join(arguments)});"


class Driver:
    """The driver in an instance."""

    def __init__(self, module: Path) -> None:
        config = wasmtime.Config()
        config.wasm_memory64 = True
        engine = wasmtime.Engine(config)
        self._store = wasmtime.Store(engine)
        instance = wasmtime.Instance(self._store, wasmtime.Module.from_file(engine, str(module)), [])
        self._exports = instance.exports(self._store)
        memory = self._exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory
        self._at = {name: self._call(f"{name}_at") for name in ("records", "tensors", "params")}

    def _call(self, name: str, *arguments: int) -> int:
        function = self._exports[name]
        assert isinstance(function, wasmtime.Func)
        return function(self._store, *arguments)

    def begin(self, capacity: int = CAPACITY) -> None:
        """Start an empty tape."""
        self._call("begin", capacity)

    def build(
        self, op: Op, tensors: Sequence[Tensor | bytes | None], params: Sequence[float], function: int = 0
    ) -> int:
        """Call the builder of `op`; returns its result."""
        raw = b"".join(pack(t) for t in tensors)
        self._memory.write(self._store, bytearray(raw), self._at["tensors"])
        values = [
            struct.pack("<f" if p.kind == "f32" else "<I", v) for p, v in zip(op.params, params, strict=True)
        ]
        self._memory.write(self._store, bytearray(b"".join(values)), self._at["params"])
        return ctypes.c_int32(self._call("build", op.code, function)).value

    def apply(self, name: str, tensor: Tensor, *arguments: int, shape: Sequence[int] = ()) -> Tensor | None:
        """Call one of the helpers that make a tensor from a tensor; None if it found that impossible."""
        self._memory.write(self._store, bytearray(pack(tensor)), self._at["tensors"])
        self._memory.write(self._store, bytearray(struct.pack(f"<{len(shape)}I", *shape)), self._at["params"])
        self._call(name, *arguments)
        return unpack(
            bytes(self._memory.read(self._store, self._at["tensors"], self._at["tensors"] + TENSOR.size))
        )

    def elements(self) -> int:
        """Elements of the tensor that `apply` returned last."""
        return self._call("elements")

    def itemsize(self, dtype: int) -> int:
        """Bytes of one element."""
        return self._call("itemsize", dtype)

    def records(self) -> bytes:
        """The tape so far."""
        start = self._at["records"]
        return bytes(self._memory.read(self._store, start, start + self._call("count") * RECORD_BYTES))

    def what(self) -> str:
        """What the first failing builder refused; "" if none did."""
        start = self._call("what")
        return (
            bytes(self._memory.read(self._store, start, start + 200)).split(b"\0")[0].decode()
            if start
            else ""
        )


def pack(tensor: Tensor | bytes | None) -> bytes:
    """A `nocopy_tensor`; None is `nocopy_none()`, bytes stay as they are."""
    if tensor is None:
        return TENSOR.pack(*[0] * 12)
    if isinstance(tensor, bytes):
        return tensor
    shape = (*tensor.shape, *[0] * (4 - len(tensor.shape)))
    strides = (*tensor.strides, *[0] * (4 - len(tensor.strides)))
    return TENSOR.pack(tensor.offset, tensor.dtype, tensor.space, len(tensor.shape), *shape, *strides)


def unpack(raw: bytes) -> Tensor | None:
    """The tensor in a `nocopy_tensor`; None if it is marked invalid."""
    offset, dtype, space, axes, *rest = TENSOR.unpack(raw)
    if axes > 4:
        return None
    return Tensor(Space(space), offset, tuple(rest[:axes]), DType(dtype), tuple(rest[4 : 4 + axes]))


def build(word: str, folder: Path) -> Driver:
    """Compile the driver for "wasm32" or "wasm64" and instantiate it."""
    source = folder / "driver.c"
    source.write_text(SOURCE.format(capacity=CAPACITY, cases="\n".join(map(case, OPS))))
    target = {"wasm32": BARE32, "wasm64": BARE64}[word]
    return Driver(compile_guest([source], folder / "driver.wasm", target=target))
