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


def skipped(
    name: str, unit: str, why: str, *, target: float | None = None, at_least: bool = False
) -> Row:
    """Make a row that says why it was not measured: ``"skipped: no CUDA device"``."""
    return Row(name, unit, None, {}, target, at_least, why)


def to_json(one: Row) -> dict[str, Any]:
    """Return a row as plain values."""
    return {**dataclasses.asdict(one), "met": one.met}


def number(value: float) -> str:
    """Return three digits that matter: 0.62, 16.4, 1,452."""
    size = abs(value)
    digits = 3 if size < 0.095 else 2 if size < 9.95 else 1 if size < 99.5 else 0
    return f"{value:,.{digits}f}"


def shown(figure: Figure) -> str:
    """Return median and quartiles."""
    return f"{number(figure.median)} [{number(figure.low)} .. {number(figure.high)}]"


def goal(one: Row) -> str:
    """Return the target, and whether it is met."""
    if one.target is None:
        return "-"
    sign = ">=" if one.at_least else "<="
    said = {True: "met", False: "MISSED", None: "not measured"}[one.met]
    return f"{sign} {number(one.target)} {said}"


def lines(one: Row) -> list[str]:
    """Return a row for the terminal: ours on the first line, peers and the note below."""
    own = "-" if one.ours is None else shown(one.ours)
    found = [f"{one.name:<52} {own:<26} {goal(one):<22} {one.unit}"]
    measured = {who: what for who, what in one.peers.items() if isinstance(what, Figure)}
    ranked = sorted(measured.items(), key=lambda pair: pair[1].median)
    found += [f"    {who:<48} {shown(what)}" for who, what in ranked]
    said: dict[str, list[str]] = {}
    for who, what in one.peers.items():
        if isinstance(what, str):
            said.setdefault(what.split(" (")[0], []).append(who)
    found += [f"    {', '.join(who)}: {what}" for what, who in said.items()]
    if one.note:
        found.append(f"    {one.note}")
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown: the best peer in a column, the others in the next."""
    out = [
        "| measure | unit | ours | target | the peers, best first | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        measured = {who: what for who, what in one.peers.items() if isinstance(what, Figure)}
        ranked = sorted(measured.items(), key=lambda pair: pair[1].median, reverse=one.at_least)
        peers = [f"{who} {shown(what)}" for who, what in ranked]
        peers += [f"{who}: {what}" for who, what in one.peers.items() if isinstance(what, str)]
        own = "-" if one.ours is None else shown(one.ours)
        cells = [one.name, one.unit, own, goal(one), "; ".join(peers), one.note]
        out.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(out) + "\n"
