"""The norms as PyTorch users write them: the operator of ``torch.nn.functional`` where there is one, else what
onnxnorm.nn or the paper's public implementation does. Used eagerly, compiled, and exported.

A norm without an entry here is measured all the same, without its PyTorch rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import onnxnorm.nn  # noqa: F401  (defines operators)

Form = Callable[..., Tensor]


def torch_form(op: str, attributes: Mapping[str, Any]) -> Callable[..., tuple[Tensor, ...]] | None:
    """A function of the op's inputs that returns its outputs, contiguous; None when there is no PyTorch form."""
    base = op.removeprefix("Skip")
    form = FORMS.get(base)
    if form is None:
        return None
    chosen = form

    def whole(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        skip: tuple[Tensor, ...] = ()
        if base != op:
            x = x + parameters[0]
            skip, parameters = (x,), parameters[1:]
        if not attributes.get("channels_last"):
            return chosen(attributes, x, *parameters).contiguous(), *skip
        return chosen(attributes, x.movedim(-1, 1), *parameters).movedim(1, -1).contiguous(), *skip

    return whole


class FormModule(torch.nn.Module):
    """A form with its parameters: a module of X (and skip).

    Args:
        function: what ``torch_form`` returned.
        parameters: the op's inputs without X and skip.

    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.function = function
        self.count = len(parameters)
        for index, value in enumerate(parameters):
            self.register_buffer(f"parameter_{index}", value)

    def forward(self, X: Tensor, *skip: Tensor) -> tuple[Tensor, ...]:
        """(X, skip) -> (Y, sum)."""
        parameters = [self.get_buffer(f"parameter_{index}") for index in range(self.count)]
        return self.function(X, *skip, *parameters)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


def _act(attributes: Mapping[str, Any], y: Tensor, name: str = "activation") -> Tensor:
    return _ACTIVATIONS[attributes.get(name, "none")](y)


def _spread(parameter: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...)."""
    return parameter.reshape(1, -1, *[1] * (x.dim() - 2))


def _positions(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _group_norm(attributes: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return _act(attributes, F.group_norm(x, attributes["num_groups"], scale, bias, attributes["epsilon"]))


def _axes_last(attributes: Mapping[str, Any], x: Tensor, norm: Callable[[Tensor, list[int]], Tensor]) -> Tensor:
    """PyTorch's norms take trailing axes, so others are moved there and back."""
    axes = sorted(axis % x.dim() for axis in attributes["axes"])
    last = list(range(x.dim() - len(axes), x.dim()))
    sizes = [x.shape[axis] for axis in axes]
    if axes == last:
        return _act(attributes, norm(x, sizes))
    return _act(attributes, norm(x.movedim(axes, last), sizes).movedim(last, axes))


def _layer_norm(attributes: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return _axes_last(attributes, x, lambda y, sizes: F.layer_norm(y, sizes, scale, bias, attributes["epsilon"]))


def _rms_norm(attributes: Mapping[str, Any], x: Tensor, scale: Tensor) -> Tensor:
    return _axes_last(attributes, x, lambda y, sizes: F.rms_norm(y, sizes, scale, attributes["epsilon"]))


def _switchable_norm(attributes: Mapping[str, Any], x: Tensor, *parameters: Tensor) -> Tensor:
    return _act(attributes, torch.ops.onnxnorm.switchable_norm(x, *parameters, attributes["epsilon"]))


def _batch_instance_norm(attributes: Mapping[str, Any], x: Tensor, *parameters: Tensor) -> Tensor:
    return _act(attributes, torch.ops.onnxnorm.batch_instance_norm(x, *parameters, attributes["epsilon"]))


def _filter_response_norm(attributes: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor, tau: Tensor) -> Tensor:
    """As timm's FilterResponseNormTlu2d."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    rms = wide.square().mean(_positions(x), keepdim=True)
    y: Tensor = (wide * (rms + attributes["epsilon"]).rsqrt()).to(x.dtype) * _spread(scale, x) + _spread(bias, x)
    return torch.maximum(_act(attributes, y), _spread(tau, x))


def _evo_norm_s0(attributes: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor, v: Tensor) -> Tensor:
    """As timm's EvoNorm2dS0."""
    groups = attributes["num_groups"]
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    grouped = wide.reshape(x.shape[0], groups, -1)
    var = grouped.var(2, unbiased=False, keepdim=True)
    deviation = (var + attributes["epsilon"]).sqrt().expand(grouped.shape).reshape(x.shape).to(x.dtype)
    y: Tensor = x * (x * _spread(v, x)).sigmoid() / deviation
    return y * _spread(scale, x) + _spread(bias, x)


def _global_response_norm(attributes: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As timm's GlobalResponseNorm, the activation in front of it included."""
    z = _act(attributes, x, "input_activation")
    size = torch.linalg.vector_norm(z, dim=_positions(x), keepdim=True)
    share = size / (size.mean(1, keepdim=True) + attributes["epsilon"])
    return _act(attributes, z + torch.addcmul(_spread(bias, x), _spread(scale, x), z * share))


def _l2_norm(attributes: Mapping[str, Any], x: Tensor, scale: Tensor) -> Tensor:
    axes = sorted(axis % x.dim() for axis in attributes["axes"])
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    y = F.normalize(x, 2.0, axes if len(axes) > 1 else axes[0], attributes["epsilon"])  # type: ignore[arg-type]
    return _act(attributes, y * scale.reshape(shape))


FORMS: dict[str, Form] = {
    "GroupNorm": _group_norm,
    "LayerNorm": _layer_norm,
    "RMSNorm": _rms_norm,
    "SwitchableNorm": _switchable_norm,
    "BatchInstanceNorm": _batch_instance_norm,
    "FilterResponseNorm": _filter_response_norm,
    "EvoNormS0": _evo_norm_s0,
    "GlobalResponseNorm": _global_response_norm,
    "L2Norm": _l2_norm,
}
