"""fold/batch-norm-into-conv-transpose. Refusals that all folds share are tested with Conv."""

from __future__ import annotations

from typing import Any

import pytest

RULE = "fold/batch-norm-into-conv-transpose"
NORM = "BatchNormalization (c, gamma, beta, mean, var)"
TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}


def build(
    lab: Any,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    channels: int,
    attributes: str,
    *,
    bias: bool = False,
    opset: int = 18,
    dtype: str = "float32",
) -> Any:
    sizes, out = ",".join(map(str, shape)), ",".join("NCDHW"[: len(shape)])
    kind = TYPE_NAMES[dtype]
    text = (
        f"({kind}[{sizes}] x) => ({kind}[{out}] y)"
        f" {{ c = ConvTranspose <{attributes}> (x, weight{', b' if bias else ''}) y = {NORM} }}"
    )
    arrays = {"weight": lab.array(*weight, dtype=dtype), **lab.batch_norm(channels, dtype)}
    if bias:
        arrays["b"] = lab.array(channels, seed=3, dtype=dtype)
    return lab.model(text, opset, **arrays)


CASES = [
    ((2, 3, 5), (3, 4, 3), 4, "strides=[2]"),
    ((2, 3, 4, 5), (3, 4, 3, 2), 4, "strides=[2,1], pads=[1,0,0,1], output_padding=[1,0]"),
    ((2, 4, 4, 5), (4, 3, 3, 3), 6, "group=2, strides=[2,2]"),
    ((2, 4, 4, 5), (4, 2, 3, 3), 8, "group=4, dilations=[2,1]"),
    ((2, 4, 4, 5), (4, 1, 2, 2), 4, "group=4, strides=[2,2]"),
    ((1, 6, 3, 4), (6, 1, 3, 3), 2, "group=2"),
    ((1, 4, 2, 3, 4), (4, 3, 2, 2, 2), 6, "group=2, strides=[2,1,2]"),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "weight", "channels", "attributes"), CASES)
def test_shapes_and_groups(lab: Any, shape: Any, weight: Any, channels: int, attributes: str, bias: bool) -> None:
    outcome = lab.optimize(build(lab, shape, weight, channels, attributes, bias=bias))
    assert outcome.ops == ["ConvTranspose"]
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    feeds = {"x": lab.array(*shape, seed=9)}
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)


@pytest.mark.parametrize("opset", [7, 9, 11, 14, 22, 23])
def test_every_opset(lab: Any, opset: int) -> None:
    outcome = lab.optimize(build(lab, *CASES[2], opset=opset))
    assert outcome.ops == ["ConvTranspose"]
    lab.same_in_ort(outcome, {"x": lab.array(*CASES[2][0], seed=9)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_element_types(lab: Any, dtype: str) -> None:
    outcome = lab.optimize(build(lab, *CASES[2], opset=22, dtype=dtype), disable=["lower/unsupported-type"])
    assert outcome.ops == ["ConvTranspose"]
    lab.same(outcome, {"x": lab.array(*CASES[2][0], seed=9, dtype=dtype)}, eps=lab.eps(dtype))


def test_refuses_another_channel_count(lab: Any, refused: Any) -> None:
    """The norm has the channels of one group only: equal lengths elsewhere do not make it fit."""
    shape, weight, _, attributes = CASES[2]
    model = build(lab, shape, weight, 3, attributes)
    refused(model, RULE, "ConvTranspose c has 6 output channels", check=False)


def test_refuses_a_group_that_does_not_divide(lab: Any, refused: Any) -> None:
    model = build(lab, (2, 4, 4, 5), (4, 2, 3, 3), 6, "group=3")
    outcome = refused(model, RULE, "group does not divide the input channels", check=False)
    assert outcome.only.values == {"group": 3, "channels": 4}


def test_refuses_training_and_run_time_weights(lab: Any, refused: Any) -> None:
    model = build(lab, *CASES[0])
    model.graph.node[1].output.extend(["m", "v"])
    model.graph.node[1].attribute.add(name="training_mode", type=2, i=1)
    refused(model, RULE, "training_mode is 1")
    model = build(lab, *CASES[0])
    model.graph.node[0].input[1] = "turned"
    model.graph.node.insert(0, model.graph.node.add())
    model.graph.node[0].CopyFrom(
        lab.model("(float[3,4,3] raw) => (float[3,4,3] turned) { turned = Abs (raw) }").graph.node[0]
    )
    del model.graph.node[-1]
    model.graph.input.extend(lab.model("(float[3,4,3] raw) => (float[3,4,3] t) { t = Abs (raw) }").graph.input)
    refused(model, RULE, "its ConvTranspose's weight is not constant: it is computed by Abs")
