"""Lock an open file against everybody else who locks it.

The lock goes with the open file: the system gives it back when the process closes the file or
dies, however that happens.  What a lock stands for is its user's business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

__all__ = ["UNSUPPORTED", "close", "is_at", "open_lock_file", "try_lock"]

UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Numbers of the ``OSError`` by which a file system says that it has no locks."""


def open_lock_file(path: str | os.PathLike[str], mode: int = 0o666) -> int:
    """Open a file to be locked; make it if there is none.

    Raises:
        OSError: If it cannot be opened, or is a link to somewhere else.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags, mode)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
    except BaseException:
        close(handle)
        raise
    return handle


def close(handle: int) -> None:
    """Close a locked file; a failure loses nothing, and must hide no error on its way."""
    with contextlib.suppress(OSError):
        os.close(handle)


def is_at(handle: int, path: str | os.PathLike[str]) -> bool:
    """Return whether an open file is the one now found at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise
        return False


if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30  # Windows forbids others to read a locked byte: take one beyond the content

    def try_lock(handle: int) -> bool:
        """Lock an open file; return ``False`` if somebody else has it locked."""
        os.lseek(handle, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def try_lock(handle: int) -> bool:
        """Lock an open file; return ``False`` if somebody else has it locked."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
