from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nocopy.device.protocol import Device
from nocopy.interfaces.host import DeviceGuest
from tests.device.conftest import NAMES, open_or_skip
from tests.interfaces import passthrough

Start = Callable[..., DeviceGuest]


@pytest.fixture(scope="session", params=NAMES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Each device of this machine."""
    device = open_or_skip(request.param)
    yield device
    device.close()


@pytest.fixture(params=["wasm32", "memory64"])
def start(request: pytest.FixtureRequest, device: Device) -> Iterator[Start]:
    """Start passthrough guests on the device; they are closed after the test."""
    guests: list[DeviceGuest] = []

    def start(pages: int = 1, maximum: int | str = "", **kw: Any) -> DeviceGuest:
        source = passthrough.text(memory64=request.param == "memory64", pages=pages, maximum=maximum)
        guests.append(DeviceGuest(source, **{"device": device} | kw))
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()
