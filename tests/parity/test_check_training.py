"""``onnxnorm.check(mode="train")``: outputs and state over several steps; planted faults; the wrong mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import nn

import onnxnorm
from onnxnorm.errors import UsageError
from onnxnorm.model_file import serialized
from onnxnorm.parity import Report, check

Lively = Callable[[nn.Module], nn.Module]


class Net(nn.Module):
    """Norms in training, a frozen one, dropout of both kinds, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, momentum=0.2)
        self.frozen = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.BatchNorm2d(4, momentum=None)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = F.dropout(torch.relu(self.frozen(self.bn(self.conv(x)))), 0.3, self.training)
        y = self.last(self.drop(h))
        return {"y": y, "pooled": y.mean((2, 3))}


@pytest.fixture(scope="module")
def net(lively: Lively) -> nn.Module:
    module = lively(Net()).train()
    module.frozen.eval()  # type: ignore[union-attr, operator]
    return module


def training_graph(module: nn.Module, x: torch.Tensor, **options: Any) -> onnx.ModelProto:
    return onnx.load_from_string(serialized(onnxnorm.export(module, (x,), mode="train", **options).model))


@pytest.fixture(scope="module")
def exported(net: nn.Module) -> onnx.ModelProto:
    dynamic = ({0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")},)
    return training_graph(net, torch.randn(3, 3, 8, 9), dynamic_shapes=dynamic)


@pytest.fixture(scope="module")
def passed(net: nn.Module, exported: onnx.ModelProto) -> Report:
    return check(net, exported, mode="train")


def test_a_good_file_passes(passed: Report) -> None:
    passed.assert_passed()
    names = [output.name for output in passed.runs[0].outputs]
    outputs = [name for name in names if name.startswith("step ")]
    assert [name.partition(": ")[0] for name in outputs] == ["step 1"] * 2 + ["step 2"] * 2 + ["step 3"] * 2
    states = {name for name in names if name.startswith("state ")}
    assert states == {
        f"state {norm}.{part}"
        for norm in ("bn", "last")
        for part in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert {run.variant.level for run in passed.runs} == {"all", "none"}
    assert len({tuple(sample.shapes["x"]) for sample in passed.samples}) == 2
    assert {sample.truth for sample in passed.samples} == {"float64"}


def test_the_module_stays_as_it_is(net: nn.Module, exported: onnx.ModelProto) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [part.training for part in net.modules()]
    check(net, exported, torch.randn(3, 3, 8, 8), mode="train", steps=2).assert_passed()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == flags


# --- planted faults -----------------------------------------------------------------------------------------------


def nodes(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def rename_output(node: onnx.NodeProto, old: str, new: str) -> None:
    node.output[list(node.output).index(old)] = new


def other_momentum(model: onnx.ModelProto) -> None:
    """Momentum 0.1 for 0.2."""
    norm = nodes(model, "BatchNormTraining")[0]
    value = next(item for item in model.graph.initializer if item.name == norm.input[5])
    assert numpy_helper.to_array(value) == np.float32(0.2)
    value.CopyFrom(numpy_helper.from_array(np.float32([0.1]), value.name))


def biased_variance(model: onnx.ModelProto) -> None:
    """running_var' = running_var + 0.2 * (var / 1.005 - running_var), as with 201 values in a channel."""
    norm, old = producer(model, "next.bn.running_var"), "fault_unbiased"
    rename_output(norm, "next.bn.running_var", old)
    add = [
        numpy_helper.from_array(np.float32(0.8), "fault_keep"),
        numpy_helper.from_array(np.float32(200 / 201), "fault_biased"),
    ]
    model.graph.initializer.extend(add)
    position = list(model.graph.node).index(norm) + 1
    made = [
        helper.make_node("Mul", ["bn.running_var", "fault_keep"], ["fault_old"]),
        helper.make_node("Sub", [old, "fault_old"], ["fault_new"]),
        helper.make_node("Mul", ["fault_new", "fault_biased"], ["fault_less"]),
        helper.make_node("Add", ["fault_old", "fault_less"], ["next.bn.running_var"]),
    ]
    for node in reversed(made):
        model.graph.node.insert(position, node)


def swapped_next_outputs(model: onnx.ModelProto) -> None:
    """The next mean of one norm for that of the other."""
    names = [f"next.{name}.running_mean" for name in ("bn", "last")]
    one, other = (producer(model, name) for name in names)
    rename_output(one, names[0], names[1])
    rename_output(other, names[1], names[0])


def counts_twice(model: onnx.ModelProto) -> None:
    """num_batches_tracked grows by 2."""
    counted = producer(model, "next.bn.num_batches_tracked")
    add = producer(model, counted.input[0]) if counted.op_type == "Identity" else counted
    model.graph.initializer.append(numpy_helper.from_array(np.int64(2), "fault_two"))
    add.input[1] = "fault_two"


def other_default(model: onnx.ModelProto) -> None:
    """The stored running mean is not the module's."""
    value = next(item for item in model.graph.initializer if item.name == "bn.running_mean")
    value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value) + np.float32(1e-3), value.name))


def other_epsilon(model: onnx.ModelProto) -> None:
    """1e-3 for 1e-5."""
    nodes(model, "BatchNormTraining")[0].attribute[0].f = 1e-3


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "momentum": (other_momentum, "state bn.running_mean"),
    "biased-variance": (biased_variance, "state bn.running_var"),
    "swapped-next-outputs": (swapped_next_outputs, "state last.running_mean"),
    "counts-twice": (counts_twice, "state bn.num_batches_tracked"),
    "default": (other_default, "state bn.running_mean"),
    "epsilon": (other_epsilon, "step 1: output"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, net: nn.Module, exported: onnx.ModelProto) -> None:
    plant, name = FAULTS[fault]
    broken = onnx.ModelProto()
    broken.CopyFrom(exported)
    plant(broken)
    onnx.checker.check_model(broken)
    report = check(net, broken, mode="train", samples=1)
    assert not report.passed
    failed = {output.name for run in report.runs for output in run.outputs if not output.passed}
    assert not any(run.error for run in report.runs)
    assert any(each.startswith(name) for each in failed), failed
    if name.startswith("state"):
        assert not any(each.startswith("step 1") for each in failed), "the first outputs do not depend on the state"


def test_a_frozen_layer_that_moves(net: nn.Module, exported: onnx.ModelProto) -> None:
    """The file updates ``frozen``, which the module does not; and the other way round."""
    thawed = copy.deepcopy(net).train()
    graph = training_graph(thawed, torch.randn(3, 3, 8, 9))
    report = check(net, graph, mode="train", samples=1)
    reasons = {output.name: output.reason for output in report.runs[0].outputs if not output.passed}
    assert "state frozen.running_mean" in reasons
    report = check(thawed, exported, mode="train", samples=1)
    reasons = {output.name: output.reason for output in report.runs[0].outputs if not output.passed}
    assert "missing from the ONNX file" in reasons["state frozen.running_mean"]
    with pytest.raises(AssertionError, match=r"state|step"):
        report.assert_passed()


def test_a_state_that_the_module_has_not(net: nn.Module, exported: onnx.ModelProto) -> None:
    renamed = onnx.load_from_string(exported.SerializeToString().replace(b"bn.running_mean", b"bx.running_mean"))
    report = check(net, renamed, mode="train", samples=1)
    reasons = {output.name: output.reason for output in report.runs[0].outputs if not output.passed}
    assert "not a state of the PyTorch module" in reasons["state bx.running_mean"]
    assert "missing from the ONNX file" in reasons["state bn.running_mean"]


# --- more modules -------------------------------------------------------------------------------------------------


class Assigned(nn.Module):
    """A norm as users write it: buffers that are assigned anew, one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4))
        self.register_buffer("alias", self.centre)
        self.register_buffer("spread", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = x.mean(0), x.var(0, unbiased=False)
        self.centre.copy_(0.9 * self.centre + 0.1 * mean.detach())
        self.spread = 0.9 * self.spread + 0.1 * var.detach()
        return (x - mean) / torch.sqrt(var + 1e-5) + self.alias


SN = torch.nn.utils.parametrizations.spectral_norm
MODULES: dict[str, Callable[[], nn.Module]] = {
    "own-norm": Assigned,
    "spectral-norm": lambda: nn.Sequential(SN(nn.Linear(4, 5)), nn.BatchNorm1d(5)),
    "spectral-norm-hook": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 5)), nn.BatchNorm1d(5)),
    "no-state": lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Dropout(0.5)),
}


@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
@pytest.mark.parametrize("name", MODULES)
def test_no_false_alarm(name: str, target: Any) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().train()
    graph = training_graph(module, torch.randn(6, 4), target=target)
    report = check(module, graph, mode="train", samples=2)
    report.assert_passed()
    if name == "own-norm":
        names = [output.name for output in report.runs[0].outputs if output.name.startswith("state")]
        assert names == ["state centre", "state spread"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: torch.dtype, lively: Lively) -> None:
    module = lively(nn.BatchNorm1d(4)).train().to(dtype)
    report = check(module, training_graph(module, torch.randn(8, 4).to(dtype)), mode="train", samples=1)
    report.assert_passed()


class BitsAndState(nn.Module):
    """Cannot run in float64, and has state."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float64:
            raise TypeError("float32 only")
        return self.bn(x)


def test_a_part_in_float32_keeps_its_state(lively: Lively) -> None:
    module = lively(nn.Sequential(nn.Linear(4, 4), BitsAndState())).train()
    report = check(module, training_graph(module, torch.randn(8, 4)), mode="train", samples=1)
    report.assert_passed()
    assert "truth computed in float32 in 1" in str(report)


# --- the wrong mode -----------------------------------------------------------------------------------------------


def test_a_training_graph_checked_for_evaluation(net: nn.Module, exported: onnx.ModelProto) -> None:
    with pytest.raises(
        UsageError, match=r"the model is a training graph \(its state has 'bn.running_mean'\).*mode='train'"
    ):
        check(net, exported)


def test_an_inference_graph_checked_for_training(net: nn.Module) -> None:
    inference = onnxnorm.export(net, (torch.randn(3, 3, 8, 9),))
    with pytest.raises(UsageError, match=r"is no training graph: it has no state, while Net updates 'bn.running_mean'"):
        check(net, inference, mode="train")


def test_a_module_in_evaluation(net: nn.Module, exported: onnx.ModelProto) -> None:
    with pytest.raises(UsageError, match=r"mode is 'train', but every submodule of Net is in evaluation"):
        check(copy.deepcopy(net).eval(), exported, mode="train")
