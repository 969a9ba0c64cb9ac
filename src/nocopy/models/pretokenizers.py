r"""How the BPE vocabularies that GGUF names cut text into words before they merge: a table of regexes.

A vocabulary cuts with each regex in turn: matches and what lies between them both become words. The regexes
are the ones of the models' own tokenizer.json, in Oniguruma syntax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nocopy.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Rules of one kind of BPE vocabulary.

    `regexes` cut in order. With `ignore_merges` a word that is a token is taken whole. `add_bos` is the
    default when the file does not say. `add_sep` vocabularies end a text with a separator. `nfc` normalises
    text first, as the model's own tokenizer does.
    """

    regexes: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False
    nfc: bool = False


_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _SYMBOLS + _TAIL
QWEN2: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _SYMBOLS + _TAIL

_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED: Final = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_PATHS: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"

GPT4O: Final = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _PATHS + _TAIL
TEKKEN: Final = _CASED % ("", "") + r"|\p{N}" + _PATHS + _TAIL

_NOT_HAN_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_NOT_HAN_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI: Final = (
    r"\p{Han}+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_NOT_HAN_UPPER}*{_NOT_HAN_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_NOT_HAN_UPPER}+{_NOT_HAN_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}" + _SYMBOLS + _TAIL
)

_DEEPSEEK_LETTERS: Final = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}"
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}"
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}"
    r"\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}"
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}"
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}"
    r"\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}"
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}"
    r"\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
_DEEPSEEK_CJK: Final = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
DEEPSEEK_LLM: Final = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
    r"\s+$",
    _DEEPSEEK_CJK,
    r"\p{N}+",
)
DEEPSEEK_V3: Final = (
    r"\p{N}{1,3}",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL,
)
_BLOOM: Final = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_BAILING: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER: Final = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXAONE_MOE: Final = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)

_gpt2 = PreTokenizer((GPT2,))
_gpt2_nfc = PreTokenizer((GPT2,), nfc=True)
_roberta = PreTokenizer((GPT2,), add_sep=True)
_digits = PreTokenizer((r"\p{N}", GPT2))
_llama3 = PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True)
_llama3_merging = PreTokenizer((LLAMA3,))
_qwen2 = PreTokenizer((QWEN2,), nfc=True)
_qwen2_raw = PreTokenizer((QWEN2,))
_gpt4o = PreTokenizer((GPT4O,))
_bailing = PreTokenizer((_BAILING,))
_deepseek_v3 = PreTokenizer(DEEPSEEK_V3)

PRE_TOKENIZERS: Final[dict[str, PreTokenizer]] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _gpt2, "phi-2": _gpt2, "jina-es": _gpt2, "jina-de": _gpt2, "jina-v2-es": _gpt2,
    "jina-v2-de": _gpt2, "gigachat": _gpt2, "a.x-4.0": _gpt2, "mellum": _gpt2, "jais": _gpt2,
    "trillion": _gpt2, "granite-docling": _gpt2, "exaone4": _gpt2,
    "mpt": _gpt2_nfc, "olmo": _gpt2_nfc, "modern-bert": _gpt2_nfc,
    "roberta-bpe": _roberta, "jina-v1-en": _roberta, "jina-v2-code": _roberta,
    "starcoder": _digits, "refact": _digits, "command-r": _digits, "smollm": _digits, "codeshell": _digits,
    "exaone": _digits, "minerva-7b": _digits,
    "llama-bpe": _llama3, "llama3": _llama3, "llama-v3": _llama3, "falcon3": _llama3, "falcon-h1": _llama3,
    "pixtral": _llama3, "midm-2.0": _llama3, "lfm2": _llama3,
    "dbrx": _llama3_merging, "smaug-bpe": _llama3_merging, "glm4": _llama3_merging,
    "chatglm-bpe": _llama3_merging,
    "qwen2": _qwen2, "deepseek-r1-qwen": _qwen2, "kormo": _qwen2, "megrez": _qwen2, "stablelm2": _qwen2,
    "hunyuan": _qwen2_raw, "solar-open": _qwen2_raw, "grok-2": _qwen2_raw,
    "gpt-4o": _gpt4o, "llama4": _gpt4o, "minimax-m2": _gpt4o,
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, add_bos=True),
    "kimi-k2": PreTokenizer((KIMI,)),
    "deepseek-llm": PreTokenizer(DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    "deepseek-v3": _deepseek_v3, "hunyuan-dense": _deepseek_v3,
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")),
    "bloom": PreTokenizer((_BLOOM,)), "gpt3-finnish": PreTokenizer((_BLOOM,)),
    "poro-chat": PreTokenizer((_BLOOM,)), "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "bailingmoe": _bailing, "bailingmoe2": _bailing, "llada-moe": _bailing,
    "seed-coder": PreTokenizer((_SEED_CODER,)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
}  # fmt: skip
"""What the key tokenizer.ggml.pre may name."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return the rules of a name in `PRE_TOKENIZERS`.

    Raises:
        UnsupportedModelError: an unknown name.
    """
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        raise UnsupportedModelError(
            f"the vocabulary asks for the pre-tokenizer {name!r}; known are"
            f" {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return found
