"""Tests of metrics, evaluators and models of MMEngine on several real processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from helpers.private import create_mmengine_evaluator, create_mmengine_trainer
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook

pytest.importorskip("mmengine")

from mmengine.dist import all_gather_object, broadcast_object_list, collect_results, get_world_size
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.structures import BaseDataElement


class Data(Dataset[Any]):
    """Numbers, with their index as label."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.metainfo = {"classes": ("a", "b", "c")}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return torch.linspace(-1, 1, 4).roll(index) * (1 + index), index % 3


class MMResNet50(nn.Module):
    """``examples/distributed_training.py`` of MMEngine, with the proposal's three lines."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)

    def val_step(self, batch: Any) -> Any:
        imgs, labels = batch
        x = self.net(imgs)
        return x, labels, BaseDataElement(loss={"loss": F.cross_entropy(x, labels)})


class Accuracy(BaseMetric):
    """The metric of that example: one dict a batch."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        score, gt = data_samples
        self.results.append(
            {"batch_size": len(gt), "correct": int((score.argmax(dim=1) == gt).sum())}
        )

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        total = sum(item["batch_size"] for item in results)
        right = sum(item["correct"] for item in results)
        return {"accuracy": 100 * right / total, "total": total}


class Odd(BaseMetric):
    """None, two results a sample, data elements; asks whether there are other processes."""

    default_prefix = "odd"

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        for x, label in zip(*data_batch, strict=True):
            element = BaseDataElement(label=label, metainfo={"peak": int(x.argmax())})
            self.results.extend([None, (element, [x.sum()])])

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        assert get_world_size() == 1
        assert results[::2] == [None] * (len(results) // 2)
        found = results[1::2]
        return {
            "peaks": [element.peak for element, _ in found],
            "labels": [int(element.label) for element, _ in found],
            "sum": [total.item() for _, (total,) in found],
            "classes": self.dataset_meta["classes"],
        }


class Own(BaseMetric):
    """Overrides evaluate, with collectives of MMEngine's."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        self.results.extend(data_batch[1].tolist())

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        raise NotImplementedError

    def evaluate(self, size: int) -> dict[str, Any]:
        results = collect_results(self.results, size)
        assert results is not None
        found = [{"order": list(results), "size": size, "told": all_gather_object(size)}]
        broadcast_object_list(found)
        self.results.clear()
        return found[0]


class Nested(Accuracy):
    """Holds another metric."""

    def __init__(self) -> None:
        super().__init__(prefix="nested")
        self.inner = {"one": [Accuracy(prefix="inner")]}

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        super().process(data_batch, data_samples)
        self.inner["one"][0].process(data_batch, data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {**super().compute_metrics(results), **self.inner["one"][0].evaluate(len(results))}


class Twice(Evaluator):
    """An evaluator of the user's own."""

    def evaluate(self, size: int) -> dict[str, Any]:
        found = super().evaluate(size)
        return {**found, "twice": 2 * found["accuracy"], "of": size}


class Counting(Accuracy):
    """Counts outside of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        super().process(data_batch, data_samples)
        self.seen += len(data_batch[1])


class Asking(Accuracy):
    """Asks the other ranks, which are not there."""

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        dist.all_reduce(torch.ones(()))
        return super().compute_metrics(results)


def loader(length: int, size: int, *, padded: bool = False) -> DataLoader[Any]:
    data = Data(length)
    sampler = DistributedSampler(data, shuffle=False) if padded and dist.is_initialized() else None
    return DataLoader(data, size, sampler=sampler)


def evaluations(rank: int) -> list[dict[str, Any]]:
    """Return the metrics of some evaluations, the same on any number of ranks."""
    meta = Data(0).metainfo
    found = []
    for length, size in ((5, 1), (5, 2), (1, 4), (7, 3)):
        evaluator = create_mmengine_evaluator(
            MMResNet50(), Twice([Accuracy(), Odd(), Own(), Nested()]), dataset_meta=meta
        )
        for padded in (False, True):
            hook = EvalHook(loader(length, size, padded=padded), evaluator)
            found.append(hook.evaluate(track=False).metrics)
        state = evaluator.run(loader(length, size))
        found.append({name: value for name, value in state.metrics.items() if name != "told"})
    by_hand = create_mmengine_evaluator(MMResNet50(), Odd())  # with the metainfo of the dataset
    found.append(by_hand.run(loader(4, 1)).metrics)
    return found


def refusals(rank: int) -> list[str]:
    """Return what is said about metrics that cannot be exact."""
    theirs = Evaluator(
        Accuracy(collect_device="gpu")
    )  # MMEngine's own way, with its sampler's padding
    for batch in loader(5, 2, padded=True):
        theirs.process(MMResNet50().val_step(batch)[:-1], batch)
    assert theirs.evaluate(5)["total"] == 6
    words = []
    for metric in (Counting(), Asking()):
        evaluator = create_mmengine_evaluator(MMResNet50(), metric)
        with pytest.raises(RuntimeError) as caught:
            EvalHook(loader(5, 1), evaluator).evaluate(track=False)
        words.append(str(caught.value))
        assert dist.is_initialized()
        # The next one is as if nothing had been.
        inner = create_mmengine_evaluator(MMResNet50(), Accuracy())
        assert EvalHook(loader(5, 1), inner).evaluate(track=False).metrics["total"] == 5
    return words


def test_what_an_evaluation_gives_on_one_process() -> None:
    first = evaluations(0)[0]
    assert first["total"] == first["nested/total"] == 5
    assert first["of"] == first["size"] == 10  # no result is cut off: one metric has two a sample
    assert first["order"] == first["odd/labels"] == [0, 1, 2, 0, 1]
    assert first["odd/peaks"] == [3, 0, 1, 2, 3]
    assert first["nested/inner/total"] == 5
    assert first["twice"] == 2 * first["accuracy"] == 2 * first["nested/accuracy"]
    x, y = next(iter(loader(5, 5)))
    with torch.no_grad():
        truth = F.cross_entropy(MMResNet50().net(x), y).item()
    assert first["loss"] == first["val_loss"] == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_metrics_and_loss_are_those_of_one_process_bit_for_bit(world: int) -> None:
    expected = evaluations(0)
    for found in on_ranks(world, evaluations):
        assert found == expected


def test_what_cannot_be_exact_is_refused_on_all_ranks() -> None:
    for counting, asking in on_ranks(2, refusals):
        assert (
            "Counting.seen changes while batches are processed, on each rank by itself" in counting
        )
        assert "torch.distributed has no other ranks here" in asking


# -- training on two ranks ------------------------------------------------------------------------


def training(rank: int, folder: Path, epochs: int, wrap: str, counts: int) -> Any:
    """Train a BaseModel on this rank's share, and return its weights and the history."""
    import ignite.distributed as idist
    from mmengine.model import BaseModel, MMDistributedDataParallel
    from mmengine.optim import OptimWrapper

    class Net(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

        def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
            scores = self.net(x)
            if mode == "loss":
                return {"loss_cls": F.cross_entropy(scores, y)}
            return scores, y

    model: Any = Net()
    if wrap == "idist":
        model = idist.auto_model(model)
        assert type(model) is nn.parallel.DistributedDataParallel
    elif wrap == "mm":
        model = MMDistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts)
    trainer = create_mmengine_trainer(model, wrapper)
    evaluator = create_mmengine_evaluator(model, [Accuracy()], loss=True)
    hook = EvalHook(loader(7, 2), evaluator, save_best="val_loss", out_dir=folder).attach(trainer)
    hook.keep_last({"model": model, "optimizer": trainer.optim_wrapper})
    trainer.run(loader(8, 2, padded=True), max_epochs=epochs)
    hook.detach()
    weights = {name: value.tolist() for name, value in evaluator.model.state_dict().items()}
    return weights, [record.metrics for record in hook.history]


def trainings(rank: int, folder: Path) -> Any:
    for counts in (1, 2):
        runs = {wrap: training(rank, folder / f"{wrap}{counts}", 3, wrap, counts)
                for wrap in ("idist", "mm")}  # fmt: skip
        assert runs["idist"] == runs["mm"]
    training(rank, folder / "broken", 2, "idist", 2)
    assert training(rank, folder / "broken", 3, "idist", 2) == runs["idist"]
    refused = pytest.raises(TypeError, match="Own has a train_step of its own, which Distributed")
    with refused:
        own_train_step()
    return runs["idist"]


def own_train_step() -> None:
    from mmengine.model import BaseModel

    class Own(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1)

        def forward(self, x: Tensor, mode: str) -> Any:
            return x

        def train_step(self, data: Any, optim_wrapper: Any) -> Any:
            return {}

    model = nn.parallel.DistributedDataParallel(Own())
    create_mmengine_trainer(model, torch.optim.SGD(model.parameters(), 0.1))


def test_training_on_two_ranks_is_that_of_mmengines_wrapper_and_resumes(tmp_path: Path) -> None:
    first, second = on_ranks(2, trainings, tmp_path)
    assert first == second
    _, history = first
    assert len(history) == 3
    assert {record["total"] for record in history} == {7}
