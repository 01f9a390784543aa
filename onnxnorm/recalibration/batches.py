"""The data of a recalibration as batches: feeds for the inputs that a training graph has beside its state.

An array, a dict of arrays by input name, or a file with either is cut along axis 0. An iterable gives batches as they
are, each an array, a dict, or a tuple in the order of the inputs (as a loader of (images, labels) gives them: what is
left over is ignored); the files among its items are cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxnorm.errors import UsageError, one_line
from onnxnorm.runtime.arrays import Array
from onnxnorm.runtime.run_files import fitted

Feeds: TypeAlias = dict[str, Array]


@dataclass
class Batches:
    """Iterates over feeds.

    Args:
        data: see the module.
        inputs: the session's inputs (onnxruntime NodeArg) beside the state.
        size: items in a batch, None for what the graph was exported with.
        recorded: input name -> shape of the example at export.

    Attributes:
        left_out: what was not used, in words.

    Raises:
        UsageError: data that fits no input, an unknown name, or no way to tell the batch size.

    """

    data: Any
    inputs: Sequence[Any]
    size: int | None
    recorded: Mapping[str, Sequence[int]]
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UsageError(f"batch_size is {self.size}; it must be at least 1")

    def __iter__(self) -> Iterator[Feeds]:
        if _is_whole(self.data):
            yield from self._cut(self.data)
        elif isinstance(self.data, Iterable):
            yield from self._given(self.data)
        else:
            raise UsageError(
                f"data is a {type(self.data).__name__}; give an array, a dict of arrays by input name, an .npy or .npz "
                "file, or an iterable of batches"
            )

    def _given(self, items: Iterable[Any]) -> Iterator[Feeds]:
        """Batches as they are, files cut; a last one that is smaller than a fixed graph takes is left out."""
        short: tuple[Feeds, str] | None = None
        for number, item in enumerate(items, start=1):
            if short is not None:
                self._fitted(*short)  # raises: it was not the last
            if _is_file(item):
                yield from self._cut(item)
                continue
            if self.size is not None:
                raise UsageError("batch_size cuts arrays and files; the batches of an iterable are taken as they are")
            source = f"batch {number}"
            arrays = self._named(item, source)
            if number > 1 and self._is_short(arrays):
                short = arrays, source
            else:
                yield self._fitted(arrays, source)
        if short is not None:
            self.left_out.append(f"{short[1]}, the last one, is smaller than the graph takes")

    def _is_short(self, arrays: Feeds) -> bool:
        """Whether an array has fewer items than its input takes."""
        return any(
            isinstance(item.shape[0], int) and arrays[item.name].ndim and arrays[item.name].shape[0] < item.shape[0]
            for item in self.inputs
            if len(item.shape)
        )

    def _cut(self, data: Any) -> Iterator[Feeds]:
        source = os.fspath(data) if isinstance(data, str | os.PathLike) else "data"
        arrays = self._named(_loaded(data), source)
        cut = self._cut_inputs(arrays)
        items = self._items(arrays, cut, source)
        size = self._size(cut)
        if not items:
            raise UsageError(
                f"{source} holds no items: input {cut[0].name!r} has shape {list(arrays[cut[0].name].shape)}"
            )
        fixed = any(isinstance(item.shape[0], int) for item in cut)
        if fixed and items < size:
            raise UsageError(f"{source} has {items} items; input {cut[0].name!r} of the graph takes {size} at a time")
        for start in range(0, items, size):
            if fixed and start + size > items:
                self.left_out.append(f"the last {items - start} items of {source}: the graph takes {size} at a time")
                return
            feeds = {item.name: arrays[item.name][start : start + size] for item in cut}
            yield self._fitted({**arrays, **feeds}, source)

    def _cut_inputs(self, arrays: Mapping[str, Any]) -> list[Any]:
        """The inputs that hold items along axis 0: those where it is dynamic, or all where it is so nowhere."""
        shaped = [item for item in self.inputs if item.name in arrays and len(item.shape)]
        dynamic = [item for item in shaped if not isinstance(item.shape[0], int)]
        if not shaped:
            raise UsageError("no input of the graph has an axis to cut the data along; give an iterable of batches")
        for item in shaped:
            if arrays[item.name].ndim != len(item.shape):
                _fitted_array(arrays[item.name], item, "data")
        return dynamic or shaped

    def _items(self, arrays: Mapping[str, Array], cut: Sequence[Any], source: str) -> int:
        counts = {item.name: arrays[item.name].shape[0] for item in cut}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name!r} {count}" for name, count in counts.items())
            raise UsageError(f"{source}: the inputs have different numbers of items along axis 0: {shown}")
        return int(arrays[cut[0].name].shape[0])

    def _size(self, cut: Sequence[Any]) -> int:
        """The batch size: as asked for, as the graph is fixed to, or as it was exported with."""
        fixed = {item.name: item.shape[0] for item in cut if isinstance(item.shape[0], int)}
        for name, size in fixed.items():
            if len(set(fixed.values())) > 1:
                raise UsageError(
                    f"the graph's inputs have different sizes along axis 0: {fixed}; give an iterable of batches"
                )
            if self.size not in (None, size):
                raise UsageError(f"batch_size is {self.size}, but input {name!r} of the graph takes {size} at a time")
            return int(size)
        recorded = self.recorded.get(cut[0].name)
        if self.size is None and not recorded:
            raise UsageError("the graph does not say the batch size that it was exported with; give batch_size")
        return self.size or max(int(recorded[0]) if recorded else 1, 1)

    def _named(self, item: Any, source: str) -> Feeds:
        """Arrays by input name."""
        names = [each.name for each in self.inputs]
        if isinstance(item, Mapping):
            unknown = [str(name) for name in item if name not in names]
            missing = [name for name in names if name not in item]
            if unknown or missing:
                what = f"names {unknown[0]!r}, which is no input" if unknown else f"has no {missing[0]!r}"
                raise UsageError(f"{source} {what}; the inputs of the graph are {', '.join(names)}")
            return {str(name): _array(value) for name, value in item.items()}
        if isinstance(item, tuple | list):
            if len(item) < len(names):
                raise UsageError(f"{source} has {len(item)} arrays; the inputs of the graph are {', '.join(names)}")
            return {name: _array(value) for name, value in zip(names, item, strict=False)}
        if len(names) != 1:
            raise UsageError(f"{source} is one array; give a dict by the graph's inputs: {', '.join(names) or 'none'}")
        return {names[0]: _array(item)}

    def _fitted(self, arrays: Feeds, source: str) -> Feeds:
        return {item.name: _fitted_array(arrays[item.name], item, source) for item in self.inputs}


def _fitted_array(array: Array, item: Any, source: str) -> Array:
    """The array as an input takes it; sizes of no item cannot be measured."""
    array = fitted(np.asarray(array), item, source)
    if array.size == 0:
        raise UsageError(f"{source} has shape {list(array.shape)} for input {item.name!r}: there is nothing to measure")
    return array


def _is_file(item: Any) -> bool:
    if isinstance(item, Mapping):
        return bool(item) and all(isinstance(value, str | os.PathLike) for value in item.values())
    return isinstance(item, str | os.PathLike)


def _is_whole(data: Any) -> bool:
    """Whether it is to be cut: an array, a file, a dict of either."""
    return _is_file(data) or isinstance(data, Mapping) or hasattr(data, "__array__")


def _array(value: Any) -> Array:
    if isinstance(value, str | os.PathLike):
        loaded = _loaded(value)
        if isinstance(loaded, Mapping):
            raise UsageError(f"{os.fspath(value)} is an .npz file; an .npy file with one array is needed here")
        return np.asarray(loaded)
    return value if isinstance(value, np.ndarray) else np.asarray(value)


def _loaded(data: Any) -> Any:
    """The contents of a file: an array, mapped and not read, or a dict of arrays."""
    if not isinstance(data, str | os.PathLike):
        return data
    path = Path(data)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:
        raise UsageError(f"{path} is no .npy or .npz file: {one_line(error)}") from None
