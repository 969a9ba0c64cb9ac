"""Calls that come again: an inference in a loop is the same three calls with the same pointers each time.

What was read and checked for them is kept, so that a call costs the host a look at the records, which the
guest may have changed, and nothing else. A range that once lay in the memory always will: it never shrinks.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from nocopy.interfaces.wasi_nn.protocol import Buffer, Context, Tensor

MOST: Final = 256
"""Calls that are remembered of each kind."""


class Piece(NamedTuple):
    """Bytes of the guest's memory that a tensor's description was read from, and what they were."""

    view: memoryview[Any]
    data: bytes


class Input(NamedTuple):
    """A `set_input` that went well."""

    context: Context
    tensor: Tensor
    record: Piece
    dimensions: Piece


class Output(NamedTuple):
    """Where a `get_output` writes."""

    context: Context
    room: Buffer
    written: memoryview[Any]
    """The number of bytes, a u32."""


class Seen:
    """What one guest has called."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[int, int, int], Input] = {}
        """By context, index and record."""
        self.outputs: dict[tuple[int, int, int, int], Output] = {}
        """By context, buffer, size, and where the size is told."""
        self.active: dict[int, Context] = {}
        """Contexts that can compute."""

    def clear(self) -> None:
        """Forget it all: a handle has ended."""
        self.inputs.clear()
        self.outputs.clear()
        self.active.clear()

    def make_room(self) -> None:
        """Forget it all once there is too much."""
        if max(len(self.inputs), len(self.outputs), len(self.active)) >= MOST:
            self.clear()
