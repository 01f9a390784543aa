"""Models that need an op or an element type that the loaded library lacks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxnorm
from onnxnorm.model_file import serialized
from onnxnorm.norms import all_specs
from onnxnorm.runtime import library as native
from onnxnorm.runtime.missing import explain
from onnxnorm.spec.sample_model import sample_model
from onnxnorm.version import WRITER_KEY, installed_version

HERE = installed_version()
GROUP, LAYER = (all_specs()[name] for name in ("GroupNorm", "LayerNorm"))
OLD_TABLE = {
    "version": "0.0.9",
    "ops": [{"name": "GroupNorm", "dtypes": ["float32", "float16", "float64"]}],
}


def sample(spec, dtype: str = "float32", *, body: bool = False) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(serialized(sample_model(spec, next(iter(spec.samples())), dtype, body=body)))


def as_unknown_op(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The op under a name that no version has yet."""
    for item in (*proto.graph.node, *proto.functions):
        if item.domain == "onnxnorm" and isinstance(item, onnx.NodeProto):
            item.op_type = "FutureNorm"
        elif item.domain == "onnxnorm":
            item.name = "FutureNorm"
    return proto


def message(model, **options) -> str:
    with pytest.raises(onnxnorm.ModelError) as error:
        onnxnorm.InferenceSession(model, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_an_op_that_no_library_and_no_body_brings() -> None:
    text = message(as_unknown_op(sample(GROUP)))
    assert "node 'norm' is onnxnorm.FutureNorm in float32" in text
    assert f"{onnxnorm.library_path()} (version {native.op_table(onnxnorm.library_path())['version']})" in text
    assert f"onnxnorm {HERE} does not know this op: it needs a newer version" in text
    assert "the file does not say which" in text


def test_the_file_says_which_version_wrote_it(tmp_path: Path) -> None:
    proto = as_unknown_op(sample(GROUP))
    onnx.helper.set_model_props(proto, {WRITER_KEY: "7.1.0"})
    path = tmp_path / "future.onnx"
    onnx.save(proto, path)
    for form in (path, str(path)):
        text = message(form)
        assert text.startswith(f"{path}: node 'norm' is onnxnorm.FutureNorm")
        assert "the file was written by onnxnorm 7.1.0" in text
    assert "onnxnorm 7.1.0" in message(proto.SerializeToString())
    assert "onnxnorm 7.1.0" in message(ir.from_proto(proto))


def test_optimize_and_export_note_their_version() -> None:
    result = onnxnorm.optimize(sample(GROUP))
    assert result.model.metadata_props[WRITER_KEY] == HERE
    assert WRITER_KEY not in onnxnorm.optimize(result.model, target="standard").model.metadata_props


def test_an_unknown_op_with_a_body_runs_through_it() -> None:
    """Also beside ops that the library has."""
    spec_sample = next(iter(GROUP.samples()))
    feeds = {item.name: v.astype(np.float32) for item, v in zip(GROUP.inputs, spec_sample.inputs, strict=True)}
    proto = as_unknown_op(sample(GROUP, body=True))
    known = sample(GROUP, body=True)
    proto.functions.append(known.functions[0])
    proto.graph.node[0].output[0] = "between"
    second = proto.graph.node.add()
    second.CopyFrom(known.graph.node[0])
    second.name, second.input[0] = "second", "between"
    inputs = [value.astype(np.float64) for value in feeds.values()]
    (once,) = GROUP.reference(inputs, spec_sample.attributes)
    (twice,) = GROUP.reference([once, *inputs[1:]], spec_sample.attributes)
    for library in (True, False, None):
        (y,) = onnxnorm.InferenceSession(proto, library=library).run(None, feeds)
        assert np.abs(y - twice).max() <= 4e-6 * np.abs(twice).max()


@pytest.mark.parametrize("body", [False, True])
def test_a_type_that_the_library_lacks_hides_the_body(body: bool) -> None:
    """ONNX Runtime knows an op by its name: its function is not looked at any more."""
    proto = sample(GROUP, body=body)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT8E4M3FN
    text = message(proto, library=True)
    assert "node 'norm' is onnxnorm.GroupNorm in float8e4m3fn" in text
    assert str(onnxnorm.library_path()) in text
    assert f"no version up to {HERE} has it" in text
    assert ("library=False runs the model through its function bodies" in text) is body


def test_an_error_of_another_kind_is_not_explained_away() -> None:
    proto = sample(GROUP)
    proto.graph.node[0].attribute[0].i = -1
    with pytest.raises(Exception, match=r"num_groups is -1") as error:
        onnxnorm.InferenceSession(proto)
    assert not isinstance(error.value, onnxnorm.ModelError)
    text = "Type 'tensor(int32)' of input parameter (X) of operator (GroupNorm) in node (other) is invalid."
    assert explain(text, proto, onnxnorm.library_path()) is None  # no onnxnorm node of that name


def test_an_op_that_a_newer_library_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxnorm.runtime.missing.op_table", lambda path: OLD_TABLE)
    text = str(
        explain("onnxnorm:LayerNorm(-1) is not a registered function/op", sample(LAYER), Path("/lib/libonnxnorm.so"))
    )
    assert "is onnxnorm.LayerNorm in float32" in text
    assert "/lib/libonnxnorm.so (version 0.0.9)" in text
    assert f"the library of onnxnorm {LAYER.since} and newer has it" in text
    assert "'onnxnorm optimize' attaches the body" in text


def test_a_type_that_a_newer_library_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxnorm.runtime.missing.op_table", lambda path: OLD_TABLE)
    error = "Type 'tensor(bfloat16)' of input parameter (X) of operator (GroupNorm) in node (norm) is invalid."
    text = str(explain(error, sample(GROUP, "bfloat16"), Path("/lib/libonnxnorm.so")))
    assert "onnxnorm.GroupNorm in bfloat16" in text
    assert "has it in float32, float16, float64 only" in text
    assert f"the library of onnxnorm {GROUP.since} and newer has it" in text


def test_since_is_a_version_that_exists() -> None:
    def key(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:3])

    for spec in all_specs().values():
        for version in (spec.since, *spec.dtypes_since.values()):
            assert re.fullmatch(r"\d+\.\d+\.\d+", version)
            assert key(version) <= key(HERE), f"{spec.name} is said to be there since {version}"
        assert set(spec.dtypes_since) <= set(spec.dtypes)
