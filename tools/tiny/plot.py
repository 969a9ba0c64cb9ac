"""Draw the loss curve: python tools/tiny/plot.py bench/results/h200/tiny/loss.csv docs/tiny-loss.png."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    rows = list(csv.DictReader(Path(sys.argv[1]).read_text().splitlines()))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, label in (("train", "training"), ("held_out", "held out")):
        points = [(int(r["step"]), float(r[name])) for r in rows if r[name]]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel="step of 65,536 tokens", ylabel="loss, nats a token", title="The tiny model learns")
    axes.set_ylim(1, 5)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(sys.argv[2], dpi=120)


if __name__ == "__main__":
    main()
