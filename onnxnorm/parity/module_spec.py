"""Modules named on a command line: ``timm:resnet18``, ``package.module:factory``, ``file.py:factory``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnxnorm.errors import UsageError, error_line

if TYPE_CHECKING:
    import torch

_FORMS = "timm:NAME, package.module:NAME or file.py:NAME"


def load_module(spec: str) -> tuple[torch.nn.Module, Any]:
    """The module that ``spec`` names, and the example arguments that came with it (None when none did).

    Args:
        spec: ``timm:resnet18`` makes timm's model with its trained-model defaults but random weights;
            ``package.module:name`` and ``file.py:name`` take a ``torch.nn.Module``, or a callable without arguments
            that returns a module or ``(module, args)``. The name may be dotted.

    Raises:
        UsageError: the spec, file, module or name is not there, or gives no module.

    """
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        raise UsageError(f"{spec!r} names no module; write {_FORMS}")
    if source == "timm":
        return _from_timm(name), None
    holder = _from_file(Path(source)) if source.endswith(".py") else _from_package(source)
    return _made(_attribute(holder, name, source), spec)


def _from_timm(name: str) -> torch.nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise UsageError(f"timm does not import here: {error_line(error)}") from error
        raise UsageError(f"timm is not installed, so timm:{name} cannot be made; pip install timm") from None
    except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
        raise UsageError(f"timm does not import here: {error_line(error)}") from error
    try:
        module: torch.nn.Module = timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5))
        hint = f"; close to it are {close}" if close else "; timm.list_models() lists its models"
        raise UsageError(f"timm cannot make {name!r}: {error_line(error)}{hint}") from None
    return module


def _from_file(path: Path) -> ModuleType:
    """Runs the file as a module of its own; its folder is importable meanwhile, as with ``python file.py``."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    loader = importlib.util.spec_from_file_location(f"onnxnorm_user_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(loader)
    folder = str(path.resolve().parent)
    sys.modules[loader.name] = module  # dataclasses and pickles look their module up by name
    sys.path.insert(0, folder)
    try:
        loader.loader.exec_module(module)
    except Exception as error:
        del sys.modules[loader.name]
        raise UsageError(f"{path} does not run: {error_line(error)}") from error
    finally:
        sys.path.remove(folder)
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"there is no Python module {error.name!r}; write {_FORMS}") from None
        raise UsageError(f"{name} does not import: {error_line(error)}") from error
    except Exception as error:
        raise UsageError(f"{name} does not import: {error_line(error)}") from error


def _attribute(holder: ModuleType, name: str, source: str) -> Any:
    value: Any = holder
    for part in name.split("."):
        if not hasattr(value, part):
            names = ", ".join(sorted(each for each in vars(holder) if not each.startswith("_"))[:12])
            raise UsageError(f"{source} has no {name!r}; it has {names or 'no public names'}")
        value = getattr(value, part)
    return value


def _made(value: Any, spec: str) -> tuple[torch.nn.Module, Any]:
    import torch

    if not isinstance(value, torch.nn.Module):
        if not callable(value):
            raise UsageError(f"{spec} is a {type(value).__name__}; it must be a torch.nn.Module or make one")
        try:
            value = value()
        except Exception as error:
            raise UsageError(f"{spec} raises {error_line(error)}; it is called without arguments") from error
    if isinstance(value, torch.nn.Module):
        return value, None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], torch.nn.Module):
        return value
    raise UsageError(
        f"{spec} gives a {type(value).__name__}; it must give a torch.nn.Module, or one with its arguments"
    )
