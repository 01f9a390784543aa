"""onnxnorm run: run a model on arrays from .npy files.

Example: onnxnorm run model.onnx --input x=x.npy --output out.npz
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from onnxnorm.cli._common import parse_pairs, print_json, print_table
from onnxnorm.errors import ModelError, OnnxnormError, UsageError, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, inputs, output, provider."""
    parser.add_argument("model", help="the .onnx file")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]FILE.npy",
        help="an input array; the name may be left out when the model has one input. bfloat16 inputs are taken as "
        "float32 arrays that bfloat16 holds exactly, or as NumPy's two-byte raw type",
    )
    parser.add_argument("--output", metavar="FILE.npz", help="write all outputs to this file; bfloat16 as float32")
    parser.add_argument("--provider", action="append", default=[], help="cpu, cuda or ONNX Runtime's own name")
    parser.add_argument("--no-library", action="store_true", help="leave the native library out: run function bodies")


def run(arguments: argparse.Namespace) -> int:
    """Runs once and writes or summarizes the outputs."""
    from onnxnorm.runtime.environment import available_provider
    from onnxnorm.runtime.run_files import load_inputs, run_model
    from onnxnorm.runtime.session import InferenceSession

    if not Path(arguments.model).is_file():
        raise ModelError(f"{arguments.model}: no such file")
    try:
        session = InferenceSession(
            arguments.model,
            _silent_options(),
            providers=[available_provider(name) for name in arguments.provider or ["cpu"]],
            library=False if arguments.no_library else None,
        )
    except OnnxnormError:
        raise
    except Exception as error:
        raise ModelError(f"{arguments.model} cannot be loaded: {one_line(error)}") from None
    feeds = load_inputs(session, parse_pairs(arguments.input, "input"))
    outputs = run_model(session, feeds, arguments.model)
    if arguments.output:
        _save(outputs, Path(arguments.output))
    _report(outputs, arguments)
    return 0


def _silent_options() -> Any:
    """Session options under which ONNX Runtime logs nothing: what goes wrong is raised, and told in one line."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def _save(outputs: dict[str, Any], path: Path) -> None:
    """Writes the .npz under a temporary name first, so that a failure leaves no half file."""
    import numpy as np

    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder; make it before writing {path.name}")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".onnxnorm-", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **outputs)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _report(outputs: dict[str, Any], arguments: argparse.Namespace) -> None:
    import numpy as np

    rows = []
    for name, array in outputs.items():
        numbers = array.astype(np.float64) if array.size and array.dtype.kind in "fiub" else np.zeros(0)
        spread = f"{numbers.min():.6g} .. {numbers.max():.6g}" if numbers.size else "-"
        rows.append((name, array.dtype, "x".join(map(str, array.shape)), spread))
    if arguments.json:
        keys = ("name", "dtype", "shape", "range")
        outputs_json = [dict(zip(keys, map(str, row), strict=True)) for row in rows]
        print_json({"output": arguments.output, "outputs": outputs_json})
        return
    print_table("outputs", ("name", "dtype", "shape", "range"), rows)
    if arguments.output:
        print(f"written to {arguments.output}")
