"""com.microsoft GroupNorm and SkipGroupNorm: layouts, activations, opsets, types, forms of the residual, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from . import truth
from .conftest import wide

SHAPES = {1: (2, 5, 7, 12), 0: (2, 12, 5, 7)}


def plain(kit: Any, *, dtype: str = "float32", parameters: str = "float32", opset: int = 17, **attributes: Any) -> Any:
    """(model, feeds, truth of Y)."""
    attributes = {"groups": 3, "activation": 0} | attributes
    x = kit.data(SHAPES[attributes.get("channels_last", 1)], dtype, offset=attributes.pop("offset", 0.5))
    gamma, beta = kit.data((12,), parameters, 1), kit.data((12,), parameters, 2)
    node = helper.make_node("GroupNorm", ["x", "gamma", "beta"], ["y"], "norm", domain="com.microsoft", **attributes)
    model = kit.graph([node], {"x": x}, {"y": dtype}, {"gamma": gamma, "beta": beta}, opset)
    return model, {"x": x}, truth.group_norm(*wide(x, gamma, beta), **attributes)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("layout", [{}, {"channels_last": 1}, {"channels_last": 0}])
def test_group_norm(kit: Any, layout: dict[str, int], activation: int, dtype: str) -> None:
    model, feeds, y = plain(kit, dtype=dtype, activation=activation, **layout)
    outcome = kit.optimize(model)
    assert outcome.ops == ["GroupNorm"]
    assert outcome.after.graph.node[0].domain == "onnxnorm"
    assert (outcome.only.action.value, outcome.only.rule) == ("fused", "fuse/contrib-group-norm")
    kit.runs_right(outcome, feeds, [y], dtype)


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18, 20, 21, 23, 24])
def test_opsets(kit: Any, opset: int) -> None:
    """Below 17 the opset is raised, which changes its number only."""
    model, feeds, y = plain(kit, opset=opset, activation=1, epsilon=1e-3)
    outcome = kit.optimize(model)
    assert next(item.version for item in outcome.after.opset_import if item.domain == "") == max(opset, 17)
    kit.runs_right(outcome, feeds, [y], "float32")


@pytest.mark.parametrize("opset", [17, 21, 23])
@pytest.mark.parametrize("layout", [0, 1])
def test_in_standard_operators(kit: Any, layout: int, opset: int) -> None:
    model, feeds, y = plain(kit, opset=opset, channels_last=layout, activation=1)
    outcome = kit.optimize(model, target="standard")
    assert {node.domain for node in outcome.after.graph.node} == {""}
    kit.runs_right(outcome, feeds, [y], "float32")


def test_far_from_zero(kit: Any) -> None:
    """Where |mean| is much larger than the standard deviation."""
    model, feeds, y = plain(kit, offset=1e4)
    kit.runs_right(kit.optimize(model), feeds, [y], "float32")


@pytest.mark.parametrize("parameters", ["float32", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types_of_parameters(kit: Any, dtype: str, parameters: str) -> None:
    model, feeds, y = plain(kit, dtype=dtype, parameters=parameters)
    outcome = kit.optimize(model)
    assert outcome.ops == ["GroupNorm"]
    kit.runs_right(outcome, feeds, [y], dtype)


def test_parameters_beyond_float16_are_kept(kit: Any) -> None:
    """The norm is computed in float32 then; its result may well be in float16's range."""
    x = kit.data(SHAPES[1], "float16")
    gamma = np.full(12, 1e5, np.float32)
    node = helper.make_node(
        "GroupNorm", ["x", "gamma", "beta"], ["y"], domain="com.microsoft", groups=3, activation=0, epsilon=1e6
    )
    model = kit.graph([node], {"x": x}, {"y": "float16"}, {"gamma": gamma, "beta": gamma * 0})
    outcome = kit.optimize(model)
    assert outcome.ops == ["Cast", "GroupNorm", "Cast"]
    y = truth.group_norm(*wide(x, gamma, gamma * 0), groups=3, epsilon=1e6)
    kit.runs_right(outcome, {"x": x}, [y], "float16")


def test_parameters_that_a_caller_gives(kit: Any) -> None:
    x, gamma, beta = kit.data(SHAPES[1], "float16"), kit.data((12,), seed=1), kit.data((12,), seed=2)
    node = helper.make_node("GroupNorm", ["x", "g", "b"], ["y"], domain="com.microsoft", groups=3, activation=1)
    feeds = {"x": x, "g": gamma, "b": beta}
    outcome = kit.optimize(kit.graph([node], feeds, {"y": "float16"}, {}))
    assert outcome.ops == ["Cast", "GroupNorm", "Cast"]
    kit.runs_right(outcome, feeds, [truth.group_norm(*wide(x, gamma, beta), groups=3, activation=1)], "float16")


@pytest.mark.parametrize("sizes", [("N", "H", "W", 12), ("N", "H", "W", "C")])
def test_dynamic_sizes(kit: Any, sizes: tuple[Any, ...]) -> None:
    x, gamma, beta = kit.data(SHAPES[1]), kit.data((12,), seed=1), kit.data((12,), seed=2)
    node = helper.make_node("GroupNorm", ["x", "g", "b"], ["y"], domain="com.microsoft", groups=3, activation=0)
    model = kit.graph([node], {"x": x}, {"y": "float32"}, {"g": gamma, "b": beta}, shapes={"x": sizes})
    outcome = kit.optimize(model)
    kit.runs_right(outcome, {"x": x}, [truth.group_norm(*wide(x, gamma, beta), groups=3)], "float32")


def test_verified(kit: Any) -> None:
    model, feeds, y = plain(kit, dtype="float16", activation=1)
    outcome = kit.optimize(model, verify=True)
    assert outcome.ops == ["GroupNorm"]
    kit.runs_right(outcome, feeds, [y], "float16")


def test_stays_for_cuda(kit: Any) -> None:
    outcome = kit.optimize(plain(kit)[0], provider="cuda")
    assert [(node.domain, node.op_type) for node in outcome.after.graph.node] == [("com.microsoft", "GroupNorm")]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"activation": 2}, "activation is neither 0"),
        ({"groups": 5}, "groups does not divide the channels"),
        ({"groups": 0}, "groups does not divide the channels"),
    ],
)
def test_refuses_attributes(kit: Any, not_taken: Any, attributes: dict[str, int], words: str) -> None:
    x = kit.data(SHAPES[1])
    node = helper.make_node(
        "GroupNorm", ["x", "g", "b"], ["y"], domain="com.microsoft", **{"groups": 3, "activation": 0} | attributes
    )
    model = kit.graph([node], {"x": x}, {"y": "float32"}, {"g": np.ones(12, "f4"), "b": np.ones(12, "f4")})
    not_taken(model, "fuse/contrib-group-norm", words)


def test_refuses_old_opsets(kit: Any, not_taken: Any) -> None:
    not_taken(plain(kit, opset=6)[0], "fuse/contrib-group-norm", "from opset 15 on")


@pytest.mark.usefixtures("functions_stay")
def test_refuses_functions(kit: Any, not_taken: Any) -> None:
    model = plain(kit)[0]
    node = model.graph.node[0]
    body = helper.make_function("own", "f", ["x", "gamma", "beta"], ["y"], [node], list(model.opset_import))
    model.functions.append(body)
    call = helper.make_node("f", list(node.input), list(node.output), domain="own")
    model.graph.node[0].CopyFrom(call)
    model.opset_import.append(helper.make_opsetid("own", 1))
    not_taken(model, "fuse/contrib-group-norm", "in a model-local function")


# --- with a residual ----------------------------------------------------------------------------------------------


def skipped(
    kit: Any,
    form: str = "full",
    *,
    dtype: str = "float32",
    bias: bool = False,
    total: bool = True,
    shapes: Any = None,
    opset: int = 17,
    **attributes: Any,
) -> Any:
    """(model, feeds, truths)."""
    attributes = {"groups": 3, "activation": 0} | attributes
    last = attributes.get("channels_last", 1)
    n, c = 2, 12
    shape = {"full": SHAPES[last], "vector": (n, c), "spread": (n, 1, 1, c) if last else (n, c, 1, 1)}[form]
    x, skip = kit.data(SHAPES[last], dtype), kit.data(shape, dtype, 3)
    constants = {"gamma": kit.data((c,), seed=1), "beta": kit.data((c,), seed=2)}
    names = ["x", "gamma", "beta", "skip"]
    if bias:
        constants["bias"] = kit.data((c,), dtype, 4)
        names.append("bias")
    outputs = ["y", "s"] if total else ["y"]
    node = helper.make_node("SkipGroupNorm", names, outputs, "norm", domain="com.microsoft", **attributes)
    feeds = {"x": x, "skip": skip}
    model = kit.graph([node], feeds, dict.fromkeys(outputs, dtype), constants, opset, shapes)
    wanted = truth.skip_group_norm(
        *wide(x, constants["gamma"], constants["beta"], skip, constants.get("bias")), **attributes
    )
    return model, feeds, wanted[: len(outputs)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["full", "vector", "spread"])
@pytest.mark.parametrize("layout", [1, 0])
def test_skip_group_norm(kit: Any, layout: int, form: str, bias: bool, total: bool, dtype: str) -> None:
    model, feeds, wanted = skipped(kit, form, dtype=dtype, bias=bias, total=total, channels_last=layout, activation=1)
    outcome = kit.optimize(model)
    assert "fuse/contrib-skip-group-norm" in outcome.only.rule
    assert ("SkipGroupNorm" in outcome.ops) == (form == "full")
    assert outcome.ops.count("Add") == bias + (form != "full")
    kit.runs_right(outcome, feeds, wanted, dtype)


@pytest.mark.parametrize("opset", [14, 18, 21])
@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_skip_opsets(kit: Any, opset: int, target: str) -> None:
    model, feeds, wanted = skipped(kit, bias=True, opset=opset)
    outcome = kit.optimize(model, target=target)
    assert target == "onnxnorm" or {node.domain for node in outcome.after.graph.node} == {""}
    kit.runs_right(outcome, feeds, wanted, "float32")


def test_skip_of_a_size_that_is_not_known_broadcasts(kit: Any) -> None:
    """It may be one vector for each item: that is an addition, which is right in both cases."""
    shapes = {"x": ("N", "H", "W", 12), "skip": ("N", "A", "B", 12)}
    for form in ("full", "spread"):
        model, feeds, wanted = skipped(kit, form, shapes=shapes)
        outcome = kit.optimize(model)
        assert outcome.ops == ["Add", "GroupNorm"]
        kit.runs_right(outcome, feeds, wanted, "float32")


def test_equal_sizes_by_name(kit: Any) -> None:
    model, feeds, wanted = skipped(kit, shapes=dict.fromkeys(("x", "skip"), ("N", "H", "W", 12)))
    outcome = kit.optimize(model)
    assert outcome.ops == ["SkipGroupNorm"]
    kit.runs_right(outcome, feeds, wanted, "float32")


def test_skip_verified(kit: Any) -> None:
    for form in ("full", "vector", "spread"):
        model, feeds, wanted = skipped(kit, form, dtype="float16", bias=True, activation=1)
        outcome = kit.optimize(model, verify=True)
        assert "com.microsoft" not in {node.domain for node in outcome.after.graph.node}, outcome.result.explain()
        kit.runs_right(outcome, feeds, wanted, "float16")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"skip": (2, 5, 1, 12)}, None),
        ({"skip": (2, 3, 7, 12)}, "neither X's shape nor one vector"),
        ({"skip": (12,)}, "X has 4 axes and skip 4 or 2"),
        ({"x": (2, 35, 12)}, "X has 4 axes and skip 4 or 2"),
    ],
)
def test_skip_refuses_other_shapes(kit: Any, not_taken: Any, shapes: Any, words: str | None) -> None:
    model = skipped(kit, shapes=shapes)[0]
    if words is None:  # a row broadcasts as NumPy's does
        assert "GroupNorm" in kit.optimize(model).ops
    else:
        not_taken(model, "fuse/contrib-skip-group-norm", words)


def test_skip_refuses_an_unknown_rank(kit: Any, not_taken: Any) -> None:
    model = skipped(kit)[0]
    model.graph.input[1].type.tensor_type.ClearField("shape")
    not_taken(model, "fuse/contrib-skip-group-norm", "the rank of skip is not known")


def test_skip_refuses_an_unknown_type(kit: Any, not_taken: Any) -> None:
    model = skipped(kit)[0]
    strange = helper.make_node("Strange", ["x"], ["z"], domain="own")
    model.opset_import.append(helper.make_opsetid("own", 1))
    nodes = [strange, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.node[1].input[0] = "z"
    not_taken(model, "fuse/contrib-skip-group-norm", "element type of X is not known")
    assert isinstance(model, onnx.ModelProto)
