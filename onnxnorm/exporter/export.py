"""``onnxnorm.export``: eval graphs through ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass

from onnxnorm.errors import ExportError, OnnxnormError, UsageError
from onnxnorm.exporter.opset import OLDEST_OPSET, export_at
from onnxnorm.exporter.translation import translation_table
from onnxnorm.passes.pipeline import Provider, Result, Target, check_options, run_pipeline
from onnxnorm.runtime.environment import newest_opset
from onnxnorm.spec.schema import register_schemas

#: Model metadata: what the graph inputs were at export, so that a check can make inputs of the same kind.
INPUTS_KEY = "onnxnorm.inputs"


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...] | torch.Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Literal["eval"] = "eval",
    opset: int | None = None,
    target: Target = "onnxnorm",
    provider: Provider = "cpu",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    disable: Iterable[str] = (),
    verify: bool = False,
) -> Result:
    """Exports a PyTorch module in evaluation form and optimizes its normalizations.

    The module is not changed: neither flags, nor buffers, dtype or device.

    Args:
        module: any ``torch.nn.Module`` that ``torch.export`` takes; exported as in ``eval()``.
        args: example positional arguments (a tensor stands for a tuple of one).
        kwargs: example keyword arguments.
        mode: "eval".
        opset: 18 to the newest that the installed ONNX Runtime loads; None is ``torch.onnx.export``'s own default.
        target: "onnxnorm" (custom ops that carry function bodies) or "standard" (ai.onnx operators only).
        provider: what lowering is tuned for, "cpu" or "cuda".
        dynamic_shapes, input_names, output_names: as for ``torch.onnx.export``.
        disable: ids of optimizer rules to leave out.
        verify: check every rewrite in float64, see ``onnxnorm.optimize``.

    Raises:
        UsageError: an argument that is not allowed; the message says what is.
        ExportError: PyTorch cannot export the module.

    """
    _check_arguments(module, args, mode, opset)
    check_options(target, provider, disable)
    register_schemas()
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    with _eval_copy(module) as frozen:
        model = _export_raw(frozen, args, dict(kwargs or {}), opset, dynamic_shapes, input_names, output_names)
    _record_inputs(model, args, kwargs)
    _forget_ones(model)
    return run_pipeline(model, target=target, disable=disable, verify=verify)


def _check_arguments(module: Any, args: Any, mode: str, opset: int | None) -> None:
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"module is {type(module).__name__}; it must be a torch.nn.Module")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor):
            raise UsageError(f"{name!r} of the lazy module has no value yet; run it once before exporting it")
    if mode != "eval":
        raise UsageError(f"mode is {mode!r}; this version exports evaluation graphs, mode='eval'")
    if not isinstance(args, torch.Tensor | tuple | list):
        raise UsageError(f"args is {type(args).__name__}; it must be a tensor or a tuple of forward's arguments")
    if opset is not None and not isinstance(opset, int):
        raise UsageError(f"opset is {opset!r}; it must be a whole number")
    if opset is not None and not OLDEST_OPSET <= opset <= newest_opset():
        raise UsageError(
            f"opset is {opset}; it must be from {OLDEST_OPSET} to {newest_opset()}, the newest that the installed "
            "onnx and ONNX Runtime take"
        )


@contextlib.contextmanager
def _eval_copy(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """A copy in evaluation form that shares the tensors with the caller's module.

    Evaluation changes no parameter or buffer, so only the modules need copying. Where a module cannot be copied, the
    training flags of the module itself are set, and set back.
    """
    tensors = [*module.parameters(), *module.buffers()]
    try:
        frozen = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except Exception:
        flags = {child: child.training for child in module.modules()}
        try:
            for child in flags:
                child.training = False
            yield module
        finally:
            for child, training in flags.items():
                child.training = training
        return
    yield frozen.eval()


def _export_raw(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opset: int | None,
    dynamic_shapes: Any,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> ir.Model:
    """torch.onnx.export with onnxnorm's translations; its chatter is held back, its error becomes one line."""

    def run(version: int | None) -> ir.Model:
        program = torch.onnx.export(
            module,
            args,
            kwargs=kwargs or None,
            dynamo=True,
            opset_version=version,
            dynamic_shapes=dynamic_shapes,
            input_names=input_names,
            output_names=output_names,
            custom_translation_table=translation_table(),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        return program.model

    try:
        with warnings.catch_warnings(), _quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            model = export_at(run, opset)
            NameFixPass()(model)  # names that the caller gives may be in use inside
            return model
    except OnnxnormError:
        raise
    except Exception as error:
        raise ExportError(f"{type(module).__name__} cannot be exported: {_root_cause(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs warnings that no user of ours can act on."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _root_cause(error: BaseException) -> str:
    """The innermost cause in one line: the exporter wraps it in pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {text[:400]}"


def _forget_ones(model: ir.Model) -> None:
    """Makes sizes of 1 inside the graph unknown where an input has a dynamic axis whose example is 1.

    PyTorch notes such an axis as 1 inside the graph while it is dynamic at the input; ONNX Runtime would then fold
    shapes that are not constant. What is 1 for certain is inferred again.
    """
    records = json.loads(model.metadata_props.get(INPUTS_KEY, "[]"))
    examples = {record["name"]: record["shape"] for record in records}
    doubtful = any(
        size == 1 and not isinstance(dim, int)
        for value in model.graph.inputs
        for size, dim in zip(examples.get(value.name, ()), value.shape or (), strict=False)
    )
    for node in model.graph.all_nodes() if doubtful else ():
        for value in node.outputs:
            if value.shape is not None and not value.is_graph_output():
                value.shape = ir.Shape([None if size == 1 else size for size in value.shape])


def _record_inputs(model: ir.Model, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> None:
    """Writes name, dtype, shape and, for integers, range of the example inputs into the model's metadata."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, dict(kwargs or {}))) if leaf is not None]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if len(tensors) != len(model.graph.inputs):
        return
    records = []
    for value, tensor in zip(model.graph.inputs, tensors, strict=True):
        record: dict[str, Any] = {
            "name": value.name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
        if not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel():
            record |= {"min": int(tensor.min()), "max": int(tensor.max())}
        records.append(record)
    model.metadata_props[INPUTS_KEY] = json.dumps(records)
