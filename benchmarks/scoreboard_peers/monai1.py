"""MONAI's engines and handlers: SupervisedEvaluator, ValidationHandler, CheckpointSaver."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import Evaluator, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import (
    ROCAUC,
    CheckpointLoader,
    CheckpointSaver,
    EarlyStopHandler,
    ValidationHandler,
)
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics import LossMetric
from scoreboard_peers.parts import (
    Identity,
    Run,
    Task,
    dropout_net,
    flat,
    frozen_net,
    mse,
    note_frozen,
    small_data,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

warnings.filterwarnings("ignore")
PACKAGE = "monai"
NONE = {
    "names": "has none: key_metric_negative_sign is given, and greater is better",
    "list": "has none",
}


def _dicts(data: Any, batch_size: int, **options: Any) -> DataLoader[Any]:
    rows = [{"image": x, "label": y} for x, y in data]
    return DataLoader(rows, batch_size=batch_size, **options)  # type: ignore[arg-type]


class Scripted(Metric):
    """A metric whose value is the one of the script, whatever the batches are."""

    required_output_keys = None

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.said = run, name
        super().__init__(output_transform=lambda output: (torch.zeros(1), torch.zeros(1)))

    def reset(self) -> None:
        """Keep no state."""

    def update(self, output: Any) -> None:
        """Ignore a batch."""

    def compute(self) -> float:
        """Return what the script says."""
        return self.run.said()[self.said]


def _trainer(net: nn.Module, handlers: list[Any], epochs: int, **options: Any) -> SupervisedTrainer:
    options.setdefault("train_data_loader", _dicts(small_data(), 2, shuffle=True))
    options.setdefault("optimizer", torch.optim.SGD(net.parameters(), 0.1))
    return SupervisedTrainer("cpu", epochs, network=net, loss_function=mse,
                             train_handlers=handlers, **options)  # fmt: skip


def _evaluator(net: nn.Module, data: Any = None, **options: Any) -> SupervisedEvaluator:
    loader = _dicts(small_data(), 4) if data is None else data
    return SupervisedEvaluator("cpu", loader, network=net, **options)


def fit(run: Run) -> dict[str, Path | None]:
    def train(engine: Engine, batch: Any) -> dict[str, Tensor]:
        return {"loss": run.model.step(run)}

    validate = ValidationHandler(interval=1)
    handlers: list[Any] = [validate]
    loader = _dicts([(torch.zeros(1), torch.zeros(1))], 1)
    trainer = _trainer(run.model, handlers, len(run.script), train_data_loader=loader,
                       iteration_update=train)  # fmt: skip
    first, *rest = run.script[0]
    to_save = {"net": run.model}
    savers = [
        CheckpointSaver(str(run.folder), to_save, save_key_metric=True, key_metric_name=name,
                        key_metric_negative_sign=rule == "less", file_prefix=f"best_{name}",
                        key_metric_save_state=True)
        for name, rule in run.rules.items()
    ]  # fmt: skip
    evaluator = _evaluator(
        run.model, loader, iteration_update=lambda engine, batch: {},
        key_val_metric={first: Scripted(run, first)},
        additional_metrics={name: Scripted(run, name) for name in rest} or None,
        val_handlers=savers,
    )  # fmt: skip
    validate.set_validator(evaluator)
    if run.patience is not None:
        name = run.first
        EarlyStopHandler(run.patience, lambda e: e.state.metrics[name], trainer).attach(evaluator)
    if run.last:
        last = CheckpointSaver(str(run.folder), {**to_save, "trainer": trainer}, save_interval=1,
                               n_saved=1, file_prefix="last")  # fmt: skip
        last.attach(trainer)
    if run.resume:
        (file,) = run.folder.glob("last_*.pt")
        state = {**to_save, "trainer": trainer}
        CheckpointLoader(str(file), state, map_location="cpu", strict=False).attach(trainer)
        for path in run.folder.glob("best_*.pt"):
            # key_metric_save_state has put the saver's own state into the file of the best.
            CheckpointLoader(str(path), {"checkpointer": savers[0]}, map_location="cpu",
                             strict=False).attach(trainer)  # fmt: skip
    trainer.run()
    return {name: _path(run, s) for name, s in zip(run.rules, savers, strict=True)}


def _path(run: Run, saver: CheckpointSaver) -> Path | None:
    last = saver._key_metric_checkpoint.last_checkpoint
    return None if last is None else run.folder / Path(last).name


def _loader(task: Task) -> DataLoader[Any]:
    rows = [{"image": x, "label": y} for x, y in task.loader().dataset]
    sampler = None
    if task.world > 1 and not task.shards:
        sampler = DistributedSampler(rows, shuffle=False)  # type: ignore[arg-type]
    return DataLoader(rows, batch_size=task.batch_size, sampler=sampler)  # type: ignore[arg-type]


def losses(task: Task) -> float:
    metric = IgniteMetricHandler(
        metric_fn=LossMetric(lambda pred, label: pred.mean(), get_not_nans=False),
        output_transform=lambda out: ([o["pred"] for o in out], [o["label"] for o in out]),
    )
    evaluator = _evaluator(Identity(task), _loader(task), key_val_metric={"loss": metric})
    evaluator.run()
    return evaluator.state.metrics["loss"]


def auc(task: Task) -> float:
    metric = ROCAUC(
        output_transform=lambda out: ([o["pred"] for o in out], [o["label"] for o in out])
    )
    evaluator = _evaluator(Identity(task), _loader(task), key_val_metric={"auc": metric})
    evaluator.run()
    return evaluator.state.metrics["auc"]


def schedule() -> list[int]:
    steps: list[int] = []

    class Noting(Evaluator):
        def run(self, global_epoch: int = 1) -> None:
            steps.append(global_epoch)

    net = nn.Linear(4, 1)
    noting = Noting("cpu", _dicts(small_data(), 4))
    _trainer(net, [ValidationHandler(interval=2, validator=noting, exec_at_start=True)], 4).run()
    return steps


def frozen() -> list[bool]:
    net, seen = frozen_net(), []
    note_frozen(net, seen)
    handler = ValidationHandler(interval=2, validator=_evaluator(net), epoch_level=False)
    trainer = _trainer(net, [handler], 1)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: (net.train(), net[1].eval()))
    trainer.run()
    return [seen[1], seen[2]]


def weights(evaluate: bool) -> list[float]:
    net = dropout_net()
    handlers = [ValidationHandler(interval=1, validator=_evaluator(net))] if evaluate else []
    _trainer(net, handlers, 2).run()
    return flat(net)
