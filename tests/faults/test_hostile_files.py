"""Whatever stands in a run's folder, each reader answers, or says in words which file is wrong.

Files are mutated at random: values inside JSON and checkpoints, bytes, and what is no file at all.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.private import main, read_old_run
from helpers.scripted import counter, scripted
from ignite_evalhook import History, find_best, load_best
from ignite_evalhook.exceptions import EvalHookError

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and devices")
BEST = "best_model_2_acc=0.75.pt"
FILES = ["best.json", "history.jsonl", "last.pt", BEST]
SAID = [{"acc": 0.5, "loss": 2.0}, {"acc": 0.75, "loss": 1.0}, {"acc": 0.25, "loss": 3.0}]
DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
NEITHER = "load the trainer's state from the same checkpoint"  # two states that do not fit
MINE = {"train.py": b"mine", "model.pt": b"mine"}


def go(folder: Path, epochs: int) -> None:
    model = counter()
    said = [*SAID, {"acc": 0.9, "loss": 0.5}][-epochs:] if epochs == 1 else SAID
    hook, trainer = scripted(said, folder, model=model, save_best=["acc", "loss"], n_saved=2)
    hook.early_stopping(5)
    hook.attach(trainer)
    scripted(said, model=model, name="other")[0].attach(trainer)
    hook.keep_last({"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    trainer.run([0], max_epochs=3 if epochs == 3 else 4)


def resume(folder: Path) -> None:
    go(folder, 1)


def show(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main([str(folder)]) in (0, 1)


def words_of(reader: Callable[[Any], object], source: Any, *more: type[BaseException]) -> str:
    """Return what a reader refuses a source with; nothing if it takes it."""
    try:
        reader(source)
    except (EvalHookError, ValueError, *more) as error:
        return f"{type(error).__name__}: {error}"
    return ""


READERS: dict[str, Callable[[Path], object]] = {
    "find_best": find_best,
    "find_best by metric": lambda folder: find_best(folder, "loss"),
    "load_best": lambda folder: load_best(folder, {"model": counter()}),
    "command line": show,
    "history": lambda folder: History.read(folder / "history.jsonl").table(),
    "resume": resume,
}


class Content(dict[str, bytes]):
    """Name to bytes, of which a falsifying example shows the names."""

    def __repr__(self) -> str:
        return f"<{list(self)}>"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    go(folder, 3)
    return Content({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})


@pytest.fixture
def folder(good: dict[str, bytes], tmp_path: Path) -> Path:
    return lay_out(good, tmp_path)


def lay_out(good: dict[str, bytes], top: Path) -> Path:
    (top / "x.pt").write_bytes(b"outside")
    folder = top / "run"
    folder.mkdir()
    for name, content in {**good, **MINE}.items():
        (folder / name).write_bytes(content)
    return folder


def read_all(folder: Path, changed: str) -> None:
    """Let every reader read, and check what it says and what it leaves."""
    for reader, read in READERS.items():
        said = words_of(read, folder)
        assert not said or str(folder) in said or NEITHER in said, reader
        assert (folder.parent / "x.pt").read_bytes() == b"outside"
        assert {name: (folder / name).read_bytes() for name in MINE} == MINE


def with_mutation(good: dict[str, bytes], changed: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as top:
        folder = lay_out(good, Path(top))
        (folder / changed).write_bytes(content)
        read_all(folder, changed)


fuzzed = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NASTY = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    st.sampled_from(
        [10**400, -(10**400), float("nan"), float("inf"), -0.0, 2**63, "", "\0", "\ud800"]
    ),
    st.sampled_from(
        ["../x.pt", "/etc/passwd", "..", ".", "a/../../x.pt", "x" * 300, "model.pt", "\x1b[2J"]
    ),
    st.sampled_from([[], {}, [[]], {"": {}}, [{}], {"a": [1]}, [None] * 3, {"x": "../x.pt"}]),
)


@st.composite
def edits(draw: st.DrawFn) -> Callable[[Any], Any]:
    """Return a function that changes one place of nested values: another value, or none."""
    turns = draw(st.lists(st.integers(0, 50), min_size=1, max_size=7))
    nasty, removes = draw(NASTY), draw(st.integers(0, 4)) == 0

    def edit(value: Any) -> Any:
        whole = [copy.deepcopy(value)]
        holder, key = whole, 0
        for turn in turns:
            inner = holder[key]
            if not isinstance(inner, (dict, list)) or not inner:
                break
            holder, key = (
                inner,
                list(inner)[turn % len(inner)] if isinstance(inner, dict) else turn % len(inner),
            )
        if removes and holder is not whole:
            del holder[key]
        else:
            holder[key] = nasty
        return whole[0]

    return edit


@fuzzed
@given(edit=edits())
def test_any_value_in_best_json(good: dict[str, bytes], edit: Any) -> None:
    text = json.dumps(edit(json.loads(good["best.json"])))
    with_mutation(good, "best.json", text.encode())


@fuzzed
@given(edit=edits(), which=st.integers(0, 2))
def test_any_value_in_a_line_of_the_history(good: dict[str, bytes], edit: Any, which: int) -> None:
    lines = good["history.jsonl"].decode().splitlines()
    lines[which] = json.dumps(edit(json.loads(lines[which])))
    with_mutation(good, "history.jsonl", ("\n".join(lines) + "\n").encode())


@fuzzed
@given(edit=edits(), file=st.sampled_from(["last.pt", BEST]))
def test_any_value_in_a_checkpoint(good: dict[str, bytes], edit: Any, file: str) -> None:
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(good[file])
        stream.flush()
        state = torch.load(stream.name, weights_only=True)
    with tempfile.TemporaryFile() as stream:
        torch.save(edit(state), stream)
        stream.seek(0)
        with_mutation(good, file, stream.read())


@fuzzed
@given(
    file=st.sampled_from(FILES),
    at=st.floats(0, 1),
    how=st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
    bit=st.integers(0, 7),
)
def test_any_bytes_in_a_file(
    good: dict[str, bytes], file: str, at: float, how: str, bit: int
) -> None:
    data = bytearray(good[file])
    place = min(int(at * len(data)), len(data) - 1)
    if how == "flip":
        data[place] ^= 1 << bit
    elif how == "cut":
        del data[place:]
    elif how == "insert":
        data[place:place] = bytes([0, 255, 10])
    elif how == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    else:
        data += data[place:]
    with_mutation(good, file, bytes(data))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\n", DEEP.encode(), b"[" * 100_000, b"\xff"]
)
def test_a_file_of_something_else(good: dict[str, bytes], file: str, content: bytes) -> None:
    with_mutation(good, file, content)


@posix
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "full folder"])
def test_what_is_no_file(folder: Path, file: str, kind: str) -> None:
    path = folder / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
        if kind == "full folder":
            (path / "something").write_bytes(b"mine")
    for reader, read in READERS.items():
        said = words_of(read, folder, *([OSError] if reader == "history" else []))
        assert not said or str(folder) in said, reader
    assert os.path.lexists(path)
    if kind == "full folder":
        assert (path / "something").read_bytes() == b"mine"


@fuzzed
@given(edit=edits())
@example(edit=lambda state: {**state, "run_id": "../../up"})
def test_any_value_in_a_state(good: dict[str, bytes], edit: Any) -> None:
    """A state that was not read by us: the hook refuses it in words, or takes it."""
    hook, trainer = scripted(SAID, model=counter(), save_best=["acc", "loss"])
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    state = edit(hook.state_dict())
    again, _ = scripted(SAID, save_best=["acc", "loss"])
    if not isinstance(state, dict):
        return
    try:
        again.load_state_dict(state)
    except EvalHookError:
        assert len(again.history) == 0
        assert again.best is None


OLD = {
    "meta": {
        "epoch": 3,
        "iter": 12,
        "hook_msgs": {"best_score": 0.5, "best_ckpt": "work/best_acc_epoch_2.pth"},
    },
    "state_dict": {"weight": [[1.0]]},
}
NEW = {
    "meta": {"epoch": 3, "iter": 12},
    "message_hub": {
        "runtime_info": {"best_score_acc": 0.5, "best_ckpt_acc": "work/best_acc_epoch_2.pth"}
    },
    "state_dict": {"weight": [[1.0]]},
}


@settings(fuzzed, max_examples=60)
@given(edit=edits(), old=st.sampled_from([OLD, NEW]), on_disk=st.booleans())
@example(
    edit=lambda value: {"meta": {"epoch": 2**52, "iter": 0, "hook_msgs": {}}},
    old=OLD,
    on_disk=False,
)
def test_any_value_in_an_old_checkpoint(edit: Any, old: Any, on_disk: bool) -> None:
    content = edit(old)
    with tempfile.TemporaryDirectory() as top:
        source = content if isinstance(content, dict) and not on_disk else Path(top) / "latest.pth"
        if isinstance(source, Path):
            torch.save(content, source)
        said = words_of(read_old_run, source)
        assert not said or not isinstance(source, Path) or "latest.pth" in said


@posix
@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_an_old_checkpoint_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "latest.pth"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(EvalHookError, match=r"latest\.pth"):
        read_old_run(path)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL"):
        yield
    shutil.rmtree("earlier", ignore_errors=True)
