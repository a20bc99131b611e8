"""Rows about length: costs and memory stay the same, however many batches or evaluations."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Loss
from torch import nn

from ignite_evalhook import EvalEvents, EvalHook, ValLoss, create_evaluator
from ignite_evalhook._evaluate.val_loss import LossMeter

from .loops import batches_of, by_name, linear
from .peers import OURS, PEERS, RAW, Batch, missing, quieten
from .peers import ignite as ignite_evaluation
from .peers import monai as monai_evaluation
from .peers import ours as our_evaluation
from .peers import raw as raw_evaluation
from .peers import torchtnt as torchtnt_evaluation
from .table import Row, row
from .timing import Effort, interleaved, now, ratios, seconds

# -- the accumulator of the val loss alone -------------------------------------------------------

LOSS = torch.tensor(2.0)
X, Y = batches_of(1)[0]
Update = Callable[[], Any]


def our_meter(seen: int) -> Update:
    """Ours, as an evaluation fills it."""
    meter = LossMeter()
    for _ in range(seen):
        meter.update(ValLoss(LOSS), len(Y))
    return lambda: meter.update(ValLoss(LOSS), len(Y))


def ignite_loss(seen: int) -> Update:
    """Ignite's ``Loss``, with a loss that costs nothing; MONAI uses it too."""
    metric = Loss(lambda y_pred, y: LOSS)
    for _ in range(seen):
        metric.update((X, Y))
    return lambda: metric.update((X, Y))


def mmengine_buffer(seen: int) -> Update:
    """What MMEngine's ``ValLoop`` does with a val loss."""
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.loops import _update_losses
    from mmengine.structures import BaseDataElement

    # Filled at once, since one by one is what takes minutes.
    losses = {"loss": HistoryBuffer([2.0] * seen, [1] * seen)}
    outputs = [X, Y, BaseDataElement(loss={"loss": LOSS})]
    return lambda: _update_losses(outputs, losses)


def torchmetrics_mean(seen: int) -> Update:
    """``MeanMetric`` of torchmetrics, Lightning's own."""
    from torchmetrics import MeanMetric

    metric = MeanMetric()
    for _ in range(min(seen, 1000)):  # it keeps two sums, so more change nothing
        metric.update(LOSS, len(Y))
    return lambda: metric.update(LOSS, len(Y))


def transformers_container(seen: int) -> Update:
    """What Hugging Face's ``Trainer`` keeps losses in."""
    from transformers.trainer_pt_utils import EvalLoopContainer

    container = EvalLoopContainer(do_nested_concat=True, padding_index=-100)
    container.add(LOSS.repeat(len(Y) * max(1, seen)))
    return lambda: container.add(LOSS.repeat(len(Y)))


def keras_mean(seen: int) -> Update:
    """Keras's ``Mean``."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    metric = keras.metrics.Mean()
    for _ in range(min(seen, 1000)):  # likewise
        metric.update_state(LOSS, len(Y))
    return lambda: metric.update_state(LOSS, len(Y))


ACCUMULATORS: dict[str, Callable[[int], Update]] = {
    "ignite": ignite_loss,
    "mmengine": mmengine_buffer,
    "lightning": torchmetrics_mean,
    "transformers": transformers_container,
    "keras": keras_mean,
}


def accumulator(effort: Effort) -> list[Row]:
    """Measure taking in one more batch's loss, after very many."""
    quieten()
    seen, more = effort.of(100_000), effort.of(1000)
    made = {OURS: (our_meter(seen), our_meter(0))}
    absent = {}
    for name, make in (ACCUMULATORS if effort.peers else {}).items():
        why = missing(PEERS[name])
        if why is None:
            made[name] = (make(seen), make(0))
        else:
            absent[name] = why

    def timed(update: Update) -> float:
        def run() -> None:
            for _ in range(more):
                update()

        return 1e6 * seconds(run) / more

    late = interleaved({who: pair[0] for who, pair in made.items()}, effort.repetitions, timed)
    early = interleaved({who: pair[1] for who, pair in made.items()}, effort.repetitions, timed)
    grown = [
        f"{who} {statistics.median(late[who]) / statistics.median(early[who]):.1f}" for who in made
    ]
    return [
        row(f"val-loss accumulator after {seen:,} batches", "us a batch", late.pop(OURS),
            {**late, **absent}, target=3.0, note=f"beside an empty one: {', '.join(grown)}"),
    ]  # fmt: skip


# -- many batches --------------------------------------------------------------------------------


def batches(effort: Effort) -> list[Row]:
    """Compare the cost of a batch in long evaluations with that in shorter ones."""
    quieten()
    many = effort.of(100_000)
    counts = [10, min(1000, many // 2), many]
    makers = {OURS: our_evaluation, RAW: raw_evaluation, "ignite": ignite_evaluation}
    absent = {}
    if effort.peers:
        for name, make in (("monai", monai_evaluation), ("torchtnt", torchtnt_evaluation)):
            why = missing(PEERS[name])
            if why is None:
                makers[name] = make
            else:
                absent[name] = why
        slow = "takes minutes; its accumulator is measured above"
        absent |= dict.fromkeys(("mmengine", "lightning", "transformers", "keras"), slow)
    few = batches_of(10)
    contenders = {
        (who, count): make(linear(), few * (count // len(few)), nn.CrossEntropyLoss())
        for who, make in makers.items()
        for count in counts
    }
    scaled = {f"{who} {count}": one for (who, count), one in contenders.items()}
    times = interleaved(scaled, effort.repetitions)
    per_batch = {
        (who, count): [1e6 * taken / count for taken in times[f"{who} {count}"]]
        for who, count in contenders
    }
    shown = {who: ratios(per_batch[who, counts[2]], per_batch[who, counts[1]]) for who in makers}
    figures = ", ".join(
        f"{statistics.median(per_batch[OURS, count]):.1f} at {count:,}" for count in counts
    )
    return [
        row(f"cost of a batch among {counts[2]:,}", f"among {counts[1]:,} = 1", shown.pop(OURS),
            {**shown, **absent}, target=1.15, note=f"flat; ours in us: {figures}"),
    ]  # fmt: skip


class Watched:
    """So many batches; it looks at the process's memory after 1,000 of them and at the end."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.some = batches_of(10)
        self.grown = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        before = 0
        for number in range(self.count):
            if number == min(1000, self.count - 1):
                before = resident()
            yield self.some[number % len(self.some)]
        self.grown = resident() - before


def resident() -> int:
    """Return the bytes of memory this process has now, 0 where that cannot be told."""
    file = Path("/proc/self/statm")
    pages = int(file.read_text().split()[1]) if file.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory(effort: Effort) -> list[Row]:
    """Measure how memory grows within an evaluation of very many batches."""
    quieten()
    count = effort.of(100_000)
    criterion = nn.CrossEntropyLoss()

    def grown(who: str) -> float:
        data: Any = Watched(count)
        make = {OURS: our_evaluation, RAW: raw_evaluation, "ignite": ignite_evaluation}[who]
        make(linear(), data, criterion)()
        return data.grown / 1e6

    found = by_name([OURS, RAW, "ignite"], grown, effort.repetitions)
    return [
        row(f"memory that {count:,} batches add", "MB", found.pop(OURS), found, target=5.0,
            note="at the last batch; ours keeps two float64 a batch, for an exact sum"),
    ]  # fmt: skip


# -- many evaluations ----------------------------------------------------------------------------


def evaluations(effort: Effort) -> list[Row]:
    """Compare the last evaluations of a long history with its first ones."""
    logging.getLogger("ignite_evalhook").setLevel(logging.ERROR)
    count = effort.of(10_000, least=40)
    edge = count // 10
    times: dict[str, list[list[float]]] = {OURS: [], "ignite": []}
    for _ in range(effort.repetitions):
        times[OURS].append(our_history(count))
        times["ignite"].append(ignite_history(count))
    shown = {
        who: [statistics.median(one[-edge:]) / statistics.median(one[:edge]) for one in taken]
        for who, taken in times.items()
    }
    last = statistics.median(1e3 * statistics.median(one[-edge:]) for one in times[OURS])
    return [
        row(f"cost of an evaluation after {count:,}", "the first tenth = 1", shown.pop(OURS), shown,
            target=1.15, note=f"flat; history and best in memory; the last ones {last:.2f} ms"),
    ]  # fmt: skip


def our_history(count: int) -> list[float]:
    """Return the seconds of each evaluation of a run that evaluates at every iteration."""
    data = batches_of(1)
    hook = EvalHook(
        data, create_evaluator(linear(), loss_fn=nn.CrossEntropyLoss()), interval=1,
        by_epoch=False, save_best="val_loss", out_dir=False,
    )  # fmt: skip
    moments: list[float] = []
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: moments.append(now()))
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0] * count, max_epochs=1)
    return [after - before for before, after in pairwise(moments)]


def ignite_history(count: int) -> list[float]:
    """Return the same of Ignite's own evaluator in a handler; it keeps nothing."""
    data = batches_of(1)
    evaluator = create_supervised_evaluator(linear(), {"loss": Loss(nn.CrossEntropyLoss())})
    moments: list[float] = []
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.ITERATION_COMPLETED)
    def evaluate() -> None:
        evaluator.run(data)
        moments.append(now())

    trainer.run([0] * count, max_epochs=1)
    return [after - before for before, after in pairwise(moments)]
