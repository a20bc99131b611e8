"""Work out what the arguments of a hook mean together: engine, modules, objects to save, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

from ignite.engine import Engine
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import nn

from .._evaluate.evaluation import method_of_dataset
from .._evaluate.evaluator import create_evaluator
from .._files.best_checkpoint import BestCheckpoint, check_to_save
from .._files.storage import Storage, open_storage
from .._predictions.collect import PreEval
from .arguments import check_functions, modules_of

__all__: list[str] = []

OutDir = str | PathLike[str] | BaseSaveHandler | bool | None
Function = Callable[[Engine | None], Mapping[str, Any]]


def as_engine(
    dataloader: Iterable[Any] | None, evaluator: Engine | nn.Module | Function
) -> tuple[Engine, Function | None]:
    """Return the engine that evaluates, and the function that does it if it is one.

    Raises:
        TypeError: If ``evaluator`` is none of what goes with ``dataloader``.
    """
    if dataloader is None:
        if isinstance(evaluator, (Engine, nn.Module)) or not callable(evaluator):
            raise TypeError(
                "without a dataloader, evaluator must be a function (trainer) -> mapping of "
                f"metrics, got {type(evaluator).__name__}"
            )
        return Engine(lambda engine, batch: None), evaluator
    if isinstance(evaluator, nn.Module):
        return create_evaluator(evaluator), None
    if isinstance(evaluator, Engine):
        return evaluator, None
    raise TypeError(
        "evaluator must be an ignite Engine or a torch.nn.Module (or, with dataloader=None, a "
        f"function), got {type(evaluator).__name__}"
    )


def objects_to_save(
    to_save: Mapping[str, Any] | None,
    model: nn.Module | Mapping[str, nn.Module] | None,
    engine: Engine,
    checkpoint: BestCheckpoint | None,
) -> Mapping[str, Any]:
    """Return what a best checkpoint holds: what was given, else the model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If two arguments say it.
    """
    if checkpoint is not None:
        if not isinstance(checkpoint, BestCheckpoint):
            raise TypeError(
                f"checkpoint must be a BestCheckpoint, got {type(checkpoint).__name__}; attach "
                "any other Ignite Checkpoint to EvalEvents.NEW_BEST"
            )
        if to_save is not None:
            raise ValueError("to_save= belongs into the BestCheckpoint; pass one of the two")
        return checkpoint.to_save
    if to_save is not None:
        check_to_save(to_save)
        return to_save
    if isinstance(model, Mapping):
        return dict(model)
    own = model if model is not None else getattr(engine, "model", None)
    return {"model": own} if isinstance(own, nn.Module) else {}


def modules_to_switch(
    model: nn.Module | Mapping[str, nn.Module] | None,
    engine: Engine,
    to_save: Mapping[str, Any],
) -> list[nn.Module]:
    """Return the modules to put into eval mode and back.

    Raises:
        TypeError: If ``model`` is neither a module nor a mapping of modules.
        ValueError: If nothing tells.
    """
    own = getattr(engine, "model", None)
    told = [own] if isinstance(own, nn.Module) else []
    if model is not None:
        # What is evaluated belongs to it in any case: an EMA model, say, beside the one trained.
        return list({id(module): module for module in (*modules_of(model), *told)}.values())
    if told:
        return told
    modules = [item for item in to_save.values() if isinstance(item, nn.Module)]
    if not modules:
        raise ValueError(
            "the evaluator does not tell its model, which has to be put into eval mode and back; "
            "pass model="
        )
    return modules


def where_files_go(
    out_dir: OutDir, checkpoint: BestCheckpoint | None, save_best: object
) -> Storage | BaseSaveHandler | None:
    """Return the place of the run's files.

    Raises:
        TypeError: If ``out_dir`` is of the wrong kind.
        ValueError: If the place is missing, or named twice.
    """
    if checkpoint is not None:
        if out_dir not in (None, False):
            raise ValueError("out_dir= and checkpoint= both say where files go; pass one")
        if save_best is None:
            raise ValueError("checkpoint= needs save_best='…', which says what is best")
        return checkpoint.saver.target
    if out_dir is None or out_dir is False:
        if save_best is not None and out_dir is None:
            raise ValueError(
                f"save_best={save_best!r} needs out_dir='…'; out_dir=False follows the best "
                "without files"
            )
        return None
    if isinstance(out_dir, BaseSaveHandler):
        return out_dir
    if out_dir is True or not isinstance(out_dir, (str, PathLike)):
        raise TypeError(
            f"out_dir must be a folder, a URL, a save handler or False, got {out_dir!r}"
        )
    return open_storage(out_dir)


def best_checkpoint(
    checkpoint: BestCheckpoint | None,
    where: Storage | BaseSaveHandler | None,
    to_save: Mapping[str, Any],
    n_saved: int | None,
) -> BestCheckpoint | None:
    """Return what writes best files, if anything does.

    Raises:
        ValueError: If there is nothing to save.
    """
    if checkpoint is not None or where is None:
        return checkpoint
    if not to_save:
        raise ValueError("there is nothing to save: pass to_save={'model': model}")
    out_dir = where if isinstance(where, BaseSaveHandler) else where.location
    return BestCheckpoint(to_save, out_dir, n_saved=n_saved)


def check_needs_save_best(save_best: object, **given: bool) -> None:
    """Refuse arguments about the best where nothing says what is best.

    Args:
        save_best: As for the hook.
        given: Whether each argument was given.

    Raises:
        ValueError: Naming the argument.
    """
    for argument, is_given in given.items():
        if is_given and save_best is None:
            hint = "; model= names what is put into eval mode" if argument == "to_save" else ""
            raise ValueError(f"{argument}= needs save_best='…', which says what is best{hint}")


def as_pre_eval(
    pre_eval: PreEval | bool | None, compute_metrics: object, dataloader: object
) -> PreEval | None:
    """Return the function that reduces a batch.

    Raises:
        TypeError: If it is no function.
        ValueError: If there is no ``compute_metrics`` to use it, or no ``dataset.pre_eval``.
    """
    if pre_eval is None or pre_eval is False:
        return None
    if compute_metrics is None:
        raise ValueError("pre_eval= reduces what compute_metrics gets; pass compute_metrics= too")
    if pre_eval is True:
        method = method_of_dataset(dataloader, "pre_eval")
        if method is None:
            raise ValueError("pre_eval=True needs a dataset with a method pre_eval")
        return method
    check_functions(pre_eval=pre_eval)
    return pre_eval


def check_lazy_results(lazy_results: bool, compute_metrics: object) -> bool:
    """Return ``lazy_results`` if somebody gets the results.

    Raises:
        ValueError: If there is no ``compute_metrics``.
    """
    if lazy_results and compute_metrics is None:
        raise ValueError(
            "lazy_results= is about what compute_metrics gets; pass compute_metrics= too"
        )
    return lazy_results


def check_derive(derive: object) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
    """Return ``derive`` if it maps names to functions; an empty mapping for ``None``.

    Raises:
        TypeError: If it does not.
    """
    if derive is None:
        return {}
    if not isinstance(derive, Mapping):
        raise TypeError(f"derive must map names to functions, got {derive!r}")
    for name, function in derive.items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(f"derive must map names to functions, got {name!r}: {function!r}")
    return dict(derive)
