"""fuse/skip: norm(x + residual) becomes the norm's skip form, which gives the sum as its second output.

    sum = x + residual;   y = norm(sum)   =   y, sum = Skip<norm>(x, residual)

for every onnxnorm op that has a skip form. Other readers of the sum, and a graph output that it is, get it from there.
A constant is no residual.

Refused:
    1. The operands have not surely the same shape: static sizes, or sizes of the same name (a bias that broadcasts is
       no residual). Their element types differ or are not known.
    2. The addition stands in an outer graph.
    3. A parameter of the norm is computed, so that it may need the sum.
    4. The norm is about to become its standard operator, into which the provider fuses the addition itself: the table
       in choice.py.
    5. ONNX Runtime adds the residual in the convolution that an operand comes from, which only the addition reads: the
       table in choice.py.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from onnxnorm.norms import all_specs
from onnxnorm.passes.decision import Action
from onnxnorm.passes.graph import constant_tensor, is_op, node_name, sole_consumer
from onnxnorm.passes.lower.choice import STANDARD, ChoosingRule, convolution_adds
from onnxnorm.passes.lower.layer_norm_to_standard import LowerLayerNormToStandard
from onnxnorm.passes.rule import Context, Match, Refusal, Replacement
from onnxnorm.spec.record import DOMAIN

#: The norms that have a skip form.
NORMS = frozenset(name for name in all_specs() if f"Skip{name}" in all_specs())


class FuseSkip(ChoosingRule):
    """See the module."""

    id: ClassVar[str] = "fuse/skip"
    operators: ClassVar[frozenset[str]] = NORMS
    action: ClassVar[Action] = Action.FUSED

    def match(self, node: ir.Node, context: Context) -> Match | None:
        """A norm whose input is the sum of two tensors that are both computed."""
        if node.domain != DOMAIN or node.op_type not in NORMS or node.inputs[0] is None:
            return None
        add = residual_addition(node.inputs[0])
        return Match({"add": add, "norm": node}) if add is not None else None

    def check(self, match: Match, context: Context) -> None:
        """Reasons 1 to 5 of the module."""
        add, norm = match["add"], match["norm"]
        if add.graph is not context.graph:
            raise Refusal("the addition stands in an outer graph")
        _check_operands(add)
        for value in norm.inputs[1:]:
            if value is not None and value.producer() is not None and not is_op(value.producer(), "Constant"):
                raise Refusal("a parameter of the norm is computed", parameter=value.name)
        self._check_choice(match, context)

    def _check_choice(self, match: Match, context: Context) -> None:
        """Reasons 4 and 5: where ONNX Runtime does better with the addition by itself."""
        add, norm = match["add"], match["norm"]
        if self._becomes_standard(norm, context):
            operator = STANDARD[norm.op_type].operator
            raise Refusal(f"ONNX Runtime fuses the addition into {operator} itself", provider=self.provider)
        x = add.outputs[0]
        if x.dtype is None or not convolution_adds(x, self.provider):
            return
        for value in add.inputs:
            source = value.producer() if value is not None else None
            if source is not None and is_op(source, "Conv") and sole_consumer(source.outputs[0]) is add:
                raise Refusal("ONNX Runtime adds the residual in the convolution", conv=node_name(source))

    def _becomes_standard(self, norm: ir.Node, context: Context) -> bool:
        """Whether a later rule turns the norm into its standard operator."""
        return LowerLayerNormToStandard(self.target, self.provider).match(norm, context) is not None

    def rewrite(self, match: Match, context: Context) -> Replacement:
        """The skip form in the place of the addition, since others may read the sum before the norm does."""
        add, norm = match["add"], match["norm"]
        total = add.outputs[0]
        shared = total.is_graph_output() or any(use.node is not norm for use in total.uses())
        new = ir.node(
            f"Skip{norm.op_type}",
            [*add.inputs, *norm.inputs[1:]],
            dict(norm.attributes),
            domain=DOMAIN,
            num_outputs=2 if shared else 1,
            name=norm.name,
        )
        outputs = {norm.outputs[0]: new.outputs[0]} | ({total: new.outputs[1]} if shared else {})
        return Replacement([new], outputs, [norm, add], norm, into=node_name(norm), before=[add, norm])


def residual_addition(x: ir.Value) -> ir.Node | None:
    """The addition of two tensors that makes ``x``, None where there is none; a constant is no residual."""
    add = x.producer()
    if add is None or not is_op(add, "Add") or any(constant_tensor(value) is not None for value in add.inputs):
        return None
    return add


def _check_operands(add: ir.Node) -> None:
    """Refusal (reason 1) unless both operands are tensors of one shape and element type."""
    x, skip = add.inputs
    assert x is not None
    assert skip is not None
    if x.dtype is None or x.dtype != skip.dtype:
        raise Refusal("the operands differ in element type or have none that is known", X=x.dtype, skip=skip.dtype)
    if not same_shape(x.shape, skip.shape):
        raise Refusal("the operands have not surely the same shape", X=str(x.shape), skip=str(skip.shape))


def same_shape(first: ir.Shape | None, second: ir.Shape | None) -> bool:
    """Whether both shapes are known and equal: static sizes, or sizes of the same name."""
    if first is None or second is None or len(first) != len(second):
        return False
    for have, want in zip(first, second, strict=True):
        name = have.value if isinstance(have, ir.SymbolicDim) else have
        if name is None or name != (want.value if isinstance(want, ir.SymbolicDim) else want):
            return False
    return True
