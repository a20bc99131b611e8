"""Keep account of the best files in a folder: the value behind ``best.json``.

A :class:`Sidecar` lists, for each followed metric, the files kept and what they scored.  It is
a value with no disk behind it; ``_files.best_files`` reads, writes and obeys it.

An entry is *live* when the run's own history knows it.  After a restart from an older state the
disk may hold entries that this history has not reached yet, or never will: these are
*abandoned*, and stay until their equal or better is on disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from .best import Target, as_score
from .file_names import checked
from .rules import Rule
from .strict_json import dumps

__all__: list[str] = []

OURS = "ignite-evalhook best"
FORMAT = f"{OURS} 1"
_KINDS: Mapping[str, tuple[type, ...]] = {
    "score": (int, float),
    "epoch": (int,),
    "iteration": (int,),
    "file": (str,),
    "size": (int, type(None)),
    "crc32": (str, type(None)),
    "abandoned": (bool,),
}


@dataclass(frozen=True)
class Kept:
    """One file that is kept.

    Attributes:
        score: What it scored, unsigned.
        epoch: Epoch of the trainer, 1-based; 0 is before training.
        iteration: Iterations that the trainer had completed.
        file: Its name in the folder.
        size: Its size in bytes; ``None`` where the storage cannot tell.
        crc32: The CRC-32 of its last MiB, hexadecimal, where its list of records is.
        abandoned: Whether the run's history does not know it.
    """

    score: float
    epoch: int
    iteration: int
    file: str
    size: int | None = None
    crc32: str | None = None
    abandoned: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a plain mapping."""
        return asdict(self)

    @property
    def fingerprint(self) -> tuple[int, str] | None:
        """What tells the file from another one of its name; ``None`` if nothing does."""
        return None if self.size is None or self.crc32 is None else (self.size, self.crc32)

    def with_fingerprint(self, fingerprint: tuple[int, str] | None) -> Kept:
        """Return the entry of another file of this name."""
        size, crc32 = fingerprint or (None, None)
        return replace(self, size=size, crc32=crc32)

    def is_same_file(self, other: Kept) -> bool:
        """Return whether ``other`` has the same name and content."""
        return (self.file, self.fingerprint) == (other.file, other.fingerprint)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Kept:
        """Rebuild an entry from :meth:`to_dict`.

        Raises:
            TypeError: If a field is unknown or missing.
            ValueError: If a field is of the wrong kind.
        """
        # Version 0.1.0 noted a SHA-256: the file has CRC-32 sums of its own, as all have.
        entry = cls(**{name: value for name, value in state.items() if name != "sha256"})
        for name, kinds in _KINDS.items():
            if type(getattr(entry, name)) not in kinds:
                raise ValueError(f"{name} of a kept file is {getattr(entry, name)!r:.80}")
        score = as_score(entry.score)
        if score is None or not math.isfinite(score):
            raise ValueError(f"score of a kept file is {entry.score!r:.80}")
        checked(entry.file)
        return entry


@dataclass(frozen=True)
class Sidecar:
    """The content of ``best.json``.

    Attributes:
        name: The hook's name.
        run_id: The run that owns the files.
        targets: The followed metrics; the first one decides.
        kept: Metric to its files, best first.
    """

    name: str
    run_id: str
    targets: tuple[Target, ...]
    kept: Mapping[str, tuple[Kept, ...]] = field(default_factory=dict)

    def of(self, metric: str) -> tuple[Kept, ...]:
        """Return the files kept for ``metric``, best first."""
        return self.kept.get(metric, ())

    def with_entries(self, target: Target, entries: Iterable[Kept]) -> Sidecar:
        """Return a sidecar with other entries for one metric, sorted and without the surplus."""
        ordered = sort_entries(target, entries)
        return replace(self, kept={**self.kept, target.metric: prune(target, ordered)})

    def with_each(self, change: Callable[[Kept], Kept]) -> Sidecar:
        """Return a sidecar with every entry changed."""
        return replace(self, kept={m: tuple(map(change, e)) for m, e in self.kept.items()})

    def entries(self) -> list[Kept]:
        """Return all files listed, of every metric."""
        return [entry for entries in self.kept.values() for entry in entries]

    def files(self) -> set[str]:
        """Return the names of all files listed."""
        return {entry.file for entry in self.entries()}

    def to_json(self) -> str:
        """Return the text of ``best.json``: the best of the first metric, then all."""
        first = self.targets[0]
        document: dict[str, Any] = {"format": FORMAT, "name": self.name, "run_id": self.run_id}
        document |= {"metric": first.metric, "rule": first.rule.value}
        top = self.of(first.metric)[:1]
        for key in ("score", "epoch", "iteration", "file", "size", "crc32"):
            document[key] = getattr(top[0], key) if top else None
        document["kept"] = {
            target.metric: {
                "rule": target.rule.value,
                "files": [entry.to_dict() for entry in self.of(target.metric)],
            }
            for target in self.targets
        }
        return dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sidecar:
        """Read the text of a ``best.json``.

        Raises:
            ValueError: If it is damaged or not ours.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ValueError(f"unknown format {document['format']!r}")
            targets = tuple(
                Target(metric, Rule(part["rule"]), max(1, len(part["files"])))
                for metric, part in document["kept"].items()
            )
            kept = {
                metric: tuple(Kept.from_dict(entry) for entry in part["files"])
                for metric, part in document["kept"].items()
            }
            name, run_id = str(document["name"]), str(document["run_id"])
            if not targets:
                raise ValueError("it follows no metric")
        except (
            ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise ValueError(
                f"not a best.json of ignite-evalhook, or damaged: {error!s:.200}"
            ) from error
        return cls(name, run_id, targets, kept)


def is_foreign(text: str | None) -> bool:
    """Return whether a text is sound JSON, but of somebody else: ``best_parameters.json``, say."""
    try:
        document = json.loads(text or "")
    except (ValueError, RecursionError):
        return False
    return not (isinstance(document, dict) and str(document.get("format")).startswith(OURS))


def sort_entries(target: Target, entries: Iterable[Kept]) -> tuple[Kept, ...]:
    """Return entries best first; among equals the earlier one, unless a ``rule_map`` says else."""
    by_age = sorted(entries, key=lambda e: e.iteration, reverse=target.prefers_later)
    return tuple(sorted(by_age, key=lambda e: target.rule.signed(e.score), reverse=True))


def prune(target: Target, entries: tuple[Kept, ...]) -> tuple[Kept, ...]:
    """Drop every abandoned entry that enough live ones equal or beat.

    Live entries are never dropped here: which of them stay, the top-k decides.
    """
    live = [entry for entry in entries if not entry.abandoned]
    signed = target.rule.signed

    def beaten(entry: Kept) -> bool:
        at_least = sum(signed(other.score) >= signed(entry.score) for other in live)
        return at_least >= target.n_saved

    return tuple(entry for entry in entries if not entry.abandoned or not beaten(entry))


# -- decide, after a restart, which of the best files on disk stay listed --------------------------


class Reconciled(NamedTuple):
    """What becomes of the files.

    Attributes:
        sidecar: Those that are listed.
        surplus: Names of those that are not any more.
        gone: Metric to the name of its best file, where nothing of the run's own is left.
    """

    sidecar: Sidecar
    surplus: list[str]
    gone: dict[str, str]


def reconcile(
    empty: Sidecar,
    live: Mapping[str, tuple[Kept, ...]],
    found: Sidecar | None,
    is_whole: Callable[[Kept], bool],
) -> Reconciled:
    """List live files, and better ones of an abandoned stretch.

    Args:
        empty: An account of the run's targets, without files.
        live: Metric to the files that the run's history knows, best first.
        found: The account that was found on disk, if there was one.
        is_whole: Returns whether a file is there and undamaged.
    """
    after, whole_files, gone = empty, set(), {}
    for target in empty.targets:
        own = live.get(target.metric, ())
        entries = {entry.file: entry for entry in own}
        for entry in () if found is None else found.of(target.metric):
            entries.setdefault(entry.file, replace(entry, abandoned=True))
        whole = sort_entries(target, filter(is_whole, entries.values()))
        whole_files |= {entry.file for entry in whole}
        # A restart may have lowered n_saved.
        kept = [entry for entry in whole if not entry.abandoned][: target.n_saved]
        after = after.with_entries(target, [*kept, *(e for e in whole if e.abandoned)])
        if own and not after.of(target.metric):
            gone[target.metric] = own[0].file
    return Reconciled(after, sorted(whole_files - after.files()), gone)
