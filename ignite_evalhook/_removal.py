"""Remove a large file without waiting until the system has given back what it took up.

That takes a third of the time in which the file was written, and nobody needs it to be over.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from ._log import logger
from ._storage_base import temporary_name

__all__ = ["remove", "wait_for_removals"]

_LARGE = 16 << 20  # bytes that are worth a thread

_running: list[threading.Thread] = []  # joined before the next write, which may need the room


def remove(path: Path) -> None:
    """Remove a file; a missing one is fine.

    A large one gets a temporary name at once, and is gone soon.  A kill in between leaves what a
    killed write leaves, to be cleaned up by the next run.

    Raises:
        OSError: If it cannot be removed; then it is where it was.
    """
    if not _is_large(path) or threading.current_thread() is not threading.main_thread():
        path.unlink(missing_ok=True)
        return
    away = path.with_name(temporary_name(path.name))
    try:
        os.rename(path, away)
    except FileNotFoundError:  # somebody was faster
        return
    thread = threading.Thread(target=_unlink, args=(away,), name="ignite-evalhook removal")
    try:
        thread.start()
    except RuntimeError:  # no thread to be had, as while the interpreter ends
        _unlink(away)
        return
    _running.append(thread)


def wait_for_removals() -> None:
    """Wait until all that was removed has made room."""
    while _running:
        _running.pop().join()


def _is_large(path: Path) -> bool:
    try:
        found = os.lstat(path)
    except OSError:  # removing it tells
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size >= _LARGE


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s is not needed any more, but stays: %s", path, error)
