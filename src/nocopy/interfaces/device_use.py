"""A device and the guests that use it."""

from __future__ import annotations

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device


class DeviceUse:
    """A device that guests use: opened by its name for them, and closed with the last; or somebody else's."""

    def __init__(self, device: Device, *, owned: bool) -> None:
        self.device = device
        self._owned, self._users = owned, 0

    @classmethod
    def of(cls, device: str | Device | DeviceUse, *, allow_copy: bool) -> DeviceUse:
        """A use by one more guest."""
        if isinstance(device, str):
            use = cls(open_device(device, allow_copy=allow_copy), owned=True)
        else:
            use = device if isinstance(device, DeviceUse) else cls(device, owned=False)
        use._users += 1
        return use

    def end(self) -> None:
        """One guest less."""
        self._users -= 1
        if self._owned and not self._users:
            self.device.close()
