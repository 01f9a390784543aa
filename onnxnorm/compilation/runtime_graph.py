"""The graph that ONNX Runtime makes of a model on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from onnxnorm.errors import ModelError, OnnxnormError, one_line
from onnxnorm.model_file import load_model, too_large
from onnxnorm.passes.graph import all_graphs
from onnxnorm.runtime.environment import onnxruntime_module


def runtime_graph(model: ir.Model) -> ir.Model:
    """What ONNX Runtime's optimizer, with the native library registered, makes of the model for this CPU.

    The file that it writes holds operators of its own, blocked convolutions among them, that it loads again. The
    library has to be there: without it the function bodies of the norms are inlined.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        RuntimeUnavailable: there is no native library.

    """
    from onnxnorm.runtime.session import InferenceSession

    onnxruntime = onnxruntime_module()
    with tempfile.TemporaryDirectory(prefix="onnxnorm-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns that the file is for this machine, which the file will say
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(path)
        if too_large(model):
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        try:
            InferenceSession(model, options, providers=["CPUExecutionProvider"], library=True)
        except OnnxnormError:
            raise
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot load the optimized model: {one_line(error, 300)}") from None
        loaded = load_model(path)
        ir.external_data.load_to_model(loaded)
    _forget_unused_domains(loaded)
    return loaded


def _forget_unused_domains(model: ir.Model) -> None:
    """ONNX Runtime imports every domain that it knows."""
    used = {node.domain for graph, _, _ in all_graphs(model) for node in graph} | {""}
    for domain in [domain for domain in model.opset_imports if domain not in used]:
        del model.opset_imports[domain]
