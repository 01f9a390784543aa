"""lower/unsupported-type: every operator of a model has a kernel in ONNX Runtime, whatever its element type."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxnorm.passes.lower import kernels
from onnxnorm.passes.lower.unsupported_types_float64 import _COMPOSITIONS
from onnxnorm.passes.pipeline import optimize, rule_ids
from onnxnorm.runtime.arrays import from_ort, to_ort
from onnxnorm.runtime.environment import newest_opset

RULE = "lower/unsupported-type"
HALF = ml_dtypes.bfloat16
TYPES = {"bfloat16": onnx.TensorProto.BFLOAT16, "float64": onnx.TensorProto.DOUBLE}


def session(proto: onnx.ModelProto) -> Any:
    """ONNX Runtime as anybody has it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, **feeds: Any) -> list[Any]:
    values = session(proto).run_with_ort_values(None, {name: to_ort(np.asarray(item)) for name, item in feeds.items()})
    return [from_ort(value) for value in values]


def stops(proto: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime refuses to load the model."""
    try:
        session(proto)
    except Exception:
        return True
    return False


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_installed_runtime_has_every_kernel_of_the_table() -> None:
    assert list(kernels.problems(newest_opset())) == []
    assert kernels.main() == 0


def test_a_wrong_table_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(kernels.BFLOAT16_SINCE, "Sqrt", 13)
    assert kernels.main() == 1
    assert "Sqrt: no bfloat16 kernel for opset 13" in capsys.readouterr().out


def test_what_is_said_to_lack_float64_lacks_it() -> None:
    has = kernels.installed_kernels("double")
    assert sorted(op for op in kernels.NO_FLOAT64 if op in has) == ["GRU", "LSTM"]
    assert set(_COMPOSITIONS) <= kernels.NO_FLOAT64


def samples() -> dict[str, list[Any]]:
    """ONNX's own one-node models by operator: those with float32 that ONNX Runtime loads."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found: dict[str, list[Any]] = {}
    for case in cases:
        if case.model is None or len(case.model.graph.node) != 1 or "_expanded" in case.name:
            continue
        node = case.model.graph.node[0]
        if node.domain == "" and node.op_type not in ("CastLike", "Attention") and not stops(case.model):
            found.setdefault(node.op_type, []).append(case)
    return found


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Any]]:
    return samples()


def retyped(model: onnx.ModelProto, dtype: str) -> onnx.ModelProto | None:
    """The model with float32 inputs and outputs in another type, None when that is not allowed for the operator."""
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    changed = False
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TYPES[dtype]
            changed = True
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return proto if changed else None


def differs(case: Any, proto: onnx.ModelProto, after: onnx.ModelProto, kind: Any, tolerance: float) -> str:
    """What is wrong with the outputs, on inputs that ``kind`` holds; float32 of the same model is the truth."""
    given = [np.asarray(item) for item in case.data_sets[0][0]]
    held = {
        info.name: item.astype(kind) if item.dtype == np.float32 else item
        for info, item in zip(proto.graph.input, given, strict=False)
    }
    wide = {
        name: item.astype(np.float32) if old.dtype == np.float32 else old
        for (name, item), old in zip(held.items(), given, strict=False)
    }
    want, have = session(case.model).run(None, wide), run(after, **held)
    for old, new in zip(want, have, strict=True):
        if old.dtype != np.float32:
            if not np.array_equal(old, new):
                return f"{case.name}: integers differ"
            continue
        truth, found = old.astype(np.float64), new.astype(np.float64)
        finite = np.isfinite(truth)
        scale = max(np.abs(truth[finite]).max(initial=0.0), 1e-30)
        away = np.abs(truth[finite] - found[finite]).max(initial=0.0) / scale
        if not np.array_equal(finite, np.isfinite(found)) or away > tolerance:
            return f"{case.name}: differs by {away:.3g}"
    return ""


def test_every_operator_in_bfloat16(cases: dict[str, list[Any]]) -> None:
    """Each loads and computes what float32 does on the same inputs, and many did not load before."""
    wrong, before, tried = [], 0, 0
    for found in cases.values():
        models = [(case, retyped(case.model, "bfloat16")) for case in found]
        for case, proto in [(case, proto) for case, proto in models if proto is not None][:4]:
            after = onnx.ModelProto.FromString(to_bytes(optimize(proto)))
            tried += 1
            before += stops(proto)
            wrong += [problem for problem in [differs(case, proto, after, HALF, 1e-2)] if problem]
    assert wrong == []
    assert tried > 200
    assert before > 150


def test_every_composed_operator_in_float64(cases: dict[str, list[Any]]) -> None:
    wrong, seen = [], set()
    for op, found in cases.items():
        for case in found if op in _COMPOSITIONS else ():
            proto = retyped(case.model, "float64")
            if proto is None:
                continue
            proto.opset_import[0].version = max(15, proto.opset_import[0].version)  # bodies are written since then
            after = onnx.ModelProto.FromString(to_bytes(optimize(proto)))
            seen.add(op)
            wrong += [problem for problem in [differs(case, proto, after, np.float64, 4e-6)] if problem]
    assert wrong == []
    assert set(_COMPOSITIONS) - seen <= {"Celu"}  # ONNX allows that in float32 only


def to_bytes(result: Any) -> bytes:
    import onnx_ir as ir

    return bytes(ir.to_proto(result.model).SerializeToString())


@pytest.mark.parametrize(
    ("op", "exact"),
    [
        ("Erf", "erf"),
        ("Gelu", "gelu"),
        ('Gelu <approximate="tanh">', "gelu-tanh"),
        ("Elu <alpha=0.7>", "elu"),
        ("Mish", "mish"),
        ("Softplus", "softplus"),
        ("HardSwish", "hard-swish"),
    ],
)
def test_float64_has_its_digits(lab: Any, op: str, exact: str) -> None:
    import math

    x = np.concatenate([np.linspace(-30, 30, 401), np.array([0.0, 1e-9, -1e-9])])
    phi = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    soft = np.logaddexp(0, x)
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    truth = {
        "erf": np.array([math.erf(v) for v in x]),
        "gelu": x * phi,
        "gelu-tanh": 0.5 * x * (1 + tanh),
        "elu": np.where(x > 0, x, float(f"{np.float32(0.7):.6e}") * np.expm1(np.minimum(x, 0))),
        "mish": x * np.tanh(soft),
        "softplus": soft,
        "hard-swish": x * np.clip(x / 6 + 0.5, 0, 1),
    }[exact]
    proto = lab.model(f"(double[404] x) => (double[404] y) {{ y = {op} (x) }}", 20)
    (y,) = run(lab.optimize(proto).after, x=x)
    assert np.abs(y - truth).max() <= 4e-16 * np.abs(truth).max()


@pytest.mark.parametrize("opset", [15, 18, 22])
def test_float64_pooling_and_instance_norm(lab: Any, opset: int) -> None:
    text = (
        "(double[N,3,5,4] x) => (double[N,3,5,4] y, double[N,3,1,1] mean, double[N,3,1,1] top) {"
        " y = InstanceNormalization <epsilon=0.001> (x, s, b) mean = GlobalAveragePool (x) top = GlobalMaxPool (x) }"
    )
    proto = lab.model(text, opset, s=lab.array(3, dtype="float64"), b=lab.array(3, dtype="float64", seed=1))
    outcome = lab.optimize(proto, disable=["fuse/instance-normalization"])
    x = lab.array(2, 3, 5, 4, dtype="float64") + 1e6
    y, mean, top = run(outcome.after, x=x)
    centred = x - x.mean((2, 3), keepdims=True)
    spread = (1, 3, 1, 1)
    truth = centred / np.sqrt((centred**2).mean((2, 3), keepdims=True) + 0.001)
    truth = truth * lab.array(3, dtype="float64").reshape(spread) + lab.array(3, dtype="float64", seed=1).reshape(
        spread
    )
    assert np.abs(y - truth).max() < 1e-9
    np.testing.assert_allclose(mean, x.mean((2, 3), keepdims=True), rtol=1e-15)
    np.testing.assert_array_equal(top, x.max((2, 3), keepdims=True))
    (decision,) = outcome.result.decisions
    assert (decision.op, decision.action.value, decision.rule) == ("InstanceNormalization", "lowered", RULE)


# --- bfloat16 in graphs -------------------------------------------------------------------------------------------

CHAIN = "(bfloat16[N,4] x) => (bfloat16[N,4] y) { a = Exp (x) b = Mul (a, x) y = Add (b, a) }"


def test_float64_behind_a_fused_norm(lab: Any) -> None:
    """The types behind a new op are known when operators are chosen, and when the result is saved."""
    text = "(double[2,6,4] x) => (double[2,6,4] y) { v = GroupNormalization <num_groups=3> (x, s, b) y = Erf (v) }"
    model = lab.model(text, 21, 10, s=lab.array(6, dtype="float64"), b=lab.array(6, dtype="float64", seed=1))
    outcome = lab.optimize(model)
    assert "GroupNorm" in outcome.ops
    assert "Erf" not in outcome.ops
    assert {info.name for info in outcome.after.graph.value_info} >= {
        name for node in outcome.after.graph.node for name in node.output if name != "y"
    }
    lab.same_in_ort(outcome, {"x": lab.array(2, 6, 4, dtype="float64", seed=2)}, eps=lab.eps("float64"))


def test_rounds_after_each_operator(lab: Any) -> None:
    outcome = lab.optimize(lab.model(CHAIN))
    x = lab.array(3, 4, dtype="bfloat16")
    a = np.exp(x.astype(np.float32)).astype(HALF)
    b = (a.astype(np.float32) * x.astype(np.float32)).astype(HALF)
    y = (b.astype(np.float32) + a.astype(np.float32)).astype(HALF)
    np.testing.assert_array_equal(run(outcome.after, x=x)[0].astype(np.float32), y.astype(np.float32))


def test_a_value_is_widened_once(lab: Any) -> None:
    """x, a and b are read in float32; x and a twice each."""
    outcome = lab.optimize(lab.model(CHAIN))
    assert outcome.ops.count("Cast") == 3 + 3


def test_small_constants_are_float32_in_the_file(lab: Any) -> None:
    text = "(bfloat16[N,4] x) => (bfloat16[N,4] y) { y = Mul (x, w) }"
    outcome = lab.optimize(lab.model(text, w=lab.array(4, dtype="bfloat16")))
    assert outcome.ops == ["Cast", "Mul", "Cast"]
    run(outcome.after, x=lab.array(2, 4, dtype="bfloat16"))


def test_moving_data_is_left_alone(lab: Any) -> None:
    text = "(bfloat16[2,4] x) => (bfloat16[8] y) { a = Transpose (x) b = Concat <axis=0> (a) y = Reshape (b, s) }"
    outcome = lab.optimize(lab.model(text, s=np.array([-1])))
    assert "Cast" not in outcome.ops
    run(outcome.after, x=lab.array(2, 4, dtype="bfloat16"))


def test_scattering_with_a_reduction(lab: Any) -> None:
    text = (
        "(bfloat16[4] x, int64[3] i, bfloat16[3] u) => (bfloat16[4] y)"
        ' { y = ScatterElements <reduction="add"> (x, i, u) }'
    )
    outcome = lab.optimize(lab.model(text))
    x, u = lab.array(4, dtype="bfloat16"), lab.array(3, dtype="bfloat16")
    want = x.astype(np.float32)
    np.add.at(want, [1, 1, 2], u.astype(np.float32))
    (y,) = run(outcome.after, x=x, i=np.array([1, 1, 2]), u=u)
    np.testing.assert_array_equal(y.astype(np.float32), want.astype(HALF).astype(np.float32))


def test_if_branches(lab: Any) -> None:
    text = (
        "(bfloat16[4] x, bool q) => (bfloat16[4] y) { a = Exp (x) y = If (q)"
        " <then_branch = t () => (bfloat16[4] b) { b = Sqrt (a) },"
        " else_branch = e () => (bfloat16[4] c) { c = Neg (x) }> }"
    )
    proto = lab.model(text)
    assert stops(proto)
    outcome = lab.optimize(proto)
    x = lab.array(4, dtype="bfloat16")
    for q, want in ((True, np.sqrt(np.exp(x.astype(np.float32)))), (False, -x.astype(np.float32))):
        (y,) = run(outcome.after, x=x, q=np.array(q))
        assert np.abs(y.astype(np.float32) - want).max() < 0.02


def test_loop_body(lab: Any) -> None:
    text = (
        "(bfloat16[4] x, int64 n) => (bfloat16[4] y) { q = Constant <value = bool {1}> () y = Loop (n, q, x)"
        " <body = b (int64 i, bool c, bfloat16[4] s) => (bool d, bfloat16[4] t)"
        " { d = Identity (c) t = Add (s, s) }> }"
    )
    outcome = lab.optimize(lab.model(text))
    x = lab.array(4, dtype="bfloat16")
    (y,) = run(outcome.after, x=x, n=np.array(3))
    np.testing.assert_array_equal(y.astype(np.float32), 8 * x.astype(np.float32))


def test_scan_body(lab: Any) -> None:
    text = (
        "(bfloat16[3,4] x, bfloat16[4] z) => (bfloat16[4] y, bfloat16[3,4] ys) { y, ys = Scan <num_scan_inputs=1,"
        " body = b (bfloat16[4] s, bfloat16[4] a) => (bfloat16[4] t, bfloat16[4] u)"
        " { t = Add (s, a) u = Identity (t) }> (z, x) }"
    )
    outcome = lab.optimize(lab.model(text))
    x, z = np.ones((3, 4)).astype(HALF), np.zeros(4).astype(HALF)
    (y, _) = run(outcome.after, x=x, z=z)
    np.testing.assert_array_equal(y.astype(np.float32), np.full(4, 3.0))


def test_functions_are_inlined_where_there_is_bfloat16(lab: Any) -> None:
    """One of them is called with both types."""
    text = (
        "(bfloat16[4] x, float[4] z) => (bfloat16[4] y, float[4] w) { y = local.f (x) w = local.f (z) }"
        '\n<domain: "local", opset_import: ["" : 18]> f (a) => (c) { b = Exp (a) c = Sqrt (b) }'
    )
    outcome = lab.optimize(lab.model(text, domains=', "local" : 1'))
    assert not outcome.after.functions
    x, z = lab.array(4, dtype="bfloat16"), lab.array(4)
    y, w = run(outcome.after, x=x, z=z)
    assert y.dtype == HALF
    np.testing.assert_allclose(w, np.exp(z / 2), rtol=1e-6)
    np.testing.assert_allclose(y.astype(np.float32), np.exp(x.astype(np.float32) / 2), rtol=0.02)


def test_results_that_are_made_in_bfloat16(lab: Any) -> None:
    """No input is: the type is an attribute."""
    text = "(float[3,3] x) => (bfloat16[3,3] y) { y = EyeLike <dtype=16> (x) }"
    outcome = lab.optimize(lab.model(text))
    (y,) = run(outcome.after, x=lab.array(3, 3))
    np.testing.assert_array_equal(y.astype(np.float32), np.eye(3))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_statistics_in_bfloat16(lab: Any, kind: str) -> None:
    """They are float32 before a rule asks, so that the norm is fused at once and not by a second run."""
    text = (
        f"({kind}[2,6,4] x) => ({kind}[2,6,4] y)"
        " { y = GroupNormalization <num_groups=3, stash_type=16> (x, scale, bias) }"
    )
    model = lab.model(text, 21, 10, scale=lab.array(6, dtype=kind), bias=lab.array(6, dtype=kind, seed=1))
    assert stops(model)
    assert lab.optimize(model).ops == ["GroupNorm"]
    kept = lab.optimize(model, disable=["fuse/group-normalization"])
    assert kept.node("GroupNormalization").attribute[1].i == onnx.TensorProto.FLOAT
    feeds = {"x": lab.array(2, 6, 4, dtype=kind, seed=2)}
    (truth,) = lab.run(model, feeds)
    (y,) = run(kept.after, **feeds)
    assert np.abs(y.astype(np.float64) - truth).max() <= 4 * lab.eps(kind) * np.abs(truth).max()
    untouched = optimize(model, provider="cuda").model.graph[0]
    assert untouched.attributes["stash_type"].as_int() == onnx.TensorProto.BFLOAT16


def test_batch_norm_by_itself(lab: Any) -> None:
    text = "(bfloat16[N,3,5] x) => (bfloat16[N,3,5] y) { y = BatchNormalization (x, gamma, beta, mean, var) }"
    outcome = lab.optimize(lab.model(text, **lab.batch_norm(3, "bfloat16")))
    assert [item.rule for item in outcome.result.decisions] == [RULE]
    x = lab.array(2, 3, 5, dtype="bfloat16")
    (y,) = run(outcome.after, x=x)
    (want,) = lab.run(outcome.before, {"x": x})
    assert np.abs(y.astype(np.float64) - want).max() < 0.02 * np.abs(want).max()


def test_onnxnorm_nodes_are_left_alone(lab: Any) -> None:
    node = 'y = onnxnorm.RMSNorm <axes=[-1], epsilon=0.00001, activation="none"> (x, s)'
    proto = lab.model(
        "(bfloat16[2,8] x) => (bfloat16[2,8] y) { " + node + " }",
        domains=', "onnxnorm" : 1',
        s=lab.array(8, dtype="bfloat16"),
    )
    assert lab.optimize(proto).ops == ["RMSNorm"]


# --- what is not touched ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_other_types_are_not_touched(lab: Any, kind: str) -> None:
    proto = lab.model(CHAIN.replace("bfloat16", kind))
    assert to_bytes(optimize(proto)) == to_bytes(optimize(proto, disable=[RULE]))


def test_nothing_for_cuda(lab: Any) -> None:
    proto = lab.model(CHAIN)
    assert to_bytes(optimize(proto, provider="cuda")) == to_bytes(optimize(proto, disable=[RULE]))
    assert "Cast" not in lab.optimize(proto, provider="cuda").ops
    assert RULE in rule_ids()


def test_what_stays_without_a_kernel_is_told(lab: Any) -> None:
    text = "(double[N,3,5,5] x) => (double[N,4,3,3] y) { y = Conv (x, w) }"
    outcome = lab.optimize(lab.model(text, w=lab.array(4, 3, 3, 3, dtype="float64")))
    decision = outcome.only
    assert (decision.action.value, decision.rule, decision.op) == ("refused", RULE, "Conv")
    assert decision.reason == "ONNX Runtime's CPU provider has no float64 Conv; the model does not load there"
    assert outcome.ops == ["Conv"]
