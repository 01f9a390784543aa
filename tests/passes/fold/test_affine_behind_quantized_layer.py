from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

RULE = "fold/affine-behind-quantized-layer"
NORM = "BatchNormalization (c, gamma, beta, mean, var)"
LATER = "BatchNormalization (d, gamma, beta, mean, var)"
IMAGE = "(float[2,3,6,5] x) => (float[N,4,H,W] y)"
ROWS = "(float[2,6] x) => (float[N,4] y)"
DEQUANTIZE = "DequantizeLinear <axis=0> (q, s, z)"


def whole(lab: Any, *shape: int) -> Any:
    return np.rint(lab.array(*shape) * 127).astype(np.int8)


def build(
    lab: Any,
    layer: str = "c = Conv (x, w, b)",
    *,
    weight: str = DEQUANTIZE,
    norm: str = NORM,
    head: str = IMAGE,
    opset: int = 21,
    shape: tuple[int, ...] = (4, 3, 3, 3),
    channels: int = 4,
    **changed: Any,
) -> Any:
    arrays = {
        **{"q": whole(lab, *shape), "s": lab.array(4, low=0.01, high=0.02), "z": np.zeros(4, np.int8)},
        **{"b": lab.array(channels), **lab.batch_norm(channels), **changed},
    }
    text = f"{head} {{ w = {weight} {layer} y = {norm} }}"
    return lab.model(text, opset, 10, **{name: value for name, value in arrays.items() if value is not None})


def check(lab: Any, model: Any, ops: list[str]) -> Any:
    outcome = lab.optimize(model, verify=True)
    assert outcome.ops == ops, outcome.result.explain()
    assert outcome.only.rule == RULE
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": lab.array(*sizes, seed=9)}
    lab.same(outcome, feeds)
    lab.same_in_ort(outcome, feeds)
    return outcome


ONE = {"s": np.float32(0.02), "z": np.int8(0)}
CASES: dict[str, dict[str, Any]] = {
    "per channel": {},
    "older": {"opset": 13},
    "axis from the end": {"weight": "DequantizeLinear <axis=-4> (q, s, z)"},
    "a scale of 0": {"gamma": np.array([1, 0, -1, 2], np.float32)},
    "one scale": {"weight": "DequantizeLinear (q, s, z)", **ONE},
    "no zero point": {"weight": "DequantizeLinear (q, s)", **ONE, "z": None},
    "unsigned": {"q": np.full((4, 3, 3, 3), 200, np.uint8), "z": np.full(4, 128, np.uint8)},
    "four bits": {"q": np.full((4, 3, 3, 3), -7, ml_dtypes.int4), "z": np.zeros(4, ml_dtypes.int4)},
    "bias": {
        "weight": f"{DEQUANTIZE} b = DequantizeLinear <axis=0> (qb, sb)",
        **{"b": None, "qb": np.array([100, -200, 300, 50], np.int32), "sb": np.full(4, 0.0013, np.float32)},
    },
    "depthwise": {
        **{"layer": "c = Conv <group=4> (x, w)", "shape": (4, 1, 3, 3)},
        "head": "(float[2,4,6,5] x) => (float[N,4,H,W] y)",
    },
    "affine": {"norm": "Mul (c, gamma)", "gamma": np.array([1, 2, -1, 0.5], np.float32).reshape(4, 1, 1)},
    "transposed convolution": {
        **{"layer": "c = ConvTranspose (x, w)", "shape": (3, 4, 3, 3)},
        "weight": "DequantizeLinear <axis=1> (q, s, z)",
    },
    "transposed depthwise": {
        **{"layer": "c = ConvTranspose <group=4> (x, w)", "shape": (4, 1, 3, 3)},
        "head": "(float[2,4,6,5] x) => (float[N,4,H,W] y)",
    },
    "Gemm": {"layer": "c = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b)", "head": ROWS, "shape": (4, 6)},
}


@pytest.mark.parametrize("case", CASES)
def test_parity(lab: Any, case: str) -> None:
    model = build(lab, **CASES[case])
    layer = next(node.op_type for node in model.graph.node if "Conv" in node.op_type or node.op_type == "Gemm")
    check(lab, model, ["DequantizeLinear", layer])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_whole_numbers_and_bias(lab: Any, dtype: str) -> None:
    """Where the scale is positive the whole numbers stay; elsewhere they change their sign."""
    model = build(lab, s=lab.array(4, low=0.01, high=0.02, dtype=dtype), b=lab.array(4, dtype=dtype))
    if dtype == "float16":
        for item in (*model.graph.input, *model.graph.output):
            item.type.tensor_type.elem_type = 10
    outcome = lab.optimize(model)
    signs = np.sign(lab.batch_norm(4)["gamma"]).astype(np.int8).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(outcome.initializer("q_folded"), whole(lab, 4, 3, 3, 3) * signs)
    assert outcome.initializer("s_folded").dtype == np.dtype(dtype)
    assert (outcome.initializer("s_folded") > 0).all()
    kept = lab.optimize(build(lab, gamma=np.ones(4, np.float32)))
    assert "q" in {item.name for item in kept.after.graph.initializer}


@pytest.mark.parametrize(
    ("weight", "layer", "norm", "more", "ops"),
    [
        ("DequantizeLinear <axis=1> (q, s, z)", "c = MatMul (x, w)", NORM, {"shape": (6, 4)}, ["MatMul", "Add"]),
        (
            f"{DEQUANTIZE} t = Transpose (w)",
            "c = MatMul (x, t) d = Add (c, b)",
            LATER,
            {"shape": (4, 6)},
            ["Transpose", "MatMul", "Add"],
        ),
        (
            "DequantizeLinear <axis=0, block_size=3> (q, s)",
            "c = MatMul (x, w)",
            NORM,
            {"shape": (6, 4), "s": np.full((2, 4), 0.02, np.float32)},
            ["MatMul", "Add"],
        ),
        (
            f"{DEQUANTIZE} t = Transpose (w)",
            "c = MatMul (x, t) d = Transpose <perm=[0,2,1]> (c)",
            LATER,
            {"shape": (4, 6), "head": "(float[2,7,6] x) => (float[N,4,7] y)"},
            ["Transpose", "MatMul", "Add", "Transpose"],
        ),
    ],
)
def test_matmul(lab: Any, weight: str, layer: str, norm: str, more: Any, ops: list[str]) -> None:
    model = build(lab, layer, weight=weight, norm=norm, **{"head": ROWS, **more})
    check(lab, model, ["DequantizeLinear", *ops])


@pytest.mark.parametrize("shape", [(4,), ()])
def test_a_fake_quantized_weight(lab: Any, shape: tuple[int, ...]) -> None:
    """Values on ties and beyond the range: what QuantizeLinear makes of them is what is scaled."""
    floats = lab.array(4, 3, 3, 3) * 2.4
    floats[:, 0, 0] = np.array([0.5, 1.5, -2.5]) / 64
    model = build(
        lab,
        weight="DequantizeLinear <axis=0> (i, s, z)",
        **{"q": None, "f": floats, "s": np.full(shape, 1 / 64, np.float32), "z": np.zeros(shape, np.int8)},
        gamma=np.array([1, 2, 0.5, 1.5], np.float32),
    )
    model.graph.node.insert(0, model.graph.node[0].__class__(op_type="QuantizeLinear", input="fsz", output="i"))
    model.graph.node[0].attribute.extend(model.graph.node[1].attribute)
    check(lab, model, ["DequantizeLinear", "Conv"])


def test_activations_in_front_and_a_shared_weight(lab: Any) -> None:
    text = (
        "(float[2,3,6,5] x) => (float[N,4,H,W] y, float[N,4,H,W] y2) { i = QuantizeLinear (x, sx, zx)"
        f" v = DequantizeLinear (i, sx, zx) w = {DEQUANTIZE} c = Conv (v, w) y = {NORM}"
        f" d = Conv (v, w) y2 = {LATER.replace('n (', 'n <epsilon=0.5> (')} }}"
    )
    arrays = {"q": whole(lab, 4, 3, 3, 3), "s": lab.array(4, low=0.01, high=0.02), "z": np.zeros(4, np.int8)}
    model = lab.model(text, sx=np.float32(0.02), zx=np.uint8(120), **arrays, **lab.batch_norm(4))
    outcome = lab.optimize(model)
    assert [op for op in outcome.ops if op == "BatchNormalization"] == []
    lab.same_in_ort(outcome, {"x": lab.array(2, 3, 6, 5, seed=9)})


# --- refusals -----------------------------------------------------------------------------------------------------

LEAST = np.full((4, 3, 3, 3), -128, np.int8)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "least": ({"q": LEAST}, "a negative scale would make 128 of a weight, beyond int8"),
    "unsigned": (
        {"q": np.full((4, 3, 3, 3), 7, np.uint8), "z": None, "weight": "DequantizeLinear <axis=0> (q, s)"},
        "beyond uint8",
    ),
    "opset": (
        {"opset": 12, "weight": "DequantizeLinear (q, s, z)", **ONE},
        "DequantizeLinear has one scale before opset 13",
    ),
    "axis": (
        {"weight": "DequantizeLinear <axis=1> (q, s, z)", "s": np.full(3, 0.1, np.float32), "z": np.zeros(3, np.int8)},
        "along another axis than that of the quantized weight's scales",
    ),
    "groups": (
        {
            **{"layer": "c = ConvTranspose <group=2> (x, w)", "weight": "DequantizeLinear (q, s, z)", **ONE},
            **{"head": "(float[2,4,6,5] x) => (float[N,6,H,W] y)", "channels": 6},
        },
        "along another axis",
    ),
    "blocks": (
        {
            **{"layer": "c = MatMul (x, w)", "head": ROWS, "shape": (6, 4), "s": np.full((6, 2), 0.1, np.float32)},
            "weight": "DequantizeLinear <axis=1, block_size=2> (q, s)",
        },
        "differs within the blocks",
    ),
    "default": ({"head": "(float[2,3,6,5] x, float[4] s) => (float[N,4,H,W] y)"}, "that a caller may override"),
    "zero": (
        {"head": "(float[2,3,6,5] x, int8[4] z) => (float[N,4,H,W] y)", "z": None},
        "zero point is not constant",
    ),
    "bias": ({"head": "(float[2,3,6,5] x, float[4] b) => (float[N,4,H,W] y)"}, "bias is a graph input"),
    "overflow": ({"gamma": np.full(4, 3e38, np.float32), "s": np.full(4, 9.0, np.float32)}, "would overflow"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(lab: Any, refused: Any, case: str) -> None:
    changed, words = REFUSED[case]
    refused(build(lab, **changed), RULE, words, check=False)


ROUNDED = {
    "QuantizeLinear i": "w = DequantizeLinear <axis=0> (q, s, z) v = Conv (x, w) i = QuantizeLinear (v, sx, zx)"
    " c = DequantizeLinear (i, sx, zx)",
    "QLinearConv i": "u = QuantizeLinear (x, sx, zx) i = QLinearConv (u, sx, zx, q, s, z, sx, zx)"
    " c = DequantizeLinear (i, sx, zx)",
    "ConvInteger i": "u, su, zu = DynamicQuantizeLinear (x) i = ConvInteger (u, q, zu) j = Cast <to=1> (i)"
    " c = Mul (j, su)",
}


@pytest.mark.parametrize("who", ROUNDED)
def test_refuses_what_is_rounded_behind_the_layer(lab: Any, refused: Any, who: str) -> None:
    model = lab.model(
        f"{IMAGE} {{ {ROUNDED[who]} y = {NORM} }}",
        **{"q": whole(lab, 4, 3, 3, 3), "s": lab.array(4, low=0.01, high=0.02), "z": np.zeros(4, np.int8)},
        **{"sx": np.float32(0.05), "zx": np.uint8(120), **lab.batch_norm(4)},
    )
    outcome = refused(model, RULE, f"{who} rounds in front of it")
    x = {"x": lab.array(2, 3, 6, 5, seed=9)}
    np.testing.assert_array_equal(lab.ort(outcome.after, x)[0], lab.ort(model, x)[0])
