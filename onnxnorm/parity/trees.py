"""The tensors inside what a module takes and returns, in PyTorch's own order, each with a name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree  # what torch.export itself flattens with; there is no public form

from onnxnorm.parity.outputs import NamedArray
from onnxnorm.runtime.arrays import from_torch


@dataclass(frozen=True)
class Leaf:
    """One value inside nested containers; ``name`` is its path, as ``past_0_key``, fit to be an ONNX name."""

    name: str
    value: Any


def leaves(tree: Any, prefix: str = "") -> list[Leaf]:
    """Every leaf but None, in pytree order; dataclasses and mappings that pytree does not know are opened too."""
    found = []
    for path, value in pytree.tree_flatten_with_path(tree)[0]:
        name = "_".join(part for part in (prefix, *(_key(key) for key in path)) if part)
        inner = _opened(value)
        if inner is not None:
            found.extend(leaves(inner, name))
        elif value is not None:
            found.append(Leaf(name, value))
    return found


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The same structure with every tensor in it replaced; dataclasses that pytree does not know stay as they are."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def output_arrays(outputs: Any) -> tuple[list[NamedArray], list[str]]:
    """The tensors of a module's result as arrays, and a note for each part of it that holds none.

    Complex numbers become a last axis of 2, as in the ONNX file.
    """
    arrays, notes = [], []
    for leaf in leaves(outputs):
        name = leaf.name or "output"
        if isinstance(leaf.value, torch.Tensor):
            tensor = torch.view_as_real(leaf.value.resolve_conj()) if leaf.value.is_complex() else leaf.value
            arrays.append(NamedArray(name, from_torch(tensor)))
        elif not isinstance(leaf.value, bool | int | float | str):
            notes.append(f"output {name} is a {type(leaf.value).__name__}, in which no tensors were found")
    return arrays, notes


def _opened(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return None


def _key(key: Any) -> str:
    text = next((str(getattr(key, part)) for part in ("key", "idx", "name") if hasattr(key, part)), str(key))
    return re.sub(r"\W+", "_", text).strip("_")
