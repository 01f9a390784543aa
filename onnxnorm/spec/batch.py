"""What the ops of training graphs share: statistics over the batch, and the running statistics that follow them.

X is (N, C, *). A batch statistic of a channel runs over the M = N * S values that the channel has in the batch, S the
number of positions. A running statistic moves towards the batch's by ``momentum``, in PyTorch's sense:

    next = running + momentum * (batch - running)

``momentum`` is an input and not an attribute: PyTorch's cumulative average (``momentum=None``) is 1 / k at the k-th
step, which a graph computes from its own counter. With no values at all (M = 0) PyTorch leaves the state as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxnorm.spec.record import (
    Attributes,
    FloatArray,
    InputSpec,
    NormValueError,
    OutputSpec,
    PartialShape,
    check_channels,
    mean_of,
)

if TYPE_CHECKING:
    from onnxnorm.spec.body import BodyBuilder, BodyValue
    from onnxnorm.spec.translation import Translator

X = InputSpec("X", "(N, C, *)")
SCALE, BIAS = InputSpec("scale", "C"), InputSpec("bias", "C")
RUNNING_MEAN, RUNNING_VAR = InputSpec("running_mean", "C"), InputSpec("running_var", "C")
MOMENTUM = InputSpec("momentum", "1")
Y = OutputSpec("Y", "X")
NEXT_MEAN, NEXT_VAR = OutputSpec("next_running_mean", "C"), OutputSpec("next_running_var", "C")


def check_batch(
    inputs: Sequence[InputSpec], shapes: Sequence[PartialShape | None], attributes: Attributes
) -> int | None:
    """``check_channels``, and more than one value per channel, as PyTorch asks for in training."""
    channels = check_channels(inputs, shapes, attributes)
    x = shapes[0]
    if x is not None and _is_one((x[0], *x[2:])):
        raise NormValueError(
            f"X has shape {list(x)}; in training it must have more than 1 value per channel: without its mean nothing "
            "is left of one value"
        )
    return channels


def check_positions(x: PartialShape | None) -> None:
    """More than one position in each instance, as PyTorch asks for where unbiased instance variances are taken."""
    if x is not None and _is_one(x[2:]):
        raise NormValueError(
            f"X has shape {list(x)}; in training it must have more than 1 spatial element: the unbiased variance of "
            "one value is 0/0"
        )


def _is_one(sizes: PartialShape) -> bool:
    """Whether the product of the sizes is known to be 1."""
    return all(size == 1 for size in sizes)


# --- translation ---------------------------------------------------------------------------------------------------


class TrainingCall:
    """Writes a node of a training op from the arguments of its PyTorch operator.

    All inputs of an op have one element type, while PyTorch takes half inputs with a float32 state and keeps that
    state's type. The node then works in the wider of the two types, which is what the operator computes in, and each
    result goes back to the type that it came in. Values are the translator's own, which know their ``dtype``.
    """

    def __init__(self, g: Translator, input: Any, running: Any) -> None:
        self._g, self._input = g, input
        self._typed = running if running.dtype.bitwidth > input.dtype.bitwidth else input

    def vector(self, value: Any, fill: float) -> Any:
        """One value per channel; all ``fill`` for None."""
        if value is None:
            value = self._g.channel_parameter(None, self._input, fill)
            return value if self._same(self._input) else self._g.parameter(value, self._typed, (), fill)
        return self._g.parameter(value, self._typed, (), fill)

    def scalar(self, value: Any) -> Any:
        """A number or a tensor of one element."""
        return self._g.scalar_parameter(value, self._typed)

    def node(self, name: str, *inputs: Any, state: Sequence[Any], **attributes: Any) -> tuple[Any, ...]:
        """The op on X and ``inputs``: Y in X's type, and the next state, each in the type of its ``state``."""
        g, x = self._g, self._input
        wide = x if self._same(x) else g.parameter(x, self._typed, (), 0.0)
        y, *following = g.norm(name, wide, *inputs, **attributes)
        y = y if self._same(x) else g.parameter(y, x, (), 0.0)
        back = (
            value if self._same(old) else g.parameter(value, old, (), 0.0)
            for value, old in zip(following, state, strict=True)
        )
        return (y, *back)

    def _same(self, value: Any) -> bool:
        return bool(value.dtype == self._typed.dtype)


# --- float64 NumPy -------------------------------------------------------------------------------------------------


def flattened(x: FloatArray) -> FloatArray:
    """X as (N, C, S)."""
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def batch_moments(flat: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(x - mean as (N, C, S), mean (C,), biased variance (C,)) of X as (N, C, S)."""
    mean = mean_of(flat, axis=(0, 2))
    centred, mean = _centred(flat, mean, axis=(0, 2))
    with np.errstate(all="ignore"):
        var = mean_of(np.square(centred), axis=(0, 2))
    return centred, mean.reshape(-1), var.reshape(-1)


def instance_moments(flat: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(x - mean as (N, C, S), mean (N, C, 1), biased variance (N, C, 1)) of each instance of X as (N, C, S)."""
    centred, mean = _centred(flat, mean_of(flat, axis=2), axis=2)
    with np.errstate(all="ignore"):
        return centred, mean, mean_of(np.square(centred), axis=2)


def _centred(flat: FloatArray, mean: FloatArray, axis: int | tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """(flat - mean, mean), both corrected by what rounding of a large mean left; an infinite mean stays one."""
    with np.errstate(all="ignore"):
        centred = flat - mean
        rest = mean_of(centred, axis=axis)
        rest = np.where(np.isnan(rest), 0.0, rest)
        return centred - rest, mean + rest


def unbiased(var: FloatArray, flat: FloatArray) -> FloatArray:
    """The variance with M - 1 in place of M."""
    count = np.float64(flat.shape[0] * flat.shape[2])
    with np.errstate(all="ignore"):
        return np.asarray(var * (count / (count - 1.0)))


def moved(running: FloatArray, batch: FloatArray, momentum: FloatArray, flat: FloatArray) -> FloatArray:
    """The running statistic after this batch."""
    if flat.shape[0] * flat.shape[2] == 0:
        return np.array(running)
    with np.errstate(all="ignore"):
        return np.asarray(running + momentum.reshape(()) * (batch - running))


# --- function bodies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchMean:
    """Values of a body: X centred by the batch's mean as (N, C, S), and that mean in two parts of shape [1, C, 1].

    The mean is the sum of ``rough`` and ``rest``, which is what keeps offset data exact. ``count`` is M, shape [1],
    int64; ``flat`` is X as (N, C, S), and ``shape`` X's own.
    """

    shape: BodyValue
    flat: BodyValue
    centred: BodyValue
    rough: BodyValue
    rest: BodyValue
    count: BodyValue


@dataclass(frozen=True)
class BatchMoments(BatchMean):
    """``BatchMean``, and the biased variance of shape [1, C, 1]."""

    var: BodyValue


def body_centred(b: BodyBuilder, x: BodyValue, channels_of: BodyValue) -> BatchMean:
    """The batch's mean, added up in float64, and X without it; ``channels_of`` is a vector of length C."""
    shape = b.op("Shape", x)
    items, positions = b.slice(shape, 0, 1), b.product(b.slice(shape, 2, np.iinfo(np.int64).max))
    flat = b.reshape(b.widen(x), b.op("Concat", items, b.op("Shape", channels_of), positions, axis=0))
    centred, rough, rest = _body_centred(b, flat, axes=(2, 0))
    return BatchMean(shape, flat, centred, rough, rest, b.op("Mul", items, positions))


def _body_centred(b: BodyBuilder, x: BodyValue, axes: Sequence[int]) -> tuple[BodyValue, BodyValue, BodyValue]:
    """(x - rough - rest, rough, rest), where rough + rest is the mean over the axes.

    For float32 the mean is taken in float64 and split in two. For float64 the rest is the mean of what is left. A rest
    that is NaN, which an infinite mean leaves, counts as 0, so that the mean stays infinite as in PyTorch.
    """
    wide = b.compute == ir.DataType.DOUBLE
    mean = b.mean(x if wide else b.op("Cast", x, to=ir.DataType.DOUBLE), axes)
    rough = mean if wide else b.op("Cast", mean, to=b.compute)
    centred = b.op("Sub", x, rough)
    if wide:
        rest = b.mean(centred, axes)
    else:
        rest = b.op("Cast", b.op("Sub", mean, b.op("Cast", rough, to=ir.DataType.DOUBLE)), to=b.compute)
    rest = b.op("Where", b.op("Equal", rest, rest), rest, b.scalar(0.0))
    return b.op("Sub", centred, rest), rough, rest


def body_moments(b: BodyBuilder, x: BodyValue, channels_of: BodyValue) -> BatchMoments:
    """The batch's mean and variance, each added up in float64."""
    mean = body_centred(b, x, channels_of)
    var = b.long_mean(b.op("Mul", mean.centred, mean.centred), axes=(2, 0))
    return BatchMoments(**vars(mean), var=var)


@dataclass(frozen=True)
class InstanceMoments:
    """Values of a body: X centred by each instance's mean as (N, C, S), and statistics of shape [N, C, 1].

    The mean is the sum of ``rough`` and ``rest``; ``var`` is the biased variance. ``items``, ``positions`` and their
    product ``count`` have shape [1], int64.
    """

    shape: BodyValue
    centred: BodyValue
    rough: BodyValue
    rest: BodyValue
    var: BodyValue
    items: BodyValue
    positions: BodyValue
    count: BodyValue


def body_instance_moments(b: BodyBuilder, x: BodyValue, channels_of: BodyValue) -> InstanceMoments:
    """Each instance's mean and variance, added up in float64; ``channels_of`` is a vector of length C."""
    shape = b.op("Shape", x)
    items, positions = b.slice(shape, 0, 1), b.product(b.slice(shape, 2, np.iinfo(np.int64).max))
    flat = b.reshape(b.widen(x), b.op("Concat", items, b.op("Shape", channels_of), positions, axis=0))
    centred, rough, rest = _body_centred(b, flat, axes=(2,))
    var = b.long_mean(b.op("Mul", centred, centred), axes=(2,))
    return InstanceMoments(shape, centred, rough, rest, var, items, positions, b.op("Mul", items, positions))


@dataclass(frozen=True)
class Pool:
    """Values of a body: statistics over one axis of the instances (N, C, 1).

    ``mean`` and ``var`` are those of all values of the pool; ``distance`` is each instance's mean measured from the
    pool's, in which a large common offset has cancelled.
    """

    mean: BodyValue
    distance: BodyValue
    var: BodyValue


def body_pool(
    b: BodyBuilder, moments: InstanceMoments, var_in: BodyValue, axis: int, factor: BodyValue | None = None
) -> Pool:
    """Statistics over an axis of the instances, whose variances are ``var_in``.

    The variance between the instances is the biased one, times ``factor`` where that is given.
    """

    def centred(part: BodyValue) -> BodyValue:
        part = b.op("Sub", part, b.long_mean(part, axes=(axis,)))
        return b.op("Sub", part, b.long_mean(part, axes=(axis,)))

    mean = b.op("Add", *(b.long_mean(part, axes=(axis,)) for part in (moments.rough, moments.rest)))
    distance = b.op("Add", centred(moments.rough), centred(moments.rest))
    between = b.long_mean(b.op("Mul", distance, distance), axes=(axis,))
    between = between if factor is None else b.op("Mul", between, factor)
    return Pool(mean, distance, b.op("Add", b.long_mean(var_in, axes=(axis,)), between))


def bessel(b: BodyBuilder, count: BodyValue) -> BodyValue:
    """The ratio count / (count - 1) of an int64 count of shape [1]: from the biased to the unbiased variance."""
    less = b.op("Sub", count, b.ints(1))
    return b.op("Div", b.op("Cast", count, to=b.compute), b.op("Cast", less, to=b.compute))


def body_unbiased(b: BodyBuilder, moments: BatchMoments) -> BodyValue:
    """The variance with M - 1 in place of M."""
    return b.op("Mul", moments.var, bessel(b, moments.count))


def per_channel(b: BodyBuilder, vector: BodyValue) -> BodyValue:
    """A vector of length C in the compute type, as [1, C, 1]."""
    return b.reshape(b.widen(vector), b.op("Concat", b.ints(1), b.op("Shape", vector), b.ints(1), axis=0))


def body_moved(
    b: BodyBuilder, running: BodyValue, batch: BodyValue, momentum: BodyValue, moments: BatchMoments
) -> BodyValue:
    """The running statistic [C] after this batch, whose statistic is [1, C, 1]."""
    return body_moved_over(b, running, batch, momentum, moments.count)


def body_moved_over(
    b: BodyBuilder, running: BodyValue, batch: BodyValue, momentum: BodyValue, count: BodyValue
) -> BodyValue:
    """``body_moved`` where the number of values of a channel (shape [1]) is known by itself."""
    now = per_channel(b, running)
    step = b.op("Mul", b.op("Sub", batch, now), b.widen(momentum))
    following = b.op("Where", b.op("Equal", count, b.ints(0)), now, b.op("Add", now, step))
    return b.narrow(b.reshape(following, b.op("Shape", running)), like=running)


def body_batch_norm(b: BodyBuilder, inputs: Sequence[BodyValue], epsilon: float) -> BodyValue:
    """BatchNormalization of (X, scale, bias, mean, var) in an eval form.

    In float64 epsilon is added to the variance: the attribute holds it in float32 only.
    """
    *rest, var = inputs
    if b.compute == ir.DataType.DOUBLE:
        return b.op("BatchNormalization", *rest, b.op("Add", var, b.float_attribute("epsilon")), epsilon=0.0)
    return b.op("BatchNormalization", *inputs, epsilon=epsilon)


def body_affine_eval(
    b: BodyBuilder,
    x: BodyValue,
    scale: BodyValue | None,
    bias: BodyValue,
    running_mean: BodyValue,
    deviation: BodyValue | None,
) -> BodyValue:
    """BatchNormalization that computes (x - running_mean) / deviation * scale + bias; None stands for ones.

    ``deviation`` [C] is in the compute type. It is divided into the scale, and the variance is 1: its square could
    overflow a half type where scale / deviation is an ordinary number.
    """
    ones = b.op("Expand", b.scalar(1.0), b.op("Shape", bias))
    ratio = ones if scale is None else b.widen(scale)
    ratio = ratio if deviation is None else b.op("Div", ratio, deviation)
    factor, variance = (b.narrow(value, like=bias) for value in (ratio, ones))
    return b.op("BatchNormalization", x, factor, bias, running_mean, variance, epsilon=0.0)
