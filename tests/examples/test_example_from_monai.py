"""What is special to ``examples/from_monai.py``: MONAI's own figures, on any number of ranks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.utils.data import DataLoader

from helpers.over_ranks import over_ranks
from helpers.private import check_exact
from ignite_evalhook import EvalRecord, History, load_best

pytest.importorskip("monai")

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "from_monai.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_from_monai", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The script as a module."""
    threads = torch.get_num_threads()
    yield load_script()
    torch.set_num_threads(threads)


def run(example: ModuleType, folder: Path, max_epochs: int) -> EvalRecord:
    args = example.parse([f"--out-dir={folder}", f"--max-epochs={max_epochs}"])
    record: EvalRecord = example.train(0, args)
    return record


def test_the_dice_is_that_of_monais_own_evaluator(example: ModuleType, tmp_path: Path) -> None:
    from monai.engines import SupervisedEvaluator
    from monai.transforms import AsDiscreted

    record = run(example, tmp_path, max_epochs=2)
    model = example.UNet(2, 1, 1, channels=(16, 32), strides=(2,))
    load_best(tmp_path, {"model": model})

    evaluator = SupervisedEvaluator(
        "cpu",
        DataLoader(example.Discs(example.VAL, seed=2), batch_size=4),
        model,
        postprocessing=AsDiscreted("pred", threshold=0.0),
        key_val_metric={
            "dice": example.MeanDice(
                output_transform=lambda output: (
                    [sample["pred"] for sample in output],
                    [sample["label"] for sample in output],
                )
            )
        },
    )
    evaluator.run()

    assert record.metrics["val_mean_dice"] == evaluator.state.metrics["dice"]
    assert 0.3 < record.metrics["val_mean_dice"] < 1
    assert record.samples == example.VAL


def test_a_run_of_one_epoch_goes_on_to_two_as_if_it_had_never_ended(
    example: ModuleType, tmp_path: Path
) -> None:
    run(example, tmp_path / "broken", max_epochs=1)
    run(example, tmp_path / "broken", max_epochs=2)
    run(example, tmp_path / "whole", max_epochs=2)

    broken, whole = (
        [(r.epoch, r.iteration, r.metrics, r.best_of) for r in History.read(folder)]
        for folder in (tmp_path / "broken" / "history.jsonl", tmp_path / "whole" / "history.jsonl")
    )
    assert len(broken) == 2
    assert broken == whole


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize(
    "metric", ["dice", "dice_by_class", "dice_of_each", "iou", "psnr", "recall", "loss"]
)
def test_monais_metrics_are_those_of_one_process_over_any_number_of_ranks(
    metric: str, ranks: int
) -> None:
    """Thirteen images, two at a time; the rows that metrics keep have NaN among them."""
    torch.manual_seed(0)
    y = torch.rand(13, 2, 8, 8).round()
    y[5, 1] = 0  # a class that is not there: its Dice is NaN, and left out
    batches = list(zip(torch.rand(13, 2, 8, 8).round().split(2), y.split(2), strict=True))
    alone = made(metric)
    check_exact(metric, alone)
    for batch in batches:
        alone.update(batch)

    value = over_ranks(lambda: made(metric), batches, ranks)

    wanted = torch.as_tensor(alone.compute())
    if metric == "dice_of_each":  # whose rows MONAI itself gathers rank after rank
        order = [number for rank in range(ranks) for number in range(len(batches))[rank::ranks]]
        wanted = torch.cat([wanted.split(2)[number] for number in order])
    torch.testing.assert_close(torch.as_tensor(value), wanted, rtol=1e-6, atol=0, equal_nan=True)


def made(metric: str) -> Any:
    """Return one of MONAI's metrics; it is attached, as it needs to be."""
    from monai import handlers

    found: Any = {
        "dice": lambda: handlers.MeanDice(),
        "dice_by_class": lambda: handlers.MeanDice(reduction="mean_batch"),
        "dice_of_each": lambda: handlers.MeanDice(reduction="none"),
        "iou": lambda: handlers.MeanIoUHandler(save_details=False),
        "psnr": lambda: handlers.PeakSignalToNoiseRatio(max_val=1.0),
        "recall": lambda: handlers.ConfusionMatrix(metric_name="recall"),
        "loss": lambda: handlers.IgniteMetricHandler(loss_fn=nn.L1Loss()),
    }[metric]()
    found.attach(Engine(lambda engine, batch: None), metric)
    found.reset()
    return found


def test_without_monai_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.engines", None)

    with pytest.raises(SystemExit) as stopped:
        load_script()

    assert str(stopped.value).startswith("This example needs MONAI (")
    assert str(stopped.value).endswith('): pip install "ignite-evalhook[monai]"')
    assert "\n" not in str(stopped.value)
