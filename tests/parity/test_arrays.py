"""Arrays between NumPy, PyTorch and ONNX Runtime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from onnxnorm.errors import UsageError
from onnxnorm.runtime.arrays import from_ort, from_torch, to_ort, to_torch

TYPES = ["float32", "float64", "float16", "int64", "int32", "uint8", "bool", ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (5,)])
def test_round_trips(dtype: object, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)  # type: ignore[arg-type]
    for back in (from_ort(to_ort(array)), from_torch(to_torch(array))):
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()


def test_strided_arrays() -> None:
    array = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16).T
    np.testing.assert_array_equal(from_ort(to_ort(array)), array)
    np.testing.assert_array_equal(from_torch(to_torch(array)), array)
    assert from_torch(torch.ones(2, dtype=torch.complex64).conj()).dtype == np.complex64


def test_what_has_no_array_form() -> None:
    with pytest.raises(UsageError, match="cannot become an array"):
        from_torch(torch.ones(2, 2).to_sparse())
    with pytest.raises(UsageError, match="no PyTorch form"):
        to_torch(np.array(["a"]))
