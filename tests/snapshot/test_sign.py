import subprocess
import sys

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nocopy.errors import SnapshotDamagedError, SnapshotError, SnapshotSignatureError, UsageError
from nocopy.snapshot import PrivateKey, PublicKey, SharedSecret, open_snapshot, write_snapshot
from nocopy.snapshot.format import Signature
from tests.snapshot.made import manifest_of, memory_with, reseal, stored_file


def pems(key) -> tuple[bytes, bytes]:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


PRIVATE, PUBLIC = pems(ed25519.Ed25519PrivateKey.generate())
_, STRANGER = pems(ed25519.Ed25519PrivateKey.generate())
KEYS = {
    "secret": (SharedSecret(b"s" * 16), SharedSecret(b"s" * 16), SharedSecret(b"t" * 16)),
    "ed25519": (PrivateKey(PRIVATE), PublicKey(PUBLIC), PublicKey(STRANGER)),
}


@pytest.fixture(params=KEYS)
def signed(request, tmp_path):
    """A signed file, the key that checks it, and one that must not."""
    signer, right, wrong = KEYS[request.param]
    memory = memory_with(3, [1])
    write_snapshot(tmp_path / "a", manifest_of(memory, label="signed"), [memory], signer=signer)
    return tmp_path / "a", right, wrong


def test_the_right_key_opens(signed):
    path, right, _ = signed
    with open_snapshot(path, key=right) as snapshot:
        assert snapshot.signature == right.kind


def test_another_key_is_refused_whatever_is_verified(signed):
    path, _, wrong = signed
    for verify in ("eager", "lazy", "off"):
        with pytest.raises(SnapshotSignatureError, match="by the given key"):
            open_snapshot(path, key=wrong, verify=verify)


def test_without_a_key_the_signature_is_not_asked_for(signed):
    open_snapshot(signed[0]).close()


def test_somebody_who_computes_the_digests_anew_is_found_out(signed):
    path, right, _ = signed
    data = path.read_bytes()
    forged = reseal(data.replace(b'"label":"signed"', b'"label":"forged"'))
    path.write_bytes(forged)
    with open_snapshot(path) as snapshot:
        assert snapshot.manifest.label == "forged"
    with pytest.raises(SnapshotSignatureError):
        open_snapshot(path, key=right)


def test_a_changed_signature_is_found_with_and_without_the_key(signed):
    path, right, _ = signed
    data, at = bytearray(path.read_bytes()), stored_file(path)["trailer"]
    for byte in range(at, len(data) - 32):
        changed = bytearray(data)
        changed[byte] ^= 0x40
        path.write_bytes(changed)
        with pytest.raises(SnapshotDamagedError):
            open_snapshot(path)
        path.write_bytes(reseal(changed))
        with pytest.raises(SnapshotSignatureError):
            open_snapshot(path, key=right)


def test_a_file_without_a_signature_is_refused(tmp_path):
    write_snapshot(tmp_path / "a", manifest_of(), [])
    for _, key, _ in KEYS.values():
        with pytest.raises(SnapshotSignatureError, match="must be signed with"):
            open_snapshot(tmp_path / "a", key=key)


def test_one_sort_of_key_does_not_open_the_other(tmp_path):
    write_snapshot(tmp_path / "a", manifest_of(), [], signer=KEYS["secret"][0])
    with pytest.raises(SnapshotSignatureError, match=r"with ED25519; its signature is HMAC_SHA256"):
        open_snapshot(tmp_path / "a", key=KEYS["ed25519"][1])


def test_the_signature_is_that_of_the_document(tmp_path):
    """Checked with the libraries alone."""
    write_snapshot(tmp_path / "a", manifest_of(), [], signer=KEYS["ed25519"][0])
    data, header = (tmp_path / "a").read_bytes(), stored_file(tmp_path / "a")
    message = b"nocopy snapshot v1\0" + blake3(data[: 128 + header["manifest"]]).digest()
    public, signature = data[-32 - 96 : -32 - 64], data[-32 - 64 : -32]
    ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    assert data[72] == Signature.ED25519


def test_keys_that_are_none():
    with pytest.raises(UsageError, match="needs 16"):
        SharedSecret(b"short")
    other, other_public = pems(ec.generate_private_key(ec.SECP256R1()))
    for made, pem in ((PrivateKey, b"nonsense"), (PublicKey, b"nonsense"), (PublicKey, PRIVATE)):
        with pytest.raises(UsageError, match="cannot be read"):
            made(pem)
    for made, pem in ((PrivateKey, other), (PublicKey, other_public)):
        with pytest.raises(UsageError, match="no Ed25519 key"):
            made(pem)


def test_a_secret_is_not_shown():
    assert "hush" not in repr(SharedSecret(b"hush hush hush hush"))


def test_without_the_library_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from nocopy.snapshot import PublicKey\n"
        "try: PublicKey(b'')\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("UsageError")
    assert "pip install 'nocopy[sign]'" in said
    assert issubclass(SnapshotSignatureError, SnapshotError)
