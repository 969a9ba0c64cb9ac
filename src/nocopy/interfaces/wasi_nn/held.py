"""An input as a guest gave it: it stays where it is, and a sample tells whether the guest has changed it.

A host that copies has the bytes as they were at `set_input`. We read them later, from the guest's own memory,
which is the same as long as the guest leaves them alone. A guest that frees or refills its buffer too early
must not get a wrong answer in silence, so the sample is compared before every run. Of an input up to `WHOLE`
bytes the sample is all of it, and stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.interfaces.wasi_nn.protocol import Host, Tensor

WHOLE: Final = 4096
"""Bytes that cost less to copy than to look at in parts."""
SAMPLES: Final = 16
"""Places of `WORD` bytes that are looked at in a larger input, spread from its first byte to its last ones:
allocators write into the first bytes when a buffer is freed, and refilling writes everywhere. A look costs
1 us, and up to 3 us if the processor has none of it in its caches."""
WORD: Final = 8


class Held:
    """One input of a context.

    Args:
        tensor: as the model takes it.
        given: as the guest gave it, which may say [1] for a scalar.
        host: its `copy` says whether to take all bytes at once.
    """

    __slots__ = (
        "_charged",
        "_copy",
        "_host",
        "given",
        "look",
        "nbytes",
        "sample",
        "start",
        "stop",
        "tensor",
        "whole",
    )

    def __init__(self, tensor: Tensor, given: Tensor, host: Host) -> None:
        self.tensor, self.given, self._host = tensor, given, host
        data = tensor.data
        self.nbytes = data.nbytes
        self.start, self.stop = data.offset, data.offset + data.nbytes
        self._charged = 0
        self._copy: npt.NDArray[np.uint8] | None = None
        if host.copy or data.address % tensor.type.dtype.itemsize:
            host.quota.charge(self.nbytes)
            self._charged = self.nbytes
            self._take(data.read())
        self.whole = self.nbytes <= WHOLE
        self.look: Callable[[], bytes] = self._looker()
        """The bytes that are compared, as they are now."""
        self.sample = b"" if self.copied else self.look()
        """The same, as they were at `set_input`."""

    @property
    def copied(self) -> bool:
        """Whether the bytes were copied, and the guest's own do not matter any more."""
        return self._copy is not None

    def _take(self, data: bytes) -> None:
        self._copy = np.frombuffer(data, np.uint8)
        self._host.ledger.staged += len(data)

    def _looker(self) -> Callable[[], bytes]:
        data = self.tensor.data
        if self.whole:
            return data.memory.view(self.nbytes, "u8", data.offset).buffer().tobytes
        step = (self.nbytes - WORD) // (SAMPLES - 1)
        return data.memory.view((SAMPLES, WORD), "u8", data.offset, (step, 1)).numpy().tobytes

    def address(self) -> int:
        """Where the bytes are that were given: in the guest's memory, unless they had to be copied.

        Raises:
            NnError: the guest has changed them, and there is no copy.
        """
        if self._copy is None:
            if self.look() == self.sample:
                return self.tensor.data.address
            if not self.whole:
                raise NnError(
                    Errno.RUNTIME_ERROR,
                    f"an input at bytes {self.start} to {self.stop} was to be read; the guest has changed it"
                    " since set_input. Leave inputs alone until the outputs are fetched, or let the host"
                    " copy: --wasi-nn-copy, nn_copy=True.",
                )
            self._take(self.sample)
        assert self._copy is not None
        return self._copy.ctypes.data

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether bytes of the guest's memory are among the input's own."""
        return start < self.stop and self.start < stop

    def close(self) -> None:
        """Give back what a copy took."""
        self._host.quota.refund(self._charged)
        self._charged = 0
