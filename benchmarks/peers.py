"""The peers, each evaluating the same model on the same batches as its documentation recommends.

A peer is a function ``make(model, batches, criterion)`` that builds everything once and returns
``evaluate() -> mean loss``.  Batches are ready tensors, so that nobody's data loading is measured:
a plain list where a peer takes one, else ``DataLoader(batches, batch_size=None)``.  What prints,
logs or draws progress bars is switched off by the peer's own switch for it; nothing else is.

A peer that is not installed is reported as such; its import happens only when it is made.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ignite_evalhook import EvalHook, create_evaluator

Batch = tuple[Tensor, Tensor]
Evaluate = Callable[[], float]
Make = Callable[[nn.Module, list[Batch], nn.Module], Evaluate]

OURS, RAW = "ours", "raw loop"


def loader(batches: list[Any]) -> Any:
    """Return a loader of ready batches, for those who do not take a list."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def ours(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """A hook that answers: everything an evaluation does, but for the files."""
    hook = EvalHook(batches, create_evaluator(model, loss_fn=criterion))
    return lambda: hook.evaluate().metrics["val_loss"]


def raw(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """What a careful person would write: each mode once, the loss weighted by samples."""

    def evaluate() -> float:
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for x, y in batches:
                total += criterion(model(x), y).item() * len(x)
                count += len(x)
        model.train()
        return total / count

    return evaluate


def ignite(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """``create_supervised_evaluator`` with the metric ``Loss``."""
    from ignite.engine import create_supervised_evaluator
    from ignite.metrics import Loss

    evaluator = create_supervised_evaluator(model, {"loss": Loss(criterion)})
    return lambda: evaluator.run(batches).metrics["loss"]


def monai(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """``SupervisedEvaluator`` with ``IgniteMetricHandler``; not decollated, which is quicker."""
    from monai.engines import SupervisedEvaluator
    from monai.handlers import IgniteMetricHandler, from_engine

    named = [{"image": x, "label": y} for x, y in batches]
    evaluator = SupervisedEvaluator(
        device=batches[0][0].device,
        val_data_loader=named,
        network=model,
        key_val_metric={
            "loss": IgniteMetricHandler(
                loss_fn=criterion, output_transform=from_engine(["pred", "label"])
            )
        },
        decollate=False,
    )
    evaluator.logger.setLevel(logging.WARNING)

    def evaluate() -> float:
        evaluator.run()
        return evaluator.state.metrics["loss"]

    return evaluate


def mmengine(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """The ``ValLoop`` of a ``Runner`` with its default hooks, and its own val loss."""
    from mmengine.evaluator import Evaluator
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from mmengine.structures import BaseDataElement

    class Wrapped(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
            y_pred = self.net(x)
            return y_pred, y, BaseDataElement(loss={"loss": criterion(y_pred, y)})

    mmengine.count = getattr(mmengine, "count", 0) + 1  # type: ignore[attr-defined]
    runner = Runner(
        Wrapped(),
        work_dir=tempfile.mkdtemp(prefix="benchmark-mmengine-"),
        val_dataloader=loader(batches),
        val_cfg={},
        val_evaluator=Evaluator([]),
        log_level="ERROR",
        experiment_name=f"benchmark{mmengine.count}",  # type: ignore[attr-defined]
    )
    runner.val()  # from now on as a TrainLoop does it
    return lambda: runner.val_loop.run()["val_loss"]


def lightning(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """``Trainer.validate`` without logger, checkpoints, progress bar and summary."""
    import lightning.pytorch as pl

    # What it says of devices and tips; setting its level before the import would be undone.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)

    class Wrapped(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            x, y = batch
            self.log("val_loss", criterion(self.net(x), y), batch_size=len(x))

    trainer = pl.Trainer(
        accelerator="gpu" if batches[0][0].is_cuda else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    wrapped, data = Wrapped(), loader(batches)
    return lambda: trainer.validate(wrapped, data, verbose=False)[0]["val_loss"]


def transformers(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """``Trainer.evaluate`` of Hugging Face, the loss only."""
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": criterion(logits, labels), "logits": logits}

    named = [{"x": x, "labels": y} for x, y in batches]

    class Ready(Trainer):
        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return loader(named)

    trainer = Ready(
        Wrapped(),
        TrainingArguments(
            tempfile.mkdtemp(prefix="benchmark-transformers-"),
            per_device_eval_batch_size=len(batches[0][0]),
            use_cpu=not batches[0][0].is_cuda,
            report_to="none",
            disable_tqdm=True,
            prediction_loss_only=True,
            log_level="error",
        ),
        eval_dataset=named,
    )
    # It prints what it logs, and has no other switch for that.
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return lambda: trainer.evaluate()["eval_loss"]


def torchtnt(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """``evaluate`` of an ``EvalUnit``, which sums the loss itself."""
    try:
        import pkg_resources  # noqa: F401
    except ModuleNotFoundError:
        # It asks this for one version, and setuptools no longer brings it since 82.
        stand_in: Any = ModuleType("pkg_resources")
        stand_in.get_distribution = importlib.metadata.distribution
        sys.modules["pkg_resources"] = stand_in
    from torchtnt.framework.evaluate import evaluate
    from torchtnt.framework.state import State
    from torchtnt.framework.unit import EvalUnit

    class Unit(EvalUnit[Batch]):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def on_eval_start(self, state: State) -> None:
            self.total, self.samples = 0.0, 0

        def eval_step(self, state: State, data: Batch) -> None:
            x, y = data
            self.total += criterion(self.net(x), y).item() * len(x)
            self.samples += len(x)

    unit = Unit()

    def run() -> float:
        evaluate(unit, batches)
        return unit.total / unit.samples

    return run


def keras(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """``Model.evaluate`` on the torch backend; the model by ``TorchModuleWrapper``."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    wrapped = keras.Sequential(
        [keras.Input((batches[0][0].shape[1],)), keras.layers.TorchModuleWrapper(model)]
    )
    wrapped.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = loader(batches)
    return lambda: float(wrapped.evaluate(data, verbose=0))


def composer(model: nn.Module, batches: list[Batch], criterion: nn.Module) -> Evaluate:
    """``Trainer.eval`` with the loss as a metric of torchmetrics."""
    from composer import ComposerModel, DataSpec, Trainer
    from torchmetrics import MeanMetric

    class Wrapped(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = model
            self.mean = MeanMetric()

        def forward(self, batch: Batch) -> Tensor:
            return self.net(batch[0])

        def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
            return criterion(outputs, batch[1])

        def get_metrics(self, is_train: bool) -> dict[str, Any]:
            return {} if is_train else {"loss": self.mean}

        def update_metric(self, batch: Batch, outputs: Tensor, metric: Any) -> None:
            metric.update(criterion(outputs, batch[1]), len(batch[0]))

    # Ready batches have no size that it could read, so it is told.
    spec = DataSpec(
        loader(batches),
        split_batch=lambda batch, size: [batch],
        get_num_samples_in_batch=lambda batch: len(batch[0]),
    )
    trainer = Trainer(
        model=Wrapped(),
        optimizers=torch.optim.SGD(model.parameters(), 0.1),
        eval_dataloader=spec,
        device="gpu" if batches[0][0].is_cuda else "cpu",
        progress_bar=False,
        log_to_console=False,
    )

    def evaluate() -> float:
        trainer.eval()
        return float(trainer.state.eval_metrics["eval"]["loss"].compute())

    return evaluate


class Peer(NamedTuple):
    """A contender: how it is made, and the distributions that it needs."""

    make: Make
    needs: tuple[str, ...] = ()


PEERS: dict[str, Peer] = {
    RAW: Peer(raw, ("torch",)),
    "ignite": Peer(ignite, ("pytorch-ignite",)),
    "monai": Peer(monai, ("monai",)),
    "mmengine": Peer(mmengine, ("mmengine",)),
    "lightning": Peer(lightning, ("lightning",)),
    "transformers": Peer(transformers, ("transformers", "accelerate")),
    "torchtnt": Peer(torchtnt, ("torchtnt",)),
    "keras": Peer(keras, ("keras",)),
    "composer": Peer(composer, ("composer",)),
}


def version(distribution: str) -> str | None:
    """Return what is installed of a distribution, ``None`` if nothing is."""
    for name in (distribution, f"{distribution}-lite"):  # mmengine without OpenCV
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def missing(peer: Peer) -> str | None:
    """Return why a peer cannot run, ``None`` if it can."""
    lacking = [name for name in peer.needs if version(name) is None]
    return f"not installed ({', '.join(lacking)})" if lacking else None


def versions() -> dict[str, str]:
    """Return the version of every peer, or that it is not installed."""
    needs = {name for peer in PEERS.values() for name in peer.needs}
    return {name: version(name) or "not installed" for name in sorted(needs)}


def field(
    model: Callable[[], nn.Module],
    batches: list[Batch],
    criterion: nn.Module,
    *,
    peers: bool = True,
) -> tuple[dict[str, Evaluate], dict[str, str]]:
    """Make ours and every peer that is installed, and see that all find the same loss.

    Returns:
        Name to evaluation, and name to the reason why there is none.

    Raises:
        RuntimeError: If a peer that is measured finds another loss: then it does other work.
    """
    quieten()
    contenders: dict[str, Evaluate] = {}
    absent: dict[str, str] = {}
    own = {OURS: Peer(ours), RAW: PEERS[RAW]}
    for name, peer in (own | PEERS if peers else own).items():
        why = missing(peer)
        if why is None:
            torch.manual_seed(0)
            contenders[name] = peer.make(model(), batches, criterion)
        else:
            absent[name] = why
    losses = {name: float(evaluate()) for name, evaluate in contenders.items()}
    for name, loss in losses.items():
        if abs(loss - losses[OURS]) > 1e-4 * max(1.0, abs(loss)):
            raise RuntimeError(f"{name} finds a loss of {loss}, ours is {losses[OURS]}")
    return contenders, absent


def quieten() -> None:
    """Keep what peers warn of (few workers, no metainfo) and our own lines out of the table."""
    warnings.filterwarnings("ignore", module=r"(lightning|mmengine|transformers|torchtnt|keras)\b")
    for name in ("ignite_evalhook", "mmengine", "current", "torchtnt"):
        logging.getLogger(name).setLevel(logging.ERROR)
