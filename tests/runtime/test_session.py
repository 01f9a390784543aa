"""Sessions, registration and the native library's failure modes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxnorm
from onnxnorm.model_file import load_model, save_model, serialized
from onnxnorm.norms import all_specs
from onnxnorm.runtime import environment, library
from onnxnorm.runtime.library import has_library, op_table
from onnxnorm.spec.sample_model import sample_model

SPEC = all_specs()["GroupNorm"]
SAMPLE = next(iter(SPEC.samples()))
INPUTS = {item.name: array.astype(np.float32) for item, array in zip(SPEC.inputs, SAMPLE.inputs, strict=True)}
TRUTH = SPEC.reference([array.astype(np.float64) for array in INPUTS.values()], SAMPLE.attributes)[0]


@pytest.fixture
def model() -> onnx.ModelProto:
    return onnx.ModelProto.FromString(serialized(sample_model(SPEC, SAMPLE)))


def _agrees(session: onnxruntime.InferenceSession) -> None:
    (y,) = session.run(None, INPUTS)
    assert np.abs(y - TRUTH).max() <= 8 * np.finfo(np.float32).eps * np.abs(TRUTH).max()


def test_the_native_library_is_there() -> None:
    assert has_library(), "the tests need the native library: is there a C++ compiler?"
    assert onnxnorm.library_path().is_file()


@pytest.mark.parametrize("library", [None, True, False])
def test_a_session_takes_every_form_of_a_model(model: onnx.ModelProto, tmp_path: Path, library: bool | None) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    for form in (str(path), path, model.SerializeToString(), model, sample_model(SPEC, SAMPLE)):
        session = onnxnorm.InferenceSession(form, providers=["CPUExecutionProvider"], library=library)
        assert isinstance(session, onnxruntime.InferenceSession)
        _agrees(session)


def test_the_kernel_really_runs(model: onnx.ModelProto, tmp_path: Path) -> None:
    """With the library one node runs, without it the inlined body does."""
    names = {}
    for use in (True, False):
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / f"profile-{use}")
        session = onnxnorm.InferenceSession(model, options, library=use)
        _agrees(session)
        names[use] = Path(session.end_profiling()).read_text()
    assert '"op_name" : "GroupNorm"' in names[True]
    assert '"op_name" : "GroupNorm"' not in names[False]
    assert '"op_name" : "ReduceMean"' in names[False]


def test_register_is_idempotent(model: onnx.ModelProto) -> None:
    options = onnxruntime.SessionOptions()
    onnxnorm.register(options)
    onnxnorm.register(options)
    for _ in range(2):
        _agrees(onnxruntime.InferenceSession(model.SerializeToString(), options))
    _agrees(onnxnorm.InferenceSession(model, options))


def test_registering_by_hand_and_by_onnxnorm_is_explained(model: onnx.ModelProto) -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(onnxnorm.library_path()))
    _agrees(onnxruntime.InferenceSession(model.SerializeToString(), options))
    with pytest.raises(onnxnorm.UsageError, match="already hold the domain 'onnxnorm'.*onnxnorm.register"):
        onnxnorm.InferenceSession(model, options)


def test_many_sessions_and_threads(model: onnx.ModelProto) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sessions = [onnxnorm.InferenceSession(model) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_agrees, sessions * 8))


def test_a_model_without_body_and_library_says_so() -> None:
    bare = sample_model(SPEC, SAMPLE, body=False)
    with pytest.raises(onnxnorm.ModelError, match="no function body.*onnxnorm optimize"):
        onnxnorm.InferenceSession(bare, library=False)


def test_a_large_model_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxnorm.model_file._PROTOBUF_LIMIT", -1)
    _agrees(onnxnorm.InferenceSession(sample_model(SPEC, SAMPLE)))


def test_weights_that_are_external_data(tmp_path: Path) -> None:
    """A model that was loaded from a file with a data file beside it; it keeps its weights where they are."""
    save_model(sample_model(SPEC, SAMPLE), tmp_path / "small.onnx")
    large = onnx.load(tmp_path / "small.onnx")
    for name in [item.name for item in large.graph.input][1:]:
        large.graph.initializer.append(onnx.numpy_helper.from_array(INPUTS[name], name))
    del large.graph.input[1:]
    onnx.save(large, tmp_path / "model.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load_model(tmp_path / "model.onnx")
    tensors = [value.const_value for value in model.graph.initializers.values()]
    for native in (True, False):
        (y,) = onnxnorm.InferenceSession(model, library=native).run(None, {"X": INPUTS["X"]})
        assert np.abs(y - TRUTH).max() <= 8 * np.finfo(np.float32).eps * np.abs(TRUTH).max()
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    assert [value.const_value for value in model.graph.initializers.values()] == tensors


def test_library_path_refuses_an_unknown_provider() -> None:
    with pytest.raises(onnxnorm.UsageError, match="provider is 'tpu'.*'cpu', 'cuda'"):
        onnxnorm.library_path("tpu")


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto) -> None:
    monkeypatch.delenv("ONNXNORM_LIBRARY", raising=False)
    monkeypatch.setattr(library, "_folders", list)
    with pytest.raises(onnxnorm.RuntimeUnavailable, match="no native library.*C\\+\\+17 compiler"):
        onnxnorm.library_path()
    with pytest.raises(onnxnorm.RuntimeUnavailable, match="no native library"):
        onnxnorm.InferenceSession(model, library=True)
    _agrees(onnxnorm.InferenceSession(model))


def test_foreign_libraries_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    monkeypatch.setenv("ONNXNORM_LIBRARY", str(text))
    with pytest.raises(onnxnorm.RuntimeUnavailable, match=r"text\.so cannot be loaded as a shared library"):
        onnxnorm.register(onnxruntime.SessionOptions())
    foreign = next(Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*"))
    with pytest.raises(onnxnorm.RuntimeUnavailable, match=r"is not onnxnorm's library.*OnnxnormOpTable"):
        op_table(foreign)
    monkeypatch.setenv("ONNXNORM_LIBRARY", str(tmp_path / "nothing.so"))
    with pytest.raises(onnxnorm.RuntimeUnavailable, match="names .*nothing.so.*no file"):
        onnxnorm.library_path()


def test_an_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    with pytest.raises(onnxnorm.RuntimeUnavailable, match=r"onnxruntime 1\.19\.2 is too old.*1\.20"):
        environment.onnxruntime_module()


def test_two_onnxruntimes_over_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "installed", lambda: {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})
    assert "installed over each other" in str(environment.overlap())


def test_newest_opset_loads_and_the_next_does_not() -> None:
    newest = environment.newest_opset()
    assert newest >= 20
    assert environment._loads(newest)
    assert newest == onnx.defs.onnx_opset_version() or not environment._loads(newest + 1)


def test_the_file_runs_where_onnxnorm_is_not_imported(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_model(sample_model(SPEC, SAMPLE), path)
    np.savez(tmp_path / "inputs.npz", **INPUTS)
    np.save(tmp_path / "truth.npy", TRUTH)
    code = f"""
import sys, numpy as np, onnx, onnxruntime
from onnx.reference import ReferenceEvaluator
onnx.checker.check_model({str(path)!r}, full_check=True)
feeds, truth = dict(np.load({str(tmp_path / "inputs.npz")!r})), np.load({str(tmp_path / "truth.npy")!r})
options = onnxruntime.SessionOptions()
options.register_custom_ops_library({str(onnxnorm.library_path())!r})
for run in (ReferenceEvaluator({str(path)!r}), onnxruntime.InferenceSession({str(path)!r}),
            onnxruntime.InferenceSession({str(path)!r}, options)):
    assert np.abs(run.run(None, feeds)[0] - truth).max() < 1e-6 * np.abs(truth).max()
assert "onnxnorm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
