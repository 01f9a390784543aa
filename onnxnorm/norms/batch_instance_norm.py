"""Batch-instance normalization in evaluation form (Nam and Kim 2018, arXiv:1805.07925; the authors' BatchInstanceNorm).

    y = act((rho[c] * x_batch + (1 - rho[c]) * x_instance) * scale[c] + bias[c])

    x_batch    = (x - running_mean[c]) / sqrt(running_var[c] + epsilon)
    x_instance = (x - mean[n,c]) / sqrt(var[n,c] + epsilon),   mean and biased variance of x over the S positions

The paper keeps rho within [0, 1]; that is the caller's part (``onnxnorm.nn`` clips it, and the clipped rho is a
constant of the exported model). The op takes rho as it is: outside of [0, 1] the same formula holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.spec.layout import channel_layout
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
    InputSpec("rho", "C"),
    InputSpec("running_mean", "C"),
    InputSpec("running_var", "C"),
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), scale, bias, rho and running statistics (C,) -> Y of X's shape."""
    x = inputs[0]
    scale, bias, rho, running_mean, running_var = (value[None, :, None] for value in inputs[1:])
    flat = channels_first(x, attributes)
    with np.errstate(all="ignore"):
        centred = flat - mean_of(flat, axis=2)
        centred = centred - mean_of(centred, axis=2)  # what rounding of a large mean left
        x_instance = centred / np.sqrt(mean_of(np.square(centred), axis=2) + attributes["epsilon"])
        x_batch = (flat - running_mean) / np.sqrt(running_var + attributes["epsilon"])
        y = (rho * x_batch + (1.0 - rho) * x_instance) * scale + bias
    return (restore_layout(activate(y, attributes["activation"]), x, attributes),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice over (N, S1, C, S2), where S1 is 1 for channels-first and S2 is 1 for channels-last."""
    x = inputs[0]
    layout = channel_layout(b, x, inputs[1])
    scale, bias, rho, running_mean, running_var = (
        b.reshape(b.widen(value), layout.per_channel) for value in inputs[1:]
    )
    epsilon = b.float_attribute("epsilon")

    spread = b.reshape(b.widen(x), layout.split)
    centred = b.centre(spread, axes=(3, 1))
    variance = b.exact_mean(b.op("Mul", centred, centred), axes=(3, 1))
    x_instance = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, epsilon)))
    x_batch = b.op("Div", b.op("Sub", spread, running_mean), b.op("Sqrt", b.op("Add", running_var, epsilon)))
    rest = b.op("Sub", b.scalar(1.0), rho)
    y = b.op("Add", b.op("Mul", rho, x_batch), b.op("Mul", rest, x_instance))
    y = b.op("Add", b.op("Mul", y, scale), bias)
    return [b.narrow(b.reshape(b.activation(y), layout.shape), like=x)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more, all other inputs of length C."""
    check_channels(INPUTS, shapes, attributes)


def from_torch(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    rho: Any,
    running_mean: Any,
    running_var: Any,
    eps: float = 1e-5,
) -> Any:
    """``onnxnorm::batch_instance_norm``, the operator that ``onnxnorm.nn.BatchInstanceNorm1d/2d/3d`` call in eval."""
    scale = g.channel_parameter(weight, input, 1.0)
    rest = [g.channel_parameter(value, input, 0.0) for value in (bias, rho, running_mean, running_var)]
    return g.norm("BatchInstanceNorm", input, scale, *rest, epsilon=eps, activation="none", channels_last=0)


def _sample(
    label: str,
    shape: tuple[int, ...],
    *,
    activation: str = "none",
    last: int = 0,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-5,
    rho: float | None = None,
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[-1 if last else 1]
    gate = rng.uniform(0.0, 1.0, channels)
    if channels > 1:
        gate[:2] = 0.0, 1.0  # where clipping leaves many of them
    inputs = (
        rng.standard_normal(shape) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        gate if rho is None else np.full(channels, rho),
        rng.standard_normal(channels) * 0.1 + offset,
        rng.uniform(0.5, 2.0, channels),
    )
    return Sample(label, inputs, {"epsilon": epsilon, "activation": activation, "channels_last": last})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, each branch alone, rho outside of [0, 1], activations, layouts, offset data, empty tensors."""
    yield _sample("image", (2, 8, 5, 7))
    for activation in ACTIVATIONS[1:]:
        yield _sample(activation, (3, 5, 13), activation=activation)
        yield _sample(f"{activation}-channels-last", (2, 3, 5, 12), activation=activation, last=1)
    yield _sample("rank-2", (6, 10))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("channels-last", (2, 5, 7, 6), last=1)
    yield _sample("channels-last-rank-2", (4, 9), last=1)
    yield _sample("batch-only", (2, 4, 6, 6), rho=1.0)
    yield _sample("instance-only", (2, 4, 6, 6), rho=0.0)
    yield _sample("rho-above-one", (2, 4, 6, 6), rho=1.25)
    yield _sample("rho-below-zero", (2, 4, 6, 6), rho=-0.5)
    yield _sample("large", (1, 3, 141, 139), activation="silu")
    yield _sample("offset", (2, 8, 16, 16), offset=1e4)
    yield _sample("offset-channels-last", (2, 16, 16, 8), offset=1e4, last=1)
    yield _sample("constant", (2, 4, 3, 3), offset=3.0, spread=0.0)
    yield _sample("zeros", (2, 4, 3, 3), spread=0.0)
    yield _sample("no-epsilon", (2, 4, 5, 5), epsilon=0.0)
    yield _sample("no-epsilon-no-variance", (2, 4, 3, 3), epsilon=0.0, spread=0.0)
    yield _sample("large-epsilon", (2, 4, 5), epsilon=0.5)
    yield _sample("one-channel", (2, 1, 9))
    yield _sample("one-position", (2, 4, 1, 1))
    yield _sample("empty-batch", (0, 4, 3, 3))
    yield _sample("empty-space", (2, 4, 0, 3))


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c = np.zeros((2, 6, 4)), np.ones(6)
    good = {"epsilon": 1e-5, "activation": "none", "channels_last": 0}
    return (
        ErrorSample("scale-length", (x, np.ones(5), c, c, c, c), good, r"scale.*5.*6"),
        ErrorSample("bias-rank", (x, c, np.ones((1, 6)), c, c, c), good, r"bias.*1.*6"),
        ErrorSample("rho-length", (x, c, c, np.ones(1), c, c), good, r"rho.*1.*6"),
        ErrorSample("running-mean-length", (x, c, c, c, np.ones(5), c), good, r"running_mean.*5.*6"),
        ErrorSample("running-var-length", (x, c, c, c, c, np.ones(7)), good, r"running_var.*7.*6"),
        ErrorSample("rank-1", (np.zeros(6), c, c, c, c, c), good, r"X.*rank"),
        ErrorSample("activation", (x, c, c, c, c, c), good | {"activation": "swish"}, r"activation.*swish.*none"),
        ErrorSample("epsilon", (x, c, c, c, c, c), good | {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
        ErrorSample("layout", (x, c, c, c, c, c), good | {"channels_last": 2}, r"channels_last.*2.*0.*1"),
    )


SPEC = NormSpec(
    name="BatchInstanceNorm",
    summary="a mix, by rho of each channel, of batch (running) and instance normalization, then scale, bias and "
    "activation",
    citation="Nam and Kim, Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks, 2018 "
    "(arXiv:1805.07925)",
    inputs=INPUTS,
    attributes=(EPSILON, ACTIVATION, CHANNELS_LAST),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::batch_instance_norm", from_torch),),
    samples=samples,
    error_samples=error_samples,
)

SKIP_SPEC = skip_form(SPEC)
