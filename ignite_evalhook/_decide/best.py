"""Decide what is best.

Turns the value of a metric into a score, compares scores by a rule, and names the file of a
best.  Decisions take numbers and return values: no torch, no engine, no disk.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .rules import Rule

__all__ = ["Best"]

KEEP_ALL = 10**9  # files
PART = 48  # bytes of a file's name for each of its two free parts
Compare = Callable[[float, float], bool]
RULE_MAP: Mapping[str, Compare] = {"greater": lambda x, y: x > y, "less": lambda x, y: x < y}
INIT_VALUE_MAP: Mapping[str, float] = {"greater": -math.inf, "less": math.inf}


@dataclass(frozen=True)
class Best:
    """The best evaluation of one metric.

    Attributes:
        metric: Name of the metric.
        score: Its value, unsigned, as the evaluator reported it.
        epoch: Epoch of the trainer, 1-based; 0 is before training.
        iteration: Iterations that the trainer had completed.
        path: The checkpoint: a path, or a URL as a string; ``None`` if there is no file.
    """

    metric: str
    score: float
    epoch: int
    iteration: int
    path: Path | str | None = None


@dataclass(frozen=True)
class Target:
    """One metric that is followed: which way is better, and how many files to keep."""

    metric: str
    rule: Rule
    n_saved: int = 1
    rule_map: Mapping[str, Compare] = field(default_factory=lambda: RULE_MAP, compare=False)
    init_value_map: Mapping[str, float] = field(
        default_factory=lambda: INIT_VALUE_MAP, compare=False
    )

    def is_better(self, score: float, best: float | None) -> bool:
        """Return whether ``score`` improves on ``best`` (``None``: nothing yet).

        NaN and infinity never do.  Ties do not either, unless ``rule_map`` says so.
        """
        if not math.isfinite(score):
            return False
        reference = self.init_value_map[self.rule.value] if best is None else best
        return bool(self.rule_map[self.rule.value](score, reference))

    @property
    def prefers_later(self) -> bool:
        """Whether a ``rule_map`` of the user's lets a later score beat an equal one."""
        return bool(self.rule_map[self.rule.value](0.0, 0.0))


def as_score(value: object) -> float | None:
    """Return a plain number as a float; ``None`` if ``value`` is no number.

    0.0, negative, infinite and NaN values are numbers.
    """
    return float(value) if isinstance(value, (int, float)) else None


def describe_distance(target: Target, score: float, best: float | None) -> str:
    """Say in plain words how far ``score`` is from ``best``."""
    if best is None:
        return f"no best {target.metric} yet"
    return f"best {target.metric} is {best:.6g} ({abs(score - best):.3g} away)"


def legal(name: str, most: int = 100) -> str:
    """Return a metric's name as a part of a file name that every system accepts.

    ``coco/bbox_mAP`` becomes ``coco_bbox_mAP`` and ``Mean PCK`` becomes ``Mean_PCK``.

    Args:
        name: The name.
        most: Bytes that it may take.
    """
    safe = re.sub(r"[^\w.@+-]", "_", name)
    if safe.strip("._") == "":
        safe = f"metric_{zlib.crc32(name.encode()):08x}"
    if len(safe.encode()) > most:  # most systems stop at 255 bytes for the whole name
        part = safe.encode()[: most - 20].decode(errors="ignore")
        safe = f"{part}_{zlib.crc32(name.encode()):08x}"
    return safe


def legal_names(names: Iterable[str]) -> dict[str, str]:
    """Return a legal name for each metric, so that no two of them meet (ignoring case)."""
    taken: dict[str, str] = {}
    for name in names:
        safe = legal(name, PART)
        if safe.lower() in {other.lower() for other in taken.values()}:
            safe = f"{safe}_{zlib.crc32(name.encode()):08x}"
        taken[name] = safe
    return taken


# -- remember the best evaluation of each followed metric ------------------------------------------


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
