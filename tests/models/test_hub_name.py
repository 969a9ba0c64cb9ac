"""Which file of a repository a name means."""

import pytest

from nocopy.errors import UsageError
from nocopy.models.hub_name import HubName, model_files, parts_of, quant_of

FILES = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-f16.gguf", "mmproj-m-f16.gguf", "m.imatrix.gguf"]


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q8_0.gguf", "Q8_0"),
        ("model.Q5_K_S.gguf", "Q5_K_S"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("BF16/m-BF16-00001-of-00002.gguf", "BF16"),
        ("Q6_K/m.gguf", "Q6_K"),
        ("m-fp16.gguf", "F16"),
        ("ggml-model.gguf", ""),
        ("Q-learning.gguf", ""),
    ],
)
def test_a_file_name_states_its_type(file, quant):
    assert quant_of(file) == quant


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("u/r", "m-Q4_K_M.gguf"),
        ("u/r:Q8_0", "m-Q8_0.gguf"),
        ("u/r:q8_0", "m-Q8_0.gguf"),
        ("u/r:F16", "m-f16.gguf"),
    ],
)
def test_a_name_means_one_file(name, file):
    assert HubName.parse(name).choose(FILES) == file


def test_without_a_known_type_the_first_file_is_taken():
    assert HubName.parse("u/r").choose(["b-IQ1_S.gguf", "a-IQ2_XS.gguf", "x.txt"]) == "a-IQ2_XS.gguf"
    assert HubName.parse("u/r").choose(["config.json"]) is None


def test_a_type_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UsageError, match=r"u/r:Q2_K was asked for; u/r has F16, Q4_K_M, Q8_0"):
        HubName.parse("u/r:Q2_K").choose(FILES)


def test_of_a_split_model_the_first_part_counts():
    files = [f"Q8_0/m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert model_files(files) == files[:1]
    assert parts_of(files[0]) == files


@pytest.mark.parametrize("text", ["r", "a/b/c", "../..", "u/..", "u/r:", "u /r", "", "u/r:Q 4"])
def test_other_texts_are_no_names(text):
    with pytest.raises(UsageError, match="USER/REPO"):
        HubName.parse(text)
