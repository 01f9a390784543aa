"""The networks themselves: they are found, they learn, and training them is repeatable."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from models import all_models
from models.data import load
from models.graph import layers_of, norm_layers
from models.record import ReferenceModel
from models.result import ACCURACY_WANTED
from models.threads import threads
from models.train import accuracy, train

MODELS = list(all_models().values())


def by_name(model: ReferenceModel) -> str:
    return model.name


def test_models_are_found_by_looking() -> None:
    assert list(all_models()) == [
        "batch_instance_norm_cnn",
        "batch_norm_cnn",
        "batch_renorm_cnn",
        "evo_norm_cnn",
        "filter_response_norm_cnn",
        "global_response_norm_convnext",
        "group_norm_cnn",
        "input_standardization_cnn",
        "input_whitening_mlp",
        "instance_norm_cnn",
        "l1_batch_norm_cnn",
        "layer_norm_convnext",
        "mean_only_batch_norm_cnn",
        "rms_norm_transformer",
        "spectral_norm_cnn",
        "switchable_norm_cnn",
        "weight_norm_cnn",
        "weight_standardization_resnet",
    ]
    for name, model in all_models().items():
        assert sys.modules[f"models.{name}"].MODEL is model


def test_a_new_file_is_a_new_model(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import models

    (tmp_path / "another.py").write_text(
        "from torch import nn\nfrom models.record import ReferenceModel\n"
        "MODEL = ReferenceModel('another', 'Another', 'One more.', nn.Identity, (), 0)\n"
    )
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    try:
        assert "another" in all_models.__wrapped__()
    finally:
        sys.modules.pop("models.another", None)


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_accuracy(model: ReferenceModel, trained) -> None:
    digits = load(raw=model.raw_pixels)
    module = trained(model)
    assert not module.training
    with torch.no_grad():
        assert accuracy(module(digits.test_images), digits.test_labels) > ACCURACY_WANTED


@pytest.mark.parametrize("model", MODELS, ids=by_name)
def test_input_shapes_that_the_record_promises(model: ReferenceModel) -> None:
    module = model.factory().eval()
    if model.fit_input is not None:
        model.fit_input(module, load(raw=True).train_images)
    shapes = [(1, 1, 8, 8), (3, 1, 8, 8)] + ([(2, 1, 12, 10), (1, 1, 9, 13)] if model.any_image_size else [])
    with torch.no_grad():
        for shape in shapes:
            assert module(torch.zeros(shape)).shape == (shape[0], 10)


def test_training_is_repeatable_whatever_the_thread_count() -> None:
    digits, model = load(), all_models()["group_norm_cnn"]
    weights = []
    for count in (1, 2):
        with threads(count):
            weights.append(train(model, digits, epochs=1).module.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_training_leaves_the_callers_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = torch.get_num_threads()
    train(all_models()["group_norm_cnn"], load(), epochs=1)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.rand(3), expected)


def test_the_test_images_are_not_trained_on() -> None:
    digits = load()
    assert len(digits.train_images) + len(digits.test_images) == 1797
    assert torch.cdist(digits.test_images.flatten(1), digits.train_images.flatten(1)).min() > 0
    assert digits.train_images.mean().abs() < 1e-5
    assert set(digits.test_labels.tolist()) == set(range(10))


def test_raw_pixels_are_the_scans_own() -> None:
    raw, scaled = load(raw=True), load()
    assert (float(raw.train_images.min()), float(raw.train_images.max())) == (0.0, 16.0)
    mean, deviation = raw.train_images.mean(), raw.train_images.std(correction=0)
    assert torch.allclose((raw.test_images - mean) / deviation, scaled.test_images, atol=1e-5)
    assert torch.equal(raw.test_labels, scaled.test_labels)


def test_input_norms_are_fitted_on_the_training_images() -> None:
    raw = load(raw=True)
    module = train(all_models()["input_standardization_cnn"], raw, epochs=1).module
    assert float(module.standardize.mean) == pytest.approx(float(raw.train_images.mean()), rel=1e-5)


def test_layers_with_normalized_weights_are_layers() -> None:
    model = all_models()["mean_only_batch_norm_cnn"]
    module = model.factory().eval()
    layers = {layer.name: layer for layer in layers_of(module, torch.zeros(model.input_shape))}
    assert (layers["stem"].kind, layers["stem"].parametrization) == ("Conv2d", "WeightNorm")
    assert [name for name, layer in layers.items() if not layer.normalizes] == ["classify"]
    assert norm_layers(module) == 8


def test_finding_the_models_needs_no_onnxnorm_in_the_strangers_process() -> None:
    """The proof's script starts with -P, so that models/ does not shadow modules of other packages."""
    import models.without_onnxnorm

    done = subprocess.run(
        [sys.executable, "-P", models.without_onnxnorm.__file__], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "missing 5 required positional arguments" in done.stderr
