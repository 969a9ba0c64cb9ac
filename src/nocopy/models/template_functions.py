"""The filters, methods and functions that a chat template may use: those on these tables, bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final, cast

from jinja2 import Undefined, filters
from jinja2.utils import Namespace
from markupsafe import escape

from nocopy.errors import TemplateError
from nocopy.models.template_budget import BUDGET, exceeded, limit, room, weigh

JINJA: Final[dict[str, Callable[..., Any]]] = cast(Any, filters).FILTERS
STRIP_SET: Final = 64
"""Characters that strip() may be given: it looks through all of them for each character of the text."""
INDENT: Final = 16
LINE_ENDS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


class TemplateNamespace(Namespace):
    """Jinja's namespace, printed without its contents: two that hold each other would never end."""

    def __repr__(self) -> str:
        return "<namespace>"


def few(items: Iterable[Any]) -> list[Any]:
    """Read an iterable into a list of bounded length."""
    found = list(islice(items, limit("items") + 1))
    if len(found) > limit("items"):
        raise exceeded("items")
    return found


def small(value: Any, most: int, what: str) -> Any:
    """Refuse a number or a text that is out of proportion."""
    if (isinstance(value, str) and len(value) > most) or (
        isinstance(value, int | float) and abs(value) > most
    ):
        raise TemplateError(f"the chat template gives {what} as {value!r:.40}; at most {most} is allowed")
    return value


def replace(text: str, old: str, new: str, count: int | None = None) -> str:
    """str.replace, its result bounded before it is made."""
    text, old, new = str(text), str(old), str(new)
    room(len(text) + text.count(old) * max(0, len(new) - len(old)))
    return text.replace(old, new, -1 if count is None else count)


def join(separator: str, items: Iterable[Any]) -> str:
    """str.join, its result bounded before it is made; items are printed first."""
    texts: list[str] = []
    size = 0
    for value in few(items):
        weigh(value)
        texts.append(str(value))
        size = room(size + len(texts[-1]) + len(separator))
    return str(separator).join(texts)


def split(text: str, separator: str | None = None, maxsplit: int = -1) -> list[str]:
    """str.split with a bounded number of pieces."""
    most = limit("items")
    return _pieces(str(text).split(separator, most if maxsplit < 0 else min(maxsplit, most)))


def rsplit(text: str, separator: str | None = None, maxsplit: int = -1) -> list[str]:
    """str.rsplit with a bounded number of pieces."""
    most = limit("items")
    return _pieces(str(text).rsplit(separator, most if maxsplit < 0 else min(maxsplit, most)))


def _pieces(pieces: list[str]) -> list[str]:
    if len(pieces) > limit("items"):
        raise exceeded("items")
    return pieces


def splitlines(text: str, keepends: bool = False) -> list[str]:
    """str.splitlines with a bounded number of lines."""
    if sum(map(str(text).count, LINE_ENDS)) > limit("items"):
        raise exceeded("items")
    return str(text).splitlines(keepends)


def _stripping(method: Callable[[str, str | None], str]) -> Callable[..., str]:
    def strip(text: str, characters: str | None = None) -> str:
        return method(str(text), small(characters, STRIP_SET, "the characters to strip"))

    return strip


def indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja's indent, its result bounded before it is made."""
    space = (
        small(width, INDENT, "an indentation")
        if isinstance(width, str)
        else " " * small(width, INDENT, "a width")
    )
    text = str(text)
    room(len(text) + (1 + sum(map(text.count, LINE_ENDS))) * len(space))
    lines = splitlines(text + "\n")  # one line at least, and a last empty one stays
    out = [lines[0], *(space + line if line or blank else line for line in lines[1:])]
    return ("" if not first else space) + "\n".join(out)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as Hugging Face renders it."""
    weigh(value)
    small(indent, INDENT, "an indentation")
    for separator in separators or ():
        small(separator, INDENT, "a separator")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    size, out, budget = 0, list[str](), BUDGET.get()
    for chunk in encoder.iterencode(value):
        budget.step()
        size = room(size + len(chunk))
        out.append(chunk)
    return "".join(out)


def rounded(value: float, precision: int = 0, method: str = "common") -> float:
    """Jinja's round, with a precision that does not ask for a million digits."""
    return JINJA["round"](value, small(precision, INDENT, "a precision"), method)


def sum_filter(items: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> float:
    """Sum of numbers only: adding lists up takes the square of their length."""
    for value in _attributes(items, attribute):
        if not isinstance(value, int | float):
            raise TemplateError(f"the chat template adds up {type(value).__name__}; sum takes numbers")
        start += value
    return start


def join_filter(items: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's join: of the items, or of one attribute of each."""
    return join(d, _attributes(items, attribute))


def list_filter(items: Iterable[Any]) -> list[Any]:
    """Jinja's list, of bounded length."""
    return [] if isinstance(items, Undefined) else few(items)


def escape_filter(value: Any) -> str:
    """Escape the characters that HTML gives a meaning to."""
    return str(escape(text_of(value)))


def _attributes(items: Iterable[Any], attribute: str | int | None) -> list[Any]:
    return few(items) if attribute is None else [item[attribute] for item in few(items)]


def text_of(value: Any) -> str:
    """str() of a value of bounded weight."""
    weigh(value)
    return str(value)


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    name: JINJA[name]
    for name in (
        "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int",
        "items", "last", "length", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select",
        "selectattr", "sort", "title", "unique", "upper",
    )
} | {
    "e": escape_filter,
    "escape": escape_filter,
    "indent": indent,
    "join": join_filter,
    "list": list_filter,
    "replace": replace,
    "round": rounded,
    "safe": text_of,
    "string": text_of,
    "sum": sum_filter,
    "tojson": tojson,
    "trim": _stripping(str.strip),
}  # fmt: skip
"""Filters by name. Those of Jinja itself make nothing larger than what they are given."""

SEQUENCE_FILTERS: Final = frozenset({
    "dictsort", "groupby", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr",
    "sort", "unique",
})  # fmt: skip
"""Filters that make a list of what they are given, even of the characters of a text."""

METHODS: Final[dict[type, dict[str, Callable[..., Any] | None]]] = {
    str: dict.fromkeys((
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "lower", "partition",
        "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "startswith", "swapcase", "title",
        "upper",
    )) | {
        "strip": _stripping(str.strip), "lstrip": _stripping(str.lstrip), "rstrip": _stripping(str.rstrip),
        "split": split, "rsplit": rsplit, "splitlines": splitlines, "replace": replace, "join": join,
    },
    dict: dict.fromkeys(("get", "items", "keys", "values", "copy")),
    list: dict.fromkeys(("count", "index", "copy")),
    tuple: dict.fromkeys(("count", "index")),
    int: dict.fromkeys(("bit_length",)),
    float: dict.fromkeys(("is_integer",)),
}  # fmt: skip
"""Methods of values. None means Python's own, which makes nothing larger than the value."""


def methods_of(value: object) -> dict[str, Callable[..., Any] | None] | None:
    """The table of a value's methods, or None for values that are Jinja's own."""
    for kind, table in METHODS.items():
        if isinstance(value, kind):
            return table
    return None
