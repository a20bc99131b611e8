"""What is special to ``examples/classification.py``: its figures are those of scikit-learn."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ignite_evalhook import EvalRecord, History, find_best, load_best

np = pytest.importorskip("numpy")
pytest.importorskip("mmeval")
metrics = pytest.importorskip("sklearn.metrics")

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "classification.py"


class Run(NamedTuple):
    """A run with the default settings: what it left, returned and printed."""

    folder: Path
    record: EvalRecord
    history: History
    output: str


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("example_classification", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("classification")
    with redirect_stdout(StringIO()) as output:
        record = example.train(0, example.parse([f"--out-dir={folder}"]))
    return Run(folder, record, History.read(folder / "history.jsonl"), output.getvalue())


def predict(example: ModuleType, folder: Path, data: Any) -> tuple[Tensor, Tensor]:
    """Return logits (images, classes) and labels by the best model, without hook and evaluator."""
    model = example.Classifier().eval()
    load_best(folder, {"model": model})
    images, labels = data.tensors
    with torch.no_grad():
        return model.head(model.backbone(images).flatten(1)), labels


def test_the_figures_of_the_best_are_scikit_learns_on_the_same_predictions(
    example: ModuleType, run: Run
) -> None:
    val_data = example.load_data()[1]
    logits, labels = predict(example, run.folder, val_data)
    answers = logits.argmax(dim=1)

    found = run.record.metrics

    assert run.record.samples == len(val_data) == 300
    assert found["accuracy_top-1"] < 100  # or else the comparison would say little
    top1 = metrics.accuracy_score(labels, answers)
    top5 = metrics.top_k_accuracy_score(labels, logits, k=5)
    assert found["accuracy_top-1"] == pytest.approx(100 * top1, abs=1e-9)
    assert found["accuracy_top-5"] == pytest.approx(100 * top5, abs=1e-9)
    of_class = metrics.precision_recall_fscore_support(labels, answers)
    for name, values in zip(("precision", "recall", "f1_score"), of_class, strict=False):
        assert found[name] == pytest.approx(100 * values.mean(), abs=1e-4), name
    assert found["support"] == of_class[3].tolist()


def test_the_val_loss_is_the_cross_entropy_of_all_validation_images(
    example: ModuleType, run: Run
) -> None:
    logits, labels = predict(example, run.folder, example.load_data()[1])

    wanted = F.cross_entropy(logits.double(), labels).item()

    assert run.record.metrics["val_loss"] == pytest.approx(wanted, rel=1e-5)


def test_the_best_is_the_first_of_the_most_accurate_and_training_stops_by_the_val_loss(
    run: Run,
) -> None:
    accuracies = [record.metrics["accuracy_top-1"] for record in run.history]
    losses = [record.metrics["val_loss"] for record in run.history]
    best = find_best(run.folder)

    assert (best.metric, best.score) == ("accuracy_top-1", max(accuracies))
    assert best.epoch == accuracies.index(max(accuracies)) + 1
    assert dict(run.record.metrics) == dict(run.history[best.epoch - 1].metrics)
    assert 6 < len(run.history) < 30
    assert min(losses[-4:]) > min(losses[:-4]) - 0.005
    for record in run.history:
        assert record.metrics["accuracy_top-5"] >= record.metrics["accuracy_top-1"]


def test_the_last_line_says_how_the_best_does_on_the_test_images(
    example: ModuleType, run: Run
) -> None:
    _, val_data, test_data = example.load_data()
    logits, labels = predict(example, run.folder, test_data)

    found = re.fullmatch(
        r"Best epoch (\d+): accuracy_top-1 ([\d.]+), on the test set ([\d.]+)",
        run.output.splitlines()[-1],
    )

    assert found is not None, run.output
    assert len(test_data) == 297
    wanted = 100 * metrics.accuracy_score(labels, logits.argmax(dim=1))
    assert float(found[3]) == pytest.approx(wanted, abs=0.005)
    assert float(found[2]) == pytest.approx(run.record.metrics["accuracy_top-1"], abs=0.005)
    images = {tuple(image.flatten().tolist()) for image in val_data.tensors[0]}
    assert not any(tuple(image.flatten().tolist()) in images for image in test_data.tensors[0])


def hand_made(example: ModuleType, *, shift: float = 0.0) -> tuple[Any, list[Any], Any]:
    """Return a data set of 40 images, a result for each, and the scores (40, 10).

    Some classes are never answered and one is never right, where the metrics divide by zero.
    """
    random = np.random.default_rng(0)
    labels = random.integers(0, 9, 40)  # no nine
    scores = random.normal(size=(40, 10)) - [0, 0, 9, 0, 0, 0, 0, 0, 0, 9] + shift
    data = example.Digits(torch.zeros(40, 1, 8, 8), torch.tensor(labels))
    results = list(zip(torch.tensor(scores), torch.tensor(labels), strict=True))
    return data, results, scores


@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_the_metrics_are_right_by_hand_whatever_the_scale_of_the_scores(
    example: ModuleType, shift: float
) -> None:
    data, results, scores = hand_made(example, shift=shift)
    labels = data.tensors[1].numpy()
    ranks = (scores > scores[np.arange(40), labels, None]).sum(axis=1)  # how many are above
    answers = scores.argmax(axis=1)
    hits = np.array([((answers == c) & (labels == c)).sum() for c in range(10)])
    answered = np.array([(answers == c).sum() for c in range(10)])
    support = np.array([(labels == c).sum() for c in range(10)])
    precision, recall = hits / np.maximum(answered, 1), hits / np.maximum(support, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)

    found = data.evaluate(
        results, metric=example.EVALUATION["metric"], metric_options={"topk": (1, 2, 5)}
    )

    assert list(found) == [
        *("accuracy_top-1", "accuracy_top-2", "accuracy_top-5"),
        *("precision", "recall", "f1_score", "support"),
    ]
    for k in (1, 2, 5):
        assert found[f"accuracy_top-{k}"] == pytest.approx(100 * (ranks < k).mean(), abs=1e-9)
    assert found["precision"] == pytest.approx(100 * precision.mean(), abs=1e-4)
    assert found["recall"] == pytest.approx(100 * recall.mean(), abs=1e-4)
    assert found["f1_score"] == pytest.approx(100 * f1.mean(), abs=1e-4)
    assert found["support"].tolist() == support.tolist()


def test_only_the_metrics_that_are_asked_for_are_returned(example: ModuleType) -> None:
    data, results, _ = hand_made(example)

    assert list(data.evaluate(results)) == ["accuracy_top-1", "accuracy_top-5"]
    assert list(data.evaluate(results, metric=["recall"])) == ["recall"]
    with pytest.raises(ValueError, match=r"metric must be some of \['accuracy', .*'recal'"):
        data.evaluate(results, metric=["accuracy", "recal"])


def test_a_mode_that_the_model_does_not_know_is_refused(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="mode must be 'loss' or 'predict', got 'tensor'"):
        example.Classifier()(torch.zeros(1, 1, 8, 8), torch.zeros(1).long(), mode="tensor")
