"""Go through the evaluation data once.

:class:`Batches` is one pass over a loader, or over one rank's share of it: it counts, it stops
after ``limit_batches``, it can not be started twice, and it knows which samples of the dataset a
batch holds.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from itertools import chain, islice, repeat, tee
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, SequentialSampler

from .._ranks.compare import fingerprint
from .._ranks.order import check_unprepared, draw, index_sampler, length_of, smallest
from .._ranks.share import ALONE, Dealt, Part, Shard, Turn, deal, is_stream, whole_of, with_sampler
from ..exceptions import EvaluationError

__all__: list[str] = []


class Batches:
    """One pass over some batches.

    Args:
        source: The batches.
        length: How many they are, if it is known beforehand.
        limit: Batches to stop after; ``None`` for all.
        indices: The dataset indices of each batch, if they are known.
        turn: This rank's, if ``source`` is shared by ranks; ``None``: each has its own.
        total: Number of batches of all ranks, if ``source`` is this rank's share; ``None``: it
            holds those of all ranks.
        data: What was given to evaluate, before it was dealt out.
        counts: How many samples of the dataset the loader puts into each batch, if it tells.

    Attributes:
        length: Number of batches, if it is known beforehand.
        total: Number of batches of all ranks; ``None`` before it is known, and where each rank
            has its own.
        seen: Batches evaluated so far; counted by whoever takes them.
        first: The fingerprint of the first batch, where all ranks go through the batches, or each
            has its own; ``None`` before it is known.
        repeats: Whether all ranks are found to have the same first batch, and each its own data.
    """

    def __init__(
        self,
        source: Iterable[Any],
        length: int | None,
        limit: int | None,
        indices: Iterable[list[int]] | None,
        *,
        turn: Turn | None = ALONE,
        total: int | None = None,
        data: Any = None,
        counts: Iterable[int | None] = (),
    ) -> None:
        self.data = data
        self._counts = iter(counts)
        self.length = None if length is None else smallest(length, limit)
        self.total = self.length if turn is ALONE else total
        self.seen = 0
        self.first: int | None = None
        self.repeats = False
        self._source = source
        self._limit = limit
        self._iterator: Iterator[Any] | None = None
        self._indices = None if indices is None else iter(indices)
        self._turn = turn
        self._at_end = False

    def __iter__(self) -> Iterator[Any]:
        # Ignite asks for a new iterator when one ends early; a second pass would count twice.
        if self._iterator is None:
            self._iterator = self._once()
        return self._iterator

    def _once(self) -> Iterator[Any]:
        # Batches are counted by who takes them: a Python frame for each one costs too much here.
        source = () if self._limit == 0 else self._source  # which may start workers
        batches: Iterator[Any] = islice(iter(source), self._limit)
        if self._turn is None:
            batches = self._look(batches)
        elif self._turn is not ALONE and self.total is None:
            batches = self._pick(self._look(batches), self._turn)
        yield from batches
        self._at_end = True
        if self._turn is not None and self._turn.world_size == 1:
            self.total = self.seen
            if self.seen == 0:
                raise EvaluationError("the evaluation data is empty: no batch came")

    def _look(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Look at the first batch."""
        for batch in batches:
            if self.first is None:
                self.first = fingerprint(batch)
            yield batch

    def begins_alike(self) -> bool:
        """Return whether another pass would begin with the same batch."""
        return self.first == next(map(fingerprint, iter(self._source)), None)

    def _pick(self, batches: Iterator[Any], turn: Turn) -> Iterator[Any]:
        """Give this rank's batches out of all, and count these."""
        total = 0
        for batch in batches:
            if total % turn.world_size == turn.rank:
                yield batch
            total += 1
        self.total = total

    @property
    def exhausted(self) -> bool:
        """Whether every batch was evaluated."""
        return self._at_end or (self.length is not None and self.seen == self.length)

    def check_length(self) -> None:
        """Warn if data that is no loader has more batches than its length, where engines stop."""
        if self.data is None and not self._at_end and self.exhausted:
            for _ in self:
                self._at_end = True
                warnings.warn(
                    f"the evaluation data gives more batches than the {self.length} of its len(), "
                    "and the others were left out; mend __len__, or pass limit_batches= if that is "
                    "meant",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return

    def next_count(self) -> int | None:
        """Return how many samples the loader put into the next batch; ``None`` if nobody tells."""
        return next(self._counts, None)

    def next_indices(self) -> list[int] | None:
        """Return the dataset indices of the next batch; ``None`` if they cannot be known."""
        return None if self._indices is None else next(self._indices, None)

    def see_indices(self) -> list[int] | None:
        """Return what :meth:`next_indices` will return, and leave it there."""
        if self._indices is None:
            return None
        self._indices, ahead = tee(self._indices)
        return next(ahead, None)

    def numbers(self) -> list[int] | None:
        """Return the number, 0-based, that each batch seen has among those of all ranks.

        ``None`` if each rank has its own.
        """
        if self._turn is None:
            return None
        return list(self._turn.numbers(self.seen * self._turn.world_size))

    def close(self) -> None:
        """Let go of the loader's iterator, and so of its worker processes."""
        self._iterator = None
        self._source = ()


def plan_batches(
    data: Iterable[Any],
    limit: int | None = None,
    *,
    order: bool = False,
    turn: Turn | None = None,
    shard: bool = True,
) -> Batches:
    """Plan one pass over ``data``, or over one rank's share of it.

    Args:
        data: A ``DataLoader`` or any other iterable of batches.
        limit: Batches of all ranks to stop after; ``None`` for all.
        order: Keep track of which samples of the dataset each batch holds.
        turn: This rank's; ``None``: one process.  All that ranks tell each other is told here.
        shard: Whether the ranks share ``data``; else, as with a stream, each has its own.
    """
    alone = turn is None or turn.world_size == 1
    if turn is not None and not alone:
        check_unprepared(data, shard=shard)
    if turn is not None and shard and not is_stream(data) and not (alone and _is_whole(data)):
        return _plan_share(data, limit, order, turn)
    who = ALONE if alone else None
    if turn is not None and limit is not None:
        limit = len(turn.numbers(limit))  # of the batches of all ranks
    if not isinstance(data, DataLoader):
        return Batches(data, length_of(data) or None, limit, None, turn=who)
    if isinstance(data.dataset, IterableDataset):
        return Batches(go_through(apart(data)), None, limit, None, turn=who)
    indices: Iterable[list[int]] | None = batch_indices(data) if order else None
    drawn = order and indices is None
    counts: CountedBatches | Iterable[int | None] = counts_of(data)
    if drawn:
        indices = told = draw_order(data, limit)
        twin = with_order(data, told)
        counts = () if data.batch_sampler is None else map(len, told)
    else:
        counted = counts if isinstance(counts, CountedBatches) else None
        twin = apart(data, counted, limit=limit)
        counts = counts if counted is None else counted.sizes()
    source = go_through(twin, seed=not drawn)
    length = length_of(twin if drawn else data) or None
    return Batches(source, length, limit, indices, turn=who, data=data, counts=counts)


def _is_whole(data: Iterable[Any]) -> bool:
    """Return whether data has all batches in the order of one process as it is."""
    return not isinstance(data, DataLoader) or whole_of(data) is index_sampler(data)


def _plan_share(data: Iterable[Any], limit: int | None, order: bool, turn: Turn) -> Batches:
    if isinstance(data, Dealt):
        data = data.source
    if isinstance(data, (list, tuple)):
        part = Part(data, turn.numbers(len(range(len(data))[:limit])))
        return Batches(part, len(part), None, None, turn=turn, total=part.total)
    if not isinstance(data, DataLoader):
        said = length_of(data)
        length = None if said is None else len(turn.numbers(len(range(said)[:limit])))
        return Batches(data, length, limit, None, turn=turn)  # counted, whatever len() says
    loader = data
    whole = whole_of(loader)
    shard = Shard(whole, turn)

    def drawn() -> list[Any]:
        if not order:
            draw_seed(loader)  # so that one process draws the same
        return draw(whole, limit)

    shard.part = part = deal(whole, turn, limit, drawn=drawn)
    source = follow(go_through(apart(loader, shard)), shard, type(loader))
    indices: Iterable[list[int]] | None = None
    if order:
        indices = map(list, part) if loader.batch_sampler is not None else ([i] for i in part)
    # A class of the user's own may give more batches than its sampler names: let it, and see.
    length = len(part) if type(loader).__iter__ is DataLoader.__iter__ else None
    counts = () if loader.batch_sampler is None else map(_size, part)
    return Batches(
        source, length, None, indices, turn=turn, total=part.total, data=loader, counts=counts
    )


class CountedBatches(Sampler[Any]):
    """A sampler of batches that remembers how large each is, until :meth:`sizes` gives it out."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._sizes: deque[int | None] = deque()

    def __iter__(self) -> Iterator[Any]:
        for batch in self._sampler:
            self._sizes.append(_size(batch))
            yield batch

    def __len__(self) -> int:
        return len(self._sampler)

    def sizes(self) -> Iterator[int | None]:
        """Give the sizes out, each after its batch has been drawn."""
        while self._sizes:
            yield self._sizes.popleft()


def _size(batch: Any) -> int | None:
    return len(batch) if isinstance(batch, Sized) else None


def counts_of(loader: DataLoader[Any]) -> CountedBatches | Iterable[int]:
    """Return how many samples a loader puts into each batch, or what will know it in a pass."""
    sampler = loader.batch_sampler
    if (
        sampler is None
        or type(loader).__iter__ is not DataLoader.__iter__  # which may do anything
        or not getattr(loader, "in_order", True)  # workers may overtake each other
    ):
        return ()
    size = length_of(sampler.sampler) if type(sampler) is BatchSampler else None
    if size is None:
        return CountedBatches(sampler)
    whole, rest = divmod(size, sampler.batch_size)  # type: ignore[attr-defined]
    return chain(repeat(sampler.batch_size, whole), [rest])  # type: ignore[attr-defined]


def follow(batches: Iterable[Any], shard: Shard, kind: type) -> Iterator[Any]:
    """Go once through batches that should be just those of a settled shard.

    Args:
        batches: What a loader gives.
        shard: What it was told to follow.
        kind: The loader's class.

    Raises:
        EvaluationError: If a loader of the user's own class gives others.
    """
    wrong = EvaluationError(
        f"a {kind.__name__} does not give the batches that its sampler names, one by one, "
        "so they cannot be dealt out to ranks; evaluate on a DataLoader that does, or pass "
        "shard=False if each rank shall evaluate its loader as it is"
    )
    given = 0
    for batch in batches:
        if not shard.asked:
            raise wrong
        given += 1
        yield batch
    if given != len(shard):
        raise wrong


class Course(Sampler[Any]):
    """What workers that persist follow: they keep their sampler, so this one changes its mind.

    Attributes:
        sampler: The one of the present or next pass.
        limit: Entries of it to stop after, so that workers load nothing in vain; ``None`` for all.
        busy: Whether a pass is under way.
    """

    def __init__(self) -> None:
        self.sampler: Any = ()
        self.limit: int | None = None
        self.busy = False

    def __iter__(self) -> Iterator[Any]:
        yield from islice(self.sampler, self.limit)

    def __len__(self) -> int:
        return len(self.sampler)


_KEPT: WeakKeyDictionary[DataLoader[Any], DataLoader[Any]] = WeakKeyDictionary()


def apart(
    loader: DataLoader[Any], sampler: Any = None, *, limit: int | None = None
) -> DataLoader[Any]:
    """Return a loader to go through while somebody else may be going through ``loader``.

    A loader with persistent workers has one iterator for all: the next pass ends the present
    one, and what its workers draw is missing from it.  So evaluations share a twin, whose
    workers persist as well, whatever it follows from pass to pass.

    Args:
        loader: Stays as it is.
        sampler: What to follow, in just this order; ``None``: the loader's own.
        limit: Batches that will be taken at most; ``None`` for all.
    """
    in_order = sampler is not None or getattr(loader, "in_order", True)
    if not persists(loader):
        return loader if sampler is None else with_sampler(loader, sampler, in_order=True)
    own = index_sampler(loader)
    follows = own if sampler is None else sampler
    earlier = _KEPT.get(loader)
    if earlier is not None:
        if index_sampler(earlier).busy:  # an evaluation inside an evaluation of the same data
            return with_sampler(loader, follows, persistent_workers=False, in_order=in_order)
        if in_order and not getattr(earlier, "in_order", True):
            earlier = None
    course = Course() if earlier is None else index_sampler(earlier)
    course.sampler = follows
    # A class of the user's own may make less, or more, of what its sampler names.
    course.limit = limit if type(loader).__iter__ is DataLoader.__iter__ else None
    # Anew, since what the loader holds may have been replaced.
    twin = with_sampler(loader, course, in_order=in_order)
    if earlier is not None:
        vars(twin).update(_iterator=earlier._iterator, in_order=getattr(earlier, "in_order", True))
    _KEPT[loader] = twin
    return twin


def persists(loader: DataLoader[Any]) -> bool:
    """Return whether a loader has worker processes that outlive a pass."""
    return loader.num_workers > 0 and loader.persistent_workers


def draw_seed(loader: DataLoader[Any]) -> None:
    """Draw what a loader draws for its workers at the start of a pass, before its sampler."""
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)


def go_through(loader: DataLoader[Any], *, seed: bool = False) -> Iterable[Any]:
    """Return the batches of one pass over what :func:`apart` has returned.

    Args:
        loader: The loader.
        seed: Draw from the generator as often with workers that are running as with new ones,
            so that a sampler draws the same order.
    """
    course = index_sampler(loader)
    return _occupy(loader, course, seed) if isinstance(course, Course) else loader


def _occupy(loader: DataLoader[Any], course: Course, seed: bool) -> Iterator[Any]:
    course.busy = True
    try:
        if seed and loader._iterator is not None:
            draw_seed(loader)
        yield from loader
    finally:
        course.busy = False


def batch_indices(loader: DataLoader[Any]) -> Iterator[list[int]] | None:
    """Return the dataset indices of each batch of a loader that keeps the dataset's order."""
    sampler = loader.batch_sampler
    if (
        type(sampler) is not BatchSampler
        or type(sampler.sampler) is not SequentialSampler
        or not getattr(loader, "in_order", True)  # workers may overtake each other
        or not isinstance(loader.dataset, Sized)
    ):
        return None
    return map(list, sampler)  # one at a time: all of them take 45 bytes a sample


def draw_order(loader: DataLoader[Any], limit: int | None = None) -> list[list[int]]:
    """Let the loader's sampler decide on the batches of this pass, and write them down.

    Args:
        loader: The loader.
        limit: Batches to stop after; ``None`` for all.
    """
    drawn = draw(index_sampler(loader), smallest(limit, length_of(loader)))
    return [[e] if loader.batch_sampler is None else list(e) for e in drawn]


def with_order(loader: DataLoader[Any], order: list[list[int]]) -> DataLoader[Any]:
    """Return a loader like ``loader``, of whatever class, that serves just these batches once."""
    sampler: list[Any] = order
    if loader.batch_sampler is None:
        sampler = [index for batch in order for index in batch]
    return apart(loader, sampler)
