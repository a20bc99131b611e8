"""Segment discs with MONAI's trainer, loss, network and metric, evaluated by a hook.

    python examples/from_monai.py               one process
    python examples/from_monai.py --nproc 2     two, started by Ignite

MONAI's ``SupervisedTrainer`` is an Ignite engine, so the hook attaches to it.  The hook takes the
place of ``ValidationHandler``, ``CheckpointSaver`` and ``EarlyStopHandler``, ``create_evaluator``
that of ``SupervisedEvaluator``.  MONAI's metrics stay what they are: ``MeanDice`` is that of all
images, on any number of processes.

Kill it whenever you like: the same command goes on where it was.  Delete its folder,
runs/from_monai, to start anew.  The images are bright discs in noise, made here.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ignite_evalhook import EvalHook, EvalRecord, create_evaluator

try:
    from monai.engines import SupervisedTrainer, default_prepare_batch
    from monai.handlers import MeanDice
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet
except ImportError as error:
    raise SystemExit(
        f'This example needs MONAI ({error}): pip install "ignite-evalhook[monai]"'
    ) from error

TRAIN, VAL = 160, 30  # images
SIZE = 32  # pixels along each side
BATCH = 8  # images to train with at once, of all processes together

Sample = dict[str, Tensor]


class Discs(Dataset[Sample]):
    """Images (1, SIZE, SIZE) of one to three bright discs in noise, and where the discs are."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.samples = [make_sample(generator) for _ in range(length)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def make_sample(generator: torch.Generator) -> Sample:
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    label = torch.zeros(1, SIZE, SIZE)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        row, column = torch.randint(4, SIZE - 4, (2,), generator=generator)
        radius = torch.randint(3, 7, (), generator=generator)
        label[0, (rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 1
    noise = torch.randn(label.shape, generator=generator)  # as strong as the discs are bright
    return {"image": label + noise, "label": label}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Segment discs with MONAI.")
    add = parser.add_argument
    add("--nproc", type=int, metavar="N", help="start so many processes on this machine")
    add("--out-dir", default="runs/from_monai", metavar="DIR", help="default: runs/from_monai")
    add("--max-epochs", type=int, default=20, metavar="N", help="default: 20")
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


def train(local_rank: int, args: argparse.Namespace) -> EvalRecord:
    """Do the work of one process; each does the same, with its part of every batch."""
    rank, world = idist.get_rank(), idist.get_world_size()
    if BATCH % world != 0:
        raise ValueError(f"{BATCH} images cannot be shared out evenly to {world} processes")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with images this small, more threads only wait for each other

    # What a training script with MONAI has.  The trainer tells the sampler each new epoch.
    data = Discs(TRAIN, seed=1)
    sampler: DistributedSampler[Sample] = DistributedSampler(data, world, rank, seed=0)
    # The default normalization looks at one image, so it does not matter who gets which.
    net = UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=(16, 32), strides=(2,))
    model = idist.auto_model(net)  # in DistributedDataParallel, if need be
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = DiceLoss(sigmoid=True)
    trainer = SupervisedTrainer(
        device=idist.device(),
        max_epochs=args.max_epochs,
        train_data_loader=DataLoader(data, BATCH // world, sampler=sampler),
        network=model,
        optimizer=optimizer,
        loss_function=loss,
        prepare_batch=default_prepare_batch,
        decollate=False,
    )

    # The hook, as on one process: it deals the batches of this loader out to the processes.
    evaluator = create_evaluator(
        model,
        metrics={"val_mean_dice": MeanDice(output_transform=as_masks)},
        loss_fn=loss,
        prepare_batch=default_prepare_batch,  # takes "image" and "label" out of a batch
    )
    val_loader = DataLoader(Discs(VAL, seed=2), batch_size=4)
    hook = EvalHook(val_loader, evaluator, save_best="val_mean_dice", out_dir=args.out_dir)
    hook.attach(trainer)
    hook.early_stopping(patience=5)
    hook.keep_last({"model": model, "optimizer": optimizer})
    # MONAI's run() takes no max_epochs, and the file it goes on from holds that of the last run.
    trainer.state.max_epochs = args.max_epochs
    trainer.run()

    best = hook.load_best()
    record = hook.evaluate(track=False)
    if rank == 0:
        dice, val_loss = record.metrics["val_mean_dice"], record.metrics["val_loss"]
        print(hook.history.table())
        print(
            f"Best of {len(hook.history)} epochs: epoch {best.epoch}, mean Dice {dice:.4f} and "
            f"loss {val_loss:.4f} of {record.samples} images."
        )
    return record


def as_masks(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Turn scores into masks of zeros and ones, which is what MONAI's metrics compare."""
    y_pred, y = output
    return (y_pred > 0).float(), y


if __name__ == "__main__":
    main()
