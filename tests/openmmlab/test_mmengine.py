"""Tests of models, metrics and evaluators of MMEngine, against the real MMEngine, on one process.

Several ranks are played here by states that are merged; real processes are in
``test_mmengine_ranks.py``.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers.over_ranks import over_ranks, value_over
from helpers.private import MMEngineMetric, create_mmengine_evaluator, create_mmengine_trainer
from ignite_evalhook import EvalHook, EvaluationError, ValLoss, create_evaluator

pytest.importorskip("mmengine")

from mmengine.dist import broadcast_object_list, collect_results, is_main_process
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import METRICS
from mmengine.structures import BaseDataElement

WORLDS = (1, 2, 3, 4)
SIZES = ([2, 2, 1], [1], [3, 3], [1, 2, 3, 4, 5])


class Net(BaseModel):
    """A classifier in MMEngine's manner; ``append`` says whether it appends its loss."""

    def __init__(self, *, append: bool = False, kind: type = list) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)
        self.append = append
        self.kind = kind

    def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
        scores = self.net(self.drop(x))
        losses = {"loss_cls": F.cross_entropy(scores, y), "loss_big": [scores.square().mean()]}
        if mode == "loss":
            return losses
        found: Any
        if self.kind is list:
            found = [
                BaseDataElement(pred=p, label=t) for p, t in zip(scores.argmax(1), y, strict=True)
            ]
            return [*found, BaseDataElement(loss=losses)] if self.append else found
        if self.kind is tuple:
            return (scores, y, BaseDataElement(loss=losses)) if self.append else (scores, y)
        if self.kind is dict:
            found = {"scores": scores, "y": y}
            return {**found, "any": ValLoss(losses)} if self.append else found
        return scores


class Acc(BaseMetric):
    """One result a sample."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        self.results.extend(bool(s["pred"] == s["label"]) for s in data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"accuracy": sum(results) / len(results), "count": len(results)}


class PerBatch(BaseMetric):
    """One dict a batch, as in MMEngine's own example."""

    default_prefix = "batch"

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        right = sum(int(s["pred"] == s["label"]) for s in data_samples)
        self.results.append({"right": right, "size": len(data_batch[1])})

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"accuracy": sum(r["right"] for r in results) / sum(r["size"] for r in results)}


def data(n: int = 12) -> TensorDataset:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, torch.arange(n) % 3)


def net(**kwargs: Any) -> Net:
    torch.manual_seed(0)
    return Net(**kwargs)


# -- the same as MMEngine, on one process ---------------------------------------------------------


def val_loop(model: Any, loader: Any, metrics: Any, **kwargs: Any) -> dict[str, Any]:
    """Run MMEngine's own ValLoop."""
    pytest.importorskip("cv2", reason="mmengine.runner imports OpenCV")
    from mmengine.runner import ValLoop

    # What newer MMEngine adds to val_loss is there, or it is not.
    runner: Any = SimpleNamespace(
        model=model,
        call_hook=lambda *args, **kwargs: None,
        visualizer=SimpleNamespace(dataset_meta=None),
        build_evaluator=Evaluator,
    )
    found: dict[str, Any] = ValLoop(runner, loader, metrics, **kwargs).run()
    return found


def evaluate(model: Any, loader: Any, metrics: Any = None, **kwargs: Any) -> dict[str, Any]:
    return dict(create_mmengine_evaluator(model, metrics, **kwargs).run(loader).metrics)


@pytest.mark.parametrize("size", [1, 3, 4, 12])
def test_metrics_and_loss_are_those_of_mmengines_own_loop(size: int) -> None:
    model, loader = net(append=True), DataLoader(data(), size)
    theirs = val_loop(model, loader, [Acc(), PerBatch()])
    ours = evaluate(model, loader, [Acc(), PerBatch()])
    assert list(ours) == ["accuracy", "count", "batch/accuracy", "val_loss", "loss_cls", "loss_big"]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-12)


def test_the_loss_is_the_mean_over_samples_where_mmengines_is_not() -> None:
    model, loader = net(append=True), DataLoader(data(5), 2)
    theirs, ours = val_loop(model, loader, [Acc()]), evaluate(model, loader, [Acc()])
    x, y = data(5).tensors
    with torch.no_grad():
        truth = F.cross_entropy(model.net(x), y).item()
    assert ours["loss_cls"] == pytest.approx(truth, rel=1e-6)
    assert theirs["loss_cls"] != pytest.approx(truth, rel=1e-3)
    assert ours["accuracy"] == theirs["accuracy"]


def test_autocast_gives_what_fp16_of_mmengines_loop_gives() -> None:
    model, loader = net(append=True), DataLoader(data(), 4)
    theirs = val_loop(model, loader, [Acc()], fp16=True)  # bfloat16 on a CPU
    ours = evaluate(model, loader, [Acc()], amp_dtype=torch.bfloat16)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert ours["val_loss"] != evaluate(model, loader, [Acc()])["val_loss"]


# -- the model ------------------------------------------------------------------------------------


class Seen(BaseMetric):
    """Keeps what it was given."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append((data_batch, data_samples))

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"seen": [results]}


def seen(model: Any, **kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return the metrics, and what a metric was given at the first batch."""
    metric = Seen()
    evaluator = create_mmengine_evaluator(model, metric, **kwargs)
    noted: list[Any] = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: noted.extend(metric.results))
    metrics = dict(evaluator.run(DataLoader(data(4), 4)).metrics)
    metrics.pop("seen")
    return metrics, noted[0]


@pytest.mark.parametrize("kind", [list, tuple, dict, Tensor])
def test_an_output_of_any_form_comes_without_its_loss(kind: type) -> None:
    quiet, (_, expected) = seen(net(kind=kind))
    assert quiet == {}
    for model, loss in ((net(append=True, kind=kind), None), (net(kind=kind), True)):
        if kind is Tensor and loss is None:
            continue  # a tensor has no place for a loss
        metrics, (batch, samples) = seen(model, loss=loss)
        assert list(metrics) == ["val_loss", "loss_cls", "loss_big"]
        assert torch.equal(batch[0], data(4).tensors[0])
        assert type(samples) is type(expected) is list
        assert len(samples) == len(expected) == {list: 4, tuple: 2, dict: 1, Tensor: 4}[kind]
        if kind is not dict:
            assert all(map(alike, samples, expected))
        else:
            assert list(samples[0]) == ["scores", "y"]


def alike(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    return torch.equal(left, right)


def test_a_loss_function_gets_the_model_and_the_batch_as_it_came() -> None:
    loader = DataLoader(data(5), 2)

    def loss(model: Any, batch: Any) -> Any:
        assert not model.training
        assert not torch.is_grad_enabled()
        assert isinstance(batch, list)
        return {"loss_cls": F.cross_entropy(model.net(batch[0]), batch[1])}

    found = evaluate(net(), loader, [Acc()], loss=loss)
    appended = evaluate(net(append=True), loader, [Acc()])
    assert found["loss_cls"] == found["val_loss"] == appended["loss_cls"]


def test_the_loss_comes_before_predictions_that_change_the_batch() -> None:
    class Flipping(Net):
        def val_step(self, data: Any) -> Any:
            data[0].neg_()
            return super().val_step(data)

    batch = [data(4).tensors[0].clone(), data(4).tensors[1]]
    torch.manual_seed(0)
    found = evaluate(Flipping(), [batch], loss=True)
    assert found == evaluate(net(append=True), DataLoader(data(4), 4))


def test_loss_true_goes_through_the_data_preprocessor() -> None:
    class Scaling(BaseDataPreprocessor):
        def forward(self, data: Any, training: bool = False) -> Any:
            assert not training
            return {"x": 2 * data[0], "y": data[1]}

    model = net()
    model.data_preprocessor = Scaling()
    doubled = TensorDataset(2 * data().tensors[0], data().tensors[1])
    found = evaluate(model, DataLoader(data(), 4), loss=True)
    assert found == evaluate(net(append=True), DataLoader(doubled, 4))


def test_a_loss_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="appends its validation loss itself; leave loss= out"):
        evaluate(net(append=True), DataLoader(data(), 4), loss=True)


def test_any_module_with_val_step_is_evaluated() -> None:
    class Plain(nn.Module):
        def val_step(self, batch: Any) -> Any:
            x, y = batch
            return x.argmax(1), y, ValLoss(x.square().mean())

    model = Plain()
    evaluator = create_mmengine_evaluator(model, [Seen()])
    Accuracy(output_transform=lambda o: (F.one_hot(o[0], 4), o[1])).attach(evaluator, "acc")
    found = evaluator.run(DataLoader(data(), 4)).metrics
    assert list(found) == ["seen", "acc", "val_loss"]
    with pytest.raises(TypeError, match="Plain has no data_preprocessor; pass loss= a function"):
        create_mmengine_evaluator(model, loss=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": 3}, r"model must be a torch\.nn\.Module, got int"),
        ({"model": nn.Linear(1, 1)}, r"have a method val_step\(batch\), .* Linear has none; use c"),
        ({"metrics": Accuracy()}, r"BaseMetric of MMEngine, .* got Accuracy; attach a metric of"),
        ({"metrics": [Acc(), 3]}, r"BaseMetric of MMEngine, .* got int"),
        ({"loss": 3}, r"loss must be a function or True, got int"),
        ({"amp_dtype": "fp16"}, r"amp_dtype must be a torch\.dtype, got 'fp16'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        create_mmengine_evaluator(**{"model": net(), **arguments})


# -- metrics and evaluators -----------------------------------------------------------------------


@METRICS.register_module()
class EvalhookAcc(Acc):
    """Built from a config."""


class Total(BaseMetric):
    """Overrides evaluate, and asks MMEngine's own collectives."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        self.results.extend(data_batch[1].tolist())

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        raise NotImplementedError

    def evaluate(self, size: int) -> dict[str, Any]:
        results = collect_results(self.results, size, self.collect_device)
        found: list[Any] = [None]
        if is_main_process():
            found = [{"order": list(results), "size": size}]
        broadcast_object_list(found)
        self.results.clear()
        return dict(found[0])


class Nested(BaseMetric):
    """Holds other metrics in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__(prefix="nested")
        self.inner: list[Any] = [Acc(prefix="a")]
        self.more: dict[str, Any] = {"b": Total()}

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        self.results.append(len(data_samples))
        for metric in (*self.inner, *self.more.values()):
            metric.process(data_batch, data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        size = sum(results)
        found = {**self.inner[0].evaluate(size), **self.more["b"].evaluate(size)}
        return {**found, "batches": len(results)}


class Uneven(BaseMetric):
    """None, no result, and two results for a sample."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        for label in data_batch[1].tolist():
            self.results.extend([None, label][:label])

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"uneven": list(results), "meta": self.dataset_meta}


class Elements(BaseMetric):
    """Keeps data elements, tensors and arrays."""

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        for sample in data_samples:
            element = BaseDataElement(pred=sample["pred"], metainfo={"size": (4, 4)})
            self.results.append((element, [sample["label"]], np.array([float(sample["label"])])))

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        assert all(element.size == (4, 4) for element, _, _ in results)
        return {"sum": sum((e.pred + t[0] + a[0]).item() for e, t, a in results)}


class OwnElements(Elements):
    """Computes by itself, with what it gets."""

    def evaluate(self, size: int) -> dict[str, Any]:
        found = self.compute_metrics(self.results)
        self.results.clear()
        return found


class Weighted(Evaluator):
    """An evaluator of the user's own, with a state that never changes."""

    def __init__(self, metrics: Any) -> None:
        super().__init__(metrics)
        self.weight = 2.0

    def evaluate(self, size: int) -> dict[str, Any]:
        found = super().evaluate(size)
        return {**found, "twice": self.weight * found["accuracy"], "of": size}


ZOO: dict[str, Callable[[], Any]] = {
    "a metric": Acc,
    "a list": lambda: [Acc(), PerBatch()],
    "a tuple": lambda: (Acc(), PerBatch()),
    "a config": lambda: {"type": "EvalhookAcc", "prefix": "p"},
    "configs": lambda: [{"type": "EvalhookAcc"}, Acc(prefix="other")],
    "an evaluator's config": lambda: {"metrics": [{"type": "EvalhookAcc"}]},
    "an evaluator": lambda: Evaluator([Acc(), PerBatch()]),
    "an evaluator's subclass": lambda: Weighted([Acc()]),
    "evaluate of its own": Total,
    "metrics in a metric": lambda: [Nested(), Acc()],
    "none, nothing, and two": Uneven,
    "elements": Elements,
    "elements, evaluate of its own": OwnElements,
}


def outputs(sizes: Sequence[int]) -> list[Any]:
    """Return batches with predictions for them."""
    found, start = [], 0
    for size in sizes:
        labels = torch.arange(start, start + size) % 3
        preds = (labels * 7 + torch.arange(start, start + size)) % 3
        samples = [BaseDataElement(pred=p, label=t) for p, t in zip(preds, labels, strict=True)]
        found.append((([None] * size, labels), samples))
        start += size
    return found


def on_one(make: Callable[[], Any], batches: Sequence[Any]) -> Any:
    metric = MMEngineMetric(make(), dataset_meta={"classes": ("a", "b", "c")})
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def over(make: Callable[[], Any], batches: Sequence[Any], world: int) -> Any:
    meta = {"classes": ("a", "b", "c")}
    return over_ranks(lambda: MMEngineMetric(make(), dataset_meta=meta), batches, world)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_a_metric_gives_over_ranks_what_it_gives_on_one(name: str, sizes: Sequence[int]) -> None:
    batches = outputs(sizes)
    expected = on_one(ZOO[name], batches)
    for world in WORLDS:
        assert over(ZOO[name], batches, world) == expected


@pytest.mark.parametrize("name", ZOO)
def test_the_value_is_that_of_mmengine_itself(name: str) -> None:
    batches = outputs([3, 3, 2])
    made = ZOO[name]()
    if isinstance(made, dict) and "metrics" in made:
        made = made["metrics"]
    evaluator = made if isinstance(made, Evaluator) else Evaluator(made)
    evaluator.dataset_meta = {"classes": ("a", "b", "c")}
    for batch, samples in batches:
        evaluator.process(samples, batch)
    assert on_one(ZOO[name], batches) == evaluator.evaluate(8)


def test_results_are_in_the_order_of_the_dataset_and_none_is_kept() -> None:
    batches = outputs([2, 2, 2, 1])
    for world in WORLDS:
        found = over(Uneven, batches, world)
        assert found["uneven"] == [None, None, 2, None, None, 2]
        assert found["meta"] == {"classes": ("a", "b", "c")}
        assert over(Total, batches, world) == {"order": [0, 1, 2, 0, 1, 2, 0], "size": 7}


def test_two_results_for_each_sample_are_not_cut_off() -> None:
    class Double(Acc):
        def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
            super().process(data_batch, data_samples)
            super().process(data_batch, data_samples)

    for world in WORLDS:
        assert over(Double, outputs([2, 2, 1]), world)["count"] == 10


def test_two_results_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same metric name accuracy"):
        evaluate(net(), DataLoader(data(), 4), [Acc(), Acc()])


def test_a_name_that_another_metric_of_the_engine_has_is_refused() -> None:
    evaluator = create_mmengine_evaluator(net(kind=tuple), Evaluator([Total()]))
    Accuracy().attach(evaluator, "size")
    with pytest.raises(EvaluationError, match=r"MMEngine's metrics give \['size'\], and so does"):
        evaluator.run(DataLoader(data(), 4))
    evaluator = create_mmengine_evaluator(net(), Acc())
    MMEngineMetric(Acc()).attach(evaluator, "more")
    with pytest.raises(EvaluationError, match=r"give \['accuracy', 'count'\].*another prefix="):
        evaluator.run(DataLoader(data(), 4))


def test_a_loss_and_a_metric_of_one_name_are_refused() -> None:
    class Clash(Acc):
        def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
            return {"loss_cls": 1.0}

    with pytest.raises(EvaluationError, match="loss has an entry 'loss_cls', and so have"):
        evaluate(net(append=True), DataLoader(data(), 4), Clash())


def test_it_is_a_metric_of_any_engine() -> None:
    engine = Engine(lambda engine, batch: net(append=True).eval().val_step(batch))
    MMEngineMetric([Acc(), PerBatch()]).attach(engine, "mm")
    expected = evaluate(net(), DataLoader(data(), 4), [Acc(), PerBatch()])
    for _ in range(2):
        assert engine.run(DataLoader(data(), 4)).metrics == expected
    evaluator = create_evaluator(net(append=True), {"mm": MMEngineMetric([Acc(), PerBatch()])})
    found = evaluator.run(DataLoader(data(), 4)).metrics
    assert {name: found[name] for name in expected} == expected


def test_predictions_are_let_go_when_metrics_have_computed() -> None:
    metric = Acc()
    evaluator = create_mmengine_evaluator(net(), metric)
    evaluator.run(DataLoader(data(), 4))
    assert metric.results == []


def test_an_evaluation_that_broke_off_leaves_no_result() -> None:
    class Seeing(Acc):
        seen = 0

        def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
            super().process(data_batch, data_samples)
            self.seen += len(data_samples)

        def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
            seen, self.seen = self.seen, 0
            return {**super().compute_metrics(results), "seen": seen}

    metric = Seeing()
    evaluator = create_mmengine_evaluator(net(), metric)
    expected = evaluator.run(DataLoader(data(), 4)).metrics.copy()
    assert expected["count"] == expected["seen"] == 12
    with pytest.raises(TypeError):
        evaluator.run([next(iter(DataLoader(data(), 4))), 3])
    assert len(metric.results) == metric.seen == 4
    assert evaluator.run(DataLoader(data(), 4)).metrics == expected


def test_a_model_without_predictions_is_named() -> None:
    class Silent(nn.Module):
        def val_step(self, batch: Any) -> Any:
            return ValLoss(batch[0].mean())

    with pytest.raises(EvaluationError, match=r"gave no predictions \(None\)"):
        evaluate(Silent(), DataLoader(data(), 4), Acc())
    assert list(evaluate(Silent(), DataLoader(data(), 4))) == ["val_loss"]


def test_without_an_update_nothing_can_be_computed() -> None:
    with pytest.raises(NotComputableError, match="at least one batch"):
        MMEngineMetric(Acc()).compute()


def test_an_evaluator_that_returns_no_mapping_is_named() -> None:
    class Wrong(Evaluator):
        def evaluate(self, size: int) -> Any:
            return 3.0

    with pytest.raises(EvaluationError, match=r"Wrong\.evaluate\(\) must return a mapping .* 3\.0"):
        evaluate(net(), DataLoader(data(), 4), Wrong([Acc()]))


# -- dataset_meta ---------------------------------------------------------------------------------


class WithMeta(Dataset[Any]):
    metainfo: ClassVar[Any] = {"classes": ("x", "y", "z")}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return data(4)[index]


def test_the_metainfo_of_the_dataset_goes_to_the_metrics() -> None:
    evaluator = create_mmengine_evaluator(net(), Uneven())
    assert evaluator.run(DataLoader(WithMeta(), 2)).metrics["meta"] == WithMeta.metainfo
    assert evaluator.run(DataLoader(data(), 2)).metrics["meta"] is None
    given = create_mmengine_evaluator(net(), Uneven(), dataset_meta={"classes": ("q",)})
    assert given.run(DataLoader(WithMeta(), 2)).metrics["meta"] == {"classes": ("q",)}


def test_a_meta_that_an_evaluator_came_with_stays() -> None:
    theirs = Evaluator([Uneven()])
    theirs.dataset_meta = {"classes": ("own",)}
    assert evaluate(net(), DataLoader(data(), 2), theirs)["meta"] == {"classes": ("own",)}


# -- as the evaluator of a hook -------------------------------------------------------------------


def test_a_hook_follows_a_metric_of_mmengine(tmp_path: Path) -> None:
    model = net()
    trainer = create_mmengine_trainer(model, torch.optim.SGD(model.parameters(), 0.5))
    metric = Acc()
    evaluator = create_mmengine_evaluator(model, [metric], loss=True)
    hook = EvalHook(DataLoader(data(), 5), evaluator, save_best="accuracy", out_dir=tmp_path)
    hook.attach(trainer)
    trainer.run(DataLoader(data(), 4), max_epochs=3)
    assert [sorted(record.metrics) for record in hook.history] == [
        ["accuracy", "count", "loss_big", "loss_cls", "val_loss"]
    ] * 3
    assert {record.metrics["count"] for record in hook.history} == {12}
    best = max(record.metrics["accuracy"] for record in hook.history)
    assert hook.best is not None
    assert hook.best.score == best
    hook.load_best()
    assert hook.evaluate(track=False).metrics["accuracy"] == best


def test_the_preflight_leaves_nothing_behind(tmp_path: Path) -> None:
    class Counting(Acc):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0
            self.by_label: dict[int, int] = {}
            self.sum = torch.zeros(())
            self.array = np.zeros(2)
            self.lists: Any = [deque([1]), {1}]

        def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
            super().process(data_batch, data_samples)
            self.seen += len(data_samples)
            self.by_label[len(self.by_label)] = 1
            self.sum += 1
            self.array[0] += 1
            self.lists[0].append(2)
            self.lists[1].add(len(self.lists[0]))
            self.new = True

        def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
            assert self.seen == self.sum * 4 == self.array[0] * 4 == 4 * len(self.by_label)
            assert len(self.lists[0]) == len(self.lists[1]) == len(self.by_label) + 1
            return {"accuracy": self.seen}

    metric, model = Counting(), net()
    trainer = create_mmengine_trainer(model, torch.optim.SGD(model.parameters(), 0.5))
    hook = EvalHook(
        DataLoader(data(), 4),
        create_mmengine_evaluator(model, metric),
        save_best="accuracy",
        out_dir=tmp_path,
    ).attach(trainer)
    noted: list[Any] = []
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda: noted.append((metric.seen, hasattr(metric, "new")))
    )
    trainer.run(DataLoader(data(), 4), max_epochs=1)
    assert noted == [(0, False)]
    assert hook.history[0].metrics["accuracy"] == 12


def test_a_hook_tells_the_metrics_the_metainfo_also_at_the_preflight(tmp_path: Path) -> None:
    class Needing(Acc):
        def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
            assert self.dataset_meta["classes"] == ("x", "y", "z")
            super().process(data_batch, data_samples)

    model = net()
    trainer = create_mmengine_trainer(model, torch.optim.SGD(model.parameters(), 0.5))
    evaluator = create_mmengine_evaluator(model, Needing())
    hook = EvalHook(DataLoader(WithMeta(), 2), evaluator, save_best="accuracy", out_dir=tmp_path)
    hook.attach(trainer)
    trainer.run(DataLoader(data(), 4), max_epochs=1)
    assert len(hook.history) == 1


# -- what cannot be merged ------------------------------------------------------------------------


class Counts(BaseMetric):
    """Counts in an attribute of some kind."""

    def __init__(self, start: Any, add: Callable[[Any], Any], same: bool = False) -> None:
        super().__init__()
        self.n = start
        self.add = add
        self.same = same

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        self.results.append(1)
        if not self.same or not hasattr(self, "done"):
            self.n = self.add(self.n)
            self.done = True

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        return {"n": 0}


class Helper:
    """What a metric may delegate to."""

    def __init__(self) -> None:
        self.items: list[int] = []


def appended(items: Any) -> Any:
    (items.items if isinstance(items, Helper) else items).append(1)
    return items


def counted(table: Any) -> Any:
    table["a"] = table.get("a", 0) + 1
    return table


def in_place(value: Any) -> Any:
    value += 1
    return value


COUNTING: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "a number": (lambda: 0, lambda n: n + 1, "Counts.n"),
    "a number of NumPy": (lambda: np.float64(0), lambda n: n + 1, "Counts.n"),
    "a tensor": (lambda: torch.zeros(2), lambda n: n + 1, "Counts.n"),
    "a tensor in place": (lambda: torch.zeros(()), in_place, "Counts.n"),
    "an array in place": (lambda: np.zeros((2, 2)), in_place, "Counts.n"),
    "a list": (list, appended, "Counts.n"),
    "a dict": (dict, counted, "Counts.n"),
    "a set": (set, lambda s: s | {len(s)}, "Counts.n"),
    "a deque": (deque, appended, "Counts.n"),
    "a list in a list": (lambda: [[]], lambda n: [appended(n[0])], "Counts.n"),
}


@pytest.mark.parametrize("kind", COUNTING)
def test_a_metric_that_counts_elsewhere_is_refused_by_name(kind: str) -> None:
    start, add, name = COUNTING[kind]
    batches = outputs([1, 1, 1])
    with pytest.raises(EvaluationError, match=rf"({name}) changes while batches are proc"):
        over(lambda: [Acc(), Counts(start(), add)], batches, 2)
    assert over(lambda: Counts(start(), add), batches, 1) == {"n": 0}
    assert over(lambda: Counts(start(), add), batches[:1], 3) == {"n": 0}


@pytest.mark.parametrize("kind", COUNTING)
def test_that_ranks_have_counted_alike_is_no_excuse(kind: str) -> None:
    start, add, name = COUNTING[kind]
    with pytest.raises(EvaluationError, match=rf"({name}) changes while batches are processed"):
        over(lambda: Counts(start(), add), outputs([1, 1, 1, 1]), 2)


@pytest.mark.parametrize(
    ("start", "value"), [(None, 3), (False, True), (None, "x"), ("", "y"), (None, Helper())]
)
def test_what_is_set_once_and_alike_is_configuration(start: Any, value: Any) -> None:
    def make() -> Counts:
        return Counts(start, lambda n: value)

    for world in WORLDS:
        assert over(make, outputs([1, 1, 1]), world) == {"n": 0}


def test_what_is_set_otherwise_on_each_rank_is_refused() -> None:
    values = iter([3, 4, 5])
    with pytest.raises(EvaluationError, match=r"Counts\.n changes"):
        over(lambda: Counts(None, lambda n: next(values)), outputs([1, 1]), 2)


def test_a_count_that_begins_with_the_first_batch_is_refused() -> None:
    batches = outputs([1, 1, 1, 1])
    with pytest.raises(EvaluationError, match=r"Counts\.n changes"):
        over(lambda: Counts(None, lambda n: (n or 0) + 1), batches, 2)


def test_a_flag_that_one_rank_has_set_earlier_is_no_count() -> None:
    metrics = [MMEngineMetric(Counts(0, lambda n: n, same=True)) for _ in range(2)]
    batches = outputs([1, 1])
    metrics[0].update(batches[0])  # an earlier evaluation, in which rank 1 had no batch
    metrics[0].completed(Engine(lambda *_: None), "mm")
    for metric in metrics:
        metric.started(Engine(lambda *_: None))
    assert value_over(metrics, batches) == {"n": 0}


def test_results_that_do_not_just_grow_are_refused() -> None:
    class Top(Acc):
        def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
            super().process(data_batch, data_samples)
            del self.results[1:]
            if len(data_batch[1]) == 2:
                self.results.clear()

    batches = outputs([1, 1, 2, 1])
    with pytest.raises(EvaluationError, match=r"Top\.results changes while"):
        over(Top, batches, 2)
    assert over(Top, batches, 1)["count"] == 1


def test_other_metrics_on_other_ranks_are_refused() -> None:
    metrics = [MMEngineMetric(Acc()), MMEngineMetric(PerBatch())]
    with pytest.raises(EvaluationError, match=r"MMEngineMetric, Acc on rank 0 and .*PerBatch on"):
        value_over(metrics, outputs([1, 1]))


@pytest.mark.parametrize("fails", [False, True])
def test_merging_leaves_the_results_as_they_were(fails: bool) -> None:
    class Caching(Acc):
        def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
            results.reverse()
            self.cache = len(results)  # stays on rank 0, as with MMEngine
            if fails:
                raise ZeroDivisionError("on purpose")
            return super().compute_metrics(results)

    inner = [Caching(), Caching()]
    metrics = [MMEngineMetric(item) for item in inner]
    kept: list[Any] = []

    def look() -> None:
        kept.extend((item.results, list(item.results)) for item in inner)

    if fails:
        with pytest.raises(ZeroDivisionError):
            value_over(metrics, outputs([3, 2]), updated=look)
    else:
        assert value_over(metrics, outputs([3, 2]), updated=look)["count"] == 5
    for item, (results, content) in zip(inner, kept, strict=True):
        assert item.results is results
        assert item.results == content
    assert inner[0].cache == 5
    assert not hasattr(inner[1], "cache")


# -- the trainer ----------------------------------------------------------------------------------


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    return all(map(torch.equal, weights(left), weights(right)))


@pytest.mark.parametrize("counts", [1, 2, 5])
def test_the_trainer_trains_as_mmengines_loop_does(counts: int) -> None:
    theirs = net()
    wrapper = OptimWrapper(torch.optim.Adam(theirs.parameters(), 0.1), accumulative_counts=counts)
    torch.manual_seed(1)
    wrapper.initialize_count_status(theirs, 0, 9)
    logged = []
    for _ in range(3):
        theirs.train()
        for batch in DataLoader(data(), 4, shuffle=True):
            logged.append(theirs.train_step(batch, optim_wrapper=wrapper))

    ours = net()
    config = {
        "optimizer": {"type": torch.optim.Adam, "lr": 0.1}, "accumulative_counts": counts,
    }  # fmt: skip
    trainer = create_mmengine_trainer(ours, config)
    outputs: list[Any] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output))
    torch.manual_seed(1)
    trainer.run(DataLoader(data(), 4, shuffle=True), max_epochs=3)
    assert same_weights(ours, theirs)
    assert not same_weights(ours, net())
    assert trainer.optim_wrapper.inner_count == 9
    assert [list(output) for output in outputs] == [["loss", "loss_cls", "loss_big"]] * 9
    assert [output["loss"] for output in outputs] == [log["loss"] for log in logged]
    assert not any(value.requires_grad for output in outputs for value in output.values())


def test_an_optimizer_of_torch_is_wrapped() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    trainer = create_mmengine_trainer(model, optimizer)
    assert type(trainer.optim_wrapper) is OptimWrapper
    assert trainer.optim_wrapper.optimizer is optimizer
    assert trainer.model is model


def test_max_iters_counts_as_the_end_and_an_unknown_end_as_none() -> None:
    for arguments, expected in (({"max_iters": 4}, 4), ({"max_epochs": 2}, 6)):
        model = net()
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1.0), accumulative_counts=5)
        trainer = create_mmengine_trainer(model, wrapper)
        trainer.run(DataLoader(data(), 4), **arguments)
        assert wrapper._max_counts == expected
        assert all(param.grad is None for param in model.parameters())
    model = net()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1.0), accumulative_counts=5)
    trainer = create_mmengine_trainer(model, wrapper)
    trainer.run((batch for batch in DataLoader(data(), 4)), max_epochs=1)
    assert wrapper._max_counts == -1
    assert same_weights(model, net())


def test_the_model_is_put_into_training_mode_by_its_own_train() -> None:
    class Frozen(Net):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.drop.eval()
            return self

    torch.manual_seed(0)
    model = Frozen()
    trainer = create_mmengine_trainer(model, torch.optim.SGD(model.parameters(), 0.1))
    flags = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note() -> None:
        flags.append((model.training, model.drop.training))
        model.eval()

    trainer.run(DataLoader(data(), 4), max_epochs=2)
    assert flags == [(True, False)] * 6


@pytest.mark.parametrize("many", [False, True])
def test_broken_and_resumed_is_unbroken(tmp_path: Path, many: bool) -> None:
    def run(folder: Path, epochs: int) -> tuple[Any, Any]:
        model = net()
        groups: Any = model.parameters()
        if many:  # MMEngine then adds settings of its own to the optimizer's state
            groups = [{"params": [p], "lr": 0.1 + i} for i, p in enumerate(model.parameters())]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        wrapper = OptimWrapper(optimizer, accumulative_counts=2, clip_grad={"max_norm": 1.0})
        trainer = create_mmengine_trainer(model, wrapper)
        evaluator = create_mmengine_evaluator(model, [Acc()], loss=True)
        loader = DataLoader(data(), 5)
        hook = EvalHook(loader, evaluator, save_best="val_loss", out_dir=folder).attach(trainer)
        hook.keep_last({"model": model, "optimizer": trainer.optim_wrapper})
        torch.manual_seed(3)
        trainer.run(DataLoader(data(), 3, shuffle=True), max_epochs=epochs)
        hook.detach()
        records = [(r.epoch, r.metrics, r.is_best) for r in hook.history]
        return model, records

    whole, records = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    resumed, again = run(tmp_path / "parts", 4)
    assert same_weights(whole, resumed)
    assert records == again
    assert len(records) == 4


@pytest.mark.parametrize(
    ("model", "wrapper", "words"),
    [
        (3, None, r"model must be a torch\.nn\.Module, got int"),
        (net(), 3, r"optim_wrapper must be an OptimWrapper .* got int"),
        (
            nn.Linear(1, 1),
            "its own",
            r"BaseModel of MMEngine, have a method train_step.*got Linear",
        ),
        (nn.DataParallel(net()), "its own", r"got DataParallel of Net"),
    ],
)
def test_what_cannot_train_is_named(model: Any, wrapper: Any, words: str) -> None:
    if wrapper == "its own":
        wrapper = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match=words):
        create_mmengine_trainer(model, wrapper)


# -- without MMEngine -----------------------------------------------------------------------------


def test_without_mmengine_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mmengine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmengine", None)

    class Plain(nn.Linear):
        def val_step(self, batch: Any) -> Any:
            return self(batch)

    model = Plain(1, 1)
    install = r' needs MMEngine: pip install "ignite-evalhook\[openmmlab\]" \('
    with pytest.raises(ImportError, match="MMEngineMetric" + install):
        create_mmengine_evaluator(model, {"type": "Acc"})
    with pytest.raises(ImportError, match="create_mmengine_trainer" + install):
        create_mmengine_trainer(model, torch.optim.SGD(model.parameters(), 0.1))
    assert create_mmengine_evaluator(model).run([torch.ones(2, 1)]).metrics == {}


# -- what docs/migrate_mmengine.md says -----------------------------------------------------------


def epochs_of_mmengine(**train_cfg: Any) -> list[int]:
    """Return the epochs of twelve after which MMEngine's own training loop validates."""
    pytest.importorskip("cv2", reason="mmengine.runner imports OpenCV")
    from mmengine.runner import EpochBasedTrainLoop

    found: list[int] = []
    runner: Any = SimpleNamespace(
        model=net(),
        call_hook=lambda *args, **kwargs: None,
        visualizer=SimpleNamespace(dataset_meta=None),
        val_loop=SimpleNamespace(run=lambda: found.append(loop.epoch)),
        optim_wrapper=None,
    )
    runner.model.train_step = lambda *args, **kwargs: {}
    loop = EpochBasedTrainLoop(runner, DataLoader(data(1)), 12, **train_cfg)
    loop.run()
    return found


@pytest.mark.parametrize(
    ("train_cfg", "when"),
    [
        ({"val_interval": 5}, {"interval": 5, "at_end": True}),
        ({"val_begin": 4}, {"start": 4}),
        (
            {"val_interval": 3, "dynamic_intervals": [(8, 1)]},
            {"interval": 3, "dynamic_intervals": [(7, 1)]},
        ),
    ],
)
def test_a_schedule_of_mmengines_becomes_one_of_the_hooks(train_cfg: Any, when: Any) -> None:
    trainer = Engine(lambda engine, batch: None)
    hook = EvalHook(None, lambda trainer: {"acc": 1.0}, model=nn.Linear(1, 1), **when)
    hook.attach(trainer)
    trainer.run(range(1), max_epochs=12)
    assert [record.epoch for record in hook.history] == epochs_of_mmengine(**train_cfg)


def test_mmengines_grid_does_not_begin_where_val_begin_says() -> None:
    assert epochs_of_mmengine(val_begin=3, val_interval=2) == [4, 6, 8, 10, 12]


def test_the_page_is_short() -> None:
    page = Path(__file__).parents[2] / "docs" / "migrate_mmengine.md"
    assert len(page.read_text("utf-8").splitlines()) < 150


@pytest.fixture
def runner_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that makes one of MMEngine's own runners."""
    pytest.importorskip("cv2", reason="mmengine.runner imports OpenCV")
    from mmengine.runner import Runner
    from mmengine.visualization import Visualizer

    canvas = lambda self, config: [Mock()] * 3  # noqa: E731  # else it needs matplotlib
    monkeypatch.setattr(Visualizer, "_initialize_fig", canvas)
    method = multiprocessing.get_start_method(allow_none=True)  # which a runner changes
    number = count()

    def make(name: str, **settings: Any) -> Any:
        return Runner(
            net(),
            work_dir=str(tmp_path / name),
            train_dataloader=DataLoader(data(), 4, shuffle=True),
            train_cfg={"by_epoch": True, "max_epochs": 2},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.5}},
            randomness={"seed": 0},
            log_level="ERROR",
            experiment_name=f"{tmp_path.name}-{next(number)}",
            **settings,
        )

    yield make
    multiprocessing.set_start_method(method, force=True)


def test_a_runner_trains_other_weights_when_it_validates(runner_of: Callable[..., Any]) -> None:
    val = {"val_dataloader": DataLoader(data(), 4), "val_cfg": {}, "val_evaluator": [Acc()]}
    alone, watched = runner_of("alone"), runner_of("watched", **val)
    for runner in (alone, watched):
        runner.train()
    assert not same_weights(alone.model, watched.model)


def test_a_runner_cannot_read_its_own_file(runner_of: Callable[..., Any]) -> None:
    runner = runner_of("first")
    runner.train()
    file = Path(runner.work_dir) / "epoch_2.pth"
    assert file.exists()
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file, weights_only=True)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            runner_of("first", resume=True).train()
