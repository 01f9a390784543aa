"""Group normalization (Wu and He 2018, arXiv:1803.08494; ``torch.nn.GroupNorm``; ONNX GroupNormalization-21).

The channels of X (N, C, *) are cut into G groups; each group of each item is brought to mean 0 and variance 1 over its
channels and positions together, then scaled and shifted per channel:

    y[n,c,s] = act((x[n,c,s] - mean[n,g]) / sqrt(var[n,g] + epsilon) * scale[c] + bias[c]),   g = c // (C / G)

with the biased variance. G = C is instance normalization, G = 1 layer normalization over (C, *).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.spec.layout import group_layout
from onnxnorm.spec.record import (
    ACTIVATION,
    ACTIVATIONS,
    CHANNELS_LAST,
    EPSILON,
    Attributes,
    AttributeSpec,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    NormValueError,
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

INPUTS = (InputSpec("X", "(N, C, *) or (N, *, C)"), InputSpec("scale", "C"), InputSpec("bias", "C"))
GROUPS = AttributeSpec(
    "num_groups",
    "int",
    "number of groups G; divides the channel count",
    check=lambda value: None if value >= 1 else "it must be at least 1",
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X (N, C, *), scale (C,), bias (C,) -> Y of X's shape."""
    x, scale, bias = inputs
    flat = channels_first(x, attributes)
    n, c, s = flat.shape
    groups = attributes["num_groups"]
    with np.errstate(all="ignore"):
        grouped = flat.reshape(n, groups, c // groups * s)
        centred = grouped - mean_of(grouped, axis=2)
        centred = centred - mean_of(centred, axis=2)  # what rounding of a large mean left
        var = mean_of(np.square(centred), axis=2)
        y = (centred / np.sqrt(var + attributes["epsilon"])).reshape(n, c, s)
        y = y * scale[None, :, None] + bias[None, :, None]
    return (restore_layout(activate(y, attributes["activation"]), x, attributes),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice over (N, S1, G, C/G, S2), where S1 is 1 for channels-first and S2 is 1 for channels-last."""
    x, scale, bias = inputs
    layout = group_layout(b, x, scale)
    grouped = b.reshape(b.widen(x), layout.split)
    centred = b.centre(grouped, axes=(4, 3, 1))
    variance = b.exact_mean(b.op("Mul", centred, centred), axes=(4, 3, 1))
    deviation = b.op("Sqrt", b.op("Add", variance, b.float_attribute("epsilon")))
    y = b.op("Div", centred, deviation)
    y = b.op("Mul", y, b.reshape(b.widen(scale), layout.per_channel))
    y = b.op("Add", y, b.reshape(b.widen(bias), layout.per_channel))
    return [b.narrow(b.reshape(b.activation(y), layout.shape), like=x)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """X of rank 2 or more, scale and bias of length C, and num_groups divides C."""
    check_groups(check_channels(INPUTS, shapes, attributes), attributes)


def check_groups(channels: int | None, attributes: Attributes) -> None:
    """NormValueError unless the number of groups divides that of channels."""
    groups = attributes["num_groups"]
    if channels is not None and channels % groups != 0:
        raise NormValueError(f"num_groups is {groups}; it must divide the {channels} channels of X")


def from_torch(
    g: Translator,
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """``aten::group_norm``; a missing weight or bias becomes a constant of ones or zeros."""
    scale = g.channel_parameter(weight, input, 1.0)
    shift = g.channel_parameter(bias, input, 0.0)
    return g.norm(
        "GroupNorm", input, scale, shift, num_groups=num_groups, epsilon=eps, activation="none", channels_last=0
    )


def from_instance_norm(
    g: Translator,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Any:
    """``aten::instance_norm``: a group per channel, or BatchNormalization where it applies tracked statistics."""
    if use_input_stats:
        channels = input.shape[1]
        if not isinstance(channels, int):
            raise ValueError(f"instance norm over a dynamic number of channels ({channels}); axis 1 must be static")
        if eps == 0:  # PyTorch divides by 0 in group norm, and leaves out the division in instance norm
            state = [g.channel_parameter(None, input, fill) for fill in (0.0, 1.0)]
            scale, shift = g.channel_parameter(weight, input, 1.0), g.channel_parameter(bias, input, 0.0)
            momentum = g.scalar_parameter(0.0, input)
            return g.norm("InstanceNormTraining", input, scale, shift, *state, momentum, epsilon=eps)[0]
        return from_torch(g, input, channels, weight, bias, eps)
    return g.batch_norm(input, weight, bias, running_mean, running_var, eps)


def _sample(
    label: str,
    shape: tuple[int, ...],
    groups: int,
    *,
    activation: str = "none",
    last: int = 0,
    offset: float = 0.0,
    spread: float = 1.0,
    epsilon: float = 1e-5,
) -> Sample:
    rng = np.random.default_rng(abs(hash((shape, groups))) % 2**32)
    channels = shape[-1 if last else 1]
    inputs = (
        rng.standard_normal(shape) * spread + offset,
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
    )
    attributes = {"num_groups": groups, "epsilon": epsilon, "activation": activation, "channels_last": last}
    return Sample(label, inputs, attributes)


def samples() -> Iterator[Sample]:
    """Odd sizes, every activation and layout, one group, one group per channel, offset data, empty tensors."""
    yield _sample("image", (2, 8, 5, 7), 4)
    for activation in ACTIVATIONS[1:]:
        yield _sample(activation, (2, 12, 3, 13), 3, activation=activation)
        yield _sample(f"{activation}-channels-last", (2, 3, 5, 12), 4, activation=activation, last=1)
    yield _sample("one-group", (1, 6, 9, 11), 1)
    yield _sample("one-group-large", (1, 16, 61, 67), 1, activation="silu")
    yield _sample("group-per-channel", (3, 5, 13), 5)
    yield _sample("rank-2", (4, 12), 3)
    yield _sample("volume", (1, 4, 3, 5, 2), 2)
    yield _sample("channels-last", (2, 5, 7, 8), 2, last=1)
    yield _sample("channels-last-rank-2", (3, 8), 4, last=1)
    yield _sample("offset", (2, 8, 16, 16), 2, offset=1e4)
    yield _sample("offset-channels-last", (2, 16, 16, 8), 2, offset=1e4, last=1)
    yield _sample("constant", (2, 4, 3, 3), 2, offset=3.0, spread=0.0)
    yield _sample("zeros", (2, 4, 3, 3), 2, spread=0.0)
    yield _sample("one-value-per-group", (2, 4, 1, 1), 4)
    yield _sample("one-channel", (3, 1, 7), 1)
    yield _sample("large-epsilon", (2, 4, 5), 2, epsilon=0.5)
    yield _sample("empty-batch", (0, 4, 3, 3), 2)
    yield _sample("empty-space", (2, 4, 0, 3), 2)


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, scale, bias = np.zeros((2, 6, 4)), np.ones(6), np.zeros(6)
    good = {"num_groups": 3, "epsilon": 1e-5, "activation": "none", "channels_last": 0}
    return (
        ErrorSample("groups-do-not-divide", (x, scale, bias), good | {"num_groups": 4}, r"num_groups.*4.*divide.*6"),
        ErrorSample("no-groups", (x, scale, bias), good | {"num_groups": 0}, r"num_groups.*0.*at least 1"),
        ErrorSample("scale-length", (x, np.ones(5), bias), good, r"scale.*5.*6"),
        ErrorSample("bias-rank", (x, scale, np.zeros((1, 6))), good, r"bias.*1.*6"),
        ErrorSample("rank-1", (np.zeros(6), scale, bias), good, r"X.*rank"),
        ErrorSample("activation", (x, scale, bias), good | {"activation": "tanh"}, r"activation.*tanh.*none.*relu"),
        ErrorSample("epsilon", (x, scale, bias), good | {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
        ErrorSample("layout", (x, scale, bias), good | {"channels_last": 2}, r"channels_last.*2.*0.*1"),
    )


SPEC = NormSpec(
    name="GroupNorm",
    summary="mean 0 and variance 1 over each group of channels and all positions, then scale, bias and activation",
    citation="Wu and He, Group Normalization, 2018 (arXiv:1803.08494)",
    inputs=INPUTS,
    attributes=(GROUPS, EPSILON, ACTIVATION, CHANNELS_LAST),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("aten::group_norm", from_torch), TorchOp("aten::instance_norm", from_instance_norm)),
    samples=samples,
    error_samples=error_samples,
)

SKIP_SPEC = skip_form(SPEC)
