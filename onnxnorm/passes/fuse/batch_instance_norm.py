"""fuse/batch-instance-norm: batch norm plus instance norm of one tensor becomes onnxnorm BatchInstanceNorm.

    a x + b + c instance(x) + d  =  BatchInstanceNorm(x, scale = s, bias = a mean + b + d, rho)

    s (1 - rho) = c,   s rho / sqrt(var' + epsilon) = a

with one number per channel for each letter: the batch norm is a BatchNormalization in inference, or factors and shifts
by constants; the instance norm an onnxnorm GroupNorm of one group per channel; both in any order and grouping of
products with constants, sums and differences, as ``rho * bn(x) + (1 - rho) * in(x)`` and the authors' code have them.
A scale and shift behind the sum are taken in by fuse/channel-affine.

Of the BatchNormalization s rho is its scale, and its statistics are kept, but for its epsilon where the other norm has
another one: var' = var + epsilon of both. Where s = s rho + c is next to nothing, the same product is written with
var' * 4 and 2 s rho.

Refused:
    1. A value in between has other readers, is a graph output, or stands in an outer graph.
    2. A parameter is a graph input that a caller may override.
    3. The instance norm has an activation, or the result is of another element type than x.
    4. var' loses digits in the element type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.fuse.product import check_graph, check_private_nodes, put
from onnxnorm.passes.fuse.rms_norm_power import FLOAT_TYPES
from onnxnorm.passes.fuse.sizes import FloatArray, along_channels
from onnxnorm.passes.graph import attribute, constant_tensor, is_op, is_overridable, node_name
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement, Rule, rounded
from onnxnorm.runtime.arrays import float_info
from onnxnorm.spec.record import DOMAIN

_DEEPEST = 10


@dataclass(frozen=True)
class _Mix:
    """``batch * x + instance * standardized(x) + constant``, (C,) or () each; None for what is not there."""

    batch: FloatArray | None = None
    instance: FloatArray | None = None
    constant: FloatArray | None = None

    def map(self, change: Callable[[FloatArray], FloatArray]) -> _Mix:
        """Each part changed."""
        parts = (
            None if part is None else np.asarray(change(part)) for part in (self.batch, self.instance, self.constant)
        )
        return _Mix(*parts)

    def plus(self, other: _Mix) -> _Mix:
        """The sum."""
        pairs = ((self.batch, other.batch), (self.instance, other.instance), (self.constant, other.constant))
        return _Mix(*(b if a is None else a if b is None else np.asarray(a + b) for a, b in pairs))

    @property
    def is_constant(self) -> bool:
        return self.batch is None and self.instance is None


@dataclass
class _Reader:
    """Reads values as a mix of ``x`` and its instance norm.

    Attributes:
        x: the tensor.
        norm: the instance norm.
        nodes: what has been read.
        batch_norm: the BatchNormalization among them.
        per_channel: whether a constant varied along the channels.
        problem: why it is none, for a Refusal.

    """

    x: ir.Value
    norm: ir.Node
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    batch_norm: ir.Node | None = None
    per_channel: bool = False
    problem: str | None = None

    @property
    def last(self) -> bool:
        return bool(attribute(self.norm, "channels_last", 0))

    def read(self, value: ir.Value | None, depth: int = 0) -> _Mix | None:
        """The mix that the value is, None where it is none."""
        node = value.producer() if value is not None else None
        if value is None or depth > _DEEPEST:
            return None
        if value is self.x:
            return _Mix(batch=np.array(1.0))
        constant = self._constant(value)
        if constant is not None or node is None:
            return None if constant is None else _Mix(constant=constant)
        if node is self.norm:
            found = self._instance(node)
        elif is_op(node, "BatchNormalization"):
            found = self._batch(node)
        else:
            found = self._arithmetic(node, depth + 1)
        if found is not None:
            self.nodes[node] = None
        return found

    def _constant(self, value: ir.Value | None) -> FloatArray | None:
        """A number, or one per channel."""
        if value is None:
            return None
        tensor = constant_tensor(value)
        if tensor is None and is_overridable(value):
            tensor = value.const_value
            self.problem = self.problem or f"a caller may override its parameter {value.name}"
        if (
            tensor is None
            or tensor.dtype not in FLOAT_TYPES
            or not along_channels(list(tensor.shape), self.x, self.last)
        ):
            return None
        array = np.asarray(tensor.numpy()).astype(np.float64).reshape(-1)
        self.per_channel |= array.size > 1
        return array if array.size > 1 else array.reshape(())

    def _vector(self, value: ir.Value | None) -> FloatArray | None:
        """A parameter of a norm: one number per channel."""
        tensor = None if value is None else constant_tensor(value)
        if tensor is None and value is not None and is_overridable(value):
            tensor = value.const_value
            self.problem = self.problem or f"a caller may override its parameter {value.name}"
        return None if tensor is None else np.asarray(tensor.numpy()).astype(np.float64).reshape(-1)

    def _instance(self, node: ir.Node) -> _Mix | None:
        scale, bias = (self._vector(value) for value in node.inputs[1:3])
        return None if scale is None or bias is None else _Mix(instance=scale, constant=bias)

    def _batch(self, node: ir.Node) -> _Mix | None:
        """BatchNormalization in inference, channels first."""
        if node.inputs[0] is not self.x or self.last or attribute(node, "training_mode", 0):
            return None
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]) or self.batch_norm is not None:
            return None
        scale, bias, mean, var = (self._vector(value) for value in node.inputs[1:5])
        if scale is None or bias is None or mean is None or var is None:
            return None
        self.batch_norm, self.per_channel = node, True
        factor = scale / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        return _Mix(batch=factor, constant=bias - mean * factor)

    def _arithmetic(self, node: ir.Node, depth: int) -> _Mix | None:
        if node.op_type not in ("Add", "Sub", "Mul", "Div", "Neg") or not is_op(node, node.op_type):
            return None
        parts = [self.read(value, depth) for value in node.inputs]
        if any(part is None for part in parts):
            return None
        first, second = parts[0], parts[-1]
        assert first is not None
        assert second is not None
        if node.op_type == "Neg":
            return first.map(np.negative)
        if node.op_type in ("Add", "Sub"):
            return first.plus(second if node.op_type == "Add" else second.map(np.negative))
        if node.op_type == "Mul" and first.is_constant:
            first, second = second, first
        factor = second.constant
        if not second.is_constant or factor is None:
            return None
        return first.map(lambda part: part * factor if node.op_type == "Mul" else part / factor)


class FuseBatchInstanceNorm(Rule):
    """See the module."""

    id: ClassVar[str] = "fuse/batch-instance-norm"
    operators: ClassVar[frozenset[str]] = frozenset({"Add", "Sub"})
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A sum of a tensor and its instance norm, each with factors, of which one is per channel."""
        if context.in_function or not (is_op(node, "Add") or is_op(node, "Sub")):
            return None
        for norm in _instance_norms(node):
            x = norm.inputs[0]
            assert x is not None
            reader = _Reader(x, norm)
            with np.errstate(all="ignore"):
                mix = reader.read(node.outputs[0])
            if mix is None or mix.batch is None or mix.instance is None:
                continue
            if reader.batch_norm is None and not mix.batch.ndim:
                continue  # a residual beside the norm, with one factor for all channels
            return Match({str(index): item for index, item in enumerate(reader.nodes)}, {"reader": reader, "mix": mix})
        return None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 3 of the module."""
        reader: _Reader = match.facts["reader"]
        check_graph(match.nodes.values(), context)
        check_private_nodes(match.nodes.values(), list(match.nodes.values())[-1])
        if reader.problem is not None:
            raise Refusal(reader.problem)
        present = attribute(reader.norm, "activation", "none")
        if present != "none":
            raise Refusal("the instance norm has an activation", activation=present)
        if any(node.outputs[0].dtype != reader.x.dtype for node in match.nodes.values()):
            raise Refusal("it is not computed in the element type of x", x=reader.x.dtype)

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The onnxnorm op."""
        reader: _Reader = match.facts["reader"]
        norm, x, root = reader.norm, reader.x, list(match.nodes.values())[-1]
        assert x.dtype is not None
        exact = _parameters(reader, match.facts["mix"])
        _check_variance(exact["running_var"], attribute(norm, "epsilon", 1e-5), x.dtype)
        inputs = [x, *(context.constant(f"{node_name(norm)}_{name}", part, x.dtype) for name, part in exact.items())]
        attributes: dict[str, Any] = {
            "epsilon": attribute(norm, "epsilon", 1e-5),
            "activation": "none",
            "channels_last": int(reader.last),
        }
        new = ir.node("BatchInstanceNorm", inputs, attributes, domain=DOMAIN, name=norm.name)
        new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
        result = put([new], match.nodes.values(), [], root)
        result.subject, result.into = norm, node_name(norm)
        return result

    def subject(self, match: Match) -> ir.Node:
        """Refusals are about the instance norm."""
        reader: _Reader = match.facts["reader"]
        return reader.norm


def _instance_norms(node: ir.Node) -> Iterator[ir.Node]:
    """Norms of one group per channel of which the node may be a mix."""
    waiting, seen = [node], 0
    while waiting and seen < 24:
        current, seen = waiting.pop(0), seen + 1
        if current.domain == DOMAIN and current.op_type == "GroupNorm" and len(current.outputs) == 1:
            scale = current.inputs[1].shape if current.inputs[1] is not None else None
            groups = attribute(current, "num_groups", None)
            if current.inputs[0] is not None and scale is not None and list(scale) == [groups]:
                yield current
        elif any(is_op(current, name) for name in ("Add", "Sub", "Mul", "Div", "Neg")):
            waiting += [
                item for value in current.inputs if value is not None and (item := value.producer()) is not None
            ]


def _parameters(reader: _Reader, mix: _Mix) -> dict[str, FloatArray]:
    """scale, bias, rho and the running statistics for the instance norm's epsilon."""
    epsilon = attribute(reader.norm, "epsilon", 1e-5)
    channels = attribute(reader.norm, "num_groups", 0)
    zero = np.array(0.0)
    batch, instance, constant = (
        np.broadcast_to(zero if part is None else part, (channels,)).astype(np.float64)
        for part in (mix.batch, mix.instance, mix.constant)
    )
    mean, var = np.zeros(channels), np.full(channels, 1.0 - epsilon)
    if reader.batch_norm is not None:
        mean, var = (np.asarray(reader._vector(value)) for value in reader.batch_norm.inputs[3:5])
        var = var + attribute(reader.batch_norm, "epsilon", 1e-5) - epsilon
    share = batch * np.sqrt(var + epsilon)  # the scale of the batch norm
    near = np.abs(share + instance) < 0.1 * (np.abs(share) + np.abs(instance))
    var = np.where(near, 4.0 * (var + epsilon) - epsilon, var)
    share = np.where(near, 2.0 * share, share)
    scale = share + instance
    rho = np.divide(share, scale, out=np.zeros(channels), where=scale != 0)
    bias = constant + batch * mean
    return {"scale": scale, "bias": bias, "rho": rho, "running_mean": mean, "running_var": var}


def _check_variance(var: FloatArray, epsilon: float, dtype: ir.DataType) -> None:
    """Reason 4."""
    given = var + epsilon
    stored = rounded(var, dtype).astype(np.float64) + epsilon
    lost = np.abs(stored - given)
    if (lost > 2 * float(float_info(dtype.numpy()).eps) * given).any():
        raise Refusal("the running variance with both epsilons would lose digits", variance=float(var[lost.argmax()]))
