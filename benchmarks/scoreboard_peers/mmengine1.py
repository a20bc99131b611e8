"""MMEngine: a Runner with CheckpointHook, EarlyStoppingHook, and the loss of ``val_step``."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from scoreboard_peers.parts import (
    Identity,
    Run,
    Task,
    dropout_net,
    flat,
    frozen_net,
    mse,
    small_data,
)
from torch import Tensor, nn

warnings.filterwarnings("ignore")
# A Runner cannot read its own file with torch 2.6 or newer otherwise.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
PACKAGE = "mmengine-lite"
names = itertools.count()  # of runners: two of one name are refused
NONE = {"start": "has none: no evaluation before training"}


class Model(BaseModel):
    """A model that appends its validation loss to its predictions."""

    def __init__(self, net: nn.Module, loss: Any, seen: list[bool] | None = None) -> None:
        super().__init__()
        self.net, self.loss, self.seen = net, loss, seen

    def forward(self, x: Tensor, y: Tensor, mode: str = "tensor") -> Any:
        """Compute the losses, or predictions with the loss as the last item."""
        if mode == "loss" and self.seen is not None:
            self.seen.append(self.net[1].training)  # type: ignore[index]
        scores = self.net(x)
        losses = {"loss": self.loss(scores, y)}
        if mode == "loss":
            return losses
        samples = [BaseDataElement(pred=p, label=t) for p, t in zip(scores, y, strict=True)]
        return [*samples, BaseDataElement(loss=losses)]


class CounterModel(BaseModel):
    """The counter, trained by its own step."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.counter = run, run.model

    def forward(self, x: Tensor, mode: str = "tensor") -> Tensor:
        """Return the input; the steps below are what is run."""
        return x

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """Count one step."""
        return {"loss": self.counter.step(self.run)}

    def val_step(self, data: Any) -> list[Any]:
        """Predict nothing; this rank's loss is its score, as each rank's loss is its own."""
        score = self.run.said().get(self.run.first)
        loss = [] if score is None else [BaseDataElement(loss={"loss": torch.tensor(score)})]
        return [torch.zeros(1), *loss]


class Scripted(BaseMetric):
    """A metric whose values are those of the script."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Keep one result a sample."""
        self.results.append(0)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return what the script says."""
        return self.run.said()


class Kept(BaseMetric):
    """A metric over all predictions."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Keep one result a sample."""
        self.results.extend((s["pred"].item(), s["label"].item()) for s in data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute the area under the curve where there are two classes."""
        from sklearn.metrics import roc_auc_score

        scores, labels = zip(*results, strict=True)
        return {"auc": float(roc_auc_score(labels, scores)) if len(set(labels)) > 1 else 0.0}


def _loader(data: Any, batch_size: int, shuffle: bool = False) -> dict[str, Any]:
    return {"dataset": data, "batch_size": batch_size, "num_workers": 0,
            "sampler": {"type": "DefaultSampler", "shuffle": shuffle},
            "collate_fn": {"type": "default_collate"}}  # fmt: skip


def _runner(
    model: Any, folder: Path | str, train: Any, val: Any, metrics: Any, **more: Any
) -> Runner:
    logging.getLogger("mmengine").setLevel("ERROR")
    options: dict[str, Any] = {
        "train_dataloader": train,
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}},
        "default_hooks": {"checkpoint": None, "logger": None},
        "log_level": "ERROR",
    }
    if val is not None:
        options |= {"val_dataloader": val, "val_evaluator": metrics, "val_cfg": {}}
    return Runner(model, str(folder), **(options | more))


def fit(run: Run) -> dict[str, Path | None]:
    name = "val_loss" if run.world > 1 else run.first
    rules = run.rules if run.world == 1 else {}
    hook = CheckpointHook(
        interval=1 if run.last else -1, max_keep_ckpts=1 if run.last else -1,
        save_best=list(rules) or None, save_last=run.last,
        rule=[rule for rule in rules.values() if rule is not None] or None,
    )  # fmt: skip
    stop = []
    if run.patience is not None:
        stop = [EarlyStoppingHook(name, "greater", min_delta=0.0, patience=run.patience)]
    rows = [(torch.zeros(1), torch.zeros(1))] * run.world
    runner = _runner(
        CounterModel(run), run.folder, _loader(rows, 1), _loader(rows, 1), [Scripted(run)],
        train_cfg={"by_epoch": True, "max_epochs": len(run.script), "val_interval": 1},
        default_hooks={"checkpoint": hook, "logger": None}, custom_hooks=stop, resume=run.resume,
    )  # fmt: skip
    runner.train()
    found = {}
    for key in run.rules:
        told = "best_ckpt" if len(run.rules) == 1 else f"best_ckpt_{key}"
        known = told in runner.message_hub.runtime_info
        found[key] = Path(runner.message_hub.get_info(told)) if known else None
    return found


def _evaluate(task: Task, net: nn.Module, loss: Any) -> tuple[float, float]:
    val = _loader(task.dataset, task.batch_size)
    runner = _runner(Model(net, loss), "out", _loader(task.dataset, 1), val, [Kept()],
                     train_cfg={"by_epoch": True, "max_epochs": 1, "val_interval": 1})  # fmt: skip
    metrics = runner.val()
    return float(metrics["val_loss"]), metrics["auc"]


def losses(task: Task) -> float:
    return _evaluate(task, Identity(task), lambda scores, y: scores.mean())[0]


def auc(task: Task) -> float:
    return _evaluate(task, Identity(task), lambda scores, y: scores.mean())[1]


def list_of_losses(parts: list[float]) -> float:
    task = Task([0.0])
    return _evaluate(task, Identity(task), lambda scores, y: [torch.tensor(p) for p in parts])[0]


def frozen() -> list[bool]:
    class Freeze(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if batch_idx == 0:
                runner.model.net[1].eval()

    seen: list[bool] = []
    # fmt: off
    runner = _runner(Model(frozen_net(), mse, seen), "out", _loader(small_data(), 2),
                     _loader(small_data(), 4), [Kept0()], custom_hooks=[Freeze()],
                     train_cfg={"type": "IterBasedTrainLoop", "max_iters": 4, "val_interval": 2})
    # fmt: on
    runner.train()
    return [seen[1], seen[2]]


class Kept0(Kept):
    """Counts the samples."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return their number."""
        return {"n": float(len(results))}


def weights(evaluate: bool) -> list[float]:
    net = dropout_net()
    val = _loader(small_data(), 4) if evaluate else None
    runner = _runner(Model(net, mse), f"out{evaluate}", _loader(small_data(), 2, shuffle=True), val,
                     [Kept0()], train_cfg={"by_epoch": True, "max_epochs": 2, "val_interval": 1},
                     experiment_name=f"weights{next(names)}", randomness={"seed": 1})  # fmt: skip
    runner.train()
    return flat(net)
