"""fold/shift-before-norm and fold/scale-before-norm: what a norm takes away again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

IN = "y = InstanceNormalization ({}, one6, zero6)"
GN = "y = GroupNormalization <num_groups=3> ({}, one6, zero6)"
LN = "y = LayerNormalization <axis=1> ({}, scale)"
CONV = "c = Conv <pads=[1,1,1,1]> (x, w, b) "


def model(lab: Any, nodes: str, out: str = "", dtype: str = "float", **arrays: Any) -> Any:
    given = {
        "one6": np.ones(6, np.float32),
        "zero6": np.zeros(6, np.float32),
        "scale": lab.array(6, 4, 5),
        "w": lab.array(6, 6, 3, 3),
        "b": lab.array(6, seed=1),
        "perchannel": lab.array(6, 1, 1, seed=2),
        "pergroup": np.repeat(lab.array(3, seed=3), 2).reshape(6, 1, 1),
        "number": np.array(2.5, np.float32),
        "one": np.array(1.0, np.float32),
    } | arrays
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in given.items() if name in words}
    return lab.model(f"({dtype}[3,6,4,5] x) => ({dtype}[3,6,4,5] y{out}) {{ {nodes} }}", 21, 10, **used)


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        (CONV + IN.format("c"), ["Conv"]),
        ("c = ConvTranspose <pads=[1,1,1,1]> (x, w, b) " + IN.format("c"), ["ConvTranspose"]),
        ("c = Add (x, perchannel) " + IN.format("c"), []),
        ("c = Sub (x, pergroup) " + GN.format("c"), []),
        ("c = Add (number, x) " + GN.format("c"), []),
        ("c = Add (x, number) " + LN.format("c"), []),
    ],
)
@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_fires(lab: Any, nodes: str, left: list[str], target: str) -> None:
    outcome = lab.optimize(model(lab, nodes), target=target, verify=target == "onnxnorm")
    assert not {"Add", "Sub"} & set(outcome.ops[: len(left) + 1]) - {"Reshape"}, outcome.result.explain()
    assert "fold/shift-before-norm" in outcome.result.explain() or target == "standard"
    for kind in left:
        assert len(outcome.node(kind).input) == 2
    lab.same(outcome, {"x": lab.array(3, 6, 4, 5, seed=5)})


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_in_front_of_a_norm_in_primitive_operators(lab: Any, target: str) -> None:
    """The laboratory asks that a second run changes nothing."""
    norm = "u = ReduceMean (s, over) d = Sub (s, u) q = Mul (d, d) v = ReduceMean (q, over) r = Sqrt (v) y = Div (d, r)"
    outcome = lab.optimize(model(lab, f"{CONV} s = Add (c, perchannel) {norm}", over=np.array([2, 3])), target=target)
    assert len(outcome.node("Conv").input) == 2
    lab.same(outcome, {"x": lab.array(3, 6, 4, 5, seed=5)})


@pytest.mark.parametrize(
    ("nodes", "out"),
    [
        (CONV + GN.format("c"), ""),  # one number per channel in groups of two
        ("c = Add (x, perchannel) " + LN.format("c"), ""),
        ("c = Sub (number, x) " + IN.format("c"), ""),
        (CONV + IN.format("c") + " z = Neg (c)", ", float[3,6,4,5] z"),
        (CONV + IN.format("c"), ", float[3,6,4,5] c"),
        ("c = Add (x, nan) " + IN.format("c"), ""),
        ("c = Add (x, position) " + IN.format("c"), ""),
    ],
)
def test_stays(lab: Any, nodes: str, out: str) -> None:
    more = {"nan": np.array(np.nan, np.float32), "position": lab.array(4, 5)}
    outcome = lab.optimize(model(lab, nodes, out, **more))
    kept = [node for node in outcome.after.graph.node if node.op_type in ("Conv", "Add", "Sub")]
    assert [len(node.input) for node in kept] in ([3], [2])
    assert kept[0].op_type != "Conv" or len(kept[0].input) == 3
    if "nan" not in nodes:
        lab.same(outcome, {"x": lab.array(3, 6, 4, 5, seed=5)})


def test_a_bias_that_a_caller_may_override_stays(lab: Any) -> None:
    proto = model(lab, CONV + IN.format("c"))
    proto.graph.input.extend(lab.model("(float[6] b) => (float y) { y = Abs (b) }").graph.input)
    assert len(lab.optimize(proto).node("Conv").input) == 3


def test_a_shift_in_a_half_type_stays(lab: Any) -> None:
    """It may bring values near 0, where there are more numbers."""
    arrays = {"one6": np.ones(6, np.float16), "zero6": np.zeros(6, np.float16)}
    arrays["perchannel"] = lab.array(6, 1, 1, dtype="float16")
    proto = model(lab, "c = Add (x, perchannel) " + IN.format("c"), dtype="float16", **arrays)
    assert lab.optimize(proto).ops == ["Add", "GroupNorm"]


def test_a_shift_that_makes_the_tensor_larger_stays(lab: Any) -> None:
    nodes = "c = Add (x, big) y = InstanceNormalization (c, one6, zero6)"
    proto = model(lab, nodes, big=np.ones((3, 6, 4, 5), np.float32))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1
    assert "Add" in lab.optimize(proto).ops


@pytest.mark.parametrize(("nodes", "epsilon"), [("Mul (x, number)", 1e-5 / 6.25), ("Div (x, number)", 1e-5 * 6.25)])
@pytest.mark.parametrize("norm", [IN, GN, LN, "y = RMSNormalization <axis=1> ({}, scale)"])
def test_scale(lab: Any, nodes: str, epsilon: float, norm: str) -> None:
    proto = model(lab, f"c = {nodes} " + norm.format("c"))
    proto.opset_import[0].version = 23
    outcome = lab.optimize(proto)
    assert len(outcome.ops) == 1, outcome.result.explain()
    assert "fold/scale-before-norm" in outcome.result.explain()
    (found,) = [item.f for item in outcome.after.graph.node[0].attribute if item.name == "epsilon"]
    assert found == pytest.approx(epsilon, rel=1e-6)
    lab.same(outcome, {"x": lab.array(3, 6, 4, 5, seed=5) * 1e-2})


@pytest.mark.parametrize(
    ("nodes", "out"),
    [
        ("c = Mul (x, perchannel) " + IN.format("c"), ""),
        ("c = Mul (x, minus) " + IN.format("c"), ""),
        ("c = Mul (x, number) " + IN.format("c") + " z = Neg (c)", ", float[3,6,4,5] z"),
        ("c = Div (number, x) " + IN.format("c"), ""),
        ("c = Mul (x, tiny) " + IN.format("c"), ""),
    ],
)
def test_scale_stays(lab: Any, nodes: str, out: str) -> None:
    more = {"minus": np.array(-2.0, np.float32), "tiny": np.array(1e-25, np.float32)}
    outcome = lab.optimize(model(lab, nodes, out, **more))
    assert {"Mul", "Div"} & set(outcome.ops)
    lab.same(outcome, {"x": lab.array(3, 6, 4, 5, seed=5, low=0.5)})
