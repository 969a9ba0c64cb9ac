"""Device memory that programs use while they play, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class RoomDriver(Protocol):
    """The part of `cuda_driver.Driver` that a room needs; its context is current during every call."""

    def allocate(self, nbytes: int) -> int:
        """Device memory."""
        ...

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""
        ...


class Room:
    """Device memory that all programs of a device use while they play, one after another.

    It grows with what is asked for; what was given out stays until it is let go of.
    """

    def __init__(self, driver: RoomDriver) -> None:
        self._driver = driver
        self._users: dict[int, int] = {}
        self._newest, self._nbytes = 0, 0

    def hold(self, nbytes: int) -> tuple[int, Callable[[], None]]:
        """The address of so many bytes, and a call that lets go of them.

        Raises:
            DeviceError: there is not that much.
        """
        if nbytes > self._nbytes:
            address = self._driver.allocate(nbytes)
            self._users[address] = 0
            self._newest, self._nbytes = address, nbytes
        held = self._newest
        self._users[held] += 1
        return held, lambda: self._let_go(held)

    def _let_go(self, address: int) -> None:
        self._users[address] -= 1
        if not self._users[address]:
            del self._users[address]
            if address == self._newest:
                self._newest, self._nbytes = 0, 0
            self._driver.free(address)
