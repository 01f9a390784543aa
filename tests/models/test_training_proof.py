"""The proof of the training graph: it holds for a right graph, and notices what a wrong one would do."""

from __future__ import annotations

import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import torch
from torch import nn

from models import all_models
from models.data import load
from models.exporting import export_training
from models.judge import Verdict, combined
from models.proofs import Evidence, _Found, _train_with_library, _training_verdict
from models.training_steps import BATCHES, TrainingSteps, training_batches

MODEL = all_models()["l1_batch_norm_cnn"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(evidence, state) of an untrained network: its state is at the start, so every step moves it far."""
    path = tmp_path_factory.mktemp("training") / "net.train.onnx"
    torch.manual_seed(0)
    module = MODEL.factory()
    batches = training_batches(MODEL, load().train_images)
    state = export_training(module.eval(), MODEL, batches[0], path)
    assert not module.training
    return Evidence(module, path, {}, TrainingSteps(module.train(), batches), path), state


def verdict_of(evidence: Evidence, proto: onnx.ModelProto | None = None) -> tuple[bool, str]:
    """The verdict on the file, or on a changed one; the run without onnxnorm is replaced by that with it."""
    if proto is not None:
        changed = evidence.training.with_name("changed.onnx")
        onnx.save(proto, changed)
        evidence = Evidence(evidence.module, changed, {}, evidence.steps, changed)
    found = _Found(errors={"train": ""})
    _train_with_library(evidence, found.outputs)
    found.outputs.update({f"train/{name}": value for name, value in found.of("train-lib").items()})
    return _training_verdict(evidence, found)


def test_a_right_graph_passes(exported) -> None:
    evidence, state = exported
    assert set(state) == set(evidence.steps.keys)
    assert len(state) == 12
    passed, detail = verdict_of(evidence)
    assert passed, detail
    assert "12 tensors of state" in detail


def test_swapped_state_fails(exported) -> None:
    evidence, _ = exported
    proto = onnx.load(evidence.training)
    one, other = "next.stem_norm.running_mean", "next.stem_norm.running_scale"
    for node in proto.graph.node:
        node.output[:] = [{one: other, other: one}.get(name, name) for name in node.output]
        node.input[:] = [{one: other, other: one}.get(name, name) for name in node.input]
    passed, detail = verdict_of(evidence, proto)
    assert not passed
    assert "step 1: stem_norm.running_" in detail


def test_state_that_does_not_move_fails(exported) -> None:
    evidence, _ = exported
    proto = onnx.load(evidence.training)
    key = "block.norm1.num_batches_tracked"
    for node in proto.graph.node:
        node.output[:] = ["unused" if name == f"next.{key}" else name for name in node.output]
    proto.graph.node.append(onnx.helper.make_node("Identity", [key], [f"next.{key}"]))
    passed, detail = verdict_of(evidence, proto)
    assert not passed
    assert f"step 1: {key}" in detail


def test_state_that_is_missing_fails(exported) -> None:
    evidence, _ = exported
    proto = onnx.load(evidence.training)
    missing = next(value for value in proto.graph.output if value.name == "next.reduce_norm.running_scale")
    proto.graph.output.remove(missing)
    for entry in proto.metadata_props:
        if entry.key == "onnxnorm.state":
            proto.metadata_props.remove(entry)
            break
    passed, detail = verdict_of(evidence, proto)
    assert not passed
    assert "the graph's state is not what PyTorch changes: step 1: reduce_norm.running_scale" in detail


def test_a_changed_default_fails(exported) -> None:
    evidence, _ = exported
    proto = onnx.load(evidence.training)
    default = next(item for item in proto.graph.initializer if item.name == "stem_norm.running_mean")
    values = onnx.numpy_helper.to_array(default) + 0.25
    default.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), default.name))
    passed, detail = verdict_of(evidence, proto)
    assert not passed
    assert "step 1: stem_norm.running_mean" in detail


def test_steps_leave_the_module_as_it_was() -> None:
    module = MODEL.factory().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    steps = TrainingSteps(module, training_batches(MODEL, load().train_images))
    assert steps.eval().module.training
    first, again = steps(*steps.batches), steps(*steps.batches)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert len(first) == len(steps.names) == len(BATCHES) * (1 + 12)


def test_a_frozen_layer_has_no_state() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    module[0].eval()
    steps = TrainingSteps(module, (torch.randn(4, 1, 2, 2),))
    assert steps.keys == ("2.running_mean", "2.running_var", "2.num_batches_tracked")
    assert TrainingSteps(nn.Conv2d(1, 1, 1), (torch.randn(1, 1, 2, 2),)).keys == ()


def test_each_step_has_another_size() -> None:
    batches = training_batches(MODEL, load().train_images)
    assert [tuple(batch.shape) for batch in batches] == [(16, 1, 8, 8), (24, 1, 8, 8), (8, 1, 12, 10)]


def test_combined_verdicts() -> None:
    good, bad = Verdict("", 2e-7), Verdict("off", 1e-7)
    assert str(combined([good, Verdict("", 1e-7)])) == "distance 2.0e-07"
    assert combined([]).passed
    assert not combined([good, bad]).passed
    assert str(combined([good, bad])) == "off"
