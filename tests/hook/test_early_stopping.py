"""Early stopping: only a finite and strictly better score is an improvement."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import nn

from helpers.private import SafeEarlyStopping
from helpers.scripted import counter, run, scripted
from ignite_evalhook import (
    EvalEvents,
    EvalHook,
    RuleInferenceError,
    create_evaluator,
    find_best,
)

NAN, INF = math.nan, math.inf


def stopped_at(
    scores: list[Any], patience: int, *, epochs: int | None = None, **options: Any
) -> int:
    """Return the number of epochs that a run with early stopping trains."""
    hook_options = {k: options.pop(k) for k in ("rule", "save_best") if k in options}
    if "metric" in options and "rule_of" in options:
        options["rule"] = options.pop("rule_of")
    hook, trainer = scripted(scores, **hook_options)
    hook.early_stopping(patience, **options)
    hook.attach(trainer)
    trainer.run([0], max_epochs=epochs or len(scores))
    assert len(hook.history) == trainer.state.epoch
    return int(trainer.state.epoch)


# ---------------------------------------------------------------------------------- when it stops


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, 4),
        ([0.4, 0.3, 0.2, 0.1], 1, 2),
        ([0.4, 0.3, 0.2, 0.1], 2, 3),
        ([0.4, 0.3, 0.2, 0.1], 4, 4),
        ([0.1, 0.0, 0.2, 0.1, 0.3, 0.2, 0.1], 2, 7),
        # An equal score is no improvement.
        ([0.5, 0.5, 0.5, 0.5], 2, 3),
        ([0.0, 0.0, 0.0, 0.0], 2, 3),
        ([0.0, -0.0, 0.0, -0.0], 2, 3),
        # Zero and negative scores are scores.
        ([-0.3, -0.2, -0.1, 0.0, 0.1], 1, 5),
        ([-0.1, -0.2, -0.3], 2, 3),
        ([-1, 0, 1, 2], 1, 4),
        # NaN and infinity are no improvement, whenever they come.
        ([NAN] * 9, 2, 2),
        ([INF] * 9, 2, 2),
        ([-INF] * 9, 3, 3),
        ([NAN, 0.1, 0.2, 0.3], 2, 4),
        ([0.5, NAN, 0.4, NAN, 0.4], 3, 4),
        ([0.5, NAN, 0.6, NAN, 0.7, NAN], 2, 6),
        ([0.5, INF, 0.6, 0.55, INF], 2, 5),
        ([torch.tensor(0.5), torch.tensor(0.4)], 1, 2),
    ],
)
def test_training_stops_after_patience_evaluations_without_improvement(
    scores: list[Any], patience: int, epochs: int
) -> None:
    assert stopped_at(scores, patience) == epochs
    mirrored = [-score for score in scores]
    assert stopped_at(mirrored, patience, rule="less") == epochs


@pytest.mark.parametrize(
    ("scores", "options", "epochs"),
    [
        # By more than the threshold, not by as much.
        ([1.0, 1.25, 1.5, 1.75], {"threshold": 0.25}, 3),
        ([1.0, 1.5, 2.0, 2.5], {"threshold": 0.25}, 4),
        # Slow and steady: measured from the best seen, or from the last improvement.
        ([1.0, 1.25, 1.5, 1.75, 2.0], {"threshold": 0.375}, 3),
        ([1.0, 1.25, 1.5, 1.75, 2.0], {"threshold": 0.375, "cumulative": True}, 5),
        ([1.0, 1.125, 1.25, 1.375], {"threshold": 0.375, "cumulative": True}, 3),
        # Relative to the size of the best, whatever its sign.
        ([1.0, 1.25, 2.0, 2.25], {"threshold": 0.5, "threshold_mode": "rel"}, 4),
        ([4.0, 5.0, 5.5, 9.0], {"threshold": 0.5, "threshold_mode": "rel"}, 3),
        ([-4.0, -5.0, -5.5, -5.75], {"threshold": 0.5, "threshold_mode": "rel"}, 3),
        ([-4.0, -3.0, -1.0, -0.25], {"threshold": 0.5, "threshold_mode": "rel"}, 4),
        ([0.0, 0.25, 0.5], {"threshold": 0.5, "threshold_mode": "rel"}, 3),
        ([0.0, -0.5, -1.0], {"threshold": 0.5, "threshold_mode": "rel"}, 3),
        ([1.0, 1.25, 1.5, 1.75], {"min_delta": 0.25}, 3),
        ([1.0, 1.25, 1.5, 1.75, 2.0], {"min_delta": 0.375, "cumulative_delta": True}, 5),
    ],
)
def test_a_threshold_says_how_much_is_an_improvement(
    scores: list[float], options: dict[str, Any], epochs: int
) -> None:
    assert stopped_at(scores, 2, **options) == epochs
    mirrored = [-score for score in scores]
    assert stopped_at(mirrored, 2, rule="less", **options) == epochs


def test_the_last_record_is_complete_and_the_run_ends_as_ignite_ends_it(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.4, 0.3, 0.2], tmp_path)
    hook.early_stopping(2)
    hook.attach(trainer)
    ended: list[Any] = []
    trainer.add_event_handler(Events.COMPLETED, lambda engine: ended.append(engine.state.epoch))
    trainer.run([0], max_epochs=4)
    assert ended == [3]
    assert [record.metrics["acc"] for record in hook.history] == [0.5, 0.4, 0.3]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3
    assert find_best(tmp_path) == hook.best


def test_it_stops_in_the_middle_of_an_epoch_too() -> None:
    hook, trainer = scripted([0.5, 0.4, 0.3], interval=2, by_epoch=False)
    hook.early_stopping(2)
    hook.attach(trainer)
    trainer.run([0] * 10, max_epochs=3)
    assert trainer.state.iteration == 6


# ----------------------------------------------------------------------------------- which metric


SAID = [
    {"mAP": 0.1, "val_loss": 0.5},
    {"mAP": 0.2, "val_loss": 0.6},
    {"mAP": 0.3, "val_loss": 0.7},
    {"mAP": 0.4, "val_loss": 0.8},
]


def test_the_best_may_be_by_map_and_the_stop_by_val_loss(tmp_path: Path) -> None:
    hook, trainer = scripted(SAID, tmp_path, save_best="mAP")
    stopper = hook.early_stopping(2, metric="val_loss")
    hook.attach(trainer)
    trainer.run([0], max_epochs=4)
    assert trainer.state.epoch == 3
    assert hook.best is not None
    assert (hook.best.metric, hook.best.score) == ("mAP", 0.3)
    assert stopper.best_score == -0.5


def test_no_metric_need_be_followed_to_stop_by_one() -> None:
    assert stopped_at(SAID, 2, save_best=None, metric="val_loss") == 3
    assert stopped_at(SAID, 2, save_best=None, metric="mAP") == 4


def test_a_followed_metric_brings_its_own_rule_and_any_other_may_be_given_one() -> None:
    said = [{"acc": 0.3, "odd": 0.1}, {"acc": 0.2, "odd": 0.2}, {"acc": 0.1, "odd": 0.3}]
    assert stopped_at(said, 1, rule="less", metric="acc") == 3
    assert stopped_at(said, 1, metric="odd", rule_of="greater") == 3
    assert stopped_at(said, 1, metric="odd", rule_of="less") == 2
    assert stopped_at(said, 1, metric="acc", rule_of="less") == 3


def test_the_first_of_several_followed_metrics_decides_by_default() -> None:
    assert stopped_at(SAID, 2, save_best=["val_loss", "mAP"]) == 3
    assert stopped_at(SAID, 2, save_best=["mAP", "val_loss"]) == 4
    assert stopped_at(SAID, 2, save_best="auto") == 4


def test_a_metric_that_is_missing_now_and_then_counts_as_no_improvement() -> None:
    said: list[Any] = [{"acc": 0.1, "f1": 0.5}, {"acc": 0.2}, {"acc": 0.3, "f1": "?"}, {"acc": 0.4}]
    assert stopped_at(said, 2, metric="f1") == 3


def test_several_may_watch_and_the_first_to_lose_patience_stops() -> None:
    hook, trainer = scripted(SAID, save_best="mAP")
    by_map, by_loss = hook.early_stopping(2), hook.early_stopping(3, metric="val_loss")
    hook.attach(trainer)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 4
    assert (by_map.counter, by_loss.counter) == (0, 3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


def test_a_real_validation_loss_stops_a_real_run() -> None:
    model = Model()
    nn.init.zeros_(model.linear.weight)
    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    hook = EvalHook(data, create_evaluator(model, loss_fn=nn.functional.mse_loss))
    hook.early_stopping(3, metric="val_loss")

    def train(engine: Engine, batch: Any) -> None:
        with torch.no_grad():
            model.linear.weight.add_(0.5)  # right at step 2, and ever worse after it

    trainer = Engine(train)
    hook.attach(trainer)
    trainer.run([0], max_epochs=20)
    assert trainer.state.epoch == 5
    assert [r.metrics["val_loss"] for r in hook.history] == [0.25, 0.0, 0.25, 1.0, 2.25]


# ------------------------------------------------------------------------ added when, and to what


@pytest.mark.parametrize("when", ["before attach", "after attach", "while training"])
def test_it_may_be_added_before_or_after_attach_and_while_training(when: str) -> None:
    hook, trainer = scripted([0.5] * 9)
    if when == "before attach":
        hook.early_stopping(2)
    hook.attach(trainer)
    if when == "after attach":
        hook.early_stopping(2)
    if when == "while training":
        trainer.add_event_handler(Events.STARTED, lambda engine: hook.early_stopping(2) and None)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 3


def test_it_stops_the_trainer_that_the_hook_is_attached_to() -> None:
    hook, first = scripted([0.5] * 20)
    hook.early_stopping(2)
    hook.attach(first)
    hook.detach()
    second = Engine(lambda engine, batch: None)
    hook.attach(second)
    second.run([0], max_epochs=9)
    assert second.state.epoch == 3
    assert not first.should_terminate


def test_what_comes_back_is_ignites_handler() -> None:
    hook, _ = scripted([])
    stopper = hook.early_stopping(4, threshold=0.5)
    assert isinstance(stopper, EarlyStopping)
    assert (stopper.patience, stopper.counter, stopper.best_score) == (4, 0, None)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, (0.0, "abs", False)),
        ({"threshold": 0.1, "threshold_mode": "rel", "cumulative": True}, (0.1, "rel", True)),
        ({"min_delta": 1, "cumulative_delta": True}, (1.0, "abs", True)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # names of older Ignite
def test_its_attributes_say_what_it_does(
    options: dict[str, Any], shown: tuple[float, str, bool]
) -> None:
    hook, trainer = scripted([0.5, 0.25])
    stopper: Any = hook.early_stopping(3, **options)
    assert (stopper.threshold, stopper.threshold_mode, stopper.cumulative) == shown
    assert (stopper.min_delta, stopper.cumulative_delta) == (shown[0], shown[2])
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    threshold, mode, cumulative = shown
    assert repr(stopper) == (
        f"EarlyStopping(patience=3, threshold={threshold}, threshold_mode={mode!r}, "
        f"cumulative={cumulative}, counter=1, best_score=0.5)"
    )
    assert stopper.state_dict() == {"counter": 1, "best_score": 0.5}
    assert stopper.trainer is trainer


def test_what_is_set_on_it_while_training_counts_from_then_on() -> None:
    hook, trainer = scripted([0.5, 0.55, 0.6, 0.62, 0.64, 0.66])
    stopper: Any = hook.early_stopping(9)
    hook.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def harden(engine: Engine) -> None:
        stopper.threshold, stopper.patience = 0.1, 2

    trainer.run([0], max_epochs=9)
    assert (trainer.state.epoch, stopper.counter) == (4, 2)


def test_it_cannot_be_attached_a_second_time() -> None:
    hook, trainer = scripted([])
    with pytest.raises(ValueError, match="do not attach it"):
        hook.early_stopping(3).attach(trainer)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"patience": 0}, ValueError, "patience must be a positive integer, got 0"),
        ({"patience": 2.0}, ValueError, r"patience must be a positive integer, got 2\.0"),
        ({"patience": True}, ValueError, "patience must be a positive integer, got True"),
        ({"threshold": -0.1}, ValueError, r"threshold must be a finite number >= 0, got -0\.1"),
        ({"threshold": NAN}, ValueError, "threshold must be a finite number"),
        ({"threshold": "1"}, ValueError, "threshold must be a finite number"),
        ({"threshold_mode": "relative"}, ValueError, "threshold_mode must be 'abs' or 'rel'"),
        ({"delta": 0.1}, TypeError, r"early_stopping has no option \['delta'\]; there are"),
        ({"mode": "min"}, TypeError, r"early_stopping has no option \['mode'\]"),
        ({"rule": "less"}, ValueError, "rule= belongs to metric="),
        ({"metric": "odd"}, RuleInferenceError, "odd"),
        ({"metric": "odd", "rule": "min"}, ValueError, "rule must be 'greater' or 'less'"),
    ],
)
def test_a_wrong_argument_is_refused(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    hook, _ = scripted([])
    with pytest.raises(error, match=words):
        hook.early_stopping(**{"patience": 2, **arguments})
    assert hook.state_dict()["watchers"]["early_stopping"] == []


def test_without_a_followed_metric_it_asks_for_one() -> None:
    hook, _ = scripted([], save_best=None)
    with pytest.raises(ValueError, match="early_stopping needs metric='…', since save_best names"):
        hook.early_stopping(2)


def test_a_metric_that_will_not_be_there_is_found_before_the_first_step() -> None:
    hook = EvalHook([(torch.ones(1, 1), torch.ones(1, 1))], create_evaluator(Model()))
    hook.early_stopping(2, metric="val_loss")
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    with pytest.raises(ValueError, match="no metric 'val_loss'"):
        trainer.run([0], max_epochs=1)
    assert trainer.state.iteration == 0


# ---------------------------------------------------------------------------- what does not count


def test_an_evaluation_that_only_answers_does_not_count() -> None:
    hook, trainer = scripted([0.5, 0.4, 0.4, 0.4, 0.6])
    stopper = hook.early_stopping(2)
    hook.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def ask(engine: Engine) -> None:
        hook.evaluate(track=False)
        hook.evaluate(track=False)
        hook.evaluate()  # a step that has a record is not evaluated again

    trainer.run([0], max_epochs=3)
    assert stopper.counter == 0
    assert [record.metrics["acc"] for record in hook.history] == [0.5, 0.4, 0.6]


def test_an_evaluation_that_raised_does_not_count() -> None:
    hook, trainer = scripted([0.5, RuntimeError("boom"), 0.4, 0.4], interval=None)
    stopper = hook.early_stopping(5)
    hook.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine: Engine) -> None:
        if engine.state.epoch == 2:
            with pytest.raises(RuntimeError, match="boom"):
                hook.evaluate()
        else:
            hook.evaluate()

    trainer.run([0], max_epochs=3)
    assert stopper.counter == 1


def test_a_second_run_and_a_reset_begin_anew() -> None:
    hook, trainer = scripted([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    stopper = hook.early_stopping(2)
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert stopper.counter == 2
    trainer.state.max_epochs = None
    trainer.run([0], max_epochs=3)
    assert [record.metrics["acc"] for record in hook.history] == [0.2, 0.1, 0.1]
    hook.reset()
    assert (stopper.counter, stopper.best_score) == (0, None)


def test_a_second_run_after_an_early_stop_goes_on_and_counts_anew() -> None:
    hook, trainer = scripted([0.5, 0.4, 0.3, 0.2, 0.6, 0.1, 0.1, 0.1])
    impatient, patient = hook.early_stopping(2), hook.early_stopping(4)
    hook.attach(trainer)
    trainer.run([0], max_epochs=9)
    assert (trainer.state.epoch, impatient.counter, patient.counter) == (3, 2, 2)
    trainer.run([0], max_epochs=9)  # a worse one, a better one, and two worse
    assert trainer.state.epoch == 7
    assert (impatient.counter, patient.counter, impatient.best_score) == (2, 2, 0.6)
    trainer.run([0], max_epochs=8)
    assert [record.metrics["acc"] for record in hook.history] == [
        0.5, 0.4, 0.3, 0.2, 0.6, 0.1, 0.1, 0.1
    ]  # fmt: skip
    assert (impatient.counter, patient.counter) == (1, 3)


@pytest.mark.parametrize("how", ["detached", "loaded"])
def test_only_a_loaded_run_ends_again(how: str) -> None:
    hook, trainer = scripted([0.5] * 9)
    hook.early_stopping(2)
    hook.attach(trainer)
    trainer.run([0], max_epochs=9)
    if how == "detached":
        hook.detach()
        hook.attach(trainer)
    else:
        hook.load_state_dict(hook.state_dict())
    for more in (0, 2) if how == "loaded" else (2, 2):
        before = trainer.state.epoch
        trainer.run([0], max_epochs=9)
        assert trainer.state.epoch == before + more


# -------------------------------------------------------------------------------------- the state


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("load", ["before", "after"])
def test_counter_and_best_travel_in_the_hooks_state(load: str) -> None:
    hook = interrupted([0.9, 0.5, 0.4])
    state = through_a_file(hook.state_dict())
    again, _ = scripted([])
    if load == "before":
        again.load_state_dict(state)
    stopper = again.early_stopping(5)
    if load == "after":
        again.load_state_dict(state)
    assert (stopper.counter, stopper.best_score) == (2, 0.9)


def interrupted(scores: list[Any], patience: int = 5, **options: Any) -> EvalHook:
    hook, trainer = scripted(scores, **options)
    hook.early_stopping(patience)
    hook.attach(trainer)
    trainer.run([0], max_epochs=len(scores))
    return hook


def test_the_patience_of_now_is_obeyed_and_not_that_of_the_state() -> None:
    state = interrupted([0.9, 0.5, 0.4], patience=3).state_dict()
    again, _ = scripted([])
    stopper = again.early_stopping(10, threshold=0.25)
    again.load_state_dict(state)
    assert (stopper.patience, stopper.counter) == (10, 2)


def test_each_of_several_gets_its_own_state_back() -> None:
    hook, trainer = scripted(SAID[:3], save_best="mAP")
    hook.early_stopping(9)
    hook.early_stopping(9, metric="val_loss")
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    again, _ = scripted([], save_best="mAP")
    again.load_state_dict(hook.state_dict())
    by_loss, by_map = again.early_stopping(9, metric="val_loss"), again.early_stopping(9)
    new = again.early_stopping(9, metric="val_loss")
    assert (by_loss.counter, by_loss.best_score) == (2, -0.5)
    assert (by_map.counter, by_map.best_score) == (0, 0.3)
    assert (new.counter, new.best_score) == (0, None)


def test_a_restart_goes_on_counting_where_the_run_was_broken_off(tmp_path: Path) -> None:
    def start(scores: list[float], patience: int) -> tuple[EvalHook, Engine, bool]:
        model = counter()
        hook, trainer = scripted(scores, tmp_path, model=model)
        hook.attach(trainer)
        hook.early_stopping(patience)
        return hook, trainer, hook.keep_last({"model": model})

    _, trainer, resumed = start([0.9, 0.5], 3)
    trainer.run([0], max_epochs=2)
    assert not resumed
    hook, trainer, resumed = start([0.6, 0.7, 0.8, 0.95], 3)
    assert resumed
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 4  # 0.5, 0.6 and 0.7 were no improvement on 0.9
    assert hook.best is not None
    assert hook.best.score == 0.9
    # Stopped is stopped: another restart ends at once, unless patience is raised.
    hook, trainer, _ = start([0.8, 0.95], 3)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 4
    hook, trainer, _ = start([0.8, 0.95], 5)
    trainer.run([0], max_epochs=6)
    assert trainer.state.epoch == 6
    assert hook.best is not None
    assert hook.best.score == 0.95


# -------------------------------------------------------------------- Ignite's own, added by hand


@pytest.mark.parametrize(
    ("scores", "epochs"),
    [
        ([0.5, 0.4, 0.3, 0.2], 3),
        ([0.1, 0.2, 0.3, 0.4], 4),
        ([NAN] * 9, 3),
        ([0.5, NAN, 0.4, NAN], 3),
        ([0.5, INF, 0.6, 0.7], 4),
        ([0.0, 0.0, 0.0, 0.0], 3),
    ],
)
@pytest.mark.parametrize("rule", ["greater", "less"])
def test_ignites_own_handler_on_the_evaluator_stops_rightly(
    scores: list[float], epochs: int, rule: str
) -> None:
    if rule == "less":
        scores = [-score for score in scores]
    hook, trainer = scripted(scores, rule=rule)
    mine = EarlyStopping(2, hook.score_function, trainer)
    hook.evaluator.add_event_handler(Events.COMPLETED, mine)
    hook.attach(trainer)
    trainer.run([0], max_epochs=len(scores))
    assert trainer.state.epoch == epochs


def test_ignites_own_handler_sees_the_present_score_and_not_the_last_one() -> None:
    seen: list[tuple[float, float]] = []
    said = [{"acc": 0.5, "loss": 1.0}, {"acc": 0.25, "loss": 2.0}, {"acc": 0.75}]
    hook, trainer = scripted(said, on_bad_score="skip")
    of_loss = hook.score_function_for("loss")
    hook.evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: seen.append((hook.score_function(engine), of_loss(engine)))
    )
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert seen == [(0.5, -1.0), (0.25, -2.0), (0.75, -INF)]


def test_ignites_own_handler_stops_on_auto_and_on_an_empty_result() -> None:
    hook, trainer = scripted([{}, {}, {}, {}], save_best="auto")
    mine = EarlyStopping(2, hook.score_function, trainer)
    hook.evaluator.add_event_handler(Events.COMPLETED, mine)
    hook.attach(trainer)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 3


# ------------------------------------------------------------------------------------------- laws


def oracle(
    scores: list[float], patience: int, threshold: Fraction, relative: bool, cumulative: bool
) -> tuple[int | None, int]:
    """Return the evaluation that stops (1-based) and the counter there, by exact fractions."""
    reference: Fraction | None = None
    misses = 0
    for number, score in enumerate(scores, start=1):
        exact = Fraction(score) if math.isfinite(score) else None
        if exact is not None and reference is None:
            reference, misses = exact, 0
            continue
        if exact is not None and reference is not None:
            needed = threshold * abs(reference) if relative else threshold
            if exact - reference > needed:
                reference, misses = exact, 0
                continue
            if not cumulative and exact > reference:
                reference = exact
        misses += 1
        if misses >= patience:
            return number, misses
    return None, misses


eighths = st.integers(-24, 24).map(lambda number: number / 8)
said = st.one_of(eighths, eighths, st.sampled_from([NAN, INF, -INF, -0.0]))


class Feed:
    """Stands for an evaluator: gives out one score after the other."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = iter(scores)
        self.trainer = Engine(lambda engine, batch: None)

    def stopper(self, **options: Any) -> SafeEarlyStopping:
        return SafeEarlyStopping(
            score_function=lambda engine: next(self.scores), trainer=self.trainer, **options
        )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(said, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 12),
)
def test_law_it_stops_where_exact_arithmetic_says_also_across_a_restart(
    scores: list[float],
    patience: int,
    threshold: float,
    relative: bool,
    cumulative: bool,
    restart: int,
) -> None:
    expected, misses = oracle(scores, patience, Fraction(threshold), relative, cumulative)
    options: dict[str, Any] = {
        "patience": patience,
        "threshold": threshold,
        "threshold_mode": "rel" if relative else "abs",
        "cumulative": cumulative,
    }
    feed = Feed(scores)
    stopper = feed.stopper(**options)
    for number in range(1, len(scores) + 1):
        if number == restart:
            state = through_a_file(stopper.state_dict())
            stopper = feed.stopper(**options)
            stopper.load_state_dict(state)
        stopper(feed.trainer)
        assert stopper.exhausted == bool(feed.trainer.should_terminate) == (number == expected)
        if stopper.exhausted:
            break
    assert stopper.counter == misses


@settings(max_examples=25, deadline=None)
@given(st.lists(said, min_size=1, max_size=8), st.integers(1, 3), st.sampled_from([1, -1]))
def test_law_a_run_stops_where_the_oracle_says_by_either_rule(
    scores: list[float], patience: int, sign: int
) -> None:
    expected, _ = oracle(scores, patience, Fraction(0), False, False)
    rule = "greater" if sign == 1 else "less"
    epochs = stopped_at([sign * score for score in scores], patience, rule=rule)
    assert epochs == (len(scores) if expected is None else expected)


def test_events_of_the_evaluation_that_stops_still_fire() -> None:
    hook, trainer = scripted([0.5, 0.4, 0.4])
    hook.early_stopping(1)
    fired: list[int] = []
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: fired.append(record.epoch))
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert fired == [1, 2]
    assert run([0.5], False).best is not None
