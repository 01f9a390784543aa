"""A laboratory for rewrites: models from text, their float64 truth, and what every optimized model must keep."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import AttributeProto, TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxnorm.norms import all_specs
from onnxnorm.passes.pipeline import Result, optimize
from onnxnorm.passes.reference_ops import REFERENCE_OPS

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
#: NumPy type -> its name in ONNX's text form.
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def to_bytes(model: ir.Model | onnx.ModelProto) -> bytes:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return bytes(proto.SerializeToString(deterministic=True))


@dataclass
class Outcome:
    """What optimize made of a model."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    result: Result

    @property
    def ops(self) -> list[str]:
        return [node.op_type for node in self.after.graph.node]

    @property
    def only(self) -> Any:
        """The one decision."""
        assert len(self.result.decisions) == 1, self.result.explain()
        return self.result.decisions[0]

    def initializer(self, name: str) -> np.ndarray:
        return next(onnx.numpy_helper.to_array(item) for item in self.after.graph.initializer if item.name == name)

    def node(self, op_type: str) -> onnx.NodeProto:
        return next(node for node in self.after.graph.node if node.op_type == op_type)


class Lab:
    """See the module."""

    def array(self, *shape: int, dtype: str = "float32", seed: int = 0, low: float = -1.0, high: float = 1.0) -> Any:
        values = np.random.default_rng([seed, *shape]).uniform(low, high, shape)
        return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    def batch_norm(self, channels: int, dtype: str = "float32", seed: int = 0, prefix: str = "") -> dict[str, Any]:
        """gamma (of both signs), beta, mean, var."""
        make = lambda i, low, high: self.array(channels, dtype=dtype, seed=100 * seed + i, low=low, high=high)  # noqa: E731
        parts = {"gamma": make(1, -2, 2), "beta": make(2, -1, 1), "mean": make(3, -1, 1), "var": make(4, 0.1, 3)}
        return {prefix + name: value for name, value in parts.items()}

    def model(self, text: str, opset: int = 18, ir_version: int = 8, domains: str = "", **arrays: Any) -> Any:
        """``text`` is "(inputs) => (outputs) { nodes }", then functions; ``arrays`` become initializers."""
        head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]>\n agraph '
        proto = onnx.parser.parse_model(head + text)
        for name, value in arrays.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return proto

    def optimize(self, proto: Any, check: bool = True, **options: Any) -> Outcome:
        """Optimizes, and asserts what holds for every model: valid, same interface, a second run changes nothing."""
        given = copy.deepcopy(proto)
        result = optimize(proto, **options)
        assert to_bytes(given) == to_bytes(proto), "the caller's model was changed"
        after = ir.to_proto(result.model)
        if check:
            onnx.checker.check_model(after, full_check=True)
        for field in ("input", "output"):
            before, now = getattr(proto.graph, field), getattr(after.graph, field)
            assert [to_bytes(item) for item in before] == [to_bytes(item) for item in now], f"{field}s changed"
        assert to_bytes(after) == to_bytes(optimize(proto, **options).model), "two runs differ"
        assert to_bytes(after) == to_bytes(optimize(after, **options).model), "a second run changes the model"
        return Outcome(proto, after, result)

    def run(self, proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
        """The truth: every float in float64, onnxnorm ops by their spec's reference."""
        with np.errstate(all="ignore"):
            evaluator = ReferenceEvaluator(_in_double(proto), new_ops=[*REFERENCE_OPS, *_norm_ops()])
            return list(evaluator.run(None, {name: _wide(value) for name, value in feeds.items()}))

    def same(self, outcome: Outcome, feeds: Mapping[str, Any], eps: float | None = None, factor: float = 8.0) -> None:
        """Both models agree in float64 within some eps (of the weights' type) of each output's scale."""
        eps = float(np.finfo(np.float32).eps) if eps is None else eps
        for old, new in zip(self.run(outcome.before, feeds), self.run(outcome.after, feeds), strict=True):
            close(new, old, factor * eps)

    def ort(self, proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
        """ONNX Runtime without optimizations."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        # Copies: the training form of BatchNormalization writes its statistics into the arrays that it is given.
        return list(session.run(None, {name: np.array(value) for name, value in feeds.items()}))

    def same_in_ort(
        self, outcome: Outcome, feeds: Mapping[str, Any], eps: float = 1.2e-7, factor: float = 32.0
    ) -> None:
        """ONNX Runtime's result on the optimized model is the truth of the given one, within rounding."""
        for truth, new in zip(self.run(outcome.before, feeds), self.ort(outcome.after, feeds), strict=True):
            close(new, truth, factor * eps)

    def eps(self, dtype: str) -> float:
        """The spacing at 1; for float64 that of the epsilon attribute, which ONNX keeps in float32."""
        return {"float32": 1.2e-7, "float16": 9.8e-4, "bfloat16": 7.9e-3, "float64": 1e-8}[dtype]


def close(new: Any, old: Any, tolerance: float) -> None:
    new, old = np.asarray(new), np.asarray(old)
    assert new.shape == old.shape
    if not (new.dtype.kind in "fV" and old.dtype.kind in "fV"):
        np.testing.assert_array_equal(new, old)
        return
    new, old = new.astype(np.float64), old.astype(np.float64)
    finite = np.isfinite(old)
    np.testing.assert_array_equal(np.isfinite(new), finite)
    scale = np.abs(old[finite]).max(initial=0.0)
    distance = np.abs(new[finite] - old[finite]).max(initial=0.0)
    assert distance <= tolerance * max(scale, 1e-30), f"differs by {distance / max(scale, 1e-30):.3g} of the scale"


def _wide(value: Any) -> Any:
    value = np.asarray(value)
    return value.astype(np.float64) if value.dtype.kind in "fV" else value


def _norm_ops() -> list[type[OpRun]]:
    def make(name: str, spec: Any) -> type[OpRun]:
        def run(self: Any, *inputs: Any, **attributes: Any) -> Any:
            return tuple(spec.reference([_wide(item) for item in inputs], attributes))

        return type(name, (OpRun,), {"op_domain": "onnxnorm", "_run": run})

    return [make(name, spec) for name, spec in all_specs().items()]


def _in_double(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto = copy.deepcopy(proto)
    kept = [function for function in proto.functions if function.domain != "onnxnorm"]
    del proto.functions[:]
    proto.functions.extend(kept)
    _double_graph(proto.graph)
    for function in proto.functions:
        _double_nodes(function.node)
    return proto


def _double_graph(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type in FLOATS:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _double_tensor(tensor)
    _double_nodes(graph.node)


def _double_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(onnx.numpy_helper.from_array(_wide(onnx.numpy_helper.to_array(tensor)), tensor.name))


def _double_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _double_graph(attribute.g)
            elif attribute.type == AttributeProto.TENSOR:
                _double_tensor(attribute.t)
            elif attribute.name in ("to", "stash_type") and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
        if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
            found = node.attribute[0]
            value = np.array(found.f if found.name == "value_float" else list(found.floats), np.float64)
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(value)))


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(scope="session")
def refused(lab: Lab) -> Callable[..., Outcome]:
    """Optimizes, and asserts that the one decision is a refusal by that rule whose reason holds those words."""

    def run(proto: Any, rule: str, words: str, **options: Any) -> Outcome:
        outcome = lab.optimize(proto, **options)
        decision = outcome.only
        assert (decision.action.value, decision.rule) == ("refused", rule), str(decision)
        assert words in decision.reason, decision.reason
        return outcome

    return run


@pytest.fixture
def functions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is inlined: what rules do inside of functions."""
    monkeypatch.setattr("onnxnorm.passes.pipeline.inline_functions", lambda model: False)
