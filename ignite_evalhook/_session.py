"""Listen to a trainer, and act: the life of one hook between ``attach`` and ``detach``.

Everything decided here is decided by the layers below: when by ``_schedule`` and ``_moment``,
how by ``_evaluation``, what is best by ``_follower``.  The session puts the steps of one
evaluation in order, and brings a restarted run back to where it was.
"""

from __future__ import annotations

import logging
import math
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from ignite.engine import Engine, Events

from ._best import Target, as_score
from ._engine import is_running
from ._evaluation import Evaluation, Outcome
from ._events import EvalEvents, Speaker
from ._folder import RunFolder
from ._follower import Follower
from ._history import EvalRecord, History
from ._last import Background, LastCheckpoint
from ._line import describe
from ._log import logger
from ._moment import (
    START,
    Position,
    Timer,
    check_ever_due,
    is_due_here,
    is_due_on_takeover,
    position,
    total_iterations,
)
from ._preflight import check_evaluation, check_saving
from ._schedule import Schedule
from ._team import Section, Team
from ._watchers import Watchers
from ._whole_state import whole_states
from ._worker_hint import WorkerHint
from .exceptions import EvaluationError, StateError

__all__: list[str] = []

STATE_VERSION = 1
NEVER = sys.maxsize


@dataclass(frozen=True)
class Plan:
    """What a hook was constructed to do."""

    name: str
    schedule: Schedule
    at_end: bool
    preflight: bool
    clock: Callable[[], float]
    dataloader: Iterable[Any] | None  # None for a function evaluator
    evaluation: Evaluation
    follower: Follower
    folder: RunFolder | None
    to_save: Mapping[str, Any]
    explain: Callable[[Target], str]  # says how a metric's rule came about


class Verdict(NamedTuple):
    """What rank 0 decided about an evaluation, as it is told to all.

    Attributes:
        scores: The scores that can be compared, by metric.
        improved: The metrics for which they are a new best.
        saves: Whether a file is to be written.
        first: The first followed metric, which ``"auto"`` may just have chosen.
    """

    scores: dict[str, float]
    improved: tuple[str, ...]
    saves: bool
    first: str | None


class Session:
    """One hook at work.

    Args:
        plan: What to do.
        sender: The hook, for ``trainer.state.eval_hook``.
    """

    def __init__(self, plan: Plan, sender: object) -> None:
        self.plan = plan
        self.team = Team()  # the ranks, from attach() on
        self.trainer: Engine | None = None
        self.at = START  # of the present or latest evaluation
        self.last: LastCheckpoint | None = None
        self.watchers = Watchers(lambda: plan.follower.first)
        self.speaker = Speaker(sender)
        self._event: Any = None  # of the trainer's, being handled
        self._epoch_start: int | None = None  # iterations completed when the epoch started
        self._evaluating = False
        self._worker_hint = WorkerHint()
        self._current: Mapping[str, Any] | None = None
        self._verdict = Verdict({}, (), False, None)
        plan.follower.keeper.connect(self.signed_score, lambda engine: self.at)
        self.start_over()

    @property
    def name(self) -> str:
        """The hook's name."""
        return self.plan.name

    def attach(self, trainer: Engine) -> None:
        """Listen to ``trainer``; on every rank."""
        self.team = Team.current()
        self.plan.follower.keeper.writes = self.team.leads
        self.trainer = trainer
        self.speaker.prepare(trainer)
        for event, handler in self._handlers():
            trainer.add_event_handler(event, handler)
        self.watchers.set_trainer(trainer)

    def detach(self) -> None:
        """Stop listening, and let go of the folder."""
        for event, handler in self._handlers():
            self.need_trainer().remove_event_handler(handler, event)
        try:
            self._hear_of_files()
        finally:
            if self.last is not None:
                self.last.close()
                self.last = None
            self._let_go()
            self._begun = False
            self._epoch_start = None
            self.trainer = None

    def _handlers(self) -> list[tuple[Any, Callable[[Engine], None]]]:
        handlers: list[tuple[Any, Callable[[Engine], None]]] = [
            (Events.STARTED, self._on_started),
            (Events.EPOCH_STARTED, self._on_epoch_started),
            (Events.EPOCH_COMPLETED, self._on_epoch_completed),
            (Events.INTERRUPT, self._on_interrupt),
            (Events.TERMINATE, self._on_terminate),
            (Events.COMPLETED, self._on_completed),
        ]
        if not self.plan.schedule.counts_epochs:
            handlers.append((Events.ITERATION_COMPLETED, self._on_iteration))
        return handlers

    def start_over(self) -> None:
        """Forget history, bests and counters; touch no file."""
        self.history = History()
        self.plan.follower.forget()
        self.watchers.reset()
        self.run_id = uuid.uuid4().hex[:12]  # from the system, not from a seeded generator
        self._loaded: Mapping[str, Any] | None = None
        self._own_state = False
        self._begun = False
        self._ran = False
        self._next_due = 0
        self._timer: Timer | None = None

    @contextmanager
    def _handling(self, event: Any) -> Iterator[None]:
        """Remember which event of the trainer is being handled."""
        self._event = event
        try:
            yield
        finally:
            self._event = None

    def _on_started(self, trainer: Engine) -> None:
        if self.trainer is not trainer:  # detached by an earlier handler of this very firing
            return
        self._epoch_start = None
        with self._handling(Events.STARTED):
            self._begin(at_start=True)
            if self.last is not None:
                self.last.started()

    def _on_epoch_started(self, trainer: Engine) -> None:
        if self.trainer is not trainer:
            return
        self._epoch_start = trainer.state.iteration
        if not self._under_way:
            with self._handling(Events.EPOCH_STARTED):
                self._begin()

    def _on_iteration(self, trainer: Engine) -> None:
        if trainer.state.iteration >= self._next_due:
            with self._handling(Events.ITERATION_COMPLETED):
                self._reach(trainer)

    def _reach(self, trainer: Engine) -> None:
        if self.trainer is not trainer:
            return
        if not self._under_way:
            self._begin()
        iteration, length = trainer.state.iteration, trainer.state.epoch_length
        schedule = self.plan.schedule
        if schedule.is_fraction and length and iteration == trainer.state.epoch * length:
            return  # the end of an epoch: EPOCH_COMPLETED comes next
        if self._timer is not None:
            if self._is_time(iteration, length):
                self._evaluate_here()
            return
        if schedule.is_due(iteration, length):
            self._evaluate_here()
        self._plan(iteration)

    def _is_time(self, iteration: int, length: int | None) -> bool:
        """Ask rank 0's clock whether an evaluation is due, and when to ask again."""
        timer, clock = self._timer, self.plan.clock

        def decide() -> tuple[bool, int]:
            if timer is None:
                raise ValueError("a schedule by iterations asks no clock")
            now = clock()
            due = timer.is_over(now) and self.plan.schedule.is_due(iteration, length)
            return due, 0 if self.team.alone else timer.next_look(now, iteration)

        due, self._next_due = self.team.tell(decide, f"{self.name}: the clock")
        return due

    def _plan(self, iteration: int) -> None:
        """Find the next iteration at which ``_reach`` has to look."""
        schedule = self.plan.schedule
        if schedule.counts_epochs or schedule.is_clocked or self.trainer is None:
            self._next_due = 0
            return
        length = self.trainer.state.epoch_length
        due = schedule.next_due(iteration, length)
        self._next_due = NEVER if due is None else due

    def _on_epoch_completed(self, trainer: Engine) -> None:
        if self.trainer is not trainer:
            return
        with self._handling(Events.EPOCH_COMPLETED):
            if not self._under_way:
                self._begin()
            if self._is_due_here():
                self._evaluate_here()
            if self.plan.schedule.is_fraction:
                self._plan(trainer.state.iteration)
            if self.last is not None and self._saves_by_epoch:
                self.last.occasion(Events.EPOCH_COMPLETED, trainer.state.epoch)

    def _on_interrupt(self, trainer: Engine) -> None:
        if self.last is not None:
            self.last.ended(Events.INTERRUPT)
        if self.plan.follower.keeper.in_background:
            trainer.add_event_handler(Events.INTERRUPT, self._wait_late, Events.INTERRUPT)

    def _wait_late(self, trainer: Engine, event: Any) -> None:
        trainer.remove_event_handler(self._wait_late, event)
        self._hear_of_files()

    def _on_terminate(self, trainer: Engine) -> None:
        if trainer.should_terminate == "skip_completed":
            self._finish(trainer, Events.TERMINATE)

    def _on_completed(self, trainer: Engine) -> None:
        self._finish(trainer, Events.COMPLETED)

    def _finish(self, trainer: Engine, event: Any) -> None:
        if self.trainer is not trainer:
            return
        with self._handling(event):
            if not self._under_way:
                self._begin()
            if self._is_due_here() or (self.plan.at_end and trainer.state.iteration > 0):
                self._evaluate_here()
            if self.last is not None:
                self.last.ended(event)
            # Added while the event is being fired, so it comes after everything else.
            trainer.add_event_handler(event, self._let_go_late, event)

    def _let_go_late(self, trainer: Engine, event: Any) -> None:
        trainer.remove_event_handler(self._let_go_late, event)
        try:
            self._hear_of_files()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self.plan.folder is not None:
            self.plan.folder.release()

    @property
    def _saves_by_epoch(self) -> bool:
        """Whether the last checkpoint follows epochs, rather than evaluations."""
        return self.plan.schedule.counts_epochs or self.plan.schedule.interval is None

    @property
    def _under_way(self) -> bool:
        """Whether this run has begun for the hook, which may have been away meanwhile."""
        return self._ran and self._begun

    def _is_due_here(self) -> bool:
        state, start = self.need_trainer().state, self._epoch_start
        # terminate() in an epoch's last iteration skips EPOCH_COMPLETED.
        whole = start is not None and state.iteration - start == state.epoch_length
        return is_due_here(
            state,
            self.plan.schedule,
            epoch_completed=whole or self._event is Events.EPOCH_COMPLETED,
            epoch_started=self._is_ahead(state.iteration),
        )

    def _is_ahead(self, iteration: int) -> bool:
        """Whether Ignite counts an epoch of which no iteration is completed."""
        if self._event is Events.EPOCH_COMPLETED or self.trainer is None:
            return False
        at_start = self.trainer.last_event_name is Events.EPOCH_STARTED
        return at_start or iteration == self._epoch_start

    def position(self) -> Position:
        """Return where training stands."""
        if self.trainer is None:
            return START
        engine = self.trainer
        # Only while it runs: a run that raised leaves the event behind.
        in_step = engine.last_event_name is Events.ITERATION_STARTED and is_running(engine)
        return position(
            engine.state,
            self.plan.schedule,
            epoch_started=self._is_ahead(engine.state.iteration - int(in_step)),
            iteration_started=in_step,
        )

    def need_trainer(self) -> Engine:
        if self.trainer is None:
            raise ValueError("the hook is not attached: call hook.attach(trainer) first")
        return self.trainer

    def _begin(self, *, at_start: bool = False) -> None:
        """Do what the start of a run asks for, at the first event that is seen."""
        trainer = self.need_trainer()
        with self.team.together(f"{self.name}: start") as section:
            finished = self._take_up(trainer.state.iteration, at_start)
            own_state = self._own_state
            check_ever_due(trainer.state, self.plan.schedule, at_end=self.plan.at_end)
            self._prepare(section)
        self._loaded, self._own_state, self._ran = None, True, True
        self._plan(trainer.state.iteration)
        self._wind_up()
        self._catch_up(own_state)
        if finished:
            logger.warning(
                "%s: the loaded run had ended at iteration %d; it ends again at once",
                self.name, trainer.state.iteration,
            )  # fmt: skip
            trainer.terminate()
        elif self.watchers.exhausted and own_state:
            logger.info("%s: early stopping had ended this run; it ends again", self.name)
            trainer.state.epoch = self.position().epoch  # Ignite loads the one before a part
            trainer.terminate()

    def _take_up(self, iteration: int, at_start: bool) -> bool:
        """Compare the hook's state with the trainer's; return whether the run had ended."""
        if self._loaded is not None:
            return self._check_loaded(self._loaded, at_start)
        if at_start and self._ran and iteration == 0:
            self.start_over()
        elif self.history and self.history[-1].iteration > iteration:
            raise StateError(
                f"the hook's history reaches iteration {self.history[-1].iteration}, the trainer "
                f"stands at {iteration}: load the hook's state with the trainer's, or reset() it"
            )
        return False

    def _wind_up(self) -> None:
        """Set the clock of a schedule by time."""
        interval = self.plan.schedule.interval
        if isinstance(interval, timedelta):
            iteration = self.need_trainer().state.iteration
            self._timer = Timer(self.plan.clock(), interval.total_seconds(), iteration)
            self._next_due = 0  # look at the clock after the next iteration

    def _check_loaded(self, loaded: Mapping[str, Any], at_start: bool) -> bool:
        """Compare a loaded state with the trainer; return whether the run had ended.

        Ignite starts a finished run again from iteration 0; then the counters are put back.
        """
        state = self.need_trainer().state
        theirs = loaded["iteration"]
        if state.iteration >= theirs:
            return False
        total = total_iterations(state)
        if not (at_start and state.iteration == 0 and total is not None and theirs >= total):
            raise StateError(
                f"the hook's state is of iteration {theirs}, but the trainer stands at "
                f"{state.iteration}; load the trainer's state from the same checkpoint, or call "
                "hook.reset() to start counting anew"
            )
        length = state.epoch_length
        state.iteration = theirs
        state.epoch = math.ceil(theirs / length) if length else loaded["epoch"]
        if state.max_epochs is not None:
            state.max_epochs = max(state.max_epochs, state.epoch)
        return True

    def _prepare(self, section: Section) -> None:
        """Check what can be checked, and take over the folder.  Once for each run.

        Only rank 0 touches the folder; the others are told of it.
        """
        folder = self.plan.folder if self.team.leads else None
        # A new run has another name on each rank.
        own = [self._standing(), self.run_id]
        self.run_id = section.meet("state", own, _check_same_standing)
        if self._begun:
            if folder is not None:
                folder.claim(self, _is_live)
            return
        if self.plan.preflight and self.plan.schedule.interval is not None:
            states = whole_states(self.plan.to_save, self.team)
            check_saving(None if folder is None else folder.storage, states)
            loader, more = self.plan.dataloader, self.watchers.metrics
            check_evaluation(self.plan.evaluation, loader, self.plan.follower, more, section)
        if folder is not None:
            folder.claim(self, _is_live)
            folder.put_aside(self.run_id)
            if self._own_state:
                folder.reconcile_history(self.history, self.run_id)
        self.plan.follower.begin(self.run_id)
        self.plan.follower.share_account(section)
        self._begun = True
        self._announce_plan()

    def _standing(self) -> str:
        """Say where this rank stands, in words that have to be the same on every one."""
        run = f"the run {self.run_id}" if self._own_state or self._begun else "a new run"
        when = "under way" if self._begun else "to be started"
        iteration, records = self.need_trainer().state.iteration, len(self.history)
        return f"iteration {iteration} with {records} records of {run}, {when}"

    def _hear_of_files(self, *, wait: bool = True) -> None:
        """Take note, on every rank, of the files that rank 0 has written in the background.

        Args:
            wait: Wait until they are there.

        Raises:
            CheckpointError: If one could not be written.
        """
        if self.plan.follower.keeper.in_background and self._begun:
            with self.team.together(f"{self.name}: files of the best") as section:
                self.plan.follower.share_written(section, wait=wait)

    def wait_for_files(self) -> None:
        """Wait for files that are being written, if there are any; on every rank."""
        if self.plan.follower.keeper.is_saving:
            self._hear_of_files()

    def background(self) -> Background | None:
        """Return what the last checkpoint needs to be written in the background, if it is to be."""
        follower = self.plan.follower
        if not follower.keeper.in_background:
            return None

        def complete(state: dict[str, Any]) -> None:
            follower.complete(state["follower"])

        return Background(follower.keeper.writer, self.present_state, complete)

    def _announce_plan(self) -> None:
        parts = [f"{self.name}: evaluate {self.plan.schedule}"]
        targets = [self.plan.explain(t) for t in self.plan.follower.targets]
        if targets and self.plan.schedule.interval is not None:
            parts.append(f"best by {', '.join(targets)}")
        if self.plan.folder is not None:
            parts.append(f"files in {self.plan.folder.storage.location}")
        logger.info("; ".join(parts))

    def _catch_up(self, own_state: bool) -> None:
        """Evaluate what is due before training goes on."""
        state = self.need_trainer().state
        if own_state or state.iteration == 0:
            due = self._is_due_here()
        else:
            due = is_due_on_takeover(state, self.plan.schedule)
        if due:
            self._track(self.position())

    def answer(self, data: Iterable[Any] | None) -> EvalRecord:
        """Evaluate without any consequence."""
        self._check_not_under_way()
        at = self.position()
        team = Team.current()
        self._evaluating = True
        try:
            with team.together(f"{self.name}: an answer") as section:
                with self.plan.evaluation.session(data, section):
                    outcome = self.plan.evaluation.run(data, self.trainer, section=section)
                seconds = section.close(None, lambda said: outcome.seconds)
        finally:
            self._evaluating = False
        self._hint(data, outcome)
        return EvalRecord(
            at.epoch, at.iteration, outcome.metrics, (), False, outcome.samples, seconds
        )

    def _hint(self, data: Any, outcome: Outcome) -> None:
        """Say what would make evaluations quicker."""
        hint = self._worker_hint.heed(data, outcome.worker_seconds, outcome.seconds)
        if hint is not None:
            logger.info("%s: %s", self.name, hint)

    def _check_not_under_way(self) -> None:
        if self._evaluating:
            raise EvaluationError(
                f"the hook {self.name!r} is evaluating already; evaluate() was called from inside"
            )

    def track(self, data: Iterable[Any] | None) -> EvalRecord:
        """Evaluate on demand, as part of the run."""
        with self.team.together(f"{self.name}: start") as section:
            if not self._begun:
                self._check_not_under_way()
                if self._loaded is not None:
                    self._check_loaded(self._loaded, at_start=False)
            self._prepare(section)
        try:
            record = self._track(self.position(), data)
            if not is_running(self.need_trainer()):
                self._hear_of_files()
        finally:
            if not is_running(self.need_trainer()):
                self._let_go()
        return record

    def _evaluate_here(self) -> None:
        self._track(self.position())

    def _track(self, at: Position, data: Iterable[Any] | None = None) -> EvalRecord:
        """Evaluate once, and act on the result."""
        known = self.history.at(at.iteration)
        if known is not None:
            return known
        self._check_not_under_way()
        trainer = self.need_trainer()  # also for events after a handler has detached the hook
        data = self.plan.dataloader if data is None else data
        self.at = at
        follower = self.plan.follower
        followed = follower.targets
        self._hear_of_files(wait=False)
        self._evaluating = True
        try:
            with self.team.together(f"{self.name} at {at}") as section:
                record, outcome = self._evaluate(trainer, at, data, section)
        except BaseException:
            follower.keeper.undo()
            follower.unchoose(followed)
            raise
        finally:
            self._evaluating = False
            self._current = None
        scores = self._verdict.scores
        best_before = follower.scores()
        before = [(t, best_before.get(t.metric)) for t in follower.targets]
        shows = logger.isEnabledFor(logging.INFO)
        line = f"{self.name} at {at}: {describe(record, scores, before)}" if shows else ""
        self.history.append(record)
        follower.accept(record.best_of, scores, at)
        self._own_state = True
        logger.info(line)
        self._hint(data, outcome)
        with self.team.together(f"{self.name}: listeners"):
            follower.settle(saves=self._verdict.saves)
            self.watchers.heed(record, self.plan.evaluation.evaluator)
            self.speaker.fire(trainer, EvalEvents.EVAL_COMPLETED, record, len(self.history))
            if record.is_best:
                self.speaker.fire(trainer, EvalEvents.NEW_BEST, record, self.history.best_count)
        if self.last is not None and not self._saves_by_epoch and self._event is not None:
            self.last.occasion(self._event, len(self.history))
        self._wind_up()
        return record

    def _evaluate(
        self, trainer: Engine, at: Position, data: Iterable[Any] | None, section: Section
    ) -> tuple[EvalRecord, Outcome]:
        """Evaluate, save what is best, and write the record down; all ranks or none."""
        self.speaker.fire(trainer, EvalEvents.EVAL_STARTED, None, len(self.history) + 1)
        follower, evaluation = self.plan.follower, self.plan.evaluation
        place = [at.iteration, self.run_id, len(self.history), follower.scores(),
                 self.watchers.counters()]  # fmt: skip
        with evaluation.session(data, section, place):
            outcome = evaluation.run(
                data, trainer, section=section, judge=self._judge, adopt=self._adopt
            )
            failed: set[str] = set()
            if self._verdict.saves:
                if follower.keeper.in_background:
                    follower.share_written(section, wait=True)  # one save in flight
                states = whole_states(follower.keeper.to_save, self.team)
                if follower.keeper.writes:
                    failed = follower.keeper.save(trainer, self._verdict.scores, states)

        def record_of(improved: tuple[str, ...], seconds: float) -> EvalRecord:
            return EvalRecord(
                at.epoch, at.iteration, outcome.metrics, improved, bool(improved),
                outcome.samples, seconds,
            )  # fmt: skip

        def write_down(said: Sequence[Any]) -> tuple[Any, ...]:
            improved = tuple(m for m in self._verdict.improved if m not in failed)
            if self.plan.folder is not None:
                self.plan.folder.append(record_of(improved, outcome.seconds), self.run_id)
            return improved, outcome.seconds, follower.account()

        improved, seconds, account = section.close(None, write_down)
        follower.adopt_account(account)
        return record_of(improved, seconds), outcome

    def _judge(self, metrics: dict[str, Any], computed: Sequence[str]) -> Verdict:
        """Judge complete metrics, on rank 0."""
        empty = not metrics or (self.plan.evaluation.compute_metrics is not None and not computed)
        # The evaluator's metrics stand in order of attaching, then the loss, its parts, the rest.
        follower, when = self.plan.follower, f"at {self.at}"
        follower.resolve(metrics, dict.fromkeys([*computed, *metrics]))
        # One that was there before and is missing now is no improvement, and no misspelling.
        unseen = [m for m in self.watchers.metrics if not self.history.knows(m)]
        follower.check_watched(unseen, metrics, empty=empty, when=when)
        scores = follower.judge(metrics, empty=empty, when=when)
        self._current = metrics  # what the score of this evaluation is read from
        saves = follower.keeper.would_save(scores)
        return Verdict(scores, follower.improved(scores), saves, follower.first)

    def _adopt(self, metrics: dict[str, Any], verdict: Verdict) -> None:
        """Take over what was decided, before handlers of the evaluator's COMPLETED see it."""
        self._verdict = verdict
        self._current = metrics
        self.plan.follower.followed.adopt(verdict.first)

    # -- scores and state ---------------------------------------------------------------------

    def signed_score(self, metric: str | None) -> float:
        """Return the present or last score of a followed metric; ``None``: of the first one."""
        follower = self.plan.follower
        if metric is None and follower.wanted and not follower.targets:
            return -math.inf  # "auto" has seen no result to choose from
        return self.signed(follower.target(metric))

    def signed(self, target: Target) -> float:
        """Return the present or last score, signed so that higher is better."""
        metrics = self._current
        if metrics is None:
            metrics = self.history[-1].metrics if self.history else {}
        score = as_score(metrics.get(target.metric))
        return -math.inf if score is None else target.rule.signed(score)

    def state_dict(self) -> dict[str, Any]:
        """Return history, bests and counters as plain values; always valid.

        It waits for files that are being written, so that it claims none that is not there.
        """
        self.plan.follower.join(raises=False)  # an error is told when the ranks meet next
        return self.present_state()

    def present_state(self) -> dict[str, Any]:
        """Return the state, which may not know the files that are being written."""
        at = self.position()
        iteration = max(at.iteration, self.history[-1].iteration if self.history else 0)
        if self._loaded is not None:
            iteration = max(iteration, self._loaded["iteration"])
        return {
            "version": STATE_VERSION,
            "name": self.name,
            "run_id": self.run_id,
            "epoch": at.epoch,
            "iteration": iteration,
            "history": self.history.to_list(),
            "follower": self.plan.follower.state(),
            "watchers": self.watchers.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, tolerant: bool) -> None:
        """Take over a state.

        Args:
            state: From :meth:`state_dict`; an empty mapping loads as fresh.
            tolerant: Forget a state of other metrics or rules instead of refusing it.

        Raises:
            StateError: If it belongs to another hook, metric or rule, or is damaged.
        """
        if not state:
            self.start_over()
            return
        try:
            version, name = state["version"], state["name"]
            if version != STATE_VERSION:
                raise StateError(f"the state has version {version!r}, not {STATE_VERSION}")
            if name != self.name:
                raise StateError(f"the state is of the hook {name!r}, this one is {self.name!r}")
            history = History.from_list(state["history"])
            loaded = {key: state[key] for key in ("run_id", "epoch", "iteration")}
            for key, kind in (("run_id", str), ("epoch", int), ("iteration", int)):
                if not isinstance(loaded[key], kind):
                    raise ValueError(f"{key} is {loaded[key]!r}")
            watchers = {key: list(entries) for key, entries in state["watchers"].items()}
            self.watchers.check_state(watchers)
            try:
                self.plan.follower.check_state(state["follower"])
            except StateError:
                if not tolerant:
                    raise
                self.start_over()
                return
            follower = self.plan.follower.read_state(state["follower"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"this is no state of an EvalHook, or damaged: {error!r}") from error
        self.start_over()
        self.plan.follower.load_state(follower)
        self.history = history
        self.run_id = loaded["run_id"]
        self._loaded = loaded
        self._own_state = True
        self.watchers.load_state(watchers)


def _check_same_standing(said: Sequence[Any]) -> str:
    """Refuse ranks of which one has another state, and return the run's name."""
    first = said[0][0]
    for rank, (standing, _) in enumerate(said):
        if standing != first:
            raise StateError(
                f"rank {rank} stands at {standing}; rank 0 at {first}: load the same checkpoint "
                "on every rank, or on none"
            )
    return str(said[0][1])


def _is_live(owner: object) -> bool:
    """Return whether a session that holds a folder is in the middle of a run."""
    trainer = owner.trainer if isinstance(owner, Session) else None
    return trainer is not None and is_running(trainer)
