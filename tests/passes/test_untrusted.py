"""Files that lie: each gives one clear error, or a right answer; never a traceback or a huge allocation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from onnxnorm.errors import ModelError
from onnxnorm.passes.pipeline import optimize

NORM = "BatchNormalization (c, gamma, beta, mean, var)"
CONV = f"(float[2,3,6,5] x) => (float[N,4,H,W] y) {{ c = Conv (x, w) y = {NORM} }}"


@pytest.fixture
def conv(lab: Any) -> ModelProto:
    return lab.model(CONV, w=lab.array(4, 3, 3, 3), **lab.batch_norm(4))


def tensor(model: ModelProto, name: str = "w") -> TensorProto:
    return next(item for item in model.graph.initializer if item.name == name)


def _set(field: str, value: Any) -> Callable[[ModelProto], None]:
    return lambda model: setattr(tensor(model), field, value)


def _dims(*sizes: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        tensor(model).dims[:] = sizes

    return change


def _external(**entries: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        tensor(model).data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor(model).external_data.add(key=key, value=value)

    return change


def _segment(model: ModelProto) -> None:
    tensor(model).segment.begin = 1


def _floats(model: ModelProto) -> None:
    tensor(model).ClearField("raw_data")
    tensor(model).float_data.extend([1.0] * 107)


def _four_bits(model: ModelProto) -> None:
    tensor(model).data_type = TensorProto.INT4
    tensor(model).ClearField("raw_data")
    tensor(model).int32_data.extend([1] * 108)


def _deep(model: ModelProto) -> None:
    """The tensor stands in a branch of a branch of a branch."""
    for _ in range(3):
        inner = copy.deepcopy(model.graph)
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    node = model.graph.node[0]
    for _ in range(2):
        node = node.attribute[0].g.node[0]
    node.attribute[0].g.initializer[0].dims[0] = 5


WRONG: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "no type": (_set("data_type", 0), "tensor 'w' has no element type"),
    "unknown type": (_set("data_type", 77), "has the element type 77, which ONNX has not"),
    "short": (_set("raw_data", b"1234"), "needs 432 bytes by its type float and shape [4, 3, 3, 3], but has 4"),
    "another type": (_set("data_type", TensorProto.DOUBLE), "needs 864 bytes"),
    "negative": (_dims(-4, -3, 3, 3), "has the shape [-4, -3, 3, 3]"),
    "huge": (_dims(2**31, 2**31, 2**31), "bytes by its type float"),
    "many axes": (_dims(*[1] * 65), "of at most 64 axes"),
    "text": (_set("data_type", TensorProto.STRING), "needs 108 numbers of string_data"),
    "segments": (_segment, "stored in segments"),
    "numbers": (_floats, "needs 108 numbers of float_data"),
    "four bits": (_four_bits, "needs 54 numbers of int32_data"),
    "no place": (_external(offset="0"), "does not say in which"),
    "offset": (_external(location="f", offset="1e3"), "has the offset '1e3' in its file; it must be a number"),
    "length": (_external(location="f", length=""), "has the length ''"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_are_not_what_they_say(conv: ModelProto, case: str) -> None:
    change, words = WRONG[case]
    change(conv)
    with pytest.raises(ModelError) as error:
        optimize(conv)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tensor_deep_inside(conv: ModelProto) -> None:
    _deep(conv)
    with pytest.raises(ModelError, match=r"tensor 'w' needs 540 bytes"):
        optimize(conv)


def test_packed_and_listed_numbers_are_read(lab: Any, conv: ModelProto) -> None:
    """What is right stays so: numbers in a list, and an empty tensor."""
    values = onnx.numpy_helper.to_array(tensor(conv))
    tensor(conv).ClearField("raw_data")
    tensor(conv).float_data.extend(values.reshape(-1).tolist())
    conv.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((0, 3), np.float32), "none"))
    assert lab.optimize(conv).ops == ["Conv"]


@pytest.mark.parametrize("other", ["f", "g"])
def test_functions_that_call_themselves(lab: Any, other: str) -> None:
    text = "(float[2] x) => (float[2] y) { y = own.f (x) }"
    for name, called in (("f", other), ("g", "f")):
        text += f'\n<domain: "own", opset_import: ["" : 18, "own" : 1]> {name} (a) => (b) {{ b = own.{called} (a) }}'
    with pytest.raises(ModelError, match="function 'f' of 'own' calls itself"):
        optimize(lab.model(text, domains=', "own" : 1'))


def test_an_output_that_nothing_makes(conv: ModelProto) -> None:
    conv.graph.output[0].name = "z"
    with pytest.raises(ModelError, match="nothing makes 'z', an output of the graph 'agraph'"):
        optimize(conv)


@pytest.mark.parametrize("version", [-1, 2**31, 2**63 - 1])
def test_opsets_that_are_no_version(conv: ModelProto, version: int) -> None:
    conv.opset_import[0].version = version
    with pytest.raises(ModelError, match=f"imports opset {version} of '', which is no version"):
        optimize(conv)


@pytest.mark.parametrize("name", ["Conv", "gamma"])
def test_names_that_are_no_text(conv: ModelProto, name: str) -> None:
    data = conv.SerializeToString()
    assert name.encode() in data
    broken = ModelProto.FromString(data.replace(name.encode(), b"\xff" * len(name)))
    with pytest.raises(ModelError, match="is no text in UTF-8"):
        optimize(broken)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var", "w"])
def test_parameters_that_are_not_finite(lab: Any, conv: ModelProto, name: str, bad: float) -> None:
    """They are left to the model, which then has what its runtime makes of them."""
    array = onnx.numpy_helper.to_array(tensor(conv, name)).copy()
    array.reshape(-1)[1] = bad
    tensor(conv, name).CopyFrom(onnx.numpy_helper.from_array(array, name))
    assert lab.optimize(conv).ops == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize(
    "text",
    [
        "(float[2,1000000000000] x) => (float[2,1000000000000] y) { a = Mul (x, k) y = Add (a, k) }",
        "(float[2,4,5] x) => (float[A,B,C] y) { c = MatMul (x, m) d = Transpose <perm=[1,0]> (c) y = Mul (d, k) }",
        "(float[2,4,5] x) => (float[A,B,C] y) { c = MatMul (x, m) d = Squeeze (c, far) y = Mul (d, k) }",
        "(float[2,4] x) => (float[A,B] y) { h = ConstantOfShape (huge) c = Add (h, k) y = MatMul (x, c) }",
        "(float[2,4] x) => (float[A,B] y) { h = Expand (k, huge) c = Neg (h) y = MatMul (x, c) }",
        "(float[2,4] x) => (float[A,B] y) { h = Tile (k, far) c = Neg (h) y = MatMul (x, c) }",
        "(float[2,4] x) => (float[A,B] y) { h = Range (zero, much, one)"
        " c = Cast <to=1> (h) d = Neg (c) y = MatMul (x, d) }",
    ],
)
def test_sizes_that_nothing_holds(lab: Any, text: str) -> None:
    """No memory is asked for by what a file says, and axes that do not exist are nothing to follow."""
    arrays = {"k": lab.array(1), "m": lab.array(5, 5), "far": np.array([9]), "huge": np.array([2**40, 2**20])}
    numbers = {"zero": np.int64(0), "one": np.int64(1), "much": np.int64(2**40)}
    optimize(lab.model(text, **arrays, **numbers))
