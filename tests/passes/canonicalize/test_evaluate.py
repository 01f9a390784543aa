"""Each operator that is computed from constants: the same as ONNX Runtime, at every version of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxnorm.passes.canonicalize.clean import clean
from onnxnorm.passes.canonicalize.evaluate import KNOWN, LAYERS, evaluate

#: operator -> (inputs, attributes, first opset, last opset); a list of axes in the inputs is an int64 tensor.
F, POSITIVE, WHOLE, B = "float", "positive", "int", "bool"
CASES: list[tuple[str, list[Any], str, int, int]] = [
    *((op, [(F, 2, 3)], "", 7, 24) for op in ("Abs", "Exp", "Neg", "Sigmoid", "Tanh", "Reciprocal")),
    *((op, [(POSITIVE, 2, 3)], "", 7, 24) for op in ("Log", "Sqrt", "Reciprocal")),
    *((op, [(F, 2, 3), (F, 3)], "", 7, 24) for op in ("Add", "Sub", "Mul", "Div")),
    *((op, [(WHOLE, 2, 3), (WHOLE, 2, 1)], "", 7, 24) for op in ("Add", "Sub", "Mul")),
    ("Pow", [(POSITIVE, 2, 3), (F, 1)], "", 7, 24),
    ("Pow", [(F, 2, 3), [2]], "", 12, 24),
    *(("Softmax", [(F, 2, 3, 4)], text, 7, 24) for text in ("", "<axis=2>", "<axis=1>", "<axis=0>")),
    *(("Softmax", [(F, 2, 3, 4)], text, 11, 24) for text in ("<axis=-1>", "<axis=-2>")),
    *(
        (op, [(F, 2, 3, 4)], text, 7, 12)
        for op in ("ReduceMean", "ReduceSum")
        for text in ("", "<axes=[1]>", "<axes=[0,2], keepdims=0>")
    ),
    *((op, [(F, 2, 3, 4)], text, 13, 24) for op in ("ReduceMean", "ReduceSum") for text in ("", "<keepdims=0>")),
    ("ReduceMean", [(F, 2, 3, 4)], "<axes=[-1]>", 13, 17),
    *(
        (op, [(F, 2, 3, 4), axes], text, 18, 24)
        for op in ("ReduceMean", "ReduceSum")
        for axes in ([1], [0, -1], [])
        for text in ("", "<keepdims=0>", "<noop_with_empty_axes=1>")
    ),
    *(("Transpose", [(F, 2, 3, 4)], text, 7, 24) for text in ("", "<perm=[1,2,0]>")),
    *(("Flatten", [(F, 2, 3, 4)], text, 9, 24) for text in ("", "<axis=0>", "<axis=3>", "<axis=2>")),
    ("Flatten", [(F, 2, 3, 4)], "<axis=-1>", 11, 24),
    *(("Reshape", [(F, 2, 3, 4), shape], "", 7, 24) for shape in ([6, 4], [-1], [0, -1], [2, 0, 2, 2])),
    ("Reshape", [(F, 2, 0, 4), [0, 5]], "<allowzero=1>", 14, 24),
    *(("Squeeze", [(F, 1, 3, 1)], text, 7, 12) for text in ("", "<axes=[0]>", "<axes=[0,2]>")),
    *(("Squeeze", [(F, 1, 3, 1), *axes], "", 13, 24) for axes in ([], [[0]], [[-1, 0]])),
    ("Unsqueeze", [(F, 2, 3)], "<axes=[0,3]>", 7, 12),
    *(("Unsqueeze", [(F, 2, 3), axes], "", 13, 24) for axes in ([1], [0, -1], [3, 0])),
    *(("Concat", [(F, 2, 3), (F, 2, 1)], "<axis=1>", opset, opset) for opset in (7, 11, 13)),
    *(("Gather", [(F, 3, 4), indices], text, 11, 24) for indices in ([0, 2], [-1]) for text in ("", "<axis=1>")),
    *(
        ("Slice", [(F, 4, 5)], text, 7, 9)
        for text in ("<starts=[1], ends=[3]>", "<starts=[-3,1], ends=[1000,-1], axes=[1,0]>")
    ),
    *(
        ("Slice", [(F, 4, 5), *lists], "", 10, 24)
        for lists in (
            [[1], [3]],
            [[-3, 1], [1000, -1], [1, 0]],
            [[3, -1], [-1000, -4], [0, 1], [-1, -2]],
            [[0], [2**62], [1], [2]],
        )
    ),
    *(
        ("Cast", [(kind, 2, 3)], f"<to={to}>", 9, 24)
        for kind, to in ((F, 11), (F, 10), (WHOLE, 1), (WHOLE, 6), (WHOLE, 9), ("double", 1), (B, 1))
    ),
    *((op, [(F, 2, 3), (F, 3)], "", 13, 24) for op in ("Greater", "Less", "Max", "Min", "Equal")),
    *((op, [(F, 2, 3), (F, 3)], "", 16, 24) for op in ("GreaterOrEqual", "LessOrEqual")),
    *((op, [(WHOLE, 2, 3), (WHOLE, 3)], "", 13, 24) for op in ("Greater", "Less", "Max", "Min", "Equal")),
    *((op, [(B, 2, 3), (B, 3)], "", 13, 24) for op in ("And", "Or")),
    *((op, [(F, 2, 3)], "", 13, 24) for op in ("Ceil", "Floor", "Size")),
    *(("ConstantOfShape", [[2, 3]], text, 13, 24) for text in ("", "<value = int64[1] {7}>")),
    *(("Expand", [(F, 3, 1), shape], "", 13, 24) for shape in ([3, 4], [2, 1, 4], [1])),
    *(("Pad", [(F, 3, 4), [1, 2, 0, 1]], text, 13, 24) for text in ("", '<mode="edge">', '<mode="reflect">')),
    ("Pad", [(F, 3, 4), [1, 0, 0, 1], 2.5], "", 13, 24),
    ("Tile", [(F, 2, 3), [2, 1]], "", 13, 24),
    *(("Trilu", [(F, 3, 4)], text, 14, 24) for text in ("", "<upper=0>")),
    ("Not", [(B, 2, 3)], "", 13, 24),
    ("Where", [(B, 2, 3), (F, 3), (F, 2, 1)], "", 13, 24),
    *(("Clip", [(F, 2, 3), *limits], "", 13, 24) for limits in ([], [-0.5], [-0.5, 0.5])),
    *(
        (op, [(F, 2, 3, 4)], text, 13, 17)
        for op in ("ReduceMax", "ReduceMin", "ReduceProd")
        for text in ("", "<axes=[1,-1], keepdims=0>")
    ),
    *((op, [(F, 2, 3, 4), [1, -1]], "<keepdims=0>", 18, 24) for op in ("ReduceMax", "ReduceMin", "ReduceProd")),
    *(("GatherElements", [(F, 3, 2), [[0, 1], [2, -1]]], text, 13, 24) for text in ("", "<axis=0>")),
    ("GatherND", [(F, 3, 2), [[0, 1], [2, -1]]], "", 13, 24),
    ("ScatterND", [(F, 3, 2), [[0], [2]], (F, 2, 2)], "", 13, 24),
    *(("ScatterElements", [(F, 3, 2), [[0, 1], [2, -1]], (F, 2, 2)], text, 13, 24) for text in ("", "<axis=0>")),
    ("Range", [0, 7, 2], "", 13, 24),
    *((op, [(F, 2, 3)], "", 7, 24) for op in ("Acos", "Asin", "Atan", "Cos", "Identity", "Relu", "Sin", "Tan")),
    *((op, [(F, 2, 3)], "", 7, 24) for op in ("Softplus", "Softsign")),
    *((op, [(F, 2, 3)], "", 9, 24) for op in ("Asinh", "Atanh", "Cosh", "Erf", "Sign", "Sinh")),
    ("Acosh", [(POSITIVE, 2, 3)], "", 9, 24),
    ("Round", [(F, 2, 3)], "", 11, 24),
    *(
        (op, [(POSITIVE, 2, 3, 4)], text, 7, 17)
        for op in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
        for text in ("", "<axes=[1], keepdims=0>", "<axes=[0,2]>")
    ),
    *(
        (op, [(POSITIVE, 2, 3, 4), axes], text, 18, 24)
        for op in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
        for axes in ([1], [0, -1], [])
        for text in ("", "<keepdims=0>")
    ),
    *(("LogSoftmax", [(F, 2, 3, 4)], text, 7, 24) for text in ("", "<axis=2>", "<axis=1>")),
    *(
        ("CumSum", [(F, 2, 3), axis], text, 11, 24)
        for axis in (0, -1)
        for text in ("", "<exclusive=1>", "<reverse=1>", "<exclusive=1, reverse=1>")
    ),
    *((op, [(F, 2, 3), (F, 3), (F, 2, 1)], "", 8, 24) for op in ("Mean", "Sum")),
    *(("MatMul", [a, b], "", 7, 24) for a, b in (((F, 2, 3), (F, 3, 4)), ((F, 3), (F, 3)), ((F, 5, 2, 3), (F, 3)))),
    *(
        ("Gemm", [(F, 2, 3), (F, 3, 4), *bias], text, 11, 24)
        for bias in ([], [(F, 4)])
        for text in ("", "<alpha=0.5, beta=2.0>")
    ),
    ("Gemm", [(F, 3, 2), (F, 4, 3)], "<transA=1, transB=1>", 11, 24),
    *(
        ("Einsum", operands, f'<equation="{equation}">', 12, 24)
        for equation, operands in (
            ("ij,jk->ik", [(F, 2, 3), (F, 3, 4)]),
            ("ij,jk", [(F, 2, 3), (F, 3, 4)]),
            ("...ij , j -> i...", [(F, 5, 2, 3), (F, 3)]),
            ("ii->i", [(F, 3, 3)]),
        )
    ),
    ("BatchNormalization", [(F, 2, 3, 4), (F, 3), (F, 3), (F, 3), (POSITIVE, 3)], "<epsilon=0.25>", 9, 24),
    ("InstanceNormalization", [(F, 2, 3, 4), (F, 3), (F, 3)], "<epsilon=0.25>", 7, 21),
    ("LayerNormalization", [(F, 2, 3, 4), (F, 4), (F, 4)], "<epsilon=0.25>", 17, 24),
    ("LayerNormalization", [(F, 2, 3, 4), (F, 3, 4)], "<axis=1>", 17, 24),
    ("GroupNormalization", [(F, 2, 4, 3), (F, 4), (F, 4)], "<num_groups=2, epsilon=0.25>", 21, 24),
    ("RMSNormalization", [(F, 2, 3, 4), (F, 4)], "<epsilon=0.25>", 23, 24),
    ("RMSNormalization", [(F, 2, 3, 4), (F, 3, 4)], "<axis=-2>", 23, 24),
    *(("LpNormalization", [(F, 2, 3)], text, 7, 21) for text in ("", "<axis=0>", "<p=1>")),
]


def make(lab: Any, item: Any, seed: int) -> Any:
    if isinstance(item, list | int | float):
        return np.array(item, np.float32 if isinstance(item, float) else np.int64)
    kind, *shape = item
    values = lab.array(*shape, seed=seed, low=0.1 if kind == POSITIVE else -3.0, high=3.0)
    return {"int": values.astype(np.int64), "double": values.astype(np.float64), "bool": values > 0}.get(kind, values)


def test_every_operator_has_a_case() -> None:
    assert {case[0] for case in CASES} >= KNOWN


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "first", "last"), CASES, ids=lambda value: str(value).replace(" ", "")
)
def test_is_what_onnx_runtime_computes(
    lab: Any, op: str, inputs: list[Any], attributes: str, first: int, last: int
) -> None:
    arrays = {f"c{i}": make(lab, item, i) for i, item in enumerate(inputs)}
    if op in ("Acos", "Asin", "Atanh"):
        arrays = {name: value / 4 for name, value in arrays.items()}
    arrays = {name: value + 1 for name, value in arrays.items()} if op == "Acosh" else arrays
    for opset in sorted({first, *(version for version in (9, 11, 13, 18, 21) if first < version < last), last}):
        text = (
            f"(float[1] u) => (float[1] v, float[1] y) {{ k = {op} {attributes} ({', '.join(arrays)}) y = Identity"
            f" (k) v = Neg (u) }}"
        )
        model = lab.model(text, opset, **arrays)
        model.graph.output[1].CopyFrom(output_like(model))
        wanted = lab.ort(model, {"u": np.ones(1, np.float32)})[1]
        if op in LAYERS or op == "Identity":  # by themselves they stay in the graph, for the rules
            node = ir.from_proto(model).graph[0]
            folded = evaluate(node, list(arrays.values()), opset)
        else:
            folded = lab.optimize(model, check=False).initializer("k")
        assert folded is not None, opset
        atol = 1e-6 if op == "InstanceNormalization" else 1e-7  # ONNX Runtime takes its statistics in float32
        assert (folded.dtype, folded.shape) == (wanted.dtype, wanted.shape), opset
        np.testing.assert_allclose(folded.astype(np.float64), wanted.astype(np.float64), rtol=1e-6, atol=atol)


def output_like(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The type that y has, as the checker asks for."""
    del model.graph.output[1].type.tensor_type.shape.dim[:]
    model.graph.output[1].type.Clear()
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    result = onnx.ValueInfoProto(name="y")
    result.type.CopyFrom(next(item for item in inferred.graph.output if item.name == "y").type)
    return result


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_rounds_once(lab: Any, dtype: str) -> None:
    """A mean over many values, added up in the type itself, would be far off."""
    kind = {"float16": "float16", "bfloat16": "bfloat16", "float64": "double"}[dtype]
    values = lab.array(8000, dtype=dtype, low=0.5, high=0.6)
    text = f"({kind}[5] x) => ({kind}[5] y) {{ k = ReduceMean <axes=[0]> (c) y = Mul (x, k) }}"
    model = ir.from_proto(lab.model(text, 13, c=values))
    clean(model)
    k = model.graph.initializers["k"].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(k, values.astype(np.float64).mean(keepdims=True).astype(k.dtype))


@pytest.mark.parametrize(
    ("nodes", "arrays"),
    [
        ("k = Div (a, b)", {"a": np.array([-7, 7]), "b": np.array([2, -2])}),
        ("k = Sqrt (a)", {"a": np.array([-1.0], np.float32)}),
        ("k = Div (a, b)", {"a": np.ones(1, np.float32), "b": np.zeros(1, np.float32)}),
        ("k = Cast <to=10> (a)", {"a": np.array([1e6], np.float32)}),
        ("k = Cast <to=7> (a)", {"a": np.array([1.5, np.nan], np.float32)}),
        ("k = Gather (a, b)", {"a": np.ones(3, np.float32), "b": np.array([5])}),
        ("k = Reshape (a, b)", {"a": np.ones(3, np.float32), "b": np.array([2, 2])}),
        ("k = Add (a, b)", {"a": np.ones((8000, 1), np.float32), "b": np.ones((1, 8000), np.float32)}),
        ("k = Bernoulli (a)", {"a": np.full(8, 0.5, np.float32)}),
        ("k = RandomNormalLike (a)", {"a": np.full(8, 0.5, np.float32)}),
    ],
    ids=str,
)
def test_stays(lab: Any, nodes: str, arrays: dict[str, Any]) -> None:
    """Integer division, results that are not finite or would fail, large ones, and random numbers."""
    outcome = lab.optimize(
        lab.model(
            f"(float[1] x) => (float[1] z) {{ {nodes} s = Shape (k) q = Cast <to=1> (s) z = ReduceSum <keepdims=0>"
            f" (q) }}",
            **arrays,
        ),
        check=False,
    )
    assert nodes.split()[2] in outcome.ops or "k" not in {item.name for item in outcome.after.graph.initializer}
