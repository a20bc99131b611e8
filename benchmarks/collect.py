"""Rows about collecting predictions: ours beside a copy of their bytes, within one process.

50,000 predictions in batches of 100: *dense*, rows of 1000 float32; *ragged*, dicts of boxes
(n, 4), scores (n,) and labels (n,), with n from 0 to 20.

What is measured is the way from rank 0's and another rank's outputs to one sequence of items,
without the wire (that is in ``ranks``): the collected batches are packed, their bytes brought into
one new piece of memory, as a receiver would do, unpacked, merged and split; or not split, for a
lazy sequence, of which the length and some items are then asked.  The unit is a memcpy of those
bytes into new memory.
"""

from __future__ import annotations

import mmap
import pickle
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ignite_evalhook._predictions.collect import ResultCollector
from ignite_evalhook._ranks.packing import pack, unpack

from .peers import OURS
from .table import Row, row
from .timing import Effort, interleaved, ratios, seconds

BATCH = 100
READ_ONE_OF = 500  # items of a lazy sequence


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


def collected(outputs: list[Any], *, join: bool = False) -> ResultCollector:
    """Return a collector that has seen all outputs; ``join``: as for a lazy sequence."""
    collector = ResultCollector(join=join)
    for number, output in enumerate(outputs):
        indices = list(range(number * BATCH, (number + 1) * BATCH))
        collector.add(output, BATCH, indices, number)
    return collector


def items_of(outputs: list[Any]) -> list[Any]:
    """Return one item per sample, without any help of ours."""
    return [item for output in outputs for item in output]


def received(collector: ResultCollector) -> ResultCollector:
    """Return a collector as another process would have it."""
    packed = pack(collector.parts())
    receiver = ResultCollector()
    receiver.merge(unpack(packed.head, packed.payload()))
    return receiver


def read_some(items: Sequence[Any]) -> Any:
    """Ask a lazy sequence for its length and some items, here and there."""
    return items, [items[place] for place in range(0, len(items), READ_ONE_OF)]


def packed_as_it_is(items: list[Any]) -> Any:
    """Take a list of items through bytes, and back."""
    packed = pack(items)
    return unpack(packed.head, packed.payload())


def memcpy(source: Tensor) -> Tensor:
    """Copy into memory that was not touched before, as that of a receiver is not."""
    # torch's allocator may give memory that was used before, which takes a seventh of the time.
    memory = mmap.mmap(-1, source.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8).copy_(source)


def collect(effort: Effort) -> list[Row]:
    """Measure both kinds of data."""
    samples = effort.of(50_000 // BATCH) * BATCH
    found: list[Row] = []
    for kind, make in DATA.items():
        torch.manual_seed(0)
        found += rows(kind, make(samples), samples, effort)
    return found


def rows(kind: str, outputs: list[Any], samples: int, effort: Effort) -> list[Row]:
    """Measure one kind of data."""
    collector, items = collected(outputs), items_of(outputs)
    joined = collected(outputs, join=True)
    check(received(collector).results(), items)
    check(list(received(joined).lazy_results()), items)
    payload = pack(collector.parts()).payload()
    ways: dict[str, Callable[[], Any]] = {
        "memcpy": lambda: memcpy(payload),
        OURS: lambda: received(collector).results(),
        "ours, any value": lambda: packed_as_it_is(items),
        "ours, collecting itself": lambda: collected(outputs),
        "ours, nothing sent": collector.results,
        "lazy": lambda: read_some(received(joined).lazy_results()),
        "lazy, all": lambda: list(received(joined).lazy_results()),
        "lazy, itself": lambda: collected(outputs, join=True),
        "lazy, nothing sent": lambda: read_some(joined.lazy_results()),
    }
    times = interleaved(ways, effort.repetitions)
    unit = times.pop("memcpy")
    shown: dict[str, Any] = {way: ratios(taken, unit) for way, taken in times.items()}
    if effort.peers:
        # Pickle takes many seconds: a part of the items tells enough.
        part = items[: max(1, samples // 50)]
        pickled = [
            seconds(lambda: pickle.loads(pickle.dumps(part, 5))) * samples / len(part) for _ in unit
        ]
        shown["pickle, of 1/50 (as MMEngine and Ignite send items)"] = ratios(pickled, unit)
    name = f"{samples:,} {'rows of 1000 float32' if kind == 'dense' else 'ragged dicts'}"
    note = f"{payload.nbytes / 1e6:.0f} MB; a memcpy takes {1e3 * statistics.median(unit):.1f} ms"
    as_sequence = shown.pop("lazy")
    of_sequence = {
        "ours, reading all once": shown.pop("lazy, all"),
        "ours, collecting itself": shown.pop("lazy, itself"),
        "ours, nothing sent": shown.pop("lazy, nothing sent"),
    }
    a_list = shown.pop(OURS)
    return [
        row(f"collect {name}, a list", "memcpy = 1", a_list, shown,
            target=110.0 if kind == "ragged" else None, note=note),
        row(f"collect {name}, a lazy sequence", "memcpy = 1", as_sequence, of_sequence,
            target=3.0 if kind == "ragged" else None,
            note=f"{note}; taken, its length asked, and {samples // READ_ONE_OF} items read"),
    ]  # fmt: skip


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
