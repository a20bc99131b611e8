"""Train a small network on handwritten digits, and evaluate it while it trains.

    python examples/digits.py                   trains, evaluates every epoch, stops early
    python examples/digits.py --no-validate     only trains
    python examples/digits.py --help            lists all options

Kill it whenever you like: the same command goes on where it was.  A run that has ended ends again
at once; delete its folder, runs/digits, or name another one with --out-dir, to start anew.

The data are the 1797 images of 8 x 8 pixels that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import ProgressBar
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.metrics import Accuracy
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from ignite_evalhook import EvalHook, EvalHookError, add_eval_args, create_evaluator

Loader = DataLoader[tuple[torch.Tensor, ...]]

SIZES = (1197, 300, 300)  # images to train, to validate and to test with


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # with images this small, more threads only wait for each other

    # What a training script has without the hook.
    train_loader, val_loader, test_loader = load_data(args.seed)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()
    trainer = create_supervised_trainer(model, optimizer, criterion)
    show_progress(trainer)

    # The hook: validation loss and accuracy after every epoch, and the best model on disk, ...
    evaluator = create_evaluator(model, metrics={"accuracy": Accuracy()}, loss_fn=criterion)
    try:
        hook = EvalHook.from_args(args, val_loader, evaluator).attach(trainer)
        # ... an end where the model no longer improves, ...
        hook.early_stopping(args.patience)
        # ... and, if there was a run before, its continuation.
        resumed = hook.keep_last({"model": model, "optimizer": optimizer})
    except (ValueError, EvalHookError) as error:  # the options ask for what cannot be
        parser.error(str(error))
    if trainer.state.epoch > args.max_epochs:
        parser.error(f"{args.out_dir} holds a run of {trainer.state.epoch} epochs already")

    print("Handwritten digits: {} images to train, {} to validate, {} to test.".format(*SIZES))
    if args.validate:
        print(
            f"At most {args.max_epochs} epochs; fewer if {args.patience} in a row do not improve."
        )
    else:
        print(f"{args.max_epochs} epochs without any evaluation (--no-validate).")
    if resumed:
        print(f"Found {args.out_dir}/last.pt: going on after epoch {trainer.state.epoch}.")
    sys.stdout.flush()

    if args.kill_at_epoch is not None:
        kill_in_the_middle_of(args.kill_at_epoch, trainer, len(train_loader))
    with tensorboard(trainer, hook, Path(args.out_dir, "tensorboard")):
        trainer.run(train_loader, max_epochs=args.max_epochs)

    if not args.validate:
        print(f"Trained {trainer.state.epoch} epochs, evaluated none; see {args.out_dir}/last.pt.")
        return
    best = hook.load_best()
    test = hook.evaluate(test_loader, track=False)
    print(f"\n{hook.history.table()}\n")
    print(f"Best {best.metric} {best.score:.4f} at epoch {best.epoch}: {best.path}")
    print(f"Test accuracy of that model: {test.metrics['accuracy']:.2%} of {test.samples} images")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train on handwritten digits.")
    add, count = parser.add_argument, positive_integer
    add("--max-epochs", type=count, default=30, metavar="N", help="default: 30")
    patience = "evaluations without a better score that end training (default: 5)"
    add("--patience", type=count, default=5, metavar="N", help=patience)
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    kill = "kill this process in the middle of epoch N, to see the next run go on"
    add("--kill-at-epoch", type=count, metavar="N", help=kill)
    add_eval_args(parser)  # --validate, --save-best, --out-dir and the like
    parser.set_defaults(save_best="val_loss", out_dir="runs/digits")
    return parser


def positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def load_data(seed: int) -> tuple[Loader, Loader, Loader]:
    """Return loaders of the training, validation and test images."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # 1797, 1, 8, 8
    dataset = TensorDataset(images, torch.tensor(digits.target))
    # The same split for every seed, so that their results can be compared.
    train, val, test = random_split(dataset, SIZES, generator=torch.Generator().manual_seed(0))
    return (
        # With a generator of its own, the order of the images depends on nothing else.
        DataLoader(train, 32, shuffle=True, generator=torch.Generator().manual_seed(seed)),
        DataLoader(val, 100),
        DataLoader(test, 100),
    )


def make_model() -> nn.Module:
    """Return a convolutional network from images (batch, 1, 8, 8) to scores (batch, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32 * 4 * 4, 10),
    )


def show_progress(trainer: Engine) -> None:
    """Show a bar while an epoch runs, if somebody watches and tqdm is installed."""
    if not sys.stderr.isatty():
        return
    try:
        bar = ProgressBar(persist=False)
    except ModuleNotFoundError:
        return
    # Before the hook is attached, so that the bar is gone when the hook says its line.
    bar.attach(trainer, output_transform=lambda loss: {"loss": loss})


@contextmanager
def tensorboard(trainer: Engine, hook: EvalHook, folder: Path) -> Iterator[None]:
    """Log the training loss and the evaluations for TensorBoard, if it is installed."""
    try:
        logger = TensorboardLogger(log_dir=str(folder))
    except ModuleNotFoundError:
        yield
        return
    with logger:
        logger.attach_output_handler(
            trainer,
            Events.ITERATION_COMPLETED(every=10),
            tag="training",
            output_transform=lambda loss: {"loss": loss},
        )
        logger.attach_output_handler(
            hook.evaluator,
            Events.COMPLETED,
            tag="validation",
            metric_names="all",
            global_step_transform=hook.global_step,
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, logger.writer.flush)
        yield


def kill_in_the_middle_of(epoch: int, trainer: Engine, epoch_length: int) -> None:
    """Kill this process half-way through ``epoch``, 1-based."""
    middle = (epoch - 1) * epoch_length + epoch_length // 2

    @trainer.on(Events.ITERATION_COMPLETED(once=middle))
    def kill() -> None:
        where = f"iteration {trainer.state.iteration}, in the middle of epoch {epoch}"
        print(f"\nKilled on purpose at {where}.", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
