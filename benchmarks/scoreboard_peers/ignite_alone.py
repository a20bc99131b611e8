"""PyTorch-Ignite by hand: Checkpoint, EarlyStopping, auto_dataloader, its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import (
    Engine,
    Events,
    create_supervised_evaluator,
    create_supervised_trainer,
)
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping, global_step_from_engine
from ignite.metrics import ROC_AUC, Loss
from scoreboard_peers.parts import (
    Identity,
    Run,
    Task,
    dropout_net,
    flat,
    frozen_net,
    mean_value,
    mse,
    note_frozen,
    small_data,
)
from torch import nn
from torch.utils.data import DataLoader

PACKAGE = "pytorch-ignite"
NONE = {
    "names": "has none: a score function is given, and greater is better",
    "list": "has none",
}


def fit(run: Run) -> dict[str, Path | None]:
    trainer = Engine(lambda engine, batch: run.model.step(run).item())
    evaluator = Engine(lambda engine, batch: None)

    @evaluator.on(Events.COMPLETED)
    def scores(engine: Engine) -> None:
        engine.state.metrics.update(run.said())

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate() -> None:
        evaluator.run([0])

    saver = DiskSaver(str(run.folder), require_empty=False)
    step = global_step_from_engine(trainer)
    bests, to_save = {}, {"trainer": trainer, "model": run.model}
    for name, rule in run.rules.items():
        score = Checkpoint.get_default_score_fn(name, 1.0 if rule == "greater" else -1.0)
        bests[name] = Checkpoint({"model": run.model}, saver, "best", score, name,
                                 global_step_transform=step)  # fmt: skip
        evaluator.add_event_handler(Events.COMPLETED, bests[name])
        to_save[f"best_{name}"] = bests[name]
    if run.patience is not None:
        score = Checkpoint.get_default_score_fn(run.first)
        stopper = EarlyStopping(run.patience, score, trainer)
        evaluator.add_event_handler(Events.COMPLETED, stopper)
        to_save["stopper"] = stopper
    if run.last:
        last = Checkpoint(to_save, saver, "last", global_step_transform=step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, last)
    if run.resume:
        (file,) = run.folder.glob("last_*.pt")
        Checkpoint.load_objects(to_save, torch.load(file, weights_only=False))
    trainer.run([0], max_epochs=len(run.script))
    return {name: _path(run, best) for name, best in bests.items()}


def _path(run: Run, best: Checkpoint) -> Path | None:
    return None if best.last_checkpoint is None else run.folder / Path(best.last_checkpoint).name


def _loader(task: Task) -> Any:
    if task.world == 1 or task.shards:
        return task.loader()
    return idist.auto_dataloader(task.dataset, batch_size=task.batch_size, shuffle=False)


def losses(task: Task) -> float:
    evaluator = create_supervised_evaluator(Identity(task), {"loss": Loss(mean_value)})
    return evaluator.run(_loader(task)).metrics["loss"]


def auc(task: Task) -> float:
    metric = ROC_AUC(output_transform=lambda out: (out[0].reshape(-1), out[1].reshape(-1)))
    evaluator = create_supervised_evaluator(Identity(task), {"auc": metric})
    return evaluator.run(_loader(task)).metrics["auc"]


def schedule() -> list[int]:
    steps: list[int] = []
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.STARTED | Events.EPOCH_COMPLETED(every=2))
    def evaluate(engine: Engine) -> None:
        steps.append(engine.state.epoch)

    trainer.run([0], max_epochs=4)
    return steps


def _evaluating(trainer: Engine, net: nn.Module, event: Any) -> None:
    evaluator = create_supervised_evaluator(net, {"loss": Loss(mse)})
    loader = DataLoader(small_data(), 4)
    trainer.add_event_handler(event, lambda: evaluator.run(loader))


def frozen() -> list[bool]:
    net, seen = frozen_net(), []
    note_frozen(net, seen)
    trainer = create_supervised_trainer(net, torch.optim.SGD(net.parameters(), 0.1), mse)
    _evaluating(trainer, net, Events.ITERATION_COMPLETED(every=2))
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: (net.train(), net[1].eval()))
    trainer.run(DataLoader(small_data(), 2), max_epochs=1)
    return [seen[1], seen[2]]


def weights(evaluate: bool) -> list[float]:
    net = dropout_net()
    trainer = create_supervised_trainer(net, torch.optim.SGD(net.parameters(), 0.1), mse)
    if evaluate:
        _evaluating(trainer, net, Events.EPOCH_COMPLETED)
    trainer.run(DataLoader(small_data(), 2, shuffle=True), max_epochs=2)
    return flat(net)
