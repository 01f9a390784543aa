"""Runs a model before and after it is compiled: outputs must agree up to float32's noise in this model.

What that noise is tells ONNX Runtime itself: it runs the model before with and without its own optimizer, which orders
the same sums in other ways. A layout that is taken for another one is wrong by the size of the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxnorm.bench.model_inputs import load_inputs, random_inputs
from onnxnorm.errors import ModelError, OnnxnormError, UsageError, one_line
from onnxnorm.runtime.arrays import Array, float_info, from_ort, is_float, to_ort
from onnxnorm.runtime.environment import onnxruntime_module

#: Arrays by the names of a model's inputs, or the .npz file that holds them; None for random ones.
Inputs: TypeAlias = Mapping[str, Array] | str | None

#: The example inputs of ``onnxnorm.export``, as the file notes them.
_INPUTS_KEY = "onnxnorm.inputs"
#: Sizes that are tried for dynamic axes: the first, and each other one.
_ITEMS = 2
_SIZES = (64, 32, 96, 224, 7)
#: Distance that is always allowed, over an output's scale: 64 roundings of float32.
_FLOOR = 64 * 2.0**-23
#: The same for narrower types, in which the outputs may be: they are computed in float32 and rounded once.
_ROUNDINGS = 4.0
#: How many times ONNX Runtime's own noise is allowed.
_FACTOR = 16.0


def check_same_results(
    before: ir.Model, after: ir.Model, *, dims: Mapping[str, int], inputs: Inputs, name: str
) -> float:
    """The largest distance between the outputs of both, over each output's scale.

    Args:
        before, after: the optimized model and the compiled one.
        dims: sizes for dynamic axes, by name; the others are sampled.
        inputs: arrays by name, or an .npz file with them; random values without.
        name: what messages call the model.

    Raises:
        ModelError: the results differ by more than noise.
        UsageError: the model cannot be run on sampled inputs: sizes or arrays have to be given.

    """
    session = _session(before, optimized=True)
    feeds, reference = _sample(session, before, dims, inputs, name)
    plain = _run(_session(before, optimized=False), feeds)
    noise = max(_distances(reference, plain), default=0.0)
    compiled = _run(_session(after, optimized=True), feeds)
    distances = _distances(reference, compiled)
    for item, array, distance in zip(session.get_outputs(), reference, distances, strict=True):
        rounding = float(float_info(array.dtype).eps) if is_float(array.dtype) else 0.0
        if not distance <= max(_FLOOR, _ROUNDINGS * rounding, _FACTOR * noise):
            raise ModelError(
                f"{name}: output {item.name!r} of the compiled model is off by {distance:.3g} of its scale, and "
                f"ONNX Runtime's own noise here is {noise:.3g}: please report this with the model"
            )
    return max(distances, default=0.0)


def _session(model: ir.Model, *, optimized: bool) -> Any:
    from onnxnorm.runtime.session import InferenceSession

    onnxruntime = onnxruntime_module()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return InferenceSession(model, options, providers=["CPUExecutionProvider"], library=True)


def _run(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    values = session.run_with_ort_values(None, {name: to_ort(array) for name, array in feeds.items()})
    return [from_ort(value) for value in values]


def _sample(
    session: Any, model: ir.Model, dims: Mapping[str, int], inputs: Inputs, name: str
) -> tuple[dict[str, Array], list[Array]]:
    """Inputs on which the model runs, and its outputs on them."""
    if inputs is not None:
        given = load_inputs(session, inputs) if isinstance(inputs, str) else dict(inputs)
        try:
            return given, _run(session, given)
        except Exception as error:
            raise UsageError(f"{name} fails on the inputs given: {one_line(error, 200)}") from None
    problem = ""
    for sizes in _guesses(session, model):
        try:
            feeds = random_inputs(session, {**sizes, **dims}, name)
            return feeds, _run(session, feeds)
        except OnnxnormError:
            raise
        except Exception as error:
            problem = one_line(error, 200)
    raise UsageError(
        f"{name} runs on no sampled inputs ({problem}); give sizes with dims (--dim NAME=SIZE) or arrays with "
        "inputs (--inputs FILE.npz), or leave the comparison out with verify=False (--no-verify)"
    )


def _guesses(session: Any, model: ir.Model) -> list[dict[str, int]]:
    """Sizes for the dynamic axes: those of the export's example, then a few."""
    axes = [
        (size or f"{item.name}.{axis}", item.name, axis)
        for item in session.get_inputs()
        for axis, size in enumerate(item.shape)
        if not isinstance(size, int)
    ]
    if not axes:
        return [{}]
    guesses = [{name: _ITEMS if axis == 0 else size for name, _, axis in axes} for size in _SIZES]
    noted = _noted(model)
    if all(name in noted and axis < len(noted[name]) for _, name, axis in axes):
        guesses.insert(0, {size: noted[name][axis] for size, name, axis in axes})
    return guesses


def _noted(model: ir.Model) -> dict[str, list[int]]:
    """Input name -> shape of the example with which the model was exported."""
    try:
        items = json.loads(model.metadata_props.get(_INPUTS_KEY, "[]"))
        return {str(item["name"]): [int(size) for size in item["shape"]] for item in items}
    except (ValueError, TypeError, KeyError):
        return {}


def _distances(reference: list[Array], other: list[Array]) -> list[float]:
    """For each output the largest deviation over the reference's scale; infinite where what is not finite differs."""
    found = []
    for want, have in zip(reference, other, strict=True):
        if want.shape != have.shape or want.dtype.kind not in "fV":
            found.append(0.0 if np.array_equal(want, have) else float("inf"))
            continue
        old, new = want.astype(np.float64), have.astype(np.float64)
        finite = np.isfinite(old)
        if not np.array_equal(finite, np.isfinite(new)):
            found.append(float("inf"))
            continue
        scale = float(np.abs(old[finite]).max(initial=0.0)) or 1.0
        found.append(float(np.abs(old[finite] - new[finite]).max(initial=0.0)) / scale)
    return found
