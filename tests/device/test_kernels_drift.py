import importlib.util
import re
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nocopy.device import launches
from nocopy.tape.ops import BY_NAME
from tests.device.metal_compiler import MetalSourceError, check_source

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "src/nocopy/kernels/gpu"
GENERATED = GPU / "generated"
KERNELS = sorted(path.stem for path in GENERATED.glob("*.spv"))
CAPABILITIES = {1, 11, 22, 39, 4466, 5347}
"""Shader, Int64, Int16, Int8, SignedZeroInfNanPreserve, PhysicalStorageBufferAddresses."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_kernels", ROOT / "tools/compile_kernels.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outputs(tool: ModuleType) -> dict[Path, bytes]:
    return tool.outputs()


def test_committed_kernels_are_what_their_sources_compile_to(outputs: dict[Path, bytes]) -> None:
    assert {p.name: p.read_bytes() for p in GENERATED.iterdir()} == {p.name: d for p, d in outputs.items()}


@pytest.mark.parametrize("change", ["changed", "missing", "surplus"])
def test_check_fails_on_drift(
    change: str,
    tool: ModuleType,
    outputs: dict[Path, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {tmp_path / path.name: data for path, data in outputs.items()}
    for path, data in made.items():
        path.write_bytes(data)
    monkeypatch.setattr(tool, "GENERATED", tmp_path)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "outputs", lambda: made)
    monkeypatch.setattr(sys, "argv", ["compile_kernels.py", "--check"])
    assert tool.main() == 0
    if change == "changed":
        (tmp_path / "matmul.spv").write_bytes(b"old")
    elif change == "missing":
        (tmp_path / "matmul.metal").unlink()
    else:
        (tmp_path / "gone.spv").write_bytes(b"")
    assert tool.main() == 1


def test_every_op_has_a_kernel() -> None:
    assert set(KERNELS) == set(BY_NAME) | {"matvec"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_spirv_needs_no_more_than_the_device_checks_for(kernel: str) -> None:
    code = launches.kernel_code(kernel, "spv")
    words = struct.unpack(f"<{len(code) // 4}I", code)
    assert words[0] == 0x07230203
    assert words[1] == 0x00010500  # SPIR-V 1.5, which Vulkan 1.2 takes
    at, found = 5, set[int]()
    while at < len(words):
        if words[at] & 0xFFFF == 17:
            found.add(words[at + 1])
        at += words[at] >> 16
    assert found <= CAPABILITIES


@pytest.mark.parametrize("kernel", KERNELS)
def test_metal_source_keeps_to_metal(kernel: str) -> None:
    source = launches.kernel_code(kernel, "metal").decode()
    assert source.startswith("// Generated")
    assert check_source(source) == f"{kernel}_kernel"


@pytest.mark.parametrize(
    ("old", "new"),
    [("using namespace metal;", ""), ("buffer(0)", "buffer(1)"), ("float x", "half x"),
     ("ulong address", "uint64_t address"), ("[[kernel]]", ""), ("constant* args_1", "device* args_1")],
)  # fmt: skip
def test_the_check_of_metal_source_can_fail(old: str, new: str) -> None:
    source = launches.kernel_code("fill", "metal").decode()
    assert old in source
    with pytest.raises(MetalSourceError):
        check_source(source.replace(old, new))


@pytest.mark.parametrize(
    ("name", "file"), [("THREADS", "tensor"), ("TILE", "matmul"), ("SPAN", "scatter"), ("SETS", "scatter")]
)
def test_host_and_kernels_agree_on(name: str, file: str) -> None:
    found = re.search(rf"static const uint {name} = (\d+);", (GPU / f"{file}.slang").read_text())
    assert found
    assert int(found[1]) == getattr(launches, name)


@pytest.mark.parametrize(
    ("shape", "strides", "merged"),
    [
        ((2, 3, 4, 5), [(60, 20, 5, 1)], ((1, 1, 1, 120), [(0, 0, 0, 1)])),
        ((2, 3, 4, 5), [(60, 20, 5, 1), (0, 0, 0, 0)], ((1, 1, 1, 120), [(0, 0, 0, 1), (0, 0, 0, 0)])),
        ((2, 3, 4, 5), [(60, 20, 5, 1), (5, 0, 0, 1)], ((1, 2, 12, 5), [(0, 60, 5, 1), (0, 5, 0, 1)])),
        ((2, 1, 1, 5), [(5, 9, 9, 1)], ((1, 1, 1, 10), [(0, 0, 0, 1)])),
        ((1, 1, 2, 5), [(0, 0, 1, 2)], ((1, 1, 2, 5), [(0, 0, 1, 2)])),
        ((1, 1, 2**16, 2**16), [(0, 0, 0, 0)], ((1, 1, 2**16, 2**16), [(0, 0, 0, 0)])),
        ((1, 1, 1, 1), [(7, 7, 7, 7)], ((1, 1, 1, 1), [(0, 0, 0, 0)])),
    ],
)
def test_axes_that_follow_each_other_are_merged(
    shape: tuple[int, ...], strides: list[tuple[int, ...]], merged: object
) -> None:
    assert launches.merge_axes(shape, strides) == merged
