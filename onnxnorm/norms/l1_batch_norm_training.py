"""L1 batch normalization in training graphs (Hoffer et al. 2018, arXiv:1803.01814, section 4).

Batch normalization with the mean absolute deviation in place of the standard deviation; the factor sqrt(pi / 2) makes
the two equal for Gaussian data:

    y = (x - mean[c]) / (sigma[c] + epsilon) * scale[c] + bias[c],   sigma = sqrt(pi / 2) * mean of |x - mean[c]|
    next_running_mean  = running_mean  + momentum * (mean - running_mean)               (momentum in PyTorch's sense)
    next_running_scale = running_scale + momentum * (sigma - running_scale)

The paper's formula has no epsilon; the authors' code adds it to sigma, as here. The running scale is sigma without
epsilon (the authors' code averages 1 / (sigma + epsilon), which one constant batch spoils). In eval:
y = (x - running_mean) / (running_scale + epsilon) * scale + bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.spec.batch import (
    BIAS,
    MOMENTUM,
    NEXT_MEAN,
    RUNNING_MEAN,
    SCALE,
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
from onnxnorm.spec.record import EPSILON as UNDER_THE_ROOT
from onnxnorm.spec.record import (
    Attributes,
    AttributeSpec,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    OutputSpec,
    PartialShape,
    Sample,
    mean_of,
)
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

#: Standard deviation over mean absolute deviation of Gaussian data.
GAUSSIAN_FACTOR = math.sqrt(math.pi / 2.0)

INPUTS = (X, SCALE, BIAS, RUNNING_MEAN, InputSpec("running_scale", "C"), MOMENTUM)
EPSILON = AttributeSpec(
    "epsilon",
    "float",
    "added to the deviation; in float64 it is read as the nearest decimal of 7 digits",
    check=UNDER_THE_ROOT.check,
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), five vectors of C, momentum (1,) -> Y, next running mean and scale."""
    x, scale, bias, running_mean, running_scale, momentum = inputs
    flat = flattened(x)
    centred, mean, _ = batch_moments(flat)
    sigma = GAUSSIAN_FACTOR * mean_of(np.abs(centred), axis=(0, 2)).reshape(-1)
    with np.errstate(all="ignore"):
        y = centred / (sigma + attributes["epsilon"])[:, None] * scale[:, None] + bias[:, None]
    return (
        y.reshape(x.shape),
        moved(running_mean, mean, momentum, flat),
        moved(running_scale, sigma, momentum, flat),
    )


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice over (N, C, S); sums run in float64."""
    x, scale, bias, running_mean, running_scale, momentum = inputs
    batch = body_centred(b, x, scale)
    spread = b.long_mean(b.op("Abs", batch.centred), axes=(2, 0))
    sigma = b.op("Mul", spread, b.scalar(GAUSSIAN_FACTOR))
    y = b.op("Div", batch.centred, b.op("Add", sigma, b.float_attribute("epsilon")))
    y = b.op("Add", b.op("Mul", y, per_channel(b, scale)), per_channel(b, bias))
    mean = b.op("Add", batch.rough, batch.rest)
    return [
        b.narrow(b.reshape(y, batch.shape), like=x),
        body_moved_over(b, running_mean, mean, momentum, batch.count),
        body_moved_over(b, running_scale, sigma, momentum, batch.count),
    ]


def eval_form(b: BodyBuilder, inputs: Sequence[BodyValue]) -> BodyValue:
    """BatchNormalization with the running scale and epsilon taken into the scale."""
    x, scale, bias, running_mean, running_scale = inputs[:5]
    deviation = b.op("Add", b.widen(running_scale), b.float_attribute("epsilon"))
    return body_affine_eval(b, x, scale, bias, running_mean, deviation)


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more with more than one value per channel, vectors of length C, momentum of length 1."""
    check_batch(INPUTS, shapes, attributes)


def from_torch(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_scale: Any,
    momentum: Any,
    eps: float = 1e-5,
) -> Any:
    """``onnxnorm::l1_batch_norm_training``, the operator that ``onnxnorm.nn.L1BatchNorm1d/2d/3d`` call in training."""
    call = TrainingCall(g, input, running_mean)
    return call.node(
        "L1BatchNormTraining",
        call.vector(weight, 1.0),
        call.vector(bias, 0.0),
        call.vector(running_mean, 0.0),
        call.vector(running_scale, 1.0),
        call.scalar(momentum),
        state=(running_mean, running_scale),
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
    yield _sample("large-epsilon", (3, 4, 7), epsilon=0.5)
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
        ErrorSample("running-scale-length", (x, c, c, c, np.ones(7), m), good, r"running_scale.*7.*6"),
        ErrorSample("momentum-length", (x, c, c, c, c, np.ones(2)), good, r"momentum.*2.*1"),
        ErrorSample("rank-1", (np.zeros(6), c, c, c, c, m), good, r"X.*rank"),
        ErrorSample("one-value", (np.zeros((1, 6, 1)), c, c, c, c, m), good, r"1, 6, 1.*more than 1 value per channel"),
        ErrorSample("epsilon", (x, c, c, c, c, m), {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
    )


SPEC = NormSpec(
    name="L1BatchNormTraining",
    summary="normalizes each channel by its mean and mean absolute deviation over the batch; the running ones move",
    citation="Hoffer et al., Norm matters: efficient and accurate normalization schemes in deep networks, 2018 "
    "(arXiv:1803.01814)",
    inputs=INPUTS,
    attributes=(EPSILON,),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::l1_batch_norm_training", from_torch),),
    samples=samples,
    error_samples=error_samples,
    outputs=(Y, NEXT_MEAN, OutputSpec("next_running_scale", "C")),
    native=False,
    eval_form=eval_form,
)
