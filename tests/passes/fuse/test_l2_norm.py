"""fuse/l2-norm: what counts is what is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxnorm

from .spelling import attributes, becomes, build, number, parameters, refuses

RULE, OP = "fuse/l2-norm", "L2Norm"
AXES = {"last": np.array([-1]), "ch": np.array([1]), "both": np.array([2, 3])}
CLAMPED = [
    "g = ReduceL2 (x, last) c = Clip (g, eps) y = Div (x, c)",
    "g = ReduceL2 (x, last) c = Max (eps, g) i = Reciprocal (c) y = Mul (i, x)",
    "q = Mul (x, x) s = ReduceSum (q, last) g = Sqrt (s) c = Max (g, eps) y = Div (x, c)",
    "s = ReduceSumSquare (x, last) g = Pow (s, half) c = Clip (g, eps) i = Div (one, c) y = Mul (x, i)",
    "g = ReduceL2 (x, last) c = Clip (g, eps) e = Expand (c, full) y = Div (x, e)",
]


@pytest.mark.parametrize("nodes", CLAMPED)
def test_every_spelling(lab: Any, nodes: str) -> None:
    outcome = becomes(lab, build(lab, nodes, x="3,5,8", full=np.array([3, 5, 8]), **AXES), [OP], RULE, (3, 5, 8))
    assert attributes(outcome, OP) == {"axes": [-1], "epsilon": np.float32(1e-3), "activation": b"none"}
    np.testing.assert_array_equal(parameters(outcome, OP)[0], np.ones(8))


def test_a_clamp_inside_the_root(lab: Any) -> None:
    nodes = "s = ReduceSumSquare (x, last) c = Max (s, eps) r = Sqrt (c) y = Div (x, r)"
    outcome = becomes(lab, build(lab, nodes, x="N,5,8", **AXES), [OP], RULE, (3, 5, 8))
    assert attributes(outcome, OP)["epsilon"] == pytest.approx(np.sqrt(1e-3), rel=1e-6)


def test_the_root_of_a_mean_square(lab: Any) -> None:
    nodes = "q = Mul (x, x) m = ReduceMean (q, last) r = Sqrt (m) c = Max (r, eps) y = Div (x, c)"
    outcome = becomes(lab, build(lab, nodes, x="N,5,8", **AXES), [OP], RULE, (3, 5, 8))
    np.testing.assert_allclose(parameters(outcome, OP)[0], np.sqrt(8.0), rtol=1e-7)


def test_without_a_clamp(lab: Any) -> None:
    outcome = lab.optimize(build(lab, "g = ReduceL2 (x, last) y = Div (x, g)", x="N,5,8", **AXES))
    assert outcome.ops == [OP]
    assert attributes(outcome, OP)["epsilon"] == 0.0
    x = lab.array(3, 5, 8)
    x[1, 2] = 0.0  # becomes NaN
    lab.same(outcome, {"x": x})
    lab.same_in_ort(outcome, {"x": x})


@pytest.mark.parametrize(("axes", "over"), [("ch", [-3]), ("both", [-2, -1])])
def test_other_axes(lab: Any, axes: str, over: list[int]) -> None:
    nodes = f"g = ReduceL2 (x, {axes}) c = Clip (g, eps) y = Div (x, c)"
    outcome = becomes(lab, build(lab, nodes, x="N,6,4,5", **AXES), [OP], RULE)
    assert attributes(outcome, OP)["axes"] == over


def test_weights_and_activation_behind_it(lab: Any) -> None:
    nodes = "g = ReduceL2 (x, ch) c = Clip (g, eps) n = Div (x, c) p = Mul (w, n) y = Relu (p)"
    outcome = becomes(lab, build(lab, nodes, w=lab.array(1, 6, 1, 1), **AXES), [OP], RULE)
    np.testing.assert_array_equal(parameters(outcome, OP)[0], lab.array(1, 6, 1, 1).reshape(-1))
    assert attributes(outcome, OP)["activation"] == b"relu"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("opset", [15, 18, 23])
def test_types_and_opsets(lab: Any, dtype: str, opset: int) -> None:
    first = "g = ReduceL2 (x, last)" if opset >= 18 else "g = ReduceL2 <axes=[-1]> (x)"
    model = build(lab, f"{first} c = Clip (g, eps) y = Div (x, c)", dtype, opset, x="N,5,8", **AXES)
    becomes(lab, model, [OP], RULE, (3, 5, 8), dtype)


def test_verified(lab: Any) -> None:
    assert lab.optimize(build(lab, CLAMPED[0], x="3,5,8", **AXES), verify=True).ops == [OP]


def test_a_root_mean_square_norm_is_left_to_its_rule(lab: Any) -> None:
    nodes = "g = ReduceL2 (x, last) n = Div (x, g) y = Mul (n, root)"
    outcome = lab.optimize(build(lab, nodes, x="N,5,8", root=number(np.sqrt(8.0)), **AXES))
    assert outcome.ops == ["RMSNorm"]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("s = ReduceSumSquare (x, last) v = Add (s, eps) c = Max (v, eps) r = Sqrt (c) y = Div (x, r)", "has both"),
        (
            "g = ReduceL2 (x, last) c = Clip (g, eps) d = Add (c, eps) y = Div (x, d)",
            "epsilon is added outside the root",
        ),
        ("g = ReduceL2 (x, last) c = Clip (g, eps) y = Mul (x, c)", "its power is not the inverse square root"),
    ],
)
def test_refuses_another_function(lab: Any, nodes: str, words: str) -> None:
    model = build(lab, nodes, x="N,5,8", **AXES)
    refuses(lab, model, RULE, OP, words, (3, 5, 8), disable=["fuse/rms-norm"])


def test_refuses_other_readers(lab: Any) -> None:
    model = build(lab, f"{CLAMPED[0]} z = Neg (c)", x="N,5,8", out=", float[N,5,1] z", **AXES)
    refuses(lab, model, RULE, OP, "an inner value has other readers", (3, 5, 8), disable=["fuse/rms-norm"])


@pytest.mark.parametrize("nodes", CLAMPED[:3])
def test_refuses_an_unknown_size(lab: Any, nodes: str) -> None:
    model = build(lab, nodes, x="N,5,D", **AXES)
    refuses(lab, model, RULE, OP, "the size of a normalized axis is not known", (3, 5, 8), disable=["fuse/rms-norm"])


def test_refuses_an_epsilon_that_float32_cannot_say(lab: Any) -> None:
    model = build(lab, CLAMPED[0], "float64", x="N,5,8", **{"eps": number(1e-60, "float64"), **AXES})
    refuses(lab, model, RULE, OP, "epsilon is not one", (3, 5, 8), disable=["fuse/rms-norm"])


def test_epsilon_outside_stays(lab: Any) -> None:
    """x / (length + epsilon) is another function near zero."""
    outcome = lab.optimize(build(lab, "g = ReduceL2 (x, last) d = Add (g, eps) y = Div (x, d)", x="N,5,8", **AXES))
    assert "ReduceL2" in outcome.ops
    assert "epsilon is added outside the root" in outcome.only.reason


# --- PyTorch modules ----------------------------------------------------------------------------------------------


class _Normalized(nn.Module):
    def __init__(self, dim: int, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.dim = dim
        self.weight = None if shape is None else nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.normalize(x, dim=self.dim)
        return y if self.weight is None else y * self.weight


@pytest.mark.parametrize(("dim", "shape"), [(1, None), (1, (6, 1, 1)), (-1, (5,))])
def test_functional_normalize(dim: int, shape: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    module, x = _Normalized(dim, shape).eval(), torch.randn(2, 6, 4, 5)
    x[0] = 0
    result = onnxnorm.export(module, (x,), dynamic_shapes=({0: "batch"},))
    assert [node.op_type for node in result.model.graph] == [OP], result.explain()
    onnxnorm.check(module, result.model, x).assert_passed()
