"""Collect predictions, one item per sample, in the order of the dataset.

Only a ``compute_metrics`` needs them; without one nothing is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__: list[str] = []

PreEval = Callable[[Any, Sequence[int]], Sequence[Any]]


class ResultCollector:
    """Predictions of one evaluation.

    Args:
        pre_eval: ``pre_eval(output, indices) -> list`` reduces a batch before anything is kept.
    """

    def __init__(self, pre_eval: PreEval | None = None) -> None:
        self._pre_eval = pre_eval
        self._parts: list[tuple[list[int] | None, list[Any]]] = []
        self._seen = 0

    def add(self, output: Any, count: int | None, indices: list[int] | None) -> None:
        """Keep one batch.

        Args:
            output: The evaluator's output without the validation loss.
            count: Number of samples in it.
            indices: Their indices in the dataset, 0-based; ``None``: the next ``count`` ones.

        Raises:
            TypeError: If ``pre_eval`` does not return a list, or the output has no samples.
        """
        if indices is None and count is not None:
            indices = list(range(self._seen, self._seen + count))
        self._seen += 0 if count is None else count
        if self._pre_eval is None:
            items = rows(output, count)
        else:
            reduced = self._pre_eval(output, [] if indices is None else indices)
            if not isinstance(reduced, (list, tuple)):
                raise TypeError(f"pre_eval must return a list, got {type(reduced).__name__}")
            items = [to_host(item) for item in reduced]
        self._parts.append((indices, items))

    def results(self) -> list[Any]:
        """Return all items in dataset order.

        Where ``pre_eval`` gave more or fewer items than samples, which item is of which sample
        cannot be told, unless the batch has one sample: all stay in the order in which they
        were evaluated.
        """
        items = [item for _, part in self._parts for item in part]
        order: list[int] = []
        for indices, part in self._parts:
            if indices is not None and len(indices) == 1:
                indices = indices * len(part)
            if part and (indices is None or len(indices) != len(part)):
                return items
            order += indices or () if part else ()
        return [
            item for _, item in sorted(zip(order, items, strict=True), key=lambda pair: pair[0])
        ]


def rows(output: Any, count: int | None) -> list[Any]:
    """Split a batch's output into one item per sample.

    A list gives its items, a tensor or an array its rows, a tuple or mapping one tuple or
    mapping per sample; what is the same for the whole batch (a number, a string, ``None``) is
    repeated.  A list of tensors that each have a row per sample, but are not as many as samples,
    gives one list per sample.  Tensors are copied to the CPU.

    Raises:
        TypeError: If the output does not tell how many samples it holds.
    """
    if isinstance(output, torch.Tensor):
        host = to_host(output)
        return list(host.unbind(0)) if host.ndim else [host]
    if isinstance(output, list):
        if count is not None and len(output) != count and _are_columns(output, count):
            return [list(row) for row in zip(*(rows(item, count) for item in output), strict=True)]
        return [to_host(item) for item in output]
    if _is_array(output):
        return list(output.copy()) if output.ndim else [output.copy()]
    if count is None:
        raise TypeError(
            f"results need one item per sample, but a {type(output).__name__} does not tell how "
            "many samples it holds; return a list, tensor, tuple or mapping, or pass pre_eval="
        )
    if isinstance(output, Mapping):
        columns = {key: _column(value, count) for key, value in output.items()}
        return [{key: column[i] for key, column in columns.items()} for i in range(count)]
    if isinstance(output, tuple) and output:
        return list(zip(*(_column(value, count) for value in output), strict=True))
    return [to_host(output)] * count


def _column(value: Any, count: int) -> list[Any]:
    """Split what stands inside an output, if it has one item or row a sample; else repeat it."""
    if isinstance(value, tuple) and len(value) == count and not _are_columns(value, count):
        return [to_host(item) for item in value]  # loaders collate strings and targets so
    if isinstance(value, (list, tuple, Mapping)) or _length(value) == count:
        column = rows(value, count)
        if len(column) == count:
            return column
    return [to_host(value)] * count


def _are_columns(values: Sequence[Any], count: int) -> bool:
    return len(values) > 0 and all(_length(value) == count for value in values)


def _length(value: Any) -> int | None:
    """Return the number of rows of a tensor or an array."""
    is_array = isinstance(value, torch.Tensor) or _is_array(value)
    return len(value) if is_array and value.ndim else None


def to_host(value: Any) -> Any:
    """Copy every tensor of a nested structure to the CPU, and arrays; keep anything else."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if _is_array(value):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(to_host(item) for item in value)
    if type(value) is dict:
        return {key: to_host(item) for key, item in value.items()}
    return value


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
