"""Evaluate models of MMCV 1.x: :func:`create_mmcv_evaluator`.

Such a model is called as ``model(return_loss=False, **batch)`` and returns a list with one item per
image.  MMCV is not imported: its ``DataContainer`` is recognised by its shape.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from .._evaluate.evaluation import parameters_of
from .._evaluate.evaluator import create_evaluator
from .._evaluate.loader import Batches
from .._evaluate.val_loss import ValLoss, count_samples
from .._ranks.sharded_models import unwrap

__all__ = ["create_mmcv_evaluator"]

TestFn = Callable[[Any, Any], list[Any]]
LossFn = Callable[[nn.Module, Mapping[str, Any]], Any]


def create_mmcv_evaluator(
    model: nn.Module,
    *,
    metrics: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    test_fn: TestFn | None = None,
    loss: LossFn | bool | None = None,
    **forward_kwargs: Any,
) -> Engine:
    """Create an engine that evaluates a model of MMCV 1.x batch by batch.

    A batch is a mapping, and the model is called as ``model(return_loss=False, **batch)``.  The
    output is a list with one item per sample, for ``dataset.evaluate``, which ``EvalHook`` calls.

    Where the model returns one mapping per batch (MMPose), each sample gets a mapping of its own
    that keeps the axis of the batch: what the model would return for this sample alone.  Entries
    without a row or an item per sample stay whole.

    Args:
        model: The model.  Wrappers for data parallelism are taken off.
        metrics: Name to metric of Ignite or ``torchmetrics``, attached in this order; what they
            are updated with is the list.  The ``metrics=[...]`` of a dataset belong to
            ``EvalHook``.
        device: Where batches go.  ``None``: where the model's first parameter is.
        test_fn: ``test_fn(model, data_loader) -> list`` calls the model in place of all that, such
            as a project's own ``single_gpu_test``.  It is called once for each batch, with a
            loader of this batch, which has ``dataset`` and ``batch_sampler`` where the data is a
            ``DataLoader``; the model is wrapped as in ``MMDataParallel``.  The check of one batch
            before training leaves it out.
        loss: Validation loss: ``True`` for the model's own ``model(return_loss=True, **batch)``,
            in eval mode; or ``loss(model, batch)``, with the batch as the model gets it, which
            returns a scalar, a tensor ``(samples, ...)``, a mapping of losses, or a ``ValLoss``.
        **forward_kwargs: Passed to every ``model(return_loss=False, ...)``: ``rescale=True``, say.

    Returns:
        An engine; ``engine.model`` is the unwrapped model.

    Raises:
        TypeError: If an argument is of the wrong kind, or the model cannot be called so.
        ValueError: If ``test_fn`` gathers from processes by itself, or is combined with arguments
            for a model that it calls by itself.

    Source:
        The way of calling is that of ``single_gpu_test`` in MMCV 1.x; the code is our own.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    bare = unwrap(model)
    _check_metrics(metrics)
    if loss is not None and not isinstance(loss, bool) and not callable(loss):
        raise TypeError(
            f"loss must be True, a function (model, batch) -> loss, or None, got {loss!r}"
        )
    if test_fn is None or loss is True:
        _check_forward(bare, forward_kwargs)
    if test_fn is not None:
        _check_test_fn(test_fn, forward_kwargs, metrics)
    if "return_loss" in forward_kwargs:
        raise TypeError("return_loss is set by create_mmcv_evaluator; for a loss pass loss=True")
    place = _Place(bare, device)

    def predict(engine: Engine, batch: Mapping[str, Any], ready: Mapping[str, Any]) -> list[Any]:
        found = bare(return_loss=False, **ready, **forward_kwargs)
        if isinstance(found, Mapping):
            return _one_each(found, _count(_pass_of(engine), ready))
        return _as_list(found)

    def test(engine: Engine, batch: Mapping[str, Any], ready: Mapping[str, Any]) -> list[Any]:
        batches = _pass_of(engine)
        if batches is None:
            return []  # the check before training, where the dataset is not known
        found = test_fn(_Placed(bare, place), _OneBatch(batch, batches))  # type: ignore[misc]
        if not isinstance(found, list):
            raise TypeError(
                f"test_fn must return a list of results, got {_describe(found)}; MMCV's test "
                "functions for one process do"
            )
        if len(found) == 1 and isinstance(found[0], Mapping):
            return _one_each(found[0], _count(batches, ready))
        return found

    get_results = predict if test_fn is None else test

    def step(engine: Engine, batch: Any) -> list[Any]:
        if not isinstance(batch, Mapping):
            raise TypeError(
                "create_mmcv_evaluator expects a batch that is a mapping, for model(return_loss="
                f"False, **batch); got {_describe(batch)}; for batches (x, y) use create_evaluator"
            )
        ready = place.put(dict(batch))
        results = get_results(engine, batch, ready)
        if results and count_samples(results, batch) != len(results):
            raise TypeError(
                f"the model returned {len(results)} tensors, which look like columns of "
                f"{count_samples(results, batch)} samples beside this batch; return NumPy arrays, "
                "or let another entry of the batch hold one tensor row per sample"
            )
        if loss is None or loss is False:
            return results
        return [*results, _val_loss(loss, bare, ready)]

    return create_evaluator(bare, metrics, step=step)


# -- what is checked at construction --------------------------------------------------------------


def _check_metrics(metrics: object) -> None:
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            "metrics must map names to metrics of Ignite or torchmetrics, got "
            f"{metrics!r}; what dataset.evaluate takes belongs to the hook: "
            "EvalHook(loader, evaluator, metrics=[...])"
        )


def _check_forward(model: nn.Module, kwargs: Mapping[str, Any]) -> None:
    """Refuse a model that cannot be called in MMCV's way."""
    named, takes_any = parameters_of(model.forward)
    if takes_any:
        return
    parameters = ", ".join(inspect.signature(model.forward).parameters)
    who = f"{type(model).__name__}.forward({parameters})"
    if "return_loss" not in named:
        raise TypeError(
            f"{who} takes no return_loss=, so this is no model of MMCV 1.x; use create_evaluator, "
            "with step= if the batches are mappings"
        )
    for name in kwargs:
        if name not in named:
            close = difflib.get_close_matches(name, named, n=1, cutoff=0.75)
            hint = f"did you mean {close[0]}=?" if close else f"it takes {sorted(named)}"
            raise TypeError(
                f"neither create_mmcv_evaluator nor {who} has an argument {name!r}; {hint}"
            )


def _check_test_fn(test_fn: object, kwargs: Mapping[str, Any], metrics: object) -> None:
    if not callable(test_fn):
        raise TypeError(
            f"test_fn must be a function (model, data_loader) -> list, got {type(test_fn).__name__}"
        )
    named, _ = parameters_of(test_fn)
    gathers = sorted(named & {"tmpdir", "gpu_collect"})
    if gathers:
        raise ValueError(
            f"test_fn has a parameter {gathers[0]!r}, so it gathers from the processes by itself, "
            "as multi_gpu_test does; pass the single-process one (single_gpu_test): EvalHook deals "
            "the batches out and gathers, with its own tmpdir= and gpu_collect="
        )
    if kwargs:
        raise ValueError(
            f"test_fn calls the model by itself, so it would never see {list(kwargs)}; bind them: "
            "functools.partial(test_fn, ...)"
        )
    if metrics is not None:
        raise ValueError(
            "metrics= and test_fn= do not go together; let dataset.evaluate or compute_metrics= of "
            "EvalHook compute on what test_fn returns"
        )
    try:
        signature = inspect.signature(test_fn)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"test_fn{signature} cannot be called as test_fn(model, data_loader): {error}"
        ) from error


# -- from a loader's batch to what the model gets -------------------------------------------------


class _Place:
    """Where batches go: to a device that is given, or to that of a model."""

    def __init__(self, model: nn.Module, device: str | torch.device | None) -> None:
        self._model = model
        self._device = None if device is None else torch.device(device)

    def put(self, batch: Any) -> Any:
        """Move all tensors of a batch, and take what is in a ``DataContainer`` out of it."""
        if self._device is not None:
            return _move(batch, self._device)
        parameter = next(self._model.parameters(), None)  # it may have moved since
        return _move(batch, torch.device("cpu") if parameter is None else parameter.device)


def _move(item: Any, device: torch.device) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, tuple) and hasattr(item, "_make"):  # a named tuple
        return type(item)._make(_move(part, device) for part in item)
    if type(item) in (list, tuple):
        return type(item)(_move(part, device) for part in item)
    if isinstance(item, dict):
        moved = copy.copy(item)
        moved.update((key, _move(part, device)) for key, part in item.items())
        return moved
    if _is_container(item):
        chunk = _only_chunk(item)
        return chunk if item.cpu_only else _move(chunk, device)
    return item


def _is_container(item: object) -> bool:
    """Return whether ``item`` is MMCV's ``DataContainer``."""
    named = any(kind.__name__ == "DataContainer" for kind in type(item).__mro__)
    return named and all(hasattr(item, name) for name in ("data", "stack", "cpu_only"))


def _only_chunk(container: Any) -> Any:
    """Return what a collated container holds for this process.

    Raises:
        ValueError: If it was collated for several devices, or not at all.
    """
    chunks = container.data
    if isinstance(chunks, list) and len(chunks) == 1:
        return chunks[0]
    if isinstance(chunks, list):
        got = f"one of {len(chunks)} chunks, as for {len(chunks)} devices"
    else:
        got = f"one of a {type(chunks).__name__}, as before collate"
    raise ValueError(
        f"a DataContainer must hold one chunk for this process, got {got}; give the loader "
        "collate_fn=partial(collate, samples_per_gpu=batch_size)"
    )


# -- from what the model returns to one item per sample -------------------------------------------


def _as_list(found: Any) -> list[Any]:
    """Return what a model returned for a batch, as MMCV's ``results.extend(found)`` adds it."""
    if isinstance(found, list):
        return found
    if isinstance(found, tuple):
        return list(found)
    shape = getattr(found, "shape", None)
    if isinstance(shape, tuple) and shape:  # a tensor or an array: its rows
        return list(found)
    raise TypeError(
        "model(return_loss=False, **batch) must return a list with one item per sample, rows of a "
        f"tensor or an array, or one mapping per batch; got {_describe(found)}"
    )


def _count(batches: Batches | None, batch: Mapping[str, Any]) -> int | None:
    """Return the number of samples of a batch: by their indices, if these are known."""
    indices = None if batches is None else batches.see_indices()
    return count_samples(None, batch) if indices is None else len(indices)


def _one_each(found: Mapping[str, Any], count: int | None) -> list[Any]:
    """Split the results of a batch into those that its samples would have one by one."""
    if count == 1:
        return [found]
    if count is None or not any(_has_rows(value, count) for value in found.values()):
        samples = "an unknown number of" if count is None else count
        raise TypeError(
            f"the model returned {_describe(found)} for a batch of {samples} samples, which tells "
            "nothing of each; return a list with one item per sample, or use batch size 1"
        )
    return [_sample(found, index, count) for index in range(count)]


def _sample(value: Any, index: int, count: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _sample(part, index, count) for key, part in value.items()}
    return value[index : index + 1] if _has_rows(value, count) else value


def _has_rows(value: Any, count: int) -> bool:
    if isinstance(value, Mapping):
        return any(_has_rows(part, count) for part in value.values())
    if isinstance(value, (list, tuple)):
        return len(value) == count
    shape = getattr(value, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 0 and shape[0] == count


def _val_loss(loss: LossFn | bool, model: nn.Module, batch: Mapping[str, Any]) -> ValLoss:
    found = loss(model, batch) if callable(loss) else model(return_loss=True, **batch)
    if isinstance(found, ValLoss):
        return found
    if isinstance(found, Mapping):  # MMClassification nests its accuracies
        found = dict(_flat(found))
    return ValLoss(found)


def _flat(losses: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in losses.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


# -- what a test function is called with ----------------------------------------------------------


class _Placed(nn.Module):
    """A model that puts what it is called with where it is, as ``MMDataParallel`` does.

    It has the model as ``module``, and the model's own attributes besides.
    """

    def __init__(self, module: nn.Module, place: _Place) -> None:
        super().__init__()
        self.module = module
        self._place = place
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.module(*self._place.put(args), **self._place.put(kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class _OneBatch:
    """A loader of a single batch, which is that of a loader with more.

    Attributes:
        dataset: The dataset of that loader, if it has one.
        batch_sampler: The dataset indices of this batch, in a list, if they are known.
    """

    dataset: Any
    batch_sampler: list[list[int]]

    def __init__(self, batch: Any, batches: Batches) -> None:
        self._batch = batch
        dataset = getattr(batches.data, "dataset", None)
        if dataset is not None:
            self.dataset = dataset
        indices = batches.see_indices()
        if indices is not None:
            self.batch_sampler = [indices]

    def __iter__(self) -> Iterator[Any]:
        yield self._batch

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"test_fn asks for data_loader.{name}, which the loader of one batch does not have; it "
            "has dataset and batch_sampler, if the hook evaluates a DataLoader for dataset.evaluate"
        )


def _pass_of(engine: Engine) -> Batches | None:
    """Return the pass under way; ``None`` if a single batch is tried outside of one."""
    batches = engine.state.dataloader
    if isinstance(batches, Batches) and batches._iterator is not None:
        return batches
    return None
