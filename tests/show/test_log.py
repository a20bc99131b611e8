"""Test the one plain line of an evaluation: who sees it, in which words, and how to silence it.

Logging belongs to the whole process, so most of this runs in a process of its own.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine
from torch import nn

from ignite_evalhook import EvalHook

PROGRAM = """
import logging, sys
{before}
from ignite.engine import Engine
from torch import nn
from ignite_evalhook import EvalHook
{between}
losses = iter([0.5, 0.25, float("nan"), 0.75])
hook = EvalHook(None, lambda engine: {{"loss": next(losses)}}, model=nn.Linear(1, 1),
                save_best="loss", out_dir=False)
trainer = Engine(lambda engine, batch: None)
hook.attach(trainer)
trainer.run(range(3), max_epochs=4)
"""

PLAN = "val: evaluate every epoch; best by loss (less is better, told by 'loss')"
LINES = [
    "val at epoch 1 (iteration 3): loss 0.5; new best loss; 0.00 s",
    "val at epoch 2 (iteration 6): loss 0.25; new best loss (was 0.5); 0.00 s",
    "val at epoch 3 (iteration 9): loss nan; 0.00 s",
    "val at epoch 4 (iteration 12): loss 0.75; best loss is 0.25 (0.5 away); 0.00 s",
]
WARNING = "val at epoch 3 (iteration 9): loss is nan; recorded, but never the best"


def run_program(before: str = "", between: str = "") -> tuple[list[str], list[str]]:
    """Return the lines on standard output and standard error; the seconds are made 0.00."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(before=before, between=between)],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
        cwd=Path(__file__).parents[2],
    )
    out, err = (
        [without_seconds(line) for line in text.splitlines()] for text in (done.stdout, done.stderr)
    )
    return out, err


def without_seconds(line: str) -> str:
    head, _, last = line.rpartition("; ")
    return (
        f"{head}; 0.00 s" if last.endswith(" s") and last[:-2].replace(".", "").isdigit() else line
    )


# Each program takes a second or two, so they are few.


def test_without_any_set_up_there_is_one_plain_line_an_evaluation() -> None:
    out, err = run_program()
    assert out == []
    assert err == [PLAN, *LINES[:2], f"warning: {WARNING}", *LINES[2:]]


def test_the_loggers_level_silences_the_lines_and_leaves_the_warnings() -> None:
    # Before the package is imported; the test in this process does it after.
    out, err = run_program(before='logging.getLogger("ignite_evalhook").setLevel("WARNING")')
    assert out == []
    assert err == [f"warning: {WARNING}"]


def test_a_program_that_has_set_up_logging_gets_the_lines_once_and_in_its_own_format() -> None:
    form = "%(name)s|%(message)s"
    out, err = run_program(
        between=f'logging.basicConfig(level="INFO", stream=sys.stdout, format="{form}")'
    )
    ours = [line for line in out if line.startswith("ignite_evalhook|")]
    assert ours == [f"ignite_evalhook|{line}" for line in [PLAN, *LINES[:2], WARNING, *LINES[2:]]]
    assert err == []


# --- in this process -----------------------------------------------------------------------


class Listener(logging.Handler):
    """Collects messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {without_seconds(record.getMessage())}")


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Listen to the package's logger, and leave it as it was."""
    logger, listener = logging.getLogger("ignite_evalhook"), Listener()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(listener)
    yield listener.lines
    logger.removeHandler(listener)
    logger.setLevel(level)
    logger.propagate = propagate


def train(epochs: int = 1, **options: Any) -> EvalHook:
    trainer = Engine(lambda engine, batch: None)
    options = {"model": nn.Linear(1, 1)} | options
    measure = options.pop("measure", lambda engine: {"loss": 0.5})
    hook = EvalHook(None, measure, **options).attach(trainer)
    trainer.run(range(4), max_epochs=epochs)
    return hook


def test_a_handler_on_our_logger_takes_the_lines_over(
    heard: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("ignite_evalhook").propagate = False
    train()
    assert heard == [
        "INFO val: evaluate every epoch",
        "INFO val at epoch 1 (iteration 4): loss 0.5; 0.00 s",
    ]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["level", "disable"])
def test_the_lines_can_be_silenced_at_any_time(how: str, heard: list[str]) -> None:
    logger = logging.getLogger("ignite_evalhook")
    try:
        if how == "level":
            logger.setLevel(logging.WARNING)
        else:
            logging.disable(logging.INFO)
        train(save_best="loss", out_dir=False, measure=lambda engine: {"loss": float("nan")})
    finally:
        logging.disable(logging.NOTSET)
    assert heard == [
        "WARNING val at epoch 1 (iteration 4): loss is nan; recorded, but never the best"
    ]


def test_the_first_line_says_what_is_going_to_happen(heard: list[str], tmp_path: Path) -> None:
    train(
        name="test", interval=2, by_epoch=False, start=0, out_dir=tmp_path,
        save_best=["loss", "score"], rule={"score": "greater"},
        measure=lambda engine: {"loss": 0.5, "score": 1.0},
    )  # fmt: skip
    assert heard[0] == (
        "INFO test: evaluate before training, then every 2 iterations; best by loss (less is "
        f"better, told by 'loss'), score (greater is better, as given); files in {tmp_path}"
    )
    assert heard[1] == (
        "INFO test at the start: loss 0.5, score 1; new best loss; new best score; 0.00 s"
    )


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "no metrics"),
        ({"note": "x", "list": [1.0]}, "no metrics"),
        ({"loss": 0.0, "note": "x", "n": 1234567.0}, "loss 0, n 1.23457e+06"),
        ({"loss": float("inf")}, "loss inf"),
    ],
    ids=str,
)
def test_a_line_names_the_numbers_only(
    metrics: dict[str, Any], words: str, heard: list[str]
) -> None:
    train(measure=lambda engine: metrics)
    assert heard[1:] == [f"INFO val at epoch 1 (iteration 4): {words}; 0.00 s"]


def test_braces_and_percent_signs_in_a_name_do_no_harm(heard: list[str]) -> None:
    train(measure=lambda engine: {"top 5%": 0.5, "{x}": 1.0, "%s": 2.0})
    assert heard[1:] == ["INFO val at epoch 1 (iteration 4): top 5% 0.5, {x} 1, %s 2; 0.00 s"]


def test_an_answer_says_nothing(heard: list[str]) -> None:
    EvalHook(None, lambda engine: {"loss": 0.5}, model=nn.Identity()).evaluate()
    assert heard == []
