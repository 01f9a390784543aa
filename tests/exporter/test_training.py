"""Training graphs: what counts as state, how it is named, what is refused, and that steps equal PyTorch's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onnxnorm
from onnxnorm import ExportError, UsageError
from onnxnorm.passes.pipeline import Result
from onnxnorm.runtime.environment import newest_opset

Batches = list[tuple[Tensor, ...]]


def session(model: ir.Model | str | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    content = ir.to_proto(model).SerializeToString() if isinstance(model, ir.Model) else model
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def assert_steps(module: nn.Module, result: Result, batches: Batches, bound: float = 2e-6) -> dict[str, Any]:
    """Outputs of every step, and the state after the last, near float64 PyTorch; returns the state."""
    truth = copy.deepcopy(module).double()
    if isinstance(truth, TiedBuffers):
        truth.two.mean = truth.one.mean  # double() unties them
    current = session(result.model)
    names = [item.name for item in current.get_outputs()]
    inputs = [item.name for item in current.get_inputs()]
    state: dict[str, Any] = {}
    for batch in batches:
        feeds = dict(zip(inputs, (tensor.numpy() for tensor in batch), strict=True))
        outputs = dict(zip(names, current.run(None, {**feeds, **state}), strict=True))
        with torch.no_grad():
            wanted = truth(*(tensor.double() for tensor in batch))
        near(outputs[names[0]], wanted, bound)
        state = {key: outputs[following] for key, following in result.state.items()}
    after = truth.state_dict()
    for key, value in state.items():
        near(value, after[key], bound)
    return state


def near(value: np.ndarray, wanted: Tensor, bound: float) -> None:
    exact = wanted.double().numpy()
    assert value.shape == exact.shape
    assert np.abs(value.astype(np.float64) - exact).max(initial=0.0) <= bound * max(
        np.abs(exact).max(initial=0.0), 1e-3
    )


def float64_of(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = copy.deepcopy(module).double()(x.double())
    return y


def batches(*shape: int, count: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(shape, generator=generator) * 2 + 1,) for _ in range(count)]


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def test_state_enters_by_its_key_and_leaves_as_next() -> None:
    module = cnn().train()
    data = batches(2, 3, 8, 8)
    result = onnxnorm.export(module, data[0], mode="train")
    keys = [f"{layer}.{name}" for layer in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert result.state == {key: f"next.{key}" for key in keys}
    assert [value.name for value in result.model.graph.inputs][1:] == keys
    defaults = {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}
    for key in keys:
        np.testing.assert_array_equal(defaults[key], module.state_dict()[key].numpy())
    assert {"0.weight", "1.weight"} <= set(defaults)
    assert_steps(module, result, data)


def test_the_first_call_needs_no_state() -> None:
    module = cnn().train()
    data = batches(2, 3, 8, 8)
    current = session(onnxnorm.export(module, data[0], mode="train").model)
    assert [item.name for item in current.get_inputs()] == ["input"]
    assert {item.name for item in current.get_overridable_initializers()} >= {"1.running_mean", "4.running_var"}
    near(current.run(None, {"input": data[0][0].numpy()})[0], float64_of(module, data[0][0]), 2e-6)


def test_the_module_is_left_as_it_is() -> None:
    module = cnn().train()
    before = copy.deepcopy(module.state_dict())
    onnxnorm.export(module, batches(2, 3, 8, 8)[0], mode="train")
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_frozen_layer_stays_frozen() -> None:
    module = cnn().train()
    module[1].running_mean.normal_()
    module[1].eval()
    data = batches(2, 3, 8, 8)
    result = onnxnorm.export(module, data[0], mode="train")
    assert {key.partition(".")[0] for key in result.state} == {"4"}
    assert [node.op_type for node in result.model.graph].count("BatchNormalization") == 0  # folded
    assert_steps(module, result, data)


def test_a_module_wholly_in_evaluation_is_refused() -> None:
    with pytest.raises(UsageError, match="every submodule of Sequential is in evaluation; call train"):
        onnxnorm.export(cnn().eval(), batches(2, 3, 8, 8)[0], mode="train")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="mode is 'training'; it must be one of 'eval', 'train'"):
        onnxnorm.export(cnn(), batches(2, 3, 8, 8)[0], mode="training")  # type: ignore[arg-type]


@pytest.mark.parametrize("opset", sorted({18, 21, 23, newest_opset()}))
@pytest.mark.parametrize("target", ["onnxnorm", "standard"])
def test_every_opset(opset: int, target: Any) -> None:
    module = nn.Sequential(
        nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.InstanceNorm1d(4, track_running_stats=True)
    ).train()
    data = batches(3, 3, 9)
    result = onnxnorm.export(module, data[0], mode="train", opset=opset, target=target)
    assert result.model.opset_imports[""] == opset
    assert_steps(module, result, data)


def test_optimize_keeps_state_and_changes_nothing_more(tmp_path: Path) -> None:
    module = cnn().train()
    data = batches(2, 3, 8, 8)
    result = onnxnorm.export(module, data[0], mode="train")
    result.save(tmp_path / "train.onnx")
    again = onnxnorm.optimize(tmp_path / "train.onnx")
    assert again.state == result.state
    assert [node.op_type for node in again.model.graph].count("BatchNormTraining") == 2
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "train.onnx").read_bytes()
    standard = onnxnorm.optimize(tmp_path / "train.onnx", target="standard")
    assert standard.state == result.state
    assert_steps(module, standard, data)


# --- what counts as state -------------------------------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def test_a_shared_layer_has_one_state() -> None:
    module = Shared().train()
    data = batches(5, 4)
    result = onnxnorm.export(module, data[0], mode="train")
    assert list(result.state) == ["first.running_mean", "first.running_var", "first.num_batches_tracked"]
    assert_steps(module, result, data)


class TiedBuffers(nn.Module):
    """Two modules, one buffer; ``assign``: one of them assigns a new tensor."""

    def __init__(self, assign: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Module(), nn.Module()
        self.one.register_buffer("mean", torch.zeros(4))
        self.two.register_buffer("mean", self.one.mean)
        self.assign = assign

    def forward(self, x: Tensor) -> Tensor:
        if self.assign:
            self.two.mean = self.two.mean + x.mean(0)
        else:
            self.two.mean += x.mean(0)
        return x - self.one.mean


def test_a_buffer_under_two_keys_has_one_state() -> None:
    module = TiedBuffers(False).train()
    data = batches(5, 4)
    result = onnxnorm.export(module, data[0], mode="train")
    assert list(result.state) == ["one.mean"]
    assert_steps(module, result, data)


class Alias(nn.Module):
    """A shared buffer with the name that a value of the graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("alias", self.mean)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0)
        self.mean.copy_(0.9 * self.mean + 0.1 * mean)
        return x - mean + self.alias


def test_a_shared_buffer_named_as_a_value_inside() -> None:
    module = Alias().train()
    result = onnxnorm.export(module, batches(5, 4)[0], mode="train")
    assert result.state == {"mean": "next.mean"}
    outputs = session(result.model).run(None, {"x": batches(5, 4)[0][0].numpy()})
    near(outputs[1], 0.1 * batches(5, 4)[0][0].mean(0), 2e-6)


def test_a_tie_that_the_forward_breaks_is_refused() -> None:
    with pytest.raises(ExportError, match="'one.mean' is shared by 2 submodules.*update it in place"):
        onnxnorm.export(TiedBuffers(True).train(), batches(5, 4)[0], mode="train")


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(4), persistent=False)
        self.register_buffer("unused", torch.zeros(2))
        self.register_buffer("constant", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.mean(0)
        return x * self.constant


def test_a_buffer_that_is_only_written_is_state_and_one_that_is_only_read_is_not() -> None:
    module = Overwritten().train()
    result = onnxnorm.export(module, batches(5, 4)[0], mode="train")
    assert result.state == {"last": "next.last"}


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.tensor([-0.5, 0.5, 2.0]))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.rho.data.clamp_(0, 1)
        rho = self.rho.view(1, -1, 1, 1)
        return self.norm(x) * rho + F.instance_norm(x) * (1 - rho)


def test_a_parameter_that_the_forward_changes_is_state() -> None:
    module = Clipped().train()
    data = batches(2, 3, 5, 5)
    result = onnxnorm.export(module, data[0], mode="train")
    assert "rho" in result.state
    assert_steps(module, result, data)


class Counting(nn.Module):
    def __init__(self, used: bool) -> None:
        super().__init__()
        self.steps, self.used = 0, used
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.norm(x) * (self.steps if self.used else 1)


def test_a_python_counter_that_matters_is_refused_and_one_that_does_not_is_not() -> None:
    data = batches(5, 4)
    with pytest.raises(ExportError, match="Counting changes 'steps' and depends on it.*register_buffer"):
        onnxnorm.export(Counting(True).train(), data[0], mode="train")
    module = Counting(False).train()
    assert_steps(module, onnxnorm.export(module, data[0], mode="train"), data)


class PlainTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean


def test_a_tensor_that_is_no_buffer_is_refused() -> None:
    with pytest.raises(ExportError, match="PlainTensor changes 'mean' and depends on it.*register_buffer"):
        onnxnorm.export(PlainTensor().train(), batches(5, 4)[0], mode="train")


# --- names ----------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """``names``: a buffer, or a submodule's buffer, by its key."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            owner: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_buffer(leaf, torch.zeros(4))
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            self.get_buffer(name).add_(x.mean(0))
        return x - self.get_buffer(self.names[0])


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("x",), {}, "the name 'x' of buffer 'x'.*also that of an argument"),
        (("mean",), {"output_names": ["next.mean"]}, "the name 'next.mean' of buffer 'mean'.*an output"),
        (("mean",), {"input_names": ["next.mean"]}, "the name 'next.mean' of buffer 'mean'"),
        (("mean", "next.mean"), {}, "the name 'next.mean' of buffer"),
    ],
)
def test_collisions_are_errors(names: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        onnxnorm.export(Named(*names).train(), batches(5, 4)[0], mode="train", **options)


def test_given_names_are_kept() -> None:
    module = Named("x").train()
    result = onnxnorm.export(module, batches(5, 4)[0], mode="train", input_names=["data"], output_names=["y"])
    assert [value.name for value in result.model.graph.inputs] == ["data", "x"]
    assert [value.name for value in result.model.graph.outputs] == ["y", "next.x"]
    assert_steps(module, result, batches(5, 4))


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, *, shift: Tensor, unused: Tensor | None = None) -> dict[str, Any]:
        y = self.norm(x + shift)
        return {"y": y, "none": None, "pair": (y * 2, y.mean())}


def test_keyword_arguments_and_nested_outputs() -> None:
    x, shift = torch.randn(5, 4), torch.randn(4)
    dynamic = {"x": {0: torch.export.Dim("n", min=2)}, "shift": None}
    result = onnxnorm.export(Several().train(), (x,), {"shift": shift}, mode="train", dynamic_shapes=dynamic)
    assert [value.name for value in result.model.graph.inputs][:2] == ["x", "shift"]
    assert len(result.model.graph.outputs) == 3 + 3
    current = session(result.model)
    x = torch.randn(9, 4)
    y, double, mean, *_ = current.run(None, {"x": x.numpy(), "shift": shift.numpy()})
    with torch.no_grad():
        wanted = Several().train().double()(x.double(), shift=shift.double())
    near(y, wanted["y"], 2e-6)
    near(double, wanted["pair"][0], 2e-6)
    assert abs(float(mean)) < 1e-6


class TakesDictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.norm(batch["x"]) + batch["shift"]
        return y


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_dictionary_as_the_only_argument(mode: Any) -> None:
    batch = {"x": torch.randn(5, 4), "shift": torch.randn(4)}
    result = onnxnorm.export(TakesDictionary().train(), (batch,), mode=mode)
    assert len(result.model.graph.outputs) == (4 if mode == "train" else 1)


# --- noise ----------------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """As in timm."""

    drop_prob = 0.3

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1).bernoulli_(0.7) / 0.7


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.path, self.never = nn.BatchNorm1d(4), nn.Dropout(0.5), DropPath(), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.never(self.path(self.drop(self.norm(x)))), 0.2, self.training)


def test_dropout_is_left_out_and_said() -> None:
    module = Dropping().train()
    data = batches(6, 4)
    result = onnxnorm.export(module, data[0], mode="train")
    removed = [decision for decision in result.decisions if decision.action.value == "removed"]
    assert [decision.node for decision in removed] == ["drop", "path", "dropout"]
    assert "noise-free" in str(removed[0])
    plain = copy.deepcopy(module)
    plain.drop.eval()
    plain.path.eval()
    current = session(result.model)
    near(current.run(None, {"x": data[0][0].numpy()})[0], float64_of(plain.norm, data[0][0]), 2e-6)


def test_random_dropout_is_refused() -> None:
    with pytest.raises(UsageError, match="dropout is 'random'; it must be 'identity': a training graph is noise-free"):
        onnxnorm.export(Dropping().train(), batches(6, 4)[0], mode="train", dropout="random")


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + torch.randn_like(x)


def test_other_noise_is_refused() -> None:
    with pytest.raises(ExportError, match=r"draws random numbers in training \(RandomNormalLike.*eval\(\)"):
        onnxnorm.export(nn.Sequential(Noisy()).train(), batches(5, 4)[0], mode="train")


# --- what PyTorch refuses, and edges --------------------------------------------------------------------------------


def test_one_value_per_channel() -> None:
    with pytest.raises(ExportError, match="fails in training mode.*Expected more than 1 value per channel"):
        onnxnorm.export(nn.Sequential(nn.BatchNorm1d(4)).train(), torch.randn(1, 4), mode="train")


def test_data_dependent_control_flow_is_one_line() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.steps.add_(1)
            return x if self.steps > 3 else -x

    with pytest.raises(ExportError, match="Branching cannot be exported.*data-dependent") as raised:
        onnxnorm.export(Branching().train(), torch.randn(2, 4), mode="train")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_with_float32_batch_norm(dtype: torch.dtype) -> None:
    """PyTorch computes in the parameters' type; the state keeps all of its digits."""
    module = nn.Sequential(nn.BatchNorm2d(3)).train()
    x = (torch.randn(4, 3, 5, 5) * 2 + 1).to(dtype)
    result = onnxnorm.export(module, x, mode="train")
    names = [value.name for value in result.model.graph.outputs]
    feed = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
        x.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else x.numpy(),
        onnx.TensorProto.BFLOAT16 if dtype == torch.bfloat16 else onnx.TensorProto.FLOAT16,
    )
    outputs = dict(zip(names, session(result.model).run_with_ort_values(None, {"input": feed}), strict=True))
    wide = copy.deepcopy(module).double()
    wide(x.double())
    near(outputs["next.0.running_mean"].numpy(), wide[0].running_mean, 1e-6)
    near(outputs["next.0.running_var"].numpy(), wide[0].running_var, 1e-6)


@pytest.mark.parametrize("values", ["constant", "offset", "one-channel", "batch-1"])
def test_edges(values: str) -> None:
    channels = 1 if values == "one-channel" else 3
    module = nn.Sequential(nn.BatchNorm2d(channels)).train()
    shape = (1 if values == "batch-1" else 4, channels, 6, 5)
    data = [(torch.full(shape, 3.0) if values == "constant" else torch.randn(shape),) for _ in range(3)]
    if values == "offset":
        data = [(x + 1e4,) for (x,) in data]
    result = onnxnorm.export(module, data[0], mode="train")
    assert_steps(module, result, data)


def test_an_empty_batch_leaves_the_state() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3)).train()
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    result = onnxnorm.export(module, torch.randn(4, 3, 5, 5), mode="train", dynamic_shapes=dynamic)
    names = [value.name for value in result.model.graph.outputs]
    outputs = session(result.model).run(None, {"input": np.zeros((0, 3, 5, 5), np.float32)})
    after = dict(zip(names, outputs, strict=True))
    np.testing.assert_array_equal(after["next.0.running_mean"], module[0].running_mean.numpy())
    np.testing.assert_array_equal(after["next.0.running_var"], module[0].running_var.numpy())


class HandMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2))
        self.mean.lerp_(mean, 0.5)
        return x[:, :, :4] - mean[None, :, None]


@pytest.mark.slow
@pytest.mark.parametrize("make", [HandMean, lambda: nn.BatchNorm1d(2)], ids=["by-hand", "batch-norm"])
def test_statistics_over_many_values(make: Any) -> None:
    """In one chain of float32 the mean of 2e7 values around 1 stops at 2^24."""
    module = make().train()
    x = torch.rand(20, 2, 1_000_000) + 0.5
    result = onnxnorm.export(module, x, mode="train")
    names = [value.name for value in result.model.graph.outputs]
    (name,) = [value.name for value in session(result.model).get_inputs()]
    outputs = dict(zip(names, session(result.model).run(None, {name: x.numpy()}), strict=True))
    exact = x.double().mean((0, 2))
    key = next(key for key in result.state if "mean" in key)
    share = 0.5 if key == "mean" else 0.1
    near(outputs[f"next.{key}"], share * exact, 5e-7)
