"""Models and datasets of MMCV 1.x: create_mmcv_evaluator, and dataset.evaluate behind it.

The datasets here evaluate as those of six projects do, and return what is odd about theirs.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.metrics import Average
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, default_collate

from helpers.private import create_mmcv_evaluator
from helpers.ranks import on_ranks
from ignite_evalhook import DistEvalHook, EvalHook, EvaluationError, ValLoss

SIZE, CLASSES = 10, 5


class Log:
    """What outlives an evaluation: a list of the model's own would be put back."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []


class Model(nn.Module):
    """Is right about the first ``quality`` of the samples, and returns results as a project does.

    Sample i is ``{"img": [i, label], "img_metas": {"index": i}, "label": i % CLASSES}``.
    """

    def __init__(self, shape: Callable[[Tensor, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.quality = nn.Parameter(torch.tensor(1.0))
        self.shape = shape
        self.log = Log()

    @property
    def calls(self) -> list[dict[str, Any]]:
        return self.log.calls

    def forward(
        self, img: Tensor, img_metas: Any = None, return_loss: bool = True, **kwargs: Any
    ) -> Any:
        self.calls.append({"return_loss": return_loss, "training": self.training, **kwargs})
        index, label = img[:, 0], img[:, 1].long()
        right = index < self.quality * SIZE
        if return_loss:
            loss = torch.where(right, 0.0, 1.0 + index)
            accuracy = {"top-1": right.float().mean()}
            return {"loss_cls": loss.mean(), "loss_box": [index.mean()], "accuracy": accuracy}
        predicted = torch.where(right, label, (label + 1) % CLASSES)
        return list(predicted.numpy()) if self.shape is None else self.shape(index, predicted)


class Samples(Dataset[Any]):
    """Ten of those samples; ``evaluate`` keeps what it was given."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.calls: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = index % CLASSES
        metas = {"index": index, "image_file": f"{index}.jpg"}
        return {"img": torch.tensor([index, label]).float(), "img_metas": metas, "label": label}

    def rate(self, predicted: Sequence[Any]) -> float:
        assert len(predicted) == len(self)
        return sum(int(p) == i % CLASSES for i, p in enumerate(predicted)) / len(predicted)

    def note(self, logger: Any, **given: Any) -> None:
        self.calls.append({"logger": isinstance(logger, logging.Logger), **given})


class Plain(Samples):
    def evaluate(self, results: list[Any], logger: Any = None) -> dict[str, Any]:
        self.note(logger, results=[int(r) for r in results])
        return {"acc": self.rate(results)}


class ClsLike(Samples):
    """Stacks all results; one value of the results is an array."""

    def evaluate(
        self, results: list[Any], metric: Any = "", metric_options: Any = None,
        indices: Any = None, logger: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        self.note(logger, metric=metric, metric_options=metric_options)
        stacked = np.vstack(results)
        assert stacked.shape == (len(self), CLASSES)
        predicted = stacked.argmax(axis=1)
        support = np.bincount(predicted, minlength=CLASSES)
        return {"accuracy_top-1": np.float64(100 * self.rate(predicted)), "support": support}


class DetLike(Samples):
    """Rounds, puts -1 for what there is none of, returns a string, and nothing for nothing."""

    def evaluate(
        self, results: list[Any], metric: Any = "bbox", logger: Any = None, classwise: bool = False
    ) -> dict[str, Any]:
        self.note(logger, metric=metric, classwise=classwise)
        assert all(len(image) == CLASSES for image in results)  # one array a class
        found = [[len(boxes) for boxes in image] for image in results]
        if not any(map(any, found)):
            return {}
        rate = self.rate([np.argmax(image) if any(image) else -1 for image in found])
        values: dict[str, Any] = OrderedDict(bbox_mAP=float(f"{rate:.3f}"), bbox_mAP_s=-1.0)
        values["bbox_mAP_copypaste"] = f"{rate:.3f} -1.000"
        return values


class Det3dLike(Samples):
    """Has slashes in the names, and is given a pipeline."""

    def evaluate(
        self, results: list[Any], metric: Any = None, logger: Any = None, pipeline: Any = None
    ) -> dict[str, Any]:
        self.note(logger, metric=metric, pipeline=type(pipeline).__name__)
        rate = self.rate([int(image["labels_3d"][0]) for image in results])
        assert [image["boxes_3d"].shape for image in results] == [(i + 1, 7) for i in range(SIZE)]
        return {"KITTI/Car_3D_moderate_strict": rate, "pts_bbox_NuScenes/mATE": 1 - rate}


class ActionLike(Samples):
    """Takes ``metrics``, in the plural, and options for each."""

    def evaluate(
        self, results: list[Any], metrics: Any = "", metric_options: Any = None,
        logger: Any = None, **deprecated: Any,
    ) -> dict[str, Any]:  # fmt: skip
        self.note(logger, metrics=metrics, metric_options=metric_options, **deprecated)
        assert len(results) == len(self)
        assert all(isinstance(scores, np.ndarray) for scores in results)
        top = {k: [i % CLASSES in np.argsort(s)[-k:] for i, s in enumerate(results)]
               for k in metric_options["top_k_accuracy"]["topk"]}  # fmt: skip
        return {f"top{k}_acc": float(np.mean(hits)) for k, hits in top.items()}


class SegLike(Samples):
    """Reduces each image to four histograms; its results are tuples of these."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(size)
        self.seen: list[list[int]] = []

    def pre_eval(self, results: list[Any], indices: list[int]) -> list[tuple[Tensor, ...]]:
        assert len(results) == len(indices)
        self.seen.append(list(indices))
        return [self.histograms(int(p), i % CLASSES) for p, i in zip(results, indices, strict=True)]

    @staticmethod
    def histograms(predicted: int, label: int) -> tuple[Tensor, ...]:
        one = torch.eye(CLASSES, dtype=torch.float64)
        hit = one[label] * (predicted == label)
        return hit, one[predicted] + one[label] - hit, one[predicted], one[label]

    def evaluate(
        self, results: list[Any], metric: Any = "mIoU", logger: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        self.note(logger, metric=metric, **kwargs)
        assert all(isinstance(image, tuple) and len(image) == 4 for image in results)
        assert len(results) == len(self)
        hit, union, _, label = (sum(column) for column in zip(*results, strict=True))
        assert label.tolist() == [self.size / CLASSES] * CLASSES
        iou = hit / union
        return {"mIoU": float(iou.mean()), "aAcc": float(hit.sum() / label.sum()),
                **{f"IoU.class {i}": float(value) for i, value in enumerate(iou)}}  # fmt: skip


class PoseLike(Samples):
    """Goes through results that hold a batch each; leaves out boxes that come twice."""

    def evaluate(
        self, results: list[Any], res_folder: Any = None, metric: Any = "AP", logger: Any = None
    ) -> dict[str, Any]:
        self.note(logger, metric=metric, res_folder=res_folder)
        found: dict[int, int] = {}
        for result in results:
            assert result["output_heatmap"] is None
            for i in range(len(result["image_paths"])):
                assert result["image_paths"][i] == f"{result['bbox_ids'][i]}.jpg"
                assert result["boxes"][i][0] == result["bbox_ids"][i]
                assert result["preds"][i].shape == (4, 3)
                found[result["bbox_ids"][i]] = int(result["preds"][i][0, 0])
        rate = self.rate([found[i] for i in range(SIZE)])
        return {"AP": rate, "NME": 1 - rate, "Total AP": rate}


def scores(index: Tensor, predicted: Tensor) -> Any:
    return nn.functional.one_hot(predicted, CLASSES).numpy()


def boxes(index: Tensor, predicted: Tensor) -> Any:
    sure = predicted == index.long() % CLASSES  # detects nothing where it would be wrong
    return [[np.zeros((int(s and p == c), 5)) for c in range(CLASSES)]
            for p, s in zip(predicted, sure, strict=True)]  # fmt: skip


def boxes_3d(index: Tensor, predicted: Tensor) -> Any:
    return [{"boxes_3d": torch.zeros(int(i) + 1, 7), "labels_3d": p[None]}
            for i, p in zip(index, predicted, strict=True)]  # fmt: skip


def poses(index: Tensor, predicted: Tensor) -> Any:
    count = len(index)
    ids = [int(i) for i in index]
    preds = predicted.numpy()[:, None, None] * np.ones((1, 4, 3))
    corners = np.zeros((count, 6))
    corners[:, 0] = ids
    return {"preds": preds, "boxes": corners, "image_paths": [f"{i}.jpg" for i in ids],
            "bbox_ids": ids, "output_heatmap": None}  # fmt: skip


class Pipeline:
    """Stands for a list of transforms that ``dataset.evaluate`` would build."""


def rows_of(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate, and keep the metas a list."""
    batch = default_collate([{"img": s["img"], "label": s["label"]} for s in samples])
    return {**batch, "img_metas": [s["img_metas"] for s in samples]}


def loader_of(dataset: Dataset[Any], batch_size: int = 3, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size, collate_fn=rows_of, **options)


# -- six projects, one and two ranks --------------------------------------------------------------

# name: (dataset, shape of the results, what EvalHook is given, its followed metric)
PROJECTS: dict[str, tuple[type[Samples], Any, dict[str, Any], str]] = {
    "mmcls": (
        ClsLike,
        lambda i, p: list(scores(i, p)),
        {"metric": "accuracy", "metric_options": {"topk": (1, 5)}},
        "accuracy_top-1",
    ),
    "mmdet": (DetLike, boxes, {"metric": ["bbox"], "classwise": True}, "bbox_mAP"),
    "mmdet3d": (
        Det3dLike,
        boxes_3d,
        {"metric": "bbox", "pipeline": Pipeline()},
        "pts_bbox_NuScenes/mATE",
    ),
    "mmaction2": (
        ActionLike,
        scores,
        {
            "metrics": ["top_k_accuracy", "mean_class_accuracy"],
            "metric_options": {"top_k_accuracy": {"topk": (1, 5)}},
        },
        "top1_acc",
    ),
    "mmseg": (SegLike, None, {"metric": ["mIoU", "mDice"], "pre_eval": True}, "IoU.class 4"),
    "mmpose": (PoseLike, poses, {"metric": "NME", "res_folder": "here"}, "NME"),
}
QUALITIES = (0.0, 0.4, 0.9, 0.9, 0.5)  # so epoch 3 is the best, and 4 as good


def train(rank: int, project: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train for five epochs; return all that the hook has found, and what the dataset was given."""
    kind, shape, given, followed = PROJECTS[project]
    dataset, model = kind(), Model(shape)
    hook = DistEvalHook(
        loader_of(dataset),
        create_mmcv_evaluator(model, loss=True),
        save_best=followed,
        preset=project if project == "mmpose" else None,
        rule="less" if followed.endswith("mATE") else None,
        out_dir=folder,
        **given,
        **options,
    )

    def step(engine: Engine, batch: Any) -> None:
        model.quality.data.fill_(QUALITIES[engine.state.epoch - 1])

    trainer = Engine(step)
    hook.attach(trainer)
    trainer.run([0], max_epochs=len(QUALITIES))
    assert hook.best is not None
    model.quality.data.zero_()
    hook.load_best()
    return {
        "metrics": [record.metrics for record in hook.history],
        "samples": [record.samples for record in hook.history],
        "best": (hook.best.epoch, hook.best.score, Path(hook.best.path or "").name),
        "quality": round(model.quality.item(), 6),
        "calls": dataset.calls,
    }


@pytest.mark.parametrize("project", PROJECTS)
def test_datasets_of_six_projects_evaluate_on_two_ranks_as_on_one(
    project: str, tmp_path: Path
) -> None:
    alone = train(0, project, str(tmp_path / "1"), {})
    _, _, given, _ = PROJECTS[project]
    assert alone["best"][0] == 3
    assert alone["quality"] == 0.9
    assert (tmp_path / "1" / alone["best"][2]).is_file()
    assert alone["samples"] == [SIZE] * len(QUALITIES)
    # The loss weighs each sample the same: 1 + i for those that are wrong, which are the last.
    for quality, metrics in zip(QUALITIES, alone["metrics"], strict=True):
        wrong = [1.0 + i for i in range(SIZE) if i >= torch.tensor(quality) * SIZE]
        assert metrics["loss_cls"] == pytest.approx(sum(wrong) / SIZE, abs=1e-6)
        assert metrics["loss_box"] == 4.5
        assert metrics["val_loss"] == pytest.approx(metrics["loss_cls"] + 4.5, abs=1e-6)
    assert len(alone["calls"]) == len(QUALITIES)
    for call in alone["calls"]:
        assert call.pop("logger") is True
        expected = {k: v for k, v in given.items() if k != "pre_eval"}
        if "pipeline" in expected:
            expected["pipeline"] = "Pipeline"
        assert call == expected
    for way, options in {"connections": {}, "files": {"tmpdir": str(tmp_path / "shared")},
                         "devices": {"gpu_collect": True}}.items():  # fmt: skip
        ranks = on_ranks(2, train, project, str(tmp_path / way), options)
        assert [len(rank.pop("calls")) for rank in ranks] == [len(QUALITIES), 0]
        for rank in ranks:
            assert rank == {key: alone[key] for key in rank}, way


def test_what_is_odd_about_their_results_stays_in_the_record(tmp_path: Path) -> None:
    found = {name: train(0, name, str(tmp_path / name), {})["metrics"] for name in PROJECTS}
    assert found["mmcls"][2]["accuracy_top-1"] == 90.0
    assert found["mmcls"][2]["support"] == [3.0, 2.0, 2.0, 2.0, 1.0]
    assert "bbox_mAP" not in found["mmdet"][0]  # nothing was detected
    assert found["mmdet"][2]["bbox_mAP_copypaste"] == "0.900 -1.000"
    assert found["mmdet"][2]["bbox_mAP_s"] == -1.0
    assert found["mmdet3d"][2]["KITTI/Car_3D_moderate_strict"] == 0.9
    assert found["mmaction2"][2]["top5_acc"] == 1.0
    assert found["mmseg"][2]["IoU.class 4"] == 0.5
    assert found["mmseg"][0]["mIoU"] == 0.0
    assert found["mmpose"][2]["Total AP"] == 0.9


# -- how the model is called ----------------------------------------------------------------------


def evaluated(model: nn.Module, dataset: Samples | None = None, **options: Any) -> dict[str, Any]:
    """Evaluate once, and return the metrics."""
    dataset = Plain() if dataset is None else dataset
    hook = EvalHook(loader_of(dataset), create_mmcv_evaluator(model, **options))
    return dict(hook.evaluate().metrics)


def test_the_model_is_called_in_eval_mode_with_the_batch_and_all_further_keywords() -> None:
    model = Model()
    assert evaluated(model, rescale=True, mode="whole") == {"acc": 1.0}
    assert len(model.calls) == 4
    for call in model.calls:
        label = call.pop("label")
        assert isinstance(label, Tensor)
        assert call == {"return_loss": False, "training": False, "rescale": True, "mode": "whole"}
    assert model.training


class MMDataParallel(nn.DataParallel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the wrapper was called")


def test_wrappers_are_taken_off() -> None:
    model = Model()
    evaluator = create_mmcv_evaluator(MMDataParallel(model))
    assert evaluator.model is model  # type: ignore[attr-defined]
    assert evaluated(MMDataParallel(model)) == {"acc": 1.0}


@pytest.mark.parametrize(
    "shape",
    [
        lambda i, p: list(p),
        lambda i, p: list(p.numpy()),
        lambda i, p: tuple(p.numpy()),
        lambda i, p: p,
        lambda i, p: p.numpy(),
        lambda i, p: [int(one) for one in p],
    ],
    ids=["tensors", "arrays", "tuple", "tensor", "array", "numbers"],
)
@pytest.mark.parametrize("loss", [None, True])
def test_whatever_mmcv_would_extend_a_list_by_is_one_item_per_sample(
    shape: Any, loss: bool | None
) -> None:
    dataset = Plain()
    metrics = evaluated(Model(shape), dataset, loss=loss)
    assert dataset.calls[0]["results"] == [i % CLASSES for i in range(SIZE)]
    assert ("val_loss" in metrics) is bool(loss)


def test_results_come_in_the_order_of_the_dataset_also_when_shuffled() -> None:
    torch.manual_seed(0)
    for dataset, shape in ((Plain(), None), (PoseLike(), poses)):
        loader = loader_of(dataset, shuffle=True)
        record = EvalHook(loader, create_mmcv_evaluator(Model(shape))).evaluate()
        assert record.metrics in ({"acc": 1.0}, {"AP": 1.0, "NME": 0.0, "Total AP": 1.0})
        assert record.samples == SIZE


def test_a_mapping_per_batch_becomes_what_batches_of_one_would_give() -> None:
    given: dict[int, list[Any]] = {}
    for size in (1, 4):

        def keep(results: list[Any], size: int = size) -> dict[str, float]:
            given[size] = results
            return {}

        def nested(index: Tensor, predicted: Tensor) -> dict[str, Any]:
            return {**poses(index, predicted), "scale": 2.0, "camera": np.eye(7),
                    "of": {"person": predicted[:, None]}}  # fmt: skip

        loader = loader_of(Samples(), size)
        record = EvalHook(
            loader, create_mmcv_evaluator(Model(nested)), compute_metrics=keep
        ).evaluate()
        assert record.samples == SIZE
    assert len(given[4]) == SIZE
    assert repr(given[4]) == repr(given[1])
    assert given[4][7]["preds"].shape == (1, 4, 3)
    assert given[4][7]["image_paths"] == ["7.jpg"]


def test_metrics_of_ignite_get_the_list() -> None:
    mean = Average(output_transform=lambda results: torch.tensor([[float(r)] for r in results]))
    assert evaluated(Model(), Samples(), metrics={"mean": mean}) == {"mean": 2.0}


# -- batches of MMCV ------------------------------------------------------------------------------


class DataContainer:
    """What MMCV wraps the parts of a batch in; this is all that is known of it here."""

    def __init__(self, data: Any, stack: bool = False, cpu_only: bool = False) -> None:
        self.data, self.stack, self.cpu_only = data, stack, cpu_only


class Where(nn.Module):
    """Returns the device of each part of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.log = Log()

    @property
    def got(self) -> dict[str, Any]:
        return self.log.calls[-1]

    def forward(self, return_loss: bool = True, **batch: Any) -> list[int]:
        self.log.calls.append(batch)
        return [0, 0]


def container_batch() -> dict[str, Any]:
    return {
        "img": DataContainer([torch.zeros(2, 3)], stack=True),
        "img_metas": DataContainer([[{"scale": torch.ones(2)}, {}]], cpu_only=True),
        "gt_bboxes": DataContainer([[torch.zeros(1, 4), torch.zeros(3, 4)]]),
        "augmented": [torch.zeros(2, 3), {"a": torch.zeros(2)}, (torch.zeros(2), "text", None)],
    }


def devices_of(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.device.type
    if isinstance(part, dict):
        return {key: devices_of(item) for key, item in part.items()}
    return [devices_of(item) for item in part] if isinstance(part, (list, tuple)) else part


@pytest.mark.parametrize(("device", "where"), [(None, "cpu"), ("meta", "meta")])
def test_tensors_are_moved_and_containers_opened(device: str | None, where: str) -> None:
    model = Where()
    hook = EvalHook([container_batch()], create_mmcv_evaluator(model, device=device))
    assert hook.evaluate().samples == 2
    assert devices_of(model.got) == {
        "img": where,
        "img_metas": [{"scale": "cpu"}, {}],
        "gt_bboxes": [where, where],
        "augmented": [where, {"a": where}, [where, "text", None]],
    }


def test_batches_go_where_the_model_is_also_when_it_has_moved() -> None:
    model = Where()
    evaluator = create_mmcv_evaluator(model)
    model.to("meta")
    EvalHook([container_batch()], evaluator).evaluate()
    assert devices_of(model.got)["gt_bboxes"] == ["meta", "meta"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([torch.zeros(1, 3)] * 2, "one of 2 chunks, as for 2 devices; give the loader collate_fn="),
        (torch.zeros(2, 3), "one of a Tensor, as before collate"),
    ],
)
def test_a_container_that_is_not_for_one_process_is_refused(data: Any, words: str) -> None:
    hook = EvalHook([{"img": DataContainer(data)}], create_mmcv_evaluator(Where()))
    with pytest.raises(ValueError, match=words):
        hook.evaluate()


# -- the validation loss --------------------------------------------------------------------------


def test_the_models_own_loss_is_computed_in_eval_mode_from_the_same_batch() -> None:
    model = Model()
    model.quality.data.fill_(0.5)
    metrics = evaluated(model, loss=True, rescale=True)
    losing = [call for call in model.calls if call["return_loss"]]
    assert [call["training"] for call in losing] == [False] * 4
    assert not any("rescale" in call for call in losing)
    assert metrics == {
        "acc": 0.5,
        "loss_cls": pytest.approx(4.0),
        "loss_box": 4.5,
        "top-1": pytest.approx(0.5),
        "val_loss": pytest.approx(8.5),
    }


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, batch: batch["img"][:, 0].mean(),
        lambda model, batch: batch["img"][:, 0],
        lambda model, batch: {"loss": batch["img"][:, 0]},
        lambda model, batch: ValLoss(batch["img"][:, 0].mean(), weight=len(batch["img"])),
    ],
    ids=["mean", "per sample", "mapping", "ValLoss"],
)
@pytest.mark.parametrize("shape", [None, poses], ids=["list", "mapping per batch"])
def test_a_function_may_compute_the_loss(loss: Any, shape: Any) -> None:
    metrics = evaluated(Model(shape), Samples(), loss=loss)
    assert metrics["val_loss"] == 4.5  # the mean of 0 to 9, though the last batch is shorter


@pytest.mark.parametrize("loss", [None, False])
def test_without_a_loss_the_model_is_called_once_a_batch(loss: bool | None) -> None:
    model = Model()
    assert evaluated(model, loss=loss) == {"acc": 1.0}
    assert len(model.calls) == 4


# -- a project's own test function ----------------------------------------------------------------


def single_gpu_test(model: Any, data_loader: Any) -> list[Any]:
    """Test in the manner of MMCV's."""
    model.eval()
    results: list[Any] = []
    assert len(data_loader.dataset) == SIZE
    for data in data_loader:
        with torch.no_grad():
            results.extend(model(return_loss=False, **data))
    return results


def seg_gpu_test(model: Any, data_loader: Any, pre_eval: bool = True) -> list[Any]:
    """Test in the manner of MMSegmentation's: with the indices of the batches."""
    results = []
    for indices, data in zip(data_loader.batch_sampler, data_loader, strict=True):
        with torch.no_grad():
            result = model(return_loss=False, **data)
        results += data_loader.dataset.pre_eval(result, indices=indices)
    return results


def pose_gpu_test(model: Any, data_loader: Any) -> list[Any]:
    """Test in the manner of MMPose's: one mapping a batch."""
    return [model(return_loss=False, **data) for data in data_loader]


TESTS: dict[str, tuple[type[Samples], Any, Any]] = {
    "mmcv": (Plain, None, single_gpu_test),
    "mmseg": (SegLike, None, seg_gpu_test),
    "mmseg, bound": (SegLike, None, partial(seg_gpu_test, pre_eval=False)),
    "mmpose": (PoseLike, poses, pose_gpu_test),
}


def run_test_fn(rank: int, name: str) -> tuple[dict[str, Any], int | None]:
    kind, shape, test_fn = TESTS[name]
    model = Model(shape)
    model.quality.data.fill_(0.5)
    evaluator = create_mmcv_evaluator(model, test_fn=test_fn, loss=True)
    hook = EvalHook(loader_of(kind()), evaluator, out_dir=False, save_best="val_loss")
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)  # so that one batch is checked before training
    trainer.run([0], max_epochs=1)
    return hook.history[0].metrics, hook.history[0].samples


@pytest.mark.parametrize("name", TESTS)
def test_test_functions_of_projects_do_as_they_did_on_any_number_of_ranks(name: str) -> None:
    kind, shape, _ = TESTS[name]
    model = Model(shape)
    model.quality.data.fill_(0.5)
    loader, evaluator = loader_of(kind()), create_mmcv_evaluator(model, loss=True)
    plain = EvalHook(loader, evaluator, pre_eval=kind is SegLike).evaluate()
    expected = (plain.metrics, SIZE)
    assert run_test_fn(0, name) == expected
    assert on_ranks(2, run_test_fn, name) == [expected] * 2


def test_a_test_function_gets_one_batch_and_a_model_wrapped_as_in_mmcv() -> None:
    seen: list[Any] = []

    def test_fn(model: Any, data_loader: Any) -> list[Any]:
        batches = list(data_loader)
        assert len(batches) == len(data_loader) == 1
        assert type(batches[0]["img"]) is DataContainer
        seen.append((model.module, model.calls, list(data_loader.batch_sampler)))
        return list(model(return_loss=False, **batches[0]))

    def containers(samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = rows_of(samples)
        return {"img": DataContainer([batch["img"]]), "img_metas": batch["img_metas"]}

    model = Model()
    loader = DataLoader(Plain(), 4, collate_fn=containers)
    hook = EvalHook(loader, create_mmcv_evaluator(model, test_fn=test_fn))
    assert hook.evaluate().metrics == {"acc": 1.0}
    assert [module is model and calls is model.calls for module, calls, _ in seen] == [True] * 3
    assert [indices for _, _, indices in seen] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9]]]


def test_a_loader_of_one_batch_says_what_it_does_not_have() -> None:
    batches = [rows_of([Samples()[i] for i in range(3)])]
    evaluator = create_mmcv_evaluator(Model(), test_fn=single_gpu_test)
    hook = EvalHook(batches, evaluator, compute_metrics=lambda results: {})
    with pytest.raises(AttributeError, match=r"asks for data_loader\.dataset, which .* DataLoader"):
        hook.evaluate()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "a NoneType"),
        ({"a": [1], "b": [2]}, r"a dict with keys \['a', 'b'\]"),
        ((1, 2), "a tuple of 2"),
    ],
)
def test_a_test_function_must_return_a_list(returned: Any, words: str) -> None:
    evaluator = create_mmcv_evaluator(Model(), test_fn=lambda model, data_loader: returned)
    with pytest.raises(TypeError, match=f"test_fn must return a list of results, got {words}"):
        EvalHook(loader_of(Plain()), evaluator).evaluate()


# -- pre_eval -------------------------------------------------------------------------------------


class Uneven:
    """Batches of 1, 2, 3 and 4 samples."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0], [1, 2], [3, 4, 5], [6, 7, 8, 9]])

    def __len__(self) -> int:
        return 4


class Backwards(BatchSampler):
    """Starts with the last batch."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from reversed(list(super().__iter__()))


LOADERS: dict[str, Callable[[Dataset[Any]], DataLoader[Any]]] = {
    "in order": lambda d: DataLoader(d, 4, collate_fn=rows_of),
    "uneven": lambda d: DataLoader(d, batch_sampler=Uneven(), collate_fn=rows_of),
    "custom": lambda d: DataLoader(
        d, batch_sampler=Backwards(SequentialSampler(SIZE * [0]), 3, False), collate_fn=rows_of
    ),
}  # fmt: skip


def pre_evaluated(rank: int, name: str) -> tuple[dict[str, Any], list[list[int]]]:
    dataset = SegLike()
    model = Model()
    model.quality.data.fill_(0.6)
    hook = EvalHook(LOADERS[name](dataset), create_mmcv_evaluator(model), pre_eval=True)
    return dict(hook.evaluate().metrics), dataset.seen


@pytest.mark.parametrize("name", LOADERS)
def test_pre_eval_is_told_the_right_indices_on_every_rank(name: str) -> None:
    whole = list(LOADERS[name](SegLike()).batch_sampler)  # type: ignore[arg-type]
    expected, seen = pre_evaluated(0, name)
    assert seen == whole
    assert expected["aAcc"] == 0.6
    for world in (2, 3):
        ranks = on_ranks(world, pre_evaluated, name)
        assert [seen for _, seen in ranks] == [whole[rank::world] for rank in range(world)]
        assert [metrics for metrics, _ in ranks] == [expected] * world


def test_with_pre_eval_only_its_histograms_are_kept() -> None:
    maps: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def shape(index: Tensor, predicted: Tensor) -> list[Any]:
        found = [np.full((8, 8), int(p)) for p in predicted]
        maps.extend(weakref.ref(one) for one in found)
        return found

    class Maps(SegLike):
        def pre_eval(self, results: list[Any], indices: list[int]) -> list[Any]:
            alive.append(sum(ref() is not None for ref in maps))
            return super().pre_eval([one[0, 0] for one in results], indices)

        def evaluate(self, results: list[Any], **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
            alive.append(sum(ref() is not None for ref in maps))
            assert sum(h.nbytes for image in results for h in image) == 60 * 4 * CLASSES * 8
            return super().evaluate(results, **kwargs)

    loader = loader_of(Maps(60), 2)
    hook = EvalHook(loader, create_mmcv_evaluator(Model(shape)), pre_eval=True)
    hook.evaluate()
    assert len(maps) == 60
    assert len(alive) == 31
    assert max(alive) <= 4  # this batch, and the one before


# -- what is refused ------------------------------------------------------------------------------


class Supervised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Strict(nn.Module):
    def forward(self, img: Tensor, return_loss: bool = True, rescale: bool = False) -> list[int]:
        return [0]


def multi_gpu_test(
    model: Any, data_loader: Any, tmpdir: Any = None, gpu_collect: bool = False
) -> Any:
    raise AssertionError("called")


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no module": (3, {}, TypeError, r"model must be a torch\.nn\.Module, got int"),
    "another convention": (
        Supervised(),
        {},
        TypeError,
        r"Supervised\.forward\(x\) takes no return_loss=, .* use create_evaluator",
    ),
    "another convention for the loss": (
        Supervised(),
        {"test_fn": single_gpu_test, "loss": True},
        TypeError,
        "takes no return_loss=",
    ),
    "a misspelled keyword": (
        Strict(),
        {"rescal": True},
        TypeError,
        r"has an argument 'rescal'; did you mean rescale=\?",
    ),
    "an unknown keyword": (
        Strict(),
        {"metric": "bbox"},
        TypeError,
        r"has an argument 'metric'; it takes \['img', 'rescale', 'return_loss'\]",
    ),
    "return_loss": (Model(), {"return_loss": True}, TypeError, "for a loss pass loss=True"),
    "metrics of a dataset": (
        Model(),
        {"metrics": ["top_k_accuracy"]},
        TypeError,
        r"metrics must map names .* got \['top_k_accuracy'\]; .* EvalHook\(loader, evaluator, metr",
    ),
    "no metric": (Model(), {"metrics": {"a": 1}}, TypeError, r"metrics\['a'\] must be an ignite"),
    "no loss": (Model(), {"loss": "sum"}, TypeError, "loss must be True, a function .* got 'sum'"),
    "no function": (Model(), {"test_fn": 3}, TypeError, "test_fn must be a function .* got int"),
    "multi_gpu_test": (
        Model(),
        {"test_fn": multi_gpu_test},
        ValueError,
        "has a parameter 'gpu_collect', so it gathers .* pass the single-process one",
    ),
    "multi_gpu_test, bound": (
        Model(),
        {"test_fn": partial(multi_gpu_test, tmpdir="here")},
        ValueError,
        "it gathers from the processes by itself",
    ),
    "test_fn of other arguments": (
        Model(),
        {"test_fn": lambda model: []},
        TypeError,
        r"cannot be called as test_fn\(model, data_loader\): too many positional",
    ),
    "test_fn and keywords": (
        Model(),
        {"test_fn": single_gpu_test, "rescale": True},
        ValueError,
        r"would never see \['rescale'\]; bind them: functools\.partial",
    ),
    "test_fn and metrics": (
        Model(),
        {"test_fn": single_gpu_test, "metrics": {"mean": Average()}},
        ValueError,
        "metrics= and test_fn= do not go together",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_at_construction(case: str) -> None:
    model, options, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        create_mmcv_evaluator(model, **options)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((torch.zeros(2), torch.zeros(2)), r"got a tuple of 2; for batches \(x, y\) use create_ev"),
        (torch.zeros(2), "got a Tensor"),
    ],
)
def test_a_batch_that_is_no_mapping_is_refused(batch: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        EvalHook([batch], create_mmcv_evaluator(Model())).evaluate()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (lambda i, p: None, "one mapping per batch; got a NoneType"),
        (lambda i, p: p.sum(), "got a Tensor"),
        (lambda i, p: {"mean": p.sum()}, r"a dict with keys \['mean'\] for a batch of 3 samples"),
        (lambda i, p: {}, r"a dict with keys \[\] for a batch of 3 samples"),
    ],
)
def test_results_that_tell_nothing_of_each_sample_are_refused(shape: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        evaluated(Model(shape))


def test_a_mapping_for_a_batch_of_unknown_size_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, return_loss: bool = True, **batch: Any) -> dict[str, Any]:
            return {"preds": torch.zeros(2, 3)}

    with pytest.raises(TypeError, match="a batch of an unknown number of samples"):
        EvalHook([{"text": "two"}], create_mmcv_evaluator(Silent())).evaluate()


def test_tensors_that_look_like_columns_are_refused_instead_of_cut_up() -> None:
    class Augmented(nn.Module):
        def forward(self, img: Any, return_loss: bool = True) -> list[Tensor]:
            return [torch.zeros(3, 4)]  # the boxes of one image

    batch = {"img": [torch.zeros(1, 3, 8, 8)] * 3}  # three views of it
    with pytest.raises(TypeError, match="returned 1 tensors, which look like columns of 3 samples"):
        EvalHook([batch], create_mmcv_evaluator(Augmented())).evaluate()


def test_training_is_left_as_it_was_when_a_test_function_raises() -> None:
    def test_fn(model: Any, data_loader: Any) -> list[Any]:
        model.train()
        raise RuntimeError("broken")

    model = Model()
    model.eval()
    hook = EvalHook(loader_of(Plain()), create_mmcv_evaluator(model, test_fn=test_fn))
    with pytest.raises(RuntimeError, match="broken"):
        hook.evaluate()
    assert not model.training


def test_a_dataset_that_returns_no_mapping_is_named() -> None:
    class Bad(Samples):
        def evaluate(self, results: list[Any]) -> Any:
            return math.pi

    with pytest.raises(EvaluationError, match="compute_metrics must return a mapping"):
        evaluated(Model(), Bad())
