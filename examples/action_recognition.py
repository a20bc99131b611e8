"""Recognize how a digit moves, with the metrics, and the words, of MMAction2.

    python examples/action_recognition.py               one process
    python examples/action_recognition.py --nproc 2     two, each with its part of every batch

For people who come from mmaction2.  What they know is here:

- the model has ``forward(imgs, label, return_loss)``; its results are a list, one item a clip;
- the data set knows its labels and has ``evaluate(results, metrics, metric_options)``, and
  ``EVALUATION`` below is the ``evaluation = dict(...)`` of an mmaction2 config;
- ``save_best="auto"`` follows the first metric that ``evaluate`` returns, here ``top1_acc``;
- the best is tested at the end, on clips of its own, which mmaction2 calls ``test_best``.

Kill it whenever you like: the same command goes on where it was.  A clip shows one of
scikit-learn's handwritten digits, which moves in one of eight ways.  What leaves the picture on one
side comes in on the other, and it may start anywhere, so a single frame does not tell the way.
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
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ignite_evalhook import EvalHook, EvalRecord, ValLoss, create_evaluator

CLIPS = (600, 200, 200)  # to train, to validate and to test with
BATCH = 12  # clips to train with at once, of all processes together

# Pixels down and to the right from each of the eight frames to the next.
MOTIONS: dict[str, list[tuple[int, int]]] = {
    "left": [(0, -1)] * 8,
    "right": [(0, 1)] * 8,
    "up": [(-1, 0)] * 8,
    "down": [(1, 0)] * 8,
    "clockwise": [(0, 1), (0, 1), (1, 0), (1, 0), (0, -1), (0, -1), (-1, 0), (-1, 0)],
    "anticlockwise": [(1, 0), (1, 0), (0, 1), (0, 1), (-1, 0), (-1, 0), (0, -1), (0, -1)],
    "shake": [(0, 1), (0, -1)] * 4,
    "nod": [(1, 0), (-1, 0)] * 4,
}

# As in a config of mmaction2: the hook takes what it knows, and passes on the rest to `evaluate`.
EVALUATION: dict[str, Any] = {
    "interval": 1,
    "metrics": ["top_k_accuracy", "mean_class_accuracy"],
    "metric_options": {"top_k_accuracy": {"topk": (1, 5)}},
    "save_best": "auto",
}


class Clips(TensorDataset):
    """Clips (1, 8 frames, 16, 16) and labels, which number the ``MOTIONS``."""

    def evaluate(
        self,
        results: Sequence[Tensor],
        metrics: Sequence[str] = ("top_k_accuracy",),
        metric_options: Mapping[str, Mapping[str, Any]] | None = None,
        logger: object = None,
    ) -> dict[str, float]:
        """Return the metrics that are asked for, as fractions.

        Args:
            results: Scores (classes,) of each clip, in the order of this data set.
            metrics: Any of top_k_accuracy and mean_class_accuracy.
            metric_options: ``topk`` for top_k_accuracy.
            logger: Not used; the hook passes its own.
        """
        if unknown := set(metrics) - set(EVALUATION["metrics"]):
            raise ValueError(f"metrics must be some of {EVALUATION['metrics']}, got {unknown}")
        if len(results) != len(self):
            raise ValueError(f"there are {len(results)} results for {len(self)} clips")
        scores = np.stack([score.numpy() for score in results])  # clips, classes
        labels = self.tensors[1].numpy()  # clips
        found: dict[str, float] = {}
        if "top_k_accuracy" in metrics:
            topk = (metric_options or {}).get("top_k_accuracy", {}).get("topk", (1, 5))
            # Without a threshold: by default mmeval takes no score of 0 or less for an answer.
            accuracies = mmeval.Accuracy(topk=topk, thrs=None)(scores, labels)
            found |= {f"top{k}_acc": accuracies[f"top{k}"] for k in topk}
        if "mean_class_accuracy" in metrics:
            found["mean_class_accuracy"] = balanced_accuracy_score(labels, scores.argmax(axis=1))
        return found


class Recognizer(nn.Module):
    """A 3D convolutional network from clips (batch, 1, frames, height, width) to motions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv3d(1, 8, 3, stride=(1, 2, 2), padding=1), nn.GroupNorm(4, 8), nn.ReLU()),
            *(nn.Conv3d(8, 16, 3, stride=(2, 1, 1), padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
            *(nn.Conv3d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),
            *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, len(MOTIONS))),
        )

    def forward(self, imgs: Tensor, label: Tensor, return_loss: bool = True) -> Any:
        logits = self.layers(imgs.to(idist.device()))
        losses = F.cross_entropy(logits, label.to(idist.device()), reduction="none")
        if return_loss:
            return {"loss_cls": losses.mean()}
        return [*logits.softmax(dim=1), ValLoss(losses)]  # one item a clip, and the loss

    def val_step(self, batch: tuple[Tensor, Tensor]) -> Any:
        return self(*batch, return_loss=False)


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
    parser = argparse.ArgumentParser(description="Recognize how a digit moves.")
    add, folder = parser.add_argument, "runs/action_recognition"
    add("--nproc", type=int, metavar="N", help="start so many processes on this machine")
    add("--out-dir", default=folder, metavar="DIR", help=f"default: {folder}")
    add("--max-epochs", type=int, default=8, metavar="N", help="default: 8")
    return parser.parse_args(argv)


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; return what the best model scores on the validation set."""
    rank, world = idist.get_rank(), idist.get_world_size()
    if BATCH % world != 0:
        raise ValueError(f"{BATCH} clips cannot be shared out evenly to {world} processes")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with clips this small, more threads only wait for each other

    # What a training script has without the hook.
    train_data, val_data, test_data = (make_clips(n, i) for i, n in enumerate(CLIPS))
    sampler: DistributedSampler[Any] = DistributedSampler(train_data, world, rank, seed=0)
    train_loader = DataLoader(train_data, BATCH // world, sampler=sampler)
    model = idist.auto_model(Recognizer())  # in DistributedDataParallel, if need be
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)

    def step(engine: Engine, batch: tuple[Tensor, Tensor]) -> float:
        model.train()
        loss = model(*batch)["loss_cls"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: sampler.set_epoch(e.state.epoch))

    # The hook.
    val_loader, test_loader = DataLoader(val_data, batch_size=48), DataLoader(test_data, 48)
    options = {"preset": "mmaction2", "out_dir": args.out_dir, **EVALUATION}
    hook = EvalHook(val_loader, create_evaluator(model), **options).attach(trainer)
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)

    # The best, also on clips that had no part in choosing it, by the `evaluate` of their data set.
    best = hook.load_best()
    record, test = hook.evaluate(track=False), hook.evaluate(test_loader, track=False)
    if rank == 0:
        print(f"\n{hook.history.table()}\n")
        figures = [f"{n} {record.metrics[n]:.3f} (test {v:.3f})" for n, v in test.metrics.items()]
        print(f"Best {best.metric} at epoch {best.epoch}: {', '.join(figures)}")
    return record


def make_clips(count: int, part: int) -> Clips:
    """Return noisy clips of one of three parts of the digits; left and right are more frequent."""
    random = torch.Generator().manual_seed(part)
    digits = torch.tensor(load_digits().images[part::3], dtype=torch.float32) / 16  # n, 8, 8
    images = F.pad(digits[torch.randint(len(digits), (count,), generator=random)], (0, 8, 0, 8))
    labels = torch.arange(count) % 10 % len(MOTIONS)
    starts = torch.randint(16, (count, 1, 2), generator=random)
    places = starts + torch.tensor(list(MOTIONS.values())).cumsum(dim=1)[labels]
    moving = zip(images, places.tolist(), strict=True)
    frames = [image.roll(place, dims=(0, 1)) for image, path in moving for place in path]
    clips = torch.stack(frames).view(count, 1, 8, 16, 16)
    return Clips(clips + 0.2 * torch.randn(clips.shape, generator=random), labels)


if __name__ == "__main__":
    main()
