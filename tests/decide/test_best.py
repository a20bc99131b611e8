"""What is best: scores, distances and the names of files, decided on numbers alone."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import KEEP_ALL, Rule, Target, as_score, describe_distance, legal, legal_names
from ignite_evalhook import Best

GREATER, LESS = Rule.GREATER, Rule.LESS
NAN, INF = math.nan, math.inf


# ---------------------------------------------------------------------------- the value of a best


def test_a_best_is_a_value_with_an_unsigned_score_and_perhaps_no_file() -> None:
    best = Best("val_loss", 0.25, 3, 30)
    assert best == Best("val_loss", 0.25, 3, 30, None)
    assert best != Best("val_loss", 0.25, 3, 30, Path("a.pt"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        best.score = 1.0  # type: ignore[misc]


def test_deciding_what_is_best_needs_neither_torch_nor_ignite() -> None:
    import ignite_evalhook._decide.best as module

    folder = Path(module.__file__).parents[1]
    code = (
        "import sys, types; package = types.ModuleType('ignite_evalhook');"
        f"package.__path__ = [{str(folder)!r}]; sys.modules['ignite_evalhook'] = package;"
        "import ignite_evalhook._decide.best, ignite_evalhook._decide.kept;"
        "print(sorted({'torch', 'ignite', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# -------------------------------------------------------------------------------- what is a score


@pytest.mark.parametrize("value", [0.0, -0.0, 0, -3, 7, 0.5, -0.5, 1e-300, 1e300, 10**6])
def test_zero_negative_and_integer_values_are_scores(value: float) -> None:
    score = as_score(value)
    assert score == value
    assert type(score) is float


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_infinity_are_numbers_too_and_judged_later(value: float) -> None:
    score = as_score(value)
    assert score is not None
    assert not math.isfinite(score)


@pytest.mark.parametrize("value", ["0.5", "", None, [0.5], [], {"a": 1.0}, (1.0,), 1j, object()])
def test_anything_else_is_no_score(value: Any) -> None:
    assert as_score(value) is None


# --------------------------------------------------------------------------------- what is better


@pytest.mark.parametrize(
    ("rule", "score", "best", "better"),
    [
        (GREATER, 0.0, None, True),
        (LESS, 0.0, None, True),
        (GREATER, -7.0, None, True),
        (LESS, 1e300, None, True),
        (GREATER, 0.0, -0.5, True),
        (LESS, -0.5, 0.0, True),
        (GREATER, -0.5, 0.0, False),
        (LESS, 0.0, -0.5, False),
        (GREATER, 0.5, 0.5, False),
        (LESS, 0.5, 0.5, False),
        (GREATER, 0.0, -0.0, False),
        (GREATER, 0.50000001, 0.5, True),
        (GREATER, NAN, None, False),
        (LESS, NAN, None, False),
        (GREATER, INF, None, False),
        (LESS, -INF, None, False),
        (GREATER, INF, 0.5, False),
        (LESS, -INF, 0.5, False),
        (GREATER, NAN, 0.5, False),
    ],
)
def test_only_a_finite_and_strictly_better_score_improves(
    rule: Rule, score: float, best: float | None, better: bool
) -> None:
    assert Target("m", rule).is_better(score, best) is better


def test_a_rule_map_of_the_users_decides_and_may_let_ties_replace() -> None:
    at_least = {"greater": lambda x, y: x >= y, "less": lambda x, y: x <= y}
    target = Target("m", GREATER, rule_map=at_least)
    assert target.is_better(0.5, 0.5)
    assert not target.is_better(0.4, 0.5)
    assert target.prefers_later
    assert not Target("m", GREATER).prefers_later
    assert not Target("m", LESS).prefers_later


def test_a_rule_map_cannot_make_nan_or_infinity_the_best() -> None:
    always = {"greater": lambda x, y: True, "less": lambda x, y: True}
    target = Target("m", LESS, rule_map=always)
    assert [target.is_better(x, 0.5) for x in (NAN, INF, -INF, 1.0)] == [False, False, False, True]


def test_an_init_value_map_of_the_users_is_what_the_first_score_has_to_beat() -> None:
    target = Target("m", GREATER, init_value_map={"greater": 0.5, "less": 0.1})
    assert [target.is_better(x, None) for x in (0.4, 0.5, 0.6)] == [False, False, True]
    assert target.is_better(0.4, 0.3)


@given(st.floats(), st.floats(), st.sampled_from(Rule))
def test_less_is_greater_with_the_sign_turned(score: float, best: float, rule: Rule) -> None:
    other = LESS if rule is GREATER else GREATER
    assert Target("m", rule).is_better(score, best) == Target("m", other).is_better(-score, -best)


def test_two_targets_are_the_same_whatever_functions_compare() -> None:
    assert Target("m", GREATER, 2) == Target("m", GREATER, 2, rule_map={})
    assert Target("m", GREATER, 2) != Target("m", GREATER, 3)
    assert KEEP_ALL > 10**6


def test_the_distance_from_the_best_is_told_in_plain_words() -> None:
    target = Target("mAP", GREATER)
    assert describe_distance(target, 0.4, None) == "no best mAP yet"
    assert describe_distance(target, 0.4, 0.5) == "best mAP is 0.5 (0.1 away)"
    assert describe_distance(target, -1.0, 0.0) == "best mAP is 0 (1 away)"


# --------------------------------------------------------------------------------- names of files


@pytest.mark.parametrize(
    ("metric", "part"),
    [
        ("acc", "acc"),
        ("coco/bbox_mAP", "coco_bbox_mAP"),
        ("mAP@0.5IOU", "mAP@0.5IOU"),
        ("Mean PCK", "Mean_PCK"),
        ("accuracy_top-1", "accuracy_top-1"),
        ("KITTI/Car_3D_moderate_strict", "KITTI_Car_3D_moderate_strict"),
        ("IoU.road", "IoU.road"),
        ('a\\b:c*d?e"f<g>h|i\nj\0k', "a_b_c_d_e_f_g_h_i_j_k"),
        ("Genauigkeit_Ü", "Genauigkeit_Ü"),
        ("精度", "精度"),
        ("{score}", "_score_"),
        ("%s", "_s"),
    ],
)
def test_a_metrics_name_becomes_a_legal_part_of_a_file_name(metric: str, part: str) -> None:
    assert legal(metric) == part


@pytest.mark.parametrize("metric", ["/", "..", ".", " ", "💥", "", "___"])
def test_a_name_of_which_nothing_would_be_left_gets_a_name_of_its_own(metric: str) -> None:
    assert re.fullmatch(r"metric_[0-9a-f]{8}", legal(metric))
    assert legal("..") != legal("/")


@pytest.mark.parametrize("metric", ["m" * 500, "精" * 200, "a/" * 300])
def test_a_very_long_name_is_cut_and_stays_distinct(metric: str) -> None:
    assert len(legal(metric).encode()) <= 100
    assert legal(metric) != legal(metric + "x")
    assert "�" not in legal(metric)


def test_names_that_meet_after_cleaning_are_kept_apart() -> None:
    names = legal_names(["a/b", "a_b", "A/B", "a b", "c"])
    assert len({name.lower() for name in names.values()}) == 5
    assert names["a/b"] == "a_b"
    assert names["c"] == "c"
    assert legal_names(["a/b", "a_b"]) == legal_names(["a/b", "a_b"])


@given(st.lists(st.text(), unique=True, max_size=6))
def test_legal_names_are_distinct_and_stay_in_their_folder(metrics: list[str]) -> None:
    names = legal_names(metrics)
    assert list(names) == metrics
    lowered = [name.lower() for name in names.values()]
    assert len(set(lowered)) == len(lowered)
    for name in names.values():
        assert re.fullmatch(r"[\w.@+-]+", name)
        assert name.strip(".") != ""
        assert len(name.encode()) <= 120
