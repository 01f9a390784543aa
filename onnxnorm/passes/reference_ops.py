"""Operators that the ONNX reference evaluator gets wrong, for running graphs in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as _ConvTranspose

from onnxnorm.spec.record import activate


class ConvTranspose(_ConvTranspose):
    """ConvTranspose with groups: the evaluator's own cuts the weight along the wrong axis, so each group runs alone."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, x: Any, w: Any, b: Any = None, *, group: int | None = None, **attributes: Any
    ) -> tuple[Any]:
        groups = group or 1
        per_group = w.shape[1]
        parts = []
        for index, (x_part, w_part) in enumerate(
            zip(np.split(x, groups, axis=1), np.split(w, groups, axis=0), strict=True)
        ):
            bias = None if b is None else b[index * per_group : (index + 1) * per_group]
            result = super()._run(x_part, w_part, bias, group=1, **attributes)  # type: ignore[no-untyped-call]
            parts.append(result[0])
        return (np.concatenate(parts, axis=1),)


class Gelu(OpRun):
    """The exact form in float64: the evaluator's own takes sqrt(2) in float32."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, x: Any, approximate: str | None = None
    ) -> tuple[Any]:
        if approximate == "tanh":
            return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),)
        return (activate(x, "gelu"),)


REFERENCE_OPS = [ConvTranspose, Gelu]
