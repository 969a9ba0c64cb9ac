"""Dataclasses as canonical JSON, and back with every field checked.

Canonical: UTF-8, no white space, keys sorted by code point, every field present, no floating point numbers.
Equal values have equal bytes. Types of fields and what they become:

    bool, str, Literal            themselves
    int                           an integer from -2^63 to 2^64 - 1, or `Annotated[int, Range(low, high)]`
    float                         a string, as `float.hex` writes it
    bytes                         a string: base64 with padding
    tuple[T, ...]                 an array
    T | None                      null or T
    a dataclass                   an object with exactly its fields

`Annotated[..., Length(low, high)]` bounds strings, bytes and arrays. A `ValueError` from a dataclass's
`__post_init__` is a defect of the object.
"""

from __future__ import annotations

import base64
import json
import reprlib
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of an integer, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Length:
    """Bounds of the length of a string (characters), of bytes or of an array, both included."""

    low: int
    high: int


ANY_INTEGER = Range(-(2**63), 2**64 - 1)
ANY_LENGTH = Length(0, 2**31)


class Defect(ValueError):
    """A value that does not fit its type. `place` is the path to it, such as memories[0].size."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(f"{place or 'the manifest'}: {message}")
        self.place, self.message = place, message

    def within(self, step: str) -> Defect:
        """The same, seen from the object or array around it: `step` is .name or [index]."""
        inner = self.place if not self.place or self.place.startswith("[") else f".{self.place}"
        return Defect(self.message, (step + inner).removeprefix("."))


@dataclass(frozen=True, slots=True)
class Codec:
    """Turns values of one type into JSON values and back. Both raise `Defect`.

    `exact` values from `low` to `high` (strings by their length) become themselves both ways, and so does
    None with `optional`: whoever knows that saves the call.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    exact: type | None = None
    low: int = 0
    high: int = 0
    optional: bool = False


def dump(value: Any) -> bytes:
    """A dataclass as canonical JSON.

    Raises:
        Defect: a field holds something else than its type says.
    """
    kind = cast(Any, type(value))
    encoded = codec(kind).encode(value)
    try:
        return canonical(encoded)
    except UnicodeEncodeError as error:
        raise Defect(f"a string is not Unicode text: {error.reason}") from error


def load(kind: type[T], data: bytes) -> T:
    """A dataclass from canonical JSON.

    Raises:
        Defect: it is not JSON, not canonical, or does not fit the type.
    """
    try:
        # What follows the value, or stands before it, is not canonical either.
        parsed, _ = DECODER.raw_decode(data.decode())
        same = canonical(parsed) == data
    except (ValueError, RecursionError) as error:
        raise Defect(f"it is not the JSON that a manifest is made of: {error}") from error
    if not same:
        raise Defect("it is not canonical: sorted keys, each once, no white space, no escapes to spare")
    return codec(kind).decode(parsed)


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"the number {text:.40} is not an integer")


DECODER: Final = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float)
ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
)


def canonical(value: Any) -> bytes:
    """JSON values as canonical text."""
    return ENCODER.encode(value).encode()


@cache
def codec(kind: Any, length: Length = ANY_LENGTH, bounds: Range = ANY_INTEGER) -> Codec:
    """The codec of a type.

    Raises:
        TypeError: a dataclass has a field of a type that is not in the list above.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for extra in arguments[1:]:
            length = extra if isinstance(extra, Length) else length
            bounds = extra if isinstance(extra, Range) else bounds
        return codec(arguments[0], length, bounds)
    if isinstance(kind, type) and is_dataclass(cast(type[object], kind)):
        return _object(cast(type[Any], kind))
    if origin is tuple and arguments[1:] == (...,):
        return _array(codec(arguments[0]), length)
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return _optional(codec(next(a for a in arguments if a is not type(None)), length, bounds))
    if origin is Literal:
        return _literal(arguments)
    plain = {
        bool: _bool,
        int: lambda: _integer(bounds),
        float: lambda: Codec(_encode_float, _decode_float),
        str: lambda: _string(length),
        bytes: lambda: _bytes(length),
    }
    if kind not in plain:
        raise TypeError(f"{kind} is no type of a manifest's field")
    return plain[kind]()


def _refuse(value: Any, wanted: str) -> NoReturn:
    raise Defect(f"{reprlib.repr(value)} was found; it must be {wanted}")


def _bool() -> Codec:
    def check(value: Any) -> Any:
        if type(value) is bool:
            return value
        _refuse(value, "true or false")

    return Codec(check, check)


def _literal(choices: tuple[Any, ...]) -> Codec:
    def check(value: Any) -> Any:
        if isinstance(value, str) and value in choices:
            return value
        _refuse(value, f"one of {choices}")

    return Codec(check, check)


def _integer(bounds: Range) -> Codec:
    low, high = bounds.low, bounds.high

    def check(value: Any) -> Any:
        if type(value) is int and low <= value <= high:
            return value
        _refuse(value, f"an integer from {low} to {high}")

    return Codec(check, check, int, low, high)


def _string(length: Length) -> Codec:
    low, high = length.low, length.high

    def check(value: Any) -> Any:
        if isinstance(value, str) and low <= len(value) <= high:
            return value
        _refuse(value, f"a string of {low} to {high} characters")

    return Codec(check, check, str, low, high)


def _optional(inner: Codec) -> Codec:
    encode, decode = inner.encode, inner.decode
    return Codec(
        lambda value: None if value is None else encode(value),
        lambda value: None if value is None else decode(value),
        inner.exact,
        inner.low,
        inner.high,
        optional=True,
    )


def _encode_float(value: Any) -> str:
    if type(value) not in (float, int):
        _refuse(value, "a number")
    return float(value).hex()


def _decode_float(value: Any) -> float:
    try:
        number = float.fromhex(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number.hex() != value:
        _refuse(value, "a number as C99 writes it in base 16, such as 0x1.8000000000000p+1")
    return number


def _bytes(length: Length) -> Codec:
    wanted = f"base64 of {length.low} to {length.high} bytes"

    def encode(value: Any) -> str:
        if not isinstance(value, bytes) or not length.low <= len(value) <= length.high:
            _refuse(value, f"{length.low} to {length.high} bytes")
        return base64.b64encode(value).decode()

    def decode(value: Any) -> bytes:
        try:
            data = base64.b64decode(value, validate=True)
            # Decoders ignore the bits that padding leaves over; one text for the same bytes is enough.
            if length.low <= len(data) <= length.high and base64.b64encode(data).decode() == value:
                return data
        except (TypeError, ValueError):
            pass
        _refuse(value, wanted)

    return Codec(encode, decode)


def _array(element: Codec, length: Length) -> Codec:
    wanted = f"an array of {length.low} to {length.high} elements"

    def convert(value: Any, kind: type[Any], each: Callable[[Any], Any]) -> list[Any]:
        if not isinstance(value, kind) or not length.low <= len(value) <= length.high:
            _refuse(value, wanted)
        made: list[Any] = []
        try:
            for item in value:
                made.append(each(item))  # noqa: PERF401 (its length is the place of a defect)
        except Defect as defect:
            raise defect.within(f"[{len(made)}]") from None
        return made

    return Codec(
        lambda value: convert(value, tuple, element.encode),
        lambda value: tuple(convert(value, list, element.decode)),
    )


def _object(kind: type[Any]) -> Codec:
    hints = get_type_hints(kind, include_extras=True)
    parts = {field.name: codec(hints[field.name]) for field in fields(kind)}
    # A manifest is read and written when none of this is in the caches: a loop over numbers costs a third of
    # what calling a function for each field does.
    rows = [(name, p, p.exact, p.low, p.high, p.optional) for name, p in parts.items()]

    def encode(value: Any) -> dict[str, Any]:
        if type(value) is not kind:
            _refuse(value, f"a {kind.__name__}")
        made: dict[str, Any] = {}
        name = ""
        try:
            for name, part, exact, low, high, optional in rows:
                field = getattr(value, name)
                if type(field) is exact and low <= (field if exact is int else len(field)) <= high:
                    made[name] = field
                else:
                    made[name] = None if field is None and optional else part.encode(field)
        except Defect as defect:
            raise defect.within(f".{name}") from None
        return made

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            _refuse(value, "an object")
        found = cast(dict[str, Any], value)
        if found.keys() != parts.keys():
            unknown, missing = sorted(found.keys() - parts), sorted(parts.keys() - found)
            what = [f"the field {n!r:.40} is unknown" for n in unknown[:3]] + [
                f"{n} is missing" for n in missing
            ]
            raise Defect("; ".join(what))
        made: list[Any] = []
        name = ""
        try:
            for name, part, exact, low, high, optional in rows:
                field = found[name]
                if type(field) is exact and low <= (field if exact is int else len(field)) <= high:
                    made.append(field)
                else:
                    made.append(None if field is None and optional else part.decode(field))
        except Defect as defect:
            raise defect.within(f".{name}") from None
        try:
            return kind(*made)
        except ValueError as error:
            raise Defect(str(error)) from error

    return Codec(encode, decode)
