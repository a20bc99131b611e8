"""Law 6: broken and resumed is the same as unbroken, wherever the run was killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.resume_runs import EPOCH_LENGTH, Bomb, Killed, Run, Setup, outcome

TWO = {"save_best": ["score", "loss"], "rule": {"score": "greater", "loss": "less"}}
SECOND = {"save_best": "loss", "rule": "less", "interval": 2}
BY_ITERATION = {"by_epoch": False}

# Killed at every event of the trainer, of the hook and of the evaluator.
FINE = {
    "keep_last": Setup(epochs=2),
    "own checkpoint before": Setup("before", seeded="epoch"),
    "own checkpoint after": Setup("after", seeded="epoch"),
    "own checkpoint by iteration": Setup("iteration before", seeded="iteration", epochs=2),
    "iterations": Setup("iteration before", hook=BY_ITERATION, seeded="iteration", epochs=2),
    "epochs cut short": Setup(cut_at=(1, 4), epochs=4),
    "early stopping": Setup("before", seeded="epoch", patience=1, epochs=4),
    "early stopping, keep_last": Setup(patience=1, epochs=4),
}
# Killed where something is decided or written.
COARSE = {
    "keep_last every 2": Setup(every=2, epochs=5),
    "keep_last, stop late": Setup(patience=2, epochs=5),
    "keep_last, iterations in mid-epoch": Setup(
        hook={**BY_ITERATION, "interval": 3, "at_end": True}, seeded="iteration", max_iters=7
    ),
    "keep_last, two thirds of an epoch": Setup(
        hook={"interval": Fraction(2, 3), "at_end": True}, seeded="iteration"
    ),
    "keep_last, generator": Setup(generator=True),
    "keep_last, start 0": Setup(hook={"start": 0, "interval": 2}),
    "keep_last, steps": Setup(hook={"interval": [0, 1, 3]}),
    "keep_last, at end only": Setup(hook={"interval": None, "at_end": True}, epochs=2),
    "keep_last, dynamic": Setup(hook={"interval": 2, "dynamic_intervals": [(3, 1)]}, epochs=4),
    "keep_last, top 2 of two metrics, stable names": Setup(
        hook={**TWO, "n_saved": 2, "alias": "copy"}
    ),
    "epochs cut short, own checkpoint before": Setup(
        "before", seeded="iteration", epochs=4, cut_at=(1, 4), hook={"interval": 2, "at_end": True}
    ),
    "epochs cut short, by iteration": Setup(
        "iteration after", seeded="iteration", epochs=4, cut_at=(1, 4), patience=2
    ),
    "epochs cut short, two thirds of an epoch": Setup(
        hook={"interval": Fraction(2, 3)},
        seeded="iteration",
        epochs=4,
        cut_at=(1, 4),
        second=SECOND,
    ),
    "keep_last, two hooks": Setup(second=SECOND),
    "keep_last, auto": Setup(hook={"save_best": "auto", "rule": "less"}, epochs=2),
    "keep_last, no best": Setup(hook={"save_best": None, "rule": None}, epochs=2),
    "before, two hooks": Setup("before", seeded="epoch", second=SECOND),
    "before, every 2, at end": Setup(
        "before", every=2, seeded="epoch", hook={"interval": 2, "at_end": True}
    ),
    "by iteration after, epochs": Setup("iteration after", seeded="iteration"),
    "by iteration before, stop in mid-epoch": Setup(
        "iteration before", hook={"at_end": True}, seeded="iteration", max_iters=5
    ),
    "by every second evaluation": Setup("evaluation", every=2, seeded="epoch", epochs=4),
}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Leave out what only a power failure would tell; the storage's own tests see to that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def check_resumed(run: Run, killed: Run) -> None:
    """Check that a run went on from the last save, and evaluated only what was not known."""
    reached = killed.trainer.state.iteration
    assert run.at("train") == list(range(run.resumed_at + 1, run.trainer.state.iteration + 1))
    if run.setup.saves in ("last", "before", "after") and "by_epoch" not in run.setup.hook:
        assert run.resumed_at >= reached - 2 * EPOCH_LENGTH * run.setup.every
    new = [record for record in run.hook.history if record.iteration not in run.known]
    assert run.at("eval_started") == run.at("eval_completed") == [r.iteration for r in new]
    assert run.at("new_best") == [record.iteration for record in new if record.is_best]


def kill_everywhere(folder: Path, setup: Setup, *, coarse: bool) -> None:
    bomb = Bomb(coarse=coarse)
    whole = outcome(Run(folder / "whole", setup, bomb).go())
    for number, moment in enumerate(bomb.moments):
        killed = Run(folder / str(number), setup, Bomb(number, coarse=coarse))
        with pytest.raises(Killed, match=r"\("):
            killed.go()
        run = Run(folder / str(number), setup).go()
        assert outcome(run) == whole, f"killed at {moment}, moment {number}"
        check_resumed(run, killed)


@pytest.mark.parametrize("setup", FINE.values(), ids=FINE)
def test_a_run_killed_at_any_event_and_resumed_ends_like_an_unbroken_one(
    setup: Setup, tmp_path: Path
) -> None:
    kill_everywhere(tmp_path, setup, coarse=False)


@pytest.mark.parametrize("setup", COARSE.values(), ids=COARSE)
def test_a_run_killed_around_an_evaluation_and_resumed_ends_like_an_unbroken_one(
    setup: Setup, tmp_path: Path
) -> None:
    kill_everywhere(tmp_path, setup, coarse=True)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """Draw a run: when it evaluates, what it keeps, who saves it, what repeats."""
    when = draw(
        st.sampled_from(
            [
                {},
                {"interval": 2, "at_end": True},
                {"start": 0},
                {"start": 2, "interval": 2},
                {"interval": [1, 3]},
                {"interval": 0.5},
                BY_ITERATION,
                {**BY_ITERATION, "interval": 2, "start": 1},
                {**BY_ITERATION, "interval": 3, "dynamic_intervals": [(4, 1)]},
            ]
        )
    )
    kept = draw(st.sampled_from([{}, TWO, {"n_saved": 2}, {**TWO, "n_saved": 2}]))
    saves = draw(
        st.sampled_from(
            ["last", "before", "after", "iteration before", "iteration after", "evaluation"]
        )
    )
    by_iteration = "iteration" in saves or when.get("interval") == 0.5 or "by_epoch" in when
    return Setup(
        saves,
        every=draw(st.integers(1, 2)),
        hook={**when, **kept},
        second=draw(st.sampled_from([None, SECOND])),
        patience=draw(st.sampled_from([None, 1, 2])),
        seeded="iteration" if by_iteration else draw(st.sampled_from(["epoch", "iteration"])),
        scores=draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, float("nan")]), min_size=7,
                             max_size=7)),
    )  # fmt: skip


@example(
    setup=Setup(
        hook={"interval": 0.5}, second={"save_best": "loss", "rule": "less", "interval": 2},
        patience=1, scores=[0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0], seeded="iteration",
    ),
    kills=[45],  # as an early stop ends the run, in the middle of an epoch
)  # fmt: skip
@given(setup=setups(), kills=st.lists(st.integers(0, 60), min_size=1, max_size=4))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_run_killed_again_and_again_ends_like_an_unbroken_one(
    setup: Setup, kills: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    whole = outcome(Run(folder / "whole", setup).go())
    for kill in kills:
        try:
            Run(folder / "run", setup, Bomb(kill)).go()
        except Killed:
            continue
    run = Run(folder / "run", setup).go()
    assert same(outcome(run), whole)
    assert run.at("eval_started") == [
        record.iteration for record in run.hook.history if record.iteration not in run.known
    ]


def same(one: object, other: object) -> bool:
    """Compare outcomes, in which NaN equals itself."""
    return repr(one) == repr(other)
