"""What is special to ``examples/pose.py``: the flip test, boxes that are listed twice, the rule."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from ignite_evalhook import EvalHook, EvalRecord, create_evaluator

pytest.importorskip("mmeval")

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "pose.py"
METRICS = ["PCK", "AUC", "EPE", "NME"]
NAMES = ["PCK@0.2", "AUC", "EPE", "NME"]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("example_pose", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    mmeval = logging.getLogger("mmeval")
    threads, level = torch.get_num_threads(), mmeval.level
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)
    mmeval.setLevel(level)


class Trained(NamedTuple):
    """A model after two epochs of training, and what evaluated it."""

    model: Any
    data: Any
    hook: EvalHook
    record: EvalRecord


@pytest.fixture(scope="module")
def trained(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The best model of a short training run."""
    made: dict[str, Any] = {}

    class Spy(EvalHook):
        def __init__(self, dataloader: Any, evaluator: Any, **options: Any) -> None:
            super().__init__(dataloader, evaluator, **options)
            made.update(model=evaluator.model, data=dataloader.dataset, hook=self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "EvalHook", Spy)
        folder = tmp_path_factory.mktemp("pose")
        record = example.train(0, example.parse(["--max-epochs=2", f"--out-dir={folder}"]))
    return Trained(**made, record=record)


@pytest.fixture(scope="module")
def figures(example: ModuleType) -> Any:
    """Twenty figures that the model has not seen, each listed once."""
    return example.Figures([*range(20)], seed=7)


def evaluate(model: Any, data: Any, *, flip_test: bool = True, batch_size: int = 8) -> EvalRecord:
    model.flip_test = flip_test
    loader = DataLoader(data, batch_size)
    try:
        return EvalHook(loader, create_evaluator(model), metric=METRICS).evaluate()
    finally:
        model.flip_test = True


def predict(model: Any, images: torch.Tensor, *, flip_test: bool = True) -> torch.Tensor:
    """Return the points ``(batch, 7, 2)`` that ``val_step`` finds."""
    count = len(images)
    batch = [images, torch.zeros(count, 7, 2), torch.arange(count), torch.ones(count)]
    model.flip_test = flip_test
    try:
        with torch.no_grad():
            found: torch.Tensor = model.eval().val_step(batch)["preds"]
    finally:
        model.flip_test = True
    return found


def mirrored(example: ModuleType, points: torch.Tensor) -> torch.Tensor:
    """Return where the points are when the image is flipped."""
    points = points[:, example.MIRROR].clone()
    points[..., 0] = example.SIZE - 1 - points[..., 0]
    return points


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).double().norm(dim=-1).mean())


# -- the flip test --------------------------------------------------------------------------------


def test_the_val_loss_is_that_of_the_images_as_they_are(
    example: ModuleType, trained: Trained, figures: Any
) -> None:
    model = trained.model
    images, points = figures.tensors[:2]
    with torch.no_grad():
        wanted = example.losses(model.eval()(images), points).mean().item()
        other = example.losses(model(images.flip(-1)), mirrored(example, points)).mean().item()

    flipped, plain = evaluate(model, figures), evaluate(model, figures, flip_test=False)

    assert flipped.metrics["val_loss"] == plain.metrics["val_loss"]  # to the last bit
    assert flipped.metrics["val_loss"] == pytest.approx(wanted, rel=1e-6)
    assert abs(wanted - other) > 1e-4  # so that the line before says something
    assert flipped.metrics["EPE"] != plain.metrics["EPE"]


def test_the_flip_test_helps_a_trained_model(
    trained: Trained,
) -> None:
    plain = evaluate(trained.model, trained.data, flip_test=False).metrics

    assert trained.record.metrics["EPE"] < plain["EPE"] - 0.01
    assert trained.record.metrics["AUC"] > plain["AUC"]


def test_a_prediction_is_half_way_between_those_of_the_image_and_of_the_flipped_one(
    example: ModuleType, trained: Trained, figures: Any
) -> None:
    model, (images, points) = trained.model, figures.tensors[:2]
    direct = predict(model, images, flip_test=False)
    turned = mirrored(example, predict(model, images.flip(-1), flip_test=False))

    both = predict(model, images)

    assert (direct - turned).abs().max() > 0.1
    torch.testing.assert_close(both, (direct + turned) / 2, rtol=0, atol=1e-4)
    assert error(both, points) <= (error(direct, points) + error(turned, points)) / 2


def test_with_the_flip_test_a_flipped_image_has_the_mirrored_points(
    example: ModuleType, trained: Trained, figures: Any
) -> None:
    model, images = trained.model, figures.tensors[0]

    found = predict(model, images.flip(-1))

    torch.testing.assert_close(found, mirrored(example, predict(model, images)), rtol=0, atol=1e-4)


def test_the_heatmap_that_is_aimed_at_is_decoded_to_its_points(
    example: ModuleType, figures: Any
) -> None:
    points = figures.tensors[1]
    logs = torch.zeros(len(points), 7, 16, 16, requires_grad=True)

    # The gradient of a cross entropy with respect to the logarithms is the target.
    example.losses(logs, points).sum().backward()

    assert logs.grad is not None
    inside = ((points > 5) & (points < example.SIZE - 6)).all(dim=-1)
    assert inside.sum() > 50
    found = example.decode(-7 * logs.grad)
    assert (found - points)[inside].abs().max() < 0.2


# -- boxes that are listed twice ------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [4, 20, 31])
@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([*range(20), 3, 3, 19, 0], id="at the end"),
        pytest.param([i for i in range(20) for _ in range(2)], id="side by side"),
        pytest.param([*reversed(range(20)), *range(20)], id="in another order"),
    ],
)
def test_a_box_that_is_listed_twice_changes_no_figure(
    example: ModuleType,
    trained: Trained,
    figures: Any,
    boxes: list[int],
    batch_size: int,
) -> None:
    once = evaluate(trained.model, figures)

    twice = evaluate(trained.model, example.Figures(boxes, seed=7), batch_size=batch_size)

    assert (once.samples, twice.samples) == (20, len(boxes))
    assert list(once.metrics) == ["val_loss", *NAMES]
    assert dict(twice.metrics) == pytest.approx(dict(once.metrics), rel=1e-5)


def test_the_first_result_of_a_box_counts(figures: Any) -> None:
    points = figures.tensors[1]
    right = [{"preds": points[i], "bbox_id": torch.tensor(i)} for i in (5, 2, 9)]
    wrong = [{"preds": points[i] + 3, "bbox_id": torch.tensor(i)} for i in (2, 5)]

    assert figures.evaluate(right + wrong, ["EPE"]) == {"EPE": 0}
    some = figures.evaluate(wrong + right, ["EPE"])
    assert some["EPE"] == pytest.approx(2 * 18**0.5 / 3)


# -- metrics and rule -----------------------------------------------------------------------------


def test_the_metrics_are_what_their_formulas_say(trained: Trained, figures: Any) -> None:
    found = predict(trained.model, figures.tensors[0]).double().numpy()
    true = figures.tensors[1].double().numpy()
    size = true.max(axis=1) - true.min(axis=1)
    distance = np.linalg.norm(found - true, axis=-1)
    by_size = np.linalg.norm((found - true) / size[:, None], axis=-1)
    side = np.sqrt(size[:, 0] * size[:, 1])[:, None]
    reach = [np.mean(distance / 8 < i / 20) for i in range(20)]
    wanted = [np.mean(by_size < 0.2), np.mean(reach), distance.mean(), (distance / side).mean()]

    metrics = evaluate(trained.model, figures).metrics

    assert [metrics[name] for name in NAMES] == pytest.approx(wanted, rel=1e-4)
    assert 0.5 < metrics["PCK@0.2"] < 1


def test_a_smaller_error_is_the_better_one(
    example: ModuleType,
    trained: Trained,
    figures: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shifts = iter([4, 0, 8])  # pixels by which all predictions are off
    shift, decode = 0, example.decode
    monkeypatch.setattr(example, "decode", lambda heatmaps: decode(heatmaps) + shift)
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.EPOCH_COMPLETED)
    def move() -> None:
        nonlocal shift
        shift = next(shifts)

    options: dict[str, Any] = {"save_best": "EPE", "preset": "mmpose", "out_dir": tmp_path}
    evaluator = create_evaluator(trained.model)
    hook = EvalHook(DataLoader(figures, 8), evaluator, metric=["EPE"], **options)
    hook.attach(trainer)
    with caplog.at_level("INFO", "ignite_evalhook"):
        trainer.run([0], max_epochs=3)

    errors = [record.metrics["EPE"] for record in hook.history]
    assert errors[1] < errors[0] < errors[2]
    assert [record.is_best for record in hook.history] == [True, True, False]
    assert hook.best is not None
    assert (hook.best.epoch, hook.best.score) == (2, errors[1])
    assert "best by EPE (less is better, told by 'EPE')" in caplog.text


def test_training_keeps_the_epoch_with_the_smallest_error(trained: Trained) -> None:
    errors = [record.metrics["EPE"] for record in trained.hook.history]

    assert len(errors) == 2
    assert trained.hook.best is not None
    assert trained.hook.best.score == min(errors) == trained.record.metrics["EPE"]
    assert trained.record.samples == 80


def test_a_metric_that_it_does_not_know_is_an_error_in_words(figures: Any) -> None:
    with pytest.raises(ValueError, match=r"metric must be a list of \['PCK', .*got \['PCKh'\]"):
        figures.evaluate([], ["PCKh"])
