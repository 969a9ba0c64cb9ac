"""WebAssembly guests whose linear memory is the GPU's memory.

    import nocopy

    with nocopy.LanguageModel("model.gguf") as model:
        for piece in model.generate("Once upon a time", max_tokens=50):
            print(piece, end="", flush=True)

The names below are imported when they are first used, so that `import nocopy` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nocopy.device.discovery import open_device
    from nocopy.models.find import find_model
    from nocopy.models.load import open_model
    from nocopy.session.completion import Completion
    from nocopy.session.language import LanguageModel
    from nocopy.session.sampler import Sampling

__all__ = ["Completion", "LanguageModel", "Sampling", "find_model", "open_device", "open_model"]

_HOMES = {
    "Completion": "nocopy.session.completion",
    "LanguageModel": "nocopy.session.language",
    "Sampling": "nocopy.session.sampler",
    "find_model": "nocopy.models.find",
    "open_device": "nocopy.device.discovery",
    "open_model": "nocopy.models.load",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'nocopy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
