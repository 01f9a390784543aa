"""The truth of a module: its float64 run, and what PyTorch itself makes of it at the deployed dtype.

Every run has its own deep copy in eval mode (``training`` has the other one) on the CPU, under no_grad, with the random
state put back afterwards: the caller's module, its flags, buffers, dtype and device, is only ever read.

Where a part of the model cannot run in float64 (a custom operator with float32 kernels only, code that reads bits or
insists on a dtype), that submodule, and every other of its class, runs in float32 inside the float64 run, and the truth
carries a note.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from onnxnorm.errors import UsageError, error_line
from onnxnorm.exporter.copying import as_deployed, as_double, as_single, copy_module, deployed_dtype
from onnxnorm.parity.double import float64_everywhere
from onnxnorm.parity.outputs import NamedArray
from onnxnorm.parity.trees import map_tensors, output_arrays

#: Extra PyTorch runs that show how far its result scatters.
REDRAWS = 2
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ModuleFailure(UsageError):
    """PyTorch itself cannot run the module on these inputs."""


@dataclass(frozen=True)
class Truth:
    """The float64 outputs.

    Attributes:
        outputs: float64 for every floating output; integers and booleans as they are.
        precision: "float64", "mixed" when submodules ran in float32, "float32" when all of it did.
        notes: what a reader of the report must know.

    """

    outputs: tuple[NamedArray, ...]
    precision: str
    notes: tuple[str, ...] = ()


@dataclass
class Oracle:
    """Runs of one module. ``seed`` fixes what the module draws in its forward, if it does."""

    module: torch.nn.Module
    seed: int = 0
    #: Classes whose instances run in float32 -> why. Learnt in the first run that needs it.
    narrow: dict[type, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module = getattr(self.module, "_orig_mod", self.module)  # torch.compile's wrapper

    def in_mode(self, duplicate: torch.nn.Module) -> torch.nn.Module:
        """A copy of the module, or of a part of it, in the mode in which it is to run."""
        return duplicate.eval()

    def result(
        self, duplicate: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[NamedArray], list[str]]:
        """What a run gives that is to be compared, and notes."""
        return output_arrays(duplicate(*args, **kwargs))

    def deployed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[NamedArray, ...]:
        """The module at its own dtype, on the CPU.

        Raises:
            ModuleFailure: PyTorch cannot run it.

        """
        duplicate = self.in_mode(copy_module(self.module, as_deployed))
        try:
            return self._outputs(duplicate, *_converted((args, kwargs), as_deployed))[0]
        except Exception as error:
            raise ModuleFailure(
                f"PyTorch cannot run {type(self.module).__name__} on these inputs on the CPU: {error_line(error)}"
            ) from error

    def truth(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Truth:
        """The float64 run, parts in float32 where float64 does not work. ``deployed`` must have worked before."""
        while True:
            duplicate = self.in_mode(copy_module(self.module, as_double))
            try:
                return self._float64(duplicate, args, kwargs)
            except Exception as error:
                culprit = self._culprit(args, kwargs)
                if culprit in self.narrow:  # its float32 form fails too: the next larger part takes over
                    culprit = type(self.module)
                if culprit in self.narrow:
                    raise ModuleFailure(
                        f"{type(self.module).__name__} runs neither in float64 nor in float32: {error_line(error)}"
                    ) from error
                self.narrow[culprit] = error_line(error)

    def redrawn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[NamedArray, ...]]:
        """PyTorch at the deployed dtype again, every input and weight moved to a neighbouring number of its type.

        One run's distance from the truth is one throw of the dice: rounding errors of a deep network share their
        causes, so by luck all of its outputs can be close at once. These runs are as good as the first, their inputs
        being equal to within one rounding, and the largest distance of all is what PyTorch's precision is worth. They
        also show the error of a truth that was itself computed at the deployed dtype. A run that fails is left out.
        """
        found = []
        for draw in range(REDRAWS):
            nudge = _nudge(self.seed + draw)
            with contextlib.suppress(Exception):  # more evidence when there is some; the judgement does not rest on it
                inputs = _converted((args, kwargs), nudge)
                found.append(self._outputs(self.in_mode(copy_module(self.module, nudge)), *inputs)[0])
        return found

    def _float64(self, duplicate: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Truth:
        deployed = deployed_dtype(self.module, _tensors((args, kwargs)))
        args, kwargs = _converted((args, kwargs), as_double)
        with float64_everywhere(deployed) as stepped_out:
            narrowed = self._narrow_parts(duplicate, stepped_out)
            outputs, notes = self._outputs(duplicate, args, kwargs)
        notes.extend(
            f"truth computed in float32{_where(names)}: {self.narrow[kind]}" for kind, names in narrowed.items()
        )
        precision = "float32" if any("" in names for names in narrowed.values()) else "mixed" if narrowed else "float64"
        return Truth(outputs, precision, tuple(notes))

    def _narrow_parts(
        self,
        duplicate: torch.nn.Module,
        stepped_out: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> dict[type, list[str]]:
        """Makes the parts that cannot run in float64 run in float32; returns their names by class."""
        found: dict[type, list[str]] = {}
        inside: list[str] = []
        for name, part in list(duplicate.named_modules()):
            if type(part) not in self.narrow or any(name.startswith(outer) for outer in inside):
                continue
            original = self.module.get_submodule(name)
            with stepped_out():  # or the copy would become float64 as well
                single = self.in_mode(copy_module(original, as_single))
            part.forward = _in_float32(single, part, stepped_out)
            found.setdefault(type(part), []).append(name)
            inside.append(f"{name}." if name else "")
        return found

    def _culprit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> type:
        """The class of the innermost submodule whose forward raises in float64."""
        duplicate = self.in_mode(copy_module(self.module, as_double))
        running: list[torch.nn.Module] = []

        def leave(part: torch.nn.Module, *_: Any) -> None:
            while running and running.pop() is not part:  # errors that the model caught itself leave entries behind
                pass

        for part in duplicate.modules():
            part.register_forward_pre_hook(lambda part, _: running.append(part), prepend=True)
            part.register_forward_hook(leave)
        with contextlib.suppress(Exception):
            self._float64(duplicate, args, kwargs)
        return type(running[-1]) if running else type(self.module)

    def _outputs(
        self, duplicate: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[NamedArray, ...], list[str]]:
        # Compiled code (of a submodule, of torch.cond's branches) would not see the float64 modes.
        eager = torch.compiler.set_stance("force_eager")
        with torch.no_grad(), torch.random.fork_rng(devices=[]), eager:
            torch.manual_seed(self.seed)
            arrays, notes = self.result(duplicate, args, kwargs)
        return tuple(arrays), notes


def _in_float32(
    single: torch.nn.Module,
    part: torch.nn.Module,
    stepped_out: Callable[[], contextlib.AbstractContextManager[None]],
) -> Callable[..., Any]:
    """A forward for ``part`` that runs its float32 copy, and hands on what that makes of the buffers."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with stepped_out():
            args, kwargs = _converted((args, kwargs), as_single)
            outputs = map_tensors(as_double, single(*args, **kwargs))
            mine = dict(part.named_buffers())
            for name, buffer in single.named_buffers():
                if name in mine:
                    mine[name].copy_(buffer)
            return outputs

    return forward


def _converted(
    inputs: tuple[tuple[Any, ...], dict[str, Any]], convert: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    converted: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(convert, inputs)
    return converted


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, tree)
    return found


def _nudge(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Moves every element of a floating tensor to the next number of its type, up or down at random.

    Whole numbers and infinities stay: zeros, ones and infinities in masks and switches are meant exactly, and
    ``(1 - mask) * finfo.min`` of a mask that is nearly 1 would be another model.
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        tensor = as_deployed(tensor)
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            return tensor
        flat = tensor.contiguous()
        bits = flat.view(_INTEGER_OF_SIZE[flat.element_size()])
        step = torch.randint(0, 2, flat.shape, generator=generator, dtype=bits.dtype) * 2 - 1
        neighbour = (bits + step).view(flat.dtype)
        return torch.where((flat != flat.round()) & torch.isfinite(neighbour), neighbour, flat)

    return moved


def _where(names: list[str]) -> str:
    if "" in names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f" in {shown}"
