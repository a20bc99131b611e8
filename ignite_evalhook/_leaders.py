"""Remember the best evaluation of each followed metric.

Values and decisions: no torch, no engine, no disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._best import Target, as_score

__all__: list[str] = []


@dataclass(frozen=True)
class Leader:
    """The best evaluation of one metric so far.

    Attributes:
        score: Its score, unsigned.
        epoch: Epoch of the trainer, 1-based; 0 is before training.
        iteration: Iterations that the trainer had completed.
    """

    score: float
    epoch: int
    iteration: int

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Leader:
        """Read what :meth:`state` returned.

        Raises:
            ValueError: If it is damaged.
        """
        score, epoch, iteration = state
        if as_score(score) is None or type(epoch) is not int or type(iteration) is not int:
            raise ValueError(f"a best is [score, epoch, iteration], got {state!r}")
        return cls(score, epoch, iteration)

    def state(self) -> list[Any]:
        """Return it as a plain list."""
        return [self.score, self.epoch, self.iteration]


def improved(
    targets: Iterable[Target], scores: Mapping[str, float], leaders: Mapping[str, Leader]
) -> tuple[str, ...]:
    """Return the metrics for which ``scores`` are a new best."""

    def best(metric: str) -> float | None:
        return leaders[metric].score if metric in leaders else None

    return tuple(
        target.metric
        for target in targets
        if target.metric in scores and target.is_better(scores[target.metric], best(target.metric))
    )


def without_lost(
    leaders: Mapping[str, Leader], before: Mapping[str, Leader], lost: Mapping[str, int]
) -> dict[str, Leader]:
    """Return the leaders when some files could not be written: those are led as before.

    Args:
        leaders: The best evaluations, by metric.
        before: The best evaluations before the files were to be written.
        lost: Metric to the iteration of the evaluation whose file is not there.
    """
    kept = dict(leaders)
    for metric, iteration in lost.items():
        leader = kept.get(metric)
        if leader is not None and leader.iteration == iteration:
            del kept[metric]
            if metric in before:
                kept[metric] = before[metric]
    return kept
