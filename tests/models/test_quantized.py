import gguf
import numpy as np
import pytest

from nocopy.errors import UnsupportedModelError, UsageError
from nocopy.models.dequantize import dequantize
from nocopy.models.ggml import DENSE, DTYPES, SIZES, GGMLType
from nocopy.models.quantize import quantize
from nocopy.tape.blocks import LAYOUTS

BLOCKS = {kind: LAYOUTS[dtype] for kind, dtype in DTYPES.items() if dtype in LAYOUTS}


def test_block_sizes_are_those_of_the_format():
    for kind, (elements, nbytes) in SIZES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]] == (elements, nbytes)
        assert gguf.GGMLQuantizationType[kind.name] == kind
    assert set(SIZES) == set(GGMLType)
    for kind, dtype in BLOCKS.items():
        assert dtype.itemsize == kind.block_nbytes
    for kind, dtype in DENSE.items():
        assert dtype.itemsize == kind.block_nbytes


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_any_block_decodes_to_what_the_gguf_package_decodes(kind):
    rng = np.random.default_rng(int(kind))
    raw = rng.integers(0, 256, (64, 5 * kind.block_nbytes), np.uint8)
    blocks = raw.reshape(-1).view(BLOCKS[kind])
    for field in ("d", "dmin"):
        if field in blocks.dtype.names:
            blocks[field] = rng.standard_normal(len(blocks)).astype(np.float16)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
    found = dequantize(raw.reshape(-1), kind, (64, 5 * kind.block_elements))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.F16, GGMLType.BF16], ids=lambda kind: kind.name)
def test_dense_types_keep_their_values(kind):
    values = np.arange(-6, 6, dtype=np.float32).reshape(3, 4) / 4
    np.testing.assert_array_equal(dequantize(quantize(values, kind), kind, (3, 4)), values)


@pytest.mark.parametrize("kind", [GGMLType.Q8_0, GGMLType.Q4_0], ids=lambda kind: kind.name)
def test_quantising_gives_the_bytes_of_the_gguf_package(kind):
    rng = np.random.default_rng(7)
    values = (rng.standard_normal((32, 256)) * np.exp(rng.standard_normal((32, 1)) * 4)).astype(np.float32)
    values[3] = 0  # a block without a scale
    values[4, :32] = -values[4, :32].clip(0)
    values[5, :4] = (1e-30, -1e-30, 0, 65504)
    values[6, :32] = np.arange(-16, 16) / 2  # halves, which round away from zero
    expected = gguf.quantize(values, gguf.GGMLQuantizationType[kind.name])
    found = quantize(values, kind)
    np.testing.assert_array_equal(found, expected.view(np.uint8).reshape(-1))


def test_quantising_loses_no_more_than_half_a_step():
    values = np.random.default_rng(8).standard_normal((4, 320), np.float32)
    # Half a step, and what rounding the scale to f16 adds; Q4_0's range lacks +8.
    for kind, steps, most in ((GGMLType.Q8_0, 127, 0.57), (GGMLType.Q4_0, 8, 1.01)):
        found = dequantize(quantize(values, kind), kind, values.shape)
        step = np.abs(values).reshape(-1, 32).max(axis=1).repeat(32).reshape(values.shape) / steps
        assert (np.abs(found - values) <= step * most).all()


def test_what_cannot_be_done_is_said():
    with pytest.raises(UnsupportedModelError, match="IQ2_XS"):
        dequantize(np.zeros(74, np.uint8), GGMLType.IQ2_XS, (256,))
    with pytest.raises(UsageError, match="34 bytes"):
        dequantize(np.zeros(33, np.uint8), GGMLType.Q8_0, (32,))
    with pytest.raises(UnsupportedModelError, match="Q4_K"):
        quantize(np.zeros(256, np.float32), GGMLType.Q4_K)
    with pytest.raises(UsageError, match="multiple of 32"):
        quantize(np.zeros((2, 33), np.float32), GGMLType.Q8_0)
    with pytest.raises(UsageError, match="NaN"):
        quantize(np.full((1, 32), np.nan, np.float32), GGMLType.Q8_0)
