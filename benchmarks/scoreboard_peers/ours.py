"""ignite-evalhook, as its README recommends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, create_supervised_trainer
from ignite.metrics import ROC_AUC, Metric
from scoreboard_peers.parts import (
    Identity,
    Run,
    Task,
    dropout_net,
    flat,
    frozen_net,
    mean_value,
    mse,
    small_data,
)
from torch import nn
from torch.utils.data import DataLoader

from ignite_evalhook import EvalHook, ValLoss, create_evaluator

PACKAGE = "ignite-evalhook"


class Scripted(Metric):
    """A metric whose value is the one of the script, whatever the batches are."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        super().__init__()

    def reset(self) -> None:
        """Keep no state."""

    def update(self, output: Any) -> None:
        """Ignore a batch."""

    def compute(self) -> float:
        """Return what the script says, on average over the ranks."""
        return idist.all_reduce(self.run.said()[self.name]) / idist.get_world_size()


def fit(run: Run) -> dict[str, Path | None]:
    """Train as ``run`` says."""
    trainer = Engine(lambda engine, batch: run.model.step(run).item())
    rules = {name: rule for name, rule in run.rules.items() if rule is not None}
    metrics = {name: Scripted(run, name) for name in run.script[0]}
    evaluator = create_evaluator(run.model, metrics, step=lambda engine, batch: batch)
    hook = EvalHook(run.batches(), evaluator, save_best=list(run.rules), rule=rules or None,
                    out_dir=run.folder)  # fmt: skip
    hook.attach(trainer)
    if run.patience is not None:
        hook.early_stopping(run.patience)
    if run.last:
        hook.keep_last({"model": run.model}, resume=run.resume)
    trainer.run([0], max_epochs=len(run.script))
    return {name: bests[0].path if bests else None for name, bests in hook.bests.items()}


def losses(task: Task) -> float:
    evaluator = create_evaluator(Identity(task), loss_fn=mean_value)
    # The hook deals the batches out itself, so it takes the loader of all samples.
    loader = DataLoader(task.dataset, batch_size=task.batch_size)
    return EvalHook(loader, evaluator).evaluate().metrics["val_loss"]


def list_of_losses(parts: list[float]) -> float:
    class Detector(nn.Module):
        def val_step(self, batch: Any) -> Any:
            return batch, ValLoss({"loss_rpn": [torch.tensor(part) for part in parts]})

    return (
        EvalHook([torch.zeros(1, 1)], create_evaluator(Detector())).evaluate().metrics["val_loss"]
    )


def auc(task: Task) -> float:
    metric = ROC_AUC(output_transform=lambda out: (out[0].reshape(-1), out[1].reshape(-1)))
    evaluator = create_evaluator(Identity(task), {"auc": metric})
    loader = DataLoader(task.dataset, batch_size=task.batch_size)
    return EvalHook(loader, evaluator).evaluate().metrics["auc"]


def schedule() -> list[int]:
    hook = EvalHook(None, lambda engine: {"acc": 1.0}, model=nn.Linear(1, 1), start=0, interval=2)
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0], max_epochs=4)
    return [record.epoch for record in hook.history]


def frozen() -> list[bool]:
    net, seen = frozen_net(), []
    net.train()
    net[1].eval()
    trainer = Engine(lambda engine, batch: seen.append(net[1].training))
    EvalHook(DataLoader(small_data(), 4), create_evaluator(net, loss_fn=mse)).attach(trainer)
    trainer.run([0], max_epochs=2)
    return seen


def weights(evaluate: bool) -> list[float]:
    net = dropout_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    trainer = create_supervised_trainer(net, optimizer, mse)
    if evaluate:
        EvalHook(DataLoader(small_data(), 4), create_evaluator(net, loss_fn=mse)).attach(trainer)
    trainer.run(DataLoader(small_data(), 2, shuffle=True), max_epochs=2)
    return flat(net)
