"""``~`` is the home folder wherever a path is given, also where no shell has seen it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from helpers.private import main
from helpers.scripted import counter, run
from ignite_evalhook import BestCheckpoint, History, find_best, load_best
from ignite_evalhook.openmmlab import read_old_run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be somewhere else than at home."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path / "home"


def by_itself(out_dir: Any) -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics["acc"] = 0.5
    BestCheckpoint({"model": counter()}, out_dir, score_name="acc")(engine)


WRITERS: dict[str, Callable[[Any], object]] = {
    "a hook": lambda out_dir: run([0.5], out_dir),
    "a checkpoint of a hook": lambda out_dir: run(
        [0.5], None, checkpoint=BestCheckpoint({"model": counter()}, out_dir)
    ),
    "a checkpoint by itself": by_itself,
}


@pytest.mark.parametrize("out_dir", ["~/runs", Path("~/runs"), "~//runs/"], ids=repr)
@pytest.mark.parametrize("writer", WRITERS)
def test_files_go_into_it_and_are_found_there(writer: str, out_dir: Any, home: Path) -> None:
    WRITERS[writer](out_dir)
    assert list(Path().iterdir()) == []
    best = find_best(out_dir)
    assert isinstance(best.path, Path)
    assert best.path.parent == home / "runs"
    assert load_best(out_dir, {"model": counter()}) == best


def test_every_reader_knows_it(home: Path, capsys: Any) -> None:
    run([0.5], "~/runs")
    torch.save({"meta": {"epoch": 1, "iter": 9}}, home / "latest.pth")
    assert len(History.read("~/runs/history.jsonl")) == 1
    assert main(["~/runs"]) == 0
    assert str(home / "runs") in capsys.readouterr().out
    assert read_old_run("~/latest.pth").iteration == 9


def test_a_tilde_inside_a_path_or_a_url_is_a_letter(home: Path) -> None:
    run([0.5], "./~/runs")
    assert find_best(Path.cwd() / "~" / "runs").score == 0.5
    run([0.5], f"file://{Path.cwd().as_posix()}/~")
    assert (Path.cwd() / "~" / "best.json").exists()
    assert not home.exists()
