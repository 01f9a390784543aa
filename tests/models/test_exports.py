"""Each trained model's files: nothing left of what folds, and the numbers of PyTorch, in inference and in training.

In one process and with the native library; the main job proves the same without it.
"""

from __future__ import annotations

import copy

import pytest

import onnxnorm
from models import all_models
from models.data import load
from models.exporting import export_onnxnorm, export_training
from models.graph import file_facts
from models.judge import Judge
from models.proofs import small_inputs
from models.record import ReferenceModel
from models.training_steps import TrainingSteps, training_batches
from models.without_onnxnorm import run_training_graph

MODELS = list(all_models().values())
#: Models whose training forwards change nothing: their norms have no state.
STATELESS = {
    "evo_norm_cnn",
    "filter_response_norm_cnn",
    "global_response_norm_convnext",
    "group_norm_cnn",
    "input_standardization_cnn",
    "input_whitening_mlp",
    "layer_norm_convnext",
    "rms_norm_transformer",
    "weight_norm_cnn",
    "weight_standardization_resnet",
}


def by_name(model: ReferenceModel) -> str:
    return model.name


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_inference_file(model: ReferenceModel, trained, tmp_path) -> None:
    module, path = trained(model), tmp_path / "net.onnx"
    decisions = export_onnxnorm(module, model, path)
    facts = file_facts(str(path), path.stat().st_size)
    assert facts.norms == model.norms_left
    assert model.nodes_left in (None, facts.nodes)
    assert decisions, "every normalization is accounted for"
    session = onnxnorm.InferenceSession(path, providers=["CPUExecutionProvider"], library=True)
    for name, value in small_inputs(model, load(raw=model.raw_pixels).test_images).items():
        verdict = Judge(module, (value,)).verdict({name: session.run(None, {"x": value.numpy()})[0]})
        assert verdict.passed, verdict


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_training_graph(model: ReferenceModel, trained, tmp_path) -> None:
    module, path = copy.deepcopy(trained(model)), tmp_path / "net.train.onnx"
    batches = training_batches(model, load(raw=model.raw_pixels).train_images)
    state = export_training(module, model, batches[0], path)
    steps = TrainingSteps(module.train(), batches)
    assert set(state) == set(steps.keys)
    assert (not state) == (model.name in STATELESS)
    session = onnxnorm.InferenceSession(path, providers=["CPUExecutionProvider"], library=True)
    found = run_training_graph(session, [batch.numpy() for batch in batches])
    verdict = Judge(steps, batches).verdict({name: found[name] for name in steps.names})
    assert verdict.passed, verdict
