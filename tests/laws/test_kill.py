"""A process killed for good: at an event, or at any call to the system while it writes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from helpers.resume_runs import Bomb, Killed, Run, Setup, outcome, plain
from ignite_evalhook import CheckpointError, History, StateError, load_best

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="fork and signals"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process with CUDA must not be forked"),
]

# Those that change what is there: a kill between two of them is a kill before the second.
CALLS = ("write", "replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir", "ftruncate")
TWO = {"save_best": ["score", "loss"], "rule": {"score": "greater", "loss": "less"}}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads do not survive a fork
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill takes nothing from the system's own memory; only a power failure does."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def in_a_child(action: Callable[[], object]) -> int:
    """Run ``action`` in a forked process; return the exit status, a signal as a negative number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:  # noqa: BLE001  # told, and then by the exit status
            traceback.print_exc()
        finally:  # the child must not go on with the tests of its parent
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def build_and_go(folder: Path, setup: Setup, bomb: Bomb) -> None:
    Run(folder, setup, bomb).go()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# At an event ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "step"),
    [
        (Setup(), 5),
        (Setup("before", seeded="epoch", patience=1, epochs=4), 3),
        (Setup(hook={"by_epoch": False, "interval": 2}, seeded="iteration"), 7),
    ],
    ids=["keep_last", "own checkpoint, early stopping", "keep_last by iteration"],
)
def test_a_killed_process_is_resumed_by_another_as_if_nothing_had_happened(
    setup: Setup, step: int, tmp_path: Path
) -> None:
    bomb = Bomb()
    whole = outcome(Run(tmp_path / "whole", setup, bomb).go())
    for number in range(0, len(bomb.moments), step):
        folder = tmp_path / str(number)
        end, status = (die, -signal.SIGKILL) if number % 2 else (partial(os._exit, 9), 9)
        killed = partial(build_and_go, folder, setup, Bomb(number, end))
        assert in_a_child(killed) == status
        assert outcome(Run(folder, setup).go()) == whole, bomb.moments[number]


def test_a_second_live_run_in_another_process_is_refused(tmp_path: Path) -> None:
    class Second(Bomb):
        def _tick(self, engine: Engine, moment: str) -> None:
            self.moments.append(moment)
            if moment == "eval_completed (after)":
                assert in_a_child(self.refused) == 0

        @staticmethod
        def refused() -> None:
            words = rf"is in use by another run \(process {os.getppid()} on .*another out_dir"
            with pytest.raises(StateError, match=words):
                Run(tmp_path, Setup("nothing")).go()

    whole = outcome(Run(tmp_path / "whole", Setup()).go())
    folder, tmp_path = tmp_path, tmp_path / "run"
    run = Run(tmp_path, Setup(), Second()).go()
    assert outcome(run) == whole
    assert not (tmp_path / "earlier").exists()
    assert folder != tmp_path


# At a call to the system ------------------------------------------------------------------------


class Calls:
    """Kills this process at its ``n``-th call to the system, in the middle if it writes."""

    def __init__(self, n: int) -> None:
        self.left = n
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                die()
            self.left -= 1
            return real(*args, **kwargs)

        return call


class Forks(Bomb):
    """At one moment, forks a child for each call to the system that it makes until another.

    Each child is killed at its call, and what it leaves behind is checked.  Then the run ends.

    Args:
        folder: The run's folder; it is put back after each child.
        start: The moment, as :class:`Bomb` calls it, and its number.
        end: The moment that the last child reaches.
        check: Called with a copy of the folder that a child has left.
    """

    def __init__(
        self, folder: Path, start: tuple[str, int], end: str, check: Callable[[Path], None]
    ) -> None:
        super().__init__()
        self.folder = folder
        self.start = start
        self.end = end
        self.check = check
        self.kills = 0
        self.in_child = False

    def _tick(self, engine: Engine, moment: str) -> None:
        self.moments.append(moment)
        if self.in_child:
            if moment == self.end:
                os._exit(0)
        elif (moment, self.moments.count(moment)) == self.start:
            self._fork_all()
            if not self.in_child:
                raise Killed

    def _fork_all(self) -> None:
        before = self.folder.with_name("before")
        self.folder.mkdir(exist_ok=True)
        _copy(self.folder, before)
        numbers = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        while True:
            random.setstate(numbers[0])
            numpy.random.set_state(numbers[1])
            torch.set_rng_state(numbers[2])
            child = os.fork()
            if child == 0:
                random.setstate(numbers[0])  # Python seeds it anew after a fork
                self.in_child = True
                Calls(self.kills)
                return
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status in (0, -signal.SIGKILL)
            left = self.folder.with_name(f"left {self.kills}")
            _copy(self.folder, left)
            self.check(left)
            shutil.rmtree(left)
            _copy(before, self.folder)
            if status == 0:
                return
            self.kills += 1


def _copy(folder: Path, to: Path) -> None:
    """Make ``to`` like ``folder``, but for the locks."""
    to.mkdir(exist_ok=True)
    for path in to.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".lock":
            path.unlink()
    shutil.copytree(folder, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock"))


def run_and_fork(folder: Path, setup: Setup, forks: Forks) -> None:
    try:
        Run(folder, setup, forks).go()
    except Killed:
        return
    finally:
        if forks.in_child:  # an exception in a child
            traceback.print_exc()
            os._exit(1)
    pytest.fail(f"the moment {forks.start} never came")


MODEL = nn.Linear(2, 2)


def best_of(folder: Path, metric: str | None = None) -> tuple[int, float]:
    best = load_best(folder, {"model": MODEL}, metric=metric)
    return best.epoch, best.score


@pytest.mark.parametrize(
    ("options", "bests"),
    [
        ({}, {"score": [(1, 0.4), (3, 0.6)]}),
        ({**TWO, "n_saved": 2}, {"score": [(1, 0.4), (3, 0.6)], "loss": [(2, 0.5), (3, 0.3)]}),
        ({"alias": "copy"}, {"score": [(1, 0.4), (3, 0.6)]}),
        ({"alias": "link"}, {"score": [(1, 0.4), (3, 0.6)]}),
    ],
    ids=["one", "top 2 of two metrics", "with a copy", "with a link"],
)
def test_killed_at_any_call_while_a_new_best_is_saved_the_old_or_the_new_one_loads(
    options: dict[str, Any], bests: dict[str, list[Any]], tmp_path: Path
) -> None:
    setup = Setup(hook=options, epochs=4)
    whole = outcome(Run(tmp_path / "whole", setup).go())
    folder = tmp_path / "run"
    seen: dict[str, list[Any]] = {metric: [] for metric in bests}

    def check(left: Path) -> None:
        for metric in bests:
            found = best_of(left, metric)
            if found not in seen[metric]:
                seen[metric].append(found)
        assert len(History.read(left / "history.jsonl")) in (2, 3)
        if "alias" in options:
            torch.load(left / "best.pt", weights_only=True)
        assert outcome(Run(left, setup).go()) == whole

    forks = Forks(folder, ("eval_started (after)", 3), "epoch_completed (after)", check)
    run_and_fork(folder, setup, forks)
    assert seen == bests
    assert forks.kills > 5


def test_killed_at_any_call_while_the_last_checkpoint_is_saved_it_resumes(tmp_path: Path) -> None:
    setup = Setup(epochs=4)
    whole = outcome(Run(tmp_path / "whole", setup).go())
    folder = tmp_path / "run"
    resumed_at = []

    def check(left: Path) -> None:
        run = Run(left, setup)
        resumed_at.append(run.resumed_at)
        assert outcome(run.go()) == whole

    forks = Forks(folder, ("epoch_completed (after)", 3), "epoch_started (before)", check)
    run_and_fork(folder, setup, forks)
    assert sorted({*resumed_at}) == [4, 6]


def test_killed_at_any_call_while_an_earlier_run_is_put_aside_its_best_files_load(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    setup = Setup(hook={**TWO, "n_saved": 2, "alias": "copy"})
    first = Run(folder, setup).go()
    run_id = first.hook.state_dict()["run_id"]
    theirs = {path.name: path.read_bytes() for path in folder.iterdir()}
    fresh = replace(setup, saves="nothing")

    def check(left: Path) -> None:
        for metric, best in (("score", (3, 0.6)), ("loss", (3, 0.3))):
            found = []
            for place in (left, left / "earlier" / run_id):
                try:
                    found.append(best_of(place, metric))
                except CheckpointError:
                    continue
            assert best in found
        Run(left, fresh).go()
        aside = left / "earlier" / run_id
        found_there = {path.name: path.read_bytes() for path in aside.iterdir()}
        assert {k: v for k, v in found_there.items() if not k.endswith(".tmp")} == theirs

    forks = Forks(folder, ("started (before)", 1), "started (after)", check)
    run_and_fork(folder, fresh, forks)
    assert forks.kills > 5


@pytest.mark.parametrize("repeats", [True, False])
def test_killed_at_any_call_after_a_restart_the_better_file_of_the_abandoned_stretch_loads(
    repeats: bool, tmp_path: Path
) -> None:
    setup = Setup(epochs=4)
    whole = outcome(Run(tmp_path / "whole", setup).go())
    folder = tmp_path / "run"
    last = tmp_path / "last.pt"

    class Keep(Bomb):
        def _tick(self, engine: Engine, moment: str) -> None:
            if moment == "epoch_started (before)" and engine.state.epoch == 3:
                shutil.copy(folder / "last.pt", last)
            if moment == "epoch_started (before)" and engine.state.epoch == 4:
                raise Killed

    run = Run(folder, setup, Keep())
    with pytest.raises(Killed):
        run.go()
    run.hook.detach()  # lets go of the folder, as the end of its process would
    shutil.copy(last, folder)
    best = folder / "best_model_3_score=0.6.pt"
    before = best.read_bytes()
    # Training that does not repeat writes other weights under the same name.
    setup = replace(setup, seeded=None if repeats else "iteration")
    contents = []

    def check(left: Path) -> None:
        assert best_of(left) == (3, 0.6)
        contents.append((left / best.name).read_bytes())
        got = outcome(Run(left, setup).go())
        assert best_of(left) == (3, 0.6)
        if repeats:
            assert got == whole

    forks = Forks(folder, ("started (before)", 1), "epoch_completed (after)", check)
    run_and_fork(folder, setup, forks)
    assert (set(contents) == {before}) is repeats


def test_killed_at_any_call_the_account_and_the_history_are_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    setup = Setup(epochs=2)

    def check(left: Path) -> None:
        if (left / "best.json").exists():
            json.loads((left / "best.json").read_text())
            assert best_of(left) == (1, 0.4)
        if (left / "history.jsonl").exists():
            assert len(History.read(left / "history.jsonl")) in (0, 1)
        run = Run(left, setup).go()
        assert [r.iteration for r in run.hook.history] == [2, 4]
        assert plain(run.hook.state_dict()) == plain(whole.hook.state_dict())

    whole = Run(tmp_path / "whole", setup).go()
    forks = Forks(folder, ("started (before)", 1), "epoch_completed (after)", check)
    run_and_fork(folder, setup, forks)
    assert forks.kills > 5
