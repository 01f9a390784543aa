"""What a rewrite rule is.

A rule looks at one node (``match``), judges whether the rewrite is legal (``check``), and describes the result
(``rewrite``) without touching the graph: the engine applies it, or has it verified first. A rule that must not fire
raises Refusal with the reason and the values that caused it, which becomes a Decision.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import is_overridable, node_name, op_name, tensor_of
from onnxnorm.passes.large import Exact, Room, spilled, together
from onnxnorm.passes.names import Names
from onnxnorm.runtime.arrays import float_info, is_float


class Refusal(Exception):
    """The rule's answer that it must not fire here; ``values`` are what decided."""

    def __init__(self, reason: str, **values: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.values = values


@dataclass
class Match:
    """What a rule found: the nodes that it would replace (in graph order), by role, and facts that it needs again."""

    nodes: dict[str, ir.Node]
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, role: str) -> ir.Node:
        return self.nodes[role]


@dataclass
class Replacement:
    """What a rule wants instead.

    Attributes:
        nodes: new nodes in order.
        outputs: each old value that lives on, with the new value in its place.
        removed: nodes to take away; the new nodes take the place of the last one, behind which all that they read is
            known.
        subject: the normalization that this is about, for the Decision.
        into: name of the node that it became part of.
        values: numbers worth telling.
        tolerance: by how much of the output's scale both sides may differ when they are verified in float64.
        before: the nodes that compute what is replaced, where some of them stay because others read them, too; None
            when they are ``removed``.

    Without new nodes, a constant takes the place of each of the outputs.

    """

    nodes: Sequence[ir.Node]
    outputs: Mapping[ir.Value, ir.Value]
    removed: Sequence[ir.Node]
    subject: ir.Node
    into: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-9
    before: Sequence[ir.Node] | None = None


class Context:
    """The graph around a node: its opset, fresh names, new constants. Nothing here changes the graph.

    Args:
        graph: the graph.
        opset: version of the standard domain, None where it is not imported.
        in_function: whether the graph is (part of) a model-local function.
        names: all names of the model; fresh ones are added.
        initializers: whether new constants become initializers; Constant nodes otherwise.
        room: what new constants may take of the memory; as much as they like where it is left out.

    """

    def __init__(
        self,
        graph: ir.Graph,
        opset: int | None,
        in_function: bool,
        names: Names,
        initializers: bool,
        room: Room | None = None,
    ) -> None:
        self.graph = graph
        self.opset = opset or 0
        self.in_function = in_function
        self.initializers = initializers
        self._names = names
        self._room = room

    def fresh_name(self, wish: str) -> str:
        """A name that no value or node of the model has, as near to ``wish`` as possible."""
        return self._names.fresh(wish)

    def constant(
        self, wish: str, exact: npt.NDArray[Any] | Exact, dtype: ir.DataType, *, infinite: bool = False
    ) -> ir.Value:
        """A new constant: ``exact`` (float64) rounded once to ``dtype``; Refusal when it overflows the type.

        With ``infinite`` infinities stand for themselves, as the bounds of a clamp.
        """
        name = self.fresh_name(wish)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(exact.shape))
        if isinstance(exact, Exact):
            value.const_value, value.meta["exact"] = ir.Tensor(rounded(exact, dtype), dtype=dtype, name=name), exact
            return value
        known = np.where(np.isinf(exact), 0.0, exact) if infinite else exact
        array = rounded(known, dtype)
        if infinite:
            array = np.where(np.isinf(exact), exact.astype(array.dtype), array)
        array = array if self._room is None else self._room.settle(array)
        value.const_value = ir.Tensor(array, dtype=dtype, name=name)
        value.meta["exact"] = exact
        return value


class Rule(abc.ABC):
    """One rewrite. ``id`` is what logs, ``--disable``, node metadata and test ids use.

    Attributes:
        id: "<stage>/<name-with-dashes>", the path of the rule's file in ``onnxnorm/passes``.
        operators: operator types at which ``match`` is asked.
        action: what a Decision calls a successful rewrite.
        recognizes: it finds normalizations in primitive operators; its refusals are told though these are no norms.
        general: its refusal says less than that of another rule, which it does not replace.

    """

    recognizes: ClassVar[bool] = False
    general: ClassVar[bool] = False
    id: ClassVar[str]
    operators: ClassVar[frozenset[str]]
    action: ClassVar[Action]

    @abc.abstractmethod
    def match(self, node: ir.Node, context: Context) -> Match | None:
        """What would be replaced, or None when the structure is not this rule's."""

    @abc.abstractmethod
    def check(self, match: Match, context: Context) -> None:
        """Raises Refusal when the rewrite would be wrong."""

    @abc.abstractmethod
    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The replacement; may raise Refusal when the numbers do not allow it."""

    def subject(self, match: Match) -> ir.Node:
        """The normalization that a refusal is about: the last matched node unless a rule says otherwise."""
        return list(match.nodes.values())[-1]


def rounded(exact: npt.NDArray[Any] | Exact, dtype: ir.DataType) -> npt.NDArray[Any]:
    """``exact`` in ``dtype``; Refusal when a value is not finite or overflows the type."""
    if isinstance(exact, Exact):
        return spilled(exact.shape, dtype.numpy(), (rounded(piece, dtype) for _, piece in exact.pieces()))
    exact = np.asarray(exact, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        result = exact.astype(dtype.numpy())
    if not np.isfinite(result.astype(np.float64)).all():
        largest = float(np.abs(exact).max(initial=0.0))
        if not np.isfinite(largest):
            raise Refusal("a folded value would not be finite", value=largest)
        raise Refusal(f"a folded value would overflow {dtype.name.lower()}", value=f"{largest:.6g}")
    return result


def check_underflow(weight: npt.NDArray[Any] | Exact, dtype: ir.DataType, axis: int) -> None:
    """Refusal when rounding a weight to ``dtype`` loses more than the type's precision in a channel.

    A weight meets inputs of any size, so each channel along ``axis`` must keep the type's epsilon relative to its
    largest weight. A bias needs no such check: what it loses is below the spacing of the output's own type.
    """
    info = float_info(dtype.numpy())
    others = tuple(index for index in range(weight.ndim) if index != axis)
    lost, largest = np.zeros(weight.shape[axis]), np.zeros(weight.shape[axis])
    for index, (piece,) in together(weight):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            difference = piece.astype(dtype.numpy()).astype(np.float64)
            difference -= piece
            difference[~np.isfinite(difference)] = 0.0  # an overflow, which ``rounded`` refuses in its own words
            most = np.abs(difference, out=difference).max(axis=others, initial=0.0)
        lost[index[axis]] = np.maximum(lost[index[axis]], most)
        most = np.abs(piece, out=difference).max(axis=others, initial=0.0)
        largest[index[axis]] = np.maximum(largest[index[axis]], most)
    wrong = lost > float(info.eps) * largest
    if wrong.any():
        channel = int(np.argmax(wrong))
        raise Refusal(
            f"a folded weight would underflow {dtype.name.lower()}",
            channel=channel,
            largest=f"{largest[channel]:.6g}",
            smallest_normal=f"{float(info.smallest_normal):.3g}",
        )


def constant_array(value: ir.Value | None, role: str) -> npt.NDArray[Any]:
    """The value's array of floats.

    Raises:
        Refusal: it is missing, a caller may override it, it is computed at run time, or it holds no floats.

    """
    if value is None:
        raise Refusal(f"its {role} is missing")
    if is_overridable(value):
        raise Refusal(f"its {role} is a graph input that a caller may override", input=value.name)
    array = tensor_of(value)
    if array is None:
        producer = value.producer()
        what = f"computed by {op_name(producer)} {node_name(producer)}" if producer is not None else "a graph input"
        raise Refusal(f"its {role} is not constant: it is {what}", input=value.name)
    if not is_float(array.dtype):
        raise Refusal(f"its {role} is no floating-point tensor", input=value.name, dtype=array.dtype)
    return array
