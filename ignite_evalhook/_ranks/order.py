"""Find out which batches one process would go through, and in which order.

A sampler that deals out to ranks already is asked for everything.  Who takes which batch is not
known here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from ignite.distributed.auto import DistributedProxySampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
)

__all__: list[str] = []

# Where samplers keep the number of ranks: torch and timm, MMEngine, Accelerate.
_COUNTS = ("num_replicas", "world_size", "num_processes")


class Order(Protocol):
    """The batches of one pass: lists of indices; if ``batch_size=None``, indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


@dataclass(frozen=True)
class Chunks:
    """The batches that a plain ``BatchSampler`` makes of the indices 0 to ``size`` - 1."""

    size: int
    batch_size: int
    drop_last: bool

    def __len__(self) -> int:
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __getitem__(self, number: int, /) -> list[int]:
        start = number * self.batch_size
        return list(range(start, min(start + self.batch_size, self.size)))


def length_of(data: Any) -> int | None:
    """Return the number of batches; ``None`` if a loader's sampler, or a sampler, does not tell."""
    try:
        return len(data)
    except TypeError:
        return None


def smallest(*limits: int | None) -> int | None:
    """Return the smallest limit; ``None``, which is none, if there is no other."""
    return min((limit for limit in limits if limit is not None), default=None)


def index_sampler(loader: DataLoader[Any]) -> Any:
    """Return what a loader follows: a sampler of batches; if ``batch_size=None``, of indices."""
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def draw(sampler: Iterable[Any], limit: int | None = None) -> list[Any]:
    """Let a sampler decide on the batches (or indices) of one pass, and write them down.

    Args:
        sampler: Asked for one pass, since some repeat themselves for ever.
        limit: Entries to stop after; ``None`` for all.
    """
    # A sampler may use its list again; what is no list (a slice, a key) stays what it is.
    return [
        list(entry) if isinstance(entry, (list, Iterator)) else entry
        for entry in islice(sampler, smallest(limit, length_of(sampler)))
    ]


def dataset_order(sampler: Any) -> Order | None:
    """Return the order of a sampler that keeps the dataset's; ``None`` for any other.

    The sampler is not walked over: this is arithmetic.
    """
    if type(sampler) is SequentialSampler:
        return range(len(sampler.data_source))
    if type(sampler) is BatchSampler and type(sampler.sampler) is SequentialSampler:
        size = len(sampler.sampler.data_source)
        return Chunks(size, sampler.batch_size, sampler.drop_last)
    return None


def is_settled(sampler: Any) -> bool:
    """Return whether a sampler keeps the dataset's order or is a list: nothing is drawn."""
    return type(origin_of(sampler)) in (SequentialSampler, list, tuple, range)


def origin_of(sampler: Any) -> Any:
    """Return what decides on the order of a sampler, inside of what only cuts or asks."""
    while type(sampler) in (BatchSampler, Undealt):
        sampler = sampler.sampler
    return sampler


def whole_sampler(loader: DataLoader[Any]) -> Any:
    """Return the sampler that a loader would follow on one process.

    Raises:
        ValueError: If the loader's own deals out to ranks in a way that cannot be undone.
    """
    sampler = index_sampler(loader)
    if loader.batch_sampler is None:
        return _undealt(sampler)
    if _ranks_of(sampler) > 1:
        raise ValueError(_cannot_undo(sampler))
    inner = getattr(sampler, "sampler", None)
    right = _undealt(inner)
    if right is inner:
        return sampler
    whole = copy.copy(sampler)
    whole.sampler = right
    return whole


def _undealt(sampler: Any) -> Any:
    """Return a sampler of all indices in place of one of a rank's; others as they are."""
    if type(sampler) is DistributedSampler:
        return SequentialSampler(sampler.dataset)  # type: ignore[arg-type]
    if type(sampler) is DistributedProxySampler:
        return _undealt(sampler.sampler)
    if isinstance(sampler, DistributedSampler) or _ranks_of(sampler) > 1:
        return Undealt(sampler)
    return sampler


def _ranks_of(sampler: object) -> int:
    """Return to how many ranks a sampler deals out, as far as its attributes tell."""
    counts = [getattr(sampler, name, None) for name in _COUNTS]
    return max((count for count in counts if type(count) is int), default=1)


def check_unprepared(loader: object, *, shard: bool) -> None:
    """Refuse a loader that Accelerate has prepared for several ranks, since it repeats samples.

    Args:
        loader: The loader, or other data.
        shard: Whether it is to be dealt out; if not, one that fills up no batch is taken.

    Raises:
        ValueError: Saying which loader to give.
    """
    kind = type(loader)
    if not (isinstance(loader, DataLoader) and _is_accelerates(kind)):
        return
    if kind.__name__ == "DataLoaderShard" and not shard:
        is_stream = isinstance(loader.dataset, IterableDataset)
        if is_stream and not _is_accelerates(type(loader.dataset)):
            return
        if not is_stream and not getattr(loader.batch_sampler, "even_batches", False):
            return
    raise ValueError(
        f"the loader was prepared by Accelerate: a {kind.__name__} deals its batches out to ranks "
        "itself, and repeats samples to fill them up; give the hook the loader as it was before "
        "accelerator.prepare(), which is then dealt out exactly (a stream: one that gives each "
        "rank its own part)"
    )


def _is_accelerates(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "accelerate"


def _cannot_undo(sampler: object) -> str:
    return (
        f"the loader's {type(sampler).__name__} deals out to {_ranks_of(sampler)} ranks itself, "
        "and what one process would evaluate cannot be had from it; give the loader a sampler of "
        "the whole dataset, or pass shard=False to the hook if each rank shall evaluate its "
        "loader as it is"
    )


class Undealt(Sampler[Any]):
    """Ask a sampler that deals out to ranks, of whatever class, for the part of an only rank.

    Raises:
        ValueError: If it does not work as ``DistributedSampler`` does, by the same attributes.
    """

    def __init__(self, sampler: Any) -> None:
        needed = ("dataset", "rank", "num_samples", "total_size")
        if not all(hasattr(sampler, name) for name in needed):
            raise ValueError(_cannot_undo(sampler))
        self.sampler = sampler

    def _alone(self) -> Any:
        alone = copy.copy(self.sampler)  # anew for each pass: set_epoch() reaches the original
        alone.rank = 0
        alone.num_samples = alone.total_size = len(alone.dataset)
        for name in _COUNTS:
            if hasattr(alone, name):
                setattr(alone, name, 1)
        return alone

    def __iter__(self) -> Iterator[Any]:
        alone = self._alone()
        count = 0
        for index in alone:
            count += 1
            yield index
        if count < alone.total_size:  # it had chosen its indices when it was made
            raise ValueError(_cannot_undo(self.sampler))

    def __len__(self) -> int:
        return len(self._alone())
