"""The digest tells models apart, costs little, and follows the file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nocopy.errors import ClosedError
from nocopy.models import digest
from nocopy.models.load import open_model
from tests.models.tiny import write_tiny


def of(path: Path) -> bytes:
    with closing(open_model(path)) as model:
        return model.digest


def test_a_copy_has_the_same_digest_under_any_name(tmp_path: Path) -> None:
    first = write_tiny(tmp_path / "a.gguf")
    second = tmp_path / "other" / "b.gguf"
    second.parent.mkdir()
    shutil.copy(first, second)
    os.utime(second, (1, 1))
    assert of(first) == of(second)
    assert len(of(first)) == 32


@pytest.mark.parametrize(
    "changes", [{"general__name": "x"}, {"llama__context_length": 128}, {"template": None}], ids=str
)
def test_other_metadata_is_another_model(tmp_path: Path, changes: dict[str, object]) -> None:
    assert of(write_tiny(tmp_path / "a.gguf")) != of(write_tiny(tmp_path / "b.gguf", **changes))


@pytest.mark.parametrize("small", [True, False], ids=["whole", "in pieces"])
def test_one_weight_more_or_less_is_another_model_where_bytes_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    if not small:
        monkeypatch.setattr(digest, "WHOLE", 0)
        monkeypatch.setattr(digest, "SMALL", 64)
        monkeypatch.setattr(digest, "PIECE", 32)
    before = of(path)
    with closing(open_model(path)) as model:
        weight = max(model.weights.values(), key=lambda w: w.nbytes)
        places = [weight.offset, weight.offset + weight.nbytes // 2, weight.offset + weight.nbytes - 1]
        hidden = weight.offset + weight.nbytes // 4
    data = bytearray(path.read_bytes())
    for i, place in enumerate([*places, hidden]):
        data[place] ^= 1
        other = tmp_path / f"{i}.gguf"
        other.write_bytes(data)
        data[place] ^= 1
        assert (of(other) != before) is (small or place != hidden)


def test_it_is_worked_out_once_while_the_file_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    asked: list[object] = []
    real: Callable[..., bytes] = digest._digest  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(digest, "_digest", lambda model: (asked.append(model), real(model))[1])
    first = of(path)
    assert of(path) == first
    assert len(asked) == 1
    write_tiny(path, general__name="changed")
    assert of(path) != first
    assert len(asked) == 2


def test_a_closed_model_has_none(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "a.gguf"))
    model.close()
    with pytest.raises(ClosedError):
        _ = model.digest
