"""The notation of sizes, times, directories, variables and limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from nocopy.cli import grants
from nocopy.cli.tail import command_index, guest_index
from nocopy.errors import UsageError
from nocopy.wasm.limits import Limits


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64k", 65536),
        ("64KiB", 65536),
        ("16M", 2**24),
        ("1.5GiB", 3 * 2**29),
        ("1GB", 10**9),
        ("7B", 7),
        ("2 MiB", 2**21),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert grants.parse_size(text, "--size") == nbytes


@pytest.mark.parametrize("text", ["", "x", "-1", "1PiB", "1 2", "MiB", "1e9", "inf"])
def test_what_is_no_size_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--size"):
        grants.parse_size(text, "--size")


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("5s", 5), ("500ms", 0.5), ("2m", 120), ("1h", 3600)]
)
def test_times(text: str, seconds: float) -> None:
    assert grants.parse_time(text, "-W timeout") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0s", "-1s", "soon", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="timeout"):
        grants.parse_time(text, "-W timeout")


def test_limits_come_together_and_the_last_of_a_name_counts() -> None:
    found, _ = grants.parse_limits(["max-memory=64MiB,timeout=5s", "fuel=1_000", "timeout=1s"])
    assert found == Limits(memory=2**26, deadline=1.0, fuel=1000)


@pytest.mark.parametrize("text", ["", "fuel", "fuel=", "fuel=x", "fuel=-1", "speed=9", "max-memory=64MiB,"])
def test_wrong_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="-W"):
        grants.parse_limits([text])


def test_directories(tmp_path: Path) -> None:
    assert grants.parse_dir(f"{tmp_path}::/in").guest == "/in"
    assert grants.parse_dir(str(tmp_path)).guest is None
    with pytest.raises(UsageError, match="no such directory"):
        grants.parse_dir(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        grants.parse_dir(str(tmp_path / "file"))


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert grants.parse_env(["A=1", "B=x=y", "C=", "HERE"]) == {"A": "1", "B": "x=y", "C": "", "HERE": "yes"}
    with pytest.raises(UsageError, match="NOT_HERE"):
        grants.parse_env(["NOT_HERE"])
    with pytest.raises(UsageError, match="NAME"):
        grants.parse_env(["=1"])


@pytest.mark.parametrize(
    ("tokens", "at"),
    [
        (["a.wasm", "--help"], 0),
        (["--report", "a.wasm", "-v"], 1),
        (["--device", "cpu", "a.wasm"], 2),
        (["--device=cpu", "a.wasm", "--device", "x"], 1),
        (["-W", "fuel=1", "-Wtimeout=1s", "a.wasm"], 3),
        (["--", "-odd.wasm", "x"], 1),
        (["--report"], None),
        (["--device", "cpu"], None),
        ([], None),
    ],
)
def test_the_guest_is_the_first_token_that_is_no_option_nor_an_options_value(
    tokens: list[str], at: int | None
) -> None:
    assert guest_index(tokens, {"--device", "-W", "--dir"}) == at


def test_the_verb_is_the_first_token_that_is_no_option() -> None:
    assert command_index(["--debug", "run", "x"]) == 1
    assert command_index(["--version"]) is None
