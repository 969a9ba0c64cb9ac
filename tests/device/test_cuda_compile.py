"""CUDA kernels are compiled for the chip once and kept. NVRTC needs no GPU."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from nocopy.device import cuda_compile
from nocopy.device.cuda_compile import Compiler, kernel_sources
from nocopy.device.cuda_walk import FASTER
from nocopy.errors import DeviceError, DeviceUnavailableError
from tests.device.emulated_process import kept_kernels


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    try:
        return cuda_compile.load_nvrtc()
    except DeviceUnavailableError as e:
        pytest.skip(str(e))


SOURCES = sorted(name[:-3] for name in kernel_sources() if name.endswith(".cu"))


WALKED = [(f"WALK_WEIGHTS={1 << dtype}", "WALK_CACHES=4", "WALK_STEPS=0x16") for dtype in sorted(FASTER)]
"""What `walk` is compiled with: a model's weights are of one type, mostly; all types at once take minutes."""
CASES = [
    *((source, chip, ()) for source in SOURCES if source != "walk" for chip in ((8, 0), (9, 0))),
    ("fused", (12, 0), ()),
    ("walk", (8, 0), ()),
    *(("walk", (9, 0), macros) for macros in WALKED),
]


@pytest.mark.parametrize(("source", "capability", "macros"), CASES)
def test_every_kernel_compiles_for_every_chip(
    nvrtc: Any,
    tmp_path_factory: pytest.TempPathFactory,
    source: str,
    capability: tuple[int, int],
    macros: tuple[str, ...],
) -> None:
    kept = kept_kernels(tmp_path_factory) / "nocopy" / "cuda"
    code = Compiler(capability, kept).code(source, macros)
    assert code.startswith(b"\x7fELF")


def test_a_chip_that_nvrtc_does_not_know_gets_ptx(nvrtc: Any, tmp_path: Path) -> None:
    compiler = Compiler((99, 0), tmp_path)
    assert compiler.target.startswith("compute_")
    assert b".entry unary" in compiler.code("unary")


def test_compiled_kernels_are_kept(nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Compiler((9, 0), tmp_path).code("copy")
    again = Compiler((9, 0), tmp_path)
    monkeypatch.setattr(again, "_compile", lambda source: pytest.fail("compiled again"))
    assert again.code("copy") == first
    assert [p.suffix for p in tmp_path.iterdir()] == [".bin"]


def test_a_damaged_entry_is_compiled_again(nvrtc: Any, tmp_path: Path) -> None:
    code = Compiler((9, 0), tmp_path).code("copy")
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    assert Compiler((9, 0), tmp_path).code("copy") == code
    assert len(entry.read_bytes()) == len(code) + 32


@pytest.mark.parametrize("changed", ["copy.cu", "record.cuh", "../tape.h", "target", "version"])
def test_what_decides_the_code_decides_the_entry(
    nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before, after = Compiler((9, 0), tmp_path), Compiler((9, 0), tmp_path)
    key = before._key("copy")
    if changed == "target":
        after.target = "sm_80"
    elif changed == "version":
        after.version = (1, 0)
    else:
        sources = {**kernel_sources(), changed: "// another"}
        monkeypatch.setattr(cuda_compile, "kernel_sources", lambda: sources)
    assert after._key("copy") != key


def test_macros_decide_the_code_and_the_entry(
    nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = 'extern "C" __global__ void one(int* x) { *x = VALUE; }'
    monkeypatch.setattr(cuda_compile, "kernel_sources", lambda: {"copy.cu": source})
    compiler = Compiler((9, 0), tmp_path)
    assert compiler.code("copy", ("VALUE=1",)) != compiler.code("copy", ("VALUE=2",))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_kernel_does_not_change_the_entry(
    nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Compiler((9, 0), tmp_path)._key("copy")
    sources = {**kernel_sources(), "unary.cu": "// another"}
    monkeypatch.setattr(cuda_compile, "kernel_sources", lambda: sources)
    assert Compiler((9, 0), tmp_path)._key("copy") == key


def test_without_a_place_to_keep_them_kernels_still_compile(
    nvrtc: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        assert Compiler((9, 0), blocked / "cache").code("copy")
    assert "could not be kept" in caplog.text


def test_a_refused_source_says_why(nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {**kernel_sources(), "copy.cu": "int broken("}
    monkeypatch.setattr(cuda_compile, "kernel_sources", lambda: sources)
    with pytest.raises(DeviceError, match=r"(?s)copy\.cu for sm_90.*error"):
        Compiler((9, 0), tmp_path).code("copy")


def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cuda_compile.cache_directory() == Path("/somewhere/nocopy/cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative is to be ignored")
    assert cuda_compile.cache_directory() == Path.home() / ".cache/nocopy/cuda"
