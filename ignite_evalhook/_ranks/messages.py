"""Send a packed value from one rank to another, in messages of known lengths.

A message that was begun is sent, and received, to its end, whatever goes wrong meanwhile: else
the next one would be taken for the rest of it.  Who talks to whom, and when, is not said here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from .packing import Packed, unpack

__all__: list[str] = []

_FIRST = 4096  # bytes of a first message
_CHUNK = 8 << 20  # bytes of each further one
_NEVER_SENT = 1  # tag of a message that nobody sends
_LENGTHS = 16  # bytes: the lengths of head and payload, two int64


class LostError(Exception):
    """The connection to another rank is lost, as it is when a process dies.

    Attributes:
        rank: The other rank.
    """

    def __init__(self, rank: int, own_rank: int, error: BaseException) -> None:
        first_line = str(error).partition("\n")[0]
        words = f"its connection to rank {own_rank} is lost, as it is when a process dies"
        super().__init__(f"{words}: {first_line}")
        self.rank = rank


class Wire:
    """The connections of this rank, by a gloo group.

    Args:
        rank: This rank.
        group: The gloo group.

    Attributes:
        interrupt: What a signal has raised while this rank waited, for the caller to raise.
    """

    def __init__(self, rank: int, group: Any) -> None:
        self.interrupt: BaseException | None = None
        self._rank = rank
        self._group = group

    def take_interrupt(self) -> BaseException | None:
        """Return what a signal has raised since the last time, if anything."""
        interrupt, self.interrupt = self.interrupt, None
        return interrupt

    def close(self) -> None:
        """Close the connections, also under a wait of another thread: a timeout of gloo's does."""
        other = 1 if self._rank == 0 else 0
        with suppress(RuntimeError):
            work: Any = dist.irecv(torch.empty(1), other, group=self._group, tag=_NEVER_SENT)
            work.wait(timedelta(milliseconds=1))

    def send(self, rank: int, packed: Packed) -> Exception | None:
        """Send a first message of fixed length, and what does not fit into it otherwise.

        Returns:
            What has kept it from being complete: then the receiver waits for another one.

        Raises:
            LostError: If the receiver is gone.
        """
        first, is_all = _first_message(packed)
        self._begin(dist.isend, first, rank)()
        if is_all:
            return None
        self._send_head(rank, packed)
        return self._send_payload(rank, packed, packed.pieces)

    def send_to_all(
        self, ranks: Iterable[int], packed: Packed, pieces: Sequence[torch.Tensor]
    ) -> None:
        """Send the same to several ranks, as :meth:`send` does; one that is gone is left out.

        All first messages are on their way before the first is waited for: the time that one
        takes to arrive passes once, not once a rank.
        """
        first, is_all = _first_message(packed)
        begun = [(rank, self._begin(dist.isend, first, rank)) for rank in ranks]
        for rank, finish in begun:
            with suppress(LostError):
                finish()
                if not is_all:
                    self._send_head(rank, packed)
                    self._send_payload(rank, packed, pieces)

    def _send_head(self, rank: int, packed: Packed) -> None:
        head = torch.frombuffer(bytearray(packed.head), dtype=torch.uint8)
        self._begin(dist.isend, head, rank)()

    def _send_payload(
        self, rank: int, packed: Packed, pieces: Iterable[torch.Tensor]
    ) -> Exception | None:
        """Send the payload in blocks, to the end; see :meth:`send`."""
        problem: Exception | None = None
        blocks = chunks(pieces, _CHUNK)
        for start in range(0, packed.size, _CHUNK):
            block = None
            if problem is None:
                try:
                    block = next(blocks)  # may come from a device, or need memory
                except Exception as error:  # noqa: BLE001  # returned
                    problem = error
            if block is None:
                block = torch.zeros(min(_CHUNK, packed.size - start), dtype=torch.uint8)
            self._begin(dist.isend, block, rank)()
        complete = torch.tensor([problem is None], dtype=torch.uint8)
        self._begin(dist.isend, complete, rank)()
        return problem

    def receive(self, rank: int) -> Callable[[], Any]:
        """Receive a message to its end, and return the function that opens it.

        Raises:
            LostError: If the sender is gone.
        """
        return self.begin_receive(rank)()

    def begin_receive(self, rank: int) -> Callable[[], Callable[[], Any]]:
        """Begin to receive, and return the function that does the rest of :meth:`receive`.

        Messages of several ranks may be begun, then finished in any order; of one rank, one.
        """
        first = torch.empty(_FIRST, dtype=torch.uint8)
        return partial(self._receive_rest, rank, first, self._begin(dist.irecv, first, rank))

    def _receive_rest(
        self, rank: int, first: torch.Tensor, finish_first: Callable[[], None]
    ) -> Callable[[], Any]:
        finish_first()
        head_length, size = first[:_LENGTHS].view(torch.int64).tolist()
        middle = _LENGTHS + head_length
        if middle + size <= _FIRST:
            return partial(_opened, first[_LENGTHS:middle], first[middle : middle + size].clone())
        head = torch.empty(head_length, dtype=torch.uint8)
        self._begin(dist.irecv, head, rank)()
        try:
            payload = torch.empty(size, dtype=torch.uint8)
            opener = partial(_opened, head, payload)
        except RuntimeError as error:  # there is not so much memory: let it all come, and go
            payload = torch.empty(_CHUNK, dtype=torch.uint8)
            opener = partial(_raise, error)
        for start in range(0, size, _CHUNK):
            length = min(_CHUNK, size - start)
            block = payload[start:][:length] if len(payload) == size else payload[:length]
            self._begin(dist.irecv, block, rank)()
        complete = torch.empty(1, dtype=torch.uint8)
        self._begin(dist.irecv, complete, rank)()
        return opener if complete.item() else self.receive(rank)

    def _begin(
        self, begin: Callable[..., Any], data: torch.Tensor, rank: int
    ) -> Callable[[], None]:
        """Begin to send or receive, and return the function that waits for the end.

        The latter raises a ``LostError`` if the other rank is gone, also if it was already.
        """
        try:
            work = begin(data, rank, group=self._group)
        except RuntimeError as error:
            return partial(_raise, self._lost(rank, error))
        return partial(self._finish, work, data, rank)

    def _finish(self, work: Any, data: torch.Tensor, rank: int) -> None:
        """Wait for the end; what a signal raises meanwhile is put off.

        ``data`` is held in memory until then.
        """
        try:
            while not work.is_completed():
                try:
                    work.wait()
                except RuntimeError:
                    raise
                except BaseException as error:  # noqa: BLE001  # raised by the caller
                    self.interrupt = error
        except RuntimeError as error:
            raise self._lost(rank, error) from error

    def _lost(self, rank: int, error: RuntimeError) -> LostError:
        lost = LostError(rank, self._rank, error)
        lost.__cause__ = error
        return lost


def _first_message(packed: Packed) -> tuple[torch.Tensor, bool]:
    """Return a message of fixed length, shape (_FIRST,), and whether all fits into it."""
    first = torch.zeros(_FIRST, dtype=torch.uint8)
    first[:_LENGTHS] = torch.tensor([len(packed.head), packed.size]).view(torch.uint8)
    middle = _LENGTHS + len(packed.head)
    if middle + packed.size > _FIRST:
        return first, False
    first[_LENGTHS:middle] = torch.frombuffer(bytearray(packed.head), dtype=torch.uint8)
    first[middle : middle + packed.size] = packed.payload()
    return first, True


def _opened(head: torch.Tensor, payload: torch.Tensor) -> Any:
    return unpack(_bytes_of(head), payload)


def _bytes_of(data: torch.Tensor) -> bytes:
    return ctypes.string_at(data.data_ptr(), len(data))  # without NumPy


def _raise(error: Exception) -> NoReturn:
    raise error


def chunks(pieces: Iterable[torch.Tensor], length: int) -> Iterator[torch.Tensor]:
    """Yield the bytes of some 1-d tensors in blocks of ``length``; the last one is shorter.

    So a receiver knows the length of each from the length of all.  What is long is given from
    where it lies, what is short is copied together.
    """
    parts: list[torch.Tensor] = []
    missing = length
    for piece in pieces:
        while len(piece) > 0:
            part, piece = piece[:missing], piece[missing:]
            parts.append(part)
            missing -= len(part)
            if missing == 0:
                yield parts[0] if len(parts) == 1 else torch.cat(parts)
                parts, missing = [], length
    if parts:
        yield parts[0] if len(parts) == 1 else torch.cat(parts)
