"""GGUF models, whole or split: `open_gguf(path)`.

Everything is validated when the file is opened; weights stay where they lie in the mapping.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nocopy.errors import ModelFileError
from nocopy.models.gguf_format import LIMITS
from nocopy.models.gguf_reader import GGUFPart, read_part
from nocopy.models.gguf_values import GGUFValues
from nocopy.models.mapped_file import MappedFile
from nocopy.models.metadata import Metadata
from nocopy.models.weights import Weight, Weights

PART_NAME: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class GGUFModel:
    """An open GGUF model.

    Metadata comes from the first part, tensors from all. `version` and `alignment` are those of the first
    part. Closing it is optional: the mapping ends with the last array over it.
    """

    path: Path
    version: int
    alignment: int
    metadata: Metadata
    weights: Weights

    def close(self) -> None:
        """Let go of the files; arrays made before stay readable. Closing twice is allowed."""
        self.weights.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUFModel:
    """Map and validate a GGUF model.

    Args:
        path: the file, or the first of `NAME-00001-of-0000N.gguf`; the other parts lie beside it.

    Raises:
        UsageError: there is no such file.
        ModelFileError: the file breaks the format; `kind` is one of `gguf_format.DEFECTS`.
    """
    path = Path(path)
    first = read_part(MappedFile(path))
    values = GGUFValues(first.file, first.entries)
    metadata = Metadata(values, _architecture(values), str(path))
    parts = [first, *_other_parts(path, metadata)]
    tensors = _merge(parts)
    if len(parts) > 1 and metadata.has("split.tensors.count"):
        expected = metadata.integer("split.tensors.count")
        if expected != len(tensors):
            raise ModelFileError(
                str(path), "split", f"the model announces {expected} tensors; its parts have {len(tensors)}"
            )
    weights = Weights([part.file for part in parts], tensors)
    return GGUFModel(path, first.version, first.alignment, metadata, weights)


def _architecture(values: GGUFValues) -> str:
    name = values.get("general.architecture")
    return name if isinstance(name, str) else ""


def _other_parts(path: Path, metadata: Metadata) -> Sequence[GGUFPart]:
    count = metadata.integer("split.count", 1)
    if count <= 1:
        return []
    if count > LIMITS["parts"][0]:
        raise ModelFileError(
            str(path), "too-large", f"{count} parts; this reader accepts {LIMITS['parts'][0]}"
        )
    number = metadata.integer("split.no", 0)
    named = PART_NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count or int(named["number"]) != number + 1:
        raise ModelFileError(
            str(path),
            "split",
            f"it is part {number + 1} of {count} and must be named NAME-{number + 1:05}-of-{count:05}.gguf",
        )
    names = [f"{named['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    if number != 0:
        raise ModelFileError(str(path), "split", f"it is part {number + 1} of {count}; open '{names[0]}'")
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise ModelFileError(
            str(path),
            "split",
            f"{len(missing)} of {count} parts are not beside it, first '{missing[0]}'; fetch them",
        )
    return [_part(path.with_name(names[i]), i, count) for i in range(1, count)]


def _part(path: Path, index: int, count: int) -> GGUFPart:
    part = read_part(MappedFile(path), index)
    values = Metadata(GGUFValues(part.file, part.entries), "", str(path))
    found = values.integer("split.no", 0), values.integer("split.count", 1)
    if found != (index, count):
        raise ModelFileError(
            str(path),
            "split",
            f"part {index + 1} of {count} was expected; it is part {found[0] + 1} of {found[1]}",
        )
    return part


def _merge(parts: Sequence[GGUFPart]) -> dict[str, Weight]:
    tensors: dict[str, Weight] = {}
    for part in parts:
        for name, weight in part.tensors.items():
            if name in tensors:
                raise ModelFileError(
                    str(part.file.path),
                    "duplicate-tensor",
                    f"the tensor '{name}' is in an earlier part already",
                )
            tensors[name] = weight
    return tensors
