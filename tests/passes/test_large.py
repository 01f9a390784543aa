"""Weights that are folded piece by piece, here with pieces of a few elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.passes import large
from onnxnorm.passes.large import Exact, exact
from onnxnorm.passes.rule import Refusal, check_underflow, rounded

NORM = "BatchNormalization (c, gamma, beta, mean, var)"


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGEST_SMALL", 8)
    monkeypatch.setattr(large, "_PIECE", 7)


def both(*shape: int) -> tuple[np.ndarray, Exact]:
    array = np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)
    found = exact(array)
    assert isinstance(found, Exact)
    return array.astype(np.float64), found


@pytest.mark.parametrize("shape", [(9,), (1, 30), (5, 3), (4, 2, 3, 2), (2, 1, 20), (3, 1, 1, 4)])
def test_as_numpy_does(shape: tuple[int, ...]) -> None:
    array, found = both(*shape)
    for axis in range(len(shape)):
        factor = np.arange(1.0, shape[axis] + 1).reshape(-1, *(1,) * (len(shape) - 1 - axis))
        want, got = 3.0 * (array * factor), 3.0 * (found * factor)
        assert isinstance(got, Exact)
        np.testing.assert_array_equal(np.asarray(got), want)
        np.testing.assert_array_equal(np.asarray(factor * found), factor * array)
        np.testing.assert_array_equal(np.asarray(np.square(got)), np.square(want))
        np.testing.assert_allclose(got.sum(axis=axis), want.sum(axis=axis), rtol=1e-12)
        np.testing.assert_allclose(got.sum(axis=axis, keepdims=True), want.sum(axis=axis, keepdims=True), rtol=1e-12)
        np.testing.assert_array_equal(np.abs(got), np.abs(want))
        wider = got.reshape(1, *shape[:axis], 1, *shape[axis:])
        assert isinstance(wider, Exact)
        np.testing.assert_array_equal(np.asarray(wider.reshape(shape)), want)
        np.testing.assert_array_equal(np.asarray(got.reshape(-1)), want.reshape(-1))
        check_underflow(got, ir.DataType.FLOAT, axis)
        written = rounded(got, ir.DataType.FLOAT16)
        np.testing.assert_array_equal(written, want.astype(np.float16))
        assert not written.flags.writeable


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        ("(float[2,3,6,5] x) => (float[N,4,H,W] y) { c = Conv (x, w) y = " + NORM + " }", {"w": (4, 3, 3, 3)}),
        ("(float[2,2,6] x) => (float[N,4,W] y) { c = ConvTranspose <group=2> (x, w) y = " + NORM + " }",
         {"w": (2, 2, 3)}),
        ("(float[2,2,6] x) => (float[N,4,W] y) { c = ConvTranspose (x, w) y = " + NORM + " }", {"w": (2, 4, 3)}),
        ("(float[2,3] x) => (float[N,4] y) { c = Gemm <transB=1> (x, w) y = " + NORM + " }", {"w": (4, 3)}),
        ("(float[2,3] x) => (float[N,4] y) { c = MatMul (x, w) y = " + NORM + " }", {"w": (3, 4)}),
        ("(float[2,4,6] x) => (float[N,W,3] y) { c = Mul (x, k) d = Sub (c, k) y = MatMul (d, w) }",
         {"w": (6, 3), "k": (6,)}),
        ("(float[2,4,6,5] x) => (float[N,3,H,W] y) { c = Mul (x, k) d = Sub (c, k) y = Conv (d, w) }",
         {"w": (3, 4, 3, 3), "k": (4, 1, 1)}),
        ("(float[2,4] x) => (float[N,3] y) { c = Mul (x, k) d = Sub (c, k) y = Gemm (d, w) }",
         {"w": (4, 3), "k": (4,)}),
    ],
)  # fmt: skip
def test_same_bytes_as_whole_arrays(
    lab: Any, text: str, arrays: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum of pieces may differ from NumPy's in its last bit, which float32 does not show here."""
    given = {name: lab.array(*shape, seed=seed) for seed, (name, shape) in enumerate(arrays.items())}
    model = lab.model(text, **given, **({} if "k" in arrays else lab.batch_norm(4)))
    pieces = lab.optimize(model).after
    monkeypatch.setattr(large, "LARGEST_SMALL", 1 << 20)
    whole = lab.optimize(model).after
    assert len(whole.graph.node) <= 2
    assert pieces.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_overflow_and_underflow_in_a_piece() -> None:
    array = np.ones((4, 6), np.float32)
    array[3, 5] = 1e6
    with pytest.raises(Refusal, match="overflow float16"):
        rounded(exact(array), ir.DataType.FLOAT16)
    with pytest.raises(Refusal, match="underflow float16"):
        check_underflow(exact(array * np.float32(1e-9)), ir.DataType.FLOAT16, 1)


def test_new_weights_go_to_files_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "_SMALLEST_SPILLED", 100)
    room = large.Room(limit=1000)
    array = np.arange(100, dtype=np.float32)
    assert room.settle(array) is array
    assert room.settle(array[:20]) is not None
    assert [room.settle(array) is array for _ in range(3)] == [True, False, False]
    written = room.settle(array)
    np.testing.assert_array_equal(written, array)
    assert not written.flags.writeable
    assert room.settle(written[10:].reshape(9, 10)).base is not None
    assert large._is_mapped(written[10:])
    assert not large._is_mapped(array[10:])
