"""Filter response normalization (Singh and Krishnan 2019, arXiv:1911.09737), with its thresholded linear unit.

Each channel of each item of X (N, C, *) is divided by the root of its mean square over the S positions, then scaled and
shifted per channel; the thresholded linear unit takes the larger of the result and a threshold tau per channel:

    y[n,c,s] = max(act(x[n,c,s] / sqrt(nu2[n,c] + epsilon) * scale[c] + bias[c]), tau[c])
    nu2[n,c] = mean over s of x[n,c,s]^2

No mean is taken off and no other item is looked at. Without the thresholded linear unit tau is -inf. A NaN stays NaN
through the maximum, as in ``torch.maximum``.
"""

from __future__ import annotations

import math
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
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (
    InputSpec("X", "(N, C, *) or (N, *, C)"),
    InputSpec("scale", "C"),
    InputSpec("bias", "C"),
    InputSpec("tau", "C"),
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), scale, bias and tau (C,) -> Y of X's shape."""
    x = inputs[0]
    scale, bias, tau = (value[None, :, None] for value in inputs[1:])
    flat = channels_first(x, attributes)
    with np.errstate(all="ignore"):
        mean_square = mean_of(np.square(flat), axis=2)
        y = flat / np.sqrt(mean_square + attributes["epsilon"]) * scale + bias
        y = np.maximum(activate(y, attributes["activation"]), tau)
    return (restore_layout(y, x, attributes),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Over (N, S1, C, S2), where S1 is 1 for channels-first and S2 is 1 for channels-last."""
    x = inputs[0]
    layout = channel_layout(b, x, inputs[1])
    scale, bias, tau = (b.reshape(b.widen(value), layout.per_channel) for value in inputs[1:])
    spread = b.reshape(b.widen(x), layout.split)
    mean_square = b.mean_square(spread, axes=(3, 1))
    y = b.op("Div", spread, b.op("Sqrt", b.op("Add", mean_square, b.float_attribute("epsilon"))))
    y = b.op("Add", b.op("Mul", y, scale), bias)
    y = b.op("Max", b.activation(y), tau)
    return [b.narrow(b.reshape(y, layout.shape), like=x)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more, all other inputs of length C."""
    check_channels(INPUTS, shapes, attributes)


def from_torch(
    g: Translator, input: Any, weight: Any = None, bias: Any = None, tau: Any = None, eps: float = 1e-6
) -> Any:
    """``onnxnorm::filter_response_norm``, the operator that ``onnxnorm.nn.FilterResponseNorm1d/2d/3d`` call."""
    scale, shift = g.channel_parameter(weight, input, 1.0), g.channel_parameter(bias, input, 0.0)
    threshold = g.channel_parameter(tau, input, -math.inf)
    return g.norm("FilterResponseNorm", input, scale, shift, threshold, epsilon=eps, activation="none", channels_last=0)


def _sample(
    label: str,
    shape: tuple[int, ...],
    *,
    activation: str = "none",
    last: int = 0,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-6,
    tau: float | None = None,
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[-1 if last else 1]
    inputs = (
        rng.standard_normal(shape) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        rng.standard_normal(channels) * 0.5 if tau is None else np.full(channels, tau),
    )
    return Sample(label, inputs, {"epsilon": epsilon, "activation": activation, "channels_last": last})


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, with and without the threshold, activations, layouts, offset, small and no data, empty tensors."""
    yield _sample("image", (2, 8, 5, 7))
    for activation in ACTIVATIONS[1:]:
        yield _sample(activation, (3, 5, 13), activation=activation)
        yield _sample(f"{activation}-channels-last", (2, 3, 5, 12), activation=activation, last=1)
    yield _sample("no-threshold", (2, 4, 6, 6), tau=-math.inf)
    yield _sample("no-threshold-gelu", (2, 4, 6, 6), tau=-math.inf, activation="gelu")
    yield _sample("threshold-zero", (2, 4, 6, 6), tau=0.0)
    yield _sample("rank-2", (6, 10))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("channels-last", (2, 5, 7, 6), last=1)
    yield _sample("channels-last-rank-2", (4, 9), last=1)
    yield _sample("large", (1, 3, 141, 139), activation="silu")
    yield _sample("offset", (2, 8, 16, 16), offset=1e4, epsilon=1e-6)
    yield _sample("small", (2, 4, 6, 6), spread=1e-3, epsilon=1e-8)
    yield _sample("zeros", (2, 4, 3, 3), spread=0.0)
    yield _sample("no-epsilon", (2, 4, 5, 5), epsilon=0.0)
    yield _sample("no-epsilon-zeros", (2, 4, 3, 3), epsilon=0.0, spread=0.0)
    yield _sample("large-epsilon", (2, 4, 5), epsilon=0.5)
    yield _sample("one-channel", (2, 1, 9))
    yield _sample("one-position", (2, 4, 1, 1))
    yield _sample("empty-batch", (0, 4, 3, 3))
    yield _sample("empty-space", (2, 4, 0, 3))


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, c = np.zeros((2, 6, 4)), np.ones(6)
    good = {"epsilon": 1e-6, "activation": "none", "channels_last": 0}
    return (
        ErrorSample("scale-length", (x, np.ones(5), c, c), good, r"scale.*5.*6"),
        ErrorSample("bias-rank", (x, c, np.ones((1, 6)), c), good, r"bias.*1.*6"),
        ErrorSample("tau-length", (x, c, c, np.ones(1)), good, r"tau.*1.*6"),
        ErrorSample("rank-1", (np.zeros(6), c, c, c), good, r"X.*rank"),
        ErrorSample("activation", (x, c, c, c), good | {"activation": "tlu"}, r"activation.*tlu.*none.*relu"),
        ErrorSample("epsilon", (x, c, c, c), good | {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
        ErrorSample("layout", (x, c, c, c), good | {"channels_last": 2}, r"channels_last.*2.*0.*1"),
    )


SPEC = NormSpec(
    name="FilterResponseNorm",
    summary="divides each channel by the root of its mean square over all positions, then scale, bias, activation and "
    "the larger of the result and tau",
    citation="Singh and Krishnan, Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of "
    "Deep Neural Networks, 2019 (arXiv:1911.09737)",
    inputs=INPUTS,
    attributes=(EPSILON, ACTIVATION, CHANNELS_LAST),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::filter_response_norm", from_torch),),
    samples=samples,
    error_samples=error_samples,
)
