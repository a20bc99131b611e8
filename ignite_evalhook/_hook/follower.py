"""Follow the metrics that ``save_best`` names, by the run's own history.

The follower brings together which metrics those are, their best evaluations, and the files of
these.  What the disk holds beyond the history, after a restart, is only given up for its equal or
better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .._decide.best import Best, Leader, Target, improved, without_lost
from .._decide.kept import Kept
from .._decide.nested import flat
from .._decide.position import Position
from .._decide.targets import Targets
from .._files.best_checkpoint import BestCheckpoint
from .._files.best_files import as_best
from .._files.keeper import Keeper, Live, plain, read_live
from .._files.storage import Storage
from .._ranks.team import Section, Team
from .scores import ScoreReader

__all__: list[str] = []


class FollowerState(NamedTuple):
    """What a run has followed: metrics, their best evaluations, their files."""

    targets: tuple[Target, ...]
    leaders: dict[str, Leader]
    live: Live


class Verdict(NamedTuple):
    """What was decided about an evaluation, as it is told to all ranks.

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


class Follower:
    """What a hook follows, and what is best.

    Args:
        name: The hook's name.
        wanted: Metric to number of files; ``{"auto": n}``; empty to follow nothing.
        make_target: Finds the rule of a metric; raises ``RuleInferenceError``.
        checkpoint: Writes the files of the first metric; ``None`` follows without files.
        on_bad_score: ``"raise"`` or ``"skip"``.

    Attributes:
        followed: The metrics that are followed.
        reader: Reads their scores.
        leaders: Their best evaluations.
        keeper: Keeps the files of these.
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
        self.followed = Targets(wanted, make_target)
        self.reader = ScoreReader(name, on_bad_score)
        self.leaders: dict[str, Leader] = {}
        self.keeper = Keeper(name, checkpoint)
        self._leaders_before: dict[str, Leader] = {}  # before what is being written

    @property
    def wanted(self) -> Mapping[str, int | None]:
        """Metric to number of files, as asked for."""
        return self.followed.wanted

    @property
    def targets(self) -> tuple[Target, ...]:
        """The followed metrics; none before ``"auto"`` has chosen."""
        return self.followed.now

    def target(self, metric: str | None = None) -> Target:
        """Return the followed metric of that name, or the first one.

        Raises:
            ValueError: If it is not followed, or (for the first) nothing is.
        """
        return self.followed.get(metric)

    @property
    def first(self) -> str | None:
        """The first followed metric; ``None`` if there is none (yet)."""
        return self.targets[0].metric if self.targets else None

    @property
    def storage(self) -> Storage | None:
        """The folder that best files go to, if it is one."""
        return self.keeper.storage

    # -- one evaluation -----------------------------------------------------------------------

    def judge(
        self,
        metrics: Mapping[str, Any],
        order: Iterable[str],
        watched: Iterable[str],
        *,
        empty: bool,
        when: str,
    ) -> Verdict:
        """Judge complete metrics, on the rank that decides.

        Args:
            metrics: What an evaluation said.
            order: Names, in the order in which ``"auto"`` looks for the first scalar.
            watched: Further metrics that have to be numbers.
            empty: Whether the evaluation had nothing to say, which is no mistake.
            when: Words for the moment, for messages.

        Raises:
            EvaluationError: If a metric is missing or no number, and that is not to be skipped.
            RuleInferenceError: If ``"auto"`` chooses one whose name does not tell its rule.
        """
        targets = self.targets
        if self.followed.auto and not targets:
            chosen = self.followed.would_choose(metrics, order)
            if chosen is None:
                what = f"save_best='auto' found no number among {list(flat(metrics))}"
                self.reader.excuse(what, empty=empty, when=when)
            else:
                self.followed.now = targets = (chosen,)
                self.keeper.bind(targets)
        names = [target.metric for target in targets]
        for metric in dict.fromkeys(watched):
            if metric not in names:
                self.reader.check(metric, metrics, empty=empty, when=when)
        scores = self.reader.read(metrics, names, empty=empty, when=when)
        better = improved(targets, scores, self.leaders)
        return Verdict(scores, better, self.keeper.would_save(scores), self.first)

    def undo(self, targets: tuple[Target, ...]) -> None:
        """Take an evaluation that failed back.

        Args:
            targets: What was followed before it, in which ``"auto"`` may have chosen.
        """
        self.keeper.undo()
        if self.targets != targets:
            self.followed.now = targets
            self.keeper.let_go()

    def accept(self, better: Iterable[str], scores: Mapping[str, float], at: Position) -> None:
        """Remember new bests."""
        if not self.keeper.is_saving:
            self._leaders_before = dict(self.leaders)
        for metric in better:
            self.leaders[metric] = Leader(scores[metric], at.epoch, at.iteration)

    # -- what is best -------------------------------------------------------------------------

    def scores(self) -> dict[str, float]:
        """Return the best score of each metric so far."""
        return {metric: leader.score for metric, leader in self.leaders.items()}

    def best(self, metric: str | None = None) -> Best | None:
        """Return the best of a metric by the run's own history."""
        if metric is None and not self.targets:
            return None
        target = self.target(metric)
        leader = self.leaders.get(target.metric)
        if leader is None:
            return None
        for entry in self.keeper.known(target.metric):
            if entry.iteration == leader.iteration and self.keeper.is_there(entry):
                return as_best(target, entry, self.storage)
        return Best(target.metric, leader.score, leader.epoch, leader.iteration)

    def bests(self) -> dict[str, tuple[Best, ...]]:
        """Return what is kept for each metric by the run's own history, best first."""
        found: dict[str, tuple[Best, ...]] = {}
        for target in self.targets:
            kept = tuple(
                as_best(target, entry, self.storage if self.keeper.is_there(entry) else None)
                for entry in self.keeper.live.get(target.metric, ())
            )
            best = self.best(target.metric)
            if best is not None and best.iteration not in {other.iteration for other in kept}:
                kept = (best, *kept)[: target.n_saved]  # its file is being written, or gone
            found[target.metric] = kept
        return found

    def alias_paths(self) -> set[str]:
        """Return where the stable names of best files are; nowhere before ``"auto"`` has chosen."""
        return self.keeper.alias_paths(self.targets)

    def entry_on_disk(self, metric: str) -> Kept | None:
        """Return the best file that the folder holds, of an abandoned stretch or not."""
        return self.keeper.entry_on_disk(metric)

    # -- in the background --------------------------------------------------------------------

    def join(self, *, wait: bool = True, raises: bool = True) -> None:
        """Take note of what was written in the background.

        What could not be written is no best any more: the best is what it was before.

        Args:
            wait: Wait until it is written; else only take note if it is.
            raises: Raise an error now; else the next time.

        Raises:
            CheckpointError: If a file could not be written.
        """
        if wait or self.keeper.writer.is_idle:
            try:
                self.keeper.wait()
            finally:
                lost = self.keeper.take_note()
                self.leaders = without_lost(self.leaders, self._leaders_before, lost)
        if raises:
            self.keeper.raise_failure()

    def complete(self, state: dict[str, Any]) -> None:
        """Let a :meth:`state` of a moment ago say what is on disk now; in the writer's thread."""
        state["kept"].update(self.keeper.on_disk())
        if self.keeper.is_saving:
            leaders = without_lost(self.leaders, self._leaders_before, self.keeper.lost())
            state["leaders"] = _plain_leaders(leaders)

    # -- several ranks ------------------------------------------------------------------------

    def account(self) -> dict[str, Any] | None:
        """Return what is known of the best and its files, for ranks that touch none."""
        account = self.keeper.account()
        return None if account is None else {**account, "leaders": _plain_leaders(self.leaders)}

    def adopt_account(self, account: Mapping[str, Any] | None) -> None:
        """Take over what the writing rank knows, on a rank that touches no files."""
        if self.keeper.writes:
            return
        self.keeper.adopt_account(account)
        if account is not None:
            self.leaders = _read_leaders(account["leaders"])

    def share_account(self, section: Section) -> None:
        """Tell every rank which best files the writing rank has found."""
        self.adopt_account(section.meet("files", None, lambda said: self.account()))

    def share_written(self, section: Section, *, wait: bool) -> None:
        """Tell every rank what was written in the background; see :meth:`join`.

        Raises:
            CheckpointError: If a file could not be written.
        """
        self.join(wait=wait, raises=False)
        self.share_account(section)  # first, so that a best that failed is none on every rank
        self.keeper.raise_failure()

    def hear_of_files(self, team: Team, *, wait: bool = True) -> None:
        """Let every rank take note of what was written in the background, if anything is.

        Args:
            team: The ranks, all of which call this.
            wait: Wait until the files are there.

        Raises:
            CheckpointError: If one could not be written.
        """
        if self.keeper.in_background:
            with team.together(f"{self.name}: files of the best") as section:
                self.share_written(section, wait=wait)

    # -- runs and restarts --------------------------------------------------------------------

    def forget(self) -> None:
        """Forget every best; touch no file.

        Raises:
            CheckpointError: If a file that was being written could not be.
        """
        try:
            self.join()
        finally:
            self.leaders = {}
            self.keeper.forget()
            self.followed.forget()

    def begin(self, run_id: str) -> None:
        """Take the folder over for a run: bring its files and this run's history together."""
        self.join()
        self.keeper.begin(run_id, self.targets)

    def state(self) -> dict[str, Any]:
        """Return targets, bests and kept files as plain values; file names are relative."""
        return {
            **self.followed.state(),
            "leaders": _plain_leaders(self.leaders),
            "kept": plain(self.keeper.live),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that followed other metrics or another rule.

        Raises:
            StateError: With words.
        """
        self.followed.check_state(state, self.name)

    def read_state(self, state: Mapping[str, Any]) -> FollowerState:
        """Read what :meth:`state` returned, after :meth:`check_state`; change nothing.

        Raises:
            StateError: If the rule found for ``"auto"`` is another one.
            Exception: If the state is damaged.
        """
        targets = self.followed.read_state(state)
        return FollowerState(targets, _read_leaders(state["leaders"]), read_live(state["kept"]))

    def load_state(self, state: FollowerState) -> None:
        """Take over a state."""
        self.forget()
        self.followed.now, self.leaders, self.keeper.live = state


def _plain_leaders(leaders: Mapping[str, Leader]) -> dict[str, list[Any]]:
    return {metric: leader.state() for metric, leader in leaders.items()}


def _read_leaders(state: Mapping[str, Any]) -> dict[str, Leader]:
    return {metric: Leader.from_state(leader) for metric, leader in state.items()}
