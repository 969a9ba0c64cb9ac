"""`nocopy snapshots`."""

import json
import os
import subprocess

import pytest

from nocopy.snapshot import SharedSecret, open_snapshot, write_snapshot
from tests.cli.run_cli import nocopy_cli
from tests.snapshot.made import PAGE, full_manifest, manifest_of, memory_with

SECRET = b"sixteen bytes at least"


@pytest.fixture
def agent(tmp_path):
    """A signed snapshot file, and beside it what is none."""
    memories = [memory_with(20, [0, 19]), memory_with(2, [1], seed=1)]
    path, signer = tmp_path / "agent.snapshot", SharedSecret(SECRET)
    write_snapshot(path, full_manifest(*memories), memories, signer=signer)
    (tmp_path / "notes.txt").write_text("no snapshot")
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    return path


def damage(path) -> None:
    data = bytearray(path.read_bytes())
    data[PAGE + 5] ^= 1
    path.write_bytes(data)


def run(*arguments, **options):
    return nocopy_cli("snapshots", *map(str, arguments), **options)


def test_ls_lists_the_files_of_a_folder(agent):
    done = run("ls", agent.parent)
    assert done.status == 0
    assert "agent.snapshot" in done.out
    assert "notes" not in done.out
    found = run("ls", "--json", cwd=agent.parent).json["snapshots"]
    assert [item["name"] for item in found] == ["agent.snapshot"]
    assert found[0]["memory_bytes"] == 22 * PAGE
    assert found[0]["bytes"] == agent.stat().st_size
    assert found[0]["generation"] == 3


def test_ls_says_which_file_is_broken(agent):
    (agent.parent / "[red]half").write_bytes(agent.read_bytes()[:200])
    found = run("ls", agent.parent, "--json").json["snapshots"]
    assert [item.get("error") for item in found] == ["truncated", None]
    assert "[red]half" in run("ls", agent.parent).out


def test_ls_of_nothing(tmp_path):
    assert "No snapshots" in run("ls", tmp_path).out
    done = run("ls", tmp_path / "gone")
    assert (done.status, done.out) == (2, "")
    assert "No such file" in done.err


def test_show_says_what_a_snapshot_is(agent):
    shown = run("show", agent)
    assert shown.status == 0
    size = "1.25 MiB, 128 KiB in the file"
    for text in ("generation", "memory 0, memory0", size, "hmac-sha256", "app.wasm"):
        assert text in shown.out
    assert "\x01" not in shown.out  # the label's control character
    found = run("show", agent, "--json").json
    with open_snapshot(agent) as snapshot:
        assert found["digest"] == snapshot.digest.hex()
    assert found["stored_bytes"] == 3 * PAGE
    assert found["manifest"]["wasi"]["env"] == [{"name": "LANG", "value": "C"}]
    assert found["manifest"]["sessions"][0]["tokens"] == {"count": 2, "memory": 0, "offset": 0}


def test_show_does_not_read_pages(agent):
    damage(agent)
    assert run("show", agent).status == 0


def test_verify_reads_everything(agent):
    done = run("verify", agent)
    assert (done.status, "sound" in done.out) == (0, True)
    damage(agent)
    done = run("verify", agent, "--json")
    assert done.status == 1
    assert done.json["sound"] is False
    assert "chunk at 0x0 of memory 0" in done.json["snapshots"][0]["error"]
    assert run("verify", agent.parent).status == 1


def test_keys_come_from_files(agent, tmp_path):
    assert run("verify", agent, "--key", tmp_path / "secret").status == 0
    (tmp_path / "other").write_bytes(b"another sixteen bytes")
    done = run("verify", agent, "--key", tmp_path / "other")
    assert done.status == 1
    assert "must be signed by the given key" in done.out
    done = run("show", agent, "--key", tmp_path / "gone")
    assert (done.status, "No such file" in done.err) == (2, True)


def test_ed25519_keys_as_openssl_writes_them(tmp_path):
    from nocopy.snapshot.keys import load_signer

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "private.pem")
    openssl("pkey", "-in", "private.pem", "-pubout", "-out", "public.pem")
    write_snapshot(tmp_path / "a", manifest_of(), [], signer=load_signer(tmp_path / "private.pem"))
    assert run("verify", "a", "--key", "public.pem", cwd=tmp_path).status == 0
    assert run("verify", "a", "--key", "private.pem", cwd=tmp_path).status == 2


def test_gc_of_a_folder_removes_what_crashes_left(agent):
    (agent.parent / ".nocopy-0123456789abcdef.tmp").write_bytes(b"half")
    assert run("gc", agent.parent, "--json").json["bytes"] == 4
    assert sorted(os.listdir(agent.parent)) == ["agent.snapshot", "notes.txt", "secret"]
    assert run("gc", agent.parent / "gone").status == 2


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return str(tmp_path / "store")
    for name, value in request.getfixturevalue("s3").environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://agents/{tmp_path.name}"


def test_a_store_from_push_to_gc(agent, store, tmp_path):
    pushed = run("push", agent, f"{store}#alice/1", "--json").json
    assert (pushed["sent"], pushed["shared"]) == (3 * PAGE, 0)
    assert run("push", agent, f"{store}#alice/2", "--json").json["sent"] == 0
    assert [item["name"] for item in run("ls", store, "--json").json["snapshots"]] == ["alice/1", "alice/2"]
    assert run("show", f"{store}#alice/1", "--json").json == run("show", agent, "--json").json
    assert run("verify", store, "--key", tmp_path / "secret").status == 0
    assert run("verify", f"{store}#alice/1").status == 0

    done = run("pull", f"{store}#alice/2", cwd=tmp_path)
    assert (done.status, done.out) == (0, "2.snapshot\n")
    assert (tmp_path / "2.snapshot").read_bytes() == agent.read_bytes()

    for name in ("alice/1", "alice/2"):
        assert run("rm", f"{store}#{name}").status == 0
    assert run("gc", store, "--json").json["removed"] == 0
    assert run("gc", store, "--grace", "1ms", "--json").json["removed"] == 3
    assert run("ls", store, "--json").json["snapshots"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["push", "gone", "store#a"], "No such file"),
        (["push", "agent.snapshot", "store"], "STORE#NAME is wanted"),
        (["push", "agent.snapshot", "store#../a"], "a name has"),
        (["pull", "#a"], "STORE#NAME is wanted"),
        (["ls", "ftp://host/x"], "can be a store"),
        (["gc", "--grace", "soon"], "a time is more than 0"),
    ],
)
def test_what_is_wrong_is_said(agent, arguments, says):
    done = run(*arguments, cwd=agent.parent)
    assert (done.status, done.out) == (2, "")
    assert says in done.err


def test_a_store_that_is_not_there(agent):
    for arguments in (["pull", "store#a"], ["rm", "store#a"], ["show", "store#a"]):
        done = run(*arguments, cwd=agent.parent)
        assert done.status == 1
        assert "there is none" in done.err
    assert json.loads(run("verify", "store#a", "--json", cwd=agent.parent).out)["sound"] is False
