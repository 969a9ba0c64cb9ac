"""`nocopy chat`: piped, typed in a terminal, its commands, its history."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from nocopy.cli.chat import COMMANDS
from tests.cli.run_cli import command, environment, nocopy_cli
from tests.models.tiny import write_tiny

QUIET = ("-n", "3", "--temp", "0")


@pytest.fixture
def arguments(tiny_gguf, playing):
    return ("chat", "-m", str(tiny_gguf), "--device", playing)


def test_each_piped_line_is_a_message(arguments):
    done = nocopy_cli(*arguments, *QUIET, "-v", stdin="the heap\n\nthe queue\n")
    assert done.status == 0
    first, second = re.findall(r"prompt +(\d+) tokens", done.err)
    assert int(second) > int(first)
    (reused,) = re.findall(r"(\d+) of them were in the cache", done.err)
    assert int(reused) >= int(first)


def test_a_message_may_have_several_lines(arguments):
    def tokens(stdin):
        return re.findall(r"prompt +(\d+) tokens", nocopy_cli(*arguments, *QUIET, "-v", stdin=stdin).err)

    assert len(tokens("a\nb\n")) == 2
    assert tokens('"""a\nb"""\n') == tokens("a\\\nb\n")
    assert len(tokens('"""a\nb"""\n')) == 1


def test_one_question_can_be_asked(arguments):
    done = nocopy_cli(*arguments, *QUIET, "-p", "the heap")
    assert done.status == 0
    assert done.out == nocopy_cli(*arguments, *QUIET, stdin="the heap\n").out


def test_commands_work_in_a_pipe(arguments):
    lines = ["the heap", "/tokens", "/regen", "/system Be brief.", "/tokens", "the heap", "/clear", "/tokens"]
    done = nocopy_cli(*arguments, *QUIET, stdin="\n".join(lines))
    assert done.status == 0
    counted = re.findall(r"(\d+) messages, (\d+) of 256 tokens", done.err)
    assert [int(messages) for messages, _ in counted] == [2, 1, 1]


def test_quit_ends_at_once(arguments):
    done = nocopy_cli(*arguments, *QUIET, stdin="/quit\nthe heap\n")
    assert (done.status, done.out) == (0, "")


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        ("/hepl\n", "Did you mean /help?"),
        ("/regen\n", "there is none yet"),
        ("word " * 300, "the context of 256 has no room"),
    ],
)
def test_a_mistake_in_a_pipe_ends_it(arguments, stdin, says):
    done = nocopy_cli(*arguments, *QUIET, stdin=stdin)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert says in done.err


def test_a_model_that_cannot_converse_says_so_before_anything_is_typed(tmp_path, playing):
    path = write_tiny(tmp_path / "base.gguf", template=None)
    done = nocopy_cli("chat", "-m", str(path), "--device", playing, stdin="")
    assert done.status == 2
    assert "Tiny has no chat template" in done.err
    chatml = nocopy_cli(
        "chat", "-m", str(path), "--device", playing, "--chat-template", "chatml", *QUIET, stdin="hi\n"
    )
    assert chatml.status == 0


class Terminal:
    """A person at a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process, self.descriptor, self.seen = process, descriptor, ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str, seconds: float = 30) -> str:
        """What was shown up to `text`, which it removes."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come; there was {self.seen!r}"
            ready, _, _ = select.select([self.descriptor], [], [], 0.1)
            if ready:
                self.seen += os.read(self.descriptor, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C until `text` is shown: one pressed as a prompt appears can be lost."""
        for _ in range(30):
            os.killpg(self.process.pid, signal.SIGINT)
            with suppress(AssertionError):
                self.wait_for(text, 1)
                return
        raise AssertionError(f"{text!r} did not come; there was {self.seen!r}")

    def wait_for_anything(self, seconds: float = 30) -> None:
        """Return once something is shown, which stays to be waited for."""
        if not self.seen:
            assert select.select([self.descriptor], [], [], seconds)[0], "nothing came"


@contextmanager
def terminal(*arguments: str, **env: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(**({"NO_COLOR": "1"} | env)),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_person_can_talk_and_leave(arguments, tmp_path):
    state = {"XDG_STATE_HOME": str(tmp_path)}
    with terminal(*arguments, *QUIET, **state) as screen:
        assert "Tiny on" in screen.wait_for(">>> ")
        screen.type("/help\r")
        shown = screen.wait_for(">>> ")
        assert all(name in shown for name in COMMANDS)
        screen.type("the heap\r")
        screen.wait_for("tokens were made")
        screen.wait_for(">>> ")
        screen.type("/nonsense\r")
        assert "error: the command /nonsense" in screen.wait_for(">>> ")
        screen.type("\x04")
        assert screen.process.wait(timeout=30) == 0
    history = tmp_path / "nocopy" / "chat_history"
    assert "the heap" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0, "what was said is its owner's alone"


def test_ctrl_c_stops_the_answer_and_not_the_conversation(arguments, tmp_path):
    with terminal(*arguments, "--ignore-eos", "--no-history", XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for(">>> ")
        screen.type("the heap\r")
        screen.wait_for("the heap\r\n")
        screen.wait_for_anything()
        os.killpg(screen.process.pid, signal.SIGINT)
        screen.wait_for(">>> ")
        time.sleep(0.8)  # longer than the grace that other verbs have
        screen.type("/tokens\r")
        assert re.search(r"\d messages, \d+ of 256 tokens", screen.wait_for(">>> "))
        screen.interrupt_until("/quit ends")
        screen.wait_for(">>> ")
        screen.type("/quit\r")
        assert screen.process.wait(timeout=30) == 0
    assert not list(tmp_path.rglob("*"))


def test_a_terminal_gets_signs_for_control_characters(tmp_path, playing, arguments):
    grammar = 'root ::= "a" "\\x1b" "[2J"'
    with terminal(*arguments, "--grammar", grammar, "-p", "x") as screen:
        shown = screen.wait_for("[2J")
        assert "\N{SYMBOL FOR ESCAPE}" in shown
        assert "a\x1b" not in shown
