"""``save_best``: which metric is followed, by which rule, and what is a score."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Loss, MeanAbsoluteError
from torch import nn

from helpers.scripted import best_files, best_json, counter, run, scripted, step_in
from ignite_evalhook import (
    EvalEvents,
    EvalHook,
    EvaluationError,
    RuleInferenceError,
    StateError,
    ValLoss,
    create_evaluator,
    find_best,
)

NAN, INF = math.nan, math.inf
DATA = [(torch.ones(2, 1), torch.zeros(2, 1)), (torch.ones(1, 1), torch.ones(1, 1))]


@contextmanager
def lines() -> Iterator[list[str]]:
    """Collect what the package logs."""
    found: list[str] = []
    logger = logging.getLogger("ignite_evalhook")
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def best_steps(hook: EvalHook, metric: str = "acc") -> list[int]:
    return [record.iteration for record in hook.history if metric in record.best_of]


# ----------------------------------------------------------------------------- forms of save_best


@pytest.mark.parametrize(
    ("save_best", "n_saved", "kept"),
    [
        ("acc", 1, {"acc": [3]}),
        ("acc", 2, {"acc": [3, 2]}),
        ("acc", None, {"acc": [3, 2, 1]}),
        (["acc"], 1, {"acc": [3]}),
        (["acc", "loss"], 1, {"acc": [3], "loss": [2]}),
        (("loss", "acc"), 2, {"loss": [2, 1], "acc": [3, 2]}),
        ({"acc": 1, "loss": 2}, 1, {"acc": [3], "loss": [2, 1]}),
        ({"loss": None}, 1, {"loss": [2, 1, 3]}),
    ],
)
def test_save_best_is_a_name_or_names_or_names_with_how_many(
    save_best: Any, n_saved: int | None, kept: dict[str, list[int]], tmp_path: Path
) -> None:
    scores = [{"acc": 0.1, "loss": 0.2}, {"acc": 0.2, "loss": 0.1}, {"acc": 0.3, "loss": 0.3}]
    hook = run(scores, tmp_path, save_best=save_best, n_saved=n_saved)
    found = {metric: [best.epoch for best in bests] for metric, bests in hook.bests.items()}
    assert found == kept
    listed = best_json(tmp_path)["kept"]
    assert {m: [f["epoch"] for f in part["files"]] for m, part in listed.items()} == kept
    assert len(best_files(tmp_path)) == sum(map(len, kept.values()))


@pytest.mark.parametrize(
    ("save_best", "error", "words"),
    [
        (3, TypeError, "save_best must be a metric name, a list of names, a mapping"),
        (True, TypeError, "save_best must be a metric name"),
        ({"acc"}, TypeError, "save_best must be a metric name"),
        ("", ValueError, "save_best must name at least one metric, got ''"),
        ([], ValueError, r"save_best must name at least one metric, got \[\]"),
        ({}, ValueError, "save_best must name at least one metric"),
        (["acc", 3], (TypeError, ValueError), "save_best must "),
        (["acc", "acc"], ValueError, "save_best names a metric twice"),
        (["auto", "acc"], ValueError, "save_best='auto' chooses one metric"),
        ({"acc": 0}, ValueError, "n_saved must be a positive integer or None.*got 0"),
        ({"acc": 1.5}, ValueError, "n_saved must be a positive integer"),
        ({"acc": True}, ValueError, "n_saved must be a positive integer"),
    ],
)
def test_any_other_form_is_refused_at_construction(save_best: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        scripted([], save_best=save_best)


@pytest.mark.parametrize("n_saved", [0, -1, 1.0, "1", True])
def test_n_saved_must_be_a_positive_integer(n_saved: Any) -> None:
    with pytest.raises(ValueError, match="n_saved must be a positive integer or None"):
        scripted([], n_saved=n_saved)


def test_save_best_needs_a_place_or_a_word_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="save_best='mIoU' needs out_dir='…'; out_dir=False follows the best without files",
    ):
        scripted([], None, save_best="mIoU")
    hook = run([0.1, 0.5, 0.3], False)
    assert hook.best is not None
    assert (hook.best.score, hook.best.epoch, hook.best.path) == (0.5, 2, None)
    assert list(tmp_path.iterdir()) == []


def test_without_save_best_nothing_is_best_and_no_checkpoint_is_written(tmp_path: Path) -> None:
    hook = run([0.1, 0.5], tmp_path, save_best=None)
    assert hook.best is None
    assert dict(hook.bests) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
    with pytest.raises(ValueError, match="no metric is followed: save_best names no metric"):
        hook.score_function()


def test_the_first_name_decides_for_best_and_score_function() -> None:
    hook = run([{"loss": 0.2, "acc": 0.1}, {"loss": 0.1, "acc": 0.05}], save_best=["loss", "acc"])
    assert hook.best is not None
    assert (hook.best.metric, hook.best.score) == ("loss", 0.1)
    assert hook.score_function() == -0.1
    assert hook.score_function_for("acc")(None) == 0.05
    assert [record.best_of for record in hook.history] == [("loss", "acc"), ("loss",)]
    assert [record.is_best for record in hook.history] == [True, True]


# ------------------------------------------------------------------------------------------- auto


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ({"acc": 0.1, "loss": 0.2}, "acc"),
        ({"loss": 0.2, "acc": 0.1}, "loss"),
        ({"bbox_mAP_copypaste": "0.1 0.2", "bbox_mAP": 0.1}, "bbox_mAP"),
        ({"acc_per_class": [0.1, 0.2], "acc": 0.1}, "acc"),
        ({"val_loss": 0.3}, "val_loss"),
        ({"acc": NAN, "loss": 0.2}, "acc"),
        ({"acc": torch.tensor(0.5), "loss": 0.2}, "acc"),
    ],
)
def test_auto_is_the_first_scalar_that_a_function_says(said: dict[str, Any], chosen: str) -> None:
    hook = run([said, said], save_best="auto")
    assert list(hook.bests) == [chosen]


class Scored(nn.Module):
    """A model that appends a validation loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def val_step(self, batch: Any) -> Any:
        x, y = batch
        return self.linear(x), y, ValLoss(nn.functional.mse_loss(self.linear(x), y))


@pytest.mark.parametrize(
    ("metrics", "compute", "chosen"),
    [
        ({"mae": MeanAbsoluteError(), "mse": Loss(nn.functional.mse_loss)}, False, "mae"),
        ({"mse": Loss(nn.functional.mse_loss), "mae": MeanAbsoluteError()}, False, "mse"),
        ({"mae": MeanAbsoluteError()}, True, "accuracy"),
        ({}, True, "accuracy"),
        ({}, False, "val_loss"),
    ],
)
def test_auto_asks_compute_metrics_then_the_evaluators_metrics_then_the_loss(
    metrics: dict[str, Any], compute: bool, chosen: str
) -> None:
    model = Scored()
    evaluator = create_evaluator(model, metrics)
    hook = EvalHook(
        DATA,
        evaluator,
        save_best="auto",
        out_dir=False,
        compute_metrics=(lambda results: {"accuracy": 0.5}) if compute else None,
    )
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0], max_epochs=1)
    assert hook.best is not None
    assert hook.best.metric == chosen


def test_auto_is_decided_once_and_stays_with_the_run_and_its_state(tmp_path: Path) -> None:
    said = [{"acc": 0.1, "loss": 0.2}, {"loss": 0.1, "acc": 0.2}, {"f1": 0.5, "acc": 0.3}]
    hook = run(said, tmp_path, save_best="auto")
    assert list(hook.bests) == ["acc"]
    state = hook.state_dict()
    again, _ = scripted([], tmp_path, save_best="auto")
    again.load_state_dict(state)
    assert again.best is not None
    assert (again.best.metric, again.best.score) == ("acc", 0.3)
    other, _ = scripted([], tmp_path, save_best="loss")
    with pytest.raises(StateError, match=r"followed acc \(greater\), this hook follows loss"):
        other.load_state_dict(state)


def test_auto_waits_for_a_result_that_is_not_empty() -> None:
    hook, trainer = scripted([{}, {"acc": 0.5}, {}], save_best="auto")
    stopper = hook.early_stopping(5)
    hook.attach(trainer)
    seen: list[float] = []
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: seen.append(hook.score_function()))
    trainer.run([0], max_epochs=3)
    assert best_steps(hook) == [2]
    assert seen == [-INF, 0.5, -INF]
    assert stopper.counter == 1


def test_auto_without_any_number_says_what_there_is() -> None:
    with pytest.raises(EvaluationError, match=r"save_best='auto' found no number among \['name'\]"):
        run([{"name": "x"}], save_best="auto")


def test_auto_with_a_name_that_tells_no_rule_is_found_before_the_first_step() -> None:
    evaluator = create_evaluator(counter(), {"strangeness": MeanAbsoluteError()})
    hook = EvalHook(DATA, evaluator, save_best="auto", out_dir=False)
    steps: list[int] = []
    trainer = Engine(lambda engine, batch: steps.append(1))
    hook.attach(trainer)
    with pytest.raises(RuleInferenceError, match="strangeness"):
        trainer.run([0], max_epochs=1)
    assert steps == []


# --------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("metric", "options", "best"),
    [
        ("acc", {}, 0.3),
        ("val_loss", {}, 0.1),
        ("heatmap_loss", {}, 0.1),
        ("MAPE", {}, 0.1),
        ("wer", {}, 0.1),
        ("perplexity", {}, 0.1),
        ("acc", {"rule": "less"}, 0.1),
        ("strangeness", {"rule": "greater"}, 0.3),
        ("strangeness", {"rule": {"strangeness": "less"}}, 0.1),
        ("acc", {"rule": {"other": "less"}}, 0.3),
        ("mStrangeness", {"greater_keys": "strangeness"}, 0.3),
        ("strangeness", {"less_keys": ["strangeness"]}, 0.1),
        ("NDS", {"preset": "mmdet3d"}, 0.3),
        ("mATE", {"preset": "mmdet3d"}, 0.1),
        ("pts_bbox_NuScenes/mATE", {"preset": "mmdet3d"}, 0.1),
    ],
)
def test_the_rule_is_given_or_told_by_the_name(
    metric: str, options: dict[str, Any], best: float
) -> None:
    hook = run([{metric: 0.2}, {metric: 0.3}, {metric: 0.1}], save_best=metric, **options)
    assert hook.best is not None
    assert hook.best.score == best


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"save_best": "strangeness"}, RuleInferenceError, "strangeness.*rule="),
        ({"save_best": "acc_loss"}, RuleInferenceError, "acc_loss"),
        ({"save_best": ["acc", "strangeness"]}, RuleInferenceError, "strangeness"),
        ({"rule": "max"}, ValueError, "rule must be 'greater' or 'less', got 'max'"),
        ({"rule": {"acc": "up"}}, ValueError, "rule must be 'greater' or 'less', got 'up'"),
        ({"preset": "mmnothing"}, ValueError, "mmnothing"),
        ({"less_keys": 3}, TypeError, "less_keys must be a list or tuple of strings"),
        ({"greater_keys": [""]}, ValueError, "greater_keys must hold keys with a letter"),
    ],
)
def test_a_rule_that_cannot_be_told_is_refused_at_construction(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        scripted([], **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"best by acc \(greater is better, told by 'acc'\)"),
        ({"rule": "less"}, r"best by acc \(less is better, as given\)"),
        ({"save_best": ["loss", "acc"], "rule": {"acc": "greater"}},
         r"loss \(less is better, told by 'loss'\), acc \(greater is better, as given\)"),
    ],
)  # fmt: skip
def test_the_first_line_names_the_rule_found(options: dict[str, Any], words: str) -> None:
    with lines() as found:
        run([{"acc": 0.1, "loss": 0.1}], **options)
    assert re.search(words, found[0])


class OwnKeys(EvalHook):
    """As MMCV's migration notes say: a project's keys in a subclass."""

    greater_keys: ClassVar = ["strangeness"]
    less_keys: ClassVar = ["acc"]


class TiesReplace(EvalHook):
    rule_map: ClassVar = {"greater": lambda x, y: x >= y, "less": lambda x, y: x <= y}


class AtLeastHalf(EvalHook):
    init_value_map: ClassVar = {"greater": 0.5, "less": 0.5}


def test_a_subclass_may_bring_its_own_keys() -> None:
    hook = run([{"strangeness": 0.1}, {"strangeness": 0.2}], hook_class=OwnKeys,
               save_best="strangeness")  # fmt: skip
    assert hook.best is not None
    assert hook.best.score == 0.2
    hook = run([0.1, 0.2], hook_class=OwnKeys)
    assert hook.best is not None
    assert hook.best.score == 0.1
    hook = run([0.1, 0.2], hook_class=OwnKeys, greater_keys=["acc"], less_keys=["loss"])
    assert hook.best is not None
    assert hook.best.score == 0.2


def test_a_subclass_may_let_ties_replace(tmp_path: Path) -> None:
    scores = [0.5, 0.5, 0.1, 0.5]
    hook = run(scores, tmp_path, hook_class=TiesReplace)
    assert best_steps(hook) == [1, 2, 4]
    assert best_files(tmp_path) == ["best_model_4_acc=0.5.pt"]
    assert find_best(tmp_path) == hook.best


def test_a_subclass_that_lets_ties_replace_keeps_the_latest_ones(tmp_path: Path) -> None:
    hook = run([0.5, 0.5, 0.1, 0.5], tmp_path, hook_class=TiesReplace, n_saved=2)
    assert best_files(tmp_path) == ["best_model_2_acc=0.5.pt", "best_model_4_acc=0.5.pt"]
    assert find_best(tmp_path) == hook.best
    assert [best.epoch for best in hook.bests["acc"]] == [4, 2]


def test_a_subclass_may_say_what_the_first_score_has_to_beat(tmp_path: Path) -> None:
    hook = run([0.4, 0.5], tmp_path, hook_class=AtLeastHalf, n_saved=3)
    assert hook.best is None
    assert best_files(tmp_path) == []
    hook = run([0.4, 0.6, 0.55, 0.45], tmp_path / "b", hook_class=AtLeastHalf, n_saved=3)
    assert [best.epoch for best in hook.bests["acc"]] == [2, 3]
    assert len(best_files(tmp_path / "b")) == 2
    hook = run([0.6, 0.3], hook_class=AtLeastHalf, rule="less")
    assert hook.best is not None
    assert hook.best.score == 0.3


# -------------------------------------------------------------------------------- what is a score


@pytest.mark.parametrize(
    ("values", "best", "steps"),
    [
        ([0.0, -0.5], 0.0, [1]),
        ([-0.5, 0.0], 0.0, [1, 2]),
        ([-2, -1, -3], -1.0, [1, 2]),
        ([0, 0, 0], 0.0, [1]),
        ([1, 2, 3], 3.0, [1, 2, 3]),
        ([0.5, 0.5, 0.6, 0.6], 0.6, [1, 3]),
        ([0.12341, 0.12342, 0.12343], 0.12343, [1, 2, 3]),
        ([torch.tensor(0.25), torch.tensor(0.5)], 0.5, [1, 2]),
        ([torch.tensor(1), torch.tensor(2)], 2.0, [1, 2]),
        ([torch.tensor([0.5]).sum(), 0.25], 0.5, [1]),
        ([np.float64(0.25), np.float32(0.5)], 0.5, [1, 2]),
        ([np.int64(-1), np.int64(0)], 0.0, [1, 2]),
        ([np.array(0.25), np.array(0.5)], 0.5, [1, 2]),
        ([NAN, 0.1, NAN, 0.2], 0.2, [2, 4]),
        ([INF, 0.1, -INF, 0.2], 0.2, [2, 4]),
        ([0.1, NAN, INF, 0.1], 0.1, [1]),
        ([torch.tensor(NAN), 0.1], 0.1, [2]),
    ],
)
def test_zero_negative_integer_tensor_and_numpy_values_are_scores(
    values: list[Any], best: float, steps: list[int], tmp_path: Path
) -> None:
    hook = run(values, tmp_path)
    assert hook.best is not None
    assert hook.best.score == best
    assert type(hook.best.score) is float
    assert best_steps(hook) == steps
    assert step_in(hook.best.path) == steps[-1]
    assert all(type(record.metrics["acc"]) is float for record in hook.history)
    mirrored = run([-v for v in values], rule="less")
    assert best_steps(mirrored) == steps


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("rule", ["greater", "less"])
def test_a_run_of_nothing_but_nan_or_infinity_has_no_best_and_ends_well(
    value: float, rule: str, tmp_path: Path
) -> None:
    with lines() as found:
        hook = run([value] * 3, tmp_path, rule=rule)
    assert hook.best is None
    assert len(hook.history) == 3
    assert best_files(tmp_path) == []
    assert not (tmp_path / "best.json").exists()
    warned = [line for line in found if "recorded, but never the best" in line]
    assert len(warned) == 3


@pytest.mark.parametrize("on_bad_score", ["raise", "skip"])
def test_an_empty_result_is_recorded_and_warned_about_and_never_ends_training(
    on_bad_score: str,
) -> None:
    with lines() as found:
        hook, trainer = scripted([0.5, {}, 0.6], on_bad_score=on_bad_score)
        hook.attach(trainer)
        trainer.run([0], max_epochs=3)
    assert [dict(record.metrics) for record in hook.history] == [{"acc": 0.5}, {}, {"acc": 0.6}]
    assert best_steps(hook) == [1, 3]
    assert any("the result is empty; recorded without a score" in line for line in found)


def test_an_empty_compute_metrics_is_an_empty_result_beside_other_metrics() -> None:
    results: list[dict[str, float]] = [{"mAP": 0.5}, {}, {"mAP": 0.6}]
    script = iter(results)
    hook = EvalHook(
        DATA,
        create_evaluator(counter(), {"mae": MeanAbsoluteError()}),
        compute_metrics=lambda results: next(script),
        save_best="mAP",
        out_dir=False,
    )
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert best_steps(hook, "mAP") == [1, 3]
    assert [sorted(record.metrics) for record in hook.history][1] == ["mae"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"accuracy": 0.5, "other": 1}, r"no metric 'acc' in the result, which has "
         r"\['accuracy', 'other'\]"),
        ({"Acc": 0.5}, "did you mean 'Acc'"),
        ({"acc": "0.5"}, "'acc' is no number: '0.5'"),
        ({"acc": [0.5, 0.6]}, r"'acc' is no number: \[0.5, 0.6\]"),
        ({"acc": np.array([0.5, 0.6])}, "'acc' is no number"),
        ({"acc": torch.ones(2)}, "'acc' is no number"),
        ({"acc": None}, "'acc' is no number: 'None'"),
        ({"acc": {"a": 0.5}}, "'acc' is no number"),
    ],
)  # fmt: skip
def test_a_missing_key_or_a_value_that_is_no_number_raises_or_is_skipped(
    said: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    hook, trainer = scripted([0.5, said], tmp_path)
    hook.attach(trainer)
    with pytest.raises(EvaluationError, match=words) as caught:
        trainer.run([0], max_epochs=3)
    assert "on_bad_score='skip'" in str(caught.value)
    assert len(hook.history) == 1
    with lines() as found:
        hook = run([0.5, said, 0.6], tmp_path / "skip", on_bad_score="skip")
    assert best_steps(hook) == [1, 3]
    assert len(hook.history) == 3
    assert any("recorded without a score" in line for line in found)


def test_one_bad_metric_of_several_does_not_take_the_others_bests_when_skipped() -> None:
    said = [{"acc": 0.5, "loss": "?"}, {"acc": 0.4, "loss": 0.2}]
    hook = run(said, save_best=["acc", "loss"], on_bad_score="skip")
    assert [record.best_of for record in hook.history] == [("acc",), ("loss",)]


@pytest.mark.parametrize("on_bad_score", ["ignore", None, True])
def test_on_bad_score_is_raise_or_skip(on_bad_score: Any) -> None:
    with pytest.raises(ValueError, match=r"on_bad_score must be one of \['raise', 'skip'\]"):
        scripted([], on_bad_score=on_bad_score)


def test_strings_arrays_and_sentinels_stay_in_the_record_beside_the_score() -> None:
    said = {"acc": 0.5, "copypaste": "0.5 0.4", "per_class": np.array([0.1, 0.2]), "small": -1}
    hook = run([said])
    assert dict(hook.history[0].metrics) == {
        "acc": 0.5,
        "copypaste": "0.5 0.4",
        "per_class": [0.1, 0.2],
        "small": -1.0,
    }


def test_a_derived_metric_may_be_the_score() -> None:
    hook = run(
        [{"nll": 2.0}, {"nll": 1.0}],
        save_best="perplexity",
        derive={"perplexity": lambda m: math.exp(m["nll"])},
    )
    assert hook.best is not None
    assert hook.best.score == pytest.approx(math.e)


# -------------------------------------------------------------------------------- score functions


def test_the_score_function_is_signed_so_that_higher_is_better() -> None:
    said = [{"acc": 0.5, "loss": 0.25}, {"acc": NAN, "loss": INF}, {"other": 1.0}]
    hook, trainer = scripted(said, on_bad_score="skip")
    of_loss = hook.score_function_for("loss")
    seen: list[tuple[float, float]] = []
    hook.on(
        EvalEvents.EVAL_COMPLETED,
        lambda record: seen.append((hook.score_function(), of_loss(None))),
    )
    assert hook.score_function() == -INF
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert seen == [(0.5, -0.25), (-INF, -INF), (-INF, -INF)]


def test_a_score_function_for_a_metric_without_a_rule_is_refused() -> None:
    hook, _ = scripted([])
    with pytest.raises(RuleInferenceError, match="strangeness"):
        hook.score_function_for("strangeness")
    hook, _ = scripted([], rule={"strangeness": "less"})
    assert hook.score_function_for("strangeness")(None) == -INF


def test_what_auto_has_chosen_in_an_evaluation_that_failed_is_forgotten(tmp_path: Path) -> None:
    said: list[dict[str, float]] = [{"val_loss": 0.5}, {"accuracy": 0.9, "val_loss": 0.5}]
    hook, trainer = scripted(said, tmp_path, save_best="auto")

    def refuse(engine: Any) -> None:
        hook.evaluator.remove_event_handler(refuse, Events.COMPLETED)
        raise ValueError("not yet")

    hook.evaluator.add_event_handler(Events.COMPLETED, refuse)
    hook.attach(trainer)
    with pytest.raises(ValueError, match="not yet"):
        trainer.run([0], max_epochs=1)
    assert hook.bests == {}
    assert [path.name for path in tmp_path.glob("*.pt")] == []
    hook.evaluate()
    assert list(hook.bests) == ["accuracy"]
