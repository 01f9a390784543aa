"""fold/sum-into-conv: parallel branches of every form, what is no branch, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "fold/sum-into-conv"


def folds(lab: Any, model: Any, ops: list[str], shape: tuple[int, ...] = (2, 4, 7, 6), dtype: str = "float32") -> Any:
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ops, outcome.result.explain()
    assert any(RULE in (decision.rule or "") for decision in outcome.result.decisions)
    feeds = {"x": lab.array(*shape, dtype=dtype, seed=9)}
    lab.same(outcome, feeds, eps=lab.eps(dtype), factor=64.0)
    if dtype == "float32":
        lab.same_in_ort(outcome, feeds, factor=128.0)
    return outcome


def norms(lab: Any, *names: str) -> dict[str, Any]:
    return {
        key: value for seed, name in enumerate(names) for key, value in lab.batch_norm(4, "float32", seed, name).items()
    }


@pytest.mark.parametrize("opset", [7, 13, 18, 24])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_repvgg(lab: Any, opset: int, group: int) -> None:
    """k x k, 1 x 1 and identity, each with BatchNormalization, behind each other."""
    norm = "BatchNormalization ({0}, {1}gamma, {1}beta, {1}mean, {1}var)"
    text = (
        "(float[N,4,H,W] x) => (float[A,B,C,D] y) {"
        f" a = Conv <group={group}, pads=[1,1,1,1]> (x, w) b = Conv <group={group}> (x, v)"
        f" an = {norm.format('a', 'p')} bn = {norm.format('b', 'q')} xn = {norm.format('x', 'r')}"
        " s = Add (xn, an) y = Add (bn, s) }"
    )
    arrays = {"w": lab.array(4, 4 // group, 3, 3), "v": lab.array(4, 4 // group, 1, 1), **norms(lab, "p", "q", "r")}
    outcome = folds(lab, lab.model(text, opset, **arrays), ["Conv"])
    assert len(outcome.result.decisions) == 3


@pytest.mark.parametrize(
    ("nodes", "ops"),
    [
        ("y = Sub (a, b)", ["Conv"]),
        ("y = Sum (a, x, b)", ["Conv"]),
        ("n = Neg (x) m = Mul (n, c) e = Sub (m, t) s = Add (a, e) y = Sub (b, s)", ["Conv"]),
        ("y = Add (x, a)", ["Conv"]),
        ("d = Sub (a, x) e = Mul (d, c) y = Add (x, e)", ["Conv"]),
        ("r = Relu (x) s = Sub (a, r) y = Add (s, b)", ["Relu", "Conv", "Sub"]),
        ("r = Relu (a) s = Add (a, r) y = Add (s, b)", ["Conv", "Relu", "Conv", "Add", "Add"]),
        ("s = Add (a, x) y = Add (s, s)", ["Conv", "Add"]),
    ],
)
def test_trees(lab: Any, nodes: str, ops: list[str]) -> None:
    text = f"(float[2,4,7,6] x) => (float[2,4,7,6] y) {{ a = Conv <pads=[1,1,1,1]> (x, w, u) b = Conv (x, v) {nodes} }}"
    text = text if "b" in nodes.replace("Sub", "") else text.replace("b = Conv (x, v)", "")
    arrays = {"w": lab.array(4, 4, 3, 3), "u": lab.array(4), "v": lab.array(4, 4, 1, 1), "c": lab.array(4, 1, 1),
              "t": lab.array(1, 4, 1, 1, seed=3)}  # fmt: skip
    model = lab.model(
        text, **{name: array for name, array in arrays.items() if f"{name})" in text or f"{name}," in text}
    )
    outcome = lab.optimize(model, verify=True)
    if "Relu (a)" in nodes:  # whose convolution has two readers
        assert sorted(outcome.ops) == sorted(ops)
        return
    folds(lab, model, ops)


@pytest.mark.parametrize(
    ("first", "second", "w", "v", "kernel"),
    [
        ("pads=[0,1,0,1]", "pads=[1,0,1,0]", (4, 4, 1, 3), (4, 4, 3, 1), None),
        ("pads=[1,1,1,1]", "pads=[2,2,2,2], dilations=[2,2]", (4, 4, 3, 3), (4, 4, 3, 3), None),
        ("pads=[2,2,2,2]", "pads=[2,2,2,2], dilations=[2,2]", (4, 4, 5, 5), (4, 4, 3, 3), [5, 5]),
        ("pads=[1,1,1,1], strides=[2,2]", "strides=[2,2]", (4, 4, 3, 3), (4, 4, 1, 1), [3, 3]),
        ('auto_pad="SAME_UPPER"', "pads=[1,0,1,0]", (4, 4, 2, 2), (4, 4, 3, 1), [3, 2]),
        ("pads=[1,1,1,1]", "pads=[0,0,2,2]", (4, 4, 3, 3), (4, 4, 3, 3), [4, 4]),
        ("pads=[1,1,1,1], group=2", "group=4", (4, 2, 3, 3), (4, 1, 1, 1), [3, 3]),
        ("pads=[1,1,1,1], group=4", "", (4, 1, 3, 3), (4, 4, 1, 1), None),
        ("", 'auto_pad="VALID"', (6, 4, 3, 3), (6, 4, 3, 3), [3, 3]),
        ("pads=[1,1,1,1]", "pads=[1,1,1,1]", (4, 4, 3, 3), (4, 4, 1, 1), None),
        ("pads=[1,1,1,1]", "strides=[2,2]", (4, 4, 3, 3), (4, 4, 1, 1), None),
    ],
)
def test_taps(lab: Any, first: str, second: str, w: Any, v: Any, kernel: list[int] | None) -> None:
    """Merged where one kernel holds the taps of both and takes no more multiplications."""
    text = f"(float[N,4,H,W] x) => (float[A,B,C,D] y) {{ a = Conv <{first}> (x, w) b = Conv <{second}> (x, v)"
    model = lab.model(f"{text} y = Add (a, b) }}".replace("<>", ""), w=lab.array(*w), v=lab.array(*v, seed=4))
    if kernel is None:
        assert lab.optimize(model).ops == ["Conv", "Conv", "Add"]
        return
    outcome = folds(lab, model, ["Conv"])
    assert next(list(item.ints) for item in outcome.node("Conv").attribute if item.name == "kernel_shape") == kernel


def test_the_larger_one_takes_cross_and_dot(lab: Any) -> None:
    text = (
        "(float[N,4,H,W] x) => (float[A,B,C,D] y) { a = Conv <pads=[0,1,0,1]> (x, w) b = Conv <pads=[1,0,1,0]> (x, v)"
        " c = Conv <pads=[1,1,1,1]> (x, u) d = Conv (x, t) y = Sum (a, b, c, d) }"
    )
    shapes = {"w": (4, 4, 1, 3), "v": (4, 4, 3, 1), "u": (4, 4, 3, 3), "t": (4, 4, 1, 1)}
    folds(lab, lab.model(text, **{name: lab.array(*shape) for name, shape in shapes.items()}), ["Conv"])
    small = text.replace("c = Conv <pads=[1,1,1,1]> (x, u)", "").replace("c, d", "d")
    shapes.pop("u")
    model = lab.model(small, **{name: lab.array(*shape) for name, shape in shapes.items()})
    folds(lab, model, ["Conv", "Conv", "Add"])


@pytest.mark.parametrize(("rank", "dtype"), [(1, "float32"), (3, "float32"), (2, "float16"), (2, "float64")])
def test_ranks_and_types(lab: Any, rank: int, dtype: str) -> None:
    kind = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    sizes = ",".join("HWD"[:rank])
    text = (
        f"({kind}[N,4,{sizes}] x) => ({kind}[{','.join('ABCEF'[: rank + 2])}] y)"
        f" {{ a = Conv <pads={[1] * 2 * rank}> (x, w) s = Add (x, a) y = Relu (s) }}"
    )
    model = lab.model(text, w=lab.array(4, 4, *[3] * rank, dtype=dtype))
    folds(lab, model, ["Conv", "Relu"], (2, 4, *(5, 6, 7)[:rank]), dtype)


BLOCK = "a = Conv <pads=[1,1,1,1]> (x, w) n = BatchNormalization (x, gamma, beta, mean, var) y = Add (a, n)"


def block(lab: Any, inputs: str = "", nodes: str = BLOCK, **arrays: Any) -> Any:
    text = f"(float[N,4,7,6] x{inputs}) => (float[A,B,C,D] y) {{ {nodes} }}"
    return lab.model(text, **{"w": lab.array(4, 4, 3, 3), **lab.batch_norm(4), **arrays})


@pytest.mark.parametrize(
    "change", ["stride", "channels", "no padding", "scale of another axis", "used twice", "output"]
)
def test_no_branch(lab: Any, change: str) -> None:
    if change == "stride":
        model = block(lab, nodes=BLOCK.replace("<pads", "<strides=[9,9], pads"))
    elif change == "channels":
        model = block(lab, nodes=BLOCK, w=lab.array(1, 4, 3, 3))
    elif change == "no padding":
        model = block(lab, nodes=BLOCK.replace("<pads=[1,1,1,1]>", ""), w=lab.array(4, 4, 7, 6))
    elif change == "scale of another axis":
        model = block(
            lab, nodes=BLOCK.replace("BatchNormalization (x, gamma, beta, mean, var)", "Mul (x, c)"), c=lab.array(6)
        )
    elif change == "used twice":
        model = block(lab, nodes=BLOCK.replace("y =", "s =") + " r = Sigmoid (a) y = Add (s, r)")
    else:
        model = block(lab)
        model.graph.output.add().CopyFrom(model.graph.output[0])
        model.graph.output[1].name = "a"
    assert "Conv" in lab.optimize(model).ops
    assert "Add" in lab.optimize(model).ops


@pytest.mark.parametrize(
    ("change", "words"),
    [("w", "may override"), ("bias", "may override"), ("large", "overflow"), ("infinite", "not be finite")],
)
def test_refused(lab: Any, refused: Any, change: str, words: str) -> None:
    if change == "w":
        model = block(lab, inputs=", float[4,4,3,3] w")
    elif change == "bias":
        model = block(lab, ", float[4] u", BLOCK.replace("(x, w)", "(x, w, u)"), u=lab.array(4))
    else:
        gamma = np.full(4, 3e38, np.float32)
        var = np.full(4, 1e-5, np.float32)
        model = block(lab, gamma=gamma, var=var, mean=np.zeros(4, np.float32))
        if change == "infinite":
            model = block(lab, w=np.full((4, 4, 3, 3), np.inf, np.float32))
    refused(model, RULE, words)
