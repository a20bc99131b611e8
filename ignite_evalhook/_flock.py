"""Lock an open file against everybody else who locks it.

The lock goes with the open file: the system gives it back when the process closes the file or
dies, however that happens.  What a lock stands for is its user's business.
"""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["UNSUPPORTED", "try_lock"]

UNSUPPORTED = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Numbers of the ``OSError`` by which a file system says that it has no locks."""

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
