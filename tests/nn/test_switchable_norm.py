"""SwitchableNorm1d, 2d and 3d against the authors' formulas, written out here once more in plain NumPy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from onnxnorm.nn import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

from .stateful import assert_training_export_equals

Doubles = npt.NDArray[np.float64]

SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "1d (N, C)": (SwitchableNorm1d, (5, 6)),
    "1d (N, C, L)": (SwitchableNorm1d, (3, 6, 7)),
    "2d": (SwitchableNorm2d, (2, 6, 5, 4)),
    "3d": (SwitchableNorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


def softmax(logits: torch.Tensor) -> Doubles:
    raised = np.exp(logits.detach().double().numpy())
    return np.asarray(raised / raised.sum())


def authors_statistics(x: Doubles) -> tuple[Doubles, ...]:
    """mean_in, var_in (unbiased, torch.var's default), mean_ln, var_ln, mean_bn, var_bn of (N, C, S) or (N, C)."""
    if x.ndim == 2:  # SwitchNorm1d
        instance = (np.zeros_like(x), np.zeros_like(x))
        layer = (x.mean(1, keepdims=True), x.var(1, ddof=1, keepdims=True))
        return (*instance, *layer, x.mean(0), x.var(0, ddof=1))
    mean_in, var_in = x.mean(-1, keepdims=True), x.var(-1, ddof=1, keepdims=True)
    mean_ln = mean_in.mean(1, keepdims=True)
    second_moment = var_in + mean_in**2
    var_ln = second_moment.mean(1, keepdims=True) - mean_ln**2
    mean_bn = mean_in.mean(0, keepdims=True)
    var_bn = second_moment.mean(0, keepdims=True) - mean_bn**2
    return mean_in, var_in, mean_ln, var_ln, mean_bn, var_bn


def authors(norm: nn.Module, x: torch.Tensor, running: tuple[Doubles, Doubles] | None) -> Doubles:
    """The forward of SwitchNorm1d/2d/3d; ``running`` None takes the batch's statistics (training)."""
    array = x.detach().double().numpy()
    flat = array.reshape(*array.shape[:2], -1) if array.ndim > 2 else array
    per_channel = (1, -1) if flat.ndim == 2 else (1, -1, 1)
    mean_in, var_in, mean_ln, var_ln, mean_bn, var_bn = authors_statistics(flat)
    if running is not None:
        mean_bn, var_bn = (value.reshape(per_channel) for value in running)
    means = [mean_in] * norm.using_in + [mean_ln] + [mean_bn] * norm.using_bn
    variances = [var_in] * norm.using_in + [var_ln] + [var_bn] * norm.using_bn
    mean = sum(weight * value for weight, value in zip(softmax(norm.mean_weight), means, strict=True))
    var = sum(weight * value for weight, value in zip(softmax(norm.var_weight), variances, strict=True))
    y = (flat - mean) / np.sqrt(var + norm.eps)
    scale, shift = (each.detach().double().numpy().reshape(per_channel) for each in (norm.weight, norm.bias))
    return np.asarray(y * scale + shift).reshape(array.shape)


def filled(kind: type[nn.Module], seed: int = 0, **options: Any) -> Any:
    """A module of 6 channels in float64 as training leaves it."""
    generator = torch.Generator().manual_seed(seed)
    norm = kind(6, **options).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        if norm.using_bn:
            norm.running_mean.copy_(torch.randn(6, generator=generator, dtype=torch.float64))
            norm.running_var.copy_(torch.rand(6, generator=generator, dtype=torch.float64) + 0.5)
    return norm


def data(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.5


def running_of(norm: Any) -> tuple[Doubles, Doubles]:
    return norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()


def options_for(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every combination of branches that the shape allows."""
    instance = [False] if len(shape) == 2 else [False, True]
    return [{"using_in": each, "using_bn": bn} for each in instance for bn in (False, True)]


@every_shape
def test_evaluation(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    for options in options_for(shape):
        norm, x = filled(kind, **options).eval(), data(shape)
        want = authors(norm, x, running_of(norm) if norm.using_bn else None)
        np.testing.assert_allclose(norm(x).detach().numpy(), want, rtol=1e-11, atol=1e-12)


@every_shape
def test_training_uses_the_batch_and_moves_the_running_statistics(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    for options in options_for(shape):
        norm = filled(kind, momentum=0.2, **options).train()
        x = data(shape)
        before = running_of(norm) if norm.using_bn else None
        np.testing.assert_allclose(norm(x).detach().numpy(), authors(norm, x, None), rtol=1e-11, atol=1e-12)
        if before is None:
            assert not list(norm.buffers())
            continue
        flat = x.numpy().reshape(*shape[:2], -1) if len(shape) > 2 else x.numpy()
        mean_bn, var_bn = (value.reshape(-1) for value in authors_statistics(flat)[4:])
        # The authors' running_mean.mul_(0.8).add_(0.2 * mean_bn): their momentum 0.8 is PyTorch's 0.2.
        np.testing.assert_allclose(norm.running_mean.numpy(), 0.8 * before[0] + 0.2 * mean_bn, rtol=1e-12)
        np.testing.assert_allclose(norm.running_var.numpy(), 0.8 * before[1] + 0.2 * var_bn, rtol=1e-12)
        assert int(norm.num_batches_tracked) == 1


def test_momentum_none_is_the_cumulative_average() -> None:
    norm = SwitchableNorm2d(6, momentum=None).double()
    batches = [data((2, 6, 3, 3), seed) for seed in range(4)]
    statistics = []
    for batch in batches:
        norm(batch)
        flat = batch.numpy().reshape(2, 6, -1)
        statistics.append([value.reshape(-1) for value in authors_statistics(flat)[4:]])
    means, variances = (np.stack(each) for each in zip(*statistics, strict=True))
    np.testing.assert_allclose(norm.running_mean.numpy(), means.mean(0), rtol=1e-12)
    np.testing.assert_allclose(norm.running_var.numpy(), variances.mean(0), rtol=1e-12)
    assert int(norm.num_batches_tracked) == 4


def test_a_large_mean_does_not_cancel() -> None:
    """The authors' mean(var_in + mean_in^2) - mean_ln^2 in float32 is 25 % off at mean 1e4."""
    norm = filled(SwitchableNorm2d).eval()
    x = (data((2, 6, 16, 16)) + 1e4).float()
    norm.running_mean += 1e4
    truth = authors(norm, x, running_of(norm))
    y = copy.deepcopy(norm).float()(x).detach().double().numpy()
    assert np.abs(y - truth).max() / np.abs(truth).max() < 2e-3  # float32's own limit there: 1e4 * 2**-24 of x


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_shape
def test_gradients(kind: type[nn.Module], shape: tuple[int, ...], training: bool) -> None:
    options = options_for(shape)[-1]
    norm = filled(kind, **options).train(training)
    names = [name for name, _ in norm.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        fresh = copy.deepcopy(norm)
        result: torch.Tensor = torch.func.functional_call(fresh, dict(zip(names, values, strict=True)), (x,))
        return result

    x = data((3, *shape[1:2], *(2 for _ in shape[2:]))).requires_grad_()
    values = [parameter.detach().clone().requires_grad_() for parameter in norm.parameters()]
    assert torch.autograd.gradcheck(run, (x, *values))


def test_running_statistics_get_no_gradient() -> None:
    norm = filled(SwitchableNorm2d).train()
    norm(data((2, 6, 3, 3))).sum().backward()
    assert all(parameter.grad is not None for parameter in norm.parameters())
    assert not norm.running_mean.requires_grad
    assert norm.running_mean.grad_fn is None
    norm(data((2, 6, 3, 3))).sum().backward()  # a second step does not reach back into the first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_shape
def test_half_types_compute_in_float32(kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm = filled(kind).eval().to(dtype)
    x = data(shape).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    wide = copy.deepcopy(norm).double()
    truth = authors(wide, x, running_of(wide))
    assert np.abs(y.detach().double().numpy() - truth).max() <= 8 * torch.finfo(dtype).eps * np.abs(truth).max()


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom:UserWarning")
def test_empty_batch_keeps_its_shape() -> None:
    assert SwitchableNorm2d(6).eval()(torch.zeros(0, 6, 3, 3)).shape == (0, 6, 3, 3)


# --- construction, state and checkpoints --------------------------------------------------------------------------


def test_the_start_is_the_authors() -> None:
    norm = SwitchableNorm2d(6)
    assert {name: tuple(value.shape) for name, value in norm.state_dict().items()} == {
        "weight": (6,),
        "bias": (6,),
        "mean_weight": (3,),
        "var_weight": (3,),
        "running_mean": (6,),
        "running_var": (6,),
        "num_batches_tracked": (),
    }
    assert torch.equal(norm.weight, torch.ones(6))
    assert torch.equal(norm.mean_weight, torch.ones(3))
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)
    assert torch.equal(SwitchableNorm2d(6, last_gamma=True).weight, torch.zeros(6))
    assert SwitchableNorm1d(6).mean_weight.shape == (2,)
    assert SwitchableNorm1d(6, using_in=True).mean_weight.shape == (3,)
    assert set(SwitchableNorm2d(6, using_bn=False).state_dict()) == {"weight", "bias", "mean_weight", "var_weight"}
    half = SwitchableNorm3d(6, dtype=torch.float16, device="cpu")
    assert {value.dtype for value in half.state_dict().values()} == {torch.float16, torch.int64}
    assert "6, eps=1e-05, momentum=0.1, using_in=True, using_bn=True" in repr(norm)


@pytest.mark.parametrize(("kind", "ones"), [(SwitchableNorm2d, 2), (SwitchableNorm3d, 3)])
def test_the_authors_checkpoint_loads(kind: type[nn.Module], ones: int) -> None:
    """Their parameters are (1, C, 1, 1), running statistics (1, C, 1), and they count no batches."""
    norm, source = kind(6).double(), filled(kind)
    state = {name: value.clone() for name, value in source.state_dict().items() if name != "num_batches_tracked"}
    for name in ("weight", "bias"):
        state[name] = state[name].view(1, 6, *(1,) * ones)
    for name in ("running_mean", "running_var"):
        state[name] = state[name].view(1, 6, 1)
    shapes = {name: value.shape for name, value in state.items()}
    holder = nn.Sequential(nn.Identity(), norm)
    holder.load_state_dict({f"1.{name}": value for name, value in state.items()}, strict=True)
    norm.load_state_dict(state, strict=True)
    assert {name: value.shape for name, value in state.items()} == shapes
    for name, value in source.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name


def test_the_authors_1d_checkpoint_loads() -> None:
    norm, source = SwitchableNorm1d(6), filled(SwitchableNorm1d).float()
    state = dict(source.state_dict())
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[name] = state[name].view(1, 6)
    del state["num_batches_tracked"]
    norm.load_state_dict(state)
    x = data((4, 6)).float()
    assert torch.equal(norm.eval()(x), source.eval()(x))


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    state = SwitchableNorm2d(8).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for weight"):
        SwitchableNorm2d(6).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"size mismatch for mean_weight"):
        SwitchableNorm2d(8, using_bn=False).load_state_dict(state)
    state = SwitchableNorm2d(6).state_dict()
    del state["bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*bias"):
        SwitchableNorm2d(6).load_state_dict(state)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "shape", "message"),
    [
        (SwitchableNorm1d(6), (2, 6, 3, 3), r"SwitchableNorm1d needs 2-dimensional or 3-dimensional.*\[2, 6, 3, 3\]"),
        (SwitchableNorm2d(6), (2, 6, 3), r"SwitchableNorm2d needs 4-dimensional.*\[2, 6, 3\]"),
        (SwitchableNorm3d(6), (2, 6, 3, 3), r"SwitchableNorm3d needs 5-dimensional"),
        (SwitchableNorm2d(6), (2, 5, 3, 3), r"SwitchableNorm2d\(6\).*5 channels"),
        (SwitchableNorm1d(6), (6,), r"2-dimensional or 3-dimensional.*\[6\]"),
        (SwitchableNorm1d(6, using_in=True), (2, 6), r"using_in=True.*\(N, C, L\).*\[2, 6\]"),
    ],
    ids=["1d-rank-4", "2d-rank-3", "3d-rank-4", "channels", "rank-1", "instance-without-positions"],
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_input_that_does_not_fit(norm: nn.Module, shape: tuple[int, ...], message: str, training: bool) -> None:
    with pytest.raises(ValueError, match=message):
        norm.train(training)(torch.zeros(shape))


def test_one_value_per_channel_cannot_train() -> None:
    with pytest.raises(ValueError, match=r"more than 1 value per channel when training.*\[1, 6\]"):
        SwitchableNorm1d(6).train()(torch.zeros(1, 6))


@pytest.mark.parametrize("using_bn", [False, True])
def test_one_position_cannot_train(using_bn: bool) -> None:
    """The instance variance is unbiased: of one value it is 0/0, and the authors' module gives NaN."""
    norm = SwitchableNorm2d(6, using_bn=using_bn).train()
    with pytest.raises(ValueError, match=r"more than 1 spatial element when training.*\[3, 6, 1, 1\]"):
        norm(torch.zeros(3, 6, 1, 1))


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom:UserWarning")
def test_an_empty_batch_keeps_the_running_statistics() -> None:
    for norm, shape in ((filled(SwitchableNorm1d), (0, 6)), (filled(SwitchableNorm2d), (0, 6, 3, 3))):
        before = running_of(norm)
        assert norm.train()(torch.zeros(shape, dtype=torch.float64)).shape == shape
        np.testing.assert_array_equal(running_of(norm), before)


def test_arguments_are_keywords() -> None:
    with pytest.raises(TypeError):
        SwitchableNorm2d(6, 1e-5, 0.1, True)  # the authors' fourth argument is another one


# --- compilers ----------------------------------------------------------------------------------------------------

OPERATOR = "onnxnorm.switchable_norm.default"


@every_shape
def test_torch_export_keeps_one_operator(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    norm, x = filled(kind).eval(), data(shape)
    program = torch.export.export(norm, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in calls].count(OPERATOR) == 1
    assert not any("mean" in str(node.target) or "var" in str(node.target) for node in calls)
    other = data((7, *shape[1:]))
    assert torch.equal(program.module()(other), norm(other))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_torch_compile_sees_through_it(training: bool) -> None:
    norm = filled(SwitchableNorm2d).train(training)
    compiled = torch.compile(copy.deepcopy(norm), backend="aot_eager", fullgraph=True)
    x = data((2, 6, 3, 3))
    torch.testing.assert_close(compiled(x), norm(x))
    compiled(x).sum().backward()
    norm(x).sum().backward()
    torch.testing.assert_close(compiled.weight.grad, norm.weight.grad)
    if training:
        torch.testing.assert_close(compiled.running_mean, norm.running_mean)


def test_under_autocast_and_channels_last() -> None:
    norm = filled(SwitchableNorm2d).float().eval()
    x = data((2, 6, 4, 5)).float()
    want = norm(x)
    torch.testing.assert_close(norm(x.contiguous(memory_format=torch.channels_last)), want)
    torch.testing.assert_close(norm(x.transpose(2, 3)), want.transpose(2, 3), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(norm(x), want)


# --- training graphs ----------------------------------------------------------------------------------------------


@every_shape
def test_the_training_graph(tmp_path: Path, kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    shapes = [shape, (4, *shape[1:]), shape]
    model = assert_training_export_equals(tmp_path, filled(kind), shapes)
    assert [node.op_type for node in model.graph.node].count("SwitchableNormTraining") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_training_graph_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_training_export_equals(tmp_path, filled(SwitchableNorm2d), [(2, 6, 4, 5)] * 3, dtype)


def test_the_training_graph_counts_its_own_steps(tmp_path: Path) -> None:
    assert_training_export_equals(tmp_path, filled(SwitchableNorm2d, momentum=None), [(2, 6, 4, 5)] * 4)
