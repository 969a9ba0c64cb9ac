"""wasi_nn.h: it compiles without a warning, and has the numbers and the layout of the interface."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nocopy.interfaces.wasi_nn.encoding import ENCODINGS, Dialect, Encoding, Errno, Target, TensorType
from nocopy.interfaces.wasi_nn.imports import PARAMS
from nocopy.wasm import Module
from nocopy.wasm.engine import default_engine
from tests.sdk.test_header import EVERYTHING
from tools.guest_compiler import BARE32, SDK, WASI, compile_guest

HEADER = (SDK / "wasi_nn.h").read_text()
LAYOUT = """\
#include "wasi_nn.h"
_Static_assert(sizeof(wasi_nn_buffer) == 8, "");
_Static_assert(sizeof(wasi_nn_tensor) == 20, "");
_Static_assert(offsetof(wasi_nn_tensor, rank) == 4, "");
_Static_assert(offsetof(wasi_nn_tensor, type) == 8, "");
_Static_assert(offsetof(wasi_nn_tensor, data) == 12, "");
_Static_assert(offsetof(wasi_nn_tensor, size) == 16, "");
"""
ALL = """\
#include "wasi_nn.h"
#define CALL __attribute__((export_name("run"))) int run(void)
CALL {
    wasi_nn_graph g; wasi_nn_context c; uint32_t n; wasi_nn_buffer b = {0, 0};
    return (int)(wasi_nn_load(&b, 1, 0, 0, &g) + wasi_nn_load_by_name("", 0, &g)
        + wasi_nn_load_by_name_with_config("", 0, "", 0, &g) + wasi_nn_init_execution_context(g, &c)
        + wasi_nn_set_text(c, 0, "", 0) + wasi_nn_compute(c) + wasi_nn_compute_single(c)
        + wasi_nn_fini_single(c)
        + wasi_nn_get_output(c, 0, 0, 0, &n) + wasi_nn_get_output_single(c, 0, 0, 0, &n)
        + wasi_nn_finalize_execution_context(c) + wasi_nn_unload(g));
}
"""


def constants() -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"WASI_NN_([A-Z0-9_]+) = (\d+)", HEADER)}


@pytest.mark.parametrize(
    ("language", "standard"),
    [("cc", "c99"), ("cc", "c11"), ("cc", "c23"), ("c++", "c++11"), ("c++", "c++20")],
)
def test_compiles_without_warnings(tmp_path: Path, language: str, standard: str) -> None:
    source = tmp_path / ("guest.c" if language == "cc" else "guest.cpp")
    source.write_text('#include "wasi_nn.h"\n#include "wasi_nn.h"\n')
    flags = (*EVERYTHING, f"-std={standard}")
    compile_guest([source], tmp_path / "guest.wasm", target=BARE32, language=language, flags=flags)


def test_records_have_the_interfaces_layout(tmp_path: Path) -> None:
    (tmp_path / "guest.c").write_text(LAYOUT)
    compile_guest([tmp_path / "guest.c"], tmp_path / "guest.wasm", target=BARE32, flags=("-std=c11",))


def test_numbers_are_the_interfaces() -> None:
    found = constants()
    for errno in Errno:
        assert found[errno.name] == errno
    for kind in TensorType:
        assert found[kind.name] == kind
    for target in (Target.CPU, Target.GPU, Target.TPU):
        assert found[target.name] == target
    assert ENCODINGS[Dialect.WAMR][found["GGML"]] is Encoding.GGML
    assert ENCODINGS[Dialect.WASMEDGE][found["GGML_WASMEDGE"]] is Encoding.GGML
    for name in ("OPENVINO", "ONNX", "TENSORFLOW", "PYTORCH"):
        assert ENCODINGS[Dialect.SPEC][found[name]] is Encoding[name]
    assert ENCODINGS[Dialect.SPEC][found["TENSORFLOW_LITE"]] is Encoding.TENSORFLOWLITE


def test_every_function_of_the_interface_is_declared(tmp_path: Path) -> None:
    (tmp_path / "guest.c").write_text(ALL)
    module = compile_guest([tmp_path / "guest.c"], tmp_path / "guest.wasm", target=BARE32)
    imports = {
        name: kind
        for where, name, kind in Module(module, default_engine()).imports
        if where == "wasi_ephemeral_nn"
    }
    assert imports.keys() == PARAMS.keys()
    for name, kind in imports.items():
        assert tuple(map(str, kind.params)) == ("i32",) * len(PARAMS[name])
        assert [str(r) for r in kind.results] == ["i32"]


def test_a_program_imports_only_what_it_calls(tmp_path: Path) -> None:
    (tmp_path / "guest.c").write_text(
        '#include "wasi_nn.h"\nint main(void) { return (int)wasi_nn_compute(0); }\n'
    )
    module = compile_guest([tmp_path / "guest.c"], tmp_path / "guest.wasm", target=WASI)
    names = [
        name for where, name, _ in Module(module, default_engine()).imports if where == "wasi_ephemeral_nn"
    ]
    assert names == ["compute"]
