"""The models of `bench wasinn`: one that only passes its input on, and one as large as MobileNetV2."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from nocopy.errors import UsageError

IMAGE = (1, 3, 224, 224)
CLASSES = 1000
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the MobileNetV2 paper: expansion, channels, repetitions, stride of the first."""


def _onnx() -> Any:
    try:
        return import_module("onnx")
    except ImportError as error:
        raise UsageError(
            f"a model was to be made for a benchmark; the package onnx cannot be loaded: {error}."
            " Install it: pip install onnx"
        ) from None


def identity(shape: tuple[int, ...]) -> bytes:
    """A model whose output is its input.

    Raises:
        UsageError: the package onnx is not installed.
    """
    return _Graph().finished(shape, [("Identity", {})], shape)


def mobilenet() -> bytes:
    """MobileNetV2 with random weights, normalisations folded: 3.5 million weights, 0.3 G multiply-adds.

    Raises:
        UsageError: the package onnx is not installed.
    """
    graph = _Graph()
    graph.convolution(3, 32, stride=2, size=3)
    channels = 32
    for expansion, out, times, first in STAGES:
        for stride in (first, *[1] * (times - 1)):
            entry, wide = graph.last, channels * expansion
            if expansion > 1:
                graph.convolution(channels, wide)
            graph.convolution(wide, wide, stride=stride, size=3, groups=wide)
            graph.convolution(wide, out, clip=False)
            if stride == 1 and channels == out:
                graph.node("Add", [entry, graph.last])
            channels = out
    graph.convolution(channels, 1280)
    graph.node("GlobalAveragePool", [graph.last])
    graph.node("Flatten", [graph.last])
    weight, bias = graph.weights((1280, CLASSES)), graph.weights((CLASSES,))
    graph.node("Gemm", [graph.last, weight, bias])
    return graph.finished(IMAGE, [("Softmax", {})], (1, CLASSES))


class _Graph:
    """A graph as it grows: each node's output is the next one's input."""

    def __init__(self) -> None:
        self._onnx = _onnx()
        self._random = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self.last = "x"

    def weights(self, shape: tuple[int, ...]) -> str:
        """Random numbers that keep the size of what passes through them; return their name."""
        fan = int(np.prod(shape[1:])) or shape[0]
        values = self._random.standard_normal(shape).astype(np.float32) * np.float32((2 / fan) ** 0.5)
        name = f"w{len(self._weights)}"
        self._weights.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> None:
        """Add a node."""
        self.last = f"t{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [self.last], **attributes))

    def convolution(
        self, inside: int, outside: int, *, stride: int = 1, size: int = 1, groups: int = 1, clip: bool = True
    ) -> None:
        """Add a convolution with a bias, and a ReLU6 if wanted."""
        weight, bias = self.weights((outside, inside // groups, size, size)), self.weights((outside,))
        pad = [size // 2] * 4
        self.node("Conv", [self.last, weight, bias], strides=[stride] * 2, pads=pad, group=groups)
        if clip:
            limits = [self._scalar(v) for v in (0.0, 6.0)]
            self.node("Clip", [self.last, *limits])

    def _scalar(self, value: float) -> str:
        name = f"c{value:g}"
        if all(w.name != name for w in self._weights):
            self._weights.append(self._onnx.numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def finished(
        self, shape: tuple[int, ...], tail: list[tuple[str, dict[str, Any]]], out: tuple[int, ...]
    ) -> bytes:
        """Add the last nodes and return the file."""
        helper, number = self._onnx.helper, self._onnx.TensorProto.FLOAT
        for operator, attributes in tail:
            self.node(operator, [self.last], **attributes)
        graph = helper.make_graph(
            self._nodes,
            "model",
            [helper.make_tensor_value_info("x", number, shape)],
            [helper.make_tensor_value_info(self.last, number, out)],
            self._weights,
        )
        opsets = [helper.make_opsetid("", 17)]
        raw: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        return raw
