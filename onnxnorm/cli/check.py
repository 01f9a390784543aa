"""onnxnorm check: compare an ONNX file with the PyTorch module that it was exported from.

The module is named as for export. Both are measured against a float64 run of the module. A training graph is checked
with --mode train: the outputs of several steps, and the state after them.
Example: onnxnorm check net.py:make net.onnx
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Module, model, how strict."""
    parser.add_argument("module", help="timm:NAME, package.module:NAME or file.py:NAME")
    parser.add_argument("model", help="the .onnx file")
    parser.add_argument("--mode", default="eval", help="eval, or train for a training graph")
    parser.add_argument("--steps", type=int, default=3, help="how many steps a training graph runs")
    parser.add_argument("--provider", action="append", default=[], help="cpu, cuda or ONNX Runtime's name; repeatable")
    parser.add_argument("--factor", type=float, default=4.0, help="how many times farther than PyTorch it may be")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated inputs")
    parser.add_argument("--samples", type=int, default=3, help="number of generated inputs")
    parser.add_argument("--weights", metavar="FILE", help="a state_dict (.pt) to load into the module first")


def run(arguments: argparse.Namespace) -> int:
    """Checks; 0 when everything passed, 1 when not."""
    from onnxnorm.parity import check
    from onnxnorm.parity.module_spec import load_module

    module, example = load_module(arguments.module)
    if arguments.weights:
        _load_weights(module, arguments.weights)
    report = check(
        module,
        arguments.model,
        example,
        providers=arguments.provider or None,
        mode=arguments.mode,
        factor=arguments.factor,
        seed=arguments.seed,
        samples=arguments.samples,
        steps=arguments.steps,
    )
    print(report.to_json() if arguments.json else report)
    return report.exit_status


def _load_weights(module: object, path: str) -> None:
    import torch

    from onnxnorm.errors import UsageError, one_line

    assert isinstance(module, torch.nn.Module)
    try:
        module.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except Exception as error:
        raise UsageError(f"{path} does not fit {type(module).__name__}: {one_line(error, 300)}") from None
