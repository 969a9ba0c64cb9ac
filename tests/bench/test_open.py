"""Whether the benchmark measures what it says: opening maps, reading fills memory."""

from nocopy.bench import guest_decode
from nocopy.bench import open as opening
from nocopy.device.discovery import open_device
from nocopy.models.gguf_writer import write_gguf


def test_opening_is_compared_with_reading(monkeypatch, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, guest_decode.metadata(), guest_decode.tensors())
    monkeypatch.setattr(opening, "model_file", lambda kind: path)
    monkeypatch.setattr(opening, "tokens", lambda count: [1] * count)
    monkeypatch.setattr(opening, "SECONDS", 0.05)
    monkeypatch.setattr(opening, "CONTEXT", 16)
    device = open_device("reference")
    rows = {row["case"]: row for row in opening.rows(device)}
    device.close()
    assert list(rows) == ["to the first tape", "resident memory", "first token"]
    assert all(row["value"] > 0 and row["peer_value"] > 0 for row in rows.values())
    assert rows["resident memory"]["peer_value"] > 0.9 * path.stat().st_size / opening.MIB
    assert rows["resident memory"]["value"] < 0.5 * rows["resident memory"]["peer_value"]
