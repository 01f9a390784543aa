"""Small networks of convolutions and norms, and what is asked of a compiled one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnxnorm import InferenceSession
from onnxnorm.compilation.compile import Compiled
from onnxnorm.compilation.compile import compile as compile_model
from onnxnorm.norms import all_specs
from onnxnorm.runtime.machine import block_size

Array = npt.NDArray[Any]
BLOCK = block_size() or 16
#: Two blocks of channels.
WIDE = 2 * BLOCK
GROUP = {"num_groups": 4, "epsilon": 1e-5, "activation": "relu", "channels_last": 0}


class Net:
    """Builds a model; each method adds a node and returns the name of what it makes."""

    def __init__(self, shape: Sequence[int | str] = (2, 3, 12, 10), dtype: Any = np.float32) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)
        self.dtype = np.dtype(dtype)
        self.element = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.inputs = [helper.make_tensor_value_info("x", self.element, shape)]

    def add(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        made = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, made, f"{op}_{name}", domain=domain, **attributes))
        return name

    def weight(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array).astype(self.dtype), name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> str:
        w = self.weight(self.rng.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2))
        pad = [kernel // 2] * 4
        return self.add("Conv", x, w, kernel_shape=[kernel] * 2, pads=pad, strides=[stride] * 2)

    def norm(self, op: str, *inputs: str, channels: int, **changes: Any) -> str:
        """An onnxnorm op with parameters as its samples have them."""
        spec = all_specs()[op]
        sample = next(iter(spec.samples()))
        rest = [
            self.weight(np.resize(array, channels) if item.shape == "C" else array)
            for item, array in list(zip(spec.inputs, sample.inputs, strict=True))[len(inputs) :]
        ]
        attributes = {**sample.attributes, **changes}
        return self.add(op, *inputs, *rest, outputs=len(spec.outputs), domain="onnxnorm", **attributes)

    def model(self, *outputs: str, opset: int = 20) -> onnx.ModelProto:
        made = [helper.make_tensor_value_info(name, self.element, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, made, self.weights)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("onnxnorm", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def chain(op: str = "GroupNorm", channels: int = WIDE, dtype: Any = np.float32, **changes: Any) -> onnx.ModelProto:
    """Convolution, norm, convolution."""
    net = Net(dtype=dtype)
    inner = net.conv("x", 3, channels)
    return net.model(net.conv(net.norm(op, inner, channels=channels, **changes), channels, channels))


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def feed(shape: Sequence[int] = (2, 3, 12, 10), dtype: Any = np.float32) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(dtype)}


def run(model: Any, feeds: dict[str, Array], *, library: bool = True, optimized: bool = True) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = InferenceSession(model, options, providers=["CPUExecutionProvider"], library=library)
    return list(session.run(None, feeds))


def assert_same(before: Any, after: Any, feeds: dict[str, Array]) -> None:
    """The compiled model with the library and through its bodies, optimized again and as it is written."""
    wanted = run(before, feeds)
    for library, optimized in ((True, True), (True, False), (False, True)):
        for want, have in zip(wanted, run(after, feeds, library=library, optimized=optimized), strict=True):
            assert have.shape == want.shape
            scale = np.abs(want).max()
            allowed = max(64 * 2.0**-23, 4 * float(np.finfo(want.dtype).eps)) * scale
            assert np.abs(have.astype(np.float64) - want).max() <= allowed, (library, optimized)


def compiled(model: onnx.ModelProto, feeds: dict[str, Array], **options: Any) -> Compiled:
    """Compiled, and its results compared here too; names and order of inputs and outputs are kept."""
    with_bodies = onnx.ModelProto.FromString(model.SerializeToString())
    result = compile_model(model, **options)
    if result.gained:
        onnx.checker.check_model(ir.to_proto(result.model), full_check=False)
        assert_same(with_bodies, result.model, feeds)
    for kind in ("input", "output"):
        names = [item.name for item in getattr(model.graph, kind)]
        assert [value.name for value in getattr(result.model.graph, f"{kind}s")] == names
    return result


__all__ = ["BLOCK", "GROUP", "WIDE", "Net", "chain", "compiled", "counts", "feed", "run"]
