"""Which operators of the standard domain ONNX Runtime's CPU provider runs in bfloat16 and in float64.

The one table of that, true for every supported ONNX Runtime (1.20 to 1.31 were asked): what an old one lacks counts as
lacking. ``python -m onnxnorm.passes.lower.kernels`` compares it with the installed one and exits with 1 where that runs
less than the table says. float16 needs no table: ONNX Runtime itself casts where it has no kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

#: Operator -> the opset since which there is a bfloat16 kernel; all others have none. They move data, but for a few.
BFLOAT16_SINCE: dict[str, int] = {
    **dict.fromkeys(("Cast", "Concat", "ConstantOfShape", "Flatten", "Identity", "Reshape", "Shape", "Transpose"), 1),
    **dict.fromkeys(("Slice", "Split", "Squeeze", "Unsqueeze"), 1),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"), 1),
    **dict.fromkeys(("Compress", "ReverseSequence", "Shrink", "Sign"), 1),
    **dict.fromkeys(("If", "Loop", "Scan", "Optional", "OptionalGetElement"), 1),
    # No kernels of their own: a constant is an initializer, CastLike becomes Cast.
    **dict.fromkeys(("Constant", "CastLike"), 1),
    "IsInf": 20,
    "IsNaN": 20,
}

#: They have a float64 kernel, which says at run time that it does not do that.
_STOPS_IN_FLOAT64 = ("GRU", "LSTM")
#: Operators without a float64 kernel that do not fall apart into ones that have it, either.
NO_FLOAT64: frozenset[str] = frozenset(
    {
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan"),
        *("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool"),
        *("Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Selu", "Softplus", "Softsign"),
        *("Col2Im", "Det", "Hardmax", "InstanceNormalization", "LRN", "MaxUnpool", "Mean", "Resize", "RNN"),
        *("ThresholdedRelu", *_STOPS_IN_FLOAT64),
    }
)


def runs_bfloat16(op_type: str, opset: int, reduction: str = "none") -> bool:
    """Whether every supported ONNX Runtime runs that operator in bfloat16 on the CPU.

    The scattering operators have kernels, which stop at run time when they are to add or multiply.
    """
    since = BFLOAT16_SINCE.get(op_type)
    return since is not None and opset >= since and reduction == "none"


#: Operators of which some inputs take bfloat16 while a kernel is not asked for it: they hold tensors, or are expanded.
_WITHOUT_KERNEL = frozenset({"Constant", "CastLike"})


def installed_kernels(dtype: str) -> dict[str, list[tuple[int, int]]]:
    """Operator -> ranges of opsets in which the installed ONNX Runtime has a CPU kernel for ``tensor(dtype)``.

    Raises:
        ImportError, AttributeError: ONNX Runtime is not installed, or built without its list of kernels.

    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, list[tuple[int, int]]] = {}
    for kernel in state.get_all_opkernel_def():
        types = [item for allowed in kernel.type_constraints.values() for item in allowed]
        held = f"tensor({dtype})" in types or f"seq(tensor({dtype}))" in types
        if kernel.provider == "CPUExecutionProvider" and kernel.domain in ("", "ai.onnx") and held:
            found.setdefault(kernel.op_name, []).append(tuple(kernel.version_range))
    return found


def problems(newest: int) -> Iterator[str]:
    """Where the installed ONNX Runtime runs less, up to opset ``newest``, than the table says."""
    import onnx.defs

    found = installed_kernels("bfloat16")
    for op_type, since in BFLOAT16_SINCE.items():
        if op_type in _WITHOUT_KERNEL:
            continue
        for opset in range(max(since, 13), newest + 1):
            known = onnx.defs.has(op_type, opset, "")
            if known and not any(low <= opset <= high for low, high in found.get(op_type, ())):
                yield f"{op_type}: no bfloat16 kernel for opset {opset}, where the table has one"


def main() -> int:
    """Prints the differences; 0 when there are none."""
    from onnxnorm.runtime.environment import newest_opset

    lines = list(problems(newest_opset()))
    print("\n".join(lines) or "the installed ONNX Runtime has every kernel of the table")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
