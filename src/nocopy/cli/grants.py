"""What a command line grants a guest: directories, variables, limits. In Wasmtime's notation."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from nocopy.errors import UsageError
from nocopy.wasm.limits import Limits
from nocopy.wasm.wasi import Dir

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|m|h)?", re.IGNORECASE)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str, option: str) -> int:
    """Bytes of "65536", "16MiB", "16M" (both 2**24), "1GB" (10**9).

    Raises:
        UsageError: it is not a size.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text!r} was asked for; a size looks like 65536, 64KiB, 16MiB or 1GiB")
    number, prefix, _ = match.groups()
    decimal = text.strip().lower().endswith("b") and not text.strip().lower().endswith("ib")
    return int(float(number) * (1000 if decimal else 1024) ** POWERS[prefix.lower()])


def parse_time(text: str, option: str) -> float:
    """Seconds of "5", "5s", "500ms", "2m".

    Raises:
        UsageError: it is not a time, or not more than 0.
    """
    match = TIME.fullmatch(text.strip())
    seconds = float(match[1]) * SECONDS[(match[2] or "s").lower()] if match else 0.0
    if seconds <= 0:
        raise UsageError(f"{option} {text!r} was asked for; a time is more than 0, like 5s, 500ms or 2m")
    return seconds


def parse_count(text: str, option: str) -> int:
    """A whole number, underscores allowed.

    Raises:
        UsageError: it is not one.
    """
    if not re.fullmatch(r"\d+(_\d+)*", text):
        raise UsageError(f"{option} {text!r} was asked for; it takes a whole number, such as 1_000_000")
    return int(text)


def parse_dir(text: str) -> Dir:
    """A directory of "HOST" or "HOST::GUEST". The guest may read and change what is in it, as in Wasmtime.

    Raises:
        UsageError: there is no such directory.
    """
    host, separator, guest = text.partition("::")
    if not os.path.isdir(host):
        found = "it is not a directory" if os.path.exists(host) else "there is no such directory"
        raise UsageError(f"--dir {text} was asked for; {found}. Make it first, or correct the path.")
    return Dir(host, guest if separator and guest else None, writable=True)


def parse_env(texts: Iterable[str]) -> dict[str, str]:
    """Variables of "NAME=VALUE", or "NAME" for the value that it has here.

    Raises:
        UsageError: a name is empty, or has no value here.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name:
            raise UsageError(f"--env {text!r} was asked for; it takes NAME=VALUE, or NAME")
        if not separator and name not in os.environ:
            raise UsageError(f"--env {name} was asked for; it is not set here. Use --env {name}=VALUE")
        found[name] = value if separator else os.environ[name]
    return found


def parse_names(texts: Iterable[str], option: str, example: str) -> dict[str, str]:
    """Paths of "NAME=FILE" by name.

    Args:
        texts: as they were given.
        option: that takes them, for messages.
        example: one, likewise.

    Raises:
        UsageError: a part is empty, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path:
            raise UsageError(f"{option} {text!r} was asked for; it takes NAME=FILE, such as {example}")
        if name in found:
            raise UsageError(
                f"{option} {text} was asked for; {name!r} is {found[name]} already. Use other names."
            )
        found[name] = path
    return found


def parse_models(texts: Iterable[str]) -> dict[str, str]:
    """Language models of "NAME=FILE" by name. Errors as in `parse_names`."""
    return parse_names(texts, "--model", "default=model.gguf")


LIMITS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "max-memory": ("memory", parse_size),
    "max-memory-size": ("memory", parse_size),
    "timeout": ("deadline", parse_time),
    "fuel": ("fuel", parse_count),
    "max-table-elements": ("table_elements", parse_count),
}
"""Name after -W, the field of `Limits` that it sets, and what reads its value."""


def parse_limits(texts: Iterable[str], others: Collection[str] = ()) -> tuple[Limits, list[tuple[str, str]]]:
    """Limits of "max-memory=64MiB,timeout=5s,fuel=1000000".

    Args:
        texts: as they were given.
        others: names that somebody else knows; the second result has them, with their values.

    Raises:
        UsageError: a name is unknown or a value is wrong.
    """
    limits, rest = Limits(), list[tuple[str, str]]()
    for text in texts:
        for part in text.split(","):
            name, separator, value = part.partition("=")
            if not separator or (name not in LIMITS and name not in others):
                known = ", ".join((*LIMITS, *others))
                raise UsageError(f"-W {part} was asked for; it takes NAME=VALUE with {known}")
            if name in others:
                rest.append((name, value))
            else:
                field, parse = LIMITS[name]
                limits = replace(limits, **{field: parse(value, f"-W {name}")})
    return limits, rest
