"""fold/conv-into-pointwise: strides, groups and padding; each refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/conv-into-pointwise"


def build(lab: Any, first: str, second: str, w: Any, v: Any, opset: int = 18, inputs: str = "", rest: str = "") -> Any:
    text = (
        f"(float[N,{w[1]},7,6] x{inputs}) => (float[A,B,C,D] y)"
        f" {{ a = Conv {first} (x, w, b) y = Conv {second} (a, v, c) {rest} }}"
    )
    arrays = {
        "w": lab.array(*w),
        "v": lab.array(*v, seed=3),
        "b": lab.array(w[0], seed=4),
        "c": lab.array(v[0], seed=5),
    }
    return lab.model(text, opset, **arrays)


@pytest.mark.parametrize("opset", [7, 18])
@pytest.mark.parametrize(
    ("first", "second", "w", "v", "channels"),
    [
        ("<pads=[1,1,1,1]>", "", (4, 3, 3, 3), (2, 4, 1, 1), 3),
        ("<pads=[2,1,2,0], dilations=[2,1], strides=[2,1]>", "<strides=[2,3]>", (4, 3, 3, 3), (4, 4, 1, 1), 3),
        ("<group=2, pads=[1,1,1,1]>", "<group=2>", (4, 2, 3, 3), (4, 2, 1, 1), 4),
        ("<group=4, pads=[1,1,1,1]>", "<group=4>", (8, 1, 3, 3), (4, 2, 1, 1), 4),
        ("<group=2>", "<group=4>", (4, 2, 3, 3), (4, 1, 1, 1), 4),
    ],
)
def test_folds(lab: Any, first: str, second: str, w: Any, v: Any, channels: int, opset: int) -> None:
    model = build(lab, first, second, w, v, opset)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ["Conv"]
    assert outcome.only.rule == RULE
    feeds = {"x": lab.array(2, channels, 7, 6, seed=9)}
    lab.same(outcome, feeds, factor=64.0)
    lab.same_in_ort(outcome, feeds, factor=128.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [("dear", "more multiplications"), ("override", "may override"), ("reader", "readers"), ("large", "overflow")],
)
def test_refused(lab: Any, refused: Any, change: str, words: str) -> None:
    shapes = ((1, 3, 3, 3), (9, 1, 1, 1)) if change == "dear" else ((4, 3, 3, 3), (2, 4, 1, 1))
    inputs = ", float[2,4,1,1] v" if change == "override" else ""
    model = build(lab, "", "", *shapes, inputs=inputs)
    if change == "reader":
        model = build(lab, "", "", *shapes, rest="s = Sigmoid (a)")
        model.graph.output.add().CopyFrom(model.graph.output[0])
        model.graph.output[1].name = "s"
    if change == "large":
        for item in model.graph.initializer:
            if item.name in "wv":
                item.raw_data = np.full(tuple(item.dims), 1e30, np.float32).tobytes()
    refused(model, RULE, words)


@pytest.mark.parametrize("second", ["<pads=[0,0,1,1]>", "<group=2>"])
def test_no_match(lab: Any, second: str) -> None:
    """Padding of the second one reads zeros; a pointwise one of groups behind a dear first one stays."""
    v = (2, 4, 1, 1) if "pads" in second else (16, 2, 1, 1)
    assert lab.optimize(build(lab, "", second, (4, 3, 3, 3), v)).ops == ["Conv", "Conv"]
