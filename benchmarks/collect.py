"""Compare collecting predictions with copying their bytes, as ratios within one run.

``python benchmarks/collect.py`` prints, for 50,000 predictions in batches of 100:

- *dense*: rows of 1000 float32;
- *ragged*: dicts of boxes (n, 4), scores (n,) and labels (n,), with n from 0 to 20.

What is measured is the way from rank 0's and another rank's outputs to one list of items, without
the wire: the collected batches are packed, their bytes brought into one new piece of memory, as a
receiver would do, unpacked, merged and split.  The unit is a memcpy of those bytes into new
memory.  "any value" packs the list of items itself, as if nothing were known of it; *pickle* is
what most libraries do.

Repetitions are interleaved; the median of the ratios is printed with its quartiles.  The last
rows say how high the memory of a process of its own rose, beside that of the bytes alone.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import multiprocessing
import pickle
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ignite_evalhook._packed_file import read, write
from ignite_evalhook._packing import pack, unpack
from ignite_evalhook._results import ResultCollector

BATCH = 100


def dense(samples: int) -> list[Any]:
    """Return outputs of shape (100, 1000), float32."""
    return [torch.rand(BATCH, 1000) for _ in range(samples // BATCH)]


def ragged(samples: int) -> list[Any]:
    """Return outputs that are lists of dicts, as detectors give them."""
    sizes = torch.randint(0, 21, (samples,), generator=torch.Generator().manual_seed(0)).tolist()
    items = [
        {"boxes": torch.rand(n, 4), "scores": torch.rand(n), "labels": torch.randint(0, 80, (n,))}
        for n in sizes
    ]
    return [items[begin : begin + BATCH] for begin in range(0, samples, BATCH)]


DATA: dict[str, Callable[[int], list[Any]]] = {"dense": dense, "ragged": ragged}


def collected(outputs: list[Any]) -> ResultCollector:
    """Return a collector that has seen all outputs."""
    collector = ResultCollector()
    for number, output in enumerate(outputs):
        indices = list(range(number * BATCH, (number + 1) * BATCH))
        collector.add(output, BATCH, indices, number)
    return collector


def items_of(outputs: list[Any]) -> list[Any]:
    """Return one item per sample, without any help of ours."""
    return [item for output in outputs for item in output]


def carried(collector: ResultCollector) -> list[Any]:
    """Return the items of a collector as another process would have them."""
    packed = pack(collector.parts())
    receiver = ResultCollector()
    receiver.merge(unpack(packed.head, packed.payload()))
    return receiver.results()


def packed_as_it_is(items: list[Any]) -> Any:
    """Take a list of items through bytes, and back."""
    packed = pack(items)
    return unpack(packed.head, packed.payload())


def memcpy(source: Tensor) -> Tensor:
    """Copy into memory that was not touched before, as that of a receiver is not."""
    # torch's allocator may give memory that was used before, which takes a seventh of the time.
    memory = mmap.mmap(-1, source.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8).copy_(source)


# -- time -----------------------------------------------------------------------------------------


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes, without the time for letting its result go."""
    gc.collect()
    begin = time.perf_counter()
    result = function()
    taken = time.perf_counter() - begin
    del result
    return taken


def show(name: str, values: list[float], note: str) -> None:
    """Print one row."""
    low, middle, high = statistics.quantiles(values, n=4)
    print(f"{name:<42} {middle:8.2f}  [{low:.2f} .. {high:.2f}]  {note}")


def rows(name: str, samples: int, repetitions: int) -> None:
    """Measure one kind of data."""
    outputs = DATA[name](samples)
    collector, items = collected(outputs), items_of(outputs)
    check(carried(collector), items)
    payload = pack(collector.parts()).payload()
    ways: dict[str, Callable[[], Any]] = {
        "memcpy": lambda: memcpy(payload),
        "collected, sent, a list": lambda: carried(collector),
        "on one process: a list": collector.results,
        "any value, sent, a list": lambda: packed_as_it_is(items),
        "collecting itself": lambda: collected(outputs),
    }
    times = {way: [] for way in ways}  # type: dict[str, list[float]]
    for function in ways.values():
        function()
    for _ in range(repetitions):
        for way, function in ways.items():
            times[way].append(seconds(function))
    unit = times.pop("memcpy")
    print(f"{name}, {payload.nbytes / 1e6:.0f} MB; a memcpy takes {1e3 * median(unit):.1f} ms")
    for way, taken in times.items():
        ratios = [own / other for own, other in zip(taken, unit, strict=True)]
        show(f"  {way}", ratios, f"{1e3 * median(taken):.0f} ms")
    # Pickle takes many seconds: a part of the items, and once, tells enough.
    part = items[: max(1, samples // 25)]
    taken_once = seconds(lambda: pickle.loads(pickle.dumps(part, 5))) * len(items) / len(part)
    print(f"{'  pickle of the items (from 1/25 of them)':<42} {taken_once / median(unit):8.0f}")


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def check(found: Any, expected: Any) -> None:
    """Raise if items were changed on their way."""
    if isinstance(expected, dict):
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        if len(found) != len(expected):
            raise RuntimeError(f"{len(expected)} items became {len(found)}")
        for pair in zip(found, expected, strict=True):
            check(*pair)
    elif found.dtype is not expected.dtype or not torch.equal(found, expected):
        raise RuntimeError(f"{expected} became {found}")


# -- memory ---------------------------------------------------------------------------------------


def high_water() -> int:
    """Return the most memory this process has ever had resident, in bytes."""
    try:
        # getrusage() counts what the parent had when it started this process.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def send(name: str, samples: int, file: Path, answer: Any) -> None:
    """Collect one batch after another, write the packed parts, and tell how memory rose."""
    prepare()
    before = high_water()
    collector = ResultCollector()
    for number in range(samples // BATCH):
        collector.add(DATA[name](BATCH)[0], BATCH, None, number)
    collecting = high_water() - before
    packed = pack(collector.parts())
    with file.open("wb") as opened:
        write(packed, opened)
    answer.put((packed.size, collecting, high_water() - before))


def receive(name: str, samples: int, file: Path, answer: Any) -> None:
    """Read the parts back, split them, touch every item, and tell how memory rose."""
    prepare()
    before = high_water()
    receiver = ResultCollector()
    receiver.merge(read(file))
    results = receiver.results()
    touch(results)
    answer.put(high_water() - before)


def prepare() -> None:
    """Do everything once, so that what it takes the first time is not counted."""
    torch.set_num_threads(1)
    for make in DATA.values():
        touch(carried(collected(make(2 * BATCH))))


def touch(items: Any) -> None:
    """Read every tensor."""
    if isinstance(items, dict):
        items = list(items.values())
    if isinstance(items, list):
        for item in items:
            touch(item)
    else:
        items.sum()


def memory_row(name: str, samples: int) -> None:
    """Print how high the memory of processes of their own rose."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for part in (send, receive):
            process = context.Process(
                target=part, args=(name, samples, Path(folder, "packed"), answer)
            )
            process.start()
            found.append(answer.get())
            process.join()
    (size, collecting, sending), receiving = found
    print(
        f"{f'  {name}':<42} {collecting / size:8.2f}  {sending / size:.2f}  {receiving / size:.2f}"
        f"  of {size / 1e6:.0f} MB"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--samples", type=int, default=50_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{'ratio to a memcpy of the bytes':<42}   median  [quartiles]")
    for name in DATA:
        rows(name, args.samples, args.repetitions)
    print("most memory in use, payload = 1: collecting; then sending; on the receiver")
    for name in DATA:
        memory_row(name, args.samples)


if __name__ == "__main__":
    main()
