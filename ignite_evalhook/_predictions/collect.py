"""Collect predictions, one item per sample, in the order of the dataset.

Only a ``compute_metrics`` needs them; without one nothing is kept.

A batch is kept as a *table*: its columns, copied to the host, each in one piece of memory; what
tables are is said in ``tables``.  The split into items comes at the end, and costs next to nothing
then; or each item is made when it is asked for.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._ranks.packing import JOINABLE, gc_paused, memory_of
from ..exceptions import EvaluationError
from .lazy import LazyResults, Runs
from .memory import HostMemory, opened
from .tables import IMMUTABLE, Table, count_items, joined, open_tables, reader_of

__all__ = ["PreEval", "ResultCollector", "rows", "to_host"]

PreEval = Callable[[Any, Sequence[int]], Sequence[Any]]
Part = tuple[int, Sequence[int] | None, int | None, Table]  # number, indices, count, table
Kept = tuple[int, Any, int | None, Table]  # the same, with copies in it

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_SETTLE = 1024 * 1024  # bytes after which batches are joined
_MANY = 1024  # or batches
_LARGE = 128 * 1024  # bytes; larger batches are not joined
_DEVICE_JOIN = 16 * 1024 * 1024  # bytes; joined on a device, which needs them twice


class ResultCollector:
    """Predictions of one evaluation, on one process or its share of several.

    Args:
        pre_eval: ``pre_eval(output, indices) -> list`` reduces a batch before anything is kept.
        join: Join small batches that are alike, for :meth:`lazy_results`.  Tensors share more of
            their memory with others then.
    """

    def __init__(self, pre_eval: PreEval | None = None, *, join: bool = False) -> None:
        self._pre_eval = pre_eval
        self._join = join
        self._memory = HostMemory()  # of the batches
        self._joined = HostMemory()  # of those that were joined
        self._settled = 0  # parts that stay what they are
        self._before = 0  # bytes that those have in the batches' memory
        self._parts: list[Kept] = []
        self._next = 0  # number of the next batch
        self._seen: int | None = 0  # samples of all batches before; None: some were not seen here

    def add(
        self, output: Any, count: int | None, indices: list[int] | None, number: int | None = None
    ) -> None:
        """Keep one batch.

        Args:
            output: The evaluator's output without the validation loss.
            count: Number of samples in it.
            indices: Their indices in the dataset, 0-based; ``None``: the next ``count`` ones.
            number: Number of the batch among those of all processes, 0-based; ``None``: the next
                one.

        Raises:
            TypeError: If ``pre_eval`` does not return a list, or the output has no samples.
        """
        number = self._next if number is None else number
        seen = self._seen if number == self._next else None
        if self._pre_eval is not None:
            output = self._pre_eval(output, _known(indices, count, seen))
            if not isinstance(output, (list, tuple)):
                raise TypeError(f"pre_eval must return a list, got {type(output).__name__}")
        least = 1 if self._join else 2
        with torch.inference_mode(False), torch.no_grad():
            if self._pre_eval is None:
                table = _table(output, count, self._memory, least)
            else:
                table = _joined(list(output), self._memory, least)
        at = None if indices is None else self._joined.numbers(indices)
        self._parts.append((number, at, count, table))
        self._next = number + 1
        self._seen = None if seen is None else seen + (0 if count is None else count)
        new = self._memory.total - self._before
        if new >= _SETTLE or len(self._parts) - self._settled >= _MANY:
            self._settle()

    def _settle(self) -> None:
        """Join the last batches, if they are small and alike."""
        begin, end = self._settled, len(self._parts)
        if not self._join or begin == end:
            return
        if self._memory.total - self._before < _LARGE * (end - begin):
            with torch.inference_mode(False), torch.no_grad():
                tables = joined([part[3] for part in self._parts[begin:]], self._joined)
            pairs = zip(self._parts[begin:], tables, strict=True)
            self._parts[begin:] = [(*part[:3], table) for part, table in pairs]
            self._memory = HostMemory()
        self._settled, self._before = end, self._memory.total

    def parts(self) -> list[Part]:
        """Return what was collected, as nested plain values, for another rank's ``merge``."""
        with torch.inference_mode(False), torch.no_grad():
            self._settle()
            tables = open_tables(part[3] for part in self._parts)
            return [
                (number, opened(indices), count, table)
                for (number, indices, count, _), table in zip(self._parts, tables, strict=True)
            ]

    def merge(self, parts: Iterable[Part]) -> None:
        """Take in the parts of another rank; their order is that of the batches' numbers."""
        self._settle()
        self._parts.extend(parts)
        self._settled = len(self._parts)

    def results(self) -> list[Any]:
        """Return all items in dataset order, those of merged parts too.

        Where ``pre_eval`` gave more or fewer items than samples, which item is of which sample
        cannot be told, unless the batch has one sample: all stay in the order in which they
        were evaluated, or would have been by one process.

        Tensors are views into the host copy of their batch.
        """
        with gc_paused(), torch.inference_mode(False), torch.no_grad():
            tables, places = self._in_order()
            items: list[Any] = []
            for table in tables:
                items += reader_of(table).some(0, count_items(table))
        return items if places is None else [items[place] for place in places]

    def lazy_results(self) -> LazyResults:
        """Return what :meth:`results` does as a sequence that makes items when it is asked."""
        with torch.inference_mode(False), torch.no_grad():
            tables, places = self._in_order()
            return LazyResults(Runs(tables), places)

    def _in_order(self) -> tuple[list[Table], Sequence[int] | None]:
        """Return all tables, and the places of their items in dataset order.

        The places count over all tables, 0-based; ``None``: as they stand.
        """
        self._settle()
        tables: list[Table] = []
        order: list[Sequence[int]] | None = []
        seen = 0
        for _, kept, samples, table in sorted(self._parts, key=lambda part: part[0]):
            tables.append(table)
            count = count_items(table)
            indices: Sequence[int] | None = opened(kept)
            if indices is None and samples is not None:
                indices = range(seen, seen + samples)
            seen += 0 if samples is None else samples
            if order is None or not count:
                continue
            if indices is not None and len(indices) == 1:
                indices = [indices[0]] * count
            if indices is None or len(indices) != count:
                order = None
            else:
                order.append(indices)
        return tables, None if order is None or _ascend(order) else _places(order)


def _ascend(runs: Sequence[Sequence[int]]) -> bool:
    """Return whether numbers are in order already, equal ones too."""
    # Most are ranges, of which the ends tell enough.
    return all(before[-1] <= after[0] for before, after in pairwise(runs)) and all(
        isinstance(run, range) or all(a <= b for a, b in pairwise(run)) for run in runs
    )


def _places(runs: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return where the smallest of all numbers stands, then the next one; equal ones in order."""
    numbers = array("q")
    try:
        for run in runs:
            numbers.extend(run)
    except (TypeError, OverflowError):  # no integers, or too large
        flat = [index for run in runs for index in run]
        return sorted(range(len(flat)), key=flat.__getitem__)
    found = torch.frombuffer(numbers, dtype=torch.int64).argsort(stable=True)
    places = array("q")
    places.frombytes(memory_of(found.view(torch.uint8)))
    return places


def _known(indices: list[int] | None, count: int | None, seen: int | None) -> Sequence[int]:
    """Return what ``pre_eval`` is told of the samples' indices."""
    if indices is not None:
        return indices
    if count is None:
        return []
    return _Unknown(count) if seen is None else list(range(seen, seen + count))


class _Unknown(Sequence[int]):
    """Indices that only one process would know: an error when they are looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> NoReturn:
        raise EvaluationError(
            "pre_eval asks for indices in the dataset, which this data does not tell: it is no "
            "DataLoader over a dataset with indices, and other processes evaluate the batches "
            "before this one; use such a loader, or one process"
        )


# -- from an output to a table --------------------------------------------------------------------


def rows(output: Any, count: int | None) -> list[Any]:
    """Split a batch's output into one item per sample.

    A list gives its items, a tensor or an array its rows, a tuple or mapping one tuple or
    mapping per sample; what is the same for the whole batch (a number, a string, ``None``) is
    repeated.  A list of tensors that each have a row per sample, but are not as many as samples,
    gives one list per sample.  Tensors are copied to the CPU.

    Raises:
        TypeError: If the output does not tell how many samples it holds.
    """
    with torch.inference_mode(False), torch.no_grad():
        table = _table(output, count, HostMemory())
        return reader_of(table).some(0, count_items(table))


def _table(output: Any, count: int | None, memory: HostMemory, least: int = 2) -> Table:
    """Return a batch's output as a table, in memory of its own.

    Args:
        output: The output.
        count: Number of samples.
        memory: Where it is copied to.
        least: A list of so many items becomes columns.
    """
    if isinstance(output, Tensor) or _is_array(output):
        host = _kept(output, memory)
        if not output.ndim:
            return "items", memory.objects([host])
        if _has_plain_rows(output):
            return "rows", host
        return "items", memory.objects(host.unbind(0))
    if isinstance(output, list):
        if count is not None and len(output) != count and _are_columns(output, count):
            return "list", count, [_table(item, count, memory) for item in output]
        return _joined(output, memory, least)
    if count is None:
        raise TypeError(
            f"results need one item per sample, but a {type(output).__name__} does not tell how "
            "many samples it holds; return a list, tensor, tuple or mapping, or pass pre_eval="
        )
    if isinstance(output, Mapping):
        tables = [_column(value, count, memory) for value in output.values()]
        return "dict", count, tables, list(output)
    if isinstance(output, tuple) and output:
        return "tuple", count, [_column(value, count, memory) for value in output]
    return "same", _kept(output, memory), count


def _column(value: Any, count: int, memory: HostMemory) -> Table:
    """Tabulate what stands inside an output, if it has one item or row a sample; else repeat it."""
    if isinstance(value, tuple) and len(value) == count and not _are_columns(value, count):
        return _joined(list(value), memory)  # loaders collate strings and targets so
    if isinstance(value, list) and len(value) != count and not _are_columns(value, count):
        return "same", _kept(value, memory), count
    if isinstance(value, (list, tuple, Mapping)) or _length(value) == count:
        return _table(value, count, memory)
    return "same", _kept(value, memory), count


def _joined(values: list[Any], memory: HostMemory, least: int = 2) -> Table:
    """Return a table of one item each: tensors and dicts that are alike become columns."""
    kinds = set(map(type, values))
    if kinds <= IMMUTABLE:
        return "items", memory.objects(values)
    if len(kinds) == 1 and len(values) >= least:
        table = _join_alike(values, kinds.pop(), memory, least)
        if table is not None:
            return table
    return "items", memory.objects([_kept(value, memory) for value in values])


def _join_alike(values: list[Any], kind: type, memory: HostMemory, least: int) -> Table | None:
    first, count = values[0], len(values)
    if kind is Tensor:
        return _join_tensors(values, memory)
    if kind is dict:
        keys = list(first)
        if all(list(value) == keys for value in values):
            columns = [_joined([value[key] for value in values], memory, least) for key in keys]
            return "dict", count, columns, keys
    # Many columns of few items would be slower than the items.
    elif kind in (list, tuple) and all(len(value) == len(first) <= count for value in values):
        columns = [
            _joined([value[i] for value in values], memory, least) for i in range(len(first))
        ]
        return kind.__name__, count, columns
    return None


def _join_tensors(values: list[Tensor], memory: HostMemory) -> Table | None:
    """Copy tensors that are alike into one, which is one transfer from a device."""
    first = values[0]
    if first.dtype not in JOINABLE or not all(map(_has_plain_rows, values)):
        return None
    dtype, device, row = first.dtype, first.device, first.shape[1:]
    if any(v.dtype is not dtype or v.ndim != first.ndim or v.shape[1:] != row for v in values):
        return None
    if any(v.device != device for v in values):
        return None
    if device.type != "cpu" and sum(value.nbytes for value in values) > _DEVICE_JOIN:
        return None
    if not first.ndim:
        return "rows", memory.tensor(torch.stack(values))
    sizes = [len(value) for value in values]
    if device.type != "cpu":
        return "ragged", memory.tensor(torch.cat(values)), memory.numbers(sizes)
    joined = memory.place(dtype, (sum(sizes), *row))
    if joined.memory is not None:
        torch.cat(values, out=joined.open())
    return "ragged", joined, memory.numbers(sizes)


def _are_columns(values: Sequence[Any], count: int) -> bool:
    return len(values) > 0 and all(_length(value) == count for value in values)


def _length(value: Any) -> int | None:
    """Return the number of rows of a tensor or an array."""
    is_array = isinstance(value, Tensor) or _is_array(value)
    return len(value) if is_array and value.ndim else None


def _has_plain_rows(value: Any) -> bool:
    """Return whether rows can be taken, and joined, whenever it suits us."""
    return not isinstance(value, Tensor) or (
        value.layout is torch.strided and not value.is_nested and not value.is_quantized
    )


def to_host(value: Any) -> Any:
    """Copy every tensor of a nested structure to the CPU, and arrays; keep anything else."""
    kind = type(value)
    if kind in IMMUTABLE:
        return value
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if _is_array(value):
        return value.copy()
    if kind in (list, tuple):
        return kind(to_host(item) for item in value)
    if kind in _DICTS:
        copied = value.copy()
        for key, item in value.items():
            copied[key] = to_host(item)
        return copied
    if isinstance(value, tuple) and hasattr(kind, "_make"):  # a named tuple
        return kind._make(to_host(item) for item in value)
    return value


def _kept(value: Any, memory: HostMemory) -> Any:
    """Copy a value to the host: a tensor or an array into the collector's memory."""
    if isinstance(value, Tensor):
        return memory.tensor(value)
    return memory.array(value) if _is_array(value) else to_host(value)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
