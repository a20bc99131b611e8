"""Rows about collecting predictions from two real processes (gloo, on this machine).

Each holds half of the predictions of ``collect``; measured on rank 0 is the time from a barrier to
a list of all items.  The unit is a memcpy of all their bytes into new memory.  Beside ours:
``gather`` of one padded tensor (dense only, and it leaves a tensor, no items), and what peers do
with items, which is pickle (of 1/50 of them, since it takes many seconds).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine
from ignite.metrics import Accuracy
from torch import nn

from ignite_evalhook import EvalHook, create_evaluator
from ignite_evalhook._predictions.collect import ResultCollector
from ignite_evalhook._ranks.packing import pack
from ignite_evalhook._ranks.team import Team

from .collect import BATCH, DATA, collected, items_of, memcpy
from .peers import OURS, PEERS, missing, quieten
from .table import Row, row
from .timing import Effort, ratios

WORLD = 2


def ours(outputs: list[Any]) -> list[Any] | None:
    """Return all items on rank 0, as an evaluation gets them there."""
    collector = mine(outputs)
    with Team.current().together("benchmark") as section:

        def merge(said: list[Any]) -> list[Any]:
            for parts in said[1:]:
                collector.merge(parts)
            return collector.results()

        found: list[Any] = []
        section.close(collector.parts(), lambda said: found.append(merge(said)))
    return found[0] if found else None


def mine(outputs: list[Any]) -> ResultCollector:
    """Return this rank's collector: every other batch."""
    return collected(outputs[dist.get_rank() :: WORLD])


def gather(outputs: list[Any]) -> Any:
    """Return one tensor of all rows on rank 0."""
    own = torch.cat(outputs[dist.get_rank() :: WORLD])
    parts = [torch.empty_like(own) for _ in range(WORLD)] if dist.get_rank() == 0 else None
    dist.gather(own, parts)
    return parts and torch.cat(parts)


def gather_object(outputs: list[Any]) -> Any:
    """Return all items on rank 0, through pickle."""
    own = items_of(outputs[dist.get_rank() :: WORLD])
    parts = [None] * WORLD if dist.get_rank() == 0 else None
    dist.gather_object(own, parts)
    return parts


def all_gather(outputs: list[Any]) -> Any:
    """Return one tensor of all rows on every rank, by Ignite's own function."""
    return idist.all_gather(torch.cat(outputs[dist.get_rank() :: WORLD]))


def collect_results(outputs: list[Any]) -> Any:
    """Return all items on rank 0, by MMEngine's own function."""
    from mmengine.dist import collect_results

    items = items_of(outputs[dist.get_rank() :: WORLD])
    # Its default is a folder in the working directory; both ranks have the same parent.
    folder = Path(tempfile.gettempdir(), f"benchmark-mmengine-{os.getppid()}")
    return collect_results(items, len(items) * WORLD, "cpu", tmpdir=str(folder))


def timed(function: Callable[[], Any]) -> float:
    """Return how long a call takes on this rank, from the moment all are ready."""
    dist.barrier()
    begin = time.perf_counter()
    result = function()
    taken = time.perf_counter() - begin
    del result
    return taken


PARTS = 50  # pickle is measured on this part of the items


def work(rank: int, folder: str, samples: int, repetitions: int, peers: bool) -> None:
    """Measure; rank 0 writes what it found."""
    quieten()
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # else Ignite guesses it from host names, and warns
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD,
        timeout=timedelta(minutes=10),
    )  # fmt: skip
    found: dict[str, Any] = {"meetings": meetings(repetitions)}
    for kind, make in DATA.items():
        torch.manual_seed(0)
        found[kind] = of_kind(kind, make(samples), repetitions, peers)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def of_kind(kind: str, outputs: list[Any], repetitions: int, peers: bool) -> dict[str, Any]:
    """Return the times of every way, and the bytes."""
    part = outputs[: max(WORLD, len(outputs) // PARTS // WORLD * WORLD)]
    scale = len(outputs) / len(part)
    payload = pack(collected(outputs).parts()).payload()
    ways: dict[str, tuple[Callable[[], Any], float]] = {
        "memcpy": (lambda: memcpy(payload), 1.0),
        OURS: (lambda: ours(outputs), 1.0),
    }
    if kind == "dense":
        ways["dist.gather"] = (lambda: gather(outputs), 1.0)
        ways["ignite (all_gather)"] = (lambda: all_gather(outputs), 1.0)
    if peers:
        ways[f"gather_object, of 1/{PARTS}"] = (lambda: gather_object(part), scale)
        if missing(PEERS["mmengine"]) is None:
            ways[f"mmengine, of 1/{PARTS}"] = (lambda: collect_results(part), scale)
    for function, _ in ways.values():
        function()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, (function, factor) in ways.items():
            times[way].append(timed(function) * factor)
    return {"times": times, "bytes": payload.nbytes}


def meetings(repetitions: int) -> dict[str, list[float]]:
    """Return what one evaluation of a batch a rank costs, and one meeting of the ranks."""
    torch.manual_seed(0)  # the same model and batches on each rank
    model = nn.Linear(8, 2)
    evaluator = create_evaluator(
        model, metrics={"accuracy": Accuracy()}, loss_fn=nn.CrossEntropyLoss()
    )
    batches = [(torch.randn(BATCH, 8), torch.randint(0, 2, (BATCH,))) for _ in range(WORLD)]
    hook = EvalHook(batches, evaluator, save_best="val_loss", out_dir=False, interval=None)
    hook.attach(Engine(lambda engine, batch: None))
    count = 10 * repetitions
    return {
        "evaluation": [1e3 * timed(lambda: hook.evaluate(track=False)) for _ in range(count)],
        "meeting": [1e3 * timed(lambda: Team.current().tell(lambda: 0)) for _ in range(count)],
    }


def ranks(effort: Effort) -> list[Row]:
    """Start the processes, and make rows of what they found."""
    samples = effort.of(50_000 // BATCH, least=4) // WORLD * WORLD * BATCH
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, samples, effort.repetitions, effort.peers)
        torch.multiprocessing.spawn(work, arguments, nprocs=WORLD)
        found = json.loads(Path(folder, "found.json").read_text())
    rows = []
    for kind, what in (("dense", "rows of 1000 float32"), ("ragged", "ragged dicts")):
        times = found[kind]["times"]
        unit = times.pop("memcpy")
        shown = {way: ratios(taken, unit) for way, taken in times.items()}
        note = (
            f"{found[kind]['bytes'] / 1e6:.0f} MB; a memcpy takes "
            f"{1e3 * statistics.median(unit):.1f} ms; ends as a list of items"
        )
        rows.append(
            row(f"collect {samples:,} {what} from {WORLD} processes", "memcpy = 1",
                shown.pop(OURS), shown, target=4.5 if kind == "dense" else 110.0, note=note)
        )  # fmt: skip
    meeting = statistics.median(found["meetings"]["meeting"])
    rows.append(
        row(f"one-batch evaluation on {WORLD} processes", "ms", found["meetings"]["evaluation"],
            note=f"one meeting of the ranks {meeting:.2f} ms")
    )  # fmt: skip
    return rows
