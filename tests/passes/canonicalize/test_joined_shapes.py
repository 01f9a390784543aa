"""Shapes that an exporter joined from single sizes are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxnorm.passes.canonicalize.clean import clean

SIZES = "s = Shape (x) n = Gather (s, i0) h = Gather (s, i2) n1 = Unsqueeze (n, i0v) h1 = Unsqueeze (h, i0v)"


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ("t = Concat <axis=0> (n1, three, minus) k = Reshape (x, t)", ["N", 3, None]),
        ("t = Concat <axis=0> (n1, three, two, h1) k = Reshape (x, t)", ["N", 3, 2, "H"]),
        ("t = Concat <axis=0> (n1, minus, h1) k = Reshape (x, t)", ["N", 6, "H"]),
        ("k = Reshape (x, zeros)", ["N", 3, None]),
        (
            "t = Concat <axis=0> (n1, six, h1) e = Equal (t, minus) o = Where (e, ones, t)"
            " m = ReduceMean <keepdims=1> (x) k = Expand (m, o)",
            ["N", 6, "H"],
        ),
        ("t = Concat <axis=0> (h1, minus) k = Reshape (x, t)", ["H", None]),
    ],
)
def test_tells(lab: Any, nodes: str, wanted: list[Any], opset: int) -> None:
    known = {"i0": np.array(0), "i2": np.array(2), "i0v": np.array([0]), "three": np.array([3]), "two": np.array([2])}
    known |= {
        "minus": np.array([-1]),
        "six": np.array([6]),
        "ones": np.ones(3, np.int64),
        "zeros": np.array([0, 3, -1]),
    }
    text = f"(float[N,6,H] x) => (float[A] y) {{ {SIZES} {nodes} d = Neg (k) f = Flatten (d) y = ReduceSum (f) }}"
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    model = ir.from_proto(lab.model(text, opset, 8, **{name: known[name] for name in known if name in words}))
    clean(model)
    for name in "kd":
        value = next(value for node in model.graph for value in node.outputs if value.name == name)
        assert value.shape is not None
        sizes = [size if isinstance(size, int) else size.value for size in value.shape]
        assert len(sizes) == len(wanted)
        for size, want in zip(sizes, wanted, strict=True):
            assert size == want or (want is None and size not in (3, 6, "N", "H"))
    before = onnx.ModelProto.SerializeToString(ir.to_proto(model))
    clean(model)
    assert onnx.ModelProto.SerializeToString(ir.to_proto(model)) == before
