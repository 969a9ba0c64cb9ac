"""A guest that was frozen goes on as if nothing had happened; its clones share what they do not write."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nocopy
from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.errors import (
    ClosedError,
    ExitError,
    InvalidModuleError,
    MemoryLimitError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotMismatchError,
    UsageError,
)
from nocopy.interfaces.host import DeviceGuest
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.models.load import open_model
from nocopy.snapshot import Manifest, open_snapshot, write_snapshot
from nocopy.snapshot.manifest import ConstraintState, GlobalState, HandleState, TableState
from nocopy.tape import Space, TapeBuilder, Tensor
from nocopy.wasm import Dir, HostFunction, Limits
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401
from tests.interfaces import passthrough
from tests.interfaces.model_guest import ModelGuest
from tests.models.tiny import VOCABULARY, write_tiny

LENGTHS = (1, 127, 128, 129, 255, 256, 257, 4095, 4096)
MEMORY = '(memory (export "memory") 1 10)'
COUNTER = f"""(module (import "env" "tell" (func $tell (param i32))) {MEMORY} (memory $own 2)
  (global $n (mut i64) (i64.const 40)) (table 2 4 funcref)
  (func $up (result i64) (i64.const 1)) (func $down (result i64) (i64.const -1)) (elem declare func $up $down)
  (data (i32.const 100) "data of the module")
  (type $step (func (result i64)))
  (func (export "choose") (param i32)
    (if (local.get 0) (then (table.set (i32.const 0) (ref.func $up)))
                      (else (table.set (i32.const 0) (ref.func $down)))))
  (func (export "next") (result i64)
    (global.set $n (i64.add (global.get $n) (call_indirect (type $step) (i32.const 0))))
    (i64.store (i32.const 0) (global.get $n)) (i64.store $own (i32.const 8) (global.get $n)) (global.get $n))
  (func (export "own") (result i64) (i64.load $own (i32.const 8)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "ask") (call $tell (i32.const 3)))
  (func (export "overwrite") (i64.store (i32.const 100) (i64.const 0)))
  (func $begin (global.set $n (i64.const 100))) (start $begin))"""


@pytest.fixture(scope="module")
def cpu() -> Iterator[Device]:
    device = open_device("cpu")
    yield device
    device.close()


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("m") / "long.gguf", llama__context_length=8192)


@pytest.fixture
def start(cpu: Device) -> Iterator[Callable[..., DeviceGuest]]:
    made: list[DeviceGuest] = []

    def start(source: Any = COUNTER, **kw: Any) -> DeviceGuest:
        tell = {("env", "tell"): HostFunction(lambda _n: None, ("i32",))}
        made.append(DeviceGuest(source, **{"device": cpu, "imports": tell} | kw))
        return made[-1]

    yield start
    for guest in made:
        guest.close()


def thaw(path: Path, device: Device, **kw: Any) -> DeviceGuest:
    tell = {("env", "tell"): HostFunction(lambda _n: None, ("i32",))}
    return nocopy.thaw(path, **{"device": device, "imports": tell} | kw)


# State


@pytest.mark.parametrize("compress", [False, True])
def test_memories_globals_and_tables_go_on(
    start: Callable[..., DeviceGuest], cpu: Device, tmp_path: Path, compress: bool
) -> None:
    guest = start()
    guest.call("choose", 1)
    assert [guest.call("next") for _ in range(2)] == [101, 102]
    guest.call("overwrite")
    guest.freeze(tmp_path / "g", compress=compress)
    with thaw(tmp_path / "g", cpu) as thawed:
        assert thawed.call("next") == guest.call("next") == 103
        assert thawed.call("own") == 103
        assert thawed.memory.read(100, 18) == bytes(8) + b"the module" == guest.memory.read(100, 18)
        thawed.call("choose", 0)
        assert thawed.call("next") == 102
        assert guest.call("next") == 104


def test_a_memory_that_grew_grows_on(start: Callable[..., DeviceGuest], cpu: Device, tmp_path: Path) -> None:
    guest = start()
    assert guest.call("grow", 3) == 1
    guest.memory.write(4 * 65536 - 4, b"last")
    guest.freeze(tmp_path / "g")
    with thaw(tmp_path / "g", cpu) as thawed:
        assert thawed.memory.size == 4 * 65536
        assert thawed.memory.read(4 * 65536 - 4, 4) == b"last"
        assert thawed.call("grow", 5) == 4
        thawed.memory.write(9 * 65536 - 4, b"more")
        assert thawed.call("grow", 2) == -1
        assert thawed.pages is not None
        assert thawed.pages.nbytes == 9 * 65536


def test_freezing_changes_nothing_and_generations_count(
    start: Callable[..., DeviceGuest], cpu: Device, tmp_path: Path
) -> None:
    guest = start()
    first = guest.freeze(tmp_path / "a")
    assert guest.freeze(tmp_path / "b").digest == first.digest
    with thaw(tmp_path / "a", cpu) as thawed:
        thawed.freeze(tmp_path / "c")
        assert thawed.clone.generation == 1
    with thaw(tmp_path / "c", cpu) as again, thaw(tmp_path / "c", cpu) as twin:
        assert again.clone.generation == 2
        assert again.clone.random != twin.clone.random
    with open_snapshot(tmp_path / "c") as snapshot:
        assert snapshot.manifest.parent == first.digest


def test_arguments_and_environment_come_back_and_folders_are_granted_again(
    cpu: Device, tmp_path: Path
) -> None:
    source = Path(nocopy.__file__).parent / "examples" / "matmul.wasm"
    here = tmp_path / "data"
    here.mkdir()
    with DeviceGuest(source, device=cpu, args=["m", "8"], env={"A": "1"}, dirs=[Dir(here, "/in")]) as guest:
        guest.freeze(tmp_path / "g")
    with pytest.raises(SnapshotMismatchError, match=r"'/in'.*granted are none"):
        thaw(tmp_path / "g", cpu)
    with pytest.raises(SnapshotMismatchError, match="/else"):
        thaw(tmp_path / "g", cpu, dirs=[Dir(here, "/in"), Dir(here, "/else")])
    with thaw(tmp_path / "g", cpu, dirs=[Dir(here, "/in")], stdout="capture") as thawed:
        thawed.run()
        assert b"8 x 8" in thawed.stdout


# Refusals


def test_a_guest_in_a_call_is_not_frozen(cpu: Device, tmp_path: Path) -> None:
    errors: list[UsageError] = []

    def freeze(_n: int) -> None:
        for attempt in (lambda: guest.freeze(tmp_path / "g"), lambda: guest.fork(1)):
            with pytest.raises(UsageError, match="a call of it is in progress") as caught:
                attempt()
            errors.append(caught.value)

    imports = {("env", "tell"): HostFunction(freeze, ("i32",))}
    with DeviceGuest(COUNTER, device=cpu, imports=imports) as guest:
        guest.call("ask")
    assert len(errors) == 2
    assert not (tmp_path / "g").exists()
    with pytest.raises(ClosedError, match="closed guest"):
        guest.freeze(tmp_path / "g")


def test_another_module_is_refused_and_both_are_named(
    start: Callable[..., DeviceGuest], cpu: Device, tmp_path: Path
) -> None:
    guest = start()
    guest.freeze(tmp_path / "g", with_module=False)
    with pytest.raises(UsageError, match="without its module"):
        thaw(tmp_path / "g", cpu)
    with pytest.raises(SnapshotMismatchError, match=guest.module.digest.hex()[:16]):
        thaw(tmp_path / "g", cpu, module=COUNTER.replace("40", "41"))
    with thaw(tmp_path / "g", cpu, module=COUNTER) as thawed:
        assert thawed.exports == guest.exports


def test_limits_hold_for_thawed_guests(
    start: Callable[..., DeviceGuest], cpu: Device, tmp_path: Path
) -> None:
    guest = start()
    guest.call("grow", 4)
    guest.freeze(tmp_path / "g")
    with pytest.raises(MemoryLimitError, match="limit"):
        thaw(tmp_path / "g", cpu, limits=Limits(memory=4 * 65536))


def test_a_damaged_page_is_found_before_or_while_the_guest_runs(
    start: Callable[..., DeviceGuest], cpu: Device, tmp_path: Path
) -> None:
    guest = start()
    guest.memory.write(0, bytes(range(256)))
    path = tmp_path / "g"
    guest.freeze(path)
    with open_snapshot(path) as snapshot:
        at = snapshot.memory(0)[0].position
    data = bytearray(path.read_bytes())
    data[at + 20] ^= 255
    path.write_bytes(data)
    with pytest.raises(SnapshotDamagedError):
        thaw(path, cpu)
    with thaw(path, cpu, verify="lazy") as thawed:
        assert thawed.snapshot is not None
        with pytest.raises(SnapshotDamagedError):
            thawed.snapshot.verify()
        with pytest.raises(SnapshotDamagedError):
            thawed.call("own")


# Sessions


def resumed(guest: DeviceGuest, like: ModelGuest) -> ModelGuest:
    """Calls to a guest that was thawed or forked, with what the host of the first one knew."""
    other = ModelGuest.__new__(ModelGuest)
    other.guest, other.memory, other.next = guest, guest.memory, like.next
    return other


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, VOCABULARY, length).tolist()


@pytest.mark.parametrize("kv", [DType.F16, DType.Q8_0], ids=lambda kv: kv.name)
def test_sessions_go_on_with_the_same_tokens_and_bits(
    cpu: Device, long_model: Path, tmp_path: Path, kv: DType
) -> None:
    with closing(open_model(long_model)) as model:
        for length in LENGTHS:
            with ModelGuest(cpu, model, pages=60) as guest:
                session = guest.session(guest.open(), 4096 + 140, kv)
                at = 20 * 65536
                tokens = prompt(length)
                guest.memory.write(at, np.array(tokens, np.int32).tobytes())
                guest.ok("session_append", session, at, length)
                guest.guest.freeze(tmp_path / "g")
                with thaw(tmp_path / "g", cpu, models={"default": model}) as thawed:
                    other = resumed(thawed, guest)
                    wanted = guest.generate(session, 128, seed=9, temperature=1.0, flags=1)
                    assert other.generate(session, 128, seed=9, temperature=1.0, flags=1) == wanted
                    assert other.logits(session).tobytes() == guest.logits(session).tobytes()
                    assert other.ok("session_length", session) == length + 128


@pytest.fixture(params=["vulkan", "cuda"])
def other(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Vulkan as this machine has it, llvmpipe if need be; CUDA emulated."""
    if request.param == "vulkan":
        from tests.device.conftest import open_or_skip

        device: Device = open_or_skip("vulkan")
    else:
        device = emulated(EmulatedDriver(request.getfixturevalue("library"), memory_bytes=1 << 28))
    yield device
    device.close()


def test_sessions_go_from_device_to_device_and_back(
    cpu: Device, other: Device, tiny_gguf: Path, tmp_path: Path
) -> None:
    with ModelGuest(cpu, tiny_gguf, pages=40) as guest:
        session = guest.session(guest.open(), 200, DType.F16)
        guest.append(session, prompt(20))  # an emulated GPU is slow
        guest.guest.freeze(tmp_path / "cpu")
        with thaw(tmp_path / "cpu", other, models={"default": tiny_gguf}) as thawed:
            there = resumed(thawed, guest)
            assert there.logits(session).tobytes() == guest.logits(session).tobytes()
            there.append(session, [3])
            assert thawed.ledger.staged == 0
            thawed.freeze(tmp_path / "there")
            with thaw(tmp_path / "there", other, models={"default": tiny_gguf}) as twin:
                again = resumed(twin, guest)
                assert again.generate(session, 4, seed=1) == there.generate(session, 4, seed=1)
                assert again.logits(session).tobytes() == there.logits(session).tobytes()
        guest.append(session, [3])
        with thaw(tmp_path / "there", cpu, models={"default": tiny_gguf}) as back:
            found = resumed(back, guest)
            assert found.ok("session_length", session) == 21
            guest.append(session, [4])
            found.append(session, [4])
            np.testing.assert_allclose(found.logits(session), guest.logits(session), atol=2e-2)


def test_constraints_go_on_where_they_were(cpu: Device, tiny_gguf: Path, tmp_path: Path) -> None:
    with ModelGuest(cpu, tiny_gguf, pages=40) as guest:
        model = guest.open()
        session = guest.session(model)
        guest.append(session, prompt(10))
        guest.ok("session_constrain", session, 3, *guest.put("(yes|no), (maybe|never|always)"))
        first = guest.generate(session, 3, seed=2, temperature=1.0)
        guest.guest.freeze(tmp_path / "g")
        wanted = guest.generate(session, 40, seed=3, temperature=1.0)
        with thaw(tmp_path / "g", cpu, models={"default": tiny_gguf}) as thawed:
            other = resumed(thawed, guest)
            assert other.generate(session, 40, seed=3, temperature=1.0) == wanted
            text = other.text(model, first + wanted)
    assert re.fullmatch(rb"(yes|no), (maybe|never|always)", text)


def test_handles_mean_what_they_meant_and_no_new_one_is_an_old_one(
    cpu: Device, tiny_gguf: Path, tmp_path: Path
) -> None:
    with ModelGuest(cpu, tiny_gguf, pages=80) as guest:
        model, second = guest.open(), guest.open()
        closed, session = guest.session(model), guest.session(second)
        fork = guest.fork(session, guest.size(second, 200))
        guest.append(session, [1, 2, 3])
        guest.ok("session_close", closed)
        guest.guest.freeze(tmp_path / "g")
        with thaw(tmp_path / "g", cpu, models={"default": tiny_gguf}) as thawed:
            other = resumed(thawed, guest)
            assert other.ok("session_length", session) == 3
            assert other.ok("session_length", fork) == 0
            assert other.call("session_length", closed) == ClosedError.code
            assert other.call("model_close", second) == UsageError.code  # it has sessions
            assert other.ok("model_close", model) == 0
            assert other.open() == fork + 1
            assert other.call("session_logits", fork, 16) == UsageError.code  # empty: no logits
            other.append(fork, [5])


def test_what_was_not_granted_or_is_another_model_is_refused(
    cpu: Device, tiny_gguf: Path, long_model: Path, tmp_path: Path
) -> None:
    with ModelGuest(cpu, tiny_gguf, pages=40) as guest:
        guest.append(guest.session(guest.open()), [1])
        guest.guest.freeze(tmp_path / "g")
    with pytest.raises(SnapshotMismatchError, match=r"'default'; granted are none"):
        thaw(tmp_path / "g", cpu)
    with pytest.raises(SnapshotMismatchError, match="granted as 'default' is another"):
        thaw(tmp_path / "g", cpu, models={"default": long_model})
    limits = nocopy.ComputeLimits(pinned=65536)
    with pytest.raises(MemoryLimitError, match="may pin 65536"):
        thaw(tmp_path / "g", cpu, models={"default": tiny_gguf}, compute_limits=limits)
    with thaw(tmp_path / "g", cpu, models={"default": tiny_gguf, "more": long_model}) as thawed:
        assert thawed.call("model_open", *resumed_put(thawed, "more")) > 0


def resumed_put(guest: DeviceGuest, text: str) -> tuple[int, int]:
    guest.memory.write(64, text.encode())
    return 64, len(text)


def test_sampling_in_the_guest_goes_on_with_its_random_numbers(
    cpu: Device, tiny_gguf: Path, tmp_path: Path
) -> None:
    """The options lie in the guest's memory, and with them how many numbers were drawn."""
    with ModelGuest(cpu, tiny_gguf, pages=40) as guest:
        session = guest.session(guest.open())
        guest.append(session, [1])
        guest.generate(session, 5, seed=4, temperature=1.0, flags=1)
        guest.guest.freeze(tmp_path / "g")
        wanted = guest.generate(session, 20, keep=True)
        with thaw(tmp_path / "g", cpu, models={"default": tiny_gguf}) as thawed:
            assert resumed(thawed, guest).generate(session, 20, keep=True) == wanted


@pytest.mark.parametrize("name", ["cpu", "reference", "vulkan", "cuda"])
def test_memory_that_only_the_device_has_comes_back(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from tests.device.conftest import open_or_skip

    if name == "cuda":
        driver = EmulatedDriver(request.getfixturevalue("library"), memory_bytes=1 << 26)
        device: Device = emulated(driver)
    else:
        device = open_or_skip(name)
    hidden = Tensor(Space.SCRATCH, 128, (4,), DType.F32)
    with DeviceGuest(passthrough.text(), device=device) as guest:
        guest.memory.view(4, "f32").numpy()[:] = (1, 2, 3, 4)
        tape = TapeBuilder()
        tape.copy(hidden, guest.memory.view(4, "f32"))
        guest.play(tape)
        guest.freeze(tmp_path / "g")
        moved = guest.ledger.downloaded
    with nocopy.thaw(tmp_path / "g", device=device) as thawed:
        tape = TapeBuilder()
        tape.copy(thawed.memory.view(4, "f32", 256), hidden)
        thawed.play(tape)
        assert thawed.memory.view(4, "f32", 256).numpy().tolist() == [1, 2, 3, 4]
        discrete = device.info.memory_bytes > 0
        assert (moved, thawed.ledger.uploaded) == ((1 << 20, 1 << 20) if discrete else (0, 0))
    device.close()


def twice(manifest: Manifest) -> Manifest:
    return replace(manifest, sessions=manifest.sessions * 2)


def session(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: replace(m, sessions=(replace(m.sessions[0], **changes),))


def tokens(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: session(tokens=replace(m.sessions[0].tokens, **changes))(m)


def model(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda m: replace(m, models=(replace(m.models[0], **changes),))


WRONG: dict[str, Callable[[Manifest], Manifest]] = {
    "a session twice": twice,
    "a model twice": lambda m: replace(m, models=m.models * 2),
    "no handle": model(handle=None),
    "one handle for both": lambda m: session(handle=m.models[0].handle)(m),
    "a handle that was never used": session(handle=3),
    "another model": model(digest=bytes(32)),
    "a model that was not granted": model(name="other"),
    "a place that is no multiple of 64 KiB": session(offset=16),
    "fewer bytes than it takes": session(nbytes=64),
    "more context than the model has": session(context=1 << 20),
    "no context": session(context=0),
    "another pass": session(chunk=7),
    "another type": session(kv="q9"),
    "no type": session(kv="none"),
    "a type that caches are not of": session(kv="i32"),
    "tokens that are none": tokens(offset=1),
    "more tokens than fit": tokens(count=300),
    "an unknown constraint": session(constraint=ConstraintState("magic", "x")),
    "a constraint that is none": session(constraint=ConstraintState("regex", "(")),
    "a constraint that followed too much": session(constraint=ConstraintState("json", "", bytes(4000))),
    "a constraint that its tokens break": session(constraint=ConstraintState("regex", "a", bytes(8))),
    "handles from 0": lambda m: replace(m, handles=HandleState(0, 2**31)),
    "handles backwards": lambda m: replace(m, handles=HandleState(9, 3)),
    "a global too few": lambda m: replace(m, globals=m.globals[1:]),
    "a global of another type": lambda m: replace(m, globals=(GlobalState(0, "i64", bytes(8)),)),
    "a table that is not there": lambda m: replace(m, tables=(TableState(9, (1,)),)),
    "a memory of another name": lambda m: replace(
        m, memories=(replace(m.memories[0], name="x"), *m.memories[1:])
    ),
    "another module": lambda m: replace(m, module=replace(m.module, digest=bytes(32))),
    "a module cut short": lambda m: replace(m, module=replace(m.module, nbytes=20)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_sound_file_that_says_what_cannot_be_is_refused_by_name(
    cpu: Device, tiny_gguf: Path, tmp_path: Path, what: str
) -> None:
    """The digests are right: somebody wrote the file on purpose."""
    source = f"{passthrough.text(pages=40)[:-1]} (global (mut i32) (i32.const 1)))"
    with DeviceGuest(source, device=cpu, models={"default": tiny_gguf}) as guest:
        like = ModelGuest.__new__(ModelGuest)
        like.guest, like.memory, like.next = guest, guest.memory, 65536
        like.append(like.session(like.open(), 200), [1, 2, 3])
        guest.freeze(tmp_path / "g")
    with open_snapshot(tmp_path / "g") as snapshot, ExitStack() as stack:
        memories: list[LinearMemory] = []
        for i, state in enumerate(snapshot.manifest.memories):
            memories.append(stack.enter_context(LinearMemory(state.size)))
            snapshot.map_into(i, memories[-1].address)
        write_snapshot(tmp_path / "w", WRONG[what](snapshot.manifest), memories)
    with pytest.raises((SnapshotError, MemoryLimitError, InvalidModuleError)):
        thaw(tmp_path / "w", cpu, models={"default": tiny_gguf})


# Clones


def test_forks_go_on_from_the_same_place_and_change_nothing_for_each_other(
    cpu: Device, tiny_gguf: Path
) -> None:
    with ModelGuest(cpu, tiny_gguf, pages=40) as guest:
        session = guest.session(guest.open())
        guest.append(session, prompt(50))
        clones = guest.guest.fork(3)
        pairs = zip(clones, (1, 2, 1), strict=True)
        found = [resumed(clone, guest).generate(session, 20, seed=seed) for clone, seed in pairs]
        assert found[0] == found[2] != found[1]
        assert guest.ok("session_length", session) == 50
        assert guest.generate(session, 20, seed=1) == found[0]
        assert [c.clone.index for c in clones] == [0, 1, 2]
        assert len({c.clone.random for c in clones} | {guest.guest.clone.random}) == 4
        (grandchild,) = clones[1].fork(1)
        assert grandchild.clone.generation == 2
        for clone in (*clones, grandchild):
            clone.close()


def test_a_device_that_was_opened_for_a_guest_lives_as_long_as_its_forks() -> None:
    guest = DeviceGuest(passthrough.text(), device="cpu")
    first, second = guest.fork(2)
    guest.close()
    first.close()
    tape = TapeBuilder()
    tape.fill(second.memory.view(4, "f32"), 2.0)
    second.play(tape)
    second.close()
    with pytest.raises(ClosedError):
        second.device.allocate(4)


def test_64_forks_of_a_long_conversation_share_what_they_do_not_write(cpu: Device, long_model: Path) -> None:
    with ModelGuest(cpu, long_model, pages=60) as guest:
        session = guest.session(guest.open(), 4096 + 64, DType.F16)
        at = 50 * 65536
        guest.memory.write(at, np.array(prompt(4096), np.int32).tobytes())
        guest.ok("session_append", session, at, 4096)
        (warm,) = guest.guest.fork(1)
        resumed(warm, guest).append(session, [1])
        warm.close()
        before = proportional_set_size()
        clones = guest.guest.fork(64)
        for i, clone in enumerate(clones):
            resumed(clone, guest).append(session, [i])
        written = 64 * 64 * 1024
        added = proportional_set_size() - before
        for clone in clones:
            clone.close()
        assert added < 64 * (2 << 20) + written
        assert added < 64 * (1 << 20)


def proportional_set_size() -> int:
    """Bytes of this process, where pages that several mappings share count once."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


# Checkpoints


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tools.guest_compiler import compile_guest

    source = Path(__file__).with_name("checkpoint.c")
    return compile_guest([source], tmp_path_factory.mktemp("c") / "counting.wasm")


def test_a_guest_goes_on_after_its_checkpoint_where_it_was_and_where_it_is_thawed(
    cpu: Device, counting: Path, tmp_path: Path
) -> None:
    with DeviceGuest(counting, device=cpu, args=["counting", "25"], stdout="capture") as guest:
        guest.run()
        assert guest.checkpoint == "at 10"
        guest.freeze(tmp_path / "g")
        guest.resume()
        assert guest.checkpoint == "at 20"
        with pytest.raises(ExitError) as caught:
            guest.resume()
        assert caught.value.status == 5
        assert guest.checkpoint is None
        with pytest.raises(UsageError, match="at no checkpoint"):
            guest.resume()
        here = guest.stdout.decode()
    assert here.startswith("start 2\nagain at 10, generation 0, clone 0\nagain at 20")
    assert here.endswith("25 oeoeoeoeoeoeoeoeoeoeoeoeo\n")
    with nocopy.thaw(tmp_path / "g", device=cpu, stdout="capture") as thawed:
        assert thawed.checkpoint == "at 10"
        thawed.resume()
        with pytest.raises(ExitError):
            thawed.resume()
        there = thawed.stdout.decode()
    assert there == here.partition("\n")[2].replace("generation 0", "generation 1")


def test_clones_draw_seeds_of_their_own(cpu: Device, counting: Path) -> None:
    with DeviceGuest(counting, device=cpu, args=["counting", "20"]) as guest:
        guest.run()
        clones = guest.fork(4)
        seeds = [g.call("seed") for g in (guest, *clones)]
        assert len(set(seeds)) == 5
        assert [g.call("seed") for g in (guest, *clones)] == seeds
        for clone in clones:
            clone.close()


def test_a_guest_that_could_not_go_on_is_refused_its_checkpoint(cpu: Device) -> None:
    with DeviceGuest(passthrough.text(), device=cpu) as guest:
        assert guest.call("checkpoint", 0, 0) == UsageError.code
        assert "nocopy_resume" in guest.last_error
        assert guest.call("label", 100, 8) == 0
        assert guest.memory.read(100, 1) == b"\0"
        assert guest.call("clone", 200, 24) == 24
        assert guest.memory.read(200, 24)[:16] == bytes(16)
        assert int.from_bytes(guest.memory.read(216, 8), "little") == guest.clone.random


def test_another_process_goes_on_with_it(cpu: Device, counting: Path, tmp_path: Path) -> None:
    with DeviceGuest(counting, device=cpu, args=["counting", "12"], stdout="capture") as guest:
        guest.run()
        guest.freeze(tmp_path / "g")
    code = """
import sys, nocopy
with nocopy.thaw(sys.argv[1], device="cpu", stdout="inherit") as guest:
    guest.resume()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "g")], capture_output=True, text=True, check=False
    )
    assert "ExitError" in done.stderr
    assert done.stdout == "again at 10, generation 1, clone 0\n12 oeoeoeoeoeoe\n"
