"""Consoles and number formats. Results go to stdout; progress, errors and reports to stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 100  # columns when nobody says how wide the screen is


def console(stream: IO[str] | None = None) -> Console:
    """A console on `stream` (stdout when left out): plain text when piped or when NO_COLOR is set."""
    stream = stream or sys.stdout
    assert stream is not None  # `entry` has opened the standard streams
    plain = bool(os.environ.get("NO_COLOR"))
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, color_system=None if plain else "auto", width=width, highlight=False)


def errors() -> Console:
    """A console on stderr."""
    return console(sys.stderr)


def print_json(value: Any) -> None:
    """Print one JSON object, and nothing else, to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A table without lines around it. Columns named in `right` hold numbers."""
    made = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column in right,
            overflow="fold",
        )
    return made


def size(nbytes: int) -> str:
    """Bytes for people: 512 B, 1 KiB, 16 MiB, 1.5 GiB."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds for people: 340 ns, 12.1 µs, 7.98 ms, 3.2 s."""
    for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def quantity(value: float, unit: str) -> str:
    """A measured value for people: times in the unit that suits them, the rest as they are."""
    return duration(value * SECONDS[unit]) if unit in SECONDS else f"{value:,.4g} {unit}"


def ratio(value: float) -> str:
    """A ratio for people, green when it is at least 1: 0.92x, 4.9x, 1,270x."""
    style = "green" if value >= 1 else "yellow"
    return f"[{style}]{value:,.3g}x[/]" if value < 100 else f"[{style}]{value:,.0f}x[/]"
