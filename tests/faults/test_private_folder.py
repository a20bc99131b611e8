"""What goes through ``tmpdir=`` is for this user alone, and nothing else is read."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.private import (
    _private_folder,
    close,
    make_private_folder,
    open_new,
    open_ours,
    pack,
    read,
    remove_left_over,
    write,
)
from ignite_evalhook.exceptions import EvaluationError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes of files")


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def put(path: Path, value: Any = "value") -> None:
    with open(path, "wb", opener=open_new) as file:
        write(pack(value), file)


def take(path: Path) -> Any:
    return read(path, opener=open_ours)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_and_its_files_are_for_this_user_alone(tmp_path: Path, umask: int) -> None:
    folder, handle = make_private_folder(tmp_path / "new" / "tmp")
    put(folder / "1.bin")
    assert take(folder / "1.bin") == "value"
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    close(handle)


def open_to_others(path: Path) -> None:
    path.chmod(0o620)


def readable(path: Path) -> None:
    path.chmod(0o644)


def linked(path: Path) -> None:
    os.link(path, path.with_name("second"))


def behind_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


@pytest.mark.parametrize(
    "change", [open_to_others, readable, linked, behind_a_link, a_pipe, a_folder]
)
def test_a_file_that_another_user_could_have_written_is_not_read(
    tmp_path: Path, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.bin"
    tmp_path.chmod(0o700)
    put(path)
    change(path)
    monkeypatch.setattr("pickle.loads", lambda *_, **__: pytest.fail("it was unpickled"))
    with pytest.raises((EvaluationError, OSError), match=r"1\.bin"):
        take(path)


def test_a_file_of_another_user_is_not_read_and_nothing_is_written_for_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1.bin"
    tmp_path.chmod(0o700)
    put(path)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(path).st_uid + 1)
    with pytest.raises(EvaluationError, match=r"1\.bin belongs to user .*, this process to user"):
        take(path)
    with pytest.raises(EvaluationError, match=r"belongs to user .* give a tmpdir on a disk that"):
        put(tmp_path / "2.bin")
    assert not (tmp_path / "2.bin").exists()


@pytest.mark.parametrize("kind", ["open", "link", "missing"])
def test_nothing_is_written_into_another_folder(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind != "missing":
        folder.mkdir(0o700)
    if kind == "open":
        folder.chmod(0o770)
    elif kind == "link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((EvaluationError, FileNotFoundError), match="folder"):
        put(folder / "1.bin")
    assert not list(tmp_path.rglob("*.bin"))


def test_a_file_that_is_there_already_is_not_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "1.bin"
    path.write_text("theirs")
    with pytest.raises(FileExistsError):
        put(path)
    assert path.read_text() == "theirs"


def test_only_what_killed_processes_of_this_user_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, held = make_private_folder(tmp_path)
    put(alive / "1.bin")
    dead, handle = make_private_folder(tmp_path)
    close(handle)
    empty = tmp_path / ".ignite_evalhook-empty"
    empty.mkdir(0o700)
    shared = tmp_path / ".ignite_evalhook-shared"
    shared.mkdir(0o777)
    shared.chmod(0o777)
    (shared / "lock").touch()
    link = tmp_path / ".ignite_evalhook-link"
    link.symlink_to(alive)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4242)
        assert remove_left_over(tmp_path) == []
    assert remove_left_over(tmp_path) == [dead]
    assert sorted(tmp_path.iterdir()) == sorted([alive, shared, link])
    assert take(alive / "1.bin") == "value"
    close(held)


@pytest.mark.parametrize("step", ["open_lock_file", "try_lock"])
def test_a_folder_that_is_taken_for_a_leftover_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Another process may look for leftovers at any instant."""
    real, calls = getattr(_private_folder, step), []

    def clean_first(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            monkeypatch.setattr(_private_folder, step, real)
            remove_left_over(tmp_path)
            monkeypatch.setattr(_private_folder, step, clean_first)
        return real(*args)

    monkeypatch.setattr(_private_folder, step, clean_first)
    folder, handle = make_private_folder(tmp_path)
    assert len(calls) > 1
    assert list(tmp_path.iterdir()) == [folder]
    put(folder / "1.bin")
    close(handle)


def test_a_disk_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int) -> bool:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(_private_folder, "try_lock", no_locks)
    monkeypatch.setattr(_private_folder, "UNSUPPORTED", {95})
    folder, handle = make_private_folder(tmp_path)
    assert remove_left_over(tmp_path) == []
    assert folder.exists()
    close(handle)
