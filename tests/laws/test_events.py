"""Test what a hook tells and to whom: events, records, global steps, and several hooks at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, global_step_from_engine
from ignite.metrics import MeanSquaredError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_evalhook import (
    EvalEvents,
    EvalHook,
    EvalRecord,
    EvaluationError,
    History,
    StateError,
    create_evaluator,
)

ALL_EVENTS = [EvalEvents.EVAL_STARTED, EvalEvents.EVAL_COMPLETED, EvalEvents.NEW_BEST]
STARTED, COMPLETED, NEW_BEST = ALL_EVENTS


def make_trainer() -> Engine:
    return Engine(lambda engine, batch: None)


def make_hook(losses: Any = (), **options: Any) -> EvalHook:
    """Return a hook whose evaluations give these losses, then 0.5 for ever."""
    remaining = iter(losses)

    def measure(engine: Engine | None) -> dict[str, float]:
        return {"loss": next(remaining, 0.5)}

    settings: dict[str, Any] = {"save_best": "loss", "out_dir": False, "model": nn.Identity()}
    return EvalHook(None, measure, **{**settings, **options})


def run(trainer: Engine, epochs: int = 3, length: int = 4) -> None:
    trainer.run(range(length), max_epochs=epochs)


def iterations(hook: EvalHook) -> list[int]:
    return [record.iteration for record in hook.history]


# --- order and counts ------------------------------------------------------------------------


def test_events_come_in_order_and_new_best_only_for_a_better_score() -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.3, 0.3, 0.4, 0.1])
    hook.attach(trainer)
    story: list[tuple[str, int]] = []
    for event in ALL_EVENTS:
        trainer.add_event_handler(
            event, lambda engine, name: story.append((name, engine.state.epoch)), event.value
        )
    run(trainer, epochs=5)
    pair = ["eval_started", "eval_completed"]
    best = [*pair, "new_best"]
    expected = [(1, best), (2, best), (3, pair), (4, pair), (5, best)]
    assert story == [(name, epoch) for epoch, names in expected for name in names]
    assert [record.is_best for record in hook.history] == [True, True, False, False, True]


def test_the_sender_is_known_and_the_record_is_there_when_an_event_fires() -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.3])
    seen: list[Any] = []

    def look(engine: Engine) -> None:
        seen.append((engine.state.eval_hook, len(hook.history), hook.best and hook.best.score))

    hook.attach(trainer)
    for event in ALL_EVENTS:
        trainer.add_event_handler(event, look)
    run(trainer, epochs=2)
    assert [sender for sender, _, _ in seen] == [hook] * 6
    assert [(n, best) for _, n, best in seen] == [
        (0, None), (1, 0.5), (1, 0.5), (1, 0.5), (2, 0.3), (2, 0.3)
    ]  # fmt: skip


def test_a_trainer_with_its_own_way_of_firing_hears_of_events_that_nobody_listens_to() -> None:
    fired: list[Any] = []

    class Telling(Engine):
        def fire_event(self, event_name: Any) -> None:
            fired.append(event_name)
            super().fire_event(event_name)

    trainer = Telling(lambda engine, batch: None)
    make_hook([0.5]).attach(trainer)
    run(trainer, epochs=1)
    assert fired == [EvalEvents.EVAL_STARTED, EvalEvents.EVAL_COMPLETED, EvalEvents.NEW_BEST]


def test_filters_count_the_events_of_each_hook_on_the_trainer_and_through_on() -> None:
    trainer = make_trainer()
    val = make_hook([0.5, 0.4, 0.6, 0.3, 0.2]).attach(trainer)
    make_hook([0.5, 0.6], name="test", interval=2).attach(trainer)
    on_trainer: list[tuple[str, int]] = []
    through_on: list[int] = []
    bests: list[int] = []
    starts: list[int] = []

    @trainer.on(EvalEvents.EVAL_COMPLETED(every=2))
    def _(engine: Engine) -> None:
        on_trainer.append((engine.state.eval_hook.name, engine.state.epoch))

    val.on(EvalEvents.EVAL_COMPLETED(every=2), lambda record: through_on.append(record.epoch))
    val.on(EvalEvents.NEW_BEST(every=2), lambda record: bests.append(record.epoch))
    val.on(EvalEvents.EVAL_STARTED(once=3), lambda record: starts.append(trainer.state.epoch))
    run(trainer, epochs=5)
    assert on_trainer == [("val", 2), ("val", 4), ("test", 4)]
    assert through_on == [2, 4]
    assert bests == [2, 5]  # the second and the fourth new best
    assert starts == [3]


def test_counts_go_on_after_a_restart() -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.4, 0.3])
    hook.attach(trainer)
    run(trainer, epochs=3)
    states = trainer.state_dict(), hook.state_dict()
    trainer, hook = make_trainer(), make_hook([0.2, 0.1])
    found: list[int] = []
    hook.on(EvalEvents.EVAL_COMPLETED(every=2), lambda record: found.append(record.epoch))
    hook.on(EvalEvents.NEW_BEST(every=2), lambda record: found.append(-record.epoch))
    hook.attach(trainer)
    trainer.load_state_dict(states[0])
    hook.load_state_dict(states[1])
    trainer.run(range(4), max_epochs=5)
    assert found == [4, -4]


# --- hook.on ---------------------------------------------------------------------------------


def test_on_works_before_attach_as_a_decorator_and_for_this_hook_only() -> None:
    trainer = make_trainer()
    val, test = make_hook(), make_hook(name="test")
    heard: list[Any] = []

    @val.on(EvalEvents.EVAL_COMPLETED)
    def keep(record: EvalRecord) -> None:
        heard.append(record)

    @val.on(EvalEvents.EVAL_STARTED)
    def begin(record: None) -> None:
        heard.append(record)

    assert callable(keep)
    assert callable(begin)
    val.attach(trainer)
    test.attach(trainer)
    run(trainer, epochs=2)
    assert heard == [None, val.history[0], None, val.history[1]]


def test_listeners_come_before_the_trainers_handlers_and_in_their_order() -> None:
    trainer, hook = make_trainer(), make_hook()
    story: list[str] = []
    hook.attach(trainer)
    trainer.add_event_handler(COMPLETED, lambda: story.append("trainer"))
    hook.on(COMPLETED, lambda record: story.append("first"))
    hook.on(COMPLETED, lambda record: story.append("second"))
    run(trainer, epochs=1)
    assert story == ["first", "second", "trainer"]


@pytest.mark.parametrize("event", [Events.COMPLETED, "completed", None, 3, COMPLETED | NEW_BEST])
def test_on_refuses_events_that_are_not_the_hooks(event: Any) -> None:
    with pytest.raises(ValueError, match=r"event must be one of .*EVAL_STARTED.*got"):
        make_hook().on(event, print)


def test_on_refuses_a_handler_that_is_no_function() -> None:
    with pytest.raises(TypeError, match="handler must be a function, got int"):
        make_hook().on(COMPLETED, 3)  # type: ignore[arg-type]


def test_what_a_listener_raises_ends_the_run_and_the_record_is_kept() -> None:
    trainer, hook = make_trainer(), make_hook()
    hook.attach(trainer)

    def fail(record: Any) -> None:
        raise KeyError("mine")

    hook.on(COMPLETED, fail)
    with pytest.raises(KeyError, match="mine"):
        run(trainer)
    assert iterations(hook) == [4]


@pytest.mark.parametrize("where", ["trainer", "listener"])
def test_what_a_listener_of_eval_started_raises_leaves_no_record(where: str) -> None:
    trainer, hook = make_trainer(), make_hook()
    hook.attach(trainer)
    broken = [True]

    def fail(*args: Any) -> None:
        if broken.pop():
            raise KeyError("mine")

    if where == "trainer":
        trainer.add_event_handler(STARTED(once=1), fail)
    else:
        hook.on(STARTED(once=1), fail)
    with pytest.raises(KeyError, match="mine"):
        run(trainer)
    assert iterations(hook) == []
    broken.append(False)
    assert hook.evaluate().iteration == 4  # the hook is none the worse for it


# --- beside Ignite's own handlers ------------------------------------------------------------


@pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED])
def test_a_checkpoint_of_ignites_attached_after_the_hook_gets_the_right_step(
    event: Any, tmp_path: Path
) -> None:
    trainer, model = make_trainer(), nn.Linear(1, 1)
    by_epoch = event is Events.EPOCH_COMPLETED
    make_hook(by_epoch=by_epoch).attach(trainer)
    checkpoint = Checkpoint(
        {"model": model},
        tmp_path,
        n_saved=None,
        global_step_transform=global_step_from_engine(trainer),
    )
    trainer.add_event_handler(event, checkpoint)
    run(trainer, epochs=2, length=3)
    steps = [1, 2] if by_epoch else [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"model_{step}.pt" for step in steps]


def test_the_event_that_the_trainer_is_firing_stays_its_last_one() -> None:
    trainer, hook = make_trainer(), make_hook(start=0, interval=2, by_epoch=False)
    hook.attach(trainer)
    names: list[Any] = []
    for event in (Events.STARTED, Events.ITERATION_COMPLETED):
        trainer.add_event_handler(event, lambda engine: names.append(engine.last_event_name))
    run(trainer, epochs=1)
    assert names == [Events.STARTED, *[Events.ITERATION_COMPLETED] * 4]


def test_it_stays_so_when_a_listener_raises() -> None:
    trainer, hook = make_trainer(), make_hook()
    hook.attach(trainer)

    def fail(record: Any) -> None:
        raise KeyError("mine")

    hook.on(COMPLETED, fail)
    with pytest.raises(KeyError):
        run(trainer)
    assert trainer.last_event_name is Events.EPOCH_COMPLETED


# --- global_step -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [1, 2]),
        ({"start": 0}, [0, 1, 2]),
        ({"interval": 3, "by_epoch": False}, [3, 6]),
        ({"interval": 0.5}, [2, 4, 6, 8]),
    ],
    ids=str,
)
def test_the_global_step_is_what_the_schedule_counts_during_and_after_the_evaluation(
    options: dict[str, Any], steps: list[int]
) -> None:
    trainer, hook = make_trainer(), make_hook(**options)
    during: list[int] = []
    after: list[int] = []
    hook.evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: during.append(hook.global_step(engine, Events.COMPLETED))
    )
    hook.attach(trainer)
    trainer.add_event_handler(
        COMPLETED, lambda engine: after.append(hook.global_step(engine, COMPLETED))
    )
    assert hook.global_step() == 0
    run(trainer, epochs=2)
    assert during == after == steps
    hook.evaluate(track=False)
    assert hook.global_step() == steps[-1]


# --- records and history ---------------------------------------------------------------------


def test_a_record_says_when_what_how_much_and_how_long() -> None:
    model = nn.Linear(2, 1)
    data = TensorDataset(torch.randn(7, 2), torch.randn(7, 1))
    hook = EvalHook(
        DataLoader(data, batch_size=3),
        create_evaluator(model, {"mse": MeanSquaredError()}, loss_fn=nn.functional.mse_loss),
        save_best=["mse", "val_loss"], out_dir=False, interval=3, by_epoch=False,
    ).attach(trainer := make_trainer())  # fmt: skip
    run(trainer, epochs=2)
    assert [(r.epoch, r.iteration) for r in hook.history] == [(1, 3), (2, 6)]
    record = hook.history[0]
    expected = nn.functional.mse_loss(model(data.tensors[0]), data.tensors[1]).item()
    assert record.metrics == pytest.approx({"mse": expected, "val_loss": expected})
    assert record.samples == 7
    assert 0 < record.seconds < 60
    assert record.best_of == ("mse", "val_loss")
    assert record.is_best
    assert hook.history[1].best_of == ()
    assert isinstance(hook.history, History)


def test_a_function_has_no_samples_to_count() -> None:
    make_hook().attach(trainer := make_trainer())
    run(trainer, epochs=1)
    assert trainer.state.eval_hook.history[0].samples is None


def test_a_record_cannot_be_changed() -> None:
    hook = make_hook()
    record = hook.evaluate()
    with pytest.raises(AttributeError):
        record.epoch = 3  # type: ignore[misc]


def test_the_history_on_disk_is_the_one_in_memory(tmp_path: Path) -> None:
    trainer = make_trainer()
    hook = make_hook([0.5, 0.7], out_dir=tmp_path, model=nn.Linear(1, 1)).attach(trainer)
    run(trainer, epochs=2)
    assert History.read(tmp_path / "history.jsonl") == hook.history
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["is_best"] for line in lines] == [True, False]


# --- on demand -------------------------------------------------------------------------------


def test_a_hook_without_a_trainer_answers() -> None:
    hook = make_hook([0.25, 0.75])
    record = hook.evaluate()
    assert (record.epoch, record.iteration) == (0, 0)
    assert record.metrics == {"loss": 0.25}
    assert record.best_of == ()
    assert hook.evaluate(track=False).metrics == {"loss": 0.75}
    assert len(hook.history) == 0
    assert hook.best is None


def test_tracking_needs_a_trainer() -> None:
    with pytest.raises(ValueError, match=r"track=True needs a trainer: call hook\.attach"):
        make_hook().evaluate(track=True)


def make_loader_hook(n: int = 6, **options: Any) -> tuple[Engine, EvalHook]:
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
    loader = DataLoader(TensorDataset(torch.ones(n, 1), torch.zeros(n, 1)), batch_size=4)
    evaluator = create_evaluator(model, loss_fn=nn.functional.mse_loss)
    settings: dict[str, Any] = {"save_best": "val_loss", "out_dir": False}
    return make_trainer(), EvalHook(loader, evaluator, **{**settings, **options})


def twos(n: int = 5) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.full((n, 1), 2.0), torch.zeros(n, 1)), batch_size=2)


def test_another_loader_is_answered_only_unless_asked_otherwise() -> None:
    trainer, hook = make_loader_hook(interval=None)
    hook.attach(trainer)
    answer = hook.evaluate(twos())
    assert (answer.metrics, answer.samples) == ({"val_loss": 4.0}, 5)
    assert len(hook.history) == 0
    record = hook.evaluate(twos(), track=True)
    assert list(hook.history) == [record]
    assert hook.best is not None
    assert hook.best.score == 4.0


def test_the_hooks_own_loader_counts_if_the_hook_is_attached() -> None:
    trainer, hook = make_loader_hook(interval=None)
    assert hook.evaluate().metrics == {"val_loss": 1.0}
    assert len(hook.history) == 0
    hook.attach(trainer)
    record = hook.evaluate()
    assert list(hook.history) == [record]
    assert record.samples == 6


def test_a_test_set_after_each_new_best_leaves_no_trace() -> None:
    trainer, hook = make_loader_hook()
    answers: list[EvalRecord] = []
    hook.on(NEW_BEST, lambda record: answers.append(hook.evaluate(twos())))
    hook.attach(trainer)
    run(trainer)
    assert [(a.epoch, a.metrics) for a in answers] == [(1, {"val_loss": 4.0})]
    assert [r.metrics for r in hook.history] == [{"val_loss": 1.0}] * 3


def test_an_answer_leaves_no_trace_at_all(tmp_path: Path) -> None:
    trainer, hook = make_loader_hook(out_dir=tmp_path / "run", interval=None, derive={"n": len})
    hook.attach(trainer)
    heard: list[Any] = []
    for event in ALL_EVENTS:
        hook.on(event, heard.append)
        trainer.add_event_handler(event, heard.append)
    hook.evaluator.add_event_handler(Events.COMPLETED, heard.append)
    before = trainer.state_dict(), hook.state_dict(), trainer.last_event_name
    record = hook.evaluate(track=False)
    assert record.metrics == {"val_loss": 1.0, "n": 1.0}
    assert heard == list(hook.history) == list(tmp_path.iterdir()) == []
    assert hook.best is None
    assert hook.score_function() == -math.inf
    assert not hasattr(trainer.state, "eval_hook")
    assert (trainer.state_dict(), hook.state_dict(), trainer.last_event_name) == before


def test_the_next_evaluation_after_an_answer_fires_completed_again() -> None:
    trainer, hook = make_loader_hook(interval=None)
    hook.attach(trainer)
    heard: list[Engine] = []
    hook.evaluator.add_event_handler(Events.COMPLETED, heard.append)
    hook.evaluate(track=False)
    assert heard == []
    hook.evaluate()
    assert len(heard) == 1


def test_a_step_that_has_a_record_returns_it() -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.25, 0.125])
    hook.attach(trainer)
    again: list[EvalRecord] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: again.append(hook.evaluate()))
    run(trainer)
    assert again == list(hook.history)
    assert hook.evaluate() is hook.history[-1]
    assert hook.evaluate(track=False).metrics == {"loss": 0.5}  # asked anew


def test_an_evaluation_asked_for_first_is_the_one_of_that_step() -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.25, 0.125])
    asked: list[EvalRecord] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: asked.append(hook.evaluate()))
    hook.attach(trainer)
    run(trainer)
    assert asked == list(hook.history)
    assert [r.metrics["loss"] for r in asked] == [0.5, 0.25, 0.125]


def test_an_evaluation_before_run_is_that_of_the_start() -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.25], start=0)
    hook.attach(trainer)
    record = hook.evaluate()
    assert (record.epoch, record.iteration, record.is_best) == (0, 0, True)
    run(trainer, epochs=1)
    assert [(r.iteration, r.metrics["loss"]) for r in hook.history] == [(0, 0.5), (4, 0.25)]


ANYWHERE: list[tuple[Any, list[tuple[int, int]]]] = [
    (Events.STARTED, [(0, 0)]),
    (Events.EPOCH_STARTED, [(0, 0), (1, 4)]),
    (Events.GET_BATCH_STARTED(lambda engine, n: n in (0, 4, 6)), [(0, 0), (1, 4), (2, 6)]),
    (Events.GET_BATCH_COMPLETED(lambda engine, n: n in (0, 4, 6)), [(0, 0), (1, 4), (2, 6)]),
    # The iteration that starts is not completed: what it leads to is another step.
    (Events.ITERATION_STARTED(once=1), [(0, 0)]),
    (Events.ITERATION_STARTED(once=5), [(1, 4)]),
    (Events.ITERATION_STARTED(once=7), [(2, 6)]),
    (Events.ITERATION_COMPLETED(once=7), [(2, 7)]),
    (Events.EPOCH_COMPLETED, [(1, 4), (2, 8)]),
    (Events.COMPLETED, [(2, 8)]),
]


@pytest.mark.parametrize(("event", "expected"), ANYWHERE)
@pytest.mark.parametrize("first", [False, True])
def test_an_evaluation_asked_for_in_any_handler_is_of_the_iterations_completed(
    event: Any, expected: list[tuple[int, int]], first: bool
) -> None:
    trainer, hook = make_trainer(), make_hook(interval=None)
    if not first:
        hook.attach(trainer)
    trainer.add_event_handler(event, lambda engine: hook.evaluate())
    if first:
        hook.attach(trainer)
    run(trainer, epochs=2)
    assert [(r.epoch, r.iteration) for r in hook.history] == expected


def test_an_evaluation_asked_for_in_the_training_step_does_not_replace_the_due_one() -> None:
    hook = make_hook(interval=2, by_epoch=False)
    trainer = Engine(lambda engine, batch: hook.evaluate())
    hook.attach(trainer)
    run(trainer, epochs=1)
    assert iterations(hook) == [0, 1, 2, 3, 4]


def test_only_on_demand_is_only_on_demand(tmp_path: Path) -> None:
    trainer = make_trainer()
    hook = make_hook([0.5], interval=None, out_dir=tmp_path / "run", model=nn.Linear(1, 1))
    hook.attach(trainer)
    run(trainer)
    assert len(hook.history) == 0
    record = hook.evaluate()
    assert (record.epoch, record.iteration, record.is_best) == (3, 12, True)
    assert hook.best is not None
    assert hook.best.path is not None
    assert Path(hook.best.path).exists()


@pytest.mark.parametrize("track", [None, False])
@pytest.mark.parametrize("where", ["listener", "trainer", "evaluator", "derive"])
def test_an_evaluation_inside_an_evaluation_is_refused(where: str, track: bool | None) -> None:
    def ask(*args: Any) -> float:
        return hook.evaluate(track=track).seconds

    trainer, hook = make_loader_hook(derive={"nested": ask} if where == "derive" else None)
    hook.attach(trainer)
    if where == "listener":
        hook.on(STARTED, ask)
    elif where == "trainer":
        trainer.add_event_handler(STARTED, ask)
    elif where == "evaluator":
        hook.evaluator.add_event_handler(Events.ITERATION_COMPLETED, ask)
    with pytest.raises(EvaluationError, match=r"'val' is evaluating already; evaluate\(\) was c"):
        run(trainer)
    assert len(hook.history) == 0


def test_an_evaluator_that_runs_is_not_started_again_by_another_hook() -> None:
    trainer, hook = make_loader_hook()
    other = EvalHook(twos(), hook.evaluator, name="other", interval=None)
    hook.attach(trainer)
    hook.evaluator.add_event_handler(Events.COMPLETED, lambda: other.evaluate())
    with pytest.raises(EvaluationError, match="the evaluator is running already"):
        run(trainer)


def test_data_may_be_missing_for_a_function_only() -> None:
    with pytest.raises(ValueError, match="evaluator is a function, which takes no dataloader"):
        make_hook().evaluate(twos())
    with pytest.raises(TypeError, match="re-iterable"):
        make_loader_hook()[1].evaluate(iter([1]))


def test_a_function_gets_the_trainer_and_keeps_gradients() -> None:
    seen: list[Any] = []
    weight = nn.Parameter(torch.ones(()))

    def measure(engine: Engine | None) -> dict[str, Any]:
        seen.append((engine, torch.is_grad_enabled(), (weight * 2).requires_grad))
        return {"loss": weight * 2}

    hook = EvalHook(None, measure, model=nn.Identity())
    assert hook.evaluate().metrics == {"loss": 2.0}
    trainer = make_trainer()
    hook.attach(trainer)
    run(trainer, epochs=1)
    assert seen == [(None, True, True), (trainer, True, True)]


# --- several hooks ---------------------------------------------------------------------------


def test_two_hooks_have_their_own_schedules_bests_and_files(tmp_path: Path) -> None:
    trainer, model = make_trainer(), nn.Linear(1, 1)
    val = make_hook([0.5, 0.6, 0.4], out_dir=tmp_path, model=model).attach(trainer)
    test = make_hook(
        [0.1, 0.2], out_dir=tmp_path, model=model, name="test", interval=5, by_epoch=False
    ).attach(trainer)
    run(trainer)
    assert (iterations(val), iterations(test)) == ([4, 8, 12], [5, 10])
    assert val.best is not None
    assert test.best is not None
    assert (val.best.score, val.best.iteration) == (0.4, 12)
    assert (test.best.score, test.best.iteration) == (0.1, 5)
    assert History.read(tmp_path / "history.jsonl") == val.history
    assert History.read(tmp_path / "history_test.jsonl") == test.history
    assert Path(str(val.best.path)).exists()
    assert Path(str(test.best.path)).exists()
    assert val.best.path != test.best.path


def test_two_hooks_that_share_an_engine_do_not_disturb_each_other() -> None:
    trainer, val = make_loader_hook()
    test = EvalHook(
        twos(), val.evaluator, name="test", interval=2, save_best="val_loss", out_dir=False
    )
    steps: list[tuple[str, float]] = []
    for hook in (val, test):
        hook.attach(trainer)
        hook.on(
            COMPLETED,
            lambda record, hook=hook: steps.append((hook.name, hook.score_function(None))),
        )
    run(trainer, epochs=4)
    assert [r.metrics["val_loss"] for r in val.history] == [1.0] * 4
    assert [r.metrics["val_loss"] for r in test.history] == [4.0] * 2
    assert [r.samples for r in test.history] == [5, 5]
    assert steps == [
        ("val", -1.0), ("val", -1.0), ("test", -4.0), ("val", -1.0), ("val", -1.0), ("test", -4.0)
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["trainer", "listener"])
def test_a_hook_that_evaluates_in_anothers_event_leaves_that_event_as_it_was(where: str) -> None:
    trainer = make_trainer()
    val = make_hook().attach(trainer)
    test = make_hook(name="test", interval=None).attach(trainer)
    heard: list[tuple[str, str, int]] = []

    def ask(*args: Any) -> None:
        if len(val.history) > len(test.history) + 1:  # from the second on: counts differ
            test.evaluate()

    def hear(where: str) -> None:
        state: Any = trainer.state
        heard.append((where, state.eval_hook.name, state.eval_completed_count))

    if where == "trainer":
        trainer.add_event_handler(COMPLETED, ask)
    else:
        val.on(COMPLETED, ask)
    val.on(COMPLETED, lambda record: hear("on"))
    trainer.add_event_handler(COMPLETED, hear, "trainer")
    run(trainer, epochs=2)
    inner = ("trainer", "test", 1)
    second = [("on", "val", 2), inner, ("trainer", "val", 2)]
    if where == "listener":
        second = [inner, ("on", "val", 2), ("trainer", "val", 2)]
    assert heard == [("on", "val", 1), ("trainer", "val", 1), *second]


def test_the_same_name_twice_on_one_trainer_is_refused() -> None:
    trainer = make_trainer()
    first = make_hook().attach(trainer)
    with pytest.raises(ValueError, match="another hook named 'val' is attached to this trainer"):
        make_hook().attach(trainer)
    make_hook(name="test").attach(trainer)
    first.detach()
    make_hook().attach(trainer)


def test_the_same_name_twice_in_one_folder_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    first, second = make_trainer(), make_trainer()
    inner = make_hook(out_dir=tmp_path, model=model).attach(second)
    outer = make_hook(out_dir=tmp_path, model=model).attach(first)
    outer.on(COMPLETED, lambda record: run(second))
    with pytest.raises(StateError):
        run(first)
    assert len(inner.history) == 0
    assert len(outer.history) == 1


def test_a_hook_is_attached_once_and_to_an_engine_that_is_not_its_evaluator() -> None:
    trainer, hook = make_loader_hook()
    assert hook.attach(trainer) is hook
    with pytest.raises(ValueError, match="'val' is attached already; detach"):
        hook.attach(make_trainer())
    hook.detach()
    with pytest.raises(ValueError, match="the trainer cannot be the evaluator"):
        hook.attach(hook.evaluator)
    with pytest.raises(TypeError, match="trainer must be an ignite Engine, got Linear"):
        hook.attach(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_one_engine_may_listen_to_two_hooks_of_two_trainers() -> None:
    one, two = make_trainer(), make_trainer()
    first, second = make_hook(), make_hook(interval=2)
    first.attach(one)
    second.attach(two)
    run(one)
    run(two)
    assert (iterations(first), iterations(second)) == ([4, 8, 12], [8])


# --- detach, re-attach, reset ----------------------------------------------------------------


def test_a_detached_hook_hears_nothing_and_remembers() -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.3])
    handlers = {event: list(h) for event, h in trainer._event_handlers.items() if h}
    hook.attach(trainer)
    run(trainer, epochs=2)
    hook.detach()
    assert {event: list(h) for event, h in trainer._event_handlers.items() if h} == handlers
    run(trainer, epochs=4)
    assert iterations(hook) == [4, 8]
    assert hook.best is not None
    assert hook.best.score == 0.3
    hook.detach()  # twice is once


def test_listeners_stay_when_a_hook_moves_to_another_trainer() -> None:
    hook, heard = make_hook(), []
    hook.on(COMPLETED, lambda record: heard.append(record.iteration))
    hook.attach(first := make_trainer())
    run(first, epochs=1)
    hook.detach()
    hook.attach(second := make_trainer())
    run(second, epochs=2, length=3)
    assert heard == [4, 3, 6]
    assert iterations(hook) == [3, 6]  # another trainer's run is a fresh one


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, COMPLETED, STARTED, NEW_BEST])
def test_a_hook_may_be_detached_in_any_handler(event: Any, by_epoch: bool) -> None:
    trainer, hook = make_trainer(), make_hook(by_epoch=by_epoch, interval=1 if by_epoch else 4)
    if event is Events.EPOCH_COMPLETED:
        trainer.add_event_handler(event, hook.detach)
        hook.attach(trainer)
    else:
        hook.attach(trainer)
        trainer.add_event_handler(event(once=1), hook.detach)
    bests: list[EvalRecord] = []
    hook.on(NEW_BEST, bests.append)
    run(trainer)
    by_iteration_first = event is Events.EPOCH_COMPLETED and not by_epoch
    expected = [4] if event is not Events.EPOCH_COMPLETED or by_iteration_first else []
    assert iterations(hook) == expected
    assert [record.iteration for record in bests] == expected


@pytest.mark.parametrize(
    "event", [Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.COMPLETED]
)
def test_a_hook_detached_by_an_earlier_handler_of_the_same_firing_does_nothing(event: Any) -> None:
    trainer, hook = make_trainer(), make_hook(start=0, interval=1, by_epoch=False, at_end=True)
    trainer.add_event_handler(event, hook.detach)
    hook.attach(trainer)
    run(trainer, epochs=1)
    expected = {Events.STARTED: [], Events.COMPLETED: [0, 1, 2, 3, 4]}
    assert iterations(hook) == expected.get(event, [0])


def test_a_hook_that_was_away_during_an_interruption_goes_on(tmp_path: Path) -> None:
    trainer, hook = make_trainer(), make_hook(out_dir=tmp_path, model=nn.Linear(1, 1))
    hook.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), trainer.interrupt)
    run(trainer)
    hook.detach()
    hook.attach(trainer)
    run(trainer)
    assert iterations(hook) == [4, 8, 12]
    assert History.read(tmp_path / "history.jsonl") == hook.history
    assert not (tmp_path / "earlier").exists()
    # It has the folder for itself again, and has let go of it in the end.
    other = make_hook(out_dir=tmp_path, model=nn.Linear(1, 1)).attach(make_trainer())
    other.evaluate()


def test_a_hook_that_was_away_holds_its_folder_again(tmp_path: Path) -> None:
    trainer, hook = make_trainer(), make_hook(out_dir=tmp_path, model=nn.Linear(1, 1))
    hook.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), trainer.interrupt)
    run(trainer)
    hook.detach()
    hook.attach(trainer)
    other_trainer = make_trainer()
    other = make_hook(out_dir=tmp_path, model=nn.Linear(1, 1)).attach(other_trainer)
    hook.on(COMPLETED(once=2), lambda record: run(other_trainer))
    with pytest.raises(StateError):
        run(trainer)
    assert len(other.history) == 0


def test_a_hook_attached_again_in_mid_epoch_holds_its_folder_from_the_next_iteration_on(
    tmp_path: Path,
) -> None:
    options = {"out_dir": tmp_path, "model": nn.Linear(1, 1), "by_epoch": False, "interval": 4}
    trainer, hook = make_trainer(), make_hook(**options)
    hook.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), hook.detach)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), lambda: hook.attach(trainer))
    other = make_hook(**options).attach(make_trainer())
    refused: list[int] = []

    @trainer.on(Events.ITERATION_COMPLETED(once=7))
    def try_to_have_it() -> None:
        with pytest.raises(StateError):
            other.evaluate()
        refused.append(trainer.state.iteration)

    run(trainer, epochs=1, length=12)
    assert refused == [7]
    assert iterations(hook) == [4, 8, 12]


def test_reset_forgets_history_and_best_and_touches_no_file(tmp_path: Path) -> None:
    trainer, hook = make_trainer(), make_hook([0.5, 0.3], out_dir=tmp_path, model=nn.Linear(1, 1))
    hook.attach(trainer)
    stopper = hook.early_stopping(5)
    run(trainer, epochs=3)
    assert stopper.counter == 1
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    hook.reset()
    assert list(hook.history) == []
    assert hook.best is None
    assert hook.bests == {"loss": ()}
    assert stopper.counter == 0
    assert hook.score_function() == -math.inf
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_after_reset_a_hook_starts_anew_in_the_middle_of_a_run(tmp_path: Path) -> None:
    trainer, model = make_trainer(), nn.Linear(1, 1)
    hook = make_hook([0.1, 0.5, 0.3], out_dir=tmp_path, model=model).attach(trainer)
    first = hook.state_dict()["run_id"]
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), hook.reset)
    run(trainer)
    assert iterations(hook) == [8, 12]
    assert [record.is_best for record in hook.history] == [True, True]
    # What came before belongs to another history, and is put aside with it.
    assert History.read(tmp_path / "history.jsonl") == hook.history
    assert len(History.read(tmp_path / "earlier" / first / "history.jsonl")) == 1


def test_after_a_run_the_hook_can_be_asked_for_its_state_and_its_words() -> None:
    trainer, hook = make_trainer(), make_hook()
    hook.attach(trainer)
    run(trainer, epochs=1)
    assert repr(hook) == "EvalHook('val', every epoch, 1 evaluations)"
    assert hook.state_dict()["history"][0]["metrics"] == {"loss": 0.5}
