import os
import signal
import struct
import threading
import time

import pytest
import wasmtime

from nocopy.errors import DeadlineError
from nocopy.wasm import Guest, Limits, Wasi

SOURCE = """(module (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "poll") (param i32 i32 i32 i32) (result i32)
    (call $poll (local.get 0) (local.get 1) (local.get 2) (local.get 3)))
  (func (export "_start")
    (drop (call $poll (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 2048)))))"""
IN, OUT, COUNT = 0, 1024, 2048
MONOTONIC, REALTIME, ABSOLUTE = 1, 0, 1


def clock(userdata, timeout, which=MONOTONIC, flags=0):
    return struct.pack("<QB7xI4xQQH6x", userdata, 0, which, timeout, 0, flags)


def descriptor(userdata, kind, fd):
    return struct.pack("<QB7xI28x", userdata, kind, fd)


def ask(guest, *subscriptions):
    """Poll; return the errno and the events as (userdata, error, kind)."""
    guest.memory.write(IN, b"".join(subscriptions))
    error = guest.call("poll", IN, OUT, len(subscriptions), COUNT)
    (count,) = struct.unpack("<I", guest.memory.read(COUNT, 4))
    events = [struct.unpack("<QHB", guest.memory.read(OUT + 32 * i, 11)) for i in range(count)]
    return error, events


def test_sleeping_takes_its_time(guest):
    start = time.monotonic()
    assert ask(guest(SOURCE), clock(77, 60_000_000)) == (0, [(77, 0, 0)])
    assert 0.06 <= time.monotonic() - start < 5


def test_only_the_first_clock_is_ready(guest):
    assert ask(guest(SOURCE), clock(1, 10**12), clock(2, 10_000_000)) == (0, [(2, 0, 0)])


@pytest.mark.parametrize(("which", "now"), [(REALTIME, time.time_ns), (MONOTONIC, time.monotonic_ns)])
def test_absolute_times(guest, which, now):
    start = time.monotonic()
    assert ask(guest(SOURCE), clock(5, now() + 50_000_000, which, ABSOLUTE))[1] == [(5, 0, 0)]
    assert time.monotonic() - start >= 0.045
    assert ask(guest(SOURCE), clock(6, 1, which, ABSOLUTE))[1] == [(6, 0, 0)]


def test_an_unknown_clock_is_an_error_of_its_own(guest):
    assert ask(guest(SOURCE), clock(1, 10**12), clock(2, 5, which=9)) == (0, [(2, 28, 0)])


def test_files_are_ready_at_once(guest):
    assert ask(guest(SOURCE), clock(1, 10**12), descriptor(2, 2, 1)) == (0, [(2, 0, 2)])


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((IN, OUT, 0, COUNT), 28),
        ((IN, OUT, 2000, COUNT), 28),
        ((IN, OUT, -1, COUNT), 28),
        ((65536 - 47, OUT, 1, COUNT), 21),
        ((IN, 65536 - 31, 1, COUNT), 21),
        ((IN, OUT, 1, 65536 - 3), 21),
        ((-1, -1, 1, -1), 21),
    ],
)
def test_impossible_arguments_are_errors_and_nothing_is_waited_for(guest, args, error):
    assert guest(SOURCE).call("poll", *args) == error


def test_sleep_ends_at_the_deadline(guest):
    instance = guest(SOURCE, limits=Limits(deadline=0.1))
    instance.memory.write(IN, clock(1, (1 << 64) - 1))
    start = time.monotonic()
    with pytest.raises(DeadlineError):
        instance.call("poll", IN, OUT, 1, COUNT)
    assert 0.1 <= time.monotonic() - start < 2


def test_ctrl_c_ends_a_sleep():
    with Guest(SOURCE) as instance:
        instance.memory.write(IN, clock(1, 10**15))
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            instance.run()
        timer.join()


def test_standard_input_is_ready_when_something_was_typed(python):
    program = f"""
import os, struct, threading, time
from nocopy.wasm import Guest, Wasi
read, write = os.pipe()
os.dup2(read, 0)
guest = Guest({SOURCE!r}, wasi=Wasi(stdin="inherit"))
subscriptions = struct.pack("<QB7xI28x", 9, 1, 0) + struct.pack("<QB7xI4xQQH6x", 8, 0, 1, 30_000_000, 0, 0)
guest.memory.write(0, subscriptions)
for _ in range(2):
    guest.call("poll", 0, 1024, 2, 2048)
    print(guest.memory.read(2048, 1)[0], guest.memory.read(1024, 1)[0], end=";")
    os.write(write, b"x")
"""
    done = python(program)
    assert done.stdout == "1 8;1 9;", done.stderr


def test_it_agrees_with_wasmtimes_own(guest):
    """For clocks; the time that it takes aside."""
    subscriptions = [clock(1, 10**12), clock(2, 1_000_000), clock(3, 1, REALTIME, ABSOLUTE)]
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    store.set_wasi(wasmtime.WasiConfig())
    linker.define_wasi()
    exports = linker.instantiate(store, wasmtime.Module(engine, SOURCE)).exports(store)
    memory = exports["memory"]
    memory.write(store, b"".join(subscriptions), IN)
    error = exports["poll"](store, IN, OUT, 3, COUNT)
    count = memory.read(store, COUNT, COUNT + 1)[0]
    theirs = {
        struct.unpack("<QHB", memory.read(store, OUT + 32 * i, OUT + 32 * i + 11)) for i in range(count)
    }
    ours_error, ours = ask(guest(SOURCE, wasi=Wasi()), *subscriptions)
    assert ours_error == error == 0
    assert (3, 0, 0) in theirs
    assert set(ours) <= theirs | {(2, 0, 0)}
    assert (3, 0, 0) in ours
