"""Let the processes of one run agree, and let none of them wait for ever.

A :class:`Team` is all ranks of the default process group, talking through a group of their own:
gloo, point to point, with rank 0 in the middle.  At a meeting each rank says something or that
it has failed, rank 0 decides, and all are told the outcome; one that fails between two meetings
says so at the next one, which the others are bound to reach.  What is said and decided is not
this module's business.  A team of one decides without talking.

What keeps messages from pairing wrongly: each rank sends one message at a meeting and gets one
answer, whatever goes wrong in between; a message that was begun is sent, and received, to its
end; and a meeting at which a rank has failed is the last one of its section, on every rank.
"""

from __future__ import annotations

import ctypes
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist

from ._packing import Packed, pack, unpack
from .exceptions import EvaluationError

__all__ = ["Failure", "Section", "Team"]

T = TypeVar("T")
Decide = Callable[[list[Any]], Any]

# Rank 0 may compute for hours while the others wait; a rank that dies is noticed at once, since
# its connections close.  Only a host that vanishes without a word is noticed this late.
PATIENCE = timedelta(days=1)
POLL_SECONDS = 0.5  # how often a rank looks, between batches, whether another one has failed
_FIRST = 4096  # bytes of a first message
_CHUNK = 8 << 20  # bytes of each further one
_LENGTHS = 16  # bytes: the lengths of head and payload, two int64
_TOLD = "_told_at_meeting"  # attribute of an exception that every rank knows of


class Failure(NamedTuple):
    """What went wrong on a rank, in words that can be told."""

    rank: int
    kind: str
    message: str
    trace: str

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        """Describe an exception on ``rank``."""
        try:
            message = str(error)
        except Exception as unprintable:  # noqa: BLE001  # whose error is the one to tell
            message = f"(its message cannot be shown: {type(unprintable).__qualname__})"
        trace = "".join(traceback.format_exception(error))
        return cls(rank, type(error).__qualname__, message, trace)

    def __str__(self) -> str:
        return f"rank {self.rank} failed: {self.kind}: {self.message}"


def told(failures: Sequence[Failure]) -> EvaluationError:
    """Return the error that every rank raises, since all were told."""
    first, *others = failures
    more = f" (and so did {[f.rank for f in others]})" if others else ""
    trace = f"\n\nOn rank {first.rank}:\n{first.trace}" if first.trace else ""
    error = EvaluationError(f"{first}{more}{trace}")
    error.failures = tuple(failures)
    return error


class StoppedError(EvaluationError):
    """This rank stopped, since another one has failed; what that was is told at the meeting."""


class _LostError(Exception):
    """The connection to another rank is lost."""

    def __init__(self, rank: int, own_rank: int, error: BaseException) -> None:
        first_line = str(error).partition("\n")[0]
        words = f"its connection to rank {own_rank} is lost, as it is when a process dies"
        self.failure = Failure(rank, "ConnectionError", f"{words}: {first_line}", "")
        super().__init__(words)


class _Said(NamedTuple):
    """What a rank says at a meeting."""

    label: str
    failure: Failure | None = None
    payload: Any = None


class Team:
    """All ranks of the default process group.

    Attributes:
        rank: This process's rank, 0-based.
        size: Number of ranks.
        meetings: How many there have been; the same on all ranks.
    """

    rank: int
    size: int
    meetings: int

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group
        self._store = store
        self.meetings = 0
        self._deciding = False
        self._next_poll = 0.0
        self._interrupt: BaseException | None = None  # raised while this rank waited

    @staticmethod
    def current() -> Team:
        """Return the team of this process; the first call has to be made on every rank.

        Raises:
            NotImplementedError: If there are several processes, but not torch's.
        """
        global _team, _team_world
        size = idist.get_world_size()  # Ignite's first call in a foreign group is a collective
        if size == 1:
            return Team()
        if not (dist.is_available() and dist.is_initialized()):
            raise NotImplementedError(
                f"ignite-evalhook talks through torch.distributed, and the {size} processes of "
                f"this run are {idist.model_name()!r}; use the backend gloo or nccl"
            )
        world = dist.group.WORLD
        if _team is None or _team_world is not world:
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
            store = dist.distributed_c10d._get_default_store()
            _team, _team_world = Team(dist.get_rank(), size, group, store), world
        return _team

    @property
    def alone(self) -> bool:
        """Whether there is only one rank."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides, and writes files."""
        return self.rank == 0

    @property
    def group(self) -> Any:
        """The team's own process group: gloo, for tensors on the CPU."""
        return self._group

    @contextmanager
    def together(self, what: str) -> Iterator[Section]:
        """Run the body on all ranks, so that an exception on one is raised on every one.

        It ends with a meeting: explicitly by :meth:`Section.close`, else by itself.  Sections
        may be nested; what a failed one raises goes through the outer ones as it is.

        Args:
            what: Words for messages; the same on all ranks.

        Raises:
            EvaluationError: On every rank, if any has failed.
        """
        if self._deciding:
            raise EvaluationError(
                f"{what}: this was called on rank 0 alone, by what computes or judges metrics "
                "there (compute_metrics, derive, rule_map); the other ranks wait for it to end"
            )
        self._next_poll = time.monotonic() + POLL_SECONDS
        section = Section(self, what)
        try:
            yield section
            if not section.closed:
                section.close()
        except BaseException as error:
            if self.alone or section.closed or self.is_known(error):
                raise
            self._fail(what, error)

    def tell(self, draw: Callable[[], T], what: str = "telling") -> T:
        """Run ``draw`` on rank 0, and return its result on every rank.

        Raises:
            EvaluationError: On every rank, if it fails.
        """
        if self.alone:
            return draw()
        with self.together(what) as section:
            return section.close(decide=lambda said: draw())  # type: ignore[no-any-return]

    # -- meetings -----------------------------------------------------------------------------

    def meet(self, label: str, payload: Any, decide: Decide | None) -> Any:
        """Tell rank 0 what this rank has to say, and return what all are told.

        Raises:
            EvaluationError: On every rank, if any has failed.
        """
        return self._exchange(_Said(label, None, payload), decide)

    def _fail(self, what: str, error: BaseException) -> NoReturn:
        """Say at the next meeting that this rank has failed, and raise what all are told."""
        failure = Failure.of(self.rank, error)
        if not isinstance(error, StoppedError):
            self._cry()
        self._exchange(_Said(what, failure), None, error)
        raise error

    def _exchange(
        self, said: _Said, decide: Decide | None, cause: BaseException | None = None
    ) -> Any:
        """Say something, and return what all are told.

        Args:
            said: What this rank says.
            decide: Called on rank 0 with what each said.
            cause: What it failed with, if it has.
        """
        try:
            if self.leads:
                failures, verdict, problem = self._lead(said, decide)
            else:
                failures, verdict, problem = self._follow(said)
        except _LostError as lost:
            failures, verdict, problem = [lost.failure], None, lost.__cause__
        interrupt, self._interrupt = self._interrupt, None
        cause = interrupt or cause or problem
        if not failures:
            if interrupt is not None:
                raise interrupt
            return verdict
        if cause is None or isinstance(cause, Exception):
            outcome: BaseException = told(failures)
            outcome.__cause__ = cause
        else:
            outcome = cause  # an interrupt stays one where it came
        vars(outcome)[_TOLD] = self.meetings
        raise outcome

    def is_known(self, error: BaseException) -> bool:
        """Return whether all ranks have been told of this exception, and none has met since."""
        return getattr(error, _TOLD, None) == self.meetings

    def _lead(
        self, own: _Said, decide: Decide | None
    ) -> tuple[list[Failure], Any, BaseException | None]:
        """Hear what all have to say, decide, and tell all, also what goes wrong meanwhile."""
        openers = self._gather()
        verdict, problem = None, None
        try:
            if self._interrupt is not None:
                raise self._interrupt
            said = [own, *(opener() for opener in openers)]
            failures = [one.failure for one in said if one.failure is not None]
            # One that only stopped has nothing to add.
            failures = [f for f in failures if f.kind != StoppedError.__qualname__] or failures
            if not failures:
                _check_same_place([one.label for one in said])
                if decide is not None:
                    verdict = self._decide(decide, [one.payload for one in said])
            packed = pack((failures, verdict))
            pieces = [packed.payload()]
        except BaseException as error:  # noqa: BLE001  # told to all, and raised by the caller
            problem = error
            failures = [Failure.of(0, error)]
            packed = pack((failures, None))
            pieces = [packed.payload()]
        for rank in range(1, self.size):
            # One that has died since it spoke is missed at the next meeting, by all alike.
            with suppress(_LostError):
                self._send(rank, packed, pieces)
        self.meetings += 1
        return failures, verdict, problem

    def _decide(self, decide: Decide, said: list[Any]) -> Any:
        self._deciding = True
        try:
            return decide(said)
        finally:
            self._deciding = False

    def _follow(self, said: _Said) -> tuple[list[Failure], Any, BaseException | None]:
        """Say something to rank 0, and hear what it tells."""
        packed, problem = None, None
        try:
            packed = pack(said)
        except Exception as error:  # noqa: BLE001  # told to all ranks, and raised there
            problem = error
        if packed is not None:
            problem = self._send(0, packed, packed.pieces)
        if problem is not None:
            packed = pack(_Said(said.label, Failure.of(self.rank, problem)))
            self._send(0, packed, packed.pieces)
        opener = self._receive(0)
        self.meetings += 1
        failures, verdict = opener()
        return failures, verdict, problem

    # -- messages -----------------------------------------------------------------------------

    def _gather(self) -> list[Callable[[], _Said]]:
        """Receive what every other rank says; one that is gone has failed."""
        openers: list[Callable[[], _Said]] = []
        for rank in range(1, self.size):
            try:
                openers.append(self._receive(rank))
            except _LostError as lost:
                self._cry()
                openers.append(partial(_Said, "", lost.failure))
        return openers

    def _send(self, rank: int, packed: Packed, pieces: Iterable[torch.Tensor]) -> Exception | None:
        """Send a first message of fixed length, and what does not fit into it by others.

        Returns:
            What has kept it from being complete: then the receiver waits for another one.

        Raises:
            _LostError: If the receiver is gone.
        """
        first = torch.zeros(_FIRST, dtype=torch.uint8)
        first[:_LENGTHS] = torch.tensor([len(packed.head), packed.size]).view(torch.uint8)
        head = torch.frombuffer(bytearray(packed.head), dtype=torch.uint8)
        middle = _LENGTHS + len(head)
        if middle + packed.size <= _FIRST:
            first[_LENGTHS:middle] = head
            first[middle : middle + packed.size] = packed.payload()
            self._finish(dist.isend, first, rank)
            return None
        self._finish(dist.isend, first, rank)
        self._finish(dist.isend, head, rank)
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
            self._finish(dist.isend, block, rank)
        complete = torch.tensor([problem is None], dtype=torch.uint8)
        self._finish(dist.isend, complete, rank)
        return problem

    def _receive(self, rank: int) -> Callable[[], Any]:
        """Receive a message to its end, and return the function that opens it.

        Raises:
            _LostError: If the sender is gone.
        """
        first = torch.empty(_FIRST, dtype=torch.uint8)
        self._finish(dist.irecv, first, rank)
        head_length, size = first[:_LENGTHS].view(torch.int64).tolist()
        middle = _LENGTHS + head_length
        if middle + size <= _FIRST:
            return partial(_opened, first[_LENGTHS:middle], first[middle : middle + size].clone())
        head = torch.empty(head_length, dtype=torch.uint8)
        self._finish(dist.irecv, head, rank)
        try:
            payload = torch.empty(size, dtype=torch.uint8)
            opener = partial(_opened, head, payload)
        except RuntimeError as error:  # there is not so much memory: let it all come, and go
            payload = torch.empty(_CHUNK, dtype=torch.uint8)
            opener = partial(_raise, error)
        for start in range(0, size, _CHUNK):
            length = min(_CHUNK, size - start)
            block = payload[start:][:length] if len(payload) == size else payload[:length]
            self._finish(dist.irecv, block, rank)
        complete = torch.empty(1, dtype=torch.uint8)
        self._finish(dist.irecv, complete, rank)
        return opener if complete.item() else self._receive(rank)

    def _finish(self, begin: Callable[..., Any], data: torch.Tensor, rank: int) -> None:
        """Send or receive to the end; what a signal raises meanwhile comes after the meeting."""
        try:
            work = begin(data, rank, group=self._group)
            while not work.is_completed():
                try:
                    work.wait()
                except RuntimeError:
                    raise
                except BaseException as error:  # noqa: BLE001  # raised by _exchange()
                    self._interrupt = error
        except RuntimeError as error:
            raise _LostError(rank, self.rank, error) from error

    # -- failures between meetings ------------------------------------------------------------

    def _cry(self) -> None:
        """Let the others know, before the next meeting, that a rank has failed."""
        if self._store is not None:
            with suppress(RuntimeError):  # the store is gone with its host; they will hear it
                self._store.set(self._key(), "1")

    def listen(self) -> None:
        """Raise if another rank has failed; cheap enough to call for each batch.

        Raises:
            StoppedError: If one has.
        """
        if self._store is None:
            return
        now = time.monotonic()
        if now < self._next_poll:
            return
        self._next_poll = now + POLL_SECONDS
        if self._store.check([self._key()]):
            raise StoppedError("another rank has failed")

    def _key(self) -> str:
        return f"ignite_evalhook/failed/{self.meetings}"


class Section:
    """A stretch of work that all ranks go through together; see :meth:`Team.together`.

    Attributes:
        team: The ranks.
        closed: Whether they meet in it no more.
    """

    def __init__(self, team: Team, what: str) -> None:
        self.team = team
        self.closed = False
        self._what = what

    def meet(self, label: str, payload: Any = None, decide: Decide | None = None) -> Any:
        """Meet the other ranks.

        Args:
            label: Where this is; the same on all ranks.
            payload: What this rank says: nested plain values and tensors.
            decide: Called on rank 0 with what each rank said, in order of ranks.

        Returns:
            On every rank, what ``decide`` returned.

        Raises:
            EvaluationError: On every rank, if any has failed.
        """
        return self._meet(label, payload, decide)

    def _meet(self, label: str, payload: Any, decide: Decide | None, *, last: bool = False) -> Any:
        if self.team.alone:
            self.closed = last
            return None if decide is None else decide([payload])
        before = self.team.meetings
        try:
            verdict = self.team.meet(f"{self._what}: {label}", payload, decide)
        except BaseException as error:
            # Whatever the error turns into on its way: the others have left, or will not wait.
            self.closed = self.team.is_known(error) or (last and self.team.meetings > before)
            raise
        self.closed = last
        return verdict

    def tell(self, draw: Callable[[], T]) -> T:
        """Run ``draw`` on rank 0, and return its result on every rank.

        Raises:
            EvaluationError: On every rank, if any has failed.
        """
        return self.meet("telling", None, lambda said: draw())  # type: ignore[no-any-return]

    def close(self, payload: Any = None, decide: Decide | None = None) -> Any:
        """Meet for the last time; nothing that follows belongs to the section."""
        return self._meet("end", payload, decide, last=True)

    def listen(self) -> None:
        """Raise if another rank has failed meanwhile; see :meth:`Team.listen`."""
        self.team.listen()


_team: Team | None = None
_team_world: Any = None


def _check_same_place(labels: Sequence[str]) -> None:
    if len(set(labels)) > 1:
        where = ", ".join(f"rank {rank} at {label!r}" for rank, label in enumerate(labels))
        raise EvaluationError(
            f"the ranks are at different places: {where}; call the hook on every rank alike"
        )


def _opened(head: torch.Tensor, payload: torch.Tensor) -> Any:
    # The bytes of a tensor, without NumPy.
    return unpack(ctypes.string_at(head.data_ptr(), len(head)), payload)


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
