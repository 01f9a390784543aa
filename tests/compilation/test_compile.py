"""The result, the file and the machine that it is for, the comparison, and the command."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import onnxnorm
from onnxnorm import InferenceSession, ModelError, UsageError
from onnxnorm.cli import main
from onnxnorm.compilation import compile as module
from onnxnorm.compilation import runtime_graph, trial
from onnxnorm.errors import RuntimeUnavailable
from onnxnorm.runtime.machine import COMPILED_KEY, Machine, block_size, compiled_for, this_machine

from .conftest import BLOCK, GROUP, WIDE, Net, assert_same, chain, counts, feed, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled")
    onnx.save(chain(), path / "model.onnx")
    assert main(["compile", f"{path}/model.onnx", "-o", f"{path}/compiled.onnx", "--json"]) == 0
    return path


def noted(folder: Path, **changes: Any) -> bytes:
    """The compiled file with another machine in its note."""
    model = onnx.load(folder / "compiled.onnx")
    for item in model.metadata_props:
        if item.key == COMPILED_KEY:
            item.value = json.dumps(json.loads(item.value) | changes)
    return model.SerializeToString()


def test_the_block_is_that_of_the_machine() -> None:
    assert block_size() == BLOCK
    assert BLOCK in (4, 8, 16, 32)
    assert this_machine() == Machine(this_machine().cpu, BLOCK, ort.__version__)


def test_the_file_says_what_it_is_for(folder: Path) -> None:
    model = onnx.load(folder / "compiled.onnx")
    metadata = {item.key: item.value for item in model.metadata_props}
    assert compiled_for(metadata) == this_machine()
    assert metadata["onnxnorm.written_by"]
    domains = {item.domain for item in model.opset_import}
    assert domains <= {"", "onnxnorm", "com.microsoft.nchwc", "com.microsoft"}
    assert [item.name for item in model.functions] == ["BlockedGroupNorm"]
    assert_same(str(folder / "model.onnx"), str(folder / "compiled.onnx"), feed())


def test_a_session_without_a_warning(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InferenceSession(folder / "compiled.onnx", providers=["CPUExecutionProvider"])


def test_blocks_of_another_size_are_refused(folder: Path) -> None:
    other = {16: 8}.get(BLOCK, 16)
    with pytest.raises(ModelError, match=f"the model was compiled for .*blocks of {other} channels") as raised:
        InferenceSession(noted(folder, block=other), providers=["CPUExecutionProvider"])
    assert f"on this machine ({this_machine().cpu}) it has blocks of {BLOCK} channels" in str(raised.value)
    assert "onnxnorm compile" in str(raised.value)


@pytest.mark.parametrize("change", [{"cpu": "Z80"}, {"onnxruntime": "1.20.0"}], ids=["processor", "onnxruntime"])
def test_another_processor_or_runtime_is_told(folder: Path, change: dict[str, str]) -> None:
    with pytest.warns(UserWarning, match=f"compiled for .*{next(iter(change.values()))}"):
        InferenceSession(noted(folder, **change), providers=["CPUExecutionProvider"])


def test_a_note_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ModelError, match=COMPILED_KEY):
        InferenceSession(noted(folder, block="many"), providers=["CPUExecutionProvider"])


def test_an_operator_that_this_runtime_does_not_know(folder: Path) -> None:
    model = onnx.load(folder / "compiled.onnx")
    next(node for node in model.graph.node if node.domain == "com.microsoft.nchwc").op_type = "Convolution9"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(ModelError, match="compiled for another machine"):
        InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("again", [onnxnorm.optimize, onnxnorm.compile], ids=["optimize", "compile"])
def test_a_compiled_model_is_not_rewritten(folder: Path, again: Any) -> None:
    with pytest.raises(ModelError, match=r"compiled\.onnx.*compiled for.*the model that it was made from"):
        again(folder / "compiled.onnx")


def test_the_model_given_is_not_changed() -> None:
    model = ir.from_proto(chain())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert onnxnorm.compile(model).gained
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_weights_in_a_file_of_their_own(folder: Path) -> None:
    result = onnxnorm.compile(folder / "model.onnx")
    result.save(folder / "large.onnx", external_data="large.data")
    assert (folder / "large.data").stat().st_size > 4 * WIDE * WIDE * 9
    assert_same(str(folder / "model.onnx"), str(folder / "large.onnx"), feed())


def test_a_model_too_large_for_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime then writes the weights beside its optimized model."""
    monkeypatch.setattr(runtime_graph, "too_large", lambda model: True)
    result = onnxnorm.compile(chain())
    assert result.gained
    assert_same(chain(), result.model, feed())


def test_parity_with_the_module(tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, WIDE, 3), nn.GroupNorm(4, WIDE), nn.ReLU(), nn.Conv2d(WIDE, WIDE, 3)).eval()
    result = onnxnorm.compile(onnxnorm.export(net, torch.randn(2, 3, 12, 10)).model)
    result.save(tmp_path / "compiled.onnx")
    onnxnorm.check(net, tmp_path / "compiled.onnx").assert_passed()


def test_a_model_that_is_not_optimized_yet() -> None:
    """Norm and activation in standard operators."""
    net = Net()
    scale, bias = net.weight(np.ones(WIDE)), net.weight(np.zeros(WIDE))
    inner = net.add("GroupNormalization", net.conv("x", 3, WIDE), scale, bias, num_groups=4)
    model = net.model(net.conv(net.add("Relu", inner), WIDE, WIDE), opset=21)
    result = onnxnorm.compile(model)
    assert counts(result.model)["BlockedGroupNorm"] == 1
    assert counts(result.model)["Relu"] == 0
    kept = onnxnorm.compile(model, disable=["fuse/group-normalization"])
    assert not kept.gained


def test_a_machine_without_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: Machine("Z80", None, "1.31.1"))
    result = onnxnorm.compile(chain())
    assert not result.gained
    assert result.reason == "ONNX Runtime has no blocked layout on this machine"
    assert COMPILED_KEY not in result.model.metadata_props


def test_a_library_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "op_table", lambda path: {"ops": []})
    result = onnxnorm.compile(chain())
    assert result.reason == "the native library has no kernel for BlockedGroupNorm"


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXNORM_LIBRARY", "/nowhere/libonnxnorm.so")
    with pytest.raises(RuntimeUnavailable, match="ONNXNORM_LIBRARY"):
        onnxnorm.compile(chain())


# --- the comparison ---


def test_other_results_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that takes one layout for the other, as a stand-in for any mistake."""

    def wrong(model: ir.Model, chosen: Any, block: int) -> None:
        real(model, chosen, block)
        node = next(node for node in model.graph if node.op_type == "BlockedGroupNorm")
        node.attributes["block"] = ir.AttrInt64("block", block // 2)

    real = module.rewrite
    monkeypatch.setattr(module, "rewrite", wrong)
    with pytest.raises(ModelError, match=r"output 'v2' of the compiled model is off by .* of its scale"):
        onnxnorm.compile(chain())
    assert onnxnorm.compile(chain(), verify=False).distance is None


def picky() -> onnx.ModelProto:
    """Runs with 10 columns only."""
    net = Net(("batch", 3, 12, "width"))
    inner = net.norm("GroupNorm", net.conv("x", 3, WIDE), channels=WIDE, **GROUP)
    last = net.conv(inner, WIDE, WIDE)
    return net.model(net.add("Add", last, net.weight(np.ones((1, WIDE, 12, 10)))))


def test_inputs_that_cannot_be_guessed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the model runs on no sampled inputs .*--dim NAME=SIZE"):
        onnxnorm.compile(picky())
    assert onnxnorm.compile(picky(), dims={"width": 10}).gained
    given = feed()
    assert onnxnorm.compile(picky(), inputs=given).gained
    np.savez(tmp_path / "inputs.npz", **given)
    assert onnxnorm.compile(picky(), inputs=str(tmp_path / "inputs.npz")).gained
    with pytest.raises(UsageError, match="fails on the inputs given"):
        onnxnorm.compile(picky(), inputs=feed((2, 3, 12, 9)))
    with pytest.raises(UsageError, match="no dynamic size 'w'"):
        onnxnorm.compile(picky(), dims={"w": 10})
    assert onnxnorm.compile(picky(), verify=False).gained


def test_the_sizes_of_the_export_are_taken_first() -> None:
    model = picky()
    helper = model.metadata_props.add()
    helper.key, helper.value = "onnxnorm.inputs", json.dumps([{"name": "x", "shape": [1, 3, 12, 10]}])
    assert onnxnorm.compile(model).gained


@pytest.mark.parametrize(
    ("want", "have", "distance"),
    [
        ([2.0, -4.0], [2.0, -4.5], 0.125),
        ([0.0], [0.25], 0.25),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([1.0, 2.0], [[1.0, 2.0]], np.inf),
        ([1], [2], np.inf),
        ([1], [1], 0.0),
        ([], [], 0.0),
    ],
)
def test_distances(want: list[float], have: list[float], distance: float) -> None:
    assert trial._distances([np.array(want)], [np.array(have)]) == [distance]


# --- the command ---


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compile", f"{folder}/model.onnx", "-o", f"{folder}/again.onnx"]
    assert main([*arguments, "--explain"]) == 0
    first, last = capsys.readouterr().out.strip().splitlines()
    assert "lowered into BlockedGroupNorm" in first
    assert f"1 norms in blocks of {BLOCK} channels, 1 changes of the layout where there were 3" in last
    assert this_machine().cpu in last
    assert main([*arguments, "--json", "--no-verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compiled"]
    assert found["distance"] is None
    assert found["reorders"] == {"before": 3, "after": 1}
    assert found["machine"]["block"] == BLOCK
    assert_same(str(folder / "model.onnx"), str(folder / "again.onnx"), feed())


def test_the_command_where_there_is_nothing_to_gain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(chain(channels=BLOCK + 4), folder / "odd.onnx")
    assert main(["compile", f"{folder}/odd.onnx", "-o", f"{folder}/odd.compiled.onnx"]) == 0
    assert "nothing to gain here, so it is the optimized model: its" in capsys.readouterr().out
    np.testing.assert_array_equal(run(str(folder / "odd.compiled.onnx"), feed())[0].shape, (2, BLOCK + 4, 12, 10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", "width"], "write NAME=SIZE"),
        (["--dim", "width=0"], "write NAME=SIZE"),
        (["--dim", "width=3"], "no dynamic size 'width'"),
        (["--inputs", "missing.npz"], "missing.npz: no such file"),
        (["--disable", "fuse/nothing"], "there is no rule 'fuse/nothing'"),
    ],
)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["compile", f"{folder}/model.onnx", "-o", f"{folder}/never.onnx", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder / "never.onnx").exists()


def test_no_such_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", f"{folder}/none.onnx", "-o", f"{folder}/never.onnx"]) == 2
    assert "none.onnx: no such file" in capsys.readouterr().err
