"""Keys from files: PEM is Ed25519, anything else is a shared secret."""

from __future__ import annotations

import os
from pathlib import Path

from nocopy.errors import UsageError
from nocopy.snapshot.sign import PrivateKey, PublicKey, SharedSecret, Signer, Verifier

PEM = b"-----BEGIN "


def load_signer(path: str | os.PathLike[str]) -> Signer:
    """What signs: an Ed25519 private key in PEM, or a file whose bytes are a secret (without a line end).

    Raises:
        UsageError: it cannot be read, or is no such key.
    """
    data = _read(path)
    return PrivateKey(data) if data.startswith(PEM) else SharedSecret(data.rstrip(b"\r\n"))


def load_verifier(path: str | os.PathLike[str]) -> Verifier:
    """What checks signatures: an Ed25519 public key in PEM, or a file with the secret.

    Raises:
        UsageError: it cannot be read, or is no such key.
    """
    data = _read(path)
    return PublicKey(data) if data.startswith(PEM) else SharedSecret(data.rstrip(b"\r\n"))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"the key {os.fspath(path)!r} was asked for; {reason}") from error
