"""Layer normalization (Ba, Kiros and Hinton 2016, arXiv:1607.06450; ``torch.nn.LayerNorm``;
ONNX LayerNormalization-17).

    y = act((x - mean) / sqrt(var + epsilon) * scale + bias)

with mean and biased variance of x over all ``axes`` jointly; scale and bias have the sizes of the axes, in ascending
order. Trailing axes are what PyTorch calls ``normalized_shape``; axes [1] of (N, C, *) is the channels-first form of
ConvNeXt (Liu et al. 2022, arXiv:2201.03545).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.norms.rms_norm import AXES, check_axes_sizes, normalize_axes
from onnxnorm.spec.record import (
    ACTIVATION,
    ACTIVATIONS,
    EPSILON,
    Attributes,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    PartialShape,
    Sample,
    activate,
    mean_of,
)
from onnxnorm.spec.skip import skip_form
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (
    InputSpec("X", "any, rank 1 or more"),
    InputSpec("scale", "the sizes of the axes"),
    InputSpec("bias", "the sizes of the axes"),
)


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X of any shape, scale and bias of the axes' sizes -> Y of X's shape."""
    x, scale, bias = inputs
    axes = normalize_axes(attributes["axes"], x.ndim)
    spread = tuple(x.shape[axis] if axis in axes else 1 for axis in range(x.ndim))
    with np.errstate(all="ignore"):
        centred = x - mean_of(x, axis=axes)
        centred = centred - mean_of(centred, axis=axes)  # what rounding of a large mean left
        var = mean_of(np.square(centred), axis=axes)
        y = centred / np.sqrt(var + attributes["epsilon"]) * scale.reshape(spread) + bias.reshape(spread)
    return (activate(y, attributes["activation"]),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Centres twice; scale and bias are spread to X's rank, with ones for the axes that they have not."""
    x, scale, bias = inputs
    axes = b.normalized_axes(x)
    spread = b.spread_shape(x, axes, scale)
    centred = b.widen(x)
    for _ in range(2):
        centred = b.op("Sub", centred, b.mean_over(centred, axes))
    variance = b.exact_mean(b.op("Mul", centred, centred), axes)
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, b.float_attribute("epsilon"))))
    y = b.op("Mul", y, b.reshape(b.widen(scale), spread))
    y = b.op("Add", y, b.reshape(b.widen(bias), spread))
    return [b.narrow(b.activation(y), like=x)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """Axes exist and are distinct; the shapes of scale and bias are their sizes."""
    for item, shape in zip(INPUTS[1:], shapes[1:], strict=True):
        check_axes_sizes(item.name, shape, shapes[0], attributes["axes"])


def from_layer_norm(
    g: Translator,
    input: Any,
    normalized_shape: Sequence[Any],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """``aten::layer_norm``; a missing weight or bias becomes a constant of ones or zeros."""
    sizes = list(normalized_shape)
    scale = g.parameter(weight, input, sizes, 1.0)
    shift = g.parameter(bias, input, sizes, 0.0)
    axes = list(range(-len(sizes), 0))
    return g.norm("LayerNorm", input, scale, shift, axes=axes, epsilon=eps, activation="none")


def from_channel_layer_norm(g: Translator, input: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """``onnxnorm::channel_layer_norm``, the operator that ``onnxnorm.nn.LayerNorm1d/2d/3d`` call."""
    scale = g.channel_parameter(weight, input, 1.0)
    shift = g.channel_parameter(bias, input, 0.0)
    return g.norm("LayerNorm", input, scale, shift, axes=[1], epsilon=eps, activation="none")


def _sample(
    label: str,
    shape: tuple[int, ...],
    axes: Sequence[int],
    *,
    activation: str = "none",
    epsilon: float = 1e-5,
    offset: float = 0.0,
    spread: float = 1.0,
) -> Sample:
    rng = np.random.default_rng(abs(hash((shape, tuple(axes)))) % 2**32)
    sizes = [shape[axis] for axis in normalize_axes(axes, len(shape))]
    inputs = (rng.standard_normal(shape) * spread + offset, rng.uniform(0.5, 1.5, sizes), rng.standard_normal(sizes))
    return Sample(label, inputs, {"axes": list(axes), "epsilon": epsilon, "activation": activation})


def samples() -> Iterator[Sample]:
    """Rows, several axes, channels of NCHW, axes in the middle, odd sizes, offset data, no variance, empty tensors."""
    yield _sample("rows", (3, 5, 64), [-1])
    for activation in ACTIVATIONS[1:]:
        yield _sample(activation, (7, 33), [-1], activation=activation)
        yield _sample(f"{activation}-channels", (2, 9, 5, 3), [1], activation=activation)
    yield _sample("two-trailing", (2, 3, 5, 7), [-2, -1])
    yield _sample("all-axes", (4, 6), [0, 1])
    yield _sample("vector", (13,), [0])
    yield _sample("channels", (2, 12, 5, 7), [1])
    yield _sample("channels-1d", (2, 3, 13), [1])
    yield _sample("channels-3d", (2, 5, 2, 3, 4), [1])
    yield _sample("batch", (6, 5), [0])
    yield _sample("middle", (2, 3, 5, 4), [1, 2])
    yield _sample("apart", (2, 3, 5, 4), [0, 2])
    yield _sample("apart-inner", (3, 4, 2, 5), [1, 3])
    yield _sample("unsorted", (2, 3, 5), [-1, 1])
    yield _sample("long-row", (1, 20011), [-1])
    yield _sample("one-wide", (5, 1), [-1])
    yield _sample("one-channel", (3, 1, 4, 4), [1])
    yield _sample("zeros", (3, 8), [-1], spread=0.0)
    yield _sample("constant", (3, 8), [-1], offset=3.0, spread=0.0)
    yield _sample("constant-channels", (2, 4, 3), [1], offset=3.0, spread=0.0)
    yield _sample("no-epsilon", (3, 24), [-1], epsilon=0.0)
    yield _sample("no-epsilon-no-variance", (3, 8), [-1], epsilon=0.0, spread=0.0)
    yield _sample("large-epsilon", (3, 24), [-1], epsilon=0.5)
    yield _sample("offset", (3, 400), [-1], offset=1e4)
    yield _sample("offset-channels", (2, 40, 6, 6), [1], offset=1e4)
    yield _sample("offset-several", (2, 4, 9, 10), [1, 3], offset=-1e4)
    yield _sample("small", (3, 40), [-1], spread=1e-3)
    yield _sample("empty-rows", (0, 8), [-1])
    yield _sample("empty-axis", (3, 0), [-1])
    yield _sample("empty-space", (2, 4, 0, 3), [1])


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, scale, bias = np.zeros((2, 3, 8)), np.ones(8), np.zeros(8)
    good = {"axes": [-1], "epsilon": 1e-5, "activation": "none"}
    two = np.ones((8, 8))
    return (
        ErrorSample("scale-length", (x, np.ones(7), bias), good, r"scale.*7.*8"),
        ErrorSample("bias-length", (x, scale, np.ones(7)), good, r"bias.*7.*8"),
        ErrorSample("scale-rank", (x, np.ones((3, 8)), bias), good, r"scale.*rank"),
        ErrorSample("bias-rank", (x, scale, np.ones((3, 8))), good, r"bias.*rank"),
        ErrorSample("axis-range", (x, scale, bias), good | {"axes": [3]}, r"axes.*3"),
        ErrorSample("axis-twice", (x, two, two), good | {"axes": [-1, 2]}, r"axes.*once"),
        ErrorSample("no-axes", (x, scale, bias), good | {"axes": []}, r"axes.*at least one"),
        ErrorSample("activation", (x, scale, bias), good | {"activation": "elu"}, r"activation.*elu.*none.*relu"),
        ErrorSample("epsilon", (x, scale, bias), good | {"epsilon": -1.0}, r"epsilon.*-1.*at least 0"),
    )


SPEC = NormSpec(
    name="LayerNorm",
    summary="mean 0 and variance 1 over the axes, then scale, bias and activation",
    citation="Ba, Kiros and Hinton, Layer Normalization, 2016 (arXiv:1607.06450)",
    inputs=INPUTS,
    attributes=(AXES, EPSILON, ACTIVATION),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(
        TorchOp("aten::layer_norm", from_layer_norm),
        TorchOp("onnxnorm::channel_layer_norm", from_channel_layer_norm),
    ),
    samples=samples,
    error_samples=error_samples,
)

SKIP_SPEC = skip_form(SPEC)
