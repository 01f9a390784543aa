"""The ONNX side of a check: what a session is made of, and the signature that feeds are made for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxnorm.errors import ModelError
from onnxnorm.model_file import load_model, serialized, too_large, uses_onnxnorm
from onnxnorm.passes.state import read_state

#: Metadata property in which export leaves the example's shapes and ranges.
INPUTS_PROPERTY = "onnxnorm.inputs"


@dataclass(frozen=True)
class GraphInput:
    """One input that must be fed. In ``shape`` a string is a symbol, None an unnamed dynamic size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def described(self) -> str:
        """The shape as it is printed: ``[batch, 3, ?]``."""
        if self.shape is None:
            return "[any rank]"
        return "[" + ", ".join("?" if size is None else str(size) for size in self.shape) + "]"


@dataclass(frozen=True)
class Example:
    """What export noted of the example input: its shape, and for integers the range of its values."""

    shape: tuple[int, ...] | None
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True)
class Source:
    """A model file or object, read once.

    Attributes:
        label: how messages name it.
        target: what ``InferenceSession`` takes: the path as given, bytes, or a model too large for bytes.
        inputs, outputs: names and signature of the main graph; overridable initializers need no feed and are left out.
        state: of a training graph, state input -> output with its next value.
        examples: by input name, when the file was exported by onnxnorm.
        uses_onnxnorm: whether the native library has anything to do in it.

    """

    label: str
    target: Any
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    state: Mapping[str, str]
    examples: Mapping[str, Example]
    uses_onnxnorm: bool


def read_source(model_or_path: Any) -> Source:
    """Reads a path, ``onnx_ir.Model``, ``onnx.ModelProto``, or an object with ``.model``.

    Raises:
        ModelError: it is none of these, the file is not ONNX, or an input is no tensor.

    """
    model = load_model(model_or_path)
    target: Any
    if isinstance(model_or_path, str | os.PathLike):
        label, target = os.fspath(model_or_path), os.fspath(model_or_path)
    else:
        label, target = "the model", model if too_large(model) else serialized(model)
    initialized = set(model.graph.initializers)
    return Source(
        label=label,
        target=target,
        inputs=tuple(_graph_input(value, label) for value in model.graph.inputs if value.name not in initialized),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        state=read_state(model),
        examples=_examples(model.metadata_props.get(INPUTS_PROPERTY), label),
        uses_onnxnorm=uses_onnxnorm(model),
    )


def _graph_input(value: ir.Value, label: str) -> GraphInput:
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        raise ModelError(f"{label}: input {value.name!r} is {value.type}; a check can feed tensors only")
    try:
        dtype = np.dtype(value.dtype.numpy())
    except TypeError:
        raise ModelError(f"{label}: input {value.name!r} is {value.dtype.name}, for which NumPy has no type") from None
    shape = None
    if value.shape is not None:
        shape = tuple(size if isinstance(size, int) else (size.value or None) for size in value.shape)
    return GraphInput(str(value.name), dtype, shape)


def _examples(text: str | None, label: str) -> dict[str, Example]:
    if text is None:
        return {}
    try:
        return {item["name"]: _example(item) for item in json.loads(text)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{label}: metadata {INPUTS_PROPERTY!r} is damaged ({type(error).__name__}: {error}); export the model anew"
        ) from None


def _example(item: Mapping[str, Any]) -> Example:
    shape, low, high = item.get("shape"), item.get("min"), item.get("max")
    return Example(
        shape=None if shape is None else tuple(int(size) for size in shape),
        minimum=None if low is None else float(low),
        maximum=None if high is None else float(high),
    )
