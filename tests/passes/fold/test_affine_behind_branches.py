"""fold/affine-behind-branches: each operator that a map passes, and each refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/affine-behind-branches"
NORM = "y = BatchNormalization (z, gamma, beta, mean, var)"
LAYERS = {"a": "a = Conv <pads=[1,1,1,1]> (x, w)", "b": "b = Conv (x, v)"}


def build(lab: Any, nodes: str, opset: int = 18, channels: int = 4, inputs: str = "", **arrays: Any) -> Any:
    """``nodes`` make y of a and b, both 2 x 4 x 6 x 6."""
    layers = " ".join(text for name, text in LAYERS.items() if any(f"{mark}{name}{end}" in nodes
                      for mark in "( " for end in ",) "))  # fmt: skip
    layers = f"r = Sin (x) {layers}".replace("b = Conv (x", "b = Conv (r")  # another input: the sum is no single Conv
    text = f"(float[2,3,6,6] x{inputs}) => (float[A,B,C,D] y) {{ {layers} {nodes} }}"
    given = {"w": lab.array(4, 3, 3, 3), "v": lab.array(4, 3, 1, 1, seed=3), **lab.batch_norm(channels), **arrays}
    used = {name: array for name, array in given.items() if f"{name})" in text or f"{name}," in text}
    return lab.model(text, opset, **used)


def folds(lab: Any, model: Any, ops: list[str]) -> None:
    outcome = lab.optimize(model, verify=True)
    assert sorted(name for name in outcome.ops if name not in ("Sin", "Constant")) == sorted(ops), (
        outcome.result.explain()
    )
    assert RULE in {decision.rule for decision in outcome.result.decisions}
    feeds = {"x": lab.array(2, 3, 6, 6, seed=9)}
    lab.same(outcome, feeds, factor=64.0)
    lab.same_in_ort(outcome, feeds, factor=128.0)


@pytest.mark.parametrize("opset", [7, 13, 18])
@pytest.mark.parametrize(
    ("nodes", "ops", "channels"),
    [
        (f"z = Concat <axis=1> (a, b) {NORM}", ["Conv", "Conv", "Concat"], 8),
        (f"z = Concat <axis=2> (a, b) {NORM}", ["Conv", "Conv", "Concat"], 4),
        (f"z = Add (a, b) {NORM}", ["Conv", "Conv", "Add"], 4),
        (f"z = Sub (a, b) {NORM}", ["Conv", "Conv", "Sub"], 4),
        (f"c = Concat <axis=1> (a, b) z = MaxPool <kernel_shape=[2,2]> (c) {NORM}",
         ["Conv", "Conv", "Concat", "MaxPool"], 8),
        (f"c = Add (a, b) z = AveragePool <kernel_shape=[2,2]> (c) {NORM}", ["Conv", "Conv", "Add", "AveragePool"], 4),
        (f"n = BatchNormalization (r, pgamma, pbeta, pmean, pvar) c = Conv (n, v) z = Add (a, c) {NORM}",
         ["Conv", "Conv", "Add"], 4),
        (f"z = DepthToSpace <blocksize=2> (a) {NORM}", ["Conv", "DepthToSpace"], 1),
        ("c = Relu (a) y = Mul (c, two)", ["Conv", "Relu"], 4),
    ],
)  # fmt: skip
def test_folds(lab: Any, nodes: str, ops: list[str], channels: int, opset: int) -> None:
    arrays: dict[str, Any] = {"two": np.array(2, np.float32), **lab.batch_norm(3, prefix="p")}
    if "MaxPool" in nodes:
        arrays["gamma"] = lab.array(channels, low=0.5, high=2)
    folds(lab, build(lab, nodes, opset, channels, **arrays), ops)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize(lab: Any, mode: str) -> None:
    arrays = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    model = build(lab, f'z = Resize <mode="{mode}"> (a, roi, scales) {NORM}', **arrays)
    folds(lab, model, ["Conv", "Resize"])


def test_split_slice_and_gather(lab: Any) -> None:
    """Other results of a Split stay; channels that nothing reads are free; a shuffle is followed."""
    sizes = {"sizes": np.array([1, 3], np.int64), "order": np.array([2, 0, 3, 1], np.int64),
             "start": np.array([1], np.int64), "end": np.array([99], np.int64)}  # fmt: skip
    sizes["axis"] = sizes["start"]
    split = f"p, z = Split <axis=1> (a, sizes) u = Sigmoid (p) {NORM.replace('y', 'k')} y = Concat <axis=1> (u, k)"
    folds(lab, build(lab, split, channels=3, **sizes), ["Conv", "Split", "Sigmoid", "Concat"])
    folds(lab, build(lab, f"z = Slice (a, start, end, axis) {NORM}", channels=3, **sizes), ["Conv", "Slice"])
    folds(lab, build(lab, f"z = Gather <axis=1> (a, order) {NORM}", **sizes), ["Conv", "Gather"])
    shuffle = f"p, q = Split <axis=1> (a, sizes) z = Concat <axis=1> (q, p) {NORM}"
    folds(lab, build(lab, shuffle, **sizes), ["Conv", "Split", "Concat"])


@pytest.mark.parametrize(
    ("nodes", "words", "changes"),
    [
        (f"c = Sigmoid (b) z = Concat <axis=1> (a, c) {NORM}", "takes no map", {"channels": 8}),
        (f"z = Concat <axis=1> (a, x) {NORM}", "takes no map", {"channels": 7}),
        (f"z = MaxPool <kernel_shape=[2,2]> (a) {NORM}", "not positive", {}),
        (f"z = Relu (a) {NORM}", "the shift cannot pass", {"gamma": np.ones(4, np.float32)}),
        (f"z = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (a) {NORM}", "counts zeros", {}),
        (f"z = Add (a, b) {NORM.replace('y', 'k')} s = Sigmoid (a) y = Add (k, s)", "another reader", {}),
        (f"z = Add (a, b) {NORM}", "may override", {"inputs": ", float[4,3,1,1] v"}),
        (f"z = Add (a, b) {NORM}", "may override", {"inputs": ", float[4] gamma"}),
        (f"z = Add (a, b) {NORM}", "overflow", {"gamma": np.full(4, 3e38, np.float32), "var": np.full(4, 1e-5, "f")}),
        (f"z = Add (a, a) {NORM}", "asks for another map", {}),
        (f"z = Gather <axis=1> (a, twice) {NORM}", "element twice", {"twice": np.array([0, 0, 1, 2], np.int64)}),
    ],
)  # fmt: skip
def test_refused(lab: Any, refused: Any, nodes: str, words: str, changes: dict[str, Any]) -> None:
    refused(build(lab, nodes, **changes), RULE, words)


def test_a_graph_output_stays(lab: Any, refused: Any) -> None:
    model = build(lab, f"z = Add (a, b) {NORM}")
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "z"
    refused(model, RULE, "graph output")
