"""Instance normalization with tracked statistics in training graphs (Ulyanov et al. 2016, arXiv:1607.08022;
``torch.nn.InstanceNorm1d/2d/3d(track_running_stats=True)``).

Each instance, one channel of one item of X (N, C, *), is brought to mean 0 and variance 1 over its S positions, then
scaled and shifted; the running statistics, which serve in eval, move towards the mean of the instances' own by
``momentum`` (PyTorch's sense):

    y = (x - mean[n,c]) / sqrt(var[n,c] + epsilon) * scale[c] + bias[c]
    next_running_mean = running_mean + momentum * (mean over n of mean[n,c] - running_mean)
    next_running_var  = running_var  + momentum * (mean over n of var[n,c] * S / (S - 1) - running_var)

with the biased variance in y and the unbiased one in the running variance. As in PyTorch's kernel an instance whose
values are all the same gives bias[c] where epsilon is 0. With no values at all the state stays as it is (PyTorch makes
it NaN for N = 0, which no later batch heals).
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
    bessel,
    body_batch_norm,
    body_instance_moments,
    body_moved_over,
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
    NormSpec,
    PartialShape,
    Sample,
    check_channels,
    mean_of,
)
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (X, SCALE, BIAS, RUNNING_MEAN, RUNNING_VAR, MOMENTUM)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), five vectors of C, momentum (1,) -> Y, next running mean and variance."""
    x, scale, bias, running_mean, running_var, momentum = inputs
    flat = flattened(x)
    positions = np.float64(flat.shape[2])
    centred, mean, var = instance_moments(flat)
    with np.errstate(all="ignore"):
        deviation = np.sqrt(var + attributes["epsilon"])
        y = centred / np.where(deviation == 0, 1.0, deviation) * scale[:, None] + bias[:, None]
        unbiased = mean_of(var * (positions / (positions - 1.0)), axis=(0, 2)).reshape(-1)
    return (
        y.reshape(x.shape),
        moved(running_mean, mean_of(mean, axis=(0, 2)).reshape(-1), momentum, flat),
        moved(running_var, unbiased, momentum, flat),
    )


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice over (N, C, S); sums run in float64."""
    x, scale, bias, running_mean, running_var, momentum = inputs
    moments = body_instance_moments(b, x, scale)
    deviation = b.op("Sqrt", b.op("Add", moments.var, b.float_attribute("epsilon")))
    deviation = b.op("Where", b.op("Equal", deviation, b.scalar(0.0)), b.scalar(1.0), deviation)
    y = b.op("Mul", b.op("Div", moments.centred, deviation), per_channel(b, scale))
    y = b.op("Add", y, per_channel(b, bias))
    mean = b.op("Add", *(b.long_mean(part, axes=(0,)) for part in (moments.rough, moments.rest)))
    var = b.op("Mul", b.long_mean(moments.var, axes=(0,)), bessel(b, moments.positions))
    return [
        b.narrow(b.reshape(y, moments.shape), like=x),
        body_moved_over(b, running_mean, mean, momentum, moments.count),
        body_moved_over(b, running_var, var, momentum, moments.count),
    ]


def eval_form(b: BodyBuilder, inputs: Sequence[BodyValue]) -> BodyValue:
    """BatchNormalization by the running statistics."""
    assert b.attributes is not None
    return body_batch_norm(b, inputs[:5], b.attributes["epsilon"])


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 3 or more with more than one position, vectors of length C, momentum of length 1."""
    check_channels(INPUTS, shapes, attributes)
    check_positions(shapes[0])


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
    """``onnxnorm::instance_norm_training``, for ``F.instance_norm(use_input_stats=True)`` with running statistics."""
    call = TrainingCall(g, input, running_mean)
    return call.node(
        "InstanceNormTraining",
        call.vector(weight, 1.0),
        call.vector(bias, 0.0),
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
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[1]
    levels = rng.standard_normal((*shape[:2], *[1] * (len(shape) - 2)))  # instances differ in mean
    inputs = (
        (rng.standard_normal(shape) + levels) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        rng.standard_normal(channels) * 0.1 + offset,
        rng.uniform(0.5, 2.0, channels),
        np.array([momentum]),
    )
    return Sample(label, inputs, {"epsilon": epsilon})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, momentum 0 and 1, offset and constant data, two positions, empty tensors."""
    yield _sample("image", (3, 8, 5, 7))
    yield _sample("sequence", (3, 5, 13))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("batch-1", (1, 4, 6, 6))
    yield _sample("one-channel", (4, 1, 9))
    yield _sample("two-positions", (3, 4, 1, 2))
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
    good, few = {"epsilon": 1e-5}, "more than 1 spatial element"
    return (
        ErrorSample("scale-length", (x, np.ones(5), c, c, c, m), good, r"scale.*5.*6"),
        ErrorSample("running-mean-rank", (x, c, c, np.ones((1, 6)), c, m), good, r"running_mean.*1, 6.*6"),
        ErrorSample("momentum-length", (x, c, c, c, c, np.ones(2)), good, r"momentum.*2.*1"),
        ErrorSample("rank-1", (np.zeros(6), c, c, c, c, m), good, r"X.*rank"),
        ErrorSample("rank-2", (np.zeros((3, 6)), c, c, c, c, m), good, rf"3, 6.*{few}"),
        ErrorSample(
            "one-position", (np.zeros((3, 6, 1)), c, c, c, c, m), good, r"3, 6, 1.*more than 1 spatial element"
        ),
        ErrorSample("epsilon", (x, c, c, c, c, m), {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
    )


SPEC = NormSpec(
    name="InstanceNormTraining",
    summary="normalizes each instance by its own statistics, and moves the running statistics towards their mean",
    citation="Ulyanov et al., Instance Normalization: The Missing Ingredient for Fast Stylization, 2016 "
    "(arXiv:1607.08022)",
    inputs=INPUTS,
    attributes=(EPSILON,),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::instance_norm_training", from_torch),),
    samples=samples,
    error_samples=error_samples,
    outputs=(Y, NEXT_MEAN, NEXT_VAR),
    native=False,
    eval_form=eval_form,
)
