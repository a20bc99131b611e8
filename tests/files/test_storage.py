"""A folder of files, local or behind a URL: the same promises for both."""

from __future__ import annotations

import os
import pathlib
import random
import stat
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from helpers.private import FsspecStorage, LocalStorage, Storage, _storage_fsspec, open_storage
from ignite_evalhook.exceptions import CheckpointError

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and links")


class RenamingFileSystem(MemoryFileSystem):
    """A store that renames, but never over an existing file, and says nothing about it."""

    protocol = "renaming"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if not self.exists(path2):
            self.cp_file(path1, path2)
            self.rm_file(path1)


class RefusingFileSystem(RenamingFileSystem):
    """The same, but it does say so."""

    protocol = "refusing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2)


for file_system in (RenamingFileSystem, RefusingFileSystem):
    fsspec.register_implementation(file_system.protocol, file_system, clobber=True)


@pytest.fixture(params=["path", "memory", "local", "renaming", "refusing"])
def storage(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Storage]:
    """Give a folder that does not exist yet."""
    if request.param == "path":
        yield open_storage(tmp_path / "new" / "run")
    elif request.param == "local":
        yield open_storage(f"local://{(tmp_path / 'new' / 'run').as_posix()}")
    else:
        folder = f"{request.param}://{uuid.uuid4().hex}"
        yield open_storage(f"{folder}/run")
        file_system = fsspec.filesystem(request.param)
        if file_system.exists(folder):
            file_system.rm(folder, recursive=True)


@pytest.fixture
def local(tmp_path: pathlib.Path) -> LocalStorage:
    return LocalStorage(tmp_path / "run")


def content(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda file: file.write(data)


def read(storage: Storage, name: str) -> bytes:
    with storage.open(name) as file:
        return file.read()


# Where files live


@pytest.mark.parametrize(
    ("out_dir", "folder"),
    [
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b"),
        ("/a/../b", "/b"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        ("file:///a/b", "/a/b"),
        ("FILE:///a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:///a%20b", "/a b"),
        ("/a:b/c", "/a:b/c"),
    ],
)
@posix
def test_a_path_or_file_url_is_a_local_folder(out_dir: Any, folder: str) -> None:
    storage = open_storage(out_dir)
    assert type(storage) is LocalStorage
    assert storage.location == folder
    assert storage.path("x.pt") == pathlib.Path(folder, "x.pt")
    assert repr(storage) == f"LocalStorage({folder!r})"


def test_a_relative_path_stays_where_it_was_when_the_process_moves(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("run")
    monkeypatch.chdir("/")
    assert storage.location == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("url", "location", "path"),
    [
        ("memory://a/b", "memory://a/b", "memory://a/b/x.pt"),
        ("memory://a/b/", "memory://a/b", "memory://a/b/x.pt"),
        ("memory://", "memory://", "memory://x.pt"),
        ("memory:///", "memory:///", "memory:///x.pt"),
        ("local:///", "local:///", "local:///x.pt"),
    ],
)
def test_a_url_is_kept_as_it_was_given(url: str, location: str, path: str) -> None:
    storage = open_storage(url)
    assert type(storage) is FsspecStorage
    assert storage.location == location
    assert storage.path("x.pt") == path
    assert fsspec.core.url_to_fs(path)[1] == storage._full("x.pt")


def test_opening_touches_nothing(tmp_path: pathlib.Path) -> None:
    open_storage(tmp_path / "new")
    assert [*tmp_path.iterdir()] == []


def test_an_empty_folder_name_and_another_machine_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got ''; '\.' is the current folder"):
        open_storage("")
    with pytest.raises(ValueError, match="three slashes"):
        open_storage("file://a/b")


def test_an_unknown_protocol_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"out_dir='s4://b/x' cannot be used: .*'?s4.* allowed"):
        open_storage("s4://b/x")


@pytest.mark.parametrize(
    ("protocol", "remedy"),
    [("s3", r"pip install 'fsspec\[s3\]'"), ("lakefs", "the package for lakefs://")],
)
def test_a_missing_package_is_named(
    protocol: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that is set to None cannot be imported, also where it is installed.
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "lakefs_spec", None)
    with pytest.raises(
        ImportError, match=rf"out_dir='{protocol}://b/x' needs a package .*{remedy}"
    ):
        open_storage(f"{protocol}://b/x")


def test_fsspec_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"needs fsspec: pip install fsspec"):
        open_storage("memory://x")

    def missing(name: str) -> Any:
        raise _storage_fsspec.PackageNotFoundError(name)

    monkeypatch.setattr(_storage_fsspec, "metadata", missing)
    assert _storage_fsspec._requirement("s3") == "the package for s3://"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/x", "a\0b"])
@pytest.mark.parametrize("out_dir", ["/a", "memory://a"])
def test_a_name_that_leads_out_of_the_folder_is_refused(out_dir: str, name: str) -> None:
    storage = open_storage(out_dir)
    calls: list[Callable[[], object]] = [
        lambda: storage.path(name),
        lambda: storage.write(name, content(b"")),
        lambda: storage.append_line(name, "x"),
        lambda: storage.open(name),
        lambda: storage.remove(name),
        lambda: storage.move(name, "x"),
        lambda: storage.move("x", name),
        lambda: storage.link_or_copy("x", name, "copy"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="must stay within the folder, got"):
            call()


# Writing and reading


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 8192, b"ab" * (1 << 20)])
def test_what_is_written_is_read(storage: Storage, data: bytes) -> None:
    storage.write("x.pt", content(data))
    assert storage.fingerprint("x.pt") == (len(data), f"{zlib.crc32(data[-(1 << 20) :]):08x}")
    assert storage.size("x.pt") == len(data)
    assert storage.exists("x.pt")
    assert read(storage, "x.pt") == data
    assert storage.list() == ["x.pt"]
    assert storage.clean() == []


def test_a_write_in_pieces_is_one_file(storage: Storage) -> None:
    pieces = [b"a", b"", b"b" * 3_000_000, b"c" * 1_000_000, b"d"]

    def save(file: BinaryIO) -> None:
        for piece in pieces:
            assert file.write(piece) == len(piece)

    storage.write("x", save)
    assert read(storage, "x") == b"".join(pieces)


def test_a_write_replaces_the_old_file(storage: Storage) -> None:
    storage.write("x", content(b"a long first version"))
    storage.write("x", content(b"short"))
    assert read(storage, "x") == b"short"
    assert storage.list() == ["x"]


def test_a_missing_file_is_told_apart(storage: Storage) -> None:
    for _ in range(2):
        assert not storage.exists("x")
        assert storage.size("x") is None
        assert storage.fingerprint("x") is None
        assert storage.read_text("x") is None
        assert storage.list() == []
        with pytest.raises(CheckpointError, match=r"could not open .*run/x: ") as caught:
            storage.open("x")
        assert isinstance(caught.value.__cause__, FileNotFoundError)
        storage.write("another", content(b""))  # the second time there is the folder
        storage.remove("another")


def test_an_empty_file_is_there(storage: Storage) -> None:
    storage.write_text("x", "")
    assert storage.exists("x")
    assert storage.size("x") == 0
    assert storage.read_text("x") == ""


def test_a_folder_is_no_file(storage: Storage) -> None:
    storage.write("below/x", content(b"1"))
    if isinstance(storage, LocalStorage):
        with pytest.raises(CheckpointError, match=r"run/below: it is a folder, .*, not a file"):
            storage.exists("below")
    else:  # in a store, a folder is a part of names
        assert storage.size("below") is None
    assert storage.list() == []
    assert read(storage, "below/x") == b"1"


@pytest.mark.parametrize("text", ["a\nb\r\nc", "µ 漢 🙂", '"\ud800"'])
def test_text_comes_back_as_it_was(storage: Storage, text: str) -> None:
    storage.write_text("x.json", text)
    assert storage.read_text("x.json") == text.replace("\ud800", "\\ud800")


def test_text_cut_within_a_character_can_be_read(storage: Storage) -> None:
    storage.write("x", content("one\nµ".encode()[:-1]))
    assert storage.read_text("x") == "one\n\ufffd"


def test_the_standard_writers_work_on_the_file_object(storage: Storage) -> None:
    def save(file: BinaryIO) -> None:
        assert not file.seekable()
        assert file.writable()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", b"1")

    storage.write("x.zip", save)
    with storage.open("x.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("a") == b"1"
        assert archive.testzip() is None


def test_closing_the_file_object_is_fine_and_keeping_it_is_harmless(storage: Storage) -> None:
    kept = []

    def save(file: BinaryIO) -> None:
        kept.append(file)
        file.write(b"1")

    def close(file: BinaryIO) -> None:
        with file:
            file.write(b"22")

    storage.write("x", save)
    storage.write("y", close)
    with pytest.raises(ValueError, match="detached"):
        kept[0].write(b"later")
    assert read(storage, "x") == b"1"
    assert read(storage, "y") == b"22"


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 600_000), torch.nn.BatchNorm1d(4))
    return {"model": model.state_dict(), "epoch": 3, "rates": [0.1, float("nan")]}


def test_equal_states_give_equal_bytes_under_any_name(
    storage: Storage, state: dict[str, Any]
) -> None:
    for name in ("best_1.pt", "b.pt"):
        storage.write(name, lambda f: torch.save(state, f))
    assert read(storage, "best_1.pt") == read(storage, "b.pt")
    assert storage.fingerprint("best_1.pt") == storage.fingerprint("b.pt")


@pytest.mark.parametrize("where", [0, 1_000_000, -1])
def test_a_fingerprint_tells_checkpoints_of_one_size_apart_wherever_they_differ(
    storage: Storage, where: int
) -> None:
    """Also if all that differs lies far before the bytes that are read for it."""
    prints = set()
    for value in (0.0, 1.0):
        weights = torch.zeros(1_200_000)
        weights[where] = value
        storage.write("x.pt", lambda f, w=weights: torch.save({"weights": w}, f))
        prints.add(storage.fingerprint("x.pt"))
    assert len(prints) == 2
    assert len({size for size, _ in prints}) == 1


def test_a_checkpoint_is_a_sound_archive_that_weights_only_reads(
    storage: Storage, state: dict[str, Any]
) -> None:
    storage.write("x.pt", lambda file: torch.save(state, file))
    with storage.open("x.pt") as file:
        loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["model"]["0.weight"], state["model"]["0.weight"])
    with storage.open("x.pt") as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None


def test_the_old_format_of_torch_can_be_written(storage: Storage) -> None:
    storage.write(
        "x.pt",
        lambda file: torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False),
    )
    with storage.open("x.pt") as file:
        assert torch.load(file, weights_only=True)["a"].tolist() == [1.0, 1.0]


def test_no_random_generator_of_the_training_moves(storage: Storage) -> None:
    random.seed(0)
    torch.manual_seed(0)
    before = random.getstate(), torch.get_rng_state()
    storage.check_writable()
    storage.write("x", content(b"1"))
    storage.append_line("y", "1")
    storage.link_or_copy("x", "z", "link")
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@posix
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_get_the_permissions_of_the_umask(local: LocalStorage, umask: int) -> None:
    before = os.umask(umask)
    try:
        local.write("x", content(b"1"))
        local.append_line("y", "1")
    finally:
        os.umask(before)
    for name in ("x", "y"):
        assert stat.S_IMODE(local.path(name).stat().st_mode) == 0o666 & ~umask


@posix
def test_a_write_through_a_link_does_not_touch_the_other_file(
    local: LocalStorage, tmp_path: pathlib.Path
) -> None:
    local.write("x", content(b"new"))
    (tmp_path / "theirs").write_bytes(b"theirs")
    os.link(tmp_path / "theirs", local.path("hard"))
    os.symlink(tmp_path / "theirs", local.path("soft"))
    for name in ("hard", "soft"):
        local.write(name, content(b"ours"))
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not local.path("soft").is_symlink()


# Lines


def test_lines_are_added_at_the_end(storage: Storage) -> None:
    for line in ("one", "", "µ"):
        storage.append_line("history.jsonl", line)
    assert storage.read_text("history.jsonl") == "one\n\nµ\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one\ntwo", "one\nnew\n"),
        ("torn", "new\n"),
        ("one\n", "one\nnew\n"),
        ("one\n\n", "one\n\nnew\n"),
        ("", "new\n"),
    ],
)
def test_a_torn_last_line_is_cut_off(storage: Storage, before: str, after: str) -> None:
    storage.write_text("x", before)
    storage.append_line("x", "new")
    assert storage.read_text("x") == after


def test_a_line_of_several_lines_is_refused(storage: Storage) -> None:
    with pytest.raises(ValueError, match="must not hold a line break"):
        storage.append_line("x", "a\nb")
    assert not storage.exists("x")


def test_a_line_is_one_write(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write
    monkeypatch.setattr(
        os, "write", lambda handle, data: written.append(data) or write(handle, data)
    )
    local.append_line("x", "a" * 100_000)
    assert written == [b"a" * 100_000 + b"\n"]


# Removing, moving, second names


def test_removing_is_fine_twice(storage: Storage) -> None:
    storage.remove("x")
    storage.write("x", content(b"1"))
    storage.remove("x")
    storage.remove("x")
    assert storage.list() == []


def test_names_with_characters_of_patterns_are_just_names(storage: Storage) -> None:
    names = ["acc[0].pt", "a*.pt", "ab.pt", "epoch=3.pt", "a b.pt", "µ.pt"]
    for name in names:
        storage.write(name, content(name.encode()))
        storage.link_or_copy(name, "alias", "copy")
    assert storage.list() == sorted([*names, "alias"])
    assert all(read(storage, name) == name.encode() for name in names)
    storage.remove("a*.pt")
    storage.move("acc[0].pt", "[1].pt")
    assert storage.list() == ["[1].pt", "a b.pt", "ab.pt", "alias", "epoch=3.pt", "µ.pt"]


def test_moving_creates_the_folder_and_leaves_nothing_behind(storage: Storage) -> None:
    storage.write("x.pt", content(b"1"))
    storage.move("x.pt", "earlier/ab12/x.pt")
    assert storage.list() == []
    assert read(storage, "earlier/ab12/x.pt") == b"1"


def test_moving_never_overwrites(storage: Storage) -> None:
    for data in (b"1", b"2", b"3"):
        storage.write("x.pt", content(data))
        storage.move("x.pt", "earlier/x.pt")
    names = ["earlier/x.pt", "earlier/x-2.pt", "earlier/x-3.pt"]
    assert [read(storage, name) for name in names] == [b"1", b"2", b"3"]


def test_moving_a_missing_file_is_fine(storage: Storage) -> None:
    storage.move("x.pt", "earlier/x.pt")
    assert storage.list() == []
    assert not storage.exists("earlier/x.pt")


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_second_name_has_the_content_and_replaces_the_old(storage: Storage, mode: str) -> None:
    for data in (b"first", b"second"):
        storage.write("x.pt", content(data))
        for _ in range(2):  # the second time nothing is left to do
            storage.link_or_copy("x.pt", "best.pt", mode)
            assert read(storage, "best.pt") == data
            assert storage.clean() == []
    storage.remove("x.pt")
    assert read(storage, "best.pt") == b"second"


@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_second_name_for_a_missing_file_is_an_error_and_keeps_the_old(
    storage: Storage, mode: str
) -> None:
    storage.write("best.pt", content(b"old"))
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        storage.link_or_copy("x.pt", "best.pt", mode)
    assert read(storage, "best.pt") == b"old"
    assert storage.list() == ["best.pt"]
    assert storage.clean() == []


def test_an_unknown_kind_of_second_name_is_refused(storage: Storage) -> None:
    storage.write("x.pt", content(b"1"))
    with pytest.raises(ValueError, match="mode must be 'link' or 'copy', got 'symlink'"):
        storage.link_or_copy("x.pt", "best.pt", "symlink")


@posix
def test_a_link_shares_the_disk_space_and_a_copy_does_not(local: LocalStorage) -> None:
    local.write("x.pt", content(b"1"))
    local.link_or_copy("x.pt", "linked.pt", "link")
    local.link_or_copy("x.pt", "copied.pt", "copy")
    assert local.path("linked.pt").samefile(local.path("x.pt"))
    assert not local.path("copied.pt").samefile(local.path("x.pt"))
    local.link_or_copy("x.pt", "linked.pt", "copy")
    assert not local.path("linked.pt").samefile(local.path("x.pt"))


def test_without_links_there_is_a_copy(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    local.write("x.pt", content(b"1"))
    monkeypatch.setattr(os, "link", refuse)
    local.link_or_copy("x.pt", "below/best.pt", "link")
    assert read(local, "below/best.pt") == b"1"


# Listing and cleaning


def test_leftovers_of_killed_writes_are_not_listed_and_their_owner_cleans_them(
    storage: Storage,
) -> None:
    ours = [".best.pt~val.0123abcd.tmp", ".last~a.pt~val.ffffffff.tmp"]
    others = [".best.pt.0123abcd.tmp", ".best.pt~.0123abcd.tmp", ".x~val~test.0123abcd.tmp"]
    others += [".x~val.0123abcd.tmp~a.0123abcd.tmp"]
    theirs = [".best.pt.0123abcd", "best.pt.0123abcd.tmp", ".best.pt~val.0123ABCD.tmp", "..tmp"]
    theirs += [".0123abcd.tmp", ".best.pt~val.123.tmp", ".best.pt~val.0123abcd.tmp~"]
    for name in [*ours, *others, *theirs]:
        storage.write(name, content(b"1"))
    assert storage.list() == sorted(theirs)
    storage.owner = "val"
    assert storage.clean() == ours
    assert storage.clean() == []
    assert storage.list() == sorted(theirs)
    assert all(map(storage.exists, others))


def test_what_is_being_written_belongs_to_its_owner_to_the_last_step(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another hook that starts between the last byte and the rename must not remove it."""
    other = LocalStorage(local.location)
    local.owner, other.owner = "val", "test"
    replace = os.replace

    def start_another_hook(*paths: Any) -> None:
        assert other.clean() == []
        replace(*paths)

    monkeypatch.setattr(os, "replace", start_another_hook)
    local.write("x", content(b"new"))
    assert read(local, "x") == b"new"


def test_a_leftover_that_cannot_be_removed_is_a_warning(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    local.write(".old~.0123abcd.tmp", content(b"1"))

    def refuse(path: pathlib.Path, missing_ok: bool = False) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", refuse)
        local.clean()
    assert "Device or resource busy" in caplog.text
    assert local.clean() == [".old~.0123abcd.tmp"]
    assert local.clean() == []


def test_a_leftover_that_vanishes_meanwhile_is_fine(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_names", lambda: [".gone~.0123abcd.tmp"])
    local.clean()


def test_a_listing_may_hold_the_folder_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FsspecStorage("memory://a/b")
    entries = [
        {"name": "/a/b/", "type": "file"},
        {"name": "/a/b/x", "type": "file"},
        {"name": "/a/b/y", "type": "directory"},
    ]
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda *_, **__: entries)
    assert storage.list() == ["x"]


# Trying


def test_trying_a_folder_leaves_no_trace(storage: Storage, tmp_path: pathlib.Path) -> None:
    storage.check_writable()
    assert storage.list() == []
    assert storage._missing_folders()
    assert not (tmp_path / "new").exists()


def test_trying_a_folder_that_is_there_keeps_it(storage: Storage) -> None:
    storage.write("x", content(b"1"))
    storage.check_writable()
    assert storage.list() == ["x"]
    assert storage._missing_folders() == []
    storage.remove("x")
    storage.check_writable()
    if not isinstance(storage, FsspecStorage):
        assert pathlib.Path(storage.location).is_dir()


def test_trying_does_not_remove_a_folder_that_somebody_uses_by_now(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = LocalStorage.write_text

    def write_another_too(self: LocalStorage, name: str, text: str) -> None:
        write_text(self, name, text)
        write_text(self, "another", text)

    monkeypatch.setattr(LocalStorage, "write_text", write_another_too)
    local.check_writable()
    assert local.list() == ["another"]


@pytest.mark.parametrize("below", ["", "/run", "/a/b"])
def test_a_file_in_place_of_the_folder_is_told_in_words(tmp_path: pathlib.Path, below: str) -> None:
    (tmp_path / "taken").write_bytes(b"1")
    storage = LocalStorage(f"{tmp_path}/taken{below}")
    with pytest.raises(
        CheckpointError, match=r"^cannot write to /.*taken.*: .* \[E.*\]; choose another out_dir$"
    ) as caught:
        storage.check_writable()
    assert caught.value.errno is not None
    assert (tmp_path / "taken").read_bytes() == b"1"


@posix
@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_created_is_told_in_words() -> None:
    with pytest.raises(CheckpointError, match="cannot write to /proc/new"):
        LocalStorage("/proc/new").check_writable()


def test_the_local_file_system_of_fsspec_renames() -> None:
    """The stores above cover both ways to put a file in place."""
    from fsspec.spec import AbstractFileSystem

    assert LocalFileSystem.mv is not AbstractFileSystem.mv
    assert MemoryFileSystem.mv is AbstractFileSystem.mv


def test_a_short_read_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"memory://{uuid.uuid4().hex}")
    storage.write("x", content(b"old"))
    info = MemoryFileSystem.info

    def lie(self: MemoryFileSystem, path: str, **kwargs: Any) -> dict[str, Any]:
        found = info(self, path, **kwargs)
        return {**found, "size": found["size"] - 1} if path.endswith(".tmp") else found

    monkeypatch.setattr(MemoryFileSystem, "info", lie)
    with pytest.raises(CheckpointError, match="wrote 3 bytes, but the store has 2"):
        storage.write("x", content(b"new"))
    with pytest.raises(CheckpointError, match="wrote 3 bytes, but the store has 2"):
        storage.link_or_copy("x", "y", "copy")
    assert read(storage, "x") == b"old"
    assert storage.list() == ["x"]
    assert storage.clean() == []
