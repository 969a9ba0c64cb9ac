"""Chat templates: a conversation to the text that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import jinja2

from nocopy.errors import MetadataError, TemplateError, UsageError
from nocopy.models.huggingface import read_json
from nocopy.models.mapped_file import MappedFile
from nocopy.models.metadata import Metadata
from nocopy.models.template_budget import BUDGET, Budget, exceeded, limit
from nocopy.models.template_functions import small
from nocopy.models.template_nodes import meter
from nocopy.models.template_sandbox import TemplateSandbox
from nocopy.models.tokenizer import Tokenizer

DEPTH: Final = 64
"""How deep the values of a message may be nested."""
FORMAT_LENGTH: Final = 256


class ChatTemplate:
    """A compiled template. Rendering is safe from several threads at once.

    Args:
        source: the template, in Jinja.
        tokens: texts that the template may name, such as bos_token and eos_token.

    Raises:
        TemplateError: it does not compile, is too long, or uses what is not available.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > limit("source"):
            raise exceeded("source")
        self.source = source
        self.tokens = dict(tokens or {})
        environment = TemplateSandbox()
        try:
            self._template = environment.from_string(meter(environment.parse(source)))
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error
        except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            # Python's own compiler gives up on templates that nest too deep.
            raise TemplateError(f"the chat template does not compile: {type(error).__name__}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """Turn a conversation into text. Tokenise it with `parse_special=True, add_special=False`.

        Args:
            messages: dicts with "role" and "content", and what else the template knows; plain JSON values.
            add_generation_prompt: end where the assistant's answer begins.
            tools: JSON schemas of functions; None if there are none.
            now: what `strftime_now` prints; the present if None.
            variables: further names for the template, such as enable_thinking.

        Raises:
            UsageError: a value is not plain JSON.
            TemplateError: the template refuses the conversation, fails, or exceeds a limit.
        """
        values: dict[str, Any] = {
            **self.tokens,
            **{name: _plain(value, name) for name, value in variables.items()},
            "messages": _plain(messages, "messages"),
            "tools": _plain(tools, "tools"),
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": _raise_exception,
            "strftime_now": partial(_strftime, now or datetime.now()),
        }
        token = BUDGET.set(Budget())
        try:
            return self._template.render(values)
        except TemplateError:
            raise
        except RecursionError as error:
            raise TemplateError("the chat template was stopped: it calls itself without end") from error
        except Exception as error:  # a template can raise whatever Python's operators raise
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        finally:
            BUDGET.reset(token)


def gguf_chat_template(metadata: Metadata, tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
    """Compile the chat template of a GGUF model.

    Args:
        metadata: of the model.
        tokenizer: of the model, which knows its special tokens.
        name: of one of several templates, such as "tool_use"; the default one if None.

    Raises:
        MetadataError: the model has no such template.
        TemplateError: it does not compile.
    """
    key = "tokenizer.chat_template" + (f".{name}" if name else "")
    return ChatTemplate(metadata.string(key), token_texts(tokenizer))


def folder_chat_template(path: str | Path, tokenizer: Tokenizer, name: str = "default") -> ChatTemplate:
    """Compile the chat template of a Hugging Face folder: chat_template.jinja, or from the configuration.

    Raises:
        MetadataError: the folder has no such template.
        TemplateError: it does not compile.
    """
    path = Path(path)
    if name == "default" and (path / "chat_template.jinja").is_file():
        raw = MappedFile(path / "chat_template.jinja").bytes[: limit("source") * 4 + 1].tobytes()
        return ChatTemplate(raw.decode(errors="replace"), token_texts(tokenizer))
    config = path / "tokenizer_config.json"
    found: Any = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(found, list):
        named = [cast(Any, entry) for entry in cast(list[Any], found) if isinstance(entry, dict)]
        found = next((entry.get("template") for entry in named if entry.get("name") == name), None)
    if not isinstance(found, str):
        raise MetadataError(
            "chat_template", f"the model folder '{path}' has no chat template {name!r}; give one"
        )
    return ChatTemplate(found, token_texts(tokenizer))


def token_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens under the names that templates use: bos_token, eos_token, …"""
    return {
        f"{role}_token": tokenizer.piece(token).decode(errors="replace")
        for role, token in tokenizer.special.items()
    }


def _plain(value: Any, what: str, depth: int = 0) -> Any:
    """Copy a value of plain JSON types, so that a template never sees an object of ours."""
    if depth > DEPTH:
        raise UsageError(f"'{what}' was given to a chat template; it is nested deeper than {DEPTH}")
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        return {str(key): _plain(item, what, depth + 1) for key, item in items}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, what, depth + 1) for item in cast(Sequence[Any], value)]
    raise UsageError(
        f"'{what}' was given to a chat template; it holds a {type(cast(object, value)).__name__},"
        " which is not plain JSON; use dicts, lists, str, numbers, bool or None"
    )


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(f"the chat template refuses the conversation: {message!s:.1000}")


def _strftime(now: datetime, form: str) -> str:
    return now.strftime(small(str(form), FORMAT_LENGTH, "a date format"))
