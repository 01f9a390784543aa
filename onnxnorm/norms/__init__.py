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
    """Every norm by its op name: the ``SPEC`` of each module here, its ``SKIP_SPEC``, and the blocked forms of both."""
    from onnxnorm.spec.blocked import blocked_forms

    specs: dict[str, NormSpec] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        spec, skip = (getattr(module, name, None) for name in ("SPEC", "SKIP_SPEC"))
        if spec is not None:
            found = (spec, *(() if skip is None else (skip,)), *blocked_forms(spec, skip))
            specs.update((item.name, item) for item in found)
    return MappingProxyType(specs)
