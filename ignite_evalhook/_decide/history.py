"""Remember what every evaluation said.

A :class:`History` is the list of an experiment's :class:`EvalRecord` values, in order.  It
turns records into lines of ``history.jsonl`` and back, and into a table for people; who
writes the file, and when, is not its business.  No torch, no engine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, overload

from .nested import flat, look_up
from .strict_json import dumps, nan_for_null

__all__ = ["EvalRecord", "History"]

PACKED = 128  # records in one string of a state
_FIELDS = ("epoch", "iteration", "metrics", "best_of", "is_best", "samples", "seconds")
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "epoch": int,
    "iteration": int,
    "metrics": Mapping,
    "best_of": (list, tuple),
    "is_best": bool,
    "samples": (int, type(None)),
    "seconds": (int, float),
}


_LARGEST = 2**63  # more is no count of anything


@dataclasses.dataclass(frozen=True)
class EvalRecord:
    """What one evaluation said.

    Attributes:
        epoch: Epoch of the trainer, 1-based; 0 is before training.  In the middle of an epoch
            it is the epoch under way, as in ``trainer.state.epoch``.
        iteration: Iterations that the trainer had completed; 0 is before training.
        metrics: Name to value: floats, strings as they were, arrays as nested lists; what is none
            of these, ``None`` too, as text.
        best_of: Names of the followed metrics of which this record became the best.
        is_best: Whether ``best_of`` names any metric.
        samples: Samples that were evaluated; ``None`` if the evaluation cannot tell.
        seconds: Wall-clock time of the evaluation, in seconds.
    """

    epoch: int
    iteration: int
    metrics: Mapping[str, Any]
    best_of: tuple[str, ...] = ()
    is_best: bool = False
    samples: int | None = None
    seconds: float = 0.0

    def to_dict(self, *, scalars_only: bool = False) -> dict[str, Any]:
        """Return the record as plain dicts, lists, strings and numbers.

        Args:
            scalars_only: Leave out metrics that are no numbers (strings, nested lists); those in
                nested mappings get the name that leads to them, ``bbox/AP50``.
        """
        metrics = dict(self.metrics)
        if scalars_only:
            metrics = {n: v for n, v in flat(metrics).items() if isinstance(v, (int, float))}
        # Spelt out, in the order of _FIELDS: a state holds thousands of these.
        return {
            "epoch": self.epoch,
            "iteration": self.iteration,
            "metrics": metrics,
            "best_of": list(self.best_of),
            "is_best": self.is_best,
            "samples": self.samples,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> EvalRecord:
        """Rebuild a record from :meth:`to_dict`, or from its line; a metric ``None`` is NaN.

        Raises:
            ValueError: If a field is missing or of the wrong kind.
        """
        missing = [name for name in _FIELDS if name not in state]
        if missing:
            raise ValueError(f"a record needs {list(_FIELDS)}, but {missing} are missing")
        for name, kind in _KINDS.items():
            if not isinstance(state[name], kind):
                raise ValueError(f"{name} of a record is {state[name]!r:.80}")
        for name in ("epoch", "iteration", "seconds"):
            if abs(state[name]) > _LARGEST:
                raise ValueError(f"{name} of a record is out of range")
        for name in ("metrics", "best_of"):
            if not all(isinstance(item, str) for item in state[name]):
                raise ValueError(f"{name} of a record hold other names than text")
        fields = {name: state[name] for name in _FIELDS}
        fields["metrics"] = nan_for_null(fields["metrics"])
        fields["best_of"] = tuple(fields["best_of"])
        return cls(**fields)

    def to_json(self, **extra: Any) -> str:
        """Return the record as one line of JSON, without a line break.

        It is JSON that every reader takes: NaN is ``null``, infinity ``1e999``.
        """
        return dumps({**self.to_dict(), **extra})


class History(Sequence[EvalRecord]):
    """Records of an experiment, in the order in which they were made.

    Behaves as a read-only sequence; :meth:`append` adds at the end.
    """

    def __init__(self, records: Iterable[EvalRecord] = ()) -> None:
        self._records: list[EvalRecord] = []
        self._names: set[str] = set()
        self._best_count = 0
        self._packed: list[str] = []  # the first records, as a state holds them
        for record in records:
            self.append(record)

    def append(self, record: EvalRecord) -> None:
        """Add a record.

        Raises:
            ValueError: If there is a record of this iteration or of a later one already.
        """
        if self._records and record.iteration <= self._records[-1].iteration:
            last = self._records[-1].iteration
            raise ValueError(
                f"records go forward: the last one is of iteration {last}, got {record.iteration}"
            )
        self._records.append(record)
        # Counted here, so that an evaluation never has to look through all earlier ones.
        self._names.update(record.metrics, flat(record.metrics))
        self._best_count += record.is_best

    @property
    def best_count(self) -> int:
        """How many records became the best of any metric."""
        return self._best_count

    def knows(self, metric: str) -> bool:
        """Return whether any record has a metric of that name."""
        return metric in self._names

    def at(self, iteration: int) -> EvalRecord | None:
        """Return the record made at a completed iteration (0: before training), if any."""
        for record in reversed(self._records):
            if record.iteration <= iteration:
                return record if record.iteration == iteration else None
        return None

    def best(self, metric: str) -> EvalRecord | None:
        """Return the record that is the best of ``metric``, if any is."""
        return next((r for r in reversed(self._records) if metric in r.best_of), None)

    def to_list(self) -> list[Any]:
        """Return all records as plain values that keep numbers only, for a state dict.

        The last ones are dicts.  Those before them stand in strings, each a JSON list of as many
        dicts, made once: so a state costs the same however long the history is.
        """
        records, done = self._records, len(self._packed) * PACKED
        for start in range(done, len(records) - PACKED + 1, PACKED):
            block = [r.to_dict(scalars_only=True) for r in records[start : start + PACKED]]
            self._packed.append(json.dumps(block, separators=(",", ":")))
        done = len(self._packed) * PACKED
        return [*self._packed, *(r.to_dict(scalars_only=True) for r in records[done:])]

    @classmethod
    def from_list(cls, states: Iterable[Any]) -> History:
        """Rebuild a history from :meth:`to_list`.

        Raises:
            Exception: If it is damaged.
        """
        blocks = (json.loads(item) if isinstance(item, str) else [item] for item in states)
        return cls(EvalRecord.from_dict(state) for block in blocks for state in block)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> History:
        """Read a ``history.jsonl``.

        A last line that a crash cut short is left out.

        Raises:
            ValueError: If any other line is no record, or ``path`` is no file.
            OSError: If it cannot be read.
        """
        file = Path(os.path.expanduser(path))
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise ValueError(f"{file} is a folder, a pipe or a device, not a history.jsonl")
        # A crash may have cut the last line within a character; the lines before it count.
        return cls.parse(file.read_text("utf-8", errors="replace"), str(file))

    @classmethod
    def parse(cls, text: str, where: str) -> History:
        """Read the text of a ``history.jsonl``.

        Raises:
            ValueError: If a line is no record; ``where`` is named then.
        """
        try:
            return cls(EvalRecord.from_dict(row) for row in parse_lines(text))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def table(self, metrics: Sequence[str] | None = None) -> str:
        """Return the history as a table of plain text.

        Args:
            metrics: Columns to show; by default every metric that was ever a number.
        """
        if metrics is None:
            names = dict.fromkeys(name for r in self._records for name in flat(r.metrics))
            metrics = [
                n for n in names if any(_is_number(look_up(r.metrics, n)) for r in self._records)
            ]
        rows = [["epoch", "iteration", *metrics, "samples", "seconds", ""]]
        for r in self._records:
            values = [_show(look_up(r.metrics, name)) for name in metrics]
            mark = f"best {', '.join(r.best_of)}" if r.best_of else ""
            rows.append(
                [
                    str(r.epoch),
                    str(r.iteration),
                    *values,
                    _show(r.samples),
                    f"{r.seconds:.2f}",
                    mark,
                ]
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                [
                    *(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)),
                    row[-1],
                ]
            )
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    @overload
    def __getitem__(self, index: int) -> EvalRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[EvalRecord]: ...
    def __getitem__(self, index: int | slice) -> EvalRecord | list[EvalRecord]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[EvalRecord]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        return self._records == other._records if isinstance(other, History) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a history grows, so it has no stable hash

    def __repr__(self) -> str:
        return f"History({len(self._records)} records)"


def parse_lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a ``history.jsonl``, without a torn last line.

    Raises:
        ValueError: If a line before the last one is no JSON object.
    """
    rows: list[dict[str, Any]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no line break behind it: the write was cut short
                break
            raise ValueError(f"line {number} of the history is no JSON: {line!r:.200}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of the history is no JSON object: {line!r:.200}")
        rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _show(value: Any) -> str:
    if not _is_number(value):
        return "-"
    if isinstance(value, int) or (
        math.isfinite(value) and value == int(value) and abs(value) > 9999
    ):
        return str(int(value))
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"
