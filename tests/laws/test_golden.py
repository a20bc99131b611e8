"""Files that a released version wrote are read ever after: golden runs, copied and gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.golden_runs import ROWS, Run
from helpers.private import main
from ignite_evalhook import EvalHook, History, find_best, load_best

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir())
RUNS = ["two_metrics", "alias", "async", "behind"]
EPOCHS = 5

pytestmark = [
    pytest.mark.parametrize("which", RUNS),
    pytest.mark.parametrize("version", VERSIONS),
]


@pytest.fixture
def folder(tmp_path: Path, version: str, which: str) -> Path:
    return Path(shutil.copytree(GOLDEN / version / which, tmp_path / "run"))


def _name(which: str) -> str:
    return "ema v2" if which == "alias" else "val"


def _rows(history: History) -> list[tuple[int, str]]:
    """Return iteration and metrics as text, since NaN is not equal to itself."""
    return [(r.iteration, repr(sorted(r.metrics.items()))) for r in history]


def test_the_best_is_found_and_loaded(folder: Path, which: str) -> None:
    best = find_best(folder, name=_name(which))
    assert (best.metric, best.score, best.epoch, best.iteration) == ("acc", 0.75, 2, 2)
    model = nn.Linear(2, 1)
    assert load_best(folder, {"model": model}, name=_name(which)) == best
    unbroken = Run(which, folder.parent / "unbroken").go(2)
    assert torch.equal(model.weight, unbroken.model.weight)


def test_the_history_is_read(folder: Path, which: str) -> None:
    part = "_ema_v2" if which == "alias" else ""
    history = History.read(folder / f"history{part}.jsonl")
    expected = [(i, repr(sorted(ROWS[i].items()))) for i in range(len(history))]
    assert _rows(history) == expected
    assert len(history) == (3 if which == "behind" else 4)


def test_the_command_line_shows_it(
    folder: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--name", _name(which)]) == 0
    shown = capsys.readouterr().out
    assert "0.7500" in shown
    assert "best acc 0.75 at epoch 2" in shown


def test_the_state_of_a_hook_loads(folder: Path, which: str) -> None:
    state = torch.load(folder / "hook_state.pt", weights_only=True)
    follow: Any = "acc" if which in ("alias", "async") else {"acc": 2, "loss": 1}
    hook = EvalHook(
        None, lambda trainer: {}, model=nn.Linear(2, 1), save_best=follow, out_dir=False,
        name=_name(which),
    )  # fmt: skip
    hook.load_state_dict(state)
    assert hook.best is not None
    assert (hook.best.score, hook.best.epoch) == (0.75, 2)
    assert [r.iteration for r in hook.history] == [0, 1, 2, 3][: len(hook.history)]


def test_a_run_goes_on_as_if_it_had_never_stopped(folder: Path, which: str) -> None:
    unbroken = Run(which, folder.parent / "unbroken").go(EPOCHS)
    resumed = Run(which, folder)
    assert resumed.resumed
    resumed.go(EPOCHS)
    assert [r.metrics["acc"] for r in resumed.hook.history] == [r["acc"] for r in ROWS]
    for ours, theirs in zip(resumed.hook.history, unbroken.hook.history, strict=True):
        assert (ours.epoch, ours.best_of) == (theirs.epoch, theirs.best_of)
    assert resumed.stopper.state_dict() == unbroken.stopper.state_dict()
    assert torch.equal(resumed.model.weight, unbroken.model.weight)
    assert {m: [(b.score, b.epoch) for b in bs] for m, bs in resumed.hook.bests.items()} == {
        m: [(b.score, b.epoch) for b in bs] for m, bs in unbroken.hook.bests.items()
    }
    names = sorted(path.name for path in folder.iterdir() if path.name != "hook_state.pt")
    assert names == sorted(path.name for path in (folder.parent / "unbroken").iterdir())
