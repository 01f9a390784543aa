"""What the tests of recognized norms share: models from text with constants by name, and what is asked of each."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16", "float64": "double"}
#: ONNX's numbers of the element types, for Cast.
CODES = {"float32": 1, "float16": 10, "bfloat16": 16, "float64": 11}


def number(value: float, dtype: str = "float32", rank: int = 0) -> Any:
    """A constant with one element."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.full((1,) * rank, value).astype(kind)


def build(
    lab: Any, nodes: str, dtype: str = "float32", opset: int = 18, x: str = "N,6,H,W", out: str = "", **arrays: Any
) -> Any:
    """``nodes`` make y, of the shape of x, from x; only the arrays that they name become initializers.

    Args:
        lab: the laboratory.
        nodes: ONNX's text form; eps (1e-3), two, half, minus (-0.5), one, zero are constants.
        dtype: element type of x, y and the constants.
        opset: version of the standard domain.
        x: the shape of x.
        out: further outputs, with a comma in front.
        arrays: further constants.

    """
    numbers = {"eps": 1e-3, "two": 2.0, "half": 0.5, "minus": -0.5, "one": 1.0, "zero": 0.0}
    known = {name: number(value, dtype) for name, value in numbers.items()} | arrays
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in known.items() if name in words}
    kind = TYPE_NAMES[dtype]
    return lab.model(f"({kind}[{x}] x) => ({kind}[{x}] y{out}) {{ {nodes} }}", opset, 10, **used)


def sample(lab: Any, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """Values of both signs, with an item of zeros."""
    x = np.array(lab.array(*shape, dtype=dtype, seed=9, low=-2.0, high=2.0))
    x[-1] = 0
    return x


def becomes(
    lab: Any,
    model: Any,
    ops: list[str],
    rule: str,
    shape: tuple[int, ...] = (3, 6, 4, 5),
    dtype: str = "float32",
    x: Any = None,
    **options: Any,
) -> Any:
    """Asserts the optimized operators, that ``rule`` was the first to fuse, and equality in float64 and in float32."""
    outcome = lab.optimize(model, **options)
    assert outcome.ops == ops, outcome.result.explain()
    decision = outcome.result.decisions[0]
    assert decision.action.value == "fused", str(decision)
    assert decision.rule.split(", ")[0] == rule, str(decision)
    feeds = {"x": sample(lab, shape, dtype) if x is None else x}
    lab.same(outcome, feeds, eps=lab.eps(dtype))
    if dtype == "float32":
        lab.same_in_ort(outcome, feeds)
    return outcome


def refuses(
    lab: Any, model: Any, rule: str, op: str, words: str, shape: tuple[int, ...] | None = (3, 6, 4, 5), **options: Any
) -> Any:
    """Asserts that the rule's op is not there, that it says so in those words, and that nothing changed in value."""
    outcome = lab.optimize(model, **options)
    assert op not in outcome.ops
    found = [item for item in outcome.result.decisions if item.rule == rule]
    assert [item.action.value for item in found] == ["refused"], outcome.result.explain()
    assert words in found[0].reason, found[0].reason
    if shape is not None:
        lab.same(outcome, {"x": sample(lab, shape)})
    return outcome


def attributes(outcome: Any, op: str) -> dict[str, Any]:
    """The attributes of the one node of that operator."""
    values = {}
    for item in outcome.node(op).attribute:
        values[item.name] = {1: item.f, 2: item.i, 3: item.s, 7: list(item.ints)}[item.type]
    return values


def parameters(outcome: Any, op: str) -> list[Any]:
    """What the one node of that operator reads besides X, as arrays."""
    return [outcome.initializer(name) for name in outcome.node(op).input[1:]]
