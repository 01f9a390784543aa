"""Training graphs: what a module computes with its own training flags, its updated buffers as explicit state.

The module is wrapped in a step whose outputs are the module's and, behind them, the next value of every buffer. During
the trace each buffer is replaced by a clone of itself, so that whatever the forward does to it (in place, by
assignment, in hooks) is seen as a function of the value before. What comes out unchanged is no state.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from onnxnorm.errors import ExportError
from onnxnorm.exporter.calls import TrainingCalls, traceable_floats
from onnxnorm.exporter.copying import as_is, copy_module
from onnxnorm.exporter.noise import left_out, without_noise
from onnxnorm.exporter.rehearsal import rehearse
from onnxnorm.exporter.snapshot import Snapshot
from onnxnorm.passes.decision import Decision
from onnxnorm.passes.graph import all_graphs, is_op
from onnxnorm.passes.state import NEXT, write_state
from onnxnorm.runtime.arrays import from_torch

_PREFIX = "module."


@dataclass(frozen=True)
class Slot:
    """A place that holds a tensor of the state: a submodule's buffer or, where the forward changes one, parameter."""

    key: str
    owner: torch.nn.Module
    name: str

    def _tensors(self) -> dict[str, Any]:
        buffers: dict[str, Any] = self.owner._buffers
        return buffers if self.name in buffers else self.owner._parameters

    def get(self) -> torch.Tensor:
        """The tensor that is there now; also one that the forward assigned as a plain attribute."""
        value = self._tensors().get(self.name)
        found: torch.Tensor = getattr(self.owner, self.name) if value is None else value
        return found

    def put(self, tensor: torch.Tensor) -> None:
        """Puts a tensor there, past the checks of ``torch.nn.Module``."""
        self._tensors()[self.name] = tensor


def state_slots(module: torch.nn.Module, parameters: frozenset[str] = frozenset()) -> dict[str, list[Slot]]:
    """State keys, as in ``state_dict()``, with all places that share the tensor.

    Args:
        module: the module.
        parameters: keys of the parameters that belong to the state too.

    """
    keys: dict[int, str] = {}
    slots: dict[str, list[Slot]] = {}
    buffers = [(key, tensor) for key, tensor in module.named_buffers(remove_duplicate=False)]
    changed = [item for item in module.named_parameters(remove_duplicate=False) if item[0] in parameters]
    for key, tensor in (*buffers, *changed):
        first = keys.setdefault(id(tensor), key)
        owner, _, name = key.rpartition(".")
        slots.setdefault(first, []).append(Slot(key, module.get_submodule(owner), name))
    return slots


class TrainingStep(torch.nn.Module):
    """(outputs, next state) of a module, as a function of its inputs and its buffers.

    Attributes:
        keys: state keys in the order of the next values, which follow the module's own outputs.

    """

    def __init__(self, module: torch.nn.Module, parameters: frozenset[str], *, floats: bool) -> None:
        super().__init__()
        self.module = module
        self.slots = state_slots(module, parameters)
        self.keys = list(self.slots)
        self._failures: list[Exception] = []  # in place: the exporter puts a module's attributes back
        self._floats = floats

        @functools.wraps(module.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._step(args, kwargs)

        forward.__signature__ = inspect.signature(module.forward)  # type: ignore[attr-defined]
        self.forward = forward

    @property
    def failure(self) -> Exception | None:
        """The first error of the forward; the exporter tries again in other ways and reports another one."""
        return self._failures[0] if self._failures else None

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_dynamo_compiling():  # its graph would not see what happens to the buffers
            raise RuntimeError("a training graph is traced without Dynamo")
        try:
            with self._cloned(), traceable_floats(self.module, everywhere=self._floats), TrainingCalls(self._floats):
                outputs = self.module(*args, **kwargs)
                return outputs, [self._following(key).clone() for key in self.keys]
        except Exception as error:
            self._failures.append(error)
            raise

    @contextlib.contextmanager
    def _cloned(self) -> Iterator[None]:
        """Each buffer replaced by a clone, the same in all places that share it; put back at the end."""
        before = {key: slots[0].get() for key, slots in self.slots.items()}
        for key, slots in self.slots.items():
            clone = before[key].clone()
            for slot in slots:
                slot.put(clone)
        try:
            yield
        finally:
            for key, slots in self.slots.items():
                for slot in slots:
                    slot.put(before[key])

    def _following(self, key: str) -> torch.Tensor:
        """The value that the forward left; an error where two places that shared a buffer no longer do."""
        values = [slot.get() for slot in self.slots[key]]
        if any(value is not values[0] for value in values):
            raise ExportError(
                f"buffer {key!r} is shared by {len(values)} submodules, and the forward assigns a new tensor to one of "
                "them; update it in place (copy_, mul_, add_), so that it stays one state"
            )
        return values[0]


@dataclass(frozen=True)
class Prepared:
    """A module made ready for the trace, and what has to be told about it.

    Attributes:
        module: a copy of the caller's module or, where hooks or closures hold that one, the caller's own.
        parameters: keys of the parameters that its forward changes.
        noisy: whether outputs or state depend on random numbers.
        numbers: whether the forward makes Python numbers of tensors.
        decisions: what was left out.

    """

    module: torch.nn.Module
    parameters: frozenset[str]
    noisy: bool
    numbers: bool
    decisions: list[Decision]

    def step(self, *, floats: bool) -> TrainingStep:
        """What to trace; ``floats``: read ``float(tensor)`` and ``tensor.item()`` as tensors, see ``calls``."""
        return TrainingStep(self.module, self.parameters, floats=floats)


def prepare(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], snapshot: Snapshot) -> Prepared:
    """A module for the training step, after a rehearsal that shows what its forward changes.

    Args:
        module: the caller's module.
        args, kwargs: example inputs.
        snapshot: of that module; the caller restores it in the end.

    Raises:
        ExportError: the forward fails in PyTorch, or keeps a state that no graph can hold.

    """
    duplicate = copy_module(module, as_is)
    decisions = without_noise(duplicate)
    try:
        rehearsal = rehearse(copy_module(duplicate, as_is), args, kwargs)
    except ExportError:
        if not snapshot.touched():
            raise
    if snapshot.touched():  # a hook or a closure holds the module that was copied
        snapshot.restore()
        duplicate, decisions = module, without_noise(module)
        quiet = Snapshot(module)
        rehearsal = rehearse(module, args, kwargs)
        quiet.restore()
    decisions += left_out(rehearsal.dropped)
    return Prepared(duplicate, rehearsal.parameters, rehearsal.noisy, rehearsal.numbers, decisions)


def attach_state(model: ir.Model, step: TrainingStep, output_names: list[str]) -> dict[str, str]:
    """Makes inputs with defaults and outputs ``next.<key>`` of the state, and names as in the module.

    Args:
        model: the exported step; changed.
        step: the step.
        output_names: names of the module's own outputs, as many as the caller gave.

    Returns:
        The name of each state input -> the output that carries its next value.

    Raises:
        ExportError: a state's name is also one of the caller's.

    """
    graph = model.graph
    count = len(graph.outputs) - len(step.keys)
    following = dict(zip(step.keys, list(graph.outputs)[count:], strict=True))
    for _ in step.keys:  # one by one: a slice would leave them marked as outputs
        graph.outputs.pop()
    for value, name in zip(graph.outputs, output_names, strict=False):
        value.name = name
    _rename_outputs(graph, step, len(output_names))
    _strip_prefix(model)
    state = {}
    for key, value in following.items():
        source = _initializer(graph, step, key)
        if source is not None and _origin(value) is source:
            continue
        state[key] = f"{NEXT}{key}"
        _check_free(model, key, state[key])
        graph.inputs.append(_named(graph, key, _default(step, key) if source is None else source))
        value.name = state[key]
        graph.outputs.append(value)
    _rename_inner(model)
    write_state(model, state)
    return state


def _rename_outputs(graph: ir.Graph, step: TrainingStep, given: int) -> None:
    """Other names for outputs that the exporter, not the caller, named as a state or its next value is named."""
    reserved = {name for key in step.keys for name in (key, f"{NEXT}{key}")}
    taken = reserved | {value.name for value in (*graph.inputs, *graph.outputs)}
    for value in list(graph.outputs)[given:]:
        if value.name in reserved and not value.is_graph_input() and not value.is_initializer():
            value.name = _unused(f"{value.name}_output", taken)
            taken.add(value.name)


def _unused(name: str, taken: Collection[str | None]) -> str:
    """The name, with a number behind it where it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(candidate for candidate in itertools.chain((name,), numbered) if candidate not in taken)


def _initializer(graph: ir.Graph, step: TrainingStep, key: str) -> ir.Value | None:
    """The initializer of a state tensor, which the exporter names after any of its places; None if nothing reads it."""
    names = [name for slot in step.slots[key] for name in (slot.key, f"{_PREFIX}{slot.key}")]
    return next((graph.initializers[name] for name in names if name in graph.initializers), None)


def _named(graph: ir.Graph, key: str, value: ir.Value) -> ir.Value:
    """The value as the graph's initializer of that name."""
    graph.initializers.pop(str(value.name), None)
    value.name = key
    graph.initializers[key] = value
    return value


def _default(step: TrainingStep, key: str) -> ir.Value:
    """The trained value of a state tensor that the graph does not read."""
    tensor = ir.tensor(from_torch(step.slots[key][0].get().detach()), name=key)
    return ir.Value(
        name=key, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )


def _origin(value: ir.Value) -> ir.Value:
    """What an output is a copy of."""
    producer = value.producer()
    while producer is not None and is_op(producer, "Identity") and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _strip_prefix(model: ir.Model) -> None:
    """Takes the wrapper's name off initializers and off the module names in the metadata."""
    graph = model.graph
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}
    for name, value in list(graph.initializers.items()):
        bare = name.removeprefix(_PREFIX)
        if bare != name and bare not in taken and bare not in graph.initializers:
            del graph.initializers[name]
            value.name = bare
            graph.initializers[bare] = value
    for inner, _, _ in all_graphs(model):
        for node in inner:
            _strip_scopes(node)


def _rename_inner(model: ir.Model) -> None:
    """Other names for values inside the graph that are named as an initializer, an input or an output is."""
    own = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    outer = {value.name for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())}
    values = [value for graph, _, _ in all_graphs(model) for node in graph for value in node.outputs]
    taken = outer | {value.name for value in values}
    for value in values:
        if value.name in outer and id(value) not in own:
            value.name = _unused(f"{value.name}_value", taken)
            taken.add(value.name)


def _strip_scopes(node: ir.Node) -> None:
    """``module.layer1.bn`` in the exporter's notes becomes ``layer1.bn``."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return
    names = [str(name) for name in _literal(scopes)]
    kept = [name.removeprefix(_PREFIX) for name in names if name != _PREFIX.rstrip(".")]
    node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(kept)
    classes = node.metadata_props.get("pkg.torch.onnx.class_hierarchy")
    if classes is not None and len(kept) < len(names):
        node.metadata_props["pkg.torch.onnx.class_hierarchy"] = repr(_literal(classes)[1:])


def _literal(text: str) -> list[Any]:
    try:
        return list(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return []


def _check_free(model: ir.Model, key: str, following: str) -> None:
    """ExportError where a state's names are in use for something else."""
    inputs = {value.name for value in model.graph.inputs}
    outputs = {value.name for value in model.graph.outputs}
    for name in (key, following):
        if name in inputs | outputs:
            raise ExportError(
                f"the name {name!r} of buffer {key!r} in the training graph is also that of an argument, an output or "
                "another state; give input_names and output_names that differ from the state's"
            )
