"""Learning-rate schedulers that watch a metric: stepped after each evaluation, never by NaN."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.handlers.param_scheduler import ReduceLROnPlateauScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR

from helpers.scripted import counter, scripted
from ignite_evalhook import EvalEvents, RuleInferenceError

NAN, INF = math.nan, math.inf


def optimizer_of(model: nn.Module | None = None, lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD((counter() if model is None else model).parameters(), lr=lr)


def torch_kind(optimizer: torch.optim.Optimizer, mode: str, patience: int, metric: str) -> Any:
    return ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=patience, threshold=0.0)


def ignite_kind(optimizer: torch.optim.Optimizer, mode: str, patience: int, metric: str) -> Any:
    return ReduceLROnPlateauScheduler(
        optimizer, metric, mode=mode, factor=0.5, patience=patience, threshold=0.0
    )


both = pytest.mark.parametrize("kind", [torch_kind, ignite_kind])


def rates(
    scores: list[Any], kind: Any, *, mode: str = "max", patience: int = 0, **more: Any
) -> Any:
    """Return the learning rate after each evaluation."""
    metric = more.pop("metric", None)
    optimizer = optimizer_of()
    hook, trainer = scripted(scores, **more)
    hook.step_on_plateau(kind(optimizer, mode, patience, metric or "acc"), metric=metric)
    hook.attach(trainer)
    found: list[float] = []
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: found.append(optimizer.param_groups[0]["lr"]))
    trainer.run([0], max_epochs=len(scores))
    return found


@both
@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([0.1, 0.2, 0.3], 0, [1, 1, 1]),
        ([0.3, 0.2, 0.1], 0, [1, 0.5, 0.25]),
        ([0.3, 0.2, 0.2, 0.4], 1, [1, 1, 0.5, 0.5]),
        ([0.0, -0.1, 0.0], 0, [1, 0.5, 0.25]),
        # What is no score is skipped: neither an improvement nor a bad one.
        ([0.3, NAN, 0.2, NAN, 0.1], 0, [1, 1, 0.5, 0.5, 0.25]),
        ([NAN, NAN, 0.2, INF, 0.1], 0, [1, 1, 1, 1, 0.5]),
        ([torch.tensor(0.3), torch.tensor(0.2)], 0, [1, 0.5]),
    ],
)
@pytest.mark.parametrize("rule", ["greater", "less"])
def test_the_rate_falls_when_the_metric_stops_improving(
    kind: Any, scores: list[Any], patience: int, expected: list[float], rule: str
) -> None:
    if rule == "less":
        scores = [-score for score in scores]
    mode = {"greater": "max", "less": "min"}[rule]
    assert rates(scores, kind, mode=mode, patience=patience, rule=rule) == expected


@both
def test_any_metric_may_be_watched_followed_or_not(kind: Any) -> None:
    said = [{"acc": 0.1, "loss": 0.5}, {"acc": 0.2, "loss": 0.6}, {"acc": 0.3, "loss": 0.7}]
    assert rates(said, kind, mode="min", metric="loss") == [1, 0.5, 0.25]
    assert rates(said, kind, mode="min", metric="loss", save_best=None) == [1, 0.5, 0.25]
    assert rates(said, kind, save_best=["acc", "loss"]) == [1, 1, 1]


def test_ignites_handler_brings_the_name_of_its_metric(tmp_path: Path) -> None:
    said = [{"acc": 0.1, "loss": 0.5}, {"acc": 0.2, "loss": 0.6}]
    optimizer = optimizer_of()
    hook, trainer = scripted(said)
    hook.step_on_plateau(ignite_kind(optimizer, "min", 0, "loss"))
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    assert optimizer.param_groups[0]["lr"] == 0.5


@both
def test_a_metric_that_is_missing_or_no_number_now_and_then_is_skipped(kind: Any) -> None:
    said: list[Any] = [{"acc": 0.3}, {}, {"acc": 0.2}, {"acc": "?"}, {"acc": None}]
    assert rates(said, kind, on_bad_score="skip") == [1, 1, 0.5, 0.5, 0.5]


def test_auto_is_waited_for() -> None:
    assert rates([{}, 0.3, 0.2], torch_kind, save_best="auto") == [1, 1, 0.5]


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("min", {}, r"mode='min', but 'acc' is better when it is greater: use mode='max'"),
        ("max", {"rule": "less"}, r"mode='max', but 'acc' is better when it is less: use mode='mi"),
        ("max", {"metric": "loss"}, r"mode='max', but 'loss' is better when it is less"),
        ("max", {"save_best": ["loss", "acc"], "metric": None}, "but 'loss' is better"),
    ],
)
@both
def test_a_mode_that_contradicts_the_rule_is_refused(
    kind: Any, mode: str, options: dict[str, Any], words: str
) -> None:
    options = dict(options)
    metric = options.pop("metric", None)
    hook, _ = scripted([], **options)
    name = metric or hook._plan.follower.target().metric
    with pytest.raises(ValueError, match=words):
        hook.step_on_plateau(kind(optimizer_of(), mode, 0, name), metric=metric)
    assert hook.state_dict()["watchers"]["plateau"] == []


def test_two_names_for_the_metric_are_refused() -> None:
    hook, _ = scripted([])
    with pytest.raises(ValueError, match="the scheduler watches 'loss', got metric='acc'"):
        hook.step_on_plateau(ignite_kind(optimizer_of(), "min", 0, "loss"), metric="acc")


@pytest.mark.parametrize("scheduler", [None, 3, object(), "cosine"])
def test_what_cannot_be_stepped_is_refused(scheduler: Any) -> None:
    hook, _ = scripted([])
    with pytest.raises(TypeError, match=r"scheduler must have step\(value\), got "):
        hook.step_on_plateau(scheduler)


def test_a_metric_must_be_named_or_followed_and_tell_its_rule() -> None:
    hook, _ = scripted([], save_best=None)
    scheduler = torch_kind(optimizer_of(), "max", 0, "acc")
    with pytest.raises(ValueError, match="step_on_plateau needs metric='…'"):
        hook.step_on_plateau(scheduler)
    with pytest.raises(RuleInferenceError, match="odd"):
        hook.step_on_plateau(scheduler, metric="odd")


def test_a_scheduler_of_ones_own_is_stepped_with_the_value() -> None:
    class Mine:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def step(self, value: float) -> None:
            self.seen.append(value)

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = list(state["seen"])

    hook, trainer = scripted([0.5, NAN, 0.25])
    mine = Mine()
    hook.step_on_plateau(mine)
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert mine.seen == [0.5, 0.25]
    assert all(type(value) is float for value in mine.seen)


def test_several_schedulers_and_early_stopping_go_together() -> None:
    first, second = optimizer_of(), optimizer_of()
    hook, trainer = scripted([0.5, 0.4, 0.3, 0.2])
    hook.step_on_plateau(torch_kind(first, "max", 0, "acc"))
    hook.step_on_plateau(torch_kind(second, "max", 1, "acc"))
    hook.early_stopping(2)
    hook.attach(trainer)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 3
    assert [o.param_groups[0]["lr"] for o in (first, second)] == [0.25, 0.5]


# -------------------------------------------------------------------------------------- the state


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@both
@pytest.mark.parametrize("load", ["before", "after"])
def test_the_schedulers_state_travels_in_the_hooks_state(kind: Any, load: str) -> None:
    hook, trainer = scripted([0.5, 0.4, 0.4])
    hook.step_on_plateau(kind(optimizer_of(), "max", 5, "acc"))
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    state = through_a_file(hook.state_dict())
    again, _ = scripted([])
    scheduler = kind(optimizer_of(), "max", 5, "acc")
    if load == "before":
        again.load_state_dict(state)
    again.step_on_plateau(scheduler)
    if load == "after":
        again.load_state_dict(state)
    inner = getattr(scheduler, "scheduler", scheduler)
    assert (inner.best, inner.num_bad_epochs) == (0.5, 2)
    assert again.state_dict()["watchers"] == state["watchers"]


@both
def test_a_run_broken_anywhere_and_resumed_has_the_same_rates(kind: Any, tmp_path: Path) -> None:
    scores = [0.5, 0.4, NAN, 0.6, 0.55, 0.5, 0.7]
    unbroken = rates(scores, kind, patience=1)
    for cut in range(1, len(scores)):
        folder, found = tmp_path / str(cut), []
        for part, end in ((scores[:cut], cut), (scores[cut:], len(scores))):
            model = counter()
            optimizer = optimizer_of(model)
            hook, trainer = scripted(part, folder, model=model)
            hook.step_on_plateau(kind(optimizer, "max", 1, "acc"))
            hook.attach(trainer)
            hook.keep_last({"model": model, "optimizer": optimizer})
            hook.on(
                EvalEvents.EVAL_COMPLETED,
                lambda record, o=optimizer, f=found: f.append(o.param_groups[0]["lr"]),
            )
            trainer.run([0], max_epochs=end)
        assert found == unbroken


def test_ignites_handler_still_works_by_hand_on_the_evaluator() -> None:
    optimizer = optimizer_of()
    hook, trainer = scripted([{"acc": 0.5, "loss": 0.1}, {"acc": 0.4, "loss": 0.2}])
    scheduler = ignite_kind(optimizer, "min", 0, "loss")
    hook.evaluator.add_event_handler(Events.COMPLETED, scheduler)
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    assert optimizer.param_groups[0]["lr"] == 0.5


# -------------------------------------------------------------------------------------------- law


scores_of = st.lists(
    st.sampled_from([0.0, 0.25, -0.5, 1.0, NAN, INF, -INF]), min_size=1, max_size=7
)


@settings(max_examples=25, deadline=None)
@given(scores_of, st.integers(0, 2), st.sampled_from([torch_kind, ignite_kind]))
def test_law_it_is_torchs_own_scheduler_on_the_finite_scores(
    scores: list[float], patience: int, kind: Any
) -> None:
    optimizer = optimizer_of()
    plain = torch_kind(optimizer, "max", patience, "acc")
    expected: list[float] = []
    for score in scores:
        if math.isfinite(score):
            plain.step(score)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(scores, kind, patience=patience) == expected


def test_an_ordinary_scheduler_that_counts_epochs_is_not_what_this_is_for() -> None:
    scheduler: LRScheduler = StepLR(optimizer_of(), 1)
    hook, trainer = scripted([0.5])
    with pytest.raises(TypeError, match="watches no metric"):
        hook.step_on_plateau(scheduler)
    assert isinstance(trainer, Engine)
