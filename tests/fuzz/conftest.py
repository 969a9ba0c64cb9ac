"""The devices of the conformance suite."""

from tests.device.conftest import device, device_name

__all__ = ["device", "device_name"]
