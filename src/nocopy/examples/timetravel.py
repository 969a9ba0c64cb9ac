"""One agent, forked at every line that it writes: each clone goes on with another seed, the best one is kept.

python -m nocopy.examples.timetravel ["def count_words(text):"] [--clones 8] [--rounds 4] [--plot tree.svg]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from nocopy.errors import Error, UsageError
from nocopy.interfaces.host import DeviceGuest
from nocopy.models.find import default_model

PROMPT = "def count_words(text):"
ROW, COLUMN, SIZE = 22, 350, 12
"""Pixels of the picture: a clone's height, a round's width, the text's size."""


@dataclass
class Branch:
    """What one clone wrote in its round, how likely the model finds all of its text (higher is better), and
    the clones that went on from there.
    """

    line: str
    score: float
    kept: bool = False
    branches: list[Branch] = field(default_factory=list["Branch"])


def travel(
    prompt: str = PROMPT,
    *,
    model: Path | None = None,
    clones: int = 8,
    rounds: int = 4,
    seed: int = 2,
    device: str = "auto",
) -> tuple[str, Branch]:
    """Have an agent write so many lines, each the best of several tries.

    Args:
        prompt: what the text begins with.
        model: a GGUF file or a model folder; None for the model that comes with nocopy.
        clones: tries of each line.
        rounds: lines.
        seed: the same seed gives the same text.
        device: where the model runs.

    Returns:
        The text, and the tree of all tries.

    Raises:
        UsageError: a number is below 1, or there is no such model.
        GuestError: the agent could not go on.
    """
    if clones < 1 or rounds < 1:
        raise UsageError(f"{rounds} rounds of {clones} clones were asked for; at least 1 of each is needed")
    root = Branch(prompt, 0.0, kept=True)
    agent = DeviceGuest(
        Path(__file__).with_name("timetravel.wasm"),
        device=device,
        args=["timetravel", prompt, str(seed)],
        stderr="inherit",
        models={"default": model or default_model()},
    )
    try:
        agent.run()
        at = root
        for _ in range(rounds):
            if agent.checkpoint is None:  # the model has ended its text
                break
            at, agent = choose(agent, at, clones)
        return text_of(agent), root
    finally:
        agent.close()


def choose(agent: DeviceGuest, at: Branch, clones: int) -> tuple[Branch, DeviceGuest]:
    """Fork the agent, have every clone write a line, and go on with the best; the others are closed."""
    before, made = text_of(agent), agent.fork(clones, stderr="inherit")
    best: int | None = None
    try:
        for clone in made:
            clone.resume()
            at.branches.append(Branch(text_of(clone)[len(before) :], clone.call("score")))
        best = max(range(clones), key=lambda i: at.branches[i].score)
        at.branches[best].kept = True
        return at.branches[best], made[best]
    finally:
        for i, clone in enumerate(made):
            if i != best:
                clone.close()
        if best is not None:
            agent.close()


def text_of(agent: DeviceGuest) -> str:
    """All that the agent has written."""
    where, length = agent.call("text_at"), agent.call("text_length")
    return agent.memory.read(where, length).decode(errors="replace")


def picture(root: Branch) -> str:
    """The tree as SVG: a column for each round, what was kept in bold."""
    shapes: list[str] = []
    at, column, y, most = root, 0, 0.0, 0
    text(shapes, 10, 0, root.line, bold=True)
    while at.branches:
        count = len(at.branches)
        top, most = max(0.0, y - (count - 1) / 2), max(most, count)
        x = 10 + COLUMN * column
        column += 1
        for i, branch in enumerate(at.branches):
            width, colour = (2.5, "#1a7f37") if branch.kept else (1, "#9aa0a6")
            start, end = x + COLUMN - 60, 10 + COLUMN * column - 6
            y1, y2 = middle(y), middle(top + i)
            shapes.append(
                f'<path d="M{start} {y1:g} C{start + 40} {y1:g} {end - 40} {y2:g} {end} {y2:g}" fill="none"'
                f' stroke="{colour}" stroke-width="{width}"/>'
            )
            label = f"{branch.score:.2f}  {shown(branch.line)}"
            text(shapes, 10 + COLUMN * column, top + i, label, bold=branch.kept)
            most = max(most, int(top + i) + 1)
        kept = next(i for i, branch in enumerate(at.branches) if branch.kept)
        at, y = at.branches[kept], top + kept
    width, height = 20 + COLUMN * (column + 1), 20 + ROW * max(most, 1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    head += f'font-family="monospace" font-size="{SIZE}" xml:space="preserve">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>", ""])


def middle(row: float) -> float:
    """The height of the middle of a row, in pixels."""
    return 10 + ROW * (row + 0.5)


def text(shapes: list[str], x: float, row: float, content: str, *, bold: bool) -> None:
    """Add a line of text."""
    weight, colour = ("bold", "#111111") if bold else ("normal", "#6b7280")
    shapes.append(
        f'<text x="{x}" y="{middle(row) + SIZE / 3:g}" font-weight="{weight}" fill="{colour}">'
        f"{escape(content)}</text>"
    )


def shown(line: str) -> str:
    """A line that fits its column."""
    one = " ".join(line.split())
    return one if len(one) <= 30 else f"{one[:29]}…"


def main(arguments: list[str] | None = None) -> int:
    """Run from a command line; returns the exit status: 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="python -m nocopy.examples.timetravel", description="Write a program, each line the best of N."
    )
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f"how it begins; {PROMPT!r} unless given")
    parser.add_argument("-m", "--model", type=Path, help="a GGUF file; else the one that comes with nocopy")
    parser.add_argument("--clones", type=int, default=8, help="tries of each line")
    parser.add_argument("--rounds", type=int, default=4, help="lines")
    parser.add_argument("-s", "--seed", type=int, default=2, help="the same seed gives the same text")
    parser.add_argument("--device", default="auto", help="auto, cpu, vulkan, cuda, metal or reference")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the tree")
    o = parser.parse_args(arguments)
    try:
        written, root = travel(
            o.prompt, model=o.model, clones=o.clones, rounds=o.rounds, seed=o.seed, device=o.device
        )
        show(root)
        print(f"\n{written.rstrip()}")
        if o.plot is not None:
            try:
                o.plot.write_text(picture(root), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"the tree was to be drawn in {o.plot}: {error.strerror}") from error
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def show(root: Branch) -> None:
    """Print the tree, a line for each clone."""
    at, depth = root, 0
    print(root.line)
    while at.branches:
        depth += 1
        for branch in at.branches:
            print(f"{'   ' * depth}{'*' if branch.kept else ' '} {branch.score:6.2f}  {shown(branch.line)}")
        at = next(branch for branch in at.branches if branch.kept)


if __name__ == "__main__":
    sys.exit(main())
