"""Inputs made from the ONNX file's signature, the same for the same seed.

Sizes: where the file says what the export's example looked like, that shape first, then one in which only the dynamic
sizes differ. Otherwise sizes are guessed, small ones first, until PyTorch takes them. The same symbol has the same size
in every input. Values: standard normal; integers from the example's range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from onnxnorm.errors import UsageError
from onnxnorm.parity.inputs import Sample, argument_leaves, to_arguments, to_feeds
from onnxnorm.parity.source import Example, GraphInput, Source
from onnxnorm.runtime.arrays import Array, is_float

#: Size of every dynamic dimension. An unnamed one has the key ``input.axis``.
Sizes: TypeAlias = dict[str, int]

#: Tried in turn for dynamic sizes of which nothing is known, but for the first axis, the batch.
_GUESSES = (8, 32, 64, 128, 224)
_BATCH = 2


@dataclass(frozen=True)
class Generator:
    """Makes samples for one module and file."""

    module: torch.nn.Module
    source: Source
    seed: int

    def sample(self, index: int, sizes: Sizes) -> Sample:
        """Sample number ``index`` at these sizes: seed and index fix the values.

        Raises:
            UsageError: forward cannot be called with the file's inputs alone.

        """
        rng = np.random.default_rng([self.seed, index])
        arrays = {
            item.name: _values(rng, item, _shape(item, sizes, self.source.examples), self.source.examples)
            for item in self.source.inputs
        }
        try:
            args, kwargs = to_arguments(self.module, self.source, arrays)
            feeds = to_feeds(self.source, argument_leaves(self.module, args, kwargs))
        except UsageError as error:
            raise UsageError(
                f"inputs cannot be made from the signature of {self.source.label}: {error}; give inputs="
            ) from None
        shown = " ".join(f"{name}={list(array.shape)}" for name, array in arrays.items())
        return Sample(f"seed {self.seed}.{index} {shown}".strip(), args, kwargs, feeds)

    def first_sizes(self) -> Iterator[Sizes]:
        """Sizes to try for the first shape, until PyTorch takes one."""
        known = self._example_sizes()
        names = _dynamic(self.source)
        if all(name in known for name in names):
            yield known
            return
        for guess in _GUESSES:
            yield {name: known.get(name, _BATCH if axis == 0 else guess) for name, axis in names.items()}

    def other_sizes(self, sizes: Sizes) -> Iterator[Sizes]:
        """Sizes for a second shape, in which dynamic sizes differ: all of them, else the batch alone."""
        names = _dynamic(self.source)
        if not names:
            return
        smaller = {name: _other(sizes[name], axis) for name, axis in names.items()}
        yield smaller
        doubled = {name: sizes[name] + 1 if axis == 0 else 2 * sizes[name] for name, axis in names.items()}
        if doubled != smaller:
            yield doubled
        batch = {name: smaller[name] if axis == 0 else sizes[name] for name, axis in names.items()}
        if batch not in (sizes, smaller, doubled):
            yield batch

    def notes(self) -> list[str]:
        """What the reader must know of the values: which integer ranges were guessed."""
        return [
            f"integer input {item.name!r} was drawn from 0..1, since the file does not say its range; give inputs= "
            "for real values"
            for item in self.source.inputs
            if np.issubdtype(item.dtype, np.integer) and _range(self.source.examples.get(item.name)) is None
        ]

    def _example_sizes(self) -> Sizes:
        sizes: Sizes = {}
        for item in self.source.inputs:
            example = self.source.examples.get(item.name)
            if example is None or example.shape is None or item.shape is None:
                continue
            if len(example.shape) == len(item.shape):
                for axis, (size, wanted) in enumerate(zip(example.shape, item.shape, strict=True)):
                    if not isinstance(wanted, int):
                        sizes.setdefault(wanted or f"{item.name}.{axis}", size)
        return sizes


def _dynamic(source: Source) -> dict[str, int]:
    """Every dynamic size -> the smallest axis on which it stands (0 is taken for the batch)."""
    found: dict[str, int] = {}
    for item in source.inputs:
        for axis, size in enumerate(item.shape or ()):
            if not isinstance(size, int):
                name = size or f"{item.name}.{axis}"
                found[name] = min(axis, found.get(name, axis))
    return found


def _other(size: int, axis: int) -> int:
    if axis == 0:
        return size + 1
    return size // 2 if size >= 4 else size + 1


def _shape(item: GraphInput, sizes: Sizes, examples: Mapping[str, Example]) -> tuple[int, ...]:
    if item.shape is None:
        example = examples.get(item.name)
        if example is None or example.shape is None:
            raise UsageError(f"input {item.name!r} has no rank in the file; give inputs=")
        return example.shape
    return tuple(
        size if isinstance(size, int) else sizes[size or f"{item.name}.{axis}"] for axis, size in enumerate(item.shape)
    )


def _range(example: Example | None) -> tuple[float, float] | None:
    if example is None or example.minimum is None or example.maximum is None:
        return None
    return example.minimum, example.maximum


def _values(
    rng: np.random.Generator, item: GraphInput, shape: tuple[int, ...], examples: Mapping[str, Example]
) -> Array:
    limits = _range(examples.get(item.name))
    values: Any
    if item.dtype == np.bool_:
        values = rng.integers(0, 2, shape)
    elif np.issubdtype(item.dtype, np.integer):
        low, high = limits or (0, 1)
        values = rng.integers(int(low), int(high), shape, endpoint=True)
    elif is_float(item.dtype):
        values = rng.standard_normal(shape)
    else:
        raise UsageError(f"input {item.name!r} is {item.dtype}, for which no values can be made; give inputs=")
    return np.asarray(values).astype(item.dtype)
