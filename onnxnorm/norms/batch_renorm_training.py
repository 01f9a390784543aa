"""Batch renormalization in training graphs (Ioffe 2017, arXiv:1702.03275, algorithm 1).

Batch normalization, corrected by r and d towards what the running statistics would give, so that training and
inference see the same map; gradients do not run through r and d:

    y = ((x - mean[c]) / sigma[c] * r[c] + d[c]) * scale[c] + bias[c],    sigma = sqrt(biased variance + epsilon)
    r = clip(sigma / running_std, 1 / r_max, r_max)
    d = clip((mean - running_mean) / running_std, -d_max, d_max)
    next_running_mean = running_mean + momentum * (mean - running_mean)
    next_running_std  = running_std  + momentum * (sigma - running_std)

As in the paper the state is the moving average of sigma itself, epsilon included, and not of a variance; r and d use
the state from before the update. r_max and d_max are inputs, since training loosens them step by step; with 1 and 0
this is batch normalization. In eval: y = (x - running_mean) / running_std * scale + bias.
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
    SCALE,
    TrainingCall,
    X,
    Y,
    batch_moments,
    body_affine_eval,
    body_moments,
    body_moved,
    check_batch,
    flattened,
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
    OutputSpec,
    PartialShape,
    Sample,
)
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (
    X,
    SCALE,
    BIAS,
    RUNNING_MEAN,
    InputSpec("running_std", "C"),
    MOMENTUM,
    InputSpec("r_max", "1"),
    InputSpec("d_max", "1"),
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), four vectors of C, three of 1 -> Y, next running mean and standard deviation."""
    x, scale, bias, running_mean, running_std, momentum, r_max, d_max = inputs
    flat = flattened(x)
    centred, mean, var = batch_moments(flat)
    with np.errstate(all="ignore"):
        sigma = np.sqrt(var + attributes["epsilon"])
        r = np.minimum(np.maximum(sigma / running_std, 1.0 / r_max), r_max)
        d = np.minimum(np.maximum((mean - running_mean) / running_std, -d_max), d_max)
        y = (centred / sigma[:, None] * r[:, None] + d[:, None]) * scale[:, None] + bias[:, None]
    return (
        y.reshape(x.shape),
        moved(running_mean, mean, momentum, flat),
        moved(running_std, sigma, momentum, flat),
    )


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice over (N, C, S); sums run in float64, and the mean meets the running mean before its remainder."""
    x, scale, bias, running_mean, running_std, momentum, r_max, d_max = inputs
    moments = body_moments(b, x, scale)
    sigma = b.op("Sqrt", b.op("Add", moments.var, b.float_attribute("epsilon")))
    deviation = per_channel(b, running_std)
    r_max, d_max = b.widen(r_max), b.widen(d_max)
    r = b.op("Max", b.op("Div", sigma, deviation), b.op("Div", b.scalar(1.0), r_max))
    r = b.op("Min", r, r_max)
    gap = b.op("Add", b.op("Sub", moments.rough, per_channel(b, running_mean)), moments.rest)
    d = b.op("Min", b.op("Max", b.op("Div", gap, deviation), b.op("Neg", d_max)), d_max)
    y = b.op("Add", b.op("Mul", b.op("Div", moments.centred, sigma), r), d)
    y = b.op("Add", b.op("Mul", y, per_channel(b, scale)), per_channel(b, bias))
    mean = b.op("Add", moments.rough, moments.rest)
    return [
        b.narrow(b.reshape(y, moments.shape), like=x),
        body_moved(b, running_mean, mean, momentum, moments),
        body_moved(b, running_std, sigma, momentum, moments),
    ]


def eval_form(b: BodyBuilder, inputs: Sequence[BodyValue]) -> BodyValue:
    """BatchNormalization with the running standard deviation taken into the scale."""
    x, scale, bias, running_mean, running_std = inputs[:5]
    return body_affine_eval(b, x, scale, bias, running_mean, b.widen(running_std))


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more with more than one value per channel, vectors of length C, single numbers."""
    check_batch(INPUTS, shapes, attributes)


def from_torch(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_std: Any,
    momentum: Any,
    r_max: Any,
    d_max: Any,
    eps: float = 1e-5,
) -> Any:
    """``onnxnorm::batch_renorm_training``, the operator that ``onnxnorm.nn.BatchRenorm1d/2d/3d`` call in training."""
    call = TrainingCall(g, input, running_mean)
    return call.node(
        "BatchRenormTraining",
        call.vector(weight, 1.0),
        call.vector(bias, 0.0),
        call.vector(running_mean, 0.0),
        call.vector(running_std, 1.0),
        *(call.scalar(value) for value in (momentum, r_max, d_max)),
        state=(running_mean, running_std),
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
    limits: tuple[float, float] = (3.0, 5.0),
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
        *(np.array([limit]) for limit in limits),
    )
    return Sample(label, inputs, {"epsilon": epsilon})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, limits that clip and that do not, momentum 0 and 1, offset and constant data, empty tensors."""
    yield _sample("image", (3, 8, 5, 7))
    yield _sample("rank-2", (6, 10))
    yield _sample("sequence", (3, 5, 13))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("batch-1", (1, 4, 6, 6))
    yield _sample("one-channel", (4, 1, 9))
    yield _sample("one-position", (4, 3, 1, 1))
    yield _sample("two-values", (2, 4))
    yield _sample("batch-norm-limits", (3, 8, 5, 7), limits=(1.0, 0.0))
    yield _sample("tight-limits", (3, 8, 5, 7), limits=(1.125, 0.0625))
    yield _sample("r-above-its-limit", (3, 8, 5, 7), spread=20.0)
    yield _sample("r-below-its-limit", (3, 8, 5, 7), spread=0.05)
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
    one = np.zeros((1, 6, 1))
    return (
        ErrorSample("scale-length", (x, np.ones(5), c, c, c, m, m, m), good, r"scale.*5.*6"),
        ErrorSample("running-std-length", (x, c, c, c, np.ones(7), m, m, m), good, r"running_std.*7.*6"),
        ErrorSample("momentum-length", (x, c, c, c, c, np.ones(2), m, m), good, r"momentum.*2.*1"),
        ErrorSample("r-max-length", (x, c, c, c, c, m, c, m), good, r"r_max.*6.*1"),
        ErrorSample("d-max-length", (x, c, c, c, c, m, m, c), good, r"d_max.*6.*1"),
        ErrorSample("rank-1", (np.zeros(6), c, c, c, c, m, m, m), good, r"X.*rank"),
        ErrorSample("one-value", (one, c, c, c, c, m, m, m), good, r"1, 6, 1.*more than 1 value per channel"),
        ErrorSample("epsilon", (x, c, c, c, c, m, m, m), {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
    )


SPEC = NormSpec(
    name="BatchRenormTraining",
    summary="normalizes each channel by its statistics over the batch, corrected towards the running ones, which move",
    citation="Ioffe, Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models, 2017 "
    "(arXiv:1702.03275)",
    inputs=INPUTS,
    attributes=(EPSILON,),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::batch_renorm_training", from_torch),),
    samples=samples,
    error_samples=error_samples,
    outputs=(Y, NEXT_MEAN, OutputSpec("next_running_std", "C")),
    native=False,
    eval_form=eval_form,
)
