"""Count what the ranks of an evaluation say to each other, and tell what that costs on many.

``python benchmarks/messages.py`` starts worlds of 1 to 8 processes (gloo, on this machine) and
counts, for one tracked evaluation, the meetings, and the messages and bytes that rank 0 and the
last rank send and receive.  Counts do not depend on how fast or busy the machine is: eight
processes may share two cores.  Each rank has the same number of batches in every world, so that
what one rank says should be the same in every world too, and what rank 0 hears a multiple of it:
the model is fitted on the worlds up to 4 and compared with the larger ones.

What rank 0 computes is measured, as CPU time: of a meeting at which nothing is said, and of
answering metrics.  The machine may be busy, so the least of many repetitions counts.

``--write`` keeps everything in ``benchmarks/results/scale.json``; ``docs/scale.md`` says how to
read it, and makes of it seconds on 1,000 ranks.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, ConfusionMatrix, Metric, Precision, Recall, mIoU
from torch import nn

from ignite_evalhook import EvalHook, create_evaluator
from ignite_evalhook._evaluate import pool as _pool
from ignite_evalhook._ranks import buffers as _buffers
from ignite_evalhook._ranks import messages as _wire
from ignite_evalhook._ranks.asking import AskedMetrics
from ignite_evalhook._ranks.team import Team

RESULTS = Path(__file__).parent / "results" / "scale.json"
BATCHES = 4  # a rank
BATCH = 8  # samples
CLASSES = 10
MANY = 1000  # classes of the large state, numbers of a large prediction
LARGE = 8  # worlds above this size leave out the cases that are much work
FITTED = 4  # worlds up to this size make the model, larger ones try it

COUNTED = ("messages_sent", "bytes_sent", "messages_received", "bytes_received", "collectives")


class Counter:
    """Stands in a module of the library for ``torch.distributed``, and counts what passes.

    Attributes:
        counts: Messages and bytes of this rank; collectives and their bytes on each rank.
        most: The most messages that were on their way at once.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys((*COUNTED, "bytes_of_collectives"), 0)
        self.most = 0
        self._under_way: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def isend(self, tensor: torch.Tensor, rank: int, group: Any = None) -> Any:
        return self._count("sent", tensor, dist.isend(tensor, rank, group=group))

    def irecv(self, tensor: torch.Tensor, rank: int, group: Any = None) -> Any:
        return self._count("received", tensor, dist.irecv(tensor, rank, group=group))

    def broadcast(self, tensor: torch.Tensor, rank: int, group: Any = None) -> Any:
        self._note(tensor)
        return dist.broadcast(tensor, rank, group=group)

    def all_reduce(self, tensor: torch.Tensor, op: Any = None, group: Any = None) -> Any:
        self._note(tensor)
        return dist.all_reduce(tensor, op, group=group)

    def _note(self, tensor: torch.Tensor) -> None:
        self.counts["collectives"] += 1
        self.counts["bytes_of_collectives"] += tensor.nbytes

    def _count(self, way: str, tensor: torch.Tensor, work: Any) -> Any:
        self.counts[f"messages_{way}"] += 1
        self.counts[f"bytes_{way}"] += tensor.nbytes
        self._under_way = [one for one in self._under_way if not one.waited]
        self._under_way.append(Watched(work))
        self.most = max(self.most, len(self._under_way))
        return self._under_way[-1]


class Watched:
    """A message under way, which knows whether somebody waits for it already."""

    def __init__(self, work: Any) -> None:
        self.waited = False
        self._work = work

    def is_completed(self) -> bool:
        self.waited = True
        return bool(self._work.is_completed())

    def wait(self) -> Any:
        return self._work.wait()


@contextmanager
def counting() -> Iterator[Counter]:
    """Count all that the ranks say to each other, without changing it."""
    counter = Counter()
    own = _wire.dist, _buffers.dist, _pool.dist
    _wire.dist = _buffers.dist = _pool.dist = counter  # type: ignore[assignment]
    try:
        yield counter
    finally:
        _wire.dist, _buffers.dist, _pool.dist = own


# -- what is evaluated ----------------------------------------------------------------------------


class Echo(nn.Module):
    """A model that is no work: its predictions are its inputs."""

    def __init__(self, buffers: int = 0, length: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        for number in range(buffers):
            self.register_buffer(f"layer{number // 16}_{number % 16}_running_mean",
                                 torch.zeros(length))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def few() -> dict[str, Metric]:
    """Return three metrics that count."""
    return {"accuracy": Accuracy(), "precision": Precision(), "recall": Recall()}


def case(name: str) -> dict[str, Any]:
    """Return what to evaluate: classes, metrics, loss, model and arguments of the hook."""
    one = {"accuracy": Accuracy()}
    loss = nn.CrossEntropyLoss()
    return {
        "val loss": {"loss_fn": loss},
        "Accuracy": {"metrics": one},
        "Accuracy, Precision, Recall": {"metrics": few()},
        "mIoU of 1000 classes": {
            "metrics": {"mIoU": mIoU(ConfusionMatrix(MANY))}, "classes": MANY,
        },
        "ConfusionMatrix of 1000 classes": {
            "metrics": {"matrix": ConfusionMatrix(MANY)}, "classes": MANY,
        },
        "predictions, 1000 numbers a sample": {
            "classes": MANY,
            "hook": {"compute_metrics": lambda results: {"number": len(results)}},
        },
        # ResNet-50: 53 layers of BatchNorm with three buffers each, 53,120 numbers twice.
        "val loss, buffers of a ResNet-50": {
            "loss_fn": loss, "model": Echo(buffers=159, length=668),
        },
    }[name]  # fmt: skip


CASES = (
    "val loss", "Accuracy", "Accuracy, Precision, Recall", "mIoU of 1000 classes",
    "ConfusionMatrix of 1000 classes", "predictions, 1000 numbers a sample",
    "val loss, buffers of a ResNet-50",
)  # fmt: skip


def count_evaluation(name: str, batches: int = BATCHES) -> dict[str, Any]:
    """Count one evaluation, on every rank; the one before it has opened what is opened once.

    Args:
        name: One of ``CASES``.
        batches: Batches of one rank.
    """
    what = case(name)
    world = dist.get_world_size() if dist.is_initialized() else 1
    generator = torch.Generator().manual_seed(0)
    classes = what.get("classes", CLASSES)
    batch = (
        torch.rand(BATCH, classes, generator=generator),
        torch.randint(0, classes, (BATCH,), generator=generator),
    )
    evaluator = create_evaluator(
        what.get("model") or Echo(), metrics=what.get("metrics"), loss_fn=what.get("loss_fn")
    )
    more: dict[str, Any] = dict(what.get("hook", {}))
    best = {"val loss": "val_loss", "Accuracy": "accuracy"}.get(name.partition(",")[0])
    if best is not None and "hook" not in what:
        more.update(save_best=best, rule="greater", out_dir=False)
    trainer = Engine(lambda engine, item: None)
    data = [batch] * (batches * world)
    hook = EvalHook(data, evaluator, interval=1, by_epoch=False, preflight=False, **more)
    hook.attach(trainer)
    team, seen = Team.current(), []

    def note(engine: Engine) -> None:
        seen.append({"meetings": team.meetings, **counter.counts})

    with counting() as counter:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)  # after the hook's evaluation
        trainer.run([0, 1])
    hook.detach()
    first, second = seen
    return {**{key: second[key] - first[key] for key in second}, "at_once": counter.most}


# -- what rank 0 computes -------------------------------------------------------------------------


def cpu_of_meeting(repetitions: int, meetings: int) -> dict[str, float]:
    """Return the least CPU time, and wall time, of a meeting at which nothing is said, in µs."""
    team = Team.current()
    times = []
    for _ in range(repetitions):
        team.tell(lambda: None)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(meetings):
            team.tell(lambda: None)
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpus, walls = ([1e6 * taken / meetings for taken in kind] for kind in zip(*times, strict=True))
    return {"cpu": min(cpus), "cpu_median": statistics.median(cpus), "wall": min(walls)}


def answering(metric: Metric, classes: int, ranks: int, repetitions: int = 5) -> float:
    """Return the least CPU time in µs, for each rank, in which rank 0 answers a metric."""
    times = []
    for _ in range(repetitions):
        both = [AskedMetrics({"metric": metric}, rank, ranks) for rank in (0, 1)]
        metric.reset()
        metric.update((torch.rand(BATCH, classes), torch.randint(0, classes, (BATCH,))))
        taken, numbers = 0.0, [[rank] for rank in range(ranks)]
        while not both[0].done:
            first, other = (asked.say(1) for asked in both)
            said = [first, *[other] * (ranks - 1)]  # all others say the same
            begin = time.process_time()
            told = both[0].decide(said, numbers)
            taken += time.process_time() - begin
            for asked in both:
                asked.hear(told)
        times.append(taken)
    return 1e6 * min(times) / ranks


# -- the worlds -----------------------------------------------------------------------------------


def work(rank: int, world: int, folder: str, repetitions: int) -> None:
    """Count on one rank, and leave the counts in a file."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # else Ignite guesses it from host names, and warns
    logging.getLogger("ignite_evalhook").setLevel("WARNING")
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world,
            timeout=timedelta(minutes=10),
        )  # fmt: skip
    before = open_files()
    Team.current()
    found = {
        "files_of_group": before,
        "files_of_team": open_files() - before,
        "cases": {
            name: count_evaluation(name)
            for name in CASES
            if world <= LARGE or case(name).get("classes", CLASSES) == CLASSES
        },
        "long": count_evaluation("val loss", batches=1000 + BATCHES),
        "meeting_us": cpu_of_meeting(repetitions, 100) if world > 1 else None,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def open_files() -> int:
    """Return how many files and connections this process has open; 0 where that is not told."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def count_world(world: int, repetitions: int) -> dict[str, Any]:
    """Start the processes of one world, and return what rank 0 and the last rank counted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "ignite.metrics", "ignite_evalhook"])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=work, args=(rank, world, folder, repetitions))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        if any(codes):
            raise RuntimeError(f"the processes ended with {codes}")
        first, last = (
            json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, world - 1)
        )
    return {"rank 0": first, "last rank": last}


# -- the model ------------------------------------------------------------------------------------


def model_of(worlds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Fit what one other rank adds to what rank 0 sends and receives, and try it on large worlds.

    The model is a multiple of the number of other ranks.  Returns, for each case, the slopes and
    the largest relative error on the worlds that were not fitted.
    """
    models: dict[str, Any] = {}
    for name in CASES:
        slopes, errors = {}, []
        for key in COUNTED[:4]:
            seen = {
                w: worlds[w]["rank 0"]["cases"][name][key]
                for w in worlds
                if w > 1 and name in worlds[w]["rank 0"]["cases"]
            }
            fitted = [seen[w] / (w - 1) for w in seen if w <= FITTED]
            slope = statistics.mean(fitted)
            slopes[key] = slope
            errors += [abs(seen[w] / (slope * (w - 1)) - 1) for w in seen if w > FITTED]
        other = worlds[max(seen)]["last rank"]["cases"][name]
        models[name] = {
            **slopes,
            "meetings": other["meetings"],
            "bytes_of_collectives": other["bytes_of_collectives"],
            "largest_error": max(errors, default=None),
        }
    return models


def slope_of(points: dict[int, float]) -> float:
    """Return the least-squares slope over the number of other ranks."""
    x, y = [float(world - 1) for world in points], list(points.values())
    return statistics.linear_regression(x, y).slope


def main() -> None:
    """Count, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--write", action="store_true", help=f"keep it in {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ignite": ignite.__version__,
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"{cores} cores")
    worlds = {}
    print(f"{'one evaluation: rank 0':<36}ranks meetings  sent: messages bytes  received: same")
    for world in args.worlds:
        worlds[world] = count_world(world, args.repetitions)
        for name, found in worlds[world]["rank 0"]["cases"].items():
            counts = " ".join(f"{found[key]:>11,}" for key in COUNTED[:4])
            print(f"{name:<36}{world:>5} {found['meetings']:>8} {counts}", flush=True)
    models = model_of(worlds)
    print(f"\n{'what each other rank adds at rank 0':<36}meetings, then as above; largest error")
    for name, model in models.items():
        counts = " ".join(f"{model[key]:>11,.1f}" for key in COUNTED[:4])
        error = model["largest_error"]
        told = "" if error is None else f" {100 * error:.2f} %"
        print(f"{name:<36}{model['meetings']:>8} {counts}{told}")
    several = [world for world in worlds if world > 1]
    long = [worlds[max(several)]["last rank"][key] for key in ("cases", "long")]
    per_batch = (long[1]["bytes_sent"] - long[0]["val loss"]["bytes_sent"]) / 1000
    meeting = {w: worlds[w]["rank 0"]["meeting_us"]["cpu"] for w in several}
    costs = {
        "cpu_us_of_a_meeting_for_each_other_rank": slope_of(meeting) if len(several) > 1 else None,
        "bytes_of_the_val_loss_for_each_batch": per_batch,
        "answering_us_for_each_rank": {
            "Accuracy": answering(Accuracy(), CLASSES, 1000),
            "Precision": answering(Precision(), CLASSES, 1000),
        },
        "open_files_of_the_team_for_each_other_rank": slope_of(
            {w: worlds[w]["rank 0"]["files_of_team"] for w in several}
        ) if len(several) > 1 else None,
    }  # fmt: skip
    print(json.dumps(costs, indent=2))
    if args.write:
        RESULTS.parent.mkdir(exist_ok=True)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        machine = {"system": platform.platform(), "cores": cores, "load": load, **versions}
        everything = {
            "machine": machine, "batches of a rank": BATCHES, "samples of a batch": BATCH,
            "fitted up to": FITTED, "worlds": worlds, "model": models, "costs": costs,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
