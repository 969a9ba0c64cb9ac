"""What is left of a device that a guest leaves, and what leaving it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nocopy.memory.linear import LinearMemory


@dataclass(frozen=True)
class Moved:
    """What it cost to go on with another device.

    `lost` says that the device before gave nothing back. `reread` has for each open session, by the guest's
    handle, how many tokens were fed again: those whose keys and values only that device had, and the last.
    `scratch` is how many bytes of device-only memory the guest had there, which are zero now. Its linear
    memory lost nothing.
    """

    lost: bool
    reread: Mapping[int, int]
    scratch: int


@dataclass
class Left:
    """What was taken from a device before it was left: the guest's scratch, unless the device was lost.

    `gone` is the size of the scratch that could not be taken.
    """

    scratch: LinearMemory | None = None
    lost: bool = False
    gone: int = 0

    def close(self) -> None:
        """Let go of it. Twice is allowed."""
        if self.scratch is not None:
            self.scratch.close()
