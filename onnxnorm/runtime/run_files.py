"""Arrays from files into a session and out again, with errors that name the input and what it must be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxnorm.errors import ModelError, UsageError, one_line
from onnxnorm.runtime.arrays import from_ort, to_ort

Array = npt.NDArray[Any]

#: ONNX Runtime's type names -> NumPy types.
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def load_inputs(session: Any, files: Mapping[str, str]) -> dict[str, Array]:
    """The session's inputs from ``name -> .npy file``; '' names the only input.

    Raises:
        UsageError: a missing, unknown or repeated input, a file that holds no array, a wrong dtype or shape.

    """
    wanted = {item.name: item for item in session.get_inputs()}
    files = dict(files)
    if "" in files:
        if len(wanted) != 1 or len(files) != 1:
            raise UsageError(f"--input {files['']} has no name; the model's inputs are {', '.join(wanted) or 'none'}")
        files = {next(iter(wanted)): files[""]}
    for name in files:
        if name not in wanted:
            raise UsageError(f"the model has no input {name!r}; it has {', '.join(wanted) or 'none'}")
    for name, item in wanted.items():
        if name not in files:
            raise UsageError(f"input {name!r} is missing: give --input {name}=FILE.npy ({_described(item)})")
    return {name: fitted(_load(Path(file)), wanted[name], file) for name, file in files.items()}


def _load(path: Path) -> Array:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
    except Exception as error:
        raise UsageError(f"{path} is no .npy file: {one_line(error)}") from None
    if not isinstance(loaded, np.ndarray):
        names = ", ".join(loaded.files)
        raise UsageError(f"{path} is an .npz file with the arrays {names}; save the one that is meant as .npy")
    return loaded


def fitted(array: Array, item: Any, source: str) -> Array:
    """The array as the input ``item`` (an onnxruntime NodeArg) takes it; UsageError when it does not fit."""
    dtype = input_dtype(item)
    if dtype == ml_dtypes.bfloat16:
        array = _as_bfloat16(array)
    if array.dtype != dtype:
        raise UsageError(
            f"{source} holds {array.dtype}, but input {item.name!r} is {dtype.name}; "
            f"convert it with array.astype({dtype.name!r})"
        )
    sizes = list(item.shape)
    fits = len(sizes) == array.ndim and all(
        not isinstance(size, int) or size == have for size, have in zip(sizes, array.shape, strict=True)
    )
    if not fits:
        raise UsageError(f"{source} has shape {list(array.shape)}, but input {item.name!r} is {_described(item)}")
    return array


def input_dtype(item: Any) -> np.dtype[Any]:
    """The NumPy type of the input ``item`` (an onnxruntime NodeArg); UsageError when it is no tensor of numbers."""
    dtype = _TYPES.get(item.type)
    if dtype is None:
        raise UsageError(f"input {item.name!r} is a {item.type}, which cannot be read from a .npy file")
    found: np.dtype[Any] = np.dtype(dtype)
    return found


def _as_bfloat16(array: Array) -> Array:
    """NumPy has no bfloat16: its raw two bytes, or float32 values that it holds exactly, become it."""
    if array.dtype == np.dtype("V2"):
        return array.view(ml_dtypes.bfloat16)
    if array.dtype == np.float32:
        narrow = array.astype(ml_dtypes.bfloat16)
        if np.array_equal(narrow.astype(np.float32), array, equal_nan=True):
            return narrow
        raise UsageError(
            "the float32 array for a bfloat16 input has values that bfloat16 does not hold; round it first"
        )
    return array


def _described(item: Any) -> str:
    shape = ", ".join("?" if size is None else str(size) for size in item.shape)
    return f"{item.type.removeprefix('tensor(').removesuffix(')')}[{shape}]"


def run_model(session: Any, feeds: Mapping[str, Array], model: str) -> dict[str, Array]:
    """Outputs by name; bfloat16 ones as float32, which holds them exactly and which NumPy can store.

    Raises:
        ModelError: ONNX Runtime fails while running.

    """
    try:
        values = session.run_with_ort_values(None, {name: to_ort(array) for name, array in feeds.items()})
    except Exception as error:
        raise ModelError(f"{model} failed while running: {one_line(error)}") from None
    arrays = {}
    for item, value in zip(session.get_outputs(), values, strict=True):
        array = from_ort(value)
        arrays[item.name] = array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
    return arrays
