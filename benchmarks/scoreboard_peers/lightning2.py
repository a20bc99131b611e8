"""Lightning: a LightningModule that logs with sync_dist, ModelCheckpoint, EarlyStopping."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
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
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAUROC

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel("ERROR")
PACKAGE = "lightning"
NONE = {
    "names": "has none: mode is given, and is min otherwise",
    "list": "has none",
    "start": "has none: only a few batches before training, whose result is thrown away",
}


def _trainer(epochs: int, **options: Any) -> Trainer:
    options.setdefault("enable_checkpointing", False)
    return Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                   enable_model_summary=False, **options)  # fmt: skip


class Scripted(LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.counter = run, run.model
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.counter.step(self.run)
        optimizer.step()  # type: ignore[union-attr]  # so that Lightning counts the step

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            values = self.run.said()
            scores = {name: torch.tensor(value) for name, value in values.items()}
            self.log_dict(scores, sync_dist=self.run.world > 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(run: Run, dirpath: Path | None = None) -> dict[str, Path | None]:
    """Train as ``run`` says; ``dirpath`` stays the default, a new folder in each run."""
    bests = {
        name: ModelCheckpoint(dirpath, monitor=name, mode="min" if rule == "less" else "max",
                              filename=f"best_{name}" + "_{epoch}")
        for name, rule in run.rules.items()
    }  # fmt: skip
    callbacks: list[Any] = list(bests.values())
    if run.patience is not None:
        callbacks.append(EarlyStopping(run.first, mode="max", patience=run.patience))
    if run.last:
        callbacks.append(
            ModelCheckpoint(
                run.folder / "last",
                filename="last",
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            )
        )
    options = {"callbacks": callbacks, "enable_checkpointing": True, "num_sanity_val_steps": 0}
    trainer = Trainer(
        max_epochs=len(run.script),
        accelerator="cpu",
        devices=run.world,
        logger=CSVLogger(run.folder),
        default_root_dir=run.folder,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    path = run.folder / "last" / "last.ckpt" if run.resume else None
    module = Scripted(run)
    trainer.fit(module, run.batches(), run.batches(), ckpt_path=path, weights_only=False)
    return {
        name: Path(b.best_model_path) if b.best_model_path else None for name, b in bests.items()
    }


def fit_with_dirpath(run: Run) -> dict[str, Path | None]:
    """Train as ``run`` says, with the files of the best in a folder of one's own."""
    return fit(run, run.folder / "best")


class Validated(LightningModule):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.net, self.auroc = Identity(task), BinaryAUROC()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        y_pred = self.net(batch[0])
        if self.net.task.labels:
            self.auroc(y_pred, batch[1])
            self.log("auc", self.auroc)
        self.log("loss", y_pred.mean(), sync_dist=True, batch_size=len(y_pred))


def _validate(task: Task) -> dict[str, float]:
    trainer = _trainer(1, devices=task.world, use_distributed_sampler=not task.shards)
    loader = task.loader()
    if task.shards:
        loader = DataLoader(loader.dataset, task.batch_size)
    (answer,) = trainer.validate(Validated(task), loader, verbose=False)
    return dict(answer)


def losses(task: Task) -> float:
    return _validate(task)["loss"]


def auc(task: Task) -> float:
    return _validate(task)["auc"]


class Trained(LightningModule):
    def __init__(self, net: nn.Sequential, seen: list[bool] | None = None) -> None:
        super().__init__()
        self.net, self.seen = net, seen

    def on_train_epoch_start(self) -> None:
        if self.seen is not None:
            self.net[1].eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.seen is not None:
            self.seen.append(self.net[1].training)
        return mse(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", mse(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def frozen() -> list[bool]:
    seen: list[bool] = []
    module = Trained(frozen_net(), seen)
    trainer = _trainer(1, val_check_interval=2, num_sanity_val_steps=0)
    trainer.fit(module, DataLoader(small_data(), 2), DataLoader(small_data(), 4))
    return [seen[1], seen[2]]


def weights(evaluate: bool) -> list[float]:
    module = Trained(dropout_net())
    trainer = _trainer(2, limit_val_batches=1.0 if evaluate else 0)
    trainer.fit(module, DataLoader(small_data(), 2, shuffle=True), DataLoader(small_data(), 4))
    return flat(module.net)
