"""Raising the opset: where the number alone changes, and where older operators can be written as newer ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxnorm.passes.canonicalize.older_opset import convertible
from onnxnorm.passes.canonicalize.opset import raise_opset

RELU = "(float[2,4] x) => (float[2,4] y) { y = Relu (x) }"


def raised(model: onnx.ModelProto, to: int = 17) -> tuple[bool, int, int]:
    found = ir.from_proto(model)
    done = raise_opset(found, to)
    return done, found.opset_imports[""], found.ir_version


@pytest.mark.parametrize("opset", [13, 14, 15, 16])
def test_raises(lab: Any, opset: int) -> None:
    assert raised(lab.model(RELU, opset, 7)) == (True, 17, 8)
    assert raised(lab.model(RELU, opset, 7), max(opset, 15)) == (True, max(opset, 15), 8 if opset < 15 else 7)


@pytest.mark.parametrize("opset", [17, 18, 23])
def test_newer_ones_stay(lab: Any, opset: int) -> None:
    assert raised(lab.model(RELU, opset, 10)) == (True, opset, 10)


@pytest.mark.parametrize(("opset", "after"), [(6, 6), (7, 17), (9, 17), (12, 17)])
def test_older_ones(lab: Any, opset: int, after: int) -> None:
    assert raised(lab.model(RELU, opset, 7)) == (after == 17, after, 8 if after == 17 else 7)


def test_training_of_batch_norm_stays(lab: Any) -> None:
    text = "(float[2,4] x) => (float[2,4] y) { y, m, v, sm, sv = BatchNormalization (x, gamma, beta, mean, var) }"
    assert raised(lab.model(text, 13, 7, **lab.batch_norm(4))) == (False, 13, 7)


@pytest.mark.parametrize(("attributes", "opset"), [("", 15), ('<coordinate_transformation_mode="half_pixel">', 17)])
def test_sampling_of_regions(lab: Any, attributes: str, opset: int) -> None:
    text = (
        f"(float[1,4,8,8] x, float[2,4] r, int64[2] i) => (float[N,A,B,C] y) {{ y = RoiAlign {attributes} (x, r, i) }}"
    )
    model = lab.model(text, 16 if attributes else 15, 8)
    assert raised(model)[1] == opset


def test_models_with_functions_stay(lab: Any) -> None:
    text = '(float[2,4] x) => (float[2,4] y) { y = own.f (x) } <domain: "own", opset_import: ["" : 14]> f (a) => (b)'
    assert raised(lab.model(f"{text} {{ b = Relu (a) }}", 14, 8, ', "own" : 1'))[:2] == (False, 14)


def test_what_no_operator_means_otherwise() -> None:
    """The operators that got a new version from 14 to 17, by name: each was looked at."""
    changed = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and 14 <= schema.since_version <= 17
    }
    new = {name for name in changed if not any(onnx.defs.has(name, opset, "") for opset in (13,))}
    assert changed - new == {
        *("Add", "BatchNormalization", "CumSum", "Div", "GRU", "GreaterOrEqual", "Identity", "If", "LSTM"),
        *("LeakyRelu", "LessOrEqual", "Loop", "Mul", "PRelu", "Pow", "RNN", "Relu", "Reshape", "RoiAlign"),
        *("Scan", "ScatterElements", "ScatterND", "Shape", "Sub", "Where"),
    }


RMS = (
    "(float[2,5,8] x) => (float[2,5,8] y) "
    "{ p = Mul (x, x) m = ReduceMean <axes=[-1]> (p) a = Add (m, e) s = Sqrt (a) y = Div (x, s) }"
)


@pytest.mark.parametrize(
    ("opset", "after"), [(6, 6), (7, 15), (11, 15), (12, 15), (13, 15), (14, 15), (15, 15), (17, 17)]
)
def test_optimized_models_have_an_opset_for_their_ops(lab: Any, opset: int, after: int) -> None:
    """Where there can be none, the model stays as it is."""
    outcome = lab.optimize(lab.model(RMS, opset, 7, e=np.float32(1e-5)))
    assert outcome.after.opset_import[0].version == after
    assert ("RMSNorm" in outcome.ops) == (after >= 15)
    lab.same(outcome, {"x": lab.array(2, 5, 8)})


NORM = " p = Mul (h, h) m = ReduceMean <axes=[-1], keepdims=1> (p) a = Add (m, e) s = Sqrt (a) "
#: (opset, what the operator is there, what it is afterwards)
FORMS = [
    (7, "h = Clip <min=-0.5, max=0.25> (x)", "Clip"),
    (10, "h = Clip <max=0.25> (x)", "Clip"),
    (12, "h = Clip (x, low)", "Clip"),
    (7, "h = Dropout <ratio=0.25> (x)", None),
    (9, "h = Pad <pads=[0,0,1,2,0,0,0,1], value=3.0> (x)", "Pad"),
    (9, 'h = Pad <pads=[0,0,1,2,0,0,0,1], mode="reflect"> (x)', "Pad"),
    (9, "h = Slice <starts=[1,0], ends=[9,-1], axes=[2,3]> (x)", "Slice"),
    (9, "h = Slice <starts=[0,0,1], ends=[9,2,3]> (x)", "Slice"),
    (11, "h = Slice (x, one, four, two)", "Slice"),
    (7, "u = Squeeze <axes=[0]> (x) h = Unsqueeze <axes=[0,4]> (u)", "Unsqueeze"),
    (7, "u = Slice <starts=[0], ends=[1]> (x) h = Squeeze (u)", "Squeeze"),
    (7, "h, g = Split <axis=2, split=[1,3]> (x)", "Split"),
    (7, "h, g = Split <axis=2> (x)", "Split"),
    (11, "h = ReduceSum <axes=[2], keepdims=1> (x)", "ReduceSum"),
    (8, "h, i = TopK <k=3, axis=2> (x)", "TopK"),
    (7, 'h = Upsample <mode="nearest", scales=[1.0,1.0,2.0,1.5]> (x)', "Resize"),
    (9, 'h = Upsample <mode="linear"> (x, scales)', "Resize"),
    (10, 'h = Resize <mode="nearest"> (x, scales)', "Resize"),
    (10, 'h = Resize <mode="linear"> (x, scales)', "Resize"),
    (9, "h = Scatter <axis=2> (x, where, what)", "ScatterElements"),
    (11, "h = Softmax <axis=3> (x)", "Softmax"),
    (7, "t = Reshape (x, rows) u = LogSoftmax (t) h = Reshape (u, back)", "LogSoftmax"),
    (8, "h = BatchNormalization <spatial=1> (x, l, l, l, l)", "BatchNormalization"),
]


@pytest.mark.parametrize(("opset", "form", "after"), FORMS)
def test_older_forms(lab: Any, opset: int, form: str, after: str | None) -> None:
    """Beside a norm that is fused, each means in the newer opset what it meant; Dropout is none at all."""
    arrays = {
        **{"e": np.float32(1e-5), "low": np.float32(-0.5), "l": lab.array(3, low=0.5)},
        **{"scales": np.array([1, 1, 2, 1.5], np.float32), "one": np.array([1]), "two": np.array([2])},
        **{"four": np.array([4]), "where": np.array([[[[1]]]]), "what": np.array([[[[9]]]], np.float32)},
        **{"rows": np.array([12, 5]), "back": np.array([1, 3, 4, 5])},
    }
    rank = ",".join("ABCDE"[: {"Unsqueeze": 5, "Squeeze": 3}.get(after or "", 4)])
    used = {name: array for name, array in arrays.items() if name == "e" or f"{name}," in form or f"{name})" in form}
    model = lab.model(f"(float[1,3,4,5] x) => (float[{rank}] y) {{ {form}{NORM} y = Div (h, s) }}", opset, 7, **used)
    outcome = lab.optimize(model)
    assert outcome.after.opset_import[0].version == 15
    assert outcome.ops[-1] == "RMSNorm"
    assert (after in outcome.ops) if after else len(outcome.ops) == 1
    x = {"x": lab.array(1, 3, 4, 5)}
    np.testing.assert_allclose(lab.ort(outcome.after, x)[0], lab.ort(model, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "form"),
    [
        (11, "h = Softmax <axis=1> (x)"),
        (9, "h = Hardmax (x)"),
        (9, "h, k = Dropout (x) u = Cast <to=1> (k) z = Neg (u)"),
        (7, "h = BatchNormalization <spatial=0> (x, l, l, l, l)"),
        (8, "h, mm, vv, sm, sv = BatchNormalization (x, l, l, l, l)"),
    ],
)
def test_older_forms_that_have_no_newer_one(lab: Any, opset: int, form: str) -> None:
    outputs = "float[1,3,4,5] y" + (", float[1,3,4,5] z" if " z " in form else "")
    text = f"(float[1,3,4,5] x) => ({outputs}) {{ {form}{NORM} y = Div (h, s) }}"
    model = lab.model(text, opset, 7, e=np.float32(1e-5), l=lab.array(3, low=0.5))
    assert lab.optimize(model, check=False).after.opset_import[0].version == opset


def test_operators_of_older_opsets_are_all_looked_at() -> None:
    """Each operator that got a new version from 8 to 13 is converted, known to be the same, or refused on purpose."""
    histories = [item for item in onnx.defs.get_all_schemas_with_history() if item.domain == "" and not item.deprecated]
    changed = {item.name for item in histories if 8 <= item.since_version <= 13}
    old = {name for name in changed if any(onnx.defs.has(name, opset, "") for opset in range(7, 13))}
    left = {
        name
        for name in old
        if any(
            not convertible(ir.node(name, [ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))]), opset)
            for opset in range(7, 13)
            if onnx.defs.has(name, opset, "")
        )
    }
    losses = {"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"}
    assert left == {"Scan", "Hardmax", "LogSoftmax", "Softmax", *losses}
