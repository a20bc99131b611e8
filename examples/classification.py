"""Classify handwritten digits, with the metrics, and the words, of MMClassification.

    python examples/classification.py               one process
    python examples/classification.py --nproc 2     two, each with its part of every batch

For people who come from mmcls (today MMPretrain).  What they know is here:

- ``forward(imgs, labels, mode)`` returns a loss or predictions, and ``val_step`` predictions with
  the loss appended, so that the validation loss needs no second pass;
- the data set has ``evaluate(results, metric, metric_options)``, and ``EVALUATION`` below is the
  ``evaluation = dict(...)`` of an mmcls config;
- metrics are percentages under mmcls's names, computed by mmeval, OpenMMLab's own library.

The best by top-1 accuracy is kept, training stops when the validation loss no longer falls, and
the best is tested at the end.  Kill it whenever you like: the same command goes on where it was.
The data are the 1797 images of 8 x 8 pixels that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import mmeval
import numpy as np
import torch
from ignite.engine import Engine, Events
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ignite_evalhook import EvalHook, EvalRecord, ValLoss, create_evaluator

TRAIN, VAL = 1200, 300  # images to train and to validate with; the other 297 are to test
BATCH = 48  # images to train with at once, of all processes together

# As in a config of mmcls: the hook takes what it knows, and passes on the rest to `evaluate`.
EVALUATION: dict[str, Any] = {
    "interval": 1,
    "metric": ["accuracy", "precision", "recall", "f1_score", "support"],
    "metric_options": {"topk": (1, 5)},
    "save_best": "accuracy_top-1",
}


class Digits(TensorDataset):
    """Images (1, 8, 8) and labels 0 to 9."""

    def evaluate(
        self,
        results: Sequence[tuple[Tensor, Tensor]],
        metric: Sequence[str] = ("accuracy",),
        metric_options: Mapping[str, Any] | None = None,
        logger: object = None,
    ) -> dict[str, Any]:
        """Return the metrics that are asked for, in per cent.

        Args:
            results: Scores (classes,) and label of each image, of the whole data set.
            metric: Any of accuracy, precision, recall, f1_score (means over the classes), and
                support (an array: the images of each class).
            metric_options: ``topk`` of the accuracy.
            logger: Not used; the hook passes its own to whoever names it.
        """
        if unknown := set(metric) - set(EVALUATION["metric"]):
            raise ValueError(f"metric must be some of {EVALUATION['metric']}, got {unknown}")
        # As arrays: mmeval computes with 64 bits then, and with 32 on tensors.
        scores = np.stack([score.numpy() for score, _ in results])  # images, classes
        labels = np.array([label.item() for _, label in results])  # images
        found: dict[str, Any] = {}
        if "accuracy" in metric:
            topk = (metric_options or {}).get("topk", (1, 5))
            # Without a threshold: by default mmeval takes no score of 0 or less for an answer.
            accuracies = mmeval.Accuracy(topk=topk, thrs=None)(scores, labels)
            found |= {f"accuracy_top-{k}": 100 * accuracies[f"top{k}"] for k in topk}
        means = mmeval.SingleLabelPrecisionRecallF1score()(scores, labels)
        for name in ("precision", "recall", "f1_score"):
            if name in metric:
                found[name] = means[name.replace("_", "-")]
        if "support" in metric:
            count = mmeval.SingleLabelPrecisionRecallF1score(items=["support"], average=None)
            found["support"] = np.array(count(scores, labels)["support_classwise"])
        return found


class Classifier(nn.Module):
    """A convolutional network from images (batch, 1, 8, 8) to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
        )
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, imgs: Tensor, labels: Tensor, mode: str) -> Any:
        imgs, labels = imgs.to(idist.device()), labels.to(idist.device())
        logits = self.head(self.backbone(imgs).flatten(1))
        loss = F.cross_entropy(logits, labels)
        if mode == "loss":
            return {"loss": loss}
        if mode == "predict":
            return logits.softmax(dim=1), labels, ValLoss(loss)
        raise ValueError(f"mode must be 'loss' or 'predict', got {mode!r}")

    def val_step(self, batch: tuple[Tensor, Tensor]) -> Any:
        return self(*batch, mode="predict")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {}  # one process
        if args.nproc is not None:  # they find each other by a file, so no port is needed
            how["backend"] = "nccl" if torch.cuda.is_available() else "gloo"
            how |= {"nproc_per_node": args.nproc, "init_method": f"file://{folder}/rendezvous"}
        with idist.Parallel(**how) as parallel:  # type: ignore[attr-defined]  # Ignite's star import
            parallel.run(train, args)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Classify handwritten digits.")
    add, folder = parser.add_argument, "runs/classification"
    add("--nproc", type=int, metavar="N", help="start so many processes on this machine")
    add("--out-dir", default=folder, metavar="DIR", help=f"default: {folder}")
    add("--max-epochs", type=int, default=30, metavar="N", help="default: 30")
    return parser.parse_args(argv)


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; return what the best model scores on the validation set."""
    rank, world = idist.get_rank(), idist.get_world_size()
    if BATCH % world != 0:
        raise ValueError(f"{BATCH} images cannot be shared out evenly to {world} processes")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with images this small, more threads only wait for each other

    # What a training script has without the hook.
    train_data, val_data, test_data = load_data()
    sampler: DistributedSampler[Any] = DistributedSampler(train_data, world, rank, seed=0)
    train_loader = DataLoader(train_data, BATCH // world, sampler=sampler)
    model = idist.auto_model(Classifier())  # in DistributedDataParallel, if need be
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def step(engine: Engine, batch: tuple[Tensor, Tensor]) -> float:
        model.train()
        loss = model(*batch, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: sampler.set_epoch(e.state.epoch))

    # The hook.
    val_loader, test_loader = DataLoader(val_data, batch_size=64), DataLoader(test_data, 64)
    options = {"preset": "mmcls", "out_dir": args.out_dir, **EVALUATION}
    hook = EvalHook(val_loader, create_evaluator(model), **options).attach(trainer)
    hook.early_stopping(patience=4, metric="val_loss", threshold=0.005)
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)

    # The best of all epochs, also on data that had no part in choosing it.
    best = hook.load_best()
    record, test = hook.evaluate(track=False), hook.evaluate(test_loader, track=False)
    if rank == 0:
        top1, of_test = (found.metrics["accuracy_top-1"] for found in (record, test))
        print(f"\n{hook.history.table()}\n")
        print(f"Best epoch {best.epoch}: accuracy_top-1 {top1:.2f}, on the test set {of_test:.2f}")
    return record


def load_data() -> tuple[Digits, Digits, Digits]:
    """Return the images to train, to validate and to test with."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.tensor(digits.target)[order]
    train, val, test = slice(TRAIN), slice(TRAIN, TRAIN + VAL), slice(TRAIN + VAL, None)
    return (
        Digits(images[train], labels[train]),
        Digits(images[val], labels[val]),
        Digits(images[test], labels[test]),
    )


if __name__ == "__main__":
    main()
