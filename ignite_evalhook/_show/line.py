"""Say in one line, for people, what an evaluation said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .._decide.best import Target, as_score, describe_distance
from .._decide.history import EvalRecord

__all__: list[str] = []


def describe(
    record: EvalRecord,
    scores: Mapping[str, float],
    before: Iterable[tuple[Target, float | None]],
) -> str:
    """Describe a record.

    Args:
        record: What the evaluation said.
        scores: The scores that could be compared, by metric.
        before: The followed metrics, each with its best score until then.
    """
    # Of a nested result what is followed; all of it may be a number for each of many classes.
    numbers = {**record.metrics, **scores}
    metrics = [f"{n} {value:.6g}" for n, value in numbers.items() if as_score(value) is not None]
    parts = [", ".join(metrics) or "no metrics"]
    for target, best in before:
        if target.metric in record.best_of:
            was = "" if best is None else f" (was {best:.6g})"
            parts.append(f"new best {target.metric}{was}")
        elif target.metric in scores:
            parts.append(describe_distance(target, scores[target.metric], best))
    samples = "" if record.samples is None else f"{record.samples} samples in "
    parts.append(f"{samples}{record.seconds:.2f} s")
    return "; ".join(parts)
