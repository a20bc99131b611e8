"""Tests of MMEngine's own way to return a val loss, against the real MMEngine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.private import LossMeter, ValLoss, count_samples, split_val_loss

pytest.importorskip("mmengine")

from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, LabelData


class DataSample(BaseDataElement):
    """A data sample as the OpenMMLab projects derive theirs."""


class Classifier(BaseModel):
    """``examples/distributed_training.py`` of MMEngine, with the three lines of the proposal."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 4)

    def forward(self, imgs: Tensor, labels: Tensor, mode: str) -> Any:
        x = self.net(imgs)
        if mode == "loss":
            return {"loss": F.cross_entropy(x, labels)}
        val_loss = {"loss": F.cross_entropy(x, labels)}
        return x, labels, BaseDataElement(loss=val_loss)


def losses(*names: str) -> dict[str, Tensor]:
    return {name: torch.tensor(2.0) for name in names}


@pytest.mark.parametrize("element", [BaseDataElement, DataSample, InstanceData, LabelData])
@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("loss", [torch.tensor(2.0), losses("loss"), losses("loss", "acc")])
def test_an_element_with_a_loss_is_a_val_loss(element: type, kind: type, loss: Any) -> None:
    y_pred, y = torch.zeros(4, 3), torch.zeros(4)
    carrier = element()
    carrier.set_field(loss, "loss")
    rest, found = split_val_loss(kind([y_pred, y, carrier]))
    assert type(rest) is kind
    assert rest[0] is y_pred
    assert rest[1] is y
    assert len(rest) == 2
    assert isinstance(found, ValLoss)
    meter = LossMeter()
    meter.update(found, 4)
    names = loss if isinstance(loss, dict) else ()
    assert meter.compute() == {"val_loss": 2.0, **dict.fromkeys(names, 2.0)}


def test_predictions_without_a_loss_are_left_alone() -> None:
    predictions = [
        DataSample(pred_label=torch.tensor(1)),
        DataSample(pred_label=torch.tensor(0), loss=torch.tensor(1.0)),
    ]
    rest, found = split_val_loss(predictions)
    assert rest is predictions
    assert found is None


def test_meta_information_does_not_hide_a_loss() -> None:
    carrier = DataSample(loss=torch.tensor(2.0), metainfo={"img_shape": (8, 8)})
    assert split_val_loss([DataSample(), carrier])[1] is not None


def test_the_example_of_the_proposal_gives_the_weighted_mean() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    imgs, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 0])
    results = {}
    for size in (1, 2, 4, 5):
        meter, samples = LossMeter(), 0
        for start in range(0, 5, size):
            batch = [imgs[start : start + size], labels[start : start + size]]
            with torch.no_grad():
                outputs = model.val_step(batch)
            rest, found = split_val_loss(outputs)
            assert len(rest) == 2
            assert found is not None
            count = count_samples(rest, batch)
            assert count is not None
            samples += count
            meter.update(found, count)
        assert samples == 5
        results[size] = meter.compute()
    truth = F.cross_entropy(model.net(imgs), labels).item()
    for result in results.values():
        assert result == pytest.approx({"val_loss": truth, "loss": truth}, rel=1e-6)


def test_a_list_of_data_samples_is_weighted_by_its_samples() -> None:
    """MMPretrain's ``preds.append(DataSample(loss=loss))``: 5 samples, batches of 2."""
    meter = LossMeter()
    for values in ([1.0, 1.0], [1.0, 2.0], [5.0]):
        predictions = [DataSample(pred_label=torch.tensor(0)) for _ in values]
        predictions.append(DataSample(loss={"loss": torch.tensor(values).mean()}))
        batch = {
            "inputs": [torch.zeros(3, 8, 8) for _ in values],
            "data_samples": [DataSample() for _ in values],
        }
        rest, found = split_val_loss(predictions)
        assert len(rest) == len(values)
        assert len(predictions) == len(values) + 1
        assert found is not None
        meter.update(found, count_samples(rest, batch))
    assert meter.compute() == {"val_loss": 2.0, "loss": 2.0}


def test_the_total_is_what_mmengine_trains_on() -> None:
    """The same mapping through MMEngine's ``parse_losses`` and through ours."""
    mapping = {
        "loss_cls": [torch.tensor(1.0), torch.tensor([2.0, 4.0])],
        "loss_bbox": torch.tensor([[1.0, 2.0], [3.0, 6.0]]),
        "acc": torch.tensor(0.5),
    }
    trained, _ = BaseModel.parse_losses(Classifier(), mapping)
    rest, found = split_val_loss([DataSample(), DataSample(), BaseDataElement(loss=mapping)])
    assert found is not None
    meter = LossMeter()
    meter.update(found, count_samples(rest))
    assert meter.compute()["val_loss"] == trained.item() == 7.0
