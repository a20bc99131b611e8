"""TorchTNT: ``train`` and ``fit`` with a unit, DistributedCheckpointSaver, EarlyStopping."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

if importlib.util.find_spec("pkg_resources") is None:
    # Newer setuptools no longer have it; TorchTNT imports it, and needs it for a torch from source.
    sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

from scoreboard_peers.parts import (  # noqa: E402
    Run,
    dropout_net,
    flat,
    frozen_net,
    mse,
    small_data,
)
from torchtnt.framework.callbacks import EarlyStopping  # noqa: E402
from torchtnt.framework.callbacks.checkpointer_types import RestoreOptions  # noqa: E402
from torchtnt.framework.callbacks.dcp_saver import DistributedCheckpointSaver  # noqa: E402
from torchtnt.framework.fit import fit as fit_unit  # noqa: E402
from torchtnt.framework.state import State  # noqa: E402
from torchtnt.framework.unit import EvalUnit, TrainUnit  # noqa: E402
from torchtnt.utils.checkpoint import BestCheckpointConfig, get_best_checkpoint_path  # noqa: E402
from torchtnt.utils.early_stop_checker import EarlyStopChecker  # noqa: E402

PACKAGE = "torchtnt"
BY_HAND = "has none: losses and metrics are computed by hand"
NONE = {
    "loss": BY_HAND,
    "loss2": BY_HAND,
    "list": BY_HAND,
    "auc": BY_HAND,
    "empty": BY_HAND,
    "raises": BY_HAND,
    "names": "has none: mode is given",
    "start": "has none: no evaluation before training",
}


class Scripted(TrainUnit[Any], EvalUnit[Any]):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.counter = run, run.model

    def train_step(self, state: State, data: Any) -> None:
        self.counter.step(self.run)

    def on_train_epoch_end(self, state: State) -> None:
        # The saver runs before the evaluation of fit(), and has no hook of its own behind it.
        for name, value in self.run.said().items():
            setattr(self, name, value)

    def eval_step(self, state: State, data: Any) -> None:
        """Have nothing to do."""


def fit(run: Run) -> dict[str, Path | None]:
    savers = {
        name: DistributedCheckpointSaver(
            str(run.folder / name), save_every_n_epochs=1, keep_last_n_checkpoints=1,
            best_checkpoint_config=BestCheckpointConfig(name, "min" if rule == "less" else "max"),
        )
        for name, rule in run.rules.items()
        if run.world == 1  # the names of its files hold the score, which is to be that of all
    }  # fmt: skip
    callbacks: list[Any] = list(savers.values())
    if run.last:
        last = DistributedCheckpointSaver(str(run.folder / "last"), save_every_n_epochs=1,
                                          keep_last_n_checkpoints=1)  # fmt: skip
        callbacks.append(last)
    if run.patience is not None:
        checker = EarlyStopChecker("max", run.patience, threshold_mode="abs")
        callbacks.append(EarlyStopping(run.first, checker))
    unit = Scripted(run)
    if run.resume:
        options = RestoreOptions()
        DistributedCheckpointSaver.restore_from_latest(str(run.folder / "last"), unit,
                                                       restore_options=options)  # fmt: skip
    fit_unit(unit, run.batches(), run.batches(), evaluate_every_n_epochs=1,
             max_epochs=len(run.script), callbacks=callbacks)  # fmt: skip
    found: dict[str, Path | None] = {}
    for name, rule in run.rules.items() if run.world == 1 else ():
        mode: Any = "min" if rule == "less" else "max"
        path = get_best_checkpoint_path(str(run.folder / name), name, mode)
        found[name] = None if path is None else Path(path)
    return found


class Trained(TrainUnit[Any], EvalUnit[Any]):
    def __init__(self, net: nn.Sequential, seen: list[bool]) -> None:
        super().__init__()
        self.net, self.seen = net, seen
        self.optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def on_train_epoch_start(self, state: State) -> None:
        if isinstance(self.net[1], nn.BatchNorm1d):
            self.net[1].eval()

    def train_step(self, state: State, data: Any) -> None:
        self.seen.append(self.net[1].training)
        mse(self.net(data[0]), data[1]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def eval_step(self, state: State, data: Any) -> None:
        self.net(data[0])


def frozen() -> list[bool]:
    seen: list[bool] = []
    fit_unit(Trained(frozen_net(), seen), DataLoader(small_data(), 2), DataLoader(small_data(), 4),
             max_epochs=1, evaluate_every_n_steps=2)  # fmt: skip
    return [seen[1], seen[2]]


def weights(evaluate: bool) -> list[float]:
    net = dropout_net()
    train, val = DataLoader(small_data(), 2, shuffle=True), DataLoader(small_data(), 4)
    fit_unit(Trained(net, []), train, val,
             max_epochs=2, evaluate_every_n_epochs=1 if evaluate else None)  # fmt: skip
    return flat(net)
