import threading
import time

import pytest

from nocopy.errors import DeadlineError, FuelError, MemoryLimitError, UsageError
from nocopy.wasm import Engine, Guest, HostFunction, Limits, default_engine
from nocopy.wasm.limits import Ticker

PAGE = 65536
GROW = """(module (memory (export "memory") {0})
  (func (export "grow") (param {1}) (result {1}) (memory.grow (local.get 0))))"""
SPIN = """(module (memory (export "memory") 1) (func (export "spin") (loop $l (br $l)))
  (func (export "one") (result i32) (i32.const 1)))"""


@pytest.mark.parametrize(("memory", "kind"), [("1", "i32"), ("i64 1", "i64")])
def test_growth_past_the_limit_gives_the_guest_minus_one(guest, memory, kind):
    instance = guest(GROW.format(memory, kind), limits=Limits(memory=3 * PAGE))
    assert instance.call("grow", 3) == -1
    assert instance.call("grow", 2) == 1
    assert instance.call("grow", 1) == -1
    assert instance.memory.size == 3 * PAGE


def test_a_module_that_starts_out_too_large_is_refused(guest):
    with pytest.raises(MemoryLimitError, match="limit of 65536 bytes"):
        guest('(module (memory (export "memory") 2))', limits=Limits(memory=PAGE))


def test_several_memories_share_the_limit(guest):
    source = '(module (memory (export "memory") 2) (memory 2))'
    guest(source, limits=Limits(memory=4 * PAGE))
    with pytest.raises(MemoryLimitError):
        guest(source, limits=Limits(memory=3 * PAGE))


def test_an_imported_memory_counts(guest):
    source = '(module (import "env" "memory" (memory 2)) (export "memory" (memory 0)))'
    with pytest.raises(MemoryLimitError):
        guest(source, limits=Limits(memory=PAGE))


def test_a_memory_larger_than_the_address_space_is_refused(guest):
    with pytest.raises(MemoryLimitError):
        guest('(module (memory (export "memory") i64 0x800000000000))')


def test_a_huge_table_is_refused(guest):
    source = '(module (memory (export "memory") 1) (table 100000000 funcref))'
    with pytest.raises(MemoryLimitError, match="table"):
        guest(source)
    guest(source.replace("100000000", "100"), limits=Limits(table_elements=100))


def test_one_guests_limit_leaves_the_others_alone(guest):
    small = guest(GROW.format("1", "i32"), limits=Limits(memory=PAGE))
    large = guest(GROW.format("1", "i32"))
    assert small.call("grow", 1) == -1
    assert large.call("grow", 1) == 1


def test_a_refused_guest_gives_its_quota_and_memory_back():
    from nocopy.wasm import memory_creator

    before = memory_creator.alive()
    with pytest.raises(MemoryLimitError):
        Guest('(module (memory (export "memory") 1) (memory 5))', limits=Limits(memory=2 * PAGE))
    assert memory_creator.alive() == before


def test_a_guest_past_its_deadline_ends_and_lives_on(guest):
    instance = guest(SPIN, limits=Limits(deadline=0.1))
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"0\.1 s") as caught:
            instance.call("spin")
        assert 0.1 <= time.monotonic() - start < 2
        assert "wasm function" in caught.value.__notes__[0]
        assert instance.call("one") == 1


def test_the_deadline_counts_each_call_anew(guest):
    instance = guest(SPIN, limits=Limits(deadline=0.15))
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        assert instance.call("one") == 1


def test_nested_calls_share_the_outermost_deadline(guest):
    def imports(instance):
        return {("env", "inner"): HostFunction(lambda: instance.call("spin"))}

    instance = guest(
        """(module (import "env" "inner" (func $inner)) (memory (export "memory") 1)
          (func (export "outer") (call $inner)) (func (export "spin") (loop $l (br $l))))""",
        imports=imports,
        limits=Limits(deadline=0.1),
    )
    start = time.monotonic()
    with pytest.raises(DeadlineError):
        instance.call("outer")
    assert time.monotonic() - start < 2


def test_a_start_function_has_a_deadline(guest):
    with pytest.raises(DeadlineError):
        guest(
            '(module (memory (export "memory") 1) (func $go (loop $l (br $l))) (start $go))',
            limits=Limits(deadline=0.05),
        )


def test_one_guests_deadline_leaves_the_others_alone(guest):
    slow, fast = guest(SPIN, limits=Limits(deadline=0.3)), guest(SPIN)
    errors = []

    def spin():
        with pytest.raises(DeadlineError) as caught:
            slow.call("spin")
        errors.append(caught)

    thread = threading.Thread(target=spin)
    thread.start()
    while thread.is_alive():
        assert fast.call("one") == 1
    thread.join()
    assert len(errors) == 1


def test_fuel_runs_out_and_can_be_refilled(guest):
    instance = guest(SPIN, limits=Limits(fuel=10_000))
    assert instance.call("one") == 1
    assert 0 < instance.fuel < 10_000
    with pytest.raises(FuelError, match="fuel"):
        instance.call("spin")
    assert instance.fuel == 0
    with pytest.raises(FuelError):
        instance.call("one")
    instance.fuel = 100
    assert instance.call("one") == 1


def test_fuel_that_is_not_counted(guest):
    instance = guest(SPIN)
    assert instance.fuel is None
    with pytest.raises(UsageError, match="does not count"):
        instance.fuel = 5
    with pytest.raises(UsageError, match="Engine"):
        guest(SPIN, limits=Limits(fuel=5), engine=Engine())


def test_an_engine_that_counts_fuel_serves_guests_without_a_limit(guest):
    assert guest(SPIN, engine=default_engine(fuel=True)).call("one") == 1


@pytest.mark.parametrize("bad", [{"memory": -1}, {"deadline": -0.1}, {"fuel": -1}, {"fuel": 1 << 63}])
def test_impossible_limits_are_refused(bad):
    with pytest.raises(UsageError, match="was asked for"):
        Limits(**bad)


def test_the_ticker_runs_only_while_someone_needs_it():
    ticks = []
    ticker = Ticker(lambda: ticks.append(1))
    ticker.acquire()
    ticker.acquire()
    ticker.release()
    time.sleep(0.1)
    assert ticks
    ticker.release()
    time.sleep(0.05)
    count = len(ticks)
    time.sleep(0.1)
    assert len(ticks) == count


def test_closed_guests_let_the_ticker_go():
    engine = Engine()
    instance = Guest(SPIN, engine=engine, limits=Limits(deadline=1))
    assert engine.ticker.users == 1
    instance.close()
    instance.close()
    assert engine.ticker.users == 0
