"""lower/affine-to-batch-normalization: spellings, what is left alone, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

RULE = "lower/affine-to-batch-normalization"


def build(lab: Any, maps: str, shape: str = "N,3,4,5", opset: int = 18, kind: str = "float", **arrays: Any) -> Any:
    """``maps`` makes y from r, and Relu behind it the result."""
    text = f"({kind}[{shape}] x) => ({kind}[] z) {{ r = Relu (x) {maps} z = Relu (y) }}"
    return lab.model(text, opset, **arrays)


def optimized(lab: Any, model: Any, ops: list[str], shape: tuple[int, ...] = (2, 3, 4, 5), **options: Any) -> Any:
    outcome = lab.optimize(model, verify=True, check=False, **options)
    assert outcome.ops == ["Relu", *ops, "Relu"], outcome.result.explain()
    feeds = {"x": lab.array(*shape, seed=9)}
    lab.same(outcome, feeds, factor=16.0)
    lab.same_in_ort(outcome, feeds)
    return outcome


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 24])
@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize(
    "maps",
    ["m = Mul (r, s) y = Add (t, m)", "m = Sub (r, t) n = Div (m, s) y = Neg (n)", "m = Mul (s, r) y = Sub (t, m)"],
)
def test_spellings(lab: Any, maps: str, rank: int, opset: int) -> None:
    form = (3, *(1,) * (rank - 2))
    arrays = {"s": lab.array(*form, low=0.5, high=2), "t": lab.array(1, *form, seed=1)}
    model = build(lab, maps, ",".join(["N", "3", "4", "5", "2"][:rank]), opset, **arrays)
    outcome = optimized(lab, model, ["BatchNormalization"], (2, 3, 4, 5, 2)[:rank])
    assert (outcome.only.action.value, outcome.only.rule) == ("lowered", RULE)


@pytest.mark.parametrize(
    "maps",
    [
        "m = BatchNormalization (r, gamma, beta, mean, var) y = Mul (m, s)",
        "m = Mul (r, s) y = BatchNormalization (m, gamma, beta, mean, var)",
        "m = BatchNormalization (r, gamma, beta, mean, var) y = BatchNormalization (m, gamma, beta, mean, var)",
    ],
)
@pytest.mark.parametrize("kind", ["float", "double"])
def test_batch_normalization_among_the_maps(lab: Any, maps: str, kind: str) -> None:
    dtype = {"float": "float32", "double": "float64"}[kind]
    arrays = {"s": lab.array(3, 1, 1, low=0.5, high=2, dtype=dtype)} if "Mul" in maps else {}
    model = build(lab, maps, kind=kind, **arrays, **lab.batch_norm(3, dtype))
    outcome = lab.optimize(model, verify=True, check=False)
    assert outcome.ops == ["Relu", "BatchNormalization", "Relu"], outcome.result.explain()
    lab.same(outcome, {"x": lab.array(2, 3, 4, 5, dtype=dtype)}, eps=lab.eps(dtype), factor=16.0)


@pytest.mark.parametrize(
    ("maps", "shape", "kind"),
    [
        ("y = Mul (r, s)", "N,3,4,5", "float"),  # one
        ("m = Mul (r, one) y = Add (m, one)", "N,3,4,5", "float"),  # the same for all channels
        ("m = Mul (r, last) y = Add (m, last)", "N,3,4,5", "float"),  # another axis
        ("m = Mul (r, s) y = Add (m, last)", "N,3,4,5", "float"),
        ("m = Mul (r, s) y = Add (m, s)", "N,C,4,5", "float"),  # no number of channels
        ("m = Mul (r, s) y = Add (m, s)", "N,3,4,5", "float16"),  # a slow kernel
        ("m = Mul (r, s) y = Div (s, m)", "N,3,4,5", "float"),
        ("m = Mul (r, s) a = Add (m, s) b = Relu (m) y = Mul (a, b)", "N,3,4,5", "float"),  # two readers
        ("i = InstanceNormalization (r, v, v) m = Mul (i, s) y = Add (m, s)", "N,3,4,5", "float"),  # gamma and beta
        ("h = Sub (r, far) y = Div (h, s)", "N,3,4,5", "float"),  # a shift that is large behind the scale
        ("h = Mul (r, s) y = Div (h, zero)", "N,3,4,5", "float"),  # not finite
        ("h = Mul (r, tiny) k = Mul (h, tiny) y = Add (k, s)", "N,3,4,5", "float"),  # loses digits
    ],
)
def test_leaves(lab: Any, maps: str, shape: str, kind: str) -> None:
    arrays = {
        "s": lab.array(3, 1, 1, low=0.5, high=2),
        "one": np.float32(1.5),
        "last": lab.array(5),
        "v": lab.array(3),
        "far": lab.array(3, 1, 1, low=1e3, high=2e3),
        "zero": np.array([[[0]], [[1]], [[2]]], np.float32),
        "tiny": lab.array(3, 1, 1, low=1e-22, high=2e-22),
    }
    used = {name: value.astype(kind if kind == "float16" else "float32") for name, value in arrays.items()
            if any(f"{before}{name}{behind}" in maps for before in "( " for behind in ",)")}  # fmt: skip
    outcome = lab.optimize(build(lab, maps, shape, kind=kind, **used), verify=True, check=False, target="standard")
    assert "BatchNormalization" not in outcome.ops


def test_leaves_what_a_caller_may_override(lab: Any) -> None:
    text = "(float[N,3,4] x, float[3,1] s) => (float[] y) { m = Mul (x, s) y = Add (m, t) }"
    model = lab.model(text, s=lab.array(3, 1), t=lab.array(3, 1, seed=2))
    assert lab.optimize(model, check=False).ops == ["Mul", "Add"]


def test_only_for_the_cpu(lab: Any) -> None:
    model = build(lab, "m = Mul (r, s) y = Add (m, s)", s=lab.array(3, 1, 1))
    assert lab.optimize(model, check=False, provider="cuda").ops == ["Relu", "Mul", "Add", "Relu"]
