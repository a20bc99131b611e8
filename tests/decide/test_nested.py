"""Metrics inside a nested result, by names with slashes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from helpers.private import MISSING, flat, look_up
from helpers.ranks import on_ranks
from helpers.scripted import run, scripted
from ignite_evalhook import EvalHook, History, create_evaluator, find_best
from ignite_evalhook.exceptions import EvaluationError

RESULT: dict[str, Any] = {
    "acc": 0.5,
    "bbox": {"AP50": 0.1, "AP": {"50": 0.2, "75": None}, "classes": [0.3, {"cat": 0.4}]},
    "bbox/AP50": 0.6,
    "a/b": {"c": 0.7, "d/e": 0.8},
    "a": {"b/c": 0.9, "b": {"c": 1.0, "f": 1.1}},
    "iou": [[1.2, 1.3], [1.4, 1.5]],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("acc", 0.5),
        ("bbox", RESULT["bbox"]),
        ("bbox/AP/50", 0.2),
        ("bbox/AP/75", None),
        ("bbox/classes/0", 0.3),
        ("bbox/classes/1/cat", 0.4),
        ("iou/1/0", 1.4),
        # A key that has the slash itself wins, then the longer one.
        ("bbox/AP50", 0.6),
        ("a/b/c", 0.7),
        ("a/b/d/e", 0.8),
        ("a/b/f", 1.1),
        *((name, MISSING) for name in (
            "", "/", "bbox/", "/acc", "acc/x", "acc/0", "bbox/AP/5", "bbox/AP/50/x", "bbox//AP50",
            "iou/2", "iou/-1", "iou/1/0/0", "iou/x", "iou/", "iou/1.0", "bbox/classes/²",
        )),
    ],
)  # fmt: skip
def test_a_name_leads_to_its_value(name: str, value: Any) -> None:
    assert look_up(RESULT, name) is value


nested = st.dictionaries(
    st.text("ab/0", max_size=3),
    st.recursive(
        st.floats(allow_nan=False) | st.lists(st.floats(allow_nan=False), max_size=2),
        lambda inner: st.dictionaries(st.text("ab/0", max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(nested)
def test_law_every_flat_name_that_is_unique_leads_to_its_value(metrics: dict[str, Any]) -> None:
    for name, value in flat(metrics).items():
        found = look_up(metrics, name)
        assert found is not MISSING
        if name.count("/") == 0 or name in metrics:
            assert found is value
    assert flat(flat(metrics)) == flat(metrics)


def test_the_metrics_of_a_record_are_kept_in_the_state_by_the_names_that_lead_to_them() -> None:
    hook = run([{"bbox": {"AP50": 0.5, "note": "x", "per class": [1.0, 2.0]}}], save_best=None)
    assert hook.history.table().splitlines()[0].split()[2] == "bbox/AP50"
    (row,) = hook.history.to_list()
    assert row["metrics"] == {"bbox/AP50": 0.5}


def nested_results(*scores: float) -> list[Any]:
    return [
        {"bbox": {"AP": {50: torch.tensor([score]), "75": np.float32(0.25)}, "loss": 1 - score}}
        for score in scores
    ]


def test_all_that_follows_a_metric_follows_a_nested_one(tmp_path: Path) -> None:
    scores = (0.25, 0.75, 0.5, 0.5, 0.5)
    hook, trainer = scripted(
        nested_results(*scores), tmp_path, save_best=["bbox/AP/50", "bbox/loss"],
        rule=["greater", None],
    )  # fmt: skip
    hook.attach(trainer)
    stopper = hook.early_stopping(3, metric="bbox/AP/50", rule="greater")
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    hook.step_on_plateau(ReduceLROnPlateau(optimizer, "min", 0.5, 1), metric="bbox/loss")
    score_of = hook.score_function_for("bbox/loss")
    trainer.run([0], max_epochs=9)
    assert hook.best is not None
    assert (hook.best.metric, hook.best.score, hook.best.epoch) == ("bbox/AP/50", 0.75, 2)
    assert hook.bests["bbox/loss"][0].score == 0.25
    assert stopper.counter == 3
    assert len(hook.history) == 5
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert (hook.score_function(), score_of(trainer)) == (0.5, -0.5)
    assert find_best(tmp_path, "bbox/loss").score == 0.25
    record = History.read(tmp_path / "history.jsonl")[1]
    assert record.best_of == ("bbox/AP/50", "bbox/loss")
    assert record.metrics["bbox"]["AP"] == {"50": 0.75, "75": 0.25}


def test_a_restart_knows_what_a_nested_metric_was(tmp_path: Path) -> None:
    first = run(nested_results(0.25, 0.75), tmp_path, save_best="bbox/AP/50", rule="greater")
    text = (tmp_path / "history.jsonl").read_text()
    hook, trainer = scripted([{}], tmp_path, save_best="bbox/AP/50", rule="greater")
    hook.attach(trainer)
    hook.early_stopping(5, metric="bbox/loss")
    hook.load_state_dict(first.state_dict())
    assert hook.score_function() == 0.75
    trainer.load_state_dict({"epoch": 2, "epoch_length": 1, "max_epochs": 3})
    trainer.run([0], max_epochs=3)
    assert (tmp_path / "history.jsonl").read_text().startswith(text)
    assert hook.best == first.best


def test_what_is_not_there_is_named_with_the_names_that_are() -> None:
    with pytest.raises(EvaluationError, match=r"'bbox/AP5'.*has \['bbox/AP50', 'loss'\]; did you"):
        run([{"bbox": {"AP50": 0.5}, "loss": 1}], save_best="bbox/AP5", rule="greater")
    with pytest.raises(EvaluationError, match=r"'bbox' is no number: \{'AP50': 0.5\}"):
        run([{"bbox": {"AP50": 0.5}}], save_best="bbox", rule="greater")


class Boxes(Metric):
    """A metric whose result is nested."""

    def reset(self) -> None:
        self.count = 0

    def update(self, output: Any) -> None:
        self.count += len(output[0])

    def compute(self) -> Any:
        return {"AP": {"50": self.count / 8}}


@pytest.mark.parametrize(
    ("save_best", "error"),
    [("boxes/AP/50", None), ("derived/AP", None), ("boxes/AP/75", "'boxes/AP/75' in the result"),
     ("auto", None)],
)  # fmt: skip
def test_names_inside_are_checked_before_the_first_step(save_best: str, error: str | None) -> None:
    evaluator = create_evaluator(nn.Identity(), {"boxes": Boxes()}, device="cpu")
    hook = EvalHook(
        [(torch.zeros(4, 1), torch.zeros(4))] * 2, evaluator, model=nn.Identity(), out_dir=False,
        save_best=save_best, rule="greater", derive={"derived": lambda m: {"AP": 0.5}},
    )  # fmt: skip
    steps: list[int] = []
    trainer = Engine(lambda engine, batch: steps.append(1))
    hook.attach(trainer)
    if error is None:
        trainer.run([0], max_epochs=1)
        assert hook.best is not None
        assert hook.best.score == (0.5 if save_best == "derived/AP" else 1.0)
        return
    with pytest.raises(ValueError, match=error):
        trainer.run([0], max_epochs=1)
    assert steps == []


def _nested_of_rank(rank: int, folder: str) -> Any:
    data = [(torch.zeros(2, 1), torch.zeros(2))] * 3
    hook = EvalHook(
        data, create_evaluator(nn.Linear(1, 1), device="cpu"), save_best="bbox/AP/50",
        rule="greater", out_dir=folder,
        compute_metrics=lambda results: {"bbox": {"AP": {50: len(results) / 8}}},
    ).attach(Engine(lambda engine, batch: None))  # fmt: skip
    hook.evaluate()
    assert hook.best is not None
    return hook.best.score, hook.score_function(), hook.evaluator.state.metrics


def test_two_ranks_follow_the_same_nested_metric(tmp_path: Path) -> None:
    found = on_ranks(2, _nested_of_rank, str(tmp_path))
    assert found == [(0.75, 0.75, {"bbox": {"AP": {"50": 0.75}}})] * 2


# -- "auto" and empty results, and MMEngine's forms ------------------------------------------------


@pytest.mark.parametrize("save_best", ["auto", "acc"])
def test_an_empty_result_is_warned_of_each_time(
    save_best: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ignite_evalhook"):
        hook = run([{}, {}, {"acc": 0.5}], save_best=save_best)
    assert caplog.messages == [
        f"val at epoch {n} (iteration {n}): the result is empty; recorded without a score"
        for n in (1, 2)
    ]
    assert hook.best is not None
    assert (hook.best.metric, hook.best.epoch) == ("acc", 3)


def test_auto_without_a_number_raises_or_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    words = "save_best='auto' found no number among ['note', 'in/list']"
    result = {"note": "x", "in": {"list": [1.0]}}
    with pytest.raises(EvaluationError, match="on_bad_score='skip' records it") as caught:
        run([result], save_best="auto")
    assert words in str(caught.value)
    with caplog.at_level(logging.WARNING, "ignite_evalhook"):
        hook = run([result, {"acc": 0.5}], save_best="auto", on_bad_score="skip")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [words in message for message in warned] == [True]
    assert hook.best is not None


@pytest.mark.parametrize(
    ("save_best", "rule", "rules"),
    [
        (["acc", "loss"], ["less", "greater"], ["less", "greater"]),
        (["acc", "loss"], ("less", None), ["less", "less"]),
        (["acc", "strange"], ["less"], ["less", "less"]),
        ({"acc": 2, "strange": 1}, ["less", "greater"], ["less", "greater"]),
        ("strange", ["greater"], ["greater"]),
    ],
)
def test_a_list_of_rules_is_in_the_order_of_the_metrics(
    save_best: Any, rule: Any, rules: list[str]
) -> None:
    hook, _ = scripted([], save_best=save_best, rule=rule)
    assert [target.rule.value for target in hook._plan.follower.targets] == rules


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (["less"] * 3, r"one item for each metric of save_best \['acc', 'loss'\], or one for all"),
        ([], "one item for each metric"),
        (["less", "max"], "rule must be 'greater' or 'less', got 'max'"),
    ],
)
def test_a_list_of_rules_that_does_not_fit_is_refused(rule: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scripted([], save_best=["acc", "loss"], rule=rule)
