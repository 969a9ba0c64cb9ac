"""What a command line grants of wasi-nn, in our notation, Wasmtime's and WasmEdge's; a guest that uses it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from nocopy.cli.grants import parse_limits
from nocopy.cli.nn_grants import LIMITS, parse_nn_limits, parse_nn_models
from nocopy.errors import UsageError
from nocopy.interfaces.wasi_nn.grants import NnLimits, NnModel
from tests.cli.run_cli import nocopy_cli
from tests.interfaces.wasi_nn.nn_guest import identity


def test_the_three_notations(tmp_path: Path) -> None:
    found = parse_nn_models(
        ["mine=a=b.onnx"],
        ["default:GGML:AUTO:C:/models/m.gguf", "two:openvino:cpu:m.xml:m.bin"],
        ["nn,nn-graph=onnx::" + str(tmp_path / "squeeze"), "nn=y"],
    )
    assert found == {
        "mine": NnModel("a=b.onnx"),
        "default": NnModel("C:/models/m.gguf", "GGML", "AUTO"),
        "two": NnModel("m.xml", "openvino", "cpu", ("m.bin",)),
        "squeeze": NnModel(tmp_path / "squeeze" / "model.onnx", "onnx"),
    }


@pytest.mark.parametrize(
    ("named", "preloaded", "wasmtime", "message"),
    [
        (["m"], [], [], "--nn-model 'm'.*NAME=FILE"),
        (["m=a", "m=b"], [], [], "'m' is a already"),
        (["m=a"], ["m:onnx:cpu:b"], [], "'m' is a already"),
        ([], ["m:onnx:cpu"], [], "NAME:ENCODING:TARGET:FILE"),
        ([], ["m::cpu:f"], [], "NAME:ENCODING:TARGET:FILE"),
        ([], [], ["nn-graph=onnx"], "nn-graph=FORMAT::DIR"),
        ([], [], ["nn-graph=pytorch::d"], "can be played here are in onnx"),
        ([], [], ["http"], "it takes nn"),
        ([], [], ["nn=n"], "has no models"),
    ],
)
def test_what_is_no_grant_is_refused(
    named: list[str], preloaded: list[str], wasmtime: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parse_nn_models(named, preloaded, wasmtime)


def test_quotas_are_limits_like_others() -> None:
    limits, rest = parse_limits(
        ["nn-graphs=2,timeout=5s", "nn-bytes=16MiB,nn-contexts=1_000,nn-model-bytes=0"], LIMITS
    )
    assert limits.deadline == 5
    assert parse_nn_limits(rest) == NnLimits(graphs=2, contexts=1000, bytes=1 << 24, model_bytes=0)
    assert parse_nn_limits([]).model_bytes == 0
    assert parse_nn_limits([], ["nn,nn-graph=onnx::d"]).model_bytes == 1 << 32
    assert parse_nn_limits([], ["nn-graph=onnx::d"]).model_bytes == 0
    assert parse_nn_limits([("nn-model-bytes", "1k")], ["nn=y"]).model_bytes == 1024
    with pytest.raises(UsageError, match="nn-graphs"):
        parse_limits(["nn-graph=2"], LIMITS)


PROGRAM = """(module
  (import "wasi_ephemeral_nn" "load_by_name" (func $load (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "set_input" (func $set (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
  (import "wasi_ephemeral_nn" "get_output" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "squeeze")
  (data (i32.const 64) "{record}")
  (data (i32.const 128) "{values}")
  (func $must (param i32) (if (local.get 0) (then unreachable)))
  (func (export "run") (result f32)
    (call $must (call $load (i32.const 0) (i32.const 7) (i32.const 16)))
    (call $must (call $init (i32.load (i32.const 16)) (i32.const 20)))
    (call $must (call $set (i32.load (i32.const 20)) (i32.const 0) (i32.const 64)))
    (call $must (call $compute (i32.load (i32.const 20))))
    (call $must
      (call $get (i32.load (i32.const 20)) (i32.const 0) (i32.const 256) (i32.const 16) (i32.const 24)))
    (f32.load (i32.const 268))))
"""


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A program that infers with the model "squeeze" and returns the last of four elements."""

    def escaped(data: bytes) -> str:
        return "".join(f"\\{byte:02x}" for byte in data)

    record = escaped(struct.pack("<IIB3xIII", 84, 1, 1, 128, 16, 4))
    values = escaped(np.array([1, 2, 3, 42], np.float32).tobytes())
    path = tmp_path / "guest.wat"
    path.write_text(PROGRAM.replace("{record}", record).replace("{values}", values))
    folder = tmp_path / "squeeze"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(identity(16))
    return path


@pytest.mark.parametrize(
    "options",
    [
        ("--nn-model", "squeeze=squeeze/model.onnx"),
        ("--nn-preload", "squeeze:onnx:cpu:squeeze/model.onnx"),
        ("-S", "nn,nn-graph=onnx::squeeze"),
        ("--nn-model=squeeze=squeeze/model.onnx", "--wasi-nn-dialect", "wasmedge", "--wasi-nn-copy"),
    ],
)
def test_a_guest_infers_with_a_granted_model(guest: Path, options: tuple[str, ...]) -> None:
    done = nocopy_cli(
        "run", "--device", "reference", *options, "--invoke", "run", str(guest), cwd=guest.parent
    )
    assert (done.status, done.out) == (0, "42.0\n"), done.err


def test_a_failing_call_is_explained(guest: Path) -> None:
    done = nocopy_cli("run", "--device", "reference", "--invoke", "run", str(guest), cwd=guest.parent)
    assert done.status != 0
    assert "wasi-nn: the model 'squeeze' was asked for; this guest was granted none" in " ".join(
        done.err.split()
    )


def test_a_model_that_is_not_there_is_found_out_before_the_guest_starts(guest: Path) -> None:
    done = nocopy_cli("run", "--nn-model", "m=none.onnx", str(guest), cwd=guest.parent)
    assert done.status != 0
    assert "there is no such file" in " ".join(done.err.split())
