"""The interface as it is published: records, numbers, dialects, WasmEdge's functions, WAMR's old module."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nocopy.errors import InvalidModuleError, UsageError
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.wasi_nn.encoding import Dialect, Errno, TensorType
from nocopy.interfaces.wasi_nn.grants import NnLimits, NnModel
from nocopy.interfaces.wasi_nn.imports import OLD_MODULE, WASMEDGE
from tests.interfaces.wasi_nn.nn_guest import DIMS, OUT, PARTS, RECORD, NnGuest, identity, limits, model, text

SPEC = ["load", "load_by_name", "init_execution_context", "set_input", "compute", "get_output"]
OLD = text(OLD_MODULE, SPEC, old=True, pages=4)
DTYPES = [t.dtype for t in TensorType]


@pytest.fixture(scope="module")
def guest() -> Iterator[NnGuest]:
    with NnGuest(nn_limits=limits(graphs=10_000, contexts=10_000)) as guest:
        yield guest


@pytest.fixture(scope="module")
def contexts(guest: NnGuest) -> dict[Any, int]:
    """A model for each type that passes a tensor of any shape on."""
    return {d: guest.context(guest.load(anything(d))) for d in DTYPES}


def anything(dtype: Any) -> bytes:
    """A model that passes on a tensor of any rank."""
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [helper.make_tensor_value_info(name, kind, None) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@settings(max_examples=60, deadline=None)
@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
    )
)
def test_tensors_of_every_type_and_shape_come_back(
    guest: NnGuest, contexts: dict[Any, int], array: Any
) -> None:
    guest.next = 1 << 16
    assert guest.infer(contexts[array.dtype], [array], [array.nbytes]) == [array.tobytes()]


def test_the_type_is_a_byte_and_what_pads_it_does_not_matter(
    guest: NnGuest, contexts: dict[Any, int]
) -> None:
    array = np.arange(4, dtype=np.float32)
    at = guest.put(array)
    record = guest.tensor(at, TensorType.F32, array.shape, array.nbytes)
    guest.memory.write(record + 9, b"\xff\xee\xdd")
    guest.ok("set_input", contexts[array.dtype], 0, record)


@pytest.mark.parametrize(("number", "kind"), [(2, np.uint8), (3, np.int32)])
def test_guests_from_before_64_bit_types_are_understood_by_their_bytes(
    guest: NnGuest, contexts: dict[Any, int], number: int, kind: Any
) -> None:
    array = np.arange(6, dtype=kind)
    context = contexts[array.dtype]
    guest.ok("set_input", context, 0, guest.tensor(guest.put(array), number, array.shape, array.nbytes))
    guest.ok("compute", context)
    assert guest.get_output(context, 0, array.nbytes) == array.tobytes()


def test_several_inputs_and_outputs(guest: NnGuest) -> None:
    from onnx import TensorProto, helper

    from tests.interfaces.wasi_nn.nn_guest import built

    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    ports = [[(n, TensorProto.FLOAT, ["n"]) for n in names] for names in ("ab", ("sum", "difference"))]
    context = guest.context(guest.load(built(nodes, *ports)))
    a, b = np.random.default_rng(0).random((2, 3000)).astype(np.float32)
    for _ in range(3):
        assert guest.infer(context, [a, b], [a.nbytes] * 2) == [(a + b).tobytes(), (a - b).tobytes()]
        assert guest.get_output(context, 1, a.nbytes) == (a - b).tobytes()
        assert guest.get_output(context, 0, a.nbytes) == (a + b).tobytes()


def test_shapes_may_change_from_one_inference_to_the_next(guest: NnGuest) -> None:
    context = guest.context(guest.load(model(["Neg"], "n")))
    for count in (4, 5000, 1, 4, 0, 5000):
        array = np.ones(count, np.float32)
        assert guest.infer(context, [array], [array.nbytes]) == [(-array).tobytes()]


def test_one_element_is_a_scalar_too(guest: NnGuest) -> None:
    from onnx import TensorProto, helper

    from tests.interfaces.wasi_nn.nn_guest import built

    ports = [[(n, TensorProto.FLOAT, [])] for n in "xy"]
    context = guest.context(guest.load(built([helper.make_node("Neg", ["x"], ["y"])], *ports)))
    for shape in ((1,), ()):
        array = np.full(shape, 3, np.float32)
        assert guest.infer(context, [array], [4]) == [np.float32(-3).tobytes()]


# What does not fit


def test_a_buffer_that_is_too_small_stays_as_it_is_and_the_guest_learns_the_size(guest: NnGuest) -> None:
    array = np.arange(2000, dtype=np.float32)
    for source in (identity(array.nbytes), model(["Identity"], "n")):  # written in place, and copied
        context = guest.context(guest.load(source))
        guest.set_input(context, 0, array)
        guest.ok("compute", context)
        out = guest.put(b"\x55" * array.nbytes)
        for size in (0, 1, array.nbytes - 1):
            guest.refused(Errno.TOO_LARGE, "buffer of", "get_output", context, 0, out, size, OUT)
            assert guest.u32() == array.nbytes
            assert guest.memory.read(out, array.nbytes) == b"\x55" * array.nbytes
        assert guest.get_output(context, 0, array.nbytes, out) == array.tobytes()


def test_a_larger_buffer_keeps_what_lies_behind(guest: NnGuest) -> None:
    array = np.arange(2000, dtype=np.float32)
    context = guest.context(guest.load(identity(array.nbytes)))
    guest.set_input(context, 0, array)
    guest.ok("compute", context)
    out = guest.put(b"\x55" * (array.nbytes + 100))
    assert guest.get_output(context, 0, array.nbytes + 100, out) == array.tobytes()
    assert guest.memory.read(out + array.nbytes, 100) == b"\x55" * 100


@pytest.mark.parametrize(
    ("kind", "shape", "nbytes", "message"),
    [
        (1, [3], 12, "it takes [4]"),
        (1, [4, 1], 16, "it takes [4]"),
        (1, [], 4, "it takes [4]"),
        (0, [4], 8, "it takes tensor(float)"),
        (5, [4], 32, "it takes tensor(float)"),
        (6, [4], 16, "there are 0 to 5"),
        (255, [4], 16, "there are 0 to 5"),
        (1, [4], 15, "it takes 16"),
        (1, [4], 17, "it takes 16"),
        (1, [0], 0, "it takes [4]"),
    ],
)
def test_tensors_that_do_not_fit_the_model(
    guest: NnGuest, kind: int, shape: list[int], nbytes: int, message: str
) -> None:
    context = guest.context(guest.load(identity(16)))
    at = guest.room(64)
    guest.refused(
        Errno.INVALID_ARGUMENT, message, "set_input", context, 0, guest.tensor(at, kind, shape, nbytes)
    )


def test_indices_that_are_not_there(guest: NnGuest) -> None:
    context = guest.context(guest.load(identity(16)))
    guest.set_input(context, 0, np.ones(4, np.float32))
    guest.refused(Errno.INVALID_ARGUMENT, "the model has 1", "set_input", context, 1, RECORD)
    guest.refused(Errno.INVALID_ARGUMENT, "the model has 1", "set_input", context, 2**32 - 1, RECORD)
    guest.ok("compute", context)
    guest.refused(Errno.INVALID_ARGUMENT, "the model has 1", "get_output", context, 1, 0, 64, OUT)


def test_calls_in_the_wrong_order(guest: NnGuest) -> None:
    context = guest.context(guest.load(identity(16)))
    guest.refused(Errno.RUNTIME_ERROR, "before anything was computed", "get_output", context, 0, 0, 64, OUT)
    guest.refused(Errno.INVALID_ARGUMENT, "no input was set for x", "compute", context)


@pytest.mark.parametrize("junk", [b"", b"x", b"\xff" * 100, b"GGU", bytes(1000), b"\x08\x0a"])
def test_what_is_no_model(guest: NnGuest, junk: bytes) -> None:
    assert guest.call("load", *guest.parts(junk), 1, 0, OUT) in {
        Errno.INVALID_ENCODING,
        Errno.RUNTIME_ERROR,
    }
    assert "was to be loaded" in guest.error


def test_models_in_several_parts_and_other_encodings(guest: NnGuest) -> None:
    raw = identity(16)
    guest.refused(Errno.INVALID_ARGUMENT, "in 2 parts", "load", *guest.parts(raw, raw), 1, 0, OUT)
    guest.refused(Errno.INVALID_ENCODING, "this host plays onnx", "load", *guest.parts(raw), 0, 0, OUT)
    guest.refused(Errno.INVALID_ENCODING, "encoding 99", "load", *guest.parts(raw), 99, 0, OUT)


def test_targets(guest: NnGuest) -> None:
    raw = guest.parts(identity(16))
    for target in (0, 3):
        guest.ok("load", *raw, 1, target, OUT)
    for target in (1, 2):
        guest.refused(Errno.UNSUPPORTED_OPERATION, "Use the target cpu", "load", *raw, 1, target, OUT)
    guest.refused(Errno.INVALID_ARGUMENT, "there are 0 to 3", "load", *raw, 1, 4, OUT)


# Named models


@pytest.fixture
def named(tmp_path: Path) -> Iterator[NnGuest]:
    path = tmp_path / "model.onnx"
    path.write_bytes(identity(16))
    with NnGuest(nn_models={"one": path, "two": NnModel(path, "ONNX", "auto")}) as guest:
        yield guest


def test_models_that_the_host_granted(named: NnGuest) -> None:
    array = np.arange(4, dtype=np.float32)
    for name in ("one", "two"):
        context = named.context(named.load_by_name(name))
        assert named.infer(context, [array], [16]) == [array.tobytes()]
    assert named.load_by_name("one") == named.load_by_name("one")
    assert named.load_by_name("one") != named.load_by_name("two")


def test_a_guest_is_frozen_and_forked_once_it_has_let_go_of_its_graphs(
    named: NnGuest, tmp_path: Path
) -> None:
    graph = named.load_by_name("one")
    with pytest.raises(UsageError, match="1 graphs and contexts of wasi-nn"):
        named.guest.freeze(tmp_path / "guest.nocopy")
    with pytest.raises(UsageError, match="forking was asked for"):
        named.guest.fork(2)
    named.ok("unload", graph)
    named.guest.freeze(tmp_path / "guest.nocopy")
    (clone,) = named.guest.fork(1)
    clone.close()


@pytest.mark.parametrize("name", ["", "three", "One", "one\0", "../model.onnx", "/etc/passwd", "é"])
def test_a_guest_cannot_name_anything_else(named: NnGuest, name: str) -> None:
    named.refused(Errno.NOT_FOUND, "granted 'one', 'two'", "load_by_name", *named.name(name), OUT)


def test_a_path_is_no_name(named: NnGuest, tmp_path: Path) -> None:
    named.refused(Errno.NOT_FOUND, "granted", "load_by_name", *named.name(str(tmp_path / "model.onnx")), OUT)
    named.refused(Errno.INVALID_ARGUMENT, "not UTF-8", "load_by_name", *named.name(b"\xff"), OUT)
    named.refused(Errno.INVALID_ARGUMENT, "at most 4096", "load_by_name", 0, 4097, OUT)


def test_onnx_models_have_no_options(named: NnGuest) -> None:
    name = named.name("one")
    for config in (b"", b"{}", b" {} "):
        named.ok("load_by_name_with_config", *name, named.put(config), len(config), OUT)
    for config in (b'{"threads": 4}', b"[]", b"{", b"\xff", b"[" * 100_000):
        named.refused(
            Errno.INVALID_ARGUMENT,
            "options were given",
            "load_by_name_with_config",
            *name,
            named.put(config),
            len(config),
            OUT,
        )


def test_grants_are_checked_before_the_guest_starts(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(identity(16))
    for models, message in [
        ({"m": tmp_path / "none.onnx"}, "there is no such file"),
        ({"m": NnModel(path, "nonsense")}, "there are openvino, onnx"),
        ({"m": NnModel(path, target="npu")}, "there are cpu, gpu"),
    ]:
        with pytest.raises(UsageError, match=message):
            DeviceGuest(text(), device="reference", nn_models=models)
    with pytest.raises(UsageError, match="there are spec, wasmedge, wamr"):
        DeviceGuest(text(), device="reference", nn_dialect="klingon")
    with pytest.raises(UsageError, match="a limit is a number"):
        NnLimits(contexts=-1)


def test_without_onnx_runtime_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = tmp_path / "model.onnx"
    path.write_bytes(identity(16))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'nocopy\[onnx\]'"):
        DeviceGuest(text(), device="reference", nn_models={"m": path})
    with NnGuest() as guest:
        guest.refused(
            Errno.UNSUPPORTED_OPERATION, "pip install", "load", *guest.parts(identity(16)), 1, 0, OUT
        )


# WasmEdge


def test_handles_end_and_are_never_used_again(guest: NnGuest) -> None:
    seen = set[int]()
    for _ in range(10):
        graph = guest.load(identity(16))
        context = guest.context(graph)
        assert not {graph, context} & seen
        seen |= {graph, context}
        guest.ok("finalize_execution_context", context)
        guest.refused(Errno.INVALID_ARGUMENT, "is closed", "compute", context)
        guest.refused(Errno.INVALID_ARGUMENT, "is closed", "finalize_execution_context", context)
        guest.ok("unload", graph)
        guest.refused(Errno.INVALID_ARGUMENT, "is closed", "init_execution_context", graph, OUT)
        guest.refused(Errno.INVALID_ARGUMENT, "is closed", "unload", graph)


def test_after_unload_a_context_gives_what_it_has_computed_and_no_more(guest: NnGuest) -> None:
    graph, array = guest.load(identity(16)), np.arange(4, dtype=np.float32)
    context = guest.context(graph)
    at = guest.set_input(context, 0, array)
    guest.ok("compute", context)
    guest.ok("unload", graph)
    assert guest.get_output(context, 0, 16) == array.tobytes()
    record = guest.tensor(at, 1, [4], 16)
    guest.refused(Errno.INVALID_ARGUMENT, "is unloaded", "set_input", context, 0, record)
    guest.refused(Errno.INVALID_ARGUMENT, "is unloaded", "compute", context)
    guest.ok("finalize_execution_context", context)


def test_a_name_loads_again_after_unload(named: NnGuest) -> None:
    first = named.load_by_name("one")
    named.ok("unload", first)
    assert named.load_by_name("one") != first


@pytest.mark.parametrize("name", ["compute_single", "fini_single"])
def test_onnx_models_do_not_compute_in_pieces(guest: NnGuest, name: str) -> None:
    context = guest.context(guest.load(identity(16)))
    guest.refused(Errno.UNSUPPORTED_OPERATION, "use compute", name, context)
    guest.refused(Errno.UNSUPPORTED_OPERATION, "use compute", "get_output_single", context, 0, 0, 8, OUT)


# Dialects


@pytest.mark.parametrize(
    ("names", "dialect"),
    [(SPEC, Dialect.SPEC), *[([*SPEC, name], Dialect.WASMEDGE) for name in sorted(WASMEDGE)]],
)
def test_imports_tell_the_dialect(names: list[str], dialect: Dialect) -> None:
    with DeviceGuest(text(names=names), device="reference") as guest:
        assert guest.nn.dialect is dialect
    with DeviceGuest(text(names=names), device="reference", nn_dialect="wamr") as guest:
        assert guest.nn.dialect is Dialect.WAMR


@pytest.mark.parametrize(
    ("dialect", "autodetect", "ggml"), [("spec", [5, 6], []), ("wamr", [6], [5]), ("wasmedge", [5], [6])]
)
def test_encodings_by_dialect(dialect: str, autodetect: list[int], ggml: list[int]) -> None:
    with NnGuest(nn_dialect=dialect) as guest:
        raw = guest.parts(identity(16))
        for number in (1, *autodetect):
            guest.ok("load", *raw, number, 0, OUT)
        for number in ggml:
            assert guest.call("load", *raw, number, 0, OUT) != Errno.SUCCESS


def test_the_old_module_of_wamr() -> None:
    array = np.arange(4, dtype=np.float32)
    with NnGuest(OLD) as guest:
        assert guest.guest.nn.dialect is Dialect.WAMR
        guest.memory.write(RECORD, struct.pack("<II", *guest.parts(identity(16))))
        guest.ok("load", RECORD, 1, 0, OUT)
        context = guest.context(guest.u32())
        at, out = guest.put(array), guest.room(16)
        guest.memory.write(DIMS, struct.pack("<I", 4))
        guest.memory.write(PARTS, struct.pack("<II", DIMS, 1))
        guest.memory.write(RECORD, struct.pack("<IB3xI", PARTS, 1, at))
        guest.ok("set_input", context, 0, RECORD)
        guest.ok("compute", context)
        guest.memory.write(OUT, struct.pack("<I", 3))  # f32, not bytes
        guest.refused(Errno.TOO_LARGE, "buffer of 12 bytes", "get_output", context, 0, out, OUT)
        assert guest.u32() == 4
        guest.ok("get_output", context, 0, out, OUT)
        assert guest.memory.read(out, 16) == array.tobytes()
        assert guest.u32() == 4


def test_the_old_modules_types_have_the_old_numbers() -> None:
    array = np.arange(16, dtype=np.uint8)
    with NnGuest(OLD) as guest:
        guest.memory.write(RECORD, struct.pack("<II", *guest.parts(anything(np.uint8))))
        guest.ok("load", RECORD, 1, 0, OUT)
        context = guest.context(guest.u32())
        guest.memory.write(DIMS, struct.pack("<I", 16))
        guest.memory.write(PARTS, struct.pack("<II", DIMS, 1))
        guest.memory.write(RECORD, struct.pack("<IB3xI", PARTS, 2, guest.put(array)))
        guest.ok("set_input", context, 0, RECORD)
        for number in (4, 5, 255):
            guest.memory.write(RECORD + 4, bytes([number]))
            guest.refused(Errno.INVALID_ARGUMENT, "there are 0 to 3", "set_input", context, 0, RECORD)


def test_the_old_module_with_new_functions() -> None:
    with NnGuest(text(OLD_MODULE, SPEC, pages=4)) as guest:
        array = np.arange(4, dtype=np.float32)
        assert guest.infer(guest.context(guest.load(identity(16))), [array], [16]) == [array.tobytes()]


# Linking


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ('"wasi_ephemeral_nn" "train" (func (result i32))', "that module has load"),
        ('"wasi_ephemeral_nn" "compute" (func (param i64) (result i32))', "takes 1 i32"),
        ('"wasi_ephemeral_nn" "compute" (func (param i32))', "takes 1 i32"),
        ('"wasi_ephemeral_nn" "load" (func (param i32 i32 i32 i32) (result i32))', "takes 5 i32"),
        ('"wasi_nn" "load" (func (param i32 i32 i32) (result i32))', "takes 5 i32"),
        ('"wasi_ephemeral_nn" "compute" (global i32)', "a global"),
    ],
)
def test_imports_that_do_not_fit_are_refused_by_name(declared: str, message: str) -> None:
    with pytest.raises(InvalidModuleError, match=message):
        DeviceGuest(f'(module (import {declared}) (memory (export "memory") 1))', device="reference")


def test_a_guest_uses_one_layout() -> None:
    both = """(module (import "wasi_nn" "load" (func (param i32 i32 i32 i32) (result i32)))
                      (import "wasi_nn" "get_output" (func (param i32 i32 i32 i32 i32) (result i32)))
                      (memory (export "memory") 1))"""
    with pytest.raises(InvalidModuleError, match="one version"):
        DeviceGuest(both, device="reference")
