"""A model that a device has no room for is refused with its sizes before any of it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nocopy.errors import DeviceError
from nocopy.memory.ledger import Ledger
from nocopy.models.load import open_model
from nocopy.session.engine import Engine
from nocopy.session.language import LanguageModel
from tests.device.losable import LosableDevice


class Counting(LosableDevice):
    """Counts what it is asked to hold."""

    def __init__(self, memory_bytes: int) -> None:
        super().__init__(memory_bytes)
        self.asked = 0

    def place(self, *args: object, **kw: object) -> object:  # type: ignore[override]
        self.asked += 1
        return super().place(*args, **kw)  # type: ignore[arg-type]

    def allocate(self, nbytes: int) -> object:  # type: ignore[override]
        self.asked += 1
        return super().allocate(nbytes)


def needs(model: Path, context: int) -> tuple[int, int, int]:
    """Bytes of weights, scratch and a session's cache."""
    with LanguageModel(model, device="reference", context=context) as opened:
        engine = opened.engine
        cache = opened.session().region.cache.nbytes
        return sum(f.mapped_nbytes for f in opened.model.weights.files), engine.scratch.nbytes, cache


@pytest.mark.parametrize("context", [16, 256])
def test_what_does_not_fit_is_refused_with_what_it_is_for(tiny_gguf: Path, context: int) -> None:
    weights, scratch, cache = needs(tiny_gguf, context)
    total = weights + scratch + cache
    device = Counting(total - 1)
    with LanguageModel(tiny_gguf, device=device, context=context) as model:
        with pytest.raises(DeviceError) as caught:
            _ = model.engine
        assert not device.asked
        for size in (total, weights, scratch, cache, total - 1):
            assert str(size) in str(caught.value)
    with LanguageModel(tiny_gguf, device=LosableDevice(total), context=context) as model:
        model.session().append([1, 2])


def test_a_model_without_sessions_needs_no_cache(tiny_gguf: Path) -> None:
    weights, scratch, _ = needs(tiny_gguf, 16)
    model = open_model(tiny_gguf)
    with pytest.raises(DeviceError, match=r"for weights, .* for scratch; "):
        Engine(model, LosableDevice(weights + scratch - 1))
    Engine(model, LosableDevice(weights + scratch), ledger=Ledger()).close()
    model.close()


def test_a_session_that_does_not_fit_says_so_and_the_others_go_on(tiny_gguf: Path) -> None:
    weights, scratch, cache = needs(tiny_gguf, 64)
    device = LosableDevice(max(weights + scratch + cache, 2 * cache))
    with LanguageModel(tiny_gguf, device=device, context=64) as model:
        first = model.session()
        device.memory_bytes = device.held
        with pytest.raises(DeviceError, match=f"session of 64 tokens .* takes {cache} bytes .* 0 are free"):
            model.session()
        first.append([1, 2, 3])
