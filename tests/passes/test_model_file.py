"""Model files: every bad one is one line, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxnorm import model_file
from onnxnorm.errors import ModelError
from onnxnorm.model_file import load_model, save_model
from onnxnorm.passes.pipeline import optimize

CONV = "(float[2,3,6,5] x) => (float[N,4,H,W] y) { c = Conv (x, w) y = BatchNormalization (c, gamma, beta, mean, var) }"


def conv(lab: Any) -> Any:
    return lab.model(CONV, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))


def refuses(source: Any, *words: str) -> None:
    with pytest.raises(ModelError) as error:
        load_model(source)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_files_that_are_no_models(tmp_path: Path) -> None:
    refuses(tmp_path / "missing.onnx", "missing.onnx: no such file")
    refuses(tmp_path, "is a folder; give the .onnx file in it")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    refuses(path, "m.onnx is empty; an ONNX file was expected")
    for content in (b"hello, this is text", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"\x00" * 100):
        path.write_bytes(content)
        refuses(path, "m.onnx is not an ONNX")
    path.write_bytes(b"\x08\x08")
    refuses(path, "is not an ONNX model: it has no graph, no opset import or no IR version")


def test_a_cut_file(lab: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = conv(lab).SerializeToString()
    for size in (10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        refuses(path, "m.onnx")


def test_other_objects() -> None:
    refuses(42, "int is no model; give a path")
    refuses(onnx.ModelProto(), "the model is not an ONNX model")


def test_a_cycle_names_a_node_on_it(lab: Any) -> None:
    """What hangs before and behind the cycle is not named."""
    text = (
        "(float[2] x) => (float[2] y) { z = Neg (x) [first] a = Add (z, c) [second] b = Neg (a) [third] c = Relu (b)"
        " [after] y = Abs (c) }"
    )
    with pytest.raises(ModelError, match=r"the graph 'agraph' has a cycle: node '(first|second|third)' reads"):
        load_model(lab.model(text))
    text = (
        "(float[2] x, bool q) => (float[2] y) { [outer] a = If (q) <then_branch = t () => (float[2] u) { u = Neg (b) },"
        " else_branch = e () => (float[2] v) { v = Neg (x) }> [back] b = Relu (a) y = Abs (b) }"
    )
    with pytest.raises(ModelError, match=r"has a cycle: node '(outer|back)' reads"):
        load_model(lab.model(text))


def test_nodes_in_any_order_are_sorted(lab: Any) -> None:
    proto = lab.model("(float[2] x) => (float[2] y) { a = Neg (x) b = Relu (a) y = Abs (b) }")
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [node.op_type for node in load_model(proto).graph] == ["Neg", "Relu", "Abs"]


@pytest.mark.parametrize(
    ("text", "opset", "words"),
    [
        ("y = Reluu (x)", 18, ["is 'Reluu': ONNX has no such operator"]),
        ("y = Gelu (x)", 18, ["is 'Gelu': opset 18 has no such operator; the model needs a newer opset"]),
        ("y = other.Thing (x)", 18, ["other.Thing", "no opset of 'other'"]),
        ("y = Neg (nothing)", 18, ["node 'y' reads 'nothing', which nothing makes"]),
    ],
)
def test_operators_and_values_that_do_not_exist(lab: Any, text: str, opset: int, words: list[str]) -> None:
    refuses(lab.model(f"(float[2] x) => (float[2] y) {{ {text} }}", opset), "the model: node ", *words)


def test_an_operator_in_a_branch_and_in_a_function(lab: Any) -> None:
    text = (
        "(float[2] x, bool q) => (float[2] y) { y = If (q) <then_branch = t () => (float[2] u) { u = Wrong (x) },"
        " else_branch = e () => (float[2] v) { v = Neg (x) }> }"
    )
    refuses(lab.model(text), "is 'Wrong': ONNX has no such operator")
    text = (
        '(float[2] x) => (float[2] y) { y = local.f (x) }\n<domain: "local", opset_import: ["" : OPSET]> f (a) =>'
        " (b) { b = Gelu (a) }"
    )
    refuses(
        lab.model(text.replace("OPSET", "18"), 20, domains=', "local" : 1'), "is 'Gelu': opset 18 has no such operator"
    )
    load_model(lab.model(text.replace("OPSET", "20"), 18, domains=', "local" : 1'))


def test_a_missing_opset_import(lab: Any) -> None:
    proto = lab.model("(float[2] x) => (float[2] y) { y = Neg (x) }", domains=', "other" : 1')
    del proto.opset_import[0]
    refuses(proto, "Neg, but", "no ai.onnx opset")
    del proto.opset_import[:]
    refuses(proto, "no opset import")


def test_a_sparse_initializer(lab: Any) -> None:
    """onnx_ir would drop it."""
    proto = lab.model("(float[2] x) => (float[2] y) { y = Add (x, k) }")
    dense = onnx.helper.make_tensor("k", 1, [1], [5.0])
    proto.graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(dense, onnx.helper.make_tensor("i", 7, [1], [1]), [2])
    )
    refuses(proto, "initializer 'k' is sparse")


# --- external data ------------------------------------------------------------------------------------------------


@pytest.fixture
def external(lab: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(conv(lab), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def entry(path: Path, key: str, value: str, tensor: str = "w") -> None:
    proto = onnx.load(path, load_external_data=False)
    found = next(item for item in proto.graph.initializer if item.name == tensor)
    next(item for item in found.external_data if item.key == key).value = value
    path.write_bytes(proto.SerializeToString())


def test_external_data_is_read(lab: Any, external: Path) -> None:
    result = optimize(external)
    assert ir.to_proto(result.model) == ir.to_proto(optimize(conv(lab)).model)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin"])
def test_external_data_outside_the_folder(external: Path, location: str) -> None:
    (external.parent.parent / "secret.bin").write_bytes(bytes(10000))
    entry(external, "location", location)
    refuses(external, "tensor 'w' has its data in", location, "outside")


def test_a_link_out_of_the_folder(external: Path) -> None:
    secret = external.parent.parent / "secret.bin"
    secret.write_bytes((external.parent / "weights.bin").read_bytes())
    (external.parent / "weights.bin").unlink()
    (external.parent / "weights.bin").symlink_to(secret)
    refuses(external, "outside")


def test_external_data_that_is_missing_or_short(external: Path) -> None:
    data = external.parent / "weights.bin"
    content = data.read_bytes()
    data.write_bytes(content[:100])
    refuses(external, "bytes of 'weights.bin', which has 100")
    data.unlink()
    refuses(external, "has its data in 'weights.bin', which is not there")


@pytest.mark.parametrize(("key", "value"), [("length", "12"), ("offset", "-8"), ("offset", "99999999999")])
def test_external_data_of_another_size(external: Path, key: str, value: str) -> None:
    entry(external, key, value)
    refuses(external, "m.onnx")


# --- saving -------------------------------------------------------------------------------------------------------


def test_round_trip(lab: Any, tmp_path: Path) -> None:
    result = optimize(conv(lab))
    result.save(tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["out.onnx"]
    assert onnx.load(tmp_path / "out.onnx") == ir.to_proto(result.model)


def test_round_trip_with_external_data(lab: Any, tmp_path: Path) -> None:
    result = optimize(conv(lab))
    before = ir.to_proto(result.model)
    result.save(tmp_path / "out.onnx", external_data="out.weights")
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.weights"]
    assert ir.to_proto(result.model) == before, "saving changed the model"
    again = load_model(tmp_path / "out.onnx")
    np.testing.assert_array_equal(
        again.graph.initializers["w_folded"].const_value.numpy(),
        result.model.graph.initializers["w_folded"].const_value.numpy(),
    )
    feeds = {"x": lab.array(2, 3, 6, 5)}
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, feeds)[0], lab.ort(before, feeds)[0], atol=1e-6)


def test_external_data_over_the_limit_of_protobuf(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = optimize(conv(lab))
    monkeypatch.setattr(model_file, "_PROTOBUF_LIMIT", 100)
    result.save(tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]


def test_over_its_own_external_data(lab: Any, external: Path) -> None:
    """Optimizing a file onto itself: its weights are still read while the new ones are written."""
    wanted = ir.to_proto(optimize(conv(lab)).model)
    optimize(external).save(external, external_data="weights.bin")
    loaded = onnx.load(external)
    for item in wanted.graph.initializer:
        found = next(other for other in loaded.graph.initializer if other.name == item.name)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), onnx.numpy_helper.to_array(item))


@pytest.mark.parametrize("external_data", [None, "out.bin"])
def test_external_data_is_taken_along_to_another_folder(lab: Any, tmp_path: Path, external_data: str | None) -> None:
    """Of initializers, and of an attribute, which onnx_ir's own loading leaves out."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    proto = lab.model("(float[2,3] x) => (float[2,3] y) { a = Mul (x, w) y = Add (a, c) }", w=lab.array(3))
    constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(lab.array(3, seed=1)))
    proto.graph.node.insert(0, constant)
    options = {"location": "w.bin", "size_threshold": 0, "convert_attribute": True}
    onnx.save(
        onnx.ModelProto.FromString(proto.SerializeToString()),
        tmp_path / "from/m.onnx",
        save_as_external_data=True,
        **options,
    )
    model = load_model(tmp_path / "from/m.onnx")
    before = ir.to_proto(model)
    save_model(model, tmp_path / "to/m.onnx", external_data)
    assert ir.to_proto(model) == before, "saving changed the model"
    assert set(os.listdir(tmp_path / "to")) == {"m.onnx", external_data or "m.onnx"}
    saved = onnx.load(tmp_path / "to/m.onnx")
    feeds = {"x": lab.array(2, 3, seed=2)}
    np.testing.assert_array_equal(lab.ort(saved, feeds)[0], feeds["x"] * lab.array(3) + lab.array(3, seed=1))


@pytest.mark.parametrize("external_data", [None, "out.bin"])
def test_a_failure_leaves_nothing_behind(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external_data: str | None
) -> None:
    result = optimize(conv(lab))
    (tmp_path / "out.onnx").write_bytes(b"the old one")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model_file.ir, "to_proto", fail)
    monkeypatch.setattr(model_file.ir, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        result.save(tmp_path / "out.onnx", external_data)
    assert os.listdir(tmp_path) == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"the old one"


def test_places_that_are_wrong(lab: Any, tmp_path: Path) -> None:
    model = optimize(conv(lab)).model
    with pytest.raises(ModelError, match=r"is no folder; make it before saving out.onnx"):
        save_model(model, tmp_path / "missing" / "out.onnx")
    with pytest.raises(ModelError, match="it must be a file name in the folder of"):
        save_model(model, tmp_path / "out.onnx", external_data="../out.bin")
    assert not os.listdir(tmp_path)
