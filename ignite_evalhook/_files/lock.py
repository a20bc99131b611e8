"""Let one live run at a time use a folder.

A :class:`FolderLock` is a locked file in a local folder.  The system gives the lock back when
the process dies, also by ``kill -9``, so nothing stale ever keeps a restart out.  (On a network
disk that is when its server notices.)  Which runs are live is for the caller to say; a folder
behind a URL cannot be locked and is not.

``filelock`` does not serve here: it empties the file before it has the lock, and with it the words
that say who has it; and where a file system has no locks its newer versions make a file that a
kill leaves behind.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..exceptions import StateError
from .base import failure
from .flock import UNSUPPORTED, close, is_at, open_lock_file, try_lock
from .storage import Storage

__all__ = ["FolderLock"]


def _always(_: object) -> bool:
    return True


class FolderLock:
    """The right of one live run to the files that a hook called ``name`` keeps in a folder.

    Args:
        storage: The folder.  One behind a URL is never locked: a store has no locks, so that a
            second run there is the user's to avoid.
        name: The hook's name; hooks of different names share a folder.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        path = storage.path(f".{name}.lock")
        self._path = path if isinstance(path, Path) else None
        self._location = storage.location
        self._name = name

    def acquire(self, owner: object, is_live: Callable[[object], bool] = _always) -> None:
        """Take the lock for ``owner``, which is remembered by a weak reference.

        Within one process the lock passes on from an owner that is gone or no longer live, and
        an owner may take it again.

        Args:
            owner: The run.
            is_live: Says of another owner in this process whether it still runs.

        Raises:
            StateError: If another live run has it, in this process or in another.
            CheckpointError: If the folder cannot be written.
        """
        if self._path is None:
            return
        with _guard:
            held = _held.get(self._key())
            if held is not None:
                holder = held.owner()
                if holder is not None and holder is not owner and is_live(holder):
                    raise self._taken("another run in this process")
                if is_at(held.handle, self._path):
                    held.owner, held.lock = weakref.ref(owner), self
                    return
                _give_back(held)  # somebody removed the folder under a run that is over
            handle = self._open_locked(self._path)
            key = self._key()
            _held[key] = _Held(key, weakref.ref(owner), handle, self)

    def release(self) -> None:
        """Give the lock back, unless it has passed on or belongs to the parent of a fork."""
        if self._path is None:
            return
        with _guard:
            held = _held.get(self._key())
            if held is not None and held.lock is self:
                _give_back(held)

    def _key(self) -> str:
        return os.path.realpath(str(self._path))

    def _open_locked(self, path: Path) -> int:
        try:
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = open_lock_file(path)
                try:
                    self._lock(handle)
                    if is_at(handle, path):
                        _sign(handle)
                        return handle
                except BaseException:
                    close(handle)
                    raise
                # The last owner removed this very file while we opened it: a lock on it means
                # nothing to those who come after.
                close(handle)
        except OSError as error:
            what = f"could not lock {self._location} for the hook {self._name!r}"
            raise failure(what, error, "choose another out_dir") from error

    def _lock(self, handle: int) -> None:
        try:
            if not try_lock(handle):
                signature = os.read(handle, 200).decode("utf-8", errors="replace").strip()
                raise self._taken(f"another run ({signature or 'another process'})")
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            warnings.warn(
                f"{self._location} is on a file system without locks ({error}): nothing will "
                "keep a second run from using it at the same time",
                RuntimeWarning,
                stacklevel=4,
            )

    def _taken(self, by: str) -> StateError:
        return StateError(
            f"out_dir {self._location} is in use by {by} with a hook called {self._name!r}; "
            "give this run another out_dir, or its hook another name="
        )


@dataclass
class _Held:
    """A lock that this process holds."""

    path: str
    owner: weakref.ref[Any]
    handle: int
    lock: FolderLock


_held: dict[str, _Held] = {}
_guard = threading.RLock()  # ``is_live`` may come back here


def _forget_in_child() -> None:
    """Close a forked child's copies of the locked files, which leaves the parent's locks alone.

    Else the workers of a killed run would keep its lock for as long as they outlive it.
    """
    global _guard
    for held in _held.values():
        close(held.handle)
    _held.clear()
    _guard = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _give_back(held: _Held) -> None:
    """Remove the file and unlock it."""
    del _held[held.path]
    is_ours = False
    with contextlib.suppress(OSError):  # a disk that is gone has nothing to remove
        is_ours = is_at(held.handle, held.path)
    if sys.platform == "win32":  # it cannot remove an open file
        close(held.handle)
    if is_ours:
        with contextlib.suppress(OSError):  # one that stays is locked by nobody
            os.unlink(held.path)
    if sys.platform != "win32":  # closed last: while it is locked nobody else can own the name
        close(held.handle)


def _sign(handle: int) -> None:
    """Write into the file who has it, for people."""
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
