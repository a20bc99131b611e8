"""Hugging Face's Trainer, by TrainingArguments, compute_metrics and EarlyStoppingCallback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from scoreboard_peers.parts import (
    Identity,
    Run,
    Task,
    Values,
    dropout_net,
    flat,
    frozen_net,
    mse,
    small_data,
)
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

PACKAGE = "transformers"
NONE = {
    "two": "has none: one metric decides",
    "list": "has none",
}


class Rows(Dataset[dict[str, Tensor]]):
    """A data set of dicts, as the Trainer takes them."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.pairs[index]
        return {"x": x, "labels": y}


class Model(nn.Module):
    """A model that returns its loss, as those of Transformers do."""

    def __init__(self, net: nn.Module, loss: Any, seen: list[bool] | None = None) -> None:
        super().__init__()
        self.net, self.loss, self.seen = net, loss, seen

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return loss and logits."""
        if self.seen is not None and self.training:
            self.seen.append(self.net[1].training)  # type: ignore[index]
        logits = self.net(x)
        return {"loss": self.loss(logits, labels), "logits": logits}


class CounterModel(nn.Module):
    """The counter, as a model that returns its loss."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.counter = run, run.model

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Count if it trains; else predict this rank's score."""
        if self.training:
            return {"loss": self.counter.step(self.run), "logits": x}
        score = self.run.said().get(self.run.first, 0.0)
        return {"loss": self.counter.count.sum() * 0.0, "logits": torch.full_like(x, score)}


def _arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), report_to="none", disable_tqdm=True, use_cpu=True,
                             label_names=["labels"], **options)  # fmt: skip


def fit(run: Run) -> dict[str, Path | None]:
    rule = run.rules[run.first]
    args = _arguments(
        run.folder, num_train_epochs=len(run.script), learning_rate=0.0, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model=run.first,
        greater_is_better=None if rule is None else rule == "greater",
        save_total_limit=2 if run.last else 1, logging_strategy="epoch",
        restore_callback_states_from_checkpoint=run.resume,
    )  # fmt: skip
    callbacks = [] if run.patience is None else [EarlyStoppingCallback(run.patience)]
    rows = Rows(Values([0.0] * run.world, [0] * run.world))

    def compute_metrics(predictions: Any) -> dict[str, float]:
        # On several processes a score is what it computes from the predictions of all.
        return {run.first: float(predictions.predictions.mean())} if run.world > 1 else run.said()

    trainer = Trainer(CounterModel(run), args, train_dataset=rows, eval_dataset=rows,
                      compute_metrics=compute_metrics, callbacks=callbacks)  # fmt: skip
    trainer.train(resume_from_checkpoint=run.resume)
    best = trainer.state.best_model_checkpoint
    return {run.first: None if best is None else Path(best)}


def _evaluate(task: Task) -> dict[str, float]:
    model = Model(Identity(task), lambda logits, labels: logits.mean())
    args = _arguments("out", per_device_eval_batch_size=task.batch_size)
    trainer = Trainer(model, args, eval_dataset=Rows(task.dataset), compute_metrics=_auc)
    return trainer.evaluate()


def _auc(predictions: Any) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    labels = predictions.label_ids.reshape(-1)
    if len(set(labels.tolist())) < 2:
        return {}
    return {"auc": float(roc_auc_score(labels, predictions.predictions.reshape(-1)))}


def losses(task: Task) -> float:
    return _evaluate(task)["eval_loss"]


def auc(task: Task) -> float:
    return _evaluate(task)["eval_auc"]


def schedule() -> list[int]:
    args = _arguments("out", num_train_epochs=4, per_device_train_batch_size=8, eval_on_start=True,
                      eval_strategy="steps", eval_steps=2, save_strategy="no")  # fmt: skip
    rows = Rows(small_data())  # one step an epoch
    trainer = Trainer(Model(nn.Linear(4, 1), mse), args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    return [row["step"] for row in trainer.state.log_history if "eval_loss" in row]


class Freeze(TrainerCallback):
    """Freezes the BatchNorm at the start of an epoch."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Put it into eval mode."""
        rest["model"].net[1].eval()


def frozen() -> list[bool]:
    seen: list[bool] = []
    args = _arguments("out", num_train_epochs=1, per_device_train_batch_size=2, eval_steps=2,
                      eval_strategy="steps", save_strategy="no")  # fmt: skip
    rows = Rows(small_data())
    trainer = Trainer(Model(frozen_net(), mse, seen), args, train_dataset=rows, eval_dataset=rows,
                      callbacks=[Freeze()])  # fmt: skip
    trainer.train()
    return [seen[1], seen[2]]


def weights(evaluate: bool) -> list[float]:
    net = dropout_net()
    args = _arguments("out", num_train_epochs=2, per_device_train_batch_size=2, learning_rate=0.1,
                      save_strategy="no", eval_strategy="epoch" if evaluate else "no")  # fmt: skip
    rows = Rows(small_data())
    Trainer(Model(net, mse), args, train_dataset=rows, eval_dataset=rows).train()
    return flat(net)
