"""Train a ResNet-50 on any number of processes, and evaluate it exactly.

    python examples/distributed.py                              one process
    python examples/distributed.py --nproc 2                    two, started by Ignite
    torchrun --nproc_per_node=2 examples/distributed.py         two, started by torchrun
    srun --ntasks=2 python examples/distributed.py              two, started by SLURM

All four print the same last line: how many samples were evaluated (5 of 5, no matter how many
processes share them), the figures, and the best epoch.  Training is shared out as well: each
process takes its part of every batch.  So the weights are the same but for the rounding of sums,
and the figures are printed as a person reads them, with two digits after the point.

Kill it whenever you like: the same command goes on where it was, also on another number of
processes.  A run that has ended ends again at once; delete its folder, runs/distributed, to start
anew.  It takes 380 MB: the best ResNet-50, and the last one with what its optimizer needs.

The model follows the example in MMEngine's proposal of a validation loss, MMResNet50.  The data
are the handwritten zeros and ones that come with scikit-learn, blown up to 32 x 32 pixels.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ignite_evalhook import EvalHook, ValLoss, create_evaluator

TRAIN, VAL = 60, 5  # images
BATCH = 12  # images to train with at once, of all processes together


class MMResNet50(nn.Module):
    """A ResNet-50 as MMEngine has it: ``forward`` has a mode, and ``val_step`` says the loss."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.resnet = resnet50(width, classes=2)

    def forward(self, imgs: Tensor, labels: Tensor, mode: str) -> Any:
        imgs, labels = imgs.to(idist.device()), labels.to(idist.device())
        x = self.resnet(imgs)
        if mode == "loss":
            return {"loss": F.cross_entropy(x, labels)}
        return x, labels, ValLoss(F.cross_entropy(x, labels))

    def val_step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, ValLoss]:
        return self(*batch, mode="predict")  # type: ignore[no-any-return]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a ResNet-50 on several processes.")
    add = parser.add_argument
    add("--nproc", type=int, metavar="N", help="start so many processes on this machine")
    add("--out-dir", default="runs/distributed", metavar="DIR", help="default: runs/distributed")
    add("--max-epochs", type=int, default=4, metavar="N", help="default: 4")
    add("--width", type=int, default=64, metavar="N", help="default: 64, which is a ResNet-50")
    add("--kill-at-epoch", type=int, metavar="N", help="kill one process in epoch N")
    args = parser.parse_args(argv)

    started = "RANK" in os.environ or "SLURM_PROCID" in os.environ  # by torchrun, by srun
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {}  # one process
        if started or args.nproc is not None:
            how["backend"] = "nccl" if torch.cuda.is_available() else "gloo"
        if args.nproc is not None:  # they find each other by a file, so no port is needed
            how |= {"nproc_per_node": args.nproc, "init_method": f"file://{folder}/rendezvous"}
        with idist.Parallel(**how) as parallel:  # type: ignore[attr-defined]  # Ignite's star import
            parallel.run(train, args)


def train(local_rank: int, args: argparse.Namespace) -> None:
    """Do the work of one process; each does the same, with its part of every batch."""
    rank, world = idist.get_rank(), idist.get_world_size()
    if BATCH % world != 0:
        raise ValueError(f"{BATCH} images cannot be shared out evenly to {world} processes")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with images this small, more threads only wait for each other

    # What a distributed training script has without the hook.
    train_data, val_data = load_data()
    sampler: DistributedSampler[Any] = DistributedSampler(train_data, world, rank, seed=0)
    train_loader = DataLoader(train_data, BATCH // world, sampler=sampler)
    model = idist.auto_model(MMResNet50(args.width))  # in DistributedDataParallel, if need be
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(engine: Engine, batch: tuple[Tensor, Tensor]) -> float:
        model.train()
        loss = model(*batch, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    trainer = Engine(step)
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch)
    )
    if args.kill_at_epoch is not None and rank == world - 1:
        middle = (args.kill_at_epoch - 1) * len(train_loader) + len(train_loader) // 2
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=middle), kill)

    # The hook, as on one process: it deals the batches of this loader out to the processes.
    val_loader = DataLoader(val_data, batch_size=2)
    evaluator = create_evaluator(model, metrics={"accuracy": Accuracy()})
    hook = EvalHook(val_loader, evaluator, save_best="val_loss", out_dir=args.out_dir)
    hook.attach(trainer)
    hook.early_stopping(patience=2)
    hook.keep_last({"model": model, "optimizer": optimizer})
    trainer.run(train_loader, max_epochs=args.max_epochs)

    best = hook.load_best()
    record = hook.evaluate(track=False)
    if rank == 0:
        loss, accuracy = record.metrics["val_loss"], record.metrics["accuracy"]
        print(
            f"{record.samples} of {len(val_data)} samples: val_loss {loss:.2f}, "
            f"accuracy {accuracy:.2f}, best epoch {best.epoch}"
        )


def kill() -> None:
    print("Killed on purpose, in the middle of an epoch.", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return images (3, 32, 32) of zeros and ones, to train and to validate with."""
    digits = load_digits(n_class=2)
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=32).expand(-1, 3, -1, -1).contiguous()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images[order], torch.tensor(digits.target)[order])
    return TensorDataset(*data[:TRAIN]), TensorDataset(*data[TRAIN : TRAIN + VAL])


def resnet50(width: int, classes: int) -> nn.Module:
    """Return a ResNet-50 from images (batch, 3, height, width) to scores (batch, classes)."""
    layers: list[nn.Module] = [conv(3, width, 7, stride=2), norm(width), nn.ReLU()]
    layers += [nn.MaxPool2d(3, stride=2, padding=1)]
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers += [Bottleneck(channels, width << stage, stride)]
            channels = 4 * width << stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out, last = 4 * width, norm(4 * width)
        nn.init.zeros_(last.weight)  # so that deep networks train from the first step
        self.body = nn.Sequential(
            *(conv(channels, width, 1), norm(width), nn.ReLU()),
            *(conv(width, width, 3, stride), norm(width), nn.ReLU()),
            *(conv(width, out, 1), last),
        )
        self.skip = nn.Sequential()
        if stride != 1 or channels != out:
            self.skip = nn.Sequential(conv(channels, out, 1, stride), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)


def norm(channels: int) -> nn.GroupNorm:
    # Not BatchNorm: its statistics are of a process's own part of the batch, so that training
    # would depend on the number of processes.  Its evaluation would not.
    return nn.GroupNorm(8, channels)


if __name__ == "__main__":
    main()
