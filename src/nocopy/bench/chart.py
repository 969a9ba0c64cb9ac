"""Pictures of results. Needs matplotlib: `pip install 'nocopy[plot]'`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from math import ceil, floor, inf, log10
from pathlib import Path
from typing import Any

from nocopy.bench.result import Result
from nocopy.bench.runner import BENCHMARKS

OURS = "#0b7a75"
PEERS = ("#c8553d", "#8a8d91", "#b08ea2")
INK = "#2b2d2f"
NAME_HEIGHT = 0.055  # of the picture's height
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def draw(result: Result, what: str, path: Path) -> None:
    """Draw a result: time over size, both on logarithmic axes.

    Cases are sizes ("4 KiB"), unless the benchmark's module has `lines`, which takes a result, and `AXIS`.

    Args:
        result: rows in µs.
        what: the y axis, such as "one round trip, µs".
        path: where to write it; the suffix says which format.
    """
    module = import_module(BENCHMARKS[result.name].module)
    machine = result.machine.get("device") or result.machine["cpu"]
    title = f"{result.name} on {result.device} ({machine})"
    if hasattr(module, "lines"):
        draw_lines(module.lines(result), title, what, path, axis=module.AXIS)
        return
    sizes: list[int] = []
    ours: dict[int, float] = {}
    peers: dict[str, dict[int, float]] = {}
    for row in result.rows:
        size = parse_size(row["case"])
        sizes.append(size)
        ours[size] = row["value"]
        peers.setdefault(row["peer"], {})[size] = row["peer_value"]
    draw_lines({"nocopy": ours, **peers}, title, what, path)


def parse_size(case: str) -> int:
    """Bytes of a case such as "4 KiB"."""
    number, unit = case.split()
    return int(number) * UNITS[unit]


def draw_lines(
    lines: Mapping[str, Mapping[int, float]],
    title: str,
    what: str,
    path: Path,
    *,
    axis: str = "tensor, bytes",
) -> None:
    """One line for each name, labelled at its end; the first is ours. `axis` is what x is."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    drawn = list(zip(lines.items(), (OURS, *PEERS), strict=False))
    for (_, points), color in drawn:
        x, y = zip(*sorted(points.items()), strict=True)
        axes.plot(x, y, color=color, marker="o", markersize=3.5, linewidth=2 if color == OURS else 1.5)
    _dress(axes, sorted(next(iter(lines.values()))), what, axis)
    times = [t for points in lines.values() for t in points.values()]
    lowest = floor(log10(min(times)))
    axes.set_ylim(10**lowest, 10 ** max(ceil(log10(max(times))), lowest + 1))
    _name(axes, [(name, color, *max(points.items())) for (name, points), color in drawn])
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    figure.savefig(path)


def _name(axes: Any, ends: Sequence[tuple[str, str, int, float]]) -> None:
    """Write each line's name at its end, and move names apart that would touch.

    Args:
        axes: with its limits set.
        ends: (name, color, x, y of the last point).
    """
    low, high = (log10(limit) for limit in axes.get_ylim())
    apart = (high - low) * NAME_HEIGHT
    at = -inf
    for name, color, x, y in sorted(ends, key=lambda end: end[3]):
        at = max(log10(y), at + apart)
        axes.annotate(
            name,
            (x, 10**at),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            fontweight="bold" if color == OURS else "normal",
        )


def _dress(axes: Any, sizes: Sequence[int], what: str, axis: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [label(n) for n in sizes], fontsize=8, color=INK)
    axes.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4 * (sizes[-1] / sizes[0]) ** 0.18)
    axes.minorticks_off()
    axes.set_ylabel(what, color=INK)
    axes.set_xlabel(axis, color=INK)
    axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def label(nbytes: int) -> str:
    """A tick: 1K, 64K, 4M, 1G."""
    for unit, letter in ((2**30, "G"), (2**20, "M"), (2**10, "K")):
        if nbytes >= unit:
            return f"{nbytes // unit}{letter}"
    return str(nbytes)
