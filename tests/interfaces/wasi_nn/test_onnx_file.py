"""What is known of an ONNX file before ONNX Runtime reads it, and which files it may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.interfaces.wasi_nn.grants import NnModel
from nocopy.interfaces.wasi_nn.onnx_file import DEEPEST, summarise
from nocopy.interfaces.wasi_nn.onnx_ops import INTEGERS, STEERED, TOTAL, can_wait, cannot_fail
from tests.interfaces.wasi_nn.nn_guest import OUT, NnGuest, built, identity
from tests.interfaces.wasi_nn.test_semantics import endless

X, Y = ("x", TensorProto.FLOAT, [4]), ("y", TensorProto.FLOAT, [4])


def external(location: str = "weights.bin") -> Any:
    """Weights that lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_initializer(tensor: Any) -> bytes:
    return built([helper.make_node("Add", ["x", "w"], ["y"])], [X], [Y], [tensor])


def in_attribute(tensor: Any) -> bytes:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    return built(nodes, [X], [Y])


def in_subgraph(tensor: Any) -> bytes:
    out = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])]
    branch = helper.make_graph([], "b", [], out, [tensor])
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    return built([node], [X], [Y], [yes])


def in_function(tensor: Any) -> bytes:
    body = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["a", "w"], ["b"])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "F", ["a"], ["b"], body, opsets[:1])
    values = [[helper.make_tensor_value_info(*port)] for port in (X, Y)]
    graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="own")], "g", *values)
    made = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    return made.SerializeToString()


def in_sparse(tensor: Any) -> bytes:
    model = onnx.load_from_string(identity(16))
    model.graph.sparse_initializer.add(values=tensor)
    return model.SerializeToString()


def in_training(tensor: Any) -> bytes:
    model = onnx.load_from_string(identity(16))
    model.training_info.add().algorithm.initializer.append(tensor)
    return model.SerializeToString()


PLACES = [in_initializer, in_attribute, in_subgraph, in_function, in_sparse, in_training]


@pytest.mark.parametrize("place", PLACES)
def test_a_model_of_a_guests_cannot_name_files(place: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    with NnGuest() as guest:
        guest.refused(
            Errno.UNSUPPORTED_OPERATION,
            "which a guest cannot name",
            "load",
            *guest.parts(place(external())),
            1,
            0,
            OUT,
        )


@pytest.mark.parametrize("place", PLACES)
def test_the_files_that_a_model_names_are_known(place: Any) -> None:
    found = summarise(memoryview(place(external("a/b.bin"))), "m")
    assert found.external
    assert found.locations == {"a/b.bin"}
    inside = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    assert not summarise(memoryview(place(inside)), "m").external


def test_a_granted_model_may_have_its_weights_beside_it(tmp_path: Path) -> None:
    weights = np.arange(4, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(weights.tobytes())
    path = tmp_path / "m.onnx"
    path.write_bytes(in_initializer(external()))
    with NnGuest(nn_models={"m": path}) as guest:
        context = guest.context(guest.load_by_name("m"))
        assert guest.infer(context, [weights], [16]) == [(2 * weights).tobytes()]


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin"])
def test_a_granted_model_cannot_name_files_elsewhere(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(in_initializer(external(location)))
    with NnGuest(nn_models={"m": NnModel(folder / "m.onnx", "onnx")}) as guest:
        guest.refused(
            Errno.UNSUPPORTED_OPERATION, "outside of its folder", "load_by_name", *guest.name("m"), OUT
        )


def test_operators_of_all_graphs_and_functions_are_known() -> None:
    inside = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    assert summarise(memoryview(in_subgraph(inside)), "m").operators == {"If"}
    assert summarise(memoryview(in_function(inside)), "m").operators == {"Constant", "Add", "own:F"}
    assert summarise(memoryview(endless()), "m").operators == {"Loop", "Identity", "Neg"}


def test_inputs_of_a_given_rank_are_known() -> None:
    scalar, any_rank = ("a", TensorProto.FLOAT, []), ("b", TensorProto.FLOAT, None)
    raw = built([helper.make_node("Add", ["a", "b"], ["y"])], [scalar, any_rank], [Y])
    assert summarise(memoryview(raw), "m").shaped == {"a"}


def refusal(data: bytes) -> int:
    """The number of the error that reading gives; 0 for none."""
    try:
        summarise(memoryview(data), "m")
    except NnError as error:
        return error.errno
    return Errno.SUCCESS


# Hostile bytes


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert refusal(data) in {Errno.SUCCESS, Errno.INVALID_ENCODING}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_model_with_other_bytes_in_it_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(in_subgraph(external()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    refused = refusal(bytes(raw))
    assert refused in {Errno.SUCCESS, Errno.INVALID_ENCODING}
    if refused:
        return
    found = summarise(memoryview(raw), "m")
    try:
        model = onnx.ModelProto.FromString(bytes(raw))
    except Exception:  # protobuf refuses what is only skipped here
        return
    branches = [a.g for n in model.graph.node for a in n.attribute if a.HasField("g")]
    if any(t.external_data or t.data_location for b in branches for t in b.initializer):
        assert found.external


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph of 4 GiB
        b"\x3a" + b"\xff" * 20,  # a length that does not end
        b"\x3b\x3c",  # a group
        b"\x3a\x05\x0a\x7f",  # a node longer than its graph
        b"\xba\xff\xff\xff\xff\x01\x00",  # a field's number of more than 32 bits
    ],
)
def test_broken_messages_are_refused(data: bytes) -> None:
    with pytest.raises(NnError, match="is not ONNX"):
        summarise(memoryview(data), "m")


def test_graphs_in_graphs_in_graphs_are_refused() -> None:
    data = b""
    for _ in range(DEEPEST):
        for tag in (0x32, 0x2A, 0x0A):  # a graph in an attribute in a node
            data = bytes([tag]) + varint(len(data)) + data
    with pytest.raises(NnError, match="lie in each other"):
        summarise(memoryview(b"\x3a" + varint(len(data)) + data), "m")


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


# Which models may wait


def test_models_that_may_run_when_their_output_is_fetched() -> None:
    convolutional = {"Conv", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm", "Softmax"}
    assert can_wait(convolutional, integers=False)
    assert cannot_fail(convolutional)
    assert can_wait(convolutional | {"Reshape", "Shape", "Gather"}, integers=False)
    assert not cannot_fail(convolutional | {"Reshape"})
    assert not can_wait({"Gather", "MatMul"}, integers=True)  # indices come from the guest
    assert not can_wait({"Cast", "Gather"}, integers=False)  # indices come from its numbers
    assert can_wait({"Cast", "MatMul"}, integers=True)
    for never in ("NonZero", "Loop", "If", "RandomNormal", "Dropout", "com.microsoft:Attention", ""):
        assert not can_wait({never}, integers=False)


def test_the_lists_name_operators_that_exist_once() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert known >= TOTAL | STEERED | INTEGERS
    assert not TOTAL & STEERED
    assert not TOTAL & INTEGERS
    assert not STEERED & INTEGERS
