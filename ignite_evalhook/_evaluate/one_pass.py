"""Run an engine once over some batches, and look inside it.

:func:`run_pass` runs any engine from a clean state: it takes the validation loss off the outputs
before a metric sees them, completes the metrics before the engine fires ``COMPLETED``, and insists
that every batch was seen.  When to evaluate, and what follows, is decided elsewhere.

Private names of Ignite's engine are used in this file (``_ranks.refused`` reads
``_event_handlers``, too), and only these: ``Engine._process_function`` (a validation loss can be
taken off a ready engine's output only around it), ``_internal_run_generator``,
``_dataloader_iter``, ``_init_iter`` (a run that raised leaves them behind, and the next one would
do nothing), ``_event_handlers`` (to list metrics) and ``_fire_event`` (to skip events that nobody
listens to, and to be there before the first handler of ``EPOCH_COMPLETED`` and after the last).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric

from .._log import say_once
from .._predictions.carriers import Carrier
from .._predictions.collect import ResultCollector
from .._ranks.asking import AskedMetrics
from .._ranks.offline import no_collectives, world_of_one
from .._ranks.refused import check_exact
from .._ranks.team import Section
from ..exceptions import EvaluationError
from .loader import Batches
from .pool import Pool
from .val_loss import LossMeter, count_samples, split_val_loss

__all__: list[str] = []


def grad_mode(evaluator: Engine) -> AbstractContextManager[Any]:
    """Return the context that switches gradients off for an evaluation."""
    if getattr(evaluator, "inference_mode", False) is True:
        return torch.inference_mode()
    return torch.no_grad()


Complete = Callable[[dict[str, Any]], None]

_COUNTS_DIFFER = (
    "an output has %d rows, but the loader put %d samples into the batch, and its mean loss counts "
    "by those; if it is a mean of anything else, return ValLoss(loss, weight=...)"
)
_IS_TOTAL = (
    "the loss %r is the sum of the other losses in every batch, so it is val_loss by itself; "
    "ValLoss(..., total=...) says so beforehand"
)


def run_pass(
    evaluator: Engine,
    batches: Batches,
    *,
    collector: ResultCollector | None = None,
    complete: Complete | None = None,
    answer_only: bool = False,
    section: Section | None = None,
    carrier: Carrier | None = None,
    lockstep: bool = False,
) -> int | None:
    """Run ``evaluator`` over ``batches`` once, from a clean state.

    Args:
        evaluator: Any engine; run as ``Engine.run``, whatever its own ``run`` does.
        batches: One pass over the data, or over this rank's share of it.
        collector: Gets each output, without its loss; afterwards, on rank 0, it has all.
        complete: Called with ``state.metrics`` when Ignite's metrics and the validation loss
            are in it, and before the engine fires ``COMPLETED``.
        answer_only: Do not fire ``COMPLETED``: who listens there acts on the result.
        section: What all ranks go through together; ``None``: this process is on its own.
        carrier: How predictions get to rank 0.
        lockstep: A forward pass needs all ranks, so they make as many of them: one that has
            run out of batches takes its last one again, or, if it had none, another rank's.

    Returns:
        The number of samples of all ranks, ``None`` if an output does not tell.

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
    pool: Pool | None = None
    if section is not None and not section.team.alone:
        check_metrics(evaluator)
        metrics = attached_metrics(evaluator)
        pool = Pool(section, metrics, batches, meter, collector, carrier or Carrier(), lockstep)
    samples: int | None = 0
    process = evaluator._process_function
    guard = ExitStack()
    swallowed: list[BaseException] = []
    done = False
    before_batch = None if pool is None else pool.before_batch

    def tapped(engine: Engine, batch: Any) -> Any:
        nonlocal samples
        number = None if before_batch is None else before_batch(batch)
        batches.seen += 1
        output, loss = split_val_loss(process(engine, batch))
        loaded, seen = batches.next_count(), count_samples(output, batch)
        count = seen if loaded is None else loaded
        if loss is not None:
            by_element = loaded is None and loss.elements is not None
            meter.update(loss, loss.elements if by_element else count)
            if count != seen and seen is not None and loss.counts_by_samples:
                say_once(evaluator, _COUNTS_DIFFER, seen, count)
        if samples is not None:
            samples = None if count is None else samples + count
        if collector is not None:
            collector.add(output, seen, batches.next_indices(), number)
        return output

    def meet() -> None:
        guard.close()
        _check_complete(batches, swallowed)
        if pool is not None:
            pool.keep_step(lambda batch: process(evaluator, batch))
            pool.meet(samples)

    def finish() -> None:
        nonlocal done
        guard.close()
        _check_complete(batches, swallowed)
        metrics = evaluator.state.metrics
        _add_losses(metrics, meter.compute() if pool is None else pool.losses)
        if meter.found_total is not None:
            say_once(evaluator, _IS_TOTAL, meter.found_total, level=logging.INFO)
        if complete is not None:
            complete(metrics)
        done = True
        if answer_only:
            evaluator.terminate(skip_completed=True)

    reset(evaluator)
    evaluator._process_function = tapped
    try:
        if pool is not None:
            guard.enter_context(no_collectives())
        with _attended(evaluator, None if pool is None else meet, finish, swallowed):
            length = batches.length or None  # a rank without a batch has an epoch without length
            state = Engine.run(evaluator, batches, max_epochs=1, epoch_length=length)
    finally:
        guard.close()
        if pool is not None:
            pool.close()
        evaluator._process_function = process
        batches.close()
        if not done:
            reset(evaluator)
    _check_complete(batches, swallowed)
    if state is None or not done:
        raise EvaluationError("the evaluator stopped before its metrics were complete")
    return samples if pool is None else pool.samples


@contextmanager
def _attended(
    engine: Engine,
    meet: Callable[[], None] | None,
    finish: Callable[[], None],
    swallowed: list[BaseException],
) -> Iterator[None]:
    """Be there when events are fired, and skip those that nobody listens to.

    Ignite formats a debug message for each, also with debugging off: more than half of what its
    loop costs a batch.  With debugging on, or in a class with its own way, none is skipped.

    No handler is added: Ignite looks at the signature of each, a tenth of a short evaluation, and
    others may be attached behind it meanwhile.

    Args:
        engine: The engine.
        meet: Called when all batches are done, before the first handler of ``EPOCH_COMPLETED``.
        finish: Called after the last one.  Metrics attached later than the hook, even at
            ``STARTED``, have computed by then.
        swallowed: Gets an exception that was raised in the run.  It is raised again after the
            user's handlers: one that does not do so would hide the error.
    """
    fire = engine._fire_event
    handlers = engine._event_handlers
    fires_all = _shows_all(engine)
    completed, raised = Events.EPOCH_COMPLETED, Events.EXCEPTION_RAISED

    def attend(event_name: Any, *args: Any, **kwargs: Any) -> None:
        if event_name is completed and meet is not None:
            meet()
        # By name, which an event equals: its own hash is a call of Python code.
        if fires_all or handlers.get(getattr(event_name, "_name_", event_name)):
            fire(event_name, *args, **kwargs)
        else:
            engine.last_event_name = event_name
        if event_name is completed:
            finish()
        elif event_name is raised:
            swallowed.append(args[0])
            raise args[0]

    engine._fire_event = attend  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine._fire_event


def fire(engine: Engine, event: Any) -> None:
    """Fire an event, as ``Engine.fire_event`` does, if anybody listens.

    Ignite first looks for it among all events there are, and formats a debug message.
    """
    if engine._event_handlers.get(event) or _shows_all(engine):
        engine.fire_event(event)


def _shows_all(engine: Engine) -> bool:
    """Return whether somebody may see events that nobody listens to: a log, or another class."""
    return (
        engine.logger.isEnabledFor(logging.DEBUG)
        or getattr(engine.fire_event, "__func__", None) is not Engine.fire_event
        or getattr(engine._fire_event, "__func__", None) is not Engine._fire_event
    )


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
    batches.check_length()


def _add_losses(metrics: dict[str, Any], losses: Mapping[str, float]) -> None:
    for name, value in losses.items():
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


def tell_data(evaluator: Engine, dataloader: Any) -> None:
    """Tell the metrics that want to know (``take_data``) what they are going to be updated from."""
    for metric in attached_metrics(evaluator).values():
        if hasattr(type(metric), "take_data"):  # Ignite's metrics answer to any attribute
            metric.take_data(dataloader)


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
    return any(
        _is_users(handler)
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED,
                      Events.EPOCH_COMPLETED)
        for handler in _handlers_of(evaluator, event)
    )  # fmt: skip


def own_preparation(evaluator: Engine) -> str | None:
    """Name a handler of the user's that runs before a metric is updated, if there is one.

    The process function or the metric may need what it does.
    """
    completed = Events.ITERATION_COMPLETED
    before = [
        (event, handler)
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.GET_BATCH_STARTED,
                      Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED, completed)
        for handler in _handlers_of(evaluator, event)
    ]  # fmt: skip
    while before and before[-1][0] is completed and not _is_metrics(before[-1][1]):
        before.pop()  # runs after all metrics
    for event, handler in before:
        if _is_users(handler):
            return f"{getattr(handler, '__qualname__', type(handler).__qualname__)} on {event.name}"
    return None


def _handlers_of(engine: Engine, event: Events) -> list[Callable[..., Any]]:
    """Return the handlers of an event, without what filters it."""
    return [
        inspect.unwrap(handler, stop=lambda one: hasattr(one, "__self__"))  # a method stays whole
        for handler, _, _ in engine._event_handlers.get(event, ())
    ]


def _is_metrics(handler: Callable[..., Any]) -> bool:
    return isinstance(getattr(handler, "__self__", None), Metric)


def _is_users(handler: Callable[..., Any]) -> bool:
    """Return whether a handler is neither a metric's, nor Ignite's, nor ours."""
    owner = getattr(handler, "__self__", None)
    module = str(handler.__module__ if owner is None else type(owner).__module__)
    return not _is_metrics(handler) and module.split(".")[0] not in ("ignite", "ignite_evalhook")


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


def iterations_before_epoch(engine: Engine) -> int:
    """Return, at ``EPOCH_STARTED``, after how many iterations the epoch had begun.

    After a restart an epoch goes on in its middle, from where Ignite will count.
    """
    into, state = engine._init_iter, engine.state
    if into is None:
        into = 0
        if engine._dataloader_iter is None:  # the first epoch of this call of run()
            into = state.iteration % (state.epoch_length or state.iteration + 1)
    return int(state.iteration - into)


def go_on_with_epoch(engine: Engine, into: int) -> None:
    """Let an engine that is starting go on after so many iterations of an epoch."""
    engine._init_iter = into


@contextmanager
def _state_kept(evaluator: Engine) -> Iterator[None]:
    state = evaluator.state
    kept, metrics = dict(vars(state)), dict(state.metrics)
    try:
        yield
    finally:
        vars(state).clear()
        vars(state).update(kept)
        state.metrics.clear()
        state.metrics.update(metrics)


def check_metrics(evaluator: Engine) -> None:
    """Refuse metrics that cannot be exact on several ranks, by name.

    Raises:
        EvaluationError: Saying what to use instead.
    """
    for event, handlers in evaluator._event_handlers.items():
        for handler, args, _ in handlers:
            owner = getattr(handler, "__self__", None)
            if isinstance(owner, Metric) and getattr(handler, "__name__", "") == "completed":
                check_exact(args[-1], owner, event, evaluator=evaluator)


def probe(evaluator: Engine, batch: Any, *, compute: bool) -> dict[str, Any]:
    """Put one batch through the process function and the metrics, firing no event.

    Nothing is reduced over ranks: each has this batch only.

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
        state: Any = evaluator.state  # as in a run over this batch alone
        state.epoch = state.iteration = state.max_epochs = state.epoch_length = 1
        state.batch = batch
        output, loss = split_val_loss(evaluator._process_function(evaluator, batch))
        if loss is not None:
            meter.update(loss, count_samples(output, batch))
        evaluator.state.output = output
        asked = AskedMetrics(metrics, 0, idist.get_world_size())
        try:
            asked.note()
            with no_collectives():
                for _, handler, args in handlers:
                    if handler.__name__ != "completed":
                        handler(evaluator, *args[1:])
            asked.note()
            asked.refuse_unreduced()
            if compute:
                for name, metric in metrics.items():
                    try:
                        with world_of_one():  # by itself a metric would reduce over ranks
                            metric.completed(evaluator, name)
                    except Exception:  # noqa: BLE001  # one batch may be too little; time will tell
                        evaluator.state.metrics[name] = None
        finally:
            asked.close()
            for metric, _, _ in handlers:
                metric.reset()
        found = dict(evaluator.state.metrics)
        _add_losses(found, meter.compute())
    return found
