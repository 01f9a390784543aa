"""Which operator runs best where: the one table that lowering and fusing ask.

A norm that ONNX Runtime runs by a kernel of its own, as fast and as right as ours, is better off as the standard
operator: more runtimes know it, and ONNX Runtime's own optimizer fuses around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from onnxnorm.passes.graph import constant_tensor, is_op
from onnxnorm.passes.rule import Rule


@dataclass(frozen=True)
class Standard:
    """The standard operator of a norm.

    Attributes:
        operator: its name in ai.onnx.
        since: the opset that it came with.
        kernels: provider -> element types for which ONNX Runtime has a kernel of its own.
        exact: element types in which those kernels compute what PyTorch does, within its own rounding.
        takes_sum: providers on which the operator is still the best one behind a residual addition, where ONNX Runtime
            fuses both into an operator of its own.

    """

    operator: str
    since: int
    kernels: Mapping[str, frozenset[ir.DataType]]
    exact: frozenset[ir.DataType]
    takes_sum: frozenset[str] = frozenset()


#: Onnxnorm op -> its standard operator. Measured with ONNX Runtime 1.31.1: LayerNormalization is nearer to float64 than
#: PyTorch's float32, also at mean 1e4 and standard deviation 1; in float64 it reads epsilon as a float32, which costs
#: half of the digits. Behind a residual addition the CPU provider makes com.microsoft SkipLayerNormalization of both,
#: which takes 7 times as long as onnxnorm SkipLayerNorm (128 x 768 float32, one thread: 640 us and 88 us; 1024 x 1024
#: float16: 8.5 ms and 0.75 ms) and is 8 times as far off as LayerNormalization at mean 1e4; 1.20 gives NaN there.
STANDARD: Final[Mapping[str, Standard]] = {
    "LayerNorm": Standard(
        "LayerNormalization",
        since=17,
        kernels={
            "cpu": frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}),
            "cuda": frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}),
        },
        exact=frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}),
        takes_sum=frozenset({"cuda"}),
    ),
}

#: Provider -> element types in which ONNX Runtime adds a residual in the convolution before it (in its NCHWc layout,
#: for images), so that the addition costs next to nothing where it is.
CONVOLUTION_ADDS: Final[Mapping[str, frozenset[ir.DataType]]] = {
    "cpu": frozenset({ir.DataType.FLOAT}),
    "cuda": frozenset(),
}


def convolution_adds(x: ir.Value, provider: str) -> bool:
    """Whether ONNX Runtime adds another tensor to ``x``, which a convolution makes, in the convolution itself."""
    return x.dtype in CONVOLUTION_ADDS[provider] and x.shape is not None and len(x.shape) == 4


def has_standard_kernel(op: str, dtype: ir.DataType, provider: str) -> bool:
    """Whether the provider has a kernel of its own for the norm's standard operator in that element type."""
    return dtype in STANDARD[op].kernels[provider]


def prefers_standard(op: str, dtype: ir.DataType, provider: str) -> bool:
    """Whether the norm is better off as its standard operator."""
    return has_standard_kernel(op, dtype, provider) and dtype in STANDARD[op].exact


def prefers_skip_form(op: str, x: ir.Value | None, provider: str) -> bool:
    """Whether the norm's standard operator is not the best one, since it would be fused with the residual in ``x``."""
    standard = STANDARD.get(op)
    return standard is not None and provider not in standard.takes_sum and residual_addition(x) is not None


def residual_addition(x: ir.Value | None) -> ir.Node | None:
    """The addition of two tensors that makes ``x``, None where there is none; a constant is no residual."""
    add = x.producer() if x is not None else None
    if add is None or not is_op(add, "Add") or any(constant_tensor(value) is not None for value in add.inputs):
        return None
    return add


class ChoosingRule(Rule):
    """A rule whose answer depends on what the model is made for.

    Args:
        target: "onnxnorm" or "standard".
        provider: a key of the table, "cpu" or "cuda".

    """

    def __init__(self, target: str = "onnxnorm", provider: str = "cpu") -> None:
        self.target = target
        self.provider = provider
