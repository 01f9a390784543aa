"""The skip form of a norm: a residual input is added before it, and the sum is a second output.

    sum = X + skip, rounded to the element type;   Y = norm(sum)

The form is derived from the norm's own record: ``SKIP_SPEC = skip_form(SPEC)`` in the norm's file is all that it needs.
The sum is what the next block of a residual network goes on from; where nobody reads it, it is written as ''.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxnorm.spec.record import (
    Attributes,
    ErrorSample,
    FloatArray,
    InputSpec,
    NormSpec,
    NormValueError,
    OutputSpec,
    PartialShape,
    Sample,
    shape_text,
)

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue

SKIP = InputSpec("skip", "that of X")
SUM = OutputSpec("sum", "X", optional=True)
#: How much of the sum comes from X: powers of two that, like 1 minus them, lose no digit in any type.
_SHARES = (0.0, 0.5, 1.0, 2.0, -1.0)
#: Samples of the plain norms that a skip form takes over, beside the first, one with an activation and an empty one.
_LABELS = frozenset({"channels-last", "offset", "one-group-large", "rank-2"})


def skip_form(plain: NormSpec) -> NormSpec:
    """The record of ``Skip<name>``: inputs X, skip and what follows X in the plain op; outputs Y and sum."""

    def reference(inputs: Sequence[FloatArray], attributes: Attributes) -> tuple[FloatArray, ...]:
        x, skip, *rest = inputs
        with np.errstate(all="ignore"):
            total = x + skip
        return (*plain.reference([total, *rest], attributes), total)

    def body(b: BodyBuilder, inputs: Sequence[BodyValue]) -> Sequence[BodyValue]:
        x, skip, *rest = inputs
        total = added(b, x, skip)
        return [*plain.body(b, [total, *rest]), total]

    def check_shapes(shapes: Sequence[PartialShape | None], attributes: Attributes) -> None:
        plain.check_shapes([_common(*shapes[:2]), *shapes[2:]], attributes)

    return dataclasses.replace(
        plain,
        name=f"Skip{plain.name}",
        summary=f"{plain.name} of X + skip, with that sum as a second output",
        inputs=(plain.inputs[0], SKIP, *plain.inputs[1:]),
        outputs=(*plain.outputs, SUM),
        reference=reference,
        body=body,
        check_shapes=check_shapes,
        torch_ops=(),  # PyTorch writes an addition and a norm
        samples=lambda: _samples(plain),
        error_samples=lambda: _error_samples(plain),
    )


def added(b: BodyBuilder, x: BodyValue, skip: BodyValue) -> BodyValue:
    """X + skip in X's own type.

    Added in the compute type and rounded once more, as ONNX Runtime's CPU has no bfloat16 Add: that type has more than
    twice the digits of X's, so that the second rounding changes nothing.
    """
    total = b.narrow(b.op("Add", b.widen(x), b.widen(skip)), like=x)
    total.shape, total.type = x.shape, x.type
    return total


def _common(x: PartialShape | None, skip: PartialShape | None) -> PartialShape | None:
    """What is known of the shape that both have; NormValueError where they differ."""
    if x is None or skip is None:
        return skip if x is None else x
    if len(x) != len(skip) or any(
        have is not None and want is not None and have != want for have, want in zip(skip, x, strict=True)
    ):
        raise NormValueError(f"skip has shape {shape_text(skip)}; it must be {shape_text(x)}, the shape of X")
    return [have if want is None else want for have, want in zip(skip, x, strict=True)]


def _kind(sample: Sample) -> str:
    """What a sample shows, as far as a skip form is concerned."""
    if sample.inputs[0].size == 0:
        return "empty"
    if sample.label in _LABELS:
        return sample.label
    return "other" if sample.attributes.get("activation", "none") == "none" else "activation"


def _samples(plain: NormSpec) -> Iterator[Sample]:
    """Some of the plain op's samples, whose X is now the sum of two parts, which no element type has to round.

    What the norm does with the sum is the plain op's business: a few layouts, an activation, offset data, nothing.
    """
    seen: set[str] = set()
    for index, sample in enumerate(plain.samples()):
        kind = _kind(sample)
        if index > 0 and (kind == "other" or kind in seen):
            continue
        seen.add(kind)
        total, *rest = sample.inputs
        share = np.random.default_rng(total.size).choice(_SHARES, total.shape)
        yield Sample(sample.label, (share * total, (1.0 - share) * total, *rest), sample.attributes)


def _error_samples(plain: NormSpec) -> Iterator[ErrorSample]:
    """A few of the plain op's, and a skip of another size and of another rank."""
    for error in itertools.islice(plain.error_samples(), 3):
        x, *rest = error.inputs
        yield dataclasses.replace(error, inputs=(x, np.zeros_like(x), *rest))
    good = next(iter(plain.samples()))
    x, *rest = good.inputs
    wanted = ", ".join(map(str, x.shape))
    for label, skip in (("skip-size", np.zeros((x.shape[0], 1, *x.shape[2:]))), ("skip-rank", np.zeros(x.shape[1:]))):
        yield ErrorSample(label, (x, skip, *rest), good.attributes, rf"skip has shape.*must be .*[\[(]{wanted}[\])]")
