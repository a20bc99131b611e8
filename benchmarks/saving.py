"""Compare saving a best checkpoint with ``torch.save``, as ratios within one run.

``python -m benchmarks.saving`` saves a model of 400 MB (100 tensors of 4 MB) and prints:

- *best*: from the end of a training epoch to the beginning of the next, with an evaluation that
  costs nothing and a better score, so that a file is written and an older one removed.  Ours puts
  the file on the disk, then ``best.json`` and the history.  Once with ``torch.save`` and a flush
  to the disk as the unit, which promises as much, and once with ``torch.save`` alone, which has
  written to memory only;
- *last + best*: the same with a second file of the same size, to resume from;
- *asynchronous*: how long training stands still when a thread writes;
- *rate*: iterations a second of a small training loop while a thread writes, beside those before.

All files are in one folder, on one disk, and everybody writes beside an older file of that size:
memory that a system has to find first is slower than memory just given back.  What came before
is on the disk before a measurement starts.  Repetitions are interleaved; each ratio is one of two
neighbours.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn

from ignite_evalhook import BestCheckpoint, EvalHook

from .table import Figure, Row, row

Contender = Callable[[Path], float]  # saves in an empty folder, and returns the seconds it took

FLUSHED, ALONE = "torch.save and fsync = 1", "torch.save = 1"
SCORES = (0.5, 0.7, 0.6)  # the second epoch is measured: it replaces a best
TENSOR = 4  # megabytes


class Model(nn.Module):
    """A model of a given size, in tensors of 4 MB."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        sizes = [1 << 20] * max(1, megabytes // TENSOR)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(n)) for n in sizes])


def flush(path: Path) -> None:
    """Bring a file to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds ``action`` takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def is_quiet(folder: Path, kinds: Sequence[str]) -> bool:
    """Return whether a file of each kind is there, and none that is still being written."""
    names = os.listdir(folder)
    complete = all(any(name.startswith(kind) for name in names) for kind in kinds)
    return complete and not any(name.endswith(".tmp") for name in names)


def stall(
    trainer: Engine, attach: Callable[[], object], folder: Path, kinds: Sequence[str] = ("best",)
) -> float:
    """Return the seconds from the end of the second epoch to the beginning of the third."""
    marks: list[float] = []

    def begin(engine: Engine) -> None:
        while engine.state.epoch == 2 and not is_quiet(folder, kinds):
            time.sleep(0.01)  # what the first epoch has left to a thread is not ours to measure
        os.sync()
        marks.append(time.perf_counter())

    trainer.add_event_handler(Events.EPOCH_COMPLETED, begin)
    attach()
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: marks.append(time.perf_counter())
    )
    trainer.run([0], max_epochs=len(SCORES))
    return marks[4] - marks[3]


def ours(model: nn.Module, *, last: bool = False, asynchronous: bool = False) -> Contender:
    """Save by an ``EvalHook`` with a ``BestCheckpoint``, and ``last.pt`` if asked to."""

    def save(folder: Path) -> float:
        script = iter(SCORES)
        options = {"async_save": True} if asynchronous else {}
        checkpoint = BestCheckpoint({"model": model}, folder, **options)
        trainer = Engine(lambda engine, batch: None)
        hook = EvalHook(
            None,
            lambda engine: {"acc": next(script)},
            model=model,
            save_best="acc",
            checkpoint=checkpoint,
        )

        def attach() -> None:
            hook.attach(trainer)
            if last:
                hook.keep_last({"model": model})

        return stall(trainer, attach, folder, ("best.json", "last.pt") if last else ("best.json",))

    return save


def ignite(model: nn.Module, *, last: bool = False) -> Contender:
    """Save by Ignite's ``Checkpoint`` with a score function and a ``DiskSaver``."""

    def save(folder: Path) -> float:
        trainer = Engine(lambda engine, batch: None)
        saver = DiskSaver(str(folder), require_empty=False)

        def score(engine: Engine) -> float:
            return SCORES[engine.state.epoch - 1]

        best = Checkpoint(
            {"model": model}, saver, "best", score_function=score, score_name="acc", n_saved=1
        )

        def attach() -> None:
            trainer.add_event_handler(Events.EPOCH_COMPLETED, best)
            if last:
                everything = {"model": model, "trainer": trainer}
                trainer.add_event_handler(
                    Events.EPOCH_COMPLETED, Checkpoint(everything, saver, "last", n_saved=1)
                )

        return stall(trainer, attach, folder)

    return save


def torch_save(model: nn.Module, *, times: int = 1, to_disk: bool = False) -> Contender:
    """Save by ``torch.save``, to the disk if asked to."""

    def save(folder: Path) -> float:
        def write() -> None:
            for number in range(times):
                path = folder / f"{number}.pt"
                torch.save(model.state_dict(), path)
                if to_disk:
                    flush(path)

        return timed(write)

    return save


def safetensors(model: nn.Module) -> Contender:
    """Save by ``safetensors``."""
    from safetensors.torch import save_file

    return lambda folder: timed(lambda: save_file(model.state_dict(), folder / "x.safetensors"))


def lightning(model: nn.Module) -> Contender:
    """Save by the ``TorchCheckpointIO`` that Lightning's ``ModelCheckpoint`` writes with."""
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    io = TorchCheckpointIO()
    return lambda folder: timed(
        lambda: io.save_checkpoint({"state_dict": model.state_dict()}, folder / "x.ckpt")
    )


def mmengine(model: nn.Module, *, times: int = 1) -> Contender:
    """Save by the ``save_checkpoint`` that MMEngine's ``CheckpointHook`` writes with."""
    from mmengine.runner import save_checkpoint

    def write(folder: Path) -> None:
        for number in range(times):
            state = {"state_dict": model.state_dict()}
            save_checkpoint(state, str(folder / f"{number}.pth"))

    return lambda folder: timed(lambda: write(folder))


def distributed(model: nn.Module, *, asynchronous: bool = False) -> Contender:
    """Save by ``torch.distributed.checkpoint``; only the standstill counts."""
    import torch.distributed.checkpoint as dcp

    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)

    def save(folder: Path) -> float:
        if not asynchronous:
            return timed(lambda: dcp.save(model.state_dict(), checkpoint_id=folder / "x"))
        begin = time.perf_counter()
        future = dcp.async_save(model.state_dict(), checkpoint_id=folder / "x")
        taken = time.perf_counter() - begin
        future.result()
        return taken

    return save


Background = Callable[[Path], Callable[[], bool]]  # starts to write; tells whether it is done


def threaded(model: nn.Module) -> Background:
    """Write a copy of the state by ``torch.save`` in a thread."""
    pool = ThreadPoolExecutor(1)

    def begin(folder: Path) -> Callable[[], bool]:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        return pool.submit(torch.save, state, folder / "x.pt").done

    return begin


def dcp_thread(model: nn.Module) -> Background:
    """Write by ``dcp.async_save``."""
    import torch.distributed.checkpoint as dcp

    def begin(folder: Path) -> Callable[[], bool]:
        future: Any = dcp.async_save(model.state_dict(), checkpoint_id=folder / "x")
        done: Callable[[], bool] = future.done
        return done

    return begin


def our_thread(model: nn.Module) -> Background:
    """Write by a ``BestCheckpoint`` that is a handler by itself."""

    def begin(folder: Path) -> Callable[[], bool]:
        checkpoint = BestCheckpoint({"model": model}, folder, score_name="acc", async_save=True)
        engine = Engine(lambda engine, batch: None)
        engine.state.metrics["acc"] = 0.5
        checkpoint(engine)
        return lambda: (folder / "best.json").exists()

    return begin


def rate(background: Background) -> Contender:
    """Return the rate of training while something writes, as a part of that without."""
    net = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 128))
    x, optimizer = torch.randn(256, 128), torch.optim.SGD(net.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    def iterations(until: Callable[[], bool]) -> float:
        count, begin = 0, time.perf_counter()
        while not until():
            step()
            count += 1
        return count / (time.perf_counter() - begin)

    def measure(folder: Path) -> float:
        for _ in range(20):
            step()
        end = time.perf_counter() + 0.5
        alone = iterations(lambda: time.perf_counter() > end)
        return iterations(background(folder)) / alone

    return measure


def beside_another(save: Contender) -> Contender:
    """Save twice and measure the second, as where a best is replaced: memory is not fresh."""

    def twice(folder: Path) -> float:
        for name in ("old", "new"):
            (folder / name).mkdir()
        save(folder / "old")
        os.sync()
        return save(folder / "new")

    return twice


@contextmanager
def empty_folder(parent: Path) -> Iterator[Path]:
    """Give an empty folder, and let the disk come to rest before and after."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    os.sync()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.sync()


def interleaved(
    contenders: Mapping[str, Callable[[], Contender]], repetitions: int, parent: Path
) -> dict[str, list[float] | str]:
    """Return the seconds of each contender, or why it cannot be measured."""
    found: dict[str, list[float] | str] = {}
    ready: dict[str, Contender] = {}
    for name, make in contenders.items():
        try:
            ready[name] = make()
            with empty_folder(parent) as folder:
                ready[name](folder)  # the first one imports and warms up
            found[name] = []
        except ImportError as error:
            found[name] = f"not installed: {error.name}"
        except ValueError as error:
            found[name] = f"skipped: {error}"
    names = [name for name in ready if found[name] == []]
    for number in range(repetitions):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with empty_folder(parent) as folder:
                samples = found[name]
                if isinstance(samples, list):
                    samples.append(ready[name](folder))
    return found


def compared(
    name: str,
    unit: str,
    found: Mapping[str, list[float] | str],
    by: str,
    target: float | None,
    note: str = "",
) -> Row:
    """Make a row of everything in ``found`` but the unit, divided by the contender ``by``."""
    unit_samples = found[by]
    if isinstance(unit_samples, str):
        raise TypeError(f"the unit {by!r} must have been measured: {unit_samples}")
    ratios: dict[str, list[float] | str] = {
        key: value
        if isinstance(value, str)
        else [own / other for own, other in zip(value, unit_samples, strict=True)]
        for key, value in found.items()
        if key != by
    }
    own = ratios.pop("ours")
    if isinstance(own, str):
        return Row(name, unit, None, row("", "", [0.0], ratios).peers, target, note=own)
    seconds = [statistics.median(found[key]) for key in ("ours", by)]  # type: ignore[type-var]
    said = f"medians {seconds[0]:.2f} s and {seconds[1]:.2f} s"
    return row(name, unit, own, ratios, target=target, note="; ".join(filter(None, [said, note])))


def rows(repetitions: int, megabytes: int, parent: Path) -> Iterator[Row]:
    """Measure everything and give the rows of the table."""
    model = Model(megabytes)
    note = f"{megabytes} MB"
    found = interleaved(
        {
            "ours": lambda: ours(model),
            "torch.save": lambda: beside_another(torch_save(model)),
            "torch.save and fsync": lambda: beside_another(torch_save(model, to_disk=True)),
            "ignite": lambda: ignite(model),
            "lightning": lambda: beside_another(lightning(model)),
            "mmengine": lambda: beside_another(mmengine(model)),
            "safetensors": lambda: beside_another(safetensors(model)),
            "dcp.save": lambda: beside_another(distributed(model)),
        },
        repetitions,
        parent,
    )
    yield compared("save a best", FLUSHED, found, "torch.save and fsync", 1.1, note)
    yield compared(
        "save a best, beside a file in memory only", ALONE, found, "torch.save", None, note
    )
    found = interleaved(
        {
            "ours": lambda: ours(model, last=True),
            "torch.save and fsync": lambda: beside_another(torch_save(model, to_disk=True)),
            "torch.save twice": lambda: beside_another(torch_save(model, times=2)),
            "torch.save and fsync twice": lambda: beside_another(
                torch_save(model, times=2, to_disk=True)
            ),
            "ignite": lambda: ignite(model, last=True),
            "mmengine": lambda: beside_another(mmengine(model, times=2)),
        },
        repetitions,
        parent,
    )
    yield compared(
        "save last + best of one step", FLUSHED, found, "torch.save and fsync", 1.9, note
    )
    for last, name, target in (
        (False, "standstill of an asynchronous best", 0.30),
        (True, "standstill of an asynchronous last + best", 0.6),
    ):
        found = interleaved(
            {
                "ours": lambda last=last: ours(model, last=last, asynchronous=True),  # type: ignore[misc]
                "torch.save": lambda: beside_another(torch_save(model)),
                "dcp.async_save": lambda: beside_another(distributed(model, asynchronous=True)),
            },
            repetitions,
            parent,
        )
        yield compared(name, ALONE, found, "torch.save", target, note)
    yield rate_row(model, repetitions, parent, note)


def rate_row(model: nn.Module, repetitions: int, parent: Path, note: str) -> Row:
    """Measure what a writing thread leaves of the rate of training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the other core is the writer's, as where a GPU trains
    try:
        found = interleaved(
            {
                "ours": lambda: rate(our_thread(model)),
                "torch.save in a thread": lambda: rate(threaded(model)),
                "dcp.async_save": lambda: rate(dcp_thread(model)),
            },
            repetitions,
            parent,
        )
    finally:
        torch.set_num_threads(threads)
    name, unit = "rate of training while a thread writes", "rate alone = 1"
    own = found.pop("ours")
    if isinstance(own, str):
        peers = row("", "", [0.0], found).peers
        return Row(name, unit, None, peers, 0.75, at_least=True, note=own)
    return row(name, unit, own, found, target=0.75, at_least=True, note=note)


def text(one: Row) -> str:
    """Return a row as lines of text."""

    def said(figure: Figure | str | None) -> str:
        if not isinstance(figure, Figure):
            return str(figure)
        return f"{figure.median:.2f} ({figure.low:.2f} to {figure.high:.2f})"

    lines = [f"{one.name} [{one.unit}; target {one.target}; {one.note}]"]
    lines += [f"    {peer:28s} {said(f)}" for peer, f in {"ours": one.ours, **one.peers}.items()]
    return "\n".join(lines)


def versions() -> str:
    """Return the versions of all who take part."""
    found = []
    for package in (
        "torch",
        "pytorch-ignite",
        "lightning",
        "mmengine-lite",
        "mmengine",
        "safetensors",
    ):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    arguments = parser.parse_args()
    logging.getLogger("ignite_evalhook").setLevel("ERROR")
    warnings.simplefilter("ignore")  # of the peers
    print(f"{versions()}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="benchmark-saving-") as folder:
        for one in rows(arguments.repetitions, arguments.megabytes, Path(folder)):
            print(text(one), flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
