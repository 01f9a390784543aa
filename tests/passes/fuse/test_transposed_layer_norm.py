"""fuse/transposed-layer-norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import onnxnorm

from .spelling import attributes, becomes, build, refuses

RULE, OP = "fuse/transposed-layer-norm", "LayerNorm"
#: Provider -> the first rule that takes the norm.
FIRST = {"cpu": "fuse/layer-normalization", "cuda": RULE}
#: Where LayerNormalization stays when the rule refuses.
CUDA: dict[str, Any] = {"provider": "cuda"}
BEFORE, BEHIND = "Transpose <perm=[0, 2, 3, 1]> (x)", "Transpose <perm=[0, 3, 1, 2]> (n)"
NORM = "LayerNormalization <axis=-1, epsilon=0.01>"
CORE = f"f = {BEFORE} n = {NORM} (f, s, b) y = {BEHIND}"


def make(lab: Any, nodes: str = CORE, dtype: str = "float32", **options: Any) -> Any:
    arrays = {"s": lab.array(6, dtype=dtype), "b": lab.array(6, dtype=dtype, seed=1)}
    return build(lab, nodes, dtype, **{**arrays, **options})


@pytest.mark.parametrize("provider", list(FIRST))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("opset", [17, 23])
def test_channels_first(lab: Any, dtype: str, opset: int, provider: str) -> None:
    model = make(lab, dtype=dtype, opset=opset)
    outcome = becomes(lab, model, [OP], FIRST[provider], dtype=dtype, provider=provider)
    assert attributes(outcome, OP) == {"axes": [-3], "epsilon": np.float32(0.01), "activation": b"none"}


@pytest.mark.parametrize("provider", list(FIRST))
def test_other_ranks_and_axes(lab: Any, provider: str) -> None:
    first: dict[str, Any] = {"rule": FIRST[provider], "provider": provider}
    three = f"f = Transpose <perm=[0, 2, 1]> (x) n = {NORM} (f, s, b) y = Transpose <perm=[0, 2, 1]> (n)"
    outcome = becomes(lab, make(lab, three, x="N,6,L"), [OP], shape=(3, 6, 5), **first)
    assert attributes(outcome, OP)["axes"] == [-2]
    two = (
        "f = Transpose <perm=[0, 2, 1, 3]> (x) n = LayerNormalization <axis=2> (f, g, h)"
        " y = Transpose <perm=[0, 2, 1, 3]> (n)"
    )
    arrays = {"g": lab.array(6, 5), "h": lab.array(6, 5, seed=1)}
    outcome = becomes(lab, make(lab, two, x="N,6,H,5", **arrays), [OP], **first)
    assert attributes(outcome, OP)["axes"] == [-3, -1]


@pytest.mark.parametrize("provider", list(FIRST))
def test_without_a_bias_and_with_an_activation(lab: Any, provider: str) -> None:
    nodes = f"f = {BEFORE} n = {NORM} (f, s) k = {BEHIND} o = Sigmoid (k) y = Mul (k, o)"
    outcome = becomes(lab, make(lab, nodes), [OP], FIRST[provider], provider=provider)
    assert attributes(outcome, OP)["activation"] == b"silu"


def test_root_mean_square_norm(lab: Any) -> None:
    nodes = f"f = {BEFORE} n = RMSNormalization <axis=-1> (f, s) y = {BEHIND}"
    outcome = becomes(lab, make(lab, nodes, opset=23), ["RMSNorm"], "fuse/rms-normalization")
    assert attributes(outcome, "RMSNorm")["axes"] == [-3]


def test_verified(lab: Any) -> None:
    assert lab.optimize(make(lab, x="3,6,4,5"), verify=True).ops == [OP]


def test_standard_target_keeps_the_operators(lab: Any) -> None:
    assert lab.optimize(make(lab), target="standard").ops == ["Transpose", "LayerNormalization", "Transpose"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(f, s, b)", "(f, s, b) z = Neg (n)", "a value in between has another reader"),
        ("(f, s, b)", "(f, s, b) z = Neg (f)", "a value in between has another reader"),
        ("perm=[0, 3, 1, 2]", "perm=[0, 2, 3, 1]", "not the inverse"),
        ("(f, s, b)", "(f, one, b)", "scale is not known to have the sizes"),
    ],
)
def test_refuses(lab: Any, old: str, new: str, words: str) -> None:
    assert old in CORE
    shape = "N,6,6,6" if "perm" in new else "N,6,H,W"
    out = ", float[N,H,W,6] z" if "Neg" in new else ""
    model = make(lab, CORE.replace(old, new), x=shape, out=out)
    refuses(lab, model, RULE, OP, words, (3, 6, 6, 6) if "perm" in new else (3, 6, 4, 5), **CUDA)
    refused = lab.optimize(model)  # on CPU the norm by itself becomes onnxnorm's op where it can
    assert refused.ops.count("Transpose") == 2
    assert (OP in refused.ops) is ("one" not in new)


def test_refuses_axes_in_another_order(lab: Any) -> None:
    nodes = (
        "f = Transpose <perm=[0, 3, 2, 1]> (x) n = LayerNormalization <axis=2> (f, g, h)"
        " y = Transpose <perm=[0, 3, 2, 1]> (n)"
    )
    arrays = {"g": lab.array(4, 6), "h": lab.array(4, 6, seed=1)}
    refuses(lab, make(lab, nodes, x="N,6,4,W", **arrays), RULE, OP, "come in another order", **CUDA)


def test_refuses_graph_outputs_and_statistics(lab: Any) -> None:
    refuses(lab, make(lab, out=", float[N,H,W,6] n"), RULE, OP, "is a graph output", **CUDA)
    nodes = f"f = {BEFORE} n, mean = {NORM} (f, s, b) y = {BEHIND}"
    refuses(lab, make(lab, nodes, out=", float[N,H,W,1] mean"), RULE, OP, "its Mean or InvStdDev is used")


@pytest.mark.usefixtures("zoo")
def test_timm() -> None:
    from timm.layers import LayerNorm2d

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), LayerNorm2d(6), torch.nn.GELU()).eval()
    x = torch.randn(2, 3, 7, 9)
    result = onnxnorm.export(module, (x,), dynamic_shapes=({0: "batch", 2: "height", 3: "width"},))
    assert [node.op_type for node in result.model.graph] == ["Conv", OP], result.explain()
    onnxnorm.check(module, result.model, x).assert_passed()
