"""The trial batch is what the evaluation will be, or it is left out; an error in it says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EpochOutputStore, Timer
from ignite.metrics import Accuracy, Average, Metric
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, EvaluationError, create_evaluator

MODEL = nn.Linear(1, 1)
LEFT_OUT = "no trial batch before training, since the evaluator prepares itself: "


def train(hook: EvalHook) -> int:
    """Run two epochs; return the number of steps of training, also after an error."""
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    try:
        trainer.run(range(3), max_epochs=2)
    finally:
        hook.detach()
    return int(trainer.state.iteration)


def of(hook: EvalHook, name: str) -> list[Any]:
    return [record.metrics[name] for record in hook.history]


# -- evaluators that prepare themselves -----------------------------------------------------------


def store(engine: Engine, name: str = "ready") -> None:
    """Prepare, in an attribute of the state, what the process function needs."""
    setattr(engine.state, name, 0)


class Preparing:
    """Prepares by its methods, or by being called."""

    def start(self, engine: Engine) -> None:
        store(engine)

    def __call__(self, engine: Engine) -> None:
        store(engine)


def count(engine: Engine, batch: Any) -> Any:
    engine.state.ready += 1
    return 1.0


BEFORE = (Events.STARTED, Events.EPOCH_STARTED, Events.GET_BATCH_STARTED,
          Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED)  # fmt: skip
HANDLERS: dict[str, Callable[..., Any]] = {
    "function": store,
    "partial": partial(store, name="ready"),
    "method": Preparing().start,
    "object": Preparing(),
    "lambda": lambda engine: store(engine),
}


FILTERED = [Events.ITERATION_STARTED(once=1), Events.STARTED | Events.COMPLETED]


@pytest.mark.parametrize(
    ("kind", "event"),
    [*(("function", event) for event in (*BEFORE, *FILTERED)),
     *((kind, Events.STARTED) for kind in HANDLERS)],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", "filtered"),
)  # fmt: skip
def test_an_evaluator_that_prepares_itself_is_left_out_and_one_line_says_so(
    kind: str, event: Any, caplog: Any
) -> None:
    evaluator = Engine(count)
    evaluator.add_event_handler(event, HANDLERS[kind])
    Average().attach(evaluator, "mean")
    hook = EvalHook([torch.ones(2)] * 2, evaluator, model=MODEL)
    with caplog.at_level(logging.INFO, logger="ignite_evalhook"):
        assert train(hook) == 6
    assert of(hook, "mean") == [1.0, 1.0]
    assert len([r for r in caplog.records if LEFT_OUT in r.getMessage()]) == 1


def halve(engine: Engine) -> None:
    engine.state.output = engine.state.output[0] / 2, engine.state.output[1]


def test_an_output_that_a_handler_makes_ready_for_the_metrics_is_not_tried_without_it(
    caplog: Any,
) -> None:
    evaluator = Engine(lambda engine, batch: (2.0 * batch, batch))
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, halve)
    Accuracy().attach(evaluator, "accuracy")  # takes zeros and ones only
    hook = EvalHook([torch.tensor([0.0, 1.0])], evaluator, model=MODEL)
    with caplog.at_level(logging.INFO, logger="ignite_evalhook"):
        assert train(hook) == 6
    assert of(hook, "accuracy") == [1.0, 1.0]
    assert f"{LEFT_OUT}halve on ITERATION_COMPLETED" in caplog.text


class Own(Metric):
    """A metric of the user's, with handlers of its own."""

    def reset(self) -> None:
        self.seen = 0

    def started(self, engine: Engine) -> None:
        super().started(engine)
        self.ready = True

    def update(self, output: Any) -> None:
        assert self.ready
        self.seen += 1

    def compute(self) -> float:
        return float(self.seen)


def raises(engine: Engine, batch: Any) -> Any:
    raise ZeroDivisionError("the model fails")


HARMLESS: dict[str, Callable[[Engine], object]] = {
    "nothing": lambda evaluator: None,
    "a metric of the user's": lambda evaluator: Own().attach(evaluator, "own"),
    "ignite's timer": lambda evaluator: Timer().attach(
        evaluator, start=Events.EPOCH_STARTED, resume=Events.ITERATION_STARTED
    ),
    "ignite's store of outputs": lambda evaluator: EpochOutputStore().attach(evaluator, "all"),
    "a handler after the metrics": lambda evaluator: evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, store
    ),
    "a handler of the end": lambda evaluator: evaluator.add_event_handler(Events.COMPLETED, store),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_handlers_that_prepare_nothing_leave_the_trial_batch_where_it_is(name: str) -> None:
    evaluator = Engine(raises)
    Average().attach(evaluator, "mean")
    HARMLESS[name](evaluator)
    trained: list[int] = []
    trainer = Engine(lambda engine, batch: trained.append(1))
    EvalHook([torch.ones(2)], evaluator, model=MODEL).attach(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.run(range(3), max_epochs=1)
    assert trained == []


def test_the_metric_of_the_user_is_prepared_by_its_own_handler() -> None:
    evaluator = Engine(lambda engine, batch: batch)
    Own().attach(evaluator, "own")
    hook = EvalHook([torch.ones(2)] * 3, evaluator, model=MODEL)
    assert train(hook) == 6
    assert of(hook, "own") == [3.0, 3.0]


def test_the_process_function_finds_the_state_of_a_run_over_one_batch_and_it_is_put_back() -> None:
    seen: list[Any] = []

    def step(engine: Engine, batch: Any) -> None:
        state: Any = engine.state
        last = state.iteration % state.epoch_length == 0 and state.epoch == state.max_epochs
        seen.append((last, state.batch is batch))
        state.mine = state.metrics["mine"] = len(seen)

    evaluator = Engine(step)
    hook = EvalHook([1, 2], evaluator, model=MODEL)
    before = dict(vars(evaluator.state))
    trainer = Engine(lambda engine, batch: None)
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: seen.append(dict(vars(evaluator.state)))
    )
    hook.attach(trainer)
    trainer.run(range(3), max_epochs=1)
    assert seen[:2] == [(True, True), before]


# -- errors ---------------------------------------------------------------------------------------


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


@pytest.mark.parametrize(
    "evaluator",
    [
        lambda: Engine(raises),
        lambda: create_evaluator(MODEL, {"accuracy": Accuracy()}),
        lambda: create_evaluator(MODEL, loss_fn=lambda output, target: None),  # type: ignore[arg-type, return-value]
    ],
    ids=["the model", "a metric", "the loss"],
)
@pytest.mark.parametrize("preflight", [True, False])
def test_an_error_in_it_names_it_and_the_way_to_leave_it_out(
    evaluator: Callable[[], Engine], preflight: bool
) -> None:
    batch = torch.zeros(2, 1), torch.full((2, 1), 3.5)
    hook = EvalHook([batch], evaluator(), model=MODEL, preflight=preflight, name="mine")
    with pytest.raises(Exception) as raised:  # noqa: PT011  # whatever the evaluator raises
        train(hook)
    told = notes(raised.value)
    assert ("trial batch" in told) is preflight
    assert ("preflight=False" in told) is preflight
    assert ("'mine'" in told) is preflight


def test_so_does_a_name_that_is_not_found_in_it_and_an_interrupt_does_not() -> None:
    hook = EvalHook([torch.ones(2)], Engine(lambda e, b: None), save_best="acc", out_dir=False,
                    model=MODEL)  # fmt: skip
    with pytest.raises(ValueError, match="no metric 'acc'") as raised:
        train(hook)
    assert "preflight=False" in notes(raised.value)

    def stop(engine: Engine, batch: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(EvalHook([torch.ones(2)], Engine(stop), model=MODEL))
    assert notes(interrupt.value) == ""


# -- each rank's own share ------------------------------------------------------------------------


class EveryThird(IterableDataset[Any]):
    """A stream of which each rank has its own part; the last ranks perhaps none."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        yield from islice(range(self.size), idist.get_rank(), None, idist.get_world_size())


def numbers(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size))


def dropping() -> DataLoader[Any]:
    """Two samples a rank, of batches of three: by itself each loader of these is empty."""
    data = numbers(5)
    ranks = idist.get_world_size(), idist.get_rank()
    return DataLoader(data, 3, drop_last=True, sampler=DistributedSampler(data, *ranks, False))


def shuffled() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(idist.get_rank())  # rank 0's decides
    return DataLoader(numbers(5), 2, shuffle=True, generator=generator)


class Unsized:
    def __iter__(self) -> Iterator[Any]:
        yield from ([n] for n in range(5))


DATA: dict[str, Callable[[], Any]] = {
    "a loader": lambda: DataLoader(numbers(5), 2),
    "fewer batches than ranks": lambda: DataLoader(numbers(2), 2),
    "a shuffled loader": shuffled,
    "one that drops what is left": dropping,
    "a list": lambda: [[n] for n in range(4)],
    "a list shorter than the world": lambda: [[1], [2]],
    "an unsized iterable": Unsized,
    "a stream": lambda: DataLoader(EveryThird(5), 1),
    "a stream that some ranks have nothing of": lambda: DataLoader(EveryThird(2), 1),
}


def share_of(rank: int) -> dict[str, Any]:
    found = {}
    for name, make in DATA.items():
        for limit in (None, 1):
            for preflight in (True, False):
                seen: list[Any] = []

                def step(engine: Engine, batch: Any, seen: list[Any] = seen) -> Any:
                    seen.append(sorted(int(n) for n in (batch[0] if len(batch) == 1 and
                                       isinstance(batch, list) and torch.is_tensor(batch[0])
                                       else batch)))  # fmt: skip
                    return torch.ones(len(seen[-1]), 1)

                evaluator = Engine(step)
                Average().attach(evaluator, "mean")
                hook = EvalHook(make(), evaluator, model=MODEL, preflight=preflight,
                                limit_batches=limit)  # fmt: skip
                train(hook)
                found[name, limit, preflight] = seen, [r.samples for r in hook.history]
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_trial_batch_is_the_first_of_the_rank_s_own_share_or_none(world_size: int) -> None:
    for found in on_ranks(world_size, share_of):
        for name in DATA:
            for limit in (None, 1):
                seen, samples = found[name, limit, True]
                without, as_many = found[name, limit, False]
                assert samples == as_many, name
                assert len(seen) == len(without) + (1 if without else 0), (name, limit)
                if name != "a shuffled loader":  # which is drawn anew for each pass
                    assert seen[:1] == without[:1], (name, limit)


def fail_on_one(rank: int) -> Any:
    def step(engine: Engine, batch: Any) -> Any:
        if rank == 1:
            raise ZeroDivisionError("the model fails")

    found = []
    for data, evaluator in (
        ([1, 2, 3], Engine(step)),
        (DataLoader(EveryThird(0), 1), Engine(lambda engine, batch: None)),
    ):
        with pytest.raises(EvaluationError) as raised:
            train(EvalHook(data, evaluator, model=MODEL))
        found.append(str(raised.value))
    return found


def test_an_error_on_one_rank_names_the_trial_batch_on_every_rank() -> None:
    for failed, empty in on_ranks(3, fail_on_one):
        assert "rank 1 failed: ZeroDivisionError: the model fails" in failed
        assert "trial batch" in failed.splitlines()[0]
        assert "preflight=False" in failed.splitlines()[0]
        assert "the evaluation data is empty: no batch came, on no rank" in empty
