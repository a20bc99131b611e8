"""Stand between a function that writes a file and the system call.

:class:`CountingFile` counts bytes, and remembers the first error between them.  It knows nothing
about where the bytes go.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["CountingFile"]

_BUFFER = 1 << 20  # bytes held back; larger pieces pass through uncopied
_PIECE = 4 << 20  # bytes written at once, so that the disk begins with a huge tensor early


class CountingFile(io.RawIOBase):
    """Pass what is written on to ``write``, and count it on the way.

    Args:
        write: Writes some of what it is given, and returns how many bytes; ``None``: all.

    Attributes:
        count: Bytes written so far.
    """

    def __init__(self, write: Callable[[Buffer], int | None]) -> None:
        self.count = 0
        self._write = write
        self._error: BaseException | None = None

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
        except BaseException as error:
            self._error = error
            raise
        count = len(view) if written is None else written
        self.count += count
        return count

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
