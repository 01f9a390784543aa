"""What the export tests share: users' models, ways to run a file, and what is near enough."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import onnxnorm
from onnxnorm.passes.reference_ops import ConvTranspose
from onnxnorm.runtime.arrays import Array, from_ort, from_torch, to_ort

EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float64: 2.0**-52}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models; the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lively(module: nn.Module, seed: int = 3) -> nn.Module:
    """Statistics, scales and offsets as training leaves them, not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for parameter in module.parameters():
            fill(parameter, -0.5, 0.5)
        for part in module.modules():
            if isinstance(getattr(part, "running_var", None), torch.Tensor):
                fill(part.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
                fill(part.running_var, 0.3, 1.5)  # type: ignore[arg-type]
            if "Norm" in type(part).__name__ and isinstance(getattr(part, "weight", None), nn.Parameter):
                fill(part.weight, 0.5, 1.5)  # type: ignore[arg-type]
    return module


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def all_nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    """With those of subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g.node)


def norms(model: onnx.ModelProto) -> dict[str, int]:
    """Normalizations of the main graph by operator; those of the domain onnxnorm with their domain."""
    found: dict[str, int] = {}
    for node in all_nodes(model.graph.node):
        if "Norm" in node.op_type:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            found[name] = found.get(name, 0) + 1
    return found


def fed(model: onnx.ModelProto, inputs: Any) -> dict[str, Array]:
    """Feeds in the order of the file's inputs."""
    given = tensors(inputs)
    assert len(given) == len(model.graph.input)
    return {item.name: from_torch(tensor) for item, tensor in zip(model.graph.input, given, strict=True)}


def plain(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    """onnxruntime as anybody has it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _run(session, feeds)


def with_library(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return _run(onnxnorm.InferenceSession(path, options, providers=["CPUExecutionProvider"], library=True), feeds)


def evaluator(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    """The reference evaluator; its ConvTranspose with groups, which is wrong, is replaced."""
    session = ReferenceEvaluator(onnx.load(path), new_ops=[ConvTranspose])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # NumPy's, such as of a variance over one value that is not used
        return [np.asarray(array) for array in session.run(None, dict(feeds))]


WAYS: dict[str, Callable[[Path, Mapping[str, Array]], list[Array]]] = {
    "plain onnxruntime": plain,
    "native library": with_library,
    "reference evaluator": evaluator,
}


def _run(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    return [from_ort(value) for value in session.run_with_ort_values(None, {k: to_ort(v) for k, v in feeds.items()})]


def assert_equals_module(
    path: Path,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    ways: Sequence[str] = tuple(WAYS),
    factor: float = 4.0,
) -> None:
    """Every way to run the file is as near to the float64 run of the module as its own dtype's run, or 8 eps."""
    with torch.no_grad():
        _assert_equals_module(path, module, args, dict(kwargs or {}), ways, factor)


def _assert_equals_module(
    path: Path,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    ways: Sequence[str],
    factor: float,
) -> None:
    model = onnx.load(path)
    own = tensors(copy.deepcopy(module).eval()(*args, **kwargs))
    double = torch.utils._pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf,
        (args, kwargs),
    )
    truth = tensors(copy.deepcopy(module).eval().double()(*double[0], **double[1]))
    feeds = fed(model, (args, kwargs))
    for way in ways:
        outputs = WAYS[way](path, feeds)
        assert len(outputs) == len(own), way
        for output, mine, exact in zip(outputs, own, truth, strict=True):
            assert output.dtype == from_torch(mine).dtype, way
            assert output.shape == tuple(exact.shape), way
            if not exact.is_floating_point():
                np.testing.assert_array_equal(output, exact.numpy(), err_msg=way)
                continue
            scale = max(float(exact.detach().abs().max()), 1e-30) if exact.numel() else 1.0
            away = np.abs(output.astype(np.float64) - exact.detach().numpy()).max(initial=0.0) / scale
            allowed = float((mine.double() - exact).abs().max()) / scale if exact.numel() else 0.0
            assert away <= max(factor * allowed, 8 * EPS[mine.dtype]), f"{way}: {away:.3g}, PyTorch {allowed:.3g}"


def export_to(
    folder: Path, module: nn.Module, args: Any, kwargs: Any = None, **options: Any
) -> tuple[Path, onnx.ModelProto, Any]:
    """Exports, saves, and checks what every file must satisfy."""
    result = onnxnorm.export(module, args, kwargs, **options)
    path = folder / "model.onnx"
    result.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    domains = {node.domain for node in all_nodes(model.graph.node)}
    if options.get("target", "onnxnorm") == "standard":
        assert domains <= {""}
        assert not model.functions
        assert {entry.domain for entry in model.opset_import} == {""}
    else:
        assert domains <= {"", "onnxnorm"}
        used = {node.op_type for node in all_nodes(model.graph.node) if node.domain == "onnxnorm"}
        assert {function.name for function in model.functions} == used
    if options.get("opset") is not None:
        assert {entry.version for entry in model.opset_import if entry.domain == ""} == {options["opset"]}
    return path, model, result


def in_another_process(paths: Sequence[Path], feeds: Mapping[str, Array], import_onnxnorm: bool) -> dict[str, Any]:
    """Checker, ONNX Runtime and evaluator on files, where onnxnorm is or is not imported; outputs by file and way."""
    folder = paths[0].parent
    np.savez(folder / "feeds.npz", **feeds)
    first = "import onnxnorm; from onnxnorm.spec.schema import register_schemas; register_schemas()"
    code = f"""
        {first if import_onnxnorm else ""}
        import json, sys
        import numpy as np, onnx, onnxruntime
        from onnx.reference import ReferenceEvaluator
        feeds = dict(np.load({str(folder / "feeds.npz")!r}))
        found = {{}}
        for path in {[str(path) for path in paths]!r}:
            onnx.checker.check_model(path, full_check=True)
            onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            evaluator = ReferenceEvaluator(path)
            results = {{"onnxruntime": session.run(None, feeds), "evaluator": evaluator.run(None, feeds)}}
            flat = lambda ys: [np.asarray(y, np.float64).ravel().tolist() for y in ys]
            found[path] = {{way: flat(ys) for way, ys in results.items()}}
        assert ("onnxnorm" in sys.modules) is {import_onnxnorm}
        print(json.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result
