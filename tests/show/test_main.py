"""python -m ignite_evalhook: what a run has left in its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ignite.engine import Engine
from torch import nn

from helpers.private import main
from ignite_evalhook import EvalHook, EvalRecord

SCORES = [0.25, 0.5, 0.375]
ROWS = [EvalRecord(epoch, iteration, {"acc": 0.5}) for epoch, iteration in ((2, 4), (1, 2))]
BACKWARDS = "".join(row.to_json() + "\n" for row in ROWS)


def run(folder: Path | str, name: str = "val", **options: object) -> EvalHook:
    """Leave three evaluations in ``folder``, the best after the second epoch."""
    scores = iter(SCORES)
    trainer = Engine(lambda engine, batch: None)
    more = {"save_best": "acc", **options}
    hook = EvalHook(
        None,
        lambda trainer: {"acc": next(scores), "remark": "fine"},
        model=nn.Linear(1, 1),
        out_dir=folder,
        name=name,
        **more,  # type: ignore[arg-type]
    ).attach(trainer)
    trainer.run(range(2), max_epochs=3)
    return hook


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    run(tmp_path)
    shown = subprocess.run(
        [sys.executable, "-m", "ignite_evalhook", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["epoch", "iteration", "acc", "samples", "seconds"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["1", "2", "0.2500"],
        ["2", "4", "0.5000"],
        ["3", "6", "0.3750"],
    ]
    assert lines[2].endswith("best acc")
    assert lines[-1] == f"best acc 0.5 at epoch 2: {tmp_path / 'best_model_2_acc=0.5.pt'}"


def test_the_exit_status_of_the_program_is_that_of_main(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "ignite_evalhook", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    assert shown.stdout == ""


def test_help_tells_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert "Show what a run has left in its folder" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["test", "val set", "a/b"])
def test_another_hook_is_shown_by_its_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, name=name)
    assert main([str(tmp_path), "--name", name]) == 0
    assert "best acc 0.5 at epoch 2" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 1
    assert f"no history.jsonl in {tmp_path}" in capsys.readouterr().err


def test_a_run_that_follows_no_metric_is_shown_without_a_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, save_best=None)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "0.3750" in shown
    assert f"{tmp_path} has no best.json: no best was saved there" in shown


def test_a_url_will_do(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fsspec")
    run("memory://shown")
    assert main(["memory://shown"]) == 0
    assert "best acc 0.5 at epoch 2: memory://" in capsys.readouterr().out


def test_a_last_line_that_a_kill_cut_short_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 4, "iter')
    assert main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6  # heading, 3 rows, space, best


def test_a_missing_folder_is_told_and_not_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert f"no history.jsonl in {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json\n{}\n", "line 1 of the history is no JSON"),
        ("[1]\n", "line 1 of the history is no JSON object"),
        ('{"epoch": 1}\n', "are missing"),
        (BACKWARDS, "records go forward"),
    ],
)
def test_a_damaged_history_is_told_in_one_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.jsonl").write_text(text)
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_damaged_account_of_the_best_is_told_below_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    (tmp_path / "best.json").write_text("no json")
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "0.3750" in shown
    assert str(tmp_path / "best.json") in shown


def test_a_protocol_that_nobody_knows_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zorp://bucket"]) == 1
    assert "zorp" in capsys.readouterr().err
