"""The examples, each for the users of another system: they learn, on one process and on two.

A row of ``ROWS`` is a row of the table in the README: system, example, metrics.  What is tested
of each:

- it learns: the best model's metrics are within their bounds, on one process and on two;
- the same at 1 and 2 processes: what two processes have trained, evaluated by two and by one,
  has the same record, digit for digit;
- it resumes: a run that was broken off and started again has the history of an unbroken one.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.ranks import on_ranks
from ignite_evalhook import EvalRecord, History

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Row:
    """An example: whom it is for, what it needs, and what its best model reaches.

    Attributes:
        system: Whose users find here what they had.
        script: Its file in ``examples/``.
        metrics: What it reports, as the table in the README says.
        bounds: Metric to ``(at least, at most)``.
        needs: Packages.
        rounded: Metrics that add up float32 numbers in another order on several processes.
        break_after: Epochs after which the run is broken off.
        options: For all runs.
    """

    system: str
    script: str
    metrics: str
    bounds: Mapping[str, tuple[float, float]]
    needs: tuple[str, ...] = ()
    rounded: frozenset[str] = frozenset()
    break_after: int = 2
    options: tuple[str, ...] = field(default=())


ROWS = [
    Row(
        "MMClassification, MMPretrain",
        "classification.py",
        "top-1, top-5, precision, recall, F1 by mmeval; the loss comes from `val_step`",
        {"accuracy_top-1": (97, 100), "accuracy_top-5": (99, 100), "precision": (97, 100),
         "recall": (97, 100), "f1_score": (97, 100), "val_loss": (0, 0.1)},
        needs=("sklearn", "mmeval"),
    ),
    Row(
        "MMDetection",
        "detection.py",
        "`bbox_mAP`, `bbox_mAP_50`, `AR@100` by pycocotools; a loss of two parts",
        {"bbox_mAP": (0.35, 1), "bbox_mAP_50": (0.75, 1), "AR@100": (0.45, 1), "val_loss": (0, 5)},
        needs=("sklearn", "pycocotools"),
    ),
    Row(
        "MMDetection3D",
        "detection3d.py",
        "mAP and mAR at IoU 0.25 and 0.5; a metric slower than the group's timeout",
        {"pts_bbox/mAP_0.25": (0.75, 1), "pts_bbox/mAP_0.50": (0.45, 1),
         "pts_bbox/mAR_0.25": (0.8, 1), "pts_bbox/mAR_0.50": (0.55, 1), "val_loss": (0, 8)},
    ),
    Row(
        "MMSegmentation",
        "segmentation.py",
        "mIoU, mAcc, aAcc, mDice by mmeval, by iteration; histograms are all that is kept",
        {"mIoU": (0.7, 1), "aAcc": (0.9, 1), "mDice": (0.8, 1), "mAcc": (0.8, 1),
         "IoU.zero": (0.45, 1), "IoU.one": (0.45, 1), "val_loss": (0, 0.35)},
        needs=("sklearn", "mmeval"),
    ),
    Row(
        "MMAction2",
        "action_recognition.py",
        "top-1, top-5 by mmeval, mean class accuracy by scikit-learn; the best is tested",
        {"top1_acc": (0.9, 1), "top5_acc": (0.97, 1), "mean_class_accuracy": (0.88, 1),
         "val_loss": (0, 0.3)},
        needs=("sklearn", "mmeval"),
    ),
    Row(
        "MMPose",
        "pose.py",
        "PCK@0.2, AUC, EPE, NME by mmeval; flip test; boxes that occur twice count once",
        {"EPE": (0, 1.1), "PCK@0.2": (0.95, 1), "AUC": (0.83, 1), "NME": (0, 0.08),
         "val_loss": (0, 3.1)},
        needs=("mmeval",),
    ),
    Row(
        "MONAI",
        "from_monai.py",
        "`MeanDice` of MONAI, on its `SupervisedTrainer`",
        {"val_mean_dice": (0.75, 1), "val_loss": (0, 0.25)},
        needs=("monai",),
        rounded=frozenset({"val_mean_dice"}),
        break_after=7,
    ),
    Row(
        "Hugging Face",
        "huggingface.py",
        "perplexity and accuracy, weighted by tokens, of a model of Transformers",
        {"perplexity": (1.39, 1.48), "accuracy": (0.8, 1), "val_loss": (0, 0.39)},
        needs=("transformers",),
    ),
]  # fmt: skip
TABLE = [pytest.param(row, id=row.script) for row in ROWS]


def load(script: str) -> ModuleType:
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{Path(script).stem}", EXAMPLES / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its objects can be pickled
    spec.loader.exec_module(module)
    return module


def work(rank: int, script: str, options: list[str]) -> EvalRecord:
    """Do what the script does on one rank, and return the record of the best model."""
    module = load(script)
    record: EvalRecord = module.train(rank, module.parse(options))
    return record


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def alone(row: Row, folder: Path, *options: str) -> EvalRecord:
    with one_thread():
        return work(0, row.script, [*row.options, f"--out-dir={folder}", *options])


def records(folder: Path) -> list[Any]:
    """Return the records of a run without the seconds, as text, since NaN equals itself there."""
    history = History.read(next(folder.glob("history*.jsonl")))
    return [repr((r.epoch, r.iteration, r.metrics, r.best_of, r.samples)) for r in history]


def within(record: EvalRecord, bounds: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the metrics that are out of their bounds."""
    return {
        name: record.metrics[name]
        for name, (least, most) in bounds.items()
        if not least <= record.metrics[name] <= most
    }


def need(row: Row) -> None:
    for package in row.needs:
        pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE)
def test_it_learns_and_resumes(row: Row, tmp_path: Path) -> None:
    need(row)
    unbroken = alone(row, tmp_path / "unbroken")
    assert within(unbroken, row.bounds) == {}
    alone(row, tmp_path / "broken", f"--max-epochs={row.break_after}")
    assert len(records(tmp_path / "broken")) < len(records(tmp_path / "unbroken"))
    broken = alone(row, tmp_path / "broken")
    assert records(tmp_path / "broken") == records(tmp_path / "unbroken")
    assert repr(broken.metrics) == repr(unbroken.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE)
def test_two_processes_learn_and_one_evaluates_the_same(row: Row, tmp_path: Path) -> None:
    need(row)
    options = [*row.options, f"--out-dir={tmp_path / 'run'}"]
    two, other = on_ranks(2, work, row.script, options)
    assert repr(two.metrics) == repr(other.metrics)
    assert within(two, row.bounds) == {}
    before = records(tmp_path / "run")
    one = alone(row, tmp_path / "run")  # it has ended: its best is loaded and evaluated
    assert records(tmp_path / "run") == before
    for name, value in two.metrics.items():
        if name in row.rounded:
            assert one.metrics[name] == pytest.approx(value, rel=1e-6)
        else:
            assert repr(one.metrics[name]) == repr(value), name
    assert list(one.metrics) == list(two.metrics)
    assert one.samples == two.samples


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE)
def test_the_script_runs_as_a_newcomer_runs_it(row: Row, tmp_path: Path) -> None:
    need(row)
    for options in ([], ["--nproc=2"]):
        command = [sys.executable, str(EXAMPLES / row.script), *row.options, *options]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        assert re.search(r"\d", ended.stdout.strip().splitlines()[-1])


# -- the table in the README ------------------------------------------------------------------


def line_of(row: Row) -> str:
    script = f"[{Path(row.script).stem}](examples/{row.script})"
    return f"| {row.system} | {script} | {row.metrics} | yes | yes |"


# Tested in a file of its own, which has all the ways to start it.
ELSEWHERE = Row("MMEngine (MMResNet50)", "distributed.py", "accuracy, exactly 5 of 5 samples", {})


def test_the_table_in_the_readme_is_the_one_that_is_tested() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    found = [line for line in lines if re.match(r"\| .*\(examples/\w+\.py\)", line)]
    assert found == [line_of(row) for row in (ELSEWHERE, *ROWS)]


def test_every_example_is_listed_and_short() -> None:
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f"[{script.name}]({script.name})" in listed
        assert len(script.read_text("utf-8").splitlines()) < 200
