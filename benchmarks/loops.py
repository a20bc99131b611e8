"""Rows about the loop: what an evaluation costs a batch, and what it costs by itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from ignite.engine import create_supervised_evaluator
from ignite.metrics import Accuracy, Loss
from torch import Tensor, nn

from ignite_evalhook import EvalHook, create_evaluator

from .peers import OURS, RAW, Batch, Evaluate, field
from .table import Row, row
from .timing import Effort, interleaved, now, ratios, seconds, settle

MODULES = 1251  # those of a large detector
FEATURES, CLASSES, BATCH = 8, 4, 4


def batches_of(count: int, device: str = "cpu") -> list[Batch]:
    """Return batches of four samples each."""
    make = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(BATCH, FEATURES, generator=make).to(device),
            torch.randint(0, CLASSES, (BATCH,), generator=make).to(device),
        )
        for _ in range(count)
    ]


class Slow(nn.Module):
    """A model that takes a given time, without depending on the machine's speed."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of shape (batch, classes)."""
        until = now() + self.seconds
        y: Tensor = self.layer(x)
        while now() < until:
            pass
        return y


class Wide(nn.Module):
    """A model of many modules, of which only one does anything: what remains is switching them."""

    def __init__(self, modules: int) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.others = nn.ModuleList(nn.Identity() for _ in range(modules - 3))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of shape (batch, classes)."""
        y: Tensor = self.layer(x)
        return y


def linear(device: str = "cpu") -> nn.Module:
    """Return the tiny model."""
    return nn.Linear(FEATURES, CLASSES).to(device)


def beside_raw(
    name: str,
    model: Callable[[], nn.Module],
    batches: list[Batch],
    effort: Effort,
    *,
    target: float,
    note: str = "",
) -> Row:
    """Compare a whole evaluation of everybody with the hand-written loop."""
    contenders, absent = field(model, batches, nn.CrossEntropyLoss(), peers=effort.peers)
    times = interleaved(contenders, effort.repetitions)
    unit = times.pop(RAW)
    shown = {who: ratios(taken, unit) for who, taken in times.items()}
    raw = f"raw loop {1e6 * statistics.median(unit) / len(batches):.1f} us a batch"
    return row(
        name, "raw loop = 1", shown.pop(OURS), {**shown, **absent}, target=target,
        note="; ".join(filter(None, [raw, note])),
    )  # fmt: skip


def tiny(effort: Effort, device: str = "cpu") -> list[Row]:
    """Measure a model that takes nearly no time, so that the loop is what is measured."""
    batches = batches_of(effort.of(2000), device)
    where = "" if device == "cpu" else f", {device}"
    note = "every Ignite event that has a handler fires"
    return [
        beside_raw(f"loop per batch, tiny model{where}", lambda: linear(device), batches, effort,
                   target=1.45, note=note),
    ]  # fmt: skip


def accuracy(effort: Effort) -> list[Row]:
    """Measure the tiny model with an Ignite metric beside the loss."""
    model, criterion, batches = linear(), nn.CrossEntropyLoss(), batches_of(effort.of(2000))
    hook = EvalHook(batches, create_evaluator(model, {"accuracy": Accuracy()}, loss_fn=criterion))
    evaluator = create_supervised_evaluator(
        model, {"accuracy": Accuracy(), "loss": Loss(criterion)}
    )
    own = Accuracy()

    def by_hand() -> float:
        own.reset()
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for x, y in batches:
                y_pred = model(x)
                total += criterion(y_pred, y).item() * len(x)
                count += len(x)
                own.update((y_pred, y))
        model.train()
        return total / count + float(own.compute())

    contenders = {OURS: hook.evaluate, RAW: by_hand, "ignite": lambda: evaluator.run(batches)}
    times = interleaved(contenders, effort.repetitions)
    shown = {who: ratios(taken, times[RAW]) for who, taken in times.items() if who != RAW}
    return [
        row("loop per batch, tiny model with Accuracy", "raw loop = 1", shown.pop(OURS), shown,
            note="the raw loop updates Ignite's Accuracy too"),
    ]  # fmt: skip


def five_ms(effort: Effort) -> list[Row]:
    """Measure a batch of 5 ms, where the loop should not be noticed."""
    batches = batches_of(effort.of(40, least=4))
    return [
        beside_raw(
            "loop, 5 ms a batch", lambda: Slow(0.005), batches, effort, target=1.02,
            note=f"{len(batches)} batches, so that fixed costs count as well",
        )
    ]  # fmt: skip


def modes(effort: Effort) -> list[Row]:
    """Measure what many modules cost more a batch, and once an evaluation, than a few do."""
    few, many = effort.of(20, least=4), effort.of(60, least=8)
    made = {
        (modules, count): field(
            lambda modules=modules: Wide(modules), batches_of(count), nn.CrossEntropyLoss(),
            peers=effort.peers,
        )
        for modules in (3, MODULES)
        for count in (1, few, many)
    }  # fmt: skip
    absent = made[3, few][1]

    def more_per_batch(who: str) -> float:
        def slope(modules: int) -> float:
            long, short = (best_of(made[modules, count][0][who]) for count in (many, few))
            return (long - short) / (many - few)

        return 1e6 * (slope(MODULES) - slope(3))

    def more_each_time(who: str) -> float:
        return 1e3 * (best_of(made[MODULES, 1][0][who]) - best_of(made[3, 1][0][who]))

    names = list(made[3, few][0])
    batch = by_name(names, more_per_batch, effort.repetitions)
    once = by_name(names, more_each_time, effort.repetitions)
    return [
        row(f"mode switching, {MODULES:,} modules: a batch", "us more than 3 modules",
            batch.pop(OURS), {**batch, **absent}, target=5.0,
            note="a difference of differences: within some us of 0 is 0"),
        row(f"mode switching, {MODULES:,} modules: an evaluation", "ms more than 3 modules",
            once.pop(OURS), {**once, **absent},
            note="ours records each module's flag and buffers, to put them back"),
    ]  # fmt: skip


def best_of(evaluate: Evaluate, times: int = 3) -> float:
    """Return the shortest of some runs, for a difference of small numbers."""
    return min(seconds(evaluate) for _ in range(times))


def by_name(
    names: Sequence[str], measure: Callable[[str], float], repetitions: int
) -> dict[str, list[float]]:
    """Measure each name in turn, interleaved."""
    settle()
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repetitions):
        for name in names:
            found[name].append(measure(name))
    return found


def one_batch(effort: Effort) -> list[Row]:
    """Measure an evaluation of a single batch of the tiny model: what it costs by itself."""
    contenders, absent = field(linear, batches_of(1), nn.CrossEntropyLoss(), peers=effort.peers)
    calls = effort.of(20)
    times = interleaved(contenders, effort.repetitions, lambda one: many_calls(one, calls))
    shown: Mapping[str, list[float]] = {who: taken for who, taken in times.items() if who != OURS}
    return [
        row("one-batch evaluation, fixed cost", "ms", times[OURS], {**shown, **absent},
            target=0.15, note="the raw loop's is the batch itself"),
    ]  # fmt: skip


def many_calls(evaluate: Evaluate, calls: int) -> float:
    """Return the milliseconds of one call, as the mean of several."""

    def run() -> None:
        for _ in range(calls):
            evaluate()

    return 1e3 * seconds(run) / calls
