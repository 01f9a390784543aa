"""What export promises besides a right file: the caller's module as it was, clear errors, nothing left behind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import onnxnorm
from onnxnorm.nn import SwitchableNorm2d

from .conftest import assert_equals_module, export_to, lively, randn


class Net(nn.Module):
    """With what a careless export disturbs: dropout, hooks, frozen parts, a counter, tied and parametrized weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.bn, self.gn, self.sn = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), SwitchableNorm2d(8)
        self.again = self.gn
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.gn.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.again(self.gn(self.bn(self.conv(x))))
        result: torch.Tensor = self.drop(self.sn(x))
        return result


def state(module: nn.Module) -> dict[str, Any]:
    """Everything about a module that a caller can see."""
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "identity": {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors.items()},
        "kind": {name: (tensor.dtype, tensor.device, tensor.requires_grad) for name, tensor in tensors.items()},
        "flags": {name: (part.training, type(part), sorted(vars(part))) for name, part in module.named_modules()},
        "hooks": {
            name: (len(part._forward_hooks), len(part._forward_pre_hooks)) for name, part in module.named_modules()
        },
    }


def assert_unchanged(module: nn.Module, before: dict[str, Any]) -> None:
    after = state(module)
    assert all(torch.equal(value, after["values"][name]) for name, value in before["values"].items())
    assert {name: value for name, value in after.items() if name != "values"} == {
        name: value for name, value in before.items() if name != "values"
    }


@pytest.mark.parametrize(("training", "dtype"), [(False, torch.float16), (True, torch.float32)], ids=["eval", "train"])
def test_the_module_stays_as_it_is(training: bool, dtype: torch.dtype) -> None:
    module = lively(Net()).to(dtype).train(training)
    module.bn.eval() if training else module.bn.train()
    module.conv.bias.requires_grad_(False)
    before, random = state(module), torch.get_rng_state()
    onnxnorm.export(module, randn(2, 3, 6, 6).to(dtype))
    assert_unchanged(module, before)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_a_failed_export_leaves_the_module_too() -> None:
    module = lively(Net()).train()
    before = state(module)
    with pytest.raises(onnxnorm.ExportError, match=r"^Net cannot be exported: "):
        onnxnorm.export(module, randn(2, 5, 6, 6))
    assert_unchanged(module, before)


def test_training_mode_is_exported_as_evaluation(tmp_path: Path) -> None:
    module = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), SwitchableNorm2d(8)))
    path, _, _ = export_to(tmp_path, module.train(), (randn(2, 3, 6, 6),))
    assert_equals_module(path, module, (randn(2, 3, 6, 6),))


def test_a_module_that_cannot_be_copied(tmp_path: Path) -> None:
    """The old hook-based weight_norm leaves a computed tensor in the module, which deepcopy refuses."""
    conv = nn.Conv2d(3, 8, 3)
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(conv)
    module = nn.Sequential(conv, nn.BatchNorm2d(8))
    module(randn(2, 3, 6, 6))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    before = state(module)
    result = onnxnorm.export(module, randn(2, 3, 6, 6))
    assert_unchanged(module, before)
    assert type(conv.weight) is torch.Tensor  # and no FakeTensor of the exporter
    onnxnorm.check(module, result, randn(2, 3, 6, 6)).assert_passed()


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    module = lively(Net())
    for name in ("a.onnx", "b.onnx"):
        onnxnorm.export(module, randn(2, 3, 6, 6)).save(tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_names_and_inputs_are_recorded(tmp_path: Path) -> None:
    module = lively(nn.Sequential(nn.Embedding(9, 8), nn.RMSNorm(8)))
    ids = torch.tensor([[1, 2, 7]])
    _, model, _ = export_to(tmp_path, module, ids, input_names=["ids"], output_names=["hidden"])
    assert [item.name for item in model.graph.input] == ["ids"]
    assert [item.name for item in model.graph.output] == ["hidden"]
    recorded = json.loads({item.key: item.value for item in model.metadata_props}["onnxnorm.inputs"])
    assert recorded == [{"name": "ids", "dtype": "int64", "shape": [1, 3], "min": 1, "max": 7}]


def test_decisions_name_the_modules() -> None:
    result = onnxnorm.export(lively(Net()), randn(2, 3, 6, 6))
    found = {(decision.module, decision.op) for decision in result.decisions}
    assert {("bn", "BatchNormalization"), ("gn", "onnxnorm.GroupNorm"), ("sn", "onnxnorm.SwitchableNorm")} <= found


# --- errors -------------------------------------------------------------------------------------------------------

SMALL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
X = randn(1, 3, 6, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, r"opset is 17; it must be from 18 to \d+"),
        ({"opset": 99}, r"opset is 99; it must be from 18 to \d+"),
        ({"mode": "training"}, r"mode is 'training'; it must be one of 'eval', 'train'"),
        ({"target": "tensorrt"}, r"target is 'tensorrt'.*'onnxnorm', 'standard'"),
        ({"provider": "tpu"}, r"provider is 'tpu'.*'cpu', 'cuda'"),
        ({"disable": ["fold/nothing"]}, r"no rule 'fold/nothing'.*fold/batch-norm-into-conv"),
        ({"disable": "fuse/activation"}, r"disable is the string 'fuse/activation'.*list of rule ids"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(onnxnorm.UsageError, match=message) as raised:
        onnxnorm.export(SMALL, X, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("module", [lambda x: x, nn.ReLU, "net", None], ids=["function", "class", "str", "None"])
def test_what_is_no_module(module: Any) -> None:
    with pytest.raises(onnxnorm.UsageError, match=r"module is \w+; it must be a torch\.nn\.Module"):
        onnxnorm.export(module, X)


class Mistake(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("my own mistake")


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class NoOperator(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[0]


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (
            SMALL,
            (randn(1, 4, 6, 6),),
            r"Sequential cannot be exported.*expected input\[1, 4, 6, 6\] to have 3 channels",
        ),
        (SMALL, (X, X), r"too many positional arguments"),
        (SMALL, (), r"missing a required argument"),
        (SMALL, (X.half(),), r"Half.*float"),
        (Mistake(), (X,), r"Mistake cannot be exported: KeyError: 'my own mistake'"),
        (DataDependent(), (X,), r"DataDependent cannot be exported.*data-dependent"),
        (NoOperator(), (randn(4, 4),), r"NoOperator cannot be exported.*No ONNX function found.*linalg_svd"),
    ],
    ids=["channels", "too-many", "too-few", "dtype", "own-error", "data-dependent", "no-operator"],
)
def test_what_pytorch_cannot_export(module: nn.Module, args: Any, message: str) -> None:
    with pytest.raises(onnxnorm.ExportError, match=message) as raised:
        onnxnorm.export(module, args)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert raised.value.__cause__ is not None


def test_keywords_and_dynamic_shapes_that_do_not_fit() -> None:
    with pytest.raises(onnxnorm.ExportError, match=r"unexpected keyword argument 'foo'"):
        onnxnorm.export(SMALL, X, {"foo": X})
    with pytest.raises(onnxnorm.ExportError, match=r"dynamic_shapes"):
        onnxnorm.export(SMALL, X, dynamic_shapes=({0: "n"}, {0: "m"}))
    with pytest.raises(onnxnorm.ExportError, match=r"\['input'\].*\['foo'\]"):
        onnxnorm.export(SMALL, X, dynamic_shapes={"foo": {0: "n"}})


def test_saving_where_nothing_can_be_saved(tmp_path: Path) -> None:
    result = onnxnorm.export(SMALL, X)
    with pytest.raises(onnxnorm.ModelError, match=r"missing is no folder"):
        result.save(tmp_path / "missing" / "model.onnx")
    with pytest.raises(onnxnorm.ModelError, match=r"external_data is '\.\./weights'"):
        result.save(tmp_path / "model.onnx", external_data="../weights")
    assert list(tmp_path.iterdir()) == []


def test_external_data(tmp_path: Path) -> None:
    result = onnxnorm.export(SMALL, X)
    result.save(tmp_path / "model.onnx", external_data="weights.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "weights.bin"]
    assert_equals_module(tmp_path / "model.onnx", SMALL, (X,), ways=("plain onnxruntime", "native library"))


def test_an_output_name_that_a_value_inside_has(tmp_path: Path) -> None:
    """An output name that a value inside the graph has already must not break the file."""
    path, model, _ = export_to(tmp_path, SMALL, (X,), output_names=["conv2d"])
    assert [item.name for item in model.graph.output] == ["conv2d"]
    assert_equals_module(path, SMALL, (X,))


def test_a_lazy_module_that_never_ran_is_refused() -> None:
    """Its weights would be made up, in the caller's own module."""
    module = nn.Sequential(nn.LazyConv2d(4, 3), nn.GroupNorm(2, 4))
    with pytest.raises(onnxnorm.UsageError, match=r"lazy"):
        onnxnorm.export(module, X)
    assert isinstance(module[0].weight, nn.UninitializedParameter)
