"""Keep the best files of every followed metric, at once or in the background.

Each metric has a checkpoint of its own, all of them one account.  What is best is not decided
here, nor known: the keeper is given scores, and the top-k of each checkpoint decides.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from ignite.engine import Engine
from ignite.handlers.checkpoint import BaseSaveHandler

from .._decide.best import Target
from .._decide.kept import Kept, Sidecar, reconcile, sort_entries
from .._decide.position import START, Position
from .._log import logger
from ..exceptions import CheckpointError
from .background import Writer
from .best_checkpoint import BestCheckpoint
from .best_files import BestFiles, as_live, read_sidecar, sidecar_name
from .save_errors import SaveErrors
from .storage import Storage

__all__: list[str] = []

Live = dict[str, tuple[Kept, ...]]  # metric to the files that the run's history knows, best first


class Saving(NamedTuple):
    """What is being written in the background, and what all ranks know until it is there.

    Attributes:
        entries: The files that are being written, by metric; on the rank that writes.
        sidecar: The account of files before them.
    """

    entries: dict[str, Kept]
    sidecar: Sidecar | None


class Keeper:
    """The best files of a hook.

    Args:
        name: The hook's name.
        checkpoint: Writes the files of the first metric; ``None``: there are no files.

    Attributes:
        live: The files that the run's history knows.
        writes: Whether this process is the one that touches files.
        writer: Writes in the background, if that is wanted.
        errors: What becomes of failures to write, of whichever file.
    """

    def __init__(self, name: str, checkpoint: BestCheckpoint | None) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.live: Live = {}
        self.writes = True
        warns = checkpoint is not None and checkpoint.on_save_error == "warn"
        self.errors = SaveErrors(name, warns=warns)
        self.writer = Writer()
        self._live_before: Live | None = None  # a save that is not settled
        self._targets: tuple[Target, ...] = ()
        self._checkpoints: dict[str, BestCheckpoint] = {}
        self._files: BestFiles | None = None
        self._saving: Saving | None = None
        self._failure: CheckpointError | None = None  # of the writer's, not raised yet
        self._score: Callable[[str], float] = lambda metric: -math.inf
        self._position: Callable[[Engine], Position] = lambda engine: START
        self._run_id = ""
        if checkpoint is not None:
            checkpoint.take(name)

    def connect(
        self, score: Callable[[str], float], position: Callable[[Engine], Position]
    ) -> None:
        """Say where scores (signed, higher is better) and positions are to be had."""
        self._score, self._position = score, position

    @property
    def storage(self) -> Storage | None:
        """The folder that best files go to, if it is one."""
        where = None if self.checkpoint is None else self.checkpoint.saver.target
        return None if isinstance(where, BaseSaveHandler) else where

    def alias_paths(self, targets: tuple[Target, ...]) -> set[str]:
        """Return where the stable names are, in small letters: some systems see no others."""
        if self.checkpoint is None or self.checkpoint.alias is None or self.storage is None:
            return set()
        files = BestFiles(self.storage, Sidecar(self.name, "", targets), None)
        paths = [self.storage.path(files.alias_name(target.metric)) for target in targets]
        return {os.path.realpath(path).lower() for path in paths}

    @property
    def to_save(self) -> Mapping[str, Any]:
        """What a best file holds."""
        return {} if self.checkpoint is None else self.checkpoint.to_save

    @property
    def sidecar(self) -> Sidecar | None:
        """The account of files, as all ranks know it."""
        if self._saving is not None:
            return self._saving.sidecar
        return None if self._files is None else self._files.sidecar

    def known(self, metric: str) -> tuple[Kept, ...]:
        """Return the files of the run's own history: as accounted for, or as a state has them."""
        if self.sidecar is None:
            return self.live.get(metric, ())
        return tuple(entry for entry in self.sidecar.of(metric) if not entry.abandoned)

    def is_there(self, entry: Kept) -> bool:
        """Return whether a file is accounted for; between a load and the run, whether it exists."""
        if self.sidecar is None:
            return self.storage is not None and self.storage.exists(entry.file)
        return entry.file in self.sidecar.files()

    # -- the folder ---------------------------------------------------------------------------

    def begin(self, run_id: str, targets: tuple[Target, ...]) -> None:
        """Take the folder over for a run: bring its files and this run's history together."""
        self._run_id = run_id
        self.let_go()
        self.bind(targets)

    def let_go(self) -> None:
        """Account for no files any more; those there are stay."""
        self._files = None
        self._checkpoints.clear()

    def forget(self) -> None:
        """Know of no files any more, as before the first evaluation."""
        self.live.clear()
        self.let_go()

    def bind(self, targets: tuple[Target, ...]) -> None:
        """Keep files of these metrics; the first one decides."""
        if self.checkpoint is None or not self.writes or not targets:
            return
        self._targets = targets
        empty = Sidecar(self.name, self._run_id, targets)
        files = BestFiles(self.checkpoint.saver.target, empty, self.checkpoint.alias)
        self._files = files
        for number, target in enumerate(targets):
            checkpoint = self.checkpoint if number == 0 else self.checkpoint.for_another()
            score = _scored(self._score, target.metric)
            checkpoint.bind(target, files, score, self._position)
            self._checkpoints[target.metric] = checkpoint
            self._restore(target, None)
        if self.storage is not None:
            self._reconcile(self.storage, files)

    def _restore(self, target: Target, limit: int | None) -> None:
        """Let a checkpoint go on from the first ``limit`` files of the run's."""
        live = self.live[target.metric] = self.live.get(target.metric, ())[:limit]
        self._checkpoints[target.metric].restore(live)

    def _reconcile(self, storage: Storage, files: BestFiles) -> None:
        """List what is on disk: live files, and better ones of an abandoned stretch."""
        found = read_sidecar(storage, sidecar_name(self.name))
        after, surplus, gone = reconcile(
            files.sidecar, self.live, found, partial(self._is_whole, storage)
        )
        for metric, file in gone.items():
            logger.warning(
                "%s: the file of the best %s, %s, is not in %s any more",
                self.name, metric, file, storage.location,
            )  # fmt: skip
        # An account of version 0.1.0 has no fingerprints.
        after = after.with_each(lambda e: files.sealed(e) if e.fingerprint is None else e)
        for target in self._targets:
            self._restore(target, target.n_saved)
        ours = [entry for entries in self.live.values() for entry in entries]
        files.refuse_foreign_aliases([*ours, *([] if found is None else found.entries())])
        files.leftovers.recall(after.files() | {entry.file for entry in ours})
        if found is None and not after.files():
            return
        files.publish(after)
        files.discard(surplus)

    def _is_whole(self, storage: Storage, entry: Kept) -> bool:
        found = storage.fingerprint(entry.file)
        if found is None:
            return False
        if entry.fingerprint in (None, found):
            return True
        logger.warning("%s: %s is damaged and not used", self.name, storage.path(entry.file))
        return False

    def entry_on_disk(self, metric: str) -> Kept | None:
        """Return the best file that the folder holds, of an abandoned stretch or not."""
        if self._files is not None:
            return self._files.best(metric)
        storage = self.storage
        found = None if storage is None else read_sidecar(storage, sidecar_name(self.name))
        return None if found is None else next(iter(found.of(metric)), None)

    # -- one save -----------------------------------------------------------------------------

    def would_save(self, scores: Mapping[str, float]) -> bool:
        """Return whether :meth:`save` would write a file."""
        return any(
            checkpoint.would_save(scores[metric])
            for metric, checkpoint in self._checkpoints.items()
            if metric in scores
        )

    def save(
        self, engine: Engine, scores: Mapping[str, float], states: Mapping[str, Any]
    ) -> set[str]:
        """Save what belongs to the top-k, when nothing is being written any more.

        What it makes superfluous stays until :meth:`settle`, and :meth:`undo` takes it back.

        Args:
            engine: The trainer.
            scores: The scores by metric.
            states: What to write, by name.

        Returns:
            The metrics whose files could not be written, where that is allowed.

        Raises:
            CheckpointError: If a file cannot be written.
        """
        failed: set[str] = set()
        self._live_before = dict(self.live)
        for metric, checkpoint in self._checkpoints.items():
            if metric not in scores:
                continue
            try:
                checkpoint.save(engine, states)
            except CheckpointError as error:
                self.errors.failed(f"the best {metric}", error)
                failed.add(metric)
            else:
                if checkpoint.holds is None:
                    self._note_live(metric, checkpoint)
                    self.errors.written(f"the best {metric}")
        return failed

    def undo(self) -> None:
        """Take a :meth:`save` back that is not settled: files and memory are as before."""
        if self._live_before is None:
            return
        for checkpoint in reversed(self._checkpoints.values()):
            checkpoint.undo()
        self.live, self._live_before = self._live_before, None

    def settle(self, *, saves: bool) -> None:
        """Remove the files that a :meth:`save` has made superfluous, or begin to write them.

        Args:
            saves: Whether there was a save, on any rank.
        """
        saved, self._live_before = self._live_before is not None, None
        if saves and self.in_background:
            held = {m: c.holds for m, c in self._checkpoints.items() if c.holds is not None}
            self._saving = Saving(held, self.sidecar)
            for metric in held:
                self.writer.submit(partial(self._write_held, metric, self._checkpoints[metric]))
        elif saved:
            for checkpoint in self._checkpoints.values():
                checkpoint.settle()
        if self._files is not None and self.writes and not self.in_background:
            self._files.discard(())  # what could not be removed before

    def _note_live(self, metric: str, checkpoint: BestCheckpoint) -> None:
        self.live[metric] = self._listed(metric, checkpoint)

    def _listed(self, metric: str, checkpoint: BestCheckpoint) -> tuple[Kept, ...]:
        """Return the files of the top-k that are on disk."""
        files = {item.filename for item in checkpoint._saved}
        entries = self._files.sidecar.of(metric) if self._files is not None else ()
        listed = {e.file: e for e in (*self.live.get(metric, ()), *entries) if e.file in files}
        target = next(target for target in self._targets if target.metric == metric)
        return sort_entries(target, listed.values())

    # -- in the background --------------------------------------------------------------------

    @property
    def in_background(self) -> bool:
        """Whether files are written while training goes on."""
        return self.checkpoint is not None and self.checkpoint.async_save

    @property
    def is_saving(self) -> bool:
        """Whether a best is being written, on any rank."""
        return self._saving is not None

    def _write_held(self, metric: str, checkpoint: BestCheckpoint) -> None:
        try:
            checkpoint.write_held()
        except CheckpointError as error:
            self.errors.failed(f"the best {metric}", error)
        else:
            self.errors.written(f"the best {metric}")

    def wait(self) -> None:
        """Wait until all is written; a failure is kept for :meth:`raise_failure`."""
        try:
            self.writer.wait()
        except CheckpointError as error:
            self._failure = error

    def raise_failure(self) -> None:
        """Raise what the writer has failed with, once.

        Raises:
            CheckpointError: If a file could not be written.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def lost(self) -> dict[str, int]:
        """Return the iterations, by metric, of files that are to be written and not there."""
        saving = self._saving
        if saving is None:
            return {}
        files = set() if self._files is None else self._files.sidecar.files()
        return {
            m: entry.iteration for m, entry in saving.entries.items() if entry.file not in files
        }

    def take_note(self) -> dict[str, int]:
        """Take note of what was written, after :meth:`wait`, and return what is :meth:`lost`."""
        lost, saving = self.lost(), self._saving
        self._saving = None
        for metric in () if saving is None else saving.entries:
            checkpoint = self._checkpoints[metric]
            if checkpoint.holds is not None:
                checkpoint.undo()  # dropped, as one before it failed
            self._note_live(metric, checkpoint)
        return lost

    def on_disk(self) -> dict[str, list[dict[str, Any]]]:
        """Return the files that are there as plain values; from any thread."""
        return plain(
            {m: self._listed(m, checkpoint) for m, checkpoint in self._checkpoints.items()}
        )

    # -- several ranks ------------------------------------------------------------------------

    def account(self) -> dict[str, Any] | None:
        """Return what is known of best files, for ranks that touch none."""
        sidecar = self.sidecar
        if sidecar is None:
            return None
        return {
            "sidecar": sidecar.to_json(),
            "kept": plain(self.live),
            "saving": self._saving is not None,
        }

    def adopt_account(self, account: Mapping[str, Any] | None) -> None:
        """Take over what the writing rank knows of best files."""
        self._saving = None
        if account is None or self.checkpoint is None:
            self._files = None
            return
        sidecar = Sidecar.from_json(account["sidecar"])
        self.live = read_live(account["kept"])
        self._files = BestFiles(self.checkpoint.saver.target, sidecar, self.checkpoint.alias)
        if account["saving"]:
            self._saving = Saving({}, sidecar)


def plain(live: Mapping[str, tuple[Kept, ...]]) -> dict[str, list[dict[str, Any]]]:
    """Return kept files as plain values; file names are relative."""
    return {metric: [entry.to_dict() for entry in entries] for metric, entries in live.items()}


def read_live(state: Mapping[str, Any]) -> Live:
    """Read what :func:`plain` returned.

    Raises:
        Exception: If it is damaged.
    """
    return {
        metric: tuple(as_live(Kept.from_dict(entry)) for entry in entries)
        for metric, entries in state.items()
    }


def _scored(score: Callable[[str], float], metric: str) -> Callable[[Engine], float]:
    return lambda engine: score(metric)
