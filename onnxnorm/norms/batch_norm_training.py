"""Batch normalization in training graphs (Ioffe and Szegedy 2015, arXiv:1502.03167; ``torch.nn.BatchNorm1d/2d/3d``).

Each channel of X (N, C, *) is brought to mean 0 and variance 1 over the batch and all positions, then scaled and
shifted; the running statistics move towards the batch's by ``momentum`` (PyTorch's sense):

    y = (x - mean[c]) / sqrt(var[c] + epsilon) * scale[c] + bias[c]
    next_running_mean = running_mean + momentum * (mean - running_mean)
    next_running_var  = running_var  + momentum * (var * M / (M - 1) - running_var)

with the biased variance over the M values of a channel in y, and the unbiased one in the running variance. ONNX's
BatchNormalization with training_mode=1 keeps the biased one there, and loses all digits on offset data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.spec.batch import (
    BIAS,
    MOMENTUM,
    NEXT_MEAN,
    NEXT_VAR,
    RUNNING_MEAN,
    RUNNING_VAR,
    SCALE,
    X,
    Y,
    batch_moments,
    body_batch_norm,
    body_moments,
    body_moved,
    body_unbiased,
    check_batch,
    flattened,
    moved,
    per_channel,
    unbiased,
)
from onnxnorm.spec.record import EPSILON, Attributes, ErrorSample, FloatArray, NormSpec, PartialShape, Sample
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (X, SCALE, BIAS, RUNNING_MEAN, RUNNING_VAR, MOMENTUM)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), five vectors of C, momentum (1,) -> Y, next running mean and variance."""
    x, scale, bias, running_mean, running_var, momentum = inputs
    flat = flattened(x)
    centred, mean, var = batch_moments(flat)
    with np.errstate(all="ignore"):
        y = centred / np.sqrt(var + attributes["epsilon"])[:, None] * scale[:, None] + bias[:, None]
    return (
        y.reshape(x.shape),
        moved(running_mean, mean, momentum, flat),
        moved(running_var, unbiased(var, flat), momentum, flat),
    )


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice over (N, C, S); sums run in float64."""
    x, scale, bias, running_mean, running_var, momentum = inputs
    moments = body_moments(b, x, scale)
    deviation = b.op("Sqrt", b.op("Add", moments.var, b.float_attribute("epsilon")))
    y = b.op("Mul", b.op("Div", moments.centred, deviation), per_channel(b, scale))
    y = b.op("Add", y, per_channel(b, bias))
    mean = b.op("Add", moments.rough, moments.rest)
    return [
        b.narrow(b.reshape(y, moments.shape), like=x),
        body_moved(b, running_mean, mean, momentum, moments),
        body_moved(b, running_var, body_unbiased(b, moments), momentum, moments),
    ]


def eval_form(b: BodyBuilder, inputs: Sequence[BodyValue]) -> BodyValue:
    """BatchNormalization by the running statistics."""
    assert b.attributes is not None
    return body_batch_norm(b, inputs[:5], b.attributes["epsilon"])


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more with more than one value per channel, vectors of length C, momentum of length 1."""
    check_batch(INPUTS, shapes, attributes)


def from_torch(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: Any,
    eps: float = 1e-5,
) -> Any:
    """``onnxnorm::batch_norm_training``, which training exports put in place of ``F.batch_norm(training=True)``."""
    return g.norm(
        "BatchNormTraining",
        input,
        g.channel_parameter(weight, input, 1.0),
        g.channel_parameter(bias, input, 0.0),
        g.channel_parameter(running_mean, input, 0.0),
        g.channel_parameter(running_var, input, 1.0),
        g.scalar_parameter(momentum, input),
        epsilon=eps,
    )


def from_native(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    """``aten::_native_batch_norm_legit_functional``: (y, saved mean, saved 1/std, next mean, next variance)."""
    saved = _saved(g, input, eps)
    if not training:
        y = g.batch_norm(input, weight, bias, running_mean, running_var, eps)
        return (y, *saved, running_mean, running_var)
    y, mean, var = from_torch(g, input, weight, bias, running_mean, running_var, momentum, eps)
    return (y, *saved, mean, var)


def from_native_without_state(
    g: Translator, input: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    """``aten::_native_batch_norm_legit.no_stats``: batch norm without tracked statistics, also in evaluation."""
    y, _, _ = from_torch(g, input, weight, bias, None, None, momentum, eps)
    return (y, *_saved(g, input, eps))


def _saved(g: Translator, input: Any, eps: float) -> tuple[Any, Any]:
    """The batch's mean and 1 / sqrt(var + eps), which PyTorch keeps for the backward pass; unused in most graphs."""
    axes = g.standard("Constant", value_ints=[0, *range(2, len(input.shape))])
    centred = g.standard("Sub", input, g.standard("ReduceMean", input, axes, keepdims=1))
    var = g.standard("ReduceMean", g.standard("Mul", centred, centred), axes, keepdims=0)
    deviation = g.standard("Sqrt", g.standard("Add", var, g.parameter(None, input, [1], eps)))
    return g.standard("ReduceMean", input, axes, keepdims=0), g.standard("Reciprocal", deviation)


def _sample(
    label: str,
    shape: tuple[int, ...],
    *,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-5,
    momentum: float = 0.125,
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[1]
    inputs = (
        rng.standard_normal(shape) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        rng.standard_normal(channels) * 0.1 + offset,
        rng.uniform(0.5, 2.0, channels),
        np.array([momentum]),
    )
    return Sample(label, inputs, {"epsilon": epsilon})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, momentum 0 and 1, offset and constant data, two values per channel, empty tensors."""
    yield _sample("image", (3, 8, 5, 7))
    yield _sample("rank-2", (6, 10))
    yield _sample("sequence", (3, 5, 13))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("batch-1", (1, 4, 6, 6))
    yield _sample("one-channel", (4, 1, 9))
    yield _sample("one-position", (4, 3, 1, 1))
    yield _sample("two-values", (2, 4))
    yield _sample("offset", (2, 8, 16, 16), offset=1e4)
    yield _sample("constant", (2, 4, 3, 3), offset=3.0, spread=0.0)
    yield _sample("zeros-without-epsilon", (2, 4, 3, 3), spread=0.0, epsilon=0.0)
    yield _sample("momentum-0", (4, 6), momentum=0.0)
    yield _sample("momentum-1", (4, 6), momentum=1.0)
    yield _sample("empty-batch", (0, 4, 3, 3))
    yield _sample("empty-space", (2, 4, 0, 3))


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c, m = np.zeros((2, 6, 4)), np.ones(6), np.ones(1)
    good = {"epsilon": 1e-5}
    return (
        ErrorSample("scale-length", (x, np.ones(5), c, c, c, m), good, r"scale.*5.*6"),
        ErrorSample("running-var-length", (x, c, c, c, np.ones(7), m), good, r"running_var.*7.*6"),
        ErrorSample("momentum-length", (x, c, c, c, c, np.ones(2)), good, r"momentum.*2.*1"),
        ErrorSample("rank-1", (np.zeros(6), c, c, c, c, m), good, r"X.*rank"),
        ErrorSample("one-value", (np.zeros((1, 6, 1)), c, c, c, c, m), good, r"1, 6, 1.*more than 1 value per channel"),
        ErrorSample("epsilon", (x, c, c, c, c, m), {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
    )


SPEC = NormSpec(
    name="BatchNormTraining",
    summary="normalizes each channel by its statistics over the batch, and moves the running statistics",
    citation="Ioffe and Szegedy, Batch Normalization, 2015 (arXiv:1502.03167)",
    inputs=INPUTS,
    attributes=(EPSILON,),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(
        TorchOp("onnxnorm::batch_norm_training", from_torch),
        TorchOp("aten::_native_batch_norm_legit_functional", from_native),
        TorchOp("aten::_native_batch_norm_legit.no_stats", from_native_without_state),
    ),
    samples=samples,
    error_samples=error_samples,
    outputs=(Y, NEXT_MEAN, NEXT_VAR),
    native=False,
    eval_form=eval_form,
)
