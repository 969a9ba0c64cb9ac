"""Chat templates by name, for models whose files have none."""

from __future__ import annotations

from typing import Final

from nocopy.errors import UsageError
from nocopy.models.chat_template import ChatTemplate, token_texts
from nocopy.models.tokenizer import Tokenizer

TEMPLATES: Final = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}
"""Names that llama.cpp users know."""


def named_template(text: str, tokenizer: Tokenizer) -> ChatTemplate:
    """Compile a template that is given by its name or by its Jinja text.

    Raises:
        UsageError: it is neither.
        TemplateError: it does not compile.
    """
    if text not in TEMPLATES and "{" not in text:
        raise UsageError(
            f"the chat template {text!r} was asked for; it is no Jinja text, and the names are"
            f" {', '.join(TEMPLATES)}"
        )
    return ChatTemplate(TEMPLATES.get(text, text), token_texts(tokenizer))
