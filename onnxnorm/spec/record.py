"""What one normalization is: the record from which everything else is derived.

A file of ``onnxnorm/norms`` holds one normalization: its float64 NumPy reference, its ONNX operator (inputs,
attributes, checks), its function body in standard ONNX operators, how PyTorch's operator maps to it, samples, bad
samples and its citation. The ``onnx.defs`` schema, the export translation, the FunctionProto, the parity tests, the
benchmark rows and the README's table are derived from that record; nothing is registered by hand anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue
    from onnxnorm.spec.translation import TorchOp

DOMAIN = "onnxnorm"
VERSION = 1

FloatArray: TypeAlias = npt.NDArray[np.float64]
AttributeValue: TypeAlias = int | float | str | Sequence[int]
Attributes: TypeAlias = Mapping[str, Any]
#: A shape as shape inference knows it; None is an unknown dimension.
PartialShape: TypeAlias = Sequence[int | None]

#: The element types that every op of the domain takes, in the native library's own spelling.
FLOAT_DTYPES = ("float32", "float16", "float64", "bfloat16")


class NormValueError(ValueError):
    """An attribute or a shape that the normalization does not allow; the message says what would be right."""


@dataclass(frozen=True)
class InputSpec:
    """One input of the op: its name, and its shape in words (``C`` is the channel count)."""

    name: str
    shape: str


@dataclass(frozen=True)
class OutputSpec:
    """One output of the op.

    Attributes:
        name: its name.
        shape: ``X`` is that of X, ``C`` one value per channel.
        optional: a second result, which a node may leave unused by writing it as ''; no next value of a state.

    """

    name: str
    shape: Literal["X", "C"]
    optional: bool = False


@dataclass(frozen=True)
class AttributeSpec:
    """One attribute of the op. Every attribute is written on every node, so there are no defaults."""

    name: str
    kind: Literal["int", "float", "string", "ints"]
    doc: str
    choices: tuple[AttributeValue, ...] = ()
    check: Callable[[Any], str | None] | None = None

    def validate(self, value: Any) -> None:
        """Raises NormValueError when ``value`` is not one that this attribute allows."""
        if self.choices and value not in self.choices:
            allowed = ", ".join(repr(choice) for choice in self.choices)
            raise NormValueError(f"attribute {self.name} is {value!r}; it must be one of {allowed}")
        problem = self.check(value) if self.check is not None else None
        if problem is not None:
            raise NormValueError(f"attribute {self.name} is {value!r}; {problem}")


@dataclass(frozen=True)
class Sample:
    """Inputs (float64, cast to each dtype by the tests) and attributes on which the op must equal its reference."""

    label: str
    inputs: tuple[FloatArray, ...]
    attributes: Attributes


@dataclass(frozen=True)
class ErrorSample:
    """Inputs and attributes that must be refused with a message that matches ``message`` (a regular expression)."""

    label: str
    inputs: tuple[FloatArray, ...]
    attributes: Attributes
    message: str


@dataclass(frozen=True)
class NormSpec:
    """One normalization as an ONNX operator of the domain ``onnxnorm``.

    Attributes:
        name: operator name, as in the design's table.
        summary: one line that says what it computes.
        citation: the paper, or the operator it follows.
        inputs: inputs in order; all are required and have X's element type.
        attributes: attributes; all are written on every node.
        reference: the truth, in float64 NumPy: ``reference(inputs, attributes) -> outputs``.
        body: emits the same in standard ONNX operators.
        check_shapes: raises NormValueError for shapes (with None for what is unknown) that do not fit.
        torch_ops: the PyTorch operators that mean this op, with their translation.
        samples, error_samples: what tests, parity and benchmark draw from.
        outputs: outputs in order, of X's element type; the first has X's shape. What follows it is an
            ``optional`` second result, or the next value of a state that came in, and the op is then one of training
            graphs.
        native: whether the native library holds a kernel; without one ONNX Runtime runs the function body.
        eval_form: for an op of training graphs, emits what takes its place once its state is fixed; returns Y.
        since: the first version of onnxnorm that has the op.
        dtypes_since: the first version for element types that came later.

    """

    name: str
    summary: str
    citation: str
    inputs: tuple[InputSpec, ...]
    attributes: tuple[AttributeSpec, ...]
    reference: Callable[[Sequence[FloatArray], Attributes], tuple[FloatArray, ...]]
    body: Callable[[BodyBuilder, Sequence[BodyValue]], Sequence[BodyValue]]
    check_shapes: Callable[[Sequence[PartialShape | None], Attributes], None]
    torch_ops: tuple[TorchOp, ...]
    samples: Callable[[], Iterable[Sample]]
    error_samples: Callable[[], Iterable[ErrorSample]]
    outputs: tuple[OutputSpec, ...] = (OutputSpec("Y", "X"),)
    dtypes: tuple[str, ...] = FLOAT_DTYPES
    native: bool = True
    eval_form: Callable[[BodyBuilder, Sequence[BodyValue]], BodyValue] | None = None
    since: str = "0.1.0"
    dtypes_since: Mapping[str, str] = field(default_factory=dict)

    def since_for(self, dtype: str | None = None) -> str:
        """The first version of onnxnorm that has the op, or the op in that element type."""
        return self.since if dtype is None else self.dtypes_since.get(dtype, self.since)

    def attribute(self, name: str) -> AttributeSpec:
        """The attribute of that name; KeyError if the op has none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(f"{self.name} has no attribute {name!r}")

    @property
    def has_state(self) -> bool:
        """Whether it is an op of training graphs: a state comes in, and its next value goes out."""
        return any(not item.optional for item in self.outputs[1:])

    def channels(self, shapes: Sequence[PartialShape | None], attributes: Attributes) -> int | None:
        """The channel count C, None when the shapes do not tell it."""
        for item, shape in zip(self.inputs[1:], shapes[1:], strict=True):
            if item.shape == "C" and shape is not None and len(shape) == 1 and shape[0] is not None:
                return shape[0]
        known = shapes[0]
        return None if known is None or len(known) < 2 else known[channel_axis(attributes)]

    def validate(self, shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
        """Raises NormValueError unless attributes are complete and legal and the known part of the shapes fits."""
        names = [attribute.name for attribute in self.attributes]
        missing = [name for name in names if name not in attributes]
        if missing:
            raise NormValueError(f"attribute {missing[0]} is missing; {self.name} needs {', '.join(names)}")
        for attribute in self.attributes:
            attribute.validate(attributes[attribute.name])
        if len(shapes) != len(self.inputs):
            wanted = ", ".join(item.name for item in self.inputs)
            raise NormValueError(f"{len(shapes)} inputs; {self.name} needs {len(self.inputs)}: {wanted}")
        self.check_shapes(shapes, attributes)


# --- attributes and checks that several norms share ---------------------------------------------------------------

ACTIVATIONS = ("none", "relu", "silu", "gelu")

ACTIVATION = AttributeSpec(
    "activation",
    "string",
    "applied to the result: none, relu, silu (x * sigmoid(x)) or gelu (the exact erf form)",
    choices=ACTIVATIONS,
)
EPSILON = AttributeSpec(
    "epsilon",
    "float",
    "added to the variance under the square root; in float64 it is read as the nearest decimal of 7 digits",
    check=lambda value: None if math.isfinite(value) and value >= 0 else "it must be finite and at least 0",
)
CHANNELS_LAST = AttributeSpec("channels_last", "int", "0: X is (N, C, *); 1: X is (N, *, C)", choices=(0, 1))


def channel_axis(attributes: Attributes) -> int:
    """The axis of X that holds the channels: 1, or -1 with ``channels_last``."""
    return -1 if attributes.get("channels_last", 0) else 1


def check_channels(
    inputs: Sequence[InputSpec], shapes: Sequence[PartialShape | None], attributes: Attributes
) -> int | None:
    """Checks X's rank and that every input whose shape reads ``C`` has X's channel count.

    Returns the channel count, None when shape inference does not know it.
    """
    known = shapes[0]
    channels: int | None = None
    if known is not None:
        if len(known) < 2:
            layout = "(N, *, C)" if attributes.get("channels_last", 0) else "(N, C, *)"
            raise NormValueError(f"X has rank {len(known)}; it must have at least 2 axes, {layout}")
        channels = known[channel_axis(attributes)]
    for item, shape in zip(inputs[1:], shapes[1:], strict=True):
        if shape is None:
            continue
        wanted: int | None = channels if item.shape == "C" else int(item.shape)
        if len(shape) != 1 or (wanted is not None and shape[0] is not None and shape[0] != wanted):
            of_x = f", the channel count of X {shape_text(known)}" if item.shape == "C" and known is not None else ""
            size = item.shape if wanted is None else wanted
            raise NormValueError(f"{item.name} has shape {shape_text(shape)}; it must be [{size}]{of_x}")
        if item.shape == "C" and channels is None:
            channels = shape[0]
    return channels


def shape_text(shape: PartialShape | None) -> str:
    """A shape as messages write it, with ? for what is not known."""
    if shape is None:
        return "[?]"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def activate(y: FloatArray, activation: str) -> FloatArray:
    """The activation in float64 NumPy, with PyTorch's results for NaN and infinities."""
    if activation == "none":
        return y
    if activation == "relu":
        return np.where(y < 0, 0.0, y)
    with np.errstate(all="ignore"):
        if activation == "silu":
            return np.asarray(y / (1.0 + np.exp(-y)))
        if activation == "gelu":
            erf = np.vectorize(math.erf, otypes=[np.float64])
            return np.asarray(0.5 * y * (1.0 + erf(y / math.sqrt(2.0)))) if y.size else y
    raise NormValueError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")


def channels_first(x: FloatArray, attributes: Attributes) -> FloatArray:
    """X as (N, C, S), S the number of positions, whatever its layout."""
    x = np.moveaxis(x, channel_axis(attributes), 1)
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def restore_layout(y: FloatArray, x: FloatArray, attributes: Attributes) -> FloatArray:
    """Undoes channels_first: (N, C, S) back to the layout and shape of ``x``."""
    axis = channel_axis(attributes)
    moved = np.moveaxis(x, axis, 1).shape
    return np.ascontiguousarray(np.moveaxis(y.reshape(moved), 1, axis))


def mean_of(x: FloatArray, axis: int | tuple[int, ...]) -> FloatArray:
    """Mean over the axis, kept as size 1; NaN over nothing, without NumPy's warning."""
    axes = (axis,) if isinstance(axis, int) else axis
    count = math.prod(x.shape[each] for each in axes)
    with np.errstate(all="ignore"):
        return np.asarray(x.sum(axis=axes, keepdims=True) / np.float64(count))
