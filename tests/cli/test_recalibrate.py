"""``onnxnorm recalibrate`` and ``onnxnorm check --mode train`` on files, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.optim.swa_utils import update_bn

import onnxnorm
from onnxnorm.cli import main
from onnxnorm.parity import load_module

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

def two():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)
        def forward(self, a, b):
            return self.bn(a) + b
    return Two()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The net, its training graph, and data in one file and in two."""
    path = tmp_path_factory.mktemp("recalibrate")
    (path / "net.py").write_text(NET)
    module, _ = load_module(f"{path}/net.py:make")
    dynamic = ({0: torch.export.Dim("n")},)
    onnxnorm.export(module, (torch.randn(4, 3, 8, 8),), mode="train", dynamic_shapes=dynamic).save(
        path / "training.onnx"
    )
    data = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32) * 2 + 1
    for name, part in (("x", data), ("first", data[:8]), ("second", data[8:])):
        np.save(path / f"{name}.npy", part)
    return path


def test_recalibrate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recalibrate", f"{folder}/training.onnx", "-o", f"{folder}/net.onnx", "--data"]
    assert main([*command, f"{folder}/x.npy", "--batch-size", "4", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "1 (onnxnorm.BatchNormTraining" in out
    assert "(batches = 3, values per channel = 432)" in out
    assert "fold/batch-norm-into-conv" in out
    assert out.splitlines()[-1] == f"{folder}/net.onnx: 1 recalibrated, 1 folded"
    model = onnx.load(folder / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]

    assert main([*command, f"{folder}/first.npy", f"{folder}/second.npy", "--json"]) == 0
    decisions = json.loads(capsys.readouterr().out)["decisions"]
    assert decisions[0]["action"] == "recalibrated"
    assert decisions[0]["values"] == {"batches": "3", "values per channel": "432"}
    assert onnx.load(folder / "net.onnx") == model

    module, _ = load_module(f"{folder}/net.py:make")
    update_bn(list(torch.from_numpy(np.load(folder / "x.npy")).split(4)), module)
    onnxnorm.check(module, folder / "net.onnx", samples=1).assert_passed()


def test_the_training_graph_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recalibrate", f"{folder}/training.onnx", "--data", f"{folder}/x.npy", "--momentum", "graph"]
    assert main([*command, "--keep-training", "-o", f"{folder}/again.onnx"]) == 0
    assert "next.1.running_mean" in {value.name for value in onnx.load(folder / "again.onnx").graph.output}
    assert main([*command, "--target", "standard", "-o", f"{folder}/standard.onnx"]) == 0
    assert not onnx.load(folder / "standard.onnx").functions


def test_two_inputs(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, _ = load_module(f"{folder}/net.py:two")
    onnxnorm.export(module, (torch.randn(4, 3), torch.randn(4, 3)), mode="train").save(tmp_path / "two.onnx")
    for name in ("a", "b", "c", "d"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name)).random((8, 3), np.float32))
    command = ["recalibrate", f"{tmp_path}/two.onnx", "-o", f"{tmp_path}/out.onnx", "--data"]
    pairs = [f"{name}={tmp_path}/{file}.npy" for name, file in (("a", "a"), ("a", "c"), ("b", "b"), ("b", "d"))]
    assert main([*command, *pairs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decisions"][0]["values"]["batches"] == "4"
    for arguments, message in (
        (pairs[:3], "different numbers of files: a 2, b 1"),
        ([pairs[0], f"{tmp_path}/b.npy"], "has no name while others have"),
        ([f"{tmp_path}/a.npy"], "give a dict by the graph's inputs: a, b"),
        ([f"a={tmp_path}/a.npy", f"z={tmp_path}/b.npy"], "names 'z', which is no input"),
    ):
        assert main([*command, *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--momentum", "half"], "momentum is 'half'"),
        (["--batch-size", "-1"], "batch_size is -1; it must be at least 1"),
        (["--data", "none.npy"], "none.npy: no such file"),
    ],
)
def test_bad_usage(options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recalibrate", f"{folder}/training.onnx", "-o", f"{folder}/bad.onnx", "--data", f"{folder}/x.npy"]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "bad.onnx").exists()


def test_an_inference_graph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, _ = load_module(f"{folder}/net.py:make")
    onnxnorm.export(module, (torch.randn(4, 3, 8, 8),)).save(tmp_path / "eval.onnx")
    assert main(["recalibrate", f"{tmp_path}/eval.onnx", "--data", f"{folder}/x.npy", "-o", f"{tmp_path}/o.onnx"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("eval.onnx: the model has no state to recalibrate; export it with mode='train'")


def test_check_a_training_graph(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", f"{folder}/net.py:make"]
    assert main([*command, f"{folder}/training.onnx", "--mode", "train", "--steps", "2", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "state 1.running_var" in out
    assert "step 2: output" in out
    assert "passed" in out.splitlines()[-1]
    model = onnx.load(folder / "training.onnx")
    value = next(item for item in model.graph.initializer if item.name == "1.running_var")
    value.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(value) * np.float32(1.01), value.name))
    onnx.save(model, tmp_path / "broken.onnx")
    assert main([*command, f"{tmp_path}/broken.onnx", "--mode", "train", "--samples", "1"]) == 1
    assert "failed: state 1.running_var" in capsys.readouterr().out
    assert main([*command, f"{folder}/training.onnx"]) == 2
    assert "is a training graph" in capsys.readouterr().err
