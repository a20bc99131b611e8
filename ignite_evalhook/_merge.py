"""Make a metric's states of all ranks give what the metric gives on one process.

:func:`merged` runs on one rank and talks to nobody.  It computes on copies, one for each state,
that take themselves for ranks (:mod:`~ignite_evalhook._virtual_ranks`); metrics that only keep
what they are given get all of it, in the order of the dataset, and compute on it as on one
process.

Two private names of Ignite are used: ``_BaseClassification`` (its ``_type`` is ``None`` before the
first update) and the lists ``_predictions`` and ``_targets`` of ``EpochMetric`` and its kind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol, cast

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.accuracy import _BaseClassification

from ._dataset_order import dealt_by_turn, in_dataset_order
from ._exactness import UNREDUCED, check_exact
from ._metric_state import ListMarks, Writer, metric_state
from ._reductions import same
from ._replicas import Replicas
from ._stand_in import no_collectives
from ._virtual_ranks import simulate
from .exceptions import EvaluationError

__all__ = [
    "ListMarks",
    "Mergeable",
    "check_exact",
    "merged",
    "metric_state",
    "no_collectives",
]

_HISTORY = ("_predictions", "_targets")  # what Ignite's EpochMetric and its kind keep


class Mergeable(Protocol):
    """A metric that knows itself how to be evaluated on several ranks; found by its methods."""

    def shard_state(self) -> Any:
        """Return what this rank has counted: nested plain values with tensors."""

    def merge_shards(self, shards: Sequence[Any], numbers: Sequence[Sequence[int]] | None) -> Any:
        """Return what ``compute()`` returns on one process, and leave the metric unchanged."""


def merged(
    metric: Metric,
    states: Sequence[Mapping[str, Any]],
    *,
    numbers: Sequence[Sequence[int]] | None = None,
    name: str | None = None,
    verify: bool = True,
) -> Any:
    """Return what ``metric.compute()`` would return on one process.

    Args:
        metric: This process's own metric.  Its configuration is used; it is not changed.
        states: From :func:`~ignite_evalhook._metric_state.metric_state`, one for each rank that
            evaluated at least one batch, in the order of the ranks.
        numbers: The numbers, in the whole dataset, of the batches each state has seen, in the
            order it saw them.  Without it, batches were dealt out by turn.
        name: The name under which the metric is attached, for the errors.
        verify: Compute on all ranks to the end, and compare: finds a metric that reduces only a
            part of what it counts.  Costs one more ``compute()`` a rank.

    Raises:
        NotComputableError: If no rank has anything to compute from.
        EvaluationError: If the metric cannot be computed over several ranks.
        ValueError: If there are no states, or not as many ``numbers``.
    """
    if not states:
        raise ValueError("states must hold at least one rank's state, got none")
    if numbers is not None and len(numbers) != len(states):
        raise ValueError(f"numbers must be given for all {len(states)} states, got {len(numbers)}")
    return _Merge(metric, states, numbers, name, verify).value_of(0)


class _Merge:
    """The values of a metric and of those inside it, each found once."""

    def __init__(
        self,
        metric: Metric,
        states: Sequence[Mapping[str, Any]],
        numbers: Sequence[Sequence[int]] | None,
        name: str | None,
        verify: bool,
    ) -> None:
        writer = Writer(metric)
        writer.write_all()
        self._metrics = writer.metrics
        self._classes = writer.classes
        self._numbers = numbers
        self._name = name
        self._verify = verify
        self._found: dict[int, Callable[[], Any]] = {}
        self._taken = 0  # how often a metric has taken the value of an inner one
        self._check_alike(states)
        ordered = [
            _in_order([state["metrics"][place] for state in states], numbers)
            for place in range(len(self._metrics))
        ]
        self._ranks = list(zip(*ordered, strict=True))  # for each rank, its entries

    def value_of(self, place: int) -> Any:
        """Return the value of one of the metrics, or raise what it raises."""
        if place not in self._found:
            try:
                value = self._compute(place)
            except NotComputableError as error:
                self._found[place] = partial(_raise, error)
            else:
                self._found[place] = partial(copy.deepcopy, value)
        return self._found[place]()

    def _inner(self, place: int) -> Callable[[], Any]:
        """Return the ``compute`` of a metric inside another one."""

        def compute() -> Any:
            self._taken += 1
            return self.value_of(place)

        return compute

    def _compute(self, place: int) -> Any:
        own = self._metrics[place]
        entries = [rank[place] for rank in self._ranks]
        if "custom" in entries[0]:
            shards = [entry["custom"] for entry in entries]
            merge = partial(own.merge_shards, shards, self._numbers)
            return simulate(lambda rank: merge, 1, name=self._title(place)).value
        present = list(range(len(entries)))
        if isinstance(own, _BaseClassification):
            present = [rank for rank in present if not _never_updated(entries[rank])] or present
        if len(present) > 1 and _is_history(own, entries):
            return self._compute_alone(place)
        before = self._taken
        outcome = simulate(
            lambda rank: self._replica(place, self._ranks[present[rank]]).compute,
            len(present),
            name=self._title(place),
            # Ignite's own are known to reduce all that they count, and FID takes seconds.
            verify=self._verify and not type(own).__module__.startswith("ignite."),
        )
        if outcome.ranks > 1 and not outcome.asked and self._taken == before:
            if _keeps_history(entries):
                return self._compute_alone(place)
            raise EvaluationError(f"{self._title(place)} {UNREDUCED}")
        if outcome.difference is not None:
            raise EvaluationError(
                f"{self._title(place)} cannot be computed over all ranks: {outcome.difference}"
            )
        return outcome.value

    def _compute_alone(self, place: int) -> Any:
        """Compute on one process from the predictions and targets of all ranks."""
        entries = [dict(entry) for entry in self._ranks[0]]
        parts = [rank[place]["values"] for rank in self._ranks]
        history = {name: list(chain(*(part[name] for part in parts))) for name in _HISTORY}
        entries[place]["values"] = {**parts[0], **history}
        return simulate(
            lambda rank: self._replica(place, entries).compute, 1, name=self._title(place)
        ).value

    def _replica(self, place: int, entries: Sequence[Mapping[str, Any]]) -> Metric:
        replicas = Replicas(self._metrics, self._classes, entries, compute=self._inner)
        return replicas.make(place)

    def _check_alike(self, states: Sequence[Mapping[str, Any]]) -> None:
        expected = [_class_name(metric) for metric in self._metrics]
        for rank, state in enumerate(states):
            found = [str(entry["class"]).rpartition(".")[2] for entry in state["metrics"]]
            if found != expected:
                raise EvaluationError(
                    f"{self._title(0)} is made of {', '.join(expected)} here and of "
                    f"{', '.join(found)} in state {rank}; make all metrics in __init__, so that "
                    "they are the same on all ranks"
                )

    def _title(self, place: int) -> str:
        outer = f"the metric {_class_name(self._metrics[0])}"
        if self._name is not None:
            outer = f"the metric {self._name!r} ({_class_name(self._metrics[0])})"
        return outer if place == 0 else f"{_class_name(self._metrics[place])} in {outer}"


def _class_name(metric: Metric) -> str:
    return type(metric).__name__


def _raise(error: Exception) -> None:
    raise error


def _never_updated(entry: Mapping[str, Any]) -> bool:
    """Return whether one of Ignite's classifiers has seen no batch at all.

    One inside another metric (of a group of people, say) may have seen none on some rank, and
    not all of them raise ``NotComputableError`` then.
    """
    return entry["values"].get("_type") is None


def _keeps_history(entries: Sequence[Mapping[str, Any]]) -> bool:
    return all(
        isinstance(entry["values"].get(name), list) for entry in entries for name in _HISTORY
    )


def _is_history(metric: Metric, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a metric is a function of predictions and targets, and of nothing else."""
    computes = type(metric).compute.__module__
    return computes.split(".")[0] == "ignite" and _keeps_history(entries)


def _in_order(
    entries: Sequence[Mapping[str, Any]], numbers: Sequence[Sequence[int]] | None
) -> list[Mapping[str, Any]]:
    """Return the ranks' entries for one metric, with its lists in the order of the dataset.

    A rank that had nothing in its lists gets nothing: it may be left out when computing.
    """
    if len(entries) == 1 or "custom" in entries[0]:
        return list(entries)
    changed = [dict(entry["values"]) for entry in entries]
    lists: Lists = {}
    for name in changed[0]:
        ranks = [values.get(name) for values in changed]
        if all(isinstance(items, list) for items in ranks):
            lists[name] = cast("list[list[Any]]", ranks)
    marked = all("marks" in entry for entry in entries)
    deal = _by_marks(entries, lists, numbers) if marked else _one_by_one(lists, numbers)
    for name, dealt in deal.items():
        for values, items in zip(changed, dealt, strict=True):
            values[name] = items
    return [{**entry, "values": values} for entry, values in zip(entries, changed, strict=True)]


Lists = dict[str, list[list[Any]]]  # by attribute, for each rank


def _by_marks(
    entries: Sequence[Mapping[str, Any]],
    lists: Lists,
    numbers: Sequence[Sequence[int]] | None,
) -> Lists:
    """Deal lists out by what each batch has added to them."""
    if numbers is None:
        numbers = dealt_by_turn([entry["batches"] for entry in entries])
    places = []  # for each rank, its batches that have added to any list
    for entry in entries:
        ends = [entry["marks"][name] for name in lists if name in entry["marks"]]
        places.append([
            at for at in range(entry["batches"]) if any(end[at] != end[at + 1] for end in ends)
        ])  # fmt: skip
    kept = [[part[at] for at in place] for part, place in zip(numbers, places, strict=True)]
    found = {}
    for name, ranks in lists.items():
        if not any(name in entry["marks"] for entry in entries):
            continue  # it did not grow: configuration
        marks = []
        for entry, items, place in zip(entries, ranks, places, strict=True):
            ends = entry["marks"].get(name, [len(items)] * (entry["batches"] + 1))
            marks.append([ends[0], *(ends[at + 1] for at in place)])
        dealt = in_dataset_order(ranks, marks, kept)
        if dealt is not None:
            found[name] = dealt
    return found


def _one_by_one(lists: Lists, numbers: Sequence[Sequence[int]] | None) -> Lists:
    """Deal lists of tensors out that have one tensor for each batch."""
    found = {}
    for name, ranks in lists.items():
        if not all(isinstance(item, torch.Tensor) for item in chain(*ranks)):
            continue
        if name not in _HISTORY and all(same(ranks[0], items) for items in ranks):
            continue  # what is the same on all ranks may as well be configuration
        marks = [range(len(items) + 1) for items in ranks]
        by_turn = dealt_by_turn([len(items) for items in ranks])
        dealt = in_dataset_order(ranks, marks, by_turn if numbers is None else numbers)
        if dealt is not None:
            found[name] = dealt
    return found
