"""LayerNorm1d/2d/3d and RMSNorm1d/2d/3d over the channels of (N, C, *), and torch.nn.LayerNorm, exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onnxnorm
from onnxnorm.nn import LayerNorm1d, LayerNorm2d, LayerNorm3d, RMSNorm1d, RMSNorm2d, RMSNorm3d
from onnxnorm.parity import check

from .exports import assert_export_equals

SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "layer 1d (N, C)": (LayerNorm1d, (5, 6)),
    "layer 1d (N, C, L)": (LayerNorm1d, (3, 6, 7)),
    "layer 2d": (LayerNorm2d, (2, 6, 5, 4)),
    "layer 3d": (LayerNorm3d, (2, 6, 3, 4, 2)),
    "rms 1d (N, C)": (RMSNorm1d, (5, 6)),
    "rms 1d (N, C, L)": (RMSNorm1d, (3, 6, 7)),
    "rms 2d": (RMSNorm2d, (2, 6, 5, 4)),
    "rms 3d": (RMSNorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))
ALL = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def data(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.5


def filled(kind: type[nn.Module], seed: int = 0, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    norm = kind(6, **options).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return norm


def is_rms(kind: type[nn.Module]) -> bool:
    return kind.__name__.startswith("RMS")


def options_for(kind: type[nn.Module]) -> list[dict[str, Any]]:
    if is_rms(kind):
        return [{}, {"elementwise_affine": False}, {"eps": 1e-3}]
    return [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 1e-3}]


def by_hand(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The formula over axis 1, in the mean and variance of the definition."""
    if is_rms(type(norm)):
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        y = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
    else:
        y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    view = (1, -1, *(1 for _ in x.shape[2:]))
    y = y if norm.weight is None else y * norm.weight.view(view)
    return y if norm.bias is None else y + norm.bias.view(view)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_shape
def test_values_and_gradients(kind: type[nn.Module], shape: tuple[int, ...], training: bool) -> None:
    for options in options_for(kind):
        norm, x = filled(kind, **options).train(training), data(shape)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, want = norm(mine), by_hand(norm, other)
        torch.testing.assert_close(y, want, rtol=1e-11, atol=1e-12)
        weights = data(shape, 5)
        given, wanted = (
            torch.autograd.grad((value * weights).sum(), [leaf, *norm.parameters()])
            for value, leaf in ((y, mine), (want, other))
        )
        torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-10)


def test_timms_formula() -> None:
    """timm's LayerNorm2d: permute, F.layer_norm over the last axis, permute back."""
    norm, x = filled(LayerNorm2d, eps=1e-6), data((2, 6, 5, 4))
    moved = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), moved)


@every_shape
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm, x = filled(kind, eps=1e-5).to(dtype), (data(shape) * 200).to(dtype)  # whose squares overflow in float16
    y = norm(x)
    assert y.dtype == dtype
    truth = copy.deepcopy(norm).double()(x.double())
    assert (y.double() - truth).abs().max() <= 4 * torch.finfo(dtype).eps * truth.abs().max()


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # PyTorch's, of its speed
def test_under_autocast_the_type_stays() -> None:
    for norm in (filled(LayerNorm2d).float(), filled(RMSNorm2d, eps=1e-5).float()):
        x = data((2, 6, 4, 5)).to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = norm(x)
        assert y.dtype == torch.bfloat16
        assert (y.double() - norm.double()(x.double())).abs().max() < 0.1


def test_the_start_and_the_state() -> None:
    assert {name: value.tolist() for name, value in LayerNorm2d(2).state_dict().items()} == {
        "weight": [1.0, 1.0],
        "bias": [0.0, 0.0],
    }
    assert set(LayerNorm1d(6, bias=False).state_dict()) == {"weight"}
    assert not LayerNorm3d(6, elementwise_affine=False).state_dict()
    assert set(RMSNorm1d(6).state_dict()) == {"weight"}
    assert not RMSNorm3d(6, elementwise_affine=False).state_dict()
    assert LayerNorm2d(6, dtype=torch.float16, device="cpu").weight.dtype == torch.float16
    assert repr(LayerNorm2d(6, bias=False)) == "LayerNorm2d(6, eps=1e-05, elementwise_affine=True, bias=False)"
    assert repr(RMSNorm2d(6)) == "RMSNorm2d(6, eps=None, elementwise_affine=True)"


@pytest.mark.parametrize(
    ("norm", "shape", "message"),
    [
        (LayerNorm1d(6), (2, 6, 3, 3), r"LayerNorm1d needs 2-dimensional or 3-dimensional.*\[2, 6, 3, 3\]"),
        (LayerNorm2d(6), (6, 3, 3), r"LayerNorm2d needs 4-dimensional.*\[6, 3, 3\]"),
        (RMSNorm3d(6), (2, 6, 3, 3), r"RMSNorm3d needs 5-dimensional"),
        (LayerNorm2d(6), (2, 3, 3, 6), r"LayerNorm2d\(6\) got 3 channels"),
        (RMSNorm1d(6), (2, 5), r"RMSNorm1d\(6\) got 5 channels"),
    ],
)
def test_input_that_does_not_fit(norm: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        norm(torch.zeros(shape))


# --- export -------------------------------------------------------------------------------------------------------


@every_shape
def test_torch_export_keeps_one_operator(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    norm, x = filled(kind), data(shape)
    program = torch.export.export(norm, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [f"onnxnorm.channel_{'rms' if is_rms(kind) else 'layer'}_norm.default"]
    other = data((7, *shape[1:]))
    torch.testing.assert_close(program.module()(other), norm(other))


def op_types(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


#: Every shape in float32, and every type and target in two dimensions.
EXPORTS = [
    pytest.param(kind, shape, dtype, target, id=f"{name}-{dtype}-{target}")
    for name, (kind, shape) in SHAPES.items()
    for dtype in ALL
    for target in ("onnxnorm", "standard")
    if "2d" in name or (dtype == torch.float32 and target == "onnxnorm")
]


@pytest.mark.parametrize(("kind", "shape", "dtype", "target"), EXPORTS)
def test_export(tmp_path: Path, kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, target: str) -> None:
    norm = filled(kind).to(dtype).eval()
    with torch.no_grad():  # eps None of RMSNorm: the float64 truth keeps the deployed type's
        if is_rms(kind):
            norm.eps = 1e-5
    model = assert_export_equals(tmp_path, norm, [shape, (1, 6, *(3 for _ in shape[2:]))], dtype, target=target)
    if target == "standard":
        assert {node.domain for node in model.graph.node} == {""}
    elif len(shape) > 2:
        assert op_types(model) == ["RMSNorm" if is_rms(kind) else "LayerNorm"]
        assert {item.name: list(item.ints) for item in model.graph.node[0].attribute}["axes"] == [1]


@pytest.mark.parametrize("kind", [LayerNorm2d, RMSNorm2d])
def test_export_of_each_option(tmp_path: Path, kind: type[nn.Module]) -> None:
    for options in options_for(kind)[1:]:
        norm = filled(kind, **options).float().eval()
        if is_rms(kind):
            norm.eps = norm.eps or 1e-5
        assert_export_equals(tmp_path, norm, [(2, 6, 5, 4)], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_machine_epsilon_is_that_of_the_deployed_type(dtype: torch.dtype) -> None:
    """eps None; values so small that it decides."""
    norm, x = filled(RMSNorm2d).to(dtype).eval(), (data((2, 6, 3, 3)) * 3e-4).to(dtype)
    result = onnxnorm.export(norm, (x,))
    report = check(norm, result.model, x)
    report.assert_passed()
    wanted = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert result.model.graph[0].attributes["epsilon"].value == pytest.approx(wanted)


def test_an_activation_is_fused(tmp_path: Path) -> None:
    for activation, name in ((nn.ReLU(), b"relu"), (nn.SiLU(), b"silu"), (nn.GELU(), b"gelu")):
        module = nn.Sequential(filled(LayerNorm2d), activation).float().eval()
        model = assert_export_equals(tmp_path, module, [(2, 6, 5, 4)], torch.float32)
        assert op_types(model) == ["LayerNorm"]
        assert {item.name: item.s for item in model.graph.node[0].attribute}["activation"] == name


# --- torch.nn.LayerNorm -------------------------------------------------------------------------------------------

TRAILING: dict[str, dict[str, Any]] = {
    "affine": {},
    "without bias": {"bias": False},
    "plain": {"elementwise_affine": False},
    "eps": {"eps": 1e-3},
}


def trailing(sizes: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(2)
    norm = nn.LayerNorm(sizes, **options).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return norm.to(dtype).eval()


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("affine", dtype) for dtype in ALL),
        *((name, torch.float32) for name in TRAILING if name != "affine"),
        *(("without bias", torch.bfloat16), ("plain", torch.float16)),
    ],
)
def test_torch_layer_norm(tmp_path: Path, name: str, dtype: torch.dtype, target: str) -> None:
    options = TRAILING[name]
    for sizes in ((5,), (4, 5)) if dtype == torch.float32 else ((4, 5),):
        norm = trailing(sizes, options, dtype)
        x = [(2, 6, 4, 5)] if len(sizes) == 2 else [(2, 6, 5), (1, 6, 5)]
        axes = range(len(x[0]) - len(sizes), len(x[0]))
        model = assert_export_equals(tmp_path, norm, x, dtype, static=axes, target=target)
        if target == "onnxnorm":
            assert op_types(model) == ["LayerNorm"]
        elif dtype in (torch.float32, torch.float16):
            assert op_types(model) == ["LayerNormalization"]
        else:
            assert {node.domain for node in model.graph.node} == {""}
            assert "LayerNormalization" not in op_types(model)


class OverWhatComes(nn.Module):
    """Normalized over sizes that are read from the input, as models of images do."""

    def __init__(self, rms: bool) -> None:
        super().__init__()
        self.rms = rms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rms:
            return F.rms_norm(x, x.shape[1:], eps=1e-6)
        return F.layer_norm(x, x.shape[1:])


@pytest.mark.parametrize(
    ("dtype", "rms"), [*((dtype, False) for dtype in ALL), (torch.float32, True), (torch.bfloat16, True)]
)
def test_sizes_that_are_not_known(tmp_path: Path, dtype: torch.dtype, rms: bool) -> None:
    assert_export_equals(tmp_path, OverWhatComes(rms), [(2, 6, 5, 4), (3, 6, 2, 7)], dtype)


def test_an_activation_keeps_the_op(tmp_path: Path) -> None:
    module = nn.Sequential(trailing((5,), {}, torch.float32), nn.GELU())
    x = torch.randn(2, 6, 5)
    result = onnxnorm.export(module, (x,))
    assert [node.op_type for node in result.model.graph] == ["LayerNorm"]
    check(module, result.model, x).assert_passed()
    standard = onnxnorm.export(module, (x,), target="standard")
    assert standard.model.graph[0].op_type == "LayerNormalization"
    check(module, standard.model, x).assert_passed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_provider_decides(dtype: torch.dtype) -> None:
    """On CPU onnxnorm's kernel is faster, and ONNX Runtime has none in bfloat16."""
    module, x = trailing((5,), {}, dtype), torch.randn(2, 5).to(dtype)
    for provider, op in (("cpu", "LayerNorm"), ("cuda", "LayerNormalization")):
        result = onnxnorm.export(module, (x,), provider=provider)
        assert [node.op_type for node in result.model.graph] == [op]


def test_large_mean_of_channels() -> None:
    norm = filled(LayerNorm2d).float().eval()
    x = (data((2, 6, 16, 16)) + 1e4).float()
    truth = copy.deepcopy(norm).double()(x.double()).detach().numpy()
    session = onnxnorm.InferenceSession(
        onnxnorm.export(norm, (x,)).model, providers=["CPUExecutionProvider"], library=True
    )
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(y - truth).max() <= 8 * 2.0**-23 * np.abs(truth).max()
