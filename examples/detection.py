"""Train an object detector, and keep the one with the best COCO mAP.

    python examples/detection.py --nproc 2      two processes; one without --nproc

For those who come from MMDetection 2.x: the model appends its losses to its predictions, the
dataset has a method ``evaluate(results, metric="bbox", classwise=True)``, and
``dynamic_intervals`` evaluates every third epoch first, and each one from epoch 10 on.

Each cell of a grid says which class has its centre there, if any, and where the borders are, as
in FCOS.  The data are scenes of zeros, ones and twos, made of scikit-learn's handwritten digits.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import redirect_stdout
from itertools import product
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ignite_evalhook import EvalHook, EvalRecord, ValLoss, create_evaluator

CLASSES = ("zero", "one", "two")
NOTHING = len(CLASSES)  # the label of a cell without an object
START = (0.0, 0.0, 0.0, 6.0, -1.5, -1.5, 1.5, 1.5)  # labels, borders: most likely nothing
STRIDE, THRESHOLD = 4, 0.05  # pixels from cell to cell; what scores less is no detection
BATCH = 16  # scenes to train with at once, of all processes together
Results = list[list[Tensor]]  # of each image and class x1, y1, x2, y2, score: (detections, 5)


class Detector(nn.Module):
    """From images (batch, 1, 32, 32) to a label and a box in each of 8 x 8 cells."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out, stride in ((1, 16, 2), (16, 32, 2), (32, 32, 1), (32, 32, 1)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.GroupNorm(4, out), nn.ReLU()]
        head = nn.Conv2d(32, len(START), 1)
        head.bias = nn.Parameter(torch.tensor(START))
        self.layers = nn.Sequential(*layers, head)

    def forward(self, images: Tensor, labels: Tensor, boxes: Tensor, test: bool = False) -> Any:
        scores, border = torch.split(self.layers(images), [NOTHING + 1, 4], dim=1)
        found, real = to_boxes(border), labels != NOTHING
        loss_cls = F.cross_entropy(scores, labels, reduction="none").sum((1, 2))  # (batch,)
        losses = {"loss_cls": loss_cls, "loss_bbox": F.l1_loss(found[real], boxes[real])}
        if not test:
            return losses
        # One item an image, and the losses as the last one; loss_bbox is a mean over objects.
        val_loss = ValLoss(losses, weight={"loss_bbox": real.sum()})
        return [*find_objects(scores.softmax(1)[:, :NOTHING], found), val_loss]

    def val_step(self, batch: list[Tensor]) -> Any:
        return self(*(part.to(idist.device()) for part in batch), test=True)


def to_boxes(border: Tensor) -> Tensor:
    """Turn (batch, 4, 8, 8) into x1, y1, x2, y2 in pixels: (batch, 8, 8, 4)."""
    steps = torch.arange(border.shape[-1], device=border.device) + 0.5
    centre = torch.stack(2 * torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    return STRIDE * (centre + border.permute(0, 2, 3, 1))


def find_objects(scores: Tensor, boxes: Tensor) -> Results:
    peaks = (scores == F.max_pool2d(scores, 3, stride=1, padding=1)) & (scores > THRESHOLD)
    return [
        [torch.cat([box[p], s[p, None]], dim=1) for s, p in zip(score, peak, strict=True)]
        for score, peak, box in zip(scores, peaks, boxes, strict=True)
    ]


class Scenes(TensorDataset):
    """Images (1, 32, 32), and the label and the box of each cell: (8, 8) and (8, 8, 4)."""

    def __init__(self, digits: slice, length: int, seed: int) -> None:
        data, random = load_digits(n_class=len(CLASSES)), torch.Generator().manual_seed(seed)
        inks, kinds = torch.tensor(data.images[digits] / 16).float(), data.target[digits]
        images = 0.3 * torch.rand(length, 1, 32, 32, generator=random)
        labels, boxes = torch.full((length, 8, 8), NOTHING), torch.zeros(length, 8, 8, 4)
        for i, bottom, side in product(range(length), (0, 16), (0, 16)):
            skip, which, tall, broad, down, right = torch.rand(6, generator=random).tolist()
            if skip < 0.5:
                continue  # nothing in this quarter of the scene
            index, h, w = int(which * len(inks)), 9 + int(6 * tall), 8 + int(6 * broad)
            y, x = bottom + int((17 - h) * down), side + int((17 - w) * right)
            images[i, :, y : y + h, x : x + w] += F.interpolate(inks[None, index, None], (h, w))[0]
            cell = i, int((y + h / 2) / STRIDE), int((x + w / 2) / STRIDE)
            labels[cell], boxes[cell] = kinds[index], torch.tensor([x, y, x + w, y + h])
        super().__init__(images, labels, boxes)
        self.truth = find_objects(F.one_hot(labels).movedim(3, 1)[:, :NOTHING].float(), boxes)

    def evaluate(
        self, results: Results, logger: Any = None, metric: str = "bbox", classwise: bool = False
    ) -> dict[str, Any]:
        """Return COCO's figures under MMDetection's names; none if nothing was detected."""
        found = as_coco(results)
        if not found:
            return {}  # recorded as no score, and training goes on
        with redirect_stdout(io.StringIO()) as said:  # pycocotools prints
            coco = COCO()  # of a file with annotations, where there is one
            names = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
            coco.dataset = {"images": [{"id": i} for i in range(len(self))], "categories": names}
            coco.createIndex()
            judge = COCOeval(coco.loadRes(as_coco(self.truth)), coco.loadRes(found), metric)
            judge.params.maxDets = [100, 300, 1000]
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        if logger is not None:
            logger.debug(said.getvalue())
        keys = [f"{metric}_mAP{end}" for end in ("", "_50", "_75", "_s", "_m", "_l")]
        figures = dict(zip([*keys, "AR@100"], judge.stats.tolist(), strict=False))
        figures[f"{metric}_mAP_copypaste"] = " ".join(f"{figures[key]:.3f}" for key in keys)
        if classwise:  # of all IoUs and recalls, objects of any area, up to 1000 detections
            for label, name in enumerate(CLASSES):
                figures[f"{name}_precision"] = judge.eval["precision"][:, :, label, 0, -1].mean()
        return figures


def as_coco(results: Results) -> list[dict[str, Any]]:
    """Return detections as pycocotools reads them from a file."""
    return [
        {"image_id": i, "category_id": k, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for i, image in enumerate(results)
        for k, found in enumerate(image)
        for x1, y1, x2, y2, score in found.tolist()
    ]


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; return what the best model says of the validation set."""
    rank, world = idist.get_rank(), idist.get_world_size()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with images this small, more threads only wait for each other
    train_data, val_data = Scenes(slice(100, None), 320, seed=1), Scenes(slice(100), 90, seed=2)
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
    evaluation: dict[str, Any] = {"metric": "bbox", "classwise": True, "save_best": "bbox_mAP"}
    evaluation |= {"start": 0, "interval": 3, "dynamic_intervals": [(10, 1)], "preset": "mmdet"}
    loader, evaluator = DataLoader(val_data, 16), create_evaluator(model)
    hook = EvalHook(loader, evaluator, out_dir=args.out_dir, **evaluation).attach(trainer)
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)
    best = "none yet" if hook.best is None else f"epoch {hook.load_best().epoch}"
    record = hook.evaluate(track=False)
    if rank == 0:
        print(hook.history.table(["loss_cls", "loss_bbox", "val_loss", "bbox_mAP", "AR@100"]))
        text = record.metrics.get("bbox_mAP_copypaste", "of nothing detected")
        print(f"Best: {best}; bbox_mAP {text}")
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an object detector.")
    add = parser.add_argument
    add("--nproc", type=int, metavar="N", help="start so many processes (default: none but this)")
    add("--out-dir", default="runs/detection", metavar="DIR", help="default: runs/detection")
    add("--max-epochs", type=int, default=12, metavar="N", help="default: 12")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with tempfile.TemporaryDirectory() as folder:  # processes find each other by a file in it
        how: dict[str, Any] = {"nproc_per_node": args.nproc, "init_method": f"file://{folder}/file"}
        how |= {"backend": None if args.nproc is None else backend}
        with idist.Parallel(**how) as parallel:  # type: ignore[attr-defined]  # Ignite's star import
            parallel.run(train, args)


if __name__ == "__main__":
    main()
