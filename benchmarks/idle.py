"""Rows about doing nothing: what an iteration costs more while a hook is attached but not due."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator

from ignite.engine import Engine, Events
from torch import nn

from ignite_evalhook import EvalHook, create_evaluator

from .loops import batches_of, linear
from .peers import OURS
from .table import Row, row
from .timing import Effort, interleaved, now

Attach = Callable[[Engine, int, int], None]


class Clocked:
    """Batches that note when the first and the last one were asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds = 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        begin = now()
        for number in range(self.count):
            if number == self.count - 1:  # before the last iteration, at which hooks are due
                self.seconds = now() - begin
            yield number


def our_hook(by_epoch: bool) -> Attach:
    """Return a function that attaches a hook of ours, due at the very end."""

    def attach(trainer: Engine, number: int, iterations: int) -> None:
        evaluator = create_evaluator(linear(), loss_fn=nn.CrossEntropyLoss())
        EvalHook(
            batches_of(1), evaluator, interval=1 if by_epoch else iterations, by_epoch=by_epoch,
            name=f"hook{number}", preflight=False,
        ).attach(trainer)  # fmt: skip

    return attach


def ignite_filter(trainer: Engine, number: int, iterations: int) -> None:
    """What Ignite's documentation shows: an event with a filter."""
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=iterations), lambda: None)


def plain_handler(trainer: Engine, number: int, iterations: int) -> None:
    """A handler that asks by itself, as one would write it by hand."""

    def handler() -> None:
        if trainer.state.iteration % iterations == 0:
            pass

    trainer.add_event_handler(Events.ITERATION_COMPLETED, handler)


def idle(effort: Effort) -> list[Row]:
    """Measure an iteration with many hooks and with none; what one hook adds is the difference."""
    logging.getLogger("ignite_evalhook").setLevel(logging.ERROR)
    iterations, hooks = effort.of(20_000, least=50), 16

    def train(attach: Attach | None) -> Callable[[], float]:
        def run() -> float:
            trainer = Engine(lambda engine, batch: None)
            for number in range(hooks if attach is not None else 0):
                attach(trainer, number, iterations)  # type: ignore[misc]
            data = Clocked(iterations)
            trainer.run(data, max_epochs=1)
            return data.seconds / (iterations - 1)

        return run

    ways: dict[str, Attach | None] = {
        "nothing": None,
        OURS: our_hook(by_epoch=False),
        "by epoch": our_hook(by_epoch=True),
        "ignite, every=": ignite_filter,
        "ignite, plain handler": plain_handler,
    }
    contenders = {who: train(attach) for who, attach in ways.items()}
    times = interleaved(contenders, effort.repetitions, lambda run: run())
    bare = times.pop("nothing")
    shown = {
        who: [1e9 * (own - other) / hooks for own, other in zip(taken, bare, strict=True)]
        for who, taken in times.items()
    }
    note = f"{hooks} hooks at once; a bare iteration {1e9 * statistics.median(bare):.0f} ns"
    by_epoch = shown.pop("by epoch")
    return [
        row("attached, iteration not due", "ns a hook", shown.pop(OURS), shown, target=700.0,
            note=note),
        row("attached by epoch", "ns an iteration a hook", by_epoch, {}, target=10.0, note=note),
    ]  # fmt: skip
