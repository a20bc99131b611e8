"""Which metrics are followed, and what ``"auto"`` chooses and remembers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from helpers.private import Rule, Target, Targets, infer_rule
from ignite_evalhook.exceptions import RuleInferenceError, StateError


def targets(*names: str) -> Targets:
    return Targets(dict.fromkeys(names, 1), lambda name, n: Target(name, infer_rule(name), n or 9))


def followed(some: Targets) -> list[tuple[str, str]]:
    return [(target.metric, target.rule.value) for target in some.now]


def test_what_is_named_is_followed_in_that_order() -> None:
    assert followed(targets("acc", "loss")) == [("acc", "greater"), ("loss", "less")]
    assert followed(targets()) == followed(targets("auto")) == []


@pytest.mark.parametrize(
    ("some", "metric", "words"),
    [
        (targets("acc"), "loss", "'loss' is not followed; save_best names ['acc']"),
        (targets(), None, "save_best names no metric; pass metric="),
        (targets("auto"), None, "save_best is not resolved yet; pass metric="),
    ],
)
def test_what_is_not_followed_is_refused(some: Targets, metric: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        some.get(metric)


def test_auto_chooses_the_first_number_in_order_and_may_forget_it() -> None:
    some = targets("auto")
    metrics = {"loss": 0.0, "note": "fine", "acc": 1}
    assert some.would_choose(metrics, ["note", "acc", "loss"]) == some._chosen("acc")
    assert some.now == ()
    some.adopt("acc")
    assert some.get() == some.get("acc") == some.now[0]
    some.forget()
    assert some.now == ()
    fixed = targets("acc")
    fixed.forget()
    assert followed(fixed) == [("acc", "greater")]


def test_auto_chooses_nothing_without_a_number_nor_a_name_that_tells_no_rule() -> None:
    some = targets("auto")
    assert some.would_choose({"note": "fine", "empty": {}}, ["note", "empty"]) is None
    with pytest.raises(RuleInferenceError, match="quux"):
        some.would_choose({"quux": 1.0}, ["quux"])


def test_auto_looks_into_nested_results_in_order() -> None:
    some = targets("auto")
    metrics = {"loss": 1.0, "bbox": {"note": "x", "AP": {"50": 0.5}, "acc": 0.1}}
    assert some.would_choose(metrics, ["bbox", "loss"]) == some._chosen("bbox/AP/50")


def test_a_rank_takes_over_what_was_chosen_once() -> None:
    some = targets("auto")
    some.adopt(None)
    assert followed(some) == []
    some.adopt("loss")
    some.adopt("acc")
    assert followed(some) == [("loss", "less")]
    for fixed in (targets("acc"), targets()):
        before = fixed.now
        fixed.adopt("loss")
        assert fixed.now == before


def chosen(metric: str) -> Targets:
    some = targets("auto")
    some.adopt(metric)
    return some


@pytest.mark.parametrize(
    ("theirs", "ours", "then"),
    [
        (targets("acc", "loss"), targets("acc", "loss"), ["acc", "loss"]),
        (targets(), targets(), []),
        (targets("auto"), targets("auto"), []),
        (chosen("acc"), targets("auto"), ["acc"]),
        (chosen("acc"), chosen("loss"), ["acc"]),
        (chosen("acc"), targets("acc"), ["acc"]),
        (targets("acc"), targets("loss"), "followed acc (greater), this hook follows loss (less)"),
        (targets("acc"), targets(), "followed acc (greater), this hook follows nothing"),
        (targets("acc"), targets("auto"), "followed acc (greater), this hook follows nothing"),
        (targets("auto"), targets("acc"), "followed nothing, this hook follows acc (greater)"),
    ],
)
def test_a_state_of_the_same_metrics_loads_and_another_is_refused(
    theirs: Targets, ours: Targets, then: list[str] | str
) -> None:
    state = theirs.state()
    if isinstance(then, str):
        with pytest.raises(StateError, match=re.escape(f"the state of 'val' {then}")):
            ours.check_state(state, "val")
        return
    before = ours.now
    ours.check_state(state, "val")
    assert [target.metric for target in ours.read_state(state)] == then
    assert ours.now == before


def test_a_rule_that_is_inferred_otherwise_now_is_refused() -> None:
    state: dict[str, Any] = {"auto": True, "targets": [["acc", Rule.LESS.value]]}
    with pytest.raises(StateError, match="the state's rule for 'acc' was 'less'"):
        targets("auto").read_state(state)
