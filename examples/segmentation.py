"""Segment images as MMSegmentation does: evaluate every 10 iterations, keep no prediction.

    python examples/segmentation.py                 one process
    python examples/segmentation.py --nproc 2       two

Who comes from MMSegmentation finds here what ``evaluation = dict(interval=10, metric=["mIoU",
"mDice"], pre_eval=True, save_best="mIoU")`` did.  ``dataset.pre_eval`` reduces each prediction to
four histograms as soon as it is made, so what an image leaves in memory is the same however
large it is; ``dataset.evaluate`` makes the figures of them, under the names that you know.

The images are handwritten zeros and ones on a background of noise here and stripes there; the
network says of each pixel which of the four it is.  The validation loss is made as the loss of
training: that of the decode head, plus a part of the auxiliary head's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from logging import Logger
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from mmeval import MeanIoU
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ignite_evalhook import EvalHook, EvalRecord, ValLoss, create_evaluator

CLASSES = ("noise", "stripes", "zero", "one")
BATCH = 16  # images to train with at once, of all processes together


class Scenes(TensorDataset):
    """Images ``(1, size, size)`` and the class of each pixel, ``(size, size)``."""

    def __init__(self, digits: slice, length: int, *, size: int = 32, seed: int = 0) -> None:
        data = load_digits(n_class=2)
        self.digits = torch.tensor(data.images[digits], dtype=torch.float32) / 16
        self.targets = data.target[digits].tolist()
        self.miou = MeanIoU(len(CLASSES), classwise_results=True)
        random = np.random.default_rng(seed)
        images, labels = zip(*(self.draw(size, random) for _ in range(length)), strict=True)
        super().__init__(torch.stack(images), torch.stack(labels))

    def draw(self, size: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        y, x = torch.meshgrid(2 * [torch.linspace(-1, 1, size)], indexing="ij")
        edge, turn = random.uniform(0, 2 * np.pi, size=2)
        label = (x * np.cos(edge) + y * np.sin(edge) > random.uniform(-0.3, 0.3)).long()
        wave = torch.sin((x * np.cos(turn) + y * np.sin(turn)) * random.uniform(14, 20))
        noise = torch.from_numpy(random.random((size, size), dtype=np.float32))
        image = torch.where(label == 1, 0.3 + 0.2 * wave + 0.1 * noise, 0.6 * noise)
        side = size // 2
        for _ in range(2):
            which, top, left = random.integers((len(self.digits), side + 1, side + 1))
            digit = F.interpolate(self.digits[None, None, which], size=side, mode="bilinear")[0, 0]
            window, ink = (slice(top, top + side), slice(left, left + side)), digit > 0.4
            image[window] = torch.where(ink, 0.5 + 0.5 * digit, image[window])
            label[window] = torch.where(ink, 2 + self.targets[which], label[window])
        return image[None], label

    def pre_eval(self, results: list[Tensor], indices: Sequence[int]) -> list[Any]:
        """Reduce predictions to areas by class: intersection, union, predicted, true."""
        areas = []
        for predicted, index in zip(results, indices, strict=True):
            true = self[index][1]
            matrix = self.miou.compute_confusion_matrix(predicted.cpu(), true, len(CLASSES))
            of_both, of_true, of_predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
            areas.append((of_both, of_true + of_predicted - of_both, of_predicted, of_true))
        return areas

    def evaluate(
        self, results: list[Any], logger: Logger | None = None, metric: Any = "mIoU"
    ) -> dict[str, float]:
        """Make figures of what ``pre_eval`` returned for all images."""
        wanted = [metric] if isinstance(metric, str) else list(metric)
        if not set(wanted) <= {"mIoU", "mDice"}:
            raise ValueError(f"metric must be of 'mIoU' and 'mDice', got {wanted}")
        with np.errstate(invalid="ignore"):  # a class that is nowhere has no IoU; NaN says so
            figures = self.miou.compute_metric([(both, t, p) for both, _, p, t in results])
        metrics = {name: float(figures[name]) for name in ("aAcc", *wanted, "mAcc")}
        for name in [*wanted, "mAcc"]:
            kind = name[1:]  # IoU for mIoU
            for label, value in zip(CLASSES, figures["classwise_results"][kind], strict=True):
                metrics[f"{kind}.{label}"] = float(value)
        if logger is not None:
            logger.debug("%d images: %s", len(results), metrics)
        return metrics


class UNet(nn.Module):
    """A small U-Net with two heads, for images ``(batch, 1, height, width)``."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fine = block(1, width)
        self.middle = block(width, 2 * width)
        self.coarse = nn.Sequential(block(2 * width, 4 * width), block(4 * width, 4 * width))
        self.up_middle = block(6 * width, 2 * width)
        self.up_fine = block(3 * width, width)
        self.upscale = nn.Upsample(scale_factor=2)
        self.decode_head = nn.Conv2d(width, len(CLASSES), 1)
        self.auxiliary_head = nn.Conv2d(2 * width, len(CLASSES), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images)
        middle = self.middle(F.max_pool2d(fine, 2))
        coarse = self.coarse(F.max_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([middle, self.upscale(coarse)], dim=1))
        fine = self.up_fine(torch.cat([fine, self.upscale(middle)], dim=1))
        return self.decode_head(fine), self.upscale(self.auxiliary_head(middle))

    def val_step(self, batch: tuple[Tensor, Tensor]) -> list[Any]:
        """Return the classes of the pixels, image by image, and last the loss."""
        images, labels = (part.to(idist.device()) for part in batch)
        outputs = self(images)
        return [*outputs[0].argmax(dim=1), ValLoss(losses(outputs, labels))]


def block(channels: int, out: int) -> nn.Module:
    # Not BatchNorm: with it, training would depend on the number of processes.
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU())


def losses(outputs: tuple[Tensor, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return the loss of each head; ``val_loss`` is their sum, as the loss of training is."""
    decode, auxiliary = (F.cross_entropy(output, labels) for output in outputs)
    return {"decode.loss_ce": decode, "aux.loss_ce": 0.4 * auxiliary}


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; each does the same, with its part of every batch."""
    rank, world = idist.get_rank(), idist.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with images this small, more threads only wait for each other
    train_data, val_data = Scenes(slice(0, 260), 320, seed=0), Scenes(slice(260, None), 40, seed=1)
    sampler: DistributedSampler[Any] = DistributedSampler(train_data, world, rank, seed=0)
    train_loader = DataLoader(train_data, BATCH // world, sampler=sampler)
    model = idist.auto_model(UNet())  # in DistributedDataParallel, if need be
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step(engine: Engine, batch: tuple[Tensor, Tensor]) -> float:
        model.train()
        images, labels = (part.to(idist.device()) for part in batch)
        loss: Any = sum(losses(model(images), labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: sampler.set_epoch(trainer.state.epoch))

    evaluation: dict[str, Any] = {"interval": 10, "metric": ["mIoU", "mDice"], "pre_eval": True}
    evaluation |= {"save_best": "mIoU", "preset": "mmseg", "by_epoch": False}
    loader, evaluator = DataLoader(val_data, 8), create_evaluator(model)
    hook = EvalHook(loader, evaluator, out_dir=args.out_dir, **evaluation).attach(trainer)
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)

    best = hook.load_best()
    record = hook.evaluate(track=False)
    if rank == 0:
        print(hook.history.table(["val_loss", "aAcc", "mIoU", "mAcc", "mDice"]))
        by_class = ", ".join(f"{name} {record.metrics[f'IoU.{name}']:.3f}" for name in CLASSES)
        print(f"Best at iteration {best.iteration}: mIoU {record.metrics['mIoU']:.3f} ({by_class})")
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Segment images, as MMSegmentation does.")
    add = parser.add_argument
    add("--nproc", type=int, metavar="N", help="start so many processes on this machine")
    add("--out-dir", default="runs/segmentation", metavar="DIR")
    add("--max-epochs", type=int, default=6, metavar="N", help="default: 6, of 20 iterations each")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {}  # one process
        if args.nproc is not None:  # they find each other by a file, so no port is needed
            how["backend"] = "nccl" if torch.cuda.is_available() else "gloo"
            how |= {"nproc_per_node": args.nproc, "init_method": f"file://{folder}/rendezvous"}
        with idist.Parallel(**how) as parallel:  # type: ignore[attr-defined]  # Ignite's star import
            parallel.run(train, args)


if __name__ == "__main__":
    main()
