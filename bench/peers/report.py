"""Results of `cuda_peers.py`, `cuda_fidelity.py` and `cuda_decode.py` for people: tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nocopy.bench.chart import INK, OURS, PEERS

NAMES = {"bf16": "bf16", "f16": "f16"} | {
    kind.lower(): kind for kind in ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q4_K_M", "Q5_K_M")
}


def markdown(result: dict[str, Any]) -> str:
    """A table for each type of weights, then what is missing."""
    machine = result["machine"]
    where = machine.get("device") or machine["cpu"]
    lines = [f"{result['model']} on one {where}, {machine['system']}."]
    if result["read GB/s"]:
        lines[0] += f" A kernel that sums 4 GiB reads {result['read GB/s']:,.0f} GB/s."
    for kind in result["floor"]:
        lines += ["", *table(result, kind)]
    if result["missing"]:
        lines += ["", "Not measured:", ""]
        reasons: dict[tuple[str, str], list[str]] = {}
        for m in result["missing"]:
            reasons.setdefault((m["contender"], m["why"]), []).append(NAMES[m["type"]])
        lines += [f"- {name} in {' and '.join(kinds)}: {why}" for (name, why), kinds in reasons.items()]
    return "\n".join(lines)


def table(result: dict[str, Any], kind: str) -> list[str]:
    """The rows of one type: decoding in ms a token, with how many times ours that is; prefill in tokens/s."""
    found = [m for m in result["measured"] if m["type"] == kind]
    cases = list(dict.fromkeys(case for m in found for case in m["cases"]))
    ours = next((m["cases"] for m in found if m["contender"] == "nocopy"), dict[str, Any]())
    rows = [f"| {NAMES[kind]} | {' | '.join(cases)} | how |", f"| --- |{' ---: |' * len(cases)} --- |"]
    for m in found:
        values = " | ".join(cell(m["cases"].get(case), ours.get(case)) for case in cases)
        how = m["how"]
        if "agrees" in m and m["contender"] != "nocopy":
            how += f"; draws nocopy's first {m['agrees']} of {len(m['tokens'].split())} tokens"
        rows.append(f"| {m['contender']} {m['version']} | {values} | {how} |")
    floor = result["floor"][kind]
    if "ms" in floor:
        values = " | ".join(f"{floor['ms']:.3f}" if "decode" in case else "" for case in cases)
        rows.append(f"| floor | {values} | {floor['bytes a token'] / 1e9:.3f} GB, read once |")
    return rows


def cell(found: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    """A value, and nocopy's speed as a multiple of it."""
    if found is None:
        return ""
    per_token = found["unit"] == "ms a token"
    value = f"{found['value']:.3f}" if per_token else f"{found['value']:,.0f}"
    if ours is None or ours is found:
        return value
    ratio = found["value"] / ours["value"] if per_token else ours["value"] / found["value"]
    return f"{value} ({ratio:.2f})"


def fidelity(result: dict[str, Any]) -> str:
    """A table of errors, then one of greedy tokens."""
    columns = [f"{who}, {what}" for what in ("rms", "max") for who in ("nocopy", "transformers bf16")]
    lines = [f"| error against float32 | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    errors = [row for row in result["rows"] if columns[0] in row]
    lines += [f"| {row['case']} | {' | '.join(f'{row[c]:.1e}' for c in columns)} |" for row in errors]
    lines += ["", "| greedy tokens | nocopy | transformers bf16 |", "| --- | ---: | ---: |"]
    drawn = [row for row in result["rows"] if columns[0] not in row]
    lines += [f"| {row['case']} | {row['nocopy']} | {row['transformers bf16']} |" for row in drawn]
    machine = result["machine"]
    return "\n".join(lines) + f"\n\nOn one {machine.get('device') or machine['cpu']}."


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars: ms a token of each contender by type of weights, shortest start; a line at each floor."""
    from matplotlib.figure import Figure

    case = next(c for m in result["measured"] for c in m["cases"] if c.startswith("decode"))
    kinds = [k for k in result["floor"] if any(m["type"] == k for m in result["measured"])]
    shown = {k: [m for m in result["measured"] if m["type"] == k and case in m["cases"]] for k in kinds}
    names = list(dict.fromkeys(m["contender"] for m in result["measured"]))
    colors = dict(zip(names, (OURS, *PEERS, "#d9a441", "#6b8fb3"), strict=False))
    figure: Any = Figure(figsize=(8, 1 + 0.34 * sum(len(v) + 1 for v in shown.values())), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    longest = max(m["cases"][case]["value"] for v in shown.values() for m in v)
    limit = min(longest, 4 * min(m["cases"][case]["value"] for v in shown.values() for m in v))
    y, ticks = 0.0, list[tuple[float, str]]()
    for kind, found in shown.items():
        top = y - 0.5
        for m in sorted(found, key=lambda m: m["cases"][case]["value"]):
            value = m["cases"][case]["value"]
            axes.barh(y, min(value, limit), 0.72, color=colors[m["contender"]])
            cut = " →" if value > limit else ""
            axes.text(min(value, limit), y, f" {value:.2f}{cut}", va="center", fontsize=8, color=INK)
            ticks.append((y, f"{m['contender']}, {NAMES[kind]}"))
            y += 1
        floor = result["floor"][kind].get("ms")
        if floor:
            axes.plot([floor, floor], [top, y - 0.5], color=INK, linewidth=1.2, linestyle="--")
            axes.text(floor, top, f"{floor:.2f} ", fontsize=7, color=INK, va="bottom", ha="right")
        y += 0.6
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, limit * 1.12)
    axes.set_xlabel("ms a token; dashed: the weights read once at the memory's measured speed", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    machine = result["machine"].get("device") or result["machine"]["cpu"]
    axes.set_title(f"{result['model']}, {case} tokens ({machine})", loc="left", fontsize=11, color=INK)
    figure.savefig(path)


def draw_decode(files: Mapping[str, Path], path: Path) -> None:
    """Bars: ms a greedy token of `cuda_decode.py` by type of weights, after the shorter prompt, with the time
    to read the weights once in another colour.

    Args:
        files: results by type of weights, of which those that do not exist are left out.
        path: where the picture goes.
    """
    from matplotlib.figure import Figure

    found = {kind: json.loads(file.read_text()) for kind, file in files.items() if file.exists()}
    figure: Any = Figure(figsize=(7, 0.9 + 0.42 * len(found)), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for y, rows in enumerate(found.values()):
        floor = next(row["value"] for row in rows if row["case"].startswith("weights read once"))
        taken = next(row["value"] for row in rows if row["case"].startswith("greedy"))
        axes.barh(y, taken, 0.66, color=PEERS[1])
        axes.barh(y, floor, 0.66, color=OURS)
        axes.text(
            taken, y, f" {taken:.2f}  ({100 * floor / taken:.0f} %)", va="center", fontsize=9, color=INK
        )
    axes.set_yticks(range(len(found)), [NAMES[kind] for kind in found], color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel("ms a greedy token; green: the weights read once at the memory's speed", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.set_title(f"1.24 B parameters, one sequence ({path.parent.name.upper()})", loc="left", color=INK)
    figure.savefig(path)
