"""Root mean square normalization (Zhang and Sennrich 2019, arXiv:1910.07467; ``torch.nn.RMSNorm``;
ONNX RMSNormalization-23).

    y = act(x / sqrt(mean(x^2 over axes) + epsilon) * scale)

The statistic runs over all ``axes`` jointly; scale has their sizes, in ascending order of the axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxnorm.spec.record import (
    ACTIVATION,
    ACTIVATIONS,
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
    mean_of,
)
from onnxnorm.spec.skip import skip_form
from onnxnorm.spec.translation import TorchOp, Translator

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

INPUTS = (InputSpec("X", "any, rank 1 or more"), InputSpec("scale", "the sizes of the axes"))
AXES = AttributeSpec(
    "axes",
    "ints",
    "axes over which the statistics run, jointly; negative ones count from the end",
    check=lambda value: None if len(value) else "it must name at least one axis",
)


def normalize_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes as ascending non-negative numbers; NormValueError when one is out of range or stands twice."""
    positive = []
    for axis in axes:
        if not -rank <= axis < rank:
            raise NormValueError(f"axes is {list(axes)}; X has rank {rank}, so each must be from {-rank} to {rank - 1}")
        positive.append(axis % rank)
    if len(set(positive)) != len(positive):
        raise NormValueError(f"axes is {list(axes)}; each axis must stand there once (X has rank {rank})")
    return tuple(sorted(positive))


def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
    """Float64 truth: X of any shape, scale of the axes' sizes -> Y of X's shape."""
    x, scale = inputs
    axes = normalize_axes(attributes["axes"], x.ndim)
    with np.errstate(all="ignore"):
        mean_square = mean_of(np.square(x), axis=axes)
        spread = tuple(x.shape[axis] if axis in axes else 1 for axis in range(x.ndim))
        y = x / np.sqrt(mean_square + attributes["epsilon"]) * scale.reshape(spread)
    return (activate(y, attributes["activation"]),)


def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
    """Squares in the wide type; scale is spread to X's rank, with ones for the axes that it has not."""
    x, scale = inputs
    axes = b.normalized_axes(x)
    spread = b.spread_shape(x, axes, scale)
    wide = b.widen(x)
    mean_square = b.mean_square(wide, axes)
    y = b.op("Div", wide, b.op("Sqrt", b.op("Add", mean_square, b.float_attribute("epsilon"))))
    y = b.op("Mul", y, b.reshape(b.widen(scale), spread))
    return [b.narrow(b.activation(y), like=x)]


def check_axes_sizes(name: str, shape: PartialShape | None, x: PartialShape | None, axes: Sequence[int]) -> None:
    """NormValueError unless the axes exist in X and are distinct, and a parameter's shape is their sizes."""
    if shape is not None and len(shape) != len(axes):
        raise NormValueError(f"{name} has rank {len(shape)}; it must have one axis for each of axes {list(axes)}")
    if x is None:
        return
    wanted = [x[axis] for axis in normalize_axes(axes, len(x))]
    if shape is not None and any(
        have is not None and want is not None and have != want for have, want in zip(shape, wanted, strict=True)
    ):
        raise NormValueError(
            f"{name} has shape {list(shape)}; it must be {wanted}, the sizes of axes {list(axes)} of X"
        )


def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
    """Axes exist and are distinct; scale's shape is their sizes."""
    check_axes_sizes("scale", shapes[1], shapes[0], attributes["axes"])


def from_rms_norm(
    g: Translator, input: Any, normalized_shape: Sequence[Any], weight: Any = None, eps: float | None = None
) -> Any:
    """``aten::rms_norm``; eps None is PyTorch's machine epsilon of the type that it computes in."""
    axes = list(range(-len(normalized_shape), 0))
    return _translated(g, input, g.parameter(weight, input, list(normalized_shape), 1.0), axes, eps)


def from_channel_rms_norm(g: Translator, input: Any, weight: Any = None, eps: float | None = None) -> Any:
    """``onnxnorm::channel_rms_norm``, the operator that ``onnxnorm.nn.RMSNorm1d/2d/3d`` call."""
    return _translated(g, input, g.channel_parameter(weight, input, 1.0), [1], eps)


def _translated(g: Translator, input: Any, scale: Any, axes: list[int], eps: float | None) -> Any:
    epsilon = g.machine_epsilon(input) if eps is None else eps
    return g.norm("RMSNorm", input, scale, axes=axes, epsilon=epsilon, activation="none")


def _sample(
    label: str,
    shape: tuple[int, ...],
    axes: Sequence[int],
    *,
    activation: str = "none",
    epsilon: float = 1e-6,
    offset: float = 0.0,
    spread: float = 1.0,
) -> Sample:
    rng = np.random.default_rng(abs(hash((shape, tuple(axes)))) % 2**32)
    sizes = [shape[axis] for axis in normalize_axes(axes, len(shape))]
    inputs = (rng.standard_normal(shape) * spread + offset, rng.uniform(0.5, 1.5, sizes))
    return Sample(label, inputs, {"axes": list(axes), "epsilon": epsilon, "activation": activation})


def samples() -> Iterator[Sample]:
    """Rows, several axes, channels of NCHW, axes in the middle, odd sizes, empty tensors."""
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
    yield _sample("one-wide", (5, 1), [-1])
    yield _sample("zeros", (3, 8), [-1], spread=0.0)
    yield _sample("offset", (3, 40), [-1], offset=1e4)
    yield _sample("small", (3, 40), [-1], spread=1e-3)
    yield _sample("empty-rows", (0, 8), [-1])
    yield _sample("empty-axis", (3, 0), [-1])


def error_samples() -> Iterable[ErrorSample]:
    """What must be refused, with the words that the message holds."""
    x, scale = np.zeros((2, 3, 8)), np.ones(8)
    good = {"axes": [-1], "epsilon": 1e-6, "activation": "none"}
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
    name="RMSNorm",
    summary="divides by the root of the mean square over the axes, then scale and activation",
    citation="Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (arXiv:1910.07467)",
    inputs=INPUTS,
    attributes=(AXES, EPSILON, ACTIVATION),
    reference=reference,
    body=body,
    check_shapes=check_shapes,
    torch_ops=(
        TorchOp("aten::rms_norm", from_rms_norm),
        TorchOp("onnxnorm::channel_rms_norm", from_channel_rms_norm),
    ),
    samples=samples,
    error_samples=error_samples,
)

SKIP_SPEC = skip_form(SPEC)
