"""What the tests of the native library share: the library, its SIMD levels, and one-node models."""

from __future__ import annotations

import ctypes
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxnorm.norms import all_specs
from onnxnorm.runtime.library import has_library, library_path
from onnxnorm.spec.record import NormSpec

from . import host

TYPES: dict[str, tuple[int, Any]] = {
    "float32": (TensorProto.FLOAT, np.float32),
    "float16": (TensorProto.FLOAT16, np.float16),
    "float64": (TensorProto.DOUBLE, np.float64),
    "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
#: Half a unit in the last place, of what is stored in each type.
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "float64": 2.0**-53, "bfloat16": 2.0**-8}
LEVELS = ("scalar", "avx2", "avx512", "neon")

SPECS: dict[str, NormSpec] = {name: spec for name, spec in all_specs().items() if spec.native}


@pytest.fixture(scope="session")
def library() -> Path:
    return library_path()


def op_table(library: Path) -> dict[str, Any]:
    """The table that the library gives now; it depends on ONNXNORM_CPU_TARGET."""
    if host.wanted():
        return host.op_table()
    function = ctypes.CDLL(str(library)).OnnxnormOpTable
    function.restype = ctypes.c_char_p
    table: dict[str, Any] = json.loads(function().decode())
    return table


def available_levels(library: Path) -> list[str]:
    """The SIMD levels that this machine has, as the library sees them."""
    found = []
    for name in LEVELS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ONNXNORM_CPU_TARGET", name)
            if op_table(library)["cpu_target"] == name:
                found.append(name)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``level`` run on each SIMD level that this machine has; without a library they fail, once."""
    if "level" in metafunc.fixturenames:
        found = available_levels(library_path()) if has_library() else ["scalar"]
        metafunc.parametrize("level", found, indirect=True)


@pytest.fixture
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SIMD level, in force for the test's sessions."""
    name: str = request.param
    monkeypatch.setenv("ONNXNORM_CPU_TARGET", name)
    return name


def model(
    op: str,
    dtype: str,
    shapes: Sequence[Sequence[int | str | None] | None],
    attributes: dict[str, Any],
    node: str = "the_norm",
) -> bytes:
    """A model of one node, without function bodies."""
    element = TYPES[dtype][0]
    names = [item.name for item in SPECS[op].inputs]
    proto = helper.make_node(op, names, ["Y"], domain="onnxnorm", name=node)
    for name, value in attributes.items():
        kind = onnx.AttributeProto.INTS if isinstance(value, list) else None
        proto.attribute.append(helper.make_attribute(name, value, attr_type=kind))
    inputs = [helper.make_tensor_value_info(n, element, s) for n, s in zip(names, shapes, strict=True)]
    output = helper.make_tensor_value_info("Y", element, None)
    graph = helper.make_graph([proto], "one_node", inputs, [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("onnxnorm", 1)]
    result: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return result


@pytest.fixture(autouse=True)
def _numbers_of_its_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test draws the same numbers whatever ran before it, on whichever process."""
    if hasattr(request.module, "RNG"):
        seed = zlib.crc32(request.node.name.encode())
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(seed))


@pytest.fixture(scope="session", autouse=True)
def _the_host_ends_well() -> Iterator[None]:
    """With the test host: it finds no leak when it ends."""
    yield
    host.close()


def session(library: Path, content: bytes, threads: int = 2) -> Any:
    """A plain onnxruntime session with the library registered, or one of the test host where that is wanted."""
    if host.wanted():
        return host.Session(content, threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(current: ort.InferenceSession, inputs: Sequence[np.ndarray], dtype: str) -> np.ndarray:
    """Runs through OrtValues, which know bfloat16."""
    names = [item.name for item in current.get_inputs()]
    element = TYPES[dtype][0]
    feeds = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(_plain(value, dtype), element)
        for name, value in zip(names, inputs, strict=True)
    }
    (result,) = current.run_with_ort_values(["Y"], feeds)
    if dtype != "bfloat16":
        return np.asarray(result.numpy())
    shape = result.shape()
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, ml_dtypes.bfloat16)
    bits = (ctypes.c_uint16 * count).from_address(result.data_ptr())
    return np.array(np.frombuffer(bits, np.uint16)).view(ml_dtypes.bfloat16).reshape(shape)


def _plain(value: np.ndarray, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(value).view(np.uint16) if dtype == "bfloat16" else np.ascontiguousarray(value)


class Runner:
    """Runs one node of an op on float64 inputs, cast to a type, and gives what went in and came out in float64."""

    def __init__(self, library: Path) -> None:
        self.library = library

    def __call__(
        self,
        op: str,
        inputs: Sequence[np.ndarray],
        attributes: dict[str, Any],
        dtype: str = "float32",
        threads: int = 2,
        static: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(output, truth): the op's output, and the spec's reference on the inputs as cast."""
        with np.errstate(over="ignore"):
            cast = [np.asarray(value).astype(TYPES[dtype][1]) for value in inputs]
        shapes: list[Any] = [list(v.shape) if static else [None] * v.ndim for v in cast]
        current = session(self.library, model(op, dtype, shapes, attributes), threads)
        output = run(current, cast, dtype)
        assert output.shape == cast[0].shape
        assert output.dtype == TYPES[dtype][1]
        # In float64 the reference's own rounding would count as the op's error.
        wide = np.longdouble if dtype == "float64" else np.float64
        truth, *_ = SPECS[op].reference([value.astype(wide) for value in cast], attributes)
        return output, truth


@pytest.fixture(scope="session")
def runner(library: Path) -> Runner:
    return Runner(library)


def assert_close(output: np.ndarray, truth: np.ndarray, dtype: str, ulps: float = 4.0) -> None:
    """Within `ulps` units in the last place of the output's scale; what is not finite matches in kind and place."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = truth.astype(TYPES[dtype][1]).astype(np.float64)
    output = output.astype(np.float64)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(output[~finite], rounded[~finite])
    if not finite.any():
        return
    scale = max(np.abs(rounded[finite]).max(), np.finfo(np.float32).tiny)
    error = np.abs(output[finite] - truth[finite]).max() / scale
    bound = ulps * 2 * UNIT[dtype]
    assert error <= bound, f"off by {error / (2 * UNIT[dtype]):.2f} ulps of the output's scale {scale:g}"


#: The type of the fixture, for annotations.
Run = Callable[..., tuple[np.ndarray, np.ndarray]]
