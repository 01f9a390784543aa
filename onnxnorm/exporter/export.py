"""``onnxnorm.export``: eval and training graphs through ``torch.onnx.export(dynamo=True)``."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass

from onnxnorm.errors import ExportError, OnnxnormError, UsageError
from onnxnorm.exporter.noise import check_noise, noise_error
from onnxnorm.exporter.opset import OLDEST_OPSET, export_at
from onnxnorm.exporter.scalars import restore_scalars
from onnxnorm.exporter.snapshot import Snapshot
from onnxnorm.exporter.training import Prepared, TrainingStep, attach_state, prepare
from onnxnorm.exporter.translation import translation_table
from onnxnorm.passes.decision import Decision
from onnxnorm.passes.pipeline import Provider, Result, Target, check_options, run_pipeline
from onnxnorm.runtime.environment import newest_opset
from onnxnorm.spec.schema import register_schemas

Mode = Literal["eval", "train"]

#: Model metadata: what the graph inputs were at export, so that a check can make inputs of the same kind.
INPUTS_KEY = "onnxnorm.inputs"


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...] | torch.Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Mode = "eval",
    opset: int | None = None,
    target: Target = "onnxnorm",
    provider: Provider = "cpu",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    disable: Iterable[str] = (),
    verify: bool = False,
    dropout: str = "identity",
) -> Result:
    """Exports a PyTorch module and optimizes its normalizations.

    The module is not changed: neither flags, nor buffers, dtype or device.

    Args:
        module: any ``torch.nn.Module`` that ``torch.export`` takes; exported as in ``eval()``.
        args: example positional arguments (a tensor stands for a tuple of one).
        kwargs: example keyword arguments.
        mode: "eval" exports the module as after ``module.eval()``. "train" exports what it computes with each
            submodule's own training flag as it stands: batch statistics, dropout left out, and every buffer that the
            forward updates as explicit state. A state enters through a graph input named by its ``state_dict()`` key,
            whose default is the trained value, and its next value leaves through the output ``next.<key>``;
            ``result.state`` maps the one to the other.
        opset: 18 to the newest that the installed ONNX Runtime loads; None is ``torch.onnx.export``'s own default.
        target: "onnxnorm" (custom ops that carry function bodies) or "standard" (ai.onnx operators only).
        provider: what lowering is tuned for, "cpu" or "cuda".
        dynamic_shapes, input_names, output_names: as for ``torch.onnx.export``.
        disable: ids of optimizer rules to leave out.
        verify: check every rewrite in float64, see ``onnxnorm.optimize``.
        dropout: what a training graph does for dropout: "identity", with a decision for each. No graph draws random
            numbers as PyTorch does, so "random" is refused.

    Raises:
        UsageError: an argument that is not allowed; the message says what is.
        ExportError: PyTorch cannot export the module.

    """
    _check_arguments(module, args, mode, opset)
    if dropout != "identity":
        raise UsageError(
            f"dropout is {dropout!r}; it must be 'identity': a training graph is noise-free, since no graph draws the "
            "random numbers that PyTorch draws"
        )
    check_options(target, provider, disable)
    register_schemas()
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    options = _Options(args, dict(kwargs or {}), opset, dynamic_shapes, input_names, output_names)
    decisions: list[Decision] = []
    if mode == "train":
        model, decisions = _export_training(module, options)
    else:
        with _eval_copy(module) as frozen:
            model = _export_raw(frozen, options)
        _record_inputs(model, args, kwargs)
    restore_scalars(model)
    _forget_ones(model)
    result = run_pipeline(model, target=target, provider=provider, disable=disable, verify=verify)
    return replace(result, decisions=(*decisions, *result.decisions))


def _check_arguments(module: Any, args: Any, mode: str, opset: int | None) -> None:
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"module is {type(module).__name__}; it must be a torch.nn.Module")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor):
            raise UsageError(f"{name!r} of the lazy module has no value yet; run it once before exporting it")
    if mode not in get_args(Mode):
        raise UsageError(f"mode is {mode!r}; it must be one of {', '.join(map(repr, get_args(Mode)))}")
    if mode == "train" and not any(part.training for part in module.modules()):
        raise UsageError(
            f"mode is 'train', but every submodule of {type(module).__name__} is in evaluation; call train() on what "
            "should compute batch statistics, or export with mode='eval'"
        )
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


@dataclass(frozen=True)
class _Options:
    """What goes to ``torch.onnx.export``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    opset: int | None
    dynamic_shapes: Any
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None


def _export_training(module: torch.nn.Module, options: _Options) -> tuple[ir.Model, list[Decision]]:
    """The training graph; whatever its forward did to the caller's module is taken back."""
    snapshot = Snapshot(module)
    try:
        prepared = prepare(module, options.args, options.kwargs, snapshot)
        return _trace_training(prepared, options), prepared.decisions
    finally:
        snapshot.restore()


def _trace_training(prepared: Prepared, options: _Options) -> ir.Model:
    """The graph of a training step.

    Where the forward makes Python numbers of tensors (``float(tensor)``, ``tensor.item()``) a first attempt reads these
    as tensors, which keep all digits; PyTorch's own way rounds them to float32, and suits numbers that are sizes.
    """
    error: ExportError | None = None
    for floats in (True, False) if prepared.numbers else (False,):
        step = prepared.step(floats=floats)
        held = Snapshot(prepared.module)
        try:
            model = _export_raw(step, replace(options, output_names=None), statistics=True)
        except ExportError as failure:
            cause = step.failure
            if isinstance(cause, ExportError):
                raise cause from None
            error = failure if cause is None else _training_error(prepared.module, cause)
            continue
        finally:
            held.restore()
        _record_inputs(model, options.args, options.kwargs)
        attach_state(model, step, list(options.output_names or ()))
        check_noise(model)
        if prepared.noisy:
            raise noise_error(prepared.module)
        return model
    assert error is not None
    raise noise_error(prepared.module) if prepared.noisy else error


def _training_error(module: torch.nn.Module, cause: Exception) -> ExportError:
    return ExportError(f"{type(module).__name__} cannot be exported in training mode: {_root_cause(cause)}")


def _export_raw(module: torch.nn.Module, options: _Options, *, statistics: bool = False) -> ir.Model:
    """torch.onnx.export with onnxnorm's translations; its chatter is held back, its error becomes one line.

    Args:
        module: what to export.
        options: how.
        statistics: translate means and variances so that they are right over any number of values.

    """
    args = options.args
    if args and isinstance(args[-1], dict) and not options.kwargs:
        args = (*args, {})  # the exporter takes a dictionary at the end for keyword arguments

    def run(version: int | None) -> ir.Model:
        program = torch.onnx.export(
            module,
            args,
            kwargs=options.kwargs or None,
            dynamo=True,
            opset_version=version,
            dynamic_shapes=options.dynamic_shapes,
            input_names=options.input_names,
            output_names=options.output_names,
            custom_translation_table=translation_table(statistics=statistics),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        return program.model

    try:
        with warnings.catch_warnings(), _quiet(), _silenced(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = export_at(run, options.opset)
            _separate_outputs(model.graph, options.output_names or ())
            NameFixPass()(model)  # names that the caller gives may be in use inside
            return model
    except OnnxnormError:
        raise
    except Exception as error:
        name = type(module.module if isinstance(module, TrainingStep) else module).__name__
        raise ExportError(f"{name} cannot be exported: {_root_cause(error)}") from error


def _separate_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """A value of its own, and its own name, for each output: a module may return one tensor in several places."""
    seen: set[int] = set()
    for index, value in enumerate(list(graph.outputs)):
        if id(value) in seen:
            copied = ir.node("Identity", [value], name=f"{value.name}_output_{index}")
            copied.outputs[0].name = f"{value.name}_output_{index}"
            copied.outputs[0].type, copied.outputs[0].shape = value.type, value.shape
            graph.append(copied)
            graph.outputs[index] = copied.outputs[0]
        seen.add(id(value))
    if len(seen) < len(graph.outputs):  # the exporter named the one value several times
        for value, name in zip(graph.outputs, names, strict=False):
            value.name = name


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


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing printed: the exporter shows its progress, and graphs where an attempt fails."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _root_cause(error: BaseException) -> str:
    """The innermost cause in one line: the exporter wraps it in pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).partition("For more information")[0].split()) or type(error).__name__
    if "data-dependent expression" in text:
        text = (
            "a branch, an assertion or a size depends on a tensor's value; use torch.where or torch.cond there: " + text
        )
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
