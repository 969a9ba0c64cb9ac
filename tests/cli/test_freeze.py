"""`nocopy freeze`, `thaw`, `fork`, `run --freeze-on-exit`; `/save` and `/load` in a chat."""

import re
from pathlib import Path

import pytest

from nocopy.snapshot import open_snapshot
from tests.cli.run_cli import nocopy_cli
from tests.models.tiny import write_tiny

NEXT = """(module (memory (export "memory") 1) (global $n (mut i32) (i32.const 0))
  (func (export "next") (param i32) (result i32)
    (global.set $n (i32.add (global.get $n) (local.get 0))) (global.get $n)))"""


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    from tools.guest_compiler import compile_guest

    source = Path(__file__).parents[1] / "interfaces" / "checkpoint.c"
    return str(compile_guest([source], tmp_path_factory.mktemp("c") / "counting.wasm"))


def test_a_run_goes_through_its_checkpoints_to_its_end(counting):
    done = nocopy_cli("run", "--device", "cpu", counting, "25")
    assert done.status == 5
    assert done.out.splitlines()[-1] == "25 oeoeoeoeoeoeoeoeoeoeoeoeo"


def test_a_guest_is_frozen_at_its_first_checkpoint_and_thawed_any_number_of_times(counting, tmp_path):
    done = nocopy_cli("freeze", "--device", "cpu", "-o", "a.nocopy", counting, "12", cwd=tmp_path)
    assert (done.status, done.out) == (0, "start 2\n")
    assert re.search(r"a\.nocopy: [\d.]+ KiB, at the checkpoint 'at 10'", done.err)
    for _ in range(2):
        done = nocopy_cli("thaw", "--device", "reference", "a.nocopy", cwd=tmp_path)
        assert done.status == 2
        assert done.out == "again at 10, generation 1, clone 0\n12 oeoeoeoeoeoe\n"


def test_the_checkpoint_can_be_chosen_and_one_that_never_came_is_an_error(counting, tmp_path):
    wanted = ("freeze", "--device", "cpu", "-o", str(tmp_path / "a"), "--at")
    assert nocopy_cli(*wanted, "at 20", counting, "30").status == 0
    with open_snapshot(tmp_path / "a") as snapshot:
        assert snapshot.manifest.label == "at 20"
    done = nocopy_cli(*wanted, "nowhere", counting, "20")
    assert done.status == 2
    assert "its checkpoints were 'at 10'" in done.err


def test_what_follows_the_guest_is_the_guests(counting, tmp_path):
    wanted = ("freeze", "--device", "cpu", "-o", str(tmp_path / "a"))
    assert nocopy_cli(*wanted, counting, "30", "--help").status == 0
    with open_snapshot(tmp_path / "a") as snapshot:
        assert snapshot.manifest.wasi.args[1:] == ("30", "--help")


def test_clones_tell_which_they_are_and_are_written_on_request(counting, tmp_path):
    nocopy_cli("freeze", "--device", "cpu", "-o", "a.nocopy", counting, "20", cwd=tmp_path)
    done = nocopy_cli("fork", "--device", "cpu", "-o", ".", "a.nocopy", "3", cwd=tmp_path)
    assert done.status == 0
    assert [line for line in done.out.splitlines() if line.startswith("again")] == [
        f"again at 10, generation 2, clone {i}" for i in range(3)
    ]
    assert {p.name for p in tmp_path.iterdir()} == {"a.nocopy", "0.nocopy", "1.nocopy", "2.nocopy"}
    assert nocopy_cli("fork", "a.nocopy", "0", cwd=tmp_path).status == 2


def test_a_signed_file_is_thawed_with_its_key_alone(counting, tmp_path):
    (tmp_path / "mine").write_text("a secret of more than 16 bytes\n")
    (tmp_path / "other").write_text("another secret of some length\n")
    freeze = ("freeze", "--device", "cpu", "-o", "a", "--key", "mine", counting, "20")
    assert nocopy_cli(*freeze, cwd=tmp_path).status == 0
    thaw = ("thaw", "--device", "cpu", "--key")
    assert nocopy_cli(*thaw, "mine", "a", cwd=tmp_path).status == 0
    assert nocopy_cli(*thaw, "other", "a", cwd=tmp_path).status == 1


def test_a_guest_that_ended_is_frozen_and_its_functions_are_called_later(tmp_path):
    (tmp_path / "next.wat").write_text(NEXT)
    run = ("run", "--device", "cpu", "--freeze-on-exit", "n.nocopy", "--invoke", "next", "next.wat", "4")
    assert nocopy_cli(*run, cwd=tmp_path).out == "4\n"
    again = ("thaw", "--device", "cpu", "--invoke", "next", "--freeze-on-exit", "n.nocopy", "n.nocopy", "3")
    assert nocopy_cli(*again, cwd=tmp_path).out == "7\n"
    assert nocopy_cli(*again, cwd=tmp_path).out == "10\n"
    done = nocopy_cli("thaw", "--device", "cpu", "n.nocopy", cwd=tmp_path)
    assert done.status == 2
    assert "at no checkpoint" in done.err


def test_a_missing_or_damaged_file_is_an_error_in_one_line(tmp_path):
    done = nocopy_cli("thaw", str(tmp_path / "none"))
    assert done.status == 2
    assert "No such file" in done.err
    (tmp_path / "bad").write_bytes(bytes(500))
    done = nocopy_cli("thaw", str(tmp_path / "bad"))
    assert done.status == 1
    assert "[magic]" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_conversation_is_saved_and_loaded_by_another_process(tiny_gguf, playing, tmp_path):
    chat = ("chat", "-m", str(tiny_gguf), "--device", playing, "-n", "3", "--temp", "0")
    straight = nocopy_cli(*chat, stdin="the heap\nthe queue\n", cwd=tmp_path).out
    saved = nocopy_cli(*chat, stdin="the heap\n/save a.nocopy\n", cwd=tmp_path)
    assert "2 messages in a.nocopy" in saved.err
    loaded = nocopy_cli(*chat, "-v", stdin="/load a.nocopy\nthe queue\n", cwd=tmp_path)
    assert "nothing is read again" in loaded.err
    assert int(re.findall(r"(\d+) of them were in the cache", loaded.err)[0]) > 0
    assert saved.out + loaded.out == straight


def test_a_conversation_with_another_model_and_a_missing_name_are_refused(tiny_gguf, playing, tmp_path):
    chat = ("chat", "--device", playing, "-n", "1", "-m")
    nocopy_cli(*chat, str(tiny_gguf), stdin="hello\n/save a.nocopy\n", cwd=tmp_path)
    other = write_tiny(tmp_path / "other.gguf", general__name="Another")
    done = nocopy_cli(*chat, str(other), stdin="/load a.nocopy\n", cwd=tmp_path)
    assert done.status == 1
    assert "is another" in done.err
    assert nocopy_cli(*chat, str(tiny_gguf), stdin="/save\n").status == 2
