"""Every metric of Ignite gives on virtual worlds of 1 to 4 ranks what it gives on one process.

The table of the zoo, :data:`ZOO`, is also the table of ``docs/metrics.md``:
``python tests/laws/test_metric_zoo.py`` writes it there.
"""

from __future__ import annotations

import importlib.util
import inspect
import random
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import ignite.distributed.utils as ignite_distributed
import ignite.metrics as im
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric, MetricsLambda
from ignite.metrics.metric import sync_all_reduce
from torch import Tensor, nn

from helpers.over_ranks import over_ranks, same, value_over
from helpers.private import check_exact, in_dataset_order, inner_metrics, no_collectives, reduced
from ignite_evalhook.exceptions import EvaluationError

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- the zoo: begin -->", "<!-- the zoo: end -->"

# Samples in each batch: the last one short; all different; fewer batches than ranks; one batch.
DATA = [(4, 4, 4, 4, 2), (3, 5, 2, 6, 4, 2, 3), (4, 5), (6,)]
WORLDS = (1, 2, 3, 4)

CLASSES = 3

Batch = Callable[[int], Any]


# -- batches --------------------------------------------------------------------------------------


def probabilities(n: int) -> Tensor:
    return torch.rand(n, CLASSES).add(0.1).log_softmax(1).exp()


def labels(n: int) -> Tensor:
    return torch.arange(n).add(torch.randint(CLASSES, ())).remainder(CLASSES)


def binary(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n).round(), torch.arange(n) % 2


def scores(n: int) -> tuple[Tensor, Tensor]:
    return torch.randint(5, (n,)) / 4, torch.arange(n) % 2  # few values, so many ties


def multiclass(n: int) -> tuple[Tensor, Tensor]:
    return probabilities(n), labels(n)


def multilabel(n: int) -> tuple[Tensor, Tensor]:
    return torch.randint(2, (n, CLASSES)), torch.randint(2, (n, CLASSES))


def numbers(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n) + 0.1, torch.rand(n) + 0.1


def related(n: int) -> tuple[Tensor, Tensor]:
    y = torch.rand(n)
    return y + torch.rand(n) / 8, y


def vectors(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4), torch.randn(n, 4)


def images(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 12, 12), torch.rand(n, 1, 12, 12)


def logits(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, CLASSES), torch.randn(n, CLASSES)


def clusters(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2), torch.arange(n) % 2


def groups(n: int) -> tuple[Tensor, Tensor, Tensor]:
    # Most batches hold one group only, so that a rank may never see the other.
    return probabilities(n), labels(n), torch.full((n,), n % 2)


def ranking(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 4), torch.randint(2, (n, 4))


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "slept"]


def sentence() -> list[str]:
    return [WORDS[i] for i in torch.randint(len(WORDS), (6,)).tolist()]


def sentences(n: int) -> tuple[list[Any], list[Any]]:
    return [sentence() for _ in range(n)], [[sentence(), sentence()] for _ in range(n)]


def texts(n: int) -> tuple[list[str], list[str]]:
    return [" ".join(sentence()) for _ in range(n)], [" ".join(sentence()) for _ in range(n)]


def tokens(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 7, 5).transpose(1, 2), torch.randint(5, (n, 7))


def boxes(n: int) -> Tensor:
    corner = torch.randint(0, 6, (n, 2)).float()
    return torch.cat([corner, corner + torch.randint(2, 5, (n, 2))], dim=1)


def detections(n: int) -> tuple[list[Any], list[Any]]:
    """Return images without any object, with several, and with scores that tie."""
    found, true = [], []
    for _ in range(n // 2):
        hits, objects = (int(i) for i in torch.randint(0, 4, (2,)))
        found.append({
            "bbox": boxes(hits), "scores": torch.randint(1, 3, (hits,)) / 2,
            "labels": torch.randint(0, 2, (hits,)),
        })  # fmt: skip
        true.append({"bbox": boxes(objects), "labels": torch.randint(0, 2, (objects,))})
    return found, true


def first_of(batch: Batch) -> Batch:
    return lambda n: batch(n)[0]


# -- the zoo --------------------------------------------------------------------------------------

BITS = "bit for bit"
ROUNDING = "to 1e-6"
# Differences of sums, which are kept as float32: m is the mean over the standard deviation.
ENTROPIES = "to 1e-5 (not relative)"
MOMENTS = "to 1e-5 · (1 + m²) (not relative), where m is mean over standard deviation"


@dataclass(frozen=True)
class Row:
    """One metric: how to make it, what it is updated with, how exact it is."""

    make: Callable[[], Metric]
    batch: Batch
    how: str
    needs: tuple[str, ...] = field(default=(), kw_only=True)


def squared(y_pred: Tensor, y: Tensor) -> float:
    return float(((y_pred - y) ** 2).mean())


def conf() -> Any:
    return im.ConfusionMatrix(CLASSES)


ZOO: dict[str, Row] = {
    "Accuracy": Row(lambda: im.Accuracy(), multiclass, BITS),
    "Average": Row(lambda: im.Average(), lambda n: torch.rand(n, 2), ROUNDING),
    "AveragePrecision": Row(
        lambda: im.AveragePrecision(), scores, BITS, needs=("sklearn",)
    ),
    "Bleu": Row(lambda: im.Bleu(smooth="smooth1"), sentences, ROUNDING),
    "CalinskiHarabaszScore": Row(
        lambda: im.clustering.CalinskiHarabaszScore(), clusters, BITS, needs=("sklearn",)
    ),
    "CanberraMetric": Row(lambda: im.regression.CanberraMetric(), numbers, ROUNDING),
    "CharacterErrorRate": Row(lambda: im.CharacterErrorRate(), texts, BITS),
    "ClassificationReport": Row(
        lambda: im.ClassificationReport(output_dict=True), multiclass, BITS
    ),
    "CohenKappa": Row(lambda: im.CohenKappa(), binary, BITS),
    "CommonObjectDetectionMetrics": Row(
        lambda: im.CommonObjectDetectionMetrics(num_classes=2), detections, BITS,
        needs=("torchvision",),
    ),
    "ConfusionMatrix": Row(conf, multiclass, BITS),
    "CosineSimilarity": Row(lambda: im.CosineSimilarity(), vectors, ROUNDING),
    "DaviesBouldinScore": Row(
        lambda: im.clustering.DaviesBouldinScore(), clusters, BITS, needs=("sklearn",)
    ),
    "DemographicParityDifference": Row(
        lambda: im.fairness.DemographicParityDifference([0, 1]), groups, BITS
    ),
    "DiceCoefficient": Row(lambda: im.DiceCoefficient(conf()), multiclass, BITS),
    "Entropy": Row(lambda: im.Entropy(), logits, ROUNDING),
    "EpochMetric": Row(
        lambda: im.EpochMetric(squared, check_compute_fn=False), numbers, BITS
    ),
    "FID": Row(
        lambda: im.FID(num_features=4, feature_extractor=nn.Identity()), vectors, ROUNDING,
        needs=("numpy", "scipy"),
    ),
    "Fbeta": Row(lambda: im.Fbeta(1.0), multiclass, BITS),
    "FractionalAbsoluteError": Row(
        lambda: im.regression.FractionalAbsoluteError(), numbers, ROUNDING
    ),
    "FractionalBias": Row(lambda: im.regression.FractionalBias(), numbers, ROUNDING),
    "Frequency": Row(
        lambda: im.Frequency(), first_of(numbers),
        "refused: use the record's `samples` and `seconds`",
    ),
    "GeometricAverage": Row(
        lambda: im.GeometricAverage(), lambda n: torch.rand(n, 2) + 0.1, ROUNDING
    ),
    "GeometricMeanAbsoluteError": Row(
        lambda: im.regression.GeometricMeanAbsoluteError(), numbers, ROUNDING
    ),
    "GeometricMeanRelativeAbsoluteError": Row(
        lambda: im.regression.GeometricMeanRelativeAbsoluteError(), numbers, BITS
    ),
    "GpuInfo": Row(
        lambda: object.__new__(im.GpuInfo), numbers, "refused: attach it to the trainer"
    ),
    "HSIC": Row(lambda: im.HSIC(), lambda n: vectors(n + 4), ROUNDING),
    "HitRate": Row(lambda: im.HitRate(top_k=[1, 2]), ranking, BITS),
    "InceptionScore": Row(
        lambda: im.InceptionScore(num_features=CLASSES, feature_extractor=nn.Softmax(1)),
        first_of(logits), ROUNDING,
    ),
    "IoU": Row(lambda: im.IoU(conf()), multiclass, BITS),
    "JSDivergence": Row(lambda: im.JSDivergence(), logits, ROUNDING),
    "JaccardIndex": Row(lambda: im.JaccardIndex(conf()), multiclass, BITS),
    "KLDivergence": Row(lambda: im.KLDivergence(), logits, ROUNDING),
    "KendallRankCorrelation": Row(
        lambda: im.regression.KendallRankCorrelation(), numbers, BITS, needs=("scipy",)
    ),
    "Loss": Row(lambda: im.Loss(nn.functional.mse_loss), numbers, ROUNDING),
    "ManhattanDistance": Row(lambda: im.regression.ManhattanDistance(), numbers, ROUNDING),
    "MatthewsCorrCoef": Row(lambda: im.MatthewsCorrCoef(), binary, BITS, needs=("sklearn",)),
    "MaximumAbsoluteError": Row(lambda: im.regression.MaximumAbsoluteError(), numbers, BITS),
    "MaximumMeanDiscrepancy": Row(lambda: im.MaximumMeanDiscrepancy(), vectors, ROUNDING),
    "MeanAbsoluteError": Row(lambda: im.MeanAbsoluteError(), numbers, ROUNDING),
    "MeanAbsoluteRelativeError": Row(
        lambda: im.regression.MeanAbsoluteRelativeError(), numbers, ROUNDING
    ),
    "MeanAveragePrecision": Row(lambda: im.MeanAveragePrecision(), multiclass, BITS),
    "MeanError": Row(lambda: im.regression.MeanError(), numbers, ROUNDING),
    "MeanNormalizedBias": Row(lambda: im.regression.MeanNormalizedBias(), numbers, ROUNDING),
    "MeanPairwiseDistance": Row(lambda: im.MeanPairwiseDistance(), vectors, ROUNDING),
    "MeanSquaredError": Row(lambda: im.MeanSquaredError(), numbers, ROUNDING),
    "MedianAbsoluteError": Row(lambda: im.regression.MedianAbsoluteError(), numbers, BITS),
    "MedianAbsolutePercentageError": Row(
        lambda: im.regression.MedianAbsolutePercentageError(), numbers, BITS
    ),
    "MedianRelativeAbsoluteError": Row(
        lambda: im.regression.MedianRelativeAbsoluteError(), numbers, BITS
    ),
    "MetricGroup": Row(
        lambda: im.MetricGroup({"acc": im.Accuracy(), "cm": conf()}), multiclass,
        "as its metrics",
    ),
    "MetricsLambda": Row(
        lambda: im.MetricsLambda(lambda a, b: a * b, im.Accuracy(), im.Precision(average=True)),
        multiclass, "as its metrics",
    ),
    "MultiLabelConfusionMatrix": Row(
        lambda: im.MultiLabelConfusionMatrix(CLASSES), multilabel, BITS
    ),
    "MutualInformation": Row(lambda: im.MutualInformation(), logits, ENTROPIES),
    "NDCG": Row(lambda: im.NDCG(top_k=[2]), ranking, ROUNDING),
    "ObjectDetectionAvgPrecisionRecall": Row(
        lambda: im.ObjectDetectionAvgPrecisionRecall(num_classes=2), detections, BITS,
        needs=("torchvision",),
    ),
    "PSNR": Row(lambda: im.PSNR(data_range=1.0), images, ROUNDING),
    "PearsonCorrelation": Row(lambda: im.regression.PearsonCorrelation(), related, MOMENTS),
    "Perplexity": Row(lambda: im.Perplexity(), tokens, ROUNDING),
    "Precision": Row(lambda: im.Precision(average="weighted"), multiclass, BITS),
    "PrecisionRecallCurve": Row(
        lambda: im.PrecisionRecallCurve(), scores, BITS, needs=("sklearn",)
    ),
    "R2Score": Row(lambda: im.regression.R2Score(), related, ROUNDING),
    "ROC_AUC": Row(lambda: im.ROC_AUC(), scores, BITS, needs=("sklearn",)),
    "Recall": Row(lambda: im.Recall(average=False), multiclass, BITS),
    "RocCurve": Row(lambda: im.RocCurve(), scores, BITS, needs=("sklearn",)),
    "RootMeanSquaredError": Row(lambda: im.RootMeanSquaredError(), numbers, ROUNDING),
    "Rouge": Row(lambda: im.Rouge(variants=[1, "L"]), sentences, ROUNDING),
    "RougeL": Row(lambda: im.RougeL(), sentences, ROUNDING),
    "RougeN": Row(lambda: im.RougeN(ngram=2), sentences, ROUNDING),
    "RunningAverage": Row(
        lambda: im.RunningAverage(im.Accuracy()), multiclass,
        "refused: use `Average`, or the metric inside it",
    ),
    "SSIM": Row(lambda: im.SSIM(data_range=1.0), images, ROUNDING),
    "SelectionRate": Row(lambda: im.fairness.SelectionRate(), multiclass, BITS),
    "SilhouetteScore": Row(
        lambda: im.clustering.SilhouetteScore(), clusters, BITS, needs=("sklearn",)
    ),
    "SpearmanRankCorrelation": Row(
        lambda: im.regression.SpearmanRankCorrelation(), numbers, BITS, needs=("scipy",)
    ),
    "SubgroupAccuracyDifference": Row(
        lambda: im.fairness.SubgroupAccuracyDifference([0, 1]), groups, BITS
    ),
    "SubgroupDifference": Row(
        lambda: im.fairness.SubgroupDifference(im.Precision(average=False), [0, 1]), groups,
        "as its metric",
    ),
    "SubgroupMetric": Row(
        lambda: im.fairness.SubgroupMetric(im.Precision(average=False), [0, 1]), groups,
        "as its metric",
    ),
    "TopKCategoricalAccuracy": Row(lambda: im.TopKCategoricalAccuracy(k=2), multiclass, BITS),
    "VariableAccumulation": Row(
        lambda: im.VariableAccumulation(lambda a, x: a + x.sum()), first_of(numbers), ROUNDING
    ),
    "WaveHedgesDistance": Row(lambda: im.regression.WaveHedgesDistance(), numbers, ROUNDING),
    "mIoU": Row(lambda: im.mIoU(conf()), multiclass, BITS),
}  # fmt: skip

# Public names of ignite.metrics that are no metric of batch outputs.
NO_METRICS = {
    "Metric", "clustering", "coco_tensor_list_to_dict_list", "fairness", "regression",
}  # fmt: skip


def names_in_ignite() -> set[str]:
    """Return the names of all metrics, and of the functions that make some."""
    names = set(im.__all__)
    for package in ("clustering", "fairness", "gan", "nlp", "rec_sys", "regression", "vision"):
        for name, value in vars(getattr(im, package, im)).items():
            metric = isinstance(value, type) and issubclass(value, Metric)
            if metric and not name.startswith("_"):
                names.add(name)
    return names - NO_METRICS


def markdown_table() -> str:
    """Return the zoo as a table in Markdown."""
    lines = ["| metric | on several processes |", "| --- | --- |"]
    for name, row in sorted(ZOO.items(), key=lambda item: item[0].lower()):
        needs = f" (needs {', '.join(row.needs)})" if row.needs else ""
        lines.append(f"| `{name}`{needs} | {row.how} |")
    return "\n".join(lines)


def split_page(page: str) -> tuple[str, str, str]:
    """Return what stands before the table, the table, and what stands after it."""
    before, _, rest = page.partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table.strip("\n"), after


# -- a virtual world ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quiet_and_repeatable() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn and SciPy, about so little data
        torch.manual_seed(7)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for tensors this small, more only wait for one another
        yield
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the two functions of torchvision that Ignite's detection metrics call."""
    if importlib.util.find_spec("torchvision") is not None:
        return

    def box_area(boxes: Tensor) -> Tensor:
        return (boxes[:, 2:] - boxes[:, :2]).prod(1)

    def _box_inter_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.maximum(a[:, None, :2], b[None, :, :2])
        high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
        inter = (high - low).clamp(min=0).prod(2)
        return inter, box_area(a)[:, None] + box_area(b)[None] - inter

    module = SimpleNamespace(box_area=box_area, _box_inter_union=_box_inter_union)
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes"):
        monkeypatch.setitem(sys.modules, name, module)


def on_one(make: Callable[[], Metric], batches: Sequence[Any]) -> Any:
    metric = make()
    for batch in batches:
        metric.update(batch)
    return metric.compute()


over = over_ranks


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value, key=str) for number in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in flat(item)]
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1).tolist()


def assert_exact(found: Any, expected: Any, how: str) -> None:
    if how in (ENTROPIES, MOMENTS):
        assert flat(found) == pytest.approx(flat(expected), rel=0, abs=1e-5, nan_ok=True)
    elif how == ROUNDING:
        assert flat(found) == pytest.approx(flat(expected), rel=1e-6, abs=1e-12, nan_ok=True)
    else:
        assert type(found) is type(expected)
        assert same(found, expected), f"{found} is not {expected}"


KEPT = {name: row for name, row in ZOO.items() if not row.how.startswith("refused")}


def row_or_skip(name: str) -> Row:
    row = ZOO[name]
    if name not in names_in_ignite():
        pytest.skip(f"this version of Ignite has no {name}")
    for package in row.needs:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs {package}")
    return row


@pytest.mark.parametrize("m", [0, 10, 100])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_a_correlation_loses_digits_as_the_table_says(m: int, noise: float) -> None:
    x = torch.randn(1000) + m
    batches = list(zip(x.split(32), (x + noise * torch.randn(1000)).split(32), strict=True))
    make = im.regression.PearsonCorrelation
    for world in WORLDS:
        difference = over(make, batches, world) - on_one(make, batches)
        assert abs(difference) <= 1e-5 * (1 + m * m)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_mutual_information_near_nothing_is_as_exact_as_the_table_says(scale: float) -> None:
    batches = [(scale * torch.randn(n, 100), torch.zeros(n)) for n in [32] * 30]
    for world in WORLDS:
        assert_exact(
            over(im.MutualInformation, batches, world),
            on_one(im.MutualInformation, batches),
            ENTROPIES,
        )


# -- the table ------------------------------------------------------------------------------------


def test_every_metric_of_ignite_stands_in_the_table() -> None:
    assert names_in_ignite() <= ZOO.keys()


@pytest.mark.parametrize("sizes", DATA, ids=str)
@pytest.mark.parametrize("name", KEPT)
def test_a_metric_gives_over_ranks_what_it_gives_on_one(name: str, sizes: Sequence[int]) -> None:
    row = row_or_skip(name)
    batches = [row.batch(n) for n in sizes]
    try:
        expected = on_one(row.make, batches)
    except NotComputableError:  # one batch holds one group of people only
        with pytest.raises(NotComputableError):
            over(row.make, batches, 2)
        return
    for world in WORLDS:
        assert_exact(over(row.make, batches, world), expected, row.how)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in KEPT])
def test_a_metric_is_refused_with_what_to_use_instead(name: str) -> None:
    row = row_or_skip(name)
    with pytest.raises(EvaluationError, match=rf"the metric 'x' cannot .*{name} .*; "):
        check_exact("x", row.make())


@pytest.mark.parametrize("name", KEPT)
def test_a_metric_that_is_exact_is_not_refused(name: str) -> None:
    check_exact("x", row_or_skip(name).make(), Events.EPOCH_COMPLETED)


def test_the_page_shows_this_table() -> None:
    _, table, _ = split_page(PAGE.read_text(encoding="utf-8"))
    assert table == markdown_table()


# -- averages, and other ways to be updated -------------------------------------------------------


@pytest.mark.parametrize("average", [False, "macro", "micro", "weighted", "samples"])
@pytest.mark.parametrize("metric", [im.Precision, im.Recall])
def test_each_average_is_exact(metric: Any, average: Any) -> None:
    multi = average == "samples"
    batches = [(multilabel if multi else multiclass)(n) for n in DATA[1]]
    make = lambda: metric(average=average, is_multilabel=multi)  # noqa: E731
    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), ROUNDING)


def test_lists_of_a_part_that_some_ranks_never_update_are_exact() -> None:
    if not hasattr(im, "fairness"):
        pytest.skip("this version of Ignite has no metrics of fairness")
    batches = [groups(n) for n in DATA[1]]
    make = lambda: im.fairness.SubgroupMetric(im.MeanAveragePrecision(), [0, 1])  # noqa: E731
    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), BITS)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_both_averages_of_bleu_are_exact(average: str) -> None:
    batches = [sentences(n) for n in DATA[1]]
    make = lambda: im.Bleu(smooth="smooth1", average=average)  # noqa: E731
    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), ROUNDING)


def test_arithmetic_of_metrics_is_exact() -> None:
    batches = [multiclass(n) for n in DATA[0]]

    def make() -> Metric:
        precision, recall = im.Precision(average=False), im.Recall(average=False)
        return (2 * precision * recall / (precision + recall)).mean()

    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), BITS)


def test_kappa_over_known_classes_is_exact() -> None:
    if "num_classes" not in inspect.signature(im.CohenKappa).parameters:
        pytest.skip("this version of Ignite has no CohenKappa of known classes")
    batches = [binary(n) for n in DATA[0]]
    make = lambda: im.CohenKappa(num_classes=2)  # noqa: E731
    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), BITS)


def test_several_updates_a_batch_stay_in_the_order_of_the_dataset() -> None:
    class InOrder(im.EpochMetric):
        def update(self, output: Any) -> None:  # one update a sample, as after unrolling
            for y_pred, y in zip(*output, strict=True):
                super().update((y_pred.reshape(1), y.reshape(1)))

    batches = [numbers(n) for n in DATA[1]]
    make = lambda: InOrder(lambda p, _: p.tolist(), check_compute_fn=False)  # noqa: E731
    for world in WORLDS:
        assert over(make, batches, world) == torch.cat([p for p, _ in batches]).tolist()


def test_a_list_that_begins_with_the_first_update_is_in_order_too() -> None:
    class Late(Metric):
        def reset(self) -> None:
            vars(self).pop("_late", None)

        def update(self, output: Any) -> None:
            vars(self).setdefault("_late", []).extend(output.tolist())

        def compute(self) -> Any:
            return [item for part in idist.all_gather(tuple(self._late)) for item in part]

    batches = [torch.rand(n) for n in DATA[1]]
    for world in WORLDS:
        assert over(Late, batches, world) == torch.cat(batches).tolist()


def test_what_a_list_begins_with_stays_on_its_rank() -> None:
    lists = [["first", "a", "d", "e"], ["first"], ["first", "b", "c"]]
    dealt = in_dataset_order(lists, [[1, 2, 4], [1], [1, 3]], [[0, 2], [], [1]])
    assert dealt == [["first", "a", "b", "c"], ["first"], ["first", "d", "e"]]
    assert in_dataset_order([["a"]], [[0, 2]], [[0]]) is None  # it shrank


def test_a_list_that_is_configuration_is_not_dealt_out() -> None:
    class Weighted(Reducing):
        def __init__(self) -> None:
            self.weights = [torch.tensor(2.0), torch.tensor(3.0)]
            super().__init__()

        @sync_all_reduce("_sum", "_count")
        def compute(self) -> Any:
            return self.weights[0].item() * self._sum + self.weights[1].item()

    batches = [torch.ones(2)] * 4  # two updates a rank, as there are weights
    assert over(Weighted, batches, 2) == 19.0


def test_predictions_of_all_ranks_are_computed_from_once() -> None:
    calls = []

    def counted(y_pred: Tensor, y: Tensor) -> float:
        calls.append(len(y))
        return squared(y_pred, y)

    batches = [numbers(n) for n in DATA[1]]
    over(lambda: im.EpochMetric(counted, check_compute_fn=False), batches, 3)
    assert calls == [sum(DATA[1])]


def test_a_metric_of_predictions_with_its_own_way_to_compute_is_exact() -> None:
    class Alone(im.EpochMetric):
        def compute(self) -> Any:
            return self.compute_fn(torch.cat(self._predictions), torch.cat(self._targets))

    batches = [numbers(n) for n in DATA[1]]
    make = lambda: Alone(squared, check_compute_fn=False)  # noqa: E731
    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), BITS)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=9))
def test_however_batches_are_dealt_out_the_value_is_the_same(dealt: list[tuple[int, int]]) -> None:
    batches = [(torch.rand(n), torch.rand(n)) for n, _ in dealt]
    where = [[at for at, (_, rank) in enumerate(dealt) if rank == r] for r in range(4)]
    for make, expected in (
        (lambda: im.EpochMetric(squared, check_compute_fn=False), BITS),
        (lambda: im.EpochMetric(lambda p, _: p.tolist(), check_compute_fn=False), BITS),
        (lambda: im.MeanSquaredError(), ROUNDING),
        (lambda: im.regression.MaximumAbsoluteError(), BITS),
        (Mixed, BITS),
    ):
        found = over(make, batches, 4, dealt=where)
        assert_exact(found, on_one(make, batches), expected)


class Mixed(Metric):
    """Keeps lists, and counts beside them."""

    def reset(self) -> None:
        self._rows: list[Tensor] = []
        self._count = 0

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        self._rows.append(output[0])
        self._count += len(output[1])

    @sync_all_reduce("_count")
    def compute(self) -> Any:
        return idist.all_gather(torch.cat(self._rows)).tolist(), self._count


# -- metrics of users -----------------------------------------------------------------------------


class Own(Metric):
    """A metric of a user's, as most look."""

    def reset(self) -> None:
        self._sum = 0.0
        self._count = 0

    def update(self, output: Any) -> None:
        self._sum += float(output.sum())
        self._count += len(output)

    def compute(self) -> Any:
        return self._sum / self._count


class Reducing(Own):
    @sync_all_reduce("_sum", "_count")
    def compute(self) -> Any:
        return self._sum / self._count


class HalfReducing(Own):
    @sync_all_reduce("_sum")
    def compute(self) -> Any:
        return self._sum / self._count


class InPlace(Own):
    def reset(self) -> None:
        self._total = torch.zeros(2, dtype=torch.float64)

    def update(self, output: Any) -> None:
        self._total += torch.tensor([output.sum(), len(output)])

    def compute(self) -> Any:
        idist.all_reduce(self._total)  # its return value is not looked at
        return (self._total[0] / self._total[1]).item()


class Gathering(Own):
    def reset(self) -> None:
        self._counts: Counter[str] = Counter()
        self._by_kind: dict[int, list[float]] = defaultdict(list)
        self._last: deque[float] = deque(maxlen=100)
        self._seen: set[int] = set()

    def update(self, output: Any) -> None:
        for value in output.mul(10).long().tolist():
            self._counts[str(value)] += 1
            self._by_kind[value].append(1.0)
            self._last.append(value)
            self._seen.add(value)

    def compute(self) -> Any:
        counts: Counter[str] = Counter()
        for part in idist.all_gather(dict(self._counts)):
            counts.update(part)
        seen = set().union(*idist.all_gather(self._seen))
        sizes = idist.all_gather(float(sum(map(len, self._by_kind.values()))))
        names = idist.all_gather("ab")
        longest = idist.broadcast(max(map(len, names)) * 1.1, src=0)
        assert self._last.maxlen == 100
        assert self._by_kind[99] == []
        return dict(sorted(counts.items())), sorted(seen), sum(sizes), longest


Pair = namedtuple("Pair", ["sum", "count"])


class Meter:
    def __init__(self) -> None:
        self.pair = Pair(0.0, 0)
        self.owner: Any = None

    def add(self, output: Any) -> None:
        self.pair = Pair(self.pair.sum + float(output.sum()), self.pair.count + len(output))


class WithHelper(Own):
    """Keeps its state in an object, with a way back, and calls itself through a bound method."""

    def reset(self) -> None:
        self._meter = Meter()
        self._meter.owner = self
        self._how = self._ratio

    def update(self, output: Any) -> None:
        self._meter.add(output)

    def _ratio(self) -> Any:
        total = idist.all_reduce(self._meter.owner._meter.pair.sum)
        return total / idist.all_reduce(self._meter.pair.count)

    def compute(self) -> Any:
        return self._how()


def np_pair(output: Tensor) -> Any:
    return pytest.importorskip("numpy").array([float(output.sum()), len(output)])


class WithNumPy(Own):
    def reset(self) -> None:
        np = pytest.importorskip("numpy")
        self._total = np.zeros(2)
        self._last = np.float64(0.0)

    def update(self, output: Any) -> None:
        self._total = self._total + np_pair(output)
        self._last = max(self._last, output.max().double().numpy())

    def compute(self) -> Any:
        parts = idist.all_gather(self._total.tolist())
        last = idist.all_reduce(float(self._last), op="MAX")
        return sum(p[0] for p in parts) / sum(p[1] for p in parts), last


OWN = [Reducing, InPlace, Gathering, WithHelper, WithNumPy]


@pytest.mark.parametrize("make", OWN)
def test_a_metric_of_a_users_that_reduces_is_exact(make: Callable[[], Metric]) -> None:
    batches = [torch.rand(n) for n in DATA[1]]
    check_exact("mine", make())
    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), ROUNDING)


def test_a_metric_that_never_reduces_is_refused_by_name() -> None:
    batches = [torch.rand(n) for n in DATA[1]]
    words = r"the metric 'mine' \(Own\) cannot .* it never asks the other ranks .*@sync_all_reduce"
    with pytest.raises(EvaluationError, match=words):
        over(Own, batches, 2, name="mine")
    assert_exact(over(Own, batches, 1), on_one(Own, batches), BITS)
    assert_exact(over(Own, batches[:1], 3), on_one(Own, batches[:1]), BITS)


def test_a_metric_that_reduces_a_part_of_what_it_counts_is_refused() -> None:
    with pytest.raises(
        EvaluationError, match=r"its ranks get different values, such as .* not reduced"
    ):
        over(HalfReducing, [torch.rand(n) for n in DATA[1]], 2)


class Helping:
    """A helper that might do the reducing."""

    def ratio(self, a: Any, b: Any) -> Any:
        return idist.all_reduce(a) / idist.all_reduce(b)


def through_a_function(a: Any, b: Any) -> Any:
    return idist.all_reduce(a) / idist.all_reduce(b)


def test_a_metric_that_reduces_through_a_function_or_helper_is_not_refused() -> None:
    class ThroughFunction(Own):
        def compute(self) -> Any:
            return through_a_function(self._sum, self._count)

    class ThroughHelper(Own):
        def __init__(self) -> None:
            self._helping = Helping()
            super().__init__()

        def compute(self) -> Any:
            return self._helping.ratio(self._sum, self._count)

    batches = [torch.rand(n) for n in DATA[0]]
    for make in (ThroughFunction, ThroughHelper):
        check_exact("mine", make())
        assert_exact(over(make, batches, 3), on_one(make, batches), ROUNDING)


def test_a_metric_that_reduces_over_some_ranks_is_refused() -> None:
    class Grouped(Own):
        def compute(self) -> Any:
            return idist.all_reduce(self._sum, group=[0, 1])

    with pytest.raises(EvaluationError, match=r"it calls idist.all_reduce\(group=...\)"):
        over(Grouped, [torch.rand(2), torch.rand(2)], 2)


def test_ranks_that_ask_different_things_are_refused() -> None:
    class Different(Own):
        def compute(self) -> Any:
            ask = idist.all_reduce if idist.get_rank() == 0 else idist.all_gather
            return ask(self._sum)

    class Some(Own):
        def compute(self) -> Any:
            return idist.all_reduce(self._sum) if idist.get_rank() == 0 else 1.0

    class Shapes(Own):
        def compute(self) -> Any:
            return idist.all_reduce(torch.zeros(idist.get_rank() + 2))

    batches = [torch.rand(2), torch.rand(2)]
    with pytest.raises(EvaluationError, match="ask different things at the same place"):
        over(Different, batches, 2)
    with pytest.raises(EvaluationError, match=r"some ranks call idist.all_reduce and others"):
        over(Some, batches, 2)
    with pytest.raises(EvaluationError, match="cannot all_reduce their values"):
        over(Shapes, batches, 2)


def test_a_metric_that_catches_everything_is_refused() -> None:
    class Catching(Own):
        def compute(self) -> Any:
            try:
                return idist.all_reduce(self._sum)
            except BaseException:  # noqa: BLE001
                return 0.0

    with pytest.raises(EvaluationError, match="it catches BaseException"):
        over(Catching, [torch.rand(2), torch.rand(2)], 2)


def test_objects_in_a_growing_list_are_refused_by_class() -> None:
    class Keeping(Own):
        def reset(self) -> None:
            self._kept: list[Any] = []

        def update(self, output: Any) -> None:
            self._kept.append(lambda: output)

        def compute(self) -> Any:
            return idist.all_reduce(len(self._kept))

    with pytest.raises(EvaluationError, match=r"\(Keeping\) keeps objects of the class .*function"):
        over(Keeping, [torch.rand(2)] * 3, 2)


def test_metrics_made_of_different_metrics_are_refused() -> None:
    metrics = [
        im.MetricGroup({"a": im.Accuracy()}),
        im.MetricGroup({"a": im.Accuracy(), "b": im.Recall()}),
    ]
    with pytest.raises(
        EvaluationError,
        match=r"made of Accuracy, MetricGroup on rank 0 and of .*Recall.* on rank 1",
    ):
        value_over(metrics, [multiclass(3), multiclass(3)])


def test_random_numbers_drawn_while_computing_are_the_same_on_all_ranks() -> None:
    class Sampling(Own):
        @sync_all_reduce("_sum", "_count")
        def compute(self) -> Any:
            return self._sum / self._count + torch.rand(()).item() + random.random()

    batches = [torch.rand(n).round() for n in DATA[0]]
    torch.manual_seed(1), random.seed(1)
    expected, after = on_one(Sampling, batches), (torch.rand(()), random.random())
    torch.manual_seed(1), random.seed(1)
    assert over(Sampling, batches, 3) == expected
    assert (torch.rand(()), random.random()) == after


def test_what_a_computation_does_to_its_answers_stays_with_it() -> None:
    class Changing(Own):
        def compute(self) -> Any:
            parts = idist.all_gather({"sum": self._sum})
            for part in parts[1:]:
                parts[0]["sum"] += part["sum"]
            counts = idist.all_gather(torch.tensor([float(self._count)]))
            counts[0] = counts.sum()
            once_more = idist.all_reduce(self._count)
            return parts[0]["sum"] / counts[0].item(), once_more

    batches = [torch.rand(n) for n in DATA[1]]
    for world in WORLDS:
        assert_exact(over(Changing, batches, world), on_one(Changing, batches), ROUNDING)


def test_what_a_composed_metric_does_to_a_value_stays_with_it() -> None:
    def change(a: Tensor, b: Tensor) -> Tensor:
        return a.add_(1) + b

    def make() -> Metric:
        recall = im.Recall(average=False)
        return MetricsLambda(change, recall, recall)

    batches = [multiclass(n) for n in DATA[0]]
    for world in WORLDS:
        assert_exact(over(make, batches, world), on_one(make, batches), BITS)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1.0, 1, True),
        (float("nan"), float("nan"), True),
        (float("nan"), 1.0, False),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0]), False),
        (torch.tensor([1.0]), torch.tensor([1]), False),
        (torch.tensor(1.0), 1.0, False),
        ({"a": [1, "b"]}, {"a": [1, "b"]}, True),
        ({"a": 1}, {"b": 1}, False),
        ([1], [1, 2], False),
        (None, 1.0, False),
        (None, None, True),
        (object(), object(), True),
        (object(), 1.0, False),
    ],
)
def test_results_are_compared_by_value(left: Any, right: Any, expected: bool) -> None:
    assert same(left, right) is expected


@pytest.mark.parametrize(
    ("values", "op", "expected"),
    [
        ([1e16, 1.0, -1e16], "SUM", 1.0),
        ([2**62, 2**62], "SUM", 2**63),
        ([True, True, False], "SUM", 2),
        ([3, 4.5], "PRODUCT", 13.5),
        ([3, 4.5, -1], "MIN", -1),
        ([3, 4.5, -1], "MAX", 4.5),
        ([6, 3], "AND", 2),
        ([6, 3], "OR", 7),
        ([torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])], "SUM", [1.0]),
        ([torch.tensor([200], dtype=torch.uint8)] * 2, "SUM", [144]),  # as it wraps on one
        ([0, torch.tensor([1, 2])], "SUM", [1, 2]),
        ([torch.tensor(0.0), torch.tensor([1.0, 2.0])], "SUM", [1.0, 2.0]),
        ([torch.tensor([1 + 2j]), torch.tensor([1j])], "SUM", [1 + 3j]),
        ([torch.tensor([1, 5]), torch.tensor([3, 2])], "MIN", [1, 2]),
        ([torch.tensor([1, 5]), torch.tensor([3, 2])], "MAX", [3, 5]),
        ([torch.tensor([6]), torch.tensor([3])], "AND", [2]),
    ],
)
def test_a_reduction_is_exact(values: list[Any], op: str, expected: Any) -> None:
    found = reduced(values, op)
    tensors = [value for value in values if isinstance(value, Tensor)]
    assert (found.tolist() if tensors else found) == expected
    assert not tensors or found.dtype == tensors[0].dtype


def test_a_broadcast_is_not_rounded_and_may_come_from_any_rank() -> None:
    class Telling(Own):
        def compute(self) -> Any:
            last = idist.get_world_size() - 1
            mine = 1 / 3 if idist.get_rank() == last else None
            text = "é" if idist.get_rank() == 0 else ""
            where = idist.broadcast(Path("p") if idist.get_rank() == 0 else None, safe_mode=True)
            return idist.broadcast(mine, src=last, safe_mode=True), idist.broadcast(text), where

    batches = [torch.rand(2)] * 3
    for world in WORLDS:
        assert over(Telling, batches, world) == (1 / 3, "é", Path("p"))

    class Silent(Own):
        def compute(self) -> Any:
            return idist.broadcast(None, safe_mode=True)

    with pytest.raises(ValueError, match="Source data can not be None"):
        over(Silent, batches, 2)


def test_a_rank_is_left_out_with_all_it_has_said() -> None:
    class Saying(Own):
        def update(self, output: Any) -> None:
            if len(output) > 2:
                super().update(output)

        def compute(self) -> Any:
            counts = idist.all_gather(self._count)
            if self._count == 0:
                raise NotComputableError("no sample")
            return min(counts), idist.all_reduce(self._count)

    assert over(Saying, [torch.rand(n) for n in (1, 4, 3)], 3) == (3, 7)


def test_ranks_without_anything_to_compute_from_are_left_out() -> None:
    class Filtering(Own):
        """Sees no sample on most ranks, and says so before it reduces."""

        def update(self, output: Any) -> None:
            if len(output) == 5:
                super().update(output)

        def compute(self) -> Any:
            if self._count == 0:
                raise NotComputableError("no sample")
            return idist.all_reduce(self._sum) / idist.all_reduce(self._count)

    batches = [torch.rand(n) for n in DATA[1]]
    for world in WORLDS:
        assert_exact(over(Filtering, batches, world), on_one(Filtering, batches), BITS)
    with pytest.raises(NotComputableError, match="no sample"):
        over(Filtering, batches[:1] * 3, 3)


class Colour(Enum):
    RED = "red"


KINDS: list[Any] = [
    None, True, 3, 2.5, "é", b"ab", 2 + 1j, Fraction(1, 3), Decimal("0.1"), range(3), Colour.RED,
    torch.Size([2, 3]), date(2020, 1, 2), (1, [2, {"a": 3}]), {1: "a", (2, 3): "b"}, {"@": 1},
    OrderedDict(b=1, a=2), Counter("aab"), {1, 2}, frozenset({3}), deque([1, 2], maxlen=2),
    Pair(1.0, 2),
]  # fmt: skip


def test_values_of_each_kind_arrive_as_they_are() -> None:
    np = pytest.importorskip("numpy")
    arrays = [
        np.arange(6).reshape(2, 3)[:, ::-1], np.array(["a", "b"]), np.float32(0.1), np.array(2.0),
        np.zeros((0, 2)), np.array([True, False]), np.arange(3, dtype=">i4"),
    ]  # fmt: skip
    held = [*KINDS, {"nested": tuple(KINDS)}]

    class Holding(Own):
        def compute(self) -> Any:
            *_, (found, theirs) = idist.all_gather((held, arrays))
            assert found == held
            assert list(map(type, found)) == list(map(type, held))
            assert found[20].maxlen == 2
            for mine, own in zip(theirs, arrays, strict=True):
                assert type(mine) is type(own)
                assert np.array_equal(mine, own)
            return len(found)

    assert over(Holding, [torch.ones(1)] * 3, 3) == len(held)


def test_objects_that_only_another_rank_has_stay_there() -> None:
    class Row:
        def __init__(self) -> None:
            self.value = 1

    class Rows(Own):
        def update(self, output: Any) -> None:
            self.rows = tuple(Row() for _ in range(int(output)))

        def compute(self) -> Any:
            return idist.all_reduce(sum(row.value for row in self.rows))

    assert over(Rows, [2, 1, 3], 3) == 6
    assert over(Rows, [0, 1], 2) == 1


def test_an_error_names_the_metric_as_it_was_attached() -> None:
    words = r"^Own in the metric 'mine' \(MetricGroup\) cannot .* never asks"
    with pytest.raises(EvaluationError, match=words):
        over(lambda: im.MetricGroup({"a": Own()}), [torch.rand(2)] * 2, 2, name="mine")


def test_an_object_that_is_configuration_stays_where_it_is() -> None:
    class Data(torch.utils.data.Dataset[int]):
        def __init__(self) -> None:
            self.items = torch.ones(3)

    class Tuned(Reducing):
        def __init__(self) -> None:
            self.data, self.engine = Data(), Engine(lambda engine, batch: batch)
            self.loss, self.path = torch.nn.Linear(2, 2), Path("x")
            self.known = (self.data, self.engine, self.loss, self.path)
            super().__init__()

        @sync_all_reduce("_sum", "_count")
        def compute(self) -> Any:
            assert (self.data, self.engine, self.loss, self.path) == self.known
            return self._sum / self._count

    assert over(Tuned, [torch.ones(2)] * 2, 2) == 1.0


# -- nothing is touched ---------------------------------------------------------------------------


def picture(metric: Metric) -> Any:
    """Return what is in a metric, and which objects these are."""
    return {
        name: (id(value), value.clone() if isinstance(value, Tensor) else repr(value))
        for name, value in vars(metric).items()
        if name != "update"  # stands there until the first update
    }


def assert_untouched(make: Callable[[], Metric], batches: Sequence[Any], error: Any) -> None:
    metrics = [make(), make()]
    known = type(ignite_distributed._model), ignite_distributed._need_to_sync
    every = [inner for metric in metrics for inner in inner_metrics(metric)]
    before: list[Any] = []

    def ask() -> None:
        value_over(metrics, batches, updated=lambda: before.extend(map(picture, every)))

    if error is None:
        ask()
    else:
        with pytest.raises(error):
            ask()
    assert (type(ignite_distributed._model), ignite_distributed._need_to_sync) == known
    assert all(map(same, before, map(picture, every)))


@pytest.mark.parametrize("name", KEPT)
def test_asking_touches_neither_the_metric_nor_ignite(name: str) -> None:
    row = row_or_skip(name)
    try:
        assert_untouched(row.make, [row.batch(n) for n in DATA[1]], None)
    except NotComputableError:
        pytest.skip("not computable on this data")


@pytest.mark.parametrize("make", [*OWN, Own, HalfReducing])
def test_asking_touches_no_metric_of_a_users(make: Callable[[], Metric]) -> None:
    error = EvaluationError if make in (Own, HalfReducing) else None
    assert_untouched(make, [torch.rand(n) for n in DATA[1]], error)


def test_an_exception_while_computing_touches_nothing_either() -> None:
    class Failing(Own):
        @sync_all_reduce("_sum", "_count")
        def compute(self) -> Any:
            self._sum = -1.0
            raise ZeroDivisionError("on purpose")

    class Inside(Own):
        def __init__(self) -> None:
            self._inner = Failing()
            super().__init__()

        def reset(self) -> None:
            self._inner.reset()

        def update(self, output: Any) -> None:
            self._inner.update(output)

        def compute(self) -> Any:
            return self._inner.compute()

    batches = [torch.rand(n) for n in DATA[1]]
    assert_untouched(Failing, batches, ZeroDivisionError)
    assert_untouched(Inside, batches, ZeroDivisionError)


# -- how a metric is attached ---------------------------------------------------------------------


def evaluator_with(metric: Metric, usage: Any) -> Engine:
    engine = Engine(lambda engine, batch: batch)
    metric.attach(engine, "x", usage=usage)
    return engine


def test_a_metric_attached_as_usual_is_not_refused() -> None:
    for metric in (im.Accuracy(), im.Precision(average=False).mean()):
        check_exact("x", metric, evaluator=evaluator_with(metric, "epoch_wise"))


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ("batch_wise", "computed at every iteration"),
        ("running_batch_wise", "computed at every iteration"),
        ("single_epoch_running_batch_wise", "computed at every iteration"),
        ("running_epoch_wise", "with the last output of the epoch"),
        (im.BatchFiltered(every=2), "at some iterations only"),
    ],
)
def test_a_metric_with_another_usage_is_refused(usage: Any, words: str) -> None:
    metric = im.Accuracy()
    with pytest.raises(EvaluationError, match=f"the metric 'x' cannot .*Accuracy is .*{words}"):
        check_exact("x", metric, evaluator=evaluator_with(metric, usage))


def test_a_part_that_is_updated_at_some_iterations_only_is_refused() -> None:
    metric = im.Precision() * 2
    engine = evaluator_with(metric, im.BatchFiltered(every=2))
    with pytest.raises(EvaluationError, match="Precision, which is part of MetricsLambda, is"):
        check_exact("x", metric, evaluator=engine)


def test_the_event_alone_tells_that_it_is_computed_at_every_iteration() -> None:
    with pytest.raises(EvaluationError, match="computed at every iteration"):
        check_exact("x", im.Accuracy(), Events.ITERATION_COMPLETED)


def test_a_running_average_inside_another_metric_is_refused() -> None:
    inside = MetricsLambda(lambda x: x, im.RunningAverage(im.Accuracy()))
    with pytest.raises(EvaluationError, match="RunningAverage, which is part of MetricsLambda,"):
        check_exact("x", inside)


# -- no collectives -------------------------------------------------------------------------------


class TwoRanks:
    """A model of two ranks; whoever asks the other one gets an AttributeError."""

    name = "two"

    def get_rank(self) -> int:
        return 1

    get_local_rank = get_node_rank = get_rank

    def get_world_size(self) -> int:
        return 2

    get_nproc_per_node = get_nnodes = get_world_size

    def device(self) -> torch.device:
        return torch.device("cpu")

    def backend(self) -> str:
        return "gloo"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> TwoRanks:
    model = TwoRanks()
    monkeypatch.setattr(ignite_distributed, "_model", model)
    return model


COLLECTIVES: list[tuple[str, Callable[[], Any]]] = [
    ("all_reduce", lambda: idist.all_reduce(1.0)),
    ("all_gather", lambda: idist.all_gather(torch.ones(1))),
    ("broadcast", lambda: idist.broadcast(1.0)),
    ("barrier", lambda: idist.barrier()),
    ("new_group", lambda: idist.new_group([0])),
]


@pytest.mark.parametrize(("name", "call"), COLLECTIVES)
def test_a_collective_is_refused_while_batches_are_evaluated(
    two: Any, name: str, call: Callable[[], Any]
) -> None:
    with no_collectives(), pytest.raises(EvaluationError, match=f"^idist.{name} was called while"):
        call()
    with no_collectives("now; no."), pytest.raises(EvaluationError, match=f"{name} was called now"):
        call()
    assert ignite_distributed._model is two


def test_what_is_no_collective_is_answered_as_before(two: Any) -> None:
    def told() -> list[Any]:
        return [
            idist.get_rank(), idist.get_local_rank(), idist.get_world_size(), idist.device(),
            idist.backend(), idist.model_name(), idist.get_nnodes(), idist.get_node_rank(),
            idist.get_nproc_per_node(),
        ]  # fmt: skip

    before = told()
    with no_collectives():
        assert told() == before
    assert before[:3] == [1, 1, 2]


def test_on_one_process_nothing_is_refused() -> None:
    with no_collectives():
        assert idist.all_reduce(2.0) == 2.0


if __name__ == "__main__":
    first, _, last = split_page(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{first}{BEGIN}\n{markdown_table()}\n{END}{last}", encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {len(ZOO)} metrics\n")
