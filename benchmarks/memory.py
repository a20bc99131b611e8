"""Rows about memory: how high that of a process of its own rises, payload = 1."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ignite_evalhook import EvalHook, create_evaluator
from ignite_evalhook._predictions.collect import ResultCollector

from .loops import by_name
from .peers import OURS, PEERS, missing, quieten
from .table import Row, row
from .timing import Effort

LIST, LAZY = "ours, a list", "ours, a lazy sequence"
ROWS, COLUMNS = 1000, 80  # of a batch of predictions
SLOW = {"transformers": 4}  # gets so many times less: what it takes grows with the square


class Outputs:
    """Batches that are made on access, so that they take no memory of their own."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.count):
            yield torch.full((ROWS, COLUMNS), float(number)), torch.zeros(ROWS, dtype=torch.int64)


def streaming(batches: int) -> Any:
    """Ours, where nobody asks for the predictions."""
    evaluator = create_evaluator(nn.Identity(), loss_fn=nn.CrossEntropyLoss())
    return EvalHook(Outputs(batches), evaluator).evaluate()


def collecting(batches: int) -> Any:
    """Ours, all predictions kept; packed, as they are sent or handed on."""
    collector = ResultCollector()
    for number, (y_pred, _) in enumerate(Outputs(batches)):
        collector.add(y_pred, ROWS, None, number)
    return collector


def finished_list(batches: int) -> Any:
    """Ours, all predictions as a list of items."""
    return collecting(batches).results()


def finished_lazily(batches: int) -> Any:
    """Ours, all predictions as a lazy sequence, which is gone through once."""
    collector = ResultCollector(join=True)
    for number, (y_pred, _) in enumerate(Outputs(batches)):
        collector.add(y_pred, ROWS, None, number)
    items = collector.lazy_results()
    for _ in items:
        pass
    return items


def ignite_store(batches: int) -> Any:
    """Ignite's ``EpochOutputStore``, and one tensor of it, as its ``EpochMetric`` makes it."""
    from ignite.engine import Engine
    from ignite.handlers import EpochOutputStore

    engine, store = Engine(lambda engine, batch: batch[0].clone()), EpochOutputStore()
    store.attach(engine)
    engine.run(Outputs(batches))
    return torch.cat(store.data), store


def transformers_container(batches: int) -> Any:
    """What ``Trainer.predict`` of Hugging Face keeps predictions in."""
    from transformers.trainer_pt_utils import EvalLoopContainer

    container = EvalLoopContainer(do_nested_concat=True, padding_index=-100)
    for y_pred, _ in Outputs(batches):
        container.add(y_pred)
    return container.get_arrays(), container


def mmengine_results(batches: int) -> Any:
    """What a metric of MMEngine keeps: one item a sample in ``results``."""
    results: list[Any] = []
    for y_pred, _ in Outputs(batches):
        results += [{"pred": one} for one in y_pred]
    return results


WAYS: dict[str, Callable[[int], Any]] = {
    "streaming": streaming,
    OURS: collecting,
    LIST: finished_list,
    LAZY: finished_lazily,
    "ignite": ignite_store,
    "transformers": transformers_container,
    "mmengine": mmengine_results,
}


def high_water() -> int:
    """Return the most memory this process has ever had resident, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage() counts what the parent had when it started this process
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def child(who: str, batches: int, answer: Any) -> None:
    """Do it small, so that what it takes the first time is not counted; then measure."""
    quieten()
    torch.set_num_threads(1)
    WAYS[who](2)  # few, for what they took would not be counted again
    before = high_water()
    kept = WAYS[who](batches)
    answer.put(high_water() - before)
    del kept


def risen(who: str, batches: int) -> float:
    """Return how high memory rose, as a part of the predictions' bytes."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=child, args=(who, batches, answer))
    process.start()
    found: int = answer.get(timeout=600)
    process.join()
    return found / (batches * ROWS * COLUMNS * 4)


def memory(effort: Effort) -> list[Row]:
    """Measure an evaluation that needs no predictions, and collecting them."""
    batches = effort.of(1000, least=40)
    names, absent = ["streaming", OURS, LIST, LAZY], {}
    for name in ("ignite", "transformers", "mmengine") if effort.peers else ():
        why = missing(PEERS[name])
        if why is None:
            names.append(name)
        else:
            absent[name] = why
    found = by_name(names, lambda who: risen(who, batches // SLOW.get(who, 1)), effort.repetitions)
    what = f"{batches * ROWS:,} x {COLUMNS} floats"
    size = f"{batches * ROWS * COLUMNS * 4 / 1e6:.0f} MB, of transformers a quarter"
    stream, lazy, a_list = found.pop("streaming"), found.pop(LAZY), found.pop(LIST)
    return [
        row(f"memory, {what}: streaming", "payload = 1", stream, {}, target=0.02,
            note="nobody asks for predictions, so none are kept"),
        row(f"memory, {what}: collecting", "payload = 1", found.pop(OURS), {**found, **absent},
            target=1.05, note=f"payload {size}"),
        row(f"memory, {what}: a lazy sequence", "payload = 1", lazy, {LIST: a_list},
            target=1.05, note="finished, and gone through once"),
    ]  # fmt: skip
