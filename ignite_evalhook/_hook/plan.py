"""Hold what a hook was constructed to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._decide.best import Target
from .._decide.schedule import Schedule
from .._evaluate.evaluation import Evaluation
from .._files.run_folder import RunFolder
from .follower import Follower

__all__: list[str] = []


@dataclass(frozen=True)
class Plan:
    """What a hook was constructed to do."""

    name: str
    schedule: Schedule
    at_end: bool
    preflight: bool
    clock: Callable[[], float]
    dataloader: Iterable[Any] | None  # None for a function evaluator
    evaluation: Evaluation
    follower: Follower
    folder: RunFolder | None
    to_save: Mapping[str, Any]
    explain: Callable[[Target], str]  # says how a metric's rule came about
    idle_options: list[str]  # given, and about a metric that nobody has named
