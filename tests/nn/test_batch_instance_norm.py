"""BatchInstanceNorm1d, 2d and 3d against the authors' way: two calls of F.batch_norm with a gated weight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onnxnorm
from onnxnorm import InferenceSession
from onnxnorm.nn import BatchInstanceNorm1d, BatchInstanceNorm2d, BatchInstanceNorm3d

from .exports import assert_export_equals

SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "1d": (BatchInstanceNorm1d, (3, 6, 7)),
    "2d": (BatchInstanceNorm2d, (2, 6, 5, 4)),
    "3d": (BatchInstanceNorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


def data(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.5


def filled(kind: type[nn.Module], seed: int = 0, **options: Any) -> Any:
    """A module of 6 channels in float64 as training leaves it: rho at, between and over the bounds."""
    generator = torch.Generator().manual_seed(seed)
    norm = kind(6, **options).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        norm.rho.copy_(torch.tensor([0.0, 1.0, 0.25, 0.75, 1.5, -0.5]))
        norm.running_mean.copy_(torch.randn(6, generator=generator, dtype=torch.float64))
        norm.running_var.copy_(torch.rand(6, generator=generator, dtype=torch.float64) + 0.5)
    return norm


def authors(norm: Any, x: torch.Tensor, mean: torch.Tensor | None, var: torch.Tensor | None, momentum: float) -> Any:
    """The authors' forward; ``mean`` and ``var`` are moved in training, as F.batch_norm does."""
    rho = norm.rho.detach().clamp(0, 1)
    weight = torch.ones(6, dtype=x.dtype) if norm.weight is None else norm.weight.detach()
    bias = None if norm.bias is None else norm.bias.detach()
    batch = F.batch_norm(x, mean, var, weight * rho, bias, norm.training, momentum, norm.eps)
    items, channels = x.shape[:2]
    flat = x.reshape(1, items * channels, *x.shape[2:])
    gate = (weight * (1 - rho)).repeat(items)
    return batch + F.batch_norm(flat, None, None, gate, None, True, 0.0, norm.eps).view(x.shape)


@pytest.mark.parametrize("affine", [True, False])
@every_shape
def test_evaluation(kind: type[nn.Module], shape: tuple[int, ...], affine: bool) -> None:
    norm, x = filled(kind, affine=affine).eval(), data(shape)
    want = authors(norm, x, norm.running_mean.clone(), norm.running_var.clone(), 0.0)
    torch.testing.assert_close(norm(x), want, rtol=1e-11, atol=1e-12)


@every_shape
def test_training_uses_the_batch_and_moves_the_running_statistics(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    norm = filled(kind, momentum=0.2).train()
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    for step in range(3):
        x = data(shape, step)
        want = authors(norm, x, mean, var, 0.2)
        torch.testing.assert_close(norm(x).detach(), want, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-13)
        assert int(norm.num_batches_tracked) == step + 1


def test_momentum_none_is_the_cumulative_average() -> None:
    norm, other = BatchInstanceNorm2d(6, momentum=None).double(), nn.BatchNorm2d(6, momentum=None).double()
    for step in range(4):
        norm(data((2, 6, 3, 3), step))
        other(data((2, 6, 3, 3), step))
    torch.testing.assert_close(norm.running_mean, other.running_mean)
    torch.testing.assert_close(norm.running_var, other.running_var)


def test_an_empty_batch_keeps_the_state() -> None:
    norm = filled(BatchInstanceNorm2d).train()
    before = norm.running_mean.clone(), norm.running_var.clone()
    assert norm(torch.zeros(0, 6, 3, 3, dtype=torch.float64)).shape == (0, 6, 3, 3)
    torch.testing.assert_close((norm.running_mean, norm.running_var), before)
    assert norm.eval()(torch.zeros(0, 6, 3, 3, dtype=torch.float64)).shape == (0, 6, 3, 3)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_shape
def test_gradients(kind: type[nn.Module], shape: tuple[int, ...], training: bool) -> None:
    norm = filled(kind).train(training)
    with torch.no_grad():
        norm.rho.copy_(torch.tensor([0.1, 0.9, 0.25, 0.75, 0.5, 0.3]))
    names = [name for name, _ in norm.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        fresh = copy.deepcopy(norm)
        result: torch.Tensor = torch.func.functional_call(fresh, dict(zip(names, values, strict=True)), (x,))
        return result

    x = data((3, 6, *(2 for _ in shape[2:]))).requires_grad_()
    values = [parameter.detach().clone().requires_grad_() for parameter in norm.parameters()]
    assert torch.autograd.gradcheck(run, (x, *values))


def test_rho_over_a_bound_can_come_back() -> None:
    norm = filled(BatchInstanceNorm2d).train()
    norm(data((2, 6, 3, 3))).square().sum().backward()
    assert (norm.rho.grad[4:] != 0).all()
    clipped = copy.deepcopy(norm)
    with torch.no_grad():
        clipped.rho.clamp_(0, 1)
    x = data((2, 6, 3, 3), 5)
    assert torch.equal(norm(x), clipped(x))


def test_running_statistics_get_no_gradient() -> None:
    norm = filled(BatchInstanceNorm2d).train()
    norm(data((2, 6, 3, 3))).sum().backward()
    assert all(parameter.grad is not None for parameter in norm.parameters())
    assert norm.running_mean.grad_fn is None
    norm(data((2, 6, 3, 3))).sum().backward()  # a second step does not reach back into the first


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(dtype: torch.dtype, training: bool) -> None:
    norm = filled(BatchInstanceNorm2d).to(dtype).train(training)
    x = data((2, 6, 5, 4)).to(dtype)
    wide = copy.deepcopy(norm).double()
    y = norm(x)
    assert y.dtype == dtype
    truth = authors(wide, x.double(), wide.running_mean.clone(), wide.running_var.clone(), 0.1)
    assert (y.double() - truth).abs().max() <= 4 * torch.finfo(dtype).eps * truth.abs().max()


# --- construction, checkpoints, errors ----------------------------------------------------------------------------


def test_the_start_is_batch_normalization() -> None:
    norm = BatchInstanceNorm2d(6)
    assert set(norm.state_dict()) == {"weight", "bias", "rho", "running_mean", "running_var", "num_batches_tracked"}
    assert torch.equal(norm.rho, torch.ones(6))
    x = data((2, 6, 3, 3)).float()
    torch.testing.assert_close(norm(x), nn.BatchNorm2d(6)(x))
    assert set(BatchInstanceNorm1d(6, affine=False).state_dict()) == {
        "rho",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    half = BatchInstanceNorm3d(6, dtype=torch.float16, device="cpu")
    assert {value.dtype for value in half.state_dict().values()} == {torch.float16, torch.int64}
    assert "6, eps=1e-05, momentum=0.1, affine=True" in repr(norm)


def test_the_authors_checkpoint_loads() -> None:
    """They call rho the gate."""
    source = filled(BatchInstanceNorm2d)
    state = {("gate" if name == "rho" else name): value for name, value in source.state_dict().items()}
    norm = BatchInstanceNorm2d(6).double()
    nn.Sequential(nn.Identity(), norm).load_state_dict({f"1.{name}": value for name, value in state.items()})
    for name, value in source.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("norm", "shape", "message"),
    [
        (BatchInstanceNorm1d(6), (2, 6), r"BatchInstanceNorm1d needs 3-dimensional.*\[2, 6\]"),
        (BatchInstanceNorm2d(6), (2, 6, 3), r"BatchInstanceNorm2d needs 4-dimensional.*\[2, 6, 3\]"),
        (BatchInstanceNorm3d(6), (2, 6, 3, 3), r"BatchInstanceNorm3d needs 5-dimensional"),
        (BatchInstanceNorm2d(6), (2, 5, 3, 3), r"BatchInstanceNorm2d\(6\).*5 channels"),
    ],
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_input_that_does_not_fit(norm: nn.Module, shape: tuple[int, ...], message: str, training: bool) -> None:
    with pytest.raises(ValueError, match=message):
        norm.train(training)(torch.zeros(shape))


def test_one_position_cannot_train() -> None:
    norm = BatchInstanceNorm2d(6)
    with pytest.raises(ValueError, match=r"more than 1 spatial element when training.*\[2, 6, 1, 1\]"):
        norm(torch.zeros(2, 6, 1, 1))
    assert int(norm.num_batches_tracked) == 0
    assert norm.eval()(torch.zeros(2, 6, 1, 1)).shape == (2, 6, 1, 1)


# --- export -------------------------------------------------------------------------------------------------------


@every_shape
def test_torch_export_keeps_one_operator(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    norm, x = filled(kind).eval(), data(shape)
    program = torch.export.export(norm, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count("onnxnorm.batch_instance_norm.default") == 1
    other = data((7, *shape[1:]))
    torch.testing.assert_close(program.module()(other), norm(other))


#: Every shape in float32, and every type and target in two dimensions.
EXPORTS = [
    pytest.param(kind, shape, dtype, target, id=f"{name}-{dtype}-{target}")
    for name, (kind, shape) in SHAPES.items()
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    for target in ("onnxnorm", "standard")
    if name == "2d" or (dtype == torch.float32 and target == "onnxnorm")
]


@pytest.mark.parametrize(("kind", "shape", "dtype", "target"), EXPORTS)
def test_export(tmp_path: Path, kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype, target: str) -> None:
    norm = filled(kind).to(dtype).eval()
    model = assert_export_equals(tmp_path, norm, [shape, (1, 6, *(3 for _ in shape[2:]))], dtype, target=target)
    if target == "onnxnorm":
        assert [node.op_type for node in model.graph.node] == ["BatchInstanceNorm"]
        rho = onnx.numpy_helper.to_array(
            next(t for t in model.graph.initializer if t.name == model.graph.node[0].input[3])
        )
        np.testing.assert_array_equal(rho.astype(np.float64), [0.0, 1.0, 0.25, 0.75, 1.0, 0.0])


def test_export_without_affine_and_with_an_activation(tmp_path: Path) -> None:
    module = nn.Sequential(filled(BatchInstanceNorm2d, affine=False), nn.SiLU()).float().eval()
    model = assert_export_equals(tmp_path, module, [(2, 6, 5, 4)], torch.float32)
    assert [node.op_type for node in model.graph.node] == ["BatchInstanceNorm"]
    assert {item.name: item.s for item in model.graph.node[0].attribute}["activation"] == b"silu"


def test_large_mean() -> None:
    """Mean 1e4 and standard deviation 1, where PyTorch's float32 keeps three digits."""
    norm = filled(BatchInstanceNorm2d).float().eval()
    x = (data((2, 6, 16, 16)) + 1e4).float()
    norm.running_mean += 1e4
    truth = copy.deepcopy(norm).double()(x.double()).detach().numpy()
    result = onnxnorm.export(norm, (x,))
    session = InferenceSession(result.model, providers=["CPUExecutionProvider"], library=True)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(y - truth).max() <= 8 * 2.0**-23 * np.abs(truth).max()
