"""BatchRenorm1d, 2d and 3d against algorithm 1 of the paper, written out here in plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnxnorm.nn import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d

from .exports import assert_export_equals
from .stateful import assert_training_export_equals, axes_and_view, data, filled

SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d (N, C)": (BatchRenorm1d, (5, 6)),
    "1d (N, C, L)": (BatchRenorm1d, (3, 6, 7)),
    "2d": (BatchRenorm2d, (2, 6, 5, 4)),
    "3d": (BatchRenorm3d, (2, 6, 3, 4, 2)),
}
every_shape = pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=list(SHAPES))


class Paper:
    """Algorithm 1: training updates mu and sigma, inference uses them."""

    def __init__(self, norm: Any) -> None:
        self.mu, self.sigma = norm.running_mean.clone(), norm.running_std.clone()
        self.gamma, self.beta, self.epsilon = norm.weight, norm.bias, norm.eps

    def train(self, x: torch.Tensor, alpha: float, r_max: float, d_max: float) -> torch.Tensor:
        axes, view = axes_and_view(x)
        mu_b = x.mean(axes)
        sigma_b = (self.epsilon + (x - mu_b.view(view)).pow(2).mean(axes)).sqrt()
        r = (sigma_b / self.sigma).clamp(1 / r_max, r_max).detach()
        d = ((mu_b - self.mu) / self.sigma).clamp(-d_max, d_max).detach()
        x_hat = (x - mu_b.view(view)) / sigma_b.view(view) * r.view(view) + d.view(view)
        self.mu = self.mu + alpha * (mu_b.detach() - self.mu)
        self.sigma = self.sigma + alpha * (sigma_b.detach() - self.sigma)
        return self.gamma.view(view) * x_hat + self.beta.view(view)

    def infer(self, x: torch.Tensor) -> torch.Tensor:
        _, view = axes_and_view(x)
        return self.gamma.view(view) * (x - self.mu.view(view)) / self.sigma.view(view) + self.beta.view(view)


@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.1, 0.1), (1.0, 0.0), (1e3, 1e3)])
@every_shape
def test_training_is_the_papers(kind: Any, shape: tuple[int, ...], limits: tuple[float, float]) -> None:
    norm = filled(kind(6, momentum=0.2, r_max=limits[0], d_max=limits[1]))
    paper = Paper(norm)
    for step in range(4):
        x = data(shape, step) * (1 + step)
        torch.testing.assert_close(norm(x), paper.train(x, 0.2, *limits), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(norm.running_mean, paper.mu, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(norm.running_std, paper.sigma, rtol=1e-12, atol=1e-13)
        assert int(norm.num_batches_tracked) == step + 1
    x = data(shape, 9)
    torch.testing.assert_close(norm.eval()(x), paper.infer(x), rtol=1e-12, atol=1e-12)


@every_shape
def test_gradients_are_the_papers(kind: Any, shape: tuple[int, ...]) -> None:
    """R and d count as constants, which finite differences do not know: the formula's own gradient is compared."""
    norm, x = filled(kind(6)), data(shape).requires_grad_()
    other, z = copy.deepcopy(norm), data(shape).requires_grad_()
    weights = data(shape, 5)
    (norm(x) * weights).sum().backward()
    (Paper(other).train(z, 0.1, 3.0, 5.0) * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-10, atol=1e-11)
    for have, want in zip(norm.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(have.grad, want.grad, rtol=1e-10, atol=1e-11)


def test_limits_of_1_and_0_are_batch_normalization() -> None:
    norm, plain = BatchRenorm2d(6, r_max=1.0, d_max=0.0).double(), nn.BatchNorm2d(6).double()
    torch.testing.assert_close(norm(data((3, 6, 4, 4))), plain(data((3, 6, 4, 4))))


def test_wide_limits_make_training_and_evaluation_agree() -> None:
    """What the correction is for: unclipped, the output is the running statistics' own from before the batch."""
    norm = filled(BatchRenorm2d(6, r_max=1e6, d_max=1e6))
    x = data((3, 6, 4, 4))
    before = copy.deepcopy(norm).eval()(x)
    torch.testing.assert_close(norm(x), before, rtol=1e-11, atol=1e-12)


def test_the_schedule_of_the_paper() -> None:
    """5 steps of warm-up, r_max 3 at step 40 and d_max 5 at step 25: section 4 at a thousandth of its length."""
    norm = BatchRenorm2d(2, warmup_steps=5, r_max_steps=40, d_max_steps=25)
    limits = []
    for _ in range(45):
        limits.append(tuple(float(limit) for limit in norm.limits()))
        norm(data((2, 2, 2, 2)).float())
    assert limits[:6] == [(1.0, 0.0)] * 6
    assert limits[15] == pytest.approx((1 + 2 * 10 / 35, 5 * 10 / 20))
    assert limits[24][1] == pytest.approx(5 * 19 / 20)
    assert [limit[1] for limit in limits[25:]] == [5.0] * 20
    assert limits[39][0] == pytest.approx(1 + 2 * 34 / 35)
    assert [limit[0] for limit in limits[40:]] == [3.0] * 5


def test_the_schedule_without_a_ramp() -> None:
    norm = BatchRenorm2d(2, warmup_steps=2)
    for wanted in ((1.0, 0.0), (1.0, 0.0), (3.0, 5.0), (3.0, 5.0)):
        assert tuple(float(limit) for limit in norm.limits()) == wanted
        norm(data((2, 2, 2, 2)).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, r"r_max is 0.5.*at least 1"),
        ({"d_max": -1.0}, r"d_max is -1.0.*at least 0"),
        ({"r_max": float("nan")}, r"r_max is nan"),
        ({"warmup_steps": -1}, r"warmup_steps.*-1.*negative"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchRenorm2d(6, **options)


# --- exports ------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(3, 6, 3), BatchRenorm1d(6), (2, 3, 9)),
    "2d": (nn.Conv2d(3, 6, 3, padding=1), BatchRenorm2d(6), (2, 3, 6, 5)),
    "3d": (nn.Conv3d(3, 6, 2), BatchRenorm3d(6), (2, 3, 4, 5, 4)),
}


@pytest.mark.parametrize(("name", "target"), [*((name, "onnxnorm") for name in LAYERS), ("2d", "standard")])
def test_evaluation_folds_into_the_layer(tmp_path: Path, name: str, target: str) -> None:
    layer, norm, shape = LAYERS[name]
    module = nn.Sequential(copy.deepcopy(layer), filled(copy.deepcopy(norm)).float()).eval()
    bigger = (5, *shape[1:-1], shape[-1] + 3)
    model = assert_export_equals(tmp_path, module, [shape, bigger], torch.float32, target=target)
    assert [node.op_type for node in model.graph.node] == ["Conv"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_evaluation_of_the_norm_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_export_equals(tmp_path, filled(BatchRenorm2d(6)).to(dtype).eval(), [(2, 6, 4, 5), (3, 6, 2, 2)], dtype)


@every_shape
def test_the_training_graph(tmp_path: Path, kind: Any, shape: tuple[int, ...]) -> None:
    shapes = [shape, (4, *shape[1:]), shape]
    model = assert_training_export_equals(tmp_path, filled(kind(6)), shapes)
    assert [node.op_type for node in model.graph.node].count("BatchRenormTraining") == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_training_graph_in_other_types(tmp_path: Path, dtype: torch.dtype) -> None:
    assert_training_export_equals(tmp_path, filled(BatchRenorm2d(6)), [(2, 6, 4, 5)] * 3, dtype)


def test_the_training_graph_counts_its_own_steps(tmp_path: Path) -> None:
    """Cumulative average and schedule are computed from num_batches_tracked, which the graph moves."""
    norm = filled(BatchRenorm2d(6, momentum=None, warmup_steps=1, r_max_steps=3, d_max_steps=4))
    assert_training_export_equals(tmp_path, norm, [(2, 6, 4, 5)] * 6)
