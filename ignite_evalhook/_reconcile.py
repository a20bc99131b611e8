"""Decide, after a restart, which of the best files on disk stay listed.

The run's own history says which files it has kept; the disk may hold others, of a stretch that
this history does not know.  Values in, values out: no disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from ._sidecar import Kept, Sidecar, sort_entries

__all__: list[str] = []


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
