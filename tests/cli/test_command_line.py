"""What holds for every verb: help, mistakes, exit statuses, colours, closed and broken streams."""

from __future__ import annotations

import re
import subprocess
import time
from importlib.metadata import version

import pytest

from nocopy.cli.app import VERBS
from tests.cli.run_cli import command, environment, nocopy_cli

ANSI = re.compile(r"\x1b\[")


def test_version_is_that_of_the_package() -> None:
    done = nocopy_cli("--version")
    assert (done.status, done.out) == (0, f"nocopy {version('nocopy')}\n")


def test_version_does_not_wait_for_imports() -> None:
    def seconds(code: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(code, env=environment(), check=True, capture_output=True)
        return time.perf_counter() - start

    nothing = [*command()[:1], "-c", "import importlib.metadata"]
    assert (
        min(seconds(command("--version")) for _ in range(5)) < min(seconds(nothing) for _ in range(5)) + 0.1
    )


def test_help_lists_every_verb_and_ends_with_examples() -> None:
    done = nocopy_cli("--help")
    assert done.status == 0
    for verb in VERBS:
        assert re.search(rf"^\W*{verb}\s", done.out, re.MULTILINE)
    assert done.out.index("Examples:") > done.out.index("completion")
    assert "Exit status:" in done.out


def test_no_arguments_show_the_help() -> None:
    done = nocopy_cli()
    assert done.status == 0
    assert "Usage: nocopy COMMAND" in done.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_that_name_it(verb: str) -> None:
    done = nocopy_cli(verb, "--help")
    assert done.status == 0
    examples = done.out[done.out.index("Examples:") :]
    assert f"nocopy {verb}" in examples
    assert "[default: False]" not in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dvices"], 'Did you mean "devices"?'),
        (["devices", "--jsn"], "Did you mean --json?"),
        (["devices", "extra"], "extra"),
        (["prove", "--device", "vulkn"], "Did you mean vulkan?"),
        (["prove", "--device"], "--device"),
        (["bench", "roundtripp"], "Did you mean roundtrip?"),
        (["bench", "share", "--plot", "x.txt"], ".png"),
        (["bench", "share", "--plot", "no-such-folder/x.png"], "no-such-folder"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_a_mistake_is_one_error_line_and_status_2(arguments: list[str], says: str) -> None:
    done = nocopy_cli(*arguments)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert says in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 2
    assert done.out == ""


def test_debug_shows_where_a_mistake_was_found() -> None:
    done = nocopy_cli("--debug", "bench", "nothing")
    assert done.status == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def test_piped_output_has_no_colours() -> None:
    for arguments in (["--help"], ["devices"], ["devices", "--jsn"]):
        done = nocopy_cli(*arguments)
        assert not ANSI.search(done.out + done.err)


def test_colours_can_be_forced_and_no_color_wins() -> None:
    assert ANSI.search(nocopy_cli("bench", FORCE_COLOR="1").out)
    assert not ANSI.search(nocopy_cli("bench", FORCE_COLOR="1", NO_COLOR="1").out)


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    process = subprocess.Popen(
        command("devices", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 141
    assert err == b""


def test_a_closed_stdout_is_not_taken_for_another_file() -> None:
    line = " ".join(["exec", *command("bench"), ">&-"])
    done = subprocess.run(["sh", "-c", line], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_full_disk_is_said_and_fails() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("bench", "--json"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output could not be written")
    assert len(done.stderr.splitlines()) == 1
