"""One safetensors file, checked before anything of it is used.

A file is 8 bytes of header length (little endian), a JSON header, then the tensors. Their ranges follow one
another from the first byte after the header to the last of the file: no holes, no overlap.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any, Final, NoReturn, cast

import numpy as np

from nocopy.errors import ModelFileError, UnsupportedModelError
from nocopy.models.ggml import GGMLType
from nocopy.models.mapped_file import MappedFile
from nocopy.models.weights import Weight

HEADER_LIMIT: Final = 32 * 2**20
"""Bytes of JSON that this reader parses; 100,000 tensors need about 10 MiB."""
RANK_LIMIT: Final = 8

DTYPES: Final[dict[str, GGMLType]] = {
    "F32": GGMLType.F32,
    "F16": GGMLType.F16,
    "BF16": GGMLType.BF16,
    "F64": GGMLType.F64,
    "I8": GGMLType.I8,
    "I16": GGMLType.I16,
    "I32": GGMLType.I32,
    "I64": GGMLType.I64,
}
OTHER_DTYPES: Final = frozenset({"BOOL", "U8", "U16", "U32", "U64", "C64"})
"""Known to the format, without a use in the models that are played here."""


def read_safetensors(file: MappedFile, index: int = 0) -> dict[str, Weight]:
    """Validate one file.

    Args:
        file: the mapped file.
        index: its place among the model's files, from 0; weights carry it.

    Raises:
        ModelFileError: kind "truncated", "too-large", "header", "duplicate-key", "type", "dimensions",
            "offset" or "overlap".
        UnsupportedModelError: a tensor has a dtype that is not known here.
    """
    return _Reader(file, index).tensors()


class _Reader:
    def __init__(self, file: MappedFile, index: int) -> None:
        self.file, self.index = file, index
        self.start = 0

    def fail(self, kind: str, message: str) -> NoReturn:
        raise ModelFileError(str(self.file.path), kind, message)

    def tensors(self) -> dict[str, Weight]:
        header = self.header()
        header.pop("__metadata__", None)
        weights = [self.weight(name, entry) for name, entry in header.items()]
        weights.sort(key=lambda weight: (weight.offset, weight.nbytes))
        end = self.start
        for weight in weights:
            if weight.offset != end:
                kind = "overlap" if weight.offset < end else "offset"
                self.fail(
                    kind, f"'{weight.name}' starts at {weight.offset}; the tensor before it ends at {end}"
                )
            end += weight.nbytes
        if end != self.file.nbytes:
            self.fail(
                "truncated", f"the tensors end at {end}, the file at {self.file.nbytes}; fetch it again"
            )
        return {weight.name: weight for weight in weights}

    def header(self) -> dict[str, Any]:
        if self.file.nbytes < 8:
            self.fail("truncated", f"a header length needs 8 bytes; the file has {self.file.nbytes}")
        length = int(self.file.bytes[:8].view("<u8")[0])
        if length > HEADER_LIMIT:
            self.fail("too-large", f"the header has {length} bytes; this reader accepts {HEADER_LIMIT}")
        if length > self.file.nbytes - 8:
            self.fail("truncated", f"the header has {length} bytes; {self.file.nbytes - 8} are left")
        self.start = 8 + length
        raw = self.file.bytes[8 : self.start].tobytes()
        try:
            header = json.loads(raw.decode(), object_pairs_hook=self.unique)
        except (ValueError, RecursionError) as error:
            self.fail("header", f"the header is not JSON: {error}")
        if not isinstance(header, dict):
            self.fail("header", f"the header must be a JSON object; it is {type(header).__name__}")
        return cast(dict[str, Any], header)

    def unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self.fail("duplicate-key", "a name comes twice in the header")
        return found

    def weight(self, name: str, entry: Any) -> Weight:
        entry = cast(dict[str, Any], entry if isinstance(entry, dict) else {})
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if dtype not in DTYPES:
            if dtype in OTHER_DTYPES or str(dtype).startswith("F8"):
                raise UnsupportedModelError(
                    f"the tensor '{name}' of '{self.file.path}' has dtype {dtype};"
                    f" {', '.join(DTYPES)} can be read"
                )
            self.fail("type", f"the tensor '{name}' has dtype {dtype!r}, which the format does not have")
        kind = DTYPES[dtype]
        if not _counts(shape) or len(shape) > RANK_LIMIT:
            self.fail("dimensions", f"the tensor '{name}' has shape {shape!r:.80}")
        if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1]:
            self.fail("offset", f"the tensor '{name}' has data_offsets {offsets!r:.80}")
        begin, end = offsets
        if end > self.file.nbytes - self.start:
            self.fail("offset", f"'{name}' ends at {self.start + end}; the file has {self.file.nbytes} bytes")
        if end - begin != prod(shape) * kind.block_nbytes:
            self.fail("dimensions", f"'{name}' has {end - begin} bytes; {dtype} {tuple(shape)} needs others")
        return Weight(name, tuple(shape), kind, self.index, self.start + begin, end - begin)


def _counts(value: Any) -> bool:
    """Whether a value is a list of integers from 0 to 2^63 - 1."""
    return isinstance(value, list) and all(
        type(n) is int and 0 <= n <= np.iinfo(np.int64).max for n in cast(list[Any], value)
    )
