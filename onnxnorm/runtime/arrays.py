"""Arrays between NumPy, PyTorch and ONNX Runtime, with the types that NumPy itself lacks (bfloat16, float8).

NumPy is the common form; ml_dtypes supplies the missing types. No torch is needed for the ONNX Runtime side.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxnorm.errors import UsageError, one_line

if TYPE_CHECKING:
    import torch

Array: TypeAlias = npt.NDArray[Any]

#: ONNX element types that NumPy has only through ml_dtypes: number in TensorProto.DataType -> NumPy type.
_EXTRA_TYPES: dict[int, np.dtype[Any]] = {
    16: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(ml_dtypes.float8_e4m3fn),
    18: np.dtype(ml_dtypes.float8_e4m3fnuz),
    19: np.dtype(ml_dtypes.float8_e5m2),
    20: np.dtype(ml_dtypes.float8_e5m2fnuz),
}
_EXTRA_NUMBERS = {dtype: number for number, dtype in _EXTRA_TYPES.items()}


def to_ort(array: Array) -> Any:
    """An ``onnxruntime.OrtValue`` on the CPU with the array's type, shape and data (shared, not copied, if contiguous).

    The caller keeps ``array`` alive for as long as the value is used.
    """
    from onnxruntime import OrtValue

    array = np.asarray(array, order="C")
    number = _EXTRA_NUMBERS.get(array.dtype)
    if number is None:
        return OrtValue.ortvalue_from_numpy(array)
    storage = array.view(np.uint8 if array.dtype.itemsize == 1 else np.uint16)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(storage, number)


def from_ort(value: Any) -> Array:
    """A tensor ``onnxruntime.OrtValue`` as a NumPy array of its own; bfloat16 and float8 in ml_dtypes' types.

    Raises:
        UsageError: the value is a sequence, a map or sparse: those have no array form.

    """
    if not value.is_tensor():
        raise UsageError(f"a value of type {value.data_type()} is no tensor; only tensors can be read as arrays")
    dtype = _EXTRA_TYPES.get(value.element_type())
    if dtype is None:
        return np.asarray(value.numpy())
    if value.device_name().lower() != "cpu":
        raise UsageError(f"a {dtype} value on {value.device_name()} cannot be read; bring it to the CPU first")
    shape = tuple(value.shape())
    size = math.prod(shape) * dtype.itemsize  # OrtValue.tensor_size_in_bytes came with ONNX Runtime 1.23
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the NumPy type is a real floating type, ml_dtypes' included."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype in _EXTRA_NUMBERS


def float_info(dtype: np.dtype[Any]) -> ml_dtypes.finfo:
    """Machine limits of a real floating type, ml_dtypes' included: ``eps``, ``max``, ``smallest_normal``."""
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def from_torch(tensor: torch.Tensor) -> Array:
    """A torch tensor as a NumPy array of its own on the CPU; complex numbers stay complex.

    Raises:
        UsageError: the tensor is sparse, quantized or of a type that NumPy cannot hold.

    """
    import torch

    tensor = tensor.detach().to("cpu").resolve_conj().resolve_neg()
    extra = {
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
        torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
        torch.float8_e5m2: ml_dtypes.float8_e5m2,
        torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
    }.get(tensor.dtype)
    try:
        if extra is None:
            return np.array(tensor.numpy(), order="C")
        storage = torch.uint8 if tensor.element_size() == 1 else torch.int16
        return np.array(tensor.contiguous().view(storage).numpy()).view(extra)
    except (TypeError, RuntimeError) as error:
        text = one_line(error)
        raise UsageError(f"a {tensor.layout} tensor of type {tensor.dtype} cannot become an array: {text}") from None


def to_torch(array: Array) -> torch.Tensor:
    """A NumPy array as a torch tensor of its own on the CPU.

    Raises:
        UsageError: torch has no such type (strings, objects).

    """
    import torch

    extra = {
        np.dtype(ml_dtypes.bfloat16): torch.bfloat16,
        np.dtype(ml_dtypes.float8_e4m3fn): torch.float8_e4m3fn,
        np.dtype(ml_dtypes.float8_e4m3fnuz): torch.float8_e4m3fnuz,
        np.dtype(ml_dtypes.float8_e5m2): torch.float8_e5m2,
        np.dtype(ml_dtypes.float8_e5m2fnuz): torch.float8_e5m2fnuz,
    }.get(array.dtype)
    try:
        if extra is None:
            return torch.from_numpy(np.array(array, order="C"))
        storage = np.uint8 if array.dtype.itemsize == 1 else np.int16
        return torch.from_numpy(np.array(array, order="C").view(storage)).view(extra)
    except TypeError:
        raise UsageError(f"an array of type {array.dtype} has no PyTorch form; give numbers or booleans") from None
