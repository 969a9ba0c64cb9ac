"""The copy ledger: every byte that crosses between a guest and a device, by cause."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Bytes by cause. One ledger belongs to one guest (or one `prove`, or one benchmark)."""

    shared: int = 0
    """Imported into the device where they lie; nothing moved. Counts each imported byte once."""
    uploaded: int = 0
    """Copied into device memory, once (weights on a discrete GPU)."""
    downloaded: int = 0
    """Copied back from device memory on request."""
    staged: int = 0
    """Copied because the device cannot share these pages; the fallback that nobody wants."""

    @property
    def copied(self) -> int:
        """All bytes that moved: uploaded + downloaded + staged."""
        return self.uploaded + self.downloaded + self.staged

    def as_dict(self) -> dict[str, int]:
        """The counts under their names, and `copied`."""
        return asdict(self) | {"copied": self.copied}
