"""Which operators may work on ONNX Runtime's blocked layout (N, C / block, H, W, block), and which may not and why.

ONNX Runtime gives a blocked tensor the shape (N, C, H, W) that it stands for. An operator that treats all elements
alike is right on it as it is, provided that nothing is broadcast; a norm becomes its blocked form.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.graph import STANDARD, attribute
from onnxnorm.runtime.machine import NCHWC_DOMAIN
from onnxnorm.spec.blocked import PREFIX
from onnxnorm.spec.record import DOMAIN, NormSpec

NCHWC = NCHWC_DOMAIN
#: Element-wise operators of one tensor; further inputs are scalars (the bounds of Clip).
UNARY = frozenset(
    [
        *("Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish"),
        *("Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
        *("com.microsoft.FastGelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu"),
    ]
)
#: Element-wise operators of several tensors, any of which may be a scalar.
BINARY = frozenset(["Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum"])


@dataclass(frozen=True)
class Candidate:
    """A node that can work on the blocked layout.

    Attributes:
        node: the node.
        inputs: indices of the inputs that are then blocked.
        blocked_type: its operator then.

    """

    node: ir.Node
    inputs: tuple[int, ...]
    blocked_type: str


def kind(node: ir.Node) -> str:
    """The operator's name, with its domain unless that is the standard one."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def spec_of(node: ir.Node) -> NormSpec | None:
    """The norm of an onnxnorm node that has a blocked form, None for any other node."""
    specs = all_specs()
    return specs.get(node.op_type) if node.domain == DOMAIN and PREFIX + node.op_type in specs else None


def candidate(
    node: ir.Node, block: int, tokens: Mapping[ir.Value, Hashable], kernels: frozenset[str]
) -> Candidate | str | None:
    """The node as a candidate; why not, for a norm that cannot be one; None for any other node.

    Args:
        node: a node of the graph.
        block: channels in a block.
        tokens: as ``position_tokens`` has them.
        kernels: the ops that the native library has in float32.

    """
    name = kind(node)
    if spec_of(node) is not None:
        return _norm(node, block, kernels)
    if name in UNARY:
        full = _full(node.inputs[0], block) and all(_is_scalar(value) for value in node.inputs[1:])
        return Candidate(node, (0,), node.op_type) if full else None
    if name in BINARY:
        return _broadcasts_nothing(node, block, tokens)
    if name == "Concat" and attribute(node, "axis", 0) in (1, -3):
        full = all(_full(value, block) for value in node.inputs)
        return Candidate(node, tuple(range(len(node.inputs))), node.op_type) if full else None
    return None


def describe_reordered(node: ir.Node) -> None:
    """Type and channels of what ReorderOutput makes, which ONNX Runtime leaves out of float16 models: it runs their
    convolutions, and the norms between two of them, in float32.
    """
    channels = attribute(node, "channels", None)
    if node.domain == NCHWC and node.op_type == "ReorderOutput" and node.outputs[0].shape is None and channels:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([None, channels, None, None])


def describe_outputs(item: Candidate) -> None:
    """The same of what a candidate makes; only Concat gives another shape than it gets."""
    source = item.node.inputs[item.inputs[0]]
    for value in item.node.outputs:
        if value.shape is None and source is not None and item.node.op_type != "Concat":
            value.type, value.shape = source.type, source.shape


def blocked_channels(value: ir.Value | None, block: int) -> str | None:
    """Why a tensor cannot be in blocks; None where it can."""
    if value is None or value.shape is None or value.dtype is None:
        return "its type or shape is not known"
    if value.dtype != ir.DataType.FLOAT:
        return f"ONNX Runtime has blocked convolutions in float only, and this is {value.dtype.name.lower()}"
    if len(value.shape) != 4:
        return f"ONNX Runtime has blocked convolutions over two axes only, and this has rank {len(value.shape)}"
    channels = value.shape[1]
    if not isinstance(channels, int):
        return "its number of channels is not known"
    if channels % block != 0 or channels == 0:
        return f"its {channels} channels are no multiple of the {block} of a block"
    return None


def _norm(node: ir.Node, block: int, kernels: frozenset[str]) -> Candidate | str:
    problem = blocked_channels(node.inputs[0], block)
    if problem is not None:
        return problem
    if attribute(node, "channels_last", 0) != 0:
        return "its channels come last"
    name = PREFIX + node.op_type
    if name not in kernels:
        return f"the native library has no kernel for {name}"
    blocked = [index for index, item in enumerate(all_specs()[name].inputs) if item.name in ("X", "skip")]
    return Candidate(node, tuple(blocked), name)


def _full(value: ir.Value | None, block: int) -> bool:
    return blocked_channels(value, block) is None


def _is_scalar(value: ir.Value | None) -> bool:
    """Whether the tensor has one element, and no more axes than the others: it is the same in every layout."""
    return value is None or (value.shape is not None and len(value.shape) <= 4 and all(d == 1 for d in value.shape))


def _broadcasts_nothing(node: ir.Node, block: int, tokens: Mapping[ir.Value, Hashable]) -> Candidate | None:
    """A candidate where all inputs are scalars or, provably, of one shape."""
    full = tuple(index for index, value in enumerate(node.inputs) if not _is_scalar(value))
    values = [value for index in full if (value := node.inputs[index]) is not None]
    if not values or not all(_full(value, block) for value in values):
        return None
    sizes = {(tokens[value], None if value.shape is None else value.shape[1]) for value in values}
    return Candidate(node, full, node.op_type) if len(sizes) == 1 else None
