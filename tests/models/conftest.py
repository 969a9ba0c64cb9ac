"""Builders of model files, byte by byte, so that a test can break exactly one thing."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return U64.pack(len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + U32.pack(kind) + value


def tensor(name: str | bytes, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """`dims` innermost first, as the file has them."""
    return (
        string(name) + U32.pack(len(dims)) + b"".join(map(U64.pack, dims)) + U32.pack(kind) + U64.pack(offset)
    )


class RawGGUF:
    """Writes a file from parts that need not fit together."""

    string = staticmethod(string)
    key = staticmethod(key)
    tensor = staticmethod(tensor)
    u32, u64 = U32.pack, U64.pack

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        keys: Sequence[bytes] = (),
        tensors: Sequence[bytes] = (),
        data: bytes = b"",
        *,
        magic: bytes = b"GGUF",
        version: int = 3,
        key_count: int | None = None,
        tensor_count: int | None = None,
        align: int = 32,
        name: str = "model.gguf",
    ) -> Path:
        head = magic + U32.pack(version)
        head += U64.pack(len(tensors) if tensor_count is None else tensor_count)
        head += U64.pack(len(keys) if key_count is None else key_count)
        head += b"".join(keys) + b"".join(tensors)
        if tensors:
            head += bytes(-len(head) % align)
        path = self.folder / name
        path.write_bytes(head + data)
        return path


@pytest.fixture
def raw_gguf(tmp_path: Path) -> RawGGUF:
    return RawGGUF(tmp_path)


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Path]:
    """Vocabularies with expected outputs; too large to be in the repository."""
    import os

    beside = Path(__file__).parents[2].parent / "shared" / "tokenizers"
    folder = Path(os.environ.get("NOCOPY_TOKENIZER_VECTORS", beside))

    def find(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.is_file():
            pytest.skip(f"{path} is not there; set NOCOPY_TOKENIZER_VECTORS to llama.cpp's models/ folder")
        return path

    return find
