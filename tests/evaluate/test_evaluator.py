"""The evaluator: create_evaluator, ready-made engines, and one clean pass over the data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from ignite.metrics import Accuracy, ConfusionMatrix, Loss, Metric, Precision, RunningAverage
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ignite_evalhook import EvalHook, EvaluationError, ValLoss, create_evaluator

X = torch.arange(20.0).reshape(10, 2) / 10
Y = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1, 0])
CRITERION = nn.CrossEntropyLoss()


def loader(batch_size: int = 3, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size, **options)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def true_loss(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        value = CRITERION(model(X), Y).item()
    model.train()
    return value


# -- create_evaluator -----------------------------------------------------------------------------


def test_run_by_hand_it_gives_metrics_and_the_weighted_validation_loss() -> None:
    model = make_model()
    evaluator = create_evaluator(model, metrics={"accuracy": Accuracy()}, loss_fn=CRITERION)
    state = evaluator.run(loader(batch_size=3))
    assert state.metrics["val_loss"] == pytest.approx(true_loss(model), rel=1e-6)
    assert set(state.metrics) == {"accuracy", "val_loss"}


def test_run_by_hand_it_leaves_every_module_as_it_was() -> None:
    model = make_model()
    model[1].eval()
    before = [m.training for m in model.modules()]
    create_evaluator(model, loss_fn=CRITERION).run(loader())
    assert [m.training for m in model.modules()] == before


def test_run_by_hand_twice_it_gives_the_same_again() -> None:
    evaluator = create_evaluator(make_model(), loss_fn=CRITERION)
    first = dict(evaluator.run(loader()).metrics)
    assert dict(evaluator.run(loader()).metrics) == first


@pytest.mark.parametrize("limit", ["max_iters", "epoch_length"])
def test_run_by_hand_it_stops_after_the_asked_number_of_batches(limit: str) -> None:
    seen: list[int] = []
    evaluator = create_evaluator(make_model(), step=lambda engine, batch: seen.append(1))
    evaluator.run(loader(batch_size=3), **{limit: 2})
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "an evaluator needs data"),
        ({"data": [1], "max_epochs": 2}, "runs over the data once, got max_epochs=2"),
    ],
)
def test_run_by_hand_it_refuses_what_makes_no_sense(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_evaluator(make_model()).run(**arguments)


def test_gradients_are_off_and_the_model_is_in_eval_mode() -> None:
    model = make_model()
    seen: list[tuple[bool, bool]] = []

    def step(engine: Engine, batch: Any) -> None:
        seen.append((torch.is_grad_enabled(), model.training))

    create_evaluator(model, step=step).run(loader())
    assert set(seen) == {(False, False)}


@pytest.mark.parametrize("inference", [True, False])
def test_inference_mode_is_used_only_if_asked_for(inference: bool) -> None:
    model = make_model()
    modes: list[bool] = []

    def step(engine: Engine, batch: Any) -> None:
        modes.append(torch.is_inference_mode_enabled())

    evaluator = create_evaluator(model, inference_mode=inference, step=step)
    hook = EvalHook(loader(), evaluator)
    hook.evaluate()
    assert set(modes) == {inference}


def test_a_model_with_val_step_is_run_through_it() -> None:
    class Model(nn.Module):
        def val_step(self, batch: Any) -> Any:
            x, y = batch
            return x, y, ValLoss(x.sum())

    record = EvalHook(loader(batch_size=5), Model()).evaluate()
    assert record.metrics["val_loss"] == pytest.approx(X.sum().item() / 2, rel=1e-6)
    assert record.samples == 10


def test_amp_runs_model_and_loss_under_autocast_and_metrics_outside() -> None:
    model = nn.Linear(2, 2)
    seen: dict[str, Any] = {}

    class Spy(Accuracy):
        def update(self, output: Any) -> None:
            seen["metric"] = torch.is_autocast_enabled("cpu")
            super().update(output)

    def criterion(y_pred: Tensor, y: Tensor) -> Tensor:
        seen["loss"] = torch.is_autocast_enabled("cpu")
        seen["dtype"] = y_pred.dtype
        return CRITERION(y_pred, y)

    evaluator = create_evaluator(
        model, metrics={"acc": Spy()}, loss_fn=criterion, amp_dtype=torch.bfloat16
    )
    EvalHook(loader(), evaluator).evaluate()
    assert seen == {"metric": False, "loss": True, "dtype": torch.bfloat16}


def test_wrappers_for_data_parallelism_are_taken_off() -> None:
    model = make_model()
    evaluator = create_evaluator(nn.DataParallel(model))
    assert evaluator.model is model  # type: ignore[attr-defined]


def test_prepare_batch_says_what_x_and_y_are() -> None:
    def prepare(batch: Any, device: Any, non_blocking: bool) -> tuple[Tensor, Tensor]:
        return batch["x"], batch["y"]

    data = [{"x": X[:4], "y": Y[:4]}, {"x": X[4:], "y": Y[4:]}]
    model = make_model()
    evaluator = create_evaluator(model, loss_fn=CRITERION, prepare_batch=prepare)
    record = EvalHook(data, evaluator).evaluate()
    assert record.metrics["val_loss"] == pytest.approx(true_loss(model), rel=1e-6)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": X, "y": Y}, r"expects \(x, y\); got a dict with keys \['x', 'y'\]; pass step="),
        ((X, Y, X), r"expects \(x, y\); got a tuple of 3; pass step= or prepare_batch="),
        (X, r"expects \(x, y\); got a Tensor"),
    ],
)
def test_a_batch_that_cannot_be_unpacked_is_named(batch: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        create_evaluator(make_model()).run([batch])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"metrics": {"a": 1}}, TypeError, r"metrics\['a'\] must be an ignite.metrics.Metric"),
        ({"loss_fn": 1}, TypeError, "loss_fn must be a function, got int"),
        ({"amp_dtype": "bf16"}, TypeError, "amp_dtype must be a torch.dtype, got 'bf16'"),
        ({"step": print, "loss_fn": print}, ValueError, "step= replaces loss_fn; pass either"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        create_evaluator(**{"model": make_model(), **arguments})


def test_nested_batches_reach_the_device() -> None:
    moved: list[Any] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, x: Any) -> Any:
            moved.append((x["a"][0].device.type, x["n"]))
            return x

    data = [({"a": [torch.ones(2)], "n": "text"}, torch.ones(2))]
    create_evaluator(Model()).run(data)
    assert moved == [("meta", "text")]


# -- ready-made engines ---------------------------------------------------------------------------


def ready_engine(model: nn.Module) -> Engine:
    def step(engine: Engine, batch: Any) -> Any:
        x, y = batch
        y_pred = model(x)
        return y_pred, y, ValLoss(CRITERION(y_pred, y))

    return Engine(step)


def test_metrics_attached_before_and_after_the_hook_are_both_there() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    Accuracy().attach(evaluator, "before")
    hook = EvalHook(loader(), evaluator, model=model)
    Accuracy().attach(evaluator, "after")
    record = hook.evaluate()
    assert record.metrics["before"] == record.metrics["after"]
    assert record.metrics["val_loss"] == pytest.approx(true_loss(model), rel=1e-6)


def test_the_process_function_is_put_back() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    process = evaluator._process_function
    EvalHook(loader(), evaluator, model=model).evaluate()
    assert evaluator._process_function is process
    assert "_fire_event" not in vars(evaluator)


def test_no_handler_is_added_to_the_evaluator_not_even_for_the_time_of_a_run() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    counts: list[dict[Any, int]] = []

    def count(engine: Engine) -> None:
        counts.append({event: len(found) for event, found in engine._event_handlers.items()})

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, count)
    count(evaluator)
    EvalHook(loader(), evaluator, model=model).evaluate()
    assert len(counts) > 1
    assert all(found == counts[0] for found in counts)


def test_a_custom_event_that_is_a_string_reaches_its_handlers() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    evaluator.register_events("halfway")
    seen: list[str] = []
    evaluator.add_event_handler("halfway", lambda engine: seen.append("heard"))
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: engine.fire_event("halfway")
    )
    EvalHook(loader(), evaluator, model=model).evaluate()
    assert seen == ["heard"]


def test_an_engine_whose_last_run_raised_works_again() -> None:
    model = make_model()
    fail = [True]

    def step(engine: Engine, batch: Any) -> Any:
        if fail[0] and engine.state.iteration == 2:
            raise RuntimeError("boom")
        return model(batch[0]), batch[1]

    evaluator = Engine(step)
    Accuracy().attach(evaluator, "accuracy")
    hook = EvalHook(loader(), evaluator, model=model)
    with pytest.raises(RuntimeError, match="boom"):
        hook.evaluate()
    fail[0] = False
    assert hook.evaluate().samples == 10


def test_an_engine_that_ran_longer_data_before_sees_all_and_only_the_new_data() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    evaluator.run([(X, Y)] * 7)
    assert EvalHook(loader(), evaluator, model=model).evaluate().samples == 10


def test_a_handler_that_swallows_exceptions_does_not_hide_them() -> None:
    model = make_model()

    def step(engine: Engine, batch: Any) -> Any:
        raise RuntimeError("boom")

    evaluator = Engine(step)
    evaluator.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    with pytest.raises(RuntimeError, match="boom"):
        EvalHook(loader(), evaluator, model=model).evaluate()


def test_a_metric_that_raises_on_the_last_batch_is_not_hidden_by_a_swallowing_handler() -> None:
    model = make_model()

    class Bad(Accuracy):
        def update(self, output: Any) -> None:
            if len(output[1]) == 1:  # the last batch of ten by three
                raise RuntimeError("bad metric")
            super().update(output)

    evaluator = ready_engine(model)
    Bad().attach(evaluator, "bad")
    evaluator.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    with pytest.raises(RuntimeError, match="bad metric"):
        EvalHook(loader(), evaluator, model=model).evaluate()


@pytest.mark.parametrize("how", ["terminate", "interrupt"])
def test_an_evaluation_that_is_cut_short_is_no_score(how: str) -> None:
    model = make_model()
    evaluator = ready_engine(model)
    cut = evaluator.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: getattr(engine, how)()
    )
    hook = EvalHook(loader(), evaluator, model=model)
    with pytest.raises(EvaluationError, match=r"cut short after 2 of 4 batches"):
        hook.evaluate()
    assert len(hook.history) == 0
    cut.remove()
    evaluator._event_handlers[Events.ITERATION_COMPLETED].clear()
    assert hook.evaluate().samples == 10


def test_keyboard_interrupt_passes_through_and_leaves_the_engine_usable() -> None:
    model = make_model()
    raised = [True]

    def step(engine: Engine, batch: Any) -> Any:
        if raised[0]:
            raise KeyboardInterrupt
        return model(batch[0]), batch[1]

    evaluator = Engine(step)
    hook = EvalHook(loader(), evaluator, model=model)
    with pytest.raises(KeyboardInterrupt):
        hook.evaluate()
    raised[0] = False
    assert hook.evaluate().samples == 10
    assert model.training


def test_an_engine_subclass_with_its_own_run_is_run_as_an_engine() -> None:
    class Peculiar(Engine):
        def run(self, epoch: int) -> None:  # type: ignore[override]
            raise AssertionError("MONAI's evaluator takes an epoch here")

    model = make_model()
    evaluator = Peculiar(lambda engine, batch: (model(batch[0]), batch[1]))
    Accuracy().attach(evaluator, "accuracy")
    assert EvalHook(loader(), evaluator, model=model).evaluate().samples == 10


def test_stale_metrics_of_an_earlier_run_are_gone() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    evaluator.state.metrics["stale"] = 1.0
    assert "stale" not in EvalHook(loader(), evaluator, model=model).evaluate().metrics


def test_debug_logging_of_the_engine_still_names_every_event(caplog: Any) -> None:
    model = make_model()
    evaluator = ready_engine(model)
    with caplog.at_level(logging.DEBUG, logger=evaluator.logger.name):
        EvalHook(loader(), evaluator, model=model).evaluate()
    assert "Firing handlers for event Events.GET_BATCH_STARTED" in caplog.text


def test_every_event_of_a_run_reaches_its_handlers() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    seen: list[str] = []
    for event in Events:
        if event not in (Events.EXCEPTION_RAISED, Events.TERMINATE_SINGLE_EPOCH):
            evaluator.add_event_handler(event, lambda engine, name=event.name: seen.append(name))
    hook = EvalHook(loader(batch_size=10), evaluator, model=model, out_dir=None)
    hook.attach(Engine(lambda engine, batch: None))
    hook.evaluate()
    assert seen == [
        "STARTED",
        "EPOCH_STARTED",
        "GET_BATCH_STARTED",
        "GET_BATCH_COMPLETED",
        "ITERATION_STARTED",
        "ITERATION_COMPLETED",
        "EPOCH_COMPLETED",
        "COMPLETED",
    ]


# -- metrics are complete before COMPLETED --------------------------------------------------------


@pytest.mark.parametrize("order", ["before", "after"])
def test_handlers_on_completed_see_everything_whenever_they_were_attached(order: str) -> None:
    model = make_model()
    evaluator = create_evaluator(model, metrics={"accuracy": Accuracy()}, loss_fn=CRITERION)
    seen: dict[str, Any] = {}

    def listen(engine: Engine) -> None:
        seen.update(engine.state.metrics)

    if order == "before":
        evaluator.add_event_handler(Events.COMPLETED, listen)
    hook = EvalHook(
        loader(),
        evaluator,
        compute_metrics=lambda results: {"computed": len(results)},
        derive={"perplexity": lambda m: 2 ** m["val_loss"]},
    ).attach(Engine(lambda engine, batch: None))
    if order == "after":
        evaluator.add_event_handler(Events.COMPLETED, listen)
        evaluator.add_event_handler(Events.STARTED, lambda e: None)
    record = hook.evaluate()
    assert seen == dict(record.metrics)
    assert list(seen) == ["accuracy", "val_loss", "computed", "perplexity"]


def test_a_metric_attached_at_started_of_the_evaluator_is_complete_too() -> None:
    model = make_model()
    evaluator = ready_engine(model)
    evaluator.add_event_handler(Events.STARTED, lambda engine: Accuracy().attach(engine, "late"))
    hook = EvalHook(loader(), evaluator, model=model, derive={"twice": lambda m: 2 * m["late"]})
    record = hook.evaluate()
    assert record.metrics["twice"] == 2 * record.metrics["late"]


def test_values_end_as_plain_floats_strings_and_lists() -> None:
    model = make_model()
    evaluator = create_evaluator(
        model,
        metrics={"cm": ConfusionMatrix(2), "precision": Precision(average=False)},
        loss_fn=CRITERION,
    )
    found = {"s": "0.1/0.2", "i": 3, "t": torch.ones(2, 2)}
    hook = EvalHook(loader(), evaluator, compute_metrics=lambda results: found)
    metrics = hook.evaluate().metrics
    assert metrics["s"] == "0.1/0.2"
    assert isinstance(metrics["i"], float)
    assert metrics["t"] == [[1.0, 1.0], [1.0, 1.0]]
    assert isinstance(metrics["cm"], list)
    assert isinstance(metrics["precision"], list)


@pytest.mark.parametrize(
    "metric", [lambda: Loss(CRITERION), lambda: RunningAverage(Loss(CRITERION))]
)
def test_ignite_metrics_that_take_pairs_work_beside_the_appended_loss(
    metric: Callable[[], Metric],
) -> None:
    model = make_model()
    evaluator = create_evaluator(model, metrics={"ignite_loss": metric()}, loss_fn=CRITERION)
    record = EvalHook(loader(batch_size=10), evaluator).evaluate()
    assert record.metrics["ignite_loss"] == pytest.approx(record.metrics["val_loss"], rel=1e-5)


def test_a_component_of_the_loss_may_not_shadow_a_metric() -> None:
    model = make_model()
    evaluator = create_evaluator(
        model,
        metrics={"loss_cls": Accuracy()},
        loss_fn=lambda y_pred, y: {"loss_cls": CRITERION(y_pred, y)},
    )
    with pytest.raises(EvaluationError, match="has an entry 'loss_cls', and so have"):
        EvalHook(loader(), evaluator).evaluate()


def test_a_progress_bar_on_the_evaluator_knows_the_length() -> None:
    model = make_model()
    evaluator = create_evaluator(model)
    bar = ProgressBar(persist=True)
    bar.attach(evaluator)
    lengths: list[Any] = []
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: lengths.append(engine.state.epoch_length)
    )
    EvalHook(loader(), evaluator).evaluate()
    assert lengths == [4, 4, 4, 4]


# -- the data -------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(X, Y, strict=True)

    def __len__(self) -> int:
        return 4  # a lie, as with filtered streams


class Reiterable:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize(
    "data",
    [
        loader(3),
        [(X[:3], Y[:3]), (X[3:], Y[3:])],
        Reiterable([(X[:3], Y[:3]), (X[3:], Y[3:])]),
        DataLoader(Stream(), batch_size=3),
    ],
    ids=["loader", "list", "re-iterable", "stream with a wrong length"],
)
@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_every_sample_is_seen_once_every_time(data: Any) -> None:
    hook = EvalHook(data, create_evaluator(make_model(), loss_fn=CRITERION))
    first = hook.evaluate()
    second = hook.evaluate()
    assert first.samples == second.samples == 10
    assert first.metrics == second.metrics


@pytest.mark.parametrize("data", [[], DataLoader(TensorDataset(X[:0], Y[:0])), Reiterable([])])
def test_empty_data_is_a_clear_error(data: Any) -> None:
    with pytest.raises(EvaluationError, match="the evaluation data is empty"):
        EvalHook(data, create_evaluator(make_model())).evaluate()


@pytest.mark.parametrize(
    "data", [loader(3), Reiterable([(X[i : i + 3], Y[i : i + 3]) for i in (0, 3, 6)])]
)
@pytest.mark.parametrize(("limit", "samples"), [(1, 3), (2, 6), (3, 9)])
def test_limit_batches_takes_the_first_ones(data: Any, limit: int, samples: int) -> None:
    hook = EvalHook(data, create_evaluator(make_model()), limit_batches=limit)
    assert hook.evaluate().samples == samples


def test_limit_batches_beyond_the_data_takes_all() -> None:
    assert (
        EvalHook(loader(3), create_evaluator(make_model()), limit_batches=99).evaluate().samples
        == 10
    )
