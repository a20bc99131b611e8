"""Join the tables of small batches that are alike into larger ones.

A column of many batches costs what a column of one batch does: a Python object to open, and a
piece of what is sent.  With a few samples a batch that would be as much as the items themselves.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from ._host_memory import ArrayCopy, HostMemory, TensorCopy, opened
from ._tables import NESTED, Table, count_items

__all__ = ["IMMUTABLE", "joined"]

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
