"""`nocopy run`: the guest gets its arguments, its streams and what it was granted, and gives its status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.run_cli import Done, command, environment, nocopy_cli

WASI = '(import "wasi_snapshot_preview1"'
MEMORY = '(memory (export "memory") 1)'

# Writes what WASI's args_get gives, arguments ended by NUL, and exits with their number.
ARGUMENTS = f"""(module
  {WASI} "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  {WASI} "args_get" (func $get (param i32 i32) (result i32)))
  {WASI} "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  {WASI} "proc_exit" (func $exit (param i32)))
  {MEMORY}
  (func (export "_start")
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $get (i32.const 64) (i32.const 1024)))
    (i32.store (i32.const 16) (i32.const 1024))
    (i32.store (i32.const 20) (i32.load (i32.const 4)))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))
    (call $exit (i32.load (i32.const 0)))))"""

# Writes the environment, NUL after each, and returns.
VARIABLES = (
    ARGUMENTS.replace("args_", "environ_")
    .replace("(call $exit (i32.load (i32.const 0)))", "")
    .replace(f'{WASI} "proc_exit" (func $exit (param i32)))', "")
)

# Makes "file" in the first folder that it was given, writes "hi" to it, and exits with the errno.
OPENS = f"""(module
  {WASI} "path_open" (func $open
    (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  {WASI} "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  {WASI} "proc_exit" (func $exit (param i32)))
  {MEMORY}
  (data (i32.const 128) "file") (data (i32.const 144) "hi")
  (func (export "_start") (local $errno i32)
    (local.set $errno (call $open (i32.const 3) (i32.const 0) (i32.const 128) (i32.const 4)
      (i32.const 1) (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 32)))
    (if (i32.eqz (local.get $errno)) (then
      (i32.store (i32.const 16) (i32.const 144))
      (i32.store (i32.const 20) (i32.const 2))
      (local.set $errno (call $write (i32.load (i32.const 32)) (i32.const 16) (i32.const 1) (i32.const 24)))))
    (if (local.get $errno) (then (call $exit (local.get $errno))))))"""

MATHS = f"""(module {MEMORY}
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "halves") (param f64) (result f64 f64)
    (f64.div (local.get 0) (f64.const 2)) (f64.div (local.get 0) (f64.const 2)))
  (func (export "nothing"))
  (func (export "boom") unreachable))"""

SPINS = f"""(module
  (import "nocopy" "log" (func $log (param i32 i32 i32) (result i32)))
  {MEMORY} (data (i32.const 8) "spinning")
  (func $spin (export "spin") (drop (call $log (i32.const 1) (i32.const 8) (i32.const 8))) (loop br 0))
  (func (export "_start") (call $spin)))"""

LOGS = f"""(module
  (import "nocopy" "log" (func $log (param i32 i32 i32) (result i32)))
  {MEMORY} (data (i32.const 8) "\\1b[31mred")
  (func (export "_start") (drop (call $log (i32.const 2) (i32.const 8) (i32.const 8)))))"""

GROWS = f"""(module {MEMORY}
  (func (export "_start") (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))))"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = {
        "arguments": ARGUMENTS,
        "variables": VARIABLES,
        "opens": OPENS,
        "maths": MATHS,
        "spins": SPINS,
        "logs": LOGS,
        "grows": GROWS,
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.wat").write_text(text)
    return tmp_path


def run(*arguments: str, cwd: Path, **options: str) -> Done:
    return nocopy_cli("run", "--device", "reference", *arguments, cwd=cwd, **options)


def test_everything_after_the_guest_is_the_guests(folder: Path) -> None:
    given = ["--help", "--device", "cuda", "--", "-x", "", "--json=1", "--debug"]
    done = run("arguments.wat", *given, cwd=folder)
    assert done.out.split("\0")[:-1] == ["arguments.wat", *given]
    assert done.err == ""


def test_a_double_dash_may_stand_before_the_guest(folder: Path) -> None:
    done = run("--", "arguments.wat", "--help", cwd=folder)
    assert done.out.split("\0")[:-1] == ["arguments.wat", "--help"]


def test_the_guests_exit_status_is_the_exit_status(folder: Path) -> None:
    for n in (0, 2, 41):
        assert run("arguments.wat", *(["x"] * n), cwd=folder).status == n + 1


def test_the_guest_sees_only_the_variables_it_is_given(folder: Path) -> None:
    assert run("variables.wat", cwd=folder).out == ""
    done = run("--env", "A=1", "--env", "HERE", "--env", "E=x=y", "variables.wat", cwd=folder, HERE="yes")
    assert done.out.split("\0")[:-1] == ["A=1", "HERE=yes", "E=x=y"]


def test_the_guest_opens_only_the_folders_it_is_given(folder: Path) -> None:
    bad_descriptor = 8  # WASI's errno for a descriptor that is not open
    assert run("opens.wat", cwd=folder).status == bad_descriptor
    (folder / "data").mkdir()
    assert run("--dir", "data::in", "opens.wat", cwd=folder).status == 0
    assert (folder / "data" / "file").read_text() == "hi"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.wasm"], "there is no such file"),
        (["--dir", "nowhere", "maths.wat"], "no such directory"),
        (["--env", "=", "maths.wat"], "NAME=VALUE"),
        (["--env", "NOT_SET_HERE", "maths.wat"], "NOT_SET_HERE"),
        (["-W", "speed=9", "maths.wat"], "max-memory"),
        (["-W", "timeout=soon", "maths.wat"], "timeout"),
        (["--colour", "maths.wat"], "--colour"),
        (["maths.wat"], "--invoke"),
        (["--invoke", "sub", "maths.wat"], "add"),
        (["--invoke", "add", "maths.wat", "1"], "2"),
        (["--invoke", "add", "maths.wat", "1", "two"], "two"),
        (["--invoke", "add", "maths.wat", "1", "4294967296"], "4294967296"),
        ([], "GUEST"),
        (["."], "Name one of them"),
    ],
)
def test_a_mistake_is_one_error_line_and_status_2(folder: Path, arguments: list[str], says: str) -> None:
    done = run(*arguments, cwd=folder)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert says in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_device_that_is_not_here_says_how_to_get_it(folder: Path) -> None:
    done = nocopy_cli(
        "run", "--device", "metal" if os.uname().sysname == "Linux" else "cuda", "maths.wat", cwd=folder
    )
    assert done.status == 1
    assert done.err.startswith("error: device ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "not WebAssembly"),
        (b"", "not WebAssembly"),
        (b"\0asm\x01\0\0\0junk", "not valid"),
        (b"(module", "text"),
        (b"(module)", "memory"),
        (b'(module (import "x" "y" (func)) (memory (export "memory") 1))', "x.y"),
    ],
)
def test_what_is_no_guest_is_said(folder: Path, content: bytes, says: str) -> None:
    (folder / "guest.wasm").write_bytes(content)
    done = run("guest.wasm", cwd=folder)
    assert done.status == 1
    assert done.err.startswith("error: ")
    assert says in done.err
    assert "Traceback" not in done.err


def test_functions_are_called_with_numbers(folder: Path) -> None:
    assert run("--invoke", "add", "maths.wat", "2", "-0x10", cwd=folder).out == "-14\n"
    assert run("--invoke", "halves", "maths.wat", "3", cwd=folder).out == "1.5\n1.5\n"
    assert run("--invoke", "nothing", "maths.wat", cwd=folder).out == ""


def test_a_trap_is_134_and_says_where(folder: Path) -> None:
    done = run("--invoke", "boom", "maths.wat", cwd=folder)
    assert done.status == 134
    assert "unreachable" in done.err
    assert "Traceback" not in done.err


def test_a_guest_without_end_is_ended_by_time_and_by_fuel(folder: Path) -> None:
    late = run("-W", "timeout=200ms", "spins.wat", cwd=folder)
    assert (late.status, "0.2 s" in late.err) == (134, True)
    empty = run("-Wfuel=1000", "spins.wat", cwd=folder)
    assert (empty.status, "fuel" in empty.err) == (134, True)


def test_a_guest_that_starts_out_too_large_is_refused_and_growth_fails_inside(folder: Path) -> None:
    assert run("-W", "max-memory=1KiB", "grows.wat", cwd=folder).status == 1
    assert run("-W", "max-memory=64KiB", "grows.wat", cwd=folder).status == 134  # it traps if it cannot grow
    assert run("-W", "max-memory=2MiB", "grows.wat", cwd=folder).status == 0


def test_what_a_guest_logs_goes_to_stderr_without_control_characters(folder: Path) -> None:
    done = run("logs.wat", cwd=folder)
    assert done.out == ""
    assert done.err == "warning: \\x1b[31mred\n"


@pytest.mark.parametrize("invoke", [[], ["--invoke", "spin"]])
def test_control_c_ends_a_guest_that_never_calls_the_host(folder: Path, invoke: list[str]) -> None:
    process = subprocess.Popen(
        command("run", "--device", "reference", *invoke, "spins.wat"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"info: spinning\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")


def test_the_report_is_on_stderr_and_stdout_stays_the_guests(folder: Path) -> None:
    done = run("--report", "arguments.wat", cwd=folder)
    assert done.out == "arguments.wat\0"
    assert "one pointer" in done.err
    assert "copied" in done.err


def test_the_report_as_json_has_the_documented_keys(folder: Path) -> None:
    done = run("--json", "grows.wat", cwd=folder)
    assert done.out == ""
    report = json.loads(done.err)
    assert list(report) == [
        "guest",
        "device",
        "product",
        "mode",
        "pointers",
        "same_pointer",
        "memory_bytes",
        "ledger",
        "seconds",
    ]
    assert report["guest"] == "grows.wat"
    assert report["memory_bytes"] == 17 * 65536 == report["ledger"]["shared"]
    assert len(set(report["pointers"].values())) == 1
    assert report["ledger"]["copied"] == 0


def test_the_report_comes_after_a_trap_too(folder: Path) -> None:
    done = run("--report", "-W", "fuel=1000", "spins.wat", cwd=folder)
    assert done.status == 134
    assert "one pointer" in done.err


def test_a_folder_stands_for_the_guest_in_it(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "one" / "anything.wat").write_text(ARGUMENTS)
    assert run("one", cwd=folder).out == "anything.wat\0"
    (folder / "one" / "one.wat").write_text(ARGUMENTS)
    assert run("one/", cwd=folder).out == "one.wat\0"
    (folder / "empty").mkdir()
    done = run("empty", cwd=folder)
    assert (done.status, "no .wasm" in done.err) == (2, True)
