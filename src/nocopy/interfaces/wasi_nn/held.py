"""An input as a guest gave it: it stays where it is, and a sample tells whether the guest has changed it.

A host that copies has the bytes as they were at `set_input`. We read them later, from the guest's own memory,
which is the same as long as the guest leaves them alone. A guest that frees or refills its buffer too early
must not get a wrong answer in silence, so the sample is compared before every run. Of an input up to `WHOLE`
bytes the sample is all of it, and stands in for it.
"""

from __future__ import annotations

import ctypes
from typing import Final

import numpy as np
import numpy.typing as npt

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.interfaces.wasi_nn.protocol import Host, Tensor

WHOLE: Final = 4096
"""Bytes that cost less to copy than to look at in parts."""
SAMPLES: Final = 64
"""Places of `WORD` bytes that are looked at in a larger input, the first and the last bytes among them:
allocators write into the first ones when a buffer is freed, and refilling writes everywhere. 1 us."""
WORD: Final = 8


class Held:
    """One input of a context.

    Args:
        tensor: as the guest gave it.
        host: its `copy` says whether to take all bytes at once.
    """

    def __init__(self, tensor: Tensor, host: Host) -> None:
        self.tensor, self._host = tensor, host
        data = tensor.data
        self.nbytes = data.nbytes
        self.start, self.stop = data.offset, data.offset + data.nbytes
        self.copied = host.copy or tensor.data.address % tensor.type.dtype.itemsize != 0
        self._copy: npt.NDArray[np.uint8] | None = None
        self._places: npt.NDArray[np.uint8] | None = None
        if self.copied:
            host.quota.charge(self.nbytes)
            host.ledger.staged += self.nbytes
            self._copy = np.frombuffer(bytearray(data.read()), np.uint8)
        elif self.nbytes > WHOLE:
            step = (self.nbytes - WORD) // (SAMPLES - 1)
            view = data.memory.view((SAMPLES - 1, WORD), "u8", data.offset, (step, 1))
            self._places = view.numpy()
        self._sample = b"" if self.copied else self._look()

    def _look(self) -> bytes:
        data = self.tensor.data
        if self._places is None:
            return ctypes.string_at(data.address, self.nbytes)
        return self._places.tobytes() + ctypes.string_at(data.address + self.nbytes - WORD, WORD)

    def renew(self) -> bool:
        """Take the same bytes again, as they are now, if that is possible without another copy."""
        if self._copy is not None:
            return False
        self._sample = self._look()
        return True

    def address(self) -> int:
        """Where the bytes are that were given: in the guest's memory, unless they had to be copied.

        Raises:
            NnError: the guest has changed them, and there is no copy.
        """
        if self._copy is not None:
            return self._copy.ctypes.data
        if self._look() == self._sample:
            return self.tensor.data.address
        if self._places is not None:
            raise NnError(
                Errno.RUNTIME_ERROR,
                f"an input at bytes {self.start} to {self.stop} was to be read; the guest has changed it"
                " since set_input. Leave inputs alone until the outputs are fetched, or let the host copy:"
                " --wasi-nn-copy, nn_copy=True.",
            )
        self._host.ledger.staged += self.nbytes
        self._copy = np.frombuffer(bytearray(self._sample), np.uint8)
        return self._copy.ctypes.data

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether bytes of the guest's memory are among the input's own."""
        return start < self.stop and self.start < stop

    def close(self) -> None:
        """Give back what a copy took."""
        if self.copied:
            self._host.quota.refund(self.nbytes)
        self.copied, self._copy, self._places = False, None, None
