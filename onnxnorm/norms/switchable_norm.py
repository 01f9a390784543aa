"""Switchable normalization in evaluation form (Luo et al. 2018, arXiv:1806.10779; the authors' SwitchNorm1d/2d/3d).

Mean and variance are a weighted sum of the instance's, the layer's and the batch's (running) statistics:

    y = act((x - mean) / sqrt(var + epsilon) * scale[c] + bias[c])
    mean[n,c] = mw[0] * mean_in[n,c] + mw[1] * mean_ln[n] + mw[2] * running_mean[c]
    var[n,c]  = vw[0] * var_in[n,c]  + vw[1] * var_ln[n]  + vw[2] * running_var[c]

    mean_in[n,c] = mean of x over the S positions        var_in[n,c] = sum (x - mean_in)^2 / (S - 1)      (unbiased)
    mean_ln[n]   = mean of mean_in over the channels     var_ln[n] = mean of var_in + biased variance of mean_in

The layer variance is the authors' ``mean(var_in + mean_in^2) - mean_ln^2``, written so that it does not cancel. The
weights are those after the softmax. Rank-2 input (the authors' SwitchNorm1d) has no positions: the instance's mean is
the value itself and its variance 0 (their weight is 0 in a trained model), and var_ln is the unbiased variance over
the channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxnorm.spec.record import (
    ACTIVATION,
    ACTIVATIONS,
    CHANNELS_LAST,
    EPSILON,
    Attributes,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    PartialShape,
    Sample,
    activate,
    channels_first,
    check_channels,
    mean_of,
    restore_layout,
)
from onnxnorm.spec.skip import skip_form
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (
    InputSpec("X", "(N, C, *) or (N, *, C)"),
    InputSpec("scale", "C"),
    InputSpec("bias", "C"),
    InputSpec("mean_weight", "3"),
    InputSpec("var_weight", "3"),
    InputSpec("running_mean", "C"),
    InputSpec("running_var", "C"),
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), scale, bias (C,), weights (3,), running statistics (C,) -> Y of X's shape."""
    x, scale, bias, mean_weight, var_weight, running_mean, running_var = inputs
    flat = channels_first(x, attributes)
    _, channels, positions = flat.shape
    rank_2 = x.ndim == 2
    with np.errstate(all="ignore"):
        offset = mean_of(flat, axis=(1, 2))  # taken off first, so that the rest of the sums does not cancel
        flat = flat - offset
        mean_in = mean_of(flat, axis=2)
        squares = np.square(flat - mean_in).sum(axis=2, keepdims=True)
        var_in = np.zeros_like(mean_in) if rank_2 else squares / np.float64(positions - 1)
        mean_ln = mean_of(mean_in, axis=1)
        between = np.square(mean_in - mean_ln).sum(axis=1, keepdims=True) / np.float64(channels - int(rank_2))
        var_ln = var_in.sum(axis=1, keepdims=True) / np.float64(channels) + between
        mean_bn = running_mean[None, :, None] - offset
        mean = mean_weight[0] * mean_in + mean_weight[1] * mean_ln + mean_weight[2] * mean_bn
        mean = mean + math.fsum((*mean_weight, -1.0)) * offset
        var = var_weight[0] * var_in + var_weight[1] * var_ln + var_weight[2] * running_var[None, :, None]
        y = (flat - mean) / np.sqrt(var + attributes["epsilon"]) * scale[None, :, None] + bias[None, :, None]
    return (restore_layout(activate(y, attributes["activation"]), x, attributes),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Works on (N, S1, C, S2), S1 = 1 for channels-first and S2 = 1 for channels-last.

    Everything is measured from the instance mean, in two steps as in ``centre``: x - mean = (x - mean_in) +
    (mean_in - mean), so that a large common offset cancels in differences of means and not in sums.
    """
    x = inputs[0]
    shape = b.op("Shape", x)
    channels = b.op("Shape", inputs[1])
    before, after = b.positions(shape, channels)
    split = b.op("Concat", b.slice(shape, 0, 1), before, channels, after, axis=0)
    per_channel = b.op("Concat", b.ints(1, 1), channels, b.ints(1), axis=0)
    scale, bias, running_mean, running_var = (b.reshape(b.widen(inputs[index]), per_channel) for index in (1, 2, 5, 6))
    mean_weight, var_weight = (branch_weights(b, inputs[index]) for index in (3, 4))
    rank_2 = b.op("Equal", b.op("Shape", shape), b.ints(2))

    spread = b.reshape(b.widen(x), split)
    rough = b.mean(spread, axes=(3, 1))
    centred = b.op("Sub", spread, rough)
    rest = b.mean(centred, axes=(3, 1))
    centred = b.op("Sub", centred, rest)
    positions = b.op("Mul", before, after)
    unbiased = b.op("Div", *(b.op("Cast", count, to=b.compute) for count in (positions, _less_one(b, positions))))
    var_in = b.op("Mul", b.exact_mean(b.op("Mul", centred, centred), axes=(3, 1)), unbiased)
    var_in = b.op("Where", rank_2, b.scalar(0.0), var_in)

    # The layer's mean, measured from each channel's own: layer = rough + to_layer.
    from_layer = b.op("Add", b.centre(rough, axes=(2,)), b.centre(rest, axes=(2,)))
    squares = b.mean(b.op("Mul", from_layer, from_layer), axes=(2,))
    over = b.op("Where", rank_2, _less_one(b, channels), channels)
    over = b.op("Div", *(b.op("Cast", count, to=b.compute) for count in (channels, over)))
    var_ln = b.op("Add", b.mean(var_in, axes=(2,)), b.op("Mul", squares, over))

    # mean_in - mean = mw1 * (mean_in - mean_ln) + mw2 * (mean_in - mean_bn) + (1 - mw0 - mw1 - mw2) * mean_in, where
    # the last factor is what rounding left of the softmax: small, but it meets the whole offset of the data.
    slack = rounding_slack(b, inputs[3])
    mean_in = b.op("Add", rough, rest)
    from_batch = b.op("Add", b.op("Sub", rough, running_mean), rest)
    gap = b.op("Add", b.op("Mul", mean_weight[1], from_layer), b.op("Mul", mean_weight[2], from_batch))
    gap = b.op("Add", gap, b.op("Mul", slack, mean_in))
    var = b.op("Add", b.op("Mul", var_weight[0], var_in), b.op("Mul", var_weight[1], var_ln))
    var = b.op("Add", var, b.op("Mul", var_weight[2], running_var))

    deviation = b.op("Sqrt", b.op("Add", var, b.float_attribute("epsilon")))
    y = b.op("Div", b.op("Add", centred, gap), deviation)
    y = b.op("Add", b.op("Mul", y, scale), bias)
    return [b.narrow(b.reshape(b.activation(y), shape), like=x)]


def _less_one(b: BodyBuilder, count: BodyValue) -> BodyValue:
    return b.op("Sub", count, b.ints(1))


def rounding_slack(b: BodyBuilder, weights: BodyValue) -> BodyValue:
    """1 - sum(weights), shape [1], added up in float64 so that it is exact for float32 weights."""
    rest = b.constant(np.array([1.0]))
    for index in range(3):
        weight = b.slice(weights, index, index + 1)
        rest = b.op("Sub", rest, b.op("Cast", weight, to=ir.DataType.DOUBLE))
    return b.op("Cast", rest, to=b.compute)


def branch_weights(b: BodyBuilder, weights: BodyValue) -> list[BodyValue]:
    """The three branch weights, each of shape [1]."""
    wide = b.widen(weights)
    return [b.slice(wide, index, index + 1) for index in range(3)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more, per-channel inputs of length C, weights of length 3."""
    check_channels(INPUTS, shapes, attributes)


def from_torch(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    mean_weight: Any,
    var_weight: Any,
    running_mean: Any,
    running_var: Any,
    eps: float = 1e-5,
) -> Any:
    """``onnxnorm::switchable_norm``, the operator that ``onnxnorm.nn.SwitchableNorm1d/2d/3d`` call in eval."""
    scale = g.channel_parameter(weight, input, 1.0)
    shift = g.channel_parameter(bias, input, 0.0)
    weights = [g.parameter(value, input, [3], 0.0) for value in (mean_weight, var_weight)]
    state = [g.channel_parameter(value, input, 0.0) for value in (running_mean, running_var)]
    return g.norm(
        "SwitchableNorm",
        input,
        scale,
        shift,
        *weights,
        *state,
        epsilon=eps,
        activation="none",
        channels_last=0,
    )


def _softmax(logits: FloatArray) -> FloatArray:
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum())


def _sample(
    label: str,
    shape: tuple[int, ...],
    *,
    activation: str = "none",
    last: int = 0,
    offset: float = 0.0,
    spread: float = 1.0,
    weights: Sequence[float] | None = None,
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[-1 if last else 1]
    mean_weight, var_weight = _softmax(rng.standard_normal(3)), _softmax(rng.standard_normal(3))
    if len(shape) == 2:  # no positions: the instance branch is off, as in the authors' SwitchNorm1d
        mean_weight, var_weight = (np.array([0.0, *_softmax(rng.standard_normal(2))]) for _ in range(2))
    if weights is not None:
        mean_weight = var_weight = np.array(weights, np.float64)
    inputs = (
        rng.standard_normal(shape) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        mean_weight,
        var_weight,
        rng.standard_normal(channels) * 0.1 + offset,
        rng.uniform(0.5, 2.0, channels),
    )
    return Sample(label, inputs, {"epsilon": 1e-5, "activation": activation, "channels_last": last})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, each branch alone, activations, layouts, offset data, empty tensors."""
    yield _sample("image", (2, 8, 5, 7))
    for activation in ACTIVATIONS[1:]:
        yield _sample(activation, (3, 5, 13), activation=activation)
    yield _sample("rank-2", (6, 10))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("channels-last", (2, 5, 7, 6), last=1, activation="relu")
    yield _sample("channels-last-rank-2", (4, 9), last=1)
    yield _sample("instance-only", (2, 4, 6, 6), weights=(1, 0, 0))
    yield _sample("layer-only", (2, 4, 6, 6), weights=(0, 1, 0))
    yield _sample("batch-only", (2, 4, 6, 6), weights=(0, 0, 1))
    yield _sample("offset", (2, 8, 16, 16), offset=1e4)
    yield _sample("zeros", (2, 4, 3, 3), spread=0.0)
    yield _sample("one-channel", (2, 1, 9))
    yield _sample("one-position", (2, 4, 1, 1))
    yield _sample("empty-batch", (0, 4, 3, 3))
    yield _sample("empty-space", (2, 4, 0, 3))


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c, w = np.zeros((2, 6, 4)), np.ones(6), np.full(3, 1 / 3)
    good = {"epsilon": 1e-5, "activation": "none", "channels_last": 0}
    return (
        ErrorSample("scale-length", (x, np.ones(5), c, w, w, c, c), good, r"scale.*5.*6"),
        ErrorSample("weights-length", (x, c, c, np.ones(2), w, c, c), good, r"mean_weight.*2.*3"),
        ErrorSample("running-var-length", (x, c, c, w, w, c, np.ones(7)), good, r"running_var.*7.*6"),
        ErrorSample("rank-1", (np.zeros(6), c, c, w, w, c, c), good, r"X.*rank"),
        ErrorSample("activation", (x, c, c, w, w, c, c), good | {"activation": "swish"}, r"activation.*swish.*none"),
        ErrorSample("layout", (x, c, c, w, w, c, c), good | {"channels_last": -1}, r"channels_last.*-1.*0.*1"),
    )


SPEC = NormSpec(
    name="SwitchableNorm",
    summary="normalizes by a weighted sum of instance, layer and batch statistics, then scale, bias and activation",
    citation="Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2018 (arXiv:1806.10779)",
    inputs=INPUTS,
    attributes=(EPSILON, ACTIVATION, CHANNELS_LAST),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::switchable_norm", from_torch),),
    samples=samples,
    error_samples=error_samples,
)

SKIP_SPEC = skip_form(SPEC)
