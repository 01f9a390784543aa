"""What is measured: one norm at one shape, element type and activation, and the default list of them.

A norm's own record says what its inputs and attributes are, so a norm that is added needs nothing here: sizes follow
from the words of its inputs' shapes, values from their names where a plain normal distribution would be out of place
(``_VALUES``), and the default shapes from its attributes (an op with ``axes`` is measured over rows and over channels,
any other over the positions of images).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxnorm.errors import UsageError
from onnxnorm.norms import all_specs
from onnxnorm.runtime.arrays import Array
from onnxnorm.spec.blocked import PREFIX as BLOCKED
from onnxnorm.spec.record import ACTIVATIONS, FLOAT_DTYPES, AttributeSpec, FloatArray, NormSpec, NormValueError
from onnxnorm.spec.sample_model import ELEMENT_TYPES

#: Groups of a shape that was given without any: ``torch.nn.GroupNorm(32, C)`` is what most networks have.
DEFAULT_GROUPS = 32

#: Shapes of images, each with its number of groups: diffusion models, ResNets, one group, few positions, a volume, and
#: one so small that the call itself is what is measured.
IMAGES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((1, 320, 64, 64), 32),
    ((1, 512, 128, 128), 32),
    ((8, 64, 56, 56), 32),
    ((1, 64, 112, 112), 1),
    ((32, 256, 7, 7), 32),
    ((1, 32, 16, 64, 64), 8),
    ((1, 32, 8, 8), 8),
)
#: Rows of transformers: items, tokens, features.
ROWS: tuple[tuple[int, ...], ...] = ((1, 128, 768), (8, 512, 1024), (1, 2048, 4096))
#: What ``quick`` keeps.
QUICK_SHAPES = frozenset({(1, 320, 64, 64), (1, 32, 8, 8), (1, 128, 768)})
DEFAULT_ACTIVATIONS = ("none", "silu")


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        op: name of an onnxnorm op.
        shape: of X.
        dtype: of all inputs and outputs: float32, float16, bfloat16 or float64.
        activation: none, relu, silu or gelu.
        groups: for ops with groups.
        axes: for ops with axes.
        channels_last: X is (N, *, C).

    """

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    activation: str = "none"
    groups: int | None = None
    axes: tuple[int, ...] | None = None
    channels_last: bool = False

    @property
    def label(self) -> str:
        """Such as "GroupNorm 1x320x64x64 float32 groups=32 silu"."""
        parts = [self.op, "x".join(map(str, self.shape)), self.dtype]
        if self.groups is not None:
            parts.append(f"groups={self.groups}")
        if self.axes is not None:
            parts.append(f"axes={','.join(map(str, self.axes))}")
        if self.channels_last:
            parts.append("channels-last")
        if self.activation != "none":
            parts.append(self.activation)
        return " ".join(parts)

    @property
    def elements(self) -> int:
        """Number of elements of X."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """Channel count of X, for ops that have channels."""
        return self.shape[-1 if self.channels_last else min(1, len(self.shape) - 1)]

    @property
    def bytes(self) -> int:
        """Size of X in bytes."""
        return self.elements * ELEMENT_TYPES[self.dtype].numpy().itemsize

    @property
    def spec(self) -> NormSpec:
        """The norm's record."""
        return inference_specs()[self.op]

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the op's node."""
        return {item.name: (_ATTRIBUTES.get(item.name) or _first_choice(item))(self) for item in self.spec.attributes}


@dataclass(frozen=True)
class Data:
    """A case's arrays.

    Attributes:
        inputs: in the order of the op's inputs, of the case's element type; their memory starts at multiples of 64.
        truth: outputs of the norm's float64 reference on just these values.

    """

    inputs: tuple[Array, ...]
    truth: tuple[FloatArray, ...]


def inference_specs() -> Mapping[str, NormSpec]:
    """The ops that are measured: all but those of training graphs and the blocked forms, whose layout no other
    candidate has.
    """
    return {name: spec for name, spec in all_specs().items() if not spec.has_state and not name.startswith(BLOCKED)}


def check_case(case: Case) -> None:
    """UsageError that names what is wrong with a case and what would be right."""
    _check_op(case.op)
    if case.dtype not in FLOAT_DTYPES:
        raise UsageError(f"dtype is {case.dtype!r}; it must be one of {', '.join(FLOAT_DTYPES)}")
    _check_activation(case.activation)
    if not case.shape or min(case.shape) < 1:
        raise UsageError(f"shape {'x'.join(map(str, case.shape))} has no elements to measure; all sizes must be over 0")
    names = {item.name for item in case.spec.attributes}
    for given, name in (
        (case.groups, "num_groups"),
        (case.axes, "axes"),
        (case.channels_last or None, "channels_last"),
    ):
        if given is not None and name not in names:
            raise UsageError(f"{case.op} has no attribute {name}; it has {', '.join(names)}")
    if case.activation != "none" and "activation" not in names:
        raise UsageError(f"{case.op} has no activation to choose")
    try:
        case.spec.validate(_shapes(case), case.attributes)
    except NormValueError as error:
        raise UsageError(f"{case.label}: {error}") from None


def _check_op(op: str) -> None:
    specs = inference_specs()
    if op not in specs:
        spec = all_specs().get(op)
        what = "is no op of onnxnorm" if spec is None else "is measured in whole models only"
        if spec is not None and spec.has_state:
            what = "is an op of training graphs"
        raise UsageError(f"{op} {what}; bench measures {', '.join(specs)}")


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise UsageError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")


def make_data(case: Case, seed: int = 0) -> Data:
    """Arrays for a case, the same for the same seed."""
    rng = np.random.default_rng(seed)
    dtype = ELEMENT_TYPES[case.dtype].numpy()
    arrays = []
    for item, shape in zip(case.spec.inputs, _shapes(case), strict=True):
        values = _VALUES.get(item.name, _normal)(rng, shape)
        array = aligned(shape, dtype)
        array[...] = values
        arrays.append(array)
    wide = [array.astype(np.float64) for array in arrays]
    return Data(tuple(arrays), tuple(case.spec.reference(wide, case.attributes)))


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array whose memory starts at a multiple of 64 bytes: a kernel's speed must not hang on where malloc put it."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def default_cases(
    ops: Sequence[str] = (),
    *,
    shapes: Sequence[tuple[int, ...]] = (),
    dtypes: Sequence[str] = (),
    activations: Sequence[str] = (),
    groups: int | None = None,
    axes: tuple[int, ...] | None = None,
    channels_last: bool = False,
    quick: bool = False,
) -> list[Case]:
    """The cases of these ops (all when none are named), at these shapes or else at the default ones.

    Raises:
        UsageError: an unknown op, dtype or activation, or a shape that an op does not take.

    """
    known = {name.lower(): name for name in all_specs()}
    names = [known.get(name.lower(), name) for name in ops] or list(inference_specs())
    for item in activations:
        _check_activation(item)
    cases = []
    for name in names:
        _check_op(name)
        for base in _placed(name, shapes, groups, axes, channels_last):
            if quick and not shapes and base.shape not in QUICK_SHAPES:
                continue
            for dtype in dtypes or ("float32",):
                cases += [
                    replace(base, dtype=dtype, activation=item) for item in _activations(name, activations, bool(ops))
                ]
    for case in cases:
        check_case(case)
    return cases


def _placed(
    op: str,
    shapes: Sequence[tuple[int, ...]],
    groups: int | None,
    axes: tuple[int, ...] | None,
    channels_last: bool,
) -> Iterator[Case]:
    """The op at each shape, with what its attributes need to be told."""
    names = {item.name for item in inference_specs()[op].attributes}
    if "axes" in names:
        for shape in shapes or (*ROWS, *(shape for shape, _ in IMAGES)):
            chosen = axes or ((-1,) if len(shape) < 4 else (1,))
            yield Case(op, shape, axes=chosen, groups=groups, channels_last=channels_last)
        return
    for shape, count in [(shape, groups or DEFAULT_GROUPS) for shape in shapes] or IMAGES:
        number = (groups or count) if "num_groups" in names else groups
        yield Case(op, shape, groups=number, axes=axes, channels_last=channels_last)


def _activations(op: str, wanted: Sequence[str], named: bool) -> Sequence[str]:
    """The activations to measure an op with; an op without any is measured once, unless the user wants one of it."""
    if "activation" in {item.name for item in inference_specs()[op].attributes}:
        return wanted or DEFAULT_ACTIVATIONS
    return wanted if named and wanted else ("none",)


# --- inputs and attributes ------------------------------------------------------------------------------------------

_ATTRIBUTES: dict[str, Callable[[Case], Any]] = {
    "num_groups": lambda case: DEFAULT_GROUPS if case.groups is None else case.groups,
    "epsilon": lambda case: 1e-5,
    "activation": lambda case: case.activation,
    "channels_last": lambda case: int(case.channels_last),
    "axes": lambda case: list(case.axes or (-1,)),
}


def _first_choice(item: AttributeSpec) -> Callable[[Case], Any]:
    """The value of an attribute that says nothing about speed: the first of its choices."""
    if not item.choices:
        raise UsageError(f"onnxnorm.bench.case does not know what to write for the attribute {item.name}")
    return lambda case: item.choices[0]


def _shapes(case: Case) -> list[tuple[int, ...]]:
    """Shapes of the inputs, from the words of their record."""
    attributes = case.attributes
    axes = attributes.get("axes", ())
    outside = [axis for axis in axes if not -len(case.shape) <= axis < len(case.shape)]
    if outside:
        raise UsageError(f"{case.label}: axis {outside[0]} is not one of a tensor of rank {len(case.shape)}")
    of_axes = tuple(case.shape[axis] for axis in sorted(axis % len(case.shape) for axis in axes))
    found = []
    for index, item in enumerate(case.spec.inputs):
        if index == 0 or item.name == "skip":
            found.append(case.shape)
        elif item.shape == "C":
            found.append((case.channels,))
        elif item.shape.isdecimal():
            found.append((int(item.shape),))
        else:
            found.append(of_axes)
    return found


def _normal(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    return rng.standard_normal(shape, np.float32)


def _around_one(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    return rng.uniform(0.5, 1.5, shape)


def _between_0_and_1(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    return rng.uniform(0.0, 1.0, shape)


def _branch_weights(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    raised = np.exp(rng.standard_normal(shape))
    return np.asarray(raised / raised.sum())


_VALUES: dict[str, Callable[[np.random.Generator, Sequence[int]], Array]] = {
    "scale": _around_one,
    "rho": _between_0_and_1,
    "mean_weight": _branch_weights,
    "var_weight": _branch_weights,
    "running_var": _around_one,
}
