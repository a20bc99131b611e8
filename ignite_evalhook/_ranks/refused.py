"""Refuse, before the first batch, metrics that several processes cannot compute exactly.

:func:`check_exact` looks at a metric's class and at how it is attached.  What it cannot see is
noticed when it computes.

``Engine._event_handlers`` of Ignite is read, to see whether an update is filtered.
"""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.metrics import Frequency, GpuInfo, Metric, RunningAverage

from ..exceptions import EvaluationError
from .metric_units import inner_metrics
from .torchmetrics import is_torchmetric

__all__ = ["check_exact"]

# Sentences about "it", by class.
_REFUSED: dict[type[Metric], str] = {
    Frequency: "measures the time of its own process; time the evaluation as a whole, the record "
    "has its seconds",
    GpuInfo: "asks one machine's GPUs at every iteration; attach it to the trainer",
    RunningAverage: "averages over the iterations as they come, and each rank sees others; use "
    "ignite.metrics.Average, or attach the metric inside it",
}
_EVERY_ITERATION = (
    "is computed at every iteration, and ranks have different numbers of them; attach it with "
    "usage='epoch_wise'"
)
_FILTERED = (
    "is updated at some iterations only, counted on each rank by itself; choose the samples in "
    "output_transform or in the dataset"
)
_LAST_OUTPUT = (
    "is updated with the last output of the epoch, and each rank has another one; attach it with "
    "usage='epoch_wise'"
)


def check_exact(
    name: str, metric: Metric, completed_at: Any = None, *, evaluator: Engine | None = None
) -> None:
    """Refuse a metric that gives something else on several processes than on one.

    Args:
        name: The name under which it is attached.
        metric: The metric; those inside it are looked at as well.
        completed_at: The event at which it is computed.
        evaluator: The engine it is attached to, to see when it is updated, too.

    Raises:
        EvaluationError: If so; says why, and what to use instead.
    """
    for inner in inner_metrics(metric):
        reason = _why_not(inner)
        if reason is None and completed_at == Events.ITERATION_COMPLETED:
            reason = _EVERY_ITERATION
        if reason is None and evaluator is not None:
            reason = _why_not_attached(inner, evaluator)
        if reason is not None:
            within = "" if inner is metric else f", which is part of {type(metric).__name__},"
            raise EvaluationError(
                f"the metric {name!r} cannot be evaluated on several processes: "
                f"{type(inner).__name__}{within} {reason}"
            )


def _why_not(metric: Metric) -> str | None:
    refused = next((why for kind, why in _REFUSED.items() if isinstance(metric, kind)), None)
    if refused is not None:
        return refused
    own: Any = getattr(type(metric), "why_not_exact", None)
    if own is not None:
        reason: str | None = own(metric)
        return reason
    for attribute, value in vars(metric).items():
        if is_torchmetric(value):
            return (
                f"keeps a metric of torchmetrics in its attribute {attribute!r}; attach that one "
                "itself"
            )
    return None


def _why_not_attached(metric: Metric, evaluator: Engine) -> str | None:
    """Return what is wrong with the events at which a metric is updated and computed."""
    if evaluator.has_event_handler(metric.completed, Events.ITERATION_COMPLETED):
        return _EVERY_ITERATION
    if evaluator.has_event_handler(metric.iteration_completed, Events.EPOCH_COMPLETED):
        return _LAST_OUTPUT
    # A handler that is called for some events only is hidden behind a function of Ignite's.
    update = metric.iteration_completed
    handlers = evaluator._event_handlers.get(Events.ITERATION_COMPLETED, ())
    if any(handler == update for handler, _, _ in handlers):
        return None
    return _FILTERED if evaluator.has_event_handler(update, Events.ITERATION_COMPLETED) else None
