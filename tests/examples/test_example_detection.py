"""``examples/detection.py``: its figures are COCO's, and nothing detected is no end of training."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ignite_evalhook import EvalRecord, History, find_best, load_best

pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "detection.py"
COCO_NAMES = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75", "bbox_mAP_s", "bbox_mAP_m", "bbox_mAP_l")


def load_script() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("example_detection", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["example_detection"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Run:
    folder: Path
    record: EvalRecord
    history: History
    model: Any  # the best one
    data: Any  # what it was evaluated on


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    yield load_script()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on one process as the script comes."""
    folder = tmp_path_factory.mktemp("detection")
    record = example.train(0, example.parse([f"--out-dir={folder}"]))
    model = example.Detector().eval()
    load_best(folder, {"model": model})
    history = History.read(folder / "history.jsonl")
    return Run(folder, record, history, model, example.Scenes(slice(100), 90, seed=2))


def batches(data: Any) -> Iterator[list[torch.Tensor]]:
    for start in range(0, len(data), 16):
        yield [tensor[start : start + 16] for tensor in data.tensors]


def detections(run: Run) -> list[list[torch.Tensor]]:
    with torch.no_grad():
        return [image for batch in batches(run.data) for image in run.model.val_step(batch)[:-1]]


def by_coco(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Evaluate from files, with the settings that pycocotools has by default."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    _, labels, boxes = run.data.tensors
    truth = []
    for number, (i, y, x) in enumerate((labels != 3).nonzero().tolist(), start=1):
        x1, y1, x2, y2 = boxes[i, y, x].tolist()
        box = [x1, y1, x2 - x1, y2 - y1]
        area = {"area": box[2] * box[3], "iscrowd": 0, "id": number}
        truth.append({"image_id": i, "category_id": int(labels[i, y, x]), "bbox": box, **area})
    kinds = [{"id": label, "name": str(label)} for label in range(3)]
    images = [{"id": i, "width": 32, "height": 32} for i in range(len(labels))]
    content = {"info": {}, "images": images, "categories": kinds, "annotations": truth}
    (folder / "truth.json").write_text(json.dumps(content))
    found = []
    for i, classes in enumerate(detections(run)):
        for label, rows in enumerate(classes):
            for x1, y1, x2, y2, score in rows.tolist():
                box = [x1, y1, x2 - x1, y2 - y1]
                found.append({"image_id": i, "category_id": label, "bbox": box, "score": score})
    (folder / "found.json").write_text(json.dumps(found))
    coco = COCO(str(folder / "truth.json"))
    judge = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    capsys.readouterr()
    return {**dict(zip(COCO_NAMES, judge.stats[:6], strict=True)), "AR@100": judge.stats[8]}


def test_the_figures_of_the_record_are_those_of_pycocotools_on_files(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = by_coco(run, tmp_path, capsys)

    assert {name: run.record.metrics[name] for name in wanted} == wanted
    assert wanted["bbox_mAP"] > 0.3
    assert wanted["bbox_mAP_50"] > 0.7
    assert wanted["bbox_mAP_m"] == wanted["bbox_mAP_l"] == -1  # COCO's word for: there are none


def test_the_string_to_paste_and_the_classes_are_in_every_record_that_has_a_score(
    run: Run,
) -> None:
    for record in [*run.history[1:], run.record]:
        figures = [record.metrics[name] for name in COCO_NAMES]
        text = " ".join(f"{figure:.3f}" for figure in figures)
        assert record.metrics["bbox_mAP_copypaste"] == text
        classes = [record.metrics[f"{name}_precision"] for name in ("zero", "one", "two")]
        assert sum(classes) / 3 == pytest.approx(record.metrics["bbox_mAP"])


def test_it_evaluates_every_third_epoch_first_and_each_one_at_the_end(run: Run) -> None:
    assert [record.epoch for record in run.history] == [0, 3, 6, 9, 10, 11, 12]


def test_nothing_is_detected_before_training_and_that_is_a_record_without_a_score(
    run: Run,
) -> None:
    first = run.history[0]
    assert set(first.metrics) == {"val_loss", "loss_cls", "loss_bbox"}
    assert not first.is_best


def test_the_best_is_the_greatest_map_and_the_record_is_that_of_its_epoch(run: Run) -> None:
    best = find_best(run.folder)
    assert best.score == max(record.metrics["bbox_mAP"] for record in run.history[1:])
    at = next(record for record in run.history if record.epoch == best.epoch)
    assert at.metrics == run.record.metrics
    assert run.record.samples == 90


def test_the_box_loss_is_a_mean_over_objects_and_the_class_loss_one_over_images(
    run: Run,
) -> None:
    images, labels, boxes = run.data.tensors
    real = labels != 3
    per_batch = [(batch[1] != 3).sum().item() for batch in batches(run.data)]
    assert len(set(per_batch)) > 2  # else a mean over batches would be as good
    with torch.no_grad():
        scores, border = run.model.layers(images).double().split([4, 4], dim=1)
    log_softmax = scores.log_softmax(1).gather(1, labels[:, None])
    steps = (4 * torch.arange(8) + 2).expand(8, 8)
    found = (4 * border + torch.stack([steps, steps.T, steps, steps.T])).permute(0, 2, 3, 1)
    loss_bbox = (found - boxes)[real].abs().mean().item()
    loss_cls = -log_softmax.sum().item() / len(images)

    metrics = run.record.metrics
    assert metrics["loss_bbox"] == pytest.approx(loss_bbox, rel=1e-5)
    assert metrics["loss_cls"] == pytest.approx(loss_cls, rel=1e-5)
    assert metrics["val_loss"] == metrics["loss_bbox"] + metrics["loss_cls"]


def test_perfect_detections_score_one_wrong_ones_zero_and_none_give_an_empty_result(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = run.data.truth
    perfect = run.data.evaluate(truth, classwise=True)
    assert perfect == {
        **dict.fromkeys(COCO_NAMES, 1.0),
        "bbox_mAP_m": -1.0,  # there are no objects of such sizes
        "bbox_mAP_l": -1.0,
        "AR@100": 1.0,
        **dict.fromkeys(("zero_precision", "one_precision", "two_precision"), 1.0),
        "bbox_mAP_copypaste": "1.000 1.000 1.000 1.000 -1.000 -1.000",
    }

    away = torch.tensor([100.0, 0.0, 100.0, 0.0, 0.0])
    wrong = run.data.evaluate([[rows + away for rows in classes] for classes in truth])
    assert (wrong["bbox_mAP"], wrong["AR@100"]) == (0.0, 0.0)

    assert run.data.evaluate([[rows[:0] for rows in classes] for classes in truth]) == {}
    assert capsys.readouterr().out == ""  # pycocotools is kept quiet


def test_a_run_that_never_detects_anything_trains_to_its_end(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "THRESHOLD", 2.0)  # no score is as high

    record = example.train(0, example.parse([f"--out-dir={tmp_path}", "--max-epochs=3"]))

    assert set(record.metrics) == {"val_loss", "loss_cls", "loss_bbox"}
    assert {file.name for file in tmp_path.glob("*.pt")} == {"last.pt"}
    history = History.read(tmp_path / "history.jsonl")
    assert [(record.epoch, record.best_of) for record in history] == [(0, ()), (3, ())]
    assert history[1].metrics["val_loss"] < history[0].metrics["val_loss"]
    assert history[1].metrics == record.metrics
