"""One live run in a folder: in this process, in others, and after a kill."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from helpers.private import FolderLock, LocalStorage, _flock, _lock, open_storage
from ignite_evalhook.exceptions import CheckpointError, StateError

posix = pytest.mark.skipif(sys.platform == "win32", reason="fork and signals")


class Run:
    """A trainer, to the lock."""

    live = True


def is_live(run: object) -> bool:
    return isinstance(run, Run) and run.live


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    yield tmp_path / "run"
    for held in [*_lock._held.values()]:  # what a test left behind is in nobody's way
        _lock._give_back(held)


def lock_of(folder: pathlib.Path, name: str = "val") -> FolderLock:
    return FolderLock(LocalStorage(folder), name)


class Process:
    """Another process, which takes the lock if it can and holds it until it is told to end."""

    def __init__(self, folder: pathlib.Path, name: str = "val", *, release: bool = True) -> None:
        answer, say = os.pipe()
        listen, self._tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._tell)
            lock, run = lock_of(folder, name), Run()
            try:
                lock.acquire(run)
            except (CheckpointError, StateError) as error:
                os.write(say, f"{type(error).__name__} {error}".encode())
                os._exit(1)
            os.write(say, b"held")
            os.read(listen, 1)
            if release:
                lock.release()
            os._exit(0)
        os.close(say)
        os.close(listen)
        with os.fdopen(answer, "rb", 0) as file:
            self.said = file.read(1000).decode()

    def end(self) -> None:
        os.close(self._tell)
        os.waitpid(self.pid, 0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.end()


def another_process_says(folder: pathlib.Path) -> str:
    process = Process(folder)
    process.end()
    return process.said


def in_child(action: Callable[[], None]) -> int:
    """Run ``action`` in a forked child and return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:  # the child must not go on with the tests of its parent
            traceback.print_exc()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Within one process


def test_acquiring_creates_the_folder_and_releasing_removes_the_file(folder: pathlib.Path) -> None:
    lock, run = lock_of(folder), Run()
    lock.acquire(run)
    text = (folder / ".val.lock").read_text()
    assert text.startswith(f"process {os.getpid()} on ")
    lock.release()
    assert [*folder.iterdir()] == []


def test_acquiring_and_releasing_again_is_fine(folder: pathlib.Path) -> None:
    lock, run = lock_of(folder), Run()
    for _ in range(3):
        lock.acquire(run)
        lock.acquire(run, is_live)
        lock_of(folder).acquire(run, is_live)
        lock.acquire(run, is_live)
        lock.release()
        lock.release()
        assert [*folder.iterdir()] == []


def test_a_second_live_run_is_refused_in_words(folder: pathlib.Path) -> None:
    first, second = Run(), Run()
    lock = lock_of(folder)
    lock.acquire(first)
    for other in (lock, lock_of(folder)):
        with pytest.raises(
            StateError,
            match=rf"out_dir {folder} is in use by another run in this process .*'val'; give this "
            "run another out_dir, or its hook another name=",
        ):
            other.acquire(second, is_live)
        with pytest.raises(StateError, match="in use"):
            other.acquire(second)
    lock.release()
    lock_of(folder).acquire(second, is_live)


def test_the_same_folder_by_another_path_is_the_same_folder(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = Run()
    lock_of(folder).acquire(run)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(StateError, match="in use"):
        lock_of(tmp_path / "link").acquire(Run(), is_live)


def test_hooks_of_different_names_share_a_folder(folder: pathlib.Path) -> None:
    first, second = Run(), Run()
    lock_of(folder, "val").acquire(first, is_live)
    lock_of(folder, "test").acquire(second, is_live)


def test_a_run_that_is_over_passes_the_lock_on(folder: pathlib.Path) -> None:
    first, second, third = Run(), Run(), Run()
    old, new = lock_of(folder), lock_of(folder)
    old.acquire(first, is_live)
    first.live = False
    new.acquire(second, is_live)
    old.release()  # it is no longer its to give back
    with pytest.raises(StateError, match="in use"):
        lock_of(folder).acquire(third, is_live)
    new.release()
    lock_of(folder).acquire(third, is_live)


def test_a_run_that_is_gone_passes_the_lock_on(folder: pathlib.Path) -> None:
    run = Run()
    lock_of(folder).acquire(run)
    del run
    gc.collect()
    second = Run()
    lock_of(folder).acquire(second)  # without asking: nobody is there to ask about
    with pytest.raises(StateError, match="in use"):
        lock_of(folder).acquire(Run(), is_live)


def test_is_live_may_ask_the_lock_itself(folder: pathlib.Path) -> None:
    first, second = Run(), Run()
    lock = lock_of(folder)
    lock.acquire(first)

    def asks(_: object) -> bool:
        lock.acquire(first, is_live)
        return False

    # In a thread, so that waiting for itself for ever is a failure, not a silent test run.
    thread = threading.Thread(target=lock_of(folder).acquire, args=(second, asks), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()


@posix
def test_a_folder_that_was_removed_is_locked_anew(folder: pathlib.Path) -> None:
    first, second = Run(), Run()
    lock_of(folder).acquire(first)
    (folder / ".val.lock").unlink()
    folder.rmdir()
    lock = lock_of(folder)
    lock.acquire(first, is_live)  # the owner itself
    (folder / ".val.lock").unlink()
    first.live = False
    lock.acquire(second, is_live)  # and one who takes over
    assert (folder / ".val.lock").exists()
    assert another_process_says(folder).startswith("StateError")
    lock.release()
    assert [*folder.iterdir()] == []


def test_a_lock_file_that_is_not_ours_any_more_is_not_removed(folder: pathlib.Path) -> None:
    lock, run = lock_of(folder), Run()
    lock.acquire(run)
    (folder / ".val.lock").unlink()
    (folder / ".val.lock").write_text("another's")
    lock.release()
    assert (folder / ".val.lock").read_text() == "another's"


def test_a_lock_that_nobody_holds_any_more_is_no_obstacle(folder: pathlib.Path) -> None:
    folder.mkdir()
    (folder / ".val.lock").write_text("process 1 on a machine that was switched off\n")
    run = Run()
    lock_of(folder).acquire(run)
    assert (folder / ".val.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_behind_a_url_is_not_locked() -> None:
    storage = open_storage("memory://locked")
    first, second = Run(), Run()
    locks = [FolderLock(storage, "val"), FolderLock(storage, "val")]
    locks[0].acquire(first, is_live)
    locks[1].acquire(second, is_live)
    locks[0].release()
    assert storage.list() == []


# Between processes


@posix
def test_a_live_run_in_another_process_is_refused_in_words(folder: pathlib.Path) -> None:
    process = Process(folder)
    assert process.said == "held"
    lock, run = lock_of(folder), Run()
    words = rf"in use by another run \(process {process.pid} on .*\) with a hook called 'val'; give"
    for _ in range(2):  # a failed attempt leaves nothing behind
        with pytest.raises(StateError, match=words):
            lock.acquire(run, is_live)
    lock_of(folder, "test").acquire(run)
    process.end()
    lock.acquire(run, is_live)


@posix
def test_another_process_is_refused_until_we_release(folder: pathlib.Path) -> None:
    lock, run = lock_of(folder), Run()
    lock.acquire(run)
    words = another_process_says(folder)
    assert words.startswith(f"StateError out_dir {folder} is in use by another run (process ")
    assert str(os.getpid()) in words
    lock.release()
    assert another_process_says(folder) == "held"


@posix
def test_a_kill_frees_the_lock(folder: pathlib.Path) -> None:
    process = Process(folder)
    assert process.said == "held"
    process.kill()
    assert (folder / ".val.lock").exists()
    lock, run = lock_of(folder), Run()
    lock.acquire(run)
    lock.release()
    assert [*folder.iterdir()] == []


@posix
def test_an_end_without_release_frees_the_lock(folder: pathlib.Path) -> None:
    process = Process(folder, release=False)
    assert process.said == "held"
    process.end()
    assert (folder / ".val.lock").exists()
    run = Run()
    lock_of(folder).acquire(run)


@posix
def test_a_file_that_its_owner_removes_while_we_wait_is_not_taken_for_the_lock(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two runs hold "the" lock: one on the removed file, one on its successor."""
    first = lock_of(folder)
    run = Run()
    first.acquire(run)
    turns = []

    def release_first(handle: int) -> bool:
        if not turns:
            first.release()
        turns.append(handle)
        return _flock.try_lock(handle)

    monkeypatch.setattr(_lock, "try_lock", release_first)
    handle = lock_of(folder)._open_locked(folder / ".val.lock")
    assert len(turns) == 2
    assert os.path.samestat(os.fstat(handle), os.stat(folder / ".val.lock"))
    os.close(handle)


# Forks


@posix
def test_a_forked_child_neither_holds_nor_frees_its_parents_lock(folder: pathlib.Path) -> None:
    lock, run = lock_of(folder), Run()
    lock.acquire(run)

    def misuse() -> None:
        lock.release()
        assert (folder / ".val.lock").exists()
        for attempt in (lock, lock_of(folder)):
            with pytest.raises(StateError, match=rf"process {os.getppid()} on"):
                attempt.acquire(run, is_live)
            attempt.release()

    assert in_child(misuse) == 0
    assert another_process_says(folder).startswith("StateError")
    lock.release()
    assert [*folder.iterdir()] == []


@posix
def test_a_forked_child_can_lock_another_folder(folder: pathlib.Path) -> None:
    run = Run()
    lock_of(folder).acquire(run)

    def lock_another() -> None:
        lock = lock_of(folder / "other")
        lock.acquire(run)
        lock.release()

    assert in_child(lock_another) == 0


@posix
def test_the_workers_of_a_killed_run_do_not_keep_its_lock(folder: pathlib.Path) -> None:
    """A data worker outlives its killed parent by seconds; the restart must not fail on it."""
    told_read, told_write = os.pipe()
    parent = os.fork()
    if parent == 0:
        run = Run()
        lock_of(folder).acquire(run)
        if os.fork() == 0:  # by now the worker has closed its copy of the locked file
            os.write(told_write, f"{os.getpid()}\n".encode())
        signal.pause()
        os._exit(0)
    worker = int(os.read(told_read, 20))
    try:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(worker, 0)  # it is alive
        run = Run()
        lock_of(folder).acquire(run)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(told_read)
        os.close(told_write)


@posix
def test_a_fork_while_another_thread_is_in_the_lock_does_not_block_the_child(
    folder: pathlib.Path,
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with _lock._guard:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()

    def acquire() -> None:
        signal.alarm(20)
        run = Run()
        lock_of(folder).acquire(run)

    try:
        assert in_child(acquire) == 0
    finally:
        leave.set()
        thread.join()


# Faults


def test_a_folder_that_cannot_be_made_is_told_in_words(tmp_path: pathlib.Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=rf"could not lock {tmp_path}/taken for the hook 'val': .* \[E.*\]; choose another",
    ) as caught:
        lock_of(tmp_path / "taken").acquire(Run())
    assert caught.value.errno is not None


@pytest.mark.parametrize("call", ["open", "ftruncate", "write", "fstat"])
def test_a_failure_leaves_nothing_open_and_nothing_held(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder.mkdir()
    closed: list[int] = []
    opened: list[int] = []
    real_open, real_close = os.open, os.close

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    def note_open(*args: object) -> int:
        opened.append(real_open(*args))  # type: ignore[arg-type]
        return opened[-1]

    def note_close(handle: int) -> None:
        closed.append(handle)
        real_close(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", note_open)
        patch.setattr(os, "close", note_close)
        patch.setattr(os, call, fail)
        with pytest.raises(CheckpointError, match=r"Read-only file system \[EROFS\]"):
            lock_of(folder).acquire(Run())
    assert opened == closed
    run = Run()
    lock_of(folder).acquire(run)


def failing_close(monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def fail(handle: int) -> None:
        close(handle)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "close", fail)


def test_a_lock_file_that_cannot_be_closed_hides_no_error(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    lock, run = lock_of(folder), Run()
    with monkeypatch.context() as patch:
        failing_close(patch)
        patch.setattr(os, "ftruncate", full)
        with pytest.raises(CheckpointError, match=r"No space left on device \[ENOSPC\]"):
            lock.acquire(run)
    lock.acquire(run)

    def train() -> None:
        try:
            raise KeyError("a bug in training")
        finally:
            lock.release()

    with monkeypatch.context() as patch:
        failing_close(patch)
        with pytest.raises(KeyError, match="a bug in training"):
            train()
    assert another_process_says(folder) == "held"


@posix
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_lock_file_is_refused_and_left_alone(folder: pathlib.Path, kind: str) -> None:
    folder.mkdir()
    path, precious = folder / ".val.lock", folder / "precious"
    precious.write_text("precious")
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"could not lock .*run for the hook 'val'"):
        lock_of(folder).acquire(Run())
    assert precious.read_text() == "precious"
    assert os.path.lexists(path)


def test_a_file_system_without_locks_is_warned_about_and_used(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = min(_flock.UNSUPPORTED)

    def unsupported(_: int) -> bool:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(_lock, "try_lock", unsupported)
    run = Run()
    with pytest.warns(RuntimeWarning, match="without locks .*no locks here.*second run"):
        lock_of(folder).acquire(run)
    with pytest.raises(StateError, match="in use by another run in this process"):
        lock_of(folder).acquire(Run(), is_live)


def test_any_other_failure_to_lock_is_an_error(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_lock, "try_lock", broken)
    with pytest.raises(CheckpointError, match=r"Input/output error \[EIO\]"):
        lock_of(folder).acquire(Run())


@posix
@pytest.mark.parametrize("call", ["unlink", "stat", "fstat"])
def test_a_lock_file_that_cannot_be_removed_is_still_freed(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    lock, run = lock_of(folder), Run()
    lock.acquire(run)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        lock.release()
    assert another_process_says(folder) == "held"
