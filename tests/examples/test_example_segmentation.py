"""What is special to ``examples/segmentation.py``: reduced predictions, and their figures."""

from __future__ import annotations

import importlib.util
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ignite_evalhook import EvalHook, EvalRecord, create_evaluator

pytest.importorskip("mmeval")
metrics = pytest.importorskip("sklearn.metrics")

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "segmentation.py"
BOTH = ["mIoU", "mDice"]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("example_segmentation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(
    example: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, list[EvalRecord]]:
    """A model that was trained for an epoch, its validation data, and the hook's records.

    After an epoch it predicts all classes, each with errors.
    """
    made: dict[str, Any] = {}

    class Spy(EvalHook):
        def __init__(self, dataloader: Any, evaluator: Any, **options: Any) -> None:
            super().__init__(dataloader, evaluator, **options)
            made.update(hook=self, data=dataloader.dataset, model=evaluator.model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "EvalHook", Spy)
        folder = tmp_path_factory.mktemp("segmentation")
        record = example.train(0, example.parse(["--max-epochs=1", f"--out-dir={folder}"]))
    return made["model"], made["data"], [*made["hook"].history, record]


def predict(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        classes: torch.Tensor = model(images)[0].argmax(dim=1)
    return classes


def evaluate(model: Any, data: Any, batch_size: int = 8, **options: Any) -> EvalRecord:
    options = {"pre_eval": True, "metric": BOTH, **options}
    return EvalHook(DataLoader(data, batch_size), create_evaluator(model), **options).evaluate()


def test_it_evaluates_by_iterations_under_the_names_of_mmsegmentation(
    example: ModuleType, trained: tuple[Any, Any, list[EvalRecord]]
) -> None:
    records = trained[2]
    by_class = [f"{kind}.{c}" for kind in ("IoU", "Dice", "Acc") for c in example.CLASSES]
    losses = ["val_loss", "decode.loss_ce", "aux.loss_ce"]

    assert [(r.epoch, r.iteration) for r in records] == [(1, 10), (1, 20), (1, 20)]
    assert set(records[0].metrics) == {"aAcc", "mIoU", "mDice", "mAcc", *by_class, *losses}
    assert all(r.samples == 40 for r in records)


def test_the_figures_are_those_of_scikit_learn_on_whole_predictions(
    example: ModuleType, trained: tuple[Any, Any, list[EvalRecord]]
) -> None:
    model, data, _ = trained
    images, labels = data.tensors
    true, found = labels.flatten().numpy(), predict(model, images).flatten().numpy()
    figures = evaluate(model, data).metrics

    iou = metrics.jaccard_score(true, found, average=None)
    dice = metrics.f1_score(true, found, average=None)
    acc = metrics.recall_score(true, found, average=None)
    wanted = {"aAcc": metrics.accuracy_score(true, found), "mIoU": iou.mean()}
    wanted |= {"mDice": dice.mean(), "mAcc": acc.mean()}
    for kind, values in (("IoU", iou), ("Dice", dice), ("Acc", acc)):
        wanted |= {f"{kind}.{c}": v for c, v in zip(example.CLASSES, values, strict=True)}

    assert len(wanted) == 16
    assert min(iou) > 0.05
    assert max(iou) < 0.99
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)


def test_the_four_areas_of_an_image_are_those_of_its_confusion_matrix(
    trained: tuple[Any, Any, list[EvalRecord]],
) -> None:
    model, data, _ = trained
    found = predict(model, data.tensors[0][5:8])

    reduced = data.pre_eval(list(found), [5, 6, 7])

    for index, classes, areas in zip((5, 6, 7), found, reduced, strict=True):
        label = data.tensors[1][index].flatten().numpy()
        matrix = metrics.confusion_matrix(label, classes.flatten().numpy(), labels=range(4))
        true, predicted, both = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
        wanted = (both, true + predicted - both, predicted, true)
        assert [area.tolist() for area in areas] == [area.tolist() for area in wanted]


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_figures_do_not_depend_on_the_batches(
    trained: tuple[Any, Any, list[EvalRecord]], batch_size: int
) -> None:
    model, data, records = trained
    counted = [name for name in records[-1].metrics if "loss" not in name]

    other = evaluate(model, data, batch_size).metrics

    assert len(counted) == 16
    assert [other[name] for name in counted] == [records[-1].metrics[name] for name in counted]


def test_what_is_kept_of_an_image_is_the_same_for_any_number_of_pixels(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []
    plain = example.Scenes.evaluate

    def spy(self: Any, results: list[Any], **options: Any) -> Any:
        seen.append(results)
        return plain(self, results, **options)

    monkeypatch.setattr(example.Scenes, "evaluate", spy)
    model = example.UNet()

    for size in (32, 64, 128):
        evaluate(model, example.Scenes(slice(0, 9), 6, size=size), batch_size=2)

    kept = [[sum(area.nbytes for area in areas) for areas in results] for results in seen]
    numbers = 4 * len(example.CLASSES)
    assert kept == [[8 * numbers] * 6] * 3
    # Not views that hold on to something larger.
    assert all(area.base is None for results in seen for areas in results for area in areas)
    assert [int(results[0][3].sum()) for results in seen] == [32**2, 64**2, 128**2]


def test_no_prediction_outlives_its_batch(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    val_step, compute = example.UNet.val_step, example.Scenes.evaluate

    def remember(self: Any, batch: Any) -> Any:
        alive.append(sum(prediction() is not None for prediction in predictions))
        output = val_step(self, batch)
        predictions.extend(weakref.ref(item) for item in output[:-1])
        return output

    def count(self: Any, results: list[Any], **options: Any) -> Any:
        alive.append(sum(prediction() is not None for prediction in predictions))
        return compute(self, results, **options)

    monkeypatch.setattr(example.UNet, "val_step", remember)
    monkeypatch.setattr(example.Scenes, "evaluate", count)

    evaluate(example.UNet(), example.Scenes(slice(0, 9), 12), batch_size=2)

    assert len(predictions) == 12
    assert max(alive) <= 2  # the last output is in the engine's state


def test_the_val_loss_is_the_sum_of_both_heads_as_in_training(
    example: ModuleType, trained: tuple[Any, Any, list[EvalRecord]]
) -> None:
    model, data, _ = trained
    figures = evaluate(model, data, batch_size=7).metrics  # the last batch is not full

    with torch.no_grad():
        wanted = example.losses(model.eval()(data.tensors[0]), data.tensors[1])

    assert {name: figures[name] for name in wanted} == pytest.approx(
        {name: value.item() for name, value in wanted.items()}, rel=1e-5
    )
    assert figures["val_loss"] == pytest.approx(
        figures["decode.loss_ce"] + figures["aux.loss_ce"], rel=1e-12
    )


def test_a_class_that_is_nowhere_has_no_iou_and_does_not_count_in_the_mean(
    example: ModuleType,
) -> None:
    data = example.Scenes(slice(0, 9), 4)
    data.tensors[1][:] = 0
    data.tensors[1][:, 16:] = 1
    found = data.tensors[1].clone()
    found[:, :4] = 1

    figures = data.evaluate(data.pre_eval(list(found), range(4)))

    assert figures["IoU.noise"] == pytest.approx(12 / 16)
    assert figures["IoU.stripes"] == pytest.approx(16 / 20)
    assert figures["mIoU"] == pytest.approx((12 / 16 + 16 / 20) / 2)
    assert math.isnan(figures["IoU.zero"])
    assert math.isnan(figures["IoU.one"])


def test_the_best_may_be_followed_by_one_class(
    example: ModuleType, trained: tuple[Any, Any, list[EvalRecord]], tmp_path: Path
) -> None:
    model, data, _ = trained
    hook = EvalHook(
        DataLoader(data, 8),
        create_evaluator(model),
        pre_eval=True,
        save_best="IoU.one",
        preset="mmseg",
        out_dir=tmp_path,
    )
    trainer = example.Engine(lambda engine, batch: None)
    hook.attach(trainer)

    trainer.run([0], max_epochs=1)

    assert hook.best is not None
    assert hook.best.score == hook.history[0].metrics["IoU.one"]
    assert "mDice" not in hook.history[0].metrics  # mIoU alone is the default


def test_a_metric_that_it_does_not_know_is_an_error_in_words(example: ModuleType) -> None:
    data = example.Scenes(slice(0, 9), 2)

    with pytest.raises(
        ValueError, match=r"metric must be of 'mIoU' and 'mDice', got \['mFscore'\]"
    ):
        data.evaluate([], metric="mFscore")
