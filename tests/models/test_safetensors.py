import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from nocopy.errors import MetadataError, ModelFileError, UnsupportedModelError, UsageError
from nocopy.models.ggml import GGMLType
from nocopy.models.huggingface import open_folder
from nocopy.models.mapped_file import MappedFile
from nocopy.models.safetensors import HEADER_LIMIT, read_safetensors


@pytest.fixture
def folder(tmp_path):
    config = {"model_type": "llama", "hidden_size": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
              "rope_scaling": None, "eos_token_id": [1, 2]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def tensors():
    rng = np.random.default_rng(3)
    return {
        "a.weight": rng.standard_normal((4, 8), np.float32),
        "b.weight": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "c.weight": rng.standard_normal(6).astype(ml_dtypes.bfloat16),
        "d.ids": np.arange(5, dtype=np.int64),
    }


def test_a_folder_with_one_file(folder):
    save_file(tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    model = open_folder(folder)
    assert model.metadata.architecture == "llama"
    assert model.metadata.integer("hidden_size") == 64
    assert model.metadata.number("rms_norm_eps") == 1e-5
    assert not model.metadata.has("rope_scaling")
    with pytest.raises(MetadataError, match="'llama' needs the key 'num_layers'"):
        model.metadata.integer("num_layers")
    np.testing.assert_array_equal(model.metadata.array("eos_token_id"), [1, 2])
    assert set(model.weights) == set(tensors())
    assert model.weights["c.weight"].type == GGMLType.BF16
    for name, values in tensors().items():
        view = model.weights.array(name)
        np.testing.assert_array_equal(view, values)
        weight = model.weights[name]
        assert view.ctypes.data == model.weights.files[0].address + weight.offset
        assert not view.flags.writeable


def shard(folder):
    parts = [dict(list(tensors().items())[:2]), dict(list(tensors().items())[2:])]
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_a_folder_with_shards(folder):
    places = shard(folder)
    model = open_folder(folder)
    for name, values in tensors().items():
        np.testing.assert_array_equal(model.weights.array(name), values)
        assert model.weights.files[model.weights[name].file].path.name == places[name]


def test_an_index_that_does_not_fit_is_refused(folder):
    places = shard(folder)
    index = folder / "model.safetensors.index.json"
    first, other = sorted(set(places.values()))
    for changed, says in (
        (places | {"ghost": first}, "in no shard, first 'ghost'"),
        (places | {"a.weight": other}, "not where the index says"),
        ({name: place for name, place in places.items() if name != "a.weight"}, "not where the index says"),
        (places | {"a.weight": "../" + first}, "not a plain file name"),
        (places | {"a.weight": "/etc/passwd"}, "not a plain file name"),
        (places | {"a.weight": 3}, "no weight_map"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ModelFileError, match=says):
            open_folder(folder)
    index.write_text(json.dumps({"weight_map": places | {"ghost": "missing.safetensors"}}))
    with pytest.raises(UsageError, match="No such file"):
        open_folder(folder)


def test_a_folder_without_safetensors(folder):
    with pytest.raises(UsageError, match=r"neither model\.safetensors"):
        open_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match="pickled"):
        open_folder(folder)
    with pytest.raises(UsageError, match="No such file"):
        open_folder(folder / "nothing")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelFileError, match="not JSON"):
        open_folder(folder)


def raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return MappedFile(path)


def entry(begin, end, shape=None, dtype="F32"):
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("header", "data", "kind"),
    [
        (b"nonsense", b"", "header"),
        (b"[1]", b"", "header"),
        (b"{\xff}", b"", "header"),
        (b"[" * 100_000, b"", "header"),
        (b'{"a":' + b"9" * 100_000 + b"}", b"", "header"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', bytes(4), "duplicate-key"),
        ({"a": 3}, b"", "type"),
        ({"a": entry(0, 4, dtype="F33")}, bytes(4), "type"),
        ({"a": entry(0, 4, shape=[-1])}, bytes(4), "dimensions"),
        ({"a": entry(0, 4, shape=[1.0])}, bytes(4), "dimensions"),
        ({"a": entry(0, 4, shape=[True])}, bytes(4), "dimensions"),
        ({"a": entry(0, 4, shape="1")}, bytes(4), "dimensions"),
        ({"a": entry(0, 4, shape=[1] * 9)}, bytes(4), "dimensions"),
        ({"a": entry(0, 4, shape=[2**32, 2**32])}, bytes(4), "dimensions"),
        ({"a": entry(0, 4, shape=[2])}, bytes(4), "dimensions"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4), "offset"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, bytes(4), "offset"),
        ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "offset"),
        ({"a": entry(0, 2**62)}, bytes(4), "offset"),
        ({"a": entry(4, 8)}, bytes(8), "offset"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "offset"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "overlap"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4), "overlap"),
        ({"a": entry(0, 4)}, bytes(5), "truncated"),
        ({}, bytes(1), "truncated"),
    ],
)
def test_files_that_break_the_format_are_refused_by_name(tmp_path, header, data, kind):
    with pytest.raises(ModelFileError) as caught:
        read_safetensors(raw(tmp_path / "m.safetensors", header, data))
    assert caught.value.kind == kind, caught.value


def test_header_lengths_are_bounded(tmp_path):
    for length, kind in ((2**63, "too-large"), (HEADER_LIMIT + 1, "too-large"), (100, "truncated")):
        with pytest.raises(ModelFileError) as caught:
            read_safetensors(raw(tmp_path / "m", {}, length=length))
        assert caught.value.kind == kind
    (tmp_path / "m").write_bytes(b"1234")
    with pytest.raises(ModelFileError, match="needs 8 bytes"):
        read_safetensors(MappedFile(tmp_path / "m"))


def test_a_dtype_without_use_is_named(tmp_path):
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        read_safetensors(raw(tmp_path / "m", {"a": entry(0, 4, shape=[4], dtype="F8_E4M3")}, bytes(4)))


def test_an_empty_tensor_is_allowed(tmp_path):
    found = read_safetensors(
        raw(tmp_path / "m", {"a": entry(0, 0, shape=[0, 4]), "b": entry(0, 4)}, bytes(4))
    )
    assert found["a"].nbytes == 0
    assert found["b"].shape == (1,)
