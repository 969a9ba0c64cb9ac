"""The agent that is forked at every line: each clone goes its own way, the best one goes on."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

import nocopy
from nocopy.errors import GuestError, UsageError
from nocopy.examples import find
from nocopy.examples.timetravel import Branch, main, picture, travel
from nocopy.models.find import default_model
from tests.cli.run_cli import nocopy_cli

README = Path(__file__).resolve().parents[2] / "examples" / "timetravel" / "README.md"


@pytest.fixture(scope="module")
def tree() -> tuple[str, Branch]:
    return travel(clones=4, rounds=2, device="cpu")


def levels(root: Branch) -> list[list[Branch]]:
    found: list[list[Branch]] = []
    while root.branches:
        found.append(root.branches)
        root = next(b for b in root.branches if b.kept)
    return found


def test_each_round_has_its_clones_and_the_best_is_kept(tree: tuple[str, Branch]) -> None:
    text, root = tree
    assert [len(level) for level in levels(root)] == [4, 4]
    for level in levels(root):
        assert [b.kept for b in level].count(True) == 1
        assert max(level, key=lambda b: b.score).kept
        assert len({b.line for b in level}) > 1
    kept = [next(b for b in level if b.kept).line for level in levels(root)]
    assert text == root.line + "".join(kept)


def test_the_same_seed_gives_the_same_tree_and_another_seed_another(tree: tuple[str, Branch]) -> None:
    assert travel(clones=4, rounds=2, device="cpu") == tree
    assert travel(clones=4, rounds=2, seed=3, device="cpu")[0] != tree[0]


def test_a_line_is_what_the_agent_writes_without_being_forked(tree: tuple[str, Branch]) -> None:
    """A clone that goes on is the agent itself: clone 0 of each fork writes what the agent would write."""
    module = find("examples/timetravel")
    assert module is not None
    args = ["timetravel", tree[1].line, "2"]
    with nocopy.Guest(module, device="cpu", args=args, models={"default": default_model()}) as agent:
        agent.run()
        agent.resume()
        at, length = agent.call("text_at"), agent.call("text_length")
        assert agent.memory.read(at, length).decode() == tree[1].line + tree[1].branches[0].line


def test_the_picture_is_svg_with_every_line_in_it(tree: tuple[str, Branch]) -> None:
    drawn = ElementTree.fromstring(picture(tree[1]))
    texts = [each.text or "" for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) == 9
    assert sum(each.get("font-weight") == "bold" for each in drawn.iter()) == 3


def test_the_readme_shows_what_comes_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--plot", str(tmp_path / "tree.svg")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("def count_words(text):\n")
    assert said.count(" * ") == README.read_text().count("   * ") == 4
    assert (tmp_path / "tree.svg").read_text().startswith("<svg")


def test_numbers_and_prompts_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="at least 1 of each"):
        travel(clones=0)
    with pytest.raises(GuestError):
        travel("x" * 5000, device="cpu")
    assert main(["--clones", "0"]) == 2
    assert "error:" in capsys.readouterr().err


def test_the_command_line_freezes_and_forks_it(tmp_path: Path) -> None:
    model = ("--device", "cpu", "--model", f"default={default_model()}")
    done = nocopy_cli("freeze", *model, "-o", "a", "examples/timetravel", "def add(a, b):", cwd=tmp_path)
    assert done.status == 0
    assert "at the checkpoint 'line'" in done.err
    done = nocopy_cli("fork", *model, "-o", ".", "a", "2", cwd=tmp_path)
    assert done.status == 0
    assert done.out.count("def add(a, b):") == 2
