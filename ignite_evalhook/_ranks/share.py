"""Deal batches out by turn: rank r of W takes batches r, r + W, r + 2 W, … of one process.

No batch is padded, repeated or left out, and a rank may get none.  Where an order is drawn,
rank 0 draws it for all; how the ranks talk is passed in.

Source:
    To remake a loader around another sampler is what Accelerate and Lightning do for distributed
    runs; the code is our own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar, overload

import torch.distributed as dist
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from ..exceptions import EvaluationError
from .compare import OWN_PARTS, held_indices
from .order import Order, dataset_order, draw, index_sampler, is_settled, origin_of, whole_sampler
from .team import Section, Team

__all__ = ["shard_batches"]

T = TypeVar("T")
_DRAWS = 16  # after which a sampler that names the same samples each time is taken at its word
Decide = Callable[[Sequence[Any]], Any]


class Agree(Protocol):
    """Tell rank 0 something; return, or raise, on every rank what it decides about all that."""

    def __call__(self, said: Any, decide: Decide, /) -> Any: ...


@dataclass(frozen=True)
class Turn:
    """Which rank of how many this process is, and how it agrees with the others."""

    rank: int
    world_size: int
    agree: Agree

    def numbers(self, total: int) -> range:
        """Return the numbers, 0-based, of this rank's batches among ``total``."""
        return range(self.rank, total, self.world_size)


def _agree_alone(said: Any, decide: Decide, /) -> Any:
    return decide([said])


ALONE = Turn(0, 1, _agree_alone)


def _agree_in_team(said: Any, decide: Decide, /) -> Any:
    with Team.current("shard_batches").together("the order") as section:
        return section.close(said, decide)


def turn_of(section: Section) -> Turn:
    """Return this rank's turn among those that go through a section together."""
    return Turn(section.team.rank, section.team.size, partial(section.meet, "the order"))


@dataclass(frozen=True)
class Part:
    """One rank's batches out of all."""

    order: Order
    numbers: range

    @property
    def total(self) -> int:
        """Number of batches of all ranks."""
        return self.numbers.stop

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return map(self.order.__getitem__, self.numbers)


class Shard(Sampler[Any]):
    """What one rank takes of a sampler's batches.

    Attributes:
        whole: The sampler of one process.
        part: This rank's part, if it is settled already; ``None``: each pass finds out anew.
        asked: Whether a loader has ever asked for batches.
    """

    def __init__(self, whole: Any, turn: Turn) -> None:
        self.whole = whole
        self.part: Part | None = None
        self.asked = False
        self._turn = turn

    def __iter__(self) -> Iterator[Any]:
        # A generator, since a loader with workers makes two iterators and uses one of them.
        self.asked = True
        yield from deal(self.whole, self._turn) if self.part is None else self.part

    def __len__(self) -> int:
        if self.part is not None:
            return len(self.part)
        order = dataset_order(self.whole)
        return len(self._turn.numbers(len(self.whole if order is None else order)))


class Dealt:
    """What one rank takes of a re-iterable of batches, by going past those of the others.

    Attributes:
        source: The batches of one process.
    """

    def __init__(self, source: Iterable[Any], turn: Turn) -> None:
        self.source = source
        self._turn = turn

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.source, (list, tuple)):
            return iter(Part(self.source, self._turn.numbers(len(self.source))))
        return islice(self.source, self._turn.rank, None, self._turn.world_size)

    def __len__(self) -> int:
        return len(self._turn.numbers(len(self.source)))  # type: ignore[arg-type]


def is_stream(data: object) -> bool:
    """Return whether data is a stream, of which each rank has its own."""
    return isinstance(getattr(data, "dataset", data), IterableDataset)


def whole_of(loader: DataLoader[Any]) -> Any:
    """Return the sampler that a loader, also one dealt out by us, would follow on one process.

    Raises:
        ValueError: If the loader's own deals out to ranks in a way that cannot be undone.
    """
    sampler = index_sampler(loader)
    return sampler.whole if isinstance(sampler, Shard) else whole_sampler(loader)


def deal(
    whole: Any, turn: Turn, limit: int | None = None, *, drawn: Callable[[], Order] | None = None
) -> Part:
    """Settle which batches are this rank's.

    Args:
        whole: The sampler of one process.
        turn: This rank's.
        limit: Batches of one process to stop after; ``None`` for all.
        drawn: Called where the order has to be drawn; ``None``: ask ``whole``.

    Raises:
        EvaluationError: If ranks would have drawn from different parts of the data.
    """
    order = dataset_order(whole)
    if order is None:  # a list, too: each rank may have made up its own
        order = _agreed_order(whole, partial(draw, whole, limit) if drawn is None else drawn, turn)
    total = len(order) if limit is None else min(len(order), limit)
    return Part(order, turn.numbers(total))


def _agreed_order(whole: Any, drawn: Callable[[], Any], turn: Turn) -> Any:
    """Return the order of rank 0, for all, of the same samples as any other's would be.

    One that chooses samples by chance may have others each time, and so on each rank.
    """
    is_plain = type(origin_of(whole)) in (RandomSampler, WeightedRandomSampler)
    own: Any = drawn() if turn.rank == 0 or not is_plain else None
    held = None if is_plain else held_indices(own)

    def compare(said: Sequence[Any]) -> tuple[Any, bool]:
        return own, any(each != said[0] for each in said)

    order, differs = turn.agree(held, compare)
    if differs:
        again = (held_indices(drawn()) == held for _ in range(_DRAWS))  # until one differs
        turn.agree((turn.rank > 0 and all(again), held), partial(_check_chosen, origin_of(whole)))
    return order


def _check_chosen(sampler: Any, said: Sequence[tuple[bool, int]]) -> None:
    for rank, (is_fixed, held) in enumerate(said):
        if is_fixed and held != said[0][1]:
            raise EvaluationError(
                f"the {type(sampler).__name__} of rank {rank} names other samples of the data than "
                f"that of rank 0.  {OWN_PARTS}"
            )


def with_sampler(loader: DataLoader[Any], sampler: Any, **settings: Any) -> DataLoader[Any]:
    """Return a loader like ``loader``, of whatever class, that follows another sampler.

    Args:
        loader: Stays as it is, and keeps its workers to itself.
        sampler: Of batches; if ``batch_size=None``, of indices.
        settings: Other attributes in which the new loader differs.
    """
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    twin = copy.copy(loader)
    # A loader refuses to let these be set, since its workers would not hear of it; a copy
    # without an iterator has none yet.
    vars(twin).update({name: sampler, "_iterator": None, **settings})
    return twin


@overload
def shard_batches(
    dataloader: DataLoader[T], *, rank: int | None = None, world_size: int | None = None
) -> DataLoader[T]: ...


@overload
def shard_batches(
    dataloader: Iterable[T], *, rank: int | None = None, world_size: int | None = None
) -> Iterable[T]: ...


def shard_batches(
    dataloader: Iterable[Any], *, rank: int | None = None, world_size: int | None = None
) -> Iterable[Any]:
    """Return the batches that one rank evaluates: whole ones of one process, dealt out by turn.

    Rank r of W takes batches r, r + W, r + 2 W, …: all ranks together have each batch once, and
    a rank may have none.  A loader stays what it is otherwise: class, workers, collation.  One
    that came with a ``DistributedSampler``, or from ``idist.auto_dataloader``, gives its dataset
    in order and without the samples repeated to fill up.  Where a sampler draws the order, or
    is the user's own, rank 0's is told to all at the start of each pass, so all ranks have to
    go through their batches equally often.

    Args:
        dataloader: A ``DataLoader`` or a re-iterable of batches.  A loader of an
            ``IterableDataset`` comes back as it is: each rank has its own stream.
        rank: This rank, 0-based; ``None``: of torch's default process group, if there is one.
        world_size: Number of ranks, given with ``rank``.  Other ones than the group's are of
            ranks that are not connected.

    Raises:
        TypeError: If ``dataloader`` cannot be gone through again and again.
        ValueError: If ``rank`` and ``world_size`` do not fit, or the order is one that rank 0
            would have to tell to ranks that are not connected.
    """
    _check_data(dataloader)
    turn = _turn(rank, world_size)
    if is_stream(dataloader):
        return dataloader
    if not isinstance(dataloader, DataLoader):
        source = dataloader.source if isinstance(dataloader, Dealt) else dataloader
        return source if turn.world_size == 1 else Dealt(source, turn)
    whole = whole_of(dataloader)
    if turn.world_size == 1 and whole is index_sampler(dataloader):
        return dataloader
    if turn.world_size > 1 and turn.agree is _agree_alone and not is_settled(whole):
        raise ValueError(
            f"the order of a {type(origin_of(whole)).__name__} cannot be dealt out by "
            f"rank={rank} and world_size={world_size} alone: each rank would draw another one; "
            "call shard_batches without them, so that rank 0 tells its order to all, or use "
            "shuffle=False or a list as sampler"
        )
    return with_sampler(dataloader, Shard(whole, turn))


def _check_data(data: object) -> None:
    if hasattr(data, "__next__"):
        raise TypeError(
            f"dataloader must be re-iterable: a {type(data).__name__} is used up by one pass; "
            "pass a DataLoader or a list of batches"
        )
    not_batches = isinstance(data, (str, bytes, Mapping, Dataset)) and not is_stream(data)
    if not_batches or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise TypeError(
            "dataloader must be a DataLoader or a re-iterable of batches, got "
            f"{type(data).__name__}"
        )


def _turn(rank: int | None, world_size: int | None) -> Turn:
    connected: tuple[int, int] | None = None
    if dist.is_available() and dist.is_initialized():
        # Ignite is not asked: its first answer is a collective.
        connected = dist.get_rank(), dist.get_world_size()
    if rank is None and world_size is None:
        return ALONE if connected is None else Turn(*connected, _agree_in_team)
    if rank is None or world_size is None:
        raise ValueError(
            "rank and world_size must be given together or not at all, got "
            f"rank={rank!r} and world_size={world_size!r}"
        )
    if type(world_size) is not int or world_size < 1:
        raise ValueError(f"world_size must be a positive integer, got {world_size!r}")
    if type(rank) is not int or not 0 <= rank < world_size:
        raise ValueError(
            f"rank must be an integer from 0 to {world_size - 1} (world_size - 1), got {rank!r}"
        )
    is_connected = (rank, world_size) == connected
    return Turn(rank, world_size, _agree_in_team if is_connected else _agree_alone)
