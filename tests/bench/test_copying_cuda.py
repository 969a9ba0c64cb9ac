"""The copying host for a discrete GPU, on the emulated one: the right bytes, in order, and all given back."""

from __future__ import annotations

from contextlib import closing

import pytest

from nocopy.bench.copying import CopyingHost, carriers
from nocopy.bench.roundtrip import check, open_copying, open_sharing, prepare, trip
from nocopy.device.cuda import CudaDevice
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401

NBYTES = 8192


@pytest.mark.parametrize("way", ["pageable copy", "pinned copy"])
def test_a_tensor_goes_to_the_gpu_and_back(
    device: CudaDevice,  # noqa: F811
    driver: EmulatedDriver,  # noqa: F811
    way: str,
) -> None:
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


def test_the_sharing_guest_computes_the_same_without_a_copy(device: CudaDevice) -> None:  # noqa: F811
    with open_sharing(device) as guest:
        prepare(guest, NBYTES)
        trip(guest)()
        check("shared", guest, NBYTES)
        assert guest.ledger.copied == 0
