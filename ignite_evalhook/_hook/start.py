"""Make ready for a run: first look for what would go wrong, then take over the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .._decide.run import Run, check_same_standing
from .._files.run_folder import RunFolder
from .._log import logger
from .._ranks.compare import NOTHING, check_alike
from .._ranks.sharded_models import whole_states
from .._ranks.team import Section
from .given import given
from .handlers import Watchers
from .plan import Plan
from .preflight import check_evaluation, check_saving

__all__: list[str] = []


def prepare(
    plan: Plan,
    run: Run,
    section: Section,
    *,
    iteration: int,
    watchers: Watchers,
    claim: Callable[[RunFolder], None],
) -> None:
    """Make ready, on every rank; for a run that has begun, only own the folder again.

    Only rank 0 touches the folder; the others are told of it.

    Args:
        plan: What the hook was constructed to do.
        run: The run, which gets the name that it has on rank 0.
        section: What all ranks go through together.
        iteration: Iterations that the trainer has completed.
        watchers: Who acts on its records.
        claim: Makes a folder the hook's own.

    Raises:
        EvaluationError: If the ranks were given different things.
        StateError: If they do not stand at the same place, or the folder is another's.
        Exception: Whatever :mod:`ignite_evalhook._hook.preflight` finds.
    """
    team = section.team
    own = NOTHING
    if not run.has_begun:
        check_idle_options(plan.idle_options)
        if not team.alone:
            own = given(plan, watchers, plan.dataloader, is_new=True)
    folder = plan.folder if team.leads else None
    # A new run has another name on each rank.

    def compare(said: Sequence[Any]) -> str:
        check_alike(own, [each for *_, each in said])
        return check_same_standing(said)

    run.id = section.meet("state", [run.standing(iteration), run.id, own.said], compare)
    if run.has_begun:
        if folder is not None:
            claim(folder)
        return
    if plan.preflight and plan.schedule.interval is not None:
        with whole_states(plan.to_save, team) as states:
            check_saving(None if folder is None else folder.storage, states)
        check_evaluation(plan.evaluation, plan.dataloader, plan.follower, watchers.metrics, section)
    if folder is not None:
        claim(folder)
        folder.put_aside(run.id)
        if run.is_known:
            folder.reconcile_history(run.history, run.id)
    plan.follower.begin(run.id)
    plan.follower.share_account(section)
    run.has_begun = True
    logger.info(announcement(plan))
    workers = getattr(plan.dataloader, "num_workers", 0)
    if workers > 0 and not getattr(plan.dataloader, "persistent_workers", True):
        logger.info(
            "%s: each evaluation starts %d data workers and ends them; "
            "DataLoader(..., persistent_workers=True) keeps them", plan.name, workers,
        )  # fmt: skip


def check_idle_options(idle: Sequence[str]) -> None:
    """Refuse options about a metric that nobody has named.

    Raises:
        ValueError: Naming them.
    """
    if idle:
        raise ValueError(
            f"{', '.join(f'{argument}=' for argument in idle)} needs save_best='…', or a metric= "
            "in hook.early_stopping() or hook.step_on_plateau(), that it is about"
        )


def announcement(plan: Plan) -> str:
    """Say in one line, for people, what a hook is going to do."""
    parts = [f"{plan.name}: evaluate {plan.schedule}"]
    targets = [plan.explain(target) for target in plan.follower.targets]
    if targets and plan.schedule.interval is not None:
        parts.append(f"best by {', '.join(targets)}")
    if plan.folder is not None:
        parts.append(f"files in {plan.folder.storage.location}")
    return "; ".join(parts)
