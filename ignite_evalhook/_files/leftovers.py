"""Remove files that are not needed any more, later if that fails now.

What could not be removed is tried again with the next one, and noted in the folder, so that a
later run tries too.  A file that has changed since is not ours any more, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ignite.handlers.checkpoint import BaseSaveHandler

from .._decide.file_names import checked
from .._log import logger
from ..exceptions import CheckpointError
from .storage import Storage

__all__: list[str] = []

Fingerprint = tuple[int, str] | None


class Leftovers:
    """Files of one hook that could not be removed yet.

    Args:
        target: Where they are.  Ignite's save handlers take no note for a later run.
        note: Name of the file that lists them; there is none as long as nothing fails.
    """

    def __init__(self, target: Storage | BaseSaveHandler, note: str) -> None:
        self._target = target
        self._storage = None if isinstance(target, BaseSaveHandler) else target
        self._note = note
        self._waiting: dict[str, Fingerprint] = {}

    def recall(self, keep: set[str]) -> None:
        """Try again what an earlier run has noted.

        Args:
            keep: Names that are needed again.
        """
        storage = self._storage
        if storage is None:
            return
        try:
            text = storage.read_text(self._note)
            noted = {} if text is None else read_note(text)
            ours = {name: f for name, f in noted.items() if storage.fingerprint(name) == f}
        except CheckpointError as error:
            logger.warning("%s", error)
            return
        self._waiting = noted
        self.remove((), keep | (noted.keys() - ours.keys()))
        if text is not None and not noted:
            self._write_down()

    def remove(self, files: Iterable[str], keep: set[str]) -> None:
        """Remove files, and those that could not be removed before; what fails is tried later.

        Args:
            files: Their names; missing ones are fine.
            keep: Names that are needed after all.
        """
        before, self._waiting = self._waiting, {}
        for name in sorted({*files, *before} - keep):
            try:
                self._target.remove(name)
            except FileNotFoundError:
                pass
            except Exception as error:  # noqa: BLE001  # a save handler's may be of any kind
                self._waiting[name] = before.get(name)
                if name not in before:
                    logger.warning(
                        "%s is not needed any more, but stays until it can be removed: %s",
                        name, error,
                    )  # fmt: skip
        if self._waiting.keys() != before.keys():
            self._write_down()

    def _write_down(self) -> None:
        storage = self._storage
        if storage is None:
            return
        try:
            for name, known in self._waiting.items():
                self._waiting[name] = known or storage.fingerprint(name)
            noted = {name: known for name, known in self._waiting.items() if known}
            if noted:
                storage.write_text(self._note, json.dumps(noted) + "\n")
            else:
                storage.remove(self._note)
        except CheckpointError as error:
            logger.warning("%s", error)


def read_note(text: str) -> dict[str, Fingerprint]:
    """Read a note; one that is damaged lists nothing."""
    try:
        noted: dict[str, Any] = json.loads(text)
        return {checked(name): (int(size), str(crc32)) for name, (size, crc32) in noted.items()}
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return {}
