"""The record's bytes: the same in NumPy, in the generated headers and in what a C compiler makes of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.tape.record import OPERAND, RECORD, Space, Tensor, contiguous_strides

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "src/nocopy/kernels/tape.h"


def test_a_record_has_the_documented_layout():
    fields = {name: RECORD.fields[name][1] for name in RECORD.names}
    assert fields == {
        "version": 0, "opcode": 2, "function": 4, "reserved": 6, "operands": 8, "dims": 168, "params": 208
    }  # fmt: skip
    parts = {name: OPERAND.fields[name][1] for name in OPERAND.names}
    assert parts == {"offset": 0, "dtype": 8, "space": 10, "reserved": 12, "strides": 16}
    assert (OPERAND.itemsize, RECORD.itemsize) == (32, 256)


def test_generated_headers_are_what_the_op_table_says():
    check = subprocess.run(
        [sys.executable, str(ROOT / "tools/generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr


def test_a_c_compiler_sees_the_same_layout(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    lines = ["#include <stddef.h>", f'#include "{HEADER}"']
    lines += [f'_Static_assert(sizeof(nocopy_record) == {RECORD.itemsize}, "record");']
    lines += [f'_Static_assert(sizeof(nocopy_operand) == {OPERAND.itemsize}, "operand");']
    for struct, dtype in (("nocopy_record", RECORD), ("nocopy_operand", OPERAND)):
        for name in dtype.names:
            lines.append(f'_Static_assert(offsetof({struct}, {name}) == {dtype.fields[name][1]}, "{name}");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [compiler, "-std=c11", "-fsyntax-only", str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_row_major_strides():
    assert contiguous_strides((2, 3, 4)) == (12, 4, 1)
    assert contiguous_strides(()) == ()
    assert contiguous_strides((2, 0, 3)) == (0, 3, 1)


def test_a_tensor_names_its_mistakes():
    with pytest.raises(UsageError, match="at most 4 axes"):
        Tensor(Space.GUEST, 0, (1, 1, 1, 1, 1), DType.F32)
    with pytest.raises(UsageError, match="strides"):
        Tensor(Space.GUEST, 0, (2, 2), DType.F32, (1,))
