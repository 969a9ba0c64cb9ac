"""Whether the benchmarks measure what they say: tokens of all sequences; draws that the host agrees with."""

from nocopy.bench import batch, guest_decode, sample
from nocopy.device.discovery import open_device
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import write_gguf


def test_sequences_are_compared_with_one_at_a_time(monkeypatch, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, guest_decode.metadata(), guest_decode.tensors())
    monkeypatch.setattr(batch, "model_file", lambda kind: path)
    monkeypatch.setattr(batch, "tokens", lambda count: [1] * count)
    for name, value in {"KINDS": (GGMLType.BF16,), "PROMPT": 4, "STEPS": 3, "TURNS": 1}.items():
        monkeypatch.setattr(batch, name, value)
    made: list[int] = []
    generate = batch.SessionBatch.generate

    def counted(self, samplers, **options):
        for step in generate(self, samplers, **options):
            made.append(len(step))
            yield step

    monkeypatch.setattr(batch.SessionBatch, "generate", counted)
    device = open_device("cpu")
    rows = batch.rows(device)
    device.close()
    assert [row["case"] for row in rows] == [f"{n} sequences bf16" for n in (1, 2, 4, 8)]
    assert made == [n for n in (1, 2, 4, 8) for _ in range(4)]
    assert all(row["value"] > 0 and row["peer_value"] > 0 for row in rows)


def test_draws_are_compared_with_the_host(monkeypatch):
    monkeypatch.setattr(sample, "VOCABULARY", 3000)
    monkeypatch.setattr(sample, "SECONDS", 0.01)
    device = open_device("cpu")
    rows = sample.rows(device)
    device.close()
    assert [row["case"] for row in rows] == list(sample.CASES)
    assert all(row["value"] > 0 and row["peer_value"] > 0 for row in rows)
