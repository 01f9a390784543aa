"""verify: a wrong rewrite is taken back, a right one stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxnorm.passes import pipeline
from onnxnorm.passes.decision import Action
from onnxnorm.passes.fold.batch_norm import FloatArray
from onnxnorm.passes.fold.batch_norm_into_conv import FoldBatchNormIntoConv
from onnxnorm.passes.rule import Context, Match, Replacement

CONV = "(float[2,3,6,5] x) => (float[N,4,H,W] y) { c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"


class WrongScale(FoldBatchNormIntoConv):
    """Off by a hundred millionth in one channel."""

    id: ClassVar[str] = "fold/wrong"

    def scale_weight(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> tuple[FloatArray, int]:
        return super().scale_weight(layer, weight, scale * np.array([1, 1, 1 + 1e-8, 1]))


class WrongShape(FoldBatchNormIntoConv):
    id: ClassVar[str] = "fold/wrong"

    def rewrite(self, match: Match, context: Context) -> Replacement:
        replacement = super().rewrite(match, context)
        replacement.nodes[0].attributes["pads"] = ir.AttrInt64s("pads", [1, 1, 1, 1])
        return replacement


class NotFinite(FoldBatchNormIntoConv):
    id: ClassVar[str] = "fold/wrong"

    def scale_weight(self, layer: ir.Node, weight: FloatArray, scale: FloatArray) -> tuple[FloatArray, int]:
        weight, axis = super().scale_weight(layer, weight, scale)
        return weight * 1e30 * 1e8, axis


class Crashing(FoldBatchNormIntoConv):
    id: ClassVar[str] = "fold/wrong"

    def rewrite(self, match: Match, context: Context) -> Replacement:
        replacement = super().rewrite(match, context)
        replacement.nodes[0].attributes["group"] = ir.AttrInt64("group", 7)
        return replacement


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (WrongScale, "output 0 differs by "),
        (WrongShape, "output 0 has shape [2, 4, 6, 5] after the rewrite, [2, 4, 4, 3] before"),
        (Crashing, "the rewrite could not be run on sampled inputs"),
    ],
)
def test_a_wrong_rule_is_taken_back(lab: Any, monkeypatch: pytest.MonkeyPatch, rule: type, words: str) -> None:
    monkeypatch.setitem(pipeline.STAGES, "onnxnorm", ((rule,),))
    model = lab.model(CONV, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))
    result = pipeline.optimize(model, verify=True)
    assert [node.op_type for node in result.model.graph] == ["Conv", "BatchNormalization"]
    (decision,) = result.decisions
    assert (decision.action, decision.rule) == (Action.REVERTED, "fold/wrong")
    assert decision.reason is not None
    assert words in decision.reason
    assert [node.op_type for node in pipeline.optimize(model).model.graph] == ["Conv"]


def test_the_next_rule_may_still_fire(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.STAGES, "onnxnorm", ((WrongScale, FoldBatchNormIntoConv),))
    result = pipeline.optimize(lab.model(CONV, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4)), verify=True)
    assert [item.rule for item in result.decisions] == ["fold/batch-norm-into-conv"]
    np.testing.assert_equal([node.op_type for node in result.model.graph], ["Conv"])


def bn(c: str = "c") -> str:
    return f"y = BatchNormalization ({c}, gamma, beta, mean, var)"


MODELS: dict[str, Callable[[Any], Any]] = {
    **{
        f"conv-opset-{opset}": lambda lab, opset=opset: lab.model(
            CONV, opset, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4)
        )
        for opset in (7, 9, 13, 14, 20)
    },
    "conv-large-image": lambda lab: lab.model(
        CONV.replace("2,3,6,5", "2,3,512,512"), w=lab.array(4, 3, 3, 3), **lab.batch_norm(4)
    ),
    "conv-large-kernel": lambda lab: lab.model(
        CONV.replace("2,3,6,5", "2,3,64,64"), w=lab.array(4, 3, 11, 11), **lab.batch_norm(4)
    ),
    "conv-dynamic": lambda lab: lab.model(
        CONV.replace("2,3,6,5", "N,3,H,W"), w=lab.array(4, 3, 3, 3), **lab.batch_norm(4)
    ),
    "conv-double": lambda lab: lab.model(
        CONV.replace("float[", "double["), w=lab.array(4, 3, 3, 3, dtype="float64"), **tiny_variance(lab)
    ),
    **{
        f"conv-{kind}": lambda lab, kind=kind: lab.model(
            CONV.replace("float[", f"{kind}["), 22, w=lab.array(4, 3, 3, 3, dtype=kind), **lab.batch_norm(4, kind)
        )
        for kind in ("float16", "bfloat16")
    },
    "grouped-conv-transpose": lambda lab: lab.model(
        "(float[2,4,4,5] x) => (float[N,6,H,W] y) { c = ConvTranspose <group=2, strides=[2,2]> (x, w, b) "
        + bn()
        + " }",
        w=lab.array(4, 3, 3, 3),
        b=lab.array(6),
        **lab.batch_norm(6),
    ),
    "gemm": lambda lab: lab.model(
        "(float[5,3] x) => (float[N,4] y) { c = Gemm <alpha=0.5, beta=2.0, transB=1> (x, w, b) " + bn() + " }",
        w=lab.array(4, 3),
        b=lab.array(5, 1),
        **lab.batch_norm(4),
    ),
    "matmul": lambda lab: lab.model(
        "(float[N,3] x) => (float[N,4] y) { m = MatMul (x, w) c = Add (b, m) " + bn() + " }",
        w=lab.array(3, 4),
        b=lab.array(4),
        **lab.batch_norm(4),
    ),
    "gelu": lambda lab: gelu(lab, "float32"),
    "gelu-half": lambda lab: gelu(lab, "float16"),
    "swish": lambda lab: lab.model(
        "(float[N,6,L] x) => (float[N,6,L] y) { n = GroupNormalization <num_groups=2> (x, s, s) g = Sigmoid (n) y ="
        " Mul (g, n) }",
        21,
        10,
        s=lab.array(6),
    ),
    "rms": lambda lab: lab.model(
        "(float[N,6,8] x) => (float[N,6,8] y) { y = RMSNormalization (x, s) }", 23, 11, s=lab.array(8)
    ),
}


def tiny_variance(lab: Any) -> dict[str, Any]:
    """Variances below epsilon: what a float64 model means by 1e-5 is then seen."""
    return {**lab.batch_norm(4, "float64"), "var": np.full(4, 1e-7)}


def gelu(lab: Any, dtype: str) -> Any:
    kind = {"float32": "float", "float16": "float16"}[dtype]
    text = (
        f"({kind}[N,6,L] x) => ({kind}[N,6,L] y) {{ n = GroupNormalization <num_groups=2> (x, s, s) d = Div (n, root)"
        " e = Erf (d) a = Add (e, one) h = Mul (n, a) y = Mul (h, half) }"
    )
    numbers = {"root": np.sqrt(2.0), "one": 1.0, "half": 0.5}
    return lab.model(
        text, 21, 10, s=lab.array(6, dtype=dtype), **{name: np.array(value, dtype) for name, value in numbers.items()}
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_a_right_rule_stays(lab: Any, name: str, target: str) -> None:
    model = MODELS[name](lab)
    plain, verified = lab.optimize(model, target=target), lab.optimize(model, target=target, verify=True)
    assert "reverted" not in verified.result.explain()
    assert plain.result.explain() == verified.result.explain()
    assert plain.after == verified.after


def test_in_branches_and_functions(lab: Any) -> None:
    text = (
        "(float[2,3,6,5] x, bool q) => (float[N,4,H,W] y) { y = If (q) <then_branch = t () => (float[N,4,H,W] a)"
        " { c = Conv (x, w) a = BatchNormalization (c, gamma, beta, mean, var) },"
        " else_branch = e () => (float[N,4,H,W] b) { b = Conv (x, w) }> }"
    )
    outcome = lab.optimize(lab.model(text, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4)), verify=True)
    assert outcome.only.action is Action.FOLDED


@pytest.mark.usefixtures("functions_stay")
def test_what_cannot_be_run_is_taken_back_and_says_so(lab: Any) -> None:
    """In a function no shape is known."""
    text = (
        "(float[3,4] x) => (float[3,4] y) { y = local.block (x) }"
        '\n<domain: "local", opset_import: ["" : 18]> block (p) => (r) {'
        " w = Constant <value = float[4,4] {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> () v = Constant <value_floats ="
        " [1.0,2.0,3.0,4.0]> ()"
        " c = Gemm (p, w) r = BatchNormalization (c, v, v, v, v) }"
    )
    decision = lab.optimize(lab.model(text, domains=', "local" : 1'), verify=True).only
    assert decision.action is Action.REVERTED
    assert decision.reason == "the rewrite could not be run on sampled inputs: the shape or type of 'p' is not known"
