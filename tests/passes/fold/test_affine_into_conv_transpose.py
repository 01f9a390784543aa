"""fold/affine-into-conv-transpose."""

from __future__ import annotations

from typing import Any

import pytest

RULE = "fold/affine-into-conv-transpose"


def build(lab: Any, maps: str, attributes: str = "", kernel: tuple[int, ...] = (4, 3, 2, 3), **arrays: Any) -> Any:
    text = f"(float[N,4,6,5] x) => (float[A,B,C,D] y) {{ {maps} y = ConvTranspose {attributes} (m, weight, bias) }}"
    groups = 2 if "group=2" in attributes else 1
    parts = {"weight": lab.array(*kernel), "bias": lab.array(groups * kernel[1], seed=2)}
    parts |= {"c": lab.array(4, 1, 1, seed=5), "s": lab.array(4, 1, 1, seed=6, low=0.3, high=2), **arrays}
    return lab.model(text, **{name: value for name, value in parts.items() if name in text})


@pytest.mark.parametrize("attributes", ["", "<strides=[2,2]>", "<group=2>", "<pads=[1,1,0,0], strides=[2,1]>"])
def test_a_scale_folds_always(lab: Any, attributes: str) -> None:
    outcome = lab.optimize(build(lab, "m = Div (x, s)", attributes), verify=True)
    assert outcome.ops == ["ConvTranspose"]
    assert (outcome.only.action.value, outcome.only.rule) == ("folded", RULE)
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5)}, factor=64.0)


@pytest.mark.parametrize("attributes", ["", "<strides=[2,3]>", "<group=2>"])
def test_a_shift_stays_in_front(lab: Any, attributes: str) -> None:
    outcome = lab.optimize(build(lab, "d = Sub (x, c) m = Div (d, s)", attributes), verify=True)
    assert outcome.ops == ["Add", "ConvTranspose"]
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5)}, factor=64.0)


@pytest.mark.parametrize("attributes", ["", "<group=2>"])
def test_a_shift_folds_for_kernel_1(lab: Any, attributes: str) -> None:
    outcome = lab.optimize(build(lab, "d = Sub (x, c) m = Div (d, s)", attributes, (4, 3, 1, 1)), verify=True)
    assert outcome.ops == ["ConvTranspose"]
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5)}, factor=64.0)


@pytest.mark.parametrize("attributes", ["<strides=[2,2]>", "<pads=[1,0,0,0]>", "<strides=[2,2], output_padding=[1,1]>"])
def test_refuses_a_shift_that_differs(lab: Any, refused: Any, attributes: str) -> None:
    outcome = refused(build(lab, "m = Sub (x, c)", attributes, (4, 3, 1, 1)), RULE, "do not overlap in the same number")
    lab.same(outcome, {"x": lab.array(2, 4, 6, 5)})


def test_refuses_values_along_another_axis(lab: Any, refused: Any) -> None:
    refused(build(lab, "m = Mul (x, s)", s=lab.array(5, low=0.5, high=2)), RULE, "which the layer does not sum over")
