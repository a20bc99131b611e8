"""Follow the metrics that ``save_best`` names: judge each evaluation, keep the best files.

The follower is the part of a hook that knows targets, scores and checkpoints.  It judges by the
run's own history; what the disk holds beyond that, after a restart, is only given up for its
equal or better.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from ignite.engine import Engine
from ignite.handlers.checkpoint import BaseSaveHandler

from ._arguments import AUTO
from ._best import Best, Target, as_score
from ._best_files import BestFiles, as_best, as_live, sidecar_name
from ._checkpoint import BestCheckpoint
from ._load_best import read_sidecar
from ._log import logger
from ._moment import Position
from ._rules import Rule
from ._sidecar import Kept, Sidecar, sort_entries
from ._storage import Storage
from ._writer import Writer
from .exceptions import CheckpointError, EvaluationError, StateError

__all__: list[str] = []


@dataclass(frozen=True)
class Leader:
    """The best evaluation of one metric so far."""

    score: float
    epoch: int
    iteration: int

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Leader:
        """Read what :meth:`Follower.state` says of a leader.

        Raises:
            ValueError: If it is damaged.
        """
        score, epoch, iteration = state
        if as_score(score) is None or type(epoch) is not int or type(iteration) is not int:
            raise ValueError(f"a best is [score, epoch, iteration], got {state!r}")
        return cls(score, epoch, iteration)


class FollowerState(NamedTuple):
    """What a run has followed: metrics, their best evaluations, their files."""

    targets: tuple[Target, ...]
    leaders: dict[str, Leader]
    live: dict[str, tuple[Kept, ...]]


class Saving(NamedTuple):
    """What is being written in the background, and what all ranks know until it is there.

    Attributes:
        entries: The files that are being written, by metric; on the rank that writes.
        leaders: The best evaluations before them.
        sidecar: The account of files before them.
    """

    entries: dict[str, Kept]
    leaders: dict[str, Leader]
    sidecar: Sidecar | None


class Follower:
    """What a hook follows, and what is best.

    Args:
        name: The hook's name.
        wanted: Metric to number of files; ``{"auto": n}``; empty to follow nothing.
        make_target: Finds the rule of a metric; raises ``RuleInferenceError``.
        checkpoint: Writes the files of the first metric; ``None`` follows without files.
        on_bad_score: ``"raise"`` or ``"skip"``.
    """

    def __init__(
        self,
        name: str,
        wanted: Mapping[str, int | None],
        make_target: Callable[[str, int | None], Target],
        checkpoint: BestCheckpoint | None,
        on_bad_score: str,
    ) -> None:
        self.name = name
        self.wanted = dict(wanted)
        self.checkpoint = checkpoint
        self._make_target = make_target
        self._on_bad_score = on_bad_score
        self.leaders: dict[str, Leader] = {}
        self._live: dict[str, tuple[Kept, ...]] = {}
        self._live_before: dict[str, tuple[Kept, ...]] | None = None  # a save that is not settled
        self._checkpoints: dict[str, BestCheckpoint] = {}
        self._files: BestFiles | None = None
        self.writer = Writer()  # writes files in the background, if that is wanted
        self._leaders_before: dict[str, Leader] = {}  # before the last save
        self._saving: Saving | None = None
        self._failure: CheckpointError | None = None  # of the writer's, not raised yet
        self._score: Callable[[str], float] = lambda metric: -math.inf
        self._position: Callable[[Engine], Position] | None = None
        self.run_id = ""
        self.writes = True  # whether this process is the one that touches files
        self.targets: tuple[Target, ...] = ()
        if AUTO not in self.wanted:
            self.targets = tuple(make_target(metric, n) for metric, n in self.wanted.items())
        if checkpoint is not None:
            checkpoint.take(name)

    @property
    def where(self) -> Storage | BaseSaveHandler | None:
        """Where best files go."""
        return None if self.checkpoint is None else self.checkpoint.saver.target

    @property
    def storage(self) -> Storage | None:
        """The folder that best files go to, if it is one."""
        return None if isinstance(self.where, BaseSaveHandler) else self.where

    @property
    def first(self) -> str | None:
        """The first followed metric; ``None`` if there is none (yet)."""
        return self.targets[0].metric if self.targets else None

    def target(self, metric: str | None = None) -> Target:
        """Return the followed metric of that name, or the first one.

        Raises:
            ValueError: If it is not followed, or (for the first) nothing is.
        """
        if metric is None:
            if not self.targets:
                why = "is not resolved yet" if AUTO in self.wanted else "names no metric"
                raise ValueError(f"no metric is followed: save_best {why}; pass metric=")
            return self.targets[0]
        for target in self.targets:
            if target.metric == metric:
                return target
        raise ValueError(
            f"{metric!r} is not followed; save_best names {[t.metric for t in self.targets]}"
        )

    # -- judging ------------------------------------------------------------------------------

    def resolve(self, metrics: Mapping[str, Any], order: Iterable[str]) -> None:
        """Let ``"auto"`` choose the first scalar in ``order``, once.

        Raises:
            EvaluationError: If there is no scalar.
            RuleInferenceError: If its name does not tell the rule.
        """
        if self.targets or AUTO not in self.wanted or not metrics:
            return
        for metric in order:
            if as_score(metrics.get(metric)) is not None:
                self.targets = (self._make_target(metric, self.wanted[AUTO]),)
                self._bind()
                return
        raise EvaluationError(f"save_best='auto' found no number among {list(metrics)}")

    def check_auto(self, metrics: Mapping[str, Any], order: Iterable[str]) -> None:
        """Raise what :meth:`resolve` would raise for lack of a rule, without resolving."""
        for metric in order:
            if as_score(metrics.get(metric)) is not None:
                self._make_target(metric, self.wanted[AUTO])
                return

    def judge(self, metrics: Mapping[str, Any], *, empty: bool, when: str) -> dict[str, float]:
        """Return the scores by metric that can be compared.

        Args:
            metrics: The complete metrics of an evaluation.
            empty: Whether the evaluation had nothing to say, which is no mistake.
            when: Words for the moment, for messages.

        Raises:
            EvaluationError: If a followed metric is missing or no number.
        """
        scores: dict[str, float] = {}
        for target in self.targets:
            score = as_score(metrics.get(target.metric))
            if score is not None and math.isfinite(score):
                scores[target.metric] = score
            elif score is not None:
                logger.warning(
                    "%s %s: %s is %s; recorded, but never the best",
                    self.name, when, target.metric, score,
                )  # fmt: skip
            else:
                self._bad_score(target.metric, metrics, empty, when)
        return scores

    def check_watched(
        self, watched: Iterable[str], metrics: Mapping[str, Any], *, empty: bool, when: str
    ) -> None:
        """Check the metrics that early stopping and schedulers watch, as :meth:`judge` does.

        Raises:
            EvaluationError: If one is missing or no number.
        """
        followed = {target.metric for target in self.targets}
        for metric in dict.fromkeys(watched):
            if metric not in followed and as_score(metrics.get(metric)) is None:
                self._bad_score(metric, metrics, empty, when)

    def _bad_score(self, metric: str, metrics: Mapping[str, Any], empty: bool, when: str) -> None:
        if metric in metrics:
            what = f"{metric!r} is no number: {metrics[metric]!r:.80}"
        else:
            what = missing_words(metric, metrics)
        if empty:
            logger.warning("%s %s: the result is empty; recorded without a score", self.name, when)
        elif self._on_bad_score == "skip":
            logger.warning("%s %s: %s; recorded without a score", self.name, when, what)
        else:
            raise EvaluationError(f"{self.name} {when}: {what}; on_bad_score='skip' records it")

    def improved(self, scores: Mapping[str, float]) -> tuple[str, ...]:
        """Return the metrics for which ``scores`` are a new best."""
        return tuple(
            target.metric
            for target in self.targets
            if target.metric in scores
            and target.is_better(scores[target.metric], self.leading_score(target.metric))
        )

    def leading_score(self, metric: str) -> float | None:
        """Return the best score of a metric so far."""
        leader = self.leaders.get(metric)
        return None if leader is None else leader.score

    # -- files --------------------------------------------------------------------------------

    def connect(
        self, score: Callable[[str], float], position: Callable[[Engine], Position]
    ) -> None:
        """Say where scores (signed, higher is better) and positions are to be had."""
        self._score, self._position = score, position

    @property
    def to_save(self) -> Mapping[str, Any]:
        """What a best file holds."""
        return {} if self.checkpoint is None else self.checkpoint.to_save

    def would_save(self, scores: Mapping[str, float]) -> bool:
        """Return whether :meth:`save` would write a file."""
        return any(
            checkpoint.would_save(scores[metric])
            for metric, checkpoint in self._checkpoints.items()
            if metric in scores
        )

    def save(
        self, engine: Engine, scores: Mapping[str, float], states: Mapping[str, Any] | None = None
    ) -> set[str]:
        """Save what belongs to the top-k.

        What it makes superfluous stays until :meth:`settle`, and :meth:`undo` takes it back.

        Args:
            engine: The trainer.
            scores: The scores by metric.
            states: What to write; by default the states of what is saved.

        Returns:
            The metrics whose files could not be written, where that is allowed.

        Raises:
            CheckpointError: If a file cannot be written.
        """
        self.join()
        failed: set[str] = set()
        self._live_before = dict(self._live)
        for metric, checkpoint in self._checkpoints.items():
            if metric not in scores:
                continue
            try:
                checkpoint.save(engine, states)
            except CheckpointError as error:
                if checkpoint.on_save_error != "warn":
                    raise
                failed.add(metric)
                logger.error("%s: the best %s was not saved: %s", self.name, metric, error)
            else:
                if checkpoint.holds is None:
                    self._note_live(metric, checkpoint)
        return failed

    def undo(self) -> None:
        """Take a :meth:`save` back that is not settled: files and memory are as before."""
        if self._live_before is None:
            return
        for checkpoint in reversed(self._checkpoints.values()):
            checkpoint.undo()
        self._live, self._live_before = self._live_before, None

    def settle(self, *, saves: bool = False) -> None:
        """Remove the files that a :meth:`save` has made superfluous, or begin to write them.

        Args:
            saves: Whether there was a save, on any rank.
        """
        saved, self._live_before = self._live_before is not None, None
        if saves and self.in_background:
            held = {m: c.holds for m, c in self._checkpoints.items() if c.holds is not None}
            self._saving = Saving(held, self._leaders_before, self._sidecar)
            for metric in held:
                self.writer.submit(partial(self._write_held, self._checkpoints[metric]))
        elif saved:
            for checkpoint in self._checkpoints.values():
                checkpoint.settle()

    def _note_live(self, metric: str, checkpoint: BestCheckpoint) -> None:
        self._live[metric] = self._listed(metric, checkpoint)

    def _listed(self, metric: str, checkpoint: BestCheckpoint) -> tuple[Kept, ...]:
        """Return the files of the top-k that are on disk."""
        files = {item.filename for item in checkpoint._saved}
        entries = self._files.sidecar.of(metric) if self._files is not None else ()
        listed = {e.file: e for e in (*self._live.get(metric, ()), *entries) if e.file in files}
        return sort_entries(self.target(metric), listed.values())

    @property
    def _sidecar(self) -> Sidecar | None:
        """The account of files, as all ranks know it."""
        if self._saving is not None:
            return self._saving.sidecar
        return None if self._files is None else self._files.sidecar

    # -- in the background --------------------------------------------------------------------

    @property
    def in_background(self) -> bool:
        """Whether files are written while training goes on."""
        return self.checkpoint is not None and self.checkpoint.async_save

    @property
    def is_saving(self) -> bool:
        """Whether a best is being written, on any rank."""
        return self._saving is not None

    def _write_held(self, checkpoint: BestCheckpoint) -> None:
        try:
            checkpoint.write_held()
        except CheckpointError:  # the writer has no say in it, but it logs what it gets
            if checkpoint.on_save_error != "warn":
                raise
            logger.error("%s: the best was not saved in the background", self.name, exc_info=True)

    def join(self, *, wait: bool = True, raises: bool = True) -> None:
        """Take note of what was written in the background.

        What could not be written is no best any more: the best is what it was before.

        Args:
            wait: Wait until it is written; else only take note if it is.
            raises: Raise an error now; else the next time.

        Raises:
            CheckpointError: If a file could not be written.
        """
        if wait or self.writer.is_idle:
            try:
                self.writer.wait()
            except CheckpointError as error:
                self._failure = error
            finally:
                saving, self._saving = self._saving, None
                if saving is not None and self.writes:
                    self.leaders = self._leaders_after(saving)
                    for metric in saving.entries:
                        if self._checkpoints[metric].holds is not None:
                            self._checkpoints[metric].undo()  # dropped, as one before it failed
                        self._note_live(metric, self._checkpoints[metric])
        if raises:
            self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what the writer has failed with, once."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _leaders_after(self, saving: Saving) -> dict[str, Leader]:
        """Return the best evaluations, without those whose files could not be written."""
        files = set() if self._files is None else self._files.sidecar.files()
        leaders = dict(self.leaders)
        for metric, entry in saving.entries.items():
            leader = leaders.get(metric)
            if entry.file in files or leader is None or leader.iteration != entry.iteration:
                continue
            del leaders[metric]
            if metric in saving.leaders:
                leaders[metric] = saving.leaders[metric]
        return leaders

    def complete(self, state: dict[str, Any]) -> None:
        """Let a :meth:`state` of a moment ago say what is on disk now; in the writer's thread."""
        kept = {m: self._listed(m, checkpoint) for m, checkpoint in self._checkpoints.items()}
        state["kept"].update({m: [e.to_dict() for e in entries] for m, entries in kept.items()})
        if self._saving is not None:
            state["leaders"] = _plain_leaders(self._leaders_after(self._saving))

    # -- several ranks ------------------------------------------------------------------------

    def account(self) -> dict[str, Any] | None:
        """Return what is known of best files, for ranks that touch none."""
        sidecar = self._sidecar
        if sidecar is None:
            return None
        return {
            "sidecar": sidecar.to_json(),
            "kept": {m: [e.to_dict() for e in kept] for m, kept in self._live.items()},
            "leaders": _plain_leaders(self.leaders),
            "saving": self._saving is not None,
        }

    def adopt_account(self, account: Mapping[str, Any] | None) -> None:
        """Take over what the writing rank knows of best files."""
        self._saving = None
        if account is None or self.checkpoint is None:
            self._files = None
            return
        sidecar = Sidecar.from_json(account["sidecar"])
        self._live = {
            metric: tuple(as_live(Kept.from_dict(entry)) for entry in kept)
            for metric, kept in account["kept"].items()
        }
        self._files = BestFiles(self.checkpoint.saver.target, sidecar, self.checkpoint.alias)
        self.leaders = {m: Leader.from_state(leader) for m, leader in account["leaders"].items()}
        if account["saving"]:
            self._saving = Saving({}, {}, sidecar)

    def adopt_choice(self, metric: str | None) -> None:
        """Take over what ``"auto"`` has chosen on the deciding rank."""
        if metric is not None and not self.targets and AUTO in self.wanted:
            self.targets = (self._make_target(metric, self.wanted[AUTO]),)

    def unchoose(self, targets: tuple[Target, ...]) -> None:
        """Follow ``targets`` again, if ``"auto"`` has chosen in an evaluation that failed."""
        if self.targets != targets:
            self.targets = targets
            self._checkpoints.clear()
            self._files = None

    def scores(self) -> dict[str, float]:
        """Return the best score of each metric so far."""
        return {metric: leader.score for metric, leader in self.leaders.items()}

    def accept(self, improved: Iterable[str], scores: Mapping[str, float], at: Position) -> None:
        """Remember new bests."""
        self._leaders_before = dict(self.leaders)
        for metric in improved:
            self.leaders[metric] = Leader(scores[metric], at.epoch, at.iteration)

    def best(self, metric: str | None = None) -> Best | None:
        """Return the best of a metric by the run's own history."""
        if metric is None and not self.targets:
            return None
        target = self.target(metric)
        leader = self.leaders.get(target.metric)
        if leader is None:
            return None
        plain = Best(target.metric, leader.score, leader.epoch, leader.iteration)
        sidecar = self._sidecar
        for entry in () if sidecar is None else sidecar.of(target.metric):
            if entry.iteration == leader.iteration and not entry.abandoned:
                return as_best(target, entry, self.storage)
        return plain

    def entry_on_disk(self, metric: str) -> Kept | None:
        """Return the best file that the folder holds, of an abandoned stretch or not."""
        if self._files is not None:
            return self._files.best(metric)
        found = (
            None if self.storage is None else read_sidecar(self.storage, sidecar_name(self.name))
        )
        return None if found is None else next(iter(found.of(metric)), None)

    def bests(self) -> dict[str, tuple[Best, ...]]:
        """Return what is kept for each metric by the run's own history, best first."""
        found: dict[str, tuple[Best, ...]] = {}
        for target in self.targets:
            present = set() if self._sidecar is None else self._sidecar.files()
            kept = tuple(
                as_best(target, entry, self.storage if entry.file in present else None)
                for entry in self._live.get(target.metric, ())
            )
            best = self.best(target.metric)
            if best is not None and best.iteration not in {other.iteration for other in kept}:
                kept = (best, *kept)[: target.n_saved]  # its file is being written, or gone
            found[target.metric] = kept
        return found

    # -- runs and restarts --------------------------------------------------------------------

    def forget(self) -> None:
        """Forget every best; touch no file.

        Raises:
            CheckpointError: If a file that was being written could not be.
        """
        try:
            self.join()
        finally:
            self._forget()

    def _forget(self) -> None:
        self.leaders = {}
        self._live.clear()
        self._checkpoints.clear()
        self._files = None
        if AUTO in self.wanted:
            self.targets = ()

    def begin(self, run_id: str) -> None:
        """Take the folder over for a run: bring its files and this run's history together."""
        self.join()
        self.run_id = run_id
        self._files = None
        self._checkpoints.clear()
        self._bind()

    def _bind(self) -> None:
        where = self.where
        if (
            not self.writes
            or where is None
            or self.checkpoint is None
            or not self.targets
            or self._position is None
        ):
            return
        empty = Sidecar(self.name, self.run_id, self.targets)
        self._files = BestFiles(where, empty, self.checkpoint.alias)
        for number, target in enumerate(self.targets):
            checkpoint = self.checkpoint if number == 0 else self.checkpoint.for_another()
            score = _scored(self._score, target.metric)
            checkpoint.bind(target, self._files, score, self._position)
            self._live[target.metric] = self._live.get(target.metric, ())
            checkpoint.restore(self._live[target.metric])
            self._checkpoints[target.metric] = checkpoint
        if isinstance(where, Storage):
            self._reconcile(where)

    def _reconcile(self, storage: Storage) -> None:
        """List what is on disk: live files, and better ones of an abandoned stretch."""
        found = read_sidecar(storage, sidecar_name(self.name))
        after = Sidecar(self.name, self.run_id, self.targets)
        surplus: set[str] = set()
        for target in self.targets:
            live = self._live.get(target.metric, ())
            files = {entry.file: entry for entry in live}
            for entry in () if found is None else found.of(target.metric):
                files.setdefault(entry.file, replace(entry, abandoned=True))
            whole = [entry for entry in files.values() if self._is_whole(storage, entry)]
            after = after.with_entries(target, self._within_limit(target, whole))
            surplus |= {entry.file for entry in whole}
            if live and not after.of(target.metric):
                logger.warning(
                    "%s: the file of the best %s, %s, is not in %s any more",
                    self.name, target.metric, live[0].file, storage.location,
                )  # fmt: skip
        if self._files is None:
            return
        ours = [entry for entries in self._live.values() for entry in entries]
        self._files.refuse_foreign_aliases([*ours, *([] if found is None else found.entries())])
        if found is None and not after.files():
            return
        self._files.publish(after)
        for file in sorted(surplus - after.files()):
            storage.remove(file)

    def _within_limit(self, target: Target, entries: Sequence[Kept]) -> list[Kept]:
        """Drop live entries beyond ``n_saved``, which a restart may have lowered."""
        ordered = sort_entries(target, entries)
        live = [entry for entry in ordered if not entry.abandoned][: target.n_saved]
        self._live[target.metric] = self._live[target.metric][: target.n_saved]
        self._checkpoints[target.metric].restore(self._live[target.metric])
        return [*live, *(entry for entry in ordered if entry.abandoned)]

    def _is_whole(self, storage: Storage, entry: Kept) -> bool:
        if not storage.exists(entry.file):
            return False
        if entry.sha256 is None or storage.sha256(entry.file) == entry.sha256:
            return True
        logger.warning("%s: %s is damaged and not used", self.name, storage.path(entry.file))
        return False

    # -- state --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return targets, bests and kept files as plain values; file names are relative."""
        return {
            "auto": AUTO in self.wanted,
            "targets": [[t.metric, t.rule.value] for t in self.targets],
            "leaders": _plain_leaders(self.leaders),
            "kept": {m: [e.to_dict() for e in kept] for m, kept in self._live.items()},
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that followed other metrics or another rule.

        Raises:
            StateError: With words.
        """
        theirs = [(str(metric), Rule(rule)) for metric, rule in state["targets"]]
        if AUTO in self.wanted:
            theirs = [] if state["auto"] else theirs
            ours: list[tuple[str, Rule]] = []
        else:
            ours = [(t.metric, t.rule) for t in self.targets]
        if theirs == ours or (not theirs and state["auto"] == (AUTO in self.wanted)):
            return
        raise StateError(
            f"the state of {self.name!r} followed {_words(theirs) or 'nothing'}, this hook follows "
            f"{_words(ours) or 'nothing'}; call hook.reset() first to forget that history and best"
        )

    def read_state(self, state: Mapping[str, Any]) -> FollowerState:
        """Read what :meth:`state` returned, after :meth:`check_state`; change nothing.

        Raises:
            StateError: If the rule found for ``"auto"`` is another one.
            Exception: If the state is damaged.
        """
        targets = self.targets
        if AUTO in self.wanted and state["targets"]:
            metric, rule = state["targets"][0]
            target = self._make_target(metric, self.wanted[AUTO])
            if target.rule is not Rule(rule):
                raise StateError(f"the state's rule for {metric!r} was {rule!r}")
            targets = (target,)
        elif AUTO in self.wanted:
            targets = ()
        leaders = {m: Leader.from_state(leader) for m, leader in state["leaders"].items()}
        live = {
            m: tuple(as_live(Kept.from_dict(entry)) for entry in kept)
            for m, kept in state["kept"].items()
        }
        return FollowerState(targets, leaders, live)

    def load_state(self, state: FollowerState) -> None:
        """Take over a state."""
        self.forget()
        self.targets, self.leaders, self._live = state


def _plain_leaders(leaders: Mapping[str, Leader]) -> dict[str, list[Any]]:
    return {m: [best.score, best.epoch, best.iteration] for m, best in leaders.items()}


def _scored(score: Callable[[str], float], metric: str) -> Callable[[Engine], float]:
    return lambda engine: score(metric)


def _words(targets: Sequence[tuple[str, Rule]]) -> str:
    return ", ".join(f"{metric} ({rule.value})" for metric, rule in targets)


def missing_words(metric: str, metrics: Iterable[str]) -> str:
    """Say that a metric is missing, which ones there are, and what was probably meant."""
    names = list(metrics)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(metric.lower(), folded, n=1)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
    return f"there is no metric {metric!r} in the result, which has {names}{hint}"
