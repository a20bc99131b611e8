"""Compare an evaluation's own loop with a hand-written one, as ratios within one run.

``python benchmarks/loop.py`` prints three rows:

- *tiny*: a model of about 15 µs a batch, where the loop itself is what is measured;
- *5 ms*: a batch that takes about 5 ms, where it should not be measurable;
- *idle*: what a training iteration costs more when a hook by iteration is attached but not due.

The hand-written loop is what a careful person would write: eval mode and ``no_grad`` once, the
loss weighted by samples and summed as Python floats.  Repetitions are interleaved, so that what
else the machine does meets both alike; the median of the ratios is printed with its quartiles.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import ignite
import torch
from ignite.engine import Engine
from ignite.metrics import Accuracy
from torch import Tensor, nn

from ignite_evalhook import EvalHook, create_evaluator

Batch = tuple[Tensor, Tensor]


class Slow(nn.Module):
    """A model that takes a given time, without depending on the machine's speed."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of shape (batch, 4)."""
        until = time.perf_counter() + self.seconds
        y: Tensor = self.layer(x)
        while time.perf_counter() < until:
            pass
        return y


def by_hand(model: nn.Module, batches: Iterable[Batch], criterion: nn.Module) -> float:
    """Evaluate the mean loss in a plain loop."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            total += criterion(model(x), y).item() * len(x)
            count += len(x)
    model.train()
    return total / count


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def ratios(
    ours: Callable[[], Any], theirs: Callable[[], Any], repetitions: int
) -> tuple[list[float], float, float]:
    """Return the ratios of interleaved repetitions, and the medians of both in seconds."""
    ours(), theirs()  # both are warm
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repetitions)]
    own = statistics.median(pair[0] for pair in pairs)
    other = statistics.median(pair[1] for pair in pairs)
    return [a / b for a, b in pairs], own, other


def show(name: str, values: list[float], note: str) -> None:
    """Print one row."""
    low, middle, high = statistics.quantiles(values, n=4)
    print(f"{name:<34} {middle:7.3f}  [{low:.3f} .. {high:.3f}]  {note}")


def loop_row(name: str, model: nn.Module, batches: list[Batch], repetitions: int) -> None:
    """Measure an evaluation against the hand-written loop."""
    criterion = nn.CrossEntropyLoss()
    hook = EvalHook(batches, create_evaluator(model, loss_fn=criterion))
    found = hook.evaluate().metrics["val_loss"]
    expected = by_hand(model, batches, criterion)
    if abs(found - expected) > 1e-6:
        raise RuntimeError(f"the two loops disagree: {found} and {expected}")
    values, own, other = ratios(
        hook.evaluate, lambda: by_hand(model, batches, criterion), repetitions
    )
    scale = 1e6 / len(batches)
    show(name, values, f"{own * scale:.1f} µs a batch, by hand {other * scale:.1f} µs")


def metrics_row(model: nn.Module, batches: list[Batch], repetitions: int) -> None:
    """Measure the same evaluation with an Ignite metric on both sides."""
    criterion = nn.CrossEntropyLoss()
    hook = EvalHook(
        batches, create_evaluator(model, metrics={"accuracy": Accuracy()}, loss_fn=criterion)
    )
    accuracy = Accuracy()

    def with_metric() -> float:
        accuracy.reset()
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for x, y in batches:
                y_pred = model(x)
                total += criterion(y_pred, y).item() * len(x)
                count += len(x)
                accuracy.update((y_pred, y))
        model.train()
        return total / count + float(accuracy.compute())

    values, own, other = ratios(hook.evaluate, with_metric, repetitions)
    scale = 1e6 / len(batches)
    show(
        "tiny, with Accuracy on both sides", values, f"{own * scale:.1f} µs, {other * scale:.1f} µs"
    )


def idle_row(repetitions: int, iterations: int, hooks: int = 4) -> None:
    """Measure what a hook costs an iteration at which it is not due."""
    logging.getLogger("ignite_evalhook").setLevel("WARNING")
    model = nn.Linear(1, 1)
    batches = [(torch.zeros(1, 1), torch.zeros(1, 1))]

    def train(number_of_hooks: int) -> Callable[[], Any]:
        trainer = Engine(lambda engine, batch: None)
        for number in range(number_of_hooks):
            evaluator = create_evaluator(model, loss_fn=nn.MSELoss())
            EvalHook(
                batches, evaluator, interval=iterations, by_epoch=False, name=f"hook{number}",
                preflight=False,
            ).attach(trainer)  # fmt: skip

        def run() -> None:
            trainer.state.max_epochs = None
            trainer.run([0] * iterations, max_epochs=1)

        return run

    with_hooks, without = train(hooks), train(0)
    # One evaluation at the end belongs to a run with hooks; over so many iterations it is
    # nothing, and it is counted all the same.
    with_hooks(), without()
    extra = [
        (seconds(with_hooks) - seconds(without)) / iterations / hooks * 1e9
        for _ in range(repetitions)
    ]
    low, middle, high = statistics.quantiles(extra, n=4)
    print(f"{'idle, ns an iteration a hook':<34} {middle:7.0f}  [{low:.0f} .. {high:.0f}]")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--batches", type=int, default=3000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, ignite {ignite.__version__}"
    print(f"Python {platform.python_version()}, {versions}")
    print(f"{'ratio to a hand-written loop':<34}  median  [quartiles]")
    tiny = [(torch.randn(4, 8), torch.randint(0, 4, (4,))) for _ in range(args.batches)]
    loop_row("tiny model", nn.Linear(8, 4), tiny, args.repetitions)
    metrics_row(nn.Linear(8, 4), tiny, args.repetitions)
    loop_row("5 ms a batch", Slow(0.005), tiny[:40], args.repetitions)
    idle_row(args.repetitions, 20_000)


if __name__ == "__main__":
    main()
