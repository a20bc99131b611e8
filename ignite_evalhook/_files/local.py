"""Keep files in a local folder, safe from a full disk, an exception or a kill at any instant.

:class:`LocalStorage` writes a temporary file, flushes it to the disk, renames it, and flushes
the folder: the order that leaves the old file or the new one whenever the power goes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .._decide.file_names import checked, spellings, temporary_name
from .base import (
    BLOCK,
    UNHARMED,
    Names,
    Storage,
    complete_lines,
    encoded_line,
)
from .counting_file import CountingFile
from .removal import remove, replace, wait_for_removals

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["LocalStorage"]

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line breaks
_AHEAD = 8 << 20  # bytes written between two hints to the disk
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


class LocalStorage(Storage):
    """A folder on a local or a mounted disk.

    What a method has written is on the disk when it returns.  Files get the permissions that
    the umask gives.

    Args:
        folder: Path of the folder; a relative one is resolved now.  It is created by the first
            write.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(os.path.abspath(folder))
        self.location = str(self._folder)

    def path(self, name: str) -> Path:
        """Return the absolute path of ``name``."""
        return self._folder / checked(name)

    def write(self, name: str, save: Callable[[BinaryIO], object]) -> None:
        """Write a file; see :meth:`Storage.write`.

        The last step flushes the folder.  Should that one fail the new file is in place and
        complete, but a power failure may bring the old one back.
        """
        path = self.path(name)
        temporary = self._temporary(path)
        with self._explained("write", name, UNHARMED):
            try:
                _make_folder(path.parent)
                _write_new(temporary, save)
                replace(temporary, path)
            except BaseException:
                _discard(temporary)
                raise
        with self._explained("flush the folder of", name, "the new file is in place and complete"):
            _sync_folder(path.parent)

    def append_line(self, name: str, line: str) -> None:
        """Add a line by a single write at the end; see :meth:`Storage.append_line`."""
        path, data = self.path(name), encoded_line(line)
        with self._explained("append to", name, "its earlier lines are unharmed"):
            _make_folder(path.parent)
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _BINARY, 0o666)
            try:
                size = _cut_torn_line(handle)
                try:
                    _append(handle, data, size)
                except OSError as error:
                    if not _makes_room_after(error):
                        raise
                    _append(handle, data, size)
            finally:
                with contextlib.suppress(OSError):  # the line is on the disk, or the error tells
                    os.close(handle)
            if size == 0:
                try:
                    _sync_folder(path.parent)
                except BaseException:
                    os.truncate(path, 0)
                    raise

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        path = self.path(name)
        with self._explained("open", name):
            return path.open("rb")

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, ``None`` if there is no such file."""
        path = self.path(name)
        with self._explained("look at", name):
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file")
        return found.st_size

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is fine."""
        path = self.path(name)
        with self._explained("remove", name):
            remove(path, self._temporary(path))

    def wait(self) -> None:
        """Wait until nothing is left of what was removed; see :meth:`Storage.wait`."""
        wait_for_removals()

    def move(self, name: str, to: str) -> None:
        """Rename a file; see :meth:`Storage.move`."""
        source, candidates = self.path(name), map(self.path, spellings(checked(to)))
        with self._explained("move", name):
            if not os.path.lexists(source):
                return
            target = next(path for path in candidates if not os.path.lexists(path))
            _make_folder(target.parent)
            os.rename(source, target)
            _sync_folder(target.parent)
            _sync_folder(source.parent)

    def _link(self, name: str, alias: str) -> bool:
        source, target = self.path(name), self.path(alias)
        temporary = self._temporary(target)
        with self._explained("write", alias, UNHARMED):
            _make_folder(target.parent)
            try:
                try:
                    os.link(source, temporary)
                except OSError:  # no links on this disk, or no such file: the copy will tell
                    return False
                os.replace(temporary, target)
            finally:
                # Also after success: renaming a file onto another link of itself does nothing.
                _discard(temporary)
            _sync_folder(target.parent)
        return True

    def _copy(self, name: str, alias: str) -> None:
        with self.open(name) as file:
            self.write(alias, lambda copy: shutil.copyfileobj(file, copy, BLOCK))

    def _names(self) -> Names:
        with self._explained("list"):
            try:
                with os.scandir(self._folder) as entries:
                    return [entry.name for entry in entries if _is_file(entry)]
            except FileNotFoundError:
                return []

    def _temporary(self, path: Path) -> Path:
        return path.with_name(temporary_name(path.name, self.owner))

    def _missing_folders(self) -> Names:
        with self._explained("look at"):
            return [str(folder) for folder in _missing(self._folder)]

    def _remove_empty_folder(self, folder: str) -> None:
        with contextlib.suppress(OSError):  # it was never created, or somebody else uses it by now
            os.rmdir(folder)


def _write_new(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Create the file ``path``, and return when it is on the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        CountingFile(_eager(handle)).fill(save)
        os.fsync(handle)
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure tells more
            os.close(handle)
        raise
    os.close(handle)  # some network disks report a full disk only here


def _eager(handle: int) -> Callable[[Buffer], int]:
    """Return a function that writes and lets the disk begin at once.

    By itself the system waits until it is asked to flush, and then so do we: a fifth of the time
    that it takes to save a large file.
    """
    written = begun = 0

    def write(data: Buffer) -> int:
        nonlocal written, begun
        try:
            count = os.write(handle, data)
        except OSError as error:
            if not _makes_room_after(error):
                raise
            os.lseek(handle, written, os.SEEK_SET)
            count = os.write(handle, data)
        written += count
        if sys.platform == "linux" and written - begun >= _AHEAD:
            with contextlib.suppress(OSError):  # only a hint
                # "Not needed in memory": Linux begins to write what is not on the disk yet, and
                # forgets no page before that is done.
                os.posix_fadvise(handle, begun, written - begun, os.POSIX_FADV_DONTNEED)
            begun = written
        return count

    return write


def _makes_room_after(error: OSError) -> bool:
    """Return whether a disk was full and there is more room now, after what was removed."""
    return error.errno in _FULL and wait_for_removals()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads nowhere, in a circle
        return False


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):  # already renamed, or the error on its way tells more
        os.unlink(path)


def _append(handle: int, data: bytes, size: int) -> None:
    """Write ``data`` behind the ``size`` bytes of a file, or leave it at that size."""
    try:
        if os.write(handle, data) != len(data):  # one write, so that no other can come between
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, size)
        raise


def _cut_torn_line(handle: int) -> int:
    """Cut off a last line without its line break and return the size, in bytes, that is left."""
    size = os.fstat(handle).st_size
    if size == 0:
        return 0
    os.lseek(handle, size - 1, os.SEEK_SET)
    if os.read(handle, 1) == b"\n":
        return size
    os.lseek(handle, 0, os.SEEK_SET)
    with os.fdopen(os.dup(handle), "rb") as file:
        size = complete_lines(file.read())
    os.ftruncate(handle, size)
    return size


def _missing(folder: Path) -> list[Path]:
    """Return the folders that must be created for ``folder`` to exist, deepest first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing


def _make_folder(folder: Path) -> None:
    created = _missing(folder)
    os.makedirs(folder, exist_ok=True)
    for new in created:
        _sync_folder(new.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    if sys.platform == "win32":  # Windows does that by itself and cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:  # some network disks have no such thing
            raise
    finally:
        os.close(handle)
