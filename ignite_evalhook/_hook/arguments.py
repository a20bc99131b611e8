"""Check what a hook is given, before anything runs.

Each error says what was wrong, what we got, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

from ignite.handlers import EMAHandler
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from .._decide.rules import Rule
from .._decide.targets import AUTO
from .._evaluate.averaged import averaged_weights
from .._evaluate.evaluation import parameters_of
from .._files.best_checkpoint import check_n_saved

__all__: list[str] = []


FOREIGN = {
    "monitor": "save_best=",
    "key_indicator": "save_best=",
    "mode": "rule=",
    "dirpath": "out_dir=",
    "output_dir": "out_dir=",
    "work_dir": "out_dir=",
    "save_top_k": "n_saved=",
    "patience": "hook.early_stopping(patience)",
    "metrics": "create_evaluator(metrics=)",
    "loss_fn": "create_evaluator(loss_fn=)",
    "device": "create_evaluator(device=)",
    "eval_steps": "interval= (by_epoch=False counts iterations)",
    "val_interval": "interval=",
    "test_fn": "create_mmcv_evaluator(test_fn=)",
    "compute_on": "compute_metrics= alone: it runs on rank 0, on the predictions of all ranks, and "
    "metrics of Ignite and torchmetrics in it compute without the other ranks",
}


def check_eval_kwargs(
    compute_metrics: Callable[..., Any] | None,
    eval_kwargs: Mapping[str, Any],
    own_names: Iterable[str],
) -> None:
    """Refuse keywords that are neither the hook's nor ``compute_metrics``'.

    Raises:
        TypeError: Naming the keyword and what the user most likely wants.
    """
    nothing: set[str] = set()
    named, takes_any = (
        (nothing, False) if compute_metrics is None else parameters_of(compute_metrics)
    )
    for name in eval_kwargs:
        if name in named:
            continue
        if name in FOREIGN:
            raise TypeError(f"EvalHook has no argument {name!r}; use {FOREIGN[name]}")
        close = difflib.get_close_matches(name, own_names, n=1, cutoff=0.75)
        if close:
            raise TypeError(f"EvalHook has no argument {name!r}; did you mean {close[0]}=?")
        if not takes_any:
            if compute_metrics is None:
                raise TypeError(
                    f"EvalHook has no argument {name!r}, and there is no compute_metrics (nor a "
                    "dataset with evaluate()) that could take it"
                )
            raise TypeError(
                f"neither EvalHook nor compute_metrics has an argument {name!r}; compute_metrics "
                f"takes {sorted(named)}"
            )
    if compute_metrics is not None:
        _check_call(compute_metrics, eval_kwargs)


def _check_call(compute_metrics: Callable[..., Any], eval_kwargs: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(compute_metrics)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    kwargs = dict(eval_kwargs)
    if "logger" in parameters_of(compute_metrics)[0]:
        kwargs.setdefault("logger", None)
    try:
        signature.bind([], **kwargs)
    except TypeError as error:
        raise TypeError(
            f"compute_metrics({', '.join(signature.parameters)}) cannot be called with the "
            f"results and the keywords {list(eval_kwargs)} of EvalHook: {error}"
        ) from error


def check_save_best(save_best: object, n_saved: int | None) -> dict[str, int | None] | None:
    """Return metric name to number of files; ``{"auto": n}`` for the automatic choice.

    Raises:
        TypeError: If it is neither a name, a list of names, nor a mapping name -> number.
        ValueError: If a list or mapping is empty, or names a metric twice.
    """
    check_n_saved(n_saved)
    if save_best is None:
        return None
    if isinstance(save_best, str):
        names: dict[str, int | None] = {save_best: n_saved}
    elif isinstance(save_best, Mapping):
        names = dict(save_best)
        for number in names.values():
            check_n_saved(number)
    elif isinstance(save_best, Sequence):
        if not all(isinstance(name, str) for name in save_best):
            raise ValueError(f"save_best must name at least one metric, got {save_best!r}")
        names = dict.fromkeys(save_best, n_saved)
        if len(names) != len(save_best):
            raise ValueError(f"save_best names a metric twice: {list(save_best)}")
    else:
        raise TypeError(
            "save_best must be a metric name, a list of names, a mapping name -> files to keep, "
            f"'auto' or None, got {save_best!r}"
        )
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"save_best must name at least one metric, got {save_best!r}")
    if AUTO in names and len(names) > 1:
        raise ValueError("save_best='auto' chooses one metric; it cannot be in a list of names")
    return names


def check_rules(
    rule: str | Mapping[str, str] | Sequence[str | None] | None, metrics: Sequence[str]
) -> str | Mapping[str, str] | None:
    """Return one rule for all metrics, or a mapping; a list is in the order of ``metrics``.

    Raises:
        ValueError: If a rule is none, or a list has neither one nor as many as the metrics.
    """
    if isinstance(rule, (list, tuple)):
        if len(rule) not in (1, len(metrics)):
            raise ValueError(
                f"rule must have one item for each metric of save_best {list(metrics)}, or one for "
                f"all of them, got {list(rule)}"
            )
        rule = cast("Any", rule[0] if len(rule) == 1 else dict(zip(metrics, rule, strict=True)))
    for one in rule.values() if isinstance(rule, Mapping) else [rule]:
        if one is not None:
            Rule(one)
    return cast("str | Mapping[str, str] | None", rule)


def check_dataloader(dataloader: object) -> None:
    """Refuse what cannot be gone through again and again.

    Raises:
        TypeError: If it is no iterable, or an iterator that is used up by one pass.
    """
    if dataloader is None:
        return
    if isinstance(dataloader, (str, bytes, Mapping)):
        raise TypeError(
            f"dataloader must be one DataLoader or re-iterable of batches, got {dataloader!r:.80}; "
            "several loaders need one hook each, with its own name="
        )
    if isinstance(dataloader, Dataset) and not isinstance(dataloader, IterableDataset):
        raise TypeError(
            f"dataloader must give batches, got the dataset {type(dataloader).__name__}; wrap it: "
            "DataLoader(dataset, batch_size=…)"
        )
    if not hasattr(dataloader, "__iter__"):
        if not hasattr(dataloader, "__getitem__"):
            raise TypeError(
                "dataloader must be a DataLoader or a re-iterable of batches (or None with a "
                f"function as evaluator), got {type(dataloader).__name__}"
            )
    elif hasattr(dataloader, "__next__"):
        raise TypeError(
            f"dataloader must be re-iterable: a {type(dataloader).__name__} is used up by the "
            "first evaluation; pass a DataLoader or a list of batches"
        )


def modules_of(model: object, argument: str = "model") -> list[nn.Module]:
    """Return the modules in a module or a mapping of modules.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, Mapping) and model:
        modules = list(model.values())
        if all(isinstance(module, nn.Module) for module in modules):
            return modules
    raise TypeError(
        f"{argument} must be a torch.nn.Module or a mapping of names to modules, got {model!r}"
    )


def check_functions(**functions: object) -> None:
    """Refuse anything that cannot be called.

    Raises:
        TypeError: Naming the argument.
    """
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")


def as_context(context: Any) -> Callable[[], AbstractContextManager[Any]] | None:
    """Return the function whose context manager evaluations happen in.

    Of Ignite's ``EMAHandler`` it is one in which the model has the averaged weights.

    Raises:
        TypeError: If it is no function, but a context manager itself, say.
    """
    if isinstance(context, EMAHandler):
        return partial(averaged_weights, context)
    if hasattr(context, "__enter__") and not isinstance(context, type):
        raise TypeError(
            "context must be a function that returns a context manager, got the context manager "
            f"{type(context).__name__} itself, which may work only once; pass context=lambda: …"
        )
    check_functions(context=context)
    return cast("Callable[[], AbstractContextManager[Any]] | None", context)


def check_without_data(**given: object) -> None:
    """Refuse arguments about batches where a function evaluates.

    Raises:
        ValueError: Naming the argument.
    """
    for argument, value in given.items():
        if value is not None and value is not False:
            raise ValueError(
                f"{argument}= is about the batches of a dataloader, and dataloader is None; let "
                "the evaluator function do that"
            )


def check_choice(argument: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is none of those allowed.

    Raises:
        ValueError: Naming all of them.
    """
    if not any(value is choice or (value == choice and type(value) is type(choice))
               for choice in allowed):  # fmt: skip
        raise ValueError(f"{argument} must be one of {list(allowed)}, got {value!r}")


def check_count(argument: str, value: object) -> None:
    """Refuse a count that is no positive integer (``None`` is fine).

    Raises:
        ValueError: Naming the argument.
    """
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{argument} must be a positive integer or None, got {value!r}")
