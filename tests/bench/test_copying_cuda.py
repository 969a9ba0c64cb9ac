"""The copying host for a discrete GPU, on the emulated one: the right bytes, in order, and all given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nocopy.bench.copying import CopyingHost, carriers
from nocopy.bench.roundtrip import check, open_copying, open_sharing, prepare, trip
from nocopy.device.cuda import CudaDevice
from tests.device.cuda_emulation import EmulatedDriver, NamingCompiler, build_kernels, compiler

NBYTES = 8192


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDriver:
    if compiler() is None:
        pytest.skip("the emulator needs a C++ compiler")
    return EmulatedDriver(build_kernels(Path(tmp_path_factory.mktemp("kernels"))))


@pytest.fixture
def device(driver: EmulatedDriver) -> Iterator[CudaDevice]:
    driver.closed = False
    with closing(CudaDevice(driver, NamingCompiler())) as opened:
        yield opened


@pytest.mark.parametrize("way", ["pageable copy", "pinned copy"])
def test_a_tensor_goes_to_the_gpu_and_back(device: CudaDevice, driver: EmulatedDriver, way: str) -> None:
    with closing(CopyingHost(device)) as host, open_copying(host) as guest:
        ways = carriers(device, NBYTES)
        for other in set(ways) - {way}:
            ways[other].close()
        host.hold(ways[way], NBYTES)
        prepare(guest, NBYTES)
        round_trip = trip(guest)
        for _ in range(3):
            round_trip()
        check(way, guest, NBYTES)
        assert host.copied == 3 * 2 * NBYTES
    assert not driver.registered
    assert not driver.allocated


def test_the_sharing_guest_computes_the_same_without_a_copy(device: CudaDevice) -> None:
    with open_sharing(device) as guest:
        prepare(guest, NBYTES)
        trip(guest)()
        check("shared", guest, NBYTES)
        assert guest.ledger.copied == 0
