"""Take metrics apart into what is computed over the ranks by itself.

That is a metric that is attached, and inside of it each that holds no other one: a part of it may
have been updated on some ranks only (a group of people, say), and is then computed over these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ignite.metrics import Metric

from .list_marks import Holder, ListMarks
from .state_snapshot import inner_items, is_users

__all__ = ["Part", "Unit", "inner_metrics", "units_of"]


@dataclass(frozen=True)
class Part:
    """How an object that is no metric of Ignite is computed by itself.

    Attributes:
        target: The object; whoever calls its ``compute()`` is given the value over the ranks.
        compute: Computes it on this rank.
        names: The attributes that are its state.
    """

    target: Any
    compute: Callable[[], Any]
    names: Sequence[str]


@dataclass
class Unit:
    """Something that is computed over the ranks by itself.

    Attributes:
        key: Its name among all; the same on all ranks.
        title: Words for it.
        target: The metric, or the :class:`Part`'s object.
        compute: Computes it.
        parts: The units inside, whose values it takes.
        holders: What may hold lists that grow.
        followed: What is put back after a computation.
        lists_only: Words for why nothing else than lists can be counted; ``None`` if it can.
    """

    key: str
    title: str
    target: Any
    compute: Callable[[], Any]
    parts: Sequence[Unit]
    holders: Sequence[Holder]
    followed: Sequence[Any]
    lists_only: str | None = None
    marks: ListMarks = field(init=False)

    def __post_init__(self) -> None:
        self.marks = ListMarks(self.holders)

    @property
    def classes(self) -> str:
        """Return the classes it is made of; the same on all ranks."""
        every = [self.target, *(holder.item for holder in self.holders)]
        return ", ".join(dict.fromkeys(type(one).__name__ for one in every))


def inner_metrics(metric: Metric) -> list[Metric]:
    """Return a metric and those inside it: in its attributes, and in their lists and mappings."""
    return inner_items(metric, lambda value: isinstance(value, Metric))


def units_of(name: str, metric: Metric) -> list[Unit]:
    """Return the units of a metric that is attached as ``name``; itself is the last one."""
    inner = inner_metrics(metric)
    units: list[Unit] = []
    outer = f"the metric {name!r} ({type(metric).__name__})"

    def add(target: Any, compute: Callable[[], Any], holders: Sequence[Holder], whole: Any) -> None:
        title = outer if target is metric else f"{type(target).__name__} in {outer}"
        key = name if target is metric else f"{name}/{len(units)}"
        units.append(Unit(
            key, title, target, compute,
            parts=[*units] if target is metric else [],
            holders=holders,
            followed=whole,
            lists_only=getattr(type(target), "why_lists_only", None),
        ))  # fmt: skip

    for one in inner:
        parts: Sequence[Part] = getattr(type(one), "own_parts", _no_parts)(one)
        for part in parts:
            add(part.target, part.compute, [Holder(part.target, part.names)], [part.target])
        if one is not metric and not parts and len(inner_metrics(one)) == 1:
            add(one, _compute_of(one), _holders_of(one), _followed(one))
    every = {id(item): item for one in inner for item in _followed(one)}
    add(metric, _compute_of(metric), _holders_of(metric), [*every.values()])
    return units


def _no_parts(metric: Metric) -> Sequence[Part]:
    return ()


def _followed(metric: Metric) -> list[Any]:
    if hasattr(type(metric), "why_lists_only"):
        return []  # computed once, and what that leaves behind may be of use
    own = inner_items(metric, lambda value: isinstance(value, Metric) or is_users(value))
    return [*own, *getattr(type(metric), "followed", _no_parts)(metric)]


def _compute_of(metric: Metric) -> Callable[[], Any]:
    return lambda: metric.compute()


def _holders_of(metric: Metric) -> Sequence[Holder]:
    own: Any = getattr(type(metric), "list_holders", None)
    if own is not None:
        holders: Sequence[Holder] = own(metric)
        return holders
    ignites = type(metric).__module__.startswith("ignite.")
    return [Holder(metric, known=ignites, trusted=ignites)]
