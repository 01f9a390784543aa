"""``onnxnorm.check`` end to end: no false alarm, no planted fault missed, messages to act on."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from onnxnorm.errors import ModelError, UsageError
from onnxnorm.parity import Report, check


class Small(nn.Module):
    """A classifier with each kind of norm that torch.nn has, and an integer output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2)
        self.gn = nn.GroupNorm(2, 8)
        self.ln = nn.LayerNorm(8)
        self.head = nn.Linear(8, 6)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.bn(self.conv(x)))
        features = self.ln(self.gn(self.conv2(x)).mean((2, 3)))
        logits = self.head(features)
        return {"logits": logits, "features": features, "best": logits.argmax(-1)}


NAMES = ["logits", "features", "best"]
DYNAMIC: Any = ({0: "batch", 2: "height", 3: "width"},)


@pytest.fixture(scope="module")
def small(lively: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return lively(Small())


@pytest.fixture(scope="module")
def exported(small: nn.Module, export: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    return export(small, (torch.randn(2, 3, 16, 16),), dynamic_shapes=DYNAMIC, output_names=NAMES)


@pytest.fixture(scope="module")
def passed(small: nn.Module, exported: onnx.ModelProto) -> Report:
    return check(small, exported)


def test_a_good_file_passes(passed: Report) -> None:
    passed.assert_passed()
    assert passed.exit_status == 0
    assert {str(run.variant) for run in passed.runs} >= {
        "CPUExecutionProvider, no native library, optimization all",
        "CPUExecutionProvider, no native library, optimization none",
    }
    shapes = {tuple(sample.shapes["x"]) for sample in passed.samples}
    assert len(shapes) == 2
    assert len(passed.samples) == 3
    for run in passed.runs:
        assert [output.name for output in run.outputs] == NAMES
        logits = run.outputs[0]
        assert logits.agreement is not None
        assert logits.agreement.top1 == 1.0
        assert logits.onnx is not None
        assert logits.onnx.cosine == pytest.approx(1.0, abs=1e-12)
        assert 0 < logits.onnx.maximum < 1e-5


def test_the_report_in_text_and_json(passed: Report) -> None:
    lines = str(passed).splitlines()
    assert lines[0] == "the model against Small in float64"
    assert lines[-1].startswith("passed: the largest distance is ")
    assert any("logits" in line and line.endswith("ok") for line in lines)
    data = json.loads(passed.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["passed"] is True
    assert (data["seed"], data["factor"]) == (0, 4.0)
    assert {"torch", "onnxruntime", "numpy", "python"} <= set(data["environment"])
    assert {sample["truth"] for sample in data["samples"]} == {"float64"}
    assert data["runs"][0]["outputs"][0]["onnx"]["worst"]["index"]


def test_the_same_seed_gives_the_same_report(small: nn.Module, exported: onnx.ModelProto, passed: Report) -> None:
    again = check(small, exported)
    assert [sample.shapes for sample in again.samples] == [sample.shapes for sample in passed.samples]
    assert [run.outputs[0].pytorch for run in again.runs] == [run.outputs[0].pytorch for run in passed.runs]
    other = check(small, exported, seed=1, samples=1)
    assert other.runs[0].outputs[0].pytorch != passed.runs[0].outputs[0].pytorch


def test_the_module_in_training_mode_stays_so(small: nn.Module, exported: onnx.ModelProto) -> None:
    module = copy.deepcopy(small).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    check(module, exported, torch.randn(2, 3, 16, 16)).assert_passed()
    assert all(part.training for part in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


# --- planted faults -----------------------------------------------------------------------------------------------


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(item for item in model.graph.initializer if item.name == name)


def one_weight(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "conv2.weight")
    weight = numpy_helper.to_array(tensor).copy()
    weight[3, 4, 1, 1] += 1e-3
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))


def epsilon(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "InstanceNormalization")
    attribute = next(each for each in node.attribute if each.name == "epsilon")
    assert attribute.f == pytest.approx(1e-5)
    attribute.f = 1e-3


def swapped(model: onnx.ModelProto) -> None:
    weight, bias = initializer(model, "ln.weight"), initializer(model, "ln.bias")
    weight.name, bias.name = bias.name, weight.name


def output_missing(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def append(op: str, output: str, /, *extra: np.ndarray, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    """Puts a node behind the output."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [f"{output}_raw" if name == output else name for name in names]
        constants = [numpy_helper.from_array(array, f"fault_{index}") for index, array in enumerate(extra)]
        model.graph.initializer.extend(constants)
        names = [f"{output}_raw", *(constant.name for constant in constants)]
        model.graph.node.append(helper.make_node(op, names, [output], **attributes))

    return change


def transposed(model: onnx.ModelProto) -> None:
    append("Transpose", "logits", perm=[1, 0])(model)
    for output in model.graph.output:
        if output.name == "logits":
            output.type.tensor_type.ClearField("shape")


def in_one_element(value: float) -> Callable[[onnx.ModelProto], None]:
    return append("Add", "features", np.array([0, 0, 0, value, 0, 0, 0, 0], np.float32))


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str, str]] = {
    "one-weight": (one_weight, "logits|features", r"distance .* is over the allowed"),
    "epsilon": (epsilon, "logits|features", r"distance .* is over the allowed"),
    "gamma-beta": (swapped, "logits|features", r"distance .* is over the allowed"),
    "missing": (output_missing, "features", r"missing from the ONNX file \(float32\[\d, 8\]\)"),
    "transposed": (transposed, "logits", r"shape \[6, \d\], must be \[\d, 6\]"),
    "nan": (in_one_element(np.nan), "features", r"not finite where the truth is.*\[0, 3\] is nan"),
    "inf": (in_one_element(np.inf), "features", r"not finite where the truth is.*\[0, 3\] is inf"),
    "off-by-one": (append("Add", "best", np.array(1, np.int64)), "best", r"\d of \d values differ: \[0\]"),
    "type": (append("Cast", "features", to=TensorProto.DOUBLE), "features", r"type float64, must be float32"),
}


def retype(model: onnx.ModelProto, name: str, number: int) -> None:
    for output in model.graph.output:
        if output.name == name:
            output.type.tensor_type.elem_type = number


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, small: nn.Module, exported: onnx.ModelProto) -> None:
    change, output, reason = FAULTS[fault]
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    change(model)
    if fault == "type":
        retype(model, "features", TensorProto.DOUBLE)
    report = check(small, model, samples=1)
    assert not report.passed
    assert report.exit_status == 1
    assert str(report).splitlines()[-1].startswith("FAILED: 2 of 2 runs")
    with pytest.raises(AssertionError, match=rf"(?s)output '({output})' .*{reason}.*next: every way to run it is off"):
        report.assert_passed()
    json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_failure_names_the_tolerance_that_would_have_passed(small: nn.Module, exported: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    one_weight(model)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    report = check(small, model, x)
    with pytest.raises(AssertionError) as caught:
        report.assert_passed()
    message = str(caught.value)
    assert "smallest tolerance that would have passed: atol=" in message
    assert "worst element [" in message
    output = report.runs[0].outputs[0]
    assert output.onnx is not None
    assert output.onnx.atol == pytest.approx(output.onnx.maximum * (output.scale or 0))


def test_a_file_that_refuses_a_size_that_pytorch_takes(small: nn.Module, exported: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    append("Reshape", "features", np.array([2, 8]))(model)  # the example's batch, baked in
    report = check(small, model)
    assert not report.passed
    errors = [run.error for run in report.runs if run.error]
    assert len(errors) == 2
    assert "x=[3, 3," in str(report)
    assert "eshape" in errors[0]


# --- no false alarms ----------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        self.norm = nn.RMSNorm(32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 40)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.embed(tokens))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 16, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (h, _) = self.lstm(x)
        return self.norm(y), h


def unet() -> nn.Module:
    def block(inside: int, outside: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1), nn.InstanceNorm2d(outside, affine=True), nn.SiLU()
        )

    down, up = nn.MaxPool2d(2), nn.ConvTranspose2d(16, 8, 2, stride=2)
    return nn.Sequential(block(3, 8), down, block(8, 16), up, nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 2, 1))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "transformer": (Transformer, lambda: torch.arange(14).reshape(2, 7)),
    "recurrent": (Recurrent, lambda: torch.randn(2, 6, 5)),
    "unet": (unet, lambda: torch.randn(2, 3, 16, 16)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_false_alarm_on_user_code(name: str, dtype: torch.dtype, export: Any, lively: Any) -> None:
    torch.manual_seed(0)
    make, inputs = ARCHITECTURES[name]
    module, x = lively(make()).to(dtype), inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    report = check(module, export(module, (x,)), x)
    report.assert_passed()
    assert not report.notes


def test_float64_is_judged_at_float64(export: Any) -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(64, 64), nn.Tanh(), nn.RMSNorm(64), nn.Linear(64, 64), nn.Softmax(-1), nn.Linear(64, 8))
    module, x = nn.Sequential(*layers).double(), torch.randn(3, 64, dtype=torch.float64)
    report = check(module, export(module, (x,)), x)
    report.assert_passed()
    output = report.runs[0].outputs[0]
    assert output.pytorch_distance is not None
    assert 1e-17 < output.pytorch_distance < 2e-15
    assert output.allowed is not None
    assert output.allowed < 1e-14
    # ONNX holds epsilon as a float32: LayerNormalization of a float64 model is off by what that rounds away
    module = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)).double()
    assert not check(module, export(module, (x,)), x).passed


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
        pytest.param("regnetx_002", {}, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", {}, marks=pytest.mark.slow),
    ],
)
def test_no_false_alarm_on_timm(name: str, options: dict[str, Any], export: Any, lively: Any) -> None:
    import timm

    torch.manual_seed(0)
    module = lively(timm.create_model(name, num_classes=10, **options))
    model = export(module, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: "batch"},))
    report = check(module, model, samples=2)
    report.assert_passed()
    assert len(report.samples) == 2


@pytest.mark.usefixtures("zoo")
def test_no_false_alarm_on_llama(export: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
        llama = LlamaForCausalLM(config)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.llama = llama

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.llama(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    tokens = torch.arange(14).reshape(2, 7)
    inputs = (tokens, torch.ones_like(tokens))
    for dtype in (torch.float32, torch.float16):
        module = Logits().to(dtype)
        check(module, export(module, inputs), inputs).assert_passed()


# --- what a run needs, and what is refused ------------------------------------------------------------------------


def test_generated_sizes_that_pytorch_refuses_are_left_out(export: Any) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] != 2:
                raise ValueError("batch of two, please")
            return x * 2

    model = export(Fixed(), (torch.randn(2, 3),))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    report = check(Fixed(), model)
    report.assert_passed()
    assert len(report.samples) == 2
    assert any("second shape was left out" in note and "batch of two" in note for note in report.notes)


def test_a_truth_in_float32_is_noted_and_is_no_false_alarm(export: Any) -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return self.layers(x)

    torch.manual_seed(0)
    module = Insists()
    report = check(module, export(module, (torch.randn(3, 64),)))
    report.assert_passed()
    assert report.samples[0].truth == "float32"
    assert "truth computed in float32: TypeError: float32 only" in report.notes
    output = report.runs[0].outputs[0]
    assert output.pytorch is not None
    assert output.pytorch.maximum == 0
    assert output.pytorch_distance


def test_a_model_that_pytorch_itself_cannot_compute_is_noted(export: Any) -> None:
    class Cancels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1e4) - 1e4

    report = check(Cancels(), export(Cancels(), (torch.randn(3, 5) * 1e-3,)), torch.randn(3, 5) * 1e-3)
    assert any("PyTorch's own 'sub' is up to 0." in note for note in report.notes)


def test_an_output_that_is_the_same_everywhere_is_noted(export: Any) -> None:
    module = nn.Linear(4, 3)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    report = check(module, export(module, (torch.randn(2, 4),)))
    assert any("output is 0.0 everywhere" in note for note in report.notes)


def test_paths_and_result_objects(tmp_path: Path, small: nn.Module, exported: onnx.ModelProto) -> None:
    import onnx_ir as ir

    path = tmp_path / "small.onnx"
    onnx.save(exported, path)
    x = torch.randn(1, 3, 8, 8)
    assert check(small, path, x).model == str(path)
    check(small, str(path), {"x": x.numpy()}).assert_passed()
    model = ir.load(path)
    check(small, model, (x,)).assert_passed()

    class Result:
        def __init__(self) -> None:
            self.model = model

    check(small, Result(), x).assert_passed()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "train"}, "mode is 'train', but every submodule of Small is in evaluation"),
        ({"mode": "test"}, "mode is 'test'; it must be 'eval' or 'train'"),
        ({"steps": 0}, "steps is 0; at least 1 is needed"),
        ({"bisect": True}, "bisect=True is not there yet"),
        ({"factor": 0.5}, "factor is 0.5"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"samples": 0}, "samples is 0"),
        ({"providers": ["NoSuchProvider"]}, r"'NoSuchProvider' is not in this ONNX Runtime .*CPUExecutionProvider"),
    ],
)
def test_bad_usage(options: dict[str, Any], message: str, small: nn.Module, exported: onnx.ModelProto) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check(small, exported, **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_module_and_no_file(tmp_path: Path, small: nn.Module, exported: onnx.ModelProto) -> None:
    with pytest.raises(UsageError, match="module is a str"):
        check("resnet18", exported)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no such file"):
        check(small, tmp_path / "none.onnx")
    broken = onnx.ModelProto()
    broken.CopyFrom(exported)
    retype(broken, "features", TensorProto.INT64)
    with pytest.raises(ModelError, match="the model runs in no way: it does not load"):
        check(small, broken, samples=1)
    with pytest.raises(UsageError, match="PyTorch cannot run Small on these inputs"):
        check(small, exported, torch.randn(1, 3, 1, 1))


def test_importing_parity_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, onnxnorm.parity; print([name for name in ('torch', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
