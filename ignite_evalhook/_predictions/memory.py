"""Keep copies of many tensors and arrays in few large pieces of the host's memory.

A copy of its own for each batch leaves holes: between two batches the model takes and frees
memory, and whatever small thing is kept meanwhile, be it the Python object of a tensor, stands
in the way of what is freed.  An evaluation that kept 320 MB has taken 5 GB so.  Here nothing is
kept of a batch but its bytes, and a few numbers that Python keeps in memory of its own; tensors
are made of them when they are asked for.

The pieces come from the system, untouched, and go back to it: what is never written to takes no
memory, and no hole is left afterwards.
"""

from __future__ import annotations

import mmap
import sys
from array import array
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._ranks.packing import JOINABLE, aligned

__all__ = ["HostMemory", "Objects", "length_of", "opened"]

_LEAST = 64 * 1024  # bytes of the first piece
_PIECE = 4 * 1024 * 1024  # bytes of a later one; a view that is kept keeps the whole piece
_ALONE = 512 * 1024  # bytes; what is larger has a piece of its own
_ALIGNMENT = 64  # bytes, as torch aligns
_NUMBERS_ALIGNMENT = 8
_FEW = 16  # numbers that may as well stay Python's

# On Unix the default would be memory that is shared with forked processes.
_FLAGS: dict[str, int] = (
    {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
)


class TensorCopy(NamedTuple):
    """Bytes of a tensor."""

    memory: Any  # mmap.mmap; None: no bytes
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def open(self) -> Tensor:
        """Return a tensor of these bytes, contiguous, with a storage of its own."""
        if self.memory is None:
            return torch.empty(self.shape, dtype=self.dtype)
        count = prod(self.shape)
        flat = torch.frombuffer(self.memory, dtype=self.dtype, count=count, offset=self.begin)
        return flat.view(self.shape)


class ArrayCopy(NamedTuple):
    """Bytes of a NumPy array."""

    memory: Any
    begin: int
    dtype: Any
    shape: tuple[int, ...]

    def open(self) -> Any:
        """Return an array of these bytes."""
        return sys.modules["numpy"].ndarray(self.shape, self.dtype, self.memory, self.begin)


class NumbersCopy(NamedTuple):
    """Integers of 64 bits."""

    memory: Any
    begin: int
    length: int

    def open(self) -> array[int]:
        """Return them."""
        numbers = array("q")
        numbers.frombytes(self.memory[self.begin : self.begin + 8 * self.length])
        return numbers


class Objects(NamedTuple):
    """Objects, and copies, that stand in a list with others."""

    everything: list[Any]
    begin: int
    end: int

    def open(self) -> list[Any]:
        """Return them, opened."""
        return [opened(value) for value in self.kept()]

    def kept(self) -> list[Any]:
        """Return them as they are kept."""
        return self.everything[self.begin : self.end]


_KINDS = frozenset({ArrayCopy, NumbersCopy, Objects, TensorCopy})
_TENSOR_LIKE = (ArrayCopy, TensorCopy)


def opened(value: Any) -> Any:
    """Return what a copy is of: a tensor, an array, numbers, objects; anything else as it is."""
    return value.open() if type(value) in _KINDS else value


def length_of(value: Any) -> int:
    """Return the number of rows, numbers or objects, without opening a copy of them."""
    if isinstance(value, _TENSOR_LIKE):
        return value.shape[0]
    if isinstance(value, Objects):
        return value.end - value.begin
    return value.length if isinstance(value, NumbersCopy) else len(value)


class HostMemory:
    """Room for copies, which lives as long as one of them.

    Attributes:
        total: Bytes given out.
    """

    def __init__(self) -> None:
        self._piece: Any = None
        self._size = 0  # bytes of the present piece
        self._used = 0
        self.total = 0  # bytes given out
        self._objects: list[Any] = []
        self._numbers: NumbersCopy | None = None  # the last ones

    def _take(self, size: int, alignment: int = _ALIGNMENT) -> tuple[Any, int]:
        """Return memory for so many bytes, and where in it they begin."""
        self.total += size
        if size > _ALONE:
            return mmap.mmap(-1, size, **_FLAGS), 0
        begin = aligned(self._used, alignment)
        if begin + size > self._size:
            self._size = max(size, _LEAST, min(_PIECE, self.total))
            self._piece, begin = mmap.mmap(-1, self._size, **_FLAGS), 0
        self._used = begin + size
        return self._piece, begin

    def place(self, dtype: torch.dtype, shape: Sequence[int]) -> TensorCopy:
        """Return room for a tensor, to be written to.

        Args:
            dtype: One of ``JOINABLE``.
            shape: Its shape.
        """
        shape = tuple(shape)
        size = prod(shape) * dtype.itemsize
        memory, begin = self._take(size) if size else (None, 0)
        return TensorCopy(memory, begin, dtype, shape)

    def tensor(self, tensor: Tensor) -> TensorCopy | Tensor:
        """Copy a tensor of any device; one that has no plain memory is copied by itself."""
        if (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.dtype not in JOINABLE
            or tensor.is_meta
        ):
            return tensor.detach().to("cpu", copy=True)
        copy = self.place(tensor.dtype, tensor.shape)
        if copy.memory is not None:
            copy.open().copy_(tensor.detach())
        return copy

    def array(self, value: Any) -> Any:
        """Copy a NumPy array; one of Python objects, or of a subclass, by itself."""
        numpy = sys.modules["numpy"]
        if type(value) is not numpy.ndarray or value.dtype.hasobject or not value.nbytes:
            return value.copy()
        memory, begin = self._take(value.nbytes)
        copy = ArrayCopy(memory, begin, value.dtype, value.shape)
        copy.open()[...] = value
        return copy

    def numbers(self, values: Sequence[int]) -> Sequence[int] | NumbersCopy:
        """Copy integers; those that follow one another become a range.

        The same numbers again, as the sizes of another column often are, share a copy.
        """
        try:
            numbers = array("q", values)
        except (TypeError, OverflowError):  # no integers, or too large
            return list(values)
        if not numbers:
            return []
        run = range(numbers[0], numbers[0] + len(numbers))
        if numbers[-1] == run[-1] and numbers == array("q", run):
            return run
        if len(numbers) <= _FEW:
            return list(values)
        last, size = self._numbers, 8 * len(numbers)
        if last is not None and last.length == len(numbers) and last.open() == numbers:
            return last
        memory, begin = self._take(size, _NUMBERS_ALIGNMENT)
        memory[begin : begin + size] = numbers.tobytes()
        self._numbers = NumbersCopy(memory, begin, len(numbers))
        return self._numbers

    def objects(self, values: Sequence[Any]) -> Objects:
        """Keep objects; a list for each batch would leave holes too."""
        begin = len(self._objects)
        self._objects += values
        return Objects(self._objects, begin, len(self._objects))
