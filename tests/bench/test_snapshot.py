"""The benchmark of frozen conversations: what its rows say, and its picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from nocopy.bench import snapshot
from nocopy.bench.chart import draw
from nocopy.bench.result import Result
from nocopy.device.discovery import open_device
from tests.models.tiny import write_tiny


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The benchmark on a small model, with shorter conversations."""
    model = write_tiny(tmp_path / "m.gguf")
    monkeypatch.setattr(snapshot, "model_file", lambda _kind: model)
    monkeypatch.setattr(snapshot, "tokens", lambda count: [i % 300 for i in range(count)])
    monkeypatch.setattr(snapshot, "LENGTHS", (5, 20, 100))
    monkeypatch.setattr(snapshot, "READ", 20)
    monkeypatch.setattr(snapshot, "SECONDS", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "nocopy").mkdir()
    device = open_device("cpu")
    try:
        return Result("snapshot", "cpu", {"cpu": "here"}, snapshot.rows(device))
    finally:
        device.close()


def test_each_length_is_frozen_thawed_and_gone_on_with(result: Result) -> None:
    cases = [r["case"].split(", ")[0] for r in result.rows]
    measured = ("freeze", "publish", "thaw", "thaw of new", "first token", "at most", "beyond")
    assert cases == [f"{what} {n} tokens" for n in (5, 20, 100) for what in measured]
    assert {r["unit"] for r in result.rows} == {"ms"}
    for low, high in zip(result.rows[4::7], result.rows[5::7], strict=True):
        assert (low["peer"], low["peer_value"]) == (high["peer"], high["peer_value"])
        assert low["value"] <= high["value"]
    assert all(r["value"] <= r["peer_value"] for r in result.rows[6::7])
    assert all(r["value"] > 0 and r["peer_value"] > 0 for r in result.rows if r not in result.rows[6::7])


def test_what_was_not_read_again_says_so(result: Result) -> None:
    peers = {r["case"].split()[1]: r["peer"] for r in result.rows if r["peer"].startswith("re-prefill")}
    assert peers == {"5": "re-prefill", "20": "re-prefill", "100": "re-prefill at the rate of 20"}


def test_the_picture_leaves_out_what_was_not_measured(result: Result, tmp_path: Path) -> None:
    lines = snapshot.lines(result)
    assert {name: sorted(points) for name, points in lines.items()} == {
        "thaw": [5, 20, 100],
        "freeze": [5, 20, 100],
        "write and publish": [5, 20, 100],
        "re-prefill": [5, 20],
    }
    draw(result, "once, ms", tmp_path / "s.svg")
    assert ElementTree.parse(tmp_path / "s.svg").getroot().tag.endswith("svg")
