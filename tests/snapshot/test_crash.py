"""Whenever the writer stops, the old snapshot is whole, and the new one is whole or absent."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nocopy.errors import SnapshotWriteError
from nocopy.snapshot import open_snapshot, write_snapshot
from nocopy.snapshot.publish import Publication, leftovers
from tests.snapshot import tracer
from tests.snapshot.crash import REFUSED
from tests.snapshot.made import PAGE, manifest_of, memory_with

traced = pytest.mark.skipif(not tracer.AVAILABLE, reason="the tracer knows the registers of Linux on x86-64")


def broken(way: str, folder: Path) -> list:
    script = Path(__file__).parent / "crash.py"
    # One thread: the program forks.
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, way, folder], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@traced
def test_data_reaches_the_disk_before_the_name_and_the_name_before_success(tmp_path):
    calls = broken("calls", tmp_path)
    rename = calls.index("rename")
    assert calls[:rename][::-1].index("fsync") < calls[:rename][::-1].index("pwrite64")
    assert calls.index("fsync", rename) > rename


@traced
def test_killed_at_every_system_call(tmp_path):
    results = broken("kill", tmp_path)
    for old, before in ((False, "nothing"), (True, "old")):
        runs = [r for r in results if r["old"] == old]
        assert len(runs) > 40
        # A thread may be killed as it ends, when its process has ended already.
        assert all(r["status"] == -signal.SIGKILL or r["hit"].startswith("exit ") for r in runs[:-1])
        assert runs[-1]["status"] == 0  # the run in which there was no such call any more
        assert {r["found"] for r in runs} == {before, "new"}
        assert all(r["found"] == ("new" if r["renamed"] else before) for r in runs)
        assert all(r["leftovers"] == 0 for r in runs if r["found"] == "new")
    assert all(r["strangers"] == 0 for r in results)
    assert any(r["leftovers"] == 1 for r in results)


@traced
def test_a_call_that_fails_is_named_or_does_not_matter(tmp_path):
    results = broken("fail", tmp_path)
    assert {r["error"] for r in results} == {"ENOSPC", "EIO", "EINTR", "EACCES"}
    for r in results:
        assert r["status"] in (0, REFUSED), r
        assert r["found"] == "new" or (r["found"] == "old" and r["status"] == REFUSED), r
        assert (r["leftovers"], r["strangers"]) == (0, 0), r
    for call in ("pwrite64 1", "fsync 1", "rename 1", "openat 3"):
        assert [r["found"] for r in results if r["hit"] == call and r["error"] == "EIO"] == ["old"]


@traced
def test_short_writes_are_continued(tmp_path):
    results = broken("shorten", tmp_path)
    assert len(results) >= 4
    assert all((r["status"], r["found"], r["leftovers"]) == (0, "new", 0) for r in results)
    assert all(r["hit"] for r in results)


@traced
def test_a_disk_that_stays_full(tmp_path):
    results = broken("full", tmp_path)
    assert len(results) >= 4
    assert all((r["status"], r["found"], r["leftovers"]) == (REFUSED, "old", 0) for r in results)


@traced
def test_a_disk_that_nothing_can_be_removed_from(tmp_path):
    (result,) = broken("stuck", tmp_path)
    assert (result["status"], result["found"], result["leftovers"]) == (REFUSED, "old", 1)


def test_a_file_that_may_not_grow_so_large(tmp_path):
    """A real short write: the system writes up to the limit, then refuses."""
    memory = memory_with(40, range(40))
    write_snapshot(tmp_path / "a", manifest_of(), [])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20 * PAGE + 100, before[1]))
        with pytest.raises(SnapshotWriteError, match="too large"):
            write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    open_snapshot(tmp_path / "a").close()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_the_real_disk_is_full(tmp_path):
    """/dev/full answers every write with ENOSPC."""
    with Publication(tmp_path / "a") as file:
        real, file._file = file._file, os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(SnapshotWriteError, match=r"No space left on device. Free space"):
            file.write(0, b"x")
        os.close(file._file)
        file._file = real
    assert not os.listdir(tmp_path)


# What a crash leaves, and who removes it


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    with Publication(tmp_path / "a") as file:
        file.write(0, b"x")
        assert leftovers(tmp_path) == []
    (tmp_path / ".nocopy-0123456789abcdef.tmp").write_bytes(b"half")
    (tmp_path / ".other.tmp").write_bytes(b"somebody else's")
    assert leftovers(tmp_path) == [tmp_path / ".nocopy-0123456789abcdef.tmp"]


def test_a_writer_whose_file_was_cleaned_away_at_once_takes_another(tmp_path, monkeypatch):
    lock, cleaned = fcntl.flock, []

    def clean_first(file, how):
        if not cleaned:
            cleaned.extend(tmp_path.iterdir())
            cleaned[0].unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", clean_first)
    with Publication(tmp_path / "a") as file:
        file.write(0, b"x")
        file.commit()
    assert len(cleaned) == 1
    assert (tmp_path / "a").read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["a"]


def test_two_writers_of_one_name_both_write_whole_files(tmp_path):
    with Publication(tmp_path / "a") as one, Publication(tmp_path / "a") as other:
        one.write(0, b"one")
        other.write(0, b"other")
        other.commit()
        one.commit()
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]
