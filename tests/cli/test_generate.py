"""`nocopy generate`: where the prompt comes from, what goes to which stream, how it ends."""

import json
import os
import re
import signal
import subprocess

import pytest

from tests.cli.run_cli import command, environment, nocopy_cli
from tests.models.tiny import CONTEXT


@pytest.fixture
def generate(tiny_gguf, playing):
    def run(*arguments, **more):
        return nocopy_cli("generate", "-m", str(tiny_gguf), "--device", playing, *arguments, **more)

    return run


def test_the_prompt_may_come_from_anywhere(generate, tmp_path):
    (tmp_path / "prompt").write_text("the heap\n")
    flags = ("-n", "8", "-s", "1")
    wanted = generate("the heap", *flags).out
    assert wanted
    assert generate("-p", "the heap", *flags).out == wanted
    assert generate("-f", str(tmp_path / "prompt"), *flags).out == wanted
    assert generate(*flags, stdin="the heap\n").out == wanted
    assert generate("the heap", "--echo", *flags).out == "the heap" + wanted
    assert generate("-p", "-x", "-n", "0", "--echo").out == "-x"


def test_stdout_has_the_text_and_nothing_else(generate):
    done = generate("the heap", "-n", "8", "-s", "1", "-v")
    assert done.out == generate("the heap", "-n", "8", "-s", "1", "--json").json["text"]
    for line in ("prompt", "generated  8 tokens", "tokens/s", "seed       1", "copied     0 B"):
        assert line in done.err


def test_json_is_one_object_with_tokens_times_and_seed(generate, playing):
    found = generate("the heap", "-n", "5", "--ignore-eos", "--json").json
    assert len(found["tokens"]) == found["generated"] == 5
    assert (found["finish"], found["device"], found["context"]) == ("length", playing, CONTEXT)
    assert found["ledger"]["copied"] == 0
    again = generate("the heap", "-n", "5", "--ignore-eos", "--json", "-s", str(found["seed"])).json
    assert again["tokens"] == found["tokens"]


def test_sampling_options_change_what_comes(generate):
    greedy = generate("the heap", "-n", "8", "--temp", "0", "--json").json["tokens"]
    assert generate("the heap", "-n", "8", "--top-k", "1", "--json").json["tokens"] == greedy
    found = generate("the heap", "-n", "4", "--temp", "0", "--logit-bias", "65+999", "--json").json
    assert found["tokens"] == [65] * 4
    banned = generate("the heap", "-n", "1", "--temp", "0", "--logit-bias", f"{greedy[0]}-inf", "--json").json
    assert banned["tokens"] != greedy[:1]
    options = ["--top-p", "0.5", "--min-p", "0.1", "--typical", "0.9", "--repeat-penalty", "1.1"]
    more = ["--presence-penalty", "0.1", "--frequency-penalty", "0.1", "--repeat-last-n", "-1"]
    assert generate("the heap", "-n", "4", "--kv", "q8_0", *options, *more).status == 0


def test_stop_strings_and_schemas_bind_the_text(generate, tmp_path):
    schema = {"enum": ["heap", "queue"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), str(tmp_path / "schema.json")):
        assert json.loads(generate("x", "-j", given, "-s", "1").out) in schema["enum"]
    assert generate("x", "--grammar", 'root ::= "a-b-c"').out == "a-b-c"
    assert generate("x", "--grammar", 'root ::= "a-b-c"', "--stop", "-c").out == "a-b"


def test_a_system_message_makes_it_a_conversation(generate):
    plain = generate("the heap", "-n", "1", "--json").json["prompt_tokens"]
    turns = generate("the heap", "-n", "1", "--json", "--system", "Be brief.").json["prompt_tokens"]
    assert turns > plain + 5


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["-c", "4", "the heap is a list"], 2, "tokens; the context of 4 has no room for it"),
        (["-c", "1000", "x"], 2, f"1000 tokens was asked for; this model was trained for {CONTEXT}"),
        (["x", "-p", "y"], 2, "several prompts"),
        (["x", "--temp", "-1"], 2, "temperature = -1"),
        (["x", "-n", "-5"], 2, "-n -5"),
        (["x", "--kv", "q4"], 2, "q4"),
        (["x", "--logit-bias", "5"], 2, "TOKEN+BIAS"),
        (["x", "-f", "no-such-file"], 2, "several prompts"),
        (["-f", "no-such-file"], 2, "No such file"),
        (["x", "-j", "no-such-file"], 2, "No such file"),
        (["x", "-j", "{"], 2, "cannot be read"),
        (["x", "-hf", "u/r"], 2, "-m and -hf"),
        (["x", "--chat-template", "no-such-file"], 2, "--chat-template no-such-file"),
        (["x", "--tmp", "1"], 2, "--temp"),
    ],
)
def test_a_mistake_is_one_error_line(generate, arguments, status, says):
    done = generate(*arguments)
    assert done.status == status
    assert done.err.startswith("error: ")
    assert says in done.err
    assert len(done.err.splitlines()) <= 2
    assert done.out == ""


@pytest.mark.parametrize(
    ("name", "contents", "status", "says"),
    [
        ("gone.gguf", None, 2, "there is no such file or folder"),
        ("junk.gguf", b"junk" * 10, 1, "[magic]"),
        ("u/r", None, 2, "named with -hf u/r"),
    ],
)
def test_a_model_that_is_none_is_said(tmp_path, name, contents, status, says):
    if contents:
        (tmp_path / name).write_bytes(contents)
    done = nocopy_cli("generate", "-m", name, "x", cwd=tmp_path)
    assert done.status == status
    assert says in done.err
    assert "Traceback" not in done.err


def test_without_a_default_model_the_way_to_one_is_said(tmp_path):
    done = nocopy_cli("generate", "x", NOCOPY_MODEL=str(tmp_path / "gone"))
    assert done.status == 2
    assert "NOCOPY_MODEL" in done.err


def test_the_default_model_can_be_chosen(tiny_gguf, playing):
    done = nocopy_cli("generate", "x", "-n", "2", "--device", playing, "--json", NOCOPY_MODEL=str(tiny_gguf))
    assert done.json["model"] == "Tiny"


def test_text_comes_as_it_is_made_and_ctrl_c_ends_cleanly(tiny_gguf, playing, tmp_path):
    process = subprocess.Popen(
        command("generate", "-m", str(tiny_gguf), "--device", playing, "--ignore-eos", "--report", "heap"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1), "the first piece came before the end"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, 0)  # 0: it was done before the signal
    assert b"Traceback" not in err
    assert re.search(rb"generated\s+\d+ tokens", err)


def test_a_reader_that_goes_away_ends_it(tiny_gguf, playing):
    process = subprocess.Popen(
        command("generate", "-m", str(tiny_gguf), "--device", playing, "--ignore-eos", "heap"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")
