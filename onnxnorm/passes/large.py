"""Large weights in float64 without the room that this takes: computed piece by piece, rounded into a file.

A fold takes a weight to float64, multiplies it with a factor for each channel, checks what rounding loses, and rounds
it. For a weight of 1 GB in float32 the arrays in between take 2 GB each. ``exact`` gives an array for small weights,
and for large ones an ``Exact``, which notes what is to be done and does it for a piece at a time when it is summed,
checked or rounded. All else that NumPy can do with it, it does with the whole array. The rounded weight lies in a file
without a name, mapped to memory: its pages are the system's to keep or to drop.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]

#: Weights of more elements are large: 64 MB in float64.
LARGEST_SMALL = 1 << 23
#: How many elements a piece has at most.
_PIECE = 1 << 22
#: Smaller arrays, in bytes, are not worth a file.
_SMALLEST_SPILLED = 1 << 20


class Exact:
    """An array times factors in float64, which is computed where it is needed.

    Args:
        source: the array, of any float type.
        steps: what is done to each piece of it, in order: a factor that broadcasts over it, or None for its square.

    """

    def __init__(self, source: npt.NDArray[Any], steps: Sequence[FloatArray | None] = ()) -> None:
        self.source = source
        self.steps = tuple(steps)

    dtype = np.dtype(np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.source.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.source.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.source.size

    def pieces(self) -> Iterator[tuple[tuple[slice, ...], FloatArray]]:
        """Index and values of each piece, in the order of memory."""
        for index in _pieces(self.shape):
            piece = self.source[index].astype(np.float64)
            with np.errstate(all="ignore"):
                for step in self.steps:
                    piece = np.square(piece) if step is None else piece * _part(step, index, self.ndim)
            yield index, piece

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> FloatArray:
        """As NumPy's."""
        axes = range(self.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        return self.reduced(lambda piece, over: piece.sum(axis=over, keepdims=True), np.add, axes, keepdims)

    def reduced(
        self,
        reduce: Callable[[FloatArray, tuple[int, ...]], FloatArray],
        combine: Callable[[FloatArray, FloatArray], FloatArray],
        axes: Sequence[int],
        keepdims: bool = False,
    ) -> FloatArray:
        """A reduction over axes, of which ``combine`` makes one of those of two pieces; from 0 on."""
        over = tuple(sorted(axis % self.ndim for axis in axes))
        total = np.zeros([1 if axis in over else size for axis, size in enumerate(self.shape)])
        for index, piece in self.pieces():
            place = tuple(slice(None) if axis in over else part for axis, part in enumerate(index))
            total[place] = combine(total[place], reduce(piece, over))
        return total if keepdims else total.squeeze(over)

    def reshape(self, *shape: Any) -> Exact | FloatArray:
        """Stays as it is where only axes of size 1 come and go."""
        sizes = self.source.reshape(*shape).shape
        old, new = ([axis for axis, size in enumerate(part) if size != 1] for part in (self.shape, sizes))
        if [self.shape[axis] for axis in old] != [sizes[axis] for axis in new]:
            return np.asarray(self).reshape(sizes)
        steps = [None if step is None else _moved(step, self.ndim, old, new, len(sizes)) for step in self.steps]
        return Exact(self.source.reshape(sizes), steps)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """As NumPy's."""
        return self if np.dtype(dtype) == np.float64 else self.__array__(dtype)

    def __mul__(self, other: Any) -> Any:
        factor = np.asarray(other, np.float64)
        if np.broadcast_shapes(factor.shape, self.shape) != self.shape:
            return np.asarray(self) * factor
        return Exact(self.source, (*self.steps, factor))

    __rmul__ = __mul__

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All of it."""
        whole = np.empty(self.shape, np.float64 if dtype is None else dtype)
        for index, piece in self.pieces():
            whole[index] = piece
        return whole

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy's functions work on the whole array, but for products and squares."""
        if method == "__call__" and not options:
            if ufunc is np.square:
                return Exact(self.source, (*self.steps, None))
            if ufunc is np.multiply and sum(isinstance(item, Exact) for item in inputs) == 1:
                return self * next(item for item in inputs if not isinstance(item, Exact))
        whole = [np.asarray(item) if isinstance(item, Exact) else item for item in inputs]
        return getattr(ufunc, method)(*whole, **options)


def exact(array: npt.NDArray[Any]) -> Any:
    """The array in float64; an ``Exact`` of it where it is large, which rules treat as an array."""
    return array.astype(np.float64) if array.size <= LARGEST_SMALL else Exact(array)


def ones_like(weight: Any) -> Any:
    """Ones in the shape of an array or an ``Exact``."""
    return Exact(np.broadcast_to(np.float64(1.0), weight.shape)) if isinstance(weight, Exact) else np.ones_like(weight)


def together(*arrays: Any) -> Iterator[tuple[tuple[slice, ...], list[FloatArray]]]:
    """Pieces of arrays of one shape: one piece, all of it, where none is an ``Exact``."""
    if not any(isinstance(item, Exact) for item in arrays):
        yield (slice(None),) * arrays[0].ndim, list(arrays)
        return
    sources = [item if isinstance(item, Exact) else Exact(item) for item in arrays]
    for parts in zip(*(item.pieces() for item in sources), strict=True):
        yield parts[0][0], [piece for _, piece in parts]


def spilled(shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterator[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """An array in a file without a name, written piece by piece; read-only."""
    with tempfile.TemporaryFile(dir=_folder(math.prod(shape) * dtype.itemsize)) as file:
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).view(np.uint8).data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype).reshape(shape)


class Room:
    """What new weights may take of the memory; the rest goes into files, as ``spilled``.

    Args:
        limit: bytes for all of them together.

    """

    def __init__(self, limit: int = 1 << 27) -> None:
        self._left = limit

    def settle(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array, or a copy of it in a file."""
        if array.nbytes < _SMALLEST_SPILLED or array.dtype.hasobject or _is_mapped(array):
            return array
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            return array
        return spilled(array.shape, array.dtype, iter([array]))


def _is_mapped(array: Any) -> bool:
    """Whether the array is a view of a file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array.obj if isinstance(array, memoryview) else array, mmap.mmap)


def _folder(size: int) -> str | None:
    """Where large temporary files go: not to memory, which /tmp often is, unless the user says so."""
    for folder in (os.environ.get("TMPDIR"), "/var/tmp"):
        if folder and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > size:
            return folder
    return None


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Indices that cut an array of that shape into parts of consecutive elements, in order."""
    size = math.prod(shape)
    axis = 0
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) > _PIECE:
        axis += 1
    rest = math.prod(shape[axis + 1 :])
    step = max(1, _PIECE // max(rest, 1))
    for place in np.ndindex(*shape[:axis]) if size else ():
        head = tuple(slice(at, at + 1) for at in place)
        for start in range(0, shape[axis], step):
            yield (*head, slice(start, min(start + step, shape[axis])), *(slice(None),) * (len(shape) - axis - 1))


def _part(factor: FloatArray, index: tuple[slice, ...], rank: int) -> FloatArray:
    """The part of a factor that meets a piece."""
    full = factor.reshape((1,) * (rank - factor.ndim) + factor.shape)
    return full[tuple(slice(None) if size == 1 else part for size, part in zip(full.shape, index, strict=True))]


def _moved(factor: FloatArray, rank: int, old: Sequence[int], new: Sequence[int], target: int) -> FloatArray:
    full = factor.reshape((1,) * (rank - factor.ndim) + factor.shape)
    sizes = [1] * target
    for before, after in zip(old, new, strict=True):
        sizes[after] = full.shape[before]
    return full.reshape(sizes)
