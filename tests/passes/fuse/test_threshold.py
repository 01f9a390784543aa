"""fuse/threshold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from .spelling import build, number, sample

RULE, OP = "fuse/threshold", "FilterResponseNorm"
NORM = 'n = onnxnorm.FilterResponseNorm <epsilon=0.001, activation="none", channels_last=0> (x, s6, b6, tau)'


def make(lab: Any, tail: str, norm: str = NORM, dtype: str = "float32", **options: Any) -> Any:
    arrays = {"s6": lab.array(6, dtype=dtype), "b6": lab.array(6, dtype=dtype, seed=1)}
    arrays |= {"tau": lab.array(6, dtype=dtype, seed=2), "t": lab.array(6, 1, 1, dtype=dtype, seed=3)}
    model = build(lab, f"{norm} {tail}", dtype, **{**arrays, **options})
    model.opset_import.add(domain="onnxnorm", version=1)
    return model


def taken(lab: Any, model: Any, wanted: Any, x: Any) -> None:
    outcome = lab.optimize(model)
    assert outcome.ops == [OP], outcome.result.explain()
    assert outcome.only.rule == RULE
    np.testing.assert_array_equal(outcome.initializer(outcome.node(OP).input[3]), wanted)
    lab.same(outcome, {"x": x})
    lab.same_in_ort(outcome, {"x": x})


@pytest.mark.parametrize(
    "tail",
    [
        "y = Max (n, t)",
        "y = Max (t, n)",
        "c = LessOrEqual (n, t) y = Where (c, t, n)",
        "c = Less (n, t) y = Where (c, t, n)",
        "c = GreaterOrEqual (t, n) y = Where (c, t, n)",
        "c = Sub (n, t) r = Relu (c) y = Add (r, t)",
        "c = Sub (n, t) r = Relu (c) y = Add (t, r)",
    ],
)
def test_every_spelling(lab: Any, tail: str) -> None:
    x = sample(lab, (3, 6, 4, 5))
    x[0, 0, 0, 0] = math.nan
    wanted = np.maximum(lab.array(6, seed=2), lab.array(6, 1, 1, seed=3).reshape(-1))
    taken(lab, make(lab, tail), wanted, x)


@pytest.mark.parametrize("tail", ["y = Clip (n, half)", "y = Max (half, n)"])
def test_one_number_for_all_channels(lab: Any, tail: str) -> None:
    taken(lab, make(lab, tail), np.maximum(lab.array(6, seed=2), np.float32(0.5)), sample(lab, (3, 6, 4, 5)))


def test_behind_an_activation(lab: Any) -> None:
    wanted = np.maximum(lab.array(6, seed=2), lab.array(6, 1, 1, seed=3).reshape(-1))
    taken(lab, make(lab, "y = Max (n, t)", NORM.replace("none", "silu")), wanted, sample(lab, (3, 6, 4, 5)))


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("c = Greater (n, t) y = Where (c, n, t)", "a NaN would become the threshold"),
        ("c = LessOrEqual (t, n) y = Where (c, n, t)", "a NaN would become the threshold"),
        ("y = Max (n, t) z = Neg (n)", "has another reader"),
        ("c = Less (n, t) y = Where (c, t, n) z = Not (c)", "has another reader"),
        ("y = Max (n, wide)", "does not vary along the channels alone"),
        ("y = Max (n, bad)", "holds a NaN"),
    ],
)
def test_refuses(lab: Any, tail: str, words: str) -> None:
    out = ", bool[N,6,H,W] z" if "Not" in tail else ", float[N,6,H,W] z" if "Neg" in tail else ""
    more = {"wide": lab.array(6, 4, 1), "bad": np.array([[[math.nan]]], np.float32)}
    model = make(lab, tail, out=out, x="3,6,4,5", **more)
    if out:
        model.graph.output[1].type.tensor_type.shape.CopyFrom(model.graph.output[0].type.tensor_type.shape)
    outcome = lab.optimize(model)
    assert (outcome.only.action.value, outcome.only.rule) == ("refused", RULE)
    assert words in outcome.only.reason
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5))})


def test_refuses_inner_graph_outputs(lab: Any) -> None:
    outcome = lab.optimize(make(lab, "y = Max (n, t)", out=", float[N,6,H,W] n"))
    assert "is a graph output" in outcome.only.reason


@pytest.mark.parametrize("name", ["t", "tau"])
def test_refuses_what_a_caller_may_override(lab: Any, name: str) -> None:
    model = make(lab, "y = Max (n, t)")
    shape = "6,1,1" if name == "t" else "6"
    model.graph.input.extend(lab.model(f"(float[{shape}] {name}) => (float y) {{ y = Abs ({name}) }}").graph.input)
    outcome = lab.optimize(model)
    assert outcome.ops == [OP, "Max"]
    assert "a caller may override" in outcome.only.reason


def test_an_upper_bound_stays(lab: Any) -> None:
    outcome = lab.optimize(make(lab, "y = Clip (n, half, two)"))
    assert outcome.ops == [OP, "Clip"]


def test_verified(lab: Any) -> None:
    assert lab.optimize(make(lab, "y = Max (n, t)", two=number(2.0)), verify=True).ops == [OP]


@pytest.mark.parametrize("other", ["b6b", "infinite"])
def test_a_relu_between_other_shifts_is_no_threshold(lab: Any, other: str) -> None:
    arrays = {"b6b": lab.array(6, 1, 1, seed=5), "infinite": np.full((6, 1, 1), -np.inf, np.float32)}
    tail = "c = Sub (n, t) r = Relu (c) y = Add (r, b6b)"
    if other == "infinite":
        tail = "c = Sub (n, infinite) r = Relu (c) y = Add (r, infinite)"
    outcome = lab.optimize(make(lab, tail, **arrays))
    assert outcome.ops[-1] == "Add"
