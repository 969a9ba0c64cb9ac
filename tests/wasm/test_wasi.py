import sys

import pytest

from nocopy.errors import UsageError
from nocopy.wasm import Dir, Wasi

# Reports what it was given: counts of arguments and variables, bytes of stdin, the errno of what it tries.
PROGRAM = """(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "args") (result i32) (drop (call $args_sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 256))) (i32.load (i32.const 0)))
  (func (export "env") (result i32) (drop (call $env_sizes (i32.const 0) (i32.const 4)))
    (drop (call $env (i32.const 64) (i32.const 256))) (i32.load (i32.const 0)))
  (func (export "read") (param i32) (result i32)
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 64))
    (drop (call $read (local.get 0) (i32.const 0) (i32.const 1) (i32.const 8))) (i32.load (i32.const 8)))
  (func (export "write") (param $fd i32) (param $size i32) (result i32)
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (local.get $size))
    (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func (export "prestat") (result i32) (call $prestat (i32.const 3) (i32.const 0)))
  (func (export "open") (param $size i32) (param $flags i32) (param $rights i64) (result i32)
    (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (local.get $size) (local.get $flags)
      (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 16)))
  (func (export "opened") (result i32) (i32.load (i32.const 16))))"""
BADF, NOSPC, READ, WRITE, CREATE = 8, 51, 2, 64, 1


def test_nothing_is_granted_by_default(guest):
    instance = guest(PROGRAM)
    assert instance.call("args") == 0
    assert instance.call("env") == 0
    assert instance.call("read", 0) == 0
    assert instance.call("prestat") == BADF
    assert instance.call("write", 1, 5) == 0
    assert instance.stdout == b""


def test_arguments_and_variables_arrive(guest):
    instance = guest(PROGRAM, wasi=Wasi(args=["prog", "--n", "é"], env={"KEY": "value"}))
    assert instance.call("args") == 3
    assert instance.memory.read(256, 12) == "prog\0--n\0é\0".encode()
    assert instance.call("env") == 1
    assert instance.memory.read(256, 10) == b"KEY=value\0"


@pytest.mark.parametrize("wasi", [{"args": ["a\0b"]}, {"env": {"a\0": "b"}}, {"env": {"a": "b\0"}}])
def test_text_with_a_nul_is_refused_rather_than_cut(guest, wasi):
    with pytest.raises(UsageError, match="NUL"):
        guest(PROGRAM, wasi=Wasi(**wasi))


def test_stdin_from_bytes_and_from_a_file(guest, tmp_path):
    instance = guest(PROGRAM, wasi=Wasi(stdin=b"given"))
    assert instance.call("read", 0) == 5
    assert instance.memory.read(1024, 5) == b"given"
    (tmp_path / "in").write_bytes(b"filed!")
    instance = guest(PROGRAM, wasi=Wasi(stdin=tmp_path / "in"))
    assert instance.call("read", 0) == 6
    with pytest.raises(UsageError, match="stdin"):
        guest(PROGRAM, wasi=Wasi(stdin=tmp_path / "none"))


def test_output_is_captured_apart(guest):
    instance = guest(PROGRAM, wasi=Wasi(stdout="capture", stderr="capture"))
    instance.memory.write(1024, b"to stdout")
    assert instance.call("write", 1, 9) == 0
    assert instance.call("write", 2, 2) == 0
    assert instance.call("write", 1, 2) == 0
    assert (instance.stdout, instance.stderr) == (b"to stdoutto", b"to")


def test_captured_output_ends_at_its_limit(guest):
    instance = guest(PROGRAM, wasi=Wasi(stdout="capture", capture_limit=100))
    assert instance.call("write", 1, 80) == 0
    assert instance.call("write", 1, 80) != 0
    assert len(instance.stdout) == 80


def test_output_goes_to_a_function_and_its_error_comes_back(guest):
    seen = []
    instance = guest(PROGRAM, wasi=Wasi(stdout=seen.append))
    instance.memory.write(1024, b"abc")
    instance.call("write", 1, 3)
    assert seen == [b"abc"]

    def fail(data):
        raise LookupError("the pipe is gone")

    with pytest.raises(LookupError, match="pipe"):
        guest(PROGRAM, wasi=Wasi(stdout=fail)).call("write", 1, 3)


def test_output_can_be_inherited(python):
    program = (
        "from nocopy.wasm import Guest, Wasi\n"
        f"g = Guest({PROGRAM!r}, wasi=Wasi(stdout='inherit', stderr='inherit'))\n"
        "g.memory.write(1024, b'out')\ng.call('write', 1, 3)\n"
        "g.memory.write(1024, b'err')\ng.call('write', 2, 3)"
    )
    done = python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out", "err")
    assert sys.executable


def test_an_unknown_output_is_refused(guest):
    with pytest.raises(UsageError, match="discard, capture, inherit"):
        guest(PROGRAM, wasi=Wasi(stdout="print"))


def put(instance, text):
    instance.memory.write(1024, text)
    return len(text)


def test_a_directory_is_read_only_unless_it_is_writable(guest, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    instance = guest(PROGRAM, wasi=Wasi(dirs=[Dir(tmp_path, "/data")]))
    assert instance.call("prestat") == 0
    assert instance.call("open", put(instance, b"file"), 0, READ) == 0
    assert instance.call("read", instance.call("opened")) == 7
    assert instance.memory.read(1024, 7) == b"content"
    assert instance.call("open", put(instance, b"new"), CREATE, WRITE) != 0
    assert not (tmp_path / "new").exists()
    writable = guest(PROGRAM, wasi=Wasi(dirs=[Dir(tmp_path, "/data", writable=True)]))
    assert writable.call("open", put(writable, b"new"), CREATE, WRITE) == 0
    assert (tmp_path / "new").exists()


@pytest.mark.parametrize("path", [b"../secret", b"/etc/passwd", b"sub/../../secret", b"link"])
def test_a_guest_cannot_leave_its_directory(guest, tmp_path, path):
    (tmp_path / "secret").write_bytes(b"secret")
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (home / "link").symlink_to(tmp_path / "secret")
    instance = guest(PROGRAM, wasi=Wasi(dirs=[Dir(home, "/")]))
    assert instance.call("open", put(instance, path), 0, READ) != 0


def test_a_directory_that_is_not_there_is_refused(guest, tmp_path):
    with pytest.raises(UsageError, match="not a directory"):
        guest(PROGRAM, wasi=Wasi(dirs=[Dir(tmp_path / "none")]))
