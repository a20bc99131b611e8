"""The options of the command line, and the hook made of them."""

from __future__ import annotations

import argparse
import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.private import _OPTIONS, options_of
from ignite_evalhook import EvalHook, Schedule, add_eval_args, create_evaluator

LOADER = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)), batch_size=2)


def parse(*arguments: str) -> argparse.Namespace:
    return add_eval_args(argparse.ArgumentParser(prog="train")).parse_args(arguments)


class Run:
    """A run of three epochs of two iterations."""

    def __init__(self, folder: Path, *arguments: str, **more: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.trainer = Engine(self._step)
        evaluator = create_evaluator(self.model, loss_fn=nn.functional.mse_loss)
        args = parse("--out-dir", str(folder), *arguments)
        self.hook = EvalHook.from_args(args, LOADER, evaluator, **more).attach(self.trainer)

    def _step(self, engine: Engine, batch: Any) -> None:
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(batch[0]), batch[1]).backward()
        self.optimizer.step()

    def keep_last(self) -> bool:
        return self.hook.keep_last({"model": self.model, "optimizer": self.optimizer})

    def go(self, epochs: int = 3) -> list[int]:
        """Train and return the iterations at which was evaluated."""
        self.trainer.run(LOADER, max_epochs=epochs)
        return [record.iteration for record in self.hook.history]


# -- what is parsed -------------------------------------------------------------------------------

OPTIONS: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (["--validate"], {}),
    (["--eval-interval", "2"], {"interval": 2}),
    (["--eval-interval", "0.25"], {"interval": 0.25}),
    (["--eval-interval", "1,2,10"], {"interval": [1, 2, 10]}),
    (["--eval-start", "0"], {"start": 0}),
    (["--eval-by-epoch"], {"by_epoch": True}),
    (["--no-eval-by-epoch"], {"by_epoch": False}),
    (["--eval-at-end"], {"at_end": True}),
    (["--no-eval-at-end"], {"at_end": False}),
    (["--eval-limit-batches", "3"], {"limit_batches": 3}),
    (["--save-best", "acc"], {"save_best": "acc"}),
    (["--save-best", "auto"], {"save_best": "auto"}),
    (["--save-best", "acc, val_loss"], {"save_best": ["acc", "val_loss"]}),
    (["--save-best", "mAP@0.5IOU"], {"save_best": "mAP@0.5IOU"}),
    (["--rule", "less"], {"rule": "less"}),
    (["--n-saved", "3"], {"n_saved": 3}),
    (["--out-dir", "runs/a"], {"out_dir": "runs/a"}),
]


@pytest.mark.parametrize(("arguments", "options"), OPTIONS, ids=lambda value: " ".join(value))
def test_an_option_becomes_the_argument_of_the_same_meaning(
    arguments: list[str], options: dict[str, Any]
) -> None:
    found = options_of(parse(*arguments))
    assert found == options
    assert [type(value) for value in found.values()] == [type(v) for v in options.values()]


def test_every_option_is_an_argument_of_the_hook() -> None:
    assert set(_OPTIONS.values()) <= set(inspect.signature(EvalHook).parameters)
    assert set(_OPTIONS) | {"validate"} == set(vars(parse()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eval-interval", "often"], "must be an integer, a part of an epoch such as 0.25, or"),
        (["--eval-interval", "1,often"], "got '1,often'"),
        (["--eval-interval", "0.x"], "got '0.x'"),
        (["--eval-start", "soon"], "invalid int value: 'soon'"),
        (["--save-best", " , "], "must name a metric"),
        (["--rule", "max"], "invalid choice: 'max'"),
    ],
)
def test_what_cannot_be_read_is_told_by_the_parser(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert words in capsys.readouterr().err


def test_what_can_be_read_and_makes_no_sense_is_told_by_the_hook(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="interval must be a positive integer, got 0"):
        Run(tmp_path, "--eval-interval", "0")


def test_the_parser_comes_back_and_keeps_its_own_options() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    assert add_eval_args(parser) is parser
    args = parser.parse_args(["--lr", "0.5", "--rule", "less"])
    assert (args.lr, args.rule) == (0.5, "less")


def test_the_help_shows_all_of_them_in_a_group_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "evaluation while training" in shown
    for option in ("--validate, --no-validate", *(name.replace("_", "-") for name in _OPTIONS)):
        assert option in shown


# -- the hook made of them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "evaluated"),
    [
        ([], [2, 4, 6]),
        (["--eval-interval", "2"], [4]),
        (["--eval-interval", "2", "--eval-at-end"], [4, 6]),
        (["--eval-interval", "0.5"], [1, 2, 3, 4, 5, 6]),
        (["--eval-interval", "1,3"], [2, 6]),
        (["--eval-interval", "4", "--no-eval-by-epoch"], [4]),
        (["--eval-start", "0", "--eval-interval", "3"], [0, 6]),
    ],
)
def test_the_schedule_follows_the_options(
    arguments: list[str], evaluated: list[int], tmp_path: Path
) -> None:
    assert Run(tmp_path, *arguments).go() == evaluated


def test_the_command_line_wins_and_leaves_the_rest_to_the_program(tmp_path: Path) -> None:
    run = Run(tmp_path, "--eval-interval", "3", interval=1, at_end=False, save_best="val_loss")
    assert run.go() == [6]
    assert run.hook.best is not None


def test_false_and_zero_on_the_command_line_win_too(tmp_path: Path) -> None:
    run = Run(tmp_path, "--no-eval-at-end", "--eval-start", "0", interval=4, at_end=True, start=2)
    assert run.go() == [0]


def test_the_best_is_saved_as_asked(tmp_path: Path) -> None:
    run = Run(tmp_path, "--save-best", "val_loss", "--n-saved", "2")
    run.go()
    assert len(run.hook.bests["val_loss"]) == 2
    assert len(list(tmp_path.glob("best*.pt"))) == 2


def test_the_rule_is_that_of_the_command_line(tmp_path: Path) -> None:
    run = Run(tmp_path, "--save-best", "val_loss", "--rule", "greater", "--eval-limit-batches", "1")
    run.go()
    assert run.hook.best is not None
    assert run.hook.best.epoch == 1
    assert run.hook.history[0].samples == 2


def test_a_namespace_without_these_options_changes_nothing() -> None:
    hook = EvalHook.from_args(argparse.Namespace(lr=0.1), LOADER, nn.Linear(2, 1), interval=2)
    assert hook._plan.schedule == Schedule(2)


def test_a_subclass_makes_hooks_of_its_own_kind() -> None:
    class Mine(EvalHook):
        pass

    assert type(Mine.from_args(parse(), LOADER, nn.Linear(2, 1))) is Mine


# -- --no-validate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--eval-interval", "1"],
        ["--eval-start", "0"],
        ["--eval-at-end"],
        ["--save-best", "val_loss"],
    ],
)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"interval": 0.5},
        {"interval": timedelta(seconds=1)},
        {"start": 0, "at_end": True},
        {"dynamic_intervals": [(2, 1)]},
        {"by_epoch": False},
    ],
    ids=str,
)
def test_no_validate_never_evaluates_by_itself(
    arguments: list[str], more: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(tmp_path, "--no-validate", *arguments, **more)
    assert run.go() == []
    assert run.trainer.state.iteration == 6


def test_no_validate_checks_nothing_before_training(tmp_path: Path) -> None:
    run = Run(tmp_path, "--no-validate", "--save-best", "acc")
    assert run.go() == []


def test_no_validate_still_evaluates_on_demand(tmp_path: Path) -> None:
    run = Run(tmp_path, "--no-validate", "--save-best", "val_loss")
    run.go()
    assert run.hook.evaluate().is_best
    assert run.hook.evaluate(LOADER, track=False).samples == 4
    assert run.hook.best is not None
    assert run.hook.best.epoch == 3


def test_no_validate_still_keeps_the_last_checkpoint_and_resumes(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", "--no-validate")
    assert whole.keep_last() is False
    whole.go(4)

    first = Run(tmp_path / "broken", "--no-validate")
    first.keep_last()
    first.go(2)
    assert (tmp_path / "broken" / "last.pt").exists()
    second = Run(tmp_path / "broken", "--no-validate")
    assert second.keep_last() is True
    assert second.trainer.state.epoch == 2
    second.go(4)
    assert torch.equal(second.model.weight, whole.model.weight)
    assert list(second.hook.history) == []


def test_a_run_goes_on_with_evaluations_where_it_had_none(tmp_path: Path) -> None:
    first = Run(tmp_path, "--no-validate", "--save-best", "val_loss")
    first.keep_last()
    first.go(2)
    second = Run(tmp_path, "--save-best", "val_loss")
    assert second.keep_last() is True
    assert second.go(4)[-2:] == [6, 8]
    assert second.hook.best is not None
