"""Find before the first training step what would otherwise fail after hours.

One batch goes through the process function and the metrics' updates, outside ``Engine.run``:
no event fires, ``compute_metrics`` is not called, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.nn.parameter import is_lazy

from .._decide.nested import MISSING, flat, look_up
from .._evaluate.evaluation import Evaluation
from .._evaluate.loader import plan_batches
from .._evaluate.metric_values import to_record
from .._evaluate.one_pass import (
    attached_metrics,
    check_metrics,
    grad_mode,
    has_unknown_handlers,
    own_preparation,
    probe,
)
from .._files.plain import to_plain
from .._files.storage import Storage
from .._log import add_note, logger
from .._ranks.sharded_models import is_sharded
from .._ranks.share import turn_of
from .._ranks.team import Section
from .._undisturbed.attributes import has_lazy_tensors
from ..exceptions import EvaluationError
from .follower import Follower
from .scores import missing_words

__all__: list[str] = []

_NONE = object()  # in place of a batch, which may be anything


def check_saving(storage: Storage | None, states: Mapping[str, Any]) -> None:
    """Check that files can be written, and be read again by ``torch.load(weights_only=True)``.

    Args:
        storage: The folder; ``None`` for a process that writes no files.
        states: What files will hold, by name.

    Raises:
        CheckpointError: If the folder cannot be written.
        TypeError: If a state holds a value that ``weights_only`` refuses.
    """
    if storage is not None:
        storage.check_writable()
    for name, state in states.items():
        # What a lazy module will hold is not known before its first batch.
        if not (isinstance(state, Mapping) and any(map(is_lazy, state.values()))):
            to_plain(state, f"to_save[{name!r}]")


def check_evaluation(
    evaluation: Evaluation,
    dataloader: Iterable[Any] | None,
    follower: Follower,
    more_metrics: Iterable[str],
    section: Section,
) -> None:
    """Evaluate one batch of each rank's own, and check that the followed metrics will be there.

    An evaluator that prepares itself in handlers of its own is left out, since none is called; so
    is a model with lazy modules, which are for the first batch of training.

    Args:
        evaluation: How the hook evaluates.
        dataloader: Its batches; ``None`` for a function evaluator, which is not called.
        follower: What ``save_best`` follows.
        more_metrics: Names that early stopping and schedulers follow.
        section: What all ranks go through together.

    Raises:
        ValueError: If a followed metric will not be there.
        RuleInferenceError: If ``"auto"`` chooses a metric whose name does not tell its rule.
        Exception: Whatever the model, the metrics or the loader raise.
    """
    if dataloader is None:
        return
    evaluator = evaluation.evaluator
    if not section.team.alone:
        check_metrics(evaluator)
    preparation = own_preparation(evaluator)
    if preparation is not None:
        logger.info(
            "%s: no trial batch before training, since the evaluator prepares itself: %s",
            follower.name, preparation,
        )  # fmt: skip
        return
    if has_lazy_tensors(evaluation.modules):
        logger.info(
            "%s: no trial batch before training, since the model has lazy modules, which take "
            "their shapes from training's first batch", follower.name,
        )  # fmt: skip
        return
    with _noted(follower.name):
        _try_batch(evaluation, dataloader, follower, more_metrics, section)


@contextmanager
def _noted(name: str) -> Iterator[None]:
    """Say of an error that nothing is evaluated yet."""
    try:
        yield
    except Exception as error:
        add_note(
            error,
            f"This came in the trial batch, by which the hook {name!r} finds mistakes before the "
            "first step of training; preflight=False leaves it out.",
        )
        raise


def _try_batch(
    evaluation: Evaluation,
    dataloader: Iterable[Any],
    follower: Follower,
    more_metrics: Iterable[str],
    section: Section,
) -> None:
    wanted = [*(t.metric for t in follower.targets), *more_metrics]
    metric_names = attached_metrics(evaluation.evaluator)
    unsure = evaluation.compute_metrics is not None or has_unknown_handlers(evaluation.evaluator)
    sure = [*metric_names, *evaluation.derive]
    team = section.team
    with evaluation.session(dataloader, section), grad_mode(evaluation.evaluator):
        batches = plan_batches(
            dataloader,
            min(team.size, evaluation.limit_batches or team.size),
            turn=turn_of(section),
            shard=evaluation.shard,
        )
        try:
            batch = next(iter(batches), _NONE)
        finally:
            batches.close()
        have = section.meet("trial batch", batch is not _NONE, list)
        if not any(have):
            raise EvaluationError("the evaluation data is empty: no batch came, on no rank")
        # Where a forward pass needs all ranks, those that have a batch would wait for the others.
        if batch is _NONE or (not all(have) and is_sharded(evaluation.modules)):
            return
        # The names inside a mapping are known only when a metric has computed, which costs
        # time; so that is done only where the answer depends on it.
        found = probe(evaluation.evaluator, batch, compute=False)
        missing = [n for n in wanted if n not in sure and look_up(to_record(found), n) is MISSING]
        auto = follower.followed.auto and not follower.targets and not unsure
        if (missing and not unsure) or auto:
            found = probe(evaluation.evaluator, batch, compute=True)
            unsure = any(name in found and found[name] is None for name in metric_names)
    results = to_record(found)
    names = [*flat(results), *(name for name in sure if name not in found)]
    for name in missing:
        is_inside = any(name.startswith(f"{other}/") for other in evaluation.derive)
        if look_up(results, name) is MISSING and not unsure and not is_inside:
            raise ValueError(missing_words(name, names))
    if auto and not unsure:
        follower.followed.would_choose(results, found)  # raises where it cannot tell the rule
