"""The runs whose files are kept in ``tests/data/golden``, as a release wrote them.

``python -m helpers.golden_runs FOLDER`` (in ``tests/``) wrote the folder ``0.1.0`` there with the
version of that name, before files changed; such folders are never written again.  A test copies
them and goes on with these runs, built by the present code.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import nn

from ignite_evalhook import BestCheckpoint, EvalHook

# By completed iterations: what the evaluations say.
ROWS: tuple[dict[str, Any], ...] = (
    {"acc": 0.0, "loss": 9.0},
    {"acc": 0.25, "loss": 0.5, "per class": [0.25, math.nan], "note": "früh"},
    {"acc": 0.75, "loss": math.nan, "gap": math.inf},
    {"acc": 0.5, "loss": 0.125, "gap": -math.inf},
    {"acc": 0.75, "loss": 0.25},
    {"acc": 0.875, "loss": 0.0},
)


class Run:
    """One of the runs, built anew.

    Args:
        which: ``"two_metrics"``, ``"alias"``, ``"async"`` or ``"behind"``.
        folder: Where its files are.

    Attributes:
        resumed: Whether there was something to resume from.
    """

    def __init__(self, which: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.5)
        self.trainer = Engine(self._train)
        options: dict[str, Any] = {"save_best": {"acc": 2, "loss": 1}, "out_dir": folder}
        name = "val"
        if which == "alias":
            name = "ema v2"
            options = {"save_best": "acc", "checkpoint": self._checkpoint(folder, alias="copy")}
        elif which == "async":
            options = {"save_best": "acc", "checkpoint": self._checkpoint(folder, async_save=True)}
        self.hook = EvalHook(
            None, lambda trainer: dict(ROWS[self.trainer.state.iteration]), model=self.model,
            start=0, name=name, **options,
        )  # fmt: skip
        self.hook.attach(self.trainer)
        self.stopper: EarlyStopping = self.hook.early_stopping(9, metric="acc")
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, mode="max")
        self.hook.step_on_plateau(schedule, metric="acc")
        self.resumed = self.hook.keep_last(
            {"model": self.model, "optimizer": self.optimizer, "schedule": schedule},
            every=2 if which == "behind" else 1,
        )

    def _checkpoint(self, folder: Path, **options: Any) -> BestCheckpoint:
        return BestCheckpoint({"model": self.model}, folder, n_saved=2, **options)

    def _train(self, engine: Engine, batch: Any) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.rand_like(parameter)
        self.optimizer.step()

    def go(self, epochs: int) -> Run:
        """Train up to so many epochs."""
        self.trainer.run([0], max_epochs=epochs)
        return self


def main(folder: Path) -> None:
    """Write the files of all runs, each to a folder of its name."""
    for which in ("two_metrics", "alias", "async", "behind"):
        place = folder / which
        run = Run(which, place)
        if which == "behind":
            # Killed in epoch 4, when last.pt is of epoch 2; begun again, and killed in epoch 3:
            # the best of the abandoned stretch is on disk, and the history does not know it.
            _kill(run, Events.EPOCH_STARTED(once=4))
            run = Run(which, place)
            _kill(run, Events.EPOCH_STARTED(once=3))
        else:
            run.go(3)
        torch.save(run.hook.state_dict(), place / "hook_state.pt")


def _kill(run: Run, event: Any) -> None:
    def kill() -> None:
        raise KeyboardInterrupt

    run.trainer.add_event_handler(event, kill)
    with suppress(KeyboardInterrupt):
        run.go(5)
    run.hook.detach()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
