"""Norms of weights in an export: the nodes of the plain layer, and the weight of the float64 run rounded once."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm

import onnxnorm
from onnxnorm.exporter.copying import as_double, copy_module

from .conftest import assert_equals_module, export_to, lively, randn

RULE = "fold/constant-weight"
TYPES = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
TOKENS = torch.tensor([[1, 0, 9], [3, 3, 2]])


def inputs_of(layer: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if isinstance(layer, nn.Embedding):
        return TOKENS
    if isinstance(layer, nn.Linear):
        return randn(3, layer.in_features).to(dtype)
    rank = layer.weight.ndim - 2  # type: ignore[operator,union-attr]
    return randn(2, layer.in_channels, *(7, 6, 5)[:rank]).to(dtype)  # type: ignore[arg-type]


def weight_of(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The weight in the float64 run of the module in eval mode, in which a power iteration takes no step."""
    double = copy_module(module, as_double).eval()
    with torch.no_grad():
        double(x.double() if x.is_floating_point() else x)  # hooks compute the weight in the forward pass
        made = double.made() if hasattr(double, "made") else double.weight
    return made.detach().numpy()  # type: ignore[no-any-return,union-attr]


def ops(result: onnxnorm.Result) -> list[str]:
    return [node.op_type for node in result.model.graph]


@functools.cache
def ops_of_plain(make: Callable[[], nn.Module], dtype: torch.dtype, options: tuple[tuple[str, Any], ...]) -> list[str]:
    layer = make().to(dtype)
    return ops(onnxnorm.export(layer, (inputs_of(layer, dtype),), **dict(options)))


def check_plain(
    module: nn.Module, x: torch.Tensor, plain: Callable[[], nn.Module], numbers: bool = False, **options: Any
) -> onnxnorm.Result:
    """The export has the nodes of the plain layer's, its weight is the truth rounded once, and one decision says so.

    ``numbers`` says that the module's code holds numbers that are none of float32, which is what the exporter writes.
    """
    result = onnxnorm.export(module, (x,), **options)
    dtype = next(parameter.dtype for parameter in module.parameters())
    assert ops(result) == ops_of_plain(plain, dtype, tuple(options.items()))
    decisions = [item for item in result.decisions if item.rule == RULE]
    assert [item.action.value for item in decisions] == ["folded"], result.explain()
    truth = weight_of(module, x)
    found = [value.const_value.numpy() for value in result.model.graph.initializers.values()]  # type: ignore[union-attr]
    same = [array for array in found if array.size == truth.size]
    assert len(same) == 1, {name: value.shape for name, value in result.model.graph.initializers.items()}
    # ONNX Runtime's CPU provider has no bfloat16 layers: there the rounded weight is stored as float32.
    assert same[0].dtype in ((np.float32, TYPES[dtype]) if dtype == torch.bfloat16 else (TYPES[dtype],))
    stored = same[0] if same[0].shape == truth.shape else same[0].T
    if numbers or dtype == torch.float64:
        np.testing.assert_allclose(stored, truth, rtol=2.0**-22 if numbers else 1e-12, atol=1e-14)
    else:
        np.testing.assert_array_equal(stored.astype(np.float64), truth.astype(TYPES[dtype]).astype(np.float64))
    return result


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "conv2d": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "conv3d": lambda: nn.Conv3d(2, 4, 2),
    "transposed1d": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "transposed2d": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "transposed3d": lambda: nn.ConvTranspose3d(3, 4, 2),
    "embedding": lambda: nn.Embedding(10, 6),
}


def weight_normed(layer: nn.Module, hooked: bool, dim: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older form is deprecated
        return (hooked_weight_norm if hooked else parametrizations.weight_norm)(layer, dim=dim)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "dim", "hooked"),
    [
        *(("linear", dim, False) for dim in (None, 0, 1)),
        *(("linear", dim, True) for dim in (None, 1)),
        *(("conv1d", 2, False), ("conv1d", 0, True)),
        *(("conv2d", dim, False) for dim in (None, -1, 0, 1)),
        *(("conv2d", dim, True) for dim in (0, -1)),
        *(("conv3d", 0, True), ("conv3d", 1, False)),
        *(("transposed1d", 1, False), ("transposed2d", 0, True), ("transposed3d", 2, False)),
        *(("embedding", 0, True), ("embedding", 1, False)),
    ],
)
def test_weight_norm(name: str, dim: int | None, hooked: bool) -> None:
    layer = LAYERS[name]()
    module = lively(weight_normed(copy.deepcopy(layer), hooked, dim))
    result = check_plain(module, inputs_of(layer), LAYERS[name])
    assert "(weight norm)" in str(result.decisions[0])


@pytest.mark.parametrize("hooked", [False, True], ids=["parametrization", "hook"])
@pytest.mark.parametrize("name", LAYERS)
def test_spectral_norm(name: str, hooked: bool) -> None:
    layer = LAYERS[name]()
    normed = (hooked_spectral_norm if hooked else parametrizations.spectral_norm)(copy.deepcopy(layer))
    x = inputs_of(layer)
    normed(x)  # one step of the power iteration
    before = {key: value.clone() for key, value in normed.state_dict().items()}
    result = check_plain(normed, x, LAYERS[name])
    assert "(spectral norm)" in str(result.decisions[0])
    for key, value in normed.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("name", "norm", "hooked", "dtype"),
    [
        ("linear", "weight", False, torch.float64),
        ("linear", "weight", True, torch.float16),
        ("linear", "spectral", True, torch.bfloat16),
        ("linear", "spectral", False, torch.float64),
        ("conv2d", "weight", True, torch.bfloat16),
        ("conv2d", "spectral", False, torch.float16),
        ("embedding", "weight", False, torch.float16),
    ],
)
def test_element_types(name: str, norm: str, hooked: bool, dtype: torch.dtype) -> None:
    layer = LAYERS[name]()
    x = inputs_of(layer, dtype)
    if norm == "weight":
        module = weight_normed(copy.deepcopy(layer), hooked, 0)
    else:
        module = (hooked_spectral_norm if hooked else parametrizations.spectral_norm)(copy.deepcopy(layer))
    check_plain(module.to(dtype).eval(), x, LAYERS[name])


@pytest.mark.parametrize(("opset", "target"), [(18, "onnxnorm"), (20, "standard"), (23, "onnxnorm"), (25, "standard")])
def test_opsets_and_targets(opset: int, target: str) -> None:
    layer = LAYERS["conv2d"]()
    module = lively(weight_normed(copy.deepcopy(layer), False, 0))
    check_plain(module, inputs_of(layer), LAYERS["conv2d"], opset=opset, target=target, verify=True)


# --- weight standardization, and what people write ----------------------------------------------------------------


class Computed(nn.Module):
    """A convolution whose weight is made of parameters in each call."""

    def __init__(self, make: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.make = make
        self.parts = nn.ParameterList(randn(*shape, seed=index) for index, shape in enumerate(shapes))
        self.bias = nn.Parameter(randn(6, seed=9))

    def made(self) -> torch.Tensor:
        return self.make(*self.parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.made(), self.bias)


def plain_conv() -> nn.Module:
    return nn.Conv2d(4, 6, 3)


W = (6, 4, 3, 3)
REST = (1, 2, 3)


def _std(w: torch.Tensor) -> torch.Tensor:
    return (w - w.mean(REST, keepdim=True)) / (w.std(REST, keepdim=True) + 1e-5)


def _scaled_std(w: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """As in NF-ResNets, without batch norm."""
    var, mean = torch.var_mean(w, dim=REST, keepdim=True)
    scale = torch.rsqrt(torch.clamp(var * math.prod(W[1:]), min=1e-4))
    return w * scale * gain - mean * scale * gain


def _orthogonal_by_cayley(a: torch.Tensor) -> torch.Tensor:
    skew = torch.triu(a, 1) - torch.triu(a, 1).T
    return (torch.eye(6) + skew + skew @ skew / 2)[:, :4, None, None].expand(6, 4, 3, 3) * 1.0


USERS: dict[str, tuple[Callable[..., torch.Tensor], list[tuple[int, ...]]]] = {
    "mean and std": (_std, [W]),
    "var_mean": (_scaled_std, [W, (6, 1, 1, 1)]),
    "biased var": (
        lambda w: (w - w.mean(REST, True)) / torch.sqrt(w.var(REST, unbiased=False, keepdim=True) + 1e-6),
        [W],
    ),
    "batch norm": (
        lambda w: F.batch_norm(w.reshape(1, 6, -1), None, None, training=True, momentum=0.0).reshape(W),
        [W],
    ),
    "batch norm with gain": (
        lambda w, g: F.batch_norm(w.view(1, 6, -1), None, None, g, training=True, momentum=0.0, eps=1e-6).view_as(w),
        [W, (6,)],
    ),
    "layer norm": (lambda w: F.layer_norm(w, W[1:]), [W]),
    "group norm": (lambda w: F.group_norm(w, 1, eps=1e-3), [W]),
    "instance norm": (F.instance_norm, [W]),
    "rms norm": (lambda w: F.rms_norm(w, W[1:], eps=1e-6), [W]),
    "flat and expanded": (
        lambda w: (
            (w - w.view(6, -1).mean(1).view(6, 1, 1, 1)) / (w.view(6, -1).std(1).view(-1, 1, 1, 1) + 1e-5).expand_as(w)
        ),
        [W],
    ),
    "normalize": (lambda w, g: F.normalize(w.flatten(1)).view_as(w) * g, [W, (6, 1, 1, 1)]),
    "normalize by l1": (lambda w: F.normalize(w.flatten(1), p=1.0).view_as(w), [W]),
    "norm of order 3": (lambda w: w / torch.linalg.vector_norm(w, 3, REST, keepdim=True), [W]),
    "largest": (lambda w: w / w.abs().amax(REST, keepdim=True), [W]),
    "frobenius": (lambda w: w / w.norm(), [W]),
    "low rank update": (lambda w, b, a: w + 0.25 * (b @ a).view_as(w), [W, (6, 2), (2, 36)]),
    "einsum": (lambda w, m: torch.einsum("oihw,op->pihw", w, m), [W, (6, 6)]),
    "equalized learning rate": (lambda w: w * math.sqrt(2 / 36), [W]),
    "mask": (lambda w, m: w * (m.abs() > 0.5), [W, W]),
    "masked fill": (lambda w: w.masked_fill(w.abs() < 0.1, 0.0), [W]),
    "tanh and softmax": (lambda w, g: torch.tanh(w) * g.softmax(0)[:, None, None, None], [W, (6,)]),
    "sines": (lambda w: torch.sin(w) * torch.cos(w) + torch.erf(w) + w.sign() * F.softplus(w), [W]),
    "parts": (lambda a, b: torch.cat([a * 2, b.flip(0) + 1]), [(2, 4, 3, 3), (4, 4, 3, 3)]),
    "skew": (_orthogonal_by_cayley, [(6, 6)]),
    "cumulative": (lambda w: w.cumsum(1) / 4, [W]),
    "casts": (lambda w: (w.float() / w.float().norm()).type_as(w), [W]),
    "symmetric": (lambda w: (w + w.flip(-1) + w.transpose(2, 3)) / 3, [W]),
    "centre kept at zero": (lambda w: torch.where(torch.eye(3, dtype=torch.bool), w, w - w.mean()), [W]),
}


NUMBERS = {"norm of order 3", "equalized learning rate", "symmetric", "casts"}


@pytest.mark.parametrize("name", USERS)
def test_what_people_write(name: str) -> None:
    make, shapes = USERS[name]
    module = Computed(make, *shapes)
    check_plain(module, randn(2, 4, 7, 6), plain_conv, name in NUMBERS, verify=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mean and std", torch.float16),
        ("var_mean", torch.bfloat16),
        ("batch norm with gain", torch.float64),
        ("batch norm", torch.float16),
        ("normalize", torch.float16),
        ("normalize", torch.float64),
        ("casts", torch.bfloat16),
        ("rms norm", torch.float64),
    ],
)
def test_what_people_write_in_other_types(name: str, dtype: torch.dtype) -> None:
    make, shapes = USERS[name]
    check_plain(Computed(make, *shapes).to(dtype), randn(2, 4, 7, 6).to(dtype), plain_conv)


# --- whole layers and models --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("name", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"])
def test_timm(tmp_path: Path, name: str) -> None:
    """Standardized convolutions, and the batch norm behind one folds into it."""
    import timm.layers

    norm = nn.Identity() if name.startswith("Scaled") else nn.BatchNorm2d(6)
    module = lively(nn.Sequential(getattr(timm.layers, name)(4, 6, 3, stride=2), norm)).eval()
    x = randn(2, 4, 9, 8)
    path, model, result = export_to(tmp_path, module, (x,), verify=True)
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Pad"}
    assert "(weight standardization)" in str(result.decisions[0])
    assert_equals_module(path, module, (x,))


class Mixed(nn.Module):
    """Every kind of weight norm in one model, one layer used twice, an embedding tied to the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = parametrizations.spectral_norm(nn.Embedding(10, 6))
        self.first = weight_normed(nn.Conv1d(6, 6, 3, padding=1), True, 0)
        self.norm = nn.BatchNorm1d(6)
        self.second = hooked_spectral_norm(nn.Conv1d(6, 6, 1))
        self.last = weight_normed(nn.Linear(6, 6), False, None)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(1, 2)
        x = F.relu(self.norm(self.first(x)))
        x = self.second(self.second(x))
        return F.linear(self.last(x.transpose(1, 2)), self.embed.weight)


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_a_model_of_all(tmp_path: Path, target: str) -> None:
    module = lively(Mixed()).eval()
    with torch.no_grad():
        module(TOKENS)
    attributes = {name: vars(part).copy() for name, part in module.named_modules()}
    path, model, result = export_to(tmp_path, module, (TOKENS,), target=target, verify=True)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"ReduceL2", "Div", "Mul", "BatchNormalization"}
    done = [item.rule for item in result.decisions if (item.rule or "").startswith(RULE)]
    assert sorted(map(str, done)) == [RULE, RULE, RULE, f"{RULE}, fold/linear-into-conv"]  # the layer used twice is one
    assert_equals_module(path, module, (TOKENS,))
    for name, part in module.named_modules():
        assert vars(part).keys() == attributes[name].keys()
        assert all(vars(part)[key] is value for key, value in attributes[name].items()), name


def test_dynamic_shapes(tmp_path: Path) -> None:
    module = lively(nn.Sequential(weight_normed(nn.Conv2d(3, 4, 3), False, 0), nn.BatchNorm2d(4))).eval()
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    path, model, _ = export_to(tmp_path, module, (randn(2, 3, 8, 9),), dynamic_shapes=(dims,))
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    for shape in ((2, 3, 8, 9), (1, 3, 5, 12)):
        assert_equals_module(path, module, (randn(*shape),))


def test_recurrent(tmp_path: Path) -> None:
    """One hook for each weight of an LSTM, as AWD-LSTM and audio models have it."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(5, 4, batch_first=True)
            parametrizations.weight_norm(self.lstm, "weight_hh_l0")

        def forward(self, x: torch.Tensor) -> Any:
            return self.lstm(x)[0]

    module = lively(Tagger()).eval()
    path, model, result = export_to(tmp_path, module, (randn(2, 3, 5),))
    assert "ReduceL2" not in {node.op_type for node in model.graph.node}
    assert any(item.rule == RULE for item in result.decisions)
    assert_equals_module(path, module, (randn(2, 3, 5),))


def test_optimize_of_what_pytorch_exports(tmp_path: Path) -> None:
    """The same from a file that PyTorch's own exporter wrote."""
    module = lively(nn.Sequential(weight_normed(nn.Conv2d(3, 4, 3), False, 0), nn.BatchNorm2d(4))).eval()
    x = randn(2, 3, 8, 8)
    path = tmp_path / "raw.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=True, optimize=False, verbose=False)
    result = onnxnorm.optimize(path)
    assert ops(result) == ["Conv"]
    assert [item.rule for item in result.decisions] == [RULE, "fold/batch-norm-into-conv"]


class Half(nn.Module):
    """A parametrization of a user."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 0.5 * (w + w.mT)


def test_a_parametrization_of_a_user() -> None:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", Half())
    check_plain(layer, randn(2, 6), lambda: nn.Linear(6, 6))
