"""Read the scores out of the metrics of an evaluation.

A metric that is missing or no number is a mistake, unless there was nothing to evaluate; one that
is not finite is a result, but never a score to compare.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._decide.best import as_score
from .._decide.nested import MISSING, flat, look_up
from .._log import logger
from ..exceptions import EvaluationError

__all__: list[str] = []


@dataclass(frozen=True)
class ScoreReader:
    """How a hook reads scores.

    Attributes:
        name: The hook's name, for messages.
        on_bad_score: ``"raise"``, or ``"skip"``: only warn of what is missing or no number.
    """

    name: str
    on_bad_score: str

    def read(
        self, metrics: Mapping[str, Any], wanted: Iterable[str], *, empty: bool, when: str
    ) -> dict[str, float]:
        """Return the scores by metric that can be compared.

        Args:
            metrics: The complete metrics of an evaluation.
            wanted: The metrics to read.
            empty: Whether the evaluation had nothing to say, which is no mistake.
            when: Words for the moment, for messages.

        Raises:
            EvaluationError: If a metric is missing or no number.
        """
        scores: dict[str, float] = {}
        for metric in wanted:
            if not self.check(metric, metrics, empty=empty, when=when):
                continue
            score = float(look_up(metrics, metric))
            if math.isfinite(score):
                scores[metric] = score
            else:
                logger.warning(
                    "%s %s: %s is %s; recorded, but never the best", self.name, when, metric, score
                )
        return scores

    def check(self, metric: str, metrics: Mapping[str, Any], *, empty: bool, when: str) -> bool:
        """Return whether a metric has a number; arguments as for :meth:`read`.

        Raises:
            EvaluationError: If it has none, and that is neither excused nor to be skipped.
        """
        what = problem_of(metric, metrics)
        if what is None:
            return True
        self.excuse(what, empty=empty, when=when)
        return False

    def excuse(self, what: str, *, empty: bool, when: str) -> None:
        """Warn that there is no score, if that may be; ``what`` says why, else as :meth:`read`.

        Raises:
            EvaluationError: If that is neither excused nor to be skipped.
        """
        if empty:
            logger.warning("%s %s: the result is empty; recorded without a score", self.name, when)
        elif self.on_bad_score == "skip":
            logger.warning("%s %s: %s; recorded without a score", self.name, when, what)
        else:
            raise EvaluationError(f"{self.name} {when}: {what}; on_bad_score='skip' records it")


def problem_of(metric: str, metrics: Mapping[str, Any]) -> str | None:
    """Say why a metric has no number; ``None`` if it has one."""
    value = look_up(metrics, metric)
    if value is MISSING:
        return missing_words(metric, flat(metrics))
    return None if as_score(value) is not None else f"{metric!r} is no number: {value!r:.80}"


def missing_words(metric: str, metrics: Iterable[str]) -> str:
    """Say that a metric is missing, which ones there are, and what was probably meant."""
    names = list(metrics)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(metric.lower(), folded, n=1)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
    return f"there is no metric {metric!r} in the result, which has {names}{hint}"
