"""L2 normalization to unit length (``torch.nn.functional.normalize(p=2)``), with a scale as RMSNorm has it.

    y = act(x / max(sqrt(sum(x^2 over axes)), epsilon) * scale)

The sum runs over all ``axes`` jointly; scale has their sizes, in ascending order of the axes.
"""

from __future__ import annotations

import dataclasses
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
)
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (InputSpec("X", "any, rank 1 or more"), InputSpec("scale", "the sizes of the axes"))


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X of any shape, scale of the axes' sizes -> Y of X's shape."""
    x, scale = inputs
    axes = normalize_axes(attributes["axes"], x.ndim)
    spread = tuple(x.shape[axis] if axis in axes else 1 for axis in range(x.ndim))
    with np.errstate(all="ignore"):
        length = np.sqrt(np.square(x).sum(axis=axes, keepdims=True))
        y = x / np.maximum(length, attributes["epsilon"]) * scale.reshape(spread)
    return (activate(y, attributes["activation"]),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """The sum is the mean times the number of values: the mean of long axes is more exact."""
    x, scale = inputs
    axes = b.normalized_axes(x)
    spread = b.spread_shape(x, axes, scale)
    wide = b.widen(x)
    count = b.op("Cast", b.product(b.op("Shape", scale)), to=b.compute)
    squares = b.op("Mul", b.mean_square(wide, axes), b.reshape(count, b.constant(np.zeros(0, np.int64))))
    length = b.op("Max", b.op("Sqrt", squares), b.float_attribute("epsilon"))
    y = b.op("Mul", b.op("Div", wide, length), b.reshape(b.widen(scale), spread))
    return [b.narrow(b.activation(y), like=x)]


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """Axes exist and are distinct; scale's shape is their sizes."""
    check_axes_sizes("scale", shapes[1], shapes[0], attributes["axes"])


def from_channel_l2_norm(g: Translator, input: Any, weight: Any = None, eps: float = 1e-12) -> Any:
    """``onnxnorm::channel_l2_norm``, the operator that ``onnxnorm.nn.L2Norm1d/2d/3d`` call."""
    scale = g.channel_parameter(weight, input, 1.0)
    return g.norm("L2Norm", input, scale, axes=[1], epsilon=eps, activation="none")


def _sample(
    label: str,
    shape: tuple[int, ...],
    axes: Sequence[int],
    *,
    activation: str = "none",
    epsilon: float = 1e-12,
    offset: float = 0.0,
    spread: float = 1.0,
) -> Sample:
    rng = np.random.default_rng(abs(hash((shape, tuple(axes)))) % 2**32)
    sizes = [shape[axis] for axis in normalize_axes(axes, len(shape))]
    inputs = (rng.standard_normal(shape) * spread + offset, rng.uniform(0.5, 1.5, sizes))
    return Sample(label, inputs, {"axes": list(axes), "epsilon": epsilon, "activation": activation})


def samples() -> Iterator[Sample]:
    """Rows, several axes, channels of NCHW, axes in the middle, lengths above and below epsilon, empty tensors."""
    yield _sample("rows", (3, 5, 64), [-1])
    for activation in ACTIVATIONS[1:]:
        yield _sample(activation, (7, 33), [-1], activation=activation)
    yield _sample("two-trailing", (2, 3, 5, 7), [-2, -1])
    yield _sample("all-axes", (4, 6), [0, 1])
    yield _sample("vector", (13,), [0])
    yield _sample("channels", (2, 12, 5, 7), [1])
    yield _sample("channels-1d", (2, 3, 13), [1], activation="silu")
    yield _sample("batch", (6, 5), [0])
    yield _sample("middle", (2, 3, 5, 4), [1, 2])
    yield _sample("apart", (2, 3, 5, 4), [0, 2])
    yield _sample("unsorted", (2, 3, 5), [-1, 1])
    yield _sample("long-row", (1, 20011), [-1])
    yield _sample("one-wide", (5, 1), [-1])
    yield _sample("zeros", (3, 8), [-1], spread=0.0)
    yield _sample("no-epsilon", (3, 24), [-1], epsilon=0.0)
    yield _sample("no-epsilon-zeros", (3, 8), [-1], epsilon=0.0, spread=0.0)
    yield _sample("shorter-than-epsilon", (3, 8), [-1], epsilon=50.0)
    yield _sample("offset", (3, 40), [-1], offset=1e4)
    yield _sample("small", (3, 40), [-1], spread=1e-3)
    yield _sample("empty-rows", (0, 8), [-1])
    yield _sample("empty-axis", (3, 0), [-1])


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, scale = np.zeros((2, 3, 8)), np.ones(8)
    good = {"axes": [-1], "epsilon": 1e-12, "activation": "none"}
    return (
        ErrorSample("scale-length", (x, np.ones(7)), good, r"scale.*7.*8"),
        ErrorSample("scale-rank", (x, np.ones((3, 8))), good, r"scale.*rank"),
        ErrorSample("axis-range", (x, scale), good | {"axes": [3]}, r"axes.*3"),
        ErrorSample("axis-twice", (x, np.ones((8, 8))), good | {"axes": [-1, 2]}, r"axes.*once"),
        ErrorSample("no-axes", (x, scale), good | {"axes": []}, r"axes.*at least one"),
        ErrorSample("activation", (x, scale), good | {"activation": "elu"}, r"activation.*elu.*none.*relu"),
        ErrorSample("epsilon", (x, scale), good | {"epsilon": float("inf")}, r"epsilon.*inf.*finite"),
    )


SPEC = NormSpec(
    name="L2Norm",
    summary="divides by the Euclidean length over the axes, but by no less than epsilon, then scale and activation",
    citation="torch.nn.functional.normalize (p = 2)",
    inputs=INPUTS,
    attributes=(AXES, dataclasses.replace(EPSILON, doc="the least that is divided by"), ACTIVATION),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(TorchOp("onnxnorm::channel_l2_norm", from_channel_l2_norm),),
    samples=samples,
    error_samples=error_samples,
)
