"""The devices under test. NOCOPY_REQUIRE_DEVICES=cpu,vulkan makes the absence of one a failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from nocopy.device.discovery import MODULES, open_device
from nocopy.device.protocol import Device
from nocopy.errors import DeviceUnavailableError
from tests.device.arena import Arena

REQUIRED = {name for name in os.environ.get("NOCOPY_REQUIRE_DEVICES", "").split(",") if name}
if REQUIRED - set(MODULES):
    raise pytest.UsageError(
        f"NOCOPY_REQUIRE_DEVICES names {REQUIRED - set(MODULES)}; there are {set(MODULES)}"
    )

NAMES = [name for name in MODULES if name != "metal" or sys.platform == "darwin" or name in REQUIRED]
"""The devices that a machine with this operating system may have."""


def open_or_skip(name: str) -> Device:
    """Open a device; skip the test if it is not on this machine and need not be."""
    try:
        return open_device(name, allow_copy=True)
    except DeviceUnavailableError as e:
        if name in REQUIRED:
            pytest.fail(f"NOCOPY_REQUIRE_DEVICES asks for {name}: {e}")
        pytest.skip(str(e))


@pytest.fixture(scope="session", params=NAMES)
def device_name(request: pytest.FixtureRequest) -> str:
    """Each device in turn."""
    return request.param


@pytest.fixture(scope="session")
def device(device_name: str) -> Iterator[Device]:
    """An open device, the same one for the whole session."""
    device = open_or_skip(device_name)
    yield device
    device.close()


@pytest.fixture(scope="session")
def arena(device: Device) -> Iterator[Arena]:
    """Guarded pages that the device shares."""
    arena = Arena(device)
    yield arena
    arena.close()
