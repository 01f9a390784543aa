"""Batch-instance normalization in training graphs (Nam and Kim 2018, arXiv:1805.07925; the authors' BatchInstanceNorm).

As in ``batch_instance_norm``, with the batch's own statistics in place of the running ones, which move towards them by
``momentum`` (PyTorch's sense), the variance towards the unbiased one:

    y = (rho[c] * x_batch + (1 - rho[c]) * x_instance) * scale[c] + bias[c]

    x_batch    = (x - mean[c]) / sqrt(var[c] + epsilon),       mean and biased variance over the M values of a channel
    x_instance = (x - mean[n,c]) / sqrt(var[n,c] + epsilon),   the same over the S positions of an instance
    next_running_mean = running_mean + momentum * (mean[c] - running_mean)
    next_running_var  = running_var  + momentum * (var[c] * M / (M - 1) - running_var)

Rho is taken as it is; the paper keeps it within [0, 1], which is the caller's part.
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
    TrainingCall,
    X,
    Y,
    batch_moments,
    bessel,
    body_instance_moments,
    body_moved_over,
    body_pool,
    check_positions,
    flattened,
    instance_moments,
    moved,
    per_channel,
    unbiased,
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
    check_channels,
)
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (X, SCALE, BIAS, InputSpec("rho", "C"), RUNNING_MEAN, RUNNING_VAR, MOMENTUM)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), six vectors of C, momentum (1,) -> Y, next running mean and variance."""
    x, scale, bias, rho, running_mean, running_var, momentum = inputs
    flat = flattened(x)
    from_batch, mean, var = batch_moments(flat)
    from_instance, _, var_in = instance_moments(flat)
    with np.errstate(all="ignore"):
        x_batch = from_batch / np.sqrt(var + attributes["epsilon"])[:, None]
        x_instance = from_instance / np.sqrt(var_in + attributes["epsilon"])
        y = (rho[:, None] * x_batch + (1.0 - rho[:, None]) * x_instance) * scale[:, None] + bias[:, None]
    return (
        y.reshape(x.shape),
        moved(running_mean, mean, momentum, flat),
        moved(running_var, unbiased(var, flat), momentum, flat),
    )


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Works on (N, C, S). The batch's mean is measured from the instance's, so that offset data cancels in means."""
    x, scale, bias, rho, running_mean, running_var, momentum = inputs
    moments = body_instance_moments(b, x, scale)
    batch = body_pool(b, moments, moments.var, axis=0)
    epsilon = b.float_attribute("epsilon")
    x_instance = b.op("Div", moments.centred, b.op("Sqrt", b.op("Add", moments.var, epsilon)))
    from_batch = b.op("Add", moments.centred, batch.distance)
    x_batch = b.op("Div", from_batch, b.op("Sqrt", b.op("Add", batch.var, epsilon)))
    share = per_channel(b, rho)
    rest = b.op("Sub", b.scalar(1.0), share)
    y = b.op("Add", b.op("Mul", share, x_batch), b.op("Mul", rest, x_instance))
    y = b.op("Add", b.op("Mul", y, per_channel(b, scale)), per_channel(b, bias))
    var = b.op("Mul", batch.var, bessel(b, moments.count))
    return [
        b.narrow(b.reshape(y, moments.shape), like=x),
        body_moved_over(b, running_mean, batch.mean, momentum, moments.count),
        body_moved_over(b, running_var, var, momentum, moments.count),
    ]


def eval_form(b: BodyBuilder, inputs: Sequence[BodyValue]) -> BodyValue:
    """BatchInstanceNorm by the running statistics."""
    assert b.attributes is not None
    options = {"epsilon": b.attributes["epsilon"], "activation": "none", "channels_last": 0}
    return b.norm("BatchInstanceNorm", *inputs[:6], **options)


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 3 or more with more than one position, vectors of length C, momentum of length 1."""
    check_channels(INPUTS, shapes, attributes)
    check_positions(shapes[0])


def from_torch(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    rho: Any,
    running_mean: Any,
    running_var: Any,
    momentum: Any,
    eps: float = 1e-5,
) -> Any:
    """``onnxnorm::batch_instance_norm_training``, which ``onnxnorm.nn.BatchInstanceNorm1d/2d/3d`` call in training."""
    call = TrainingCall(g, input, running_mean)
    return call.node(
        "BatchInstanceNormTraining",
        call.vector(weight, 1.0),
        call.vector(bias, 0.0),
        call.vector(rho, 1.0),
        call.vector(running_mean, 0.0),
        call.vector(running_var, 1.0),
        call.scalar(momentum),
        state=(running_mean, running_var),
        epsilon=eps,
    )


def _sample(
    label: str,
    shape: tuple[int, ...],
    *,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-5,
    momentum: float = 0.125,
    rho: float | None = None,
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[1]
    levels = rng.standard_normal((*shape[:2], *[1] * (len(shape) - 2)))  # instances differ in mean
    share = rng.uniform(0.0, 1.0, channels)
    if channels > 2:
        share[:2] = 0.0, 1.0  # where clipping leaves many of them
    inputs = (
        (rng.standard_normal(shape) + levels) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        share if rho is None else np.full(channels, rho),
        rng.standard_normal(channels) * 0.1 + offset,
        rng.uniform(0.5, 2.0, channels),
        np.array([momentum]),
    )
    return Sample(label, inputs, {"epsilon": epsilon})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, each branch alone, rho above 1, momentum 0 and 1, offset and constant data, empty tensors."""
    yield _sample("image", (3, 8, 5, 7))
    yield _sample("sequence", (3, 5, 13))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("batch-1", (1, 4, 6, 6))
    yield _sample("one-channel", (4, 1, 9))
    yield _sample("two-positions", (3, 4, 1, 2))
    yield _sample("batch-only", (2, 4, 6, 6), rho=1.0)
    yield _sample("instance-only", (2, 4, 6, 6), rho=0.0)
    yield _sample("rho-above-one", (2, 4, 6, 6), rho=1.25)
    yield _sample("offset", (2, 8, 16, 16), offset=1e4)
    yield _sample("constant", (2, 4, 3, 3), offset=3.0, spread=0.0)
    yield _sample("zeros-without-epsilon", (2, 4, 3, 3), spread=0.0, epsilon=0.0)
    yield _sample("momentum-0", (4, 6, 5), momentum=0.0)
    yield _sample("momentum-1", (4, 6, 5), momentum=1.0)
    yield _sample("empty-batch", (0, 4, 3, 3))
    yield _sample("empty-space", (2, 4, 0, 3))


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c, m = np.zeros((2, 6, 4)), np.ones(6), np.ones(1)
    good, rest, few = {"epsilon": 1e-5}, (c, c, c, c, c, m), "more than 1 spatial element"
    return (
        ErrorSample("scale-length", (x, np.ones(5), *rest[1:]), good, r"scale.*5.*6"),
        ErrorSample("rho-length", (x, c, c, np.ones(1), c, c, m), good, r"rho.*1.*6"),
        ErrorSample("momentum-length", (x, c, c, c, c, c, np.ones(2)), good, r"momentum.*2.*1"),
        ErrorSample("rank-1", (np.zeros(6), *rest), good, r"X.*rank"),
        ErrorSample("rank-2", (np.zeros((3, 6)), *rest), good, rf"3, 6.*{few}"),
        ErrorSample("one-position", (np.zeros((3, 6, 1)), *rest), good, rf"3, 6, 1.*{few}"),
        ErrorSample("epsilon", (x, *rest), {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
    )


SPEC = NormSpec(
    name="BatchInstanceNormTraining",
    summary="a mix, by rho of each channel, of batch and instance normalization, and moves the running statistics",
    citation="Nam and Kim, Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks, 2018 "
    "(arXiv:1805.07925)",
    inputs=INPUTS,
    attributes=(EPSILON,),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::batch_instance_norm_training", from_torch),),
    samples=samples,
    error_samples=error_samples,
    outputs=(Y, NEXT_MEAN, NEXT_VAR),
    native=False,
    eval_form=eval_form,
)
