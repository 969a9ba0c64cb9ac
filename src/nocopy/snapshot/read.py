"""Opens a snapshot file: checked from its first byte to its last before anything of it is used.

Opening reads the header, the manifest and the table, never the pages, so that it costs the same whatever the
memory's size. Nothing is allocated for what a number in the file merely claims. The pages are verified as
`verify` says:

    eager    all of them, before `open_snapshot` returns
    lazy     in the background from then on; `check()` raises once damage was found
    off      never, unless `verify()` is called

The digest over header, manifest and table, and the signature if a key is given, are checked in each case.
"""

from __future__ import annotations

import os
import threading
from typing import Literal, Self

import numpy as np
from blake3 import blake3

from nocopy.errors import ClosedError, SnapshotDamagedError, SnapshotError, UsageError
from nocopy.memory.linear import LinearMemory
from nocopy.snapshot.check import Checked, OpenFile, check_file
from nocopy.snapshot.digests import check_digests
from nocopy.snapshot.fill import fill
from nocopy.snapshot.format import HEADER, Entries, Signature
from nocopy.snapshot.layout import Run
from nocopy.snapshot.manifest import Manifest
from nocopy.snapshot.place import Placed, place_compressed, place_plain
from nocopy.snapshot.sign import Verifier

Verify = Literal["eager", "lazy", "off"]


def open_snapshot(
    path: str | os.PathLike[str], *, verify: Verify = "eager", key: Verifier | None = None
) -> Snapshot:
    """Open a snapshot file.

    Args:
        path: the file.
        verify: when the pages are checked, as above. A file from elsewhere wants "eager".
        key: the snapshot must be signed by it; None does not look at the signature.

    Raises:
        UsageError: there is no such file, or it is not a regular one.
        SnapshotFileError: it breaks the format.
        SnapshotDamagedError: a digest does not match.
        SnapshotSignatureError: it is not signed by `key`.
    """
    if verify not in ("eager", "lazy", "off"):
        raise UsageError(f"verify={verify!r} was asked for; it is 'eager', 'lazy' or 'off'")
    path = os.fspath(path)
    file = _open(path)
    try:
        source = OpenFile(path, file)
        if not source.regular:
            raise UsageError(f"the snapshot {source.path!r} was asked for; it is not a regular file")
        snapshot = Snapshot(source, check_file(source, key))
        if verify == "eager":
            snapshot.verify()
        elif verify == "lazy":
            snapshot.verify_in_background()
    except BaseException:
        os.close(file)
        raise
    return snapshot


def _open(path: str) -> int:
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"the snapshot {path!r} was asked for; {reason}") from error


class Snapshot:
    """An open snapshot file. Memories that were made from it live on when it is closed.

    Snapshot files are replaced by renaming, never changed: a file that another program shortens while it is
    mapped ends the process (SIGBUS), and one that it overwrites changes pages that were not yet touched.
    """

    def __init__(self, source: OpenFile, checked: Checked) -> None:
        self.path = source.path
        self.manifest: Manifest = checked.manifest
        self.checked = checked
        """What was read of the file: header, manifest, table."""
        self._source: OpenFile | None = source
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._damage: SnapshotError | None = None
        self.verified = False
        """Whether every page was found to be what was written."""

    @property
    def digest(self) -> bytes:
        """The content digest: BLAKE3 over header, manifest and table, 32 bytes. It names the snapshot."""
        return self.checked.content

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.checked.header.nbytes

    @property
    def compressed(self) -> bool:
        """Whether thawing reads the pages; otherwise it maps them."""
        return self.checked.header.compressed

    @property
    def signature(self) -> Signature:
        """How it is signed."""
        return self.checked.header.signature

    def chunks(self, index: int) -> Entries:
        """The table's entries of one memory: `format.ENTRY` [chunks]."""
        self._check_index(index)
        entries = self.checked.entries
        first, end = np.searchsorted(entries["memory"], [index, index + 1])
        return entries[first:end]

    def memory(self, index: int) -> tuple[Run, ...]:
        """Where the pages of a memory lie, as runs of neighbours in order; the rest of it is zero.

        Raises:
            UsageError: there is no such memory, or the file is compressed, so that no page lies in it.
        """
        if self.compressed:
            raise UsageError(
                f"the pages of '{self.path}' were asked for; the file is compressed. Map it into memory"
            )
        self._check_index(index)
        return self.checked.runs(index)

    def map_into(self, index: int, address: int) -> Placed:
        """Make a fresh range hold a memory: mapped copy-on-write, or read if the file is compressed.

        Args:
            index: which memory.
            address: a multiple of the host's page size; `manifest.memories[index].size` committed bytes from
                here are zero, and no device holds them.

        Raises:
            ClosedError: the snapshot was closed.
            SnapshotFileError: the file changed since it was opened, or a chunk does not decompress.
            MemoryLimitError: the system refuses. The range is then partly filled: give it up.
        """
        if self.compressed:
            return place_compressed(self.path, self._open().file, self.chunks(index), address)
        return place_plain(self.path, self._open().file, self.memory(index), address)

    def read(self, index: int, offset: int, nbytes: int) -> bytes:
        """Bytes of a memory, all inside it; they are verified if the pages are.

        Raises:
            ClosedError: the snapshot was closed.
            SnapshotFileError: the file changed since it was opened, or a chunk does not decompress.
            MemoryLimitError: the system refuses a range for a compressed memory.
        """
        if self.compressed:
            size = self.manifest.memories[index].size
            with LinearMemory(size, reserve=size, guard=0) as memory:
                self.map_into(index, memory.address)
                return memory.read(offset, nbytes)
        runs, end = self.memory(index), offset + nbytes
        for run in runs:
            if run.offset <= offset and end <= run.offset + run.nbytes:
                return self._open().read(run.position + offset - run.offset, nbytes)
        data = memoryview(bytearray(nbytes))
        for run in runs:
            low, high = max(run.offset, offset), min(run.offset + run.nbytes, end)
            if low < high:
                position = run.position + low - run.offset
                fill(self.path, self._open().file, data[low - offset : high - offset], position)
        return bytes(data)

    def skeleton(self) -> bytes:
        """The file without its padding and chunks: header, manifest, table, signature, digest.

        Raises:
            ClosedError: the snapshot was closed.
            SnapshotFileError: the file changed since it was opened.
        """
        source, header = self._open(), self.checked.header
        head = source.read(0, HEADER.size + header.manifest_nbytes)
        return head + source.read(header.table, header.nbytes - header.table)

    def stored_chunks(self) -> dict[bytes, tuple[int, int]]:
        """Where the chunks lie: (position, bytes) in the file by their digest, each once."""
        entries = self.checked.entries
        positions: list[int] = entries["position"].tolist()
        lengths: list[int] = entries["stored"].tolist()
        digests = (digest.tobytes() for digest in entries["digest"])
        return dict(zip(digests, zip(positions, lengths, strict=True), strict=True))

    def stored_bytes(self, position: int, nbytes: int, digest: bytes) -> bytes:
        """A chunk as it lies in the file, checked.

        Raises:
            ClosedError: the snapshot was closed.
            SnapshotDamagedError: it is not what was written.
            SnapshotFileError: the file cannot be read.
        """
        data = self._open().read(position, nbytes)
        if blake3(data).digest() != digest:
            raise SnapshotDamagedError(self.path, f"the chunk at byte {position} of the file")
        return data

    def verify(self) -> None:
        """Check every page now, or wait for the background to have done so.

        Raises:
            ClosedError: the snapshot was closed.
            SnapshotDamagedError: a page is not what was written.
        """
        if self._thread is not None:
            self._thread.join()
            self.check()
        if not self.verified:
            check_digests(self.path, self._open().file, self.checked)
            self.verified = True

    def verify_in_background(self) -> None:
        """Start checking every page. `check` says whether damage was found so far."""
        file = os.dup(self._open().file)  # `close` may come first
        stop = self._stop = threading.Event()

        def work() -> None:
            try:
                check_digests(self.path, file, self.checked, threads=1, stop=stop)
                self.verified = not stop.is_set()
            except SnapshotError as error:
                self._damage = error
            finally:
                os.close(file)

        self._thread = threading.Thread(target=work, name="snapshot", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the background has found so far; costs nothing. Whoever runs a guest on pages that are
        verified lazily calls this before each answer of the guest is used.

        Raises:
            SnapshotDamagedError: a page is not what was written.
        """
        if self._damage is not None:
            raise self._damage

    def close(self) -> None:
        """Close the file and end the verification in the background. Twice is allowed."""
        if self._stop is not None:
            self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        source, self._source = self._source, None
        if source is not None:
            os.close(source.file)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self.manifest.memories):
            raise UsageError(
                f"memory {index} of the snapshot '{self.path}' was asked for;"
                f" it has {len(self.manifest.memories)}"
            )

    def _open(self) -> OpenFile:
        if self._source is None:
            raise ClosedError(f"the snapshot '{self.path}' was used after it was closed; open it again")
        return self._source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Snapshot '{self.path}', {self.nbytes} bytes, {len(self.manifest.memories)} memories>"
