"""Models on devices, shared: however many guests use one, its weights are placed once."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from nocopy.device.protocol import Device
from nocopy.errors import UnsupportedModelError, UsageError
from nocopy.interfaces.grip import Turns, turns_of
from nocopy.memory.ledger import Ledger
from nocopy.models import Model, open_model
from nocopy.models.architectures import ARCHITECTURES
from nocopy.session.constraint import Vocabulary
from nocopy.session.embed import Embedder
from nocopy.session.engine import Engine

Source: TypeAlias = str | os.PathLike[str] | Model
"""What a host grants: a path, or a model that is open and stays the host's."""


class Loaded:
    """A model on a device. Every method needs the device's turn.

    `model`, `engine` and `embedder` are what guests share. Weights are placed when one of the latter is first
    asked for.
    """

    def __init__(self, source: Source, device: Device, ledger: Ledger | None) -> None:
        self._owned = not isinstance(source, Model)
        self._device, self._ledger = device, ledger
        self._closing = ExitStack()
        self.model = source if isinstance(source, Model) else open_model(source)

    @property
    def encoder(self) -> bool:
        """Whether it gives embeddings, and no text."""
        return ARCHITECTURES[self.model.config.architecture].encoder

    @cached_property
    def engine(self) -> Engine:
        """For sessions.

        Raises:
            UnsupportedModelError: it gives embeddings.
            DeviceError: the device has too little memory.
        """
        if self.encoder:
            raise UnsupportedModelError(
                f"sessions of a {self.model.config.architecture} model were asked for; it gives embeddings,"
                " no text. Grant a model that generates."
            )
        engine = Engine(self.model, self._device, ledger=self._ledger)
        self._closing.callback(engine.close)
        return engine

    @cached_property
    def embedder(self) -> Embedder:
        """For vectors of texts.

        Raises:
            UsageError: it generates text.
            DeviceError: the device has too little memory.
        """
        embedder = Embedder(self.model, self._device, ledger=self._ledger)
        self._closing.callback(embedder.close)
        return embedder

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """For constraints; made when it is first asked for.

        Raises:
            UnsupportedModelError: the tokenizer knows tokens that the model does not.
        """
        tokenizer, size = self.model.tokenizer, self.model.config.vocabulary
        if tokenizer.size > size:
            raise UnsupportedModelError(
                f"a constraint was asked for; the model has {size} tokens and its tokenizer {tokenizer.size}"
            )
        return Vocabulary(tokenizer, size)

    def close(self) -> None:
        """Let go of the weights, and of the model if it was opened here."""
        self._closing.close()
        if self._owned:
            self.model.close()


class Lease:
    """One user's share in a loaded model; the last one to close it takes the model off the device.

    Making and closing one needs the device's turn.
    """

    def __init__(self, source: Source, device: Device, turns: Turns, ledger: Ledger | None) -> None:
        self.key, self._shared = _key(source), turns.shared
        """The same for the same model, on every device."""
        self.loaded, users = self._shared.get(self.key) or (Loaded(source, device, ledger), 0)
        self._shared[self.key] = (self.loaded, users + 1)
        self._closed = False

    def close(self) -> None:
        """Give the share back. Twice is allowed."""
        if self._closed:
            return
        self._closed = True
        loaded, users = self._shared.pop(self.key)
        if users > 1:
            self._shared[self.key] = (loaded, users - 1)
        else:
            loaded.close()


@contextmanager
def keep_loaded(source: Source, device: Device, *, ledger: Ledger | None = None) -> Generator[Loaded]:
    """Keep a model on a device, shared with the guests it is granted to, while the block runs.

    Args:
        source: as it is granted to guests.
        device: open.
        ledger: counts the weights, if they are placed now.

    Raises:
        UsageError, ModelError: the model cannot be opened, or generates no text.
        DeviceError: the device has too little memory.
    """
    turns = turns_of(device)
    with turns.lock:
        lease = Lease(source, device, turns, ledger)
    try:
        with turns.lock:
            _ = lease.loaded.engine
        yield lease.loaded
    finally:
        with turns.lock:
            lease.close()


def _key(source: Source) -> object:
    """What is the same for the same model: the object, or the file as it is now."""
    if isinstance(source, Model):
        return id(source)
    path = Path(source)
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(
            f"the model '{path}' was asked for; it cannot be opened: {error.strerror}"
        ) from error
    return (path.resolve(), found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
