"""Takes out what hides a normalization: unknown types, constant subgraphs, Identity, sequences, dead nodes.

Changes no result, and is therefore no rule. The clean-up of onnxscript and onnx_ir is not used, since it changes
valid models (each has a test): it takes overridable initializers for constants and drops their defaults, gives two
graph outputs one name, makes If branches that return outer values, folds Softmax before opset 13 along the wrong axis,
folds in a function under the caller's opset, and turns a Constant of opset 11 into one that came with opset 12.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxnorm.passes.canonicalize.constants import fold_constants, lift_constants
from onnxnorm.passes.canonicalize.duplicates import share_equal_weights
from onnxnorm.passes.canonicalize.identities import skip_identities
from onnxnorm.passes.canonicalize.joined_shapes import tell_joined_shapes
from onnxnorm.passes.canonicalize.sequences import split_tensors
from onnxnorm.passes.canonicalize.shapes import infer_missing_shapes, infer_shapes
from onnxnorm.passes.canonicalize.sizes import read_sizes_of_inputs
from onnxnorm.passes.canonicalize.unused import remove_unused
from onnxnorm.progress import report
from onnxnorm.spec.record import DOMAIN


def clean(model: ir.Model, *, again: bool = False) -> None:
    """Changes ``model``; bodies of onnxnorm ops are dropped, since they are made anew at the end.

    With ``again`` types and shapes are known but for what rewrites made since.
    """
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    report("types and shapes")
    (infer_missing_shapes if again else infer_shapes)(model)
    skip_identities(model)
    while fold_constants(model) or tell_joined_shapes(model):
        infer_shapes(model)  # a size that was computed tells the shapes behind it, and these may make more constants
        skip_identities(model)  # a constant that was computed may be a 1
    report("constants")
    split_tensors(model)
    share_equal_weights(model)
    read_sizes_of_inputs(model)
    lift_constants(model)
    remove_unused(model)
