"""Raising the opset: only where the number alone changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

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


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_older_ones_stay(lab: Any, opset: int) -> None:
    assert raised(lab.model(RELU, opset, 7)) == (False, opset, 7)


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


@pytest.mark.parametrize(("opset", "after"), [(11, 11), (12, 12), (13, 15), (14, 15), (15, 15), (17, 17)])
def test_optimized_models_have_an_opset_for_their_ops(lab: Any, opset: int, after: int) -> None:
    """Where there can be none, the model stays as it is."""
    outcome = lab.optimize(lab.model(RMS, opset, 7, e=np.float32(1e-5)))
    assert outcome.after.opset_import[0].version == after
    assert ("RMSNorm" in outcome.ops) == (after >= 15)
    lab.same_in_ort(outcome, {"x": lab.array(2, 5, 8)})
