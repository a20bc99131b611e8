"""Say in words what this rank was given, so that ranks can compare: settings, data, weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._evaluate.one_pass import attached_metrics
from .._ranks.compare import DATA, SETTINGS, WEIGHTS, Given, weigh
from .._ranks.given_data import data_of
from .._ranks.order import check_unprepared
from .._ranks.sharded_models import check_unshared, is_sharded
from .handlers import Watchers
from .plan import Plan

__all__: list[str] = []


def given(
    plan: Plan, watchers: Watchers, data: Iterable[Any] | None, *, is_new: bool = False
) -> Given:
    """Return what has to be the same on all ranks.

    Args:
        plan: What the hook was constructed to do.
        watchers: Who acts on its records.
        data: What is evaluated; ``None`` for a function, of which only rank 0's result counts.
        is_new: Whether the run has not begun: then the weights are looked at, for which the
            device waits once, and a sample may be read.

    Raises:
        EvaluationError: If ranks share the model, and not only parts of it.
    """
    evaluation = plan.evaluation
    said: dict[str, Any] = {SETTINGS: settings_of(plan, watchers)}
    names: list[str] = []
    if data is not None and not evaluation.shard:
        check_unprepared(data, shard=False)
    elif data is not None:
        check_unshared(evaluation.modules)
        said[DATA] = data_of(data, read=plan.preflight and is_new)
    each_its_own = evaluation.sync_buffers is None
    if data is not None and is_new and not each_its_own and not is_sharded(evaluation.modules):
        names, said[WEIGHTS] = weigh(evaluation.modules)
    return Given(said, names)


def settings_of(plan: Plan, watchers: Watchers) -> dict[str, str]:
    """Return the settings of a hook, and of what acts on its records, in words by name."""
    evaluation, follower = plan.evaluation, plan.follower
    metrics = attached_metrics(evaluation.evaluator)
    settings = {
        "schedule": str(plan.schedule),
        "at_end": plan.at_end,
        "limit_batches": evaluation.limit_batches,
        "metrics": {name: type(metric).__name__ for name, metric in metrics.items()},
        "derive": list(evaluation.derive),
        "save_best": dict(follower.wanted),
        "rule": {target.metric: target.rule.value for target in follower.targets},
        "out_dir": None if plan.folder is None else str(plan.folder.storage.location),
        "to_save": list(plan.to_save),
        "preflight": plan.preflight,
        "shard": evaluation.shard,
        "sync_buffers": evaluation.sync_buffers,
        "gpu_collect": evaluation.gpu_collect,
        "lazy_results": evaluation.lazy_results,
        "early_stopping": watchers.stopping(),
    }
    present = ("function", "compute_metrics", "pre_eval", "context")
    return {
        **{name: f"{name}={value!r}" for name, value in settings.items()},
        **{n: f"{'no' if getattr(evaluation, n) is None else 'a'} {n}" for n in present},
    }
