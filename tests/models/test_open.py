import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models

from nocopy.errors import MetadataError
from nocopy.models import GGMLType, load_chat_template, load_tokenizer, open_files
from nocopy.models.gguf_writer import TensorData, write_gguf

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ eos_token }}"
TOKENS = ["<s>", "</s>", "a", "b", "ab"]


def write_file(path):
    write_gguf(
        path,
        {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": np.array([3, 3, 1, 1, 1], np.int32),
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.chat_template": TEMPLATE,
        },
        [TensorData.of("w", np.ones((1, 32), np.float32), GGMLType.F32)],
    )
    return path


def write_folder(path):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": np.ones((1, 32), np.float32)}, path / "model.safetensors")
    library = Tokenizer(models.BPE({text: i for i, text in enumerate(TOKENS)}, [("a", "b")]))
    library.add_special_tokens(["<s>", "</s>"])
    library.decoder = decoders.ByteLevel()
    library.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_file_and_folder_are_used_alike(tmp_path, write):
    model = open_files(write(tmp_path / "model.gguf"))
    assert model.metadata.architecture == "llama"
    np.testing.assert_array_equal(model.weights.dequantize("w"), np.ones((1, 32)))
    tokenizer = load_tokenizer(model)
    assert tokenizer.encode("ab") == [4]
    text = load_chat_template(model, tokenizer).render([{"role": "user", "content": "</s>ab"}])
    assert text == "<s>[user]</s>ab</s>"
    model.close()


def test_a_model_without_a_template_says_so(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {"general.architecture": "bert"})
    with pytest.raises(MetadataError, match=r"'bert' needs the key 'tokenizer\.chat_template'"):
        load_chat_template(open_files(path), load_tokenizer(open_files(write_file(tmp_path / "t.gguf"))))
