"""Let early stopping and learning-rate schedulers act on what evaluations say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ignite.engine import Engine
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .._decide.best import Target, as_score
from .._decide.history import EvalRecord
from .._decide.nested import look_up
from .._decide.rules import Rule
from .._files.plain import to_plain
from .early_stopping import SafeEarlyStopping

__all__: list[str] = []


class Watchers:
    """Whoever acts on the record of an evaluation.

    Args:
        followed: Returns the name of the first followed metric, for those that name none;
            ``None`` while ``"auto"`` has not chosen one.
    """

    def __init__(self, followed: Callable[[], str | None]) -> None:
        self._followed = followed
        self._stoppers: list[tuple[str | None, SafeEarlyStopping]] = []
        self._schedulers: list[tuple[str | None, Any]] = []
        self._waiting: dict[str, list[dict[str, Any]]] = {}

    def add_stopper(self, metric: str | None, stopper: SafeEarlyStopping) -> None:
        """Add an early stopping, and give it the loaded state that waits for it."""
        self._stoppers.append((metric, stopper))
        self._take_state("early_stopping", metric, stopper)

    def add_scheduler(self, metric: str | None, scheduler: Any) -> None:
        """Add a scheduler, and give it the loaded state that waits for it."""
        self._schedulers.append((metric, scheduler))
        self._take_state("plateau", metric, scheduler)

    @property
    def metrics(self) -> list[str]:
        """The metrics named."""
        return [m for m, _ in (*self._stoppers, *self._schedulers) if m is not None]

    def stopping(self) -> list[tuple[str | None, int]]:
        """Return the metric and the patience of each early stopping."""
        return [(metric, stopper.patience) for metric, stopper in self._stoppers]

    @property
    def exhausted(self) -> bool:
        """Whether an early stopping has ended the run."""
        return any(stopper.exhausted for _, stopper in self._stoppers)

    def renew(self) -> None:
        """Let early stoppings that have ended a run count anew, in one that goes on."""
        for _, stopper in self._stoppers:
            stopper.renew()

    def counters(self) -> list[int]:
        """Return how many evaluations without improvement each early stopping has counted."""
        return [stopper.counter for _, stopper in self._stoppers]

    def set_trainer(self, trainer: Engine) -> None:
        """Say which engine to stop."""
        for _, stopper in self._stoppers:
            stopper.trainer = trainer

    def heed(self, record: EvalRecord, evaluator: Engine) -> None:
        """Act on a record that has joined the history."""
        for _, stopper in self._stoppers:
            stopper(evaluator)
        for metric, scheduler in self._schedulers:
            name = self._followed() if metric is None else metric
            value = None if name is None else as_score(look_up(record.metrics, name))
            if value is None or not math.isfinite(value):
                continue  # torch's scheduler would take NaN for an improvement
            if callable(scheduler):
                scheduler(evaluator)
            else:
                scheduler.step(value)

    def reset(self) -> None:
        """Forget counters and best scores of early stopping."""
        for _, stopper in self._stoppers:
            stopper.reset()
        self._waiting = {}

    def state(self) -> dict[str, Any]:
        """Return all states as plain values."""
        return {
            "early_stopping": [
                {"metric": metric, "state": dict(stopper.state_dict())}
                for metric, stopper in self._stoppers
            ],
            "plateau": [
                {"metric": metric, "state": to_plain(_without_methods(scheduler), "scheduler")}
                for metric, scheduler in self._schedulers
            ],
        }

    @staticmethod
    def check_state(state: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """Refuse states that are damaged, before anything is loaded.

        Raises:
            Exception: Saying what is missing or wrong.
        """
        for kind, entries in state.items():
            for entry in entries:
                metric, inner = entry["metric"], dict(entry["state"])
                if metric is not None and not isinstance(metric, str):
                    raise ValueError(f"a watcher's metric is {metric!r}")
                if kind == "early_stopping" and not (
                    type(inner["counter"]) is int
                    and (inner["best_score"] is None or as_score(inner["best_score"]) is not None)
                ):
                    raise ValueError(f"the state of an early stopping is {inner!r}")

    def load_state(self, state: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """Take over states, also for watchers that are added later."""
        self._waiting = {key: [dict(entry) for entry in state[key]] for key in state}
        for metric, stopper in self._stoppers:
            self._take_state("early_stopping", metric, stopper)
        for metric, scheduler in self._schedulers:
            self._take_state("plateau", metric, scheduler)

    def _take_state(self, kind: str, metric: str | None, item: Any) -> None:
        waiting = self._waiting.get(kind, [])
        for number, entry in enumerate(waiting):
            if entry["metric"] == metric:
                item.load_state_dict(entry["state"])
                del waiting[number]
                return


def _without_methods(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's state; Ignite's handler leaves a method of its own in torch's."""
    state = dict(scheduler.state_dict())
    inner = state.get("scheduler")
    if isinstance(inner, Mapping):
        state["scheduler"] = {key: value for key, value in inner.items() if not callable(value)}
    return state


def metric_of(scheduler: Any, metric: str | None) -> str | None:
    """Return the metric to step on: Ignite's handler names its own.

    Raises:
        ValueError: If ``metric`` is another one.
    """
    own = getattr(scheduler, "metric_name", None)
    if own is None or metric == own:
        return metric
    if metric is not None:
        raise ValueError(f"the scheduler watches {own!r}, got metric={metric!r}")
    return str(own)


def check_scheduler(scheduler: Any, target: Target | None) -> None:
    """Refuse what cannot be stepped, or watches in the wrong direction.

    Raises:
        TypeError: If ``scheduler`` can neither be stepped nor called, or counts epochs.
        ValueError: If its mode contradicts the metric's rule.
    """
    if not callable(scheduler) and not hasattr(scheduler, "step"):
        raise TypeError(f"scheduler must have step(value), got {type(scheduler).__name__}")
    if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            f"{type(scheduler).__name__} watches no metric: step it in training; "
            "step_on_plateau takes ReduceLROnPlateau"
        )
    inner = getattr(scheduler, "scheduler", scheduler)  # Ignite's handler wraps torch's
    mode = getattr(inner, "mode", None)
    if target is None or mode not in ("min", "max"):
        return
    wanted = "max" if target.rule is Rule.GREATER else "min"
    if mode != wanted:
        raise ValueError(
            f"the scheduler has mode={mode!r}, but {target.metric!r} is better when it is "
            f"{target.rule.value}: use mode={wanted!r}"
        )
