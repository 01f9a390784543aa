"""A training graph becomes an inference graph: states are constants, training ops are in their evaluation form.

In evaluation no state moves. Who reads a state, before or after its update, reads its final value; the updates and the
outputs ``next.*`` go away.

Refused (ModelError, naming state and node):
1. a state of real numbers that primitive operators compute from the data, or one of whole numbers that does so and is
   read by the outputs: what evaluation computes then, the graph does not say (norms that users wrote themselves, graphs
   exported with target="standard");
2. a state of which the outputs read an unfinished update: evaluation may or may not make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.passes.canonicalize.unused import remove_unused
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.engine import Engine
from onnxnorm.passes.graph import is_op
from onnxnorm.passes.state import write_state
from onnxnorm.recalibration.eval_form import RecalibrateEvalForm
from onnxnorm.recalibration.layers import States, called, is_float_state, read_stored_state, reads
from onnxnorm.recalibration.measure import Measurement
from onnxnorm.runtime.arrays import Array


def check_states(model: ir.Model, states: States, *, cumulative: bool, freezing: bool) -> None:
    """Refusals that need no run; see the module.

    Args:
        model: the graph.
        states: its states.
        cumulative: whether layers' statistics are averaged, which asks for layers.
        freezing: whether an inference graph is wanted.

    """
    for key, node in states.bound.items():
        if is_float_state(model, key) and (freezing or cumulative):
            raise ModelError(
                f"state {key!r} is computed from the data by {called(node)}, which is no training op of onnxnorm; only "
                "norms that a training graph holds as one op (exported with target='onnxnorm') can be recalibrated"
            )
    if cumulative and not states.layers:
        raise ModelError("the graph has state, but no normalization whose statistics could be measured")


def set_state(model: ir.Model, state: Mapping[str, Array]) -> None:
    """Makes these values the states' defaults."""
    for key, array in state.items():
        value = model.graph.initializers[key]
        value.const_value = ir.tensor(array, name=key, dtype=value.dtype)


def freeze(model: ir.Model, states: States, found: Measurement) -> list[Decision]:
    """Fixes all states and replaces the training ops; changes ``model``. See the module for what is refused."""
    outputs = {str(value.name): value for value in model.graph.outputs}
    following = {key: outputs[name] for key, name in states.following.items()}
    set_state(model, found.state)
    inputs = {str(value.name): value for value in model.graph.inputs}
    kept = [value for value in model.graph.outputs if value not in following.values()]
    model.graph.outputs[:] = kept
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name not in following]
    read_stored_state(states.layers)
    decisions = _replace_layers(model, states, found)
    others = {key: (inputs[key], _copied(following[key])) for key in (*states.free, *states.bound)}
    decisions += _fix_others(model, states, others)
    write_state(model, {})
    remove_unused(model)
    return decisions


def layer_values(states: States, found: Measurement) -> dict[ir.Node, dict[str, Any]]:
    """What the Decision about each layer tells."""
    return {
        layer.node: {"batches": found.batches, "values per channel": count}
        for layer, count in zip(states.layers, found.values, strict=True)
    }


def _replace_layers(model: ir.Model, states: States, found: Measurement) -> list[Decision]:
    layers = {layer.node: layer for layer in states.layers}
    engine = Engine(model)
    engine.run([RecalibrateEvalForm(layers, layer_values(states, found))])
    left = [node for node in model.graph if node in layers]
    decisions = [item for item in engine.account() if (item.rule or "").startswith(RecalibrateEvalForm.id)]
    if left:
        reason = next((item.reason for item in decisions if item.action == Action.REFUSED), None)
        raise ModelError(f"{called(left[0])} has no evaluation form here: {reason}")
    return decisions


def _fix_others(model: ir.Model, states: States, others: Mapping[str, tuple[ir.Value, ir.Value]]) -> list[Decision]:
    """Fixes the states that no layer moves; one Decision for each that the outputs read.

    Args:
        model: changed.
        states: all states.
        others: key -> its value in the graph, and what its next value is a copy of.

    """
    ends = {origin for _, origin in others.values()}
    reached = _leading_to(list(model.graph.outputs), ends)
    decisions = []
    for key, (source, origin) in others.items():
        if source not in reached and origin not in reached:
            continue
        _check_fixed(model, key, states, reached & _between(model, source, origin) - ends)
        what = "it does not depend on the data: fixed as it is after the last batch"
        decisions.append(Decision(key, "state", Action.RECALIBRATED, RecalibrateEvalForm.id, reason=what))
    for source, origin in others.values():
        _read_stored(model, source, origin)
    return decisions


def _check_fixed(model: ir.Model, key: str, states: States, unfinished: set[ir.Value]) -> None:
    """ModelError where evaluation is not known; ``unfinished``: what the outputs read of the update."""
    unknown = "what they are in evaluation, the graph does not say"
    if key in states.bound:
        maker = called(states.bound[key])
        raise ModelError(f"state {key!r} is computed from the data by {maker}, and the outputs read it; {unknown}")
    for node in model.graph:
        if any(value in unfinished for value in node.outputs):
            raise ModelError(f"state {key!r}: the outputs read {called(node)}, which is part of its update; {unknown}")


def _copied(value: ir.Value) -> ir.Value:
    """What an output is a copy of."""
    node = value.producer()
    while node is not None and is_op(node, "Identity") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _leading_to(values: Iterable[ir.Value], ends: set[ir.Value]) -> set[ir.Value]:
    """The values and all that they are computed from, nothing beyond ``ends``."""
    found: set[ir.Value] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value in found:
            continue
        found.add(value)
        node = value.producer()
        if node is not None and value not in ends:
            waiting += reads(node)
    return found


def _between(model: ir.Model, source: ir.Value, origin: ir.Value) -> set[ir.Value]:
    """The values on the ways from one value to another, without the two."""
    found = {source}
    for node in model.graph:
        if any(value in found for value in reads(node)):
            found.update(node.outputs)
    producer = origin.producer()
    before = _leading_to(reads(producer), {source}) if producer is not None else set()
    return found & before - {source, origin}


def _read_stored(model: ir.Model, source: ir.Value, origin: ir.Value) -> None:
    """Lets all readers of a state's next value read the state."""
    if origin is source:
        return
    copy = ir.node("Identity", [source])
    copy.name = f"{origin.name}_stored"
    value = copy.outputs[0]
    value.type, value.shape = origin.type, origin.shape
    value.name, origin.name = origin.name, f"{origin.name}_unused"
    ir.convenience.replace_all_uses_with(origin, value, replace_graph_outputs=True)
    model.graph.insert_before(model.graph[0], [copy])
