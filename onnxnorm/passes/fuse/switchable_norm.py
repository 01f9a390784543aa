"""fuse/switchable-norm: a switchable norm in primitive operators becomes onnxnorm SwitchableNorm.

    (x - (a m + b M + c)) / sqrt(e v' + f (V' + Q - M^2) + g + epsilon)  =  SwitchableNorm(x)

with the weights (a, b, 1 - a - b) and (e, f, 1 - e - f), the running mean c / (1 - a - b) and the running variance
g / (1 - e - f), in the letters of ``moments``, for x of (N, C, *) or (N, *, C); v' is v n / (n - 1), the unbiased
variance of the authors' code, and V' its mean over the channels. Read as polynomials, so that neither the spelling of
the variances nor the order and grouping of the sums matters: the layer's variance as ``mean(var_in + mean_in^2) -
mean_ln^2`` or from values, a branch left out, weights as the numbers that a softmax gave. For x of (N, C) there is no
v, and Q - M^2 is unbiased. Where the third weight is next to nothing though there is a running statistic, it is 1 and
c or g the statistic. Scale and shift behind it are taken in by fuse/channel-affine.

Refused:
    1. A value in between has other readers, is a graph output, or stands in an outer graph.
    2. The layer's variance is none that the op has: V, Q and -M^2 have not one factor. That of biased variances has
       none, unless its weight is 0; a biased variance of instances has one where the number of positions is static.
    3. The instances' variance is biased, and the number of positions is not known.
    4. Mean or variance holds another term, or a weight per channel.
    5. A parameter is a graph input that a caller may override.
    6. The number of channels is not known.
    7. epsilon is negative, or not a number that the op's attribute, a float32, can say.
    8. A statistic is kept in a type that is narrower than x, or wider than the op computes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.factors import addends_of, factors_of
from onnxnorm.passes.fuse.moments import Polynomial, Reader, plus
from onnxnorm.passes.fuse.product import attribute_of_epsilon, check_graph, check_private_nodes, put
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, holds
from onnxnorm.passes.fuse.sizes import FloatArray, channel_vector
from onnxnorm.passes.graph import constant_tensor, is_op, node_name, scalar_of
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

#: Relative difference of numbers that are the same: what float32 leaves of a few operations.
_SAME = 1e-6


@dataclass(frozen=True)
class _Blend:
    """``weights * mean / sqrt(spread + epsilon)``, two polynomials in the moments of x.

    Attributes:
        reader: what was read.
        mean: the numerator, x with a mean taken away.
        spread: the variance.
        epsilon: a number that is added to it.
        weights: other factors, and those that it is divided by.
        nodes: what computes it besides the reader's nodes, the root last.

    """

    reader: Reader
    mean: Polynomial
    spread: Polynomial
    epsilon: float
    weights: tuple[tuple[ir.Value, bool], ...]
    nodes: tuple[ir.Node, ...]


class FuseSwitchableNorm(Rule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/switchable-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A tensor less a blend of means, divided by the root of a blend of variances."""
        if context.in_function or node.outputs[0].dtype not in FLOAT_TYPES:
            return None
        if not (is_op(node, "Mul") or is_op(node, "Div")):
            return None
        factors = factors_of(node)
        sides = [*((value, False) for value in factors.above), *((value, True) for value in factors.below)]
        for divisor, below in sides:
            root = _under_root(divisor, below)
            if root is None:
                continue
            for centred, upside_down in sides:
                if upside_down or centred is divisor or not _is_difference(centred):
                    continue
                weights = tuple(item for item in sides if item[0] not in (centred, divisor))
                if any(value in node.inputs for value, _ in weights) and len(node.inputs) > 1:
                    continue  # the other operand is the whole norm, and was asked
                blend = _blend(centred, root, weights, (*factors.nodes[1:], node), context.opset)
                if blend is not None:
                    nodes = {str(index): item for index, item in enumerate([*blend.reader.nodes, *blend.nodes])}
                    return Match(nodes, {"blend": blend})
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1, 5, 6 and 8 of the module."""
        blend: _Blend = match.facts["blend"]
        reader = blend.reader
        check_graph(match.nodes.values(), context)
        check_private_nodes(match.nodes.values(), self.subject(match), reader.shared)
        if reader.problem is not None:
            raise Refusal(reader.problem)
        if reader.channels is None:
            raise Refusal("the number of channels is not known", x=str(reader.x.shape))
        computed = ir.DataType.DOUBLE if reader.x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        for dtype in reader.dtypes:
            if not holds(dtype, reader.x.dtype):
                raise Refusal("a statistic is kept in a type that is narrower than x", dtype=dtype, x=reader.x.dtype)
            if not holds(computed, dtype):
                raise Refusal("a statistic is kept in a type that is wider than the op computes in", dtype=dtype)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        blend: _Blend = match.facts["blend"]
        reader, root = blend.reader, self.subject(match)
        x = reader.x
        channels = reader.channels
        assert x.dtype is not None
        assert channels is not None
        scale, mean_weights, running_mean = _mean(blend.mean, channels)
        for value, below in blend.weights:
            exact = channel_vector(value, x, reader.channels_last, "weight")
            scale = scale / exact if below else scale * exact
        var_weights, running_var = _variance(reader, blend.spread, channels)
        parts = {
            "scale": scale,
            "bias": np.zeros(channels),
            "mean_weight": mean_weights,
            "var_weight": var_weights,
            "running_mean": running_mean,
            "running_var": running_var,
        }
        inputs = [x, *(context.constant(f"{node_name(root)}_{name}", exact, x.dtype) for name, exact in parts.items())]
        attributes: dict[str, Any] = {
            "epsilon": attribute_of_epsilon(blend.epsilon, x.dtype),
            "activation": "none",
            "channels_last": int(reader.channels_last),
        }
        new = ir.node("SwitchableNorm", inputs, attributes, domain=DOMAIN, name=root.name)
        new.outputs[0].dtype, new.outputs[0].shape = x.dtype, x.shape
        shared = [item for item in reader.shared if item.graph is root.graph]
        return put([new], match.nodes.values(), shared, root)


# --- what it is ---------------------------------------------------------------------------------------------------


def _under_root(value: ir.Value, below: bool) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """What the value is the root of, or, above the line, the inverse root; with the nodes."""
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    if is_op(node, "Pow"):
        exponent = scalar_of(node.inputs[1], 8)
        return (node.inputs[0], (node,)) if exponent == (0.5 if below else -0.5) else None
    if not is_op(node, "Sqrt"):
        return None
    inner = node.inputs[0].producer()
    if below:
        return node.inputs[0], (node,)
    if inner is not None and is_op(inner, "Reciprocal") and inner.inputs[0] is not None:
        return inner.inputs[0], (inner, node)
    if (
        inner is not None
        and is_op(inner, "Div")
        and scalar_of(inner.inputs[0], 0) == 1.0
        and inner.inputs[1] is not None
    ):
        return inner.inputs[1], (inner, node)
    return None


def _is_difference(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and (is_op(node, "Sub") or is_op(node, "Add"))


def _blend(
    centred: ir.Value,
    root: tuple[ir.Value, tuple[ir.Node, ...]],
    weights: tuple[tuple[ir.Value, bool], ...],
    nodes: tuple[ir.Node, ...],
    opset: int,
) -> _Blend | None:
    """The two polynomials, where they blend statistics of a tensor that the centred value is made of."""
    for x in _tensors(centred):
        rank = len(x.shape or ())
        for last in (False, True) if rank > 2 else (False,):
            reader = Reader(x, last, opset)
            whole = tuple(range(rank))
            mean = reader.read(centred)
            if rank < 2 or mean is None or mean.layout != whole:
                continue
            spread = _spread(reader, root[0])
            if spread is None or not _is_blend(mean.terms, spread[0]):
                continue
            if Reader.aligned(spread[3], whole) != whole:
                continue
            joined = (*root[1], *spread[2], *nodes)
            return _Blend(reader, mean.terms, spread[0], spread[1], weights, tuple(dict.fromkeys(joined)))
    return None


def _tensors(centred: ir.Value) -> Iterator[ir.Value]:
    """What a mean may have been taken away from: the first operands of differences, the operands of sums."""
    waiting, seen = [centred], 0
    while waiting and seen < 12:
        value, seen = waiting.pop(0), seen + 1
        node = value.producer()
        if node is not None and is_op(node, "Sub") and node.inputs[0] is not None:
            waiting.append(node.inputs[0])
        elif node is not None and is_op(node, "Add"):
            waiting += [item for item in node.inputs if item is not None]
        if value is not centred and value.shape is not None and constant_tensor(value) is None:
            yield value


def _spread(reader: Reader, value: ir.Value) -> tuple[Polynomial, float, list[ir.Node], tuple[int | None, ...]] | None:
    """The variance, the numbers added to it, the Adds that do it, and the layout."""
    node = value.producer()
    addends, adds = addends_of(node) if node is not None and is_op(node, "Add") else ([value], [])
    terms: Polynomial = {}
    layout: tuple[int | None, ...] | None = ()
    epsilon = 0.0
    for addend in addends:
        number = scalar_of(addend, reader.rank)
        if number is not None:
            epsilon += number
            continue
        part = reader.read(addend)
        layout = None if part is None or layout is None else Reader.aligned(layout, part.layout)
        if part is None or layout is None:
            return None
        terms = plus(terms, part.terms)
    return None if layout is None else (terms, epsilon, adds, layout)


def _is_blend(mean: Polynomial, spread: Polynomial) -> bool:
    """Whether x was centred, and mean or variance is of more than one kind."""
    centre = ("x",) if ("x",) in mean else ("m",)
    kinds = [{_kind(letters) for letters in terms if letters != ("x",)} for terms in (mean, spread)]
    if centre == ("m",):  # of rank 2: x itself is no mean
        kinds[0].discard("instance")
    return centre in mean and any(len(found) > 1 for found in kinds) and not any("x" in letters for letters in spread)


def _kind(letters: tuple[str, ...]) -> str:
    if not letters:
        return "batch"
    return "instance" if {"m", "v"} & set(letters) else "layer"


# --- the op's parameters ------------------------------------------------------------------------------------------


def _take(terms: Polynomial, *letters: str) -> float:
    """The coefficient, which is taken out; Refusal (reason 4) where it varies over the channels."""
    number = terms.pop(tuple(sorted(letters)), np.array(0.0))
    if number.ndim and (number != number[0]).any():
        raise Refusal("the weight of a statistic varies over the channels", statistic="".join(letters))
    return float(number.reshape(-1)[0])


def _nothing_left(terms: Polynomial, what: str) -> None:
    left = {letters: float(np.abs(number).max()) for letters, number in terms.items() if np.abs(number).max() > _SAME}
    if left:
        letters, number = next(iter(left.items()))
        raise Refusal(
            f"its {what} has a term that is none of a switchable norm's", term="*".join(letters), weight=number
        )


def _third(first: float, second: float, running: FloatArray, missing: float) -> tuple[FloatArray, FloatArray]:
    """The three weights and the running statistic, whose product with the third weight is ``running``."""
    third = 1.0 - first - second
    if not _SAME < third <= 1.0:
        third = 1.0 if running.any() else 0.0
    statistic = running / third if third else np.full(running.shape, missing)
    return np.array([first, second, third]), statistic


def _mean(given: Polynomial, channels: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scale, mean_weight and running_mean of ``scale * (x - mean)``."""
    terms = dict(given)
    scale = terms.pop(("x",), None)
    if scale is None:  # of rank 2
        scale = terms.pop(("m",))
    scale = np.broadcast_to(np.asarray(scale), (channels,)).astype(np.float64)
    if (scale == 0).any():
        raise Refusal("x is multiplied by 0 in front of the norm")
    terms = {
        letters: -number / (scale if scale.min() != scale.max() else scale[0]) for letters, number in terms.items()
    }
    constant = np.broadcast_to(terms.pop((), np.array(0.0)), (channels,)).astype(np.float64)
    instance, layer = _take(terms, "m"), _take(terms, "M")
    _nothing_left(terms, "mean")
    weights, running = _third(instance, layer, constant, 0.0)
    return scale, weights, running


def _variance(reader: Reader, given: Polynomial, channels: int) -> tuple[FloatArray, FloatArray]:
    """var_weight and running_var."""
    terms = dict(given)
    constant = np.broadcast_to(terms.pop((), np.array(0.0)), (channels,)).astype(np.float64)
    within, between = _take(terms, "Q"), -_take(terms, "M", "M")
    count = reader.count
    if not reader.positions:
        instance, layers = 0.0, [within, between]
    else:
        instance = _unbiased(terms, "v", count)
        layers = [_unbiased(terms, "V", count), within, between]
    _nothing_left(terms, "variance")
    if max(layers) - min(layers) > _SAME * max(map(abs, layers)):
        raise Refusal(
            "its layer variance is not the mean of unbiased variances with the variance of the means",
            factors=[float(f"{number:.6g}") for number in layers],
        )
    layer = layers[-1] if reader.positions else layers[-1] * (channels - 1) / channels
    return _third(instance, layer, constant, 1.0)


def _unbiased(terms: Polynomial, letter: str, count: int | None) -> float:
    """The factor of the unbiased variance."""
    unbiased, biased = _take(terms, letter, "n", "d"), _take(terms, letter)
    if not biased:
        return unbiased
    if count is None:
        raise Refusal("its variance is the biased one, and the number of positions is not known")
    return unbiased + biased * (count - 1) / count
