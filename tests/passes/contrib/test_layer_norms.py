"""com.microsoft Skip(Simplified)LayerNormalization and ONNX Runtime's SimplifiedLayerNormalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from . import truth
from .conftest import wide

RMS, LAYER = "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"
RULES = {
    RMS: "fuse/contrib-skip-simplified-layer-normalization",
    LAYER: "fuse/contrib-skip-layer-normalization",
}


def build(
    kit: Any,
    op: str = LAYER,
    *,
    dtype: str = "bfloat16",
    skip: tuple[int, ...] = (2, 5, 16),
    beta: bool = True,
    bias: bool = False,
    outputs: str = "ys",
    opset: int = 18,
    shapes: Any = None,
    epsilon: float | None = 1e-5,
) -> Any:
    """(model, feeds, truths); of outputs y, m(ean), i(nverse), s(um) those that are asked for."""
    feeds = {"x": kit.data((2, 5, 16), dtype), "skip": kit.data(skip, dtype, 3)}
    given = {"gamma": kit.data((16,), dtype, 1)}
    if beta and op == LAYER:
        given["beta"] = kit.data((16,), dtype, 2)
    if bias:
        given["bias"] = kit.data((16,), dtype, 4)
    order = ["gamma", "bias"] if op == RMS else ["gamma", "beta", "bias"]
    names = ["x", "skip", *(name if name in given else "" for name in order)]
    while not names[-1]:
        names.pop()
    found = {"y": "y", "m": "mean", "i": "inverse", "s": "total"}
    results = [found[key] if key in outputs else "" for key in found]
    while not results[-1]:
        results.pop()
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    node = helper.make_node(op, names, results, "norm", domain="com.microsoft", **attributes)
    types = {name: "float32" if name in ("mean", "inverse") else dtype for name in results if name}
    model = kit.graph([node], feeds, types, given, opset, shapes)
    values = wide(feeds["x"], feeds["skip"], given["gamma"])
    wanted: dict[str, Any] = {}
    if op == RMS:
        wanted["y"], wanted["s"] = truth.skip_rms_norm(*values, *wide(given.get("bias")), epsilon=epsilon or 1e-12)
    else:
        rest = wide(given.get("beta"), given.get("bias"))
        wanted = dict(zip("ymis", truth.skip_layer_norm(*values, *rest, epsilon=epsilon or 1e-12), strict=True))
    return model, feeds, [wanted[key] for key in found if key in outputs]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("skip", [(2, 5, 16), (1, 5, 16), (5, 16)])
@pytest.mark.parametrize("outputs", ["y", "ys"])
@pytest.mark.parametrize("op", [LAYER, RMS])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_forms(kit: Any, dtype: str, op: str, outputs: str, skip: tuple[int, ...], beta: bool, bias: bool) -> None:
    """A residual without the batch is an addition in front of the plain op."""
    model, feeds, wanted = build(kit, op, dtype=dtype, skip=skip, beta=beta, bias=bias, outputs=outputs)
    outcome = kit.optimize(model)
    assert RULES[op] in outcome.only.rule
    name = {LAYER: "LayerNorm", RMS: "RMSNorm"}[op]
    assert (f"Skip{name}" if len(skip) == 3 and skip[0] == 2 else name) in outcome.ops
    kit.runs_right(outcome, feeds, wanted, dtype)


@pytest.mark.parametrize("op", [LAYER, RMS])
def test_far_from_zero(kit: Any, op: str) -> None:
    """Where ONNX Runtime 1.20's kernel gives NaN, and that of 1.31 is 8 times as far off as LayerNormalization."""
    model, feeds, _ = build(kit, op, dtype="float32")
    feeds = {"x": feeds["x"] + np.float32(1e4), "skip": feeds["skip"]}
    gamma, *rest = (onnx.numpy_helper.to_array(item) for item in model.graph.initializer)
    total = (feeds["x"] + feeds["skip"]).astype(np.float64)  # as float32 rounds it
    wanted = truth.skip_rms_norm if op == RMS else truth.skip_layer_norm
    y, *_ = wanted(total, np.zeros(1), *wide(gamma, *rest), epsilon=1e-5)
    outcome = kit.optimize(model)
    for library in (False, True):
        found = kit.run(outcome.after, feeds, library=library)[0]
        assert np.abs(found - y).max() <= 4e-6 * np.abs(y).max()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("opset", [17, 18, 21, 23])
@pytest.mark.parametrize("op", [LAYER, RMS])
def test_in_standard_operators(kit: Any, op: str, opset: int, dtype: str) -> None:
    model, feeds, wanted = build(kit, op, dtype=dtype, bias=True, opset=opset)
    outcome = kit.optimize(model, target="standard")
    assert {node.domain for node in outcome.after.graph.node} == {""}
    kit.runs_right(outcome, feeds, wanted, dtype, factor=3.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("outputs", ["ym", "yi", "ymis"])
def test_statistics_as_outputs(kit: Any, outputs: str, dtype: str) -> None:
    """ONNX Runtime 1.20 gives none of them, LayerNormalization does."""
    model, feeds, wanted = build(kit, dtype=dtype, outputs=outputs)
    outcome = kit.optimize(model)
    assert "LayerNormalization" in outcome.ops
    kit.runs_right(outcome, feeds, wanted, dtype, factor=3.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_refuses_the_statistics_of_rms_norm(kit: Any, not_taken: Any, dtype: str) -> None:
    model = build(kit, RMS, dtype=dtype, outputs="ys")[0]
    model.graph.node[0].output[2] = "inverse"
    model.graph.output.append(helper.make_tensor_value_info("inverse", 1, None))
    not_taken(model, RULES[RMS], "its mean or inv_std_var is used")


@pytest.mark.parametrize("op", [LAYER, RMS])
def test_dynamic_sizes(kit: Any, op: str) -> None:
    shapes = dict.fromkeys(("x", "skip"), ("N", "S", 16))
    model, feeds, wanted = build(kit, op, shapes=shapes)
    outcome = kit.optimize(model)
    assert outcome.ops == [{LAYER: "SkipLayerNorm", RMS: "SkipRMSNorm"}[op]]
    kit.runs_right(outcome, feeds, wanted, "bfloat16")


@pytest.mark.parametrize("op", [LAYER, RMS])
def test_default_epsilon(kit: Any, op: str) -> None:
    """1e-12, other than that of LayerNormalization."""
    model, feeds, wanted = build(kit, op, dtype="float32", epsilon=None)
    kit.runs_right(kit.optimize(model, target="standard"), feeds, wanted, "float32")


@pytest.mark.parametrize("opset", [14, 16])
@pytest.mark.parametrize("op", [LAYER, RMS])
def test_older_opsets_are_raised(kit: Any, op: str, opset: int) -> None:
    model, feeds, wanted = build(kit, op, opset=opset)
    outcome = kit.optimize(model)
    assert next(item.version for item in outcome.after.opset_import if item.domain == "") == 17
    kit.runs_right(outcome, feeds, wanted, "bfloat16")


@pytest.mark.parametrize("op", [LAYER, RMS])
def test_verified(kit: Any, op: str) -> None:
    model, feeds, wanted = build(kit, op, bias=True, skip=(1, 5, 16))
    outcome = kit.optimize(model, verify=True)
    assert op not in outcome.ops, outcome.result.explain()
    kit.runs_right(outcome, feeds, wanted, "bfloat16")


@pytest.mark.parametrize("op", [LAYER, RMS])
def test_stays_for_cuda(kit: Any, op: str) -> None:
    assert kit.optimize(build(kit, op)[0], provider="cuda").ops == [op]


@pytest.mark.parametrize("op", [LAYER, RMS])
def test_refuses_old_opsets(kit: Any, not_taken: Any, op: str) -> None:
    model = build(kit, op, opset=6, dtype="float32")[0]
    not_taken(model, RULES[op], "from opset 15 on", target="standard")


# --- SimplifiedLayerNormalization, in the domain ai.onnx ------------------------------------------------------------


def simplified(kit: Any, *, dtype: str = "float32", opset: int = 17, axis: int | None = -1, outputs: int = 1) -> Any:
    """(model, feeds, truth)."""
    x = kit.data((2, 5, 16), dtype, offset=0.5)
    sizes = x.shape[-1:] if axis is None else x.shape[axis:]
    gamma = kit.data(sizes, dtype, 1)
    attributes = {} if axis is None else {"axis": axis, "stash_type": 1, "epsilon": 1e-6}
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "g"], ["y", "i"][:outputs], **attributes)
    types = {"y": dtype, "i": "float32"}
    model = kit.graph([node], {"x": x}, dict(list(types.items())[:outputs]), {"g": gamma}, opset)
    x_wide, gamma_wide = wide(x, gamma)
    over = tuple(range(3 - len(sizes), 3))
    square = np.square(x_wide).mean(axis=over, keepdims=True)
    return model, {"x": x}, x_wide / np.sqrt(square + (1e-5 if axis is None else 1e-6)) * gamma_wide


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("axis", [None, -1, -2])
@pytest.mark.parametrize("opset", [14, 17, 21, 23])
def test_simplified(kit: Any, opset: int, axis: int | None, dtype: str) -> None:
    model, feeds, y = simplified(kit, dtype=dtype, axis=axis, opset=opset)
    outcome = kit.optimize(model)
    assert outcome.ops == ["RMSNorm"]
    assert outcome.only.rule == "fuse/simplified-layer-normalization"
    # In float64 the attribute epsilon, a float32, is read as the decimal that was written: see the op.
    kit.runs_right(outcome, feeds, [y], dtype, factor=8.0 if dtype == "float64" else 2.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_simplified_in_standard_operators(kit: Any, dtype: str) -> None:
    for opset in (17, 23):
        model, feeds, y = simplified(kit, dtype=dtype, opset=opset)
        outcome = kit.optimize(model, target="standard")
        assert {node.op_type for node in outcome.after.graph.node}.isdisjoint({"SimplifiedLayerNormalization"})
        kit.runs_right(outcome, feeds, [y], dtype, factor=3.0)


def test_simplified_refuses_its_second_output(kit: Any, not_taken: Any) -> None:
    not_taken(simplified(kit, outputs=2)[0], "fuse/simplified-layer-normalization", "inv_std_var is used")


def test_simplified_stays_for_cuda(kit: Any) -> None:
    assert kit.optimize(simplified(kit)[0], provider="cuda").ops == ["SimplifiedLayerNormalization"]


def test_simplified_verified(kit: Any) -> None:
    assert kit.optimize(simplified(kit, dtype="float16")[0], verify=True).ops == ["RMSNorm"]


# --- LayerNormalization before opset 17, which is ONNX Runtime's own ------------------------------------------------


@pytest.mark.parametrize("opset", [11, 14, 16])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layer_normalization_before_its_opset(kit: Any, dtype: str, opset: int) -> None:
    x, gamma, beta = kit.data((2, 5, 16), dtype), kit.data((16,), dtype, 1), kit.data((16,), dtype, 2)
    node = helper.make_node("LayerNormalization", ["x", "g", "b"], ["y"], axis=-1, epsilon=1e-5)
    model = kit.graph([node], {"x": x}, {"y": dtype}, {"g": gamma, "b": beta}, opset)
    outcome = kit.optimize(model)
    assert outcome.ops == ["LayerNorm"]
    assert next(item.version for item in outcome.after.opset_import if item.domain == "") == 17
    y = truth.skip_layer_norm(*wide(x, np.zeros(1), gamma, beta), epsilon=1e-5)[0]
    kit.runs_right(outcome, {"x": x}, [y], dtype)
