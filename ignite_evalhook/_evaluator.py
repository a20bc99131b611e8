"""Make evaluators and run them once over the data.

:func:`create_evaluator` turns a model into an Ignite engine.  :func:`run_pass` runs any engine
over some batches from a clean state: it takes the validation loss off the outputs before a
metric sees them, completes the metrics before the engine fires ``COMPLETED``, and insists that
every batch was seen.  When to evaluate, and what follows from the result, is decided elsewhere.

Private names of Ignite are used in this file only, and only these:
``Engine._process_function`` (a validation loss can be taken off a ready engine's output only
around it), ``_internal_run_generator``, ``_dataloader_iter``, ``_init_iter`` (a run that raised
leaves them behind, and the next one would do nothing), ``_event_handlers`` (to list metrics) and
``_fire_event`` (to skip events that nobody listens to).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from ignite.engine import Engine, Events, State
from ignite.metrics import Metric
from torch import nn

from ._loading import Batches, plan_batches
from ._quiet import quiet
from ._val_loss import LossMeter, ValLoss, count_samples, split_val_loss
from .exceptions import EvaluationError

__all__ = ["create_evaluator"]

Step = Callable[[Engine, Any], Any]
PrepareBatch = Callable[..., tuple[Any, Any]]


class ModelEvaluator(Engine):
    """An engine made by :func:`create_evaluator`.

    Run by hand, ``evaluator.run(loader)`` evaluates once: model in eval mode, gradients off,
    the validation loss in ``state.metrics``; afterwards the model stands as it stood.
    """

    model: nn.Module

    def __init__(self, step: Step, model: nn.Module, *, inference_mode: bool) -> None:
        super().__init__(step)
        self.model = model
        self.inference_mode = inference_mode

    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
    ) -> State:
        """Evaluate ``data`` once.

        Args:
            data: A ``DataLoader`` or another iterable of batches.
            max_epochs: Nothing but ``None`` or 1: an evaluation sees the data once.
            max_iters: Batches to stop after; ``None`` for all.
            epoch_length: The same as ``max_iters``.

        Raises:
            ValueError: If ``data`` is missing or more than one epoch is asked for.
            EvaluationError: If ``data`` is empty or not every batch was seen.
        """
        if data is None:
            raise ValueError("an evaluator needs data: evaluator.run(loader)")
        if max_epochs not in (None, 1):
            raise ValueError(f"an evaluation runs over the data once, got max_epochs={max_epochs}")
        limit = max_iters if max_iters is not None else epoch_length
        with quiet([self.model], data), grad_mode(self):
            run_pass(self, plan_batches(data, limit))
        return self.state


def create_evaluator(
    model: nn.Module,
    metrics: Mapping[str, Metric] | None = None,
    *,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    device: str | torch.device | None = None,
    non_blocking: bool = True,
    prepare_batch: PrepareBatch | None = None,
    amp_dtype: torch.dtype | None = None,
    inference_mode: bool = False,
    step: Step | None = None,
) -> Engine:
    """Create an engine that evaluates ``model`` batch by batch.

    A batch is ``(x, y)`` and the output ``(y_pred, y)``, as in Ignite's
    ``create_supervised_evaluator``.  A model that has a method ``val_step(batch)`` (MMEngine's
    convention) is run through that instead.

    Args:
        model: The model.  Wrappers for data parallelism are taken off.
        metrics: Name to Ignite metric, attached in this order.
        loss_fn: ``loss_fn(y_pred, y)`` becomes the validation loss: a scalar (the mean of the
            batch), a tensor of shape ``(batch,)``, a mapping of losses, or a ``ValLoss``.
        device: Where batches go.  ``None``: where the model's first parameter is.
        non_blocking: Whether copies to the device may overlap with computation.
        prepare_batch: ``prepare_batch(batch, device=, non_blocking=) -> (x, y)``.
        amp_dtype: Run model and loss under autocast with this type, ``torch.bfloat16`` say.
        inference_mode: Use ``torch.inference_mode`` instead of ``torch.no_grad``.  Models that
            keep tensors of a forward pass for later break with it.
        step: ``step(engine, batch) -> output`` in place of all that.

    Returns:
        An engine; ``engine.model`` is the unwrapped model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``step`` is combined with an argument that it replaces.

    Source:
        The interface follows ``ignite.engine.create_supervised_evaluator``; ``val_step`` is
        MMEngine's.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, metric in (metrics or {}).items():
        if not isinstance(metric, Metric):
            raise TypeError(
                f"metrics[{name!r}] must be an ignite.metrics.Metric, got {type(metric).__name__}"
            )
    for argument, value in (("loss_fn", loss_fn), ("prepare_batch", prepare_batch), ("step", step)):
        if value is not None and not callable(value):
            raise TypeError(f"{argument} must be a function, got {type(value).__name__}")
    if amp_dtype is not None and not isinstance(amp_dtype, torch.dtype):
        raise TypeError(f"amp_dtype must be a torch.dtype, got {amp_dtype!r}")
    replaced = {"loss_fn": loss_fn, "prepare_batch": prepare_batch, "amp_dtype": amp_dtype,
                "device": device}  # fmt: skip
    given = [name for name, value in replaced.items() if value is not None]
    if step is not None and given:
        raise ValueError(f"step= replaces {', '.join(given)}; pass either step or those")
    bare = unwrap(model)
    if step is None:
        step = _make_step(bare, loss_fn, device, non_blocking, prepare_batch, amp_dtype)
    evaluator = ModelEvaluator(step, bare, inference_mode=inference_mode)
    for name, metric in (metrics or {}).items():
        metric.attach(evaluator, name)
    return evaluator


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside ``DistributedDataParallel`` or ``DataParallel``."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrap(model.module)
    return model


def _make_step(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Any] | None,
    device: str | torch.device | None,
    non_blocking: bool,
    prepare_batch: PrepareBatch | None,
    amp_dtype: torch.dtype | None,
) -> Step:
    val_step = getattr(model, "val_step", None)
    place, on_cpu = torch.device("cpu"), True

    def find_place() -> None:
        nonlocal place, on_cpu
        place = _device_of(model) if device is None else torch.device(device)
        on_cpu = place.type == "cpu"

    def prepare(batch: Any) -> tuple[Any, Any]:
        if prepare_batch is not None:
            return prepare_batch(batch, device=place, non_blocking=non_blocking)
        x, y = _unpack(batch)
        return _to_device(x, place, non_blocking), _to_device(y, place, non_blocking)

    def predict(engine: Engine, batch: Any) -> Any:
        if engine.state.iteration <= 1:
            find_place()  # once an evaluation, since the model may have moved
        plain = on_cpu and prepare_batch is None and type(batch) in (tuple, list)
        if plain and len(batch) == 2 and _on_cpu(batch[0]) and _on_cpu(batch[1]):
            x, y = batch  # nothing to move: the common case on a CPU
        else:
            x, y = prepare(batch)
        y_pred = model(x)
        if loss_fn is None:
            return y_pred, y
        loss = loss_fn(y_pred, y)
        return y_pred, y, loss if isinstance(loss, ValLoss) else ValLoss(loss)

    def run_val_step(engine: Engine, batch: Any) -> Any:
        return val_step(batch)  # type: ignore[misc]  # used only where it is callable

    by_itself = callable(val_step) and loss_fn is None and prepare_batch is None
    step = run_val_step if by_itself else predict
    if amp_dtype is None:
        return step

    def mixed(engine: Engine, batch: Any) -> Any:
        kind = (torch.device(device) if device is not None else _device_of(model)).type
        with torch.autocast(kind, dtype=amp_dtype):
            return step(engine, batch)

    return mixed


def _on_cpu(item: Any) -> bool:
    return type(item) is torch.Tensor and item.is_cpu


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _unpack(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch
    if isinstance(batch, Mapping):
        what = f"a {type(batch).__name__} with keys {list(batch)}"
    elif isinstance(batch, (tuple, list)):
        what = f"a {type(batch).__name__} of {len(batch)}"
    else:
        what = f"a {type(batch).__name__}"
    raise TypeError(f"create_evaluator expects (x, y); got {what}; pass step= or prepare_batch=")


def _to_device(batch: Any, device: torch.device, non_blocking: bool) -> Any:
    """Move every tensor of a nested structure; anything else stays as it is."""
    if isinstance(batch, torch.Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, (list, tuple)) and type(batch) in (list, tuple):
        return type(batch)(_to_device(item, device, non_blocking) for item in batch)
    if type(batch) is dict:
        return {key: _to_device(item, device, non_blocking) for key, item in batch.items()}
    return batch


def grad_mode(evaluator: Engine) -> AbstractContextManager[Any]:
    """Return the context that switches gradients off for an evaluation."""
    if getattr(evaluator, "inference_mode", False) is True:
        return torch.inference_mode()
    return torch.no_grad()


Collect = Callable[[Any, "int | None"], None]
Complete = Callable[[dict[str, Any]], None]


def run_pass(
    evaluator: Engine,
    batches: Batches,
    *,
    collect: Collect | None = None,
    complete: Complete | None = None,
    answer_only: bool = False,
) -> int | None:
    """Run ``evaluator`` over ``batches`` once, from a clean state.

    Args:
        evaluator: Any engine; run as ``Engine.run``, whatever its own ``run`` does.
        batches: One pass over the data.
        collect: Called with each output, without its loss, and its number of samples.
        complete: Called with ``state.metrics`` when Ignite's metrics and the validation loss
            are in it, and before the engine fires ``COMPLETED``.
        answer_only: Do not fire ``COMPLETED``: who listens there acts on the result.

    Returns:
        The number of samples, ``None`` if an output does not tell.

    Raises:
        EvaluationError: If a handler or a swallowed exception cut the run short, or the engine
            is in the middle of a run.
    """
    if getattr(evaluator._internal_run_generator, "gi_running", False):
        raise EvaluationError(
            "the evaluator is running already: one of its own handlers asked for an evaluation by "
            "it; ask after it has ended, in a handler of EvalEvents.EVAL_COMPLETED"
        )
    meter = LossMeter()
    samples: int | None = 0
    process = evaluator._process_function
    swallowed: list[BaseException] = []
    done = False

    def tapped(engine: Engine, batch: Any) -> Any:
        nonlocal samples
        batches.seen += 1
        output, loss = split_val_loss(process(engine, batch))
        count = count_samples(output, batch)
        if loss is not None:
            meter.update(loss, count)
        if samples is not None:
            samples = None if count is None else samples + count
        if collect is not None:
            collect(output, count)
        return output

    def finish(engine: Engine) -> None:
        # Added at the very end of the list of handlers that is being fired, so that metrics
        # attached later than the hook, even at STARTED, have computed by now.
        engine.add_event_handler(Events.EPOCH_COMPLETED, finish_last)

    def finish_last(engine: Engine) -> None:
        nonlocal done
        engine.remove_event_handler(finish_last, Events.EPOCH_COMPLETED)
        _check_complete(batches, swallowed)
        metrics = engine.state.metrics
        _add_losses(metrics, meter)
        if complete is not None:
            complete(metrics)
        done = True
        if answer_only:
            engine.terminate(skip_completed=True)

    def reraise(engine: Engine, error: BaseException) -> None:
        # Comes after the user's handlers: one that does not raise again would hide the error.
        swallowed.append(error)
        raise error

    reset(evaluator)
    evaluator._process_function = tapped
    try:
        with (
            _unfilmed(evaluator),
            evaluator.add_event_handler(Events.EPOCH_COMPLETED, finish),
            evaluator.add_event_handler(Events.EXCEPTION_RAISED, reraise),
        ):
            state = Engine.run(evaluator, batches, max_epochs=1, epoch_length=batches.length)
    finally:
        evaluator._process_function = process
        if evaluator.has_event_handler(finish_last, Events.EPOCH_COMPLETED):
            evaluator.remove_event_handler(finish_last, Events.EPOCH_COMPLETED)
        batches.close()
        complete = None  # finish_last() refers to itself; that must not keep predictions alive
        if not done:
            reset(evaluator)
    _check_complete(batches, swallowed)
    if state is None or not done:
        raise EvaluationError("the evaluator stopped before its metrics were complete")
    return samples


@contextmanager
def _unfilmed(engine: Engine) -> Iterator[None]:
    """Skip events that nobody listens to.

    Ignite formats a debug message for each, also with debugging off: more than half of what its
    loop costs a batch.  With debugging on, or in a class with its own way, nothing changes.
    """
    fire = engine._fire_event
    debugging = engine.logger.isEnabledFor(logging.DEBUG)
    if debugging or type(engine)._fire_event is not Engine._fire_event:
        yield
        return
    handlers = engine._event_handlers

    def fire_if_heard(event_name: Any, *args: Any, **kwargs: Any) -> None:
        if handlers.get(event_name):
            fire(event_name, *args, **kwargs)
        else:
            engine.last_event_name = event_name

    engine._fire_event = fire_if_heard  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine._fire_event


def reset(evaluator: Engine) -> None:
    """Forget what an earlier run, finished or broken, has left in the engine."""
    state = evaluator.state
    for name in ("max_epochs", "max_iters", "epoch_length"):
        if hasattr(state, name):
            setattr(state, name, None)
    state.iteration = state.epoch = 0
    state.metrics.clear()
    if evaluator._internal_run_generator is not None:
        evaluator._internal_run_generator.close()
    evaluator._internal_run_generator = None
    evaluator._dataloader_iter = None
    evaluator._init_iter = None
    evaluator.should_terminate = evaluator.should_terminate_single_epoch = False
    evaluator.should_interrupt = False


def _check_complete(batches: Batches, swallowed: list[BaseException]) -> None:
    if swallowed:
        raise swallowed[0]
    if not batches.exhausted:
        expected = "" if batches.length is None else f" of {batches.length}"
        raise EvaluationError(
            f"the evaluation was cut short after {batches.seen}{expected} batches, so it has no "
            "score; a handler of the evaluator called terminate() or interrupt()"
        )


def _add_losses(metrics: dict[str, Any], meter: LossMeter) -> None:
    for name, value in meter.compute().items():
        if name in metrics:
            raise EvaluationError(
                f"the model's validation loss has an entry {name!r}, and so have the evaluator's "
                "metrics; rename one of them"
            )
        metrics[name] = value


def attached_metrics(evaluator: Engine) -> dict[str, Metric]:
    """Return the Ignite metrics attached to an engine by name, in order of attaching."""
    found: dict[str, Metric] = {}
    for handlers in list(evaluator._event_handlers.values()):
        for handler, args, _ in handlers:
            owner = getattr(handler, "__self__", None)
            if isinstance(owner, Metric) and getattr(handler, "__name__", "") == "completed":
                found[args[-1]] = owner
    return found


def _metric_handlers(
    evaluator: Engine,
) -> list[tuple[Metric, Callable[..., None], tuple[Any, ...]]]:
    """Return the handlers of metrics up to the end of an iteration, as a run would call them.

    A metric made of others is updated through their handlers, not through its own.
    """
    events = (Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_STARTED,
              Events.ITERATION_COMPLETED)  # fmt: skip
    return [
        (handler.__self__, handler, args)
        for event in events
        for handler, args, _ in evaluator._event_handlers.get(event, ())
        if isinstance(getattr(handler, "__self__", None), Metric)
    ]


def has_unknown_handlers(evaluator: Engine) -> bool:
    """Return whether handlers that are neither Ignite's nor ours might add metrics."""
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED,
                  Events.EPOCH_COMPLETED):  # fmt: skip
        for handler, _, _ in evaluator._event_handlers.get(event, ()):
            owner = getattr(handler, "__self__", None)
            module = type(owner).__module__ if owner is not None else handler.__module__
            known = isinstance(owner, Metric) or module.split(".")[0] == "ignite"
            if not known:
                return True
    return False


def handler_owners(engine: Engine) -> list[object]:
    """Return the distinct objects whose methods are handlers of an engine."""
    owners = (
        getattr(handler, "__self__", None)
        for handlers in engine._event_handlers.values()
        for handler, _, _ in handlers
    )
    return list({id(owner): owner for owner in owners if owner is not None}.values())


def is_running(engine: Engine) -> bool:
    """Return whether an engine is in the middle of a run, interrupted or not."""
    run = engine._internal_run_generator
    return run is not None and getattr(run, "gi_frame", None) is not None


@contextmanager
def _state_kept(evaluator: Engine) -> Iterator[None]:
    state = evaluator.state
    kept = (state.epoch, state.iteration, state.output, state.batch)
    metrics = dict(state.metrics)
    try:
        yield
    finally:
        state.epoch, state.iteration, state.output, state.batch = kept
        state.metrics.clear()
        state.metrics.update(metrics)


def probe(evaluator: Engine, batch: Any, *, compute: bool) -> dict[str, Any]:
    """Put one batch through the process function and the metrics, firing no event.

    Args:
        evaluator: The engine.  Its metrics are reset, the rest of its state is kept.
        batch: One batch of the evaluation data.
        compute: Compute the metrics as well.  What one batch is too little for is ``None``.

    Returns:
        The validation loss and, if asked for, the metrics of this one batch.
    """
    meter = LossMeter()
    metrics = attached_metrics(evaluator)
    handlers = _metric_handlers(evaluator)
    with _state_kept(evaluator):
        evaluator.state.metrics.clear()
        evaluator.state.epoch = evaluator.state.iteration = 1  # as for a run's first batch
        evaluator.state.batch = batch
        output, loss = split_val_loss(evaluator._process_function(evaluator, batch))
        if loss is not None:
            meter.update(loss, count_samples(output, batch))
        evaluator.state.output = output
        try:
            for _, handler, args in handlers:
                if handler.__name__ != "completed":
                    handler(evaluator, *args[1:])
            if compute:
                for name, metric in metrics.items():
                    try:
                        metric.completed(evaluator, name)
                    except Exception:  # noqa: BLE001  # one batch may be too little; time will tell
                        evaluator.state.metrics[name] = None
        finally:
            for metric, _, _ in handlers:
                metric.reset()
        found = dict(evaluator.state.metrics)
        _add_losses(found, meter)
    return found
