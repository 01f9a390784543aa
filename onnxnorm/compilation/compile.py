"""``onnxnorm.compile``: a model for the machine that it is compiled on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxnorm.compilation.layout import Layout, is_reorder_input, is_reorder_output
from onnxnorm.compilation.operators import Candidate, candidate, describe_outputs, describe_reordered, spec_of
from onnxnorm.compilation.positions import position_tokens
from onnxnorm.compilation.rewrite import rewrite
from onnxnorm.compilation.runtime_graph import runtime_graph
from onnxnorm.compilation.trial import Inputs, check_same_results
from onnxnorm.model_file import save_model
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.graph import module_name, node_name, op_name
from onnxnorm.passes.lower.function_bodies import attach_function_bodies
from onnxnorm.passes.pipeline import optimize
from onnxnorm.runtime.library import library_path, op_table
from onnxnorm.runtime.machine import COMPILED_KEY, Machine, this_machine

if TYPE_CHECKING:
    import onnx

RULE = "compile/blocked-layout"


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        model: the model; the optimized one, for any machine, where there was nothing to gain.
        decisions: one for each norm of the domain onnxnorm: in blocks now, or why not.
        machine: what it is for.
        gained: whether the model is another than the optimized one.
        reason: why there was nothing to gain, "" where there was.
        reorders: changes of the layout in ONNX Runtime's graph before and after.
        distance: largest distance between outputs before and after, over their scale; None if not compared.

    """

    model: ir.Model
    decisions: tuple[Decision, ...]
    machine: Machine
    gained: bool
    reason: str
    reorders: tuple[int, int]
    distance: float | None = None

    def save(self, path: str | os.PathLike[str], external_data: str | None = None) -> None:
        """Writes the model; nothing is left behind when that fails. See ``onnxnorm.model_file.save_model``."""
        save_model(self.model, path, external_data)

    def explain(self) -> str:
        """The decisions, one line each."""
        return "\n".join(map(str, self.decisions)) or "no normalization in the model that the layout matters to"


def compile(
    model: str | os.PathLike[str] | ir.Model | onnx.ModelProto | Any,
    *,
    disable: Iterable[str] = (),
    verify: bool = True,
    dims: Mapping[str, int] | None = None,
    inputs: Inputs = None,
) -> Compiled:
    """Optimizes a model, lets ONNX Runtime optimize it for this CPU, and takes out the reorders around norms.

    The result holds operators of ONNX Runtime that no standard has, in the memory layout of this machine: it is for the
    CPU that it is made on, and for onnxnorm.InferenceSession, which refuses it where it would give wrong results. Keep
    the model that it is made from.

    Args:
        model: a path, an ``onnx_ir.Model`` or an ``onnx.ModelProto``; not changed. It is optimized first.
        disable: ids of rules of ``optimize`` to leave out.
        verify: run the model before and after and compare.
        dims: for that, sizes of dynamic axes by name; the others are sampled.
        inputs: for that, arrays by name or an .npz file with them; random values without.

    Raises:
        RuntimeUnavailable: there is no ONNX Runtime, or no native library.
        UsageError: an unknown rule, or a model that cannot be run on sampled inputs.
        ModelError: the model cannot be used, or its results are others after the rewrite.

    """
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    table = op_table(library_path())
    optimized = optimize(model, disable=disable).model
    machine = this_machine()
    if machine.block is None:
        return _nothing(optimized, machine, "ONNX Runtime has no blocked layout on this machine")
    compiled = runtime_graph(optimized)
    kernels = frozenset(row["name"] for row in table["ops"] if "float32" in row["dtypes"])
    modules = {node.name: module_name(node) for node in optimized.graph if node.name}
    layout, decisions = _plan(compiled, machine.block, kernels, modules)
    chosen = layout.blocked()
    before = _reorders(compiled, machine.block)
    if not chosen:
        return _nothing(optimized, machine, _why_not(decisions), decisions, before)
    rewrite(compiled, chosen, machine.block)
    attach_function_bodies(compiled)
    compiled.metadata_props[COMPILED_KEY] = machine.to_json()
    after = _reorders(compiled, machine.block)
    distance = check_same_results(optimized, compiled, dims=dims or {}, inputs=inputs, name=name) if verify else None
    return Compiled(compiled, decisions, machine, True, "", (before, after), distance)


def _plan(
    model: ir.Model, block: int, kernels: frozenset[str], modules: Mapping[str, str | None]
) -> tuple[Layout, tuple[Decision, ...]]:
    """Which nodes are to work on blocks, and what is said about each norm."""
    tokens = position_tokens(model.graph)
    found = []
    for node in model.graph:
        describe_reordered(node)
        item = candidate(node, block, tokens, kernels)
        if isinstance(item, Candidate):
            describe_outputs(item)
        found.append((node, item))
    layout = Layout([item for _, item in found if isinstance(item, Candidate)], block)
    layout.settle()
    blocked = {item.node for item in layout.blocked()}
    decisions = []
    for node, item in found:
        if spec_of(node) is None:
            continue
        reason = item if isinstance(item, str) else "as many tensors would be reordered as are now"
        chosen = node in blocked
        decisions.append(
            Decision(
                node=node_name(node),
                op=op_name(node),
                action=Action.LOWERED if chosen else Action.KEPT,
                rule=RULE,
                module=modules.get(node.name or ""),
                into=item.blocked_type if chosen and isinstance(item, Candidate) else None,
                reason=None if chosen else reason,
                values={"block": block} if chosen else {},
            )
        )
    return layout, tuple(decisions)


def _nothing(
    optimized: ir.Model, machine: Machine, reason: str, decisions: tuple[Decision, ...] = (), reorders: int = 0
) -> Compiled:
    return Compiled(optimized, decisions, machine, False, reason, (reorders, reorders))


def _why_not(decisions: tuple[Decision, ...]) -> str:
    """The reason that most norms have."""
    reasons = [item.reason for item in decisions if item.reason]
    if not reasons:
        return "the model has no norm that stands beside a convolution in blocks"
    return max(reasons, key=reasons.count)


def _reorders(model: ir.Model, block: int) -> int:
    return sum(is_reorder_input(node) or is_reorder_output(node, block) for node in model.graph)
