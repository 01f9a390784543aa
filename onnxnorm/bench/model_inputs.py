"""Inputs for a whole model: from an .npz file, or random ones at the shapes that the model declares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxnorm.bench.case import aligned
from onnxnorm.errors import UsageError, one_line
from onnxnorm.runtime.arrays import Array, is_float
from onnxnorm.runtime.run_files import fitted, input_dtype


def load_inputs(session: Any, path: str) -> dict[str, Array]:
    """The session's inputs from an .npz file with an array for each.

    Raises:
        UsageError: no such file, not an .npz, or arrays that are missing, unknown or do not fit.

    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as error:
        raise UsageError(f"{path} is no .npz file: {one_line(error)}") from None
    wanted = {item.name: item for item in session.get_inputs()}
    for name in arrays:
        if name not in wanted:
            raise UsageError(f"{path} has an array {name!r}; the model's inputs are {', '.join(wanted) or 'none'}")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UsageError(f"{path} has no array {missing[0]!r}; the model's inputs are {', '.join(wanted)}")
    return {name: _aligned(fitted(arrays[name], wanted[name], path)) for name in wanted}


def random_inputs(session: Any, dims: Mapping[str, int], model: str, seed: int = 0) -> dict[str, Array]:
    """Standard normal values, integers 0 or 1, at the declared shapes with ``dims`` for the dynamic sizes.

    Raises:
        UsageError: a dynamic size that ``dims`` does not have, one in it that the model does not have, or an input
            that is no tensor.

    """
    rng = np.random.default_rng(seed)
    used: set[str] = set()
    found = {}
    for item in session.get_inputs():
        dtype = input_dtype(item)
        shape = _shape(item, dims, used, model)
        array = aligned(shape, dtype)
        drawn = rng.standard_normal(shape, np.float32) if is_float(dtype) else rng.integers(0, 2, shape)
        array[...] = drawn.astype(dtype)
        found[item.name] = array
    unknown = sorted(set(dims) - used)
    if unknown:
        raise UsageError(f"--dim {unknown[0]}={dims[unknown[0]]}: {model} has no dynamic size {unknown[0]!r}")
    return found


def _shape(item: Any, dims: Mapping[str, int], used: set[str], model: str) -> tuple[int, ...]:
    sizes = []
    for axis, size in enumerate(item.shape):
        if isinstance(size, int):
            sizes.append(size)
            continue
        name = size or f"{item.name}.{axis}"
        if name not in dims:
            raise UsageError(f"{model}: axis {axis} of input {item.name!r} is dynamic; give --dim {name}=SIZE")
        used.add(name)
        sizes.append(dims[name])
    return tuple(sizes)


def _aligned(array: Array) -> Array:
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy
