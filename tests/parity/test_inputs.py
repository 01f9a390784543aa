"""Inputs: the user's, and those made from the file's signature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from onnxnorm.errors import ModelError, UsageError
from onnxnorm.parity.generate import Generator
from onnxnorm.parity.inputs import user_sample
from onnxnorm.parity.source import Source, read_source


def source(*inputs: tuple[str, int, Sequence[Any]], examples: Any = None, initializer: str = "") -> Source:
    """A file with these inputs (name, type, shape) that does nothing with them."""
    values = [helper.make_tensor_value_info(*item) for item in inputs]
    nodes = [helper.make_node("Identity", [item[0]], [f"{item[0]}_out"]) for item in inputs]
    outputs = [helper.make_tensor_value_info(f"{item[0]}_out", *item[1:]) for item in inputs]
    held = [onnx.numpy_helper.from_array(np.zeros(2, np.float32), initializer)] if initializer else []
    graph = helper.make_graph(nodes, "g", values, outputs, initializer=held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if examples is not None:
        text = examples if isinstance(examples, str) else json.dumps(examples)
        helper.set_model_props(model, {"onnxnorm.inputs": text})
    return read_source(model)


class Two(nn.Module):
    def forward(self, x: Any, mask: Any = None, *, scale: Any = None) -> Any:
        return x


class Nested(nn.Module):
    def forward(self, pair: Any, extra: Any) -> Any:
        return pair[0] + extra["a"]


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
X = torch.arange(6.0).reshape(2, 3)
M = torch.arange(2)
TWO = (("x", FLOAT, ["b", 3]), ("mask", INT64, ["b"]))


@pytest.mark.parametrize(
    "inputs",
    [
        (X, M),
        [X, M],
        (X.numpy(), M.numpy()),
        {"mask": M, "x": X},
        {"x": X.numpy(), "mask": M},
    ],
)
def test_forms_that_a_user_gives(inputs: Any) -> None:
    sample = user_sample(Two(), source(*TWO), inputs)
    np.testing.assert_array_equal(sample.feeds["x"], X.numpy())
    np.testing.assert_array_equal(sample.feeds["mask"], M.numpy())
    assert list(sample.feeds) == ["x", "mask"]
    bound = {**dict(zip(("x", "mask"), sample.args, strict=False)), **sample.kwargs}
    assert torch.equal(bound["x"], X)


def test_a_single_tensor_and_names_that_do_not_fit() -> None:
    sample = user_sample(Two(), source(("input_1", FLOAT, [2, 3])), X)
    assert list(sample.feeds) == ["input_1"]
    swapped = source(("mask", INT64, ["b"]), ("x", FLOAT, ["b", 3]))
    assert user_sample(Two(), swapped, (X, M)).feeds["mask"].dtype == np.int64
    by_file_names = user_sample(Two(), source(("a", FLOAT, [2, 3]), ("b", INT64, [2])), {"b": M, "a": X})
    assert torch.equal(by_file_names.args[0], X)


def test_nested_arguments_and_numbers() -> None:
    wanted = source(("pair_1", FLOAT, [2]), ("pair_0", FLOAT, [2, 3]), ("extra_a", FLOAT, [1]))
    sample = user_sample(Nested(), wanted, ((X, torch.ones(2)), {"a": np.zeros(1, np.float32)}))
    assert {name: array.shape for name, array in sample.feeds.items()} == {
        "pair_1": (2,),
        "pair_0": (2, 3),
        "extra_a": (1,),
    }
    scaled = user_sample(Two(), source(("x", FLOAT, [2, 3]), ("scale", INT64, [])), {"x": X, "scale": 3})
    assert scaled.feeds["scale"] == 3
    assert scaled.kwargs["scale"] == 3


def test_unused_arguments_and_overridable_weights_need_no_feed() -> None:
    assert list(user_sample(Two(), source(TWO[0]), (X, M)).feeds) == ["x"]
    held = source(TWO[0], ("w", FLOAT, [2]), initializer="w")
    assert list(user_sample(Two(), held, X).feeds) == ["x"]


def test_the_samples_tensors_are_copies() -> None:
    given = X.clone()
    sample = user_sample(Two(), source(TWO[0]), given)
    sample.args[0].zero_()
    assert torch.equal(given, X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X.double(), M), r"input 'x' is float64; the model needs float32"),
        ((X.bfloat16(), M), r"input 'x' is bfloat16; the model needs float32"),
        ((torch.ones(2, 4), M), r"input 'x' has shape \[2, 4\]; the model needs \[b, 3\]: axis 1 is 4 and must be 3"),
        ((torch.ones(3), M), r"needs \[b, 3\], 2 axes and not 1"),
        ((X, torch.arange(5)), r"input 'mask' .* axis 0 \('b'\) is 5, but 2 in input 'x'"),
        ((X,), r"1 tensors were given \(x\), but the model has 2 inputs: x float32\[b, 3\], mask .*nothing fits mask"),
        ({"x": X, "maks": M}, r"inputs names 'maks', which is no argument of Two.forward \(x, mask, scale\)"),
        ((X, M, M), r"do not fit Two.forward \(x, mask, scale\): too many positional"),
        ("x.npy", r"inputs is a str; give a tensor"),
    ],
)
def test_mistakes_name_the_input_and_what_it_must_be(inputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        user_sample(Two(), source(*TWO), inputs)


def test_generated_inputs_are_the_same_for_the_same_seed() -> None:
    made = [Generator(Two(), source(*TWO), seed).sample(index, {"b": 4}) for seed in (0, 0, 1) for index in (0, 1)]
    again = [sample.feeds["x"].tobytes() for sample in made]
    assert again[:2] == again[2:4]
    assert len(set(again)) == 4
    assert made[0].feeds["x"].shape == (4, 3)
    assert made[0].feeds["mask"].shape == (4,)
    assert set(np.unique(np.concatenate([sample.feeds["mask"] for sample in made]))) == {0, 1}


def test_examples_in_the_metadata_give_shapes_and_ranges() -> None:
    examples = [
        {"name": "x", "dtype": "float32", "shape": [5, 3], "min": None, "max": None},
        {"name": "mask", "dtype": "int64", "shape": [5], "min": 7, "max": 9},
    ]
    generator = Generator(Two(), source(*TWO, examples=examples), 0)
    assert list(generator.first_sizes()) == [{"b": 5}]
    assert generator.notes() == []
    values = np.concatenate([generator.sample(index, {"b": 5}).feeds["mask"] for index in range(9)])
    assert set(values) == {7, 8, 9}
    guessed = Generator(Two(), source(*TWO), 0).notes()
    assert len(guessed) == 1
    assert "'mask' was drawn from 0..1" in guessed[0]
    with pytest.raises(ModelError, match="metadata 'onnxnorm.inputs' is damaged"):
        source(*TWO, examples="[{]")


def test_sizes_of_a_second_shape_differ_where_they_may() -> None:
    image = source(("x", FLOAT, ["n", 3, "h", "h"]), ("y", FLOAT, ["n", None]))
    generator = Generator(Two(), image, 0)
    first = next(generator.first_sizes())
    assert first == {"n": 2, "h": 8, "y.1": 8}
    second = list(generator.other_sizes({"n": 2, "h": 32, "y.1": 6}))
    assert second[0] == {"n": 3, "h": 16, "y.1": 3}
    assert {"n": 3, "h": 32, "y.1": 6} in second
    assert generator.sample(0, second[0]).feeds["x"].shape == (3, 3, 16, 16)
    assert list(Generator(Two(), source(("x", FLOAT, [2, 3])), 0).other_sizes({})) == []


@pytest.mark.parametrize(("number", "dtype"), [(TensorProto.BFLOAT16, ml_dtypes.bfloat16), (TensorProto.BOOL, bool)])
def test_generated_types(number: int, dtype: Any) -> None:
    sample = Generator(Two(), source(("x", number, [4, 4])), 0).sample(0, {})
    assert sample.feeds["x"].dtype == dtype
    assert len(np.unique(sample.feeds["x"])) > 1


def test_forward_that_needs_more_than_the_file_has() -> None:
    with pytest.raises(UsageError, match=r"cannot be made from the signature of the model: .*'mask'.*; give inputs="):
        Generator(Needs(), source(("x", FLOAT, [2])), 0).sample(0, {})


class Needs(nn.Module):
    def forward(self, x: Any, mask: Any) -> Any:
        return x
