"""Sessions that go on with another device: after the loss of theirs, or because somebody wants them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nocopy.errors import ClosedError, DeviceError, DeviceLostError, DeviceUnavailableError, UsageError
from nocopy.memory.ledger import Ledger
from nocopy.session import pace
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from tests.device.losable import LosableDevice, NearPages
from tests.models.tiny import write_tiny

PROMPT = [5, 9, 2, 7, 11, 3]


REFUSED: list[Callable[[OwnSession], object]] = [
    lambda session: session.append([1]),
    lambda session: session.extend_to(PROMPT),
    lambda session: session.truncate(0),
    lambda session: session.fork(session.memory, session.pages),
    lambda session: session.flush(),
]
"""What a session cannot do before it has read again what it lost."""


class Cramped(LosableDevice):
    """Has room for one cache, which nobody could know before: others take from it too."""

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> NearPages:
        if self.held:
            self.memory_bytes = 0
        return super().near(address, nbytes, ledger=ledger)


@pytest.fixture
def gpu() -> LosableDevice:
    return LosableDevice()


@pytest.fixture
def model(tiny_gguf: Path, gpu: LosableDevice) -> Iterator[LanguageModel]:
    with LanguageModel(tiny_gguf, device=gpu, context=64, kv="f32") as model:
        yield model


@pytest.fixture(scope="module")
def truth(tiny_gguf: Path) -> Iterator[LanguageModel]:
    with LanguageModel(tiny_gguf, device="reference", context=64, kv="f32") as model:
        yield model


def goes_on(session: OwnSession, truth: LanguageModel, tokens: list[int]) -> bool:
    """Whether the next greedy tokens are those of a session that was never disturbed, and so the logits.

    As far as rounding: a matrix product of one row adds up in another order than one of several.
    """
    with truth.session() as other:
        other.append(tokens)
        for _ in range(8):
            if not np.allclose(session.logits, other.logits, atol=1e-4):
                return False
            token = int(other.logits.argmax())
            for each in (session, other):
                each.append([token])
        return session.tokens == other.tokens


@pytest.mark.parametrize("flushed", [0, 1, 4, 6])
def test_after_a_loss_a_session_reads_again_what_the_region_does_not_hold(
    model: LanguageModel, gpu: LosableDevice, truth: LanguageModel, flushed: int
) -> None:
    session = model.session()
    address = session.memory.address
    if flushed:
        session.append(PROMPT[:flushed])
        session.flush()
    assert session.kept == flushed
    if flushed < len(PROMPT):
        session.append(PROMPT[flushed:])
    gpu.lose()
    with pytest.raises(DeviceLostError):
        session.append([1])
    with pytest.raises(ClosedError):
        session.append([1])
    assert session.tokens.tolist() == PROMPT
    assert model.move("reference") == max(len(PROMPT) - flushed, 1)
    assert (session.tokens.tolist(), session.memory.address) == (PROMPT, address)
    assert session.kept == len(PROMPT)
    assert goes_on(session, truth, PROMPT)


def test_a_device_that_works_gives_everything_back(
    model: LanguageModel, gpu: LosableDevice, truth: LanguageModel
) -> None:
    session = model.session()
    session.append(PROMPT)
    logits = session.logits.tobytes()
    plays = gpu.plays
    assert model.move("reference") == 0
    assert gpu.plays == plays
    assert session.logits.tobytes() == logits
    assert goes_on(session, truth, PROMPT)
    assert not gpu.held
    gpu.near(0, 16).close()  # it is the caller's, and open


def test_a_session_moves_to_a_device_with_memory_of_its_own_and_back(
    model: LanguageModel, truth: LanguageModel
) -> None:
    session = model.session()
    session.append(PROMPT)
    for device in (LosableDevice(), "reference", LosableDevice()):
        assert model.move(device) == 0
        assert (session.near is None) == (device == "reference")
    assert goes_on(session, truth, PROMPT)


def test_the_pace_of_a_device_is_left_behind(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, truth: LanguageModel
) -> None:
    """A slow one must not be given as many tokens in one go as the fast one before."""
    monkeypatch.setattr(pace, "PATIENCE", 1e6)
    session, slow = model.session(), LosableDevice()
    session.append(PROMPT)
    session.append([session.likeliest(1)])  # by itself: now a step's time is known
    session.likeliest(40)
    assert len(session._ahead) == pace.AHEAD + 1
    model.move(slow)
    plays = slow.plays
    session.append([session.likeliest(40)])
    assert slow.plays == plays + 1
    assert len(session._ahead) == 1
    assert goes_on(session, truth, session.tokens.tolist())


def test_what_was_truncated_is_not_kept(
    model: LanguageModel, gpu: LosableDevice, truth: LanguageModel
) -> None:
    session = model.session()
    session.append(PROMPT)
    session.flush()
    session.truncate(2)
    session.append([20, 21])
    assert session.kept == 2
    gpu.lose()
    assert model.move("reference") == 2
    assert goes_on(session, truth, [*PROMPT[:2], 20, 21])


def test_every_session_and_the_models_own_go_on(model: LanguageModel, gpu: LosableDevice) -> None:
    text = model.generate("Once", max_tokens=6, temperature=0).text
    sessions = [model.session() for _ in range(3)]
    for i, session in enumerate(sessions):
        session.append(PROMPT[: i + 1])
    sessions.pop().close()
    gpu.lose()
    model.move("reference")
    assert [session.tokens.tolist() for session in sessions] == [PROMPT[:1], PROMPT[:2]]
    assert model.generate("Once", max_tokens=6, temperature=0).text == text


def test_a_device_that_is_not_there_changes_nothing(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*, allow_copy: bool) -> None:
        raise DeviceUnavailableError("cuda", "the process has lost it", "Start it anew.")

    monkeypatch.setattr("nocopy.device.cuda.open_device", none)
    session = model.session()
    session.append(PROMPT)
    with pytest.raises(DeviceUnavailableError):
        model.move("cuda")
    session.append([1])
    assert session.tokens.tolist() == [*PROMPT, 1]


def test_a_move_that_fails_half_way_can_be_made_again(
    model: LanguageModel, gpu: LosableDevice, truth: LanguageModel
) -> None:
    first, second = model.session(), model.session()
    first.append(PROMPT)
    second.append(PROMPT[:3])
    gpu.lose()
    doomed = Cramped()
    with pytest.raises(DeviceError, match="its KV cache takes"):
        model.move(doomed)
    for session in (first, second):
        if session._unread:
            for use in REFUSED:
                with pytest.raises(ClosedError, match="read again"):
                    use(session)
    doomed.lose()
    assert model.move("reference") == len(PROMPT) + 3
    assert goes_on(first, truth, PROMPT)
    assert goes_on(second, truth, PROMPT[:3])


def test_a_session_goes_on_with_its_own_model_only(model: LanguageModel, tmp_path: Path) -> None:
    session = model.session()
    other = write_tiny(tmp_path / "other.gguf", llama__attention__layer_norm_rms_epsilon=1e-3)
    with LanguageModel(other, device="reference") as different:
        session.leave()
        with pytest.raises(UsageError, match="another model"):
            session.resume(different.engine)
    session.close()


def test_a_session_that_lost_nothing_still_reads_its_last_token_for_the_logits(
    tiny_gguf: Path, truth: LanguageModel
) -> None:
    """The pass that failed may have written half of them."""
    gpu = LosableDevice()
    with LanguageModel(tiny_gguf, device=gpu, context=64, kv="f32") as model:
        session = model.session()
        session.append(PROMPT)
        session.flush()
        session.logits[:200] = np.nan
        gpu.lose()
        assert model.move("reference") == 1
        assert goes_on(session, truth, PROMPT)
