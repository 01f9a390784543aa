"""Reference models, one per normalization, and the main job that trains, exports, runs and checks them.

``python -m models`` runs the job. A model is one file of this folder that holds a ``MODEL``; it is found by looking,
not by a list, so adding one is adding its file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.record import ReferenceModel


@functools.cache
def all_models() -> Mapping[str, ReferenceModel]:
    """Every reference model by its name: each module of this package that holds a ``MODEL``."""
    found: dict[str, ReferenceModel] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if info.name.startswith("_"):
            continue
        model = getattr(importlib.import_module(f"{__name__}.{info.name}"), "MODEL", None)
        if model is not None:
            found[model.name] = model
    return MappingProxyType(found)
