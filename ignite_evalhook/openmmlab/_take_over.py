"""Let a hook go on where an old run of MMCV or MMEngine stands: its best is the one to beat."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from .._decide.best import Best
from .._decide.history import EvalRecord, History
from .._decide.kept import Kept, Sidecar
from .._decide.position import START
from .._files.best_checkpoint import BestCheckpoint
from .._files.best_files import BestFiles, saver
from .._files.storage import Storage
from .._hook.hook import EvalHook
from .._log import logger
from .._ranks.sharded_models import unwrap
from .._ranks.team import Team
from ._old_run import OldRun, load_old, read_old_run

__all__ = ["take_over"]

Convert = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def take_over(
    hook: EvalHook,
    checkpoint: str | PathLike[str] | Mapping[str, Any],
    *,
    convert: Convert | None = None,
) -> OldRun:
    """Let ``hook`` go on where an old run stands; on every rank.

    The old best becomes the hook's: nothing worse is saved.  Where its file is still there and
    the hook saves one module, the weights in it are written to the hook's folder as its best;
    the old files stay as they are.  Load the last weights yourself, and tell the trainer where it
    stands::

        run = take_over(hook, "work_dirs/run/latest.pth")
        trainer.load_state_dict(
            {"iteration": run.iteration, "epoch_length": len(loader), "max_epochs": 24}
        )

    A run that ``hook.keep_last`` has resumed was taken over already: do it for a fresh one only.

    Args:
        hook: Before or after ``attach``, and before the run.
        checkpoint: The last checkpoint of the old run, a file of MMCV 1.x or MMEngine, or what
            it holds, loaded.
        convert: ``convert(state_dict) -> state_dict`` renames the old weights, where the model
            has other names now.

    Raises:
        CheckpointError: If a file cannot be read or written.
        ValueError: If the hook has a history already, if the old run followed none of the hook's
            metrics, or if the weights do not fit the model.
    """
    with Team.current("take_over").together("take_over") as section:
        if hook.history:
            raise ValueError(
                f"the hook {hook.name!r} has a history of {len(hook.history)} records already; "
                "take an old run over before the first evaluation, into a fresh hook"
            )
        # The old files are rank 0's business; the others may not even see them.
        run, state = section.meet("old run", None, lambda said: _take(hook, checkpoint, convert))
    hook.load_state_dict(state)
    return run  # type: ignore[no-any-return]  # a meeting tells what _take returned


def _take(
    hook: EvalHook, checkpoint: str | PathLike[str] | Mapping[str, Any], convert: Convert | None
) -> tuple[OldRun, dict[str, Any]]:
    run = read_old_run(checkpoint)
    return run, _state(hook, run, _of_hook(hook, run), convert)


def _of_hook(hook: EvalHook, run: OldRun) -> dict[str, Best]:
    """Return the old bests by the names that the hook has for the metrics.

    Raises:
        ValueError: If none of them is followed.
    """
    follower = hook._plan.follower
    wanted = [target.metric for target in follower.targets]
    if not run.bests or not follower.wanted:
        return {}
    if not wanted:  # "auto", not resolved yet
        first = run.bests[0]
        if not first.metric:
            raise ValueError(
                "the old checkpoint does not say which metric its best is of, and neither does "
                "save_best='auto'; name it: save_best='…'"
            )
        return {first.metric: first}
    told = {_spelled(best.metric): best for best in run.bests}
    found = {name: told[_spelled(name)] for name in wanted if _spelled(name) in told}
    if not found and [best.metric for best in run.bests] == [""]:
        found = {wanted[0]: run.bests[0]}
    if not found:
        raise ValueError(
            f"the old run followed {[best.metric for best in run.bests]}, the hook follows "
            f"{wanted}; name the same metric in save_best=, or do not take over its best"
        )
    return found


def _spelled(metric: str) -> str:
    """Return a name as file names spell it, in which MMEngine's slash is an underscore."""
    return re.sub(r"[^\w.@+-]", "_", metric)


def _state(
    hook: EvalHook, run: OldRun, bests: Mapping[str, Best], convert: Convert | None
) -> dict[str, Any]:
    """Return the state of a hook that has seen the old run; write its best files."""
    rules = {metric: hook._make_target(metric, 1).rule.value for metric in bests}
    kept = {}
    for metric, best in bests.items():
        entry = _write(hook, metric, best, convert)
        if entry is not None:
            kept[metric] = [entry.to_dict()]
    state = hook.state_dict()
    follower = state["follower"]
    follower["targets"] = follower["targets"] or [[m, rule] for m, rule in rules.items()]
    follower["leaders"] = {m: [b.score, b.epoch, b.iteration] for m, b in bests.items()}
    follower["kept"] = {**follower["kept"], **kept}
    return {
        **state,
        "epoch": run.epoch,
        "iteration": run.iteration,
        "into": None,  # the epoch is what Ignite makes of the iterations
        "history": _history(bests).to_list(),
    }


def _history(bests: Mapping[str, Best]) -> History:
    """Return records that say what is known: at which step each best was found."""
    history = History()
    for at in sorted({best.iteration for best in bests.values()}):
        here = {metric: best for metric, best in bests.items() if best.iteration == at}
        epoch = next(iter(here.values())).epoch
        metrics = {metric: best.score for metric, best in here.items()}
        history.append(EvalRecord(epoch, at, metrics, tuple(here), True))
    return history


def _write(hook: EvalHook, metric: str, best: Best, convert: Convert | None) -> Kept | None:
    """Write the old best's weights as a best file of the hook; return its entry, if there is one.

    Raises:
        ValueError: If the weights do not fit.
    """
    plan = hook._plan
    checkpoint, storage = plan.follower.keeper.checkpoint, plan.follower.storage
    if checkpoint is None or storage is None:
        return None
    modules = {n: item for n, item in checkpoint.to_save.items() if isinstance(item, nn.Module)}
    there = best.path is not None and os.path.isfile(best.path)
    if best.path is None or not there or len(modules) != 1:
        why = "to_save has not just one module" if there else f"its file is not there: {best.path}"
        logger.warning(
            "%s: the old best %s, %.6g, is the one to beat, but there is no best to load before "
            "it is beaten, since %s", hook.name, metric, best.score, why,
        )  # fmt: skip
        return None
    ((name, module),) = modules.items()
    content = load_old(best.path)
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping):
        raise ValueError(f"{best.path} holds a {type(weights).__name__}, not weights by name")
    weights = dict(weights if convert is None else convert(weights))
    _check_fits(weights, unwrap(module), best)
    file = _file_name(hook, checkpoint, storage, best, metric)
    storage.write(file, saver({name: weights}, "to_save"))
    entry = Kept(best.score, best.epoch, best.iteration, file)
    return entry.with_fingerprint(storage.fingerprint(file))


def _check_fits(weights: Mapping[str, Any], module: nn.Module, best: Best) -> None:
    """Refuse weights that the model could not load.

    Raises:
        ValueError: Naming some of those that do not fit.
    """
    own = module.state_dict()
    wrong = [f"the model has no {name!r}" for name in weights if name not in own]
    wrong += [f"the old file has no {name!r}" for name in own if name not in weights]
    wrong += [
        f"{name!r} is {_shape(weights[name])} in the old file, {_shape(own[name])} now"
        for name in own
        if name in weights and _shape(weights[name]) != _shape(own[name])
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"the weights in {best.path} do not fit the model: {'; '.join(wrong[:3])}{more}; "
            "pass convert= to rename them"
        )


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _file_name(
    hook: EvalHook, checkpoint: BestCheckpoint, storage: Storage, best: Best, metric: str
) -> str:
    """Return the name that the hook itself would have given the file."""
    target = hook._make_target(metric, 1)
    targets = hook._plan.follower.targets or (target,)
    files = BestFiles(storage, Sidecar(hook.name, "", targets), None)
    twin = checkpoint.for_another()
    twin.bind(target, files, lambda engine: best.score, lambda engine: START)
    step = best.epoch if hook._plan.schedule.counts_epochs else best.iteration
    return twin._filename(best.score, step)
