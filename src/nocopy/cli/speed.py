"""What `--report` and `--json` say of a text: tokens, rates, seed, bytes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from nocopy.cli.output import duration, errors, size, table

if TYPE_CHECKING:
    from nocopy.session.completion import Completion
    from nocopy.session.language import LanguageModel


def describe(model: LanguageModel, completion: Completion) -> dict[str, Any]:
    """The report as `--json` prints it. Rates are tokens a second."""
    speed = completion.speed
    cache = completion.session.region.cache
    return {
        "model": model.name,
        "device": model.device.info.name,
        "context": model.context,
        "kv": cache.dtype.name.lower(),
        "kv_bytes_per_token": cache.token_bytes,
        "seed": completion.seed,
        "load_seconds": model.load_seconds,
        **asdict(speed),
        "prompt_rate": speed.prompt_rate,
        "rate": speed.rate,
        "ledger": model.ledger.as_dict(),
    }


def print_speed(model: LanguageModel, completion: Completion) -> None:
    """Print it on stderr, after what stdout has."""
    sys.stdout.flush()
    found = describe(model, completion)
    product = model.device.info.product
    rows = table("", "")
    rows.show_header = False
    rows.add_row("model", f"{escape(found['model'])} [dim]({model.config.architecture})[/]")
    rows.add_row("device", f"{found['device']}: {product}")
    rows.add_row("load", duration(found["load_seconds"]))
    rows.add_row("prompt", _tokens(found["prompt_tokens"], found["prompt_seconds"], found["prompt_rate"]))
    if found["reused"]:
        rows.add_row("", f"{found['reused']} of them were in the cache")
    rows.add_row("generated", _tokens(found["generated"], found["generate_seconds"], found["rate"]))
    used = completion.session.length
    kv = size(used * found["kv_bytes_per_token"])
    rows.add_row("context", f"{used} of {found['context']} tokens, {kv} of {found['kv']}")
    rows.add_row("seed", str(found["seed"]))
    rows.add_row("copied", size(found["ledger"]["copied"]))
    errors().print(rows)


def _tokens(count: int, seconds: float, rate: float) -> str:
    return f"{count} tokens in {duration(seconds)}" + (f", {rate:.3g} tokens/s" if rate else "")
