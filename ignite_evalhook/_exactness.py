"""Refuse, before the first batch, metrics that several processes cannot compute exactly.

:func:`check_exact` looks at a metric's class and at how it is attached.  What it cannot see,
:func:`~ignite_evalhook._merge.merged` notices when it computes.

``Engine._event_handlers`` of Ignite is read, to see whether an update is filtered.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ignite.engine import Engine, Events
from ignite.metrics import EpochMetric, Frequency, GpuInfo, Metric, RunningAverage

from ._metric_state import Writer
from ._torchmetrics import is_torchmetric
from .exceptions import EvaluationError

__all__ = ["UNREDUCED", "check_exact"]

UNREDUCED = (
    "never asks the other ranks while it computes, so each rank would have its own value; put "
    "@sync_all_reduce('_sum', ...) on compute(), with the names of all that update() counts"
)

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

_REDUCING = frozenset({
    "all_gather", "all_gather_tensors_with_shapes", "all_reduce", "broadcast", "sync_all_reduce",
})  # fmt: skip
_COLLECTIVES = (
    "all_gather", "all_reduce", "all_to_all", "barrier", "broadcast", "gather", "reduce", "scatter",
)  # fmt: skip
_DEPTH = 3  # functions that call functions


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
    writer = Writer(metric)
    writer.write_all()
    for inner in writer.metrics:
        reason = _why_not(inner, composed=len(writer.metrics) > 1)
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


def _why_not(metric: Metric, *, composed: bool) -> str | None:
    refused = next((why for kind, why in _REFUSED.items() if isinstance(metric, kind)), None)
    if refused is not None:
        return refused
    why_not_exact = getattr(type(metric), "why_not_exact", None)
    if why_not_exact is not None:
        reason: str | None = why_not_exact(metric)
        return reason
    if hasattr(type(metric), "merge_shards") or type(metric).__module__.startswith("ignite."):
        return None
    for attribute, value in vars(metric).items():
        if is_torchmetric(value):
            return (
                f"keeps a metric of torchmetrics in its attribute {attribute!r}; attach that one "
                "itself"
            )
    codes = list(_codes_of(type(metric)))
    direct = next(filter(None, map(_direct_collective, codes)), None)
    if direct is not None:
        return (
            f"calls {direct} of torch.distributed, and the other ranks are not there when it "
            f"computes; call idist.{direct} of ignite.distributed"
        )
    used = {name for code in codes for name, _ in code}
    simple = not composed and not isinstance(metric, EpochMetric) and not _has_helpers(metric)
    return UNREDUCED if simple and not _REDUCING & used else None


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


def _has_helpers(metric: Metric) -> bool:
    """Return whether objects of the user's might reduce in its place."""
    entry = Writer(metric).write_all()[0]
    return bool(entry["objects"])


def _codes_of(cls: type) -> Iterator[list[tuple[str, Any]]]:
    """Yield the names that a metric's own methods, and the functions they call, refer to."""
    seen: set[CodeType] = set()
    for base in cls.__mro__:
        if base in (Metric, object) or base.__module__.startswith("ignite.base"):
            continue
        for member in vars(base).values():
            function = getattr(member, "fget", member)
            function = getattr(function, "__func__", function)
            if isinstance(function, FunctionType):
                yield from _names_in(function, _DEPTH, seen)


def _names_in(
    function: FunctionType, depth: int, seen: set[CodeType]
) -> Iterator[list[tuple[str, Any]]]:
    if function.__code__ in seen:
        return
    seen.add(function.__code__)
    codes = [function.__code__]
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    for code in codes:
        codes.extend(const for const in code.co_consts if isinstance(const, CodeType))
        found = [(name, function.__globals__.get(name)) for name in code.co_names]
        yield found
        cells.extend(value for _, value in found)
    if depth > 0 and not function.__module__.startswith("torch"):
        for value in cells:
            if isinstance(value, FunctionType):
                yield from _names_in(value, depth - 1, seen)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is not bound yet
        return False
    return True


def _direct_collective(code: list[tuple[str, Any]]) -> str | None:
    """Return the name of a collective of torch that a piece of code calls by itself."""
    modules = {value.__name__ for _, value in code if isinstance(value, ModuleType)}
    through_module = "torch.distributed" in modules and "ignite.distributed" not in modules
    for name, value in code:
        module = getattr(value, "__module__", None) if callable(value) else None
        imported = isinstance(module, str) and module.startswith("torch.distributed")
        if name.startswith(_COLLECTIVES) and (imported or (through_module and value is None)):
            return name
    return None
