"""Whether the benchmark measures what it says: guest and Python draw the same tokens from one engine."""

from contextlib import closing

import pytest

from nocopy.bench import guest_decode
from nocopy.device.discovery import open_device
from nocopy.errors import DeviceError
from nocopy.interfaces.loaded import keep_loaded
from nocopy.models.gguf_writer import write_gguf


@pytest.fixture
def device(monkeypatch, tmp_path):
    monkeypatch.setattr(guest_decode, "SECONDS", 0.05)
    for name, value in (("LAYERS", 1), ("WIDTH", 64), ("HEADS", 1), ("GROUPS", 1), ("HIDDEN", 96)):
        monkeypatch.setattr(guest_decode, name, value)
    monkeypatch.setattr(guest_decode, "VOCABULARY", 128)
    large = tmp_path / "large.gguf"
    write_gguf(large, guest_decode.metadata(), guest_decode.tensors())
    monkeypatch.setattr(guest_decode, "model_file", lambda kind: large)
    device = open_device("reference")
    yield device
    device.close()


def test_both_ways_are_compared(device):
    rows = guest_decode.rows(device)
    cases = [
        f"{size}, {case}"
        for size in ("15 M", "1.24 B")
        for case in ("32 tokens, one call", "32 tokens, a call each", "240 tokens, one call")
    ]
    assert [r["case"] for r in rows] == cases
    for row in rows:
        assert row["unit"] == "1/s"
        assert row["value"] > 0
        assert row["peer_value"] > 0


def test_a_guest_reads_a_longer_prompt(device, tmp_path):
    path, prompt = tmp_path / "large.gguf", [5, 9] * 30
    with (
        keep_loaded(path, device) as loaded,
        closing(guest_decode.Inside(device, path, context=100, prompt=prompt)) as inside,
        closing(guest_decode.Outside(loaded, context=100, prompt=prompt)) as outside,
        closing(guest_decode.Outside(loaded)) as short,
    ):
        inside.decode(40, 40)
        outside.decode(40, 40)
        short.decode(40, 40)
        assert inside.tokens(40) == outside.tokens != short.tokens


def test_other_tokens_are_noticed(device, monkeypatch):
    decode = guest_decode.Outside.decode

    def wrong(self, count, step):
        decode(self, count, step)
        self.tokens[-1] += 1

    monkeypatch.setattr(guest_decode.Outside, "decode", wrong)
    with pytest.raises(DeviceError, match="other tokens"):
        guest_decode.rows(device)
