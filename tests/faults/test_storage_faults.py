"""A failure or a kill at any instant leaves the old file or the new one, and no litter."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
import signal
import stat
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from helpers.private import FolderLock, LocalStorage, Storage, open_storage
from ignite_evalhook.exceptions import CheckpointError, StateError

posix = pytest.mark.skipif(sys.platform == "win32", reason="fork and signals")

OLD, NEW = b"old" * 1000, b"new" * 2000
# The calls that change anything: between others a kill does what a kill before them does.
CALLS = ["open", "write", "fsync", "close", "replace", "rename", "link", "unlink", "remove"]
CALLS += ["mkdir", "rmdir", "ftruncate"]


def content(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda file: file.write(data)


def read(storage: Storage, name: str) -> bytes | None:
    if not storage.exists(name):
        return None
    with storage.open(name) as file:
        return file.read()


class System:
    """Counts the calls to the system, and lets the ``n``-th go wrong."""

    def __init__(self, n: int, fault: Callable[[str, tuple[Any, ...], Callable[..., Any]], Any]):
        self.calls: list[str] = []
        self.n = n
        self.fault = fault

    def patch(self, setattr: Callable[[Any, str, Any], None]) -> None:
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self.n:
                return self.fault(name, args, real)
            return real(*args, **kwargs)

        return call

    @property
    def hit(self) -> str | None:
        return self.calls[self.n] if self.n < len(self.calls) else None


def disk_full(name: str, args: tuple[Any, ...], real: Callable[..., Any]) -> Any:
    if name == "close":  # a failing close closes
        real(*args)
    raise OSError(errno.ENOSPC, "No space left on device")


def disk_full_halfway(name: str, args: tuple[Any, ...], real: Callable[..., Any]) -> Any:
    if name == "write":
        real(args[0], bytes(args[1])[: len(args[1]) // 2])
    return disk_full(name, args, real)


def interrupt(name: str, args: tuple[Any, ...], real: Callable[..., Any]) -> Any:
    if name == "close":
        real(*args)
    raise KeyboardInterrupt


def survives_kills(action: Callable[[], object], check: Callable[[], object]) -> int:
    """Fork and kill the child at each of its calls in turn; check what it leaves behind.

    Returns:
        The number of kills.
    """
    for n in itertools.count():
        child = os.fork()
        if child == 0:
            code = 1
            try:
                Killer(n).patch(setattr)
                action()
                code = 0
            finally:  # the child must not go on with the tests of its parent
                if code:
                    traceback.print_exc()
                os._exit(code)
        end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        check()
        if end == 0:
            return n
        assert end == -signal.SIGKILL
    raise AssertionError("unreachable")


class Killer(System):
    """Kills the process before its ``n``-th call; a write can be cut in the middle, too."""

    def __init__(self, n: int) -> None:
        super().__init__(n, self._kill)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        whole = super()._wrapped(name, real)
        if name != "write":
            return whole

        def write(handle: int, data: Any) -> Any:
            half = len(data) // 2
            written = whole(handle, bytes(data)[:half]) if half else 0
            rest: int = whole(handle, bytes(data)[half:])
            return written + rest

        return write

    @staticmethod
    def _kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def storage(tmp_path: pathlib.Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def raised_by(action: Callable[[], object]) -> CheckpointError | KeyboardInterrupt | None:
    try:
        action()
    except (CheckpointError, KeyboardInterrupt) as error:
        return error
    return None


def litter(storage: LocalStorage) -> list[str]:
    folder = pathlib.Path(storage.location)
    return [p.name for p in folder.iterdir() if p.name.startswith(".")] if folder.exists() else []


# Failing calls, one at a time


@pytest.mark.parametrize("fault", [disk_full, disk_full_halfway])
@pytest.mark.parametrize("before", [OLD, None], ids=["replacing", "first"])
def test_a_write_survives_a_failure_of_any_call(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, fault: Any, before: bytes | None
) -> None:
    hits = []
    for n in itertools.count():
        if before is None:
            storage.remove("x")
        else:
            storage.write("x", content(before))
        system = System(n, fault)
        with monkeypatch.context() as patch:
            system.patch(patch.setattr)
            error = raised_by(lambda: storage.write("x", content(NEW)))
        if system.hit is None:
            break
        hits.append(system.hit)
        assert litter(storage) == []
        if error is None:
            assert read(storage, "x") == NEW
        else:
            assert error.errno == errno.ENOSPC
            assert "No space left on device [ENOSPC]" in str(error)
            assert "run/x" in str(error)
            done = "replace" in system.calls[:n]
            assert read(storage, "x") == (NEW if done else before)
            assert ("is in place" if done else "is unharmed") in str(error)
    assert read(storage, "x") == NEW
    assert {"open", "write", "fsync", "close", "replace"} <= {*hits}
    assert hits.count("fsync") == 2  # the file's and the folder's


@pytest.mark.parametrize("fault", [disk_full, disk_full_halfway, interrupt])
@pytest.mark.parametrize("before", ["one\n", None], ids=["more", "first"])
def test_adding_a_line_survives_a_failure_of_any_call(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, fault: Any, before: str | None
) -> None:
    wanted = (before or "") + "two\n"
    for n in itertools.count():
        storage.remove("x")
        if before is not None:
            storage.write_text("x", before)
        system = System(n, fault)
        with monkeypatch.context() as patch:
            system.patch(patch.setattr)
            error = raised_by(lambda: storage.append_line("x", "two"))
        text = storage.read_text("x")
        assert litter(storage) == []
        if system.hit is None:
            assert text == wanted
            break
        if error is None:
            assert text == wanted
        elif isinstance(error, CheckpointError):
            assert error.errno == errno.ENOSPC
            assert "could not append to" in str(error)
            assert (text or "") == (before or "")
        else:  # an interrupt may come when the line is on the disk already
            assert (text or "") in (before or "", wanted)
    assert {"open", "write", "fsync", "close"} <= {*system.calls}


def test_adding_a_line_that_fits_by_half_leaves_no_half(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.append_line("x", "one")
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:2]))
    with pytest.raises(CheckpointError, match=r"\[ENOSPC\]; its earlier lines are unharmed"):
        storage.append_line("x", "two")
    assert storage.read_text("x") == "one\n"


OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "write": lambda s: s.write("x", content(NEW)),
    "write text": lambda s: s.write_text("x", NEW.decode()),
    "link": lambda s: s.link_or_copy("source", "x", "link"),
    "copy": lambda s: s.link_or_copy("source", "x", "copy"),
    "move": lambda s: s.move("x", "earlier/1/x"),
    "remove": lambda s: s.remove("x"),
    "check": lambda s: s.check_writable(),
    "clean": lambda s: s.clean(),
    "list": lambda s: s.list(),
    "read": lambda s: s.fingerprint("x"),
}


@pytest.mark.parametrize("fault", [disk_full, interrupt])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_operation_harms_a_file_or_leaves_litter_when_a_call_fails(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, operation: str, fault: Any
) -> None:
    outcomes = {"remove": {OLD, None}, "move": {OLD, None}, "check": {OLD}, "clean": {OLD}}
    outcomes |= {"list": {OLD}, "read": {OLD}}
    for n in itertools.count():
        storage.write("source", content(NEW))
        storage.write("x", content(OLD))
        storage.remove("earlier/1/x")
        system = System(n, fault)
        with monkeypatch.context() as patch:
            system.patch(patch.setattr)
            error = raised_by(lambda: OPERATIONS[operation](storage))
        assert error is None or isinstance(error, KeyboardInterrupt) or error.errno == errno.ENOSPC
        found = read(storage, "x")
        assert found in outcomes.get(operation, {OLD, NEW})
        if operation == "move":
            assert {found, read(storage, "earlier/1/x")} == {OLD, None}
        assert read(storage, "source") == NEW
        if not (fault is interrupt and system.hit in ("unlink", "rmdir")):
            assert litter(storage) == []
        storage.clean()
        assert litter(storage) == []
        if system.hit is None:
            break


def test_a_linking_disk_that_fills_up_falls_back_to_a_copy(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("source", content(NEW))
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_: disk_full("link", (), print))
        storage.link_or_copy("source", "x", "link")
    assert read(storage, "x") == NEW


def test_the_file_is_on_the_disk_before_its_name_is(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure can leave an empty file under the final name."""
    storage.write("x", content(OLD))
    events: list[str] = []
    fsync, replace, close = os.fsync, os.replace, os.close

    def note_fsync(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        size = os.fstat(handle).st_size
        events.append("fsync folder" if is_folder else f"fsync {size} bytes")
        fsync(handle)

    def note_replace(source: Any, target: Any) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "close", lambda handle: events.append("close") or close(handle))
    storage.write("x", content(NEW))
    assert events == [f"fsync {len(NEW)} bytes", "close", "replace", "fsync folder", "close"]

    events.clear()
    storage.write("new/folder/x", content(NEW))
    folders_first = ["fsync folder", "close"] * 2
    assert events[:4] == folders_first  # the new folders' names are made durable too
    assert events[4:] == [f"fsync {len(NEW)} bytes", "close", "replace", "fsync folder", "close"]

    events.clear()
    storage.append_line("lines", "one")
    assert events == ["fsync 4 bytes", "close", "fsync folder", "close"]
    events.clear()
    storage.append_line("lines", "two")
    assert events == ["fsync 8 bytes", "close"]
    events.clear()
    storage.move("x", "new/x")
    assert events == ["fsync folder", "close"] * 2
    events.clear()
    storage.link_or_copy("new/x", "y", "link")
    assert events == ["replace", "fsync folder", "close"]


@pytest.mark.parametrize(("number", "tolerated"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_disk_that_cannot_flush_folders_is_fine_one_that_fails_is_not(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int, tolerated: bool
) -> None:
    storage.write("x", content(OLD))
    fsync = os.fsync

    def fail_for_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    if tolerated:
        storage.write("x", content(NEW))
    else:
        with pytest.raises(CheckpointError, match=r"\[EIO\]; the new file is in place"):
            storage.write("x", content(NEW))
    assert read(storage, "x") == NEW


# Failing writers


class Strange(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TypeError("save() takes 1 argument"), r"TypeError: save\(\) takes 1 argument"),
        (Strange("odd"), "Strange: odd"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"Disk quota exceeded \[EDQUOT\]"),
        (OSError("no number"), "OSError: no number"),
        (MemoryError(), "MemoryError"),
    ],
)
@pytest.mark.parametrize("where", ["path", "memory"])
def test_what_the_writer_raises_becomes_a_checkpoint_error(
    tmp_path: pathlib.Path, where: str, error: Exception, words: str
) -> None:
    url = tmp_path / "run" if where == "path" else f"memory://{uuid.uuid4().hex}"
    storage = open_storage(url)
    storage.write("x", content(OLD))

    def save(file: BinaryIO) -> None:
        file.write(NEW * 1000)
        raise error

    with pytest.raises(
        CheckpointError, match=rf"could not write .*/x: {words}.*; .* is unharmed"
    ) as e:
        storage.write("x", save)
    assert e.value.__cause__ is error
    assert e.value.errno == getattr(error, "errno", None)
    assert read(storage, "x") == OLD
    assert storage.list() == ["x"]
    assert storage.clean() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), StateError("in words")])
@pytest.mark.parametrize("where", ["path", "memory"])
def test_an_interrupt_and_our_own_errors_pass_as_they_are(
    tmp_path: pathlib.Path, where: str, error: BaseException
) -> None:
    url = tmp_path / "run" if where == "path" else f"memory://{uuid.uuid4().hex}"
    storage = open_storage(url)
    storage.write("x", content(OLD))

    def save(file: BinaryIO) -> None:
        file.write(NEW * 1000)
        raise error

    with pytest.raises(type(error)) as caught:
        storage.write("x", save)
    assert caught.value is error
    assert read(storage, "x") == OLD
    assert storage.clean() == []


@pytest.mark.parametrize("megabytes", [0, 1, 3])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_torch_does_not_hide_what_went_wrong(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, megabytes: int, error: BaseException
) -> None:
    """``torch.save`` raises ``RuntimeError: unexpected pos 704 vs 598`` instead."""
    state = {"a": torch.zeros(10), "b": torch.zeros(1_000_000), "c": torch.zeros(2_000_000)}
    storage.write("x.pt", content(OLD))
    write, room = os.write, megabytes << 20

    def fail(handle: int, data: Any) -> int:
        nonlocal room
        if room <= 0:
            raise error
        written = write(handle, memoryview(data)[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", fail)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        storage.write("x.pt", lambda file: torch.save(state, file))
    if isinstance(error, OSError):
        assert caught.value.__cause__ is error
        assert "No space left [ENOSPC]" in str(caught.value)
    else:
        assert caught.value is error
    assert read(storage, "x.pt") == OLD
    assert litter(storage) == []


@posix
def test_a_real_limit_of_the_system_in_mid_write_leaves_the_old_checkpoint(
    storage: LocalStorage,
) -> None:
    resource = pytest.importorskip("resource")
    state = {"w": torch.zeros(1_000_000)}  # a forked child may copy tensors, not compute them
    storage.write("x.pt", content(OLD))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            error = raised_by(lambda: storage.write("x.pt", lambda file: torch.save(state, file)))
            code = 0 if isinstance(error, CheckpointError) and error.errno == errno.EFBIG else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(storage, "x.pt") == OLD
    assert litter(storage) == []


def test_a_writer_that_swallows_the_failure_does_not_get_its_file(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("x", content(OLD))

    def save(file: BinaryIO) -> None:
        with contextlib.suppress(OSError):
            file.write(NEW * 1000)
        file.write(b"more")

    monkeypatch.setattr(os, "write", lambda *_: disk_full("write", (), print))
    with pytest.raises(CheckpointError, match="ENOSPC"):
        storage.write("x", save)
    assert read(storage, "x") == OLD
    assert litter(storage) == []


def test_short_writes_of_the_system_are_continued(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, memoryview(data)[:70_001]))
    data = os.urandom(3_000_000)
    storage.write("x", content(data))
    assert read(storage, "x") == data


def test_a_failed_write_keeps_no_file_open(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    closed: list[int] = []
    real_open, real_close = os.open, os.close

    def note(*args: Any) -> int:
        opened.append(real_open(*args))
        return opened[-1]

    monkeypatch.setattr(os, "open", note)
    monkeypatch.setattr(os, "close", lambda handle: closed.append(handle) or real_close(handle))

    def save(file: BinaryIO) -> None:
        file.write(b"x")
        raise Strange

    with pytest.raises(CheckpointError):
        storage.write("x", save)
    assert opened
    assert sorted(opened) == sorted(closed)


# Kills


@posix
@pytest.mark.parametrize("before", [OLD, None], ids=["replacing", "first"])
def test_a_kill_at_any_call_of_a_write_leaves_the_old_or_the_new_file(
    storage: LocalStorage, before: bytes | None
) -> None:
    seen = set()

    def check() -> None:
        seen.add(read(storage, "x"))
        assert read(storage, "x") in (before, NEW)
        assert storage.list() in ([], ["x"])
        storage.clean()
        assert litter(storage) == []
        storage.write("y", content(NEW))  # nothing is in the way of the next write
        storage.remove("y")
        if before is None:
            storage.remove("x")
        else:
            storage.write("x", content(before))

    if before is not None:
        storage.write("x", content(before))
    assert survives_kills(lambda: storage.write("x", content(NEW)), check) >= 6
    assert seen == {before, NEW}


@posix
def test_a_kill_leaves_its_temporary_file_to_be_cleaned(storage: LocalStorage) -> None:
    storage.write("x", content(OLD))
    left = []

    def check() -> None:
        left.extend(storage.clean())
        assert storage.list() == ["x"]

    survives_kills(lambda: storage.write("x", content(NEW)), check)
    assert left  # else the test above proves nothing
    assert litter(storage) == []


@posix
def test_a_kill_while_torch_saves_leaves_the_old_or_the_new_checkpoint(
    storage: LocalStorage,
) -> None:
    old, new = {"w": torch.zeros(600_000)}, {"w": torch.ones(600_000)}

    def save(state: Any) -> None:
        storage.write("x.pt", lambda file: torch.save(state, file))

    def check() -> None:
        with storage.open("x.pt") as file:
            loaded = torch.load(file, weights_only=True)["w"]
        assert loaded.shape == (600_000,)
        assert loaded.min() == loaded.max()
        storage.clean()

    save(old)
    assert survives_kills(lambda: save(new), check) >= 8


@posix
def test_a_kill_while_a_line_is_added_costs_at_most_that_line(storage: LocalStorage) -> None:
    seen = set()

    def check() -> None:
        text = storage.read_text("x")
        assert text is not None
        assert text in ("one\n", "one\ntw", "one\ntwo\n")
        seen.add(text)
        storage.append_line("x", "three")
        assert storage.read_text("x") in ("one\nthree\n", "one\ntwo\nthree\n")
        storage.write_text("x", "one\n")

    storage.write_text("x", "one\n")
    assert survives_kills(lambda: storage.append_line("x", "two"), check) >= 4
    assert seen == {"one\n", "one\ntw", "one\ntwo\n"}


@posix
@pytest.mark.parametrize("torn", ["one\ntw", "one\n"])
def test_a_kill_while_a_torn_line_is_cut_off_costs_no_whole_line(
    storage: LocalStorage, torn: str
) -> None:
    def check() -> None:
        assert storage.read_text("x") in (torn, "one\n", "one\nne", "one\nnew\n")
        storage.write_text("x", torn)

    storage.write_text("x", torn)
    survives_kills(lambda: storage.append_line("x", "new"), check)


@posix
@pytest.mark.parametrize("operation", ["link", "copy", "move", "remove", "check", "clean"])
@pytest.mark.parametrize("where", ["path", "fsspec"])
def test_a_kill_in_any_other_operation_harms_no_file(
    tmp_path: pathlib.Path, operation: str, where: str
) -> None:
    folder = tmp_path / "run"
    storage = open_storage(folder if where == "path" else f"local://{folder}")
    outcomes = {"link": {OLD, NEW}, "copy": {OLD, NEW}, "check": {OLD}, "clean": {OLD}}

    def prepare() -> None:
        storage.write("source", content(NEW))
        storage.write("x", content(OLD))
        storage.write(".y~.0123abcd.tmp", content(OLD))
        storage.remove("earlier/1/x")

    def check() -> None:
        assert read(storage, "source") == NEW
        found = read(storage, "x")
        assert found in outcomes.get(operation, {OLD, None})
        if operation == "move":
            assert {found, read(storage, "earlier/1/x")} == {OLD, None}
        storage.clean()
        assert [n for n in os.listdir(folder) if n.startswith(".")] == []
        prepare()

    prepare()
    assert survives_kills(lambda: OPERATIONS[operation](storage), check) >= 1


@posix
def test_a_kill_at_any_call_of_the_lock_keeps_nobody_out(storage: LocalStorage) -> None:
    class Run:
        pass

    run = Run()

    def take_and_release() -> None:
        lock = FolderLock(storage, "val")
        lock.acquire(run)
        lock.release()

    def check() -> None:
        take_and_release()
        assert litter(storage) == []

    assert survives_kills(take_and_release, check) >= 6


# Stores


class Failing(MemoryFileSystem):
    """A store of which the ``n``-th call fails, before or after it was carried out."""

    protocol = "failing"
    store: dict[str, Any] = {}  # noqa: RUF012  # shared, as its base class shares it
    pseudo_dirs = [""]  # noqa: RUF012
    n = -1
    after = False
    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def _count(cls, name: str, real: Callable[[], Any]) -> Any:
        if cls.n < 0:
            return real()
        cls.calls.append(name)
        fails = len(cls.calls) - 1 == cls.n
        if fails and not cls.after:
            raise ConnectionError(f"{name} failed")
        result = real()
        if fails:
            raise ConnectionError(f"{name} failed")
        return result

    def makedirs(self, *args: Any, **kwargs: Any) -> Any:
        return self._count("makedirs", lambda: MemoryFileSystem.makedirs(self, *args, **kwargs))

    def open(self, *args: Any, **kwargs: Any) -> Any:
        return self._count("open", lambda: MemoryFileSystem.open(self, *args, **kwargs))

    def info(self, *args: Any, **kwargs: Any) -> Any:
        return self._count("info", lambda: MemoryFileSystem.info(self, *args, **kwargs))

    def cp_file(self, *args: Any, **kwargs: Any) -> Any:
        return self._count("cp_file", lambda: MemoryFileSystem.cp_file(self, *args, **kwargs))

    def rm_file(self, *args: Any, **kwargs: Any) -> Any:
        return self._count("rm_file", lambda: MemoryFileSystem._rm(self, *args, **kwargs))


fsspec.register_implementation("failing", Failing, clobber=True)


@pytest.fixture
def store() -> Iterator[Storage]:
    yield open_storage(f"failing://{uuid.uuid4().hex}/run")
    Failing.n = -1
    Failing.store.clear()
    Failing.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", ["write", "write text", "copy", "move"])
def test_a_store_that_fails_at_any_call_keeps_the_old_or_the_new_file(
    store: Storage, operation: str, after: bool
) -> None:
    for n in itertools.count():
        store.write("source", content(NEW))
        store.write("x", content(OLD))
        store.remove("earlier/1/x")
        Failing.n, Failing.after, Failing.calls = n, after, []
        error = raised_by(lambda: OPERATIONS[operation](store))
        hit = n < len(Failing.calls)
        Failing.n = -1
        assert error is None or "ConnectionError: " in str(error)
        found = read(store, "x")
        if operation == "move":
            assert OLD in (found, read(store, "earlier/1/x"))
        else:
            assert found in (OLD, NEW)
        assert error is not None or found != OLD
        assert read(store, "source") == NEW
        # A file object that was never handed over cannot be removed by us: cleaning does that.
        opening_failed = after and hit and Failing.calls[n] == "open"
        assert opening_failed or store.clean() == []
        store.clean()
        assert store.list() in (["source", "x"], ["source"])
        if not hit:
            break
    assert {"info", "cp_file", "rm_file"} <= {*Failing.calls}


def test_a_store_that_fails_when_closing_is_an_error(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFile

    store.write("x", content(OLD))
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFile, "close", lambda _: disk_full("", (), print))
        with pytest.raises(CheckpointError, match=r"could not write failing://.*/x: .*\[ENOSPC\]"):
            store.write("x", content(NEW))

        def save(file: BinaryIO) -> None:
            raise Strange("first")

        with pytest.raises(CheckpointError, match="Strange: first"):
            store.write("x", save)
    assert read(store, "x") == OLD
    assert store.clean() == []


def test_reading_from_a_failing_store_is_told_in_words(store: Storage) -> None:
    store.write("x", content(OLD))
    calls: list[Callable[[], object]] = [
        lambda: store.size("x"),
        lambda: store.read_text("x"),
        lambda: store.fingerprint("x"),
        lambda: store.open("x"),
        lambda: store.append_line("x", "one"),
    ]
    for call in calls:
        Failing.n, Failing.after, Failing.calls = 0, False, []
        with pytest.raises(CheckpointError, match=r"could not .* failing://.*/x: .* failed"):
            call()
        Failing.n = -1
