"""The run over the data: what every state is after it.

*Cumulative*: the statistic of each layer is the mean of its statistics over the batches, each batch with equal weight
whatever its size, as ``torch.optim.swa_utils.update_bn`` does it; where a module is called several times in a batch,
each call counts. What the state was before has no part in it. The ops run with momentum 1, so that they give the
batch's own statistics, which are averaged in float64 and rounded once. Meanwhile they read the mean so far as their
state: batch renormalization normalizes by it.

*Graph*: every state moves as the graph itself says, from its stored value.

A state that no layer moves follows the graph either way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxnorm.errors import ModelError, OnnxnormError, UsageError, one_line
from onnxnorm.passes.lower.function_bodies import attach_function_bodies
from onnxnorm.passes.lower.standard import attributes_of
from onnxnorm.recalibration.layers import Layer, States, find_states, read_stored_state
from onnxnorm.runtime.arrays import Array, from_ort, to_ort
from onnxnorm.spec.record import NormValueError

_PREFIX = "onnxnorm.recalibrate"
#: What a state is before the first batch where it is forgotten: 0, from which momentum 1 leads to the batch's statistic
#: without rounding; 1 where the op divides by it.
_FIRST = {"running_std": 1.0}


@dataclass
class Measurement:
    """What the run gave.

    Attributes:
        state: the value of every state after the last batch.
        batches: number of batches.
        values: for each layer the number of values in a channel, over all batches.
        left_out: what was not used, in words.

    """

    state: dict[str, Array]
    batches: int = 0
    values: list[int] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Meter:
    """A training graph made ready to be measured.

    Args:
        model: the graph; not changed.
        following: state -> output with its next value.
        cumulative: forget the layers' states and average over the batches.

    Raises:
        ModelError: ONNX Runtime cannot load the graph.

    """

    def __init__(self, model: ir.Model, following: Mapping[str, str], cumulative: bool) -> None:
        copy = model.clone()
        self.cumulative = cumulative
        self.states: States = find_states(copy, following)
        self._add_outputs(copy)
        attach_function_bodies(copy)
        self._session = _session(copy)
        self.inputs = [item for item in self._session.get_inputs() if item.name not in following]
        defaults = {str(value.name): value.const_value for value in copy.graph.inputs}
        self._start = {key: _default(defaults.get(key), key) for key in following}

    def run(self, batches: Iterable[dict[str, Array]]) -> Measurement:
        """Measures all batches.

        Raises:
            UsageError: a batch that the layers cannot take; a last one such is left out.
            ModelError: a statistic is not finite, or ONNX Runtime fails.

        """
        found = Measurement(dict(self._start), values=[0] * len(self.states.layers))
        means = self._first() if self.cumulative else {}
        too_small: str | None = None
        for feeds in batches:
            if too_small is not None:
                raise UsageError(f"batch {found.batches + 1}: {too_small}; give a larger batch size")
            state = {
                key: means[key].astype(value.dtype) if key in means else value for key, value in found.state.items()
            }
            outputs = self._step(feeds, state)
            sizes, too_small = self._sizes(outputs)
            if too_small is not None:
                continue
            found.batches += 1
            self._take(outputs, found, means)
            found.values = [total + size for total, size in zip(found.values, sizes, strict=True)]
        if not found.batches:
            raise UsageError(f"{too_small}; give a larger batch size" if too_small else "data holds no batch")
        if too_small is not None:
            found.left_out.append(f"the last batch: {too_small}")
        found.state.update({key: self._rounded(key, mean) for key, mean in means.items()})
        return found

    # --- the graph ---

    def _add_outputs(self, model: ir.Model) -> None:
        """Outputs: shapes that the layers see, next states, and in cumulative mode the layers' own statistics."""
        kept = {str(value.name): value for value in model.graph.outputs}
        wanted: dict[str, ir.Value] = {}
        if self.cumulative:
            read_stored_state(self.states.layers)
        for number, layer in enumerate(self.states.layers):
            wanted[f"shape:{number}"] = _append(model, "Shape", layer.node.inputs[0])
            if self.cumulative:
                _set_momentum(model, layer)
                wanted |= {f"layer:{number}:{item.output}": layer.node.outputs[item.output] for item in layer.moved}
        own = set(self.states.by_layers) if self.cumulative else set()
        wanted |= {f"state:{key}": kept[output] for key, output in self.states.following.items() if key not in own}
        model.graph.outputs.clear()
        self._names: dict[str, str] = {}
        for number, (role, value) in enumerate(wanted.items()):
            measured = _append(model, "Identity", value)
            measured.name = f"{_PREFIX}.{number}"
            self._names[measured.name] = role
            model.graph.outputs.append(measured)

    # --- one batch ---

    def _step(self, feeds: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        names = list(self._names)
        values = {name: to_ort(array) for name, array in {**feeds, **state}.items()}
        try:
            outputs = self._session.run_with_ort_values(names, values)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ModelError(f"the training graph fails while running: {one_line(error)}") from None
        return {self._names[name]: from_ort(value) for name, value in zip(names, outputs, strict=True)}

    def _sizes(self, outputs: Mapping[str, Array]) -> tuple[list[int], str | None]:
        """The number of values in a channel for each layer, and why the first layer that cannot take them cannot."""
        sizes = []
        for number, layer in enumerate(self.states.layers):
            shape = [int(size) for size in outputs[f"shape:{number}"]]
            try:
                layer.spec.validate([shape, *[None] * (len(layer.spec.inputs) - 1)], attributes_of(layer.node))
            except NormValueError as error:
                return [], f"{layer.label}: {error}"
            sizes.append(math.prod((shape[0], *shape[2:])))
        return sizes, None

    def _take(self, outputs: Mapping[str, Array], found: Measurement, means: dict[str, Array]) -> None:
        """Moves the states by one batch."""
        for key in found.state:
            if f"state:{key}" in outputs:
                found.state[key] = outputs[f"state:{key}"].reshape(found.state[key].shape)
        batch: dict[str, list[Array]] = {}
        for number, layer in enumerate(self.states.layers):
            for item in layer.moved:
                value = outputs[f"layer:{number}:{item.output}"] if self.cumulative else found.state[item.key]
                self._check_finite(value, item.key, layer, found.batches)
                batch.setdefault(item.key, []).append(value.astype(np.float64).reshape(found.state[item.key].shape))
        for key, statistics in batch.items() if self.cumulative else ():
            mean = np.mean(statistics, axis=0)
            means[key] = mean if found.batches == 1 else means[key] + (mean - means[key]) / found.batches

    def _check_finite(self, value: Array, key: str, layer: Layer, batch: int) -> None:
        numbers = value.astype(np.float64)
        if not np.isfinite(numbers).all():
            wrong = numbers.reshape(-1)[~np.isfinite(numbers).reshape(-1)][0]
            stored = "" if self.cumulative else "the stored state and "
            raise ModelError(
                f"batch {batch}: {layer.label} gives {wrong} for the state {key!r}; {stored}the data, and what the "
                "layers before make of it, must be finite"
            )

    # --- states ---

    def _first(self) -> dict[str, Array]:
        names = {item.key: layer.spec.inputs[item.input].name for layer in self.states.layers for item in layer.moved}
        return {key: np.full(self._start[key].shape, _FIRST.get(name, 0.0)) for key, name in names.items()}

    def _rounded(self, key: str, mean: Array) -> Array:
        with np.errstate(over="ignore"):
            rounded = np.asarray(mean.astype(self._start[key].dtype))
        if not np.isfinite(rounded.astype(np.float64)).all():
            raise ModelError(f"state {key!r} is {float(np.abs(mean).max()):.6g}, which overflows {rounded.dtype.name}")
        return rounded


def _set_momentum(model: ir.Model, layer: Layer) -> None:
    """Makes the layer's momentum 1."""
    position = layer.momentum_input()
    known = [value.dtype for value in (layer.node.inputs[position], layer.node.inputs[0]) if value is not None]
    dtype = next((item for item in known if item is not None), None)
    if dtype is None:
        raise ModelError(f"{layer.label}: the element type of its input is not known")
    name = f"{_PREFIX}.one.{dtype.name}"
    one = model.graph.initializers.get(name)
    if one is None:
        tensor = ir.tensor(np.ones(1, dtype.numpy()), name=name, dtype=dtype)
        one = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([1]), const_value=tensor)
        model.graph.initializers[name] = one
    layer.node.replace_input_with(position, one)


def _append(model: ir.Model, operator: str, value: ir.Value | None) -> ir.Value:
    node = ir.node(operator, [value])
    node.name = f"{_PREFIX}/{len(model.graph)}"
    node.outputs[0].name = f"{node.name}_out"
    model.graph.append(node)
    return node.outputs[0]


def _default(tensor: ir.TensorProtocol | None, key: str) -> Array:
    if tensor is None:
        raise ModelError(f"state {key!r} has no stored value; export the model again with mode='train'")
    return np.array(tensor.numpy())


def _session(model: ir.Model) -> Any:
    import onnxruntime

    from onnxnorm.runtime.session import InferenceSession

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come back as exceptions
    try:
        return InferenceSession(model, options, ["CPUExecutionProvider"])
    except OnnxnormError:
        raise
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load the training graph: {one_line(error)}") from None
