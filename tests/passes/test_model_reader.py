"""Large model files: weights stay in the file while it is read, and go from file to file when it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxnorm import model_file, model_reader, model_writer
from onnxnorm.errors import ModelError
from onnxnorm.model_file import load_model, save_model
from onnxnorm.passes.pipeline import optimize

CONV = "(float[2,3,6,5] x) => (float[N,4,H,W] y) { c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "LARGE_FILE", 0)
    monkeypatch.setattr(model_reader, "_SMALLEST", 64)
    monkeypatch.setattr(model_writer, "_SMALLEST_COPIED", 64)


def conv(lab: Any) -> onnx.ModelProto:
    model: onnx.ModelProto = lab.model(CONV, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))
    model.doc_string = "what it is"
    onnx.helper.set_model_props(model, {"author": "nobody"})
    for item in model.graph.initializer:
        item.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(item), item.name))
    return model


def same(left: onnx.ModelProto, right: onnx.ModelProto) -> None:
    assert left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


def test_weights_stay_in_the_file(lab: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv(lab), path)
    (tmp_path / "link.onnx").symlink_to(path)
    for name in ("m.onnx", "link.onnx"):
        weight = load_model(tmp_path / name).graph.initializers["w"].const_value
        assert isinstance(weight, ir.ExternalTensor)
        np.testing.assert_array_equal(weight.numpy(), lab.array(4, 3, 3, 3))
    small = optimize(conv(lab))
    save_model(small.model, tmp_path / "want.onnx")
    result = optimize(path)
    result.save(path)  # over the file that it is read from
    assert path.read_bytes() == (tmp_path / "want.onnx").read_bytes()
    same(onnx.load(path), ir.to_proto(small.model))
    onnx.checker.check_model(path)
    result.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def outcome(path: Path) -> bytes | str:
    """What loading and saving gives."""
    try:
        save_model(load_model(path), path.with_name("found.onnx"))
    except Exception as error:  # of any kind: what an error should be like is for other tests
        return type(error).__name__
    return onnx.load(path.with_name("found.onnx")).SerializeToString(deterministic=True)


def test_a_file_that_is_not_what_it_says(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is cut off, comes twice or is changed: as by protobuf, the same error or the same model."""
    good = conv(lab).SerializeToString()
    path = tmp_path / "m.onnx"
    changed = [good[:size] for size in range(1, len(good), 11)]
    changed += [good[:place] + b"\xff" + good[place + 1 :] for place in range(0, len(good), 17)]
    for content in (*changed, good + good):
        path.write_bytes(content)
        monkeypatch.setattr(model_file, "LARGE_FILE", 1 << 30)
        want = outcome(path)
        monkeypatch.setattr(model_file, "LARGE_FILE", 0)
        assert outcome(path) == want


def test_a_data_file(lab: Any, tmp_path: Path) -> None:
    """Aligned, the same bytes each time, and refused where another model reads it."""
    source, path = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(conv(lab), source, save_as_external_data=True, location="m.data", size_threshold=0)
    result = optimize(source)
    with pytest.raises(ModelError, match=r"m\.data holds weights of the model that was read"):
        result.save(path, "m.data")
    assert not path.exists()
    written = []
    for _ in range(2):
        assert save_model(result.model, path, "out.data") == tmp_path / "out.data"
        written.append((path.read_bytes(), (tmp_path / "out.data").read_bytes()))
    assert written[0] == written[1]
    proto = onnx.load(path, load_external_data=False)
    places = [
        int(entry.value) for item in proto.graph.initializer for entry in item.external_data if entry.key == "offset"
    ]
    assert places
    assert all(place % 64 == 0 for place in places)
    for item in ir.to_proto(optimize(conv(lab)).model).graph.initializer:
        found = next(other for other in onnx.load(path).graph.initializer if other.name == item.name)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), onnx.numpy_helper.to_array(item))


def test_over_the_limit_in_place(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights go where the file had them; the result reads on what it was made from."""
    source = tmp_path / "m.onnx"
    onnx.save(conv(lab), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    monkeypatch.setattr(model_file, "_PROTOBUF_LIMIT", 100)
    result = optimize(source, disable=["fold/batch-norm-into-conv"])
    before = result.model.graph.initializers["w"].const_value.numpy().copy()
    result.save(source)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.onnx", "w.bin"]
    np.testing.assert_array_equal(result.model.graph.initializers["w"].const_value.numpy(), before)
    np.testing.assert_array_equal(load_model(source).graph.initializers["w"].const_value.numpy(), before)
