"""Read-only files become one space of a device: in place where memory is shared, uploaded once elsewhere."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from nocopy.device.protocol import Device
from nocopy.errors import ClosedError, DeviceError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.tape import Space, TapeBuilder, Tensor
from tests.device.region import Region

UNIT = 65536
SIZES = (2 * UNIT, UNIT)


class Files:
    """Mapped read-only, as a model's are."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.arrays, self.ranges = list[np.ndarray](), list[tuple[int, int]]()
        for number, size in enumerate(SIZES):
            path = folder / f"{number}.bin"
            path.write_bytes(rng.standard_normal(size // 4).astype(np.float32).tobytes())
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            array = np.frombuffer(mapping, np.float32)
            self.arrays.append(array)
            self.ranges.append((array.ctypes.data, size))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def summed(device: Device, weights, starts: list[int]) -> np.ndarray:
    """Sums of pieces of both files, made by the device."""
    region = Region(UNIT)
    guest = device.share(region.address, UNIT)
    tape = TapeBuilder()
    for number, (start, size) in enumerate(zip(starts, SIZES, strict=True)):
        tape.reduce(
            "sum",
            Tensor(Space.GUEST, 64 * number, (4,), DType.F32),
            Tensor(Space.WEIGHTS, start + size // 2, (4, size // 32), DType.F32),
        )
    spaces = {Space.GUEST: guest, Space.WEIGHTS: weights}
    program = device.compile(tape.build({Space.GUEST: UNIT, Space.WEIGHTS: weights.nbytes}), spaces)
    device.play(program)
    result = region.bytes[:128].view(np.float32).reshape(2, 16)[:, :4].copy()
    program.close()
    guest.close()
    region.close()
    return result


def test_files_are_one_space_that_kernels_read(device: Device, files: Files):
    ledger, told = Ledger(), list[int]()
    weights, starts = device.place(files.ranges, ledger=ledger, progress=told.append)
    assert all(start + size <= weights.nbytes for start, size in zip(starts, SIZES, strict=True))
    expected = [a[len(a) // 2 :].reshape(4, -1).sum(-1) for a in files.arrays]
    np.testing.assert_allclose(summed(device, weights, starts), expected, rtol=1e-4, atol=1e-3)
    assert ledger.staged == ledger.downloaded == 0
    assert sorted((ledger.shared, ledger.uploaded)) == [0, sum(SIZES)]
    assert told == sorted(told)
    assert (told[-1] if told else 0) == ledger.uploaded
    weights.close()


def test_what_was_placed_closes_and_does_not_grow(device: Device, files: Files):
    weights, starts = device.place(files.ranges)
    if device.info.name in ("vulkan", "metal"):
        with pytest.raises(DeviceError, match="keep their size"):
            weights.grow(4 * UNIT)
    weights.close()
    weights.close()
    with pytest.raises(ClosedError):
        summed(device, weights, starts)
