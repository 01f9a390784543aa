"""Dropout and its kind in training graphs: left out, and said so. A training graph computes statistics, noise-free."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import torch
from torch.nn.modules.dropout import _DropoutNd

from onnxnorm.errors import ExportError
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.graph import STANDARD, all_graphs, module_name, node_name

#: Classes of other packages that drop at random in training and do nothing in evaluation.
_DROPPING = frozenset({"DropPath", "StochasticDepth", "DropBlock", "DropBlock2d", "DropBlock3d", "PatchDropout"})
_REASON = "a training graph is noise-free"


def without_noise(module: torch.nn.Module) -> list[Decision]:
    """Puts the dropout modules of a copy into evaluation, one Decision for each that would have dropped something."""
    decisions = []
    for name, part in module.named_modules():
        share = _share(part)
        if not part.training or not share:
            continue
        if isinstance(part, torch.nn.RNNBase | torch.nn.MultiheadAttention):
            part.dropout = 0.0
        else:
            part.training = False
        label = name or type(part).__name__
        decisions.append(
            Decision(
                label, type(part).__name__, Action.REMOVED, module=name or None, reason=_REASON, values={"p": share}
            )
        )
    return decisions


def _share(part: torch.nn.Module) -> float:
    """The share that a module drops in training; 0 for every other module."""
    if isinstance(part, torch.nn.RNNBase | torch.nn.MultiheadAttention):
        return float(part.dropout)
    if not isinstance(part, _DropoutNd) and type(part).__name__ not in _DROPPING:
        return 0.0
    for attribute in ("p", "drop_prob", "prob"):
        share = getattr(part, attribute, None)
        if isinstance(share, int | float):
            return float(share)
    return 1.0


#: Operators that draw random numbers.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def check_noise(model: ir.Model) -> None:
    """ExportError where the graph draws random numbers."""
    for graph, _, _ in all_graphs(model):
        for node in graph:
            if node.op_type in _RANDOM and node.domain in STANDARD:
                where = module_name(node)
                of = f"module {where!r}" if where else "the module"
                raise ExportError(
                    f"{of} draws random numbers in training ({node.op_type} {node_name(node)}); a training graph is "
                    "noise-free: put what draws them into evaluation with eval() before exporting"
                )


def noise_error(module: torch.nn.Module) -> ExportError:
    """Where the outputs or the state depend on random numbers that the graph does not show as such."""
    return ExportError(
        f"{type(module).__name__} draws random numbers in training, of PyTorch, NumPy or Python; a training graph is "
        "noise-free: put what draws them into evaluation with eval() before exporting"
    )


def left_out(functions: Iterable[str]) -> list[Decision]:
    """The decisions about functional dropout."""
    return [Decision(name, f"torch.nn.functional.{name}", Action.REMOVED, reason=_REASON) for name in functions]
