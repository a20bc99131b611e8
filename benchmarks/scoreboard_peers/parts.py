"""What all libraries of the scoreboard share: a model that counts, scripted scores, small data.

A library's file offers some of these functions; what it lacks, the library has none of:

- ``fit(run)``: train as ``run`` says; return the file that the library calls the best, by metric.
- ``losses(task)``: the mean loss of ``task.values`` on this rank, by the library's validation.
- ``list_of_losses(parts)``: the validation loss of a model that returns a list of losses.
- ``auc(task)``: the area under the curve of ``task.values`` with ``task.labels``.
- ``schedule()``: the steps (completed epochs) of the evaluations of four epochs, with
  ``start=0, interval=2``.
- ``frozen()``: the training flag of a frozen BatchNorm before and after an evaluation.
- ``weights(evaluate)``: weights after two epochs with dropout and a shuffled loader.
- ``NONE``: scenarios that it has none of, with the reason.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset


class Broken(RuntimeError):
    """Ends a training as a crash would."""


class Counter(nn.Module):
    """A model whose only parameter counts the training steps, so a file shows its epoch.

    The ballast makes its file larger than what a full disk lets through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.zeros(1))
        self.register_buffer("ballast", torch.rand(50_000))

    def step(self, run: Run) -> Tensor:
        """Count one training step; return a loss without a gradient to speak of."""
        with torch.no_grad():
            self.count.add_(1)
        run.trained = round(self.count.item())
        if run.break_after is not None and run.trained > run.break_after:
            raise Broken(f"broken off in epoch {run.trained}")
        return (self.count * 0.0).sum()


@dataclass
class Run:
    """One training: one step an epoch, one evaluation after each, whose metrics are scripted.

    Attributes:
        folder: Where all files go.
        script: The metrics of the evaluation after each epoch.
        rules: The metrics to keep a best of, each ``"greater"``, ``"less"``, or ``None`` for what
            the library makes of the name, or does by default.
        patience: Evaluations without a better first metric after which training stops.
        last: Save after every epoch what is needed to resume.
        resume: Go on from what an earlier run in this folder has saved.
        break_after: The epoch after which training crashes.
        full_at: The evaluation from which on the disk is full.
        world: How many processes train.
        trained: How many epochs were trained, as the model knows.
    """

    folder: Path
    script: list[Mapping[str, float]]
    rules: Mapping[str, str | None] = field(default_factory=lambda: {"acc": "greater"})
    patience: int | None = None
    last: bool = False
    resume: bool = False
    break_after: int | None = None
    full_at: int | None = None
    world: int = 1
    trained: int = 0
    model: Counter = field(default_factory=Counter)

    @property
    def first(self) -> str:
        """The name of the metric that decides."""
        return next(iter(self.rules))

    def said(self) -> dict[str, float]:
        """Return the metrics of the evaluation after the epochs trained so far."""
        if self.full_at is not None and self.trained >= self.full_at:
            limit_file_size(50_000)
        return dict(self.script[max(self.trained, 1) - 1])

    @staticmethod
    def batches() -> DataLoader[Any]:
        """Return the loader of one batch of one sample, for training or evaluation."""
        return DataLoader(TensorDataset(torch.zeros(1, 1), torch.zeros(1)), batch_size=1)


def limit_file_size(size: int | None) -> None:
    """Let every file written by this process end at ``size`` bytes, as on a full disk."""
    limit = resource.RLIM_INFINITY if size is None else size
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def epochs_in(folder: Path) -> dict[str, int]:
    """Return the epoch of each checkpoint in a folder that loads."""
    found = {str(path.relative_to(folder)): epoch_in(path) for path in sorted(folder.rglob("*"))}
    return {name: epoch for name, epoch in found.items() if epoch is not None}


def epoch_in(path: Path | str | None) -> int | None:
    """Return the epoch of the :class:`Counter` in a file, ``None`` if it does not load."""
    if path is None or not Path(path).exists():
        return None
    path = Path(path)
    if path.is_dir() and not (path / ".metadata").exists():
        return next((e for p in path.glob("*.safetensors") if (e := epoch_in(p))), None)
    try:
        if path.is_dir():
            return _epoch_in_dcp(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        elif path.suffix == ".keras":
            return _epoch_in_keras(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=False)
    except Exception:  # noqa: BLE001  # whatever is wrong with the file, it does not load
        return None
    return _count_in(state)


def _count_in(state: Any) -> int | None:
    if isinstance(state, Mapping):
        for name, value in state.items():
            if str(name).rpartition(".")[2] == "count" and isinstance(value, Tensor):
                return round(value.item())
        for value in state.values():
            if (epoch := _count_in(value)) is not None:
                return epoch
    return None


def _epoch_in_dcp(folder: Path) -> int | None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    whole = folder.parent / "whole.tmp"
    try:
        dcp_to_torch_save(folder, whole)
        return _count_in(torch.load(whole, weights_only=False))
    except CheckpointException:  # no Exception, by its base class
        return None
    finally:
        whole.unlink(missing_ok=True)


def _epoch_in_keras(path: Path) -> int:
    import keras

    model = keras.saving.load_model(path, compile=False)
    (count,) = (w for w in model.weights if w.name == "count")
    return round(float(count.numpy()[0]))


class Values(Dataset[tuple[Tensor, Tensor]]):
    """Values and labels, shape ``(1,)`` each."""

    def __init__(self, values: list[float], labels: list[int]) -> None:
        self.values, self.labels = torch.tensor(values), torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.values[index].reshape(1), self.labels[index].reshape(1)


@dataclass(frozen=True)
class Task:
    """Values to evaluate on ``world`` ranks: the loss of a sample is its value.

    Attributes:
        values: One for each sample.
        labels: 0 or 1 for each sample.
        batch_size: Samples a batch.
        broken: The rank whose model raises in its evaluation.
        shards: The shards are uneven: each rank's loader has every ``world``-th sample and no
            other, for libraries that take such a loader.
    """

    values: list[float]
    labels: list[int] = field(default_factory=list)
    batch_size: int = 2
    rank: int = 0
    world: int = 1
    broken: int | None = None
    shards: bool = False

    @property
    def dataset(self) -> Values:
        """All samples."""
        return Values(self.values, self.labels or [0] * len(self.values))

    def loader(self) -> DataLoader[Any]:
        """Return the loader of all samples, or of this rank's shard."""
        data: Any = self.dataset
        if self.shards:
            data = Subset(data, range(self.rank, len(data), self.world))
        return DataLoader(data, batch_size=self.batch_size)

    def check(self) -> None:
        """Raise on the broken rank; the models call it in their forward."""
        if self.broken == self.rank:
            raise ValueError("the model has a bug")


class Identity(nn.Module):
    """A model whose output is its input; it has a parameter, as trainers want one."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` of shape ``(batch, 1)``."""
        self.task.check()
        return x * self.scale


def mean_value(y_pred: Tensor, y: Tensor) -> Tensor:
    """Compute a loss: the mean of the predictions, whatever the labels."""
    return y_pred.mean()


def small_data() -> TensorDataset:
    """Return eight samples to train on: ``x`` of shape (8, 4), ``y`` of shape (8, 1)."""
    x = torch.linspace(-1, 1, 32).reshape(8, 4)
    return TensorDataset(x, x.sum(dim=1, keepdim=True))


def dropout_net() -> nn.Sequential:
    """Return a small network with dropout, from seed 0, and leave the generator at seed 1."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    torch.manual_seed(1)
    return net


def frozen_net() -> nn.Sequential:
    """Return a network whose BatchNorm is meant to stay in eval mode while it trains."""
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def note_frozen(net: nn.Sequential, seen: list[bool]) -> None:
    """Note the training flag of the BatchNorm at each training step."""
    net.register_forward_pre_hook(
        lambda module, args: seen.append(net[1].training) if net.training else None
    )


def flat(net: nn.Module) -> list[float]:
    """Return all weights in one list."""
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).tolist()


def mse(y_pred: Tensor, y: Tensor) -> Tensor:
    """Compute the mean squared error."""
    return nn.functional.mse_loss(y_pred, y)
