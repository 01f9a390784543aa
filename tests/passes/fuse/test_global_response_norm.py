"""fuse/global-response-norm and fuse/input-activation: what counts is what is computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxnorm

from .spelling import CODES, attributes, becomes, build, number, parameters, refuses, sample

RULE, INPUT, OP = "fuse/global-response-norm", "fuse/input-activation", "GlobalResponseNorm"
AXES = {"over": np.array([2, 3]), "ch": np.array([1]), "last": np.array([-1]), "mid": np.array([1, 2])}
LENGTHS = [
    "g = ReduceL2 (x, over)",
    "q = Pow (x, two) s = ReduceSum (q, over) g = Sqrt (s)",
    "s = ReduceSumSquare (x, over) g = Pow (s, half)",
]
RESPONSES = [
    "m = ReduceMean (g, ch) d = Add (m, eps) r = Div (g, d)",
    "m = ReduceMean (g, ch) d = Add (eps, m) i = Reciprocal (d) r = Mul (i, g)",
    "m = ReduceMean <keepdims=0> (g, ch) u = Unsqueeze (m, ch) d = Add (u, eps) r = Div (g, d)",
]
TAILS = [
    "a = Mul (x, r) p = Mul (w, a) s1 = Add (b, p) y = Add (x, s1)",
    "a = Mul (w, r) p = Mul (a, x) s1 = Add (p, x) y = Add (s1, b)",
    "a = Mul (w, x) p = Mul (r, a) s1 = Add (x, b) y = Add (p, s1)",
]
CORE = f"{LENGTHS[0]} {RESPONSES[0]} {TAILS[0]}"


def affine(lab: Any, dtype: str = "float32", shape: tuple[int, ...] = (6, 1, 1)) -> dict[str, Any]:
    return {"w": lab.array(*shape, dtype=dtype), "b": lab.array(*shape, dtype=dtype, seed=2)}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("response", RESPONSES)
def test_every_spelling(lab: Any, length: str, response: str) -> None:
    tail = TAILS[(LENGTHS.index(length) + RESPONSES.index(response)) % 3]
    model = build(lab, f"{length} {response} {tail}", **AXES, **affine(lab))
    outcome = becomes(lab, model, [OP], RULE)
    found = attributes(outcome, OP)
    assert found == {
        "epsilon": np.float32(1e-3),
        "input_activation": b"none",
        "activation": b"none",
        "channels_last": 0,
    }
    for new, old in zip(parameters(outcome, OP), affine(lab).values(), strict=True):
        np.testing.assert_array_equal(new, old.reshape(-1))


@pytest.mark.parametrize(
    "tail",
    [
        "a = Mul (w, r) c = Add (a, one) p = Mul (x, c) y = Add (p, b)",
        "a = Mul (r, w) c = Add (one, a) p = Mul (c, x) y = Add (b, p)",
        "c = Add (one, r) y = Mul (x, c)",
    ],
)
def test_with_x_taken_out(lab: Any, tail: str) -> None:
    becomes(lab, build(lab, f"{LENGTHS[0]} {RESPONSES[0]} {tail}", **AXES, **affine(lab)), [OP], RULE)
    changed = build(lab, f"{LENGTHS[0]} {RESPONSES[0]} {tail}".replace("one", "two"), **AXES, **affine(lab))
    assert OP not in lab.optimize(changed).ops


@pytest.mark.parametrize("tail", ["y = Add (x, a)", "p = Mul (a, w) y = Add (p, x)", "s1 = Add (x, a) y = Add (s1, b)"])
def test_missing_parameters(lab: Any, tail: str) -> None:
    nodes = f"{LENGTHS[0]} {RESPONSES[0]} a = Mul (x, r) {tail}"
    becomes(lab, build(lab, nodes, **AXES, **affine(lab)), [OP], RULE)


def test_a_scaled_length_scales_epsilon(lab: Any) -> None:
    """A root of the mean of squares in place of the length."""
    nodes = f"q = Mul (x, x) k0 = ReduceMean (q, over) g = Sqrt (k0) {RESPONSES[0]} {TAILS[0]}"
    outcome = becomes(lab, build(lab, nodes, x="3,6,4,5", **AXES, **affine(lab)), [OP], RULE)
    assert attributes(outcome, OP)["epsilon"] == pytest.approx(1e-3 * math.sqrt(20), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("opset", [15, 20, 23])
def test_channels_last_types_and_opsets(lab: Any, dtype: str, opset: int) -> None:
    first = "g = ReduceL2 (x, mid) m = ReduceMean (g, last)"
    if opset < 18:
        first = "g = ReduceL2 <axes=[1, 2]> (x) m = ReduceMean <axes=[-1]> (g)"
    nodes = f"{first} d = Add (m, eps) r = Div (g, d) {TAILS[0]}"
    model = build(lab, nodes, dtype, opset, x="N,H,W,6", **AXES, **affine(lab, dtype, (6,)))
    outcome = becomes(lab, model, [OP], RULE, (3, 4, 5, 6), dtype)
    assert attributes(outcome, OP)["channels_last"] == 1


def test_float32_inside(lab: Any) -> None:
    core = CORE.replace("x", "f").replace("y = Add", "z = Add").replace("Matrif", "Matrix")
    nodes = f"f = Cast <to=1> (x) {core} y = Cast <to={CODES['float16']}> (z)"
    wide = {name: value.astype(np.float32) for name, value in affine(lab, "float16").items()}
    model = build(lab, nodes, "float16", **{"eps": number(1e-3), **AXES, **wide})
    becomes(lab, model, [OP], RULE, dtype="float16")


ACTIVATIONS = {
    "relu": "z = Relu (x)",
    "silu": "k1 = Sigmoid (x) z = Mul (x, k1)",
    "gelu": "k1 = Div (x, sqrt) k2 = Erf (k1) k3 = Add (k2, one) k4 = Mul (x, k3) z = Mul (k4, half)",
}
BEHIND = "g = ReduceL2 (z, over) m = ReduceMean (g, ch) d = Add (m, eps) r = Div (g, d) a = Mul (z, r) p = Mul (w, a)"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_the_input_and_of_the_result(lab: Any, name: str) -> None:
    nodes = f"{ACTIVATIONS[name]} {BEHIND} s1 = Add (b, p) s2 = Add (z, s1) y = Relu (s2)"
    model = build(lab, nodes, sqrt=number(math.sqrt(2.0)), **AXES, **affine(lab))
    outcome = becomes(lab, model, [OP], RULE)
    found = attributes(outcome, OP)
    assert (found["input_activation"], found["activation"]) == (name.encode(), b"relu")
    assert set(outcome.only.rule.split(", ")) == {RULE, INPUT, "fuse/activation"}


def test_an_activation_that_others_read_stays(lab: Any) -> None:
    nodes = f"z = Relu (x) {BEHIND} s1 = Add (b, p) y = Add (z, s1) o = Neg (z)"
    outcome = lab.optimize(build(lab, nodes, out=", float[N,6,H,W] o", **AXES, **affine(lab)))
    assert sorted(outcome.ops) == [OP, "Neg", "Relu"]
    assert attributes(outcome, OP)["input_activation"] == b"none"


def test_a_second_activation_of_the_input_stays(lab: Any) -> None:
    nodes = f"k0 = Relu (x) k1 = Sigmoid (k0) z = Mul (k0, k1) {BEHIND} s1 = Add (b, p) y = Add (z, s1)"
    outcome = lab.optimize(build(lab, nodes, **AXES, **affine(lab)))
    assert outcome.ops == ["Relu", OP]
    assert attributes(outcome, OP)["input_activation"] == b"silu"


def test_verified(lab: Any) -> None:
    assert lab.optimize(build(lab, CORE, x="3,6,4,5", **AXES, **affine(lab)), verify=True).ops == [OP]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ReduceL2 (x, over)", "ReduceL2 (x, last)", "the length is not over the positions"),
        ("ReduceMean (g, ch)", "ReduceMean (g, all)", "its mean not over the channels"),
        ("ReduceMean (g, ch)", "ReduceMean <keepdims=0> (g, zeroth)", "the axes of the mean of the lengths"),
        ("g = ReduceL2 (x, over)", "k0 = ReduceL2 (x, over) g = Max (k0, eps)", "an epsilon or a clamp of its own"),
        ("(m, eps)", "(m, minus)", "epsilon is not one"),
    ],
)
def test_refuses_another_function(lab: Any, old: str, new: str, words: str) -> None:
    arrays = {"all": np.array([0, 1]), "zeroth": np.array([0])}
    assert old in CORE
    refuses(lab, build(lab, CORE.replace(old, new), **AXES, **arrays, **affine(lab)), RULE, OP, words)


def test_refuses_other_readers(lab: Any) -> None:
    model = build(lab, f"{CORE} z = Neg (g)", out=", float[N,6,1,1] z", **AXES, **affine(lab))
    refuses(lab, model, RULE, OP, "an inner value has other readers")


def test_refuses_inner_graph_outputs(lab: Any) -> None:
    model = build(lab, CORE, out=", float[N,6,1,1] g", **AXES, **affine(lab))
    refuses(lab, model, RULE, OP, "an inner value is a graph output")


def test_refuses_a_residual_for_a_bias(lab: Any) -> None:
    model = build(lab, CORE.replace("(b, p)", "(res, p)"), **AXES, **affine(lab))
    model.graph.input.extend(lab.model("(float[N,6,H,W] res) => (float y) { y = Abs (res) }").graph.input)
    outcome = lab.optimize(model)
    assert OP not in outcome.ops
    assert "its bias is not constant" in outcome.only.reason


def test_refuses_a_weight_along_positions(lab: Any) -> None:
    given = affine(lab) | {"w": lab.array(6, 4, 1)}
    refuses(lab, build(lab, CORE, x="3,6,4,5", **AXES, **given), RULE, OP, "does not vary along the channels alone")


def test_refuses_an_unknown_number_of_channels(lab: Any) -> None:
    nodes = f"{LENGTHS[0]} {RESPONSES[0]} a = Mul (x, r) y = Add (x, a)"
    refuses(lab, build(lab, nodes, x="N,C,H,W", **AXES), RULE, OP, "the number of channels is not known")


def test_refuses_a_mean_of_unknown_count(lab: Any) -> None:
    nodes = f"q = Mul (x, x) k0 = ReduceMean (q, over) g = Sqrt (k0) {RESPONSES[0]} {TAILS[0]}"
    refuses(lab, build(lab, nodes, **AXES, **affine(lab)), RULE, OP, "a number of squares that is not known")


def test_older_opsets(lab: Any) -> None:
    nodes = "g = ReduceL2 <axes=[2, 3]> (x) m = ReduceMean <axes=[1]> (g) d = Add (m, eps) r = Div (g, d)"
    for opset in (8, 13):
        becomes(lab, build(lab, f"{nodes} {TAILS[0]}", opset=opset, **affine(lab)), [OP], RULE)


def test_the_response_of_another_tensor_stays(lab: Any) -> None:
    nodes = CORE.replace("g = ReduceL2 (x, over)", "o = Neg (x) g = ReduceL2 (o, over)")
    outcome = lab.optimize(build(lab, nodes, **AXES, **affine(lab)))
    assert OP not in outcome.ops
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})


# --- PyTorch modules ----------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """Linear or convolution, GELU, the norm, as in ConvNeXt V2."""

    def __init__(self, norm: nn.Module, last: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6) if last else nn.Conv2d(4, 6, 1)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.nn.functional.gelu(self.first(x)))


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("opset", [18, 20])
def test_timm(last: bool, opset: int) -> None:
    from timm.layers.grn import GlobalResponseNorm

    torch.manual_seed(0)
    norm = GlobalResponseNorm(6, channels_last=last)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(6))
    x = torch.randn(2, 5, 7, 4) if last else torch.randn(2, 4, 5, 7)
    module = _Block(norm, last).eval()
    result = onnxnorm.export(module, (x,), opset=opset, dynamic_shapes=({0: "batch"},))
    assert [node.op_type for node in result.model.graph][-1] == OP, result.explain()
    assert "Gelu" not in [node.op_type for node in result.model.graph]
    onnxnorm.check(module, result.model, x).assert_passed()
