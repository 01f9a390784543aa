"""The candidates of a case: onnxnorm's own ways, ONNX Runtime's, PyTorch's, OpenVINO's, and the copy floor.

ONNX Runtime runs through I/O binding: inputs are bound once, outputs are written into memory that is there already.
Each session has its own pool of ``threads`` threads for one operator, runs operators one after the other, and spins
between them as it does by default.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxnorm.bench.candidate import Candidate, Ready, SameAs, Unavailable, Workbench
from onnxnorm.bench.case import aligned
from onnxnorm.bench.graph import op_model, operators, summary
from onnxnorm.bench.sessions import bound, new_session
from onnxnorm.errors import OnnxnormError
from onnxnorm.runtime.environment import newest_opset
from onnxnorm.runtime.library import library_path, op_table
from onnxnorm.spec.record import DOMAIN

COPY, OURS = "copy", "onnxnorm"


def _copy(bench: Workbench) -> Ready:
    """One thread copies X into a warm buffer: what moving the tensor costs."""
    x = bench.data.inputs[0]
    y = aligned(x.shape, x.dtype)
    return Ready(lambda: np.copyto(y, x), lambda: [y])


def _copy_on_device(bench: Workbench) -> Ready:
    torch, x = _on_device(bench)
    y = torch.empty_like(x[0])

    def run() -> None:
        y.copy_(x[0])
        torch.cuda.synchronize()

    return Ready(run, list)


def _kernel(bench: Workbench) -> Ready:
    """The op, by the native library."""
    case, kind = bench.case, "cuda" if bench.provider == "cuda" else "cpu"
    try:
        table = op_table(library_path(kind))
    except OnnxnormError as error:
        raise Unavailable(str(error)) from None
    held = {item["name"]: item["dtypes"] for item in table["ops"]}
    if case.dtype not in held.get(case.op, ()):
        raise Unavailable(f"the native library {table['version']} has no kernel for {case.op} in {case.dtype}")
    return _session_of(bench, op_model(case, bench.data), library=True)


def _body(bench: Workbench) -> Ready:
    """The op's function body, without the native library."""
    return _session_of(bench, op_model(bench.case, bench.data), library=False)


def _optimized(bench: Workbench) -> Ready:
    """What ``onnxnorm.optimize`` makes of the op: its choice of the fastest form."""
    from onnxnorm.passes.pipeline import optimize

    provider: Any = bench.provider
    model = optimize(op_model(bench.case, bench.data), provider=provider).model
    names = operators(model)
    if names == [f"{DOMAIN}.{bench.case.op}"]:
        raise SameAs(OURS)
    return _session_of(bench, model, library=None)


def _opset_18(bench: Workbench) -> Ready:
    return _session_of(bench, bench.standard_model(18), library=False)


def _newest_opset(bench: Workbench) -> Ready:
    model = bench.standard_model(modern_opset())
    if operators(model) == operators(bench.standard_model(18)):
        raise SameAs("ort-18")
    return _session_of(bench, model, library=False)


def modern_opset() -> int:
    """23, which has RMSNormalization, or else 21, which has GroupNormalization with a scale per channel."""
    return 23 if newest_opset() >= 23 else min(21, newest_opset())


def _session_of(bench: Workbench, model: ir.Model, *, library: bool | None) -> Ready:
    session = new_session(model, bench.threads, bench.provider, library=library)
    outputs = [(bench.case.shape, bench.data.inputs[0].dtype) for _ in bench.data.truth]
    run, read = bound(session, bench.varying, outputs, bench.provider)
    return Ready(run, read, summary(operators(model)))


def _eager(bench: Workbench) -> Ready:
    return _called(bench, bench.torch_module)


def _compiled(bench: Workbench) -> Ready:
    module = bench.torch_module
    import torch
    import torch._dynamo
    import torch._inductor.config as settings

    settings.compile_threads = 1  # no processes of its own beside the measurement
    torch._dynamo.reset()
    ready = _called(bench, torch.compile(module, dynamic=False))
    with _within(bench.compile_seconds, "compiling"):
        ready.run()
    return ready


def _called(bench: Workbench, module: Callable[..., Any]) -> Ready:
    """PyTorch, out of place; the result of the call before is let go first."""
    torch, inputs = _on_device(bench)
    from onnxnorm.runtime.arrays import from_torch

    latest: list[Any] = []
    synchronize = torch.cuda.synchronize if bench.provider == "cuda" else None
    inference = torch.inference_mode

    def run() -> None:
        latest.clear()
        with inference():
            latest.append(module(*inputs))
        if synchronize is not None:
            synchronize()

    return Ready(run, lambda: [from_torch(value) for value in latest[0]])


def _on_device(bench: Workbench) -> tuple[Any, list[Any]]:
    module = bench.torch_module
    import torch

    from onnxnorm.runtime.arrays import to_torch

    inputs = [to_torch(array) for array in bench.varying]
    if bench.provider == "cuda":
        if not torch.cuda.is_available():
            raise Unavailable("this PyTorch has no CUDA")
        module.to("cuda")
        inputs = [value.to("cuda") for value in inputs]
    return torch, inputs


def _openvino(bench: Workbench) -> Ready:
    """OpenVINO on the opset-18 form, in the type that the form has (it would choose bfloat16 by itself)."""
    if bench.provider != "cpu":
        raise Unavailable("measured on the CPU only")
    try:
        import openvino
    except ImportError:
        raise Unavailable("needs openvino: pip install 'onnxnorm[openvino]'") from None
    from onnxnorm.model_file import serialized

    if bench.case.dtype not in ("float32", "float16"):
        raise Unavailable(f"its CPU plugin computes {bench.case.dtype} in another type")
    core = openvino.Core()
    model = bench.standard_model(18)
    settings: Mapping[str, Any] = {
        "INFERENCE_NUM_THREADS": bench.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "float16": "f16"}[bench.case.dtype],
    }
    compiled = core.compile_model(core.read_model(serialized(model)), "CPU", settings)
    request = compiled.create_infer_request()
    for index, array in enumerate(bench.varying):
        request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
    outputs = [aligned(bench.case.shape, bench.data.inputs[0].dtype) for _ in bench.data.truth]
    for index, array in enumerate(outputs):
        request.set_output_tensor(index, openvino.Tensor(array, shared_memory=True))
    return Ready(request.infer, lambda: outputs)


class _TooLong(BaseException):
    """No Exception, lest somebody on the way takes it for a failure to work around."""


@contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    """Raises Unavailable after so many seconds; only in the main thread can a call be cut short."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise Unavailable(f"{what} took more than {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def candidates(provider: str = "cpu") -> tuple[Candidate, ...]:
    """All of them, in the order of the tables."""
    cuda = provider == "cuda"
    floor = "copy, on the device" if cuda else "copy, one thread"
    return (
        Candidate(COPY, floor, _copy_on_device if cuda else _copy),
        Candidate(OURS, "onnxnorm", _kernel, ours=True),
        Candidate("body", "onnxnorm, no library", _body, ours=True),
        Candidate("optimize", "onnxnorm optimize", _optimized, ours=True),
        Candidate("ort-new", f"ONNX Runtime, opset {modern_opset()}", _newest_opset),
        Candidate("ort-18", "ONNX Runtime, opset 18", _opset_18),
        Candidate("torch", "PyTorch eager", _eager),
        Candidate("compile", "torch.compile", _compiled),
        Candidate("openvino", "OpenVINO", _openvino),
    )
