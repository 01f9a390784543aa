"""How a case is exported, run beside PyTorch for several steps, and judged against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

import onnxnorm
from onnxnorm.exporter.copying import as_double, as_is, copy_module
from onnxnorm.passes.pipeline import Result
from onnxnorm.runtime.arrays import Array, from_ort, from_torch, to_ort

from .cases import Case

EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float64: 2.0**-52}
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
STEPS = 3


@dataclass
class Export:
    """A case as exported, with what it was exported from."""

    module: torch.nn.Module
    batches: list[torch.Tensor]
    result: Result

    @property
    def proto(self) -> onnx.ModelProto:
        return ir.to_proto(self.result.model)

    @property
    def ops(self) -> list[str]:
        return [node.op_type for node in self.proto.graph.node]


def inputs_of(case: Case, module: torch.nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    """The example, then other sizes of what is dynamic."""
    generator = torch.Generator().manual_seed(1)
    embedding = next((part for part in module.modules() if isinstance(part, torch.nn.Embedding)), None)
    batches = []
    for step in range(STEPS):
        shape = list(case.shape)
        shape[0] += step
        if case.spatial:
            shape[2:] = [size + step for size in shape[2:]]
        if embedding is not None:
            batches.append(torch.randint(0, embedding.num_embeddings, shape, generator=generator))
        else:
            batches.append((torch.randn(shape, generator=generator) * 2 + 0.3).to(dtype))
    return batches


def export_case(case: Case, mode: str, kind: str = "f32", target: str = "onnxnorm", **options: Any) -> Export:
    torch.manual_seed(0)
    module = case.make().to(TYPES[kind]).train(mode == "train")
    batches = inputs_of(case, module, TYPES[kind])
    axes = {0: torch.export.Dim("n", min=2)}
    if case.spatial:
        axes |= {axis: torch.export.Dim(f"s{axis}", min=4) for axis in range(2, len(case.shape))}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = onnxnorm.export(module, batches[0], mode=mode, target=target, dynamic_shapes=(axes,), **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training == (mode == "train")
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    return Export(module, batches, result)


def session(content: bytes, library: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxnorm.InferenceSession(content, options, providers=["CPUExecutionProvider"], library=library)


def distance(output: Array, truth: Array) -> float:
    """The largest distance, relative to the truth's largest value; what is not finite must be so in both."""
    have, want = output.astype(np.float64), truth.astype(np.float64)
    assert have.shape == want.shape
    np.testing.assert_array_equal(np.isfinite(have), np.isfinite(want))
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=1e-30))
    return float(np.abs(have[finite] - want[finite]).max(initial=0.0)) / scale


def judge(name: str, output: Array, truth: torch.Tensor, deployed: torch.Tensor) -> None:
    """At most four times as far from float64 as PyTorch at the deployed type, or within 8 eps."""
    want, have = from_torch(truth), from_torch(deployed)
    assert output.dtype == have.dtype, f"{name}: {output.dtype}, PyTorch has {have.dtype}"
    if not truth.is_floating_point():
        np.testing.assert_array_equal(output, have, err_msg=name)
        return
    allowed = max(4.0 * distance(have, want), 8.0 * EPS[deployed.dtype])
    found = distance(output, want)
    assert found <= allowed, f"{name}: {found:.2e} from float64, allowed {allowed:.2e}"


def run_beside_pytorch(export: Export, library: bool) -> dict[str, Array]:
    """All batches through PyTorch in float64, PyTorch as deployed and ONNX Runtime, state fed back; the last state."""
    truth, deployed = copy_module(export.module, as_double), copy_module(export.module, as_is)
    current = session(export.proto.SerializeToString(), library)
    (data,) = [item.name for item in current.get_inputs()]
    names = [item.name for item in current.get_outputs()]
    state: dict[str, Array] = {}
    with torch.no_grad():
        for step, batch in enumerate(export.batches):
            feeds = {data: to_ort(from_torch(batch)), **{key: to_ort(value) for key, value in state.items()}}
            outputs = dict(zip(names, map(from_ort, current.run_with_ort_values(None, feeds)), strict=True))
            wide = batch.double() if batch.is_floating_point() else batch
            judge(f"step {step}", outputs[names[0]], truth(wide), deployed(batch))
            state = {key: outputs[following] for key, following in export.result.state.items()}
    buffers = dict(deployed.named_buffers())
    exact = dict(truth.named_buffers())
    original = dict(export.module.named_buffers())
    moved = {key for key, tensor in buffers.items() if not torch.equal(tensor, original[key])}
    assert moved <= set(state), f"the graph lacks the state {sorted(moved - set(state))}"
    for key, value in state.items():
        judge(f"state {key}", value, exact[key], buffers[key])
    return state
