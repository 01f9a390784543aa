"""fuse/switchable-norm: the authors' code and others, and what the op cannot say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxnorm

from .spelling import CODES, attributes, becomes, build, number, parameters, refuses, sample

RULE, OP = "fuse/switchable-norm", "SwitchableNorm"
AXES = {"pos": np.array([2, 3]), "ch": np.array([1]), "all": np.array([1, 2, 3]), "n": number(20.0), "d": number(19.0)}
#: mean_in (m), unbiased var_in (v), mean_ln (ml) and var_ln (vl).
INSTANCES = [
    "m = ReduceMean (x, pos) c = Sub (x, m) q = Mul (c, c) s = ReduceSum (q, pos) v = Div (s, d)",
    "m = ReduceMean (x, pos) q = Pow (x, two) ms = ReduceMean (q, pos) p = Mul (m, m) b = Sub (ms, p) "
    "bn = Mul (n, b) v = Div (bn, d)",
    "m = GlobalAveragePool (x) c = Sub (x, m) k1 = ReduceSumSquare <keepdims=0> (c, pos) k2 = Div (k1, d) "
    "v = Unsqueeze (k2, pos)",
]
LAYERS = [
    "ml = ReduceMean (m, ch) p1 = Pow (m, two) t = Add (v, p1) p2 = ReduceMean (t, ch) p3 = Pow (ml, two) "
    "vl = Sub (p2, p3)",
    "ml = ReduceMean (x, all) p1 = ReduceMean (v, ch) p2 = Sub (ml, m) p3 = Mul (p2, p2) p4 = ReduceMean (p3, ch) "
    "vl = Add (p4, p1)",
]
BLENDS = [
    "a1 = Mul (a, m) a2 = Mul (ml, b0) a3 = Add (a1, a2) mean = Add (a3, rm) "
    "c1 = Mul (g, v) c2 = Mul (h, vl) c3 = Add (c1, c2) var = Add (rv, c3)",
    "a1 = Mul (a, m) a2 = Mul (ml, b0) a3 = Add (a1, rm) mean = Add (a2, a3) "
    "c1 = Mul (v, g) c2 = Mul (vl, h) c3 = Add (rv, c2) var = Sum (c3, c1)",
]
TAILS = [
    "z = Sub (x, mean) e0 = Add (var, eps) r = Sqrt (e0) k = Div (z, r) f = Mul (w, k) y = Add (f, o)",
    "z = Sub (x, mean) e0 = Add (eps, var) r = Pow (e0, minus) k0 = Mul (r, w) k = Mul (z, k0) y = Add (k, o)",
    "z = Sub (x, mean) e = Add (eps, var) r = Sqrt (e) i = Reciprocal (r) k = Mul (z, i) f = Mul (k, w) y = Sub (f, o)",
    "e = Add (eps, var) r = Sqrt (e) k = Div (w, r) kx = Mul (x, k) km = Mul (k, mean) "
    "rest = Sub (o, km) y = Add (kx, rest)",
    "e = Add (var, eps) r = Sqrt (e) k = Reciprocal (r) kx = Mul (k, x) km = Mul (mean, k) z = Sub (kx, km) "
    "f = Mul (z, w) y = Add (f, o)",
]
CORE = f"{INSTANCES[0]} {LAYERS[0]} {BLENDS[0]} {TAILS[0]}"


def weights(lab: Any, shape: tuple[int, ...] = (6, 1, 1), dtype: str = "float32") -> dict[str, Any]:
    """0.5 and 0.2 of the mean, 0.3 and 0.4 of the variance; the batch's share is in rm and rv."""
    scalars = {"a": 0.5, "b0": 0.2, "g": 0.3, "h": 0.4}
    made = {name: number(value, dtype) for name, value in scalars.items()}
    made |= {"rm": lab.array(*shape, dtype=dtype), "rv": lab.array(*shape, dtype=dtype, seed=1, low=0.1, high=1.0)}
    return made | {"w": lab.array(*shape, dtype=dtype, seed=2), "o": lab.array(*shape, dtype=dtype, seed=3)}


@pytest.mark.parametrize(("instance", "tail"), [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)])
@pytest.mark.parametrize("layer", range(2))
def test_every_spelling(lab: Any, instance: int, layer: int, tail: int) -> None:
    nodes = f"{INSTANCES[instance]} {LAYERS[layer]} {BLENDS[layer]} {TAILS[tail]}"
    model = build(lab, nodes, x="3,6,4,5", **AXES, **weights(lab))
    outcome = becomes(lab, model, [OP], RULE)
    scale, bias, mean_weight, var_weight, mean, var = parameters(outcome, OP)
    given = weights(lab)
    np.testing.assert_allclose(mean_weight, [0.5, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(var_weight, [0.3, 0.4, 0.3], rtol=1e-6)
    np.testing.assert_allclose(mean * 0.3, given["rm"].reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(var * 0.3, given["rv"].reshape(-1), rtol=1e-6)
    np.testing.assert_array_equal(scale, given["w"].reshape(-1))
    np.testing.assert_array_equal(bias, given["o"].reshape(-1) * (-1 if tail == 2 else 1))
    assert attributes(outcome, OP) == {"epsilon": np.float32(1e-3), "activation": b"none", "channels_last": 0}


@pytest.mark.parametrize("branch", ["a3", "c3"])
def test_without_the_batch_and_with_a_weight_of_it_that_is_not_the_rest(lab: Any, branch: str) -> None:
    blend = BLENDS[0].replace(" mean = Add (a3, rm)", "").replace(" var = Add (rv, c3)", "")
    nodes = f"{INSTANCES[0]} {LAYERS[0]} {blend} " + TAILS[0].replace("mean", "a3").replace("var", "c3")
    if branch == "a3":
        given = weights(lab) | {"b0": number(0.5), "h": number(0.7)}
        expected = [0.5, 0.5, 0.0]
    else:
        nodes = nodes.replace("z = Sub (x, a3)", "z0 = Sub (x, rm) z = Sub (z0, a3)")
        given, expected = weights(lab) | {"b0": number(0.5)}, [0.5, 0.5, 1.0]
    outcome = becomes(lab, build(lab, nodes, x="3,6,4,5", **AXES, **given), [OP], RULE)
    np.testing.assert_allclose(parameters(outcome, OP)[2], expected, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_channels_last_types_and_opsets(lab: Any, dtype: str) -> None:
    opset = {"float16": 13, "bfloat16": 21, "float64": 17}[dtype]
    axes = {"pos": np.array([1, 2]), "ch": np.array([3]), "all": np.array([1, 2, 3])}
    nodes = CORE
    if opset < 18:
        nodes = nodes.replace("ReduceMean (x, pos)", "ReduceMean <axes=[1, 2]> (x)")
        nodes = nodes.replace("(m, ch)", "<axes=[3]> (m)").replace("(t, ch)", "<axes=[-1]> (t)")
    numbers = {"n": number(20.0, dtype), "d": number(19.0, dtype)}
    model = build(lab, nodes, dtype, opset, x="3,4,5,6", **axes, **numbers, **weights(lab, (6,), dtype))
    assert attributes(becomes(lab, model, [OP], RULE, (3, 4, 5, 6), dtype), OP)["channels_last"] == 1


def test_float32_inside(lab: Any) -> None:
    core = CORE.replace("(x,", "(f0,").replace("y = Add", "last = Add")
    nodes = f"f0 = Cast <to=1> (x) {core} y = Cast <to={CODES['float16']}> (last)"
    wide = {name: value.astype("float32") for name, value in weights(lab, dtype="float16").items()}
    wide |= {name: number(value) for name, value in {"a": 0.5, "b0": 0.25, "g": 0.25, "h": 0.25}.items()}
    wide |= {"eps": number(1e-3), "two": number(2.0), **AXES}
    outcome = lab.optimize(build(lab, nodes, "float16", x="3,6,4,5", **wide))
    assert outcome.ops in ([OP], ["Cast", OP, "Cast"])
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5), "float16")}, eps=lab.eps("float16"))


def test_an_even_weight_of_a_biased_variance(lab: Any) -> None:
    """Without a layer branch its weight takes the factor."""
    nodes = f"{INSTANCES[0].replace('Div (s, d)', 'Div (s, n)')} a1 = Mul (a, m) mean = Add (a1, rm) "
    nodes += f"c1 = Mul (g, v) var = Add (c1, rv) {TAILS[0]}"
    outcome = becomes(lab, build(lab, nodes, x="3,6,4,5", **AXES, **weights(lab)), [OP], RULE)
    assert parameters(outcome, OP)[3][0] == pytest.approx(0.3 * 19 / 20, rel=1e-6)


def test_verified(lab: Any) -> None:
    assert lab.optimize(build(lab, CORE, x="3,6,4,5", **AXES, **weights(lab)), verify=True).ops == [OP]


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("v = Div (s, d)", "v = Div (s, n)", "its layer variance is not the mean of unbiased variances"),
        ("p3 = Pow (ml, two) vl = Sub (p2, p3)", "vl = Mul (p2, one)", "its layer variance is not"),
        ("c1 = Mul (g, v)", "c1 = Mul (rv, v)", "the weight of a statistic varies over the channels"),
        ("c3 = Add (c1, c2)", "c4 = Mul (m, ml) c5 = Add (c1, c4) c3 = Add (c2, c5)", "has a term that is none"),
        ("(var, eps)", "(var, minus)", "epsilon is not one"),
    ],
)
def test_refuses_another_function(lab: Any, old: str, new: str, words: str) -> None:
    assert old in CORE
    model = build(lab, CORE.replace(old, new), x="3,6,4,5", **AXES, **weights(lab))
    refuses(lab, model, RULE, OP, words, (3, 6, 4, 5) if "minus" not in new else None)


def test_refuses_a_biased_variance_of_any_number_of_values(lab: Any) -> None:
    nodes = CORE.replace("s = ReduceSum (q, pos) v = Div (s, d)", "v = ReduceMean (q, pos)")
    refuses(lab, build(lab, nodes, **AXES, **weights(lab)), RULE, OP, "is the biased one")


@pytest.mark.parametrize(("more", "out"), [(" u = Neg (v)", "u"), ("", "v")])
def test_refuses_other_readers_and_graph_outputs(lab: Any, more: str, out: str) -> None:
    words = "other readers" if more else "a graph output"
    model = build(lab, CORE + more, x="3,6,4,5", out=f", float[3,6,1,1] {out}", **AXES, **weights(lab))
    refuses(lab, model, RULE, OP, words)


def test_refuses_an_overridable_parameter(lab: Any) -> None:
    model = build(lab, CORE, x="3,6,4,5", **AXES, **weights(lab))
    model.graph.input.extend(lab.model("(float[6,1,1] rm) => (float y) { y = Abs (rm) }").graph.input)
    refuses(lab, model, RULE, OP, "a caller may override its parameter rm")


def test_refuses_an_unknown_number_of_channels(lab: Any) -> None:
    given = weights(lab, ()) | {"b0": number(0.5), "h": number(0.7)}
    nodes = CORE.replace("mean = Add (a3, rm)", "mean = Mul (a3, one)").replace(
        "var = Add (rv, c3)", "var = Mul (c3, one)"
    )
    refuses(lab, build(lab, nodes, x="3,C,4,5", **AXES, **given), RULE, OP, "the number of channels is not known")


def test_refuses_narrow_statistics(lab: Any) -> None:
    cast = f"m0 = ReduceMean (x, pos) m1 = Cast <to={CODES['float16']}> (m0) m = Cast <to=1> (m1)"
    model = build(lab, CORE.replace("m = ReduceMean (x, pos)", cast), x="3,6,4,5", **AXES, **weights(lab))
    assert OP not in lab.optimize(model).ops


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("r = Sqrt (e0)", "r0 = Sqrt (var) r = Add (r0, eps)"),  # epsilon outside the root
        ("(x, pos)", "(x, row)"),  # a mean over one of two axes
        ("(m, ch)", "(m, zeroth)"),  # the mean of the batch, not of the layer
        ("p1 = Pow (m, two)", "p1 = Pow (m, three)"),
    ],
)
def test_another_function_stays(lab: Any, old: str, new: str) -> None:
    more = {"row": np.array([3]), "zeroth": np.array([0]), "three": number(3.0)}
    assert old in CORE
    outcome = lab.optimize(build(lab, CORE.replace(old, new), x="3,6,4,5", **AXES, **more, **weights(lab)))
    assert OP not in outcome.ops
    lab.same(outcome, {"x": sample(lab, (3, 6, 4, 5)) + 1})


def test_a_constant_along_an_axis_as_long_as_the_channels_stays(lab: Any) -> None:
    given = weights(lab) | {"rm": lab.array(6)}
    outcome = lab.optimize(build(lab, CORE, x="3,6,4,6", **(AXES | {"d": number(23.0)}), **given))
    assert OP not in outcome.ops


# --- PyTorch modules ----------------------------------------------------------------------------------------------


class _Authors(nn.Module):
    """In the way of the published code, for any number of axes; the running statistics are of the shape of x.view."""

    def __init__(self, shape: tuple[int, ...], batch: bool) -> None:
        super().__init__()
        channels, ones = shape[1], (1,) * (len(shape) - 2)
        self.weight = nn.Parameter(torch.rand(1, channels, *ones) + 0.5)
        self.bias = nn.Parameter(torch.randn(1, channels, *ones))
        branches = 1 + batch + (len(shape) > 2)
        self.mean_weight, self.var_weight = nn.Parameter(torch.randn(branches)), nn.Parameter(torch.randn(branches))
        flat = (1, channels, 1)[: len(shape)]
        self.batch = batch
        self.register_buffer("running_mean", torch.randn(flat))
        self.register_buffer("running_var", torch.rand(flat) + 0.5)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input
        if x.dim() == 2:
            means, variances = [x.mean(1, keepdim=True)], [x.var(1, keepdim=True)]
        else:
            x = input.view(input.size(0), input.size(1), -1)
            mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
            mean_ln = mean_in.mean(1, keepdim=True)
            temp = var_in + mean_in**2
            means, variances = [mean_in, mean_ln], [var_in, temp.mean(1, keepdim=True) - mean_ln**2]
        if self.batch:
            means.append(self.running_mean)
            variances.append(self.running_var)
        softmax = nn.Softmax(0)
        mean_weight, var_weight = softmax(self.mean_weight), softmax(self.var_weight)
        mean = sum(mean_weight[index] * value for index, value in enumerate(means))
        var = sum(var_weight[index] * value for index, value in enumerate(variances))
        x = (x - mean) / (var + 1e-5).sqrt()
        return x.view(input.shape) * self.weight + self.bias


@pytest.mark.parametrize(
    ("shape", "batch", "dynamic"),
    [
        ((3, 6), True, False),
        ((2, 6, 9), True, False),
        ((2, 6, 4, 5), True, True),
        ((2, 6, 4, 5), False, False),
        ((2, 6, 3, 4, 5), True, True),
    ],
)
def test_the_authors_code(shape: tuple[int, ...], batch: bool, dynamic: bool) -> None:
    torch.manual_seed(0)
    module, x = _Authors(shape, batch).eval(), torch.randn(shape)
    names = {axis: f"size{axis}" for axis in range(len(shape)) if axis != 1}
    result = onnxnorm.export(module, (x,), dynamic_shapes=(names,) if dynamic else None)
    assert [node.op_type for node in result.model.graph] == [OP], result.explain()
    onnxnorm.check(module, result.model, x).assert_passed()
