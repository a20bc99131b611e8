"""Hash a file while it is being written, so that nobody has to read it again for that.

:class:`HashingFile` stands between a function that writes and the system call, and remembers
the first error between them.  It knows nothing about where the bytes go.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from ._background_hash import BackgroundHash

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["HashingFile"]

_BUFFER = 1 << 20  # bytes held back; larger pieces pass through uncopied
_PIECE = 4 << 20  # bytes written at once, so that the hashing of a huge tensor begins early


class HashingFile(io.RawIOBase):
    """Pass what is written on to ``write``, hashing and counting it on the way.

    Closing it ends the hashing; ``write`` and what is behind it are the caller's.

    Args:
        write: Writes some of what it is given, and returns how many bytes; ``None``: all.
        hashed: Whether the sum is wanted.

    Attributes:
        count: Bytes written so far.
    """

    def __init__(self, write: Callable[[Buffer], int | None], *, hashed: bool = True) -> None:
        self._digest = BackgroundHash() if hashed else None
        self.count = 0
        self._write = write
        self._error: BaseException | None = None

    def close(self) -> None:
        """Leave no thread behind."""
        if self._digest is not None:
            self._digest.close()
        super().close()

    def writable(self) -> bool:
        """Return ``True``."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Write as much of ``data`` as one call takes, and return how many bytes that was."""
        view = memoryview(data)[:_PIECE]
        if self._error is not None:  # a buffer that is dropped flushes once more
            return len(view)
        try:
            written = self._write(view)
            count = len(view) if written is None else written
            if self._digest is not None:
                self._digest.update(view[:count])
        except BaseException as error:
            self._error = error
            raise
        self.count += count
        return count

    def hexdigest(self) -> str | None:
        """Return the SHA-256 of what was written, in hex, if it is wanted."""
        return None if self._digest is None else self._digest.hexdigest()

    def fill(self, save: Callable[[BinaryIO], object]) -> None:
        """Let ``save`` write everything, and raise the first thing that went wrong.

        ``torch.save`` turns an exception of its file, be it "disk full" or Ctrl-C, into a
        RuntimeError about positions in an archive: the first one is what the user must see.
        """
        buffered = io.BufferedWriter(self, _BUFFER)
        try:
            save(buffered)
            if not buffered.closed:
                buffered.detach()  # flushes, and makes later writes fail
        except BaseException as error:
            first = self._error
            self._error = error if first is None else first
            if first is None or first is error:
                raise
        if self._error is not None:
            raise self._error
