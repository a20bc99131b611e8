"""What is special to ``examples/action_recognition.py``: its clips, and true figures."""

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

SCRIPT = Path(__file__).parents[2] / "examples" / "action_recognition.py"


class Run(NamedTuple):
    """A run of five epochs: what it left, returned and printed.

    After five the model recognizes most motions, but not all: figures that could tell a mistake.
    """

    folder: Path
    record: EvalRecord
    history: History
    output: str


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("example_action_recognition", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("action_recognition")
    with redirect_stdout(StringIO()) as output:
        record = example.train(0, example.parse([f"--out-dir={folder}", "--max-epochs=5"]))
    return Run(folder, record, History.read(folder / "history.jsonl"), output.getvalue())


@pytest.fixture(scope="module")
def val_data(example: ModuleType) -> Any:
    return example.make_clips(example.CLIPS[1], 1)


def predict(example: ModuleType, folder: Path, clips: Tensor) -> Tensor:
    """Return logits (clips, classes) by the best model, without hook and evaluator."""
    model = example.Recognizer().eval()
    load_best(folder, {"model": model})
    with torch.no_grad():
        logits: Tensor = model.layers(clips)
    return logits


def by_scikit_learn(logits: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "val_loss": F.cross_entropy(logits.double(), labels).item(),
        "top1_acc": metrics.accuracy_score(labels, logits.argmax(dim=1)),
        "top5_acc": metrics.top_k_accuracy_score(labels, logits, k=5),
        "mean_class_accuracy": metrics.balanced_accuracy_score(labels, logits.argmax(dim=1)),
    }


def test_the_figures_of_the_best_are_scikit_learns_on_the_same_predictions(
    example: ModuleType, run: Run, val_data: Any
) -> None:
    clips, labels = val_data.tensors
    wanted = by_scikit_learn(predict(example, run.folder, clips), labels)

    found = run.record.metrics

    assert run.record.samples == len(clips) == 200
    assert 0.5 < found["mean_class_accuracy"] < found["top1_acc"] < 1  # all three differ
    assert found.keys() == wanted.keys()
    assert found["val_loss"] == pytest.approx(wanted.pop("val_loss"), rel=1e-5)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)


def test_auto_follows_the_first_metric_that_the_data_set_returns(run: Run) -> None:
    best = find_best(run.folder)
    accuracies = [record.metrics["top1_acc"] for record in run.history]

    assert next(iter(run.record.metrics)) == "val_loss"  # the first of all, and yet not chosen
    assert best.metric == "top1_acc"
    assert best.score == max(accuracies)
    assert best.epoch == accuracies.index(max(accuracies)) + 1
    assert [record.best_of for record in run.history if record.is_best][-1] == ("top1_acc",)
    assert dict(run.record.metrics) == dict(run.history[best.epoch - 1].metrics)
    for record in run.history:
        assert record.metrics["top5_acc"] >= record.metrics["top1_acc"]


def test_the_best_is_tested_on_clips_of_their_own(
    example: ModuleType, run: Run, val_data: Any
) -> None:
    clips, labels = example.make_clips(example.CLIPS[2], 2).tensors
    wanted = by_scikit_learn(predict(example, run.folder, clips), labels)

    line = run.output.splitlines()[-1]

    assert line.startswith(f"Best top1_acc at epoch {find_best(run.folder).epoch}: val_loss ")
    found = {
        name: (float(of_val), float(of_test))
        for name, of_val, of_test in re.findall(r"(\w+) ([\d.]+) \(test ([\d.]+)\)", line)
    }
    assert found.keys() == wanted.keys()
    for name, (of_val, of_test) in found.items():
        assert of_val == pytest.approx(run.record.metrics[name], abs=6e-4), name
        assert of_test == pytest.approx(wanted[name], abs=6e-4), name
    assert not torch.equal(clips, val_data.tensors[0])
    assert len(run.history) == 5  # the tests are no part of it


def test_a_single_frame_does_not_tell_the_motion_and_backwards_left_is_right(
    example: ModuleType, run: Run, val_data: Any
) -> None:
    clips, labels = val_data.tensors
    names = list(example.MOTIONS)
    opposite = {"left": "right", "up": "down"}
    opposite |= {there: here for here, there in opposite.items()}
    straight = torch.tensor([names[label] in opposite for label in labels])
    turned = torch.tensor([names.index(opposite.get(name, name)) for name in names])[labels]

    def accuracy(clips: Tensor, labels: Tensor) -> float:
        answers = predict(example, run.folder, clips).argmax(dim=1)
        return (answers == labels)[straight].double().mean().item()

    assert accuracy(clips, labels) > 0.8
    assert accuracy(clips.flip(2), turned) > 0.8
    # The picture stands still: all that a single frame says.
    answers = predict(example, run.folder, clips[:, :, :1].expand_as(clips)).argmax(dim=1)
    most_frequent = labels.bincount().max().item() / len(labels)
    assert (answers == labels).double().mean().item() < most_frequent + 0.1


def test_a_clip_is_one_picture_that_moves_as_its_label_says(
    example: ModuleType, val_data: Any
) -> None:
    clips, labels = val_data.tensors

    assert clips.shape == (200, 1, 8, 16, 16)
    assert labels.bincount().tolist() == [40, 40, 20, 20, 20, 20, 20, 20]
    assert {len(steps) for steps in example.MOTIONS.values()} == {8}
    for clip, label in zip(clips[:40], labels[:40], strict=True):
        steps = torch.tensor(list(example.MOTIONS.values())[label])
        back = [
            frame.roll((-place).tolist(), dims=(0, 1))
            for frame, place in zip(clip[0], steps.cumsum(dim=0), strict=True)
        ]
        noise = (back[0] - torch.stack(back[1:])).std(dim=(1, 2)) / 2**0.5
        assert torch.allclose(noise, torch.tensor(0.2), atol=0.06)


def test_the_metrics_are_right_by_hand_also_for_scores_below_zero(example: ModuleType) -> None:
    random = np.random.default_rng(0)
    labels = random.choice(8, 60, p=[0.3, 0.3, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])
    scores = random.normal(size=(60, 8)) + 2 * np.eye(8)[labels] - 5
    data = example.Clips(torch.zeros(60, 1, 8, 16, 16), torch.tensor(labels))
    right = scores.argmax(axis=1) == labels
    ranks = (scores > scores[np.arange(60), labels, None]).sum(axis=1)  # how many are above

    found = data.evaluate(
        list(torch.tensor(scores)),
        metrics=["top_k_accuracy", "mean_class_accuracy"],
        metric_options={"top_k_accuracy": {"topk": (1, 3)}},
    )

    wanted = {
        "top1_acc": right.mean(),
        "top3_acc": (ranks < 3).mean(),
        "mean_class_accuracy": np.mean([right[labels == c].mean() for c in set(labels)]),
    }
    assert found == pytest.approx(wanted, abs=1e-12)
    assert list(data.evaluate(list(torch.tensor(scores)))) == ["top1_acc", "top5_acc"]


def test_an_unknown_metric_or_a_missing_result_is_refused(example: ModuleType) -> None:
    data = example.make_clips(10, 0)

    with pytest.raises(ValueError, match=r"metrics must be some of \['top_k_.*got \{'top_k'\}"):
        data.evaluate(list(torch.zeros(10, 8)), metrics=["top_k"])

    with pytest.raises(ValueError, match="there are 9 results for 10 clips"):
        data.evaluate(list(torch.zeros(9, 8)))
