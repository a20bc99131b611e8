"""Evaluate for the record, or only to answer.

An evaluation that counts is judged, its best is saved, its record written down and told: on every
rank or on none.  When it is due, is not known here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine

from .._decide.best import Target, as_score
from .._decide.history import EvalRecord
from .._decide.nested import look_up
from .._decide.position import START, Position
from .._decide.run import Run
from .._evaluate.evaluation import Outcome
from .._log import logger
from .._ranks.compare import NOTHING, Given
from .._ranks.sharded_models import whole_states
from .._ranks.team import Section, Team
from .._show.line import describe
from ..exceptions import EvaluationError
from .events import EvalEvents, Speaker
from .follower import Verdict
from .given import given
from .handlers import Watchers
from .plan import Plan

__all__: list[str] = []


class Recorder:
    """What evaluates for one hook.

    Args:
        plan: What the hook was constructed to do.
        run: The run that records join.
        watchers: Who acts on them first.
        speaker: Who tells of them.

    Attributes:
        at: Where training stood at the present or latest evaluation that counts.
    """

    def __init__(self, plan: Plan, run: Run, watchers: Watchers, speaker: Speaker) -> None:
        self.at = START
        self._plan = plan
        self._run = run
        self._watchers = watchers
        self._speaker = speaker
        self._is_evaluating = False
        self._metrics: Mapping[str, Any] | None = None  # of the present evaluation, once complete
        plan.follower.keeper.connect(self.signed_score, lambda engine: self.at)

    def check_idle(self) -> None:
        """Refuse an evaluation inside another one.

        Raises:
            EvaluationError: If one is under way.
        """
        if self._is_evaluating:
            raise EvaluationError(
                f"the hook {self._plan.name!r} is evaluating already; evaluate() was called from "
                "inside"
            )

    def answer(
        self, trainer: Engine | None, at: Position, data: Iterable[Any] | None
    ) -> EvalRecord:
        """Evaluate without any consequence."""
        self.check_idle()
        evaluation = self._plan.evaluation
        team = Team.current(f"{self._plan.name}: an answer")
        self._is_evaluating = True
        try:
            with team.together(f"{self._plan.name}: an answer") as section:
                is_new = not self._run.has_begun
                own = NOTHING if team.alone else self._given(data, is_new=is_new)
                with evaluation.session(data, section, given=own):
                    outcome = evaluation.run(data, trainer, section=section)
                seconds = section.close(None, lambda said: outcome.seconds)
        finally:
            self._is_evaluating = False
        return _record(at, outcome, (), seconds)

    def record(
        self, trainer: Engine, at: Position, data: Iterable[Any] | None, team: Team
    ) -> EvalRecord:
        """Evaluate once, and act on the result; on every rank of ``team``."""
        self.check_idle()
        self.at = at
        follower, name = self._plan.follower, self._plan.name
        followed = follower.targets
        follower.hear_of_files(team, wait=False)
        self._is_evaluating = True
        try:
            with team.together(f"{name} at {at}") as section:
                record, outcome = self._evaluate(trainer, at, data, section)
        except BaseException:
            follower.undo(followed)
            raise
        finally:
            self._is_evaluating = False
            self._metrics = None
        verdict: Verdict = outcome.verdict
        if logger.isEnabledFor(logging.INFO):
            best = follower.scores()
            before = [(target, best.get(target.metric)) for target in follower.targets]
            logger.info("%s at %s: %s", name, at, describe(record, verdict.scores, before))
        self._run.history.append(record)
        self._run.is_known = True
        follower.accept(record.best_of, verdict.scores, at)
        with team.together(f"{name}: listeners"):
            follower.keeper.settle(saves=verdict.saves)
            self._watchers.heed(record, self._plan.evaluation.evaluator)
            history = self._run.history
            self._speaker.fire(trainer, EvalEvents.EVAL_COMPLETED, record, len(history))
            if record.is_best:
                self._speaker.fire(trainer, EvalEvents.NEW_BEST, record, history.best_count)
        return record

    def _evaluate(
        self, trainer: Engine, at: Position, data: Iterable[Any] | None, section: Section
    ) -> tuple[EvalRecord, Outcome]:
        """Evaluate, save what is best, and write the record down; all ranks or none."""
        plan, run, follower = self._plan, self._run, self._plan.follower
        self._speaker.fire(trainer, EvalEvents.EVAL_STARTED, None, len(run.history) + 1)
        place = [at.iteration, run.id, len(run.history), follower.scores(),
                 self._watchers.counters()]  # fmt: skip
        # What the hook was constructed with has been compared at the start of the run.
        is_known = section.team.alone or data is plan.dataloader
        own = NOTHING if is_known else self._given(data)
        with plan.evaluation.session(data, section, place, own) as eval_mode:
            outcome = plan.evaluation.run(
                data, trainer, section=section, judge=self._judge, adopt=self._adopt
            )
            eval_mode.leave()  # a state is one of training mode, still inside the context
            failed = self._save(trainer, outcome.verdict, section)

        def write_down(said: Sequence[Any]) -> tuple[Any, ...]:
            improved = tuple(m for m in outcome.verdict.improved if m not in failed)
            if plan.folder is not None:
                record = _record(at, outcome, improved, outcome.seconds)
                plan.folder.append(record, run.history, run.id, follower.keeper.errors)
            return improved, outcome.seconds, follower.account()

        improved, seconds, account = section.close(None, write_down)
        follower.adopt_account(account)
        return _record(at, outcome, improved, seconds), outcome

    def _given(self, data: Iterable[Any] | None, *, is_new: bool = False) -> Given:
        return given(self._plan, self._watchers, data, is_new=is_new)

    def _judge(self, metrics: dict[str, Any], computed: Sequence[str]) -> Verdict:
        """Judge complete metrics, on rank 0."""
        self._metrics = metrics
        empty = not metrics or (self._plan.evaluation.compute_metrics is not None and not computed)
        # The evaluator's metrics stand in order of attaching, then the loss, its parts, the rest.
        order = dict.fromkeys([*computed, *metrics])
        # One that was there before and is missing now is no improvement, and no misspelling.
        unseen = [m for m in self._watchers.metrics if not self._run.history.knows(m)]
        return self._plan.follower.judge(metrics, order, unseen, empty=empty, when=f"at {self.at}")

    def _adopt(self, metrics: dict[str, Any], verdict: Verdict) -> None:
        """Take over what was decided, before handlers of the evaluator's COMPLETED see it."""
        self._metrics = metrics
        self._plan.follower.followed.adopt(verdict.first)

    def _save(self, trainer: Engine, verdict: Verdict, section: Section) -> set[str]:
        """Save what is to be saved; return the metrics for which that failed, and may."""
        if not verdict.saves:
            return set()
        follower, keeper = self._plan.follower, self._plan.follower.keeper
        if keeper.in_background:
            follower.share_written(section, wait=True)  # one save in flight
        with whole_states(keeper.to_save, section.team) as states:
            return keeper.save(trainer, verdict.scores, states) if keeper.writes else set()

    def signed_score(self, metric: str | None) -> float:
        """Return the present or last score of a followed metric; ``None``: of the first one."""
        follower = self._plan.follower
        if metric is None and follower.followed.auto and not follower.targets:
            return -math.inf  # "auto" has seen no result to choose from
        return self.signed(follower.target(metric))

    def signed(self, target: Target) -> float:
        """Return the present or last score, signed so that higher is better."""
        metrics, history = self._metrics, self._run.history
        if metrics is None:
            metrics = history[-1].metrics if history else {}
        score = as_score(look_up(metrics, target.metric))
        return -math.inf if score is None else target.rule.signed(score)


def _record(
    at: Position, outcome: Outcome, improved: tuple[str, ...], seconds: float
) -> EvalRecord:
    return EvalRecord(
        at.epoch, at.iteration, outcome.metrics, improved, bool(improved), outcome.samples, seconds
    )
