"""A conversation that was frozen goes on as if nothing had happened: same tokens, same bits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nocopy
from nocopy.device.protocol import Device
from nocopy.errors import (
    ClosedError,
    SnapshotDamagedError,
    SnapshotFileError,
    SnapshotMismatchError,
    UsageError,
)
from nocopy.memory.pages import LARGE
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.session.sampler import Sampler, Sampling
from nocopy.snapshot import open_snapshot
from nocopy.snapshot.format import PAGE
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401
from tests.models.tiny import VOCABULARY, write_tiny

CONTEXT = 8192
LENGTHS = (1, 127, 128, 129, 255, 256, 257, 4095, 4096)
AFTER = 128
SAMPLING = Sampling(temperature=1.0, repeat_penalty=1.2, repeat_last_n=32, logit_bias={7: 0.5}, seed=11)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    return write_tiny(folder / "long.gguf", llama__context_length=CONTEXT)


@pytest.fixture(scope="module")
def cpu(file: Path) -> Iterator[LanguageModel]:
    with LanguageModel(file, device="cpu") as model:
        yield model


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, VOCABULARY, length).tolist()


def begun(model: LanguageModel, length: int, kv: str = "f16") -> tuple[OwnSession, Sampler]:
    session, sampler = model.session(context=length + AFTER + 8, kv=kv), Sampler(SAMPLING)
    session.append(prompt(length))
    sampler.accept(session.tokens)
    return session, sampler


def go_on(session: OwnSession, sampler: Sampler, steps: int = AFTER) -> tuple[list[int], bytes]:
    """The next tokens, and every bit of the logits on the way."""
    made: list[int] = []
    logits = [session.logits.tobytes()]
    for _ in range(steps):
        token = sampler.sample(session.logits)
        sampler.accept([token])
        session.append([token])
        made.append(token)
        logits.append(session.logits.tobytes())
    return made, b"".join(logits)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_thawed_session_makes_the_same_tokens_and_the_same_bits(
    cpu: LanguageModel, tmp_path: Path, length: int, kv: str
) -> None:
    session, sampler = begun(cpu, length, kv)
    for _ in range(3):  # the random numbers are somewhere in the middle
        token = sampler.sample(session.logits)
        sampler.accept([token])
        session.append([token])
    nocopy.freeze_session(session, tmp_path / "s", sampler=sampler)
    thawed = nocopy.thaw_session(cpu, tmp_path / "s")
    assert thawed.session.tokens == session.tokens
    assert thawed.sampler is not None
    uninterrupted = go_on(session, sampler)
    assert go_on(thawed.session, thawed.sampler) == uninterrupted
    session.close()
    thawed.session.close()


@pytest.mark.parametrize("compress", [False, True])
def test_what_was_frozen_can_be_thawed_again_and_again(
    cpu: LanguageModel, tmp_path: Path, compress: bool
) -> None:
    session, sampler = begun(cpu, 200)
    nocopy.freeze_session(session, tmp_path / "s", sampler=sampler, compress=compress)
    wanted = go_on(session, sampler, 20)
    for _ in range(3):
        thawed = nocopy.thaw_session(cpu, tmp_path / "s", verify="off")
        assert thawed.sampler is not None
        assert go_on(thawed.session, thawed.sampler, 20) == wanted


def test_tokens_drawn_on_the_device_go_on_as_they_would_have(cpu: LanguageModel, tmp_path: Path) -> None:
    """Frozen between tokens that were drawn ahead: those that nobody asked for yet are drawn again."""
    options = Sampling(seed=2**40 + 3, temperature=1.2, presence_penalty=0.3, repeat_last_n=20)

    def draw(session: OwnSession, sampler: Sampler, count: int) -> list[int]:
        for i in range(count):
            token = session.draw(sampler, 30 - i)
            sampler.accept([token])
            session.append([token])
        return session.tokens[-count:]

    session, sampler = cpu.session(context=400), Sampler(options)
    session.append(prompt(60))
    sampler.accept(session.tokens)
    draw(session, sampler, 13)
    nocopy.freeze_session(session, tmp_path / "s", sampler=sampler)
    thawed = nocopy.thaw_session(cpu, tmp_path / "s")
    assert thawed.sampler is not None
    assert thawed.sampler.position() == sampler.position()
    assert draw(thawed.session, thawed.sampler, 25) == draw(session, sampler, 25)


def test_a_thawed_session_can_be_frozen_and_truncated_like_any_other(
    cpu: LanguageModel, tmp_path: Path
) -> None:
    session, _ = begun(cpu, 100)
    nocopy.freeze_session(session, tmp_path / "a")
    first = nocopy.thaw_session(cpu, tmp_path / "a").session
    first.append([1, 2, 3])
    nocopy.freeze_session(first, tmp_path / "b")
    second = nocopy.thaw_session(cpu, tmp_path / "b").session
    second.truncate(100)
    second.append([1, 2, 3])
    assert second.tokens == first.tokens
    assert second.logits.tobytes() == first.logits.tobytes()


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


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_a_session_goes_from_device_to_device_and_back(
    cpu: LanguageModel, file: Path, other: Device, tmp_path: Path, kv: str
) -> None:
    session, _ = begun(cpu, 20, kv)  # an emulated GPU is slow
    nocopy.freeze_session(session, tmp_path / "cpu")
    with LanguageModel(file, device=other) as model:
        there = nocopy.thaw_session(model, tmp_path / "cpu").session
        assert there.logits.tobytes() == session.logits.tobytes()
        there.append([5, 6])
        nocopy.freeze_session(there, tmp_path / "there")
        again = nocopy.thaw_session(model, tmp_path / "there").session
        there.append([7])
        again.append([7])
        assert again.logits.tobytes() == there.logits.tobytes()
        assert model.ledger.staged == 0
        there_logits = there.logits.copy()
    back = nocopy.thaw_session(cpu, tmp_path / "there").session
    back.append([7])
    session.append([5, 6])
    session.append([7])
    assert back.tokens == session.tokens
    tolerance = 2e-2 if kv == "f16" else 5e-2  # devices round differently
    np.testing.assert_allclose(back.logits, session.logits, atol=tolerance)
    np.testing.assert_allclose(there_logits, session.logits, atol=tolerance)


def test_the_conversation_is_kept_and_read_once(cpu: LanguageModel, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answer = cpu.chat(messages, max_tokens=8, temperature=0, ignore_end=True).text
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
    nocopy.freeze_session(cpu.own_session, tmp_path / "chat", messages=messages)
    with LanguageModel(cpu.path, device="cpu") as fresh:
        thawed = nocopy.thaw_session(fresh, tmp_path / "chat")
        assert thawed.messages == messages
        fresh.adopt(thawed.session)
        completion = fresh.chat(thawed.messages, max_tokens=8, temperature=0, ignore_end=True)
        assert completion.text == cpu.chat(messages, max_tokens=8, temperature=0, ignore_end=True).text
        assert completion.speed.reused >= len(thawed.session.tokens[:10])


def test_another_process_goes_on_with_it(cpu: LanguageModel, file: Path, tmp_path: Path) -> None:
    session, sampler = begun(cpu, 129)
    nocopy.freeze_session(session, tmp_path / "s", sampler=sampler)
    code = """
import json, sys, nocopy
from tests.snapshot.test_session import go_on
with nocopy.LanguageModel(sys.argv[1], device="cpu") as model:
    thawed = nocopy.thaw_session(model, sys.argv[2])
    tokens, logits = go_on(thawed.session, thawed.sampler, 16)
    print(json.dumps([tokens, logits.hex()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), str(tmp_path / "s")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    tokens, logits = go_on(session, sampler, 16)
    assert json.loads(done.stdout) == [tokens, logits.hex()]


def test_another_model_is_refused_and_both_are_named(cpu: LanguageModel, tmp_path: Path) -> None:
    session, _ = begun(cpu, 5)
    nocopy.freeze_session(session, tmp_path / "s")
    longer = write_tiny(tmp_path / "other.gguf", llama__context_length=CONTEXT, general__name="Another")
    with LanguageModel(longer, device="cpu") as other:
        with pytest.raises(SnapshotMismatchError, match=cpu.model.digest.hex()[:16]) as caught:
            nocopy.thaw_session(other, tmp_path / "s")
        assert other.model.digest.hex()[:16] in str(caught.value)


def test_a_copy_of_the_model_is_the_same_model(cpu: LanguageModel, file: Path, tmp_path: Path) -> None:
    session, _ = begun(cpu, 5)
    nocopy.freeze_session(session, tmp_path / "s")
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(file.read_bytes())
    with LanguageModel(copy, device="cpu") as model:
        assert nocopy.thaw_session(model, tmp_path / "s").session.tokens == session.tokens


def test_a_closed_session_and_a_guests_snapshot_are_refused(cpu: LanguageModel, tmp_path: Path) -> None:
    session, _ = begun(cpu, 5)
    nocopy.freeze_session(session, tmp_path / "s")
    session.close()
    with pytest.raises(ClosedError):
        nocopy.freeze_session(session, tmp_path / "t")
    with pytest.raises(UsageError, match="thaw_session"):
        nocopy.thaw(tmp_path / "s", device="cpu")
    with nocopy.Guest('(module (memory (export "memory") 1))', device="cpu") as guest:
        guest.freeze(tmp_path / "g")
    with pytest.raises(UsageError, match="is a guest"):
        nocopy.thaw_session(cpu, tmp_path / "g")


def test_a_damaged_or_shortened_file_is_refused(cpu: LanguageModel, tmp_path: Path) -> None:
    session, _ = begun(cpu, 300)
    path = tmp_path / "s"
    nocopy.freeze_session(session, path)
    data = bytearray(path.read_bytes())
    with open_snapshot(path) as snapshot:
        run = snapshot.memory(0)[0]
    data[run.position + 5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotDamagedError):
        nocopy.thaw_session(cpu, path)
    path.write_bytes(data[:-1])
    with pytest.raises(SnapshotFileError):
        nocopy.thaw_session(cpu, path, verify="off")


def test_a_lazily_verified_session_goes_on_until_damage_is_found(cpu: LanguageModel, tmp_path: Path) -> None:
    session, sampler = begun(cpu, 300)
    path = tmp_path / "s"
    nocopy.freeze_session(session, path, sampler=sampler)
    wanted = go_on(session, sampler, 8)
    thawed = nocopy.thaw_session(cpu, path, verify="lazy")
    assert thawed.sampler is not None
    assert go_on(thawed.session, thawed.sampler, 8) == wanted
    thawed.session.close()

    data = bytearray(path.read_bytes())
    with open_snapshot(path) as snapshot:
        run = snapshot.memory(0)[0]
    data[run.position + 5000] ^= 1
    path.write_bytes(data)
    damaged = nocopy.thaw_session(cpu, path, verify="lazy").session
    threads = [thread for thread in threading.enumerate() if thread.name == "snapshot"]
    for thread in threads:
        thread.join()
    for use in (lambda: damaged.logits, damaged.likeliest, damaged.flush):
        with pytest.raises(SnapshotDamagedError):
            use()
    with pytest.raises(SnapshotDamagedError):
        nocopy.freeze_session(damaged, tmp_path / "t")
    damaged.close()


def test_tokens_that_were_truncated_are_not_in_the_file(cpu: LanguageModel, tmp_path: Path) -> None:
    session, _ = begun(cpu, 4096)
    cache = session.region.cache
    session.truncate(10)
    session.append([1])
    nocopy.freeze_session(session, tmp_path / "s")
    thawed = nocopy.thaw_session(cpu, tmp_path / "s").session
    kept = -(-(cache.offset + 11 * cache.token_bytes) // PAGE) * PAGE
    assert thawed.memory.read(0, kept) == session.memory.read(0, kept)
    assert any(session.memory.read(kept, PAGE))
    assert not any(thawed.memory.read(kept, thawed.memory.size - kept))


def test_a_large_cache_lies_where_it_can_be_mapped_in_large_pieces(
    cpu: LanguageModel, tmp_path: Path
) -> None:
    session = cpu.session(context=CONTEXT, kv="f32")
    region = session.region
    assert region.cache.nbytes > LARGE
    size = region.cache.nbytes // 4
    noise = np.random.default_rng(0).standard_normal(size, np.float32)
    session.memory.view(size, "f32", region.home).numpy()[:] = noise  # quicker than 8192 tokens, as well read
    session.tokens.extend(prompt(CONTEXT - 8))
    session.append([1])
    nocopy.freeze_session(session, tmp_path / "s")
    with open_snapshot(tmp_path / "s") as snapshot:
        whole = [run for run in snapshot.memory(0) if run.nbytes >= LARGE]
    thawed = nocopy.thaw_session(cpu, tmp_path / "s").session
    assert whole
    assert thawed.tokens == session.tokens
    assert thawed.memory.read(0, region.nbytes) == session.memory.read(0, region.nbytes)
    assert session.memory.address % LARGE == thawed.memory.address % LARGE == region.home % LARGE == 0
    assert all(run.position % LARGE == 0 and run.offset % LARGE == 0 for run in whole)


def test_pages_that_are_only_read_stay_those_of_the_file(cpu: LanguageModel, tmp_path: Path) -> None:
    session, _ = begun(cpu, 4096)
    nocopy.freeze_session(session, tmp_path / "s")
    thawed = nocopy.thaw_session(cpu, tmp_path / "s").session
    assert thawed.memory.borrowed
    before = private_dirty(thawed)
    thawed.append([3])
    assert private_dirty(thawed) - before <= 8 * 4096


def private_dirty(session: OwnSession) -> int:
    """Bytes of the session's memory that are its own, by the system's count."""
    first, last, found = session.memory.address, session.memory.address + session.memory.size, 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0] and line[0] in "0123456789abcdef":
            start = int(line.split("-", 1)[0], 16)
            inside = first <= start < last
        elif inside and line.startswith(("Private_Dirty:", "Anonymous:")) and line.startswith("Anon"):
            found += int(line.split()[1]) * 1024
    return found
