"""Which of ONNX Runtime's own operators (com.microsoft) its CPU provider has kernels for, in which element types.

The one table of that, true for every supported ONNX Runtime (1.20 to 1.31 were asked): what an old one lacks counts as
lacking. ``python -m onnxnorm.passes.lower.contrib_kernels`` compares it with the installed one and exits with 1 where
that runs less than the table says. float16 runs where float32 does: ONNX Runtime casts where it has no kernel. bfloat16
does not, in any of them, as it casts no bfloat16.

Left out is what a kernel says at run time only: MultiHeadAttention takes no packed weights on the CPU (see
``packed_attention``), and Skip(Simplified)LayerNormalization gives no mean and no inv_std_var in 1.20.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import onnx_ir as ir

from onnxnorm.passes.contrib import CONTRIB

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
#: Operator -> element types of the data for which there is a kernel.
CPU_TYPES: dict[str, frozenset[ir.DataType]] = {
    **dict.fromkeys(("Attention", "BiasGelu", "FastGelu", "FusedMatMul", "Gelu"), frozenset({_FLOAT})),
    **dict.fromkeys(("MultiHeadAttention", "QuickGelu"), frozenset({_FLOAT})),
    **dict.fromkeys(("GroupQueryAttention", "RotaryEmbedding"), frozenset({_FLOAT, _HALF})),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), frozenset({_FLOAT, _HALF})),
    **dict.fromkeys(("BiasAdd", "BiasSplitGelu", "GroupNorm", "NhwcConv", "SkipGroupNorm"), frozenset()),
}


def runs_on_cpu(op_type: str, dtype: ir.DataType | None) -> bool:
    """Whether every supported ONNX Runtime runs the operator in that type on the CPU; true for what it does not hold.

    An element type that is not known counts as float32.
    """
    types = CPU_TYPES.get(op_type)
    if types is None:
        return True
    return bool(types) and (dtype is None or dtype in types or (dtype == _HALF and _FLOAT in types))


def installed_kernels() -> dict[str, set[str]]:
    """Operator of com.microsoft -> element types for which the installed ONNX Runtime has a CPU kernel.

    Raises:
        ImportError, AttributeError: ONNX Runtime is not installed, or built without its list of kernels.

    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, set[str]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain == CONTRIB:
            types = kernel.type_constraints.get("T", [])
            found.setdefault(kernel.op_name, set()).update(types)
    return found


def problems() -> Iterator[str]:
    """Where the installed ONNX Runtime runs less than the table says."""
    found = installed_kernels()
    names = {_FLOAT: "tensor(float)", _HALF: "tensor(float16)"}
    for op_type, types in CPU_TYPES.items():
        for dtype in types:
            if names[dtype] not in found.get(op_type, ()):
                yield f"{op_type}: no kernel for {names[dtype]}, where the table has one"


def main() -> int:
    """Prints the differences; 0 when there are none."""
    lines = list(problems())
    print("\n".join(lines) or "the installed ONNX Runtime has every kernel of the table")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
