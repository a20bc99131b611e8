"""Compute a SHA-256 in a second thread, so that the first can go on writing.

On a machine with an idle core the sum of a large file then costs no time: it takes about as long
as writing to memory, and the interpreter lock is free in both.  A thread that is in the background
already hashes by itself: nobody waits for it, and the other cores are for training.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["BackgroundHash"]

_SMALL = 8 << 20  # bytes that are not worth a thread
_BLOCK = 2 << 20  # bytes handed over at once
_BLOCKS = 16  # handed over and not hashed yet, at most


class BackgroundHash:
    """A running SHA-256; :meth:`close` ends its thread."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        is_waited_for = threading.current_thread() is threading.main_thread()
        self._alone: float = _SMALL if is_waited_for else math.inf  # bytes to hash here first
        self._pool: ThreadPoolExecutor | None = None
        self._busy: deque[tuple[bytearray, Future[None]]] = deque()

    def update(self, data: memoryview) -> None:
        """Add ``data``; it is not needed any more when this returns."""
        self._alone -= data.nbytes
        if self._alone >= 0:
            self._digest.update(data)
            return
        for begin in range(0, data.nbytes, _BLOCK):
            self._hand_over(data[begin : begin + _BLOCK])

    def hexdigest(self) -> str:
        """Return the sum of what was added so far, in hex."""
        while self._busy:
            self._busy.popleft()[1].result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread when it has added all; the sum can still be asked for."""
        self._alone = math.inf
        if self._pool is not None:
            self._pool.shutdown()

    def _hand_over(self, piece: memoryview) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "sha256")
        block = self._block()
        copy = memoryview(block)[: len(piece)]
        copy[:] = piece
        try:
            self._busy.append((block, self._pool.submit(self._digest.update, copy)))
        except RuntimeError:  # no thread to be had, as while the interpreter ends
            self.close()
            self._digest.update(piece)

    def _block(self) -> bytearray:
        """Return memory to copy to: new up to a limit, then what the thread is done with."""
        if len(self._busy) < _BLOCKS:
            return bytearray(_BLOCK)
        block, hashed = self._busy.popleft()
        hashed.result()
        return block
