"""The order of all rules: the one place for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx_ir as ir

from onnxnorm.errors import ModelError, UsageError
from onnxnorm.model_file import load_model, save_model, uses_onnxnorm
from onnxnorm.passes.canonicalize.clean import clean
from onnxnorm.passes.canonicalize.functions import inline_functions, own_functions
from onnxnorm.passes.canonicalize.identities import give_outputs
from onnxnorm.passes.canonicalize.opset import can_have_opset, raise_opset
from onnxnorm.passes.canonicalize.transposes import cancel_transposes, norms_with_channels_last
from onnxnorm.passes.canonicalize.unused import remove_unused
from onnxnorm.passes.contrib import holds_contrib
from onnxnorm.passes.decision import Action, Decision
from onnxnorm.passes.engine import Engine
from onnxnorm.passes.fold.affine_behind_branches import FoldAffineBehindBranches
from onnxnorm.passes.fold.affine_behind_layer import FoldAffineBehindLayer
from onnxnorm.passes.fold.affine_behind_quantized_layer import FoldAffineBehindQuantizedLayer
from onnxnorm.passes.fold.affine_into_conv import FoldAffineIntoConv
from onnxnorm.passes.fold.affine_into_conv_transpose import FoldAffineIntoConvTranspose
from onnxnorm.passes.fold.affine_into_gemm import FoldAffineIntoGemm
from onnxnorm.passes.fold.affine_into_matmul import FoldAffineIntoMatMul
from onnxnorm.passes.fold.batch_norm_into_conv import FoldBatchNormIntoConv
from onnxnorm.passes.fold.batch_norm_into_conv_transpose import FoldBatchNormIntoConvTranspose
from onnxnorm.passes.fold.batch_norm_into_gemm import FoldBatchNormIntoGemm
from onnxnorm.passes.fold.batch_norm_into_matmul import FoldBatchNormIntoMatMul
from onnxnorm.passes.fold.constant_weight import FoldConstantWeight
from onnxnorm.passes.fold.conv_into_pointwise import FoldConvIntoPointwise
from onnxnorm.passes.fold.linear_into_conv import FoldLinearIntoConv
from onnxnorm.passes.fold.linear_into_linear import FoldLinearIntoLinear
from onnxnorm.passes.fold.scale_before_norm import FoldScaleBeforeNorm
from onnxnorm.passes.fold.shift_before_norm import FoldShiftBeforeNorm
from onnxnorm.passes.fold.sum_into_conv import FoldSumIntoConv
from onnxnorm.passes.form import check_form
from onnxnorm.passes.fuse.activation import FuseActivation
from onnxnorm.passes.fuse.batch_instance_norm import FuseBatchInstanceNorm
from onnxnorm.passes.fuse.channel_affine import FuseChannelAffine
from onnxnorm.passes.fuse.contrib_group_norm import FuseContribGroupNorm
from onnxnorm.passes.fuse.contrib_skip_group_norm import FuseContribSkipGroupNorm
from onnxnorm.passes.fuse.contrib_skip_layer_normalization import FuseContribSkipLayerNormalization
from onnxnorm.passes.fuse.contrib_skip_simplified_layer_normalization import FuseContribSkipSimplifiedLayerNormalization
from onnxnorm.passes.fuse.evo_norm_s0 import FuseEvoNormS0
from onnxnorm.passes.fuse.filter_response_norm import FuseFilterResponseNorm
from onnxnorm.passes.fuse.global_response_norm import FuseGlobalResponseNorm
from onnxnorm.passes.fuse.group_norm import FuseGroupNorm
from onnxnorm.passes.fuse.group_norm_reshape import FuseGroupNormReshape
from onnxnorm.passes.fuse.group_normalization import FuseGroupNormalization
from onnxnorm.passes.fuse.input_activation import FuseInputActivation
from onnxnorm.passes.fuse.instance_norm import FuseInstanceNorm
from onnxnorm.passes.fuse.instance_norm_items import FuseInstanceNormItems
from onnxnorm.passes.fuse.instance_norm_one_item import FuseInstanceNormOneItem
from onnxnorm.passes.fuse.instance_normalization import FuseInstanceNormalization
from onnxnorm.passes.fuse.l2_norm import FuseL2Norm
from onnxnorm.passes.fuse.layer_norm import FuseLayerNorm
from onnxnorm.passes.fuse.layer_normalization import FuseLayerNormalization
from onnxnorm.passes.fuse.lp_normalization import FuseLpNormalization
from onnxnorm.passes.fuse.norm_cast import FuseNormCast
from onnxnorm.passes.fuse.positions_reshape import FusePositionsReshape
from onnxnorm.passes.fuse.rms_norm import FuseRMSNorm
from onnxnorm.passes.fuse.rms_norm_weight import FuseRMSNormWeight
from onnxnorm.passes.fuse.rms_normalization import FuseRMSNormalization
from onnxnorm.passes.fuse.rows_reshape import FuseRowsReshape
from onnxnorm.passes.fuse.simplified_layer_normalization import FuseSimplifiedLayerNormalization
from onnxnorm.passes.fuse.skip import FuseSkip
from onnxnorm.passes.fuse.skip_reshape import FuseSkipReshape
from onnxnorm.passes.fuse.switchable_norm import FuseSwitchableNorm
from onnxnorm.passes.fuse.threshold import FuseThreshold
from onnxnorm.passes.fuse.transposed_layer_norm import FuseTransposedLayerNorm
from onnxnorm.passes.garbage import uncollected
from onnxnorm.passes.interface import Interface
from onnxnorm.passes.lower.affine_to_batch_normalization import LowerAffineToBatchNormalization
from onnxnorm.passes.lower.bias_add import LowerBiasAdd
from onnxnorm.passes.lower.bias_split_gelu import LowerBiasSplitGelu
from onnxnorm.passes.lower.body_to_standard import LowerBodyToStandard
from onnxnorm.passes.lower.choice import ChoosingRule
from onnxnorm.passes.lower.contrib_gelu import LowerContribGelu
from onnxnorm.passes.lower.function_bodies import attach_function_bodies, check_nodes
from onnxnorm.passes.lower.group_norm_to_standard import LowerGroupNormToStandard
from onnxnorm.passes.lower.layer_norm_to_standard import LowerLayerNormToStandard
from onnxnorm.passes.lower.nhwc_conv import LowerNhwcConv
from onnxnorm.passes.lower.packed_attention import LowerPackedAttention
from onnxnorm.passes.lower.rms_norm_to_standard import LowerRMSNormToStandard
from onnxnorm.passes.lower.skip_to_standard import LowerSkipToStandard
from onnxnorm.passes.lower.unsupported_types import RULE as UNSUPPORTED_TYPE
from onnxnorm.passes.lower.unsupported_types import (
    holds_lowered_types,
    lower_unsupported_types,
    widen_statistics,
    with_lowered,
)
from onnxnorm.passes.rule import Rule
from onnxnorm.passes.state import read_state
from onnxnorm.passes.verify import verify_replacement
from onnxnorm.runtime.machine import refuse_compiled
from onnxnorm.spec.body import MIN_OPSET
from onnxnorm.spec.schema import register_schemas

Target = Literal["onnxnorm", "standard"]
Provider = Literal["cpu", "cuda"]

#: ONNX Runtime's own operators, before all else: what they become takes part in the rest.
CONTRIB: tuple[type[Rule], ...] = (
    LowerNhwcConv,
    FuseContribGroupNorm,
    FuseContribSkipGroupNorm,
    FuseContribSkipLayerNormalization,
    FuseContribSkipSimplifiedLayerNormalization,
    FuseSimplifiedLayerNormalization,
    LowerBiasAdd,
    LowerBiasSplitGelu,
    LowerPackedAttention,
    LowerContribGelu,
)
#: What stands in front of a norm and changes nothing, or its epsilon only.
BEFORE_NORM: tuple[type[Rule], ...] = (FoldShiftBeforeNorm, FoldScaleBeforeNorm)
FOLD: tuple[type[Rule], ...] = (
    FoldBatchNormIntoConv,
    FoldBatchNormIntoConvTranspose,
    FoldBatchNormIntoGemm,
    FoldBatchNormIntoMatMul,
    FoldAffineBehindLayer,
    FoldAffineBehindQuantizedLayer,
    FoldAffineBehindBranches,
    FoldSumIntoConv,  # once its branches are convolutions
    FoldConstantWeight,
    *BEFORE_NORM,
)
#: The primitive operators of a root mean square norm, then what stands around it.
FUSE_RMS_NORM: tuple[type[Rule], ...] = (FuseRMSNorm, FuseNormCast, FuseRMSNormWeight)
#: Primitive operators of which the target "standard" has a single operator in the end.
FUSE_STANDARD: tuple[type[Rule], ...] = (FuseLayerNorm, *FUSE_RMS_NORM, FuseChannelAffine, *BEFORE_NORM)
FUSE: tuple[type[Rule], ...] = (
    FuseGroupNorm,
    FuseInstanceNorm,
    FuseLayerNorm,
    FuseGroupNormalization,
    FuseRMSNormalization,
    FuseLpNormalization,
    FuseInstanceNormalization,
    FuseInstanceNormItems,
    FuseInstanceNormOneItem,
    FuseGroupNormReshape,
    FuseRowsReshape,
    FuseLayerNormalization,
    FuseTransposedLayerNorm,
    FuseFilterResponseNorm,  # which says more of a product than the two behind it
    FuseEvoNormS0,
    FuseSwitchableNorm,
    FuseL2Norm,
    *FUSE_RMS_NORM,
    FuseGlobalResponseNorm,
    FuseBatchInstanceNorm,
    FuseThreshold,
    FuseChannelAffine,
    FusePositionsReshape,
    *BEFORE_NORM,
    FuseInputActivation,
    FuseActivation,
)
#: Once the norms have their activations, which tell what they are lowered to.
FUSE_SKIP: tuple[type[Rule], ...] = (FuseSkip, FuseSkipReshape)
#: What is better off as a standard operator, also where onnxnorm has an op.
BETTER_AS_STANDARD: tuple[type[Rule], ...] = (LowerLayerNormToStandard,)
#: Products of two constant matrices become one, before a shift in front of them goes into a bias between them.
FOLD_LINEAR: tuple[type[Rule], ...] = (FoldLinearIntoConv, FoldConvIntoPointwise, FoldLinearIntoLinear)
#: What stands in front of a layer; last, so that the scale and shift of a norm are its own by then.
FOLD_FORWARD: tuple[type[Rule], ...] = (
    FoldAffineIntoConv,
    FoldAffineIntoConvTranspose,
    FoldAffineIntoGemm,
    FoldAffineIntoMatMul,
    *FOLD_LINEAR,
    FoldAffineBehindLayer,  # again: a weight that two layers shared may have one reader by now
    FoldAffineBehindBranches,
    FoldSumIntoConv,  # again: what stood in front of some branches only may be gone
    *BEFORE_NORM,  # again: what a fold left behind
)
#: What no layer took, once all norms have their own scale and shift.
LOWER_AFFINE: tuple[type[Rule], ...] = (LowerAffineToBatchNormalization,)
#: The single standard operators first, primitive operators for the rest.
LOWER_TO_STANDARD: tuple[type[Rule], ...] = (
    LowerSkipToStandard,
    LowerGroupNormToStandard,
    LowerRMSNormToStandard,
    LowerLayerNormToStandard,
    LowerBodyToStandard,
)

#: What runs after canonicalization for each target, stage by stage.
STAGES: dict[str, tuple[tuple[type[Rule], ...], ...]] = {
    "onnxnorm": (CONTRIB, FOLD, FUSE, FUSE_SKIP, BETTER_AS_STANDARD, FOLD_LINEAR, FOLD_FORWARD, LOWER_AFFINE),
    "standard": (CONTRIB, FOLD, FUSE_STANDARD, LOWER_TO_STANDARD, FOLD_LINEAR, FOLD_FORWARD, LOWER_AFFINE),
}


def rule_ids() -> list[str]:
    """The ids of all rules, for ``disable``."""
    ordered = (rule.id for stages in STAGES.values() for stage in stages for rule in stage)
    return list(dict.fromkeys([*ordered, UNSUPPORTED_TYPE]))


@dataclass(frozen=True)
class Result:
    """An optimized or exported model.

    Attributes:
        model: the model.
        decisions: one per norm-related node: what was done to it and by which rule, or why not.
        state: training graphs: name of each state input -> the output that carries its next value.

    """

    model: ir.Model
    decisions: tuple[Decision, ...]
    state: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str], external_data: str | None = None) -> Path | None:
        """Writes the model; nothing is left behind when that fails. See ``onnxnorm.model_file.save_model``."""
        return save_model(self.model, path, external_data)

    def explain(self) -> str:
        """The decisions, one line each."""
        return "\n".join(map(str, self.decisions)) or "no normalization in the model"


def optimize(
    model: str | os.PathLike[str] | ir.Model | onnx.ModelProto | Any,
    *,
    target: Target = "onnxnorm",
    provider: Provider = "cpu",
    disable: Iterable[str] = (),
    verify: bool = False,
) -> Result:
    """Folds and fuses the normalizations of an ONNX model.

    Args:
        model: a path, an ``onnx_ir.Model`` or an ``onnx.ModelProto``; not changed.
        target: "onnxnorm" (custom ops that carry function bodies) or "standard" (ai.onnx operators only).
        provider: what lowering is tuned for, "cpu" or "cuda"; the file runs on every provider all the same.
        disable: ids of rules to leave out, see ``rule_ids()``.
        verify: run each rewrite's before and after in float64 on sampled inputs, and take back what differs.

    Raises:
        UsageError: an unknown target, provider or rule id.
        ModelError: the model cannot be used; the message names the file, the node and what would be right.

    """
    check_options(target, provider, disable)
    register_schemas()
    with uncollected():
        loaded = load_model(model)
    try:
        refuse_compiled(loaded.metadata_props)
        with uncollected():
            return run_pipeline(loaded, target=target, provider=provider, disable=disable, verify=verify)
    except ModelError as error:
        if isinstance(model, str | os.PathLike):
            raise ModelError(f"{os.fspath(model)}: {error}") from None
        raise


def check_options(target: str, provider: str, disable: Iterable[str]) -> None:
    """UsageError for an unknown target, provider or rule id."""
    if target not in STAGES:
        raise UsageError(f"target is {target!r}; it must be one of {', '.join(map(repr, STAGES))}")
    if provider not in get_args(Provider):
        raise UsageError(f"provider is {provider!r}; it must be one of {', '.join(map(repr, get_args(Provider)))}")
    if isinstance(disable, str):
        raise UsageError(f"disable is the string {disable!r}; it must be a list of rule ids")
    unknown = [name for name in disable if name not in rule_ids()]
    if unknown:
        raise UsageError(f"there is no rule {unknown[0]!r} to disable; there are {', '.join(rule_ids())}")


def run_pipeline(
    model: ir.Model, *, target: str, provider: str = "cpu", disable: Iterable[str] = (), verify: bool = False
) -> Result:
    """Canonicalize, fold, fuse, lower, attach bodies; changes ``model``, or leaves it and gives another one.

    Calls of functions are inlined where that ends in a fold or a fusion that the functions by themselves do not have.
    """

    def run(given: ir.Model) -> Result:
        return _run(given, target, provider, frozenset(disable), verify)

    inlined = model.clone() if own_functions(model) else model
    if inlined is model or not inline_functions(inlined):
        return run(model)
    best = run(inlined)
    if not _changes_a_norm(best):
        return run(model)
    left = run(model)
    again = left.model.clone()
    return best if inline_functions(again) and _changes_a_norm(run(again)) else left


def _changes_a_norm(result: Result) -> bool:
    """Whether a rule folded or fused one, whatever became of that later."""
    done = (
        item.rule or "" for item in result.decisions if item.action in (Action.FOLDED, Action.FUSED, Action.LOWERED)
    )
    return any(rule.startswith(("fold/", "fuse/")) for rule in done)


def _run(model: ir.Model, target: str, provider: str, disable: frozenset[str], verify: bool) -> Result:
    """The pipeline on a model whose functions stay as they are; changes ``model``."""
    lowers_types = provider == "cpu" and UNSUPPORTED_TYPE not in disable
    interface = Interface(model)
    contrib = holds_contrib(model) and (target == "standard" or provider == "cpu")
    if contrib:
        raise_opset(model, 17)  # which has LayerNormalization
    elif uses_onnxnorm(model):
        raise_opset(model, MIN_OPSET)
    check_form(model)
    clean(model)
    check_nodes(model)
    left_out = disable | _beyond(model, target)
    if lowers_types:
        widen_statistics(model)
    engine = Engine(model, verify_replacement if verify else None)
    for stage in STAGES[target]:
        engine.run(_instances([rule for rule in stage if rule.id not in left_out], target, provider))
        if (stage is CONTRIB and contrib) or (stage in (CONTRIB, FUSE) and norms_with_channels_last(model)):
            cancel_transposes(model)
    decisions = engine.account()
    remove_unused(model)  # which are no readers
    give_outputs(model)
    clean(model, again=True)
    if lowers_types and holds_lowered_types(model):
        decisions = with_lowered(decisions, lower_unsupported_types(model))
        clean(model, again=True)
    if uses_onnxnorm(model):
        raise_opset(model, MIN_OPSET)
    attach_function_bodies(model)
    interface.restore(model)
    return Result(model, tuple(decisions), read_state(model))


def _beyond(model: ir.Model, target: str) -> set[str]:
    """Ids of the rules that make ops which the model's opset is too old for; standard operators do not raise it."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    enough = opset >= MIN_OPSET if target == "standard" else can_have_opset(model, MIN_OPSET)
    return set() if enough else {rule.id for rule in FUSE}


def _instances(stage: Sequence[type[Rule]], target: str, provider: str) -> list[Rule]:
    return [rule(target, provider) if issubclass(rule, ChoosingRule) else rule() for rule in stage]
