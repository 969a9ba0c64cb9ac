"""The agent asks for a tool that exists with any model, uses it, and has the model answer."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.errors import ExitError
from nocopy.examples import find
from nocopy.interfaces.host import DeviceGuest
from nocopy.wasm import Limits
from tests.cli.run_cli import command, environment, nocopy_cli
from tests.models import tiny
from tests.models.tiny import write_tiny

WORDS = {"wasm": "WebAssembly", "tape": "op records", "ledger": "was copied"}


@pytest.fixture(scope="module", params=["reference", "cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    device = open_device(request.param)
    yield device
    device.close()


def run(model: Path | None, *args: str, status: int = 0, **kw: object) -> DeviceGuest:
    with DeviceGuest(
        find("examples/agent") or Path(),
        args=["agent", *args],
        stdout="capture",
        stderr="capture",
        models={"default": model} if model else {},
        **kw,
    ) as guest:
        with pytest.raises(ExitError) if status else nullcontext() as ended:
            guest.run()
        assert ended is None or ended.value.status == status
    return guest


def lines(guest: DeviceGuest) -> dict[str, str]:
    """What it said, by label."""
    text = guest.stdout.decode(errors="replace")
    return dict(re.findall(r"^(\w+) +(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("template", [tiny.TEMPLATE, None])
@pytest.mark.parametrize("question", ["What is 19 + 23?", 'Say "ledger" \\ tape\n\t\x01 — ünïcode 🦙'])
def test_random_weights_ask_for_a_tool_that_exists(
    device: Device, tmp_path: Path, template: str | None, question: str
) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", template=template, llama__context_length=1024)
    guest = run(model, question, device=device)
    said = lines(guest)
    call = json.loads(said["call"])
    assert call.keys() == {"tool", "arguments"}
    if call["tool"] == "add":
        assert said["result"] == str(call["arguments"]["a"] + call["arguments"]["b"])
    else:
        assert WORDS[call["arguments"]["word"]] in said["result"]
    assert "answer" in said
    reused = re.search(r"; (\d+) more were in the cache", said["prompts"])
    assert reused
    assert int(reused[1]) > 100
    assert guest.ledger.copied == 0


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf")
    assert b"usage: agent QUESTION" in run(model, device="reference", status=2).stderr
    assert b"this guest was granted none" in run(None, "x", device="reference", status=1).stderr
    small = run(model, "What is 19 + 23?", device="reference", status=1)  # 256 tokens of context
    assert b"tokens were given; there is room for 256" in small.stderr
    tight = run(model, "x", device="reference", status=1, limits=Limits(memory=1 << 19))
    assert b"agent: session: error -3" in tight.stderr
    assert b"too long" in run(model, "x" * 3000, device="reference", status=2).stderr


def test_from_the_command_line(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", llama__context_length=1024)
    grant = f"default={model}"
    arguments = ("run", "--device", "reference", "--model", grant, "examples/agent", "What is wasm?")
    # Bytes: what random weights say need not be UTF-8.
    done = subprocess.run(
        command(*arguments), capture_output=True, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"question  What is wasm?" in done.stdout


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        (["model.gguf"], "it takes NAME=FILE"),
        (["=model.gguf"], "it takes NAME=FILE"),
        (["default="], "it takes NAME=FILE"),
        (["default=nowhere.gguf"], "there is no such file or folder"),
        (["a=x", "a=y"], "'a' is x already"),
    ],
)
def test_grants_that_cannot_be(grants: list[str], message: str) -> None:
    options = [part for grant in grants for part in ("--model", grant)]
    done = nocopy_cli("run", "--device", "reference", *options, "examples/agent", "x")
    assert done.status == 2
    assert message in done.err
