"""How many bytes of memory one owner may have committed at once."""

from __future__ import annotations

import threading

from nocopy.errors import MemoryLimitError, UsageError


class Quota:
    """A limit in bytes that several memories share, such as all memories of one guest.

    Thread-safe. `limit=None` only counts.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise UsageError(f"a memory limit of {limit} bytes was asked for; it must be 0 or more")
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def charge(self, size: int) -> None:
        """Take `size` bytes.

        Raises:
            MemoryLimitError: fewer are left; nothing was taken.
        """
        with self._lock:
            if self.limit is not None and self.used + size > self.limit:
                raise MemoryLimitError(
                    f"{size} more bytes of memory were asked for; {self.used} of the limit of {self.limit} "
                    "bytes are in use. Raise the memory limit, or use less."
                )
            self.used += size

    def refund(self, size: int) -> None:
        """Give `size` bytes back."""
        with self._lock:
            self.used -= size
