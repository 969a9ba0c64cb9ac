"""Fetching models from a hub on the loopback, and finding them in the cache afterwards."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nocopy.models.hub_name import HubName
from tests.cli.run_cli import command, environment, nocopy_cli
from tests.models.hub_server import TOKEN, Hub, serving

LARGE = 24 << 20  # more than two of the pieces in which the client writes


@pytest.fixture
def hub():
    with serving() as running:
        yield running


@pytest.fixture
def cli(hub, tmp_path):
    """The command line, with that hub and an empty cache."""

    def run(*arguments, **env):
        return nocopy_cli(*arguments, **(around(hub, tmp_path) | env))

    return run


def around(hub: Hub, folder: Path) -> dict[str, str]:
    home = folder / "hf"
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN": ""}


def test_a_model_is_fetched_by_its_type_listed_and_used(hub, cli, tiny_gguf, playing):
    tiny = tiny_gguf.read_bytes()
    hub.repos["u/r"] = {"README.md": b"x", "m-Q8_0.gguf": tiny, "m-F16.gguf": b"other"}
    done = cli("models", "pull", "u/r:Q8_0")
    assert (done.status, done.err) == (0, "")
    path = Path(done.out.strip())
    assert path.read_bytes() == tiny
    assert path.parent.name == hub.commit
    assert path.is_symlink()
    (listed,) = cli("models", "ls", "--json").json["models"]
    assert (listed["name"], listed["bytes"], listed["path"]) == ("u/r:Q8_0", len(tiny), str(path))
    asked = len(hub.requests)
    done = cli("generate", "-hf", "u/r", "-n", "2", "--device", playing, "heap")
    assert done.status == 0
    assert len(hub.requests) == asked, "a cached model needs no network"


def test_the_hub_s_own_library_finds_what_was_fetched(hub, cli, tmp_path):
    hub.repos["u/r"] = {"m-Q8_0.gguf": b"gguf"}
    path = cli("models", "pull", "u/r").out.strip()
    asks = "hf_hub_download('u/r', 'm-Q8_0.gguf', local_files_only=True)"
    code = f"from huggingface_hub import hf_hub_download; print({asks})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**around(hub, tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == path


def test_generate_fetches_what_the_cache_lacks(hub, cli, tiny_gguf, playing):
    hub.repos["u/r"] = {"m-Q8_0.gguf": tiny_gguf.read_bytes()}
    done = cli("generate", "-hf", "u/r:Q8_0", "-n", "1", "--device", playing, "heap")
    assert done.status == 0
    assert hub.ranges() == [""]


def test_a_cut_connection_is_continued(hub, cli):
    contents = os.urandom(LARGE)
    hub.repos["u/r"] = {"m-Q8_0.gguf": contents}
    hub.cuts = [LARGE - 1000]
    done = cli("models", "pull", "u/r")
    assert (done.status, done.err) == (0, "")
    assert Path(done.out.strip()).read_bytes() == contents
    first, second = hub.ranges()
    assert first == ""
    assert int(second.removeprefix("bytes=").rstrip("-")) >= LARGE // 3


def test_an_interrupted_fetch_goes_on_in_the_next_process(hub, cli, tmp_path):
    contents = os.urandom(LARGE)
    hub.repos["u/r"] = {"m-Q8_0.gguf": contents}
    hub.cuts, hub.stalled = [LARGE - 1000], threading.Event()
    process = subprocess.Popen(
        command("models", "pull", "u/r"),
        env=environment(**around(hub, tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert hub.stalled.wait(60)
    (partial,) = wait_for(lambda: [p for p in tmp_path.rglob("*.incomplete") if p.stat().st_size], 30)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    kept = partial.stat().st_size
    assert 0 < kept < LARGE
    assert "No other models" in cli("models", "ls").out, "half a model is none"
    hub.stalled = None
    done = cli("models", "pull", "u/r")
    assert done.status == 0
    assert hub.ranges()[-1] == f"bytes={kept}-"
    assert Path(done.out.strip()).read_bytes() == contents
    assert not list(tmp_path.rglob("*.incomplete"))


def wait_for(what, seconds):
    for _ in range(int(seconds / 0.05)):
        if found := what():
            return found
        threading.Event().wait(0.05)
    raise AssertionError("it did not happen")


def test_bytes_that_the_hub_did_not_announce_are_dropped(hub, cli, tmp_path):
    hub.repos["u/r"] = {"m-Q8_0.gguf": b"right"}
    hub.wrong = True
    done = cli("models", "pull", "u/r")
    assert done.status == 1
    assert "not those that the hub announced" in done.err
    assert not [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and p.name != "token"]


def test_a_pull_fetches_only_what_changed(hub, cli):
    hub.repos["u/r"] = {"m-Q8_0.gguf": b"one"}
    first = cli("models", "pull", "u/r").out
    assert cli("models", "pull", "u/r").out == first
    assert len(hub.ranges()) == 1
    hub.commit, hub.repos["u/r"] = "d" * 40, {"m-Q8_0.gguf": b"two"}
    second = cli("models", "pull", "u/r").out
    assert Path(second.strip()).read_bytes() == b"two"
    assert second != first
    assert len(cli("models", "ls", "--json").json["models"]) == 1, "the newest hides the older"


def test_a_split_model_is_fetched_whole(hub, cli):
    parts = {f"Q8_0/m-Q8_0-0000{i}-of-00002.gguf": bytes([i]) * 10 for i in (1, 2)}
    hub.repos["u/r"] = dict(parts)
    path = Path(cli("models", "pull", "u/r:Q8_0").out.strip())
    assert path.name == "m-Q8_0-00001-of-00002.gguf"
    assert (path.parent / "m-Q8_0-00002-of-00002.gguf").read_bytes() == bytes([2]) * 10
    del hub.repos["u/r"]["Q8_0/m-Q8_0-00002-of-00002.gguf"]
    hub.commit = "e" * 40
    done = cli("models", "pull", "u/r:Q8_0")
    assert done.status == 1
    assert "lacks its part" in done.err


def test_a_folder_of_safetensors_is_fetched_with_what_it_needs(hub, cli):
    names = ("config.json", "model.safetensors", "tokenizer.json")
    hub.repos["u/r"] = {**dict.fromkeys(names, b"{}"), "pytorch_model.bin": b"-"}
    path = Path(cli("models", "pull", "u/r").out.strip())
    assert sorted(p.name for p in path.iterdir()) == sorted(names)
    (listed,) = cli("models", "ls", "--json").json["models"]
    assert (listed["name"], listed["kind"]) == ("u/r", "safetensors")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("u/missing", "has no model u/missing that you may see"),
        ("u/gated", "grants access on request"),
        ("u/private", "a private one needs HF_TOKEN"),
        ("u/data", "has no GGUF file and no safetensors model"),
        ("u/r:Q2_K", "u/r has Q8_0"),
        ("nonsense", "USER/REPO"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(hub, cli, name, says):
    hub.repos = {
        "u/gated": {"m-Q8_0.gguf": b"x"},
        "u/private": {"m-Q8_0.gguf": b"x"},
        "u/data": {"train.csv": b"x"},
        "u/r": {"m-Q8_0.gguf": b"x"},
    }
    hub.gated, hub.private = {"u/gated"}, {"u/private"}
    done = cli("models", "pull", name)
    assert done.status in (1, 2)
    assert done.err.startswith("error: ")
    assert says in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_a_token_opens_what_is_private_or_gated(hub, cli):
    hub.repos = {"u/gated": {"m-Q8_0.gguf": b"x"}, "u/private": {"m-Q8_0.gguf": b"x"}}
    hub.gated, hub.private = {"u/gated"}, {"u/private"}
    for name in hub.repos:
        assert cli("models", "pull", name, HF_TOKEN=TOKEN).status == 0


def test_a_path_that_leaves_the_cache_is_refused(hub, cli, tmp_path):
    hub.repos["u/r"] = {"../../../../evil-Q8_0.gguf": b"x", "m-Q8_0.gguf": b"x"}
    done = cli("models", "pull", "u/r")
    assert done.status == 1
    assert "cannot be kept" in done.err
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_offline_means_that_nothing_is_asked(hub, cli, how):
    hub.repos["u/r"] = {"m-Q8_0.gguf": b"x"}
    flag, env = (["--offline"], {}) if how == "flag" else ([], {"HF_HUB_OFFLINE": "1"})
    done = cli("generate", "-hf", "u/r", *flag, "hello", **env)
    assert done.status == 1
    assert "not in the cache" in done.err
    assert hub.requests == []


def test_a_hub_that_is_not_there_is_said(tmp_path):
    done = nocopy_cli(
        "models", "pull", "u/r", HF_ENDPOINT="http://127.0.0.1:1", HF_HOME=str(tmp_path), HF_HUB_CACHE=""
    )
    assert done.status == 1
    assert "http://127.0.0.1:1 could not be read" in done.err
    assert len(done.err.splitlines()) == 1


def test_rm_deletes_one_type_and_keeps_the_other(hub, cli, tmp_path):
    hub.repos["u/r"] = {"m-Q8_0.gguf": b"x" * 100, "m-Q4_0.gguf": b"y" * 50}
    for quant in ("Q8_0", "Q4_0"):
        cli("models", "pull", f"u/r:{quant}")
    asked = cli("models", "rm", "u/r:Q8_0")
    assert asked.status == 2
    assert "--yes" in asked.err
    done = cli("models", "rm", "u/r:Q8_0", "--yes", "--json")
    assert done.json == {"deleted": ["u/r:Q8_0"], "bytes": 100}
    assert [m["name"] for m in cli("models", "ls", "--json").json["models"]] == ["u/r:Q4_0"]
    assert cli("models", "rm", "u/r", "--yes").status == 0
    assert not list((tmp_path / "hf" / "hub").glob("models--*"))
    gone = cli("models", "rm", "u/r", "--yes")
    assert gone.status == 2
    assert "not in the cache" in gone.err


def test_without_a_type_the_preferred_one_in_the_cache_is_used(hub, cli):
    hub.repos["u/r"] = {"m-Q8_0.gguf": b"8", "m-IQ1_S.gguf": b"1", "m-F16.gguf": b"16"}
    for quant in ("F16", "IQ1_S", "Q8_0"):
        cli("models", "pull", f"u/r:{quant}")
    assert cli("models", "show", "u/r").err.count("m-Q8_0.gguf") == 1, (
        "it is no model, which is said of that file"
    )
    missing = cli("generate", "-hf", "u/r:Q2_K", "--offline", "x")
    assert (missing.status, "not in the cache" in missing.err) == (1, True)


def test_a_full_disk_is_not_called_the_network(hub, cli, tmp_path):
    hub.repos["u/r"] = {"m-Q8_0.gguf": b"8"}
    (tmp_path / "file").write_bytes(b"")
    done = cli("models", "pull", "u/r", HF_HUB_CACHE=str(tmp_path / "file"))
    assert done.status == 1
    assert f"fetched into {tmp_path / 'file'}; Not a directory" in done.err


def test_rm_never_touches_a_file_outside_the_cache(cli, tiny_gguf):
    done = cli("models", "rm", str(tiny_gguf), "--yes")
    assert done.status == 2
    assert tiny_gguf.is_file()


def test_names_print_as_they_are_read():
    assert str(HubName.parse("u/r:Q8_0")) == "u/r:Q8_0"
