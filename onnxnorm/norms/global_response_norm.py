"""Global response normalization (Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808).

The norm of each channel over all positions, relative to the mean of these norms over the channels, weighs the channel:

    y[n,c,s] = act(z[n,c,s] + scale[c] * z[n,c,s] * r[n,c] + bias[c]),   z = input_act(x)
    r[n,c] = g[n,c] / (mean over c of g[n,c] + epsilon),   g[n,c] = sqrt(sum over s of z[n,c,s]^2)

``input_activation`` is for the GELU that ConvNeXt V2 has in front of it.
"""

from __future__ import annotations

import dataclasses
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

INPUTS = (InputSpec("X", "(N, C, *) or (N, *, C)"), InputSpec("scale", "C"), InputSpec("bias", "C"))
INPUT_ACTIVATION = dataclasses.replace(
    ACTIVATION, name="input_activation", doc="applied to X first: none, relu, silu or gelu, as in activation"
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), scale and bias (C,) -> Y of X's shape."""
    x = inputs[0]
    scale, bias = (value[None, :, None] for value in inputs[1:])
    z = activate(channels_first(x, attributes), attributes["input_activation"])
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.square(z).sum(axis=2, keepdims=True))
        response = norms / (mean_of(norms, axis=1) + attributes["epsilon"])
        y = z + scale * z * response + bias
    return (restore_layout(activate(y, attributes["activation"]), x, attributes),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Over (N, S1, C, S2), where S1 is 1 for channels-first and S2 is 1 for channels-last."""
    x = inputs[0]
    layout = channel_layout(b, x, inputs[1])
    scale, bias = (b.reshape(b.widen(value), layout.per_channel) for value in inputs[1:])
    z = b.activation(b.reshape(b.widen(x), layout.split), "input_activation")
    count = b.op("Cast", layout.positions, to=b.compute)
    norms = b.op("Sqrt", b.op("Mul", b.mean_square(z, axes=(3, 1)), count))
    response = b.op("Div", norms, b.op("Add", b.mean(norms, axes=(2,)), b.float_attribute("epsilon")))
    y = b.op("Add", b.op("Add", z, b.op("Mul", b.op("Mul", scale, z), response)), bias)
    return [b.narrow(b.reshape(b.activation(y), layout.shape), like=x)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more, scale and bias of length C."""
    check_channels(INPUTS, shapes, attributes)


def from_torch(
    g: Translator, input: Any, weight: Any, bias: Any, eps: float = 1e-6, channels_last: bool = False
) -> Any:
    """``onnxnorm::global_response_norm``, the operator that ``onnxnorm.nn.GlobalResponseNorm`` calls."""
    return g.norm(
        "GlobalResponseNorm",
        input,
        g.channel_parameter(weight, input, 0.0),
        g.channel_parameter(bias, input, 0.0),
        epsilon=eps,
        input_activation="none",
        activation="none",
        channels_last=int(channels_last),
    )


def _sample(
    label: str,
    shape: tuple[int, ...],
    *,
    input_activation: str = "none",
    activation: str = "none",
    last: int = 0,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-6,
) -> Sample:
    rng = np.random.default_rng(abs(hash(shape)) % 2**32)
    channels = shape[-1 if last else 1]
    inputs = (
        rng.standard_normal(shape) * spread + offset,
        rng.uniform(-1.5, 1.5, channels),
        rng.standard_normal(channels),
    )
    attributes = {
        "epsilon": epsilon,
        "input_activation": input_activation,
        "activation": activation,
        "channels_last": last,
    }
    return Sample(label, inputs, attributes)


def samples() -> Iterator[Sample]:
    """1d, 2d, 3d, activations on either side, layouts, offset, small and no data, empty tensors."""
    yield _sample("image", (2, 8, 5, 7))
    for activation in ACTIVATIONS[1:]:
        yield _sample(activation, (3, 5, 13), activation=activation)
        yield _sample(f"after-{activation}", (2, 6, 5, 3), input_activation=activation)
        yield _sample(f"after-{activation}-channels-last", (2, 3, 5, 12), input_activation=activation, last=1)
    yield _sample("between-gelu-and-relu", (2, 6, 7), input_activation="gelu", activation="relu")
    yield _sample("rank-2", (6, 10))
    yield _sample("volume", (2, 3, 4, 3, 5))
    yield _sample("channels-last", (2, 5, 7, 6), last=1)
    yield _sample("channels-last-rank-2", (4, 9), last=1)
    yield _sample("large", (1, 3, 141, 139), input_activation="gelu")
    yield _sample("many-channels", (2, 600, 3, 3))
    yield _sample("offset", (2, 8, 16, 16), offset=1e4)
    yield _sample("small", (2, 4, 6, 6), spread=1e-3)
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
    good = {"epsilon": 1e-6, "input_activation": "gelu", "activation": "none", "channels_last": 0}
    return (
        ErrorSample("scale-length", (x, np.ones(5), c), good, r"scale.*5.*6"),
        ErrorSample("bias-rank", (x, c, np.ones((1, 6))), good, r"bias.*1.*6"),
        ErrorSample("rank-1", (np.zeros(6), c, c), good, r"X.*rank"),
        ErrorSample("activation", (x, c, c), good | {"activation": "tanh"}, r"attribute activation.*tanh.*none.*relu"),
        ErrorSample(
            "input-activation", (x, c, c), good | {"input_activation": "mish"}, r"input_activation.*mish.*none.*relu"
        ),
        ErrorSample("epsilon", (x, c, c), good | {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
        ErrorSample("layout", (x, c, c), good | {"channels_last": 2}, r"channels_last.*2.*0.*1"),
    )


SPEC = NormSpec(
    name="GlobalResponseNorm",
    summary="adds to x (after an activation) x times the norm of its channel, relative to the mean norm of all "
    "channels, times scale, then bias and activation",
    citation="Woo et al., ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders, 2023 "
    "(arXiv:2301.00808)",
    inputs=INPUTS,
    attributes=(
        dataclasses.replace(EPSILON, doc="added to the mean of the channels' norms"),
        INPUT_ACTIVATION,
        ACTIVATION,
        CHANNELS_LAST,
    ),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::global_response_norm", from_torch),),
    samples=samples,
    error_samples=error_samples,
)
