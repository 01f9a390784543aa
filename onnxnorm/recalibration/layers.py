"""Which training ops of a graph move which state, and what every other state is.

A state is moved *by a layer* when its next value is an output of a training op (``BatchNormTraining`` and its kind)
that reads the state at the input of the same name; between them stand only changes of type and shape. A module that is
called several times is a chain of such ops. Every other state is *free* when its next value depends on no input of the
model (a counter, the vectors of spectral norm); on sizes it may depend. What is neither has no known evaluation form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.norms import all_specs
from onnxnorm.passes.graph import STANDARD, all_graphs, module_name, node_name, op_name
from onnxnorm.spec.record import DOMAIN, NormSpec

#: Operators that change only the type or the shape of their first input.
_SAME_VALUES = frozenset({"Identity", "Cast", "CastLike", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
#: Operators whose result depends on sizes, not on values.
_SIZES = frozenset({"Shape", "Size"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True)
class Moved:
    """One state of a layer: its key, and where the op reads it and gives its next value."""

    key: str
    input: int
    output: int


@dataclass(frozen=True)
class Layer:
    """A training op with its states."""

    node: ir.Node
    spec: NormSpec
    moved: tuple[Moved, ...]

    @property
    def label(self) -> str:
        """How messages name it."""
        return called(self.node)

    def momentum_input(self) -> int:
        """The position of the op's momentum."""
        return [item.name for item in self.spec.inputs].index("momentum")


@dataclass(frozen=True)
class States:
    """All states of a training graph.

    Attributes:
        following: state -> output with its next value.
        layers: the training ops that move states, in graph order.
        free: states that depend on no input.
        bound: every other state -> the node that makes its next value.

    """

    following: Mapping[str, str]
    layers: tuple[Layer, ...]
    free: tuple[str, ...]
    bound: Mapping[str, ir.Node]

    @property
    def by_layers(self) -> list[str]:
        """States that layers move."""
        return list(dict.fromkeys(item.key for layer in self.layers for item in layer.moved))


def called(node: ir.Node) -> str:
    """A node with its module, if the exporter noted it."""
    module = module_name(node)
    return f"{op_name(node)} {node_name(node)!r}" + (f" (module {module!r})" if module else "")


def find_states(model: ir.Model, following: Mapping[str, str]) -> States:
    """Sorts the states of ``read_state`` by what moves them.

    Raises:
        ModelError: a training op with state stands in a subgraph or function.

    """
    _check_places(model)
    inputs = {str(value.name): value for value in model.graph.inputs}
    outputs = {str(value.name): value for value in model.graph.outputs}
    moved: dict[ir.Node, dict[int, Moved]] = {}
    rest: dict[str, ir.Value] = {}
    for key, output in following.items():
        chain = _chain(outputs[output], inputs[key], key)
        if chain is None:
            rest[key] = outputs[output]
        for node, item in chain or ():
            moved.setdefault(node, {})[item.output] = item
    layers = tuple(
        Layer(node, all_specs()[node.op_type], tuple(found[index] for index in sorted(found)))
        for node in model.graph
        if (found := moved.get(node)) is not None
    )
    touched = _touched(model, [value for name, value in inputs.items() if name not in following])
    free = tuple(key for key, value in rest.items() if value not in touched)
    bound = {key: _maker(value) for key, value in rest.items() if value in touched}
    return States(following, layers, free, bound)


def read_stored_state(layers: Sequence[Layer]) -> None:
    """Lets each call of a module read the state as it came in, not what an earlier call has made of it."""
    stored: dict[str, ir.Value | None] = {}
    for layer in layers:
        for item in layer.moved:
            value = stored.setdefault(item.key, layer.node.inputs[item.input])
            layer.node.replace_input_with(item.input, value)


def is_float_state(model: ir.Model, key: str) -> bool:
    """Whether a state holds real numbers; counters do not."""
    return next(value.dtype in _FLOATS for value in model.graph.inputs if value.name == key)


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """All values that a node reads, itself or in its subgraphs."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        else:
            graphs = list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            yield from graph.outputs
            for inner in graph:
                yield from reads(inner)


def _check_places(model: ir.Model) -> None:
    for graph, _, _ in all_graphs(model):
        for node in graph if graph is not model.graph else ():
            spec = all_specs().get(node.op_type)
            if node.domain == DOMAIN and spec is not None and spec.eval_form is not None:
                raise ModelError(
                    f"{called(node)} stands in a subgraph or function; recalibrate needs it in the main graph"
                )


def _chain(value: ir.Value, source: ir.Value, key: str) -> list[tuple[ir.Node, Moved]] | None:
    """The training ops that lead from a state to its next value, the last one first; None where others take part."""
    chain: list[tuple[ir.Node, Moved]] = []
    while (value := _origin(value)) is not source:
        node = value.producer()
        spec = all_specs().get(node.op_type) if node is not None and node.domain == DOMAIN else None
        if node is None or spec is None or spec.eval_form is None or value is node.outputs[0]:
            return None
        output = list(node.outputs).index(value)
        name = spec.outputs[output].name.removeprefix("next_")
        slot = [item.name for item in spec.inputs].index(name)
        chain.append((node, Moved(key, slot, output)))
        below = node.inputs[slot]
        if below is None:
            return None
        value = below
    return chain or None


def _origin(value: ir.Value) -> ir.Value:
    """What a value is in another type or shape."""
    node = value.producer()
    while node is not None and node.op_type in _SAME_VALUES and node.domain in STANDARD and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _touched(model: ir.Model, sources: list[ir.Value]) -> set[ir.Value]:
    """All values that depend on the values of these inputs."""
    touched = set(sources)
    for node in model.graph:
        if node.op_type in _SIZES and node.domain in STANDARD:
            continue
        if any(value in touched for value in reads(node)):
            touched.update(node.outputs)
    return touched


def _maker(value: ir.Value) -> ir.Node:
    """The node that computes a value, past changes of type and shape."""
    node = _origin(value).producer() or value.producer()
    assert node is not None
    return node
