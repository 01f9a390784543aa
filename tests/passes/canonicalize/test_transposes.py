"""Transpositions between channels first and last: which go, and that nothing else changes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxnorm.passes.canonicalize.shapes import infer_shapes
from onnxnorm.passes.canonicalize.transposes import cancel_transposes
from onnxnorm.spec.schema import register_schemas

LAST = 'onnxnorm.GroupNorm <num_groups=3, epsilon=0.00001, activation="none", channels_last=1>'
SKIP = LAST.replace("GroupNorm", "SkipGroupNorm")
TO_LAST, TO_FIRST = "Transpose <perm=[0,2,3,1]>", "Transpose <perm=[0,3,1,2]>"
HEAD = "(float[2,6,4,3] x, float[2,6,4,3] r, float[2,4,3,6] z) => (float[N,A,B,C] y"


def build(lab: Any, nodes: str, outputs: str = "", **arrays: Any) -> Any:
    """A model in which x and r have their channels first, z last."""
    arrays = {"scale": lab.array(6), "bias": lab.array(6, seed=1)} | arrays
    return lab.model(f"{HEAD}{outputs}) {{ {nodes} }}", 20, 10, ', "onnxnorm" : 1', **arrays)


def turn(lab: Any, model: Any) -> tuple[list[str], Any]:
    """The operators afterwards, and the model; asserts that it computes the same."""
    register_schemas()
    turned = ir.from_proto(model)
    infer_shapes(turned)
    cancel_transposes(turned)
    after = ir.to_proto(turned)
    feeds = {"x": lab.array(2, 6, 4, 3, seed=3), "r": lab.array(2, 6, 4, 3, seed=4), "z": lab.array(2, 4, 3, 6)}
    for old, new in zip(lab.run(model, feeds), lab.run(after, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-12)
    assert [item.name for item in model.graph.output] == [item.name for item in after.graph.output]
    cancel_transposes(turned)
    assert ir.to_proto(turned).SerializeToString() == after.SerializeToString(), "a second run changes it"
    return [node.op_type for node in after.graph.node], after


def test_a_norm_between_two(lab: Any) -> None:
    ops, after = turn(lab, build(lab, f"a = {TO_LAST} (x) b = {LAST} (a, scale, bias) y = {TO_FIRST} (b)"))
    assert ops == ["GroupNorm"]
    assert [item.i for item in after.graph.node[0].attribute if item.name == "channels_last"] == [0]


def test_a_chain_of_norms_and_elementwise_operators(lab: Any) -> None:
    nodes = (
        f"a = {TO_LAST} (x) b = {LAST} (a, scale, bias) c = Relu (b) d = Mul (c, two) e = {LAST} (d, bias, scale) "
        f"f = Add (e, vector) y = {TO_FIRST} (f)"
    )
    ops, _ = turn(lab, build(lab, nodes, two=np.float32(2.0), vector=lab.array(6, seed=7)))
    assert ops == ["GroupNorm", "Relu", "Mul", "GroupNorm", "Add"]


def test_a_residual_block(lab: Any) -> None:
    nodes = (
        f"a = {TO_LAST} (x) b = {TO_LAST} (r) n, s = {SKIP} (a, b, scale, bias) t = {TO_FIRST} (n) u = Exp (t) "
        f"v = {TO_LAST} (u) w = {SKIP} (v, s, scale, bias) y = {TO_FIRST} (w)"
    )
    ops, _ = turn(lab, build(lab, nodes))
    assert ops == ["SkipGroupNorm", "Exp", "SkipGroupNorm"]


def test_one_vector_for_each_item(lab: Any) -> None:
    """Its Transpose costs nothing worth counting."""
    nodes = (
        f"t = ReduceMax <keepdims=1> (z, axes) a = {TO_LAST} (x) b = Add (a, t) c = {LAST} (b, scale, bias) "
        f"y = {TO_FIRST} (c)"
    )
    ops, _ = turn(lab, build(lab, nodes, axes=np.array([1, 2])))
    assert ops == ["ReduceMax", "Transpose", "Add", "GroupNorm"]


def test_other_readers_keep_theirs(lab: Any) -> None:
    """The norm turns, since behind it a Transpose goes; the one in front stays for its other reader."""
    nodes = f"a = {TO_LAST} (x) b = {LAST} (a, scale, bias) y = {TO_FIRST} (b) q = Softmax (a)"
    ops, _ = turn(lab, build(lab, nodes, ", float[N,A,B,C] q"))
    assert sorted(ops) == ["GroupNorm", "Softmax", "Transpose"]


def test_several_readers_behind_it(lab: Any) -> None:
    nodes = f"a = {TO_LAST} (x) b = {LAST} (a, scale, bias) y = {TO_FIRST} (b) q = {TO_FIRST} (b) p = Softmax (b)"
    ops, _ = turn(lab, build(lab, nodes, ", float[N,A,B,C] q, float[N,A,B,C] p"))
    assert ops.count("Transpose") <= 2


def test_stays_where_that_would_make_more(lab: Any) -> None:
    nodes = f"a = {LAST} (z, scale, bias) y = Softmax (a)"
    assert turn(lab, build(lab, nodes))[0] == ["GroupNorm", "Softmax"]
    nodes = f"a = {TO_LAST} (x) s = {SKIP} (z, z, scale, bias) y = Add (a, s)"
    assert "SkipGroupNorm" in turn(lab, build(lab, nodes))[0]


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        ("[0,2,3,1]", "[0,3,1,2]", 0),
        ("[0,2,3,1]", "[0,2,3,1]", 1),
        ("[3,2,1,0]", "[3,2,1,0]", 0),
        ("", "[3,2,1,0]", 0),
        ("", "", 0),
    ],
)
def test_two_in_a_row(lab: Any, first: str, second: str, left: int) -> None:
    write = lambda order: f"Transpose <perm={order}>" if order else "Transpose"  # noqa: E731
    nodes = f"e = Exp (x) a = {write(first)} (e) b = {write(second)} (a) y = Tanh (b)"
    assert turn(lab, build(lab, nodes))[0] == ["Exp", *["Transpose"] * left, "Tanh"]


def test_two_in_a_row_at_the_ends(lab: Any) -> None:
    """A graph output takes over; what would leave nothing between an input and an output stays."""
    nodes = f"e = Exp (x) a = {TO_LAST} (e) y = {TO_FIRST} (a)"
    assert turn(lab, build(lab, nodes))[0] == ["Exp"]
    nodes = f"a = {TO_LAST} (x) y = {TO_FIRST} (a)"
    assert turn(lab, build(lab, nodes))[0] == ["Transpose", "Transpose"]
    nodes = f"e = Exp (x) a = {TO_LAST} (e) y = {TO_FIRST} (a)"
    assert turn(lab, build(lab, nodes, ", float[2,6,4,3] e"))[0] == ["Exp", "Transpose", "Transpose"]


def test_a_value_that_is_an_output(lab: Any) -> None:
    nodes = f"a = {TO_LAST} (x) b = {LAST} (a, scale, bias) y = {TO_FIRST} (b)"
    ops, _ = turn(lab, build(lab, nodes, ", float[2,4,3,6] b"))
    assert ops.count("GroupNorm") == 1


def test_in_a_subgraph(lab: Any) -> None:
    body = f"then () => (float[2,6,4,3] t) {{ a = {TO_LAST} (x) b = {LAST} (a, scale, bias) t = {TO_FIRST} (b) }}"
    other = "otherwise () => (float[2,6,4,3] o) { o = Identity (x) }"
    ops, after = turn(lab, build(lab, f"y = If (c) <then_branch = {body}, else_branch = {other}>", c=np.array(True)))
    branch = next(item.g for item in after.graph.node[0].attribute if item.name == "then_branch")
    assert ops == ["If"]
    assert [node.op_type for node in branch.node] == ["GroupNorm"]


@pytest.mark.parametrize("rank", [3, 5])
def test_other_ranks(lab: Any, rank: int) -> None:
    sizes = ",".join("2534"[: rank - 2])
    to_last = [0, *range(2, rank), 1]
    to_first = [0, rank - 1, *range(1, rank - 1)]
    text = (
        f"(float[2,6,{sizes}] x) => (float[2,6,{sizes}] y) {{ a = Transpose <perm={to_last}> (x) "
        f"b = {LAST} (a, scale, bias) y = Transpose <perm={to_first}> (b) }}"
    )
    model = lab.model(text, 20, 10, ', "onnxnorm" : 1', scale=lab.array(6), bias=lab.array(6, seed=1))
    outcome = lab.optimize(model)
    assert outcome.ops == ["GroupNorm"]
    lab.same_in_ort(outcome, {"x": lab.array(2, 6, *map(int, sizes.split(",")))})


class Walk:
    """A random graph over tensors with channels first ("f") or last ("l"), one step after the other."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.nodes: list[str] = []
        self.values = [("x", "f"), ("r", "f"), ("z", "l")]
        for _ in range(draw(st.integers(2, 12))):
            self.step()

    def new(self, layout: str, text: str) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(f"{name} = {text}")
        self.values.append((name, layout))

    def pick(self, layout: str) -> str:
        found = [name for name, own in self.values if own == layout]
        return str(self.draw(st.sampled_from(found[::-1])))

    def step(self) -> None:
        layout = self.draw(st.sampled_from("lf"))
        kind = self.draw(st.sampled_from(["turn", "turn", "norm", "skip", "unary", "add", "constant", "vector", "sum"]))
        last = int(layout == "l")
        norm = LAST.replace("channels_last=1", f"channels_last={last}")
        a, b = self.pick(layout), self.pick(layout)
        if kind == "turn":
            self.new("f" if last else "l", f"{TO_FIRST if last else TO_LAST} ({a})")
        elif kind == "norm":
            self.new(layout, f"{norm} ({a}, scale, bias)")
        elif kind == "skip":
            self.new(layout, f"{norm.replace('GroupNorm', 'SkipGroupNorm')} ({a}, {b}, scale, bias)")
        elif kind == "sum":
            name = f"s{len(self.nodes)}"
            self.new(layout, f"Identity ({a})")
            made = f"{norm.replace('GroupNorm', 'SkipGroupNorm')} ({a}, {b}, scale, bias)"
            self.nodes[-1] = f"v{len(self.nodes) - 1}, {name} = {made}"
            self.values.append((name, layout))
        elif kind == "unary":
            self.new(layout, f"{self.draw(st.sampled_from(['Relu', 'Tanh', 'Softsign']))} ({a})")
        elif kind == "vector":
            axes = "last_axes" if last else "first_axes"
            self.nodes.append(f"m{len(self.nodes)} = ReduceMax <keepdims=1> ({b}, {axes})")
            self.new(layout, f"Add ({a}, m{len(self.nodes) - 1})")
        else:
            other = b if kind == "add" else ("vector" if last else "column")
            self.new(layout, f"{self.draw(st.sampled_from(['Add', 'Mul']))} ({a}, {other})")


@settings(
    max_examples=int(os.environ.get("ONNXNORM_RANDOM_GRAPHS", "60")), deadline=None, database=None, derandomize=True
)
@given(st.data())
def test_random_graphs(lab: Any, data: Any) -> None:
    walk = Walk(data.draw)
    made = [name for name, _ in walk.values[3:]]
    outputs = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    text = " ".join(walk.nodes)
    model = lab.model(
        f"(float[2,6,4,3] x, float[2,6,4,3] r, float[2,4,3,6] z) => "
        f"({', '.join(f'float[N,A,B,C] {name}' for name in outputs)}) {{ {text} }}",
        20,
        10,
        ', "onnxnorm" : 1',
        scale=lab.array(6),
        bias=lab.array(6, seed=1),
        vector=lab.array(6, seed=2),
        column=lab.array(6, 1, 1, seed=2),
        last_axes=np.array([1, 2]),
        first_axes=np.array([2, 3]),
    )
    ops, after = turn(lab, model)
    vectors = sum("ReduceMax" in node for node in walk.nodes)
    assert ops.count("Transpose") <= sum("Transpose" in node for node in walk.nodes) + vectors
    onnx.checker.check_model(after, full_check=True)
