"""What must be known of an ONNX file before ONNX Runtime reads it: its operators, and which files it names.

The file is protobuf. This walks over it without building anything: weights are skipped by their length, so a
model of gigabytes costs what its nodes cost. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn.encoding import Errno

MOST_FIELDS: Final = 4_000_000
"""Fields that are looked at, which takes Python some seconds; a model of 100000 nodes has about a million."""
DEEPEST: Final = 64
"""Messages inside each other; protobuf's own limit is 100, a graph inside a node is two."""
EXTERNAL: Final = 1
"""`TensorProto.DataLocation.EXTERNAL`."""


class Kind(Enum):
    """The messages that are looked into."""

    MODEL = "model"
    GRAPH = "graph"
    NODE = "node"
    ATTRIBUTE = "attribute"
    TENSOR = "tensor"
    SPARSE = "sparse tensor"
    FUNCTION = "function"
    TRAINING = "training"
    VALUE = "value"
    TYPE = "type"
    TENSOR_TYPE = "tensor type"
    ENTRY = "entry"


INSIDE: Final[dict[Kind, dict[int, Kind]]] = {
    Kind.MODEL: {7: Kind.GRAPH, 20: Kind.TRAINING, 25: Kind.FUNCTION},
    Kind.GRAPH: {1: Kind.NODE, 5: Kind.TENSOR, 11: Kind.VALUE, 15: Kind.SPARSE},
    Kind.NODE: {5: Kind.ATTRIBUTE},
    Kind.ATTRIBUTE: {
        5: Kind.TENSOR,
        6: Kind.GRAPH,
        10: Kind.TENSOR,
        11: Kind.GRAPH,
        22: Kind.SPARSE,
        23: Kind.SPARSE,
    },
    Kind.TENSOR: {13: Kind.ENTRY},
    Kind.SPARSE: {1: Kind.TENSOR, 2: Kind.TENSOR},
    Kind.FUNCTION: {7: Kind.NODE, 11: Kind.ATTRIBUTE},
    Kind.TRAINING: {1: Kind.GRAPH, 2: Kind.GRAPH},
    Kind.VALUE: {2: Kind.TYPE},
    Kind.TYPE: {1: Kind.TENSOR_TYPE},
    Kind.TENSOR_TYPE: {},
    Kind.ENTRY: {},
}
"""Which field of a message holds which other one."""

NODE_OP, NODE_DOMAIN, VALUE_NAME, TENSOR_LOCATION, TENSOR_SHAPE, ENTRY_KEY, ENTRY_VALUE = 4, 7, 1, 14, 2, 1, 2


@dataclass
class Summary:
    """What a file has."""

    operators: set[str] = field(default_factory=set[str])
    """Names, those of other domains than ONNX's own as "domain:name"; of all graphs and functions."""
    external: bool = False
    """Some weights lie in other files."""
    locations: set[str] = field(default_factory=set[str])
    """The files where they lie, as the model names them."""
    shaped: set[str] = field(default_factory=set[str])
    """Inputs of graphs whose rank is given."""


def summarise(data: memoryview, name: str) -> Summary:
    """Walk over a model.

    Args:
        data: the whole file.
        name: of the model, for messages.

    Raises:
        NnError: it is not ONNX, or has more in it than anybody needs.
    """
    walk = _Walk(data, name)
    walk.message(Kind.MODEL, 0, len(data), 0)
    return walk.found


class _Walk:
    def __init__(self, data: memoryview, name: str) -> None:
        self.found = Summary()
        self._data, self._name, self._fields = data, name, 0
        self._ranked = False

    def message(self, kind: Kind, start: int, stop: int, depth: int) -> None:
        """Look at the fields of the message in data[start:stop]."""
        if depth > DEEPEST:
            raise self._broken(start, f"more than {DEEPEST} messages lie in each other")
        inside = INSIDE[kind]
        texts: dict[int, str] = {}
        at = start
        while at < stop:
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise NnError(
                    Errno.TOO_LARGE,
                    f"the model {self._name} was to be loaded; it has more than {MOST_FIELDS} fields",
                )
            tag, at = self._varint(at, stop)
            if tag >> 32:
                raise self._broken(at, "a field's number has more than 32 bits")
            number, wire = tag >> 3, tag & 7
            value, at = self._skip(wire, at, stop)
            if wire != 2:
                if kind is Kind.TENSOR and number == TENSOR_LOCATION and value & 0xFFFFFFFF == EXTERNAL:
                    self.found.external = True
                continue
            first = at - value
            child = inside.get(number)
            if child is not None:
                self.message(child, first, at, depth + 1)
                if kind is Kind.TENSOR:
                    self.found.external = True
            elif (kind, number) in _TEXTS:
                texts[number] = self._text(first, at)
            elif kind is Kind.TENSOR_TYPE and number == TENSOR_SHAPE:
                self._ranked = True
        self._keep(kind, texts)

    def _keep(self, kind: Kind, texts: dict[int, str]) -> None:
        if kind is Kind.NODE:
            domain = texts.get(NODE_DOMAIN, "")
            own = domain in {"", "ai.onnx"}
            self.found.operators.add(texts.get(NODE_OP, "") if own else f"{domain}:{texts.get(NODE_OP, '')}")
        elif kind is Kind.VALUE:
            if self._ranked:
                self.found.shaped.add(texts.get(VALUE_NAME, ""))
            self._ranked = False
        elif kind is Kind.ENTRY and texts.get(ENTRY_KEY) == "location":
            self.found.locations.add(texts.get(ENTRY_VALUE, ""))

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        value = shift = 0
        data = self._data
        while at < stop and shift < 70:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise self._broken(at, "a number does not end")

    def _skip(self, wire: int, at: int, stop: int) -> tuple[int, int]:
        """The value of a field, or the bytes of one with a length, and where the next one is."""
        if wire == 0:
            return self._varint(at, stop)
        if wire == 2:
            size, at = self._varint(at, stop)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise self._broken(at, f"a field is of the kind {wire}, which ONNX does not use")
        if size > stop - at:
            raise self._broken(at, f"a field of {size} bytes does not fit")
        return size, at + size

    def _text(self, start: int, stop: int) -> str:
        try:
            return bytes(self._data[start:stop]).decode()
        except UnicodeDecodeError:
            raise self._broken(start, "a name is not UTF-8") from None

    def _broken(self, at: int, what: str) -> NnError:
        return NnError(
            Errno.INVALID_ENCODING,
            f"the model {self._name} was to be loaded; it is not ONNX: {what}, at byte {at}",
        )


_TEXTS: Final = {
    (Kind.NODE, NODE_OP),
    (Kind.NODE, NODE_DOMAIN),
    (Kind.VALUE, VALUE_NAME),
    (Kind.ENTRY, ENTRY_KEY),
    (Kind.ENTRY, ENTRY_VALUE),
}
