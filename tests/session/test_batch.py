"""Sequences that are decoded together: each has the tokens that it would have alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.bench import guest_decode
from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.errors import ClosedError, UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import write_gguf
from nocopy.models.load import open_model
from nocopy.session import pace
from nocopy.session.batch import SessionBatch
from nocopy.session.engine import Engine
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.session.sampler import Sampler, Sampling
from nocopy.session.session import Session
from tests.device.conftest import open_or_skip
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401
from tests.models.tiny import VOCABULARY

PROMPTS = [[5, 9, 2, 7], [1], [8, 8, 3, 1, 4, 1, 5], [11, 3], [6, 2, 9], [4], [7, 7], [2, 4, 6, 8]]
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed=1),
    Sampling(seed=2, temperature=1.5, top_k=0, top_p=1, min_p=0),
    Sampling(seed=3, top_k=5),
]


def engine_on(device: Device, path: Path) -> Iterator[Engine]:
    ledger = Ledger()
    with (
        closing(open_model(path)) as model,
        closing(Engine(model, device, chunk=16, ledger=ledger)) as engine,
    ):
        yield engine


@pytest.fixture
def engine(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(pace, "PATIENCE", 1e6)
    with closing(open_device("cpu")) as device:
        yield from engine_on(device, tiny_gguf)


def begun(batch: SessionBatch, samplings: Mapping[int, Sampling]) -> dict[int, Sampler]:
    """Each sequence has read its prompt, and its sampler too."""
    samplers: dict[int, Sampler] = {}
    for i, sampling in samplings.items():
        batch[i].append(PROMPTS[i])
        samplers[i] = Sampler(sampling)
        samplers[i].accept(PROMPTS[i])
    return samplers


def alone(
    engine: Engine, i: int, sampling: Sampling, count: int, ends: frozenset[int] = frozenset()
) -> list[int]:
    """What the sequence gives without the others: up to `count` tokens."""
    sampler, made = Sampler(sampling), list[int]()
    sampler.accept(PROMPTS[i])
    with OwnSession(engine, context=40, kv=DType.F32) as session:
        session.append(PROMPTS[i])
        for _ in range(min(count, 40 - len(PROMPTS[i]))):
            made.append(sampler.sample(session.logits))
            sampler.accept(made[-1:])
            if made[-1] in ends:
                return made[:-1]
            session.append(made[-1:])
    return made


def together(batch: SessionBatch, samplers: Mapping[int, Sampler], **options: object) -> dict[int, list[int]]:
    made: dict[int, list[int]] = {i: [] for i in samplers}
    for step in batch.generate(samplers, **options):  # type: ignore[arg-type]
        for i, token in step.items():
            made[i].append(token)
    return made


def opened(engine: Engine, count: int) -> SessionBatch:
    return SessionBatch(engine, count, context=40, kv=DType.F32)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_each_sequence_has_the_tokens_that_it_has_alone(engine: Engine, count: int) -> None:
    """Prompts of different lengths, samplers of different options; played several steps at a time."""
    samplings = {i: SAMPLINGS[i % 4] for i in range(count)}
    with opened(engine, count) as batch:
        made = together(batch, begun(batch, samplings), limit=13)
        assert made == {i: alone(engine, i, s, 13) for i, s in samplings.items()}
        read = [s.tokens.tolist() for s in batch.sequences]
        assert read == [PROMPTS[i] + made[i][:-1] for i in range(count)]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequences_with_any_ends_and_limits(engine: Engine, data: st.DataObject) -> None:
    """Those that end are left out; the rest go on as if they had never been there."""
    chosen = data.draw(st.sets(st.integers(0, 3), min_size=1))
    ends = data.draw(st.frozensets(st.integers(0, VOCABULARY - 1), max_size=40))
    limit = data.draw(st.none() | st.integers(0, 50))
    penalties = st.builds(
        Sampling,
        seed=st.integers(0, 2**64 - 1),
        temperature=st.sampled_from([0.0, 0.7, 2.0]),
        repeat_penalty=st.sampled_from([1.0, 1.5]),
        repeat_last_n=st.sampled_from([0, 4, -1]),
        typical_p=st.sampled_from([1.0, 1.0, 1.0, 0.5]),
    )
    samplings = {i: data.draw(penalties) for i in chosen}
    with opened(engine, 4) as batch:
        made = together(batch, begun(batch, samplings), limit=limit, ends=ends)
        for i, sampling in samplings.items():
            most = 50 if limit is None else limit
            assert made[i] == alone(engine, i, sampling, most, ends), sampling


def test_tokens_fed_together_give_the_logits_that_they_give_alone(engine: Engine) -> None:
    """Bit for bit on the cpu, whose sums over a row do not depend on how many there are."""
    with opened(engine, 3) as batch, OwnSession(engine, context=40, kv=DType.F32) as one:
        for i in (0, 2):
            batch[i].append(PROMPTS[i])
        batch.feed({2: 9, 0: 4})
        batch.feed({0: 1})
        batch.feed({0: 7, 1: 3, 2: 2})
        for i, tokens in {0: [4, 1, 7], 1: [3], 2: [9, 2]}.items():
            one.truncate(0)
            if i != 1:
                one.append(PROMPTS[i])
            for token in tokens:
                one.append([token])
            assert batch[i].tokens == one.tokens
            assert np.array_equal(batch[i].logits, one.logits)


def test_a_sequence_goes_on_alone_after_it_went_on_with_others(engine: Engine) -> None:
    samplings = dict.fromkeys(range(2), SAMPLINGS[0])
    with opened(engine, 2) as batch:
        samplers = begun(batch, samplings)
        steps = batch.generate(samplers, limit=20)
        first = [next(steps) for _ in range(3)]
        batch[1].append([first[-1][1]])
        found = [step[1] for step in first]
        for _ in range(4):
            found.append(batch[1].likeliest(2))
            batch[1].append(found[-1:])
        assert found == alone(engine, 1, SAMPLINGS[0], 7)
        batch[0].append([first[-1][0]])
        assert (
            together(batch, {0: samplers[0], 1: samplers[1]}, limit=4)[0]
            == alone(engine, 0, SAMPLINGS[0], 7)[3:]
        )


def test_one_prompt_becomes_several_sequences(engine: Engine) -> None:
    """The prompt is read once; each goes on with a seed of its own."""
    with opened(engine, 4) as batch:
        batch[0].append(PROMPTS[0])
        for i in range(1, 4):
            batch[i].become(batch[0])
        samplers = {i: Sampler(Sampling(seed=i, temperature=2)) for i in range(4)}
        made = together(batch, samplers, limit=6)
        for i in range(4):
            one, wanted = Sampler(Sampling(seed=i, temperature=2)), list[int]()
            with OwnSession(engine, context=40, kv=DType.F32) as session:
                session.append(PROMPTS[0])
                for _ in range(6):
                    wanted.append(one.sample(session.logits))
                    session.append(wanted[-1:])
            assert made[i] == wanted
        assert len({tuple(tokens) for tokens in made.values()}) > 1


def test_several_steps_are_one_play(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    plays: list[object] = []
    with opened(engine, 4) as batch:
        samplers = begun(batch, dict.fromkeys(range(4), SAMPLINGS[1]))
        play = engine.device.play
        monkeypatch.setattr(engine.device, "play", lambda p, **given: plays.append(p) or play(p, **given))
        together(batch, samplers, limit=18)
        assert len(plays) == 3  # of 1, 8 and 8 steps: the last token is not fed


def test_what_a_batch_cannot_do_is_refused(engine: Engine) -> None:
    for count in (0, 9, -1):
        with pytest.raises(UsageError, match="1 to 8"):
            opened(engine, count)
    with opened(engine, 2) as batch:
        with pytest.raises(UsageError, match="sequence 2 was fed; the batch has 0 to 1"):
            batch.feed({2: 1})
        with pytest.raises(UsageError, match="no tokens were fed"):
            batch.feed({})
        with pytest.raises(UsageError, match=f"token {VOCABULARY} was fed"):
            batch.feed({0: 1, 1: VOCABULARY})
        assert batch[0].length == 0
        with pytest.raises(UsageError, match="sequence 1 was to go on; it is empty"):
            next(batch.generate({1: Sampler()}))
        with pytest.raises(UsageError, match="sequence 5 was asked for"):
            next(batch.generate({5: Sampler()}))
    with pytest.raises(ClosedError):
        batch.feed({0: 1})
    batch.close()


def test_a_model_opens_batches_and_closes_them(tiny_gguf: Path) -> None:
    with LanguageModel(tiny_gguf, device="cpu") as model:
        batch = model.batch(2, context=30, kv="q8_0")
        assert (len(batch), batch[1].context, batch[1].region.kv) == (2, 30, DType.Q8_0)
        with pytest.raises(UsageError, match="context of 100000"):
            model.batch(2, context=100000)
    with pytest.raises(ClosedError):
        _ = batch[0].logits


@pytest.mark.parametrize("name", ["reference", "vulkan"])
def test_other_devices_that_share_memory(
    tiny_gguf: Path, engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "PATIENCE", 1e6)
    samplings = {i: SAMPLINGS[i] for i in range(3)}
    wanted = {i: alone(engine, i, s, 6) for i, s in samplings.items()}
    with closing(open_or_skip(name)) as device:
        for other in engine_on(device, tiny_gguf):
            with opened(other, 3) as batch:
                assert together(batch, begun(batch, samplings), limit=6) == wanted


def test_a_device_with_memory_of_its_own(
    tiny_gguf: Path, engine: Engine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All caches lie in one piece of it, and come home one by one; per token only tokens are read."""
    monkeypatch.setattr(pace, "PATIENCE", 1e6)
    kernels: ctypes.CDLL = request.getfixturevalue("library")
    samplings = {i: SAMPLINGS[i] for i in range(3)}
    wanted = {i: alone(engine, i, s, 4) for i, s in samplings.items()}
    with closing(emulated(EmulatedDriver(kernels, memory_bytes=1 << 27))) as device:
        for other in engine_on(device, tiny_gguf):
            with opened(other, 3) as batch:
                assert together(batch, begun(batch, samplings), limit=4) == wanted
                ledger = other.ledger
                assert ledger is not None
                before = ledger.downloaded
                assert before == 0
                session = batch[2]
                homes = [cache_bytes(s) for s in batch.sequences]
                session.flush()
                assert ledger.downloaded == session.length * session.region.cache.token_bytes
                assert homes[2].any()
                assert not homes[1].any()
                batch[1].become(session)
                assert batch[1].likeliest() == int(session.logits.argmax())


def cache_bytes(session: Session) -> np.ndarray:
    return session.memory.view(session.region.cache.nbytes, "u8", session.region.home).numpy()


@pytest.mark.parametrize("kind", [GGMLType.BF16, GGMLType.Q8_0], ids=lambda k: k.name)
def test_on_a_gpu_logits_differ_from_those_alone_by_rounding(tmp_path: Path, kind: GGMLType) -> None:
    """Sums there depend on how many rows are multiplied together."""
    with closing(open_or_skip("cuda")) as device:
        path = tmp_path / "model.gguf"
        write_gguf(path, guest_decode.metadata(), guest_decode.tensors(kind))
        for engine in engine_on(device, path):
            with opened(engine, 8) as batch, OwnSession(engine, context=40, kv=DType.F32) as one:
                for i in range(8):
                    batch[i].append(PROMPTS[i])
                batch.feed({i: 3 + i for i in range(8)})
                together(batch, {i: Sampler(SAMPLINGS[0]) for i in (1, 4)}, limit=9)
                for i in (0, 2, 7):
                    one.truncate(0)
                    one.append([*PROMPTS[i], 3 + i])
                    apart = np.abs(batch[i].logits - one.logits).max()
                    assert apart <= 1e-4 * np.abs(one.logits).max()
