"""Measure how high the memory of a process rises while it evaluates.

``python benchmarks/memory.py`` evaluates a model that predicts 80 float32 for each of 1,000,000
samples, by a hook, in processes of their own, and prints the resident memory's high-water mark
above where it stood before the evaluation; all predictions together, the payload, are 1:

- *streaming*: metrics only, nothing is kept;
- *collecting*: with ``compute_metrics``, when rank 0 has all predictions of all ranks;
- *a list*: when ``compute_metrics`` has the list of items.

The model's hidden layer takes, and frees, more memory for a batch than its predictions do, as
models do: where copies of predictions leave holes between, these add up.  Each process is started
anew for each figure; the smallest and the greatest of the repetitions are printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from collect import high_water
from ignite.engine import Engine
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ignite_evalhook import EvalHook, create_evaluator
from ignite_evalhook._results import ResultCollector

CLASSES = 80
INPUTS = 16


class Data(Dataset[Any]):
    """Samples that are made when they are asked for, a batch at once."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._samples

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch."""
        return torch.rand(len(indices), INPUTS), torch.zeros(len(indices), dtype=torch.int64)


def whole(batch: Any) -> Any:
    """Collate what is a batch already."""
    return batch


def evaluate(
    rank: int, world: int, folder: str, samples: int, batch: int, hidden: int, collect: bool,
    shuffle: bool, answer: Any,
) -> None:  # fmt: skip
    """Evaluate in a process of its own."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ["LOCAL_RANK"] = str(rank)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
        )
    found: dict[str, int] = {}
    results_of = ResultCollector.results

    def results(self: ResultCollector) -> list[Any]:
        found["collecting"] = high_water()
        return results_of(self)

    ResultCollector.results = results  # type: ignore[method-assign]

    def compute(items: list[Any]) -> dict[str, float]:
        found["a list"] = high_water()
        return {"items": len(items), "sum": float(items[-1].sum())}

    model = nn.Sequential(nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))

    @torch.no_grad()
    def predict(engine: Engine, batch: Any) -> Tensor:
        return model(batch[0])  # type: ignore[no-any-return]

    if collect:
        evaluator: Engine = Engine(predict)
    else:
        evaluator = create_evaluator(model, metrics={"accuracy": Accuracy()})

    def loader(count: int) -> DataLoader[Any]:
        return DataLoader(Data(count), batch, collate_fn=whole, shuffle=shuffle)

    hook = EvalHook(
        loader(samples), evaluator, model=model, out_dir=False, interval=None,
        compute_metrics=compute if collect else None,
    )  # fmt: skip
    hook.attach(Engine(lambda engine, batch: None))
    hook.evaluate(loader(2 * world * batch), track=False)
    before = high_water()
    hook.evaluate(track=False)
    if rank == 0:
        found.setdefault("streaming", high_water())
        size = 4 * CLASSES * samples
        answer.put({name: (value - before) / size for name, value in found.items()})
    if world > 1:
        dist.destroy_process_group()


def measured(world: int, *arguments: Any) -> dict[str, float]:
    """Return what processes of their own have found."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=evaluate, args=(rank, world, folder, *arguments, answer), daemon=True
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        found: dict[str, float] = answer.get(timeout=900)
        for process in processes:
            process.join()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1_000_000)
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{'high-water mark, payload = 1':<52} least .. most")
    for world, batch, hidden, collect, shuffle in (
        (1, 100, 400, False, False),
        (1, 100, 400, True, False),
        (1, 100, 2000, True, False),
        (1, 1000, 400, True, False),
        (1, 100, 400, True, True),
        (2, 100, 400, True, False),
    ):
        runs = [
            measured(world, args.samples, batch, hidden, collect, shuffle)
            for _ in range(args.repetitions)
        ]
        for name in ("collecting", "a list") if collect else ("streaming",):
            values = [run[name] for run in runs]
            order = ", shuffled" if shuffle else ""
            what = f"{name}, {world} processes, batches of {batch}{order}, {hidden} hidden"
            print(f"  {what:<50} {min(values):.3f} .. {max(values):.3f}", flush=True)


if __name__ == "__main__":
    main()
