"""Benchmarks: what nocopy does beside what its peer does, on the machine at hand.

`nocopy bench` and the scripts in `bench/` run them; nothing else imports this package.
The invariant: a row's `ratio` above 1 means that ours is better, whatever the unit.

A benchmark is a module here with `SUMMARY`, one line, and `rows(device, **options) -> list[Row]`.
"""

from nocopy.bench.result import Result, Row
from nocopy.bench.runner import BENCHMARKS, run

__all__ = ["BENCHMARKS", "Result", "Row", "run"]
