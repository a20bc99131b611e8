"""Find and load the best of a folder: with a hook, and long after it, without one."""

from __future__ import annotations

import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from helpers.scripted import best_files, best_json, counter, run, scripted, step_in
from ignite_evalhook import (
    Best,
    BestCheckpoint,
    CheckpointError,
    EvalEvents,
    StateError,
    find_best,
    load_best,
)


def weight(model: nn.Module) -> float:
    return float(next(model.parameters()).detach())


# --------------------------------------------------------------------------------- without a hook


@pytest.mark.parametrize("as_path", [Path, str, lambda path: f"file://{path.as_posix()}"])
def test_the_best_of_a_folder_is_found_and_loaded(
    as_path: Callable[[Path], Any], tmp_path: Path
) -> None:
    run([0.5, 0.7, 0.6], tmp_path)
    found = find_best(as_path(tmp_path))
    assert found == Best("acc", 0.7, 2, 2, tmp_path / "best_model_2_acc=0.7.pt")
    model = counter()
    assert load_best(as_path(tmp_path), {"model": model}) == found
    assert weight(model) == 2


def test_the_best_behind_a_url_is_found_and_loaded() -> None:
    url = f"memory://{uuid.uuid4().hex}/run"
    run([0.5, 0.7, 0.6], url)
    model = counter()
    found = load_best(url, {"model": model})
    assert found == find_best(url) == Best("acc", 0.7, 2, 2, f"{url}/best_model_2_acc=0.7.pt")
    assert weight(model) == 2
    fsspec.filesystem("memory").rm(url, recursive=True)


def test_a_moved_folder_is_as_good_as_before(tmp_path: Path) -> None:
    run([0.5, 0.7], tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert find_best(tmp_path / "new").path == tmp_path / "new" / "best_model_2_acc=0.7.pt"
    load_best(tmp_path / "new", {"model": counter()})


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Give a folder with the files of two hooks, of which one follows two metrics."""
    model = counter()
    said = [{"acc": 0.9, "loss": 0.9}, {"acc": 0.1, "loss": 0.1}]
    one, trainer = scripted(said, tmp_path, model=model, save_best=["acc", "loss"])
    two, _ = scripted([0.1, 0.2], tmp_path, model=model, name="test set")
    one.attach(trainer)
    two.attach(trainer)
    trainer.run([0], max_epochs=2)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "metric", "step"),
    [
        ({"name": "val"}, "acc", 1),
        ({"name": "val", "metric": "acc"}, "acc", 1),
        ({"name": "val", "metric": "loss"}, "loss", 2),
        ({"metric": "loss"}, "loss", 2),
        ({"name": "test set"}, "acc", 2),
    ],
)
def test_a_metric_and_a_hooks_name_say_which_best_is_meant(
    arguments: dict[str, str], metric: str, step: int, shared: Path
) -> None:
    best = find_best(shared, **arguments)  # type: ignore[arg-type]
    assert (best.metric, best.epoch) == (metric, step)
    model = counter()
    assert load_best(shared, {"model": model}, **arguments) == best  # type: ignore[arg-type]
    assert weight(model) == step


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, r"holds the best of several hooks; pass name=\['val', 'test set'\]"),
        ({"metric": "acc"}, ValueError, r"pass name=\['val', 'test set'\]"),
        ({"metric": "mIoU"}, ValueError, r"no best of 'mIoU' in .*; there are \['acc', 'loss', "),
        ({"name": "val", "metric": "mIoU"}, ValueError, "no best of 'mIoU'"),
        ({"name": "ema"}, CheckpointError, r"has no best_ema\.json: no best was saved there"),
    ],
)
def test_what_is_not_meant_clearly_or_is_not_there_is_an_error_with_words(
    arguments: dict[str, str], error: type[Exception], words: str, shared: Path
) -> None:
    with pytest.raises(error, match=words):
        find_best(shared, **arguments)  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        load_best(shared, {"model": counter()}, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["empty", "nowhere", "file"])
def test_a_folder_without_a_best_is_an_error_with_words(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError):
        find_best(tmp_path / folder)


def test_a_metric_that_never_had_a_best_is_an_error_with_words(tmp_path: Path) -> None:
    said = [{"acc": 0.5, "loss": float("nan")}]
    hook = run(said, tmp_path, save_best=["acc", "loss"])
    with pytest.raises(CheckpointError, match=r"no best of 'loss' has been saved in .* yet"):
        find_best(tmp_path, "loss")
    with pytest.raises(CheckpointError, match=r"no best of 'loss' in .* yet"):
        hook.load_best("loss")


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    elif how == "another":
        torch.save(counter().state_dict(), path)


@pytest.mark.parametrize("how", ["torn", "empty", "flipped", "another"])
def test_a_damaged_file_is_never_loaded(how: str, tmp_path: Path) -> None:
    hook = run([0.5, 0.7], tmp_path)
    damage(tmp_path / "best_model_2_acc=0.7.pt", how)
    model = counter()
    for load in (lambda: load_best(tmp_path, {"model": model}), lambda: hook.load_best()):
        with pytest.raises(CheckpointError, match=r"acc=0\.7\.pt is damaged, or not the one that"):
            load()
    assert weight(model) == 0


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    hook = run([0.5, 0.7], tmp_path)
    (tmp_path / "best_model_2_acc=0.7.pt").unlink()
    words = r"the best checkpoint .*best_model_2_acc=0\.7\.pt is missing"
    for load in (
        lambda: find_best(tmp_path),
        lambda: load_best(tmp_path, {"model": counter()}),
        lambda: hook.load_best(),
    ):
        with pytest.raises(CheckpointError, match=words):
            load()


@pytest.mark.parametrize("text", ["", "{", '{"format": "ignite-evalhook best 9"}'])
def test_a_damaged_account_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    run([0.5], tmp_path)
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json: not a best\.json of ignite-evalhook"):
        find_best(tmp_path)


def test_an_account_that_points_out_of_its_folder_is_not_followed(tmp_path: Path) -> None:
    run([0.5], tmp_path / "run")
    said = best_json(tmp_path / "run")
    said["kept"]["acc"]["files"][0]["file"] = "../outside.pt"
    (tmp_path / "run" / "best.json").write_text(json.dumps(said))
    torch.save({}, tmp_path / "outside.pt")
    with pytest.raises(CheckpointError, match=r"best\.json: .*must stay within the folder"):
        load_best(tmp_path / "run", {"model": counter()})


def test_somebody_elses_json_is_passed_over(tmp_path: Path) -> None:
    hook = run([0.5], tmp_path)
    (tmp_path / "best_parameters.json").write_text('{"lr": 0.1}')
    (tmp_path / "best_of.json").write_text("[1, 2]")
    assert find_best(tmp_path) == hook.best


# ---------------------------------------------------------------------------------------- to_load


def trained(folder: Path) -> tuple[nn.Module, torch.optim.Optimizer, Engine]:
    model = counter()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def train(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    trainer = Engine(train)
    to_save = {"model": model, "optimizer": optimizer, "trainer": trainer}
    hook, _ = scripted([0.5, 0.4], folder, model=model, trainer=trainer, to_save=to_save)
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    return model, optimizer, trainer


def test_any_of_the_saved_objects_can_be_loaded_into(tmp_path: Path) -> None:
    trained(tmp_path)
    model = counter()
    optimizer = torch.optim.SGD(model.parameters(), lr=9.0, momentum=0.9)
    trainer = Engine(lambda engine, batch: None)
    load_best(tmp_path, {"model": model})
    assert weight(model) == pytest.approx(-0.1)
    load_best(tmp_path, {"trainer": trainer, "optimizer": optimizer})
    assert trainer.state.iteration == 1
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("names", [["net"], ["model", "scheduler"], ["net", "optimizer"]])
def test_a_name_that_is_not_in_the_file_is_an_error_before_anything_is_loaded(
    names: list[str], tmp_path: Path
) -> None:
    trained(tmp_path)
    objects = {name: counter() for name in names}
    with pytest.raises(ValueError, match=r"has no \[.*\]; it has \['model', 'optimizer', 'tra"):
        load_best(tmp_path, objects)
    assert all(weight(model) == 0 for model in objects.values())


def test_a_file_of_a_single_object_loads_under_any_name(tmp_path: Path) -> None:
    run([0.5], tmp_path)
    model = counter()
    load_best(tmp_path, {"whatever": model})
    assert weight(model) == 1


def test_a_wrapped_model_is_loaded_through_its_wrapper(tmp_path: Path) -> None:
    run([0.5], tmp_path)
    model = counter()
    load_best(tmp_path, {"model": nn.DataParallel(model)})
    assert weight(model) == 1


def test_an_object_that_cannot_load_is_refused(tmp_path: Path) -> None:
    run([0.5], tmp_path)
    with pytest.raises(TypeError, match="load_state_dict"):
        load_best(tmp_path, {"model": object()})


# ---------------------------------------------------------------------------------- with the hook


def test_a_hook_loads_its_best_back_into_its_own_model(tmp_path: Path) -> None:
    model = counter()
    hook = run([0.5, 0.7, 0.6], tmp_path, model=model)
    assert weight(model) == 3
    assert hook.load_best() == hook.best
    assert weight(model) == 2


def test_a_hook_loads_into_other_objects_and_of_any_followed_metric(tmp_path: Path) -> None:
    said = [{"acc": 0.9, "loss": 0.9}, {"acc": 0.1, "loss": 0.1}]
    mine = counter()
    hook = run(said, tmp_path, model=mine, save_best=["acc", "loss"])
    other = counter()
    assert hook.load_best("loss", to_load={"model": other}) == find_best(tmp_path, "loss")
    assert (weight(mine), weight(other)) == (2, 2)
    hook.load_best("acc", to_load={"model": other})
    assert weight(other) == 1
    with pytest.raises(ValueError, match=r"'mIoU' is not followed; save_best names \['acc', 'lo"):
        hook.load_best("mIoU")


def test_a_hook_loads_only_the_modules_unless_told_otherwise(tmp_path: Path) -> None:
    model = counter()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    to_save = {"model": model, "optimizer": optimizer}
    hook = run([0.5, 0.4], tmp_path, model=model, to_save=to_save)
    optimizer.param_groups[0]["lr"] = 0.25
    hook.load_best()
    assert (weight(model), optimizer.param_groups[0]["lr"]) == (1, 0.25)
    hook.load_best(to_load=to_save)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_hook_that_never_ran_loads_what_its_folder_holds(tmp_path: Path) -> None:
    run([0.5, 0.7], tmp_path)
    model = counter()
    hook, _ = scripted([], tmp_path, model=model)
    assert hook.load_best() == find_best(tmp_path)
    assert weight(model) == 2
    assert hook.best is None


@pytest.mark.parametrize(
    ("out_dir", "options", "error", "words"),
    [
        (False, {}, CheckpointError, "this hook writes no best files that could be loaded"),
        (False, {"save_best": None}, ValueError, "no metric is followed"),
        (False, {"save_best": "auto"}, ValueError, "save_best is not resolved yet"),
        ("here", {}, CheckpointError, "no best of 'acc' in .*here yet"),
    ],
)
def test_a_hook_without_a_best_says_why(
    out_dir: Any,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
    tmp_path: Path,
) -> None:
    hook, _ = scripted([], tmp_path / out_dir if out_dir else False, **options)
    with pytest.raises(error, match=words):
        hook.load_best()


def test_a_hook_with_a_checkpoint_of_the_users_loads_from_there(tmp_path: Path) -> None:
    model = counter()
    checkpoint = BestCheckpoint({"model": model}, tmp_path, alias="copy", n_saved=2)
    hook = run([0.5, 0.7, 0.6], model=model, checkpoint=checkpoint)
    assert hook.load_best() == hook.best
    assert weight(model) == 2
    assert step_in(tmp_path / "best.pt") == 2
    assert len(best_files(tmp_path)) == 3


def test_loading_the_best_in_the_middle_of_a_run_leaves_history_and_best_alone(
    tmp_path: Path,
) -> None:
    model = counter()
    hook, trainer = scripted([0.5, 0.4, 0.6], tmp_path, model=model)
    hook.attach(trainer)
    weights: list[float] = []

    def reload(record: Any) -> None:
        if not record.is_best:
            hook.load_best()
        weights.append(weight(model))

    hook.on(EvalEvents.EVAL_COMPLETED, reload)
    trainer.run([0], max_epochs=3)
    assert weights == [1, 1, 2]
    assert [record.is_best for record in hook.history] == [True, False, True]
    assert find_best(tmp_path) == hook.best


# ----------------------------------------------------------------------------------------- damage


def records(path: Path) -> list[tuple[str, int, int]]:
    """Return name, first byte and size of each record of a checkpoint that is not empty."""
    data, found = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            at = record.header_offset
            lengths = [int.from_bytes(data[at + n : at + n + 2], "little") for n in (26, 28)]
            if record.file_size:
                found.append((record.filename, at + 30 + sum(lengths), record.file_size))
    return found


@pytest.fixture
def crc32_off() -> Iterator[None]:
    set_crc32 = getattr(torch.serialization, "set_crc32_options", None)
    if set_crc32 is None:
        pytest.skip("torch always writes CRC-32")
    set_crc32(False)
    yield
    set_crc32(True)


def large() -> nn.Module:
    return nn.Linear(1000, 1000)  # more than what a fingerprint reads


@pytest.mark.parametrize("off", [False, True])
def test_a_flipped_bit_anywhere_in_a_record_of_any_checkpoint_is_noticed(
    off: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if off:
        request.getfixturevalue("crc32_off")
    model = large()
    hook, trainer = scripted([0.5], tmp_path, model=model)
    hook.attach(trainer)
    hook.keep_last({"model": model})
    trainer.run([0], max_epochs=1)
    if off:
        assert not torch.serialization.get_crc32_options()  # the user's choice stays
    best, last = tmp_path / "best_model_1_acc=0.5.pt", tmp_path / "last.pt"
    for path, message in ((best, "acc=0.5.pt"), (last, "last.pt")):
        whole = path.read_bytes()
        for name, start, size in records(path):
            for at in {start, start + size // 2, start + size - 1}:
                damaged = bytearray(whole)
                damaged[at] ^= 0x40
                path.write_bytes(damaged)
                again, trainer = scripted([0.5], tmp_path, model=large())
                again.attach(trainer)
                to_load = {"model": large()}
                load = partial(load_best, tmp_path) if path is best else again.keep_last
                with pytest.raises(CheckpointError, match=f"{message}.*damaged") as caught:
                    load(to_load)
                assert name.rpartition("/")[2] in str(caught.value) or path is best
        path.write_bytes(whole)


def test_a_checkpoint_without_sums_is_no_damaged_one(tmp_path: Path, crc32_off: None) -> None:
    """A file of a program that has switched them off: nothing can be told, and nothing is."""
    run([0.5], tmp_path)
    torch.save(counter().state_dict(), tmp_path / "best_model_1_acc=0.5.pt")
    account = json.loads((tmp_path / "best.json").read_text())
    account["kept"]["acc"]["files"][0].update(size=None, crc32=None)
    (tmp_path / "best.json").write_text(json.dumps(account))
    assert load_best(tmp_path, {"model": counter()}).score == 0.5


def test_another_checkpoint_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    run([0.5, 0.7], tmp_path, model=large())
    path = tmp_path / "best_model_2_acc=0.7.pt"
    size = path.stat().st_size
    with path.open("wb") as file:
        torch.save(large().state_dict(), file)
    assert path.stat().st_size == size
    with pytest.raises(CheckpointError, match=r"acc=0\.7\.pt is damaged, or not the one that"):
        load_best(tmp_path, {"model": large()})


def test_a_state_that_does_not_fit_names_the_file_and_the_object(tmp_path: Path) -> None:
    run([0.5], tmp_path)
    with pytest.raises(StateError, match=r"acc=0\.5\.pt: 'model' cannot be loaded: .*shape"):
        load_best(tmp_path, {"model": nn.Linear(3, 1, bias=False)})
