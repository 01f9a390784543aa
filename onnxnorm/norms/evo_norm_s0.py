"""EvoNorm-S0 (Liu et al. 2020, arXiv:2004.02967): normalization and activation found together by evolution.

A gated X in place of the centred one, over the standard deviation of its group of channels:

    y[n,c,s] = x[n,c,s] * sigmoid(v[c] * x[n,c,s]) / sqrt(var[n,g] + epsilon) * scale[c] + bias[c],   g = c // (C / G)

with the biased variance of x over the channels of group g and all positions of item n.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.norms.group_norm import GROUPS, check_groups
from onnxnorm.spec.layout import group_layout
from onnxnorm.spec.record import (
    CHANNELS_LAST,
    EPSILON,
    Attributes,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    PartialShape,
    Sample,
    channels_first,
    check_channels,
    mean_of,
    restore_layout,
)
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (
    InputSpec("X", "(N, C, *) or (N, *, C)"),
    InputSpec("scale", "C"),
    InputSpec("bias", "C"),
    InputSpec("v", "C"),
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), scale, bias and v (C,) -> Y of X's shape."""
    x = inputs[0]
    scale, bias, v = (value[None, :, None] for value in inputs[1:])
    flat = channels_first(x, attributes)
    n, c, s = flat.shape
    groups = attributes["num_groups"]
    with np.errstate(all="ignore"):
        centred = flat.reshape(n, groups, c // groups * s)
        for _ in range(2):  # the second time takes away what rounding of a large mean left
            centred = centred - mean_of(centred, axis=2)
        deviation = np.sqrt(mean_of(np.square(centred), axis=2) + attributes["epsilon"])
        gated = flat / (1.0 + np.exp(-v * flat))
        y = (gated.reshape(centred.shape) / deviation).reshape(flat.shape) * scale + bias
    return (restore_layout(y, x, attributes),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Over (N, S1, G, C/G, S2), where S1 is 1 for channels-first and S2 is 1 for channels-last."""
    x = inputs[0]
    layout = group_layout(b, x, inputs[1])
    scale, bias, v = (b.reshape(b.widen(value), layout.per_channel) for value in inputs[1:])
    grouped = b.reshape(b.widen(x), layout.split)
    centred = b.centre(grouped, axes=(4, 3, 1))
    variance = b.exact_mean(b.op("Mul", centred, centred), axes=(4, 3, 1))
    deviation = b.op("Sqrt", b.op("Add", variance, b.float_attribute("epsilon")))
    gated = b.op("Mul", grouped, b.op("Sigmoid", b.op("Mul", v, grouped)))
    y = b.op("Add", b.op("Mul", b.op("Div", gated, deviation), scale), bias)
    return [b.narrow(b.reshape(y, layout.shape), like=x)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more, all other inputs of length C, and num_groups divides C."""
    check_groups(check_channels(INPUTS, shapes, attributes), attributes)


def from_torch(g: Translator, input: Any, num_groups: int, weight: Any, bias: Any, v: Any, eps: float = 1e-5) -> Any:
    """``onnxnorm::evo_norm_s0``, the operator that ``onnxnorm.nn.EvoNorm1dS0/2dS0/3dS0`` call."""
    scale, shift = g.channel_parameter(weight, input, 1.0), g.channel_parameter(bias, input, 0.0)
    gate = g.channel_parameter(v, input, 1.0)
    return g.norm("EvoNormS0", input, scale, shift, gate, num_groups=num_groups, epsilon=eps, channels_last=0)


def _sample(
    label: str,
    shape: tuple[int, ...],
    groups: int,
    *,
    last: int = 0,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-5,
    v: float | None = None,
) -> Sample:
    rng = np.random.default_rng(abs(hash((shape, groups))) % 2**32)
    channels = shape[-1 if last else 1]
    inputs = (
        rng.standard_normal(shape) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        rng.uniform(-1.0, 2.0, channels) if v is None else np.full(channels, v),
    )
    return Sample(label, inputs, {"num_groups": groups, "epsilon": epsilon, "channels_last": last})


def samples() -> Iterator[Sample]:
    """Odd sizes, layouts, one group, one group per channel, v of either sign and 0, offset data, empty tensors."""
    yield _sample("image", (2, 8, 5, 7), 4)
    yield _sample("one-group", (1, 6, 9, 11), 1)
    yield _sample("one-group-large", (1, 16, 61, 67), 1)
    yield _sample("group-per-channel", (3, 5, 13), 5)
    yield _sample("v-one", (2, 12, 3, 13), 3, v=1.0)
    yield _sample("v-zero", (2, 12, 3, 13), 3, v=0.0)
    yield _sample("v-large", (2, 12, 3, 13), 3, v=-60.0)
    yield _sample("rank-2", (4, 12), 3)
    yield _sample("volume", (1, 4, 3, 5, 2), 2)
    yield _sample("channels-last", (2, 5, 7, 8), 2, last=1)
    yield _sample("channels-last-rank-2", (3, 8), 4, last=1)
    yield _sample("offset", (2, 8, 16, 16), 2, offset=1e4, epsilon=0.5)  # float16 has no more than 65504
    yield _sample("offset-channels-last", (2, 16, 16, 8), 2, offset=1e4, epsilon=0.5, last=1)
    yield _sample("constant", (2, 4, 3, 3), 2, offset=3.0, spread=0.0)
    yield _sample("zeros", (2, 4, 3, 3), 2, spread=0.0)
    yield _sample("one-value-per-group", (2, 4, 1, 1), 4)
    yield _sample("one-channel", (3, 1, 7), 1)
    yield _sample("large-epsilon", (2, 4, 5), 2, epsilon=0.5)
    yield _sample("empty-batch", (0, 4, 3, 3), 2)
    yield _sample("empty-space", (2, 4, 0, 3), 2)


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c = np.zeros((2, 6, 4)), np.ones(6)
    good = {"num_groups": 3, "epsilon": 1e-5, "channels_last": 0}
    return (
        ErrorSample("groups-do-not-divide", (x, c, c, c), good | {"num_groups": 4}, r"num_groups.*4.*divide.*6"),
        ErrorSample("no-groups", (x, c, c, c), good | {"num_groups": 0}, r"num_groups.*0.*at least 1"),
        ErrorSample("scale-length", (x, np.ones(5), c, c), good, r"scale.*5.*6"),
        ErrorSample("bias-rank", (x, c, np.ones((1, 6)), c), good, r"bias.*1.*6"),
        ErrorSample("v-length", (x, c, c, np.ones(1)), good, r"v has.*1.*6"),
        ErrorSample("rank-1", (np.zeros(6), c, c, c), good, r"X.*rank"),
        ErrorSample("epsilon", (x, c, c, c), good | {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
        ErrorSample("layout", (x, c, c, c), good | {"channels_last": 2}, r"channels_last.*2.*0.*1"),
    )


SPEC = NormSpec(
    name="EvoNormS0",
    summary="x * sigmoid(v * x) over the standard deviation of each group of channels and all positions, then scale "
    "and bias",
    citation="Liu, Brock, Simonyan and Le, Evolving Normalization-Activation Layers, 2020 (arXiv:2004.02967)",
    inputs=INPUTS,
    attributes=(GROUPS, EPSILON, CHANNELS_LAST),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::evo_norm_s0", from_torch),),
    samples=samples,
    error_samples=error_samples,
)
