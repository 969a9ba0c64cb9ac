"""The node tests of the package onnx, run by ONNX Runtime alone and through a guest's memory."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.interfaces.wasi_nn.onnx_model import ELEMENTS
from tests.interfaces.wasi_nn.nn_guest import NnGuest

Value = Any
"""An array; a list or None for what is no tensor."""

CROSSING = {e.number for e in ELEMENTS.values()}


def cases() -> list[Any]:
    """All of them; making them takes some seconds."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)


def plain(value: Value) -> Value:
    """A value without what onnx wraps it in."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return value if value is None or isinstance(value, list) else np.asarray(value)


def raw(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array as unsigned integers of its width, if NumPy does not know its type itself."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def given(case: Any, inputs: Any) -> dict[str, Value]:
    """The inputs by name; those that are left out are not among them."""
    values = zip((port.name for port in case.model.graph.input), map(plain, inputs), strict=False)
    return {name: value for name, value in values if value is not None}


def alone(case: Any) -> bool:
    """Whether it passes in ONNX Runtime alone."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return all(
            passes(case, _run(session, case, given(case, inputs)), outputs)
            for inputs, outputs in case.data_sets
        )
    except Exception:  # whatever it says: the test does not pass
        return False


def _run(session: Any, case: Any, values: dict[str, Value]) -> list[Value]:
    if any(isinstance(v, list) or v.dtype.kind in "OSU" for v in values.values()):
        return session.run(None, {n: v.astype(object) if _is_text(v) else v for n, v in values.items()})
    kinds = {port.name: port.type.tensor_type.elem_type for port in case.model.graph.input}
    feeds = {name: _ort_value(array, kinds[name]) for name, array in values.items()}
    return [_array(v) for v in session.run_with_ort_values(None, feeds)]


def _is_text(value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "OSU"


def _ort_value(array: npt.NDArray[Any], kind: int) -> Any:
    make = onnxruntime.OrtValue
    if array.dtype.isbuiltin == 1:
        return make.ortvalue_from_numpy(array)
    return make.ortvalue_from_numpy_with_onnx_type(raw(array.copy("C")), kind)


def _array(value: Any) -> Value:
    if not value.is_tensor() or value.element_type() not in CROSSING:
        return value.numpy()
    dtype = helper.tensor_dtype_to_np_dtype(value.element_type())
    shape = tuple(value.shape())
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), dtype).reshape(shape)


def through(guest: NnGuest, case: Any) -> tuple[bool, int]:
    """Whether it passes through a guest, and the last error number if not."""
    guest.next = 1 << 16
    try:
        graph = guest.load(case.model.SerializeToString())
    except AssertionError:
        return False, _last(guest)
    context = guest.context(graph)
    try:
        for inputs, outputs in case.data_sets:
            if not passes(case, list(_infer(guest, context, case, inputs, outputs)), outputs):
                return False, Errno.SUCCESS
    except Refused as refused:
        return False, refused.errno
    finally:
        guest.ok("finalize_execution_context", context)
        guest.ok("unload", graph)
    return True, Errno.SUCCESS


class Refused(Exception):
    """A call failed."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


def _must(errno: int) -> None:
    if errno:
        raise Refused(errno)


def _last(guest: NnGuest) -> int:
    return Errno.UNSUPPORTED_OPERATION if "NOT_IMPLEMENTED" in guest.error else Errno.RUNTIME_ERROR


def _infer(guest: NnGuest, context: int, case: Any, inputs: Any, outputs: Any) -> Iterator[Value]:
    values = given(case, inputs)
    for index, port in enumerate(p for p in case.model.graph.input if p.name in values):
        array = values[port.name]
        if isinstance(array, list) or port.type.tensor_type.elem_type not in CROSSING:
            record = guest.tensor(1 << 16, 3, [1], 1)  # any bytes will do: the type is refused
        else:
            array = array.copy("C")
            kind = next(e.given for e in ELEMENTS.values() if e.number == port.type.tensor_type.elem_type)
            record = guest.tensor(guest.put(array), kind, array.shape, array.nbytes)
        _must(guest.call("set_input", context, index, record))
    _must(guest.call("compute", context))
    for index, expected in enumerate(map(plain, outputs)):
        nbytes = expected.nbytes if isinstance(expected, np.ndarray) else 8
        at = guest.room(nbytes)
        _must(guest.call("get_output", context, index, at, nbytes, 16))
        data = guest.memory.read(at, guest.u32(16))
        yield np.frombuffer(data, expected.dtype).reshape(expected.shape)


def passes(case: Any, results: list[Value], expected: Any) -> bool:
    """Whether results are what a test expects, within its tolerance."""
    return all(_same(case, result, plain(want)) for result, want in zip(results, expected, strict=False))


def _same(case: Any, result: Value, want: Value) -> bool:
    if isinstance(want, list):
        return len(result) == len(want) and all(
            _same(case, r, plain(w)) for r, w in zip(result, want, strict=True)
        )
    if want is None:
        return result is None
    if result.shape != want.shape:
        return False
    if _is_text(want):
        return result.astype(str).tolist() == want.astype(str).tolist()
    if want.dtype.isbuiltin != 1 or want.dtype.kind in "fc":
        both = [np.asarray(each, np.float64) for each in (result, want)]
        return bool(np.allclose(*both, rtol=case.rtol, atol=case.atol, equal_nan=True))
    return bool(np.array_equal(result, want))


def cannot_cross(case: Any) -> bool:
    """Whether an input or output of the model is nothing that wasi-nn can carry."""
    graph = case.model.graph
    return any(
        not port.type.HasField("tensor_type") or port.type.tensor_type.elem_type not in CROSSING
        for port in (*graph.input, *graph.output)
    )
