"""Keep files where no other user can read, write or replace them, in a folder that all may use.

What is unpickled may run code: so nothing is read that another user could have written.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from .._files.flock import UNSUPPORTED, close, is_at, open_lock_file, try_lock
from ..exceptions import EvaluationError

__all__: list[str] = []

_PREFIX = ".ignite_evalhook-"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def make_private_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder of our own, after removing those that killed processes have left.

    Returns:
        The folder, and a handle that holds it; whoever closes it gives it up.

    Raises:
        OSError: If it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(parent)
    while True:
        folder = parent / f"{_PREFIX}{os.urandom(6).hex()}"
        folder.mkdir(mode=0o700)
        try:
            handle = open_lock_file(folder / "lock", 0o600)
        except FileNotFoundError:  # taken for a leftover before it was locked
            continue
        if _is_locked(handle) and is_at(handle, folder / "lock"):
            return folder, handle
        close(handle)


def open_new(path: str | os.PathLike[str], flags: int) -> int:
    """Open a new file in a private folder, for ``open(..., opener=...)``.

    Raises:
        EvaluationError: If the folder is not ours alone.
    """
    folder = Path(path).parent
    _check_ours(os.lstat(folder), folder, stat.S_IFDIR)
    return os.open(path, flags | os.O_EXCL | _NO_LINK, 0o600)


def open_ours(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file that only this user can have written, for ``open(..., opener=...)``.

    Raises:
        EvaluationError: If another one could have.
    """
    handle = os.open(path, flags | _NO_LINK | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_ours(os.fstat(handle), path, stat.S_IFREG)
    except BaseException:
        close(handle)
        raise
    return handle


def remove_left_over(parent: Path) -> Sequence[Path]:
    """Remove the private folders of killed processes of this user; return which."""
    removed = []
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            _check_ours(os.lstat(folder), folder, stat.S_IFDIR)
            handle = os.open(folder / "lock", os.O_RDWR | _NO_LINK)
        except FileNotFoundError:
            _remove_if_empty(folder)  # its process was killed, or makes another one
            continue
        except (EvaluationError, OSError):
            continue
        try:
            if try_lock(handle):  # nobody lives there
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        except OSError:  # a file system without locks: whose it is cannot be told
            continue
        finally:
            close(handle)
    return removed


def _remove_if_empty(folder: Path) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        return


def _is_locked(handle: int) -> bool:
    try:
        return try_lock(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return True  # nobody can lock here, and so nobody takes it for a leftover


def _check_ours(found: os.stat_result, path: str | os.PathLike[str], kind: int) -> None:
    """Refuse what is of another kind, of another user, or open to one.

    Raises:
        EvaluationError: With words.
    """
    if sys.platform == "win32":  # it has no such owners and modes
        return
    mode = stat.filemode(found.st_mode)
    if stat.S_IFMT(found.st_mode) != kind:
        wrong = f"is of another kind: {mode}"
    elif found.st_uid != os.geteuid():
        wrong = f"belongs to user {found.st_uid}, this process to user {os.geteuid()}"
    elif found.st_mode & 0o077:
        wrong = f"is open to other users: {mode}"
    elif kind == stat.S_IFREG and found.st_nlink != 1:
        wrong = "has a second name"
    else:
        return
    raise EvaluationError(
        f"tmpdir: {os.fspath(path)} {wrong}, and is not read; give a tmpdir on a disk that keeps "
        "owners and modes of files, or leave it out"
    )
