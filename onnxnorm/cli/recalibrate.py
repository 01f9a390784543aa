"""onnxnorm recalibrate: measure the statistics of a training graph on new data, then fold them. Needs no PyTorch.

The model is one that was exported with mode="train". Several files of one input are one after the other.
Example: onnxnorm recalibrate training.onnx --data x.npy -o model.onnx --batch-size 64 --explain
"""

from __future__ import annotations

import argparse

from onnxnorm.cli._common import add_rewrite_arguments
from onnxnorm.cli.optimize import report
from onnxnorm.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, data, output."""
    parser.add_argument("model", help="the training graph, an .onnx file")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        metavar="[NAME=]FILE",
        help=".npy files with items along axis 0, named by the input where the model has several; or .npz files with "
        "an array for each input",
    )
    parser.add_argument("-o", "--output", required=True, help="the .onnx file to write")
    parser.add_argument("--batch-size", type=int, help="items in a batch; by default as many as the export's example")
    parser.add_argument(
        "--momentum",
        default="cumulative",
        help="cumulative (forget the old statistics; each batch has equal weight) or graph (as in training)",
    )
    parser.add_argument("--keep-training", action="store_true", help="write the training graph with its new state")
    add_rewrite_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures, optimizes and writes."""
    from onnxnorm.recalibration.recalibrate import recalibrate

    result = recalibrate(
        arguments.model,
        _data(arguments.data),
        batch_size=arguments.batch_size,
        momentum=arguments.momentum,
        keep_training=arguments.keep_training,
        target=arguments.target,
        provider=arguments.provider,
        disable=arguments.disable,
        verify=arguments.verify,
    )
    result.save(arguments.output, arguments.external_data)
    report(result, arguments)
    return 0


def _data(items: list[str]) -> list[str] | list[dict[str, str]]:
    """Files one after the other; named ones side by side, the first of each input first."""
    named: dict[str, list[str]] = {}
    for item in items:
        name, separator, path = item.rpartition("=")
        named.setdefault(name if separator else "", []).append(path)
    if "" in named:
        if len(named) > 1:
            raise UsageError(f"--data {named[''][0]} has no name while others have; write NAME={named[''][0]}")
        return named[""]
    counts = {name: len(paths) for name, paths in named.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError(f"--data gives the inputs different numbers of files: {shown}")
    return [dict(zip(named, paths, strict=True)) for paths in zip(*named.values(), strict=True)]
