"""Remove or replace a large file without waiting until the system has given back what it took up.

That takes a third of the time in which the file was written, and nobody needs it to be over.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path

from .._decide.file_names import another_temporary
from .._log import logger

__all__ = ["remove", "replace", "wait_for_removals"]

_LARGE = 16 << 20  # bytes that are worth a thread

_running: list[threading.Thread] = []  # joined where somebody needs the room


def remove(path: Path, away: Path) -> None:
    """Remove a file; a missing one is fine.

    A large one gets the temporary name ``away`` at once, and is gone soon.  A kill in between
    leaves what a killed write leaves, to be cleaned up by the next run.

    Raises:
        OSError: If it cannot be removed; then it is where it was.
    """
    if not _is_worth_a_thread(path):
        path.unlink(missing_ok=True)
        return
    try:
        os.rename(path, away)
    except FileNotFoundError:  # somebody was faster
        return
    _unlink_soon(away)


def replace(new: Path, path: Path) -> None:
    """Put a file with a temporary name where there may be another one, as ``os.replace`` does.

    A large one that was there is gone from its name at once, and from the disk soon.

    Raises:
        OSError: If that cannot be done; then both are where they were.
    """
    away, is_kept = new.with_name(another_temporary(new.name)), False
    if _is_worth_a_thread(path):
        with contextlib.suppress(OSError):  # no links on this disk
            os.link(path, away)  # a second name keeps the old file for a moment
            is_kept = True
    try:
        os.replace(new, path)
    except BaseException:
        if is_kept:
            _unlink(away)
        raise
    if is_kept:
        _unlink_soon(away)


def wait_for_removals() -> bool:
    """Wait until all that was removed has made room; return whether there was any."""
    were_any = False
    while True:
        try:
            thread = _running.pop()
        except IndexError:
            return were_any
        were_any = True
        thread.join()


def _unlink_soon(path: Path) -> None:
    thread = threading.Thread(target=_unlink, args=(path,), name="ignite-evalhook removal")
    try:
        thread.start()
    except RuntimeError:  # no thread to be had, as while the interpreter ends
        _unlink(path)
        return
    _running[:] = [other for other in _running if other.is_alive()] + [thread]


def _is_worth_a_thread(path: Path) -> bool:
    """Return whether somebody waits, and for long."""
    return threading.current_thread() is threading.main_thread() and _is_large(path)


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
