"""The Wasmtime engine: one per process as a rule, since compiled code and the ticking thread belong to it."""

from __future__ import annotations

import ctypes
import threading

import wasmtime

from nocopy.wasm import capi
from nocopy.wasm.limits import Ticker
from nocopy.wasm.memory_creator import CREATOR


class Engine:
    """Wasmtime with our memories, every proposal that Wasmtime turns on itself, and epochs.

    Args:
        fuel: count fuel. Code compiled with it runs tight loops 1.7 times slower, so it is on only for
        guests that     have a fuel limit.
    """

    def __init__(self, *, fuel: bool = False) -> None:
        config = wasmtime.Config()
        # With our memories this must be off: see memory_creator.py.
        config.memory_init_cow = False
        config.epoch_interruption = True
        config.consume_fuel = fuel
        capi.config_host_memory_creator_set(capi.address(config.ptr()), ctypes.addressof(CREATOR))
        self.fuel = fuel
        self.wasmtime = wasmtime.Engine(config)
        pointer = capi.address(self.wasmtime.ptr())
        self.ticker = Ticker(lambda: capi.engine_increment_epoch(pointer))


_default: dict[bool, Engine] = {}
_lock = threading.Lock()


def default_engine(*, fuel: bool = False) -> Engine:
    """The process's engine, made on first use: one that counts fuel and one that does not."""
    with _lock:
        if fuel not in _default:
            _default[fuel] = Engine(fuel=fuel)
        return _default[fuel]
