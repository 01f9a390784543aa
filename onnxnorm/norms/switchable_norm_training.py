"""Switchable normalization in training graphs (Luo et al. 2018, arXiv:1806.10779; the authors' SwitchNorm1d/2d/3d).

As in ``switchable_norm``, with the batch's own statistics in place of the running ones, which move towards them by
``momentum`` (PyTorch's sense; the authors' 0.9 is 0.1 here):

    y = (x - mean) / sqrt(var + epsilon) * scale[c] + bias[c]
    mean[n,c] = mw[0] * mean_in[n,c] + mw[1] * mean_ln[n] + mw[2] * mean_bn[c]
    var[n,c]  = vw[0] * var_in[n,c]  + vw[1] * var_ln[n]  + vw[2] * var_bn[c]

    mean_in[n,c] = mean of x over the S positions        var_in[n,c] = sum (x - mean_in)^2 / (S - 1)      (unbiased)
    mean_ln[n]   = mean of mean_in over the channels     var_ln[n] = mean of var_in + biased variance of mean_in
    mean_bn[c]   = mean of mean_in over the items        var_bn[c] = mean of var_in + biased variance of mean_in

The layer's and the batch's variance are the authors' ``mean(var_in + mean_in^2) - mean^2``, written so that they do not
cancel. Rank-2 input (SwitchNorm1d) has no positions: the instance's mean is the value itself and its variance 0, and
var_ln and var_bn are unbiased variances over the channels and over the items.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.norms.switchable_norm import branch_weights, rounding_slack
from onnxnorm.spec.batch import (
    BIAS,
    MOMENTUM,
    NEXT_MEAN,
    NEXT_VAR,
    RUNNING_MEAN,
    RUNNING_VAR,
    SCALE,
    TrainingCall,
    X,
    Y,
    bessel,
    body_instance_moments,
    body_moved_over,
    body_pool,
    check_batch,
    check_positions,
    flattened,
    instance_moments,
    moved,
    per_channel,
)
from onnxnorm.spec.record import (
    EPSILON,
    Attributes,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    PartialShape,
    Sample,
    mean_of,
)
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (
    X,
    SCALE,
    BIAS,
    InputSpec("mean_weight", "3"),
    InputSpec("var_weight", "3"),
    RUNNING_MEAN,
    RUNNING_VAR,
    MOMENTUM,
)


# --- float64 NumPy -------------------------------------------------------------------------------------------------


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), vectors of C, weights (3,), momentum (1,) -> Y, next running mean and variance."""
    x, scale, bias, mean_weight, var_weight, running_mean, running_var, momentum = inputs
    flat = flattened(x)
    rank_2 = x.ndim == 2
    positions = np.float64(flat.shape[2])
    with np.errstate(all="ignore"):
        finite = flat[np.isfinite(flat)]
        offset = finite.mean() if finite.size else 0.0  # taken off first, so that the sums do not cancel
        centred, mean_in, var_in = instance_moments(flat - offset)
        var_in = np.zeros_like(mean_in) if rank_2 else var_in * (positions / (positions - 1.0))
        mean_ln, var_ln = _over(mean_in, var_in, axis=1, unbiased=rank_2)
        mean_bn, var_bn = _over(mean_in, var_in, axis=0, unbiased=rank_2)
        mean = mean_weight[0] * mean_in + mean_weight[1] * mean_ln + mean_weight[2] * mean_bn
        mean = mean + math.fsum((*mean_weight, -1.0)) * offset
        var = var_weight[0] * var_in + var_weight[1] * var_ln + var_weight[2] * var_bn
        y = (centred + (mean_in - mean)) / np.sqrt(var + attributes["epsilon"]) * scale[:, None] + bias[:, None]
        mean_bn = mean_bn + offset
    return (
        y.reshape(x.shape),
        moved(running_mean, mean_bn.reshape(-1), momentum, flat),
        moved(running_var, var_bn.reshape(-1), momentum, flat),
    )


def _over(mean_in: FloatArray, var_in: FloatArray, axis: int, unbiased: bool) -> tuple[FloatArray, FloatArray]:
    """Mean and variance over an axis of the instances, whose own mean and variance are given."""
    mean = mean_of(mean_in, axis=axis)
    between = np.square(mean_in - mean).sum(axis=axis, keepdims=True) / np.float64(mean_in.shape[axis] - int(unbiased))
    return mean, mean_of(var_in, axis=axis) + between


# --- function body -------------------------------------------------------------------------------------------------


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Works on (N, C, S). Everything is measured from the instance mean, whose two parts never meet before the end."""
    x, scale, bias, _, _, running_mean, running_var, momentum = inputs
    moments = body_instance_moments(b, x, scale)
    rank_2 = b.op("Equal", b.op("Shape", moments.shape), b.ints(2))
    var_in = b.op("Where", rank_2, b.scalar(0.0), b.op("Mul", moments.var, bessel(b, moments.positions)))
    layer = body_pool(b, moments, var_in, 1, b.op("Where", rank_2, bessel(b, b.op("Shape", scale)), b.scalar(1.0)))
    batch = body_pool(b, moments, var_in, 0, b.op("Where", rank_2, bessel(b, moments.items), b.scalar(1.0)))

    # mean_in - mean = mw1 * (mean_in - mean_ln) + mw2 * (mean_in - mean_bn) + (1 - mw0 - mw1 - mw2) * mean_in, where
    # the last factor is what rounding left of the softmax: small, but it meets the whole offset of the data.
    mean_weight, var_weight = (branch_weights(b, inputs[index]) for index in (3, 4))
    gap = b.op("Mul", rounding_slack(b, inputs[3]), b.op("Add", moments.rough, moments.rest))
    var = b.op("Mul", var_weight[0], var_in)
    for index, pool in ((1, layer), (2, batch)):
        gap = b.op("Add", gap, b.op("Mul", mean_weight[index], pool.distance))
        var = b.op("Add", var, b.op("Mul", var_weight[index], pool.var))

    deviation = b.op("Sqrt", b.op("Add", var, b.float_attribute("epsilon")))
    y = b.op("Div", b.op("Add", moments.centred, gap), deviation)
    y = b.op("Add", b.op("Mul", y, per_channel(b, scale)), per_channel(b, bias))
    return [
        b.narrow(b.reshape(y, moments.shape), like=x),
        body_moved_over(b, running_mean, batch.mean, momentum, moments.count),
        body_moved_over(b, running_var, batch.var, momentum, moments.count),
    ]


def eval_form(b: BodyBuilder, inputs: Sequence[BodyValue]) -> BodyValue:
    """SwitchableNorm by the running statistics."""
    assert b.attributes is not None
    options = {"epsilon": b.attributes["epsilon"], "activation": "none", "channels_last": 0}
    return b.norm("SwitchableNorm", *inputs[:7], **options)


# --- checks, translation, samples ----------------------------------------------------------------------------------


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 with more than one item or of higher rank with more than one position; vectors of C, weights of 3."""
    check_batch(INPUTS, shapes, attributes)
    if shapes[0] is not None and len(shapes[0]) > 2:
        check_positions(shapes[0])


def from_torch(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    mean_weight: Any,
    var_weight: Any,
    running_mean: Any,
    running_var: Any,
    momentum: Any,
    eps: float = 1e-5,
) -> Any:
    """``onnxnorm::switchable_norm_training``, which ``onnxnorm.nn.SwitchableNorm1d/2d/3d`` call in training."""
    call = TrainingCall(g, input, running_mean)
    return call.node(
        "SwitchableNormTraining",
        call.vector(weight, 1.0),
        call.vector(bias, 0.0),
        call.vector(mean_weight, 0.0),
        call.vector(var_weight, 0.0),
        call.vector(running_mean, 0.0),
        call.vector(running_var, 1.0),
        call.scalar(momentum),
        state=(running_mean, running_var),
        epsilon=eps,
    )


def _softmax(logits: FloatArray) -> FloatArray:
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum())


def _sample(
    label: str,
    shape: tuple[int, ...],
    *,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-5,
    momentum: float = 0.125,
    weights: Sequence[float] | None = None,
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[1]
    levels = rng.standard_normal((*shape[:2], *[1] * (len(shape) - 2)))  # instances differ in mean
    mean_weight, var_weight = _softmax(rng.standard_normal(3)), _softmax(rng.standard_normal(3))
    if len(shape) == 2:  # no positions: the instance branch is off, as in the authors' SwitchNorm1d
        mean_weight, var_weight = (np.array([0.0, *_softmax(rng.standard_normal(2))]) for _ in range(2))
    if weights is not None:
        mean_weight = var_weight = np.array(weights, np.float64)
    inputs = (
        (rng.standard_normal(shape) + levels) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        mean_weight,
        var_weight,
        rng.standard_normal(channels) * 0.1 + offset,
        rng.uniform(0.5, 2.0, channels),
        np.array([momentum]),
    )
    return Sample(label, inputs, {"epsilon": epsilon})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, each branch alone, momentum 0 and 1, offset and constant data, empty tensors."""
    yield _sample("image", (3, 8, 5, 7))
    yield _sample("rank-2", (6, 10))
    yield _sample("rank-2-two-items", (2, 4))
    yield _sample("sequence", (3, 5, 13))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("batch-1", (1, 4, 6, 6))
    yield _sample("one-channel", (4, 1, 9))
    yield _sample("two-positions", (3, 4, 1, 2))
    yield _sample("instance-only", (2, 4, 6, 6), weights=(1, 0, 0))
    yield _sample("layer-only", (2, 4, 6, 6), weights=(0, 1, 0))
    yield _sample("batch-only", (2, 4, 6, 6), weights=(0, 0, 1))
    yield _sample("offset", (2, 8, 16, 16), offset=1e4)
    yield _sample("offset-rank-2", (6, 10), offset=1e4)
    yield _sample("constant", (2, 4, 3, 3), offset=3.0, spread=0.0)
    yield _sample("zeros-without-epsilon", (2, 4, 3, 3), spread=0.0, epsilon=0.0)
    yield _sample("momentum-0", (4, 6), momentum=0.0)
    yield _sample("momentum-1", (4, 6), momentum=1.0)
    yield _sample("empty-batch", (0, 4, 3, 3))
    yield _sample("empty-space", (2, 4, 0, 3))


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c, w, m = np.zeros((2, 6, 4)), np.ones(6), np.full(3, 1 / 3), np.ones(1)
    good, rest = {"epsilon": 1e-5}, (c, c, w, w, c, c, m)
    return (
        ErrorSample("scale-length", (x, np.ones(5), *rest[1:]), good, r"scale.*5.*6"),
        ErrorSample("weights-length", (x, c, c, np.ones(2), w, c, c, m), good, r"mean_weight.*2.*3"),
        ErrorSample("running-var-length", (x, c, c, w, w, c, np.ones(7), m), good, r"running_var.*7.*6"),
        ErrorSample("momentum-length", (x, c, c, w, w, c, c, np.ones(2)), good, r"momentum.*2.*1"),
        ErrorSample("rank-1", (np.zeros(6), *rest), good, r"X.*rank"),
        ErrorSample("one-value", (np.zeros((1, 6)), *rest), good, r"1, 6.*more than 1 value per channel"),
        ErrorSample("one-position", (np.zeros((3, 6, 1)), *rest), good, r"3, 6, 1.*more than 1 spatial element"),
        ErrorSample("epsilon", (x, *rest), {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
    )


SPEC = NormSpec(
    name="SwitchableNormTraining",
    summary="normalizes by a weighted sum of instance, layer and batch statistics, and moves the running statistics",
    citation="Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2018 (arXiv:1806.10779)",
    inputs=INPUTS,
    attributes=(EPSILON,),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::switchable_norm_training", from_torch),),
    samples=samples,
    error_samples=error_samples,
    outputs=(Y, NEXT_MEAN, NEXT_VAR),
    native=False,
    eval_form=eval_form,
)
