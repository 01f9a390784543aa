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

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.blend import Blend, find_blend
from onnxnorm.passes.fuse.moments import Polynomial, Reader
from onnxnorm.passes.fuse.product import attribute_of_epsilon, check_graph, check_private_nodes, put
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES, holds
from onnxnorm.passes.fuse.sizes import FloatArray, channel_vector
from onnxnorm.passes.graph import node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule
from onnxnorm.spec.record import DOMAIN

#: Relative difference of numbers that are the same: what float32 leaves of a few operations.
_SAME = 1e-6


class FuseSwitchableNorm(Rule):
    """See the module."""

    recognizes: ClassVar[bool] = True
    id: ClassVar[str] = "fuse/switchable-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Mul", "Div", "Add", "Sub"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A tensor less a blend of means, divided by the root of a blend of variances."""
        if context.in_function or node.outputs[0].dtype not in FLOAT_TYPES:
            return None
        blend = find_blend(node, context.opset)
        if blend is None:
            return None
        nodes = {str(index): item for index, item in enumerate(dict.fromkeys([*blend.reader.nodes, *blend.nodes]))}
        return Match(nodes, {"blend": blend})

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1, 5, 6 and 8 of the module."""
        blend: Blend = match.facts["blend"]
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
        blend: Blend = match.facts["blend"]
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
        bias = np.zeros(channels)
        if blend.bias is not None:
            bias = channel_vector(blend.bias, x, reader.channels_last, "bias")
        parts = {
            "scale": scale,
            "bias": bias,
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
