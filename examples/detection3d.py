"""Detect furniture in point clouds, with a metric that takes longer than processes may wait.

    python examples/detection3d.py --nproc 2        two processes; one without --nproc
    python examples/detection3d.py --nproc 2 --slow-metric 25 --group-timeout 20

For those who come from MMDetection3D: an evaluation on rank 0 that outlives the process group's
timeout ended training there (open-mmlab/mmdetection3d#2809).  Here the others wait for it, as the
second command shows.  Names of metrics may have slashes; names of files have underscores then.
The detector is a small PointPillars: each cell of the floor says what has its centre there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from datetime import timedelta
from itertools import product
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ignite_evalhook import EvalHook, EvalRecord, ValLoss, create_evaluator

SIZES = {"table": (1.6, 1.0, 0.7), "cabinet": (0.8, 0.8, 1.8), "stool": (0.5, 0.5, 0.5)}  # metres
NOTHING = len(SIZES)  # the label of a cell without an object
START = (0.0, 0.0, 0.0, 5.0, -1.0, -1.0, 0.0, 1.0, 1.0, 2.0)  # labels, box: nothing
CELLS, CELL = 12, 0.5  # of each side of the floor; the side of one in metres
BATCH = 16  # rooms to train with at once, of all processes together
Results = list[dict[str, Tensor]]  # of each room boxes_3d (detections, 6), scores_3d, labels_3d


class Detector(nn.Module):
    """From points (batch, points, 3) to a label and a box in each of 12 x 12 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.of_point = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        convs = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)]
        head = nn.Conv2d(32, len(START), 1)
        head.bias = nn.Parameter(torch.tensor(START))
        self.of_floor = nn.Sequential(*(m for conv in convs for m in (conv, nn.ReLU())), head)

    def forward(self, points: Tensor, labels: Tensor, boxes: Tensor, test: bool = False) -> Any:
        place = points[..., :2] / CELL
        cell, real = place.long().clamp(0, CELLS - 1), labels != NOTHING
        features = self.of_point(torch.cat([points, place - cell - 0.5], dim=-1))
        cell = (CELLS * cell[..., 1] + cell[..., 0])[..., None].expand_as(features)
        floor = features.new_zeros(len(points), CELLS**2, features.shape[-1])
        floor = floor.scatter_reduce(1, cell, features, "amax").mT.unflatten(2, (CELLS, CELLS))
        scores, raw = torch.split(self.of_floor(floor), [NOTHING + 1, 6], dim=1)
        x, y = torch.meshgrid(2 * [torch.arange(CELLS).to(raw) + 0.5], indexing="xy")
        found = CELL * (torch.stack(2 * (x, y, 0 * x)) + raw).permute(0, 2, 3, 1)
        loss_cls = F.cross_entropy(scores, labels, reduction="none").sum((1, 2))  # (batch,)
        losses = {"loss_cls": loss_cls, "loss_bbox": 20 * F.l1_loss(found[real], boxes[real])}
        if not test:
            return losses
        # One item a room, and the losses as the last one; loss_bbox is a mean over objects.
        val_loss = ValLoss(losses, weight={"loss_bbox": real.sum()})
        return [*find_objects(scores.softmax(1)[:, :NOTHING], found), val_loss]

    def val_step(self, batch: list[Tensor]) -> Any:
        return self(*(part.to(idist.device()) for part in batch), test=True)


def find_objects(scores: Tensor, boxes: Tensor) -> Results:
    """Return what scores more than all around it; boxes are two corners x, y, z, x, y, z."""
    peaks = (scores == F.max_pool2d(scores, 3, stride=1, padding=1)) & (scores > 0.05)
    found = []
    for peak, score, box in zip(peaks, scores, boxes, strict=True):
        label, y, x = peak.nonzero(as_tuple=True)
        found.append({"boxes_3d": box[y, x], "scores_3d": score[peak], "labels_3d": label})
    return found


class Rooms(TensorDataset):
    """Points (500, 3), and the label and the box of each cell: (12, 12) and (12, 12, 6)."""

    def __init__(self, length: int, seed: int) -> None:
        random, area = torch.Generator().manual_seed(seed), torch.tensor([3.0, 3.0, 0.0])
        points = torch.rand(length, 5, 100, 3, generator=random) * torch.tensor([6.0, 6.0, 0.1])
        labels, boxes = torch.full((length, 12, 12), NOTHING), torch.zeros(length, 12, 12, 6)
        kinds = torch.randint(NOTHING + 1, (length, 4), generator=random)  # in quarters of rooms
        for i, part in (kinds != NOTHING).nonzero().tolist():
            vary, where, *_ = cloud = torch.rand(100, 3, generator=random)
            size = torch.tensor([*SIZES.values()][kinds[i, part]]) * (0.8 + 0.4 * vary)
            low = 3 * torch.tensor([part // 2, part % 2, 0]) + where * (area - size).clamp(min=0)
            face = torch.randint(3, (100, 1), generator=random)  # points lie on the faces of a box
            points[i, part] = low + size * cloud.scatter(1, face, cloud.gather(1, face).round())
            x, y, _ = ((low + size / 2) / CELL).long().tolist()
            labels[i, y, x], boxes[i, y, x] = kinds[i, part], torch.cat([low, low + size])
        super().__init__(points.flatten(1, 2), labels, boxes)
        self.truth = find_objects(F.one_hot(labels).movedim(3, 1)[:, :NOTHING].float(), boxes)


def indoor_eval(results: Results, truth: Results, busy: list[float]) -> dict[str, float]:
    """Return mean average precision and recall of the classes, under MMDetection3D's names.

    Source:
        The area under the precision/recall curve of Pascal VOC, since 2010.
    """
    time.sleep(busy.pop() if busy else 0.0)
    figures: defaultdict[str, float] = defaultdict(float)
    for limit, label in product((0.25, 0.5), range(NOTHING)):
        ranked, total = [], 0
        for room, (found, true) in enumerate(zip(results, truth, strict=True)):
            mine, real = found["labels_3d"] == label, true["labels_3d"] == label
            total += int(real.sum())
            overlaps = F.pad(iou(found["boxes_3d"][mine], true["boxes_3d"][real]), (0, 1))
            for score, overlap in zip(found["scores_3d"][mine].tolist(), overlaps, strict=True):
                best = int(overlap.argmax())  # the last column is of no object, and 0
                ranked.append((score, (room, best) if overlap[best] > limit else (-1, -1)))
        seen, hits = {(-1, -1)}, [0]
        for _, which in sorted(ranked, key=lambda pair: -pair[0]):
            hits.append(which not in seen)  # a second detection of an object is wrong
            seen.add(which)
        right = torch.tensor(hits).cumsum(0).double()
        envelope = (right[1:] / torch.arange(1, len(right))).flip(0).cummax(0).values.flip(0)
        figures[f"pts_bbox/mAP_{limit:.2f}"] += float(envelope @ right.diff()) / total / NOTHING
        figures[f"pts_bbox/mAR_{limit:.2f}"] += float(right[-1]) / total / NOTHING
    return dict(figures)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of (n, 6) with (m, 6): (n, m)."""
    low = torch.maximum(boxes[:, None, :3], others[:, :3])
    high = torch.minimum(boxes[:, None, 3:], others[:, 3:])
    shared = (high - low).clamp(min=0).prod(-1)
    mine, other = ((b[:, 3:] - b[:, :3]).prod(-1) for b in (boxes, others))
    return shared / (mine[:, None] + other - shared)


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; return what the best model says of the validation set."""
    rank, world = idist.get_rank(), idist.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with rooms this small, more threads only wait for each other
    train_data, val_data = Rooms(256, seed=1), Rooms(56, seed=2)
    sampler: DistributedSampler[Any] = DistributedSampler(train_data, world, rank, seed=0)
    train_loader = DataLoader(train_data, BATCH // world, sampler=sampler)
    model = idist.auto_model(Detector())  # in DistributedDataParallel, if need be
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)

    def step(engine: Engine, batch: list[Tensor]) -> float:
        model.train()
        losses = model(*(part.to(idist.device()) for part in batch))
        loss = losses["loss_cls"].mean() + losses["loss_bbox"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: sampler.set_epoch(trainer.state.epoch))
    hook = EvalHook(
        DataLoader(val_data, 16), create_evaluator(model), out_dir=args.out_dir, preset="mmdet3d",
        save_best="pts_bbox/mAP_0.50", compute_metrics=indoor_eval, truth=val_data.truth,
        busy=[args.slow_metric],  # the first evaluation alone is slow
    ).attach(trainer)  # fmt: skip
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)
    best, record = hook.load_best(), hook.evaluate(track=False)
    if rank == 0:
        print(hook.history.table())
        print(f"Best epoch {best.epoch}: pts_bbox/mAP_0.50 {best.score:.3f}, in {best.path}")
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a detector of boxes in point clouds.")
    add = parser.add_argument
    add("--nproc", type=int, metavar="N", help="start so many processes (default: none but this)")
    add("--out-dir", default="runs/detection3d", metavar="DIR", help="default: runs/detection3d")
    add("--max-epochs", type=int, default=10, metavar="N", help="default: 10")
    add("--slow-metric", type=float, default=0.0, metavar="S", help="the first metric takes S s")
    add("--group-timeout", type=float, default=1800.0, metavar="S", help="of the processes, in s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    backend = None if args.nproc is None else "nccl" if torch.cuda.is_available() else "gloo"
    with tempfile.TemporaryDirectory() as folder:  # processes find each other by a file in it
        how: dict[str, Any] = {"nproc_per_node": args.nproc, "init_method": f"file://{folder}/file"}
        how |= {"backend": backend, "timeout": timedelta(seconds=args.group_timeout)}
        with idist.Parallel(**how) as parallel:  # type: ignore[attr-defined]  # Ignite's star import
            parallel.run(train, args)


if __name__ == "__main__":
    main()
