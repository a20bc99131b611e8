"""MMCV 1.x: a runner with EvalHook and CheckpointHook, DistEvalHook on several processes."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

if importlib.util.find_spec("torchvision") is None:
    # MMCV imports it, and uses it only to download weights of model zoos.
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    sys.modules["torchvision"].__version__ = "0.0"  # type: ignore[attr-defined]
warnings.filterwarnings("ignore")

from mmcv.runner import (  # noqa: E402
    DistEvalHook,
    EpochBasedRunner,
    EvalHook,
    IterBasedRunner,
)
from scoreboard_peers.parts import (  # noqa: E402
    Identity,
    Run,
    Task,
    dropout_net,
    flat,
    frozen_net,
    mse,
    small_data,
)

PACKAGE = "mmcv"
NO_LOSS = "has none: no validation loss"
NONE = {
    "loss": NO_LOSS,
    "loss2": NO_LOSS,
    "list": NO_LOSS,
    "stop_nan": "has no early stopping",
    "stop_constant": "has no early stopping",
    "stop_ranks": "has no early stopping",
    "stop_restart": "has no early stopping",
}


def _loader(loader: DataLoader[Any], evaluate: Any) -> DataLoader[Any]:
    """Give the dataset the ``evaluate`` that MMCV's hook calls."""
    loader.dataset.evaluate = lambda results, logger=None, **options: evaluate(results)  # type: ignore[attr-defined]
    return loader


class Model(nn.Module):
    """A model as MMCV's runners and test functions call it."""

    def __init__(self, net: nn.Module, seen: list[bool] | None = None) -> None:
        super().__init__()
        self.net, self.seen = net, seen

    def train_step(self, batch: Any, optimizer: Any, **options: Any) -> dict[str, Any]:
        """Compute the loss."""
        if self.seen is not None:
            self.seen.append(self.net[1].training)  # type: ignore[index]
        return {"loss": mse(self.net(batch[0]), batch[1]), "num_samples": len(batch[0])}

    def forward(self, data: Any = None, return_loss: bool = True, **batch: Any) -> list[Tensor]:
        """Predict, one result a sample."""
        return list(self.net(batch["x"] if data is None else data[0]))


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A data set of dicts, since the model is called with the batch as keywords."""

    def __init__(self, data: Any) -> None:
        self.rows = [{"x": x} for x, *_ in data]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def _runner(kind: Any, model: nn.Module, folder: Path | str, **options: Any) -> Any:
    logger = logging.getLogger("mmcv")
    logger.setLevel("WARNING")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return kind(model, optimizer=optimizer, work_dir=str(folder), logger=logger, **options)


def fit(run: Run) -> dict[str, Path | None]:
    class CounterModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counter = run.model

        def train_step(self, batch: Any, optimizer: Any, **options: Any) -> dict[str, Any]:
            return {"loss": self.counter.step(run), "num_samples": 1}

        def forward(self, return_loss: bool = True, **batch: Any) -> list[Tensor]:
            return [batch["x"]]

    loader = DataLoader(Rows([(torch.zeros(1),)]), 1)
    runner = _runner(EpochBasedRunner, CounterModel(), run.folder, max_epochs=len(run.script))
    last = {"interval": 1, "max_keep_ckpts": 1} if run.last else None
    runner.register_training_hooks(None, None, last, None)
    for name, rule in run.rules.items():
        val = _loader(DataLoader(Rows([(torch.zeros(1),)]), 1), lambda results: run.said())
        hook = EvalHook(val, save_best=name, rule=rule)
        runner.register_hook(hook, priority="LOW")
    if run.resume:
        runner.resume(str(run.folder / "latest.pth"))
    runner.run([loader], [("train", 1)])
    paths = {name: sorted(run.folder.glob(f"best_{name}_*.pth")) for name in run.rules}
    told = (runner.meta or {}).get("hook_msgs", {}).get("best_ckpt")
    one = {run.first: Path(told) if told else None}
    return one if len(run.rules) == 1 else {k: v[0] if v else None for k, v in paths.items()}


def _dist_evaluate(task: Task, evaluate: Any) -> dict[str, float]:
    said: dict[str, float] = {}

    def note(results: list[Tensor]) -> dict[str, float]:
        said.update(evaluate(torch.cat([r.reshape(-1) for r in results])))
        return said

    class Trained(Model):
        def train_step(self, batch: Any, optimizer: Any, **options: Any) -> dict[str, Any]:
            return {"loss": (self.net.scale * 0.0).sum(), "num_samples": 1}

    model = Trained(Identity(task))
    rows = Rows(task.dataset)
    sampler = DistributedSampler(rows, shuffle=False)  # pads, and MMCV cuts the results off
    loader = _loader(DataLoader(rows, task.batch_size, sampler=sampler), note)
    runner = _runner(EpochBasedRunner, model, ".", max_epochs=1)
    runner.register_hook(DistEvalHook(loader, tmpdir="collect"), priority="LOW")
    runner.run([DataLoader(rows, 1)], [("train", 1)])
    return said


def losses(task: Task) -> float | None:
    """Compute a mean over all results, by ``dataset.evaluate``, since there is no loss."""
    return _dist_evaluate(task, lambda results: {"loss": results.mean().item()}).get("loss")


def auc(task: Task) -> float | None:
    from sklearn.metrics import roc_auc_score

    def area(results: Tensor) -> dict[str, float]:
        labels = task.labels[: len(results)]
        return {"auc": float(roc_auc_score(labels, results.numpy()))}

    return _dist_evaluate(task, area).get("auc")  # only rank 0 is told


def schedule() -> list[int]:
    steps: list[int] = []
    net = Model(nn.Linear(4, 1))
    runner = _runner(EpochBasedRunner, net, ".", max_epochs=4)
    loader = _loader(
        DataLoader(Rows(small_data()), 4), lambda results: steps.append(runner.epoch) or {}
    )
    runner.register_hook(EvalHook(loader, start=0, interval=2), priority="LOW")
    runner.run([DataLoader(small_data(), 4)], [("train", 1)])
    return steps


def frozen() -> list[bool]:
    seen: list[bool] = []
    model = Model(frozen_net(), seen)
    model.train()
    model.net[1].eval()
    runner = _runner(IterBasedRunner, model, ".", max_iters=4)
    loader = _loader(DataLoader(Rows(small_data()), 4), lambda results: {})
    runner.register_hook(EvalHook(loader, interval=2, by_epoch=False), priority="LOW")
    runner.run([DataLoader(small_data(), 2)], [("train", 1)])
    return [seen[1], seen[2]]


def weights(evaluate: bool) -> list[float]:
    model = Model(dropout_net())
    runner = _runner(EpochBasedRunner, model, ".", max_epochs=2)
    runner.register_optimizer_hook({"grad_clip": None})
    if evaluate:
        loader = _loader(DataLoader(Rows(small_data()), 4), lambda results: {"loss": 0.0})
        runner.register_hook(EvalHook(loader), priority="LOW")
    runner.run([DataLoader(small_data(), 2, shuffle=True)], [("train", 1)])
    return flat(model)
