"""Finds and opens devices. Adding one is a line in `MODULES` and a module with `open_device`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

from nocopy.device.protocol import Device
from nocopy.errors import CopyRefusedError, DeviceUnavailableError, UsageError

MODULES = {
    "metal": "nocopy.device.metal",
    "cuda": "nocopy.device.cuda",
    "vulkan": "nocopy.device.vulkan",
    "cpu": "nocopy.device.cpu",
    "reference": "nocopy.device.reference",
}
"""Device names in the order in which `auto` prefers them, with the module that has `open_device`."""


@dataclass(frozen=True)
class DeviceStatus:
    """What `doctor` says of one device. `reason` and `fix` are empty if it is available, `details` if not."""

    name: str
    available: bool
    product: str
    mode: str
    reason: str
    fix: str
    details: Mapping[str, str] = field(default_factory=dict[str, str])

    def as_dict(self) -> dict[str, Any]:
        """The fields under their names."""
        return asdict(self)


def open_device(name: str = "auto", *, allow_copy: bool = False) -> Device:
    """Open a device.

    Args:
        name: a key of `MODULES`, or "auto": metal, cuda, vulkan on a real GPU, cpu, reference, whichever is
            there first.
        allow_copy: let a device that cannot share host pages copy them before and after each play. The
            ledger counts those bytes as staged.

    Raises:
        UsageError: there is no device of that name.
        DeviceUnavailableError: it is not on this machine; the message says how to get it.
        CopyRefusedError: it could only copy and `allow_copy` is False.
    """
    if name != "auto":
        if name not in MODULES:
            raise UsageError(f"device {name!r} was asked for; there are auto, {', '.join(MODULES)}")
        return _open(name, allow_copy)
    for candidate in MODULES:
        try:
            device = _open(candidate, allow_copy=False)
        except (DeviceUnavailableError, CopyRefusedError):
            continue
        if device.info.software:
            device.close()
            continue
        return device
    raise DeviceUnavailableError("auto", "no device could be opened", "Run `nocopy doctor`.")


def probe(name: str) -> DeviceStatus:
    """Try a device and say whether it is available, in which mode, or why not and what would fix it."""
    try:
        device = open_device(name, allow_copy=True)
    except DeviceUnavailableError as e:
        return DeviceStatus(name, False, "", "", e.reason, e.fix)
    info = device.info
    device.close()
    return DeviceStatus(name, True, info.product, info.mode.value, "", "", dict(info.details))


def _open(name: str, allow_copy: bool) -> Device:
    return import_module(MODULES[name]).open_device(allow_copy=allow_copy)
