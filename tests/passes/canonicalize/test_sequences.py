"""Splits into sequences become Split; casts that change nothing go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def sequence(lab: Any, nodes: str, opset: int = 18, shape: str = "N,7", kind: str = "float", **arrays: Any) -> Any:
    text = f"({kind}[{shape}] x) => ({kind}[A,B] y) {{ s = SplitToSequence <axis=-1> (x, sizes) {nodes} }}"
    indices = {"i0": np.array(0), "i1": np.array(1), "last": np.array(-1)}
    return lab.model(text, opset, **{name: array for name, array in indices.items() if name in nodes}, **arrays)


@pytest.mark.parametrize("opset", [13, 18, 24])
@pytest.mark.parametrize("sizes", [np.array(3), np.array([2, 4, 1]), np.array(7)])
def test_becomes_split(lab: Any, opset: int, sizes: Any) -> None:
    nodes = "a = SequenceAt (s, i0) b = SequenceAt (s, last) c = ReduceSum <keepdims=1> (b, one) y = Mul (a, c)"
    model = sequence(lab, nodes, opset, sizes=sizes, one=np.array([1]))
    outcome = lab.optimize(model)
    assert outcome.ops == ["Split", "ReduceSum", "Mul"]
    lab.same_in_ort(outcome, {"x": lab.array(3, 7)})


def test_runs_in_bfloat16(lab: Any) -> None:
    nodes = "a = SequenceAt (s, i0) b = SequenceAt (s, i1) y = Mul (a, b)"
    outcome = lab.optimize(sequence(lab, nodes, shape="N,8", kind="bfloat16", sizes=np.array(4)))
    assert [name for name in outcome.ops if name != "Cast"] == ["Split", "Mul"]


def test_names_are_new(lab: Any) -> None:
    text = (
        "(float[N,4] x) => (float[A,B] y) { s = SplitToSequence <axis=1> (x, sizes) s_part_0 = SequenceAt (s, i1)"
        " s_sizes = SequenceAt (s, i0) y = Sub (s_part_0, s_sizes) }"
    )
    outcome = lab.optimize(lab.model(text, sizes=np.array(2), i0=np.array(0), i1=np.array(1)))
    assert outcome.ops == ["Split", "Sub"]
    lab.same(outcome, {"x": lab.array(3, 4)})


@pytest.mark.parametrize(
    ("nodes", "shape", "sizes"),
    [
        ("y = ConcatFromSequence <axis=1> (s)", "N,7", 3),
        ("y = SequenceAt (s, i0)", "N,7", 3),
        ("a = SequenceAt (s, i0) y = Relu (a)", "N,M", 3),
        ("a = SequenceAt (s, i0) b = SequenceLength (s) c = Cast <to=1> (b) y = Mul (a, c)", "N,7", 3),
    ],
)
def test_left_alone(lab: Any, nodes: str, shape: str, sizes: int) -> None:
    assert "SplitToSequence" in lab.optimize(sequence(lab, nodes, shape=shape, sizes=np.array(sizes))).ops


def test_casts_to_the_same_type_go(lab: Any) -> None:
    text = (
        "(float[N,4] x, float[N,4] z) => (float[A,B] y, float[C,D] w)"
        " { a = Cast <to=1> (x) b = CastLike (a, z) c = Relu (b) y = CastLike (c, x) d = Cast <to=11> (x)"
        " e = CastLike (d, z) w = Neg (e) }"
    )
    outcome = lab.optimize(lab.model(text))
    assert outcome.ops == ["Relu", "Cast", "CastLike", "Neg"]
    lab.same_in_ort(outcome, {"x": lab.array(3, 4), "z": lab.array(3, 4)})


def test_results_of_norms_have_the_type_that_they_have(lab: Any) -> None:
    """Statistics over half inputs that are noted as float32, as PyTorch does."""
    text = (
        "(float16[4,3] x) => (float16[A,B] y) <float[3] m, float[3] v>"
        " { n, m, v = onnxnorm.BatchNormTraining <epsilon=0.1> (x, c, c, c, c, one) y = Relu (n) }"
    )
    arrays = {"c": lab.array(3, dtype="float16"), "one": np.ones(1, np.float16)}
    outcome = lab.optimize(lab.model(text, 18, 11, ', "onnxnorm" : 1', **arrays))
    assert outcome.ops == ["BatchNormTraining", "Relu"]
