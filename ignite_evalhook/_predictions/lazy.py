"""A sequence of predictions that makes each item when it is asked for.

The predictions stay what they were collected as: columns of bytes.  A list of them would take a
Python object for each tensor, 315 bytes or so, and the time to make them all.
"""

from __future__ import annotations

import operator
import reprlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any, SupportsIndex, overload

import torch

from .._ranks.packing import gc_paused
from .tables import Reader, Table, count_items, open_tables, reader_of

__all__ = ["LazyResults", "Runs"]

_READERS = 512  # tables that stay opened
_AT_ONCE = 1024  # items made at once where many are asked for
_SHOWN = 160  # characters of an item in the repr


class Runs:
    """The items of many tables, one table after the other.

    Args:
        tables: The tables.  Parts of one that follow one another become one run.
    """

    def __init__(self, tables: Iterable[Table]) -> None:
        self._tables: list[Table] = []
        self._which, self._begins = array("q"), array("q")  # of each run: table, place in it
        self._starts = array("q", [0])  # place among all; behind the last run, the number of items
        self._lay_out(tables)
        # Of the tables, not of self: a circle would keep them until Python looks for circles.
        self._reader = lru_cache(_READERS)(partial(_reader, self._tables))

    def _lay_out(self, tables: Iterable[Table]) -> None:
        numbers: dict[int, int] = {}  # of tables, by id()
        follows: tuple[int, int] | None = None
        for table in tables:
            count = count_items(table)
            whole, begin = table[1:3] if table[0] == "part" else (table, 0)
            number = numbers.setdefault(id(whole), len(self._tables))
            if number == len(self._tables):
                self._tables.append(whole)
            if follows == (number, begin):
                self._starts[-1] += count
            else:
                self._which.append(number)
                self._begins.append(begin)
                self._starts.append(self._starts[-1] + count)
            follows = (number, begin + count)

    def __len__(self) -> int:
        return self._starts[-1]

    def one(self, place: int) -> Any:
        """Return an item by its place, 0-based."""
        run = bisect_right(self._starts, place) - 1
        with torch.inference_mode(False), torch.no_grad():
            reader = self._reader(self._which[run])
            return reader.one(self._begins[run] + place - self._starts[run])

    def lists(self, begin: int, end: int) -> Iterator[list[Any]]:
        """Give the items from a place on up to another, many at once."""
        run = bisect_right(self._starts, begin) - 1
        while begin < end:
            stop = min(end, self._starts[run + 1], begin + _AT_ONCE)
            shift = self._begins[run] - self._starts[run]
            with gc_paused(), torch.inference_mode(False), torch.no_grad():
                items = self._reader(self._which[run]).some(begin + shift, stop + shift)
            yield items
            begin = stop
            run += begin == self._starts[run + 1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the columns, not the items."""
        with torch.inference_mode(False), torch.no_grad():
            tables = open_tables(self._tables)
        parts = [
            ("part", tables[number], begin, begin + end - start)
            for number, begin, start, end in zip(
                self._which, self._begins, self._starts, self._starts[1:], strict=False
            )
        ]
        return Runs, (parts,)


def _reader(tables: Sequence[Table], number: int) -> Reader:
    return reader_of(tables[number])


class LazyResults(Sequence[Any]):
    """Predictions, one item per sample, in the order of the dataset; read-only.

    An item is made anew each time: its tensors and arrays share the memory of the predictions,
    and its dicts and lists are the caller's own.  A slice is lazy as well.

    Args:
        runs: The batches' items.
        places: Which of them, 0-based; ``None``: all, as they stand.
    """

    def __init__(self, runs: Runs, places: Sequence[int] | None = None) -> None:
        self._runs = runs
        self._places = range(len(runs)) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> LazyResults: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        """Return one item, or a lazy sequence of some.

        Raises:
            IndexError: If there is none.
            TypeError: If ``index`` is neither an integer nor a slice.
        """
        if isinstance(index, slice):
            return LazyResults(self._runs, self._places[index])
        try:
            place = self._places[operator.index(index)]
        except IndexError:
            raise IndexError(
                f"index {index} is out of range: there are {len(self)} predictions"
            ) from None
        return self._runs.one(place)

    def __iter__(self) -> Iterator[Any]:
        """Give all items."""
        places = self._places
        if isinstance(places, range) and places.step == 1:
            return chain.from_iterable(self._runs.lists(places.start, places.stop))
        return map(self._runs.one, places)

    def __repr__(self) -> str:
        if not self:
            return "LazyResults(0 items)"
        return f"LazyResults({len(self)} items, the first: {_short(_sketch(self[0]))})"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _sketch(value: Any) -> str:
    """Say what a value is, with dtypes and shapes in place of numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_sketch(item)}" for key, item in value.items()) + "}"
    if type(value) in (list, tuple):
        inside = ", ".join(map(_sketch, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return reprlib.repr(value)
