"""fold/affine-into-gemm, also through Flatten, Reshape and Transpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/affine-into-gemm"


def folds(lab: Any, model: Any, ops: list[str], feeds: Any) -> Any:
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ops, outcome.result.explain()
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    lab.same(outcome, feeds, factor=64.0)
    lab.same_in_ort(outcome, feeds, factor=128.0)
    return outcome


@pytest.mark.parametrize("shape", [None, (), (1,), (4,), (1, 4), (5, 4), (5, 1)])
@pytest.mark.parametrize(
    "attributes", ["", "<alpha=0.5, beta=-2.0>", "<transB=1>", "<transA=1, alpha=3.0>", "<transA=1, transB=1>"]
)
def test_forms(lab: Any, shape: Any, attributes: str) -> None:
    rows = "3,5" if "transA" in attributes else "5,3"
    per_feature = (3, 1) if "transA" in attributes else (3,)
    third = "" if shape is None else ", bias"
    text = (
        f"(float[{rows}] x) => (float[N,4] y) {{ d = Sub (x, c) m = Div (d, s) y = Gemm {attributes} (m, w{third}) }}"
    )
    arrays = {"w": lab.array(4, 3) if "transB" in attributes else lab.array(3, 4)}
    arrays |= {"c": lab.array(*per_feature, seed=2), "s": lab.array(*per_feature, seed=4, low=0.3, high=2)}
    if shape is not None:
        arrays["bias"] = lab.array(*shape, seed=3)
    folds(lab, lab.model(text, **arrays), ["Gemm"], {"x": lab.array(*map(int, rows.split(",")), seed=9)})


@pytest.mark.parametrize("attributes", ["", "<transB=1>", "<transA=1, alpha=2.0>"])
def test_data_on_the_right(lab: Any, attributes: str) -> None:
    rows, per_feature = ("5,3", (3,)) if "transB" in attributes else ("3,5", (3, 1))
    text = f"(float[{rows}] x) => (float[4,N] y) {{ d = Sub (x, c) m = Div (d, s) y = Gemm {attributes} (w, m, bias) }}"
    arrays = {"w": lab.array(3, 4) if "transA" in attributes else lab.array(4, 3), "bias": lab.array(5, seed=3)}
    arrays |= {"c": lab.array(*per_feature, seed=2), "s": lab.array(*per_feature, seed=4, low=0.3, high=2)}
    folds(lab, lab.model(text, **arrays), ["Gemm"], {"x": lab.array(*map(int, rows.split(",")), seed=9)})


@pytest.mark.parametrize(
    ("layout", "ops"),
    [
        ("m = Flatten (d)", ["Flatten", "Gemm"]),
        ("m = Reshape (d, to)", ["Reshape", "Gemm"]),
        ("t = Transpose <perm=[0,2,3,1]> (d) m = Flatten (t)", ["Transpose", "Flatten", "Gemm"]),
        ("q = Shape (x) n = Gather (q, zero) k = Concat <axis=0> (n, minus) m = Reshape (d, k)", ["Reshape", "Gemm"]),
    ],
)
def test_channels_become_features(lab: Any, layout: str, ops: list[str]) -> None:
    text = f"(float[N,3,2,2] x) => (float[A,B] y) {{ e = Sub (x, c) d = Div (e, s) {layout} y = Gemm (m, w, bias) }}"
    arrays = {
        "w": lab.array(12, 4),
        "bias": lab.array(4, seed=3),
        "c": lab.array(3, 1, 1, seed=2),
        "s": lab.array(1, 3, 1, 1, seed=4, low=0.3, high=2),
        "to": np.array([-1, 12]),
        "zero": np.array([0]),
        "minus": np.array([12]),
    }
    model = lab.model(text, **{name: value for name, value in arrays.items() if name in text})
    folds(lab, model, ops, {"x": lab.array(5, 3, 2, 2, seed=9)})


def test_maps_on_both_sides_of_flatten(lab: Any) -> None:
    text = (
        "(float[N,3,2,2] x) => (float[A,B] y) { d = Sub (x, c) f = Flatten (d) m = Mul (f, s) y = Gemm (m, w, bias) }"
    )
    arrays = {"w": lab.array(12, 4), "bias": lab.array(4), "c": lab.array(3, 1, 1), "s": lab.array(12, low=0.5, high=2)}
    folds(lab, lab.model(text, **arrays), ["Flatten", "Gemm"], {"x": lab.array(5, 3, 2, 2, seed=9)})


def test_a_shift_that_stays_is_one_value_per_channel(lab: Any) -> None:
    """In front of Flatten, not one for each feature."""
    text = (
        "(float[N,3,2,2] x) => (float[A,B] y) { d = Sub (x, c) e = Div (d, s) m = Flatten (e) y = Gemm (m, w, bias) }"
    )
    arrays = {"w": lab.array(12, 4), "bias": lab.array(4), "c": lab.array(3, 1, 1, low=900, high=999)}
    outcome = lab.optimize(lab.model(text, s=lab.array(3, 1, 1, low=0.5, high=2), **arrays), verify=True)
    assert outcome.ops == ["Add", "Flatten", "Gemm"]
    assert outcome.initializer(outcome.node("Add").input[1]).shape == (3, 1, 1)
    lab.same(outcome, {"x": lab.array(5, 3, 2, 2) + arrays["c"]}, factor=64.0)


def test_through_casts(lab: Any) -> None:
    """A half model that normalizes in float32: the fold leaves the casts out, too."""
    text = (
        "(float16[N,3] x) => (float16[A,B] y) { f = Cast <to=1> (x) d = Sub (f, c) e = Div (d, s) m = Cast <to=10> (e)"
        " y = Gemm (m, w, bias) }"
    )
    arrays = {"w": lab.array(3, 4, dtype="float16"), "bias": lab.array(4, dtype="float16")}
    model = lab.model(text, c=lab.array(3), s=lab.array(3, low=0.5, high=2), **arrays)
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ["Gemm"]
    lab.same(outcome, {"x": lab.array(5, 3, dtype="float16", seed=9)}, eps=lab.eps("float16"))


def test_a_cast_from_another_type_stays(lab: Any) -> None:
    text = "(uint8[N,3] x) => (float[A,B] y) { f = Cast <to=1> (x) m = Div (f, s) y = Gemm (m, w, bias) }"
    model = lab.model(text, w=lab.array(3, 4), bias=lab.array(4), s=np.float32(255))
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ["Cast", "Gemm"]
    lab.same(outcome, {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)})


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_a_narrower_type_on_the_way(lab: Any, refused: Any) -> None:
    text = (
        "(float[N,3] x) => (float[A,B] y) { d = Mul (x, s) f = Cast <to=10> (d) m = Cast <to=1> (f)"
        " y = Gemm (m, w, bias) }"
    )
    model = lab.model(text, w=lab.array(3, 4), bias=lab.array(4), s=lab.array(3, low=0.5, high=2))
    refused(model, RULE, "types change on the way")


@pytest.mark.parametrize("shape", [(5, 1), (5, 3)])
def test_refuses_values_along_the_rows(lab: Any, refused: Any, shape: tuple[int, ...]) -> None:
    text = "(float[5,3] x) => (float[A,B] y) { m = Mul (x, s) y = Gemm (m, w, bias) }"
    model = lab.model(text, w=lab.array(3, 4), bias=lab.array(4), s=lab.array(*shape))
    refused(model, RULE, "the values differ along axis -2, which the layer does not sum over")


def test_refuses_a_reshape_that_mixes_axes(lab: Any, refused: Any) -> None:
    text = "(float[N,3,2,2] x) => (float[A,B] y) { d = Mul (x, s) m = Reshape (d, to) y = Gemm (m, w, bias) }"
    arrays = {"w": lab.array(2, 4), "bias": lab.array(4), "s": lab.array(3, 1, 1), "to": np.array([-1, 2])}
    outcome = refused(lab.model(text, **arrays), RULE, "mixes the axes along which the values differ")
    lab.same(outcome, {"x": lab.array(5, 3, 2, 2, seed=9)})


def test_refuses_a_computed_c(lab: Any, refused: Any) -> None:
    text = "(float[5,3] x, float[4] q) => (float[A,B] y) { m = Sub (x, c) y = Gemm (m, w, q) }"
    refused(lab.model(text, w=lab.array(3, 4), c=lab.array(3)), RULE, "so that it cannot take the shift")


@pytest.mark.parametrize("name", ["transB", "alpha"])
@pytest.mark.usefixtures("functions_stay")
def test_attributes_of_a_function(lab: Any, name: str) -> None:
    kind, value = ("int", "1") if name == "transB" else ("float", "0.5")
    text = (
        f"(float[5,2] x) => (float[5,2] y) {{ y = local.block <a={value}> (x) }}"
        '\n<domain: "local", opset_import: ["" : 18]> block <a> (x) => (y) {'
        " w = Constant <value = float[2,2] {1,2,3,4}> () c = Constant <value = float {0.5}> ()"
        f" m = Add (x, c) y = Gemm <{name}: {kind} = @a> (m, w) }}"
    )
    outcome = lab.optimize(lab.model(text, domains=', "local" : 1'))
    assert f"Gemm's {name} is an attribute of the function" in outcome.only.reason
    lab.same_in_ort(outcome, {"x": lab.array(5, 2)})
