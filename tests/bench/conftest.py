"""Shared by the benchmark's tests: a protocol that takes no time, the JSON schema, small models."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxnorm.bench import Protocol


@pytest.fixture(scope="session")
def fast() -> Protocol:
    return Protocol(repeats=2, seconds=1e-4, burst_seconds=1e-4, warm_seconds=0, settle_seconds=0, sample_seconds=0)


@pytest.fixture(scope="session")
def check_schema() -> Callable[[Any], None]:
    """Fails unless a result, once through JSON, is as ``schema.json`` describes."""
    schema = json.loads(resources.files("onnxnorm.bench").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)

    def check(result: Any) -> None:
        jsonschema.validate(json.loads(json.dumps(result, allow_nan=False)), schema)

    return check


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes x (batch, 4, 6, 6) -> Conv -> GroupNormalization -> Relu -> y, whose weights come from the seed."""
    folder = tmp_path_factory.mktemp("models")

    def write(name: str = "net.onnx", seed: int = 0, scale: float = 1.0) -> Path:
        rng = np.random.default_rng(seed)
        weights = {
            "w": rng.standard_normal((8, 4, 3, 3)),
            "scale": scale * rng.uniform(0.5, 1.5, 8),
            "bias": rng.standard_normal(8),
        }
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("GroupNormalization", ["c", "scale", "bias"], ["n"], num_groups=2, name="norm"),
            helper.make_node("Relu", ["n"], ["y"], name="relu"),
        ]
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 4, 4])],
            [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, folder / name)
        return folder / name

    return write
