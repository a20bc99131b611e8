"""Compare collecting predictions from real processes with copying their bytes.

``python benchmarks/ranks.py`` starts two processes (gloo, on this machine) that hold half of the
predictions each, those of ``benchmarks/collect.py``, and measures on rank 0 the time from a
barrier to a list of all items.  The unit is a memcpy of all their bytes into new memory.  Beside
ours: ``gather`` of one padded tensor (dense only, and it leaves a tensor, no items), and
``gather_object`` of the items, which is what most libraries do (of 1/25 of them, since it takes
many seconds).  The last rows say what the meetings of an evaluation cost without any data.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from collect import BATCH, DATA, collected, items_of, median, memcpy, show
from ignite.engine import Engine
from ignite.metrics import Accuracy
from torch import nn

from ignite_evalhook import EvalHook, create_evaluator
from ignite_evalhook._packing import pack
from ignite_evalhook._results import ResultCollector
from ignite_evalhook._team import Team

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


def timed(function: Callable[[], Any]) -> float:
    """Return how long a call takes on this rank, from the moment all are ready."""
    dist.barrier()
    begin = time.perf_counter()
    result = function()
    taken = time.perf_counter() - begin
    del result
    return taken


def work(rank: int, folder: str, samples: int, repetitions: int) -> None:
    """Measure, and print on rank 0."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # else Ignite guesses it from host names, and warns
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD,
        timeout=timedelta(minutes=10),
    )  # fmt: skip
    for name, make in DATA.items():
        torch.manual_seed(0)
        outputs = make(samples)
        part = outputs[: max(WORLD, len(outputs) // 25)]
        payload = pack(collected(outputs).parts()).payload()
        ways: dict[str, Callable[[], Any]] = {
            "memcpy": lambda payload=payload: memcpy(payload),
            "ours: a list of items": lambda outputs=outputs: ours(outputs),
        }
        if name == "dense":
            ways["dist.gather: a tensor"] = lambda outputs=outputs: gather(outputs)
        for function in ways.values():
            function()
        times = {
            way: [timed(function) for _ in range(repetitions)] for way, function in ways.items()
        }
        once = timed(lambda part=part: gather_object(part)) * len(outputs) / len(part)
        if rank == 0:
            unit = median(times.pop("memcpy"))
            size = payload.nbytes / 1e6
            print(f"{name}, {size:.0f} MB; a memcpy takes {1e3 * unit:.1f} ms")
            for way, taken in times.items():
                note = f"{1e3 * median(taken):.0f} ms"
                show(f"  {way}", [one / unit for one in taken], note)
            print(f"{'  gather_object: a list (of 1/25)':<42} {once / unit:8.0f}")
    meetings(rank)
    dist.destroy_process_group()


def meetings(rank: int) -> None:
    """Print what one evaluation of a batch a rank costs."""
    model = nn.Linear(8, 2)
    evaluator = create_evaluator(
        model, metrics={"accuracy": Accuracy()}, loss_fn=nn.CrossEntropyLoss()
    )
    batches = [(torch.randn(BATCH, 8), torch.randint(0, 2, (BATCH,))) for _ in range(WORLD)]
    hook = EvalHook(batches, evaluator, save_best="val_loss", out_dir=False, interval=None)
    hook.attach(Engine(lambda engine, batch: None))
    taken = [timed(lambda: hook.evaluate(track=False)) for _ in range(50)]
    talk = [timed(lambda: Team.current().tell(lambda: 0)) for _ in range(200)]
    if rank == 0:
        print(f"an evaluation of one batch a rank takes {1e3 * median(taken):.2f} ms, ")
        print(f"one meeting of the ranks {1e6 * median(talk):.0f} µs")


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--samples", type=int, default=50_000)
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {WORLD} processes")
    print(f"{'ratio to a memcpy of the bytes':<42}   median  [quartiles]")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, args.samples, args.repetitions)
        torch.multiprocessing.spawn(work, arguments, nprocs=WORLD)


if __name__ == "__main__":
    main()
