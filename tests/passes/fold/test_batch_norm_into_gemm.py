"""fold/batch-norm-into-gemm. Refusals that all folds share are tested with Conv."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/batch-norm-into-gemm"
NORM = "BatchNormalization (g, gamma, beta, mean, var)"
PLAIN = "(float[5,3] x) => (float[N,4] y) { g = Gemm (x, weight, bias) y = " + NORM + " }"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def plain(lab: Any, text: str = PLAIN, opset: int = 18, **changed: Any) -> Any:
    arrays = {"weight": lab.array(3, 4), "bias": lab.array(4, seed=3), **lab.batch_norm(4), **changed}
    return lab.model(text, opset, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize("shape", [None, (), (1,), (4,), (1, 4), (5, 4), (5, 1), (1, 1)])
@pytest.mark.parametrize("attributes", ["", "alpha=0.5, beta=-2.0", "transB=1", "transA=1, transB=1, beta=0.0"])
def test_forms_of_c(lab: Any, shape: Any, attributes: str) -> None:
    transposed = "transB=1" in attributes
    rows = "3,5" if "transA" in attributes else "5,3"
    text = PLAIN.replace("Gemm (", f"Gemm <{attributes}> (" if attributes else "Gemm (").replace("5,3", rows)
    bias = None if shape is None else lab.array(*shape, seed=3)
    if shape is None:
        text = text.replace(", bias)", ")")
    outcome = lab.optimize(plain(lab, text, weight=lab.array(*((4, 3) if transposed else (3, 4))), bias=bias))
    assert outcome.ops == ["Gemm"]
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    feeds = {"x": lab.array(*map(int, rows.split(",")), seed=9)}
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 15, 20, 24])
def test_every_opset(lab: Any, opset: int) -> None:
    outcome = lab.optimize(plain(lab, opset=opset))
    assert outcome.ops == ["Gemm"]
    lab.same_in_ort(outcome, {"x": lab.array(5, 3, seed=9)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_element_types(lab: Any, dtype: str) -> None:
    text = PLAIN.replace("float[", TYPE_NAMES[dtype] + "[")
    arrays = {"weight": lab.array(3, 4, dtype=dtype), "bias": lab.array(4, dtype=dtype, seed=3)}
    outcome = lab.optimize(plain(lab, text, **arrays, **lab.batch_norm(4, dtype)), disable=["lower/unsupported-type"])
    assert outcome.ops == ["Gemm"]
    lab.same(outcome, {"x": lab.array(5, 3, dtype=dtype, seed=9)}, eps=lab.eps(dtype))


def test_dynamic_batch(lab: Any) -> None:
    outcome = lab.optimize(plain(lab, PLAIN.replace("[5,3]", "[N,3]")))
    assert outcome.ops == ["Gemm"]
    lab.same_in_ort(outcome, {"x": lab.array(7, 3, seed=9)})


def test_shared_weight_and_bias(lab: Any) -> None:
    text = PLAIN.replace("[N,4] y)", "[N,4] y, float[N,4] z)").replace(
        "y = B", "z = Gemm <transB=0> (x, weight, bias) y = B"
    )
    outcome = lab.optimize(plain(lab, text))
    assert sorted(outcome.ops) == ["Gemm", "Gemm"]
    lab.same(outcome, {"x": lab.array(5, 3, seed=9)})


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_refuses_what_a_caller_may_override(lab: Any, refused: Any, name: str) -> None:
    sizes = "3,4" if name == "weight" else "4"
    role = "weight" if name == "weight" else "C"
    model = plain(lab, PLAIN.replace("] x)", f"] x, float[{sizes}] {name})"))
    outcome = refused(model, RULE, f"its Gemm's {role} is a graph input that a caller may override")
    lab.same(outcome, {"x": lab.array(5, 3), name: lab.array(*map(int, sizes.split(",")), seed=6)})


def test_refuses_another_channel_count(lab: Any, refused: Any) -> None:
    refused(plain(lab, weight=lab.array(3, 5), bias=lab.array(5)), RULE, "Gemm g has 5 output channels", check=False)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 4), (5, 3)])
def test_refuses_a_c_that_does_not_fit(lab: Any, refused: Any, shape: tuple[int, ...]) -> None:
    outcome = refused(
        plain(lab, bias=lab.array(*shape)), RULE, "Gemm's C does not broadcast to its output", check=False
    )
    assert outcome.only.values == {"shape": shape, "channels": 4}


def test_refuses_a_b_that_is_no_matrix(lab: Any, refused: Any) -> None:
    refused(plain(lab, weight=lab.array(1, 3, 4)), RULE, "Gemm's B is not a matrix", check=False)


def test_refuses_two_readers(lab: Any, refused: Any) -> None:
    text = PLAIN.replace("[N,4] y)", "[N,4] y, float[N,4] z)").replace("y = B", "z = Relu (g) y = B")
    refused(plain(lab, text), RULE, "the output of Gemm g has 2 readers")


@pytest.mark.parametrize(("name", "value"), [("transB", "1"), ("beta", "0.5")])
@pytest.mark.usefixtures("functions_stay")
def test_refuses_attributes_of_a_function(lab: Any, name: str, value: str) -> None:
    """In the function the attribute's value is not known, and another call may bring another one."""
    kind = "int" if name == "transB" else "float"
    text = (
        f"(float[5,4] x) => (float[5,4] y) {{ y = local.block <a={value}> (x) }}"
        '\n<domain: "local", opset_import: ["" : 18]> block <a> (x) => (y) {'
        f" w = Constant <value = float[4,4] {{1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}}> ()"
        f" v = Constant <value_floats = [1.0,2.0,3.0,4.0]> () g = Gemm <{name}: {kind} = @a> (x, w, v)"
        " y = BatchNormalization (g, v, v, v, v) }"
    )
    model = lab.model(text, domains=', "local" : 1')
    outcome = lab.optimize(model)
    assert outcome.only.action.value == "refused"
    assert f"Gemm's {name} is an attribute of the function" in outcome.only.reason
    lab.same_in_ort(outcome, {"x": lab.array(5, 4)})


def test_a_constant_gemm_input_is_no_reason(lab: Any) -> None:
    """A may be constant; only B and C take the map."""
    model = plain(
        lab, "(float[1] u) => (float[N,4] y) { g = Gemm (x, weight, bias) y = " + NORM + " }", x=lab.array(5, 3)
    )
    outcome = lab.optimize(model)
    assert outcome.ops == ["Gemm"]
    lab.same(outcome, {"u": np.zeros(1, np.float32)})
