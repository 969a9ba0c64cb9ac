"""What tells one model from another: a digest that costs milliseconds, whatever the model's size.

BLAKE3, in this order, over: the number of files; for each file its size and all before its first tensor
(metadata, names, shapes, types, offsets); for a Hugging Face folder also the files of `SHAPING`; then, for
each tensor in order, its bytes if they are few or the whole model is small, else three pieces of 4 KiB: the
first, the middle and the last.

Copies of a model have one digest. A model that was trained, merged or quantised otherwise has another one,
since that changes all of a tensor. It is no proof that every byte is the same: someone who changes single
bytes of a large tensor on purpose is not noticed. The models that sessions are thawed with are the host's,
who can compare whole files by other means.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from blake3 import blake3

if TYPE_CHECKING:
    from nocopy.models.model import Model

WHOLE: Final = 64 << 20
"""Bytes up to which a model is hashed as it is: 20 ms."""
SMALL: Final = 64 << 10
"""Bytes up to which a tensor is."""
PIECE: Final = 4 << 10
SHAPING: Final = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files of a Hugging Face folder that are part of the model."""

_known: dict[tuple[tuple[object, ...], ...], bytes] = {}
_lock = threading.Lock()


def model_digest(model: Model) -> bytes:
    """The digest of an open model: 32 bytes. It is kept for as long as its files stay what they are.

    Raises:
        ClosedError: the model is closed.
    """
    key = tuple(_identity(path) for path in _paths(model))
    with _lock:
        found = _known.get(key)
        if found is None:
            found = _known[key] = _digest(model)
        return found


def _paths(model: Model) -> list[str]:
    paths = [os.fspath(file.path) for file in model.weights.files]
    if model.path.is_dir():
        paths += [str(p) for name in SHAPING if (p := model.path / name).is_file()]
    return paths


def _identity(path: str) -> tuple[object, ...]:
    """What changes when a file does."""
    found = os.stat(path)
    return os.path.realpath(path), found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _digest(model: Model) -> bytes:
    weights = model.weights
    hasher = blake3(f"nocopy model 1 {len(weights.files)}\n".encode())
    tensors = list(weights.values())
    whole = sum(file.nbytes for file in weights.files) <= WHOLE
    for number, file in enumerate(weights.files):
        starts = [w.offset for w in tensors if w.file == number]
        header = file.bytes[: min(starts, default=file.nbytes)]
        hasher.update(f"{file.nbytes} {len(header)}\n".encode()).update(header.tobytes())
    if model.path.is_dir():
        for name in SHAPING:
            path = model.path / name
            data = path.read_bytes() if path.is_file() else b""
            hasher.update(f"{name} {len(data)}\n".encode()).update(data)
    for weight in tensors:
        data = weights.files[weight.file].bytes[weight.offset : weight.offset + weight.nbytes]
        if whole or weight.nbytes <= SMALL:
            hasher.update(data.tobytes())
        else:
            middle = weight.nbytes // 2
            for start in (0, middle, weight.nbytes - PIECE):
                hasher.update(data[start : start + PIECE].tobytes())
    return hasher.digest()
