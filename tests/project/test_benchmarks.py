"""The benchmarks run: each of our rows, at sizes that tell nothing about speed."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make ``benchmarks`` importable, and undo what they quieten in the process."""
    monkeypatch.syspath_prepend(str(ROOT))
    log = logging.getLogger("ignite_evalhook")
    level = log.level
    with warnings.catch_warnings():
        yield
    log.setLevel(level)
    gc.unfreeze()


@pytest.mark.parametrize(
    "name",
    ["loop", "loop-accuracy", "loop-5ms", "modes", "one-batch", "accumulator", "batches", "growth",
     "evaluations", "idle", "collect"],
)  # fmt: skip
def test_each_part_gives_rows(name: str) -> None:
    from benchmarks.__main__ import PARTS
    from benchmarks.timing import TINY

    rows = PARTS[name](TINY)
    assert rows
    for row in rows:
        assert row.ours is not None or row.note
        assert row.name
        assert row.unit


def test_processes_of_their_own_give_rows() -> None:
    from benchmarks.memory import risen
    from benchmarks.ranks import ranks
    from benchmarks.timing import Effort

    assert risen("streaming", batches=3) >= 0.0
    rows = ranks(Effort(repetitions=1, scale=0.0, peers=False))
    assert [row.ours is not None for row in rows] == [True] * 3


def test_short_evaluations_with_workers_run() -> None:
    from benchmarks import workers

    workers.with_ours(persistent=True, epochs=1)()


def test_what_needs_a_gpu_runs_small_on_a_cpu_and_says_why_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import gpu
    from benchmarks.timing import TINY

    tiny = gpu.resnet50(width=2, classes=10)
    (row,) = gpu.throughput("tiny", tiny, gpu.images(2, 2, 32), TINY, "cpu")
    assert row.at_least
    small = gpu.Transformer(width=16, layers=1)
    assert gpu.throughput("small", small, gpu.sentences(2, 2, 4), TINY, "cpu")
    assert gpu.pinned_by_loader(tiny, 2, 2, 32, TINY, "cpu").at_least
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {row.note for row in gpu.cuda(TINY)} == {"skipped: no CUDA device"}


def test_a_target_is_a_ceiling_or_a_floor() -> None:
    from benchmarks.table import Figure, row, skipped

    assert row("a", "b", [1.0, 2.0, 3.0], target=2.0).met is True
    assert row("a", "b", [1.0, 2.0, 3.0], target=1.9).met is False
    assert row("a", "b", [1.0, 2.0, 3.0], target=2.1, at_least=True).met is False
    assert row("a", "b", [0.0]).met is None
    assert skipped("a", "b", "no", target=1.0).met is None
    assert Figure.of([4.0]) == Figure(4.0, 4.0, 4.0)


def test_a_row_is_printed_with_its_peers_best_first() -> None:
    from benchmarks.table import lines, markdown, row, to_json

    one = row("loop", "raw loop = 1", [1.5], {"slow": [9.0], "quick": [2.0], "none": "not here"},
              target=1.45, note="a note")  # fmt: skip
    first, *others = lines(one)
    assert "1.50 [1.50 .. 1.50]" in first
    assert "<= 1.45 MISSED" in first
    assert [line.split()[0] for line in others] == ["quick", "slow", "none:", "a"]
    assert "quick 2.00" in markdown([one])
    assert json.loads(json.dumps(to_json(one)))["met"] is False


def test_a_part_that_raises_becomes_a_row_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import benchmarks.__main__ as table
    from benchmarks.table import Row, row
    from benchmarks.timing import Effort

    def broken(effort: Effort) -> list[Row]:
        raise ValueError("no such thing")

    def fine(effort: Effort) -> list[Row]:
        return [row("fine", "ms", [float(effort.repetitions)])]

    monkeypatch.setattr(table, "PARTS", {"broken": broken, "fine": fine})
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "quieten", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert table.main(["--quick", "--save"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: ValueError: no such thing" in said
    assert "torch: " in said
    (saved,) = tmp_path.glob("*.json")
    assert [one["name"] for one in json.loads(saved.read_text())["rows"]] == ["broken", "fine"]
    assert "| fine | ms |" in saved.with_suffix(".md").read_text()
    assert table.main(["--only", "fine", "--repetitions", "5"]) == 0


def test_efforts_differ_in_size_only() -> None:
    from benchmarks.timing import FULL, QUICK

    assert FULL.repetitions >= 5
    assert QUICK.of(1000) == 100
    assert dataclasses.replace(QUICK, scale=0.0).of(1000, least=4) == 4


@pytest.mark.parametrize("script", ["messages.py", "scoreboard.py"])
def test_a_script_beside_the_other_modules_finds_what_torch_imports(script: str) -> None:
    """A script's own folder comes first: a ``cuda.py`` in it would be taken for NVIDIA's."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage")
