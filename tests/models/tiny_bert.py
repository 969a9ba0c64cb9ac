"""A BERT of some kilobytes with random weights and a WordPiece tokenizer, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.models import random_models

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "sat", "on", "the", "mat", "##s", "."]


def write_tiny_bert(folder: Path) -> Any:
    """Write it, and return transformers' own model of it."""
    model = random_models.make_bert()
    random_models.save(model, folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    library = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    library.save(str(folder / "tokenizer.json"))
    return model
