"""onnxnorm export: export a PyTorch module to ONNX with its normalizations folded and fused.

The module is named as timm:NAME, package.module:NAME or file.py:NAME, where NAME is a torch.nn.Module or a callable
that returns a module or (module, args).
Example: onnxnorm export net.py:make -o net.onnx --input x=1x3x224x224 --dynamic x=0,2,3
"""

from __future__ import annotations

import argparse
from typing import Any

from onnxnorm.cli._common import add_rewrite_arguments, parse_pairs
from onnxnorm.cli.optimize import report
from onnxnorm.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Module, output, example inputs."""
    parser.add_argument("module", help="timm:NAME, package.module:NAME or file.py:NAME")
    parser.add_argument("-o", "--output", required=True, help="the .onnx file to write")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an example input of forward, such as 1x3x224x224 or ids=2x16:int64; repeatable, in order",
    )
    parser.add_argument(
        "--dynamic", action="append", default=[], metavar="NAME=AXES", help="dynamic axes of an input, such as x=0,2,3"
    )
    parser.add_argument(
        "--mode",
        choices=("eval", "train"),
        default="eval",
        help="train: batch statistics by the module's own training flags, every updated buffer as explicit state",
    )
    parser.add_argument("--opset", type=int, help="18 to the newest that the installed ONNX Runtime loads")
    add_rewrite_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exports and writes."""
    from onnxnorm.exporter.export import export
    from onnxnorm.parity.module_spec import load_module

    module, example = load_module(arguments.module)
    args, kwargs = _example_inputs(arguments.input) if arguments.input else (example, {})
    if args is None:
        raise UsageError(f"{arguments.module} comes without example inputs; give --input, such as --input 1x3x224x224")
    dynamic = _dynamic_shapes(module, args, kwargs, parse_pairs(arguments.dynamic, "dynamic"))
    result = export(
        module,
        args,
        kwargs,
        mode=arguments.mode,
        opset=arguments.opset,
        target=arguments.target,
        provider=arguments.provider,
        dynamic_shapes=dynamic,
        disable=arguments.disable,
        verify=arguments.verify,
    )
    result.save(arguments.output, arguments.external_data)
    report(result, arguments)
    return 0


def _example_inputs(items: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword example tensors from ``[NAME=]SHAPE[:DTYPE]``."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for item in items:
        name, separator, text = item.rpartition("=")
        tensor = _example_tensor(text)
        if separator:
            named[name] = tensor
        elif named:
            raise UsageError(f"--input {item} has no name but stands after one that has")
        else:
            positional.append(tensor)
    return tuple(positional), named


def _example_tensor(text: str) -> Any:
    import torch

    shape_text, _, dtype_text = text.partition(":")
    dtype = getattr(torch, dtype_text or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"--input {text}: {dtype_text!r} is no PyTorch type; use one such as float32 or int64")
    try:
        shape = [int(size) for size in shape_text.split("x")]
    except ValueError:
        raise UsageError(f"--input {text}: {shape_text!r} is no shape; write one such as 1x3x224x224") from None
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.zeros(shape, dtype=dtype)


def _dynamic_shapes(module: Any, args: Any, kwargs: dict[str, Any], axes: dict[str, str]) -> Any:
    """``dynamic_shapes`` for torch.export from ``NAME=AXES`` items, or None."""
    import inspect

    if not axes:
        return None
    from torch.export import Dim

    positional = (args,) if not isinstance(args, tuple) else args
    names = list(inspect.signature(module.forward).parameters)[: len(positional)] + list(kwargs)
    unknown = [name for name in axes if name not in names]
    if unknown:
        raise UsageError(f"--dynamic {unknown[0]}={axes[unknown[0]]}: forward was given {', '.join(names)}")
    shapes: dict[str, Any] = {}
    for name in names:
        text = axes.get(name, "")
        try:
            numbers = [int(axis) for axis in text.split(",") if axis]
        except ValueError:
            raise UsageError(f"--dynamic {name}={text}: axes are numbers such as 0,2,3") from None
        shapes[name] = dict.fromkeys(numbers, Dim.DYNAMIC) or None
    return shapes
