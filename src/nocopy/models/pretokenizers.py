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


def _range(codes: str) -> str:
    """Write hexadecimal code points and ranges of them as the inside of a character class."""
    return "".join("-".join(chr(int(end, 16)) for end in code.split("-")) for code in codes.split())


_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _SYMBOLS + _TAIL
QWEN2: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _SYMBOLS + _TAIL
QWEN35: Final = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL
)

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

_DEEPSEEK_LETTERS: Final = "A-Za-z" + _range(
    "B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 "
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B "
    "1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D "
    "1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC "
    "2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 "
    "214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 "
    "A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB "
    "10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943 "
)
_DEEPSEEK_CJK: Final = f"[{_range('4E00-9FA5 800-4E00 AC00-D7FF')}]+"
DEEPSEEK_LLM: Final = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    rf"\s?[!-/:-~{_range('FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}]+",
    r"\s+$",
    _DEEPSEEK_CJK,
    r"\p{N}+",
)
DEEPSEEK_V3: Final = (
    r"\p{N}{1,3}",
    f"[{_range('4E00-9FA5 3040-309F 30A0-30FF')}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL,
)
_BLOOM: Final = rf" ?[^(\s|.,!?{_range('2026 3002 FF0C 3001 964 6D4 60C')})]+"
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
    "command-r": PreTokenizer((r"\p{N}", GPT2), nfc=True),
    "starcoder": _digits, "refact": _digits, "smollm": _digits, "codeshell": _digits,
    "exaone": _digits, "minerva-7b": _digits,
    "llama-bpe": _llama3, "llama3": _llama3, "llama-v3": _llama3, "falcon3": _llama3, "falcon-h1": _llama3,
    "pixtral": _llama3, "midm-2.0": _llama3, "lfm2": _llama3,
    "dbrx": _llama3_merging, "smaug-bpe": _llama3_merging, "glm4": _llama3_merging,
    "chatglm-bpe": _llama3_merging,
    "qwen2": _qwen2, "deepseek-r1-qwen": _qwen2, "kormo": _qwen2, "megrez": _qwen2, "stablelm2": _qwen2,
    "qwen35": PreTokenizer((QWEN35,), nfc=True),
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
