"""What every benchmark gives back, and that ours and the peer's are treated alike."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.bench import BENCHMARKS, Result, run
from nocopy.bench.chart import draw, parse_size
from nocopy.bench.machine import describe
from nocopy.bench.result import row
from nocopy.bench.timing import LEAST_SAMPLES, interleaved, interval, turns
from nocopy.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_a_ratio_above_1_is_better_whichever_way_the_unit_goes() -> None:
    assert row("call", 2.0, "us", "peer", 10.0)["ratio"] == 5
    assert row("product", 10.0, "GFLOP/s", "peer", 2.0)["ratio"] == 5
    with pytest.raises(ValueError, match="furlong"):
        row("way", 1.0, "furlong", "peer", 1.0)


def test_a_result_has_the_documented_keys() -> None:
    made = Result("x", "cpu", describe(), [row("case", 1, "us", "peer", 2)]).as_dict()
    assert list(made) == ["name", "device", "machine", "rows"]
    assert list(made["rows"][0]) == ["case", "value", "unit", "peer", "peer_value", "ratio"]
    assert {"cpu", "cores", "memory_bytes", "system", "python"} <= set(made["machine"])


def test_contenders_take_turns_and_are_undone_off_the_clock() -> None:
    events: list[str] = []

    def contender(name: str) -> Callable[[], Callable[[], None]]:
        def call() -> Callable[[], None]:
            def undo() -> None:
                sleep(0.02)
                events.append(f"undo {name}")

            events.append(name)
            return undo

        return call

    taken = interleaved({"a": contender("a"), "b": contender("b")}, seconds=0)
    assert events == ["a", "undo a", "b", "undo b"] * (1 + LEAST_SAMPLES)
    assert max(taken.values()) < 0.01


def test_an_unknown_benchmark_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="roundtrip"):
        run("nothing")


@pytest.mark.parametrize("cases", [("1 KiB", "1 MiB", "1024 MiB"), ("1 KiB",)])
def test_every_case_of_a_chart_is_a_size(tmp_path: Path, cases: tuple[str, ...]) -> None:
    rows = [row(case, 1, "us", peer, 1) for case in cases for peer in ("copy", "pinned copy")]
    path = tmp_path / "chart.svg"
    draw(Result("share", "cpu", describe(), rows), "µs", path)
    drawn = path.read_text()
    assert drawn.startswith("<?xml")
    assert [parse_size(case) for case in ("1 KiB", "1 MiB", "1024 MiB")] == [2**10, 2**20, 2**30]


def test_every_benchmark_is_a_module_with_a_script() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert callable(import_module(benchmark.module).rows)
        assert f'["bench", "{name}"' in (ROOT / "bench" / f"{name}.py").read_text()


def test_what_a_picture_would_show_nothing_of_has_no_chart() -> None:
    assert [n for n, b in BENCHMARKS.items() if b.chart] == ["roundtrip", "share", "snapshot"]


@given(st.integers(6, 300), st.integers(0, 2**32 - 1))
def test_an_interval_holds_the_middle_of_its_samples(count, seed):
    samples = np.random.default_rng(seed).standard_normal(count)
    low, high = interval(samples.tolist())
    assert samples.min() <= low <= np.median(samples) <= high <= samples.max()
    assert low in samples
    assert high in samples


def test_an_interval_holds_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [interval((rng.exponential(size=100) ** 3).tolist()) for _ in range(2000)]
    held = np.mean([low <= np.log(2) ** 3 <= high for low, high in found])
    assert 0.94 < held < 0.98


def test_turns_end_when_there_were_as_many_as_were_wanted():
    assert {name: len(taken) for name, taken in turns({"a": int, "b": int}, seconds=60, most=7).items()} == {
        "a": 7,
        "b": 7,
    }
