"""The state of a training graph, as the model's metadata holds it: which output carries an input's next value."""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx_ir as ir

from onnxnorm.errors import ModelError

#: In front of a state's name, the name of the output with its next value.
NEXT = "next."
_KEY = "onnxnorm.state"


def write_state(model: ir.Model, state: Mapping[str, str]) -> None:
    """Notes the state in the model's metadata; a graph without state has no note."""
    if state:
        model.metadata_props[_KEY] = json.dumps(dict(state))
    else:
        model.metadata_props.pop(_KEY, None)


def read_state(model: ir.Model) -> dict[str, str]:
    """State input -> output with its next value; empty for an inference graph.

    Raises:
        ModelError: the metadata names inputs or outputs that the graph has not.

    """
    try:
        state = {str(key): str(value) for key, value in json.loads(model.metadata_props.get(_KEY, "{}")).items()}
    except (ValueError, AttributeError):
        raise ModelError(f"metadata {_KEY!r} is not a JSON object of names") from None
    inputs = {value.name for value in model.graph.inputs}
    outputs = {value.name for value in model.graph.outputs}
    for key, following in state.items():
        if key not in inputs or following not in outputs:
            missing = f"input {key!r}" if key not in inputs else f"output {following!r}"
            raise ModelError(f"metadata {_KEY!r} names the {missing}, which the graph has not")
    return state
