"""optimize: its options, its targets, what it attaches and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxnorm.errors import ModelError, UsageError
from onnxnorm.norms import all_specs
from onnxnorm.passes import pipeline
from onnxnorm.passes.pipeline import optimize, rule_ids
from onnxnorm.spec.sample_model import sample_model

CONV = "(float[2,3,6,5] x) => (float[N,4,H,W] y) { c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"
GROUP = 'onnxnorm.GroupNorm <num_groups=3, epsilon=0.001, activation="none", channels_last=0>'


def conv(lab: Any) -> Any:
    return lab.model(CONV, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))


def norm(lab: Any, text: str, opset: int = 20, **arrays: Any) -> Any:
    return lab.model(text, opset, 10, ', "onnxnorm" : 1', **arrays)


# --- options ------------------------------------------------------------------------------------------------------


def test_rules_have_the_ids_of_their_files() -> None:
    folder = Path(pipeline.__file__).parent
    for stages in pipeline.STAGES.values():
        for rule in (rule for stage in stages for rule in stage):
            stage_name, name = rule.id.split("/")
            path = folder / stage_name / (name.replace("-", "_") + ".py")
            assert path.is_file()
            words = "".join(part.capitalize() for part in name.split("-"))
            assert rule.__name__.lower() == (stage_name + words).lower()
            assert (path.read_text().splitlines()[0]).startswith(f'"""{rule.id}: ')


def test_disable(lab: Any) -> None:
    outcome = lab.optimize(conv(lab), disable=["fold/batch-norm-into-conv"])
    assert outcome.ops == ["Conv", "BatchNormalization"]
    assert (outcome.only.action.value, outcome.only.reason) == ("kept", "no rule takes it; its input is Conv c")
    assert lab.optimize(conv(lab), disable=rule_ids()).ops == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tensorrt"}, "target is 'tensorrt'; it must be one of 'onnxnorm', 'standard'"),
        ({"provider": "tpu"}, "provider is 'tpu'; it must be one of 'cpu', 'cuda'"),
        (
            {"disable": ["fold/everything"]},
            "there is no rule 'fold/everything' to disable; there are lower/nhwc-conv",
        ),
        ({"disable": "fold/batch-norm-into-conv"}, "it must be a list of rule ids"),
    ],
)
def test_options_that_are_wrong(lab: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        optimize(conv(lab), **options)
    assert message in str(error.value)


def test_sources(lab: Any, tmp_path: Path) -> None:
    """A path, a proto, an onnx_ir model (not changed) and what exporters return give the same."""
    proto = conv(lab)
    onnx.save(proto, tmp_path / "m.onnx")
    model = ir.from_proto(proto)
    holder = type("Program", (), {"model": model})()
    found = [
        ir.to_proto(optimize(source).model)
        for source in (proto, tmp_path / "m.onnx", str(tmp_path / "m.onnx"), model, holder)
    ]
    assert all(item == found[0] for item in found)
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization"]
    assert sorted(model.graph.initializers) == ["beta", "gamma", "mean", "var", "w"]
    with pytest.raises(ModelError, match="int is no model"):
        optimize(3)


# --- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", all_specs())
@pytest.mark.parametrize("opset", [17, 21, 23])
def test_no_onnxnorm_op_is_left_in_the_standard_form(lab: Any, name: str, opset: int) -> None:
    model = ir.to_proto(sample_model(all_specs()[name], next(iter(all_specs()[name].samples())), opset=opset))
    outcome = lab.optimize(model, target="standard")
    assert {node.domain for node in outcome.after.graph.node} == {""}
    assert [item.domain for item in outcome.after.opset_import] == [""]
    assert not outcome.after.functions


def test_large_weights_and_lowered_constants(lab: Any) -> None:
    """Initializers that lowering adds come after the large ones, in the first run as in the second."""
    text = "(float[2,600] x) => (float[2,600] y) { n = " + GROUP + " (x, s, b) y = MatMul (n, w) }"
    lab.optimize(norm(lab, text, s=lab.array(600), b=lab.array(600), w=lab.array(600, 600)), target="standard")


# --- function bodies ----------------------------------------------------------------------------------------------


def test_one_body_for_each_op_that_is_used(lab: Any) -> None:
    text = (
        "(float[2,6] x) => (float[2,6] y) { a = " + GROUP + " (x, s, s) b = " + GROUP + " (a, s, s)"
        ' y = onnxnorm.RMSNorm <axes=[-1], epsilon=0.001, activation="none"> (b, s) }'
    )
    outcome = lab.optimize(norm(lab, text, s=lab.array(6)))
    assert [(item.domain, item.name) for item in outcome.after.functions] == [
        ("onnxnorm", "GroupNorm"),
        ("onnxnorm", "RMSNorm"),
    ]
    assert {item.domain: item.version for item in outcome.after.opset_import} == {"": 20, "onnxnorm": 1}
    lab.same_in_ort(outcome, {"x": lab.array(2, 6)})


@pytest.mark.parametrize("opset", [15, 17, 18, 21, 24])
def test_bodies_are_written_for_the_models_opset(lab: Any, opset: int) -> None:
    outcome = lab.optimize(
        norm(lab, "(float[2,6] x) => (float[2,6] y) { y = " + GROUP + " (x, s, s) }", opset, s=lab.array(6))
    )
    assert outcome.after.functions[0].opset_import[0].version == opset
    lab.same_in_ort(outcome, {"x": lab.array(2, 6)})


def test_bodies_are_made_again(lab: Any) -> None:
    """A body for another opset, or one that somebody changed, is not kept."""
    proto = lab.optimize(
        norm(lab, "(float[2,6] x) => (float[2,6] y) { y = " + GROUP + " (x, s, s) }", s=lab.array(6))
    ).after
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.functions[0].node[-1].op_type = "Identity"
    del changed.functions[0].node[-1].input[1:]
    assert optimize(changed).model.functions.keys() == optimize(proto).model.functions.keys()
    assert ir.to_proto(optimize(changed).model) == proto


@pytest.mark.parametrize("kinds", [("float",), ("float16",), ("double",), ("float", "float16"), ("double", "float")])
def test_bodies_serve_the_element_types_that_meet_them(lab: Any, kinds: tuple[str, ...]) -> None:
    names = {"float": "float32", "float16": "float16", "double": "float64"}
    inputs = ", ".join(f"{kind}[2,6] x{i}" for i, kind in enumerate(kinds))
    outputs = ", ".join(f"{kind}[2,6] y{i}" for i, kind in enumerate(kinds))
    nodes = " ".join(f"y{i} = {GROUP} (x{i}, s{i}, s{i})" for i in range(len(kinds)))
    arrays = {f"s{i}": lab.array(6, dtype=names[kind]) for i, kind in enumerate(kinds)}
    outcome = lab.optimize(norm(lab, f"({inputs}) => ({outputs}) {{ {nodes} }}", **arrays))
    feeds = {f"x{i}": lab.array(2, 6, dtype=names[kind]) for i, kind in enumerate(kinds)}
    for i, (truth, new) in enumerate(zip(lab.run(outcome.before, feeds), lab.ort(outcome.after, feeds), strict=True)):
        assert new.dtype == feeds[f"x{i}"].dtype
        assert np.abs(truth - new).max() <= 32 * lab.eps(names[kinds[i]]) * np.abs(truth).max()


def test_in_a_branch_and_in_a_branch_of_a_function(lab: Any) -> None:
    branch = (
        "<then_branch = t () => (float[2,6] a) { a = "
        + GROUP
        + " (x, s, s) }, else_branch = e () => (float[2,6] b) { b = Neg (x) }>"
    )
    text = (
        "(float[2,6] x, bool q) => (float[2,6] y, float[2,6] z) { y = If (q) " + branch + " z = local.block (x, s, q) }"
        '\n<domain: "local", opset_import: ["" : 20, "onnxnorm" : 1]> block (x, s, q) => (z) { z = If (q) '
        + branch.replace("float[2,6] ", "")
        + " }"
    )
    model = norm(lab, text, s=lab.array(6))
    model.opset_import.add(domain="local", version=1)
    outcome = lab.optimize(model)
    local = next(item for item in outcome.after.functions if item.domain == "local")
    assert {item.domain: item.version for item in local.opset_import} == {"": 20, "onnxnorm": 1}
    plain, other = lab.ort(outcome.after, {"x": lab.array(2, 6), "q": np.array(True)})
    np.testing.assert_array_equal(plain, other)


def test_an_ir_version_that_has_no_functions_is_raised(lab: Any) -> None:
    model = norm(lab, "(float[2,6] x) => (float[2,6] y) { y = " + GROUP + " (x, s, s) }", s=lab.array(6))
    model.ir_version = 7
    outcome = lab.optimize(model)
    assert outcome.after.ir_version == 8
    lab.same_in_ort(outcome, {"x": lab.array(2, 6)})


def test_the_other_name_of_the_standard_domain(lab: Any) -> None:
    text = "(float[2,6] x) => (float[2,6] y) { n = " + GROUP + " (x, s, s) y = ai.onnx.Relu (n) }"
    model = norm(lab, text, s=lab.array(6))
    model.opset_import[0].domain = "ai.onnx"
    outcome = lab.optimize(model)
    assert outcome.ops == ["GroupNorm"]


# --- onnxnorm nodes that are wrong --------------------------------------------------------------------------------

GOOD = {"num_groups": 3, "epsilon": 0.001, "activation": "none", "channels_last": 0}


def broken(
    lab: Any, changed: dict[str, Any], inputs: tuple[str, ...] = ("x", "s", "s"), op: str = "GroupNorm", **arrays: Any
) -> Any:
    model = norm(lab, "(float[2,6] x) => (float[2,6] y) { y = Relu (x) }", **{"s": lab.array(6), **arrays})
    attributes = {name: value for name, value in {**GOOD, **changed}.items() if value is not None}
    node = onnx.helper.make_node(op, inputs, ["y"], name="norm1", domain="onnxnorm", **attributes)
    model.graph.node[0].CopyFrom(node)
    return model


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_groups": 4}, "num_groups is 4; it must divide the 6 channels of X"),
        ({"num_groups": None}, "attribute num_groups is missing"),
        ({"epsilon": "small"}, "attribute epsilon is of the kind string; it must be float"),
        ({"epsilon": float("nan")}, "attribute epsilon is nan; it must be finite"),
        ({"activation": "elu"}, "attribute activation is 'elu'; it must be one of"),
        ({"groups": 3}, "it has an attribute groups; GroupNorm has num_groups"),
    ],
)
def test_attributes_that_are_wrong(lab: Any, changed: dict[str, Any], message: str, target: Any) -> None:
    with pytest.raises(ModelError) as error:
        optimize(broken(lab, changed), target=target)
    assert str(error.value).startswith("node 'norm1' (onnxnorm.GroupNorm): ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
@pytest.mark.parametrize(
    ("inputs", "arrays", "message"),
    [
        (("x", "s"), {}, "it needs 3 inputs: X, scale, bias"),
        (("x", "", "s"), {}, "it needs 3 inputs: X, scale, bias"),
        (("x", "short", "s"), {"short": np.ones(5, np.float32)}, "scale has shape [5]; it must be [6]"),
        (("x", "whole", "whole"), {"whole": np.ones(6, np.int64)}, "scale is int64; it must be one of float32"),
        (
            ("x", "half", "half"),
            {"half": np.ones(6, np.float16)},
            "scale is float16; it must have the type of X, float",
        ),
    ],
)
def test_inputs_that_are_wrong(
    lab: Any, inputs: tuple[str, ...], arrays: dict[str, Any], message: str, target: Any
) -> None:
    with pytest.raises(ModelError) as error:
        optimize(broken(lab, {}, inputs, **arrays), target=target)
    assert message in str(error.value)


def test_an_op_that_this_version_does_not_know(lab: Any) -> None:
    with pytest.raises(ModelError, match=r"this version of onnxnorm has no such op; it has .*\bGroupNorm, "):
        optimize(broken(lab, {}, op="GroupNorm2"))


def test_an_opset_without_bodies(lab: Any) -> None:
    model = norm(lab, "(float[2,6] x) => (float[2,6] y) { y = " + GROUP + " (x, s, s) }", 6, s=lab.array(6))
    with pytest.raises(ModelError, match="onnxnorm ops need a model of opset 15 or newer; this one has 6"):
        optimize(model)


def to_text(proto: onnx.ModelProto) -> str:
    return str(onnx.printer.to_text(proto))


def test_a_valid_model_is_never_made_larger(lab: Any) -> None:
    """Where no rule fires only types and shapes of values are added."""
    text = "(float[2,3] x) => (float[2,3] y) { a = Relu (x) y = Softmax (a) }"
    proto = lab.model(text)
    after = lab.optimize(proto).after
    del after.graph.value_info[:]
    assert to_text(after) == to_text(proto)
