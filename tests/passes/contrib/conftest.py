"""Models with one operator of ONNX Runtime's own, and what the optimized ones must give on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxnorm
from onnxnorm.runtime.arrays import from_ort, to_ort

TYPES = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "float64": (TensorProto.DOUBLE, np.float64),
}
#: Spacing of the type at 1.
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}


@dataclass
class Kit:
    """Makes and runs models."""

    lab: Any

    def data(self, shape: Sequence[int], dtype: str = "float32", seed: int = 0, offset: float = 0.0) -> Any:
        values = np.random.default_rng([seed, *shape]).standard_normal(tuple(shape)) + offset
        return values.astype(TYPES[dtype][1])

    def graph(
        self,
        nodes: Sequence[onnx.NodeProto],
        feeds: Mapping[str, Any],
        outputs: Mapping[str, str],
        constants: Mapping[str, Any],
        opset: int = 17,
        shapes: Mapping[str, Sequence[int | str]] | None = None,
    ) -> onnx.ModelProto:
        """``outputs`` are names and element types, ``shapes`` those of inputs that are not static."""

        def info(name: str, array: Any) -> onnx.ValueInfoProto:
            shape = (shapes or {}).get(name, np.shape(array))
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)

        graph = helper.make_graph(
            list(nodes),
            "graph",
            [info(name, array) for name, array in feeds.items()],
            [helper.make_tensor_value_info(name, TYPES[dtype][0], None) for name, dtype in outputs.items()],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 19 else 10)

    def optimize(self, model: onnx.ModelProto, **options: Any) -> Any:
        """With all that holds for every model: see ``Lab.optimize``."""
        return self.lab.optimize(model, check=False, **options)

    def run(self, model: onnx.ModelProto, feeds: Mapping[str, Any], *, library: bool = False) -> list[Any]:
        """ONNX Runtime's CPU provider with all its optimizations, the norms by their bodies or by the library."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        data, provider = model.SerializeToString(), ["CPUExecutionProvider"]
        if library:
            session = onnxnorm.InferenceSession(data, options, providers=provider)
        else:
            session = onnxruntime.InferenceSession(data, options, providers=provider)
        names = [item.name for item in session.get_outputs()]
        values = session.run_with_ort_values(names, {name: to_ort(np.asarray(array)) for name, array in feeds.items()})
        return [from_ort(value) for value in values]

    def runs_right(
        self, outcome: Any, feeds: Mapping[str, Any], truths: Sequence[Any], dtype: str, factor: float = 2.0
    ) -> None:
        """With and without the library, within some units of the type at each output's scale."""
        assert not {node.op_type for node in outcome.after.graph.node if node.domain == "com.microsoft"} & REWRITTEN
        for library in (False, True):
            results = self.run(outcome.after, feeds, library=library)
            for new, truth in zip(results, truths, strict=True):
                near(new, truth, dtype, factor)


REWRITTEN = {"GroupNorm", "SkipGroupNorm", "NhwcConv", "BiasAdd", "BiasSplitGelu"}


def near(new: Any, truth: Any, dtype: str, factor: float) -> None:
    new, truth = np.asarray(new).astype(np.float64), np.asarray(truth, np.float64)
    assert new.shape == truth.shape
    assert np.isfinite(new).all() == np.isfinite(truth).all()
    distance = np.abs(new - truth).max(initial=0.0) / max(np.abs(truth).max(initial=0.0), 1e-30)
    floor = 16 * EPS["float32"] if dtype == "float32" else 0.0  # reductions add up in another order
    assert distance <= max(factor * EPS[dtype], floor), f"{distance:.3g} of the scale"


def wide(*arrays: Any) -> list[Any]:
    """In float64."""
    return [None if array is None else np.asarray(array).astype(np.float64) for array in arrays]


@pytest.fixture
def kit(lab: Any) -> Kit:
    return Kit(lab)


@pytest.fixture
def not_taken(kit: Kit) -> Callable[..., Any]:
    """Optimizes, and asserts that the one decision is a refusal by that rule whose reason holds those words."""

    def run(model: onnx.ModelProto, rule: str, words: str, **options: Any) -> Any:
        outcome = kit.optimize(model, **options)
        found = [item for item in outcome.result.decisions if item.rule == rule]
        assert [item.action.value for item in found] == ["refused"], outcome.result.explain()
        assert words in (found[0].reason or ""), found[0].reason
        return outcome

    return run
