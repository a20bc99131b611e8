"""Metrics of torchmetrics are metrics of an engine, and give over ranks what they give on one."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ignite.metrics as im
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from torch import Tensor

from helpers.over_ranks import over_ranks, same, value_over
from helpers.private import TorchMetric, as_ignite_metric, check_exact, is_torchmetric
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, create_evaluator
from ignite_evalhook.exceptions import EvaluationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tm: Any = pytest.importorskip("torchmetrics", reason="torchmetrics is an extra")
    import torchmetrics.classification as tc
    import torchmetrics.regression as tr

DATA = [(4, 4, 4, 4, 2), (3, 5, 2, 6, 4, 2, 3), (4, 5), (6,)]
WORLDS = (1, 2, 3, 4)
BITS, ROUNDING = "bit for bit", "to 1e-6"

Make = Callable[[], Any]


@pytest.fixture(autouse=True)
def _quiet_and_repeatable() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchmetrics, about so little data
        torch.manual_seed(7)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for tensors this small, more only wait for one another
        yield
        torch.set_num_threads(threads)


def scores(n: int) -> tuple[Tensor, Tensor]:
    return torch.randint(5, (n,)) / 4, torch.arange(n) % 2  # few values, so many ties


def multiclass(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3).softmax(1), torch.randint(3, (n,))


def numbers(n: int) -> tuple[Tensor, Tensor]:
    y = torch.rand(n)
    return y + torch.rand(n) / 8, y


def pairs(n: int) -> tuple[Tensor, Tensor]:
    y_pred, y = numbers(2 * n)
    return y_pred.reshape(n, 2), y.reshape(n, 2)


def values(n: int) -> Tensor:
    return torch.rand(n)


def texts(n: int) -> tuple[list[str], list[str]]:
    words = ["a", "cat", "sat", "there"]
    two = [[words[i] for i in torch.randint(4, (n,)).tolist()] for _ in range(2)]
    return two[0], two[1]


class Custom(tm.Metric):  # type: ignore[misc]
    """States with a reduction of one's own, and a list that grows by two, with rows."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("power", torch.tensor(0.0), dist_reduce_fx=lambda x: x.sum(0))
        self.add_state("least", torch.tensor(float("inf")), dist_reduce_fx="min")
        self.add_state("most", torch.tensor(-1), dist_reduce_fx="max")
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, value: Tensor) -> None:
        self.power = self.power + value.round().sum()
        self.least = torch.minimum(self.least, value.min())
        self.most = torch.maximum(self.most, torch.tensor(len(value)))
        self.rows.extend([value[:1].expand(1, 2), value[:2, None].expand(-1, 2)])

    def compute(self) -> Any:
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows
        return {"power": self.power, "least": self.least, "most": self.most, "rows": rows}


class Lists(tm.Metric):  # type: ignore[misc]
    """Lists with a reduction of one's own, and with none."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("many", [], dist_reduce_fx=None)
        self.add_state("kept", [], dist_reduce_fx=lambda items: sorted(items))

    def update(self, value: Tensor) -> None:
        self.many.extend([value[0], value[-1]])
        self.kept.append(value[0])

    def compute(self) -> Any:
        return {"many": torch.stack(self.many), "kept": torch.stack(sorted(self.kept))}


def collection(**kwargs: Any) -> Any:
    return tm.MetricCollection(
        {
            "acc": tc.BinaryAccuracy(), "strict": tc.BinaryAccuracy(threshold=0.8),
            "f1": tc.BinaryF1Score(), "auc": tc.BinaryAUROC(),
        },
        prefix="val_", **kwargs,
    )  # fmt: skip


ZOO: dict[str, tuple[Make, Callable[[int], Any], str]] = {
    "Accuracy": (lambda: tm.Accuracy("multiclass", num_classes=3), multiclass, BITS),
    "AUROC": (lambda: tm.AUROC("binary"), scores, BITS),
    "AUROC, thresholds": (lambda: tm.AUROC("binary", thresholds=5), scores, BITS),
    "AveragePrecision": (
        lambda: tm.AveragePrecision("multiclass", num_classes=3), multiclass, BITS,
    ),
    "CatMetric": (lambda: tm.CatMetric(), values, BITS),
    "CharErrorRate": (lambda: tm.text.CharErrorRate(), texts, BITS),
    "ClasswiseWrapper": (
        lambda: tm.ClasswiseWrapper(tm.Recall("multiclass", num_classes=3, average=None)),
        multiclass, BITS,
    ),
    "Composition": (lambda: 2 * tm.MaxMetric() + tm.MinMetric(), values, BITS),
    "ConfusionMatrix": (lambda: tm.ConfusionMatrix("multiclass", num_classes=3), multiclass, BITS),
    "Custom": (Custom, values, BITS),
    "Lists": (Lists, values, BITS),
    "F1Score": (
        lambda: tm.F1Score("multiclass", num_classes=3, average="macro"), multiclass, BITS,
    ),
    "KendallRankCorrCoef": (lambda: tm.KendallRankCorrCoef(), numbers, BITS),
    "MeanMetric": (lambda: tm.MeanMetric(), values, ROUNDING),
    "MeanSquaredError": (lambda: tm.MeanSquaredError(), numbers, ROUNDING),
    "MetricCollection": (collection, scores, BITS),
    "MetricCollection, groups": (
        lambda: collection(compute_groups=[["acc", "f1"], ["strict"], ["auc"]]), scores, BITS,
    ),
    "MinMaxMetric": (lambda: tm.MinMaxMetric(tc.BinaryAccuracy()), scores, BITS),
    "MultioutputWrapper": (
        lambda: tm.MultioutputWrapper(tr.SpearmanCorrCoef(), 2), pairs, BITS,
    ),
    "PearsonCorrCoef": (lambda: tm.PearsonCorrCoef(), numbers, ROUNDING),
    "PearsonCorrCoef, outputs": (lambda: tm.PearsonCorrCoef(num_outputs=2), pairs, ROUNDING),
    "PrecisionRecallCurve": (lambda: tm.PrecisionRecallCurve("binary"), scores, BITS),
    "PSNR": (lambda: tm.image.PeakSignalNoiseRatio(data_range=1.0), pairs, ROUNDING),
    "R2Score": (lambda: tm.R2Score(), numbers, ROUNDING),
    "SpearmanCorrCoef": (lambda: tm.SpearmanCorrCoef(), numbers, BITS),
    "SumMetric": (lambda: tm.SumMetric(), lambda n: torch.arange(n), BITS),
}  # fmt: skip


def on_one(make: Make, batches: Sequence[Any]) -> Any:
    metric = as_ignite_metric(make())
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def over(make: Make, batches: Sequence[Any], world: int) -> Any:
    return over_ranks(lambda: as_ignite_metric(make()), batches, world)


def assert_exact(found: Any, expected: Any, how: str) -> None:
    if how == BITS:
        assert type(found) is type(expected)
        assert same(found, expected), f"{found} is not {expected}"
    else:
        found, expected = (torch.as_tensor(value).tolist() for value in (found, expected))
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("sizes", DATA, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_a_metric_gives_over_ranks_what_it_gives_on_one(name: str, sizes: Sequence[int]) -> None:
    make, batch, how = ZOO[name]
    batches = [batch(n) for n in sizes]
    expected = on_one(make, batches)
    for world in WORLDS:
        assert_exact(over(make, batches, world), expected, how)


@pytest.mark.parametrize("name", ZOO)
def test_the_value_is_that_of_torchmetrics_itself(name: str) -> None:
    make, batch, _ = ZOO[name]
    batches = [batch(n) for n in DATA[0]]
    item = make()
    if name == "MetricCollection":  # which shares the counting of metrics that only seem equal
        item = collection(compute_groups=False)
    for output in batches:
        item.update(*output) if isinstance(output, tuple) else item.update(output)
    expected = item.compute()
    found = on_one(make, batches)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        pairs = [(found[key], expected[key]) for key in found]
    else:
        pairs = [(found, expected)]
    for mine, theirs in pairs:
        for one, other in zip(*((v if isinstance(v, tuple) else (v,)) for v in (mine, theirs)),
                              strict=True):  # fmt: skip
            assert torch.equal(torch.as_tensor(one), other.to(torch.as_tensor(one).dtype))


@pytest.mark.parametrize("name", ZOO)
def test_a_metric_that_is_exact_is_not_refused(name: str) -> None:
    check_exact("x", as_ignite_metric(ZOO[name][0]()), Events.EPOCH_COMPLETED)


@pytest.mark.parametrize("name", ZOO)
def test_asking_touches_nothing(name: str) -> None:
    make, batch, _ = ZOO[name]
    metrics = [TorchMetric(make()) for _ in range(2)]
    before: dict[Any, Any] = {}

    def look() -> None:
        before.update({id(m): copy.copy(vars(m)) for one in metrics for m in one._modules})

    value_over(metrics, [batch(3), batch(2), batch(4)], updated=look)
    for module in (module for metric in metrics for module in metric._modules):
        attributes = before[id(module)]
        assert attributes.keys() == vars(module).keys()
        assert all(vars(module)[key] is value or vars(module)[key] == value
                   for key, value in attributes.items())  # fmt: skip


def test_a_failing_computation_touches_nothing_either() -> None:
    class Failing(tm.SumMetric):  # type: ignore[misc]
        def compute(self) -> Any:
            self.sum_value = torch.tensor(-1.0)
            raise ZeroDivisionError("on purpose")

    metrics = [TorchMetric(Failing()), TorchMetric(Failing())]
    available = metrics[0]._item.distributed_available_fn
    with pytest.raises(ZeroDivisionError):
        value_over(metrics, [torch.ones(1), torch.ones(2)])
    assert metrics[0]._item.sum_value == 1.0
    assert metrics[0]._item.update_count == 1
    assert metrics[0]._item.distributed_available_fn is available


# -- as a metric of an engine ---------------------------------------------------------------------


def run(metric: Any, outputs: Sequence[Any], name: str = "x") -> dict[str, Any]:
    engine = Engine(lambda engine, batch: batch)
    as_ignite_metric(metric).attach(engine, name)
    return engine.run(outputs).metrics


def test_only_metrics_are_taken() -> None:
    accuracy = im.Accuracy()
    assert as_ignite_metric(accuracy) is accuracy
    assert is_torchmetric(tm.MaxMetric())
    assert not is_torchmetric(accuracy)
    with pytest.raises(TypeError, match=r"must be one of ignite\.metrics, or .* got int"):
        as_ignite_metric(3)


def test_without_torchmetrics_nothing_is_its_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    item = tm.MaxMetric()
    monkeypatch.delitem(sys.modules, "torchmetrics")
    assert not is_torchmetric(item)


def test_a_number_ends_under_the_name_it_was_attached_with() -> None:
    assert run(tm.MaxMetric(), [torch.tensor([1.0, 3.0]), torch.tensor([2.0])]) == {"x": 3.0}


def test_each_result_of_a_collection_ends_under_its_own_name() -> None:
    found = run(collection(), [scores(4), scores(4)])
    assert list(found) == ["val_acc", "val_auc", "val_f1", "val_strict"]
    assert all(type(value) is float for value in found.values())


def test_each_run_starts_anew() -> None:
    metric = as_ignite_metric(tm.SumMetric())
    engine = Engine(lambda engine, batch: batch)
    metric.attach(engine, "x")
    for _ in range(2):
        assert engine.run([1.0, 2.0]).metrics == {"x": 3.0}


@pytest.mark.parametrize("names", [("preds", "target"), ("y_pred", "y")])
def test_an_output_with_keys_is_passed_by_name(names: tuple[str, str]) -> None:
    outputs = [{**dict(zip(names, multiclass(n), strict=True)), "more": 1} for n in DATA[1]]
    plain = [(output[names[0]], output[names[1]]) for output in outputs]
    for make in (
        lambda: tm.Accuracy("multiclass", num_classes=3),
        lambda: tm.MetricCollection([tm.Accuracy("multiclass", num_classes=3)]),
        lambda: tm.MetricCollection(
            [tc.MulticlassAccuracy(3), tc.MulticlassF1Score(3)],
            compute_groups=[["MulticlassAccuracy", "MulticlassF1Score"]],
        ),
    ):
        assert run(make(), outputs) == run(make(), plain)


def test_an_output_without_the_right_keys_is_named() -> None:
    with pytest.raises(ValueError, match=r"with preds, target, and the output has the keys a, b;"):
        run(tm.Accuracy("multiclass", num_classes=3), [{"a": 1, "b": 2}])


def test_an_output_transform_chooses() -> None:
    engine = Engine(lambda engine, batch: batch)
    metric = as_ignite_metric(tm.MaxMetric(), output_transform=lambda output: output["v"])
    metric.attach(engine, "x")
    assert engine.run([{"v": 1.0}, {"v": 5.0}]).metrics == {"x": 5.0}


def test_without_an_update_nothing_can_be_computed() -> None:
    with pytest.raises(NotComputableError, match="MaxMetric must have at least one example"):
        as_ignite_metric(tm.MaxMetric()).compute()


def test_its_own_synchronisation_is_never_used() -> None:
    def sync(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("synchronised")

    def make() -> Any:
        return tm.SumMetric(dist_sync_fn=sync, distributed_available_fn=lambda: True)

    metric = as_ignite_metric(make())
    metric.update(torch.ones(1))
    assert metric.compute() == 1.0
    assert over(make, [torch.ones(2), torch.ones(1)], 2) == 3.0


class Averaged(tm.Metric):  # type: ignore[misc]
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")

    def update(self, value: Tensor) -> None:
        self.mean = value.mean()

    def compute(self) -> Any:
        return self.mean


def test_a_metric_moves_to_the_device_of_the_data() -> None:
    metric = TorchMetric(tm.MetricCollection([Averaged()]))
    metric.update({"value": torch.ones(3, device="meta")})
    assert {part.device.type for part in metric._parts} == {"meta"}


def test_metrics_that_seem_equal_on_the_first_batch_are_counted_by_themselves() -> None:
    first = (torch.tensor([0.9, 0.1]), torch.tensor([1, 0]))
    second = (torch.tensor([0.7, 0.1]), torch.tensor([1, 0]))
    found = run(collection(), [first, second])
    assert (found["val_acc"], found["val_strict"]) == (1.0, 0.75)


def test_inside_other_metrics_it_is_exact_too() -> None:
    batches = [scores(n) for n in DATA[1]]

    def make() -> Any:
        auc = as_ignite_metric(tm.AUROC("binary"))
        return im.MetricGroup({"twice": auc * 2, "auc": auc})

    expected = on_one(make, batches)
    for world in WORLDS:
        assert_exact(over(make, batches, world), expected, BITS)


def test_one_that_some_ranks_never_update_is_exact() -> None:
    fairness = pytest.importorskip("ignite.metrics.fairness", reason="needs Ignite 0.5.4")
    batches = [(*numbers(n), torch.full((n,), n % 2)) for n in DATA[1]]

    def make(item: Any) -> Any:
        return fairness.SubgroupMetric(as_ignite_metric(item()), [0, 1])

    class Least(tm.Metric):  # type: ignore[misc]
        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.add_state("least", torch.tensor(-9.0), dist_reduce_fx=None)

        def update(self, y_pred: Tensor, y: Tensor) -> None:
            self.least = y_pred.min() if self.least < 0 else torch.minimum(self.least, y_pred.min())

        def compute(self) -> Any:
            return torch.atleast_1d(self.least).min()

    for item in (tm.PearsonCorrCoef, Least):
        expected = on_one(lambda item=item: make(item), batches)
        assert len(expected) == 2
        for world in WORLDS:
            found = over(lambda item=item: make(item), batches, world)
            assert found == pytest.approx(expected, rel=1e-6)


def test_the_number_of_updates_is_that_of_all_ranks() -> None:
    class Counting(tm.SumMetric):  # type: ignore[misc]
        def compute(self) -> Any:
            return self.sum_value / self.update_count

    batches = [torch.tensor(float(i)) for i in range(5)]
    for world in WORLDS:
        assert over(Counting, batches, world) == 2.0


def evaluate(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    outputs = [scores(n) for n in DATA[1]]
    evaluator = Engine(lambda engine, batch: batch)
    for name, item in (("all", collection()), ("auc", tc.BinaryAUROC()), ("mse", tr.R2Score())):
        as_ignite_metric(item).attach(evaluator, name)
    hook = EvalHook(outputs, evaluator, model=torch.nn.Linear(1, 1))
    return hook.evaluate(track=False).metrics


@pytest.mark.parametrize("world", [3, 9])
def test_on_real_ranks_it_is_exact_too(world: int) -> None:
    expected = evaluate(0)
    assert list(expected) == ["val_acc", "val_auc", "val_f1", "val_strict", "auc", "mse"]
    for found in on_ranks(world, evaluate):
        assert found == pytest.approx(expected, rel=1e-6)
        assert all(found[name] == value for name, value in expected.items() if name != "mse")


# -- what is refused ------------------------------------------------------------------------------


def test_an_average_over_ranks_is_refused_unless_they_agree() -> None:
    with pytest.raises(EvaluationError, match=r"'mean' of Averaged .*dist_reduce_fx='sum'"):
        over(Averaged, [torch.ones(2), torch.zeros(1)], 2)
    assert over(Averaged, [torch.ones(2), torch.ones(1)], 2) == 1.0
    assert over(Averaged, [torch.ones(2)], 2) == 1.0


class Growing(Averaged):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", torch.zeros(0, 2), dist_reduce_fx="cat")


class Listed(Averaged):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("many", [], dist_reduce_fx=None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Growing, "the state 'rows' of Growing is a tensor that grows"),
        (Listed, "the state 'many' of Listed is a list with another reduction than 'cat'"),
        (lambda: tm.BootStrapper(tm.MeanMetric()), "BootStrapper of torchmetrics draws"),
        (lambda: tm.wrappers.Running(tm.MeanMetric()), "Running of torchmetrics keeps the last"),
        (lambda: tm.MetricCollection([tm.aggregation.RunningMean()]), "Running of torchmetrics"),
    ],
)
def test_a_wrapper_that_depends_on_the_rank_is_refused(make: Make, words: str) -> None:
    with pytest.raises(EvaluationError, match=f"the metric 'x' cannot .*TorchMetric {words}"):
        check_exact("x", as_ignite_metric(make()))


def test_a_metric_without_declared_state_is_refused() -> None:
    class Stateless(tm.Metric):  # type: ignore[misc]
        full_state_update = False
        total = 0.0

        def update(self, value: Tensor) -> None:
            self.total += float(value.sum())

        def compute(self) -> Any:
            return torch.tensor(self.total)

    with pytest.raises(EvaluationError, match=r"declares no state; call self.add_state"):
        check_exact("x", as_ignite_metric(Stateless()))


def test_one_hidden_in_a_metric_of_a_users_is_refused() -> None:
    class Hiding(im.Metric):
        def __init__(self) -> None:
            self.inner = tm.SumMetric()
            super().__init__()

        def reset(self) -> None:
            self.inner.reset()

        def update(self, output: Any) -> None:
            self.inner.update(output)

        def compute(self) -> Any:
            return self.inner.compute()

    with pytest.raises(EvaluationError, match=r"torchmetrics in its attribute 'inner'; attach"):
        check_exact("x", Hiding())


def test_a_misspelled_name_of_a_collection_is_found_before_training(tmp_path: Path) -> None:
    collection = tm.MetricCollection([tc.MulticlassAccuracy(2), tc.MulticlassF1Score(2)])
    model = torch.nn.Linear(3, 2)
    loader = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))]
    evaluator = create_evaluator(model, {"group": collection})
    hook = EvalHook(loader, evaluator, save_best="MulticlassAcuracy", rule="greater",
                    out_dir=tmp_path)  # fmt: skip
    trainer = Engine(lambda engine, batch: pytest.fail("training began"))
    hook.attach(trainer)
    with pytest.raises(ValueError, match="did you mean 'MulticlassAccuracy'"):
        trainer.run([None], max_epochs=1)
