"""The tensors of a model, where they lie in its mapped files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.errors import ModelError, UsageError
from nocopy.models.dequantize import dequantize
from nocopy.models.ggml import DENSE, GGMLType
from nocopy.models.mapped_file import MappedFile


@dataclass(frozen=True, slots=True)
class Weight:
    """Where one tensor lies. Its range is inside its file and overlaps no other tensor.

    `shape` has the outermost axis first (GGUF files state the innermost first). `file` counts the model's
    files from 0; `offset` and `nbytes` are a range of that file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    file: int
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Weights(Mapping[str, Weight]):
    """A model's tensors by name, in file order. Arrays it gives out are read-only views of the mapping.

    Args:
        files: the mapped files; a device imports `files[i].address` and finds a weight `offset` bytes in.
        tensors: validated tensors.
    """

    def __init__(self, files: Sequence[MappedFile], tensors: Mapping[str, Weight]) -> None:
        self.files = tuple(files)
        self._tensors = tensors

    def __getitem__(self, name: str) -> Weight:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(weight.nbytes for weight in self._tensors.values())

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(weight.elements for weight in self._tensors.values())

    def find(self, name: str) -> Weight:
        """Return the tensor of this name.

        Raises:
            ModelError: there is none.
        """
        weight = self._tensors.get(name)
        if weight is None:
            raise ModelError(
                f"the tensor '{name}' was asked for; '{self.files[0].path}' has {len(self)} tensors and"
                " none of that name; the file may be incomplete or of another architecture"
            )
        return weight

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's bytes: u8 [nbytes], a read-only view.

        Raises:
            ModelError: there is no such tensor.
            ClosedError: the files were closed.
        """
        weight = self.find(name)
        return self.files[weight.file].bytes[weight.offset : weight.offset + weight.nbytes]

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor that is not quantised: a read-only view of its dtype and shape.

        Raises:
            ModelError: there is no such tensor.
            UsageError: it is quantised; use `raw` or `dequantize`.
            ClosedError: the files were closed.
        """
        weight = self.find(name)
        if weight.type not in DENSE:
            raise UsageError(
                f"an array over '{name}' was asked for; it is {weight.type.name}, which has no NumPy dtype;"
                " use raw() for its blocks or dequantize()"
            )
        return self.raw(name).view(DENSE[weight.type]).reshape(weight.shape)

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor as f32 [shape], newly allocated.

        Raises:
            ModelError: there is no such tensor.
            UnsupportedModelError: its type cannot be decoded here.
            ClosedError: the files were closed.
        """
        weight = self.find(name)
        return dequantize(self.raw(name), weight.type, weight.shape)

    def close(self) -> None:
        """Let go of the files; arrays made before stay readable. Closing twice is allowed."""
        for file in self.files:
            file.close()
