"""Which training ops move which state, in graphs written by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxnorm
from onnxnorm.errors import ModelError
from onnxnorm.model_file import load_model
from onnxnorm.passes.state import read_state
from onnxnorm.recalibration.layers import find_states
from onnxnorm.spec.schema import register_schemas

Array = np.ndarray[Any, Any]
NORM = "onnxnorm.BatchNormTraining <epsilon: float = 1e-5>"
INITIALIZERS = """
<float[4] m = {0.5, 0.0, 1.0, 2.0}, float[4] v = {1.0, 2.0, 1.0, 4.0}, float[4] s = {1.0, 2.0, 3.0, 4.0},
 float[1] mo = {0.25}, float n = {3.0}, float one = {1.0}, int64[1] axis = {0}>
"""


def model(body: str, state: dict[str, str], inputs: str = "", outputs: str = "") -> onnx.ModelProto:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20, "onnxnorm" : 1]>
    g (float[N, 4] x, float[4] m, float[4] v{inputs}) => (float[N, 4] y, float[4] nm, float[4] nv{outputs})
    {INITIALIZERS} {{ {body} }}
    """
    proto = onnx.parser.parse_model(text)
    onnx.helper.set_model_props(proto, {"onnxnorm.state": json.dumps(state)})
    return proto


STATE = {"m": "nm", "v": "nv"}
PLAIN = f"y, nm, nv = {NORM} (x, s, s, m, v, mo)"
X = (np.random.default_rng(0).standard_normal((12, 4)) * 3 + 1).astype(np.float32)


def evaluated(x: Array, size: int) -> Array:
    """Float64: the mean over the batches of mean and unbiased variance, applied."""
    batches = np.split(x.astype(np.float64), len(x) // size)
    mean = np.mean([batch.mean(0) for batch in batches], axis=0)
    var = np.mean([batch.var(0, ddof=1) for batch in batches], axis=0)
    scale = np.array([1.0, 2.0, 3.0, 4.0])
    return np.asarray((x - mean) / np.sqrt(var + 1e-5) * scale + scale)


BODIES: dict[str, str] = {
    "plain": PLAIN,
    "renamed-and-copied": f"""
        a = Identity (m) b = Cast <to: int = 1> (v)
        y, c, d = {NORM} (x, s, s, a, b, mo)
        e = CastLike (c, m) nm = Identity (e) nv = Identity (d)
    """,
    "momentum-from-the-state": f"""
        half = Mul (mo, mo)
        y, nm, nv = {NORM} (x, s, s, m, v, half)
    """,
}


@pytest.mark.parametrize("body", BODIES)
def test_states_of_layers(body: str) -> None:
    proto = model(BODIES[body], STATE)
    register_schemas()
    loaded = load_model(proto)
    states = find_states(loaded, read_state(loaded))
    assert [[item.key for item in layer.moved] for layer in states.layers] == [["m", "v"]]
    result = onnxnorm.recalibrate(proto, X, batch_size=4)
    assert [node.op_type for node in result.model.graph] == ["BatchNormalization"]
    assert [(value.name, str(value.shape)) for value in result.model.graph.outputs] == [("y", "[N,4]")]
    (got,) = onnxnorm.InferenceSession(result.model).run(None, {"x": X})
    np.testing.assert_allclose(got, evaluated(X, 4), rtol=0, atol=2e-6 * np.abs(got).max())


def test_a_state_with_a_misleading_name() -> None:
    """Names of states are the user's: none is taken for something else."""
    body = f"{PLAIN} nn = Add (n, one)"
    proto = model(body, {**STATE, "n": "nn"}, ", float n", ", float nn")
    text = proto.SerializeToString()
    renamed = onnx.load_from_string(text)
    for old, new in (("n", "shape:0"), ("m", "layer:0:1")):
        for value in (*renamed.graph.input, *renamed.graph.initializer):
            value.name = new if value.name == old else value.name
        for node in renamed.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
    state = {"shape:0": "nn", "layer:0:1": "nm", "v": "nv"}
    onnx.helper.set_model_props(renamed, {"onnxnorm.state": json.dumps(state)})
    runs = [onnxnorm.InferenceSession(onnxnorm.recalibrate(each, X, batch_size=4).model) for each in (proto, renamed)]
    np.testing.assert_array_equal(*(run.run(None, {"x": X})[0] for run in runs))


def test_free_states_and_bound_ones() -> None:
    body = f"{PLAIN} nn = Add (n, one)"
    loaded = load_model(model(body, {**STATE, "n": "nn"}, ", float n", ", float nn"))
    assert find_states(loaded, read_state(loaded)).free == ("n",)
    sized = "sh = Shape (x) size = ReduceMax <keepdims: int = 0> (sh) fsize = Cast <to: int = 1> (size)"
    body = f"{PLAIN} {sized} nn = Add (n, fsize)"  # sizes are no data
    loaded = load_model(model(body, {**STATE, "n": "nn"}, ", float n", ", float nn"))
    assert find_states(loaded, read_state(loaded)).free == ("n",)
    body = f"{PLAIN} top = ReduceMax <keepdims: int = 0> (x) nn = Add (n, top)"
    proto = model(body, {**STATE, "n": "nn"}, ", float n", ", float nn")
    loaded = load_model(proto)
    assert find_states(loaded, read_state(loaded)).bound["n"].op_type == "Add"
    with pytest.raises(ModelError, match=r"state 'n' is computed from the data by Add"):
        onnxnorm.recalibrate(proto, X, batch_size=4)


@pytest.mark.parametrize(
    ("body", "node"),
    [
        (f"y, nv, nm = {NORM} (x, s, s, m, v, mo)", "BatchNormTraining"),  # crossed: mean into variance
        (f"y, a, nv = {NORM} (x, s, s, m, v, mo) nm = Clip (a)", "Clip"),
        (f"y, a, nv = {NORM} (x, s, s, s, v, mo) nm = Identity (a)", "BatchNormTraining"),  # reads another mean
    ],
)
def test_updates_that_are_not_the_ops_own(body: str, node: str) -> None:
    with pytest.raises(ModelError, match=rf"state '[mv]' is computed from the data by .*{node}"):
        onnxnorm.recalibrate(model(body, STATE), X, batch_size=4)


def test_a_training_op_in_a_branch() -> None:
    body = f"""
        c = Constant <value_int: int = 1> () b = Cast <to: int = 9> (c)
        y, nm, nv = If (b) <
            then_branch = t () => (float[N, 4] p, float[4] q, float[4] r) {{ p, q, r = {NORM} (x, s, s, m, v, mo) }},
            else_branch = e () => (float[N, 4] i, float[4] j, float[4] k)
                {{ i = Identity (x) j = Identity (m) k = Identity (v) }}
        >
    """
    with pytest.raises(ModelError, match=r"BatchNormTraining .* stands in a subgraph or function"):
        onnxnorm.recalibrate(model(body, STATE), X, batch_size=4)


def test_a_graph_without_stored_sizes_needs_a_batch_size() -> None:
    with pytest.raises(onnxnorm.UsageError, match=r"does not say the batch size .* give batch_size"):
        onnxnorm.recalibrate(model(PLAIN, STATE), X)


def test_metadata_that_names_what_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"names the output 'next.m', which the graph has not"):
        onnxnorm.recalibrate(model(PLAIN, {"m": "next.m"}), X)
