"""What a model says of itself: typed access to GGUF metadata or to a config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from nocopy.errors import MetadataError

Array: TypeAlias = npt.NDArray[Any]


class Metadata(Mapping[str, object]):
    """Keys and values, read-only; getters check the type and name what is wrong.

    A value is a bool, int, float or str; a sequence of str; a NumPy array of numbers; or, from JSON, a list
    or a dict. A JSON null counts as missing. Getters without a default raise when the key is missing.

    Args:
        values: the keys and their values.
        architecture: "llama", "bert", …; "" if the file does not say.
        source: the file, for messages.
    """

    def __init__(self, values: Mapping[str, object], architecture: str, source: str) -> None:
        self._values = values
        self.architecture = architecture
        self.source = source

    def __getitem__(self, key: str) -> object:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def key(self, suffix: str) -> str:
        """The architecture's own key: `key("block_count")` is "llama.block_count"."""
        return f"{self.architecture}.{suffix}"

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer.

        Raises:
            MetadataError: missing without a default, or not an integer.
        """
        value = self._find(key, default, "an integer")
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self._wrong(key, value, "an integer")

    def number(self, key: str, default: float | None = None) -> float:
        """Return a float; integers are converted.

        Raises:
            MetadataError: missing without a default, or not a number.
        """
        value = self._find(key, default, "a number")
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise self._wrong(key, value, "a number")

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Return a bool.

        Raises:
            MetadataError: missing without a default, or not a bool.
        """
        value = self._find(key, default, "true or false")
        if isinstance(value, bool):
            return value
        raise self._wrong(key, value, "true or false")

    def string(self, key: str, default: str | None = None) -> str:
        """Return a string.

        Raises:
            MetadataError: missing without a default, or not a string.
        """
        value = self._find(key, default, "a string")
        if isinstance(value, str):
            return value
        raise self._wrong(key, value, "a string")

    def strings(self, key: str) -> Sequence[str]:
        """Return a sequence of strings; from GGUF it decodes them when they are asked for.

        Raises:
            MetadataError: missing, or not an array of strings.
        """
        value = self._find(key, None, "an array of strings")
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self._wrong(key, value, "an array of strings")
        items = cast(Sequence[Any], value)
        if isinstance(items, list) and not all(isinstance(item, str) for item in items):
            raise self._wrong(key, items, "an array of strings")
        return items

    def array(self, key: str, *, count: int | None = None) -> Array:
        """Return an array of numbers.

        Args:
            key: what to read.
            count: how many elements it must have. A single number then stands for that many equal ones, as
            files write values that may differ from layer to layer.

        Raises:
            MetadataError: missing, not numbers, or of another length.
        """
        value = self._find(key, None, "an array of numbers")
        if count is not None and isinstance(value, int | float):
            return np.full(count, value)
        found = _numbers(value)
        if found is None:
            raise self._wrong(key, value, "an array of numbers")
        if count is not None and len(found) != count:
            raise MetadataError(key, f"{self._whose(key)} must have {count} elements; it has {len(found)}")
        return found

    def _find(self, key: str, default: object, kind: str) -> object:
        value = self._values.get(key)
        if value is not None:
            return value
        if default is not None:
            return default
        raise MetadataError(
            key,
            f"a model of architecture '{self.architecture}' needs the key '{key}' ({kind});"
            f" '{self.source}' has no such key; convert the model again with a current converter",
        )

    def _whose(self, key: str) -> str:
        return f"the key '{key}' of the '{self.architecture}' model '{self.source}'"

    def _wrong(self, key: str, value: object, kind: str) -> MetadataError:
        return MetadataError(key, f"{self._whose(key)} must be {kind}; it is {_describe(value)}")


def _numbers(value: object) -> Array | None:
    """A one-dimensional array of numbers, or None if the value is none."""
    if isinstance(value, list) and all(isinstance(item, int | float) for item in cast(list[Any], value)):
        return np.asarray(cast(list[Any], value))
    if isinstance(value, np.ndarray):
        array = cast(Array, value)
        return array if array.dtype.kind in "biuf" else None
    return None


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {cast(Array, value).size} {cast(Array, value).dtype}"
    if isinstance(value, str | int | float):
        text = repr(value)
        return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"
    return f"a {type(value).__name__}"
