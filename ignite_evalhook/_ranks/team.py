"""Let the processes of one run agree, and let none of them wait for ever.

A :class:`Team` is all ranks of the default process group, talking through a group of their own:
gloo, point to point, with rank 0 in the middle.  At a meeting each rank says something or that
it has failed, rank 0 decides, and all are told the outcome; one that fails between two meetings
says so at the next one, which the others are bound to reach.  What is said and decided is not
this module's business.  A team of one decides without talking.

What keeps messages from pairing wrongly: each rank sends one message at a meeting and gets one
answer, whatever goes wrong in between; and a meeting at which a rank has failed is the last one
of its section, on every rank.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeVar

import ignite.distributed as idist
import torch.distributed as dist

from ..exceptions import EvaluationError
from .messages import LostError, Wire
from .packing import pack
from .waiting import Watch

__all__ = ["Failure", "Section", "Team"]

T = TypeVar("T")
Decide = Callable[[list[Any]], Any]

# Rank 0 may compute for hours while the others wait; a rank that dies is noticed at once, since
# its connections close, and one that does not come by the watch.  Only a host that vanishes
# without a word is noticed this late.
PATIENCE = timedelta(days=1)
MOST_WORDS = 1000  # characters of another rank's message that an error repeats
POLL_SECONDS = 0.5  # how often a rank looks, between batches, whether another one has failed
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
        message = " ".join([message, *getattr(error, "__notes__", ())])
        trace = "".join(traceback.format_exception(error))
        return cls(rank, type(error).__qualname__, message, trace)

    def __str__(self) -> str:
        words = " ".join(self.message.split())  # in one line
        if len(words) > MOST_WORDS:
            words = f"{words[:MOST_WORDS]}…"
        return f"rank {self.rank} failed: {self.kind}: {words}"


def told(failures: Sequence[Failure], rank: int, cause: BaseException | None) -> EvaluationError:
    """Return the error that every rank raises, since all were told.

    Its words are one line.  The traceback of another rank is a note, which Python shows from
    3.11 on; that of this ``rank`` is seen with the cause.
    """
    first, *others = failures
    more = f" (and so did {[f.rank for f in others]})" if others else ""
    error = EvaluationError(f"{first}{more}")
    error.failures = tuple(failures)
    error.__cause__ = None if isinstance(cause, StoppedError) else cause
    if first.trace and first.rank != rank:
        vars(error)["__notes__"] = [f"On rank {first.rank}:\n{first.trace}"]
    return error


class StoppedError(EvaluationError):
    """This rank stopped, since another one has failed; what that was is told at the meeting."""


def _loss(lost: LostError) -> Failure:
    return Failure(lost.rank, "ConnectionError", str(lost), "")


def _never_came(missing: Mapping[int, str]) -> list[Failure]:
    return [Failure(rank, "TimeoutError", words, "") for rank, words in missing.items()]


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
        group: The team's own process group: gloo, for tensors on the CPU.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        group: Any = None,
        store: Any = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.group = group
        self._wire = Wire(rank, group)
        self._store = store
        self._watch = Watch(rank, size, store, self._wire.close)
        self._nested = 0  # sections that are under way
        self.meetings = 0
        self._deciding = False
        self._next_poll = 0.0

    @staticmethod
    def current(what: str = "the first call") -> Team:
        """Return the team of this process; the first call has to be made on every rank.

        Args:
            what: Who asks, for messages.

        Raises:
            EvaluationError: If a rank does not come, within the default group's timeout.
            NotImplementedError: If there are several processes, but not torch's.
        """
        global _team, _team_world
        if not (dist.is_available() and dist.is_initialized()):
            if (size := idist.get_world_size()) > 1:
                raise NotImplementedError(
                    f"ignite-evalhook talks through torch.distributed, and the {size} processes of "
                    f"this run are {idist.model_name()!r}; use the backend gloo or nccl"
                )
            return Team()
        world, rank, size = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
        if size == 1:
            return Team()
        if _team is None or _team_world is not world:
            store = dist.distributed_c10d._get_default_store()
            # Whoever makes a group, or asks Ignite first in one made elsewhere, waits for all.
            if missing := Watch(rank, size, store, lambda: None).meet_first(what):
                raise told(_never_came(missing), rank, None)
            idist.get_world_size()
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
            _team, _team_world = Team(rank, size, group, store), world
        return _team

    @property
    def alone(self) -> bool:
        """Whether there is only one rank."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides, and writes files."""
        return self.rank == 0

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
        if not (self.alone or self._nested):
            self._watch.begin(self.meetings, what)
        self._nested += 1
        try:
            yield section
            if not section.closed:
                section.close()
        except BaseException as error:
            if self.alone or section.closed or self.is_known(error):
                raise
            self._fail(what, error)
        finally:
            self._nested -= 1

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
        except LostError as lost:
            never_came = _never_came(self._watch.missing())
            failures, verdict = never_came or [_loss(lost)], None
            problem = None if never_came else lost.__cause__
        interrupt = self._wire.take_interrupt()
        cause = interrupt or cause or problem
        if not failures:
            if interrupt is not None:
                raise interrupt
            return verdict
        if cause is None or isinstance(cause, Exception):
            outcome: BaseException = told(failures, self.rank, cause)
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
        openers = self._gather(own.label)
        verdict, problem = None, None
        try:
            if self._wire.interrupt is not None:
                raise self._wire.interrupt
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
        # One that has died since it spoke is missed at the next meeting, by all alike.
        self._wire.send_to_all(range(1, self.size), packed, pieces)
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
        with self._watch.over(said.label, 0):
            if packed is not None:
                problem = self._wire.send(0, packed)
            if problem is not None:
                packed = pack(_Said(said.label, Failure.of(self.rank, problem)))
                self._wire.send(0, packed)
            opener = self._wire.receive(0)
        self.meetings += 1
        failures, verdict = opener()
        return failures, verdict, problem

    def _gather(self, label: str) -> list[Callable[[], _Said]]:
        """Receive what every other rank says; one that is gone has failed.

        Raises:
            LostError: If a rank was given up, which ends the connections to all.
        """
        openers: list[Callable[[], _Said]] = []
        # Begun with all ranks at once, so that they do not wait for one another to be heard.
        begun = [self._wire.begin_receive(rank) for rank in range(1, self.size)]
        with self._watch.over(label, 1) as wait:
            for wait.rank, receive in enumerate(begun, start=1):
                try:
                    openers.append(receive())
                except LostError as lost:
                    self._cry()
                    if self._watch.missing():
                        raise
                    openers.append(partial(_Said, "", _loss(lost)))
        return openers

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
