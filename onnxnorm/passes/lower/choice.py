"""Which operator runs best where: the one table that lowering and fusing ask.

A norm that ONNX Runtime runs by a kernel of its own, as fast and as right as ours, is better off as the standard
operator: more runtimes know it, and ONNX Runtime's own optimizer fuses around it. Where our kernel is faster it is
onnxnorm's op, which has a price: without the native library its function body runs, and that is slower than a kernel
of ONNX Runtime's own. Models that are deployed without the library are for the target "standard".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from onnxnorm.passes.rule import Rule


@dataclass(frozen=True)
class Standard:
    """The standard operator of a norm.

    Attributes:
        operator: its name in ai.onnx.
        since: the opset that it came with.
        kernels: provider -> element types for which ONNX Runtime has a kernel of its own.
        exact: element types in which those kernels compute what PyTorch does, within its own rounding.
        best: provider -> element types in which the operator, without an activation, is the best form of the norm, also
            behind a residual addition.

    """

    operator: str
    since: int
    kernels: Mapping[str, frozenset[ir.DataType]]
    exact: frozenset[ir.DataType]
    best: Mapping[str, frozenset[ir.DataType]]


#: Onnxnorm op -> its standard operator.
#:
#: Numbers, ONNX Runtime 1.31.1: LayerNormalization is nearer to float64 than PyTorch's float32, also at mean 1e4 and
#: standard deviation 1; in float64 it reads epsilon as a float32, which costs half of the digits.
#:
#: Speed of LayerNormalization over rows beside onnxnorm LayerNorm, CPU provider of 1.31.1, two threads, ms:
#:
#:                   AVX-512, float32   float16        AVX2, float32   float16
#:     1x128x768     0.0462 / 0.0222    0.0478 / 0.0291    0.0446 / 0.0213    0.0516 / 0.0325
#:     8x512x1024    1.82   / 1.00      1.58   / 0.79      1.88   / 1.06      1.79   / 1.01
#:     1x197x384                                           0.049  / 0.031     0.045  / 0.026
#:
#: which ``onnxnorm bench --op LayerNorm --shape 1x128x768 --shape 8x512x1024 --dtype float32`` repeats (the candidates
#: ort-18 and onnxnorm; ``ONNXNORM_CPU_TARGET=avx2`` for the columns on the right). In float64 it takes 3 to 6 times as
#: long at these shapes. A single row of 768 is the one case where it is faster, by what a call of a custom operator
#: costs (4.7 and 5.3 us); at 4 rows of 768, and at one of 4096, onnxnorm is ahead by 5 to 11 %. On CUDA, where the two
#: have not been measured against each other, LayerNormalization stays.
#:
#: Behind a residual addition the CPU provider makes com.microsoft SkipLayerNormalization of both, which takes 7 times
#: as long as onnxnorm SkipLayerNorm (128 x 768 float32, one thread: 640 us and 88 us; 1024 x 1024 float16: 8.5 ms and
#: 0.75 ms) and is 8 times as far off as LayerNormalization at mean 1e4; 1.20 gives NaN there.
STANDARD: Final[Mapping[str, Standard]] = {
    "LayerNorm": Standard(
        "LayerNormalization",
        since=17,
        kernels={
            "cpu": frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}),
            "cuda": frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}),
        },
        exact=frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}),
        best={
            "cpu": frozenset(),
            # of float64 those that a model has: what becomes one must be exact too
            "cuda": frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}),
        },
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


def has_exact_kernel(op: str, dtype: ir.DataType, provider: str) -> bool:
    """Whether that kernel computes what PyTorch does, so that the norm may become its standard operator."""
    return has_standard_kernel(op, dtype, provider) and dtype in STANDARD[op].exact


def prefers_standard(op: str, dtype: ir.DataType, provider: str) -> bool:
    """Whether the norm's standard operator, without an activation, is the best form of the norm."""
    return dtype in STANDARD[op].best[provider]


class ChoosingRule(Rule):
    """A rule whose answer depends on what the model is made for.

    Args:
        target: "onnxnorm" or "standard".
        provider: a key of the table, "cpu" or "cuda".

    """

    def __init__(self, target: str = "onnxnorm", provider: str = "cpu") -> None:
        self.target = target
        self.provider = provider
