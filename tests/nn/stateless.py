"""What the tests of norms without state share: parameters, data, and what holds for each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

ALL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HALF = (torch.float16, torch.bfloat16)


def data(shape: Sequence[int], seed: int = 1) -> torch.Tensor:
    """Float64, mean 0.5 and standard deviation 2."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.5


def filled(module: nn.Module, seed: int = 0) -> Any:
    """The module in float64 with random parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def assert_same_values_and_gradients(
    mine: nn.Module, other: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, parameters: Sequence[nn.Parameter]
) -> None:
    """``other`` computes the same of x, and the same gradients of x and of its own ``parameters``."""
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, want = mine(first), other(second)
    torch.testing.assert_close(y, want, rtol=1e-11, atol=1e-12)
    weights = data(x.shape, 5)
    given = torch.autograd.grad((y * weights).sum(), [first, *mine.parameters()])
    wanted = torch.autograd.grad((want * weights).sum(), [second, *parameters])
    torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-10)


def assert_half_types_compute_in_float32(module: nn.Module, shape: Sequence[int]) -> None:
    """On values whose squares overflow in float16."""
    for dtype in HALF:
        norm, x = copy.deepcopy(module).to(dtype), (data(shape) * 200).to(dtype)
        y = norm(x)
        assert y.dtype == dtype
        truth = copy.deepcopy(norm).double()(x.double())
        assert (y.double() - truth).abs().max() <= 4 * torch.finfo(dtype).eps * truth.abs().max()


def assert_one_operator(module: nn.Module, x: torch.Tensor, operator: str) -> None:
    """``torch.export`` keeps the norm as one call, right for another batch size."""
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [f"onnxnorm.{operator}.default"]
    other = data((7, *x.shape[1:])).to(x.dtype)
    torch.testing.assert_close(program.module()(other), module(other))


def attributes_of(model: Any) -> dict[str, Any]:
    """The attributes of the model's only node."""
    import onnx

    (node,) = model.graph.node
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
