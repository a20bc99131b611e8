"""One row of the speed table, and the table as text, Markdown or JSON.

A row compares one thing between us and the peers, as measured within one run.  Nothing here
measures; ``row()`` takes the samples of interleaved repetitions and keeps median and quartiles.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A median of several repetitions with its quartiles, in the unit of its row."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Figure:
        """Summarize repetitions.  One alone is its own spread."""
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0])
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(middle, low, high)


@dataclass(frozen=True)
class Row:
    """One measure: ours beside the peers.

    Args:
        name: What is measured, short and unique: ``--only`` looks for a part of it.
        unit: ``"raw loop = 1"``, ``"ms"``, ``"us a batch"``.
        ours: Ours, or ``None`` where it was not measured; then ``note`` says why.
        peers: Name to figure, or to the words why there is none: ``"not installed"``.
        target: The number of PEERS.md; ``None`` where there is none.
        at_least: Whether the target is a floor instead of a ceiling.
        note: What else a reader must know, one line.
    """

    name: str
    unit: str
    ours: Figure | None
    peers: Mapping[str, Figure | str] = field(default_factory=dict)
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def spread(self) -> tuple[float, float] | None:
        """Lower and upper quartile of ours."""
        return None if self.ours is None else (self.ours.low, self.ours.high)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; ``None`` if there is nothing to compare."""
        if self.ours is None or self.target is None:
            return None
        if self.at_least:
            return self.ours.median >= self.target
        return self.ours.median <= self.target


def row(
    name: str,
    unit: str,
    ours: Sequence[float],
    peers: Mapping[str, Sequence[float] | str] | None = None,
    *,
    target: float | None = None,
    at_least: bool = False,
    note: str = "",
) -> Row:
    """Make a row from the samples of interleaved repetitions, five or more, of each."""
    figures = {
        peer: samples if isinstance(samples, str) else Figure.of(samples)
        for peer, samples in (peers or {}).items()
    }
    return Row(name, unit, Figure.of(ours), figures, target, at_least, note)


def skipped(name: str, unit: str, why: str, *, target: float | None = None) -> Row:
    """Make a row that says why it was not measured: ``"skipped: no CUDA device"``."""
    return Row(name, unit, None, {}, target, note=why)


def to_json(one: Row) -> dict[str, Any]:
    """Return a row as plain values."""
    return {**dataclasses.asdict(one), "met": one.met}
