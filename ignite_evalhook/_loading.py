"""Go through the evaluation data once.

:class:`Batches` is one pass over a loader: it counts, it stops after ``limit_batches``, it can
not be started twice, and it knows which samples of the dataset a batch holds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from .exceptions import EvaluationError

__all__: list[str] = []


class Batches:
    """One pass over some batches.

    Attributes:
        length: Number of batches, if it is known beforehand.
        seen: Batches evaluated so far; counted by whoever takes them.
    """

    def __init__(
        self,
        source: Iterable[Any],
        length: int | None,
        limit: int | None,
        indices: Iterable[list[int]] | None,
    ) -> None:
        self.length = length if limit is None or length is None else min(length, limit)
        self.seen = 0
        self._source = source
        self._limit = limit
        self._iterator: Iterator[Any] | None = None
        self._indices = None if indices is None else iter(indices)
        self._at_end = False

    def __iter__(self) -> Iterator[Any]:
        # Ignite asks for a new iterator when one ends early; a second pass would count twice.
        if self._iterator is None:
            self._iterator = self._once()
        return self._iterator

    def _once(self) -> Iterator[Any]:
        # Batches are counted by who takes them: a Python frame for each one costs too much here.
        yield from islice(iter(self._source), self._limit)
        self._at_end = True
        if self.seen == 0:
            raise EvaluationError("the evaluation data is empty: no batch came")

    @property
    def exhausted(self) -> bool:
        """Whether every batch was evaluated."""
        return self._at_end or (self.length is not None and self.seen == self.length)

    def next_indices(self) -> list[int] | None:
        """Return the dataset indices of the next batch; ``None`` if they cannot be known."""
        return None if self._indices is None else next(self._indices, None)

    def close(self) -> None:
        """Let go of the loader's iterator, and so of its worker processes."""
        self._iterator = None
        self._source = ()


def plan_batches(data: Iterable[Any], limit: int | None = None, *, order: bool = False) -> Batches:
    """Plan one pass over ``data``.

    Args:
        data: A ``DataLoader`` or any other iterable of batches.
        limit: Batches to stop after; ``None`` for all.
        order: Keep track of which samples of the dataset each batch holds.
    """
    if not isinstance(data, DataLoader):
        length = len(data) if isinstance(data, (list, tuple)) else None
        return Batches(data, length or None, limit, None)
    if isinstance(data.dataset, IterableDataset):
        return Batches(apart(data), None, limit, None)
    indices: list[list[int]] | None = None
    if order:
        indices = batch_indices(data)
        if indices is None:
            indices = draw_order(data, limit)
            data = with_order(data, indices)
    return Batches(apart(data), length_of(data) or None, limit, indices)


_APART: WeakKeyDictionary[DataLoader[Any], DataLoader[Any]] = WeakKeyDictionary()


def apart(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader to go through while somebody else may be going through ``loader``.

    A loader with persistent workers has one iterator for all: the next pass ends the present
    one, and what its workers draw is missing from it.  So evaluations share a twin, whose
    workers persist as well.
    """
    if loader.num_workers == 0 or not loader.persistent_workers:
        return loader
    twin = copy.copy(loader)  # anew, since what the loader holds may have been replaced
    twin._iterator = _APART[loader]._iterator if loader in _APART else None
    _APART[loader] = twin
    return twin


def length_of(loader: DataLoader[Any]) -> int | None:
    """Return the number of batches; ``None`` if the loader's sampler does not tell."""
    try:
        return len(loader)
    except TypeError:
        return None


def batch_indices(loader: DataLoader[Any]) -> list[list[int]] | None:
    """Return the dataset indices of each batch of a loader that keeps the dataset's order."""
    sampler = loader.batch_sampler
    if (
        type(sampler) is not BatchSampler
        or type(sampler.sampler) is not SequentialSampler
        or not getattr(loader, "in_order", True)  # workers may overtake each other
        or not isinstance(loader.dataset, Sized)
    ):
        return None
    return [list(batch) for batch in sampler]


def draw_order(loader: DataLoader[Any], limit: int | None = None) -> list[list[int]]:
    """Let the loader's sampler decide on the batches of this pass, and write them down.

    Args:
        loader: The loader.
        limit: Batches to stop after; ``None`` for all.
    """
    stops = [stop for stop in (limit, length_of(loader)) if stop is not None]
    stop = min(stops, default=None)  # some samplers repeat themselves for ever
    if loader.batch_sampler is None:
        return [[index] for index in islice(loader.sampler, stop)]
    return [list(batch) for batch in islice(loader.batch_sampler, stop)]


def with_order(loader: DataLoader[Any], order: list[list[int]]) -> DataLoader[Any]:
    """Return a loader like ``loader``, of whatever class, that serves just these batches.

    Source:
        Remaking a loader around another sampler is what Accelerate and Lightning do for
        distributed runs; the code is our own.
    """
    served = copy.copy(loader)
    if loader.batch_sampler is None:
        sampler: dict[str, Any] = {"sampler": [index for batch in order for index in batch]}
    else:
        sampler = {"batch_sampler": order}
    # A loader refuses to let these be set, since its workers would not hear of it; a copy whose
    # workers do not persist has none yet.
    vars(served).update(sampler, persistent_workers=False, in_order=True)
    return served
