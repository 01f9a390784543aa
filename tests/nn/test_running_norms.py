"""What the modules with running statistics have in common: shapes, checkpoints, dtypes, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxnorm
from onnxnorm import InferenceSession
from onnxnorm.nn import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    L1BatchNorm1d,
    L1BatchNorm2d,
    L1BatchNorm3d,
    MeanOnlyBatchNorm1d,
    MeanOnlyBatchNorm2d,
    MeanOnlyBatchNorm3d,
)
from onnxnorm.runtime.arrays import from_ort, from_torch, to_ort

from .stateful import assert_training_export_equals, data, filled

KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "renorm-1d": (BatchRenorm1d, (5, 6)),
    "renorm-2d": (BatchRenorm2d, (3, 6, 4, 5)),
    "renorm-3d": (BatchRenorm3d, (2, 6, 3, 4, 2)),
    "l1-1d": (L1BatchNorm1d, (5, 6, 7)),
    "l1-2d": (L1BatchNorm2d, (3, 6, 4, 5)),
    "l1-3d": (L1BatchNorm3d, (2, 6, 3, 4, 2)),
    "mean-only-1d": (MeanOnlyBatchNorm1d, (5, 6)),
    "mean-only-2d": (MeanOnlyBatchNorm2d, (3, 6, 4, 5)),
    "mean-only-3d": (MeanOnlyBatchNorm3d, (2, 6, 3, 4, 2)),
}
every_kind = pytest.mark.parametrize(("kind", "shape"), KINDS.values(), ids=list(KINDS))
RANKS = {1: "2-dimensional or 3-dimensional", 2: "4-dimensional", 3: "5-dimensional"}


@every_kind
def test_momentum_none_is_the_cumulative_average(kind: Any, shape: tuple[int, ...]) -> None:
    """With momentum 1 the state is the batch's own statistic; the average of these is what None must give."""
    norm, last = filled(kind(6, momentum=None)), filled(kind(6, momentum=1.0))
    seen: dict[str, list[torch.Tensor]] = {}
    for step in range(4):
        norm(data(shape, step))
        last(data(shape, step))
        for name, value in last.named_buffers():
            seen.setdefault(name, []).append(value.clone())
    for name, value in norm.named_buffers():
        wanted = torch.tensor(4) if name == "num_batches_tracked" else torch.stack(seen[name]).mean(0)
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-13)


@every_kind
def test_a_state_dict_loads_into_another_module(kind: Any, shape: tuple[int, ...]) -> None:
    source = filled(kind(6))
    source(data(shape))
    target = kind(6).double()
    target.load_state_dict(source.state_dict(), strict=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    torch.testing.assert_close(target.eval()(data(shape, 3)), source.eval()(data(shape, 3)), rtol=0, atol=0)
    older = {name: value for name, value in source.state_dict().items() if name != "num_batches_tracked"}
    nn.Sequential(nn.Identity(), target).load_state_dict({f"1.{name}": value for name, value in older.items()})
    with pytest.raises(RuntimeError, match="size mismatch for running_mean"):
        kind(8).load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match="Missing key.*running_mean"):
        kind(6).load_state_dict({name: value for name, value in older.items() if name != "running_mean"})


@every_kind
def test_an_empty_batch_keeps_the_running_statistics(kind: Any, shape: tuple[int, ...]) -> None:
    norm = filled(kind(6))
    before = {name: value.clone() for name, value in norm.named_buffers()}
    assert norm(torch.zeros(0, *shape[1:], dtype=torch.float64)).shape == (0, *shape[1:])
    assert int(norm.num_batches_tracked) == 1  # as torch.nn.BatchNorm2d, which counts it
    for name, value in norm.named_buffers():
        assert name == "num_batches_tracked" or torch.equal(value, before[name]), name
    assert norm.eval()(torch.zeros(0, *shape[1:], dtype=torch.float64)).shape == (0, *shape[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_kind
def test_half_types_compute_in_float32(kind: Any, shape: tuple[int, ...], training: bool, dtype: torch.dtype) -> None:
    norm = filled(kind(6)).to(dtype).train(training)
    wide, x = copy.deepcopy(norm).double(), data(shape).to(dtype)
    y, truth = norm(x), wide(x.double())
    assert y.dtype == dtype
    assert {value.dtype for value in norm.buffers()} == {dtype, torch.int64}
    pairs = [(y, truth), *zip(norm.buffers(), wide.buffers(), strict=True)]
    for have, want in pairs:
        assert (have.double() - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_kind
def test_half_input_keeps_a_float32_state(kind: Any, shape: tuple[int, ...], training: bool) -> None:
    norm, x = filled(kind(6)).float().train(training), data(shape).half()
    wide = copy.deepcopy(norm)
    y, truth = norm(x), wide(x.float())
    assert y.dtype == torch.float16
    assert {value.dtype for value in norm.buffers()} == {torch.float32, torch.int64}
    torch.testing.assert_close(y.float(), truth, rtol=1e-3, atol=1e-3)
    for have, want in zip(norm.buffers(), wide.buffers(), strict=True):
        torch.testing.assert_close(have, want)


@every_kind
def test_running_statistics_get_no_gradient(kind: Any, shape: tuple[int, ...]) -> None:
    norm = filled(kind(6))
    for step in range(2):  # a second step does not reach back into the first
        norm(data(shape, step).requires_grad_()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in norm.parameters())
    assert not any(value.requires_grad or value.grad_fn for value in norm.buffers())


@every_kind
def test_without_parameters_and_reset(kind: Any, shape: tuple[int, ...]) -> None:
    option = {"bias": False} if "MeanOnly" in kind.__name__ else {"affine": False}
    norm, other = filled(kind(6, **option)), filled(kind(6))
    assert not list(norm.parameters())
    other.load_state_dict(norm.state_dict(), strict=False)  # the same statistics
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.fill_(1.0 if name == "weight" else 0.0)
    for training in (True, False):
        torch.testing.assert_close(norm.train(training)(data(shape)), other.train(training)(data(shape)))
    norm.reset_running_stats()
    fresh = kind(6, **option).double()
    for name, value in fresh.named_buffers():
        assert torch.equal(norm.get_buffer(name), value), name
    assert repr(norm).count("6") == 1
    assert "False" in repr(norm)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("renorm")])
def test_without_running_statistics_eval_uses_the_batch(name: str) -> None:
    kind, shape = KINDS[name]
    norm, tracked = filled(kind(6, track_running_stats=False)), filled(kind(6))
    assert not list(norm.buffers())
    x = data(shape)
    torch.testing.assert_close(norm(x), tracked.train()(x))
    torch.testing.assert_close(norm.eval()(x), norm.train()(x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm.eval()(torch.zeros(1, 6, *(1,) * (len(shape) - 2), dtype=torch.float64))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_kind
def test_input_that_does_not_fit(kind: Any, shape: tuple[int, ...], training: bool) -> None:
    norm = kind(6).train(training)
    wanted = RANKS[int(kind.__name__[-2])]
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs {wanted} input.*\[6\]"):
        norm(torch.zeros(6))
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs {wanted} input"):
        norm(torch.zeros(2, 6, 3, 3, 3, 3))
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(6\) got 5 channels"):
        norm(torch.zeros(shape[0], 5, *shape[2:]))


@every_kind
def test_one_value_per_channel_cannot_train(kind: Any, shape: tuple[int, ...]) -> None:
    one = torch.zeros(1, 6, *(1,) * (len(shape) - 2))
    norm = kind(6)
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training.*\[1, 6"):
        norm(one)
    assert int(norm.num_batches_tracked) == 0
    assert norm.eval()(one).shape == one.shape


@pytest.mark.parametrize("name", ["renorm-2d", "l1-2d", "mean-only-2d"])
def test_the_training_graph_of_half_input_keeps_a_float32_state(tmp_path: Path, name: str) -> None:
    kind, shape = KINDS[name]
    norm, x = filled(kind(6)).float(), data(shape).half()
    path = tmp_path / "train.onnx"
    result = onnxnorm.export(copy.deepcopy(norm), (x,), mode="train")
    result.save(path)
    session = InferenceSession(path, providers=["CPUExecutionProvider"], library=True)
    feeds = {session.get_inputs()[0].name: to_ort(from_torch(x))}
    y, *state = (from_ort(value) for value in session.run_with_ort_values(None, feeds))
    truth = norm(x.float()).detach().numpy()
    assert y.dtype == np.float16
    assert np.abs(y.astype(np.float64) - truth).max() <= 2.0**-10 * np.abs(truth).max()
    names = [value.name for value in session.get_outputs()[1:]]
    for key, buffer in norm.named_buffers():
        have = state[names.index(result.state[key])]
        assert have.dtype == buffer.numpy().dtype
        np.testing.assert_allclose(have, buffer.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["renorm-2d", "l1-2d", "mean-only-2d"])
def test_a_size_that_is_computed_stays_free(tmp_path: Path, name: str) -> None:
    """Behind a stride and a pool the number of positions is an expression of the input's sizes."""
    kind, _ = KINDS[name]
    module = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.MaxPool2d(2), filled(kind(6)).float())
    assert_training_export_equals(tmp_path, module, [(4, 3, 33, 29), (2, 3, 11, 20), (3, 3, 7, 7)])


@pytest.mark.parametrize("name", ["renorm-2d", "l1-2d", "mean-only-2d"])
def test_torch_compile_sees_through_it(name: str) -> None:
    kind, shape = KINDS[name]
    norm = filled(kind(6))
    compiled = torch.compile(copy.deepcopy(norm), backend="eager", fullgraph=True)
    x = data(shape)
    torch.testing.assert_close(compiled(x), norm(x))
    torch.testing.assert_close(compiled.running_mean, norm.running_mean)
