"""Find key points as MMPose does: flip test, and a box that is listed twice counts once.

    python examples/pose.py                 one process
    python examples/pose.py --nproc 2       two

Who comes from MMPose finds here what ``evaluation = dict(interval=1, metric=["PCK", "AUC", "EPE",
"NME"], save_best="EPE")`` did; the hook knows that less is better for an end-point error.

The model looks at the flipped image too and averages what it sees, but its validation loss is of
the image as it is, like that of training.  The list of boxes to validate names some of them twice,
as joined lists of annotations do: ``dataset.evaluate`` keeps each ``bbox_id`` once, and the loss
of a box that was there before has no weight.

The data are stick figures, seen from the front: what is on the right is their left hand.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from mmeval import KeypointAUC, KeypointEndPointError, KeypointNME, PCKAccuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ignite_evalhook import EvalHook, EvalRecord, ValLoss, create_evaluator

POINTS = ("head", "neck", "left_hand", "right_hand", "hip", "left_foot", "right_foot")
LIMBS = ((0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6))
MIRROR = [0, 1, 3, 2, 4, 6, 5]  # what each point looks like in a flipped image
SIZE, BATCH = 32, 16  # pixels; images to train with at once, of all processes together
PLACES = torch.arange(SIZE // 2) * 2 + 0.5  # of the columns, and rows, of a heatmap, in pixels
logging.getLogger("mmeval").setLevel("WARNING")  # else each metric announces itself


class Figures(TensorDataset):
    """Samples ``(image (1, SIZE, SIZE), points (7, 2), bbox_id, weight)``, one for each box listed.

    Points are x and y in pixels; the weight is 0 where the box was listed before, else 1.
    """

    def __init__(self, boxes: list[int], *, seed: int) -> None:
        random, ids = np.random.default_rng(seed), torch.tensor(boxes)
        images, points = zip(*(draw(random) for _ in range(max(boxes) + 1)), strict=True)
        self.points = torch.stack(points)
        weights = torch.tensor([float(box not in boxes[:i]) for i, box in enumerate(boxes)])
        super().__init__(torch.stack(images)[ids], self.points[ids], ids, weights)

    def evaluate(self, results: list[dict[str, Tensor]], metric: list[str]) -> dict[str, float]:
        """Compute metrics of the results, which have ``preds (7, 2)`` and ``bbox_id``."""
        known = {"PCK": PCKAccuracy(thr=0.2), "AUC": KeypointAUC(norm_factor=8, num_thrs=20)}
        known |= {"EPE": KeypointEndPointError(), "NME": KeypointNME("use_norm_item", "side")}
        if not set(metric) <= set(known):
            raise ValueError(f"metric must be a list of {list(known)}, got {metric}")
        first = {int(result["bbox_id"]): result["preds"] for result in reversed(results)}
        boxes = sorted(first)  # each once, by its first result
        found = {"coords": torch.stack([first[box] for box in boxes]).numpy()}
        coords = self.points[boxes].numpy()
        size = np.ptp(coords, axis=1)
        true = {"coords": coords, "mask": np.full(coords.shape[:2], True), "bbox_size": size}
        true["side"] = np.sqrt(size.prod(axis=1, keepdims=True))
        values = {k: v for name in metric for k, v in known[name]([found], [true]).items()}
        return {name.replace("AUC@20", "AUC"): float(value) for name, value in values.items()}


def draw(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the image and the points of one figure."""

    def reach(start: np.ndarray, angle: float, length: float) -> np.ndarray:
        return start + length * np.array([np.sin(angle), np.cos(angle)])  # an angle of 0 is down

    scale, lean = random.uniform(0.75, 1.05), random.uniform(-0.4, 0.4)
    hip = np.array([15.5, 17]) + random.uniform(-3, 3, size=2)
    neck = reach(hip, np.pi + lean, 8 * scale)
    head = reach(neck, np.pi + lean + random.uniform(-0.4, 0.4), 4 * scale)
    hands = [reach(neck, side * random.uniform(0.5, 2.4) + lean, 8 * scale) for side in (1, -1)]
    feet = [reach(hip, side * random.uniform(0.2, 1), 9 * scale) for side in (1, -1)]
    points = np.stack([head, neck, *hands, hip, *feet])

    pixels = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1)
    image = 0.5 * random.random((SIZE, SIZE))
    for a, b in LIMBS:
        start, limb = points[a], points[b] - points[a]
        along = ((pixels - start) @ limb / (limb @ limb)).clip(0, 1)
        distance = np.linalg.norm(pixels - start - along[..., None] * limb, axis=-1)
        image = np.maximum(image, (1.5 - distance).clip(0, 1))
    return torch.tensor(image[None]).float(), torch.tensor(points).float()


class PoseNet(nn.Module):
    """From images ``(batch, 1, SIZE, SIZE)`` to log-heatmaps ``(batch, 7, SIZE / 2, SIZE / 2)``."""

    def __init__(self, width: int = 16, *, flip_test: bool = True) -> None:
        super().__init__()
        self.flip_test = flip_test
        self.fine = block(1, width, stride=2)
        self.middle = block(width, 2 * width, stride=2)
        self.coarse = block(2 * width, 2 * width, stride=2)
        self.head = nn.Sequential(block(5 * width, 2 * width), nn.Conv2d(2 * width, len(POINTS), 1))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        middle = self.middle(fine)
        coarser = middle, self.coarse(middle)
        levels = [fine, *(nn.functional.interpolate(x, fine.shape[2:]) for x in coarser)]
        scores: Tensor = self.head(torch.cat(levels, dim=1))
        return scores.flatten(2).log_softmax(dim=-1).view_as(scores)

    def val_step(self, batch: list[Tensor]) -> dict[str, Any]:
        images, points, boxes, weights = (part.to(idist.device()) for part in batch)
        logs = self(images)
        heatmaps = logs.exp()
        if self.flip_test:
            heatmaps = (heatmaps + self(images.flip(-1)).exp()[:, MIRROR].flip(-1)) / 2
        loss = ValLoss(losses(logs, points), weight=weights)  # nothing flipped is in it
        return {"preds": decode(heatmaps), "bbox_id": boxes, "loss": loss}


def block(channels: int, out: int, stride: int = 1) -> nn.Module:
    # Not BatchNorm: with it, training would depend on the number of processes.
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.GroupNorm(8, out), nn.SiLU())


def decode(heatmaps: Tensor) -> Tensor:
    """Return the mean place ``(batch, 7, 2)`` of each heatmap, in pixels."""
    return torch.stack([heatmaps.sum(dim) @ PLACES.to(heatmaps.device) for dim in (-2, -1)], dim=-1)


def losses(logs: Tensor, points: Tensor) -> Tensor:
    """Return the cross entropy ``(batch,)`` of the heatmaps with Gaussians around the points."""
    near = -((points[..., None] - PLACES.to(points.device)) ** 2) / 8
    x, y = near.softmax(dim=-1).unbind(dim=-2)
    return -(y[..., :, None] * x[..., None, :] * logs).sum(dim=(-2, -1)).mean(dim=-1)


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; each does the same, with its part of every batch."""
    rank, world = idist.get_rank(), idist.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with images this small, more threads only wait for each other
    train_data, val_data = Figures([*range(640)], seed=0), Figures([*range(60), *range(20)], seed=1)
    sampler: DistributedSampler[Any] = DistributedSampler(train_data, world, rank, seed=0)
    train_loader = DataLoader(train_data, BATCH // world, sampler=sampler)
    model = idist.auto_model(PoseNet())  # in DistributedDataParallel, if need be
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step(engine: Engine, batch: list[Tensor]) -> float:
        model.train()
        images, points = (part.to(idist.device()) for part in batch[:2])
        loss: Any = losses(model(images), points).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: sampler.set_epoch(trainer.state.epoch))

    evaluation: dict[str, Any] = {"interval": 1, "metric": ["PCK", "AUC", "EPE", "NME"]}
    evaluation |= {"save_best": "EPE", "preset": "mmpose", "out_dir": args.out_dir}
    hook = EvalHook(DataLoader(val_data, 8), create_evaluator(model), **evaluation).attach(trainer)
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)

    best = hook.load_best()
    record = hook.evaluate(track=False)
    if rank == 0:
        print(hook.history.table())
        print(f"Best at epoch {best.epoch}: EPE {best.score:.3f}, AUC {record.metrics['AUC']:.3f}")
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Find key points, as MMPose does.")
    parser.add_argument("--nproc", type=int, metavar="N", help="processes to start here")
    parser.add_argument("--out-dir", default="runs/pose", metavar="DIR")
    parser.add_argument("--max-epochs", type=int, default=6, metavar="N", help="default: 6")
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
