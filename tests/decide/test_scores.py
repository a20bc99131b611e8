"""What is a score, what is only recorded, and what is said about the rest."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import pytest

from helpers.private import ScoreReader, missing_words, problem_of
from ignite_evalhook.exceptions import EvaluationError


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"acc": 0.0}, None),
        ({"acc": -1}, None),
        ({"acc": math.nan}, None),
        ({"acc": "high"}, "'acc' is no number: 'high'"),
        ({"acc": None}, "'acc' is no number: None"),
        ({}, "there is no metric 'acc' in the result, which has []"),
        ({"Acc": 1.0}, "there is no metric 'acc' in the result, which has ['Acc']; did you mean"),
    ],
)
def test_why_a_metric_has_no_number(metrics: dict[str, Any], words: str | None) -> None:
    said = problem_of("acc", metrics)
    assert said is None if words is None else said is not None and said.startswith(words)


def test_a_name_that_is_nearly_right_is_suggested_as_it_is_written() -> None:
    assert missing_words("miou", ["mIoU", "loss"]).endswith("did you mean 'mIoU'?")
    assert "did you mean" not in missing_words("quux", ["mIoU", "loss"])


READ: list[tuple[dict[str, Any], bool, str, dict[str, float] | str, list[str]]] = [
    ({"acc": 0.0, "loss": 2}, False, "raise", {"acc": 0.0, "loss": 2.0}, []),
    (
        {"acc": math.inf, "loss": 2},
        False,
        "raise",
        {"loss": 2.0},
        ["val at 3: acc is inf; recorded, but never the best"],
    ),
    ({"loss": 2}, False, "raise", "val at 3: there is no metric 'acc'", []),
    ({"acc": "x", "loss": 2}, False, "raise", "'x'; on_bad_score='skip' records it", []),
    (
        {"acc": "x", "loss": 2},
        False,
        "skip",
        {"loss": 2.0},
        ["val at 3: 'acc' is no number: 'x'; recorded without a score"],
    ),
    ({}, True, "raise", {}, ["val at 3: the result is empty; recorded without a score"] * 2),
]


@pytest.mark.parametrize(("metrics", "empty", "on_bad_score", "outcome", "warnings"), READ)
def test_scores_are_read_and_the_rest_is_raised_or_warned_of(
    metrics: dict[str, Any],
    empty: bool,
    on_bad_score: str,
    outcome: dict[str, float] | str,
    warnings: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = ScoreReader("val", on_bad_score)
    with caplog.at_level(logging.WARNING, logger="ignite_evalhook"):
        if isinstance(outcome, str):
            with pytest.raises(EvaluationError, match=re.escape(outcome)):
                reader.read(metrics, ["acc", "loss"], empty=empty, when="at 3")
        else:
            assert reader.read(metrics, ["acc", "loss"], empty=empty, when="at 3") == outcome
    assert caplog.messages == warnings
