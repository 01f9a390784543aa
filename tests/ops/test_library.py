"""The library itself: what it exports and holds, how it is registered, and how it refuses."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from .conftest import LEVELS, SPECS, TYPES, available_levels, model, op_table, run, session

GROUP = {"num_groups": 2, "epsilon": 1e-5, "activation": "silu", "channels_last": 0}


def test_only_two_symbols_are_exported(library: Path) -> None:
    nm = shutil.which("nm")
    if nm is None or sys.platform != "linux":
        pytest.skip("needs nm on Linux")
    lines = subprocess.run([nm, "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    assert sorted(line.split()[-1] for line in lines.splitlines()) == ["OnnxnormOpTable", "RegisterCustomOps"]


def test_needs_nothing_but_libc(library: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None or sys.platform != "linux":
        pytest.skip("needs readelf on Linux")
    lines = subprocess.run([readelf, "-d", library], check=True, capture_output=True, text=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in lines.splitlines() if "(NEEDED)" in line]
    assert {name.split(".")[0] for name in needed} <= {"libc", "libm", "libpthread", "ld-linux-x86-64"}


def test_op_table_agrees_with_the_specs(library: Path) -> None:
    table = op_table(library)
    assert table["ort_api"] == 18
    assert table["cpu_target"] in LEVELS
    rows = {row["name"]: row for row in table["ops"]}
    assert set(rows) == set(SPECS)
    for name, spec in SPECS.items():
        assert rows[name] == {
            "name": name,
            "domain": "onnxnorm",
            "since_version": 1,
            "provider": "cpu",
            "dtypes": list(spec.dtypes),
            "inputs": [item.name for item in spec.inputs],
            "outputs": [item.name for item in spec.outputs],
            "attributes": [item.name for item in spec.attributes],
        }


def test_scalar_level_is_always_there(library: Path) -> None:
    assert "scalar" in available_levels(library)


def test_unknown_level_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXNORM_CPU_TARGET", "sse9")
    with pytest.raises(Exception, match=r"ONNXNORM_CPU_TARGET is 'sse9'; it must be one of scalar, avx2"):
        session(library, b"")
    assert "sse9" in op_table(library)["cpu_target"]


def test_missing_level_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [name for name in LEVELS if name not in available_levels(library)]
    for name in missing:
        monkeypatch.setenv("ONNXNORM_CPU_TARGET", name)
        with pytest.raises(Exception, match=f"ONNXNORM_CPU_TARGET is {name}, which needs .*; this CPU has .*scalar"):
            session(library, b"")


class ApiBase(ctypes.Structure):
    _fields_ = (("get_api", ctypes.c_void_p), ("get_version", ctypes.c_void_p))


def test_an_older_runtime_is_refused_with_a_message(library: Path) -> None:
    """A made-up runtime that serves API version 1 only, with a table of its first function."""
    messages: list[tuple[int, str]] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, message: bytes) -> int:
        messages.append((code, message.decode()))
        return 42

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p).value)

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version: int) -> int | None:
        return ctypes.addressof(table) if version == 1 else None

    version = ctypes.create_string_buffer(b"1.12.0")

    @ctypes.CFUNCTYPE(ctypes.c_void_p)
    def get_version() -> int:
        return ctypes.addressof(version)

    base = ApiBase(ctypes.cast(get_api, ctypes.c_void_p).value, ctypes.cast(get_version, ctypes.c_void_p).value)
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    register.argtypes = (ctypes.c_void_p, ctypes.POINTER(ApiBase))
    assert register(None, ctypes.byref(base)) == 42
    assert messages == [(9, "onnxnorm needs onnxruntime 1.20 or newer; this is onnxruntime 1.12.0")]


def test_inputs_of_different_types_are_refused(library: Path) -> None:
    node = helper.make_node("GroupNorm", ["X", "scale", "bias"], ["Y"], domain="onnxnorm", **GROUP)
    inputs = [
        helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 4, 2]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT16, [4]),
        helper.make_tensor_value_info("bias", TensorProto.FLOAT, [4]),
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("onnxnorm", 1)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    with pytest.raises(Exception, match="GroupNorm"):
        session(library, content)


def test_the_output_has_the_input_s_shape(library: Path) -> None:
    current = session(library, model("GroupNorm", "float32", [["batch", 4, None, 7], [4], [4]], GROUP))
    shape = current.get_outputs()[0].shape
    assert len(shape) == 4
    assert (shape[0], shape[1], shape[3]) == ("batch", 4, 7)


@pytest.mark.parametrize("dims", [[0, 2**40, 2**40], [2**40, 4, 0], [0, 0, 0]])
def test_empty_tensors_whose_sizes_would_overflow(dims: list[int], library: Path) -> None:
    channels = dims[1]
    current = session(library, model("GroupNorm", "float32", [None, None, None], {**GROUP, "num_groups": 1}))
    x = np.empty((0,), np.float32).reshape([d if d < 2**40 else 1 for d in dims])
    length = x.shape[1] if channels else 0
    output = run(current, [x, np.ones(length, np.float32), np.ones(length, np.float32)], "float32")
    assert output.shape == x.shape


@pytest.mark.parametrize("attributes", [{"num_groups": 2**62}, {"num_groups": -(2**63)}])
def test_extreme_attributes(attributes: dict, library: Path) -> None:
    with pytest.raises(Exception, match="num_groups"):
        session(library, model("GroupNorm", "float32", [[1, 4, 2], [4], [4]], GROUP | attributes))


@pytest.mark.parametrize("axes", [[2**62], [-(2**63)], [2**63 - 1, -1]])
def test_extreme_axes(axes: list[int], library: Path) -> None:
    attributes = {"axes": axes, "epsilon": 1e-6, "activation": "none"}
    for op, shapes in (("RMSNorm", [[2, 3], [3]]), ("LayerNorm", [[2, 3], [3], [3]])):
        with pytest.raises(Exception, match="axes"):
            session(library, model(op, "float32", shapes, attributes))


def test_works_in_place_of_its_input(library: Path) -> None:
    """Two norms in a row: the runtime may let the second write over its input."""
    nodes = [
        helper.make_node("Relu", ["X"], ["a"]),
        helper.make_node("GroupNorm", ["a", "scale", "bias"], ["b"], domain="onnxnorm", **GROUP),
        helper.make_node("GroupNorm", ["b", "scale", "bias"], ["c"], domain="onnxnorm", **GROUP),
        helper.make_node("Relu", ["c"], ["Y"]),
    ]
    shapes = {"X": [3, 8, 13], "scale": [8], "bias": [8]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("onnxnorm", 1)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    rng = np.random.default_rng(3)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes.values()]
    output = run(session(library, content), values, "float32")
    x, scale, bias = [value.astype(np.float64) for value in values]
    for _ in range(2):
        (x,) = SPECS["GroupNorm"].reference([np.maximum(x, 0) if _ == 0 else x, scale, bias], GROUP)
    np.testing.assert_allclose(output, np.maximum(x, 0), atol=4e-6)


def test_many_sessions_and_threads_at_once(library: Path) -> None:
    rng = np.random.default_rng(5)
    values = [rng.standard_normal((4, 8, 4099)).astype(np.float32), np.ones(8, np.float32), np.zeros(8, np.float32)]
    sessions = [session(library, model("GroupNorm", "float32", [None] * 3, GROUP)) for _ in range(3)]
    expected = run(sessions[0], values, "float32")
    wrong: list[int] = []

    def work(current: ort.InferenceSession) -> None:
        results = (run(current, values, "float32") for _ in range(20))
        wrong.extend(1 for result in results if not np.array_equal(result, expected))

    threads = [threading.Thread(target=work, args=(current,)) for current in sessions for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", list(TYPES))
def test_levels_agree(dtype: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    values = [rng.standard_normal(shape).astype(TYPES[dtype][1]) for shape in ((2, 8, 133), (8,), (8,))]
    outputs = []
    for name in available_levels(library):
        monkeypatch.setenv("ONNXNORM_CPU_TARGET", name)
        current = session(library, model("GroupNorm", dtype, [None] * 3, GROUP))
        outputs.append(run(current, values, dtype).astype(np.float64))
    scale = np.abs(outputs[0]).max()
    unit = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    for output in outputs[1:]:
        assert np.abs(output - outputs[0]).max() <= 4 * unit * scale
