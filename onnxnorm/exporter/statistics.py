"""Means, sums and variances of training graphs, right over any number of values.

Batch statistics written by hand (``x.mean((0, 2, 3))``, ``x.var(...)``) run over N * H * W values. PyTorch adds them up
pairwise; ONNX Runtime's reductions over the batch's axis add in one chain of float32, which is off by half at 5e7
values. Here sums over that axis, or over very many values, run in float64 and are rounded once, and a variance is the
mean square of what is centred in float64. Statistics within an item are left in the form that the rules know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

_aten = torch.ops.aten
#: Its annotations know constants of one type only; here a value's type is known when the graph is traced.
op: Any = opset18
_DOUBLE = int(ir.DataType.DOUBLE)
#: ONNX Runtime is within 8 eps below this many values in a row.
_MANY = 1 << 16


def _axes(dim: Any) -> Any:
    """The axes as a constant; nothing is all axes."""
    if dim is None:
        return None
    given = [int(dim)] if isinstance(dim, int) else [int(axis) for axis in dim]
    return op.Constant(value_ints=given) if given else None


def _runs_long(x: Any, dim: Any) -> bool:
    """Whether a reduction runs over the batch's axis or over very many values."""
    sizes = list(x.shape)
    if dim is None or not sizes or not (isinstance(dim, int) or len(dim)):
        return True
    axes = {int(axis) % len(sizes) for axis in ([dim] if isinstance(dim, int) else dim)}
    known = [sizes[axis] for axis in axes if isinstance(sizes[axis], int)]
    return 0 in axes or math.prod(known) >= _MANY


def _wide(x: Any, dim: Any) -> Any:
    return op.Cast(x, to=_DOUBLE) if x.dtype != ir.DataType.DOUBLE and _runs_long(x, dim) else x


def _narrow(y: Any, dtype: ir.DataType) -> Any:
    return y if y.dtype == dtype else op.Cast(y, to=int(dtype))


def _result_type(x: Any, dtype: Any) -> ir.DataType:
    """The type that is asked for: PyTorch's exporter gives it as ONNX's number, -1 for none."""
    if dtype is None or (isinstance(dtype, int) and dtype < 0):
        return ir.DataType(x.dtype)
    return ir.DataType(int(dtype))


def _mean(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = -1) -> Any:
    """``aten::mean``."""
    axes = _axes(dim)
    wide = _wide(x, dim)
    mean = (
        op.ReduceMean(wide, keepdims=int(keepdim)) if axes is None else op.ReduceMean(wide, axes, keepdims=int(keepdim))
    )
    return _narrow(mean, _result_type(x, dtype))


def _sum(x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = -1) -> Any:
    """``aten::sum``; whole numbers are added up as int64, as PyTorch does."""
    target = _result_type(x, dtype)
    if not ir.DataType(x.dtype).is_floating_point():
        target = ir.DataType.INT64 if target == x.dtype else target
    whole = not target.is_floating_point()
    wide = op.Cast(x, to=int(ir.DataType.INT64)) if whole else _wide(x, dim)
    axes = _axes(dim)
    total = (
        op.ReduceSum(wide, keepdims=int(keepdim)) if axes is None else op.ReduceSum(wide, axes, keepdims=int(keepdim))
    )
    if whole:
        return total if target == ir.DataType.INT64 else op.Cast(total, to=int(target))
    return _narrow(total, target)


def _moments(x: Any, dim: Any, correction: float, keepdim: bool) -> tuple[Any, Any]:
    """(variance, mean), in the type in which they are added up."""
    axes = _axes(dim)
    wide = _wide(x, dim)

    def reduce(value: Any, keep: bool) -> Any:
        return (
            op.ReduceMean(value, keepdims=int(keep)) if axes is None else op.ReduceMean(value, axes, keepdims=int(keep))
        )

    centred = op.Sub(wide, reduce(wide, True))
    var = reduce(op.Mul(centred, centred), keepdim)
    if correction:
        count = _count(x, dim)
        left = op.Max(op.Sub(count, _scalar(correction)), _scalar(0.0))
        var = op.Mul(var, op.CastLike(op.Div(count, left), var))
    return var, reduce(wide, keepdim)


def _scalar(value: float) -> Any:
    return op.Constant(value=ir.tensor(np.array(value, np.float64)))


def _count(x: Any, dim: Any) -> Any:
    """How many values go into one result, float64, rank 0."""
    sizes = op.Shape(x)
    if dim is not None and (isinstance(dim, int) or len(dim)):
        rank = len(x.shape)
        axes = [int(axis) % max(rank, 1) for axis in ([dim] if isinstance(dim, int) else dim)]
        sizes = op.Gather(sizes, op.Constant(value_ints=axes)) if rank else sizes
    return op.ReduceProd(op.Cast(sizes, to=_DOUBLE), keepdims=0)


def _share(unbiased: Any) -> float:
    return 1.0 if unbiased is None or unbiased else 0.0


def _corrected(correction: Any) -> float:
    return 1.0 if correction is None else float(correction)


def _var(x: Any, dim: Any, correction: float, keepdim: bool) -> Any:
    return _narrow(_moments(x, dim, correction, keepdim)[0], ir.DataType(x.dtype))


def _std(x: Any, dim: Any, correction: float, keepdim: bool) -> Any:
    return _narrow(op.Sqrt(_moments(x, dim, correction, keepdim)[0]), ir.DataType(x.dtype))


def _var_mean(x: Any, dim: Any, correction: float, keepdim: bool) -> tuple[Any, Any]:
    var, mean = _moments(x, dim, correction, keepdim)
    return _narrow(var, ir.DataType(x.dtype)), _narrow(mean, ir.DataType(x.dtype))


def _std_mean(x: Any, dim: Any, correction: float, keepdim: bool) -> tuple[Any, Any]:
    var, mean = _moments(x, dim, correction, keepdim)
    return _narrow(op.Sqrt(var), ir.DataType(x.dtype)), _narrow(mean, ir.DataType(x.dtype))


def _overloads(compute: Callable[[Any, Any, float, bool], Any]) -> tuple[Callable[..., Any], ...]:
    """The default, ``dim`` and ``correction`` overloads of an operator that gives a variance."""

    def default(x: Any, unbiased: Any = True) -> Any:
        return compute(x, None, _share(unbiased), False)

    def dim(x: Any, dim: Any = None, unbiased: Any = True, keepdim: bool = False) -> Any:
        return compute(x, dim, _share(unbiased), keepdim)

    def correction(x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
        return compute(x, dim, _corrected(correction), keepdim)

    return default, dim, correction


def _default_mean(x: Any, dtype: Any = -1) -> Any:
    return _mean(x, None, False, dtype)


def _default_sum(x: Any, dtype: Any = -1) -> Any:
    return _sum(x, None, False, dtype)


def _table() -> dict[Callable[..., Any], Callable[..., Any]]:
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        _aten.mean.default: _default_mean,
        _aten.mean.dim: _mean,
        _aten.sum.default: _default_sum,
        _aten.sum.dim_IntList: _sum,
    }
    families: Sequence[tuple[Any, Callable[..., Any]]] = (
        (_aten.var, _var),
        (_aten.std, _std),
        (_aten.var_mean, _var_mean),
        (_aten.std_mean, _std_mean),
    )
    for packet, compute in families:
        for overload, function in zip(("default", "dim", "correction"), _overloads(compute), strict=True):
            table[getattr(packet, overload)] = function
    return table


#: PyTorch operator -> translation.
STATISTICS = _table()
