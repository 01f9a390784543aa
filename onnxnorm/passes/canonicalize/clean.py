"""Takes out what hides a normalization: unknown types, constant subgraphs, Identity, dead nodes.

This is work for kept libraries, not for rules of ours: shape inference and clean-up are onnx_ir's passes, constant
folding is onnxscript's (both by the people who keep the PyTorch exporter). Weights folded here are transposed, reshaped
or cast; what is computed are small parameters, such as the softmax over switchable norm's three weights.
"""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from onnxnorm.spec.record import DOMAIN

logger = logging.getLogger(__name__)


def clean(model: ir.Model) -> None:
    """Changes ``model``; bodies of onnxnorm ops are dropped, since they are made anew at the end."""
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    common.ShapeInferencePass()(model)
    try:
        optimizer.fold_constants(model, onnx_shape_inference=False)
    except RuntimeError as error:  # an operator that the folder mishandles stays as it is; no rule needs it folded
        logger.warning("constant folding stopped: %s", error)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
