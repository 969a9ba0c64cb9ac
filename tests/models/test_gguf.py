import mmap
import struct
import time

import gguf
import numpy as np
import psutil
import pytest

from nocopy.errors import ClosedError, MetadataError, ModelError, ModelFileError, UsageError
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf import open_gguf
from nocopy.models.gguf_writer import TensorData, write_gguf


@pytest.fixture
def written_by_peer(tmp_path):
    """A file of the `gguf` package, so that reader and writer of ours cannot agree on a mistake."""
    path = tmp_path / "peer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_uint64("wide", 2**63 + 1)
    writer.add_int8("small", -5)
    writer.add_float32("single", 0.5)
    writer.add_float64("double", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "grün 🦙")
    writer.add_array("names", ["a", "", "ü", "long " * 50])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("floats", [1.5, -2.5])
    writer.add_array("flags", [True, False])
    rng = np.random.default_rng(1)
    writer.add_tensor("f32", rng.standard_normal((3, 4), np.float32))
    writer.add_tensor("f16", rng.standard_normal((2, 3, 8)).astype(np.float16))
    q8 = gguf.quantize(rng.standard_normal((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_gguf_package_writes(written_by_peer):
    model = open_gguf(written_by_peer)
    meta = model.metadata
    assert (model.version, model.alignment, meta.architecture) == (3, 32, "llama")
    assert meta.integer(meta.key("block_count")) == 2
    assert meta.integer("wide") == 2**63 + 1
    assert meta.integer("small") == -5
    assert meta.number("single") == 0.5
    assert meta.number("double") == 0.1
    assert meta.boolean("yes") is True
    assert meta.string("text") == "grün 🦙"
    assert list(meta.strings("names")) == ["a", "", "ü", "long " * 50]
    assert meta.strings("names")[2] == "ü"
    assert meta.strings("names")[-2:] == ["ü", "long " * 50]
    np.testing.assert_array_equal(meta.array("numbers"), [1, 2, 3])
    np.testing.assert_array_equal(meta.array("floats"), [1.5, -2.5])
    np.testing.assert_array_equal(meta.array("flags"), [True, False])

    peer = {t.name: t for t in gguf.GGUFReader(written_by_peer).tensors}
    assert list(model.weights) == list(peer)
    for name, weight in model.weights.items():
        assert weight.offset == peer[name].data_offset
        np.testing.assert_array_equal(model.weights.raw(name), peer[name].data.view(np.uint8).reshape(-1))
    assert model.weights["f16"].shape == (2, 3, 8)
    np.testing.assert_array_equal(model.weights.array("f32"), peer["f32"].data)


def test_the_gguf_package_reads_what_we_write(tmp_path):
    rng = np.random.default_rng(2)
    values = rng.standard_normal((5, 64), np.float32)
    path = tmp_path / "ours.gguf"
    write_gguf(
        path,
        {"general.architecture": "llama", "n": 7, "neg": -7, "x": 0.25, "on": True, "s": ["p", "q"],
         "wide": np.uint64(3), "many": np.arange(3, dtype=np.int16)},
        [TensorData.of(kind.name, values, kind) for kind in (GGMLType.F32, GGMLType.F16, GGMLType.BF16,
                                                             GGMLType.Q8_0, GGMLType.Q4_0)],
        alignment=64,
    )  # fmt: skip
    peer = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in peer.fields.items()}
    assert (fields["n"], fields["neg"], fields["x"], fields["on"]) == (7, -7, 0.25, True)
    assert (fields["s"], fields["wide"], fields["many"]) == (["p", "q"], 3, [0, 1, 2])
    assert fields["general.alignment"] == 64
    for entry in peer.tensors:
        assert entry.data_offset % 64 == 0
        kind = gguf.GGMLQuantizationType[entry.name]
        np.testing.assert_array_equal(
            entry.data.view(np.uint8).reshape(5, -1), gguf.quantize(values, kind).view(np.uint8)
        )
    np.testing.assert_array_equal(open_gguf(path).weights.array("F32"), values)


def test_views_lie_in_the_mapping_and_nothing_is_copied(written_by_peer):
    model = open_gguf(written_by_peer)
    file = model.weights.files[0]
    assert file.address % mmap.PAGESIZE == 0
    assert file.mapped_nbytes % mmap.PAGESIZE == 0
    assert file.mapped_nbytes >= file.nbytes
    for name, weight in model.weights.items():
        raw = model.weights.raw(name)
        assert raw.ctypes.data == file.address + weight.offset
        assert not raw.flags.writeable
    view = model.weights.array("f32")
    assert view.ctypes.data == file.address + model.weights["f32"].offset
    assert not view.flags.writeable


def test_arrays_outlive_a_closed_model_and_the_model_says_that_it_is_closed(written_by_peer):
    model = open_gguf(written_by_peer)
    view = model.weights.array("f32")
    before = view.copy()
    model.close()
    model.close()
    np.testing.assert_array_equal(view, before)
    with pytest.raises(ClosedError, match="after it was closed"):
        model.weights.raw("f32")
    with pytest.raises(ClosedError):
        model.metadata.string("text")


def test_a_weight_that_is_not_there_or_quantised_says_so(written_by_peer):
    model = open_gguf(written_by_peer)
    with pytest.raises(ModelError, match="'missing' was asked for"):
        model.weights.raw("missing")
    with pytest.raises(UsageError, match="Q8_0"):
        model.weights.array("q8")
    assert model.weights.dequantize("q8").shape == (4, 64)


def test_metadata_errors_name_key_architecture_and_type(written_by_peer):
    meta = open_gguf(written_by_peer).metadata
    with pytest.raises(
        MetadataError, match=r"architecture 'llama' needs the key 'llama\.head_count'"
    ) as caught:
        meta.integer(meta.key("head_count"))
    assert caught.value.key == "llama.head_count"
    for read, key in (
        (meta.integer, "text"), (meta.integer, "yes"), (meta.number, "text"), (meta.boolean, "small"),
        (meta.string, "small"), (meta.strings, "text"), (meta.strings, "numbers"), (meta.array, "names"),
    ):  # fmt: skip
        with pytest.raises(MetadataError, match=key):
            read(key)
    with pytest.raises(MetadataError, match="must have 5 elements; it has 3"):
        meta.array("numbers", count=5)
    np.testing.assert_array_equal(meta.array("small", count=3), [-5, -5, -5])
    assert meta.integer("absent", 4) == 4
    assert not meta.has("absent")


def test_version_2_and_other_alignments_are_read(raw_gguf):
    data = np.arange(8, dtype=np.float32).tobytes()
    path = raw_gguf(
        [raw_gguf.key("general.alignment", 4, raw_gguf.u32(8))],
        [raw_gguf.tensor("a", [2, 3], 0, 0), raw_gguf.tensor("b", [2], 0, 24)],
        data,
        version=2,
        align=8,
    )
    model = open_gguf(path)
    assert model.version == 2
    np.testing.assert_array_equal(model.weights.array("a"), np.arange(6, dtype=np.float32).reshape(3, 2))
    np.testing.assert_array_equal(model.weights.array("b"), [6, 7])


def test_nested_and_empty_arrays(raw_gguf):
    u32, u64, string = raw_gguf.u32, raw_gguf.u64, raw_gguf.string
    numbers = u32(5) + u64(2) + struct.pack("<2i", -1, 2)
    texts = u32(8) + u64(2) + string("x") + string("yz")
    deeper = u32(9) + u64(1) + u32(4) + u64(0)
    path = raw_gguf(
        [
            raw_gguf.key("nested", 9, u32(9) + u64(3) + numbers + texts + deeper),
            raw_gguf.key("no strings", 9, u32(8) + u64(0)),
            raw_gguf.key("no numbers", 9, u32(6) + u64(0)),
        ]
    )
    meta = open_gguf(path).metadata
    nested = meta["nested"]
    np.testing.assert_array_equal(nested[0], [-1, 2])
    assert list(nested[1]) == ["x", "yz"]
    assert len(nested[2][0]) == 0
    assert list(meta.strings("no strings")) == []
    assert meta.array("no numbers").shape == (0,)


def _split(folder, count=3, **changes):
    for index in range(count):
        keys = {"split.no": np.uint16(index), "split.count": np.uint16(count),
                "split.tensors.count": np.int32(count)}  # fmt: skip
        keys |= changes.get(f"part{index}", {})
        first = {"general.architecture": "llama"} if index == 0 else {}
        tensor = TensorData.of(
            changes.get("name", f"t{index}"), np.full((1, 4), index, np.float32), GGMLType.F32
        )
        write_gguf(folder / f"m-{index + 1:05}-of-{count:05}.gguf", first | keys, [tensor])
    return folder / f"m-00001-of-{count:05}.gguf"


def test_split_models_are_one(tmp_path):
    model = open_gguf(_split(tmp_path))
    assert model.metadata.architecture == "llama"
    assert list(model.weights) == ["t0", "t1", "t2"]
    for index in range(3):
        weight = model.weights[f"t{index}"]
        assert weight.file == index
        array = model.weights.array(weight.name)
        assert array.ctypes.data == model.weights.files[index].address + weight.offset
        np.testing.assert_array_equal(array, np.full((1, 4), index))


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"part1": {"split.no": np.uint16(2)}}, "split", "part 2 of 3 was expected; it is part 3 of 3"),
        ({"part2": {"split.count": np.uint16(4)}}, "split", "it is part 3 of 4"),
        ({"part0": {"split.tensors.count": np.int32(9)}}, "split", "announces 9 tensors; its parts have 3"),
        ({"name": "same"}, "duplicate-tensor", "in an earlier part"),
        ({"part0": {"split.count": np.uint64(2**60)}}, "too-large", "parts"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, changes, kind, says):
    path = _split(tmp_path, **changes)
    with pytest.raises(ModelFileError, match=says) as caught:
        open_gguf(path)
    assert caught.value.kind == kind


def test_split_names_what_is_missing_and_what_to_open(tmp_path):
    path = _split(tmp_path)
    with pytest.raises(ModelFileError, match=r"open 'm-00001-of-00003\.gguf'"):
        open_gguf(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"first 'm-00003-of-00003\.gguf'"):
        open_gguf(path)
    renamed = path.rename(tmp_path / "other.gguf")
    with pytest.raises(ModelFileError, match=r"must be named NAME-00001-of-00003\.gguf"):
        open_gguf(renamed)


def test_things_that_are_no_files(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo")
    refusals = {"nothing": "No such file", ".": "not a regular", "fifo": "not a regular", "a\0b": "null"}
    for name, says in refusals.items():
        with pytest.raises(UsageError, match=says):
            open_gguf(tmp_path / name)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelFileError, match="empty"):
        open_gguf(tmp_path / "empty.gguf")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {"a": 1})
    bad = TensorData("t", GGMLType.Q8_0, (1, 33), np.zeros(34, np.uint8))
    for keys, tensors in (({"bad": object()}, []), ({"ümlaut": 1}, []), ({}, [bad])):
        with pytest.raises(UsageError):
            write_gguf(path, keys, tensors)
    assert open_gguf(path).metadata.integer("a") == 1


def test_a_vocabulary_of_128_thousand_tokens_is_read_in_half_a_second(tmp_path):
    path = tmp_path / "big.gguf"
    words = [f"Ġtoken{i}" for i in range(128_000)]
    write_gguf(path, {"tokens": words, "merges": [f"Ġt oken{i}" for i in range(280_000)],
                      "scores": np.zeros(128_000, np.float32)})  # fmt: skip
    start = time.process_time()
    read = list(open_gguf(path).metadata.strings("tokens"))
    seconds = time.process_time() - start
    assert read == words
    assert seconds < 0.5


def test_opening_a_file_of_2_gigabytes_reads_only_its_header(raw_gguf):
    size = 2_400_000_000
    rows = size // 4 // 4096
    path = raw_gguf([], [raw_gguf.tensor("w", [4096, rows], 0, 0)])
    header = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(header + rows * 4096 * 4)  # sparse: it takes no space on disk
    before = psutil.Process().memory_info().rss
    start = time.process_time()
    model = open_gguf(path)
    view = model.weights.array("w")
    assert time.process_time() - start < 0.1
    assert psutil.Process().memory_info().rss - before < 2**20
    assert view.shape == (rows, 4096)
    assert view[-1, -1] == 0
