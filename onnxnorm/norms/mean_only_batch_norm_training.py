"""Mean-only batch normalization in training graphs (Salimans and Kingma 2016, arXiv:1602.07868, section 3).

The companion of weight normalization, which keeps the scale of activations by itself: the batch's mean of each channel
of X (N, C, *) is taken off and a bias added, nothing is divided:

    y = x - mean[c] + bias[c]
    next_running_mean = running_mean + momentum * (mean - running_mean)                 (momentum in PyTorch's sense)

In eval: y = x - running_mean + bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.spec.batch import (
    BIAS,
    MOMENTUM,
    NEXT_MEAN,
    RUNNING_MEAN,
    TrainingCall,
    X,
    Y,
    batch_moments,
    body_affine_eval,
    body_centred,
    body_moved_over,
    check_batch,
    flattened,
    moved,
    per_channel,
)
from onnxnorm.spec.record import Attributes, ErrorSample, FloatArray, NormSpec, PartialShape, Sample
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (X, BIAS, RUNNING_MEAN, MOMENTUM)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), bias and running mean (C,), momentum (1,) -> Y, next running mean."""
    x, bias, running_mean, momentum = inputs
    flat = flattened(x)
    centred, mean, _ = batch_moments(flat)
    y = centred + bias[:, None]
    return y.reshape(x.shape), moved(running_mean, mean, momentum, flat)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice over (N, C, S); sums run in float64."""
    x, bias, running_mean, momentum = inputs
    batch = body_centred(b, x, bias)
    y = b.op("Add", batch.centred, per_channel(b, bias))
    mean = b.op("Add", batch.rough, batch.rest)
    return [
        b.narrow(b.reshape(y, batch.shape), like=x),
        body_moved_over(b, running_mean, mean, momentum, batch.count),
    ]


def eval_form(b: BodyBuilder, inputs: Sequence[BodyValue]) -> BodyValue:
    """BatchNormalization of scale and variance 1."""
    x, bias, running_mean = inputs[:3]
    return body_affine_eval(b, x, None, bias, running_mean, None)


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more with more than one value per channel, vectors of length C, momentum of length 1."""
    check_batch(INPUTS, shapes, attributes)


def from_torch(g: Translator, input: Any, bias: Any, running_mean: Any, momentum: Any) -> Any:
    """``onnxnorm::mean_only_batch_norm_training``, which ``onnxnorm.nn.MeanOnlyBatchNorm1d/2d/3d`` call in training."""
    call = TrainingCall(g, input, running_mean)
    return call.node(
        "MeanOnlyBatchNormTraining",
        call.vector(bias, 0.0),
        call.vector(running_mean, 0.0),
        call.scalar(momentum),
        state=(running_mean,),
    )


def _sample(label: str, shape: tuple[int, ...], *, offset: float = 0.0, momentum: float = 0.125) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[1]
    inputs = (
        rng.standard_normal(shape) + offset,
        rng.standard_normal(channels),
        rng.standard_normal(channels) * 0.1 + offset,
        np.array([momentum]),
    )
    return Sample(label, inputs, {})


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
    constant = _sample("constant", (2, 4, 3, 3))
    yield Sample("constant", (np.full((2, 4, 3, 3), 3.0), *constant.inputs[1:]), {})
    yield _sample("momentum-0", (4, 6), momentum=0.0)
    yield _sample("momentum-1", (4, 6), momentum=1.0)
    yield _sample("empty-batch", (0, 4, 3, 3))
    yield _sample("empty-space", (2, 4, 0, 3))


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c, m = np.zeros((2, 6, 4)), np.ones(6), np.ones(1)
    return (
        ErrorSample("bias-length", (x, np.ones(5), c, m), {}, r"bias.*5.*6"),
        ErrorSample("running-mean-length", (x, c, np.ones(7), m), {}, r"running_mean.*7.*6"),
        ErrorSample("momentum-length", (x, c, c, np.ones(2)), {}, r"momentum.*2.*1"),
        ErrorSample("rank-1", (np.zeros(6), c, c, m), {}, r"X.*rank"),
        ErrorSample("one-value", (np.zeros((1, 6, 1)), c, c, m), {}, r"1, 6, 1.*more than 1 value per channel"),
    )


SPEC = NormSpec(
    name="MeanOnlyBatchNormTraining",
    summary="takes off each channel's mean over the batch and adds a bias, and moves the running mean",
    citation="Salimans and Kingma, Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep "
    "Neural Networks, 2016 (arXiv:1602.07868)",
    inputs=INPUTS,
    attributes=(),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::mean_only_batch_norm_training", from_torch),),
    samples=samples,
    error_samples=error_samples,
    outputs=(Y, NEXT_MEAN),
    native=False,
    eval_form=eval_form,
)
