"""Bring together what the ranks have seen in one evaluation.

How metrics are computed over the ranks is :mod:`ignite_evalhook._ranks.asking`'s business; here the
ranks meet for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.metrics import Metric

from .._predictions.carriers import Carrier
from .._predictions.collect import Part, ResultCollector
from .._ranks.asking import AskedMetrics
from .._ranks.compare import OWN_PARTS
from .._ranks.team import Section, Team
from ..exceptions import EvaluationError
from .loader import Batches
from .loss_meter import LossMeter

__all__: list[str] = []


class Pool:
    """What the ranks bring to the meeting after the last batch, and what comes of it.

    Args:
        section: What all ranks go through together.
        metrics: The evaluator's metrics by name.
        batches: This rank's pass over its shard.
        meter: This rank's losses.
        collector: This rank's predictions, if they are wanted.
        carrier: How they get to rank 0.
        lockstep: A forward pass needs all ranks, so they make as many of them.

    Attributes:
        losses: The means over all ranks, by name.
        samples: Samples of all ranks; ``None`` if an output did not tell.
    """

    def __init__(
        self,
        section: Section,
        metrics: Mapping[str, Metric],
        batches: Batches,
        meter: LossMeter,
        collector: ResultCollector | None,
        carrier: Carrier,
        lockstep: bool,
    ) -> None:
        self.losses: dict[str, float] = {}
        self.samples: int | None = None
        self._section = section
        self._metrics = dict(metrics)
        self._batches = batches
        self._meter = meter
        self._collector = collector
        self._carrier = carrier
        self._lockstep = lockstep
        team = section.team
        self._asked = AskedMetrics(self._metrics, team.rank, team.size, team_reduce(team))
        self._shared = batches.numbers() is not None
        self._kept: list[Any] = []  # in lockstep, a batch to go through again

    def before_batch(self, batch: Any) -> int | None:
        """Get ready for a batch; see whether another rank has failed meanwhile.

        Returns:
            Its number among those of all ranks, 0-based; ``None`` if each rank has its own.

        Raises:
            EvaluationError: If one has.
        """
        self._asked.note()
        if self._lockstep:
            self._kept[:] = [batch]
            self._next_round(has_batch=True)
        else:
            self._section.listen()
        team = self._section.team
        return team.rank + self._batches.seen * team.size if self._shared else None

    def keep_step(self, process: Callable[[Any], Any]) -> None:
        """Go through a batch again, for nothing, as long as other ranks have more of them."""
        while self._lockstep and self._next_round(has_batch=False):
            process(self._kept[0])
        self._kept.clear()

    def _next_round(self, *, has_batch: bool) -> bool:
        """Agree on one more forward pass of all ranks; return whether any has a batch for it.

        A rank that never had one is given another rank's.
        """

        def look(said: Sequence[tuple[bool, bool]]) -> tuple[bool, int | None]:
            having = [rank for rank, (has, _) in enumerate(said) if has]
            is_wanting = not all(keeps for _, keeps in said)
            return bool(having), having[0] if having and is_wanting else None

        section = self._section
        goes_on, giver = section.meet("a round", (has_batch, bool(self._kept)), look)
        if giver is not None:
            given = self._kept[0] if section.team.rank == giver else None
            batch = section.meet("a batch for all", given, lambda said: said[giver])
            self._kept = self._kept or [batch]
        return bool(goes_on)

    def meet(self, samples: int | None) -> None:
        """Meet the other ranks when this one has evaluated its last batch.

        From then on, until :meth:`close`, the metrics give what all ranks were told.

        Raises:
            EvaluationError: On every rank, if one has failed, nobody had a batch, or a metric
                cannot be computed.
        """
        self._asked.note()
        numbers = self._batches.numbers()
        results = None
        if self._collector is not None:
            # Rank 0 has its own already; opened, they would take memory for nothing.
            parts = [] if self._section.team.leads else self._collector.parts()
            results = self._carrier.hand_over(parts, self._section)
        report = {
            "seen": self._batches.seen,
            "total": self._batches.total,
            "first": self._batches.first,
            "numbers": numbers,
            "samples": samples,
            "losses": self._meter.state(),
            "metrics": self._asked.say(self._batches.seen),
            "results": results,
        }
        differ, told, self.losses, self.samples, self._batches.repeats = self._section.meet(
            "batches", report, self._bring_together
        )
        if differ:  # unless each pass has others, by chance
            is_part = self._section.team.rank > 0 and self._batches.begins_alike()
            self._section.meet("first batches", is_part, _check_first)
        self._asked.hear(told)
        while not self._asked.done:
            words = self._asked.say(self._batches.seen)
            self._asked.hear(self._section.meet("metrics ask", words, self._asked.decide))
        self._asked.answer_for_all()

    def _bring_together(self, reports: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
        check_same_data([report["total"] for report in reports])
        firsts = {report["first"] for report in reports if report["first"] is not None}
        active = [report for report in reports if report["seen"] > 0]
        if not active:
            raise EvaluationError("the evaluation data is empty: no batch came, on no rank")
        for report in reports[1:]:
            self._meter.merge(report["losses"])
        if self._collector is not None:
            parts = [self._carrier.take(report["results"]) for report in reports[1:]]
            if any(report["numbers"] is None for report in reports):
                parts = one_after_another([self._collector.parts(), *parts])[1:]
            for part in parts:
                self._collector.merge(part)
        told = self._asked.decide([report["metrics"] for report in reports], _numbers(reports))
        samples = [report["samples"] for report in active]
        known = [count for count in samples if count is not None]
        whole = sum(known) if len(known) == len(samples) else None
        repeats = not self._shared and len(firsts) == 1 and len(active) > 1
        differ = self._shared and len(firsts) > 1
        return differ, told, self._meter.compute(), whole, repeats

    def close(self) -> None:
        """Let the metrics compute by themselves again."""
        self._asked.close()


def team_reduce(team: Team) -> Callable[[torch.Tensor, str], None]:
    """Return what reduces a tensor in place over all ranks, by the team's own group."""

    def reduce(tensor: torch.Tensor, op: str) -> None:
        dist.all_reduce(tensor, getattr(dist.ReduceOp, op), group=team.group)

    return reduce


def check_same_data(totals: Sequence[int | None]) -> None:
    """Refuse data of which the ranks know different numbers of batches.

    Raises:
        EvaluationError: Naming them.
    """
    known = {rank: total for rank, total in enumerate(totals) if total is not None}
    if len(set(known.values())) > 1:
        counts = ", ".join(f"rank {rank} has {total}" for rank, total in known.items())
        raise EvaluationError(
            f"the ranks were given different data: {counts} batches.  {OWN_PARTS}"
        )


def _check_first(are_parts: Sequence[bool]) -> None:
    if any(are_parts):
        raise EvaluationError(
            f"the ranks were given different data: their first batches differ.  {OWN_PARTS}"
        )


def one_after_another(ranks: Sequence[Sequence[Part]]) -> list[list[Part]]:
    """Number the batches of ranks that each have their own: rank after rank.

    Indices stay what they are where each is one rank's only, so they are of one dataset.  Else
    each rank has its own dataset, and these come one after another.

    Args:
        ranks: What each rank has collected, with numbers from 0 on.
    """
    indices = [[index for part in parts for index in part[1] or ()] for parts in ranks]
    together = len(set().union(*indices)) == sum(len(set(own)) for own in indices)
    numbered, start, shift = [], 0, 0
    for parts, own in zip(ranks, indices, strict=True):
        numbered.append([
            (start + number, at and [shift + index for index in at], count, table)
            for number, at, count, table in parts
        ])  # fmt: skip
        start += len(parts)
        shift += 0 if together or not own else 1 + max(own)
    return numbered


def _numbers(reports: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return the place of each rank's batches in the order of all; rank by rank if unknown."""
    if all(report["numbers"] is not None for report in reports if report["seen"] > 0):
        return [list(report["numbers"] or ()) for report in reports]
    numbers, start = [], 0
    for report in reports:
        numbers.append(list(range(start, start + report["seen"])))
        start += report["seen"]
    return numbers
