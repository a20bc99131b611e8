"""Keras 3 on torch: ``fit`` with ModelCheckpoint, EarlyStopping and BackupAndRestore."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from scoreboard_peers.parts import Run, Task

PACKAGE = "keras"
NO_RANKS = "has none: fit runs on one process"
NONE = {
    "loss2": NO_RANKS,
    "auc": NO_RANKS,
    "empty": NO_RANKS,
    "raises": NO_RANKS,
    "stop_ranks": NO_RANKS,
    "start": "has none: no evaluation before training",
    "frozen": "has none: a layer is frozen by trainable=False, for good",
}


@keras.saving.register_keras_serializable()
class CounterModel(keras.Model):
    """The counter as a Keras model."""

    run: Run | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.count = self.add_weight(shape=(1,), initializer="zeros", name="count")
        self.ballast = self.add_weight(shape=(50_000,), initializer="zeros", name="ballast")
        self.built = True

    def call(self, x: Any) -> Any:
        """Return the input."""
        return x

    def train_step(self, data: Any) -> dict[str, Any]:
        """Count one step."""
        assert self.run is not None
        self.count.assign(self.count + 1.0)
        self.run.model.count.data.fill_(float(self.count.numpy()[0]) - 1)
        self.run.model.step(self.run)
        return {"loss": 0.0}

    def test_step(self, data: Any) -> dict[str, Any]:
        """Say what the script says."""
        assert self.run is not None
        return self.run.said()


def fit(run: Run) -> dict[str, Path | None]:
    model = CounterModel()
    model.run = run
    model.compile(optimizer="sgd", loss="mse", run_eagerly=True)
    paths = {name: run.folder / f"best_{name}.keras" for name in run.rules}
    callbacks: list[Any] = [
        keras.callbacks.ModelCheckpoint(
            str(paths[name]), f"val_{name}", save_best_only=True,
            mode={"greater": "max", "less": "min", None: "auto"}[rule],
        )
        for name, rule in run.rules.items()
    ]  # fmt: skip
    if run.patience is not None:
        callbacks.append(keras.callbacks.EarlyStopping(f"val_{run.first}", patience=run.patience,
                                                       mode="max"))  # fmt: skip
    if run.last:
        callbacks.append(keras.callbacks.BackupAndRestore(str(run.folder / "backup")))
    data = np.zeros((1, 1), "float32"), np.zeros((1, 1), "float32")
    model.fit(*data, epochs=len(run.script), validation_data=data, callbacks=callbacks, verbose=0)
    return {name: path if path.exists() else None for name, path in paths.items()}


def losses(task: Task) -> float:
    values = task.dataset.values.reshape(-1, 1).numpy()
    model = keras.Sequential([keras.layers.Identity()])
    model.compile(loss=lambda y, y_pred: y_pred)
    return float(model.evaluate(values, values * 0, batch_size=task.batch_size, verbose=0))


def list_of_losses(parts: list[float]) -> float:
    x = keras.Input((1,))
    outputs = [keras.layers.Lambda(lambda t, p=p: t * 0 + p, name=f"head{p:.0f}")(x) for p in parts]
    model = keras.Model(x, outputs)
    model.compile(loss=[lambda y, y_pred: y_pred for _ in parts])
    zeros = np.zeros((1, 1), "float32")
    return float(model.evaluate(zeros, [zeros] * len(parts), verbose=0)[0])


def weights(evaluate: bool) -> list[float]:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile(optimizer="sgd", loss="mse")
    x = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)
    y = x.sum(axis=1, keepdims=True)
    data = (x, y) if evaluate else None
    model.fit(x, y, batch_size=2, epochs=2, validation_data=data, verbose=0)
    return [float(v) for w in model.get_weights() for v in w.reshape(-1)]
