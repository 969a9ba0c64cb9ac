"""WebAssembly guests whose linear memory is the GPU's memory.

    with nocopy.Guest("matmul.wasm", device="auto", stdout="inherit") as guest:
        guest.run()
        print(guest.ledger.copied)  # 0

    with nocopy.LanguageModel("model.gguf") as model:
        for piece in model.generate("Once upon a time", max_tokens=50):
            print(piece, end="", flush=True)

Names load when they are first used, so that `import nocopy` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nocopy import errors
    from nocopy.device.discovery import open_device
    from nocopy.device.protocol import Device
    from nocopy.errors import Error
    from nocopy.interfaces.attachment import ComputeLimits
    from nocopy.interfaces.host import DeviceGuest as Guest
    from nocopy.interfaces.thaw import thaw
    from nocopy.interfaces.wasi_nn.grants import NnLimits, NnModel
    from nocopy.memory import Ledger, LinearMemory, TensorView
    from nocopy.models.find import find_model
    from nocopy.models.load import open_model
    from nocopy.session.completion import Completion
    from nocopy.session.language import LanguageModel
    from nocopy.session.sampler import Sampler, Sampling
    from nocopy.snapshot.session import freeze_session, thaw_session
    from nocopy.tape import Space, TapeBuilder
    from nocopy.wasm import Dir, HostFunction, Limits, Module

_PLACES = {
    "Completion": ("session.completion", "Completion"),
    "ComputeLimits": ("interfaces.attachment", "ComputeLimits"),
    "Device": ("device.protocol", "Device"),
    "Dir": ("wasm", "Dir"),
    "Error": ("errors", "Error"),
    "Guest": ("interfaces.host", "DeviceGuest"),
    "HostFunction": ("wasm", "HostFunction"),
    "LanguageModel": ("session.language", "LanguageModel"),
    "Ledger": ("memory", "Ledger"),
    "Limits": ("wasm", "Limits"),
    "LinearMemory": ("memory", "LinearMemory"),
    "Module": ("wasm", "Module"),
    "NnLimits": ("interfaces.wasi_nn.grants", "NnLimits"),
    "NnModel": ("interfaces.wasi_nn.grants", "NnModel"),
    "Sampler": ("session.sampler", "Sampler"),
    "Sampling": ("session.sampler", "Sampling"),
    "Space": ("tape", "Space"),
    "TapeBuilder": ("tape", "TapeBuilder"),
    "TensorView": ("memory", "TensorView"),
    "freeze_session": ("snapshot.session", "freeze_session"),
    "find_model": ("models.find", "find_model"),
    "open_device": ("device.discovery", "open_device"),
    "open_model": ("models.load", "open_model"),
    "thaw": ("interfaces.thaw", "thaw"),
    "thaw_session": ("snapshot.session", "thaw_session"),
}
"""Public name: the module under `nocopy`, and what it is called there."""

__all__ = [
    "Completion",
    "ComputeLimits",
    "Device",
    "Dir",
    "Error",
    "Guest",
    "HostFunction",
    "LanguageModel",
    "Ledger",
    "Limits",
    "LinearMemory",
    "Module",
    "NnLimits",
    "NnModel",
    "Sampler",
    "Sampling",
    "Space",
    "TapeBuilder",
    "TensorView",
    "errors",
    "find_model",
    "freeze_session",
    "open_device",
    "open_model",
    "thaw",
    "thaw_session",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("nocopy.errors")
    if name not in _PLACES:
        raise AttributeError(f"module 'nocopy' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(import_module(f"nocopy.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
