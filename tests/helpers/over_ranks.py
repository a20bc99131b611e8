"""The value of a metric over ranks, which are played here one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

import torch
from ignite.metrics import Metric

from helpers.private import AskedMetrics, pack, unpack


def over_ranks(
    make: Callable[[], Metric],
    batches: Sequence[Any],
    world: int,
    *,
    dealt: Sequence[Sequence[int]] | None = None,
    update: Callable[[Metric, Any], None] = lambda metric, batch: metric.update(batch),
    name: str = "x",
) -> Any:
    """Return what all ranks are told of a metric, to which batches are dealt by turn.

    Args:
        make: Makes the metric of a rank.
        batches: What one process would be given.
        world: The number of ranks; some may have no batch.
        dealt: The numbers of the batches of each rank, if they are not dealt by turn.
        update: Updates a metric with a batch.
        name: The name by which it is attached.
    """
    metrics = [make() for _ in range(world)]
    return value_over(metrics, batches, dealt=dealt, update=update, name=name)


def value_over(
    metrics: Sequence[Metric],
    batches: Sequence[Any],
    *,
    dealt: Sequence[Sequence[int]] | None = None,
    update: Callable[[Metric, Any], None] = lambda metric, batch: metric.update(batch),
    updated: Callable[[], None] = lambda: None,
    name: str = "x",
) -> Any:
    """Do so for metrics that are there, one of each rank; ``updated`` is called before they ask."""
    world = len(metrics)
    if dealt is None:
        dealt = [range(len(batches))[rank::world] for rank in range(world)]
    ranks = [AskedMetrics({name: m}, rank, world) for rank, m in enumerate(metrics)]
    for metric, own, numbers in zip(metrics, ranks, dealt, strict=True):
        metric.reset()
        own.note()
        for number in numbers:
            update(metric, batches[number])
            own.note()
    updated()
    first: Any = dealt
    for _ in range(99):
        said = [sent(rank.say(len(own))) for rank, own in zip(ranks, dealt, strict=True)]
        told = ranks[0].decide(said, first)
        first = None
        for rank in ranks:
            rank.hear(sent(told))
        if ranks[0].done:
            break
    assert all(rank.done for rank in ranks)
    ranks[0].answer_for_all()
    try:
        return metrics[0].compute()
    finally:
        ranks[0].close()


def sent(value: Any) -> Any:
    """Return a value as it arrives on another rank."""
    packed = pack(value)
    return unpack(packed.head, packed.payload())


def same(left: Any, right: Any) -> bool:
    """Return whether two results are equal; NaN equals NaN, unknown objects equal each other."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        unequal = (left != right) & ~((left != left) & (right != right))
        return not bool(unequal.any())
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, _COMPARED) and isinstance(right, _COMPARED):
        return bool(left == right) or (left != left and right != right)
    known = (torch.Tensor, dict, list, tuple, *_COMPARED)
    return not isinstance(left, known) and not isinstance(right, known)


_COMPARED = (Number, str, bytes, Path, type(None))
