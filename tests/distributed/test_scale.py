"""What the ranks of an evaluation say to each other, counted: no change adds a meeting unnoticed.

``docs/scale.md`` tells from these counts what an evaluation costs on many ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Precision, Recall
from torch import nn

from helpers.private import Team, _buffers, _wire
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, create_evaluator

MESSAGE = 4096  # bytes; of what is short
BATCH = (torch.eye(4), torch.arange(4))


class Spy:
    """Stands for ``torch.distributed`` in a module of the library, and writes down what passes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []  # what it was and its bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def isend(self, data: torch.Tensor, rank: int, group: Any) -> Any:
        self.seen.append(("sent", data.nbytes))
        return Work(dist.isend(data, rank, group=group), self)

    def irecv(self, data: torch.Tensor, rank: int, group: Any) -> Any:
        self.seen.append(("received", data.nbytes))
        return Work(dist.irecv(data, rank, group=group), self)

    def broadcast(self, data: torch.Tensor, rank: int, group: Any) -> Any:
        self.seen.append(("broadcast", data.nbytes))
        return dist.broadcast(data, rank, group=group)


class Work:
    """A message under way; writes down when somebody begins to wait for it."""

    def __init__(self, work: Any, spy: Spy) -> None:
        self._work = work
        self._spy = spy

    def is_completed(self) -> bool:
        self._spy.seen.append(("waited", 0))
        return bool(self._work.is_completed())

    def wait(self) -> Any:
        return self._work.wait()


@contextmanager
def spying() -> Iterator[Spy]:
    spy = Spy()
    own = _wire.dist, _buffers.dist
    _wire.dist = _buffers.dist = spy  # type: ignore[assignment]
    try:
        yield spy
    finally:
        _wire.dist, _buffers.dist = own


def count(rank: int, folder: Path) -> dict[str, Any]:
    """Count the second of two tracked evaluations, of several kinds."""
    loss, accuracy = nn.CrossEntropyLoss(), {"accuracy": Accuracy()}
    three = {"accuracy": Accuracy(), "precision": Precision(), "recall": Recall()}
    files = {"save_best": "accuracy", "out_dir": folder, "to_save": {"model": nn.Linear(1, 1)}}
    kinds: dict[str, tuple[nn.Module, dict[str, Any], dict[str, Any]]] = {
        "val loss": (nn.Identity(), {"loss_fn": loss}, {}),
        "one metric": (nn.Identity(), {"metrics": accuracy}, {}),
        "three metrics": (nn.Identity(), {"metrics": three, "loss_fn": loss}, {}),
        "files": (nn.Identity(), {"metrics": accuracy}, files),
        "predictions": (nn.Identity(), {}, {"compute_metrics": lambda results: {"n": 1.0}}),
        "buffers": (nn.BatchNorm1d(4, affine=False), {"loss_fn": loss}, {}),
    }
    found = {}
    for kind, (model, evaluator, hook) in kinds.items():
        found[kind] = count_one(create_evaluator(model, device="cpu", **evaluator), hook)
    return found


def count_one(evaluator: Engine, options: dict[str, Any]) -> Any:
    trainer = Engine(lambda engine, item: None)
    data = [BATCH] * 6
    hook = EvalHook(data, evaluator, interval=1, by_epoch=False, **options).attach(trainer)
    team, seen = Team.current(), []
    with spying() as spy:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: seen.append((team.meetings, len(spy.seen)))
        )
        trainer.run([0, 1])
    assert len(hook.history) == 2
    (meetings, start), (meetings_after, end) = seen
    return meetings_after - meetings, spy.seen[start:end]


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_evaluation_is_five_meetings_and_what_metrics_ask_of_one_message_each_way(
    world_size: int, tmp_path: Path
) -> None:
    for rank, found in enumerate(on_ranks(world_size, count, tmp_path)):
        others = world_size - 1 if rank == 0 else 1
        for kind, (meetings, seen) in found.items():
            said = {way: [size for w, size in seen if w == way] for way in ("sent", "received")}
            # What metrics ask goes with the batches, and their values come after the answers.
            assert meetings == 5 + (kind in ("one metric", "three metrics", "files"))
            assert said["sent"] == [MESSAGE] * meetings * others, kind
            assert said["received"] == [MESSAGE] * meetings * others, kind
            broadcasts = [size for way, size in seen if way == "broadcast"]
            # Two statistics of four float32, and a count of int64.
            assert broadcasts == ([40] if kind == "buffers" else []), kind


def say_much(rank: int) -> Any:
    team = Team.current()
    with spying() as spy:
        team.tell(lambda: None)
        small = list(spy.seen)
        spy.seen.clear()
        with team.together("much") as section:
            section.close(torch.zeros(20 << 20, dtype=torch.uint8))
    return small, spy.seen


def test_rank_0_waits_for_all_at_once_and_only_what_is_long_takes_more_messages() -> None:
    for rank, (small, much) in enumerate(on_ranks(3, say_much)):
        ways = [way for way, size in small if way != "waited"]
        assert ways == (["received"] * 2 + ["sent"] * 2 if rank == 0 else ["sent", "received"])
        if rank == 0:
            for way in ("received", "sent"):
                started = [at for at, (w, size) in enumerate(small) if w == way]
                assert started[1] == started[0] + 1  # before any is waited for
        said = "received" if rank == 0 else "sent"
        sizes = [size for way, size in much if way == said]
        others = 2 if rank == 0 else 1
        # A first message, what it is, three blocks of at most 8 MiB, and whether all is there.
        assert len([size for size in sizes if size != MESSAGE]) == 5 * others
        assert sizes.count(8 << 20) == 2 * others
        assert sizes.count(4 << 20) == others
        assert sizes.count(MESSAGE) == (1 if rank else 2)
