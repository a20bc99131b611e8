"""Read the items of a table: one, or some that follow one another.

A *table* is what a batch of predictions is kept as: columns, each in one piece of memory.  Tables
are nested tuples of plain values, so that they can be sent to another process; until then copies
take the place of tensors, arrays and numbers in them, which are opened by :func:`open_tables`:

=======================================  ==================================================
table                                    items
=======================================  ==================================================
``("rows", tensor or array)``            its rows
``("ragged", tensor, sizes)``            parts of its rows, ``sizes[i]`` rows in item i
``("items", list)``                      those
``("same", value, count)``               the value, as often as that
``("dict", count, tables, keys)``        dicts of an item of each table
``("list" or "tuple", count, tables)``   lists or tuples of an item of each table
``("part", table, begin, end)``          those items of a table of several batches
=======================================  ==================================================

How an output becomes a table is the business of ``collect``.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from .memory import ArrayCopy, HostMemory, Objects, TensorCopy, length_of, opened

__all__ = [
    "IMMUTABLE",
    "NESTED",
    "Reader",
    "Table",
    "count_items",
    "joined",
    "open_tables",
    "reader_of",
]

Table = tuple[Any, ...]

NESTED = ("dict", "list", "tuple")


def open_tables(tables: Iterable[Table]) -> list[Table]:
    """Return tables without copies: they have become tensors, arrays and numbers.

    What tables have in common they have in common afterwards, so that it is sent once.
    """
    known: dict[int, Any] = {}
    return [_open(table, known) for table in tables]


def _open(table: Table, known: dict[int, Any]) -> Table:
    kind = table[0]
    if kind in NESTED:
        return (*table[:2], [_open(column, known) for column in table[2]], *table[3:])
    if kind == "part":
        whole = known.get(id(table[1]))
        if whole is None:
            whole = known[id(table[1])] = _open(table[1], known)
        return kind, whole, *table[2:]
    if kind == "ragged":
        sizes = known.get(id(table[2]))
        if sizes is None:
            sizes = known[id(table[2])] = opened(table[2])
        return kind, opened(table[1]), sizes
    return (kind, *map(opened, table[1:]))


def count_items(table: Table) -> int:
    """Return how many items a table has; nothing is opened."""
    kind = table[0]
    if kind in NESTED:
        return int(table[1])
    if kind == "same":
        return int(table[2])
    if kind == "part":
        return int(table[3] - table[2])
    return length_of(table[2] if kind == "ragged" else table[1])


# -- readers --------------------------------------------------------------------------------------


class Reader(Protocol):
    """Makes items; tensors and arrays share the table's memory."""

    def one(self, place: int) -> Any:
        """Return an item by its place, 0-based."""

    def some(self, begin: int, end: int) -> list[Any]:
        """Return the items from a place on up to another."""


def reader_of(table: Table) -> Reader:
    """Open the columns of a table, and return what makes items of them."""
    return _reader(table, {})


def _reader(table: Table, known: dict[int, _Sizes]) -> Reader:
    kind = table[0]
    if kind == "rows":
        data = opened(table[1])
        whole = isinstance(data, Tensor) and data.ndim > 1 and data.numel() > 0
        return _Parts(data) if whole and data.is_contiguous() else _Rows(data)
    if kind == "ragged":
        sizes = known.get(id(table[2]))
        if sizes is None:
            sizes = known[id(table[2])] = _Sizes(table[2])
        return _Ragged(opened(table[1]), sizes)
    if kind == "items":
        return _Items(table[1])
    if kind == "same":
        return _Same(opened(table[1]))
    if kind == "part":
        return _Shifted(_reader(table[1], known), table[2])
    columns = [_reader(column, known) for column in table[2]]
    return _Dicts(columns, table[3]) if kind == "dict" else _Lines(columns, kind)


class _Rows:
    """Rows of an array, or of a tensor that has them only as views."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def one(self, place: int) -> Any:
        return self._data[place]

    def some(self, begin: int, end: int) -> list[Any]:
        data = self._data[begin:end]
        return list(data.unbind(0)) if isinstance(data, Tensor) else list(data)


class _Parts:
    """Rows of a tensor, had as parts of one of a dimension less.

    As views, which unbind() gives, they would take twice the memory, only for autograd.
    """

    def __init__(self, data: Tensor) -> None:
        self._flat, self._size = data.view(-1, *data.shape[2:]), data.shape[1]

    def one(self, place: int) -> Tensor:
        begin, end = place * self._size, (place + 1) * self._size
        sizes = (begin, self._size, len(self._flat) - end)
        return torch.unsafe_split_with_sizes(self._flat, sizes)[1]

    def some(self, begin: int, end: int) -> list[Tensor]:
        if begin >= end:
            return []
        data, start, stop = self._flat, begin * self._size, end * self._size
        if (start, stop) != (0, len(data)):
            data = data[start:stop]
        return list(torch.unsafe_split(data, self._size))


class _Sizes:
    """Numbers of rows, and where each item's begin."""

    def __init__(self, sizes: Any) -> None:
        self.sizes = opened(sizes)
        self._starts: Any = None

    def bounds(self, begin: int, end: int) -> tuple[int, int]:
        """Return the first row of an item, and that behind the last one of others."""
        if self._starts is None:
            self._starts = array("q", accumulate(self.sizes, initial=0))
        return self._starts[begin], self._starts[end]


class _Ragged:
    """Parts of a tensor's rows."""

    def __init__(self, data: Tensor, sizes: _Sizes) -> None:
        self._data, self._sizes = data, sizes

    def one(self, place: int) -> Tensor:
        start, stop = self._sizes.bounds(place, place + 1)
        sizes = (start, stop - start, len(self._data) - stop)
        return torch.unsafe_split_with_sizes(self._data, sizes)[1]

    def some(self, begin: int, end: int) -> list[Tensor]:
        data, sizes = self._data, self._sizes.sizes
        if (begin, end) != (0, len(sizes)):
            start, stop = self._sizes.bounds(begin, end)
            data, sizes = data[start:stop], sizes[begin:end]
        # As views they would take twice the memory and time, only for autograd.
        return list(torch.unsafe_split_with_sizes(data, list(sizes)))


class _Items:
    """Objects; copies among them are opened one by one."""

    def __init__(self, objects: Any) -> None:
        is_ours = isinstance(objects, Objects)
        self._objects: list[Any] = objects.everything if is_ours else objects
        self._begin = objects.begin if is_ours else 0

    def one(self, place: int) -> Any:
        return opened(self._objects[self._begin + place])

    def some(self, begin: int, end: int) -> list[Any]:
        return [opened(value) for value in self._objects[self._begin + begin : self._begin + end]]


class _Same:
    """One value for all."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def one(self, place: int) -> Any:
        return self._value

    def some(self, begin: int, end: int) -> list[Any]:
        return [self._value] * (end - begin)


class _Shifted:
    """Items of a larger table."""

    def __init__(self, inner: Reader, begin: int) -> None:
        self._inner, self._begin = inner, begin

    def one(self, place: int) -> Any:
        return self._inner.one(self._begin + place)

    def some(self, begin: int, end: int) -> list[Any]:
        return self._inner.some(self._begin + begin, self._begin + end)


class _Dicts:
    """Dicts of an item of each column."""

    def __init__(self, columns: list[Reader], keys: list[Any]) -> None:
        self._columns, self._keys = columns, keys

    def one(self, place: int) -> dict[Any, Any]:
        items = [column.one(place) for column in self._columns]
        return dict(zip(self._keys, items, strict=True))

    def some(self, begin: int, end: int) -> list[Any]:
        lines = _lines(self._columns, begin, end)
        return [dict(zip(self._keys, line, strict=True)) for line in lines]


class _Lines:
    """Lists or tuples of an item of each column."""

    def __init__(self, columns: list[Reader], kind: str) -> None:
        self._columns, self._kind = columns, list if kind == "list" else tuple

    def one(self, place: int) -> Any:
        return self._kind([column.one(place) for column in self._columns])

    def some(self, begin: int, end: int) -> list[Any]:
        lines = _lines(self._columns, begin, end)
        return list(lines) if self._kind is tuple else [list(line) for line in lines]


def _lines(columns: list[Reader], begin: int, end: int) -> Iterable[tuple[Any, ...]]:
    if not columns:  # of which zip() would give no line
        return [()] * (end - begin)
    return zip(*(column.some(begin, end) for column in columns), strict=True)


# -- join the tables of small batches that are alike into larger ones ------------------------------

IMMUTABLE = frozenset({bool, int, float, complex, str, bytes, type(None)})


def joined(tables: Sequence[Table], memory: HostMemory) -> list[Table]:
    """Return one table for each; neighbours that are alike become parts of one.

    If there is one that cannot be joined, all stay what they are: its memory holds the others too.

    Args:
        tables: What is to be joined.
        memory: Where the columns are copied to.
    """
    structures = list(map(_structure, tables))
    if None in structures:
        return list(tables)
    found: list[Table] = []
    for _, run in groupby(zip(structures, tables, strict=True), lambda pair: pair[0]):
        group = [table for _, table in run]
        whole, begin = _join(group, memory), 0
        for table in group:
            end = begin + count_items(table)
            found.append(("part", whole, begin, end))
            begin = end
    return found


def _structure(table: Table) -> Any:
    """Return what two tables must have in common to be joined; ``None``: it cannot be."""
    kind = table[0]
    if kind in NESTED:
        columns = tuple(map(_structure, table[2]))
        keys = tuple(map(_exact, table[3])) if kind == "dict" else ()
        return None if None in columns or None in keys else (kind, columns, keys)
    if kind in ("rows", "ragged"):
        column = table[1]
        if not isinstance(column, (ArrayCopy, TensorCopy)):
            return None
        return kind, type(column), column.dtype, column.shape[1:]
    if kind == "same":
        value = _exact(table[1])
        return None if value is None else (kind, value)
    return kind if kind == "items" else None


def _exact(value: Any) -> Any:
    """Return what equals only the same: 1, 1.0 and True do not."""
    return repr(value) if type(value) in IMMUTABLE else None


def _join(tables: Sequence[Table], memory: HostMemory) -> Table:
    first = tables[0]
    kind, count = first[0], sum(map(count_items, tables))
    if kind in NESTED:
        columns = [
            _join(column, memory) for column in zip(*(table[2] for table in tables), strict=True)
        ]
        return (kind, count, columns, *first[3:])
    if kind == "same":
        return kind, first[1], count
    if kind == "items":
        values = [value for table in tables for value in table[1].kept()]
        return kind, memory.objects([_moved(value, memory) for value in values])
    data = _concatenated([table[1] for table in tables], memory)
    if kind == "rows":
        return kind, data
    sizes = array("q")
    for table in tables:
        sizes.extend(opened(table[2]))
    return kind, data, memory.numbers(sizes)


def _concatenated(copies: Sequence[TensorCopy | ArrayCopy], memory: HostMemory) -> Any:
    first, rows = copies[0], sum(copy.shape[0] for copy in copies)
    if isinstance(first, ArrayCopy):
        numpy = sys.modules["numpy"]
        return memory.array(numpy.concatenate([copy.open() for copy in copies]))
    place = memory.place(first.dtype, (rows, *first.shape[1:]))
    if place.memory is not None:
        torch.cat([copy.open() for copy in copies], out=place.open())
    return place


def _moved(value: Any, memory: HostMemory) -> Any:
    if isinstance(value, TensorCopy):
        return memory.tensor(value.open())
    return memory.array(value.open()) if isinstance(value, ArrayCopy) else value
