"""``onnxnorm.recalibrate``: new statistics for a training graph, and the inference model that has them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, get_args

import onnx
import onnx_ir as ir

from onnxnorm.errors import ModelError, UsageError
from onnxnorm.model_file import load_model
from onnxnorm.passes.canonicalize.shapes import infer_shapes
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.graph import module_name, node_name, op_name
from onnxnorm.passes.interface import Interface
from onnxnorm.passes.lower.function_bodies import check_nodes
from onnxnorm.passes.pipeline import Provider, Result, Target, check_options, run_pipeline
from onnxnorm.passes.state import read_state
from onnxnorm.recalibration.batches import Batches
from onnxnorm.recalibration.eval_form import RecalibrateEvalForm
from onnxnorm.recalibration.freeze import check_states, freeze, layer_values, set_state
from onnxnorm.recalibration.layers import States, find_states
from onnxnorm.recalibration.measure import Measurement, Meter
from onnxnorm.spec.schema import register_schemas

Momentum = Literal["cumulative", "graph"]

#: Model metadata in which export notes what the graph inputs were.
_INPUTS = "onnxnorm.inputs"


def recalibrate(
    model: str | os.PathLike[str] | ir.Model | onnx.ModelProto | Any,
    data: Any,
    *,
    batch_size: int | None = None,
    momentum: Momentum = "cumulative",
    keep_training: bool = False,
    target: Target = "onnxnorm",
    provider: Provider = "cpu",
    disable: Iterable[str] = (),
    verify: bool = False,
) -> Result:
    """Measures the statistics of a training graph on new data, and makes an inference model with them.

    The graph runs over the data on ONNX Runtime's CPU provider; PyTorch is not needed. Then its state is fixed, each
    training op becomes what it is in evaluation, and the model is optimized as by ``onnxnorm.optimize``.

    Args:
        model: a training graph as ``onnxnorm.export(mode="train")`` gives it; not changed.
        data: an array (for a model with one input), a dict of arrays by input name, or the path of an .npy or .npz
            file: cut into batches along axis 0. Or an iterable of batches: arrays, dicts, tuples in the order of the
            inputs (what is left over, such as labels, is ignored), or paths of files, which are cut.
        batch_size: how many items make a batch; None takes as many as the example at export had. A graph of fixed
            batch size takes only that many: a smaller last batch is left out, and a Decision says so. So is a last
            batch that leaves a norm one value per channel.
        momentum: "cumulative" forgets the stored statistics and takes the mean over the batches, each batch with
            equal weight, as ``torch.optim.swa_utils.update_bn`` does. "graph" moves the state as the graph does in
            training, from its stored value.
        keep_training: return the training graph with the new state as its defaults.
        target, provider, disable, verify: as for ``onnxnorm.optimize``.

    Raises:
        UsageError: an argument or data that does not fit.
        ModelError: a model without state, a state whose evaluation form is not known, a statistic that is not finite.

    """
    check_options(target, provider, disable)
    if momentum not in get_args(Momentum):
        raise UsageError(f"momentum is {momentum!r}; it must be one of {', '.join(map(repr, get_args(Momentum)))}")
    register_schemas()
    loaded = load_model(model)
    try:
        decisions = _recalibrated(loaded, data, batch_size, cumulative=momentum == "cumulative", keep=keep_training)
        result = run_pipeline(loaded, target=target, provider=provider, disable=disable, verify=verify)
    except ModelError as error:
        if isinstance(model, str | os.PathLike):
            raise ModelError(f"{os.fspath(model)}: {error}") from None
        raise
    return replace(result, decisions=(*decisions, *result.decisions))


def _recalibrated(model: ir.Model, data: Any, size: int | None, *, cumulative: bool, keep: bool) -> list[Decision]:
    """Measures, and changes ``model`` accordingly."""
    following = read_state(model)
    if not following:
        raise ModelError("the model has no state to recalibrate; export it with mode='train'")
    check_nodes(model)
    interface = Interface(model)
    infer_shapes(model)
    interface.restore(model)
    states = find_states(model, following)
    check_states(model, states, cumulative=cumulative, freezing=not keep)
    meter = Meter(model, following, cumulative)
    batches = Batches(data, meter.inputs, size, _recorded(model))
    found = meter.run(batches)
    found.left_out += batches.left_out
    if keep:
        set_state(model, found.state)
        decisions = _kept(states, found)
    else:
        decisions = freeze(model, states, found)
    unused = [Decision("data", "batch", Action.REMOVED, reason=f"left out: {reason}") for reason in found.left_out]
    return [*unused, *decisions]


def _kept(states: States, found: Measurement) -> list[Decision]:
    """One Decision for each layer of a graph that stays a training graph."""
    values = layer_values(states, found)
    return [
        Decision(
            node_name(layer.node),
            op_name(layer.node),
            Action.RECALIBRATED,
            RecalibrateEvalForm.id.partition("/")[0],
            module_name(layer.node),
            values=values[layer.node],
        )
        for layer in states.layers
    ]


def _recorded(model: ir.Model) -> dict[str, list[int]]:
    """Input name -> shape of the example at export."""
    try:
        records = json.loads(model.metadata_props.get(_INPUTS, "[]"))
        return {str(item["name"]): [int(size) for size in item["shape"]] for item in records if item.get("shape")}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelError(f"metadata {_INPUTS!r} is damaged; export the model again") from None
