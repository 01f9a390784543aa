"""The normalizations that onnxnorm knows: one file of this folder each, found by looking, not by a list."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxnorm.spec.record import NormSpec


@functools.cache
def all_specs() -> Mapping[str, NormSpec]:
    """Every norm by its op name: the ``SPEC`` of each module here, and its ``SKIP_SPEC``."""
    specs: dict[str, NormSpec] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found = (getattr(module, name, None) for name in ("SPEC", "SKIP_SPEC"))
        specs.update((spec.name, spec) for spec in found if spec is not None)
    return MappingProxyType(specs)
