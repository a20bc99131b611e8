"""A forked child has a copy of the hook, but the run is its parent's."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events

from helpers.scripted import counter, scripted
from ignite_evalhook import History, find_best

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork")


def said_by_child(action: Callable[[], object]) -> str:
    """Run ``action`` in a forked child, and return what it raises there."""
    answer, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            words = "ended well"
        except BaseException as error:  # noqa: BLE001  # told to the parent
            words = f"{type(error).__name__}: {error}"
        os.write(say, words.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(say)
    with os.fdopen(answer, "rb") as pipe:
        return pipe.read().decode()


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("where", ["folder", "url"])
def test_it_cannot_go_on_with_the_run(where: str, by_epoch: bool, tmp_path: Path) -> None:
    out_dir: Any = tmp_path if where == "folder" else f"memory://{uuid.uuid4().hex}"
    model = counter()
    hook, trainer = scripted([0.1, 0.2, 0.3], out_dir, model=model, by_epoch=by_epoch)
    hook.attach(trainer)
    hook.keep_last({"model": model})
    said: list[str] = []
    answer, say = os.pipe()
    parent = os.getpid()

    @trainer.on(Events.ITERATION_STARTED(once=2))
    def fork(engine: Engine) -> None:
        said.append(said_by_child(hook.evaluate))
        child = os.fork()
        if child != 0:  # the child trains on, and the parent when that has failed
            os.waitpid(child, 0)

    try:
        trainer.run([0], max_epochs=3)
    except BaseException as error:
        if os.getpid() != parent:
            os.write(say, f"{type(error).__name__}: {error}".encode())
        raise
    finally:
        if os.getpid() != parent:
            os._exit(0)
    os.close(say)
    with os.fdopen(answer, "rb") as pipe:
        said.append(pipe.read().decode())
    for line in said:
        assert line.startswith("StateError: the run in "), line
        assert f"is that of process {parent}; this is process" in line
    assert len(said) == 2
    assert find_best(out_dir).score == 0.3
    if where == "folder":
        assert [r.iteration for r in History.read(tmp_path / "history.jsonl")] == [1, 2, 3]


def test_when_the_run_is_over_a_child_may_have_one_of_its_own(tmp_path: Path) -> None:
    def another() -> None:
        hook, trainer = scripted([0.5], tmp_path / "child")
        hook.attach(trainer)
        trainer.run([0], max_epochs=1)

    hook, trainer = scripted([0.1, 0.2], tmp_path / "parent")
    hook.attach(trainer)
    said: list[str] = []

    @trainer.on(Events.ITERATION_STARTED(once=2))
    def fork() -> None:
        said.append(said_by_child(another))

    trainer.run([0], max_epochs=2)
    assert said == ["ended well"]
    assert find_best(tmp_path / "child").score == 0.5
