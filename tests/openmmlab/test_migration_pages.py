"""What the migration pages say, where their own code does not show it.

``docs/migrate_ignite.md`` and ``docs/migrate_lightning.md`` are run by ``test_docs.py``.  Here are
the sentences and the rows of their tables: what the other library does, and what the hook does.
If a test of the other library fails after an update, the page has to change with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping, global_step_from_engine
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from helpers.scripted import best_files, run, scripted
from ignite_evalhook import EvalHook, shard_batches

DOCS = Path(__file__).parents[2] / "docs"
NAN = math.nan

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec:FutureWarning",
    r"ignore:The '\w+_dataloader' does not have many workers",
    r"ignore:Checkpoint directory .* exists and is not empty",
    r"ignore:The dirpath has changed",
)


def test_the_pages_are_short() -> None:
    for name in ("migrate_ignite.md", "migrate_lightning.md"):
        assert len((DOCS / name).read_text("utf-8").splitlines()) < 150, name


def steps(**when: Any) -> list[tuple[int, int]]:
    """Return epoch and iteration of each evaluation in six epochs of four iterations."""
    trainer = Engine(lambda engine, batch: None)
    hook = EvalHook(None, lambda trainer: {"acc": 1.0}, model=nn.Linear(1, 1), **when)
    hook.attach(trainer)
    trainer.run(range(4), max_epochs=6)
    return [(record.epoch, record.iteration) for record in hook.history]


# ---------------------------------------------------------------------------------------- Ignite


@pytest.mark.parametrize(
    ("event", "when"),
    [
        (Events.EPOCH_COMPLETED(every=2), {"interval": 2}),
        (Events.EPOCH_COMPLETED(every=2, after=3), {"interval": 2, "start": 4}),
        (Events.EPOCH_COMPLETED(once=[1, 5]), {"interval": [1, 5]}),
        (Events.ITERATION_COMPLETED(every=5), {"interval": 5, "by_epoch": False}),
        (Events.STARTED | Events.EPOCH_COMPLETED(every=4), {"interval": 4, "start": 0}),
        (Events.COMPLETED | Events.EPOCH_COMPLETED(every=4), {"interval": 4, "at_end": True}),
    ],
)
def test_the_schedule_beside_an_ignite_event_is_due_when_it_fires(
    event: Any, when: dict[str, Any]
) -> None:
    trainer, fired = Engine(lambda engine, batch: None), []
    trainer.add_event_handler(
        event, lambda: fired.append((trainer.state.epoch, trainer.state.iteration))
    )
    trainer.run(range(4), max_epochs=6)
    assert steps(**when) == fired


def by_hand(scores: Sequence[float], folder: Path, **of_checkpoint: Any) -> tuple[Engine, Engine]:
    """Wire a trainer and an evaluator with known scores as Ignite's documentation does."""
    given = iter(scores)
    trainer = Engine(lambda engine, batch: None)
    evaluator = Engine(lambda engine, batch: engine.state.metrics.update(acc=next(given)))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    best = Checkpoint(
        {"model": nn.Linear(1, 1)},
        DiskSaver(str(folder), create_dir=True, require_empty=False),
        score_function=Checkpoint.get_default_score_fn("acc"),
        score_name="acc",
        global_step_transform=global_step_from_engine(trainer),
        **of_checkpoint,
    )
    evaluator.add_event_handler(Events.COMPLETED, best)
    return trainer, evaluator


def test_by_hand_a_worse_best_is_saved_beside_the_forgotten_one(tmp_path: Path) -> None:
    by_hand([0.5, 0.9], tmp_path)[0].run([0], max_epochs=2)
    resumed, _ = by_hand([0.6], tmp_path)
    resumed.load_state_dict({"epoch": 2, "epoch_length": 1, "max_epochs": 3})
    resumed.run([0], max_epochs=3)
    assert best_files(tmp_path) == ["model_2_acc=0.9000.pt", "model_3_acc=0.6000.pt"]


def test_by_hand_early_stopping_that_is_attached_to_the_evaluator_never_stops(
    tmp_path: Path,
) -> None:
    if not hasattr(EarlyStopping, "attach"):
        pytest.skip("this Ignite has no EarlyStopping.attach")
    trainer, evaluator = by_hand([0.5] * 9, tmp_path)
    EarlyStopping(2, Checkpoint.get_default_score_fn("acc"), trainer).attach(evaluator)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 9
    assert stopped_at([0.5] * 9, 2) == 3


def stopped_at(scores: Sequence[float], patience: int, **options: Any) -> int:
    """Return the epoch at which the hook stops a run with these scores."""
    hook, trainer = scripted(scores)
    hook.attach(trainer)
    hook.early_stopping(patience, **options)
    trainer.run([0], max_epochs=len(scores))
    return trainer.state.epoch


def test_by_hand_a_distributed_sampler_makes_six_samples_of_five() -> None:
    data = TensorDataset(torch.arange(5.0))
    samplers: list[Any] = [
        DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False) for rank in range(2)
    ]
    dealt = [index for sampler in samplers for index in sampler]
    assert sorted(dealt) == [0, 0, 1, 2, 3, 4]
    assert sum(dealt) / len(dealt) == pytest.approx(1.667, abs=1e-3)
    shares = [
        value
        for rank in range(2)
        for (batch,) in shard_batches(DataLoader(data, 2), rank=rank, world_size=2)
        for value in batch.tolist()
    ]
    assert sum(shares) / len(shares) == 2.0


# ------------------------------------------------------------------------------------- Lightning


@pytest.fixture
def fit() -> Iterator[Callable[..., Any]]:
    """Return a function that fits a module with known scores of "acc", in two steps an epoch."""
    lightning = pytest.importorskip("lightning.pytorch")
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel("ERROR")

    class Scripted(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, scores: Sequence[float]) -> None:
            super().__init__()
            self.scores, self.layer = scores, nn.Linear(1, 1)
            self.validated: list[tuple[int, int]] = []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.layer(batch[0]).mean()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("acc", torch.tensor(self.scores[self.current_epoch]))

        def on_validation_epoch_end(self) -> None:
            self.validated.append((self.current_epoch + 1, self.global_step))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(
        scores: Sequence[float],
        *callbacks: Any,
        ckpt_path: Any = None,
        size: int = 2,
        **options: Any,
    ) -> Any:
        options = {"num_sanity_val_steps": 0, "max_epochs": len(scores), **options}
        if not callbacks:
            options["enable_checkpointing"] = False
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), **options,
        )  # fmt: skip
        batches = [DataLoader(TensorDataset(torch.zeros(n, 1)), 1) for n in (size, 1)]
        trainer.fit(Scripted(scores), *batches, ckpt_path=ckpt_path)
        return trainer

    yield fit
    logger.setLevel(level)


@pytest.fixture
def callbacks() -> Any:
    return pytest.importorskip("lightning.pytorch.callbacks")


def test_lightning_keeps_the_lowest_accuracy_by_default(
    fit: Any, callbacks: Any, tmp_path: Path
) -> None:
    best = callbacks.ModelCheckpoint(tmp_path, monitor="acc")
    fit([0.5, 0.9, 0.1], best)
    assert best.best_model_score == pytest.approx(0.1)
    hook = run([0.5, 0.9, 0.1])
    assert hook.best is not None
    assert hook.best.score == 0.9


def test_lightning_forgets_the_best_score_in_another_folder(
    fit: Any, callbacks: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"monitor": "acc", "mode": "max", "save_last": True}
    fit([0.5, 0.9], callbacks.ModelCheckpoint(tmp_path / "one", **options))
    best = callbacks.ModelCheckpoint(tmp_path / "two", **options)
    fit([0.5, 0.9, 0.2], best, ckpt_path=tmp_path / "one" / "last.ckpt")
    assert best.best_model_score == pytest.approx(0.2)


def test_lightning_puts_the_old_patience_over_the_new_one(
    fit: Any, callbacks: Any, tmp_path: Path
) -> None:
    def both(patience: int) -> list[Any]:
        stop = callbacks.EarlyStopping("acc", mode="max", patience=patience)
        return [callbacks.ModelCheckpoint(tmp_path, save_last=True), stop]

    fit([0.5, 0.4], *both(2))
    trainer = fit([0.5] + [0.4] * 6, *both(10), ckpt_path=tmp_path / "last.ckpt")
    assert trainer.current_epoch == 3


def test_lightning_saves_nan_where_there_is_nothing_else_and_stops_at_the_first(
    fit: Any, callbacks: Any, tmp_path: Path
) -> None:
    best = callbacks.ModelCheckpoint(tmp_path, monitor="acc", mode="max")
    fit([NAN, NAN], best)
    assert Path(best.best_model_path).is_file()
    stop = callbacks.EarlyStopping("acc", mode="max", patience=3)
    assert fit([0.5, NAN, 0.6, 0.7], callbacks.ModelCheckpoint(tmp_path), stop).current_epoch == 2
    assert stopped_at([0.5, NAN, 0.6, 0.7], 3) == 4
    assert run([NAN, NAN]).best is None


def test_lightning_finds_a_misspelled_metric_after_an_epoch(
    fit: Any, callbacks: Any, tmp_path: Path
) -> None:
    steps_done = []

    class Count(callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any) -> None:
            steps_done.append(1)

    with pytest.raises(Exception, match="could not find the monitored key"):
        fit(
            [0.1, 0.2],
            Count(),
            callbacks.ModelCheckpoint(tmp_path, monitor="ac", mode="max"),
            num_sanity_val_steps=2,
        )
    assert len(steps_done) == 2


CREEPING = [index / 10 for index in range(8)]
JUMPING = [0.5, 0.6, 0.2, 0.7, 0.65, 0.8, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("scores", "min_delta", "epochs"),
    [(CREEPING, 0.15, 8), (CREEPING, 0.25, 3), (JUMPING, 0.0, 8), (JUMPING, 0.15, 3)],
)
def test_min_delta_is_a_cumulative_threshold(
    scores: list[float], min_delta: float, epochs: int, fit: Any, callbacks: Any, tmp_path: Path
) -> None:
    stop = callbacks.EarlyStopping("acc", mode="max", patience=2, min_delta=min_delta)
    trainer = fit(scores, callbacks.ModelCheckpoint(tmp_path), stop)
    assert trainer.current_epoch == epochs
    assert stopped_at(scores, 2, threshold=min_delta, cumulative=True) == epochs


@pytest.mark.parametrize(
    ("lightning", "when"),
    [
        ({"check_val_every_n_epoch": 2}, {"interval": 2}),
        ({"val_check_interval": 0.25}, {"interval": 0.25}),
        (
            {"val_check_interval": 5, "check_val_every_n_epoch": None},
            {"interval": 5, "by_epoch": False},
        ),
    ],
)
def test_the_schedule_beside_one_of_lightning_is_due_at_the_same_steps(
    lightning: dict[str, Any], when: dict[str, Any], fit: Any
) -> None:
    trainer = fit([0.5] * 6, size=4, **lightning)
    assert trainer.lightning_module.validated == steps(**when)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("monitor", "save_best="),
        ("mode", "rule="),
        ("dirpath", "out_dir="),
        ("save_top_k", "n_saved="),
        ("patience", r"hook.early_stopping\(patience\)"),
    ],
)
def test_an_old_keyword_is_answered_with_the_new_one(old: str, new: str) -> None:
    with pytest.raises(TypeError, match=f"EvalHook has no argument '{old}'; use {new}"):
        steps(**{old: 1})
