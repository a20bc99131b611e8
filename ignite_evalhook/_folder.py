"""Own a run's folder: one live run at a time, earlier runs put aside, the history on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._best import legal
from ._checkpoint import sidecar_name, suffix
from ._history import EvalRecord, History, parse_lines
from ._load_best import read_checkpoint
from ._lock import FolderLock
from ._log import logger
from ._sidecar import Sidecar
from ._storage import Storage
from .exceptions import CheckpointError

__all__: list[str] = []


class RunFolder:
    """The folder of a hook called ``name``."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage = storage
        self.name = name
        self.history_name = f"history{suffix(name)}.jsonl"
        self.last_name = f"last{suffix(name)}.pt"
        self._lock = FolderLock(storage, legal(name))

    def claim(self, owner: object, is_live: Callable[[object], bool]) -> None:
        """Make ``owner`` the only live run in the folder.

        Raises:
            StateError: If there is another one.
        """
        self._lock.acquire(owner, is_live)
        self.storage.clean()

    def release(self) -> None:
        """Let another run have the folder."""
        self._lock.release()

    def put_aside(self, run_id: str) -> None:
        """Move the files of every run but ``run_id`` into ``earlier/<its id>/``.

        Files that are not ours stay where they are.
        """
        for theirs, files in self._foreign(run_id).items():
            for file in files:
                self.storage.move(file, f"earlier/{theirs}/{file}")
            if files:
                logger.info(
                    "%s: %s holds an earlier run; its files are now in earlier/%s/",
                    self.name, self.storage.location, theirs,
                )  # fmt: skip

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
            try:
                sidecar = Sidecar.from_json(text)
            except ValueError as error:
                logger.warning("%s: %s: %s", self.name, self.storage.path(file), error)
                found.setdefault("damaged", []).append(file)
            else:
                files = found.setdefault(sidecar.run_id, [])
                aliases = [n for n in self.storage.list() if self._is_alias(n, sidecar)]
                files.extend([*sorted(sidecar.files()), *aliases, file])
        found.pop(run_id, None)
        return found

    def _is_alias(self, file: str, sidecar: Sidecar) -> bool:
        """Return whether ``file`` is a stable name of one of the sidecar's files."""
        if not (file.startswith(f"best{suffix(self.name)}") and file.endswith(".pt")):
            return False
        if file in sidecar.files():
            return False
        sums = {e.sha256 for entries in sidecar.kept.values() for e in entries}
        return self.storage.sha256(file) in sums

    def _history_run_id(self) -> str | None:
        text = self.storage.read_text(self.history_name)
        if text is None:
            return None
        try:
            rows = parse_lines(text)
        except ValueError as error:
            logger.warning("%s: %s", self.name, error)
            return "damaged"
        return next((str(row["run_id"]) for row in reversed(rows) if "run_id" in row), None)

    def _last_run_id(self) -> str | None:
        if not self.storage.exists(self.last_name):
            return None
        try:
            state = read_checkpoint(self.storage, self.last_name, lazily=True).get("eval_hook")
        except CheckpointError:  # not a checkpoint of ours, or damaged: not ours to move
            return None
        return str(state["run_id"]) if isinstance(state, dict) and "run_id" in state else None

    def append(self, record: EvalRecord, run_id: str) -> None:
        """Add a record to ``history.jsonl``, durably."""
        self.storage.append_line(self.history_name, record.to_json(run_id=run_id))

    def reconcile_history(self, history: History, run_id: str) -> None:
        """Make ``history.jsonl`` hold just the records of ``history``.

        Rows on disk know more than a state does (strings, lists), so those of the same
        iteration are kept as they are.
        """
        text = self.storage.read_text(self.history_name)
        rows: dict[Any, dict[str, Any]] = {}
        if text is not None:
            try:
                rows = {r["iteration"]: r for r in parse_lines(text) if r.get("run_id") == run_id}
            except (ValueError, KeyError) as error:
                logger.warning("%s: %s; written anew from the state", self.name, error)
        lines = []
        for record in history:
            row = rows.get(record.iteration)
            try:
                known = record if row is None else EvalRecord.from_dict(row)
            except ValueError:
                known = record
            lines.append(known.to_json(run_id=run_id) + "\n")
        wanted = "".join(lines)
        if wanted != (text or ""):
            self.storage.write_text(self.history_name, wanted)
