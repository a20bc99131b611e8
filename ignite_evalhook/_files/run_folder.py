"""Own a run's folder: one live run at a time, earlier runs put aside, the history on disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from .._decide.best import legal
from .._decide.file_names import spellings
from .._decide.history import EvalRecord, History, parse_lines
from .._decide.kept import Sidecar, is_foreign
from .._decide.strict_json import dumps
from .._log import logger
from ..exceptions import CheckpointError, StateError
from .background import wait_for_writers
from .best_files import BestFiles, owner_of, sidecar_name, suffix
from .load import read_checkpoint
from .lock import FolderLock
from .save_errors import SaveErrors
from .storage import Storage

__all__: list[str] = []


class RunFolder:
    """The folder of a hook called ``name``."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage = storage
        self.name = name
        self.history_name = f"history{suffix(name)}.jsonl"
        self.last_name = f"last{suffix(name)}.pt"
        self._lock = FolderLock(storage, legal(name))
        storage.owner = owner_of(name)
        self._process: int | None = None  # the one that has claimed it
        self._is_behind = False  # whether history.jsonl lacks records

    def claim(self, owner: object, is_live: Callable[[object], bool]) -> None:
        """Make ``owner`` the only live run in the folder.

        Raises:
            StateError: If there is another one, or this process is a forked child of it.
        """
        self.check_process()
        self._lock.acquire(owner, is_live)
        self._process = os.getpid()
        wait_for_writers()  # a run that has ended with an error may still be writing
        self.storage.clean()

    def check_process(self) -> None:
        """Refuse a forked child of the process that claimed the folder.

        Raises:
            StateError: If this is one.
        """
        if self._process not in (None, os.getpid()):
            raise StateError(
                f"the run in {self.storage.location} is that of process {self._process}; this is "
                f"process {os.getpid()}, forked from it, which cannot go on with the same run: "
                "start another one there, with an out_dir of its own"
            )

    def release(self) -> None:
        """Let another run have the folder."""
        self.storage.wait()
        self._lock.release()
        if self._process == os.getpid():
            self._process = None

    def put_aside(self, run_id: str) -> None:
        """Move the files of every run but ``run_id`` into ``earlier/<its id>/``.

        Files that are not ours stay where they are.

        Raises:
            StateError: If somebody else's file has a name that this run needs.
        """
        for theirs, files in self._foreign(run_id).items():
            theirs = legal(theirs)  # whatever a damaged file says
            folder = self._copy_account(theirs) if sidecar_name(self.name) in files else None
            for file in files:
                if folder is not None and file == sidecar_name(self.name):
                    self.storage.remove(file)
                else:
                    self.storage.move(file, f"{folder or f'earlier/{theirs}'}/{file}")
            if files:
                logger.info(
                    "%s: %s holds an earlier run; its files are now in %s/",
                    self.name, self.storage.location, folder or f"earlier/{theirs}",
                )  # fmt: skip

    def _copy_account(self, theirs: str) -> str:
        """Copy ``best.json`` before its files move, so that a kill leaves them all findable.

        Returns:
            The folder that it is in now, and that the files belong in.
        """
        file, read = sidecar_name(self.name), self.storage.read_text
        free_or_same = (None, read(file))  # the same: a kill came between copy and removal
        names = spellings(f"earlier/{theirs}")
        folder = next(name for name in names if read(f"{name}/{file}") in free_or_same)
        if not self.storage.exists(f"{folder}/{file}"):
            self.storage.link_or_copy(file, f"{folder}/{file}", "copy")
        return folder

    def _foreign(self, run_id: str) -> dict[str, list[str]]:
        """Return the files of other runs by run id, ``best.json`` last."""
        found: dict[str, list[str]] = {}
        last = self._last_run_id()
        if last is not None:
            found.setdefault(last, []).append(self.last_name)
        history = self._history_run_id()
        if history is not None:
            found.setdefault(history, []).append(self.history_name)
        file = sidecar_name(self.name)
        text = self.storage.read_text(file)
        if text is not None:
            if is_foreign(text):
                raise self._not_ours(file)
            try:
                sidecar = Sidecar.from_json(text)
            except ValueError as error:
                logger.warning("%s: %s: %s", self.name, self.storage.path(file), error)
                found.setdefault("damaged", []).append(file)
            else:
                files = found.setdefault(sidecar.run_id, [])
                files.extend([*self._aliases(sidecar), *sorted(sidecar.files()), file])
        found.pop(run_id, None)
        return found

    def _aliases(self, sidecar: Sidecar) -> list[str]:
        """Return the stable names of the sidecar's files that there are."""
        files = BestFiles(self.storage, sidecar, None)
        names = {files.alias_name(target.metric) for target in sidecar.targets}
        # Another hook's file may be called so; it then has other content.
        ours = {self.storage.fingerprint(file) for file in sidecar.files()} - {None}
        return sorted(name for name in names if self.storage.fingerprint(name) in ours)

    def _not_ours(self, file: str) -> StateError:
        return StateError(
            f"{self.storage.path(file)} is not a file of this package, and the hook "
            f"{self.name!r} would replace it; move it away or use another out_dir"
        )

    def _history_run_id(self) -> str | None:
        text = self.storage.read_text(self.history_name)
        if text is None:
            return None
        try:
            rows = parse_lines(text)
        except ValueError as error:
            where = self.storage.path(self.history_name)
            logger.warning("%s: %s: %s", self.name, where, error)
            return "damaged"
        if rows and not all("run_id" in row for row in rows):
            raise self._not_ours(self.history_name)
        return next((str(row["run_id"]) for row in reversed(rows) if "run_id" in row), None)

    def _last_run_id(self) -> str | None:
        if not self.storage.exists(self.last_name):
            return None
        try:
            state = read_checkpoint(self.storage, self.last_name, lazily=True).get("eval_hook")
        except CheckpointError:  # not a checkpoint of ours, or damaged: not ours to move
            return None
        return str(state["run_id"]) if isinstance(state, dict) and "run_id" in state else None

    def append(self, record: EvalRecord, history: History, run_id: str, errors: SaveErrors) -> None:
        """Add a record to ``history.jsonl``, durably.

        Args:
            record: The record.
            history: Those before it, which are written too if that has failed.
            run_id: The run.
            errors: Whether a failure is raised.

        Raises:
            CheckpointError: If it cannot be written.
        """
        try:
            if self._is_behind:
                self.reconcile_history(History([*history, record]), run_id)
            else:
                self.storage.append_line(self.history_name, record.to_json(run_id=run_id))
        except CheckpointError as error:
            self._is_behind = True
            errors.failed(self.history_name, error)
        else:
            self._is_behind = False
            errors.written(self.history_name)

    def catch_up(self, history: History, run_id: str) -> None:
        """Write records down that could not be written before, if that goes now."""
        if self._is_behind:
            with contextlib.suppress(CheckpointError):  # that was told the first time
                self.reconcile_history(history, run_id)
                self._is_behind = False

    def reconcile_history(self, history: History, run_id: str) -> None:
        """Make ``history.jsonl`` hold just the records of ``history``.

        Rows on disk know more than a state does (strings, lists), so those that agree with it
        are kept as they are.
        """
        text = self.storage.read_text(self.history_name)
        rows: dict[Any, dict[str, Any]] = {}
        if text is not None:
            ours = (row for row in parse_lines(text) if row.get("run_id") == run_id)
            rows = {row["iteration"]: row for row in ours if type(row.get("iteration")) is int}
        known = (_fuller(rows.get(record.iteration), record) for record in history)
        wanted = "".join(record.to_json(run_id=run_id) + "\n" for record in known)
        if wanted != (text or ""):
            self.storage.write_text(self.history_name, wanted)


def _fuller(row: dict[str, Any] | None, record: EvalRecord) -> EvalRecord:
    """Return what a row of the file says if it agrees with ``record``, else ``record``."""
    try:
        on_disk = record if row is None else EvalRecord.from_dict(row)
    except ValueError:
        return record
    # As text, since NaN equals itself there.  A row that differs is of an abandoned stretch.
    said = {dumps(item.to_dict(scalars_only=True)) for item in (on_disk, record)}
    return on_disk if len(said) == 1 else record
