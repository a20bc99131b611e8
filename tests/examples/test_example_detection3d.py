"""``examples/detection3d.py``: its metric is the VOC's, and slower than the ranks' timeout."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ranks import on_ranks
from ignite_evalhook import History, find_best

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "detection3d.py"
TIMEOUT, SLOW = 2.0, 2.5  # seconds: of the process group, of the metric
NAMES = ("pts_bbox/mAP_0.25", "pts_bbox/mAR_0.25", "pts_bbox/mAP_0.50", "pts_bbox/mAR_0.50")

Results = list[dict[str, Tensor]]


def load_script() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("example_detection3d", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["example_detection3d"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    yield load_script()
    torch.set_num_threads(threads)


def room(*rows: list[float]) -> dict[str, Tensor]:
    """Return a room of rows label, score, and the two corners of a box."""
    table = torch.tensor(rows).reshape(-1, 8)
    return {"boxes_3d": table[:, 2:], "scores_3d": table[:, 1], "labels_3d": table[:, 0].long()}


def random_rooms(count: int, seed: int) -> tuple[Results, Results]:
    """Return detections and the truth, boxes of height 1 so that only the floor matters."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    found, truth = [], []
    for _ in range(count):
        objects = int(1 + 3 * rand(()))
        low = torch.cat([4 * rand(objects, 2), torch.zeros(objects, 1)], dim=1)
        size = torch.cat([0.5 + rand(objects, 2), torch.ones(objects, 1)], dim=1)
        labels = (3 * rand(objects)).long()
        truth.append({"boxes_3d": torch.cat([low, low + size], dim=1), "labels_3d": labels})
        twice = torch.arange(objects).repeat(3)  # some near, some far, some of another class
        shift = torch.cat([0.6 * rand(len(twice), 2), torch.zeros(len(twice), 1)], dim=1)
        boxes = truth[-1]["boxes_3d"][twice] + torch.cat([shift, shift], dim=1)
        other = (3 * rand(len(twice))).long()
        kinds = torch.where(rand(len(twice)) < 0.3, other, labels[twice])
        found.append({"boxes_3d": boxes, "scores_3d": rand(len(twice)), "labels_3d": kinds})
    return found, truth


def by_mmeval(found: Results, truth: Results) -> dict[str, float]:
    """Return the average precision of the floor plans."""
    mmeval = pytest.importorskip("mmeval")
    floor = [0, 1, 3, 4]
    detections = [
        {
            "bboxes": room["boxes_3d"][:, floor].numpy(),
            "scores": room["scores_3d"].numpy(),
            "labels": room["labels_3d"].numpy(),
        }
        for room in found
    ]
    objects = [
        {
            "bboxes": room["boxes_3d"][:, floor].numpy(),
            "labels": room["labels_3d"].numpy(),
            "bboxes_ignore": room["boxes_3d"][:0, floor].numpy(),
            "labels_ignore": room["labels_3d"][:0].numpy(),
        }
        for room in truth
    ]
    metric = mmeval.VOCMeanAP(iou_thrs=[0.25, 0.5], num_classes=3, eval_mode="area", nproc=1)
    figures: dict[str, Any] = metric(detections, objects)
    return figures


def train_with_a_slow_metric(rank: int, folder: Path) -> tuple[dict[str, Any], int, float]:
    module = load_script()
    options = [f"--out-dir={folder}", "--max-epochs=1", f"--slow-metric={SLOW}"]
    record = module.train(rank, module.parse(options))
    return dict(record.metrics), record.samples, record.seconds


def test_two_processes_survive_a_metric_that_takes_longer_than_their_timeout(
    tmp_path: Path,
) -> None:
    (metrics, samples, seconds), of_rank_1 = on_ranks(
        2, train_with_a_slow_metric, tmp_path, group_timeout=TIMEOUT
    )

    assert (metrics, samples, seconds) == of_rank_1
    assert set(metrics) == {"val_loss", "loss_cls", "loss_bbox", *NAMES}
    history = History.read(tmp_path / "history.jsonl")
    assert [(record.epoch, record.metrics) for record in history] == [(1, metrics)]
    assert history[0].seconds > SLOW > TIMEOUT > seconds  # the second evaluation is not slow


@pytest.mark.parametrize("seed", range(3))
def test_the_metric_is_that_of_mmeval_where_boxes_differ_on_the_floor_only(
    example: ModuleType, seed: int
) -> None:
    found, truth = random_rooms(12, seed)

    figures = example.indoor_eval(found, truth, [])

    wanted = by_mmeval(found, truth)
    assert figures["pts_bbox/mAP_0.25"] == pytest.approx(wanted["AP25"], abs=1e-6)
    assert figures["pts_bbox/mAP_0.50"] == pytest.approx(wanted["AP50"], abs=1e-6)
    assert 0.05 < figures["pts_bbox/mAP_0.50"] < figures["pts_bbox/mAP_0.25"] < 0.95


def test_overlaps_are_those_of_volumes(example: ModuleType) -> None:
    cube = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0, 2.0]])
    others = torch.tensor(
        [
            [0.0, 0.0, 0.0, 2.0, 2.0, 2.0],  # itself
            [0.0, 0.0, 1.0, 2.0, 2.0, 3.0],  # half as high above
            [1.0, 1.0, 1.0, 3.0, 3.0, 3.0],  # one of eight
            [2.0, 0.0, 0.0, 3.0, 2.0, 2.0],  # beside it
            [9.0, 9.0, 9.0, 9.5, 9.5, 9.5],
        ]
    )

    assert example.iou(cube, others).tolist() == [
        pytest.approx([1, 4 / 12, 1 / 15, 0, 0])  # shared by all
    ]


def test_perfect_detections_score_one_none_zero_and_a_second_one_of_an_object_is_wrong(
    example: ModuleType,
) -> None:
    truth = example.Rooms(20, seed=3).truth
    assert example.indoor_eval(truth, truth, []) == dict.fromkeys(NAMES, 1.0)

    none = [{name: part[:0] for name, part in room.items()} for room in truth]
    assert example.indoor_eval(none, truth, []) == dict.fromkeys(NAMES, 0.0)

    box, far = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], [5.0, 5.0, 0.0, 6.0, 6.0, 1.0]
    true = [room([0, 1, *box], [0, 1, *far], [1, 1, *box], [2, 1, *box])]
    found = [room([0, 0.9, *box], [0, 0.8, *box], [0, 0.7, *far], [1, 0.5, *box], [2, 0.5, *box])]
    figures = example.indoor_eval(found, true, [])
    # Half of the recall at precision 1, the other half at 2 of 3, in one of three classes.
    assert figures["pts_bbox/mAP_0.50"] == pytest.approx((0.5 + 0.5 * 2 / 3 + 1 + 1) / 3)
    assert figures["pts_bbox/mAR_0.50"] == 1


def test_names_with_slashes_are_kept_in_records_and_make_files_without_any(
    example: ModuleType, tmp_path: Path
) -> None:
    record = example.train(0, example.parse([f"--out-dir={tmp_path}", "--max-epochs=2"]))

    best = find_best(tmp_path)
    assert best.metric == "pts_bbox/mAP_0.50"
    assert best.score == record.metrics["pts_bbox/mAP_0.50"]
    assert isinstance(best.path, Path)
    assert best.path.parent == tmp_path
    assert best.path.name == f"best_model_{best.epoch}_pts_bbox_mAP_0.50={best.score:.6g}.pt"
    assert all(file.is_file() for file in tmp_path.iterdir())
    assert set(NAMES) < set(record.metrics)


def test_the_timeout_of_the_group_reaches_ignite(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []

    class Parallel:
        def __init__(self, **how: Any) -> None:
            said.append(how)

        def __enter__(self) -> Parallel:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def run(self, function: Any, args: Any) -> None:
            assert function is example.train
            assert args.slow_metric == 25

    monkeypatch.setattr(example.idist, "Parallel", Parallel)
    example.main(["--nproc=2", "--slow-metric=25", "--group-timeout=20"])

    assert (said[0]["nproc_per_node"], said[0]["timeout"]) == (2, timedelta(seconds=20))
