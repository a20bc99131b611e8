"""What is best so far, and what it is again when a file could not be written."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from helpers.private import Leader, Rule, Target, improved, without_lost

ACC, LOSS = Target("acc", Rule.GREATER), Target("loss", Rule.LESS)
OLD, NEW = Leader(0.5, 1, 10), Leader(0.7, 3, 30)


@pytest.mark.parametrize(
    ("scores", "leaders", "better"),
    [
        ({}, {}, ()),
        ({"acc": 0.0}, {}, ("acc",)),
        ({"acc": 0.5, "loss": 0.5}, {}, ("acc", "loss")),
        ({"acc": 0.6, "loss": 0.6}, {"acc": OLD, "loss": OLD}, ("acc",)),
        ({"acc": 0.4, "loss": 0.4}, {"acc": OLD, "loss": OLD}, ("loss",)),
        ({"acc": 0.5, "loss": 0.5}, {"acc": OLD, "loss": OLD}, ()),
        ({"acc": math.inf, "loss": math.nan}, {}, ()),
        ({"other": 1.0}, {}, ()),
    ],
)
def test_a_score_improves_on_the_leader_of_its_metric(
    scores: dict[str, float], leaders: dict[str, Leader], better: tuple[str, ...]
) -> None:
    assert improved([ACC, LOSS], scores, leaders) == better


@pytest.mark.parametrize(
    ("leaders", "before", "lost", "after"),
    [
        ({"acc": NEW}, {"acc": OLD}, {}, {"acc": NEW}),
        ({"acc": NEW}, {"acc": OLD}, {"acc": 30}, {"acc": OLD}),
        ({"acc": NEW}, {}, {"acc": 30}, {}),
        ({"acc": NEW, "loss": NEW}, {"loss": OLD}, {"acc": 30}, {"loss": NEW}),
        # Another file than the leader's was lost: one of the top-k.
        ({"acc": OLD}, {}, {"acc": 30}, {"acc": OLD}),
        ({}, {"acc": OLD}, {"acc": 30}, {}),
    ],
)
def test_a_leader_whose_file_was_lost_gives_way_to_the_one_before(
    leaders: dict[str, Leader],
    before: dict[str, Leader],
    lost: dict[str, int],
    after: dict[str, Leader],
) -> None:
    given = dict(leaders)
    assert without_lost(leaders, before, lost) == after
    assert leaders == given


def test_a_leader_comes_back_from_its_state() -> None:
    assert Leader.from_state(NEW.state()) == NEW


@pytest.mark.parametrize("state", [["0.5", 1, 10], [0.5, 1.0, 10], [0.5, 1, None]])
def test_a_damaged_state_is_refused(state: list[Any]) -> None:
    words = f"a best is [score, epoch, iteration], got {state!r}"
    with pytest.raises(ValueError, match=re.escape(words)):
        Leader.from_state(state)
