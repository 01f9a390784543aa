"""The main job end to end, and that it notices what is wrong."""

from __future__ import annotations

import json

import onnx
import onnx.numpy_helper
import pytest

import models.job
from models.__main__ import main
from models.data import load
from models.exporting import export_onnxnorm
from models.job import Budget
from models.progress import STEPS
from models.proofs import Evidence, prove, small_inputs
from models.training_steps import TrainingSteps, training_batches


def test_the_whole_job(ran) -> None:
    result = ran.result
    assert result.problems == []
    assert ran.watcher.steps == list(STEPS)
    assert {proof.name: proof.passed for proof in result.proofs} == dict.fromkeys(
        ("lib", "no-lib", "ref", "checker", "train"), True
    )
    pytorch, plain, ours = result.ways.values()
    assert ours.accuracy == pytorch.accuracy > 0.95
    assert ours.predictions == pytorch.predictions
    assert len(pytorch.predictions) == result.test_images == 450
    assert pytorch.norms == ours.norms == 5
    assert ours.facts.nodes < plain.facts.nodes
    assert 0 < ours.distance < 1e-5
    assert all(way.latency.median > 0 for way in (pytorch, plain, ours))
    assert sorted(path.name for path in ran.folder.iterdir()) == [
        f"group_norm_cnn.{kind}" for kind in ("onnx", "plain.onnx", "train.onnx")
    ]


def test_the_optimizer_accounts_for_every_norm(ran) -> None:
    named = [decision for decision in ran.result.decisions if "GroupNorm" in decision.op]
    assert len({decision.node for decision in named}) == 5


def test_the_files_keep_the_open_sizes(ran) -> None:
    for name in ("group_norm_cnn.onnx", "group_norm_cnn.plain.onnx", "group_norm_cnn.train.onnx"):
        shape = onnx.load(ran.folder / name).graph.input[0].type.tensor_type.shape.dim
        assert [size.dim_param or size.dim_value for size in shape] == ["batch", 1, "height", "width"]


def test_json_holds_plain_values(ran) -> None:
    plain = json.loads(json.dumps(ran.result.to_json(), allow_nan=False))
    assert plain["passed"] is True
    assert plain["ways"]["onnxnorm"]["facts"]["norms"] == 5
    assert "predictions" not in plain["ways"]["pytorch"]


def change_one_weight(module, model, path):
    """As export_onnxnorm, but the file holds one wrong weight: what the job is there to notice."""
    decisions = export_onnxnorm(module, model, path)
    proto = onnx.load(path)
    weight = next(item for item in proto.graph.initializer if len(item.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(proto, path)
    return decisions


def test_a_changed_weight_and_too_little_training_fail(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models.job, "export_onnxnorm", change_one_weight)
    budget = Budget(epochs=1, latency_blocks=1, latency_seconds=0.2)
    status = main(["--out", str(tmp_path), "--models", "group_norm_cnn"], budget=budget)
    printed = capsys.readouterr().out
    assert status == 1
    assert "lib 0 ✗   no-lib 0 ✗   ref 0 ✗   checker 1 ✓   train 1 ✓" in printed
    assert "check on test images" in printed
    assert "it must be over 95%" in printed
    assert "FAILED: 1 of 1 models" in printed
    assert "\x1b" not in printed
    assert max(map(len, table_lines(printed))) <= 100
    report = (tmp_path / "report.html").read_text()
    assert "Not everything passed" in report
    assert "Everything passed" not in report


def table_lines(printed: str) -> list[str]:
    """The table and its legend; the texts of problems below may be longer."""
    lines = printed.splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip().startswith("model  "))
    end = next(index for index, line in enumerate(lines) if line.startswith("group_norm_cnn: ") and index > start)
    return lines[start:end]


def test_a_rule_that_stops_firing_fails(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers stay right when a norm is not folded, so only the count of what is left can tell."""
    import onnxnorm
    from models import all_models
    from models.exporting import dynamic_shapes, example_input

    model = all_models()["batch_norm_cnn"]
    module = model.factory().eval()

    def without_folding(*_):
        folds = ["fold/batch-norm-into-conv", "fold/batch-norm-into-gemm"]
        options = {"dynamic_shapes": dynamic_shapes(model), "disable": folds}
        result = onnxnorm.export(module, (example_input(model),), **options)
        result.save(tmp_path / "batch_norm_cnn.onnx")
        return result.decisions

    monkeypatch.setattr(models.job, "export_onnxnorm", without_folding)
    work = models.job._Work(model, None, tmp_path, Budget(), None, models.job.ModelResult(model), module)
    models.job._export_onnxnorm(work)
    assert len(work.result.problems) == 1
    assert "5 norms are left in the optimized file; it must be 0" in work.result.problems[0]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("input_standardization_cnn", "fold/affine-into-conv"),
        ("input_whitening_mlp", "fold/linear-into-linear"),
        ("weight_standardization_resnet", "fold/constant-weight"),
    ],
)
def test_a_weight_or_input_side_rule_that_stops_firing_fails(tmp_path, monkeypatch, name: str, rule: str) -> None:
    """No norm operator is left in any case there, so the count of all nodes tells."""
    import onnxnorm
    from models import all_models
    from models.exporting import dynamic_shapes, example_input

    model = all_models()[name]
    module = model.factory().eval()
    if model.fit_input is not None:
        model.fit_input(module, load(raw=True).train_images)

    def without_the_rule(*_):
        options = {"dynamic_shapes": dynamic_shapes(model), "disable": [rule]}
        result = onnxnorm.export(module, (example_input(model),), **options)
        result.save(tmp_path / f"{name}.onnx")
        return result.decisions

    monkeypatch.setattr(models.job, "export_onnxnorm", without_the_rule)
    work = models.job._Work(model, None, tmp_path, Budget(), None, models.job.ModelResult(model), module)
    models.job._export_onnxnorm(work)
    assert len(work.result.problems) == 1
    assert f"nodes are left in the optimized file; it must be {model.nodes_left}" in work.result.problems[0]


def test_a_step_that_raises_ends_the_model_with_one_line(tmp_path, run_one, monkeypatch) -> None:
    def broken(*_):
        raise RuntimeError("no\nsuch luck")

    monkeypatch.setattr(models.job, "export_plain", broken)
    (tmp_path / "group_norm_cnn.onnx").write_text("left by an earlier run")
    ran = run_one(tmp_path, epochs=1)
    assert ran.result.problems == ["step export: RuntimeError: no such luck"]
    assert ran.watcher.problems == ran.result.problems
    assert ran.watcher.steps == ["train", "export"]
    assert list(tmp_path.iterdir()) == []


def test_without_the_native_library_the_proof_fails(tmp_path, ran, monkeypatch) -> None:
    monkeypatch.setenv("ONNXNORM_LIBRARY", str(tmp_path / "absent.so"))
    model, digits = ran.result.model, load()
    module = model.factory().eval()
    steps = TrainingSteps(model.factory().train(), training_batches(model, digits.train_images))
    files = [ran.folder / f"group_norm_cnn.{kind}" for kind in ("onnx", "train.onnx")]
    evidence = Evidence(module, files[0], small_inputs(model, digits.test_images), steps, files[1])
    found = {proof.name: proof for proof in prove(evidence)}
    assert not found["lib"].passed
    assert "absent.so" in found["lib"].detail
    assert not found["train"].passed
    assert "absent.so" in found["train"].detail
    assert not found["no-lib"].passed, "another network than the file's: its outputs must not pass"


def test_bad_usage(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--models", "no_such_model"])
    assert caught.value.code == 2
    assert "batch_norm_cnn" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file")]) == 2
    assert "must be a folder" in capsys.readouterr().err
