"""The kernel that reads memory: NVRTC takes it for every chip, and on a GPU it reads at some speed."""

import pytest

from nocopy.bench.cuda_read import code, read_bandwidth
from nocopy.errors import DeviceUnavailableError
from tests.device.conftest import open_or_skip


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_it_compiles(capability):
    try:
        ptx = code(capability)
    except DeviceUnavailableError as e:
        pytest.skip(str(e))
    assert f".target sm_{capability[0]}{capability[1]}".encode() in ptx
    assert ptx.count(b"v4.f32") >= 8  # what is read is not optimised away


def test_it_reads():
    device = open_or_skip("cuda")
    assert read_bandwidth(device.driver) > 0
    device.close()
