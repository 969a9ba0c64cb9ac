"""Signatures of snapshots: who wrote it, as against whether it is intact.

Digests protect against damage; anybody can compute them anew. Only a key protects against somebody who
changes a snapshot on purpose. HMAC needs the same secret on both sides; with Ed25519 the reader needs the
public key only.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from nocopy.errors import SnapshotSignatureError, UsageError
from nocopy.snapshot.format import SIGNED, Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SECRET_BYTES = 16
"""Bytes that a secret must have at least."""


class Signer(Protocol):
    """Signs."""

    kind: Signature

    def sign(self, digest: bytes) -> bytes:
        """The signature of a content digest, `SIGNATURE_BYTES[kind]` bytes."""
        ...


class Verifier(Protocol):
    """Checks a signature."""

    kind: Signature

    def accepts(self, digest: bytes, signature: bytes) -> bool:
        """Whether the key that this object stands for made `signature` for a content digest."""
        ...


@dataclass(frozen=True)
class SharedSecret:
    """HMAC-SHA256 with a secret that writer and reader share; both signer and verifier.

    Raises:
        UsageError: the secret has fewer than 16 bytes.
    """

    secret: bytes = field(repr=False)
    kind = Signature.HMAC_SHA256

    def __post_init__(self) -> None:
        if len(self.secret) < SECRET_BYTES:
            raise UsageError(
                f"a secret of {len(self.secret)} bytes was given to sign snapshots;"
                f" it needs {SECRET_BYTES} at least"
            )

    def sign(self, digest: bytes) -> bytes:
        """32 bytes."""
        return hmac.new(self.secret, SIGNED + digest, hashlib.sha256).digest()

    def accepts(self, digest: bytes, signature: bytes) -> bool:
        """See `Verifier`."""
        return hmac.compare_digest(self.sign(digest), signature)


class PrivateKey:
    """Signs with Ed25519.

    `pem` is PKCS #8 without a password, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        UsageError: it is something else, or the package `cryptography` is missing.
    """

    kind = Signature.ED25519

    def __init__(self, pem: bytes) -> None:
        serialization, private, _ = _ed25519()
        try:
            key = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"a private key was given to sign snapshots; it cannot be read: {error}"
            ) from error
        if not isinstance(key, private):
            raise UsageError("a private key was given to sign snapshots; it is no Ed25519 key")
        self._key: Ed25519PrivateKey = key

    def sign(self, digest: bytes) -> bytes:
        """The public key, then the signature: 32 + 64 bytes."""
        return self._key.public_key().public_bytes_raw() + self._key.sign(SIGNED + digest)


class PublicKey:
    """Checks Ed25519 signatures.

    `pem` is SubjectPublicKeyInfo, as `openssl pkey -pubout` writes it.

    Raises:
        UsageError: it is something else, or the package `cryptography` is missing.
    """

    kind = Signature.ED25519

    def __init__(self, pem: bytes) -> None:
        serialization, _, public = _ed25519()
        try:
            key = serialization.load_pem_public_key(pem)
        except ValueError as error:
            raise UsageError(
                f"a public key was given to check snapshots; it cannot be read: {error}"
            ) from error
        if not isinstance(key, public):
            raise UsageError("a public key was given to check snapshots; it is no Ed25519 key")
        self._key: Ed25519PublicKey = key

    def accepts(self, digest: bytes, signature: bytes) -> bool:
        """See `Verifier`."""
        from cryptography.exceptions import InvalidSignature

        if not hmac.compare_digest(signature[:32], self._key.public_bytes_raw()):
            return False
        try:
            self._key.verify(signature[32:], SIGNED + digest)
        except InvalidSignature:
            return False
        return True


def _ed25519():
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    except ImportError as error:
        raise UsageError(
            "Ed25519 was asked for; the package that does it is missing. pip install 'nocopy[sign]'"
        ) from error
    return serialization, Ed25519PrivateKey, Ed25519PublicKey


def check_signature(
    path: str, kind: Signature, digest: bytes, signature: bytes, key: Verifier | None
) -> None:
    """Refuse a snapshot that `key` did not sign; without a key nothing is asked.

    Raises:
        SnapshotSignatureError: it is not signed, signed in another way, or by another key.
    """
    if key is None:
        return
    if kind != key.kind:
        raise SnapshotSignatureError(
            f"the snapshot '{path}' must be signed with {key.kind.name}; its signature is {kind.name}."
            " Get it from somebody who has the key, or leave the key out"
        )
    if not key.accepts(digest, signature):
        raise SnapshotSignatureError(
            f"the snapshot '{path}' must be signed by the given key; it was not, or was changed afterwards"
        )
