"""Random small graphs around norms, full of traps: an optimized model computes what the given one computes.

``ONNXNORM_RANDOM_GRAPHS=5000 pytest tests/passes/test_random_graphs.py`` looks further, at other graphs in each run.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

EXAMPLES = os.environ.get("ONNXNORM_RANDOM_GRAPHS")
#: Element type -> by how much of the output's scale rounded weights may move the result of a few layers.
TOLERANCE = {"float64": 1e-7, "float32": 1e-4, "float16": 1e-1}


class Builder:
    """A graph that grows by one random step at a time from the value ``self.now``, whose shape is known."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.dtype = draw(st.sampled_from(["float64", "float64", "float64", "float32", "float16"]))
        self.kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.opset = draw(st.sampled_from([7, 9, 11, 13, 14, 15, 18, 20, 21, 23, 24]))
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.feeds: dict[str, np.ndarray] = {}
        self.count = 0
        self.traps = draw(st.sampled_from([0, 1, 4]))
        rank = draw(st.sampled_from([2, 2, 3, 3, 4, 4, 5]))
        shape = tuple(
            draw(st.sampled_from([1, 2, 3] if axis == 0 else [2, 4])) if axis < 2 else 4 for axis in range(rank)
        )
        self.now = self.input("x", shape)

    def chance(self, percent: int) -> bool:
        return bool(self.draw(st.integers(0, 99)) >= 100 - percent)  # hypothesis draws and shrinks towards 0: no trap

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.now]

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def input(self, name: str, shape: tuple[int, ...], low: float = -1.0) -> str:
        self.inputs[name] = self.shapes[name] = shape
        self.feeds[name] = self.rng.uniform(low, 1.5, shape).astype(self.dtype)
        return name

    def parameter(self, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> str:
        """Mostly a constant: sometimes shared, overridable, given at run time, or computed from a constant."""
        same = [
            name for name, value in self.initializers.items() if value.shape == shape and (low < 0 or value.min() > 0)
        ]
        if same and self.chance(5 * self.traps):
            return str(self.choose(*same))
        if self.chance(2 * self.traps):
            return self.input(self.name("run"), shape, low=max(low, -1.0))
        name = self.name("p")
        value = self.rng.uniform(low, high, shape)
        if self.dtype == "float16" and self.chance(2 * self.traps):
            value = value * self.choose(3e4, 1e-6)
        self.initializers[name] = value.astype(self.dtype)
        self.shapes[name] = shape
        if self.chance(2 * self.traps):  # overridable: the test passes another value than the default
            self.input(name, shape, low=max(low, -1.0))
        elif self.chance(3 * self.traps):
            return self.node("Identity" if self.chance(50) else "Abs" if low > 0 else "Neg", [name], shape)
        return name

    def node(self, op: str, inputs: list[str], shape: tuple[int, ...], extra: int = 0, **attributes: Any) -> str:
        output = self.name("v")
        outputs = [output, *(self.name("u") for _ in range(extra))]
        named = self.name("n") if self.chance(50) else None
        self.nodes.append(helper.make_node(op, inputs, outputs, name=named, **attributes))
        self.shapes[output] = shape
        return output

    # --- steps: each may leave the value as it is when its shape does not suit ---

    def conv(self) -> None:
        if len(self.shape) < 3:
            return
        n, c, *space = self.shape
        group = self.choose(1, 1, 2, c) if c % 2 == 0 else 1
        out = group * self.choose(1, 2)
        kernel = [self.choose(1, 2, min(3, size)) if size > 1 else 1 for size in space]
        inputs = [self.now, self.parameter((out, c // group, *kernel))] + (
            [self.parameter((out,))] if self.chance(50) else []
        )
        shape = (n, out, *(size - k + 1 for size, k in zip(space, kernel, strict=True)))
        self.now = self.node("Conv", inputs, shape, group=group, kernel_shape=kernel)

    def conv_transpose(self) -> None:
        if len(self.shape) < 3 or math.prod(self.shape) > 1000:
            return
        n, c, *space = self.shape
        group = self.choose(1, 2, c) if c % 2 == 0 else 1
        per_group = self.choose(1, 2)
        kernel = [self.choose(1, 2) for _ in space]
        inputs = [self.now, self.parameter((c, per_group, *kernel))]
        inputs += [self.parameter((group * per_group,))] if self.chance(50) else []
        shape = (n, group * per_group, *(size + k - 1 for size, k in zip(space, kernel, strict=True)))
        self.now = self.node("ConvTranspose", inputs, shape, group=group, kernel_shape=kernel)

    def gemm(self) -> None:
        if len(self.shape) != 2:
            flat = (self.shape[0], math.prod(self.shape[1:]))
            self.now = self.node("Flatten", [self.now], flat, axis=1)
        n, c = self.shape
        out, transposed = self.choose(2, 3, 4), self.choose(0, 1)
        inputs = [self.now, self.parameter((out, c) if transposed else (c, out))]
        if self.opset < 11 or self.chance(70):
            inputs.append(self.parameter(self.choose((out,), (1, out), (n, out), (n, 1), (1,), ())))
        attributes: dict[str, Any] = {
            "alpha": self.choose(1.0, 0.5),
            "beta": self.choose(1.0, -2.0),
            "transB": transposed,
        }
        self.now = self.node("Gemm", inputs, (n, out), **attributes)

    def matmul(self) -> None:
        if len(self.shape) < 2:
            return
        *outer, rows, columns = self.shape
        out = self.choose(2, 4)
        if self.chance(70):
            self.now = self.node("MatMul", [self.now, self.parameter((columns, out))], (*outer, rows, out))
        else:
            self.now = self.node("MatMul", [self.parameter((out, rows)), self.now], (*outer, out, columns))

    def batch_norm(self) -> None:
        if len(self.shape) < 2:
            return
        channels = (self.shape[1],)
        inputs = [self.now, *(self.parameter(channels) for _ in range(3)), self.parameter(channels, 0.1, 2.0)]
        attributes: dict[str, Any] = {"epsilon": self.choose(1e-5, 0.25)}
        extra = 0
        if self.chance(3 * self.traps):
            extra = 2 if self.opset >= 14 else 4
            if self.opset >= 14:
                attributes["training_mode"] = 1
        self.now = self.node("BatchNormalization", inputs, self.shape, extra, **attributes)

    def group_norm(self) -> None:
        if self.opset < 21 or len(self.shape) < 2 or math.prod(self.shape[1:]) < 4:
            return
        channels = self.shape[1]
        groups = self.choose(1, 2) if channels % 2 == 0 else 1
        inputs = [self.now, self.parameter((channels,)), self.parameter((channels,))]
        self.now = self.node("GroupNormalization", inputs, self.shape, num_groups=groups, epsilon=0.125)

    def rms_norm(self) -> None:
        if self.opset < 23:
            return
        axis = self.choose(*range(-len(self.shape), 0))
        scale = self.choose(self.shape[axis:], self.shape[axis:], (1,))
        self.now = self.node(
            "RMSNormalization", [self.now, self.parameter(scale)], self.shape, axis=axis, epsilon=0.125
        )

    def arithmetic(self) -> None:
        """A constant or another value, of any shape that broadcasts; it may enlarge the result or give it an axis."""
        others = [name for name, shape in self.shapes.items() if shape == self.shape and name != self.now]
        if others and self.chance(40):
            other = self.choose(*others)
        else:
            shape = tuple(self.choose(1, size) for size in self.shape)
            other = self.parameter(self.choose(shape, shape[self.draw(st.integers(0, len(shape))) :], (1, *shape)))
        operands = [self.now, other] if self.chance(50) else [other, self.now]
        shape = np.broadcast_shapes(self.shape, self.shapes[other])
        if len(shape) <= 5:
            self.now = self.node(self.choose("Add", "Add", "Mul", "Sub"), operands, shape)

    def activation(self) -> None:
        kind = self.choose("relu", "silu", "gelu")
        if kind == "relu":
            self.now = self.node("Relu", [self.now], self.shape)
        elif kind == "silu":
            gate = self.node("Sigmoid", [self.now], self.shape)
            self.now = self.node("Mul", [self.now, gate] if self.chance(50) else [gate, self.now], self.shape)
        elif self.opset >= 9:
            self.decomposed_gelu()

    def decomposed_gelu(self) -> None:
        def number(value: float) -> str:
            name = self.name("k")
            shape = self.choose((), (1,), (1,) * len(self.shape), (1,) * (len(self.shape) + 1))
            self.initializers[name], self.shapes[name] = np.full(shape, value, self.dtype), shape
            return name

        def binary(op: str, left: str, right: str) -> str:
            operands = [left, right] if op == "Div" or self.chance(50) else [right, left]
            return self.node(op, operands, np.broadcast_shapes(self.shapes[left], self.shapes[right]))

        x = self.now
        if len(self.shape) == 5:
            return
        scaled = binary("Div", x, number(math.sqrt(2.0)))
        erf = self.node("Erf", [scaled], self.shapes[scaled])
        plus = binary("Add", erf, number(self.choose(1.0, 1.0, 0.5)))
        half = number(self.choose(0.5, 0.5, 1.0))
        self.now = (
            binary("Mul", binary("Mul", x, half), plus)
            if self.chance(50)
            else binary("Mul", binary("Mul", x, plus), half)
        )

    def move(self) -> None:
        kind = self.choose("Identity", "Dropout", "Transpose")
        if kind == "Transpose":
            order = list(self.draw(st.permutations(range(len(self.shape)))))
            self.now = self.node("Transpose", [self.now], tuple(self.shape[axis] for axis in order), perm=order)
        else:
            self.now = self.node(kind, [self.now], self.shape)

    def branch(self) -> None:
        """If, with a layer and its norm in one branch, that reads outer values and weights."""
        if len(self.shape) != 2:
            return
        outer, channels = self.now, (self.shape[1],)
        parameters = [*(self.parameter(channels) for _ in range(3)), self.parameter(channels, 0.1, 2.0)]
        weight = self.parameter((self.shape[1], self.shape[1]))
        inner = [
            helper.make_node("MatMul", [outer, weight], [product := self.name("b")]),
            helper.make_node("BatchNormalization", [product, *parameters], [result := self.name("b")]),
        ]
        other = [helper.make_node("Neg", [outer], [negative := self.name("b")])]
        info = [helper.make_tensor_value_info(value, self.kind, None) for value in (result, negative)]
        condition = self.name("q")
        self.inputs[condition], self.feeds[condition] = (), np.array(self.chance(70))
        graphs = [
            helper.make_graph(nodes, name, [], [item])
            for nodes, name, item in zip((inner, other), "te", info, strict=True)
        ]
        self.now = self.node("If", [condition], self.shape, then_branch=graphs[0], else_branch=graphs[1])

    # --- the model ---

    def model(self) -> onnx.ModelProto:
        used = {name for node in self.nodes for name in node.input}
        made = [node.output[0] for node in self.nodes]
        outputs = [name for name in made if name not in used]
        if self.chance(25):  # a value that something reads is an output, too
            outputs = list(dict.fromkeys([*outputs, self.choose(*made)]))
        dynamic = self.chance(40)
        make = helper.make_tensor_value_info
        inputs = []
        for name, shape in self.inputs.items():
            sizes = ["N", *shape[1:]] if dynamic and name == "x" else shape
            inputs.append(make(name, onnx.TensorProto.BOOL if self.feeds[name].dtype == bool else self.kind, sizes))
        results = [make(name, self.kind, [f"{name}_{i}" for i in range(len(self.shapes[name]))]) for name in outputs]
        initializers = [numpy_helper.from_array(value, name) for name, value in self.initializers.items()]
        graph = helper.make_graph(self.nodes, "random", inputs, results, initializers)
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", self.opset)])


#: Steps come in runs that rules look for as well as at random.
RUNS = [
    ["conv", "batch_norm"],
    ["conv_transpose", "batch_norm"],
    ["gemm", "batch_norm"],
    ["matmul", "batch_norm"],
    ["matmul", "arithmetic", "batch_norm"],
    ["conv", "move", "batch_norm"],
    ["group_norm", "activation"],
    ["rms_norm", "activation"],
    ["batch_norm"],
    ["arithmetic"],
    ["activation"],
    ["move"],
    ["branch"],
]


@st.composite
def graphs(draw: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray], str]:
    builder = Builder(draw)
    for run in draw(st.lists(st.sampled_from(RUNS), min_size=1, max_size=4)):
        for step in run:
            getattr(builder, step)()
    if not builder.nodes:
        builder.now = builder.node("Neg", [builder.now], builder.shape)
    return builder.model(), builder.feeds, builder.dtype


def runs_as_before(lab: Any, outcome: Any, feeds: dict[str, np.ndarray]) -> None:
    """What ONNX Runtime took before it takes after, with the same result.

    Not with a training BatchNormalization: ONNX Runtime writes its statistics into the initializers, shared or not.
    """
    if any(node.op_type == "BatchNormalization" and len(node.output) > 1 for node in outcome.before.graph.node):
        return
    try:
        before = lab.ort(outcome.before, feeds)
    except Exception:
        return  # no kernel, or statistics outputs that ONNX Runtime does not know
    for old, new in zip(before, lab.ort(outcome.after, feeds), strict=True):
        assert old.shape == new.shape
        if np.isfinite(old).all():
            assert np.abs(old - new).max(initial=0.0) <= 1e-4 * max(np.abs(old).max(initial=0.0), 1e-30)


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_optimized_models_compute_the_same(lab: Any, target: str) -> None:
    fired: dict[str, int] = {}

    @settings(
        max_examples=int(EXAMPLES or 400),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs())
    def check(case: tuple[onnx.ModelProto, dict[str, np.ndarray], str]) -> None:
        model, feeds, dtype = case
        outcome = lab.optimize(model, target=target)
        for decision in outcome.result.decisions:
            for rule in (decision.rule or "none").split(", "):
                fired[f"{decision.action.value} {rule}"] = fired.get(f"{decision.action.value} {rule}", 0) + 1
        lab.same(outcome, feeds, eps=TOLERANCE[dtype], factor=1.0)
        if dtype == "float32":
            runs_as_before(lab, outcome, feeds)

    check()
    if EXAMPLES is not None:
        print(sorted(fired.items()))
    for rule in ("conv", "conv-transpose", "gemm", "matmul"):
        assert fired.get(f"folded fold/batch-norm-into-{rule}", 0) >= 3, fired
    assert sum(count for name, count in fired.items() if name.startswith("refused")) >= 50, fired
