"""Training graphs of users' code that is less tidy: names in use, hooks, ``.data``, state in Python, noise."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import onnxnorm
from onnxnorm.errors import ExportError
from onnxnorm.runtime.arrays import from_ort, from_torch, to_ort

from .conftest import EPS


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def widened(module: nn.Module) -> nn.Module:
    """In float64, in place: tied buffers stay tied, which ``double()`` unties."""
    for tensor in (*module.buffers(), *module.parameters()):
        tensor.data = tensor.data.double() if tensor.is_floating_point() else tensor.data
    return module


def assert_three_steps(make: Callable[[], nn.Module], *shape: int, dtype: torch.dtype = torch.float32) -> None:
    """Outputs and buffers after each of three steps are PyTorch's in float64, from a module made anew."""
    module = make().train() if dtype == torch.float32 else make().to(dtype).train()
    before = {name: tensor.clone() for name, tensor in (*module.named_buffers(), *module.named_parameters())}
    data = [randn(*shape, seed=seed).to(dtype) for seed in range(3)]
    result = onnxnorm.export(module, data[0], mode="train")
    for name, tensor in (*module.named_buffers(), *module.named_parameters()):
        assert torch.equal(tensor, before[name]), f"export changed {name}"
    proto = ir.to_proto(result.model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    argument = session.get_inputs()[0].name
    names = [item.name for item in session.get_outputs()]
    truth, state = widened(make().to(dtype).train()), {}
    for x in data:
        feeds = {name: to_ort(array) for name, array in {argument: from_torch(x), **state}.items()}
        outputs = dict(zip(names, map(from_ort, session.run_with_ort_values(None, feeds)), strict=True))
        state = {key: outputs[following] for key, following in result.state.items()}
        with torch.no_grad():
            exact = torch.utils._pytree.tree_leaves(truth(x.double()))
        places = dict((*truth.named_buffers(), *truth.named_parameters()))
        pairs = [*zip(outputs.values(), exact, strict=False), *((state[key], places[key]) for key in state)]
        assert len(outputs) == len(exact) + len(state)
        for have, want in pairs:
            scale = max(float(want.detach().double().abs().max()), 1.0)
            assert np.abs(have.astype(np.float64) - want.detach().double().numpy()).max() <= 16 * EPS[dtype] * scale
    moved = {name for name, tensor in truth.named_buffers() if not torch.equal(tensor, before[name].to(tensor.dtype))}
    assert moved <= set(state)


# --- names ----------------------------------------------------------------------------------------------------------


class Alias(nn.Module):
    """One tensor under two keys; the first is also what the exporter calls a value inside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("alias", self.mean)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0)
        self.mean.copy_(0.9 * self.mean + 0.1 * mean)
        return x - mean + self.alias


class OutputNames(nn.Module):
    """The exporter's names for the outputs are those of buffers; ``x`` is a constant beside the argument ``x``."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("add", "add_1", "mul", "x"):
            self.register_buffer(name, torch.rand(4, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.add = self.add + x.mean(0)
        self.mul = x.amax(0)
        return x + self.add + self.add_1, x * self.x


@pytest.mark.parametrize("make", [Alias, OutputNames])
def test_names_of_states_that_the_exporter_uses_itself(make: Callable[[], nn.Module]) -> None:
    assert_three_steps(make, 5, 4)


class Repeated(nn.Module):
    """Returns one tensor twice, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.mean.lerp_(x.mean(0), 0.1)
        y = x - self.mean
        return y, self.mean, y


def test_outputs_that_are_one_tensor_have_names_of_their_own() -> None:
    assert_three_steps(Repeated, 5, 4)
    for mode in ("train", "eval"):
        names = ["a", "b", "c"]
        result = onnxnorm.export(
            Repeated().train(), randn(5, 4, seed=0), mode=mode, output_names=names, target="standard"
        )
        assert [value.name for value in result.model.graph.outputs][:3] == names


class WrittenOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.amax(0)
        return x * 2


def test_a_bfloat16_state_that_is_only_written() -> None:
    assert_three_steps(WrittenOnly, 5, 4, dtype=torch.bfloat16)


# --- ways to write --------------------------------------------------------------------------------------------------


class SetData(nn.Module):
    """``.data =`` on a buffer and on a parameter, as in ports of spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.u = nn.Parameter(torch.ones(4) / 2, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.data = 0.9 * self.mean.data + 0.1 * x.mean(0).data
        u = self.u.data + x.data.amax(0)
        self.u.data = u / u.norm()
        return (x - self.mean) * self.u


def test_assigned_data_is_state() -> None:
    assert_three_steps(SetData, 5, 4)


class Teacher(nn.Module):
    """Averages of the weights by the operators that ``torch.optim.swa_utils`` uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 0.1)
        return self.student(x), self.teacher(x)


def test_averages_over_lists_of_tensors() -> None:
    assert_three_steps(Teacher, 5, 4)


class ItemCount(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("steps", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        share = 1.0 / self.steps.item()
        self.mean.mul_(1 - share).add_(share * x.mean(0))
        return x - self.mean


def test_a_quotient_of_whole_numbers_has_pythons_digits() -> None:
    assert_three_steps(ItemCount, 5, 4, dtype=torch.float64)


class HookOnAnother(nn.Module):
    """The hook's closure holds this module itself, which a copy of the module does not change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("average", torch.zeros(4))

        def move(_: nn.Module, __: Any, output: Tensor) -> None:
            self.average.mul_(0.9).add_(output.detach().mean(0), alpha=0.1)

        self.layer.register_forward_hook(move)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - self.average


def test_a_hook_that_holds_the_module() -> None:
    assert_three_steps(HookOnAnother, 5, 4)


# --- state in Python, and noise ---------------------------------------------------------------------------------------


class PythonState(nn.Module):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.held: dict[str, Any] = {"mean": torch.zeros(4), "count": 0}
        self.past: list[Tensor] = []
        self.other = type("Other", (), {"count": 0})()

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0)
        if self.place == "held":
            self.held["mean"].mul_(0.9).add_(mean, alpha=0.1)
            return x - self.held["mean"]
        if self.place == "past":
            self.past.append(mean)
            return x - torch.stack(self.past).mean(0)
        if self.place == "other":
            self.other.count += 1
            return x * self.other.count
        self.past.append(mean)
        return x - mean


@pytest.mark.parametrize(
    ("place", "named"), [("held", "'held'"), ("past", "'past'"), ("other", "something outside of its buffers")]
)
def test_state_in_dicts_lists_and_objects_is_refused(place: str, named: str) -> None:
    with pytest.raises(ExportError, match=f"PythonState changes {named}.*and depends on it.*register_buffer") as raised:
        onnxnorm.export(PythonState(place).train(), randn(5, 4, seed=0), mode="train")
    assert "\n" not in str(raised.value)


def test_a_log_that_nothing_reads_is_no_state() -> None:
    module = PythonState("log").train()
    result = onnxnorm.export(module, randn(5, 4, seed=0), mode="train")
    assert result.state == {}
    assert module.past == []


class Noise(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        if self.source == "Python":
            return x * random.random()
        if self.source == "NumPy":
            return x * float(np.random.rand())
        return x[torch.randperm(x.shape[0])]


@pytest.mark.parametrize("source", ["Python", "NumPy", "operator"])
def test_noise_that_no_graph_shows_is_refused(source: str) -> None:
    state = copy.deepcopy(random.getstate())
    with pytest.raises(ExportError, match="Noise draws random numbers in training.*noise-free.*eval") as raised:
        onnxnorm.export(Noise(source).train(), randn(5, 4, seed=0), mode="train")
    assert "\n" not in str(raised.value)
    assert source != "NumPy" or random.getstate() == state
