"""`nocopy demo` and the examples that come with nocopy, as a newcomer runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nocopy.examples import EXAMPLES
from tests.cli.run_cli import nocopy_cli
from tests.cli.test_prove import fast_device


def test_the_demo_shows_one_memory_and_no_copy() -> None:
    done = nocopy_cli("demo", "--device", fast_device())
    assert (done.status, done.err) == (0, "")
    assert ": right" in done.out
    assert "0 B copied" in done.out
    addresses = {word for word in done.out.split() if word.startswith("0x0000")}
    assert len(addresses) == 1
    assert done.out.index("A guest fills") < done.out.index("submit") < done.out.index("0 B copied")


@pytest.mark.parametrize("name", ["matmul", "examples/matmul", "examples/matmul/"])
def test_examples_are_found_by_name_wherever_one_is(tmp_path: Path, name: str) -> None:
    done = nocopy_cli("run", "--device", fast_device(), name, "16", cwd=tmp_path)
    assert done.status == 0
    assert ": right" in done.out


def test_a_folder_of_sources_stands_for_the_example_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "examples" / "matmul").mkdir(parents=True)
    done = nocopy_cli("run", "--device", fast_device(), "examples/matmul", "16", cwd=tmp_path)
    assert (done.status, ": right" in done.out) == (0, True)


def test_a_misspelt_example_is_recognised(tmp_path: Path) -> None:
    done = nocopy_cli("run", "examples/matmull", cwd=tmp_path)
    assert done.status == 2
    assert "Did you mean matmul?" in done.err
    assert all(name in done.err for name in EXAMPLES)
