"""A callback that a signal handler interrupts at its first instruction must still return a value it chose."""

import ctypes
import os
import signal
import sys
import threading

import pytest

from nocopy.wasm import Guest, HostFunction
from nocopy.wasm.guard import Range, compile_function, cover_entry, read_table, write_table

CALLBACK = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t)
SOURCE = """
def callback(value):
    try:
        return value + 1
    except BaseException as error:
        caught.append(error)
        return 12345
"""


class Interrupted(BaseException):
    pass


@pytest.fixture
def raising_signal():
    """A signal whose handler raises."""

    def handler(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def test_tables_survive_decoding_and_encoding():
    table = compile_function(SOURCE, "callback", {}).__code__.co_exceptiontable
    assert write_table(read_table(table)) == table
    long = [Range(0, 70, 5000, 3), Range(1 << 20, 1, 63, 64)]
    assert read_table(write_table(long)) == long


def test_entry_is_covered():
    caught = []
    plain = compile_function(SOURCE, "callback", {"caught": caught})
    before = sorted(read_table(plain.__code__.co_exceptiontable))[0]
    covered = cover_entry(plain)
    after = sorted(read_table(covered.__code__.co_exceptiontable))[0]
    assert before.start > 0
    assert after.start == 0
    assert after.start + after.length == before.start + before.length
    assert CALLBACK(covered)(1) == 2


def test_a_function_without_try_is_refused():
    with pytest.raises(AssertionError, match="try"):
        cover_entry(compile_function("def f():\n    return 1\n", "f", {}))


@pytest.mark.parametrize("covered", [False, True])
def test_an_interrupt_is_lost_without_the_cover_and_caught_with_it(covered, raising_signal, monkeypatch):
    """C calls the callback in a loop (qsort) while another thread sends the signal."""
    calls, caught, lost = [], [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: lost.append(report.exc_value))

    def compare(_a, _b):
        try:
            calls[:] = [1]
            return 1
        except BaseException as error:
            caught.append(error)
            return 2

    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_byte, ctypes.c_byte)
    callback = prototype(cover_entry(compare) if covered else compare)
    count = 200_000
    numbers = (ctypes.c_int * count)()
    qsort = ctypes.CDLL(None).qsort
    for _ in range(5):
        timer = threading.Timer(0.02, os.kill, (os.getpid(), raising_signal))
        timer.start()
        qsort(numbers, count, 4, callback)
        timer.join()
    assert (len(caught), len(lost)) == ((5, 0) if covered else (0, 5))
    lost.clear()


LOOP = """(module (import "env" "tick" (func $tick (result i32))) (memory (export "memory") 1)
  (func (export "spin") (loop $again (br_if $again (call $tick)))))"""


def test_a_signal_handler_that_raises_ends_the_guest_and_nothing_is_lost(raising_signal):
    """The handler runs at the first instruction of the callback nearly always: that is where Python looks."""
    with Guest(LOOP, imports={("env", "tick"): HostFunction(lambda: 1, (), ("i32",))}) as guest:
        for _ in range(20):
            timer = threading.Timer(0.02, os.kill, (os.getpid(), raising_signal))
            timer.start()
            with pytest.raises(Interrupted):
                guest.call("spin")
            timer.join()


def test_ctrl_c_ends_a_program_that_never_calls_the_host():
    with Guest('(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))') as guest:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            guest.run()
        timer.join()
        assert "while the guest was running" in caught.value.__notes__[0]
