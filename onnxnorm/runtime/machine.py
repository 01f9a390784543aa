"""The machine that a compiled model is for, and whether a session runs on it.

ONNX Runtime's convolutions for the CPU keep tensors in blocks of channels whose size hangs on the machine's vector
registers. A file that ``onnxnorm compile`` wrote has that layout in it: where blocks have another size its results are
wrong, without an error from ONNX Runtime, so such a file says what it is for and ``onnxnorm.InferenceSession`` looks.
"""

from __future__ import annotations

import functools
import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxnorm.errors import ModelError
from onnxnorm.runtime.environment import onnxruntime_module

#: Metadata of a compiled model: a Machine as JSON.
COMPILED_KEY = "onnxnorm.compiled_for"
#: Operators of ONNX Runtime on the blocked layout; they stand in no standard and may differ between its versions.
NCHWC_DOMAIN = "com.microsoft.nchwc"
#: Channels of the probe: more than any block has.
_CHANNELS = 128


@dataclass(frozen=True)
class Machine:
    """What a compiled model's results and speed hang on.

    Attributes:
        cpu: the processor's name.
        block: channels in a block of ONNX Runtime's layout, None where it has none on this machine.
        onnxruntime: version of ONNX Runtime.

    """

    cpu: str
    block: int | None
    onnxruntime: str

    def to_json(self) -> str:
        """As the metadata holds it."""
        return json.dumps(asdict(self))


@functools.cache
def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(cpu_name(), block_size(), str(onnxruntime_module().__version__))


def cpu_name() -> str:
    """The processor's name; Linux keeps it where ``platform`` does not look."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def block_size() -> int | None:
    """Channels in a block of ONNX Runtime's layout on this machine; None where it has no such layout.

    Found by bringing a tensor into that layout and looking where its values went: no interface tells the size.
    """
    import numpy as np
    import onnx

    onnxruntime = onnxruntime_module()
    shape = [1, _CHANNELS, 1, 2]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    node = onnx.helper.make_node("ReorderInput", ["x"], ["y"], domain=NCHWC_DOMAIN, channels_last=0)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(NCHWC_DOMAIN, 1)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "probe", [x], [y]), opset_imports=opsets, ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    plain = np.arange(2 * _CHANNELS, dtype=np.float32).reshape(shape)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": plain})
    except Exception:
        return None
    memory = found.reshape(-1)
    # Value 1 is channel 0 at position 1: it comes after the block of channels at position 0.
    block = int(np.flatnonzero(memory == 1)[0])
    blocked = plain.reshape(_CHANNELS // block, block, 2).swapaxes(1, 2) if _CHANNELS % block == 0 else plain
    return block if block > 1 and np.array_equal(blocked.reshape(-1), memory) else None


def compiled_for(metadata: Mapping[str, str]) -> Machine | None:
    """The machine that a model is for by its metadata; None for a model that is not compiled.

    Raises:
        ModelError: the note cannot be read.

    """
    text = metadata.get(COMPILED_KEY)
    if text is None:
        return None
    try:
        noted: dict[str, Any] = json.loads(text)
        block = noted["block"]
        return Machine(str(noted["cpu"]), None if block is None else int(block), str(noted["onnxruntime"]))
    except (ValueError, TypeError, KeyError):
        raise ModelError(f"the metadata {COMPILED_KEY} is {text!r}, which no version of onnxnorm writes") from None


def refuse_compiled(metadata: Mapping[str, str]) -> None:
    """ModelError for a model that is compiled: rules would take its blocked tensors for plain ones."""
    machine = compiled_for(metadata)
    if machine is not None:
        raise ModelError(f"it is compiled for {machine.cpu}; give the model that it was made from")


def check_machine(metadata: Mapping[str, str], model: str) -> None:
    """Refuses a model that would give wrong results on this machine, and warns of one that may be slow.

    Args:
        metadata: the model's.
        model: what messages call it.

    Raises:
        ModelError: it was compiled for blocks of another size.

    """
    wanted = compiled_for(metadata)
    if wanted is None:
        return
    have = this_machine()
    again = "run 'onnxnorm compile' here on the file that it was made from"
    if wanted.block != have.block:
        here = f"blocks of {have.block} channels" if have.block else "no blocked layout"
        raise ModelError(
            f"{model} was compiled for {wanted.cpu}, where ONNX Runtime has blocks of {wanted.block} channels; on this "
            f"machine ({have.cpu}) it has {here}, and the results would be wrong: {again}"
        )
    for what, old, new in (
        ("the processor", wanted.cpu, have.cpu),
        ("onnxruntime", wanted.onnxruntime, have.onnxruntime),
    ):
        if old != new:
            warnings.warn(
                f"{model} was compiled for {what} {old}, and this is {new}: it may be slower than it could be; {again}",
                stacklevel=3,
            )
