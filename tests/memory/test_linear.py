import ctypes
import gc
import subprocess
import sys

import pytest

from nocopy.errors import ClosedError, MemoryLimitError, UsageError
from nocopy.memory import PAGE, LinearMemory, Quota
from nocopy.memory.pages import Pages

WASM_PAGE = 64 << 10


class Follower:
    """A growth hook that writes down what it was told, and refuses when asked to."""

    def __init__(self, refuse=""):
        self.calls, self.refuse = [], refuse

    def before(self, old, new):
        self.calls.append(("before", old, new))
        if self.refuse == "before":
            raise RuntimeError("no")

    def after(self, size):
        self.calls.append(("after", size))
        if self.refuse == "after" and size > WASM_PAGE:
            raise RuntimeError("cannot follow")


def test_address_is_aligned_to_the_hosts_page():
    with LinearMemory(WASM_PAGE) as memory:
        assert memory.address % PAGE == 0
        assert memory.size == WASM_PAGE


def test_memory_is_zero_filled_and_keeps_what_is_written():
    with LinearMemory(3 * WASM_PAGE) as memory:
        assert memory.read(0, 3 * WASM_PAGE) == bytes(3 * WASM_PAGE)
        memory.write(100, b"hello")
        assert memory.read(98, 9) == b"\0\0hello\0\0"


def test_growth_keeps_address_and_content_and_adds_zeros():
    with LinearMemory(WASM_PAGE) as memory:
        memory.write(WASM_PAGE - 1, b"x")
        address = memory.address
        memory.grow(1 << 30)
        assert memory.address == address
        assert memory.read(WASM_PAGE - 1, 3) == b"x\0\0"
        assert memory.read((1 << 30) - 2, 2) == b"\0\0"
        assert memory.generation == 1


def test_growth_by_nothing_changes_nothing():
    with LinearMemory(WASM_PAGE) as memory:
        memory.grow(WASM_PAGE)
        assert memory.generation == 0


@pytest.mark.parametrize("size", [0, 1, 100, PAGE - 1, PAGE + 1])
def test_sizes_that_are_not_pages_are_kept_exactly(size):
    with LinearMemory(size) as memory:
        assert memory.size == size
        with pytest.raises(UsageError, match="were asked for"):
            memory.read(size, 1)


def test_memory_never_shrinks():
    with LinearMemory(2 * WASM_PAGE) as memory, pytest.raises(UsageError, match="never shrinks"):
        memory.grow(WASM_PAGE)


def test_growth_stops_at_the_maximum():
    with LinearMemory(WASM_PAGE, maximum=2 * WASM_PAGE) as memory:
        memory.grow(2 * WASM_PAGE)
        with pytest.raises(MemoryLimitError, match="maximum is 131072"):
            memory.grow(2 * WASM_PAGE + 1)
        assert memory.size == 2 * WASM_PAGE


def test_growth_stops_at_the_limit_and_changes_nothing():
    with LinearMemory(WASM_PAGE, limit=2 * WASM_PAGE) as memory:
        with pytest.raises(MemoryLimitError, match="limit of 131072 bytes"):
            memory.grow(3 * WASM_PAGE)
        assert (memory.size, memory.generation, memory.quota.used) == (WASM_PAGE, 0, WASM_PAGE)


def test_a_quota_is_shared_between_memories_and_refunded_on_close():
    quota = Quota(3 * WASM_PAGE)
    first = LinearMemory(2 * WASM_PAGE, limit=quota)
    with pytest.raises(MemoryLimitError):
        LinearMemory(2 * WASM_PAGE, limit=quota)
    first.close()
    with LinearMemory(3 * WASM_PAGE, limit=quota):
        assert quota.used == 3 * WASM_PAGE
    assert quota.used == 0


def test_a_reservation_that_the_system_refuses_is_a_memory_limit_error():
    quota = Quota()
    with pytest.raises(MemoryLimitError, match="address space"):
        LinearMemory(16, reserve=1 << 62, limit=quota)
    assert quota.used == 0


@pytest.mark.parametrize("bad", [{"size": -1}, {"reserve": -1}, {"guard": -1}, {"size": 9, "maximum": 8}])
def test_impossible_sizes_are_usage_errors(bad):
    with pytest.raises(UsageError):
        LinearMemory(**bad)


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 1), (0, -1), (WASM_PAGE, 1), (WASM_PAGE - 1, 2), (1 << 70, 1)]
)
def test_reading_outside_is_refused(offset, size):
    with LinearMemory(WASM_PAGE) as memory, pytest.raises(UsageError):
        memory.read(offset, size)


def test_writing_outside_is_refused_and_writes_nothing():
    with LinearMemory(WASM_PAGE) as memory:
        with pytest.raises(UsageError):
            memory.write(WASM_PAGE - 2, b"abc")
        assert memory.read(WASM_PAGE - 2, 2) == b"\0\0"


def test_native_code_reads_the_size_fresh():
    memory = LinearMemory(WASM_PAGE)
    pages = memory.pages
    size = ctypes.c_size_t.from_address(memory.size_address)
    assert size.value == WASM_PAGE
    memory.grow(5 * WASM_PAGE)
    assert size.value == 5 * WASM_PAGE
    memory.close()
    assert size.value == 0
    del pages


def test_closing_twice_is_fine_and_use_afterwards_is_a_closed_error():
    memory = LinearMemory(WASM_PAGE)
    memory.close()
    memory.close()
    assert memory.closed
    assert memory.size == 0
    for use in (
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: memory.grow(1),
        lambda: memory.hold("a device"),
        lambda: memory.view(1, "u8"),
        lambda: memory.generation,
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_closing_is_refused_while_a_device_holds_it():
    memory = LinearMemory(WASM_PAGE)
    hold = memory.hold("cuda:0")
    assert memory.holders == ("cuda:0",)
    with pytest.raises(UsageError, match="cuda:0"):
        memory.close()
    memory.write(0, b"still there")
    hold.release()
    hold.release()
    memory.close()


def mapped(address):
    """True if the address lies in a mapping of this process; read from the kernel, so it cannot crash."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if low <= address < high:
                return True
    return False


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")


@needs_proc
def test_pages_are_unmapped_on_close():
    memory = LinearMemory(WASM_PAGE)
    address = memory.address
    assert mapped(address)
    memory.close()
    gc.collect()
    assert not mapped(address)


@needs_proc
def test_pages_are_unmapped_when_the_memory_is_forgotten():
    address = LinearMemory(WASM_PAGE).address
    gc.collect()
    assert not mapped(address)


@needs_proc
def test_no_page_is_unmapped_while_a_device_holds_it_even_if_the_memory_is_forgotten():
    memory = LinearMemory(WASM_PAGE)
    address, hold = memory.address, memory.hold("cuda:0")
    del memory
    gc.collect()
    assert mapped(address)
    hold.release()
    del hold
    gc.collect()
    assert not mapped(address)


@needs_proc
def test_leaked_pages_stay_mapped():
    memory = LinearMemory(WASM_PAGE)
    address = memory.address
    memory.hold("a device that failed to let go").leak()
    memory.close()
    del memory
    gc.collect()
    assert mapped(address)


def test_growth_hooks_run_before_and_after_the_commit():
    with LinearMemory(WASM_PAGE) as memory:
        hook = Follower()
        remove = memory.on_grow(hook)
        memory.grow(2 * WASM_PAGE)
        assert hook.calls == [("before", WASM_PAGE, 2 * WASM_PAGE), ("after", 2 * WASM_PAGE)]
        remove()
        memory.grow(3 * WASM_PAGE)
        assert len(hook.calls) == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_that_raises_refuses_growth_and_the_others_are_told_the_old_size(when):
    with LinearMemory(WASM_PAGE) as memory:
        good, bad = Follower(), Follower(refuse=when)
        memory.on_grow(good)
        memory.on_grow(bad)
        with pytest.raises(RuntimeError):
            memory.grow(2 * WASM_PAGE)
        assert good.calls[-1] == ("after", WASM_PAGE)
        assert (memory.size, memory.generation, memory.quota.used) == (WASM_PAGE, 0, WASM_PAGE)


CRASHES = """
import ctypes
from nocopy.memory import LinearMemory
memory = LinearMemory(65536, limit={limit})
{act}
ctypes.memset(memory.address + {offset}, 1, 1)
"""


@pytest.mark.parametrize(
    ("limit", "act", "offset"),
    [
        (None, "", 65536),
        (None, "", (4 << 30) + 100),
        (65536 * 2, "try:\n    memory.grow(65536 * 3)\nexcept MemoryError:\n    pass", 65536),
    ],
    ids=["past the end", "in the guard", "after a refused growth"],
)
def test_bytes_past_the_end_are_inaccessible(limit, act, offset):
    code = CRASHES.format(limit=limit, act=act, offset=offset)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode < 0, done.stderr.decode()


def test_pages_after_a_growth_that_a_hook_undid_are_inaccessible():
    act = (
        "class Hook:\n"
        "    def before(self, old, new): pass\n"
        "    def after(self, size):\n"
        "        if size > 65536: raise RuntimeError\n"
        "memory.on_grow(Hook())\n"
        "try:\n    memory.grow(131072)\nexcept RuntimeError:\n    pass"
    )
    code = CRASHES.format(limit=None, act=act, offset=65536)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode < 0, done.stderr.decode()


def test_a_commit_that_the_system_refuses_is_a_memory_limit_error(monkeypatch):
    with LinearMemory(WASM_PAGE) as memory:

        def refuse(self, old, new):
            raise MemoryLimitError("the system says: Cannot allocate memory")

        monkeypatch.setattr(Pages, "commit", refuse)
        with pytest.raises(MemoryLimitError, match="Cannot allocate"):
            memory.grow(2 * WASM_PAGE)
        assert (memory.size, memory.quota.used) == (WASM_PAGE, WASM_PAGE)


def test_reserving_many_memories_costs_no_resident_memory():
    psutil = pytest.importorskip("psutil")
    before = psutil.Process().memory_info().rss
    memories = [LinearMemory(1 << 30) for _ in range(50)]
    assert psutil.Process().memory_info().rss - before < 4 << 20
    for memory in memories:
        memory.close()


def test_large_pages_are_a_hint_that_changes_nothing_else() -> None:
    with LinearMemory(8 << 20, reserve=16 << 20, guard=0) as memory:
        assert memory.pages.prefer_large() in {True, False}
        assert memory.read(0, 64) == bytes(64)
        memory.write((8 << 20) - 4, b"last")
        memory.grow(16 << 20)
        assert memory.read((8 << 20) - 4, 8) == b"last" + bytes(4)
