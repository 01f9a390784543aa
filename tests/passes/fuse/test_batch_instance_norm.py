"""fuse/batch-instance-norm and fuse/instance-norm-items: sums of a batch norm and an instance norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxnorm

from .spelling import attributes, build, sample

RULE, OP = "fuse/batch-instance-norm", "BatchInstanceNorm"
BN = "q = BatchNormalization (x, gamma, beta, mean, var)"
TRAINING = "q, mean1, var1 = BatchNormalization <training_mode=1>"
IN = "i = InstanceNormalization (x, one6, zero6)"
MIXES = [
    f"{BN} {IN} p1 = Mul (rho, q) p2 = Mul (rest, i) y = Add (p1, p2)",
    f"{IN} {BN} p1 = Sub (q, i) p2 = Mul (p1, rho) y = Add (i, p2)",
    f"c1 = Mul (x, alpha) q = Add (c1, shift) {IN} p1 = Mul (i, rest) s = Add (p1, q) m = Mul (s, w) y = Add (m, o)",
    f"{BN} i = InstanceNormalization (x, gamma, beta) n0 = Neg (i) s = Sub (q, n0) y = Div (s, w)",
]


def arrays(lab: Any, dtype: str = "float32") -> dict[str, Any]:
    made = lab.batch_norm(6, dtype)
    made |= {"one6": np.ones(6, dtype), "zero6": np.zeros(6, dtype)}
    for seed, name in enumerate(("alpha", "shift", "w", "o")):
        made[name] = lab.array(6, 1, 1, dtype=dtype, seed=seed, low=0.2, high=1.5)
    rho = lab.array(6, 1, 1, dtype=dtype, seed=7, low=0.0, high=1.0)
    return made | {"rho": rho, "rest": (1 - rho).astype(dtype)}


def fused(lab: Any, model: Any, dtype: str = "float32", **options: Any) -> Any:
    outcome = lab.optimize(model, **options)
    assert outcome.ops == [OP], outcome.result.explain()
    assert any(RULE in (item.rule or "") for item in outcome.result.decisions)
    feeds = {"x": sample(lab, (3, 6, 4, 5), dtype)}
    lab.same(outcome, feeds, eps=lab.eps(dtype))
    return outcome


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_every_spelling(lab: Any, mix: str, dtype: str) -> None:
    opset = {"float32": 18, "float16": 14, "float64": 22}[dtype]
    outcome = fused(lab, build(lab, mix, dtype, opset, **arrays(lab, dtype)), dtype)
    assert attributes(outcome, OP)["channels_last"] == 0


def test_the_epsilon_of_one_and_scales_that_cancel_out(lab: Any) -> None:
    mix = MIXES[0].replace("(x, gamma", "<epsilon=0.01> (x, gamma").replace("p2 = Mul (rest, i)", "p2 = Mul (back, i)")
    given = arrays(lab) | {"beta": np.zeros(6, np.float32)}
    given["back"] = -given["rho"] * given["gamma"].reshape(6, 1, 1)
    outcome = fused(lab, build(lab, mix, **given))
    assert attributes(outcome, OP)["epsilon"] == np.float32(1e-5)


def test_verified_and_with_an_activation(lab: Any) -> None:
    model = build(lab, f"{MIXES[0].replace('y = ', 'z = ')} y = Relu (z)", x="3,6,4,5", **arrays(lab))
    assert attributes(fused(lab, model, verify=True), OP)["activation"] == b"relu"


@pytest.mark.parametrize(
    ("mix", "more"),
    [
        (f"{BN} i = InstanceNormalization (u, one6, zero6) y = Add (q, i)", "u = Neg (x) "),
        (f"{IN} y = Add (x, i)", ""),  # a residual
        (f"{IN} p1 = Mul (x, two) y = Add (p1, i)", ""),
        (f"{BN.replace('q = BatchNormalization', TRAINING)} {IN} y = Add (q, i)", ""),
        (f"{IN} p1 = Mul (x, row) y = Add (p1, i)", ""),  # a factor along the positions
    ],
)
def test_another_function_stays(lab: Any, mix: str, more: str) -> None:
    model = build(lab, more + mix, x="3,6,4,6", **arrays(lab), row=lab.array(6))
    outcome = lab.optimize(model)
    assert OP not in outcome.ops
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 6))})


@pytest.mark.parametrize(
    ("nodes", "out"),
    [
        (f"{MIXES[0]} u = Neg (q)", ", float[3,6,4,5] u"),
        (MIXES[0], ", float[3,6,4,5] i"),
        (f"{BN} {IN} r = Relu (i) y = Add (q, r)", ""),
    ],
)
def test_refuses(lab: Any, nodes: str, out: str) -> None:
    outcome = lab.optimize(build(lab, nodes, x="3,6,4,5", out=out, **arrays(lab)))
    assert OP not in outcome.ops
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})


def test_refuses_an_overridable_parameter(lab: Any) -> None:
    model = build(lab, MIXES[0], x="3,6,4,5", **arrays(lab))
    model.graph.input.extend(lab.model("(float[6] mean) => (float y) { y = Abs (mean) }").graph.input)
    assert OP not in lab.optimize(model).ops


def test_refuses_a_variance_that_loses_digits(lab: Any) -> None:
    mix = (
        MIXES[0]
        .replace("(x, gamma", "<epsilon=0.00000103> (x, gamma")
        .replace("(x, one6", "<epsilon=0.000001> (x, one6")
    )
    given = arrays(lab, "float16") | {"var": np.zeros(6, np.float16)}
    assert OP not in lab.optimize(build(lab, mix, "float16", **given)).ops
    assert lab.optimize(build(lab, mix, "float16", **(given | {"var": np.ones(6, np.float16)}))).ops == [OP]


# --- items that became channels ------------------------------------------------------------------------------------

ITEMS = (
    "f = Reshape (x, flat) n, m1, v1 = BatchNormalization <training_mode=1> (f, w18, b18, b18, w18) "
    "y = Reshape (n, whole)"
)


def items(lab: Any, **more: Any) -> dict[str, Any]:
    shapes = {"flat": np.array([1, 18, 4, 5]), "whole": np.array([3, 6, 4, 5])}
    return shapes | {"w18": np.tile(lab.array(6), 3), "b18": np.tile(lab.array(6, seed=1), 3)} | more


OWN = (
    "f = Reshape (x, flat) mu = ReduceMean <keepdims=0> (f, most) c1 = ReduceMean (f, most) c2 = Sub (f, c1) "
    "c3 = Mul (c2, c2) va = ReduceMean <keepdims=0> (c3, most) n = BatchNormalization (f, w18, b18, mu, va) "
    "y = Reshape (n, whole)"
)


@pytest.mark.parametrize("nodes", [ITEMS, OWN])
def test_items_that_became_channels(lab: Any, nodes: str) -> None:
    model = build(lab, nodes, x="3,6,4,5", **items(lab, most=np.array([0, 2, 3])))
    outcome = lab.optimize(model)
    assert outcome.ops == ["GroupNorm"], outcome.result.explain()
    assert attributes(outcome, "GroupNorm")["num_groups"] == 6
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("w18, b18, b18", "u18, b18, b18", "does not repeat for each item"),
        ("(n, whole)", "(n, other)", "not known to give the shape of x"),
        ("(x, flat)", "(x, turned)", "not known to join items and channels"),
    ],
)
def test_items_refused(lab: Any, old: str, new: str, words: str) -> None:
    more = {"u18": lab.array(18), "other": np.array([3, 6, 5, 4]), "turned": np.array([1, 18, 5, 4])}
    model = build(lab, ITEMS.replace(old, new), x="3,6,4,5", **items(lab, **more))
    if "other" in new:
        model.graph.output[0].CopyFrom(lab.model("(float x) => (float[3,6,5,4] y) { y = Abs (x) }").graph.output[0])
    outcome = lab.optimize(model)
    assert "GroupNorm" not in outcome.ops
    assert words in outcome.result.explain()


# --- PyTorch modules ----------------------------------------------------------------------------------------------


class _Authors(nn.Module):
    """As the published code: a batch norm of the items, with their channels side by side, for the instances."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.gate = nn.Parameter(torch.linspace(-0.3, 1.3, 6))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, norm = self.gate.clamp(0, 1), nn.functional.batch_norm
        batch = norm(x, self.mean, self.var, self.weight * gate, self.bias)
        b, c = x.size(0), x.size(1)
        flat = x.view(1, b * c, *x.size()[2:])
        instance = norm(flat, None, None, (self.weight * (1 - gate)).repeat(b), None, True)
        return batch + instance.view(b, c, *x.size()[2:])


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_authors_code(dynamic: bool) -> None:
    torch.manual_seed(0)
    module, x = _Authors().eval(), torch.randn(2, 6, 4, 5)
    result = onnxnorm.export(module, (x,), dynamic_shapes=({0: "batch", 2: "height", 3: "width"},) if dynamic else None)
    assert [node.op_type for node in result.model.graph] == [OP], result.explain()
    onnxnorm.check(module, result.model, x).assert_passed()


OWN = "m = ReduceMean <keepdims=0> (x, kept) k = ReduceMean (x, kept) d = Sub (x, k) d2 = Mul (d, d)" + (
    " v = ReduceMean <keepdims=0> (d2, kept) "
)
ONE_ITEM = OWN + "y = BatchNormalization <epsilon=0.01> (x, gamma, beta, m, v)"


def test_the_statistics_of_one_item(lab: Any) -> None:
    model = build(lab, ONE_ITEM, x="1,6,4,5", kept=np.array([0, 2, 3]), **arrays(lab))
    outcome = lab.optimize(model)
    assert outcome.ops == ["GroupNorm"], outcome.result.explain()
    assert attributes(outcome, "GroupNorm")["num_groups"] == 6
    assert [item.rule for item in outcome.result.decisions] == ["fuse/instance-norm-one-item"]
    lab.same(outcome, {"x": sample(lab, (1, 6, 4, 5))}, eps=lab.eps("float32"))


@pytest.mark.parametrize(
    ("mix", "x", "reason"),
    [
        (ONE_ITEM, "2,6,4,5", ""),
        (ONE_ITEM, "N,6,4,5", ""),
        (ONE_ITEM.replace("y =", "u = Neg (v) y =").replace("beta", "u"), "1,6,4,5", "reader"),
    ],
)
def test_statistics_that_are_no_instance_norm(lab: Any, mix: str, x: str, reason: str) -> None:
    outcome = lab.optimize(build(lab, mix, x=x, kept=np.array([0, 2, 3]), **arrays(lab)))
    assert "BatchNormalization" in outcome.ops
    reasons = [item.reason for item in outcome.result.decisions if item.rule == "fuse/instance-norm-one-item"]
    assert reasons == [] if not reason else reason in str(reasons), outcome.result.explain()
