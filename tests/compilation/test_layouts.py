"""Networks whose norms come to work on blocks, and those whose norms stay as they are, with the reason."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxnorm.compilation.operators import NCHWC
from onnxnorm.norms import all_specs
from onnxnorm.runtime.environment import version_of
from onnxnorm.spec.blocked import PREFIX

from .conftest import BLOCK, GROUP, WIDE, Net, chain, compiled, counts, feed

PLAIN = [name for name in all_specs() if PREFIX + name in all_specs() and not name.startswith("Skip")]
SKIP = [name for name in all_specs() if PREFIX + name in all_specs() and name.startswith("Skip")]


def test_which_norms_have_a_blocked_form() -> None:
    channelwise = {"BatchInstanceNorm", "EvoNormS0", "FilterResponseNorm", "GlobalResponseNorm", "GroupNorm"}
    assert set(PLAIN) == {*channelwise, "SwitchableNorm"}
    assert set(SKIP) == {"SkipBatchInstanceNorm", "SkipGroupNorm", "SkipSwitchableNorm"}


@pytest.mark.parametrize("op", PLAIN)
def test_every_norm_between_two_convolutions(op: str) -> None:
    result = compiled(chain(op), feed())
    found = counts(result.model)
    assert result.gained
    assert (found[PREFIX + op], found[op], found["ReorderInput"], found["ReorderOutput"]) == (1, 0, 0, 1)
    assert result.reorders == (3, 1)
    (decision,) = result.decisions
    assert str(decision).endswith(f"lowered into {PREFIX}{op} by compile/blocked-layout (block = {BLOCK})")
    norm = next(node for node in result.model.graph if node.op_type == PREFIX + op)
    assert norm.attributes["block"].value == BLOCK
    assert ("onnxnorm", PREFIX + op, "") in result.model.functions
    assert ("onnxnorm", op, "") not in result.model.functions


@pytest.mark.parametrize("op", SKIP)
@pytest.mark.parametrize("read", [True, False], ids=["sum-is-read", "sum-is-not-read"])
def test_every_skip_form(op: str, read: bool) -> None:
    net = Net()
    a = net.conv("x", 3, WIDE)
    b = net.conv(a, WIDE, WIDE)
    y = net.norm(op, b, a, channels=WIDE)
    c = net.conv(y, WIDE, WIDE)
    result = compiled(net.model(net.add("Mul", c, f"{y}_1") if read else c), feed())
    found = counts(result.model)
    assert (found[PREFIX + op], found["ReorderInput"], found["ReorderOutput"]) == (1, 0, 1)


def test_a_residual_block() -> None:
    """As in ResNets with group norm: the norm, the sum after it and its activation."""
    net = Net()
    start = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    inner = net.norm("GroupNorm", net.conv(start, WIDE, WIDE), channels=WIDE, **GROUP)
    inner = net.norm("GroupNorm", net.conv(inner, WIDE, WIDE), channels=WIDE, **GROUP | {"activation": "none"})
    after = net.add("Relu", net.add("Add", inner, start))
    result = compiled(net.model(net.conv(after, WIDE, WIDE, kernel=1)), feed())
    found = counts(result.model)
    assert (found["BlockedGroupNorm"], found["ReorderInput"], found["ReorderOutput"]) == (3, 0, 1)


def test_dynamic_batch_and_size() -> None:
    """Both sides of the sum halve the image, one by a kernel of 3, one by a kernel of 1: equal sizes are seen."""
    net = Net(("batch", 3, "height", "width"))
    start = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    inner = net.norm("GroupNorm", net.conv(start, WIDE, WIDE, 3, 2), channels=WIDE, **GROUP)
    beside = net.norm("GroupNorm", net.conv(start, WIDE, WIDE, 1, 2), channels=WIDE, **GROUP)
    after = net.add("Relu", net.add("Add", inner, beside))
    model = net.model(net.conv(after, WIDE, WIDE))
    result = compiled(model, feed((3, 3, 11, 14)))
    found = counts(result.model)
    assert (found["BlockedGroupNorm"], found["ReorderInput"], found["ReorderOutput"]) == (3, 0, 1)
    assert result.distance is not None
    compiled(model, feed((1, 3, 6, 5)))


def test_sizes_that_are_not_proven_equal_are_not_added_in_blocks() -> None:
    """A factor for each channel would meet the wrong lanes: squeeze and excitation, with sizes that nobody knows."""
    net = Net(("batch", 3, "height", "width"))
    inner = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    pooled = net.add("GlobalAveragePool", inner)
    factor = net.add("Sigmoid", net.conv(pooled, WIDE, WIDE, kernel=1))
    scaled = net.add("Mul", inner, factor)
    result = compiled(net.model(net.conv(scaled, WIDE, WIDE)), feed())
    (product,) = [node for node in result.model.graph if node.op_type == "Mul"]
    assert not any("_blocks" in (value.name or "") for value in product.inputs if value is not None)


@pytest.mark.parametrize("constant", ["scalar", "channels"])
def test_constants(constant: str) -> None:
    """A scalar is the same in every layout; a value for each channel is not."""
    net = Net()
    inner = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    value = np.array(0.25) if constant == "scalar" else np.linspace(1, 2, WIDE).reshape(1, WIDE, 1, 1)
    scaled = net.add("Pow", inner, net.weight(value + 1))
    result = compiled(net.model(net.conv(scaled, WIDE, WIDE)), feed())
    assert result.gained == (constant == "scalar")
    assert result.reorders == ((3, 1) if constant == "scalar" else (3, 3))


def test_a_result_that_is_read_in_both_layouts() -> None:
    net = Net()
    inner = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    last = net.conv(inner, WIDE, WIDE)
    result = compiled(net.model(last, inner), feed())
    found = counts(result.model)
    assert result.reorders == (3, 2)
    assert (found["BlockedGroupNorm"], found["ReorderInput"], found["ReorderOutput"]) == (1, 0, 2)


def test_branches_and_their_concatenation() -> None:
    net = Net()
    start = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    left = net.norm("GroupNorm", net.conv(start, WIDE, BLOCK), channels=BLOCK, **GROUP)
    right = net.norm("SwitchableNorm", net.conv(start, WIDE, WIDE), channels=WIDE)
    both = net.add("Concat", left, right, axis=1)
    result = compiled(net.model(net.conv(both, BLOCK + WIDE, WIDE)), feed())
    found = counts(result.model)
    assert (found["ReorderInput"], found["ReorderOutput"]) == (0, 1)


def test_pooling_after_a_norm() -> None:
    net = Net()
    inner = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    pooled = net.add("MaxPool", inner, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    found = counts(compiled(net.model(net.conv(pooled, WIDE, WIDE)), feed()).model)
    assert (found["ReorderInput"], found["ReorderOutput"]) == (0, 1)


def test_channels_that_fill_no_block() -> None:
    result = compiled(chain(channels=BLOCK + 4, num_groups=4), feed())
    assert not result.gained
    assert result.reason == f"its {BLOCK + 4} channels are no multiple of the {BLOCK} of a block"
    assert result.reason in result.explain()
    assert counts(result.model)["Conv"] == 2
    assert all(node.domain != NCHWC for node in result.model.graph)


def test_a_norm_at_the_end_stays_plain() -> None:
    """One reorder in front of it or behind it: the plain kernel is as good."""
    net = Net()
    inner = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    result = compiled(net.model(net.add("Relu", net.norm("SwitchableNorm", inner, channels=WIDE))), feed())
    assert not result.gained
    assert [item.reason for item in result.decisions] == ["as many tensors would be reordered as are now"] * 2


def test_float16() -> None:
    """ONNX Runtime's CPU has no convolutions in float16: it runs these in float32, and 1.31 the norm between them too;
    1.20 and 1.24 bring that back to float16, so that there is nothing to gain.
    """
    result = compiled(chain(dtype=np.float16), feed(dtype=np.float16))
    if version_of(ort.__version__) >= (1, 31):
        assert result.reorders == (3, 1)
    assert result.gained or result.reason.startswith(
        ("ONNX Runtime has blocked convolutions in float only", "its type")
    )
    assert {value.name: value.dtype for value in result.model.graph.outputs} == {"v2": ir.DataType.FLOAT16}


def test_a_norm_in_another_type() -> None:
    net = Net(dtype=np.float64)
    inner = net.norm("GroupNorm", "x", channels=3, **GROUP | {"num_groups": 1})
    result = compiled(net.model(net.add("Exp", inner)), feed(dtype=np.float64))
    assert not result.gained
    assert result.reason == "ONNX Runtime has blocked convolutions in float only, and this is double"


def test_a_volume() -> None:
    net = Net((1, 3, 5, 6, 7))
    w = net.weight(net.rng.standard_normal((WIDE, 3, 3, 3, 3)))
    inner = net.norm("GroupNorm", net.add("Conv", "x", w, kernel_shape=[3] * 3), channels=WIDE, **GROUP)
    result = compiled(net.model(inner), feed((1, 3, 5, 6, 7)))
    assert not result.gained
    assert "over two axes only, and this has rank 5" in result.reason


def test_no_norm_at_all() -> None:
    net = Net()
    result = compiled(net.model(net.conv(net.conv("x", 3, WIDE), WIDE, WIDE)), feed())
    assert not result.gained
    assert result.reason == "the model has no norm that stands beside a convolution in blocks"
    assert result.explain() == "no normalization in the model that the layout matters to"


def test_element_types_of_a_subgraph_are_left_alone() -> None:
    """A branch that reads a norm's result reads it in the plain layout."""
    from onnx import TensorProto, helper

    net = Net()
    inner = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    last = net.conv(inner, WIDE, WIDE)
    branch = helper.make_graph(
        [helper.make_node("ReduceSum", [inner], ["inside"], keepdims=0)],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, [])],
    )
    other = helper.make_graph(
        [helper.make_node("ReduceMax", [last], ["outside"], keepdims=0)],
        "other",
        [],
        [helper.make_tensor_value_info("outside", TensorProto.FLOAT, [])],
    )
    yes = net.add("Greater", net.add("ReduceSum", "x", keepdims=0), net.weight(np.array(-1e30)))
    chosen = net.add("If", yes, then_branch=branch, else_branch=other)
    result = compiled(net.model(last, chosen), feed())
    assert counts(result.model)["BlockedGroupNorm"] == 1
