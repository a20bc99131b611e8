"""Listen to a trainer, from ``attach`` to ``detach``.

Everything else is done by others: ``whereabouts`` and ``_decide.position`` say when an evaluation
is due, ``start`` makes ready, ``record`` evaluates, ``_decide.run`` knows what was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler

from .._decide.best import Target
from .._decide.history import EvalRecord, History
from .._decide.position import START, Lookout, Position, check_ever_due, is_due_on_takeover
from .._decide.run import Run, RunState, had_ended, put_back
from .._evaluate.averaged import handler_of
from .._evaluate.one_pass import handler_owners, is_running
from .._files.run_folder import RunFolder
from .._log import logger
from .._ranks.team import Section, Team
from ..exceptions import StateError
from .events import Speaker
from .handlers import Watchers
from .last_checkpoint import Background, LastCheckpoint
from .plan import Plan
from .record import Recorder
from .start import prepare
from .training_data import batches_of, told_apart
from .whereabouts import Whereabouts

__all__: list[str] = []


WAY_OUT = (
    "in a loop over folds, seeds or settings give each run a folder of its own, "
    "out_dir=f'runs/fold{k}'; keep_last(..., resume=False) starts anew in this one, and with more "
    "epochs or patience that run goes on"
)
_ended: dict[str, int | None] = {}  # runs that this process has ended, and what tells their data


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
        self.last: LastCheckpoint | None = None
        self.watchers = Watchers(lambda: plan.follower.first)
        self.speaker = Speaker(sender)
        self.run = Run()
        self.tolerant = False  # forget a state of other metrics or rules instead of refusing it
        self.recorder = Recorder(plan, self.run, self.watchers, self.speaker)
        self._whereabouts = Whereabouts(plan.schedule)
        self._lookout = Lookout(plan.schedule, plan.clock)

    @property
    def name(self) -> str:
        """The hook's name."""
        return self.plan.name

    @property
    def averaged(self) -> EMAHandler | None:
        """The handler whose averaged weights are evaluated."""
        return handler_of(self.plan.evaluation.context)

    @property
    def history(self) -> History:
        """All records, in order."""
        return self.run.history

    @property
    def at(self) -> Position:
        """Where training stood at the present or latest evaluation."""
        return self.recorder.at

    # -- listening ----------------------------------------------------------------------------

    def attach(self, trainer: Engine) -> None:
        """Listen to ``trainer``, with the state that its last checkpoint has; on every rank."""
        for other in sessions_of(trainer):
            if other.last is not None and not self.run.is_known:
                other.last.give(self)
        self.team = Team.current(f"{self.name}: attach")
        self.plan.follower.keeper.writes = self.team.leads
        self.trainer = trainer
        self._lookout.next_look = 0  # what the start of a run asks for may have to be done
        self.speaker.prepare(trainer)
        for event, handler in self._handlers():
            trainer.add_event_handler(event, handler)
        self.watchers.set_trainer(trainer)
        self.go_on()

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
            self.run.has_begun = False
            self._whereabouts.forget()
            self.trainer = None

    def _handlers(self) -> list[tuple[Any, Callable[..., None]]]:
        handlers: list[tuple[Any, Callable[..., None]]] = [
            (Events.STARTED, self._on_started),
            (Events.EPOCH_STARTED, self._on_epoch_started),
            (Events.TERMINATE_SINGLE_EPOCH, self._on_epoch_cut_short),
            (Events.EPOCH_COMPLETED, self._on_epoch_completed),
            (Events.INTERRUPT, self._on_interrupt),
            (Events.TERMINATE, self._on_terminate),
            (Events.COMPLETED, self._on_completed),
        ]
        if not self.plan.schedule.counts_epochs:
            handlers.append((Events.ITERATION_COMPLETED, self._on_iteration))
        return handlers

    def need_trainer(self) -> Engine:
        """Return the trainer.

        Raises:
            ValueError: If the hook is not attached.
        """
        if self.trainer is None:
            raise ValueError("the hook is not attached: call hook.attach(trainer) first")
        return self.trainer

    def position(self) -> Position:
        """Return where training stands."""
        return START if self.trainer is None else self._whereabouts.position(self.trainer)

    def _on_started(self, trainer: Engine) -> None:
        if self.trainer is not trainer:  # detached by an earlier handler of this very firing
            return
        for session in sessions_of(trainer):
            if session.last is not None:
                session.last.bring_back()
        with self._whereabouts.handling(Events.STARTED):
            self._begin(at_start=True)
            if self.last is not None:
                self.last.started()

    def _on_epoch_started(self, trainer: Engine) -> None:
        if self.trainer is not trainer:
            return
        self._whereabouts.note_epoch_started(trainer)
        with self._whereabouts.handling(Events.EPOCH_STARTED):
            self._begin_if_needed()

    def _on_iteration(self, trainer: Engine) -> None:
        if trainer.state.iteration >= self._lookout.next_look:
            with self._whereabouts.handling(Events.ITERATION_COMPLETED):
                self._look(trainer)

    def _look(self, trainer: Engine) -> None:
        """Evaluate if that is due after this iteration."""
        if self.trainer is not trainer:
            return
        self._begin_if_needed()
        state = trainer.state
        tell = None if self.team.alone else partial(self.team.tell, what=f"{self.name}: the clock")
        if self._lookout.sees(state.iteration, state.epoch, state.epoch_length, tell):
            self._evaluate_here()
        self._lookout.look_ahead(state.iteration, state.epoch_length)

    def _on_epoch_cut_short(self, trainer: Engine, iter_counter: int | None = None) -> None:
        if self.trainer is trainer:
            self._whereabouts.note_epoch_ended(trainer)

    def _on_epoch_completed(self, trainer: Engine) -> None:
        if self.trainer is not trainer:
            return
        self._whereabouts.note_epoch_ended(trainer)
        with self._whereabouts.handling(Events.EPOCH_COMPLETED):
            self._begin_if_needed()
            if self._whereabouts.is_due(trainer):
                self._evaluate_here()
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
        with self._whereabouts.handling(event):
            self._begin_if_needed()
            if self._whereabouts.is_due(trainer) or (
                self.plan.at_end and trainer.state.iteration > 0
            ):
                self._evaluate_here()
            if self.last is not None:
                self.last.ended(event)
            _ended[self.run.id] = told_apart(trainer.state.dataloader)
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
            self.plan.folder.catch_up(self.history, self.run.id)
            self.plan.folder.release()

    @property
    def _saves_by_epoch(self) -> bool:
        """Whether the last checkpoint follows epochs, rather than evaluations."""
        return self.plan.schedule.counts_epochs or self.plan.schedule.interval is None

    # -- the start of a run -------------------------------------------------------------------

    def start_over(self) -> None:
        """Forget history, bests and counters; touch no file.

        Raises:
            CheckpointError: If a file that was being written could not be.
        """
        try:
            self.plan.follower.forget()
        finally:
            self.run.start_over()
            self.watchers.reset()
            self._lookout.forget()

    def _begin_if_needed(self) -> None:
        if not self.run.is_under_way:
            self._begin()
        elif self.plan.folder is not None:
            self.plan.folder.check_process()

    def _begin(self, *, at_start: bool = False) -> None:
        """Do what the start of a run asks for, at the first event that is seen."""
        trainer, run = self.need_trainer(), self.run
        state = trainer.state
        with self.team.together(f"{self.name}: start") as section:
            loaded = run.loaded is not None
            finished = self._take_up(at_start=at_start)
            is_known = run.is_known
            check_ever_due(state, self.plan.schedule, at_end=self.plan.at_end)
            self._prepare(section)
        run.loaded, run.is_known, run.has_run = None, True, True
        run.batches = batches_of(state.dataloader)
        self._lookout.look_ahead(state.iteration, state.epoch_length)
        self._lookout.wind_up(state.iteration)
        # What is due before training goes on.
        if is_known or state.iteration == 0:
            due = self._whereabouts.is_due(trainer)
        else:
            due = is_due_on_takeover(state, self.plan.schedule)
        if due:
            self._evaluate_here()
        if finished:
            logger.warning(
                "%s: the loaded run had ended at iteration %d; it ends again at once",
                self.name, state.iteration,
            )  # fmt: skip
            trainer.terminate()
            self._tell_way_out()
        elif self.watchers.exhausted and loaded:
            logger.info("%s: early stopping had ended this run; it ends again", self.name)
            state.epoch = self.position().epoch  # Ignite loads the one before a part
            trainer.terminate()
            self._tell_way_out()

    def go_on(self) -> None:
        """Let the trainer stand in the epoch of the loaded state, if it is loaded as well."""
        trainer, loaded = self.trainer, self.run.loaded
        if (
            trainer is not None
            and loaded is not None
            and loaded.iteration == trainer.state.iteration
        ):
            self._whereabouts.go_on(trainer, loaded.epochs, loaded.into)

    def _take_up(self, *, at_start: bool) -> bool:
        """Compare the hook's run with the trainer's; return whether it had ended."""
        state, run = self.need_trainer().state, self.run
        if run.loaded is not None:
            finished = had_ended(run.loaded, state, at_start=at_start)
            if finished or self.watchers.exhausted:
                self._refuse_other_data(state.dataloader)
            else:
                self._tell_other_length(run.loaded.batches, state)
            if finished:
                put_back(run.loaded, state)
            self.go_on()
            if finished:
                state.epoch = self.position().epoch
            return finished
        if at_start and run.has_run and state.iteration == 0:
            self.start_over()
        else:
            run.check_reached(state.iteration)
            self.watchers.renew()
        return False

    def _tell_way_out(self) -> None:
        if self.run.id in _ended:
            logger.info("%s: this process has trained that run to its end; %s", self.name, WAY_OUT)

    def _refuse_other_data(self, data: Any) -> None:
        """Refuse to end again at once a run that this process has ended, given other data.

        Raises:
            StateError: With the way out.
        """
        then, now = _ended.get(self.run.id), told_apart(data)
        if then is not None and now is not None and then != now:
            raise StateError(
                f"{self.name}: the run that was loaded is one that this process has trained to its "
                f"end, on other data, so that nothing would be trained on these; {WAY_OUT}"
            )

    def _tell_other_length(self, before: int | None, state: Any) -> None:
        """Say once that the training loader is longer or shorter than it was."""
        now, sessions = batches_of(state.dataloader), sessions_of(self.need_trainer())
        speaker = next((s for s in sessions if s.last is not None), sessions[0])
        if self is speaker and None not in (before, now) and before != now:
            logger.warning(
                "%s: the training data have %d batches, in the loaded run they had %d; an epoch "
                "stays at %s iterations (trainer.state.epoch_length, which you may set before "
                "run())", self.name, now, before, state.epoch_length,
            )  # fmt: skip

    def _prepare(self, section: Section) -> None:
        prepare(
            self.plan,
            self.run,
            section,
            iteration=self.need_trainer().state.iteration,
            watchers=self.watchers,
            claim=self._claim,
        )

    def _claim(self, folder: RunFolder) -> None:
        folder.claim(self, _is_live)

    # -- evaluating ---------------------------------------------------------------------------

    def answer(self, data: Iterable[Any] | None) -> EvalRecord:
        """Evaluate without any consequence."""
        return self.recorder.answer(self.trainer, self.position(), data)

    def track(self, data: Iterable[Any] | None) -> EvalRecord:
        """Evaluate on demand, as part of the run."""
        trainer = self.need_trainer()
        with self.team.together(f"{self.name}: start") as section:
            if not self.run.has_begun:
                self.recorder.check_idle()
                if self.run.loaded is not None:
                    # Refuses a trainer that is behind.
                    had_ended(self.run.loaded, trainer.state, at_start=False)
            self._prepare(section)
        try:
            record = self._evaluate_here(data)
            if not is_running(trainer):
                self._hear_of_files()
        finally:
            if not is_running(trainer):
                self._let_go()
        return record

    def _evaluate_here(self, data: Iterable[Any] | None = None) -> EvalRecord:
        """Evaluate where training stands, unless that is done already."""
        at = self.position()
        known = self.run.history.at(at.iteration)
        if known is not None:
            return known
        trainer = self.need_trainer()
        data = self.plan.dataloader if data is None else data
        record = self.recorder.record(trainer, at, data, self.team)
        event = self._whereabouts.event
        if self.last is not None and not self._saves_by_epoch and event is not None:
            self.last.occasion(event, len(self.history))
        self._lookout.wind_up(trainer.state.iteration)
        return record

    # -- files that are written in the background ---------------------------------------------

    def _hear_of_files(self) -> None:
        """Wait for them, and take note of them on every rank."""
        if self.run.has_begun:
            self.plan.follower.hear_of_files(self.team)

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

    # -- scores and state ---------------------------------------------------------------------

    def signed_score(self, metric: str | None) -> float:
        """Return the present or last score of a followed metric; see :class:`Recorder`."""
        return self.recorder.signed_score(metric)

    def signed(self, target: Target) -> float:
        """Return the present or last score, signed so that higher is better."""
        return self.recorder.signed(target)

    def state_dict(self) -> dict[str, Any]:
        """Return history, bests and counters as plain values; always valid.

        It waits for files that are being written, so that it claims none that is not there.
        """
        self.plan.follower.join(raises=False)  # an error is told when the ranks meet next
        return self.present_state()

    def present_state(self) -> dict[str, Any]:
        """Return the state, which may not know the files that are being written."""
        return {
            **self.run.state(self.name, self.position()),
            "follower": self.plan.follower.state(),
            "watchers": self.watchers.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; see :meth:`read_state`."""
        self.read_state(state)()

    def read_state(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check a state, and return what takes it over.

        Args:
            state: From :meth:`state_dict`; an empty mapping loads as fresh.

        Raises:
            StateError: If it belongs to another hook, metric or rule, or is damaged.
        """
        if not state:
            return self.start_over
        try:
            run = RunState.read(state, self.name)
            watchers = {key: list(entries) for key, entries in state["watchers"].items()}
            self.watchers.check_state(watchers)
            try:
                self.plan.follower.check_state(state["follower"])
            except StateError:
                if not self.tolerant:
                    raise
                return self.start_over
            follower = self.plan.follower.read_state(state["follower"])
        except (
            ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
        ) as error:  # fmt: skip
            raise StateError(f"this is no state of an EvalHook, or damaged: {error!r}") from error

        def take_over() -> None:
            self.start_over()
            self.run.start_over(run)
            self.plan.follower.load_state(follower)
            self.watchers.load_state(watchers)
            self.go_on()

        return take_over


def sessions_of(trainer: Engine) -> list[Session]:
    """Return the hooks that are attached to a trainer, in the order of attaching."""
    return [owner for owner in handler_owners(trainer) if isinstance(owner, Session)]


def _is_live(owner: object) -> bool:
    """Return whether a session that holds a folder is in the middle of a run."""
    trainer = owner.trainer if isinstance(owner, Session) else None
    return trainer is not None and is_running(trainer)
