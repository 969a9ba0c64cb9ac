"""Which models may run when their output is fetched instead of when it is computed.

To write an output straight where the guest wants it, the model must run in `get_output`: only there does the
guest say where. That is allowed only if the guest cannot tell: the run cannot fail any more, its outputs have
known shapes, and a second run gives the same. This says so for a model by its operators; one that is not
listed is run in `compute`, and its outputs are copied once.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TOTAL: Final = _names(
    """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Concat Constant Conv ConvTranspose Cos Cosh
    DequantizeLinear DepthToSpace DynamicQuantizeLinear Einsum Elu Equal Erf Exp EyeLike Flatten
    Floor Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mul Neg Not Or PRelu QLinearConv QLinearMatMul
    QuantizeLinear RMSNormalization Reciprocal Relu Round Selu Shape Sigmoid Sign Sin Sinh Size
    Softmax Softplus Softsign SpaceToDepth Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Transpose Xor
    """
)
"""Shapes come out of shapes, and no value of an element can make them fail."""

STEERED: Final = _names(
    """
    ConstantOfShape CumSum Div Expand GRU Gather GatherElements GatherND LSTM Mod Pad Pow RNN Range
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Reshape Resize Slice Split Squeeze Tile Trilu Unsqueeze Upsample
    """
)
"""Integers steer these: they are sizes, axes, indices or divisors. Harmless as long as the integers come from
constants and shapes, because then one run that went well says so of all."""

INTEGERS: Final = _names(
    """
    ArgMax ArgMin Cast ConvInteger MatMulInteger Where
    """
)
"""These can turn elements into integers that depend on them, which might then steer others."""


def can_wait(operators: Set[str], *, integers: bool) -> bool:
    """Whether a model may run later, after one run on inputs of these shapes has gone well.

    Args:
        operators: all of its operators.
        integers: whether an input has integers.
    """
    return operators <= TOTAL | INTEGERS or (not integers and operators <= TOTAL | STEERED)


def cannot_fail(operators: Set[str]) -> bool:
    """Whether a model whose shapes are all fixed may run later from the first time on."""
    return operators <= TOTAL | INTEGERS
