"""Which module reads which encoding, and how a model's own bytes tell its encoding."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn.encoding import Encoding, Errno
from nocopy.interfaces.wasi_nn.protocol import OpenGraph, Source
from nocopy.models import Model

BACKENDS = {
    Encoding.ONNX: "nocopy.interfaces.wasi_nn.onnx",
    Encoding.GGML: "nocopy.interfaces.wasi_nn.ggml",
}
"""Each module has `open_graph`. They load when a guest first needs them."""

GGUF = b"GGUF"


def backend(encoding: Encoding) -> OpenGraph:
    """The backend that reads an encoding.

    Raises:
        NnError: there is none.
    """
    if encoding not in BACKENDS:
        known = ", ".join(e.value for e in BACKENDS)
        raise NnError(
            Errno.INVALID_ENCODING,
            f"a model in {encoding.value} was asked for; this host plays {known}. Convert the model.",
        )
    found: OpenGraph = import_module(BACKENDS[encoding]).open_graph
    return found


def detect(source: Source) -> Encoding:
    """The encoding of a model, by its first bytes: GGUF has a magic number, ONNX has none."""
    if source.parts:
        first = source.parts[0]
        start = first.memory.read(first.offset, min(first.nbytes, len(GGUF)))
        return Encoding.GGML if start == GGUF else Encoding.ONNX
    return detect_file(source)


def detect_file(source: Source) -> Encoding:
    """As `detect`, for what a host grants; a folder is a language model as Hugging Face stores it."""
    for file in source.files:
        if isinstance(file, Model) or Path(file).is_dir():
            return Encoding.GGML
        with Path(file).open("rb") as stream:
            if stream.read(len(GGUF)) == GGUF:
                return Encoding.GGML
    return Encoding.ONNX
