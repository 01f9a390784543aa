"""Random chains of maps in front of random layers, dynamic or not: the optimized model computes the same.

``ONNXNORM_RANDOM_CHAINS=2000 pytest tests/passes/fold/test_affine_random.py`` looks further.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

COUNT = int(os.environ.get("ONNXNORM_RANDOM_CHAINS", "60"))
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulLeft")


class Chain:
    """A graph that grows by one map or one change of layout at a time, with its truth in NumPy shapes only."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice([9, 11, 13, 15, 18, 21, 24]))
        self.layer = str(self.rng.choice(LAYERS))
        rank = {"Conv": 4, "ConvTranspose": 4, "Gemm": 2}.get(self.layer, int(self.rng.integers(2, 5)))
        flatten = self.layer == "Gemm" and self.rng.random() < 0.5
        self.shape = [int(self.rng.integers(2, 5)), *(int(self.rng.choice([1, 2, 3, 4])) for _ in range(3))]
        self.shape = self.shape[: 4 if flatten else rank]
        if self.layer in ("Conv", "ConvTranspose"):
            self.shape = [self.shape[0], int(self.rng.choice([2, 4])), 5, 6]
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.now = "x"
        self.given = list(self.shape)
        self.dynamic = self.rng.random() < 0.6
        self.extra: list[tuple[str, list[int]]] = []

    def constant(self, array: Any) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers[name] = np.asarray(array)
        return name

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.now = name

    def values(self, *shape: int) -> Any:
        return (self.rng.uniform(0.3, 2.0, shape) * self.rng.choice([-1, 1], shape)).astype(np.float32)

    def step(self) -> None:
        rank = len(self.shape)
        choice = self.rng.random()
        if choice < 0.12 and rank >= 2:
            c = self.shape[1]
            self.add(
                "BatchNormalization",
                [self.now, *(self.constant(self.values(c)) for _ in range(3)), self.constant(np.abs(self.values(c)))],
            )
        elif choice < 0.2:
            self.add("Neg", [self.now])
        elif choice < 0.26:
            self.extra.append((self.now, list(self.shape)))  # another reader
        elif choice < 0.32 and self.layer not in ("Conv", "ConvTranspose"):
            order = self.rng.permutation(rank)
            self.dynamic = False  # the first axis may be one that the layer sums over
            self.add("Transpose", [self.now], perm=order.tolist())
            self.shape = [self.shape[axis] for axis in order]
        else:
            self.map_by_constant()

    def map_by_constant(self) -> None:
        rank = len(self.shape)
        kind = str(self.rng.choice(["Add", "Mul", "Sub", "Div"]))
        form = self.rng.random()
        if form < 0.3:
            shape: tuple[int, ...] = ()
        else:
            axis = int(self.rng.integers(0, rank)) if form < 0.5 else (1 if form < 0.8 else rank - 1)
            axis = min(axis, rank - 1)
            shape = (self.shape[axis], *(1,) * (rank - 1 - axis))
            if self.rng.random() < 0.5:
                shape = (1,) * (rank - len(shape)) + shape
        operands = [self.now, self.constant(self.values(*shape))]
        if kind != "Div" and self.rng.random() < 0.4:
            operands.reverse()
        self.add(kind, operands)

    def finish(self) -> Any:
        for _ in range(int(self.rng.integers(1, 5))):
            self.step()
        if self.layer == "Gemm" and len(self.shape) != 2:
            axis = int(self.rng.integers(1, 3))
            head, tail = int(np.prod(self.shape[:axis])), int(np.prod(self.shape[axis:]))
            if self.rng.random() < 0.5:
                self.add("Flatten", [self.now], axis=axis)
            else:
                sizes = [0, -1] if axis == 1 else [-1, tail]
                self.add("Reshape", [self.now, self.constant(np.array(sizes, np.int64))])
            self.shape = [head, tail]
            if self.rng.random() < 0.5:
                self.step()
        getattr(self, f"end_{self.layer}")()
        return self.model()

    def bias(self, size: int) -> list[str]:
        return [self.constant(self.values(size))] if self.rng.random() < 0.6 else []

    def end_Conv(self) -> None:
        group = int(self.rng.choice([1, 2, self.shape[1]]))
        kernel = [int(self.rng.choice([1, 3])), int(self.rng.choice([1, 2]))]
        weight = self.constant(self.values(2 * group, self.shape[1] // group, *kernel))
        padding = [{}, {}, {"pads": [1, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}]
        options = padding[int(self.rng.integers(0, 5))]
        strides = [int(self.rng.integers(1, 3))] * 2
        self.add("Conv", [self.now, weight, *self.bias(2 * group)], group=group, strides=strides, **options)

    def end_ConvTranspose(self) -> None:
        group = int(self.rng.choice([1, 2]))
        kernel = [1, 1] if self.rng.random() < 0.4 else [2, 3]
        weight = self.constant(self.values(self.shape[1], 3, *kernel))
        strides = [int(self.rng.integers(1, 3))] * 2
        self.add("ConvTranspose", [self.now, weight, *self.bias(3 * group)], group=group, strides=strides)

    def end_Gemm(self) -> None:
        trans_a, trans_b = (int(flag) for flag in self.rng.integers(0, 2, 2))
        size = self.shape[0 if trans_a else 1]
        weight = self.values(3, size) if trans_b else self.values(size, 3)
        added = self.bias(3) or ([self.constant(self.values(3))] if self.opset < 11 else [])
        alpha, beta = (float(np.float32(self.rng.uniform(0.5, 2))) for _ in range(2))
        inputs = [self.now, self.constant(weight), *added]
        self.dynamic &= not trans_a
        self.add("Gemm", inputs, transA=trans_a, transB=trans_b, alpha=alpha, beta=beta)

    def end_MatMul(self) -> None:
        self.add("MatMul", [self.now, self.constant(self.values(self.shape[-1], 3))])
        self.shape = [*self.shape[:-1], 3]
        self.behind()

    def end_MatMulLeft(self) -> None:
        self.dynamic &= len(self.shape) > 2
        self.add("MatMul", [self.constant(self.values(3, self.shape[-2])), self.now])
        self.shape = [*self.shape[:-2], 3, self.shape[-1]]
        self.behind()

    def behind(self) -> None:
        if self.rng.random() < 0.6:
            self.map_by_constant()
        if self.rng.random() < 0.4 and self.layer == "MatMul":
            self.add("MatMul", [self.now, self.constant(self.values(self.shape[-1], 2))])

    def model(self) -> Any:
        kind = TensorProto.FLOAT
        size = lambda axis, value: "N" if self.dynamic and axis == 0 else value  # noqa: E731
        given = [size(axis, value) for axis, value in enumerate(self.given)]
        shown = [(self.now, len(self.shape))]
        readers = []
        for index, (name, shape) in enumerate(self.extra):
            readers.append(helper.make_node("Relu", [name], [f"r{index}"], name=f"reader{index}"))
            shown.append((f"r{index}", len(shape)))
        outputs = [helper.make_tensor_value_info(name, kind, [None] * rank) for name, rank in shown]
        graph = helper.make_graph(
            [*self.nodes, *readers],
            "chain",
            [helper.make_tensor_value_info("x", kind, given)],
            outputs,
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


@pytest.mark.parametrize("seed", range(COUNT))
def test_random_chain(lab: Any, seed: int) -> None:
    chain = Chain(seed)
    model = chain.finish()
    feeds = {"x": np.random.default_rng(seed).standard_normal(chain.given).astype(np.float32)}
    outcome = lab.optimize(model, verify=True)
    assert all(item.action.value != "reverted" for item in outcome.result.decisions), outcome.result.explain()
    lab.same(outcome, feeds, factor=256.0)
    counted = [node for node in outcome.after.graph.node if node.op_type not in ("Relu", "Identity")]
    assert len(counted) <= len(model.graph.node)
