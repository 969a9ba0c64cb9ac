"""What CUDA kernels compute, without a GPU: in an emulator, judged as the conformance suite judges."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from nocopy.device import cuda
from nocopy.device.cuda_launch import GEOMETRY
from nocopy.memory.dtype import DType
from nocopy.tape import OPS, Space, TapeBuilder
from tests.device import test_conformance as conformance
from tests.device.arena import Arena
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.cuda_tapes import tape_of, tensor
from tests.tape.choices import Seeded


@pytest.fixture
def arena(device: cuda.CudaDevice) -> Iterator[Arena]:
    """Guarded pages that the emulated device shares."""
    arena = Arena(device)
    yield arena
    arena.close()


@pytest.mark.parametrize("seed", range(4))
def test_kernels_mean_what_the_reference_means(arena: Arena, seed: int) -> None:
    conformance.fill_with_numbers(arena, seed)
    arena.judge(conformance.generated(Seeded(seed), arena.sizes[Space.GUEST] // conformance.SLICE))


I32 = DType.I32


def large_cases() -> dict[str, tuple[str, Callable[[TapeBuilder], None]]]:
    """Shapes that choose the kernels and paths which small random records do not."""
    a, b, c = 0, 16384, 32768
    return {
        "a block takes a row": ("reduce", lambda t: t.reduce("sum", tensor(c, 2, 1), tensor(a, 2, 1, 3000))),
        "a block takes a row and reads it thrice": (
            "softmax",
            lambda t: t.softmax(tensor(c, 2, 3000), tensor(a, 2, 3000)),
        ),
        "a block finds the largest": (
            "argmax",
            lambda t: t.argmax(tensor(c, 1, dtype=I32), tensor(a, 1, 3000)),
        ),
        "several blocks find the largest": (
            "argmax_split",
            lambda t: t.argmax(tensor(c, 1, dtype=I32), tensor(a, 1, 4000)),
        ),
        "a thread takes a column": (
            "reduce",
            lambda t: t.reduce("max", tensor(c, 200), tensor(a, 200, 40, strides=(1, 200))),
        ),
        "the largest of more than a chunk": (
            "topk",
            lambda t: t.topk(tensor(b, 300), tensor(c, 300, dtype=I32), tensor(a, 3000)),
        ),
        "more results than a chunk": (
            "topk",
            lambda t: t.topk(tensor(b, 2500), tensor(c, 2500, dtype=I32), tensor(a, 3000)),
        ),
        "all of more than a chunk": (
            "topk",
            lambda t: t.topk(tensor(b, 1025), tensor(c, 1025, dtype=I32), tensor(a, 1025)),
        ),
        "ties": (
            "topk",
            lambda t: t.topk(tensor(b, 9), tensor(c, 9, dtype=I32), tensor(a, 2000, strides=(0,))),
        ),
        "large tiles": (
            "matmul_large",
            lambda t: t.matmul(tensor(b, 4, 1, 40, 36), tensor(a, 4, 1, 40, 9), tensor(a + 8192, 1, 9, 36)),
        ),
        "medium tiles": (
            "matmul_medium",
            lambda t: t.matmul(
                tensor(b, 70, 50), tensor(a, 70, 33, strides=(1, 70)), tensor(a, 33, 50, strides=(1, 33)), 0.5
            ),
        ),
        "small tiles": (
            "matmul_small",
            lambda t: t.matmul(tensor(b, 33, 34), tensor(a, 33, 65), tensor(a, 65, 34)),
        ),
        "one row": (
            "matmul_narrow",
            lambda t: t.matmul(tensor(c, 1, 90), tensor(b, 1, 40), tensor(a, 40, 90)),
        ),
        "one row by a transpose": (
            "matmul_narrow",
            lambda t: t.matmul(tensor(c, 3, 90), tensor(b, 3, 41), tensor(a, 41, 90, strides=(1, 41))),
        ),
        "one column": (
            "matmul_narrow",
            lambda t: t.matmul(tensor(c, 90, 1), tensor(a, 90, 40), tensor(b, 40, 1)),
        ),
        "a convolution as tiles": (
            "conv2d_tiles",
            lambda t: t.conv2d(
                tensor(c, 2, 34, 6, 7), tensor(a, 2, 6, 6, 7), tensor(b, 34, 3, 3, 3), tensor(a, 34),
                pad=(1, 1),
            ),
        ),
        "a convolution that few outputs share": (
            "conv2d_direct",
            lambda t: t.conv2d(tensor(c, 1, 3, 2, 2), tensor(a, 1, 2, 6, 7), tensor(b, 3, 2, 5, 6), None),
        ),
        "a convolution of one output": (
            "conv2d_direct",
            lambda t: t.conv2d(tensor(c, 1, 1, 1, 1), tensor(a, 1, 1, 64, 64), tensor(b, 1, 1, 64, 64), None),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", large_cases())
def test_large_shapes_mean_what_the_reference_means(arena: Arena, driver: EmulatedDriver, case: str) -> None:
    kernel, build = large_cases()[case]
    if kernel == "matmul_medium":
        driver.multiprocessors = 2
    conformance.fill_with_numbers(arena, 1)
    arena.judge(bytes(tape_of(build, arena.sizes)))
    assert driver.launched == [kernel]


def test_every_op_has_a_launch_and_every_launch_a_kernel() -> None:
    assert set(GEOMETRY) == {op.name for op in OPS}
