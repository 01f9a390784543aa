"""``onnxnorm.recalibrate`` against ``torch.optim.swa_utils.update_bn`` followed by ``eval()``."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn

import onnxnorm
from onnxnorm.errors import ModelError, UsageError
from onnxnorm.model_file import serialized
from onnxnorm.passes.decision import Action
from onnxnorm.passes.pipeline import Result

Array = np.ndarray[Any, Any]


def training_graph(module: nn.Module, x: torch.Tensor, *, dynamic: bool = True, **options: Any) -> Result:
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    return onnxnorm.export(module, (x,), mode="train", dynamic_shapes=shapes, **options)


def data_for(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, items: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    offset = torch.arange(items, dtype=torch.float64).reshape(-1, *[1] * len(shape)) * 0.1  # batches differ
    return (torch.randn(items, *shape, generator=generator, dtype=torch.float64) * 2 + offset).to(dtype)


def assert_close(got: Array, wanted: Array, tolerance: float) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


class Shared(nn.Module):
    """One norm that is called twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(4)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))


class Counter(nn.Module):
    """A buffer that counts, and that the output reads before or after."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.register_buffer("steps", torch.tensor(1.5))
        self.before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(x) * self.steps if self.before else self.bn(x)
        if self.training:
            self.steps.add_(1.0)
        return y if self.before else y * self.steps


class ReadsRunningMean(nn.Module):
    """Reads the running statistics before and after the update."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.bn.running_mean.clone()
        return self.bn(x) + before + 3 * self.bn.running_mean


def deep() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None, affine=False), nn.Tanh(), nn.BatchNorm1d(5, momentum=0.7)),
    )


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
    )


SN = torch.nn.utils.parametrizations.spectral_norm
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype, float]] = {
    # BatchNormalization stores its epsilon in float32: 2.5e-13 off, measured against variances down to 0.1
    "deep-float64": (deep, (4,), torch.float64, 1e-12),
    "1d-float64": (lambda: nn.BatchNorm1d(4), (4, 7), torch.float64, 1e-13),
    "2d-float64": (lambda: nn.BatchNorm2d(3), (3, 5, 4), torch.float64, 1e-13),
    "3d-float64": (lambda: nn.BatchNorm3d(2), (2, 3, 4, 2), torch.float64, 1e-13),
    "images": (images, (3, 9, 8), torch.float32, 2e-6),
    "shared-float64": (Shared, (4,), torch.float64, 1e-13),
    "counter-before": (lambda: Counter(True), (4,), torch.float32, 2e-6),
    "counter-after": (lambda: Counter(False), (4,), torch.float32, 2e-6),
    "reads-running-mean": (ReadsRunningMean, (4,), torch.float64, 1e-13),
    "spectral-norm": (lambda: nn.Sequential(SN(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), (3, 6, 6), torch.float32, 4e-6),
    "spectral-norm-hook": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.BatchNorm1d(5)),
        (4,),
        torch.float32,
        4e-6,
    ),
    "half": (lambda: nn.BatchNorm2d(3), (3, 5, 4), torch.float16, 2e-3),
    "untracked": (
        lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3), nn.BatchNorm1d(3)),
        (4,),
        torch.float32,
        2e-6,
    ),
}


def lively(module: nn.Module) -> nn.Module:
    """Parameters and statistics as training leaves them."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase):
                if part.running_mean is not None and part.running_var is not None:
                    part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator))
                    part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
                if part.affine:
                    part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                    part.bias.copy_(torch.randn(part.bias.shape, generator=generator))
    return module


@pytest.mark.parametrize("case", CASES)
def test_update_bn_and_eval(case: str, truth: Any, outputs: Any) -> None:
    make, shape, dtype, tolerance = CASES[case]
    torch.manual_seed(0)
    module = lively(make()).to(dtype).train()
    data = data_for(shape, dtype)
    graph = training_graph(module, data[:4])
    result = onnxnorm.recalibrate(graph.model, data.numpy(), batch_size=6)
    x = data_for(shape, dtype, items=5) + 1
    assert_close(outputs(result.model, x), truth(module, data.split(6), x), tolerance)
    assert not result.state
    assert [value.name for value in result.model.graph.inputs] == [graph.model.graph.inputs[0].name]
    assert not any((value.name or "").startswith("next.") for value in result.model.graph.outputs)
    done = [item for item in result.decisions if item.action == Action.RECALIBRATED and item.op != "state"]
    assert done
    assert all(item.values["batches"] == 4 for item in done)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return lively(images()).train()


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> Result:
    return training_graph(net, data_for((3, 9, 8))[:4])


@pytest.fixture(scope="module")
def fixed(net: nn.Module) -> Result:
    return training_graph(net, data_for((3, 9, 8))[:4], dynamic=False)


def test_no_norm_is_left_and_each_is_told_of(graph: Result) -> None:
    result = onnxnorm.recalibrate(graph.model, data_for((3, 9, 8)).numpy(), batch_size=10)
    assert [node.op_type for node in result.model.graph] == ["Conv", "Relu", "Conv", "Relu"]
    text = result.explain()
    assert "1 (onnxnorm.BatchNormTraining" in text
    assert "(batches = 2, values per channel = 840)" in text
    assert text.count("fold/batch-norm-into-conv") == 2
    onnx.checker.check_model(onnx.load_from_string(_bytes(result)), full_check=True)


def _bytes(result: Result) -> bytes:
    return serialized(result.model)


def test_the_standard_target(graph: Result, net: nn.Module, truth: Any, outputs: Any) -> None:
    data = data_for((3, 9, 8))
    result = onnxnorm.recalibrate(graph.model, data.numpy(), batch_size=5, target="standard", verify=True)
    assert {node.domain for node in result.model.graph} == {""}
    assert_close(outputs(result.model, data), truth(net, data.split(5), data), 2e-6)


def test_momentum_of_the_graph(graph: Result, net: nn.Module, outputs: Any) -> None:
    data = data_for((3, 9, 8))
    double = copy.deepcopy(net).double()
    with torch.no_grad():
        for batch in data.split(4):
            double(batch.double())
        wanted = double.eval()(data.double()).numpy()
    result = onnxnorm.recalibrate(graph.model, data.numpy(), momentum="graph")  # batches of 4, as at export
    assert_close(outputs(result.model, data), wanted, 2e-6)


def test_the_training_graph_with_new_state(graph: Result, net: nn.Module, truth: Any, outputs: Any) -> None:
    data = data_for((3, 9, 8))
    kept = onnxnorm.recalibrate(graph.model, data.numpy(), batch_size=6, keep_training=True)
    assert kept.state == graph.state
    double = copy.deepcopy(net).double()
    update_bn([batch.double() for batch in data.split(6)], double)
    for key, tensor in double.state_dict().items():
        if "running" in key:
            stored = kept.model.graph.initializers[key].const_value
            assert stored is not None
            assert_close(np.asarray(stored.numpy(), np.float64), tensor.numpy(), 1e-6)
    again = onnxnorm.recalibrate(kept, data.numpy(), batch_size=6)
    assert_close(outputs(again.model, data), truth(net, data.split(6), data), 2e-6)


def test_the_given_model_stays_as_it_is(graph: Result) -> None:
    before = _bytes(graph)
    onnxnorm.recalibrate(graph.model, data_for((3, 9, 8)).numpy())
    assert _bytes(graph) == before


def test_stored_statistics_that_are_not_finite_are_forgotten(truth: Any, outputs: Any) -> None:
    module = nn.BatchNorm1d(4)
    data = data_for((4,))
    wanted = truth(module, data.split(10), data)
    module.running_mean.fill_(float("nan"))  # type: ignore[operator, union-attr]
    module.running_var.fill_(float("inf"))  # type: ignore[operator, union-attr]
    graph = training_graph(module, data[:4])
    result = onnxnorm.recalibrate(graph.model, data.numpy(), batch_size=10)
    assert_close(outputs(result.model, data), wanted, 2e-6)
    with pytest.raises(ModelError, match=r"gives nan for the state 'running_mean'; the stored state and the data"):
        onnxnorm.recalibrate(graph.model, data.numpy(), momentum="graph")


# --- data ---------------------------------------------------------------------------------------------------------


def test_every_form_of_data(graph: Result, tmp_path: Path) -> None:
    data = data_for((3, 9, 8)).numpy()
    name = str(graph.model.graph.inputs[0].name)
    np.save(tmp_path / "all.npy", data)
    np.savez(tmp_path / "all.npz", **{name: data})
    np.save(tmp_path / "a.npy", data[:10])
    np.save(tmp_path / "b.npy", data[10:])
    wanted = _bytes(onnxnorm.recalibrate(graph, data, batch_size=5))
    for form in (
        {name: data},
        tmp_path / "all.npy",
        str(tmp_path / "all.npz"),
        [tmp_path / "a.npy", tmp_path / "b.npy"],
        [{name: tmp_path / "a.npy"}, {name: tmp_path / "b.npy"}],
        torch.from_numpy(data),
    ):
        assert _bytes(onnxnorm.recalibrate(graph, form, batch_size=5)) == wanted
    batches = [data[start : start + 5] for start in range(0, 20, 5)]
    for form in (batches, [{name: batch} for batch in batches], ((batch, np.zeros(5)) for batch in batches)):
        assert _bytes(onnxnorm.recalibrate(graph, form)) == wanted


def test_the_batch_size_is_the_exports(graph: Result, fixed: Result) -> None:
    data = data_for((3, 9, 8)).numpy()
    for model in (graph, fixed):
        text = onnxnorm.recalibrate(model, data[:18]).explain()
        assert ("batches = 5" if model is graph else "batches = 4") in text
    assert "batch data: removed: left out: the last 2 items of data" in onnxnorm.recalibrate(fixed, data[:18]).explain()


def test_a_last_batch_of_one_value_is_left_out() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    data = data_for((4,)).numpy()
    graph = training_graph(module, torch.randn(4, 4))
    nine, eight = (onnxnorm.recalibrate(graph, data[:count]) for count in (9, 8))
    assert _bytes(nine) == _bytes(eight)
    assert "left out: the last batch" in nine.explain()
    assert "more than 1 value per channel" in nine.explain()
    with pytest.raises(UsageError, match=r"BatchNormTraining.*module '1'.*more than 1 value.*larger batch size"):
        onnxnorm.recalibrate(graph, data, batch_size=1)
    with pytest.raises(UsageError, match=r"batch 2: .*more than 1 value"):
        onnxnorm.recalibrate(graph, [data[:4], data[:1], data[:4]])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(y)


def test_two_inputs(tmp_path: Path) -> None:
    module, data = TwoInputs(), data_for((3,)).numpy()
    dim = torch.export.Dim("n")
    graph = onnxnorm.export(
        module, (torch.randn(4, 3), torch.randn(4, 3)), mode="train", dynamic_shapes=({0: dim}, {0: dim})
    )
    np.savez(tmp_path / "both.npz", x=data, y=data + 1)
    one = onnxnorm.recalibrate(graph, {"x": data, "y": data + 1}, batch_size=5)
    assert _bytes(onnxnorm.recalibrate(graph, tmp_path / "both.npz", batch_size=5)) == _bytes(one)
    batches = [(data[start : start + 5], data[start : start + 5] + 1) for start in range(0, 20, 5)]
    assert _bytes(onnxnorm.recalibrate(graph, batches)) == _bytes(one)
    with pytest.raises(UsageError, match=r"has no 'y'; the inputs of the graph are x, y"):
        onnxnorm.recalibrate(graph, {"x": data})
    with pytest.raises(UsageError, match=r"different numbers of items along axis 0: 'x' 20, 'y' 19"):
        onnxnorm.recalibrate(graph, {"x": data, "y": data[1:]})
    with pytest.raises(UsageError, match=r"data is one array; give a dict by the graph's inputs: x, y"):
        onnxnorm.recalibrate(graph, data)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros((8, 3, 9, 8)), {}, r"data holds float64, but input .* is float32"),
        (np.zeros((8, 3, 9), np.float32), {}, r"data has shape \[8, 3, 9\]"),
        (np.zeros((8, 2, 9, 8), np.float32), {}, r"data has shape \[4, 2, 9, 8\]"),
        (np.zeros((0, 3, 9, 8), np.float32), {}, r"data holds no items"),
        ([], {}, r"data holds no batch"),
        (3, {}, r"data is a int; give an array"),
        ("nowhere.npy", {}, r"nowhere.npy: no such file"),
        ({"z": np.zeros((8, 3, 9, 8), np.float32)}, {}, r"names 'z', which is no input; the inputs of the graph are"),
        ([np.zeros((8, 3, 9, 8), np.float32)], {"batch_size": 4}, r"batch_size cuts arrays and files"),
        (np.zeros((8, 3, 9, 8), np.float32), {"batch_size": 0}, r"batch_size is 0; it must be at least 1"),
        (
            np.zeros((8, 3, 9, 8), np.float32),
            {"momentum": "half"},
            r"momentum is 'half'; it must be one of 'cumulative'",
        ),
        (np.zeros((8, 3, 9, 8), np.float32), {"target": "x"}, r"target is 'x'"),
    ],
)
def test_bad_usage(data: Any, options: dict[str, Any], message: str, graph: Result) -> None:
    with pytest.raises(UsageError, match=message):
        onnxnorm.recalibrate(graph, data, **options)


def test_a_fixed_graph_takes_its_own_size(fixed: Result) -> None:
    data = data_for((3, 9, 8)).numpy()
    with pytest.raises(UsageError, match=r"batch_size is 5, but input .* of the graph takes 4 at a time"):
        onnxnorm.recalibrate(fixed, data, batch_size=5)
    with pytest.raises(UsageError, match=r"data has 3 items; input .* takes 4 at a time"):
        onnxnorm.recalibrate(fixed, data[:3])
    short = onnxnorm.recalibrate(fixed, [data[:4], data[4:8], data[8:11]])
    assert _bytes(short) == _bytes(onnxnorm.recalibrate(fixed, data[:8]))
    assert "left out: batch 3, the last one, is smaller than the graph takes" in short.explain()
    for batches in ([data[:3]], [data[:4], data[:3], data[:4]]):
        with pytest.raises(UsageError, match=r"batch [12] has shape \[3, 3, 9, 8\]"):
            onnxnorm.recalibrate(fixed, batches)


# --- models that are refused --------------------------------------------------------------------------------------


def test_a_model_without_state(net: nn.Module, tmp_path: Path) -> None:
    onnxnorm.export(net, (data_for((3, 9, 8))[:4],)).save(tmp_path / "eval.onnx")
    with pytest.raises(
        ModelError, match=r"eval.onnx: the model has no state to recalibrate; export it with mode='train'"
    ):
        onnxnorm.recalibrate(tmp_path / "eval.onnx", data_for((3, 9, 8)).numpy())


@pytest.mark.parametrize("momentum", ["cumulative", "graph"])
def test_statistics_that_are_not_finite(graph: Result, momentum: Any) -> None:
    data = data_for((3, 9, 8)).numpy()
    data[6, 1, 2, 3] = np.nan
    message = r"batch 2: .*BatchNormTraining .*\(module '1'\) gives nan for the state '1.running_mean'"
    with pytest.raises(ModelError, match=message):
        onnxnorm.recalibrate(graph, data, momentum=momentum)


class OwnNorm(nn.Module):
    """Batch norm as users write it: its statistics are computed by primitive operators."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(4))
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(0)
        self.running.mul_(0.9).add_(0.1 * mean.detach())
        return self.bn(x - mean)


def test_a_norm_in_primitive_operators(outputs: Any) -> None:
    data = data_for((4,))
    graph = training_graph(OwnNorm(), data[:4])
    for momentum in ("cumulative", "graph"):
        with pytest.raises(
            ModelError, match=r"state 'running' is computed from the data by .*no training op of onnxnorm"
        ):
            onnxnorm.recalibrate(graph, data.numpy(), momentum=momentum)
    kept = onnxnorm.recalibrate(graph, data.numpy(), momentum="graph", keep_training=True)  # as PyTorch in training
    module = OwnNorm().double()
    with torch.no_grad():
        for batch in data.double().split(4):
            module(batch)
    stored = kept.model.graph.initializers["running"].const_value
    assert stored is not None
    assert_close(np.asarray(stored.numpy(), np.float64), module.running.numpy(), 1e-6)


def test_a_graph_in_standard_operators(net: nn.Module) -> None:
    data = data_for((3, 9, 8))
    graph = training_graph(net, data[:4], target="standard")
    with pytest.raises(ModelError, match=r"state '1.running_mean' is computed from the data by"):
        onnxnorm.recalibrate(graph, data.numpy())


class PowerIteration(nn.Module):
    """The output reads half of an update: whether evaluation makes it, nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)
        self.register_buffer("u", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = torch.sin(self.u)
        self.u.copy_(half * 2)
        return self.bn(x) * half


def test_an_unfinished_update() -> None:
    graph = training_graph(PowerIteration(), torch.randn(4, 4))
    with pytest.raises(ModelError, match=r"state 'u': the outputs read Sin .*part of its update"):
        onnxnorm.recalibrate(graph, data_for((4,)).numpy())


def test_weights_in_an_external_file(graph: Result, tmp_path: Path) -> None:
    graph.save(tmp_path / "training.onnx", external_data="training.data")
    data = data_for((3, 9, 8)).numpy()
    wanted = onnxnorm.recalibrate(graph, data)
    assert _bytes(onnxnorm.recalibrate(tmp_path / "training.onnx", data)) == _bytes(wanted)


def test_recalibrating_needs_no_torch(graph: Result, tmp_path: Path) -> None:
    graph.save(tmp_path / "training.onnx")
    np.save(tmp_path / "x.npy", data_for((3, 9, 8)).numpy())
    code = (
        "import sys; sys.modules['torch'] = None; import onnxnorm;"
        f"result = onnxnorm.recalibrate({str(tmp_path / 'training.onnx')!r}, {str(tmp_path / 'x.npy')!r});"
        "print([node.op_type for node in result.model.graph])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Conv', 'Relu', 'Conv', 'Relu']"
