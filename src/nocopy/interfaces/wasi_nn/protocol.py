"""What a backend of wasi-nn does: the whole contract.

A backend is a module with `open_graph`; `backends.BACKENDS` names it by the encoding that it reads. What it
raises as an `Error` becomes the number that the guest gets: `NnError` its own, others as `errors.errno_of`
says.
A `DeadlineError` ends the guest.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from nocopy.errors import NnError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.compute import Log, log_line
from nocopy.interfaces.grip import Grip
from nocopy.interfaces.wasi_nn.encoding import Errno, Target, TensorType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.memory.quota import Quota
from nocopy.models import Model


@dataclass(frozen=True)
class Buffer:
    """Bytes [offset, offset + nbytes) of a guest's memory, checked to lie in it, where they stay."""

    memory: LinearMemory
    offset: int
    nbytes: int

    @property
    def address(self) -> int:
        """Where they are for the host; never changes, not even when the memory grows."""
        return self.memory.address + self.offset

    def read(self) -> bytes:
        """A copy."""
        return ctypes.string_at(self.address, self.nbytes)

    def write(self, data: bytes) -> int:
        """Put bytes at the start; return how many.

        Raises:
            NnError: they do not fit, and nothing was written.
        """
        self.require(len(data))
        ctypes.memmove(self.address, data, len(data))
        return len(data)

    def require(self, nbytes: int) -> None:
        """Refuse to be smaller than that.

        Raises:
            NnError: it is; the guest is told how much it takes.
        """
        if nbytes > self.nbytes:
            raise NnError(
                Errno.TOO_LARGE,
                f"an output was asked for in a buffer of {self.nbytes} bytes; it has {nbytes}",
                needed=nbytes,
            )


@dataclass(frozen=True)
class Tensor:
    """An input as a guest gives it: its data may have another number of bytes than shape and type say."""

    type: TensorType
    shape: tuple[int, ...]
    data: Buffer

    def require_whole(self) -> None:
        """Refuse data that is not of the size that shape and type say.

        Raises:
            NnError: it is not.
        """
        count, itemsize = math.prod(self.shape), self.type.dtype.itemsize
        if count * itemsize != self.data.nbytes:
            raise NnError(
                Errno.INVALID_ARGUMENT,
                f"a tensor of {count} elements of {self.type.name} in {self.data.nbytes} bytes was given; it"
                f" takes {count * itemsize}",
            )


File: TypeAlias = str | os.PathLike[str] | Model
"""What a host grants: a path, or a model that is open and stays the host's."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: files that the host granted, or else parts that the guest holds."""

    files: tuple[File, ...] = ()
    parts: tuple[Buffer, ...] = ()


@dataclass
class Host:
    """What a backend may use of the guest and its device.

    A graph may keep it: it does not keep the guest alive.
    """

    memory: LinearMemory
    grip: Grip
    limits: ComputeLimits
    ledger: Ledger
    quota: Quota
    """Bytes that the guest's models and tensors may take of the host: what a backend keeps is charged."""
    copy: bool = False
    """Copy each input at `set_input`, for guests that reuse its bytes before they fetch the outputs."""
    time_left: Callable[[], float | None] | None = None
    """Gives the seconds until the guest's call that is running must end, if it has a deadline."""
    log: Log = log_line
    """Gets a level and a line: what the guest should know of its options, and what it asked to be logged."""
    stdout: Callable[[bytes], None] = lambda _data: None
    """Writes to the guest's stdout, wherever that goes."""

    @property
    def until(self) -> float | None:
        """When that call must end, by `time.monotonic()`; None means never."""
        left = None if self.time_left is None else self.time_left()
        return None if left is None else time.monotonic() + left


class Context(Protocol):
    """One inference at a time over a graph.

    It is closed before its graph. `set_input` and `compute` are not called any more once the guest has
    unloaded the graph.
    """

    def set_input(self, index: int, tensor: Tensor) -> None:
        """Use this tensor as an input from now on. A second one for the same index takes its place.

        Nothing has changed if it raises.
        """
        ...

    def compute(self) -> None:
        """Run the model on the inputs."""
        ...

    def get_output(self, index: int, out: Buffer) -> int:
        """Write an output to the start of `out`; return its bytes. May be called again.

        Raises:
            NnError: `TOO_LARGE` with `needed`, if it does not fit: nothing is written then.
        """
        ...

    def compute_single(self) -> None:
        """Compute the next piece of the output. WasmEdge: one token."""
        ...

    def get_output_single(self, index: int, out: Buffer) -> int:
        """As `get_output`, for what the last `compute_single` made."""
        ...

    def fini_single(self) -> None:
        """End a computation in pieces."""
        ...

    def close(self) -> None:
        """Give everything back. Called while the guest has the device's turn."""
        ...


class Graph(Protocol):
    """A model that is loaded."""

    def context(self) -> Context:
        """Make a context. It may cost little until it is used: guests make thousands and cannot free them."""
        ...

    def close(self) -> None:
        """Give everything back; its contexts are closed. Called while the guest has the device's turn."""
        ...


OpenGraph: TypeAlias = Callable[[Source, Target, bytes, Host], Graph]
"""`open_graph(source, target, config, host)` of a backend's module. `config` is JSON from
`load_by_name_with_config`, or nothing."""
