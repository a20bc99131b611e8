"""A rank that never comes is named; one that has come may take its time; a long wait is told."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch.distributed as dist
from ignite.engine import Engine
from ignite.metrics import Accuracy
from torch import nn

from helpers.private import Watch, _waiting, default_timeout
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, EvaluationError, create_evaluator


class Store(dist.HashStore):  # type: ignore[misc]
    """Counts how often it was asked where the ranks are."""

    asked = 0

    def multi_get(self, keys: list[str]) -> Any:
        self.asked += 1
        return super().multi_get(keys)


class Present:
    """Three ranks that have met before, seen by rank 0 with a clock of its own."""

    def __init__(self, limit: float = 600.0) -> None:
        self.store = Store()
        self.now = 1000.0
        self.closed = 0
        self.watches = [
            Watch(rank, 3, self.store, self._close, limit=lambda: limit, clock=lambda: self.now)
            for rank in range(3)
        ]
        for watch in self.watches:
            watch.begin(4, "val: start")

    def _close(self) -> None:
        self.closed += 1

    def look_at(self, seconds: float) -> None:
        self.now = 1000.0 + seconds
        self.watches[0].look()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave looking to the test."""
    monkeypatch.setattr(Watch, "_run", lambda self: None)


@pytest.mark.usefixtures("quick")
def test_after_half_a_minute_one_line_says_for_whom_and_at_what(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = Present()
    world.watches[0].begin(7, "val at epoch 3")
    world.watches[2].begin(7, "val at epoch 3")
    with caplog.at_level(logging.WARNING), world.watches[0].over("val at epoch 3: ready", 1):
        world.look_at(29.9)
        assert caplog.messages == []
        for seconds in (30.0, 31.0, 599.0):
            world.look_at(seconds)
    assert caplog.messages == [
        "rank 0 has waited for 30 s at 'val at epoch 3: ready' for rank 1 (last at 'val: start')"
    ]
    assert world.closed == 0


@pytest.mark.usefixtures("quick")
def test_one_that_has_come_is_waited_for_and_asked_about_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = Present()
    for watch in world.watches:
        watch.begin(7, "val at epoch 3")
    with caplog.at_level(logging.WARNING), world.watches[0].over("metrics", 1) as wait:
        wait.rank = 2  # rank 1 was heard
        for seconds in (45.0, 600.0, 601.0, 80_000.0):
            world.look_at(seconds)
    assert caplog.messages == ["rank 0 has waited for 45 s at 'metrics' for rank 2 (at work there)"]
    assert world.closed == 0
    assert world.store.asked <= 2
    assert world.watches[1].missing() == {}


@pytest.mark.usefixtures("quick")
def test_one_that_does_not_come_within_the_limit_is_given_up_by_name() -> None:
    world = Present()
    world.watches[0].begin(7, "val at epoch 3")
    with world.watches[0].over("val at epoch 3: ready", 1):
        world.look_at(599.9)
        assert world.closed == 0
        world.look_at(600.0)
        assert world.closed == 1
    for watch in world.watches:  # whoever asks is told
        missing = watch.missing()
        assert list(missing) == [1, 2]
        assert missing[1] == (
            "it did not come to 'val at epoch 3: ready' (last at 'val: start'), where rank 0 "
            "waited for 600 s, the timeout of the default process group; call the hook on every "
            "rank alike"
        )


@pytest.mark.usefixtures("quick")
def test_nobody_is_given_up_after_a_wait_or_for_a_wait_that_was_short() -> None:
    world = Present(limit=10.0)
    world.watches[0].begin(7, "val at epoch 3")
    with world.watches[0].over("ready", 1):
        world.look_at(9.0)
    world.look_at(11.0)
    with world.watches[0].over("metrics", 1):  # begun at 11
        world.look_at(20.0)
    assert (world.closed, world.watches[0].missing()) == (0, {})


def test_ranks_whose_store_is_gone_are_waited_for_by_their_connections() -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Connection reset by peer")

    watch = Watch(0, 2, Gone(), lambda: None, limit=lambda: 0.0)
    watch.begin(1, "val: start")
    with watch.over("val: start: state", 1):
        watch.look()
    assert watch.missing() == {}


def read_timeouts(rank: int) -> list[float]:
    before = default_timeout()
    dist.barrier()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1.5), dist.group.WORLD)
    return [before, default_timeout()]


def test_the_limit_is_the_timeout_of_the_default_process_group() -> None:
    assert on_ranks(2, read_timeouts, group_timeout=77) == [[77.0, 1.5]] * 2


# -- real ranks -----------------------------------------------------------------------------------


def stay_away(rank: int, folder: str, place: str, absent: list[int], begun: str) -> Any:
    """Do on some ranks alone what belongs on all; return what was raised, and then again."""
    came = [other for other in range(3) if other not in absent]

    def limit() -> float:
        """Return a short one when all that come are there, on a machine however busy."""
        store = dist.distributed_c10d._get_default_store()
        keys = [f"ignite_evalhook/at/{other}" for other in came]
        at = [store.get(key).decode() for key in keys] if store.check(keys) else [""]
        return 0.2 if all(words.endswith(f" {begun}") for words in at) else 1e9

    Watch.__init__.__kwdefaults__["limit"] = limit
    _waiting._LOOK_SECONDS = 0.05
    idist.get_world_size()
    trainer = Engine(lambda engine, batch: None)
    evaluator = create_evaluator(nn.Linear(1, 1), {"accuracy": Accuracy()}, step=lambda e, b: b)
    hook = EvalHook([], evaluator, preflight=False)
    if place != "attach":
        hook.attach(trainer)
    actions = {
        "attach": lambda: hook.attach(trainer),
        "run": lambda: trainer.run([0], max_epochs=1),
        "evaluate": lambda: hook.evaluate(track=False),
        "by hand": lambda: evaluator.run([]),
    }
    found: Any = []

    def attempt(action: str) -> None:
        try:
            actions[action]()
        except EvaluationError as error:
            found.append((str(error), [failure.rank for failure in error.failures]))

    if rank in came:
        attempt(place)
        attempt("evaluate" if place == "run" else place)
    Path(folder, str(rank)).touch()
    for _ in range(6000):  # whoever stays away is still alive
        if all(Path(folder, str(other)).exists() for other in range(3)):
            break
        threading.Event().wait(0.01)
    if rank in absent:  # too late
        attempt(place)
    return found


@pytest.mark.parametrize(
    ("place", "absent", "begun"),
    [
        ("attach", [1], "val: attach"),
        ("run", [0], "val: start"),
        ("evaluate", [2], "val: an answer"),
        ("by hand", [0, 1], "evaluator.run"),
    ],
)
def test_ranks_that_do_not_come_are_named_on_all_ranks(
    place: str, absent: list[int], begun: str, tmp_path: Path
) -> None:
    found = on_ranks(3, stay_away, str(tmp_path), place, absent, begun)
    for rank, errors in enumerate(found):
        # The second time too, at once; and those that come too late are told as well.
        assert len(errors) == (1 if rank in absent else 2), rank
        for words, ranks in errors:
            assert ranks == absent
            assert words.startswith(f"rank {absent[0]} failed: TimeoutError: it did not come to")
            assert f"'{begun}" in words
            assert len(words.splitlines()) == 1
