"""Options that the verbs for language models share, under the names that llama.cpp and ollama users know."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from nocopy.cli.choices import AllowCopy, DeviceName
from nocopy.session.sampler import Sampling

if TYPE_CHECKING:
    from nocopy.models.cache import CachedModel
    from nocopy.models.hub_name import HubName
    from nocopy.session.language import LanguageModel

MODEL = Group("Model", sort_key=2)
SAMPLING = Group("Sampling", sort_key=3)
BIAS = re.compile(r"(\d+)([+-](?:inf|\d+\.?\d*|\.\d+))")

ModelPath = Annotated[
    str | None,
    Parameter(
        name=["-m", "--model"],
        metavar="FILE",
        group=MODEL,
        help="A GGUF file, or a Hugging Face folder. Left out, the model that comes with nocopy.",
    ),
]
HubModel = Annotated[
    str | None,
    Parameter(
        name=["-hf", "--hf-repo"],
        metavar="USER/REPO[:QUANT]",
        group=MODEL,
        help="A model of the Hugging Face hub: from its cache, or fetched into it.",
    ),
]
Offline = Annotated[
    bool, Parameter(group=MODEL, help="Never use the network: a model is in the cache, or that is an error.")
]


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is held."""

    model: ModelPath = None
    hf: HubModel = None
    context: Annotated[
        int | None,
        Parameter(
            name=["-c", "--ctx-size"],
            metavar="N",
            help="Tokens that fit; 0 for all that the model has. Left out, 4096 or all that it has.",
        ),
    ] = None
    kv: Annotated[Literal["f16", "q8_0"], Parameter(help="Type of the KV cache.")] = "f16"
    device: DeviceName = "auto"
    allow_copy: AllowCopy = False
    chat_template: Annotated[
        str | None,
        Parameter(
            metavar="TEMPLATE",
            help="Instead of the model's own: a file, Jinja text, or chatml, llama3 or zephyr.",
        ),
    ] = None
    offline: Offline = False

    def open(self) -> LanguageModel:
        """Open the model, fetched first where that is needed and allowed.

        Raises:
            Error: as `LanguageModel`, `find_model` and `pull`.
        """
        from nocopy.cli.progress import byte_bar
        from nocopy.session.language import LanguageModel

        path = locate(self.model, self.hf, offline=self.offline)
        with byte_bar("uploading") as progress, ExitStack() as stack:
            model = LanguageModel(
                path,
                device=self.device,
                context=self.context,
                kv=self.kv,
                chat_template=read_template(self.chat_template),
                allow_copy=self.allow_copy,
                progress=lambda done: progress("weights", done, model.model.weights.nbytes),
            )
            stack.callback(model.close)
            _ = model.engine  # places the weights, while there is a bar
            stack.pop_all()
        return model


@Parameter(name="*", group=SAMPLING)
@dataclass(frozen=True)
class SamplingOptions:
    """What is generated, and how tokens are chosen."""

    n: Annotated[
        int,
        Parameter(
            name=["-n", "--predict", "--max-tokens"],
            metavar="N",
            help="Most tokens to generate; -1 for no limit.",
        ),
    ] = -1
    seed: Annotated[
        int | None, Parameter(name=["-s", "--seed"], help="The same seed gives the same text.")
    ] = None
    temp: Annotated[float, Parameter(help="0 takes the likeliest token; more is bolder.")] = (
        Sampling.temperature
    )
    top_k: Annotated[int, Parameter(help="Keep the K likeliest tokens; 0 for all.")] = Sampling.top_k
    top_p: Annotated[float, Parameter(help="Keep the likeliest up to this sum.")] = Sampling.top_p
    min_p: Annotated[float, Parameter(help="Keep those this likely, relative to the likeliest.")] = (
        Sampling.min_p
    )
    typical: Annotated[float, Parameter(help="Keep those of typical surprise, up to this sum; 1 is off.")] = (
        Sampling.typical_p
    )
    repeat_penalty: Annotated[float, Parameter(help="Divide the scores of recent tokens; 1 is off.")] = (
        Sampling.repeat_penalty
    )
    presence_penalty: Annotated[float, Parameter(help="Lower the scores of recent tokens; 0 is off.")] = (
        Sampling.presence_penalty
    )
    frequency_penalty: Annotated[
        float, Parameter(help="The same, for each time that a token came; 0 is off.")
    ] = Sampling.frequency_penalty
    repeat_last_n: Annotated[int, Parameter(help="How many tokens are recent; -1 for all.")] = (
        Sampling.repeat_last_n
    )
    logit_bias: Annotated[
        list[str] | None,
        Parameter(metavar="TOKEN+BIAS", help="Raise or lower one token's score: 15043+1, 15043-inf."),
    ] = None
    stop: Annotated[
        list[str] | None,
        Parameter(
            metavar="TEXT",
            help="End before this text. May be given several times.",
            allow_leading_hyphen=True,
        ),
    ] = None
    json_schema: Annotated[
        str | None,
        Parameter(name=["-j", "--json-schema"], metavar="SCHEMA", help="The text fits it: JSON, or a file."),
    ] = None
    grammar: Annotated[
        str | None, Parameter(metavar="GRAMMAR", help="The text fits it: GBNF or Lark text, or a file.")
    ] = None
    ignore_eos: Annotated[bool, Parameter(help="Go on where the model would end.")] = False

    def arguments(self) -> dict[str, Any]:
        """What `LanguageModel.generate` takes.

        Raises:
            UsageError: a value is out of range, or a file cannot be read.
        """
        from nocopy.errors import UsageError

        if self.n < -1:
            raise UsageError(f"-n {self.n} was given; it is a number of tokens, or -1 for no limit")
        sampling = Sampling(
            temperature=self.temp,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical,
            repeat_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repeat_last_n=self.repeat_last_n,
            logit_bias=dict(map(parse_bias, self.logit_bias or ())),
            seed=self.seed,
        )
        return {
            "sampling": sampling,
            "max_tokens": None if self.n < 0 else self.n,
            "stop": self.stop or (),
            "json_schema": text_or_file("--json-schema", self.json_schema, "{"),
            "grammar": text_or_file("--grammar", self.grammar, ":"),
            "ignore_end": self.ignore_eos,
        }


def locate(model: str | None, hf: str | None, *, offline: bool) -> Path:
    """The path of the model that was asked for, fetched first where that is needed and allowed.

    Raises:
        UsageError: both were given, or there is no such model.
        HubError: it cannot be fetched.
    """
    from nocopy.errors import HubError, UsageError
    from nocopy.models.cache import cache_folder, find_cached
    from nocopy.models.find import default_model
    from nocopy.models.hub import is_offline
    from nocopy.models.hub_name import HubName

    if model is not None and hf is not None:
        raise UsageError("-m and -hf were given; they name two models. Give one of them")
    if model is not None:
        if not Path(model).exists():
            hint = f". A model of the hub is named with -hf {model}" if model.count("/") == 1 else ""
            raise UsageError(f"the model {model} was asked for; there is no such file or folder{hint}")
        return Path(model)
    if hf is None:
        return default_model()
    name = HubName.parse(hf)
    found = find_cached(name)
    if found is not None:
        return found.path
    if offline or is_offline():
        raise HubError(
            f"{name} was asked for; it is not in the cache, {cache_folder()}, and the network may not be used"
        )
    return fetch(name).path


def fetch(name: HubName) -> CachedModel:
    """Fetch a model from the hub, with a bar."""
    from nocopy.cli.progress import byte_bar
    from nocopy.models.hub import pull

    with byte_bar(f"fetching {name}") as progress:
        return pull(name, progress=progress)


def parse_bias(text: str) -> tuple[int, float]:
    """Read TOKEN+BIAS or TOKEN-BIAS.

    Raises:
        UsageError: it is neither.
    """
    from nocopy.errors import UsageError

    found = BIAS.fullmatch(text)
    if found is None:
        raise UsageError(f"--logit-bias {text} was given; write TOKEN+BIAS or TOKEN-BIAS, such as 15043-1.5")
    return int(found[1]), float(found[2])


def text_or_file(option: str, value: str | None, sign: str) -> str | None:
    """What an option says: text if `sign` is in it, else the contents of the file that it names.

    Raises:
        UsageError: the file cannot be read.
    """
    return value if value is None or sign in value else read_text(option, value)


def read_template(value: str | None) -> str | None:
    """A chat template: Jinja text, the contents of a file, or a built-in's name."""
    from nocopy.models.builtin_templates import TEMPLATES

    if value is None or value in TEMPLATES or "{" in value:
        return value
    return read_text("--chat-template", value)


def read_text(option: str, path: str) -> str:
    """The text of a file.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    from nocopy.errors import UsageError

    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path} was given; it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path} was given; it is not UTF-8 text") from error


def read_stdin() -> str:
    """All of stdin.

    Raises:
        UsageError: it is not UTF-8.
    """
    import sys

    from nocopy.errors import UsageError

    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin was read; it is not UTF-8 text: {error.reason} at {error.start}") from error
