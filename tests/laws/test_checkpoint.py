"""Best checkpoints on disk: which files there are, what they are called, and what is in them."""

from __future__ import annotations

import math
import os
import re
import sys
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, global_step_from_engine
from ignite.handlers.checkpoint import BaseSaveHandler, CheckpointEvents
from torch import nn

from helpers.scripted import best_files, best_json, counter, run, scripted, step_in
from ignite_evalhook import (
    Best,
    BestCheckpoint,
    CheckpointError,
    EvalEvents,
    RuleInferenceError,
    StateError,
    find_best,
)

NAN, INF = math.nan, math.inf
posix = pytest.mark.skipif(sys.platform == "win32", reason="hard links and inodes")


@pytest.fixture
def url() -> Iterator[str]:
    """Give a folder in fsspec's memory."""
    folder = f"memory://{uuid.uuid4().hex}/run"
    yield folder
    file_system = fsspec.filesystem("memory")
    if file_system.exists(folder):
        file_system.rm(folder, recursive=True)


def names_in(url: str) -> set[str]:
    found = fsspec.filesystem("memory").ls(url, detail=False)
    return {str(name).rpartition("/")[2] for name in found}


def best_checkpoint(model: nn.Module, where: Any, **options: Any) -> BestCheckpoint:
    return BestCheckpoint({"model": model}, where, **options)


def followed(where: Any, scores: list[Any], *, hook_options: Any = None, **options: Any) -> Any:
    """Run with a ``BestCheckpoint`` of the given options."""
    model = counter()
    checkpoint = best_checkpoint(model, where, **options)
    return run(scores, model=model, checkpoint=checkpoint, **(hook_options or {}))


# -------------------------------------------------------------------------------------- the top-k


@pytest.mark.parametrize(
    ("scores", "n_saved", "steps"),
    [
        ([0.1, 0.2, 0.3], 1, [3]),
        ([0.3, 0.2, 0.1], 1, [1]),
        ([0.1, 0.3, 0.2], 2, [2, 3]),
        ([0.3, 0.1, 0.2], 2, [1, 3]),
        ([0.1, 0.2], 3, [1, 2]),
        ([0.3, 0.1, 0.2], None, [1, 2, 3]),
        # Ties keep the first.
        ([0.5, 0.5, 0.5], 1, [1]),
        ([0.5, 0.5, 0.5], 2, [1, 2]),
        ([0.5, 0.5, 0.9], 2, [1, 3]),
        ([0.5, 0.5, 0.5, 0.9, 0.9], 3, [1, 4, 5]),
        ([0.9, 0.5, 0.5, 0.7], 3, [1, 2, 4]),
        ([0.0, -0.0, 0.0], 1, [1]),
        # What is no score takes no place.
        ([NAN, 0.1, INF, 0.05, -INF], 3, [2, 4]),
        ([0.0, NAN, -1.0], 2, [1, 3]),
    ],
)
@pytest.mark.parametrize("rule", ["greater", "less"])
def test_the_k_best_are_kept_and_of_equals_the_first(
    scores: list[float], n_saved: int | None, steps: list[int], rule: str, tmp_path: Path
) -> None:
    if rule == "less":
        scores = [-score for score in scores]
    hook = run(scores, tmp_path, rule=rule, n_saved=n_saved)
    assert sorted(best.epoch for best in hook.bests["acc"]) == steps
    assert sorted(step_in(tmp_path / name) for name in best_files(tmp_path)) == steps
    listed = best_json(tmp_path)["kept"]["acc"]["files"]
    assert [entry["file"] for entry in listed] == [b.path.name for b in hook.bests["acc"]]
    assert find_best(tmp_path) == hook.best


def oracle(scores: list[float], k: int, rule: str) -> list[int]:
    """Return the steps of the k best, best first, by nothing but a sort."""
    sign = 1 if rule == "greater" else -1
    numbered = [(step, s) for step, s in enumerate(scores, start=1) if math.isfinite(s)]
    return [step for step, s in sorted(numbered, key=lambda pair: (-sign * pair[1], pair[0]))][:k]


few = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, NAN, INF, -INF])
any_score = st.one_of(few, st.floats(), st.floats(-1, 1), st.integers(-3, 3).map(float))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(any_score, min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from(["greater", "less"]),
)
@example([1.0, 1.0, 2.0], 2, "greater")
@example([1.00000001, 1.00000002, 1.00000001], 2, "less")
@example([NAN, 0.0, -0.0, INF], 1, "greater")
def test_law_the_files_are_the_top_k_of_any_sequence_of_scores(
    scores: list[float], k: int, rule: str
) -> None:
    folder = f"memory://{uuid.uuid4().hex}/run"
    hook = run(scores, folder, rule=rule, n_saved=k)
    expected = oracle(scores, k, rule)
    assert [best.epoch for best in hook.bests["acc"]] == expected
    if not expected:
        assert hook.best is None
        with pytest.raises(CheckpointError, match="no best was saved there"):
            find_best(folder)
        assert names_in(folder) == {"history.jsonl"}
        return
    assert hook.best is not None
    assert (hook.best.epoch, hook.best.score) == (expected[0], scores[expected[0] - 1])
    assert find_best(folder) == hook.best
    kept = {f"best_model_{s}_acc={scores[s - 1]:.6g}.pt": s for s in expected}
    assert names_in(folder) == {*kept, "best.json", "history.jsonl"}
    for name, step in kept.items():
        with fsspec.open(f"{folder}/{name}") as file:
            assert step_in(file) == step
    fsspec.filesystem("memory").rm(folder, recursive=True)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(any_score, any_score), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_law_two_metrics_keep_their_own_top_k_side_by_side(
    scores: list[tuple[float, float]], k: int, n: int
) -> None:
    folder = f"memory://{uuid.uuid4().hex}/run"
    said = [{"acc": a, "loss": b} for a, b in scores]
    hook = run(said, folder, save_best={"acc": k, "loss": n})
    of_acc = oracle([a for a, _ in scores], k, "greater")
    of_loss = oracle([b for _, b in scores], n, "less")
    assert [best.epoch for best in hook.bests["acc"]] == of_acc
    assert [best.epoch for best in hook.bests["loss"]] == of_loss
    kept = {f"best_model_{s}_acc={scores[s - 1][0]:.6g}.pt" for s in of_acc}
    kept |= {f"best_model_{s}_loss={scores[s - 1][1]:.6g}.pt" for s in of_loss}
    assert names_in(folder) - {"best.json"} == {*kept, "history.jsonl"}
    for metric, steps in (("acc", of_acc), ("loss", of_loss)):
        if steps:
            assert find_best(folder, metric).epoch == steps[0]
    fsspec.filesystem("memory").rm(folder, recursive=True)


def test_several_metrics_have_their_own_bests_at_once(tmp_path: Path) -> None:
    said = [{"acc": 0.9, "loss": 0.9}, {"acc": 0.1, "loss": 0.1}, {"acc": 0.2, "loss": 0.2}]
    hook = run(said, tmp_path, save_best=["acc", "loss"])
    assert best_files(tmp_path) == ["best_model_1_acc=0.9.pt", "best_model_2_loss=0.1.pt"]
    assert hook.best == hook.bests["acc"][0] == find_best(tmp_path) == find_best(tmp_path, "acc")
    assert hook.bests["loss"] == (find_best(tmp_path, "loss"),)


# -------------------------------------------------------------------------------------- the names


@pytest.mark.parametrize(
    ("metric", "score", "name"),
    [
        ("acc", 0.5, "best_model_1_acc=0.5.pt"),
        ("acc", 0.0, "best_model_1_acc=0.pt"),
        ("acc", 3, "best_model_1_acc=3.pt"),
        ("acc", 0.123456789, "best_model_1_acc=0.123457.pt"),
        ("acc", 1e-12, "best_model_1_acc=1e-12.pt"),
        ("coco/bbox_mAP", 0.25, "best_model_1_coco_bbox_mAP=0.25.pt"),
        ("mAP@0.5IOU", 0.25, "best_model_1_mAP@0.5IOU=0.25.pt"),
        ("Mean PCK", 0.25, "best_model_1_Mean_PCK=0.25.pt"),
        ("accuracy_top-1", 71.5, "best_model_1_accuracy_top-1=71.5.pt"),
        ("精度 acc", 0.25, "best_model_1_精度_acc=0.25.pt"),
        ("{acc}", 0.25, "best_model_1__acc_=0.25.pt"),
        ("../../acc", 0.25, "best_model_1_.._.._acc=0.25.pt"),
        ("val_loss", 0.25, "best_model_1_val_loss=0.25.pt"),
        ("val_loss", -0.25, "best_model_1_val_loss=-0.25.pt"),
    ],
)
def test_a_file_is_named_after_the_step_and_the_true_score(
    metric: str, score: float, name: str, tmp_path: Path
) -> None:
    preset = {"preset": "mmpose"} if "PCK" in metric else {}
    hook = run([{metric: score}], tmp_path, save_best=metric, **preset)
    assert best_files(tmp_path) == [name]
    assert find_best(tmp_path) == hook.best == Best(metric, float(score), 1, 1, tmp_path / name)
    assert best_json(tmp_path)["metric"] == metric


def test_a_very_long_name_gives_a_file_that_every_system_takes(tmp_path: Path) -> None:
    metric = "acc/" + "x" * 400
    hook = run([{metric: 0.5}], tmp_path, save_best=metric)
    assert find_best(tmp_path) == hook.best
    (name,) = best_files(tmp_path)
    assert len(name.encode()) < 255
    assert best_json(tmp_path)["metric"] == metric


def test_metrics_whose_names_meet_after_cleaning_do_not_meet_on_disk(tmp_path: Path) -> None:
    said = [{"acc/a": 0.1, "acc_a": 0.1}, {"acc/a": 0.0, "acc_a": 0.2}]
    model = counter()
    checkpoint = best_checkpoint(model, tmp_path, alias="copy")
    run(said, model=model, checkpoint=checkpoint, save_best=["first_acc", "acc/a", "acc_a"],
        on_bad_score="skip")  # fmt: skip
    assert step_in(find_best(tmp_path, "acc/a").path) == 1
    assert step_in(find_best(tmp_path, "acc_a").path) == 2
    aliases = sorted(tmp_path.glob("best_acc*.pt"))
    assert [step_in(alias) for alias in aliases] == [1, 2]


@pytest.mark.parametrize(
    ("options", "step"),
    [({"start": 0, "interval": 5}, 0), ({"by_epoch": False, "interval": 3}, 3),
     ({"interval": [2]}, 2)],
)  # fmt: skip
def test_the_step_in_the_name_is_what_the_schedule_counts(
    options: dict[str, Any], step: int, tmp_path: Path
) -> None:
    hook, trainer = scripted([0.5], tmp_path, **options)
    hook.attach(trainer)
    trainer.run([0, 0], max_epochs=2)
    assert best_files(tmp_path) == [f"best_model_{step}_acc=0.5.pt"]


def test_scores_equal_to_many_digits_do_not_collide(tmp_path: Path) -> None:
    hook = run([0.50000001, 0.50000002, 0.50000003], tmp_path, n_saved=2)
    assert sorted(step_in(tmp_path / name) for name in best_files(tmp_path)) == [2, 3]
    assert find_best(tmp_path) == hook.best
    assert best_json(tmp_path)["score"] == 0.50000003


# -------------------------------------------------------------------------------------- best.json


def test_best_json_and_the_checkpoint_tell_what_happened_without_the_library(
    tmp_path: Path,
) -> None:
    hook, trainer = scripted([0.25, 0.5, 0.3], tmp_path)
    hook.attach(trainer)
    trainer.run([0, 0], max_epochs=3)
    said = best_json(tmp_path)
    file = tmp_path / "best_model_2_acc=0.5.pt"
    assert {key: said[key] for key in list(said)[:11]} == {
        "format": "ignite-evalhook best 1",
        "name": "val",
        "run_id": hook.state_dict()["run_id"],
        "metric": "acc",
        "rule": "greater",
        "score": 0.5,
        "epoch": 2,
        "iteration": 4,
        "file": file.name,
        "size": file.stat().st_size,
        "crc32": f"{zlib.crc32(file.read_bytes()):08x}",
    }
    assert step_in(file) == 4
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all(said["run_id"] in line for line in lines)


def test_equal_states_give_equal_bytes_under_any_name(tmp_path: Path) -> None:
    run([0.25, 0.5], tmp_path / "one", n_saved=2)
    run([0.25, 0.5], tmp_path / "other", n_saved=2)
    for name in best_files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    one, other = best_json(tmp_path / "one"), best_json(tmp_path / "other")
    assert one.pop("run_id") != other.pop("run_id")
    assert one == other
    run([{"acc": 0.5, "other_acc": 0.7}], tmp_path / "three", save_best=["acc", "other_acc"])
    first, second = best_files(tmp_path / "three")
    assert first != second
    folder = tmp_path / "three"
    assert (folder / first).read_bytes() == (folder / second).read_bytes()


# ------------------------------------------------------------------------------ what is in a file


class Numpy:
    """An object whose state holds what NumPy users put there."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "scalar": np.float64(0.5),
            "count": np.int64(3),
            "array": np.arange(3, dtype=np.float32),
        }

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)


def test_every_kind_of_training_object_is_saved_and_loads_weights_only(tmp_path: Path) -> None:
    model = counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)

    def train(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        scheduler.step()

    trainer = Engine(train)
    to_save: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    to_save |= {"trainer": trainer, "numpy": Numpy()}
    hook, _ = scripted([0.5, 0.6], tmp_path, model=model, trainer=trainer, to_save=to_save)
    to_save["eval_hook"] = hook
    hook, _ = scripted([0.5, 0.6], tmp_path, model=model, trainer=trainer, to_save=to_save)
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    (name,) = best_files(tmp_path)
    assert name == "best_checkpoint_2_acc=0.6.pt"
    state = torch.load(tmp_path / name, weights_only=True)
    assert sorted(state) == sorted(to_save)
    assert state["trainer"]["iteration"] == 2
    assert state["numpy"]["scalar"] == 0.5
    assert torch.equal(state["numpy"]["array"], torch.arange(3, dtype=torch.float32))
    assert state["optimizer"]["state"][0]["step"] == 2


def test_the_hook_itself_may_be_among_what_is_saved(tmp_path: Path) -> None:
    model = counter()
    holder: dict[str, Any] = {"model": model}
    hook, trainer = scripted([0.5, 0.4, 0.6], tmp_path, model=model, to_save=holder)
    holder["eval_hook"] = hook
    hook2, trainer = scripted([0.5, 0.4, 0.6], tmp_path / "b", model=model, to_save=holder)
    hook2.attach(trainer)
    trainer.run([0], max_epochs=3)
    state = torch.load(hook2.best.path, weights_only=True)  # type: ignore[union-attr,arg-type]
    again, _ = scripted([], tmp_path / "c")
    again.load_state_dict(state["eval_hook"])


class Foreign(Numpy):
    def state_dict(self) -> dict[str, Any]:
        return {"deep": [{"path": Path("x")}]}


def test_a_type_that_weights_only_refuses_is_reported_before_the_first_step(
    tmp_path: Path,
) -> None:
    model = counter()
    hook, trainer = scripted([0.5], tmp_path, model=model,
                             to_save={"model": model, "thing": Foreign()})  # fmt: skip
    hook.attach(trainer)
    with pytest.raises(TypeError, match=r"to_save\['thing'\].*deep.*Path.*weights_only"):
        trainer.run([0], max_epochs=1)
    assert trainer.state.iteration == 0
    assert list(tmp_path.iterdir()) == []


def test_without_preflight_it_is_reported_when_the_file_is_written(tmp_path: Path) -> None:
    model = counter()
    hook, trainer = scripted([0.5, 0.6], tmp_path, model=model, preflight=False,
                             to_save={"model": model, "thing": Foreign()})  # fmt: skip
    hook.attach(trainer)
    with pytest.raises(CheckpointError, match=r"(?s)TypeError.*to_save.*deep.*Path"):
        trainer.run([0], max_epochs=1)
    assert hook.best is None
    assert best_files(tmp_path) == []


@pytest.mark.parametrize("to_save", [{"model": object()}, {"model": None}, {"a": {"b": 3}}])
def test_an_object_without_a_state_dict_is_refused_at_construction(
    to_save: Any, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match="state_dict"):
        BestCheckpoint(to_save, tmp_path)


def test_a_data_parallel_model_is_saved_as_the_model_it_wraps(tmp_path: Path) -> None:
    model = counter()
    run([0.5], tmp_path, model=model, to_save={"model": nn.DataParallel(model)})
    assert step_in(tmp_path / "best_model_1_acc=0.5.pt") == 1


# ---------------------------------------------------------------------------- several in a folder


def test_several_hooks_share_a_folder_and_never_touch_each_others_files(tmp_path: Path) -> None:
    model = counter()
    one, trainer = scripted([0.1, 0.9, 0.2], tmp_path, model=model)
    two, _ = scripted([0.8, 0.3, 0.1], tmp_path, model=model, name="test set", n_saved=2)
    one.attach(trainer)
    two.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.json",
        "best_model_2_acc=0.9.pt",
        "best_test_set.json",
        "best_test_set_model_1_acc=0.8.pt",
        "best_test_set_model_2_acc=0.3.pt",
        "history.jsonl",
        "history_test_set.jsonl",
    ]
    assert find_best(tmp_path, name="val") == one.best
    assert find_best(tmp_path, name="test set") == two.best
    with pytest.raises(ValueError, match=r"several hooks; pass name=\['val', 'test set'\]"):
        find_best(tmp_path)


def test_hooks_whose_names_meet_after_cleaning_cannot_share_a_folder(tmp_path: Path) -> None:
    model = counter()
    one, trainer = scripted([0.1], tmp_path, model=model, name="a/b")
    two, _ = scripted([0.1], tmp_path, model=model, name="a_b")
    one.attach(trainer)
    two.attach(trainer)
    with pytest.raises(StateError, match="in use by another run in this process"):
        trainer.run([0], max_epochs=1)


def test_files_that_are_not_ours_are_never_touched(tmp_path: Path) -> None:
    strangers = ["best_model.pt", "best_params.json", "notes.txt", "best_model_9_acc=9.pt"]
    for name in strangers:
        (tmp_path / name).write_text('{"lr": 1}')
    hook = run([0.5, 0.6], tmp_path)
    assert all((tmp_path / name).read_text() == '{"lr": 1}' for name in strangers)
    assert find_best(tmp_path) == hook.best


# ------------------------------------------------------------------------------------------ alias


@posix
@pytest.mark.parametrize("alias", ["copy", "link"])
def test_the_alias_is_always_the_best_of_the_first_metric(alias: str, tmp_path: Path) -> None:
    model = counter()
    checkpoint = best_checkpoint(model, tmp_path, alias=alias, n_saved=2)
    hook, trainer = scripted([0.5, 0.7, 0.6, 0.8], model=model, checkpoint=checkpoint)
    hook.attach(trainer)
    seen: list[tuple[float, bool]] = []

    @trainer.on(EvalEvents.EVAL_COMPLETED)
    def look() -> None:
        stable, best = tmp_path / "best.pt", hook.best
        assert best is not None
        assert isinstance(best.path, Path)
        assert stable.read_bytes() == best.path.read_bytes()
        seen.append((step_in(stable), os.path.samefile(stable, best.path)))

    trainer.run([0], max_epochs=4)
    is_link = alias == "link"
    assert seen == [(1, is_link), (2, is_link), (2, is_link), (4, is_link)]
    assert not any(path.is_symlink() for path in tmp_path.iterdir())


def test_each_further_metric_has_an_alias_of_its_own(tmp_path: Path) -> None:
    said = [{"acc": 0.9, "val/loss": 0.9}, {"acc": 0.1, "val/loss": 0.1}]
    followed(tmp_path, said, alias="copy", hook_options={"save_best": ["acc", "val/loss"]})
    assert step_in(tmp_path / "best.pt") == 1
    assert step_in(tmp_path / "best_val_loss.pt") == 2


def test_the_alias_of_a_named_hook_carries_its_name(tmp_path: Path) -> None:
    followed(tmp_path, [0.5], alias="copy", hook_options={"name": "ema"})
    assert step_in(tmp_path / "best_ema.pt") == 1
    assert not (tmp_path / "best.pt").exists()


@posix
def test_a_careless_write_through_a_copied_alias_leaves_the_best_unharmed(tmp_path: Path) -> None:
    hook = followed(tmp_path, [0.5], alias="copy")
    with (tmp_path / "best.pt").open("r+b") as file:
        file.write(b"damage")
    assert step_in(hook.best.path) == 1
    hook.load_best()


@posix
@pytest.mark.parametrize("alias", ["copy", "link"])
def test_the_alias_is_never_an_inode_of_somebody_elses_file(alias: str, tmp_path: Path) -> None:
    model = counter()
    checkpoint = best_checkpoint(model, tmp_path, alias=alias)
    hook, trainer = scripted([0.5, 0.7], model=model, checkpoint=checkpoint)
    mine = Checkpoint({"model": model}, DiskSaver(tmp_path, require_empty=False), n_saved=None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, mine)
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    ours = {*tmp_path.glob("best*")}
    inodes = {path.stat().st_ino for path in ours}
    for path in set(tmp_path.iterdir()) - ours:
        assert path.stat().st_ino not in inodes


@pytest.mark.parametrize("alias", ["copy", "link"])
def test_a_file_of_that_name_that_is_not_ours_is_not_replaced(alias: str, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"somebody else's")
    with pytest.raises(CheckpointError, match=r"best\.pt is not this run's.*move it away"):
        followed(tmp_path, [0.5], alias=alias)
    assert (tmp_path / "best.pt").read_bytes() == b"somebody else's"
    hook = followed(tmp_path, [0.5])
    assert find_best(tmp_path) == hook.best


@pytest.mark.parametrize("alias", ["copy", "link"])
def test_the_alias_of_an_earlier_run_moves_away_with_its_files(alias: str, tmp_path: Path) -> None:
    followed(tmp_path, [0.5, 0.9], alias=alias)
    earlier = best_json(tmp_path)["run_id"]
    followed(tmp_path, [0.3], alias=alias)
    assert step_in(tmp_path / "best.pt") == 1
    assert step_in(tmp_path / "earlier" / earlier / "best.pt") == 2
    assert find_best(tmp_path / "earlier" / earlier).score == 0.9


def test_an_alias_that_somebody_removed_comes_back_with_the_next_best(tmp_path: Path) -> None:
    model = counter()
    checkpoint = best_checkpoint(model, tmp_path, alias="copy")
    hook, trainer = scripted([0.5, 0.4, 0.6], model=model, checkpoint=checkpoint)
    hook.on(EvalEvents.NEW_BEST(once=1), lambda record: (tmp_path / "best.pt").unlink())
    hook.attach(trainer)
    seen: list[bool] = []
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: seen.append((tmp_path / "best.pt").exists()))
    trainer.run([0], max_epochs=3)
    assert seen == [True, False, True]
    assert step_in(tmp_path / "best.pt") == 3


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{filename_prefix}_{name}_{global_step}.{ext}", "best_model_2.pt"),
        ("{global_step:05d}-{score_name}-{score}.{ext}", "00002-coco_acc-0.5.pt"),
        ("{filename_prefix}/{global_step}.{ext}", "best/2.pt"),
        ("100%_{global_step}.{ext}", "100%_2.pt"),
        ("{{{global_step}}}.{ext}", "{2}.pt"),
    ],
)
def test_a_filename_pattern_names_the_files(pattern: str, name: str, tmp_path: Path) -> None:
    said = [{"coco/acc": 0.25}, {"coco/acc": 0.5}]
    hook = followed(tmp_path, said, filename_pattern=pattern,
                    hook_options={"save_best": "coco/acc"})  # fmt: skip
    assert hook.best.path == tmp_path / name
    assert step_in(tmp_path / name) == 2
    assert find_best(tmp_path) == hook.best
    assert len(list(tmp_path.rglob("*.pt"))) == 1


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("best.pt", "needs {global_step}, so that a new file never replaces the old best"),
        ("{name}_{score}.{ext}", "needs {global_step}"),
        ("{global_step}_{epoch}.pt", "cannot be filled in.*'epoch'.*it may hold"),
        ("{global_step", "cannot be filled in"),
        ("{}", "cannot be filled in"),
        ("{global_step}{score:.3f}", "cannot be filled in"),
    ],
)
def test_a_pattern_that_cannot_keep_the_old_best_is_refused(
    pattern: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        best_checkpoint(counter(), tmp_path, filename_pattern=pattern)


def test_a_named_hooks_pattern_must_tell_its_files_from_those_of_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs \{filename_prefix\}, which tells the files"):
        followed(tmp_path, [0.5], filename_pattern="{global_step}.pt", hook_options={"name": "ema"})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"alias": "symlink"}, ValueError, r"alias must be one of .*'copy', 'link'.*'symlink'"),
        ({"alias": True}, ValueError, "alias must be one of"),
        ({"on_save_error": "ignore"}, ValueError, "on_save_error must be one of"),
        ({"async_save": 1}, ValueError, "async_save must be True or False, got 1"),
        ({"n_saved": 0}, ValueError, "n_saved must be a positive integer or None"),
        ({"score_name": "strangeness"}, RuleInferenceError, "strangeness"),
        ({"score_name": "acc", "rule": "max"}, ValueError, "rule must be 'greater' or 'less'"),
        ({"rule": "less"}, ValueError, "rule= belongs to score_name="),
    ],
)
def test_a_wrong_option_is_refused_at_construction(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        best_checkpoint(counter(), tmp_path, **options)


def test_one_checkpoint_belongs_to_one_hook(tmp_path: Path) -> None:
    model = counter()
    checkpoint = best_checkpoint(model, tmp_path)
    scripted([], model=model, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="belongs to the hook 'val' already; make another one"):
        scripted([], model=model, checkpoint=checkpoint, name="test")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"to_save": {"model": counter()}}, ValueError, "to_save= belongs into the BestCheckpoint"),
        ({"n_saved": 3}, ValueError, "n_saved= belongs into the BestCheckpoint"),
        ({"save_best": None}, ValueError, "checkpoint= needs save_best='…', which says what is"),
        ({"checkpoint": Checkpoint({"model": counter()}, lambda c, f: None)}, TypeError,
         r"checkpoint must be a BestCheckpoint, got Checkpoint.*EvalEvents\.NEW_BEST"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_the_hook_is_refused(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    options = {"checkpoint": best_checkpoint(counter(), tmp_path), **options}
    with pytest.raises(error, match=words):
        scripted([], **options)


def test_a_mistake_at_construction_leaves_the_checkpoint_free_for_the_next_try(
    tmp_path: Path,
) -> None:
    model = counter()
    checkpoint = best_checkpoint(model, tmp_path)
    with pytest.raises(RuleInferenceError):
        scripted([], model=model, checkpoint=checkpoint, save_best="strangeness")
    run([0.5], model=model, checkpoint=checkpoint)
    assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt"]


def test_the_checkpoint_says_how_many_files_to_keep(tmp_path: Path) -> None:
    followed(tmp_path, [0.5, 0.7, 0.6], n_saved=2)
    assert best_files(tmp_path) == ["best_model_2_acc=0.7.pt", "best_model_3_acc=0.6.pt"]
    followed(tmp_path / "all", [0.5, 0.7, 0.6], n_saved=None)
    assert len(best_files(tmp_path / "all")) == 3


def test_out_dir_and_checkpoint_cannot_both_say_where_files_go(tmp_path: Path) -> None:
    from ignite_evalhook import EvalHook

    with pytest.raises(ValueError, match="out_dir= and checkpoint= both say where files go"):
        EvalHook(None, lambda trainer: {}, save_best="acc", out_dir=tmp_path,
                 checkpoint=best_checkpoint(counter(), tmp_path))  # fmt: skip


def test_a_checkpoint_for_several_metrics_keeps_its_options_for_each(tmp_path: Path) -> None:
    said = [{"acc": 0.1, "loss": 0.3}, {"acc": 0.2, "loss": 0.2}]
    hook = followed(
        tmp_path,
        said,
        filename_pattern="{global_step}-{score_name}.{ext}",
        hook_options={"save_best": {"acc": 2, "loss": 1}},
    )
    assert best_files(tmp_path) == ["1-acc.pt", "2-acc.pt", "2-loss.pt"]
    assert [best.epoch for best in hook.bests["acc"]] == [2, 1]


def test_two_metrics_may_share_a_file_and_it_stays_while_one_of_them_needs_it(
    tmp_path: Path,
) -> None:
    said = [{"acc": 0.5, "loss": 0.1}, {"acc": 0.6, "loss": 0.5}, {"acc": 0.1, "loss": 0.05}]
    model = counter()
    checkpoint = best_checkpoint(model, tmp_path, filename_pattern="{global_step}.pt")
    hook, trainer = scripted(said, model=model, checkpoint=checkpoint, save_best=["acc", "loss"])
    hook.attach(trainer)
    seen: list[list[str]] = []
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: seen.append(best_files(tmp_path)))
    trainer.run([0], max_epochs=3)
    assert seen == [["1.pt"], ["1.pt", "2.pt"], ["2.pt", "3.pt"]]
    assert step_in(find_best(tmp_path, "acc").path) == 2
    assert step_in(find_best(tmp_path, "loss").path) == 3


def test_saving_tells_listeners_and_leaves_the_trainers_event_as_it_was(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.4, 0.6], tmp_path)
    trainer.register_events(*CheckpointEvents)
    saved: list[int] = []
    trainer.add_event_handler(
        CheckpointEvents.SAVED_CHECKPOINT, lambda engine: saved.append(engine.state.epoch)
    )
    hook.attach(trainer)
    events: list[Any] = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: events.append(engine.last_event_name)
    )
    trainer.run([0], max_epochs=3)
    assert saved == [1, 3]
    assert events == [Events.EPOCH_COMPLETED] * 3


# --------------------------------------------------------------------------------- other storages


def test_a_memory_url_holds_the_same_files(url: str) -> None:
    hook = run([0.5, 0.7, 0.6], url, n_saved=2)
    assert names_in(url) == {
        "best.json", "best_model_2_acc=0.7.pt", "best_model_3_acc=0.6.pt", "history.jsonl",
    }  # fmt: skip
    assert hook.best is not None
    assert hook.best.path == f"{url}/best_model_2_acc=0.7.pt"
    assert find_best(url) == hook.best
    model = counter()
    hook.load_best(to_load={"model": model})
    assert float(model.weight.detach()) == 2


def test_a_memory_url_may_have_an_alias(url: str) -> None:
    followed(url, [0.5, 0.7], alias="link")
    with fsspec.open(f"{url}/best.pt") as file:
        assert step_in(file) == 2


def test_a_file_url_is_the_local_folder(tmp_path: Path) -> None:
    hook = run([0.5, 0.7], f"file://{tmp_path.as_posix()}/new")
    assert best_files(tmp_path / "new") == ["best_model_2_acc=0.7.pt"]
    assert find_best(tmp_path / "new") == hook.best


def test_a_path_object_and_a_string_are_the_same_folder(tmp_path: Path) -> None:
    hook = run([0.5], str(tmp_path))
    assert find_best(tmp_path) == find_best(str(tmp_path)) == hook.best


@pytest.mark.parametrize("out_dir", [True, 3, [], object()])
def test_an_out_dir_of_another_kind_is_refused(out_dir: Any) -> None:
    with pytest.raises(TypeError, match="out_dir must be a folder, a URL, a save handler or False"):
        scripted([], out_dir)


def test_ignites_own_save_handler_may_take_the_files(tmp_path: Path) -> None:
    model = counter()
    to_save = {"model": model, "numpy": Numpy()}
    hook = run([0.5, 0.7, 0.6, 0.6], DiskSaver(tmp_path), model=model, to_save=to_save, n_saved=2)
    assert best_files(tmp_path) == ["best_checkpoint_2_acc=0.7.pt", "best_checkpoint_3_acc=0.6.pt"]
    assert step_in(tmp_path / "best_checkpoint_2_acc=0.7.pt", "model") == 2
    assert hook.best == Best("acc", 0.7, 2, 2, None)
    assert [best.epoch for best in hook.bests["acc"]] == [2, 3]
    with pytest.raises(CheckpointError, match="writes no best files that could be loaded"):
        hook.load_best()


class InMemory(BaseSaveHandler):
    """A save handler of a user's."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.files: dict[str, Any] = {}
        self.metadata: list[Any] = []
        self.fail = fail
        self.calls = 0

    def __call__(
        self, checkpoint: Any, filename: str, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.calls += 1
        if self.fail is not None:
            raise self.fail
        self.metadata.append(metadata)
        self.files[filename] = checkpoint

    def remove(self, filename: str) -> None:
        del self.files[filename]


class WithoutMetadata(InMemory):
    def __call__(self, checkpoint: Any, filename: str) -> None:  # type: ignore[override]
        super().__call__(checkpoint, filename)


@pytest.mark.parametrize("kind", [InMemory, WithoutMetadata])
def test_a_users_save_handler_gets_the_state_and_may_know_no_metadata(kind: Any) -> None:
    handler = kind()
    run([0.5, 0.7, 0.6], handler)
    assert list(handler.files) == ["best_model_2_acc=0.7.pt"]
    assert handler.calls == 2
    if kind is InMemory:
        assert handler.metadata[-1]["priority"] == 0.7


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), TypeError("boom"), KeyError("x")]
)
def test_a_save_handler_that_fails_is_called_once_and_told_about(error: Exception) -> None:
    handler = InMemory()
    hook, trainer = scripted([0.5, 0.7], handler)
    hook.attach(trainer)
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: setattr(handler, "fail", error))
    with pytest.raises(CheckpointError, match="InMemory could not save best_model_2") as caught:
        trainer.run([0], max_epochs=2)
    assert caught.value.__cause__ is error
    assert handler.calls == 2
    assert list(handler.files) == ["best_model_1_acc=0.5.pt"]
    assert hook.best == Best("acc", 0.5, 1, 1, None)


def test_a_failing_save_handler_is_a_warning_if_asked_for() -> None:
    handler = InMemory()
    model = counter()
    checkpoint = best_checkpoint(model, handler, on_save_error="warn")
    hook, trainer = scripted([0.5, 0.7, 0.6], model=model, checkpoint=checkpoint)
    hook.attach(trainer)
    failures = {1: OSError(28, "No space left on device"), 2: None}
    hook.on(
        EvalEvents.EVAL_COMPLETED,
        lambda record: setattr(handler, "fail", failures.get(record.epoch)),
    )
    trainer.run([0], max_epochs=3)
    assert [record.is_best for record in hook.history] == [True, False, True]
    assert list(handler.files) == ["best_model_3_acc=0.6.pt"]


# -------------------------------------------------------------------------------------- by itself


def evaluated(handler: Checkpoint, scores: list[Any], metric: str = "acc") -> Engine:
    """Let a trainer evaluate with a handler on the evaluator, as Ignite's documentation does."""
    script = iter(scores)
    model = handler.to_save["model"]
    evaluator = Engine(lambda engine, batch: None)

    @evaluator.on(Events.EPOCH_COMPLETED)
    def score(engine: Engine) -> None:
        engine.state.metrics[metric] = next(script)

    def train(engine: Engine, batch: Any) -> None:
        with torch.no_grad():
            model.weight.add_(1.0)

    trainer = Engine(train)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run([0]))
    evaluator.add_event_handler(Events.COMPLETED, handler)
    handler.global_step_transform = global_step_from_engine(trainer)
    trainer.run([0], max_epochs=len(scores))
    return trainer


@pytest.mark.parametrize(
    ("options", "scores", "files"),
    [
        ({}, [0.5, 0.7, 0.6], ["best_model_2_acc=0.7.pt"]),
        ({"n_saved": 2}, [0.5, 0.5, 0.7], ["best_model_1_acc=0.5.pt", "best_model_3_acc=0.7.pt"]),
        ({"rule": "less"}, [0.5, 0.4, 0.4], ["best_model_2_acc=0.4.pt"]),
        ({}, [NAN, 0.0, INF, -1.0], ["best_model_2_acc=0.pt"]),
        ({}, [torch.tensor(0.25), np.float32(0.5)], ["best_model_2_acc=0.5.pt"]),
    ],
)
def test_by_itself_it_is_a_handler_like_ignites(
    options: dict[str, Any], scores: list[Any], files: list[str], tmp_path: Path
) -> None:
    handler = best_checkpoint(counter(), tmp_path, score_name="acc", **options)
    evaluated(handler, scores)
    assert best_files(tmp_path) == files
    assert find_best(tmp_path).path in [tmp_path / name for name in files]
    said = best_json(tmp_path)
    assert (said["metric"], said["name"]) == ("acc", "val")
    assert re.fullmatch("[0-9a-f]{12}", said["run_id"])


def test_what_ignite_loads_files_with_says_what_to_call_instead(tmp_path: Path) -> None:
    checkpoint = BestCheckpoint({"model": nn.Linear(1, 1)}, tmp_path, score_name="acc")
    with pytest.raises(AttributeError, match=r"load_best\(out_dir, to_load\).*hook\.load_best\(\)"):
        checkpoint.reload_objects({"model": nn.Linear(1, 1)}, global_step=0)


def test_by_itself_it_keeps_an_alias_and_names_what_is_missing(tmp_path: Path) -> None:
    handler = best_checkpoint(counter(), tmp_path, score_name="coco/acc", alias="copy")
    evaluated(handler, [0.5, 0.7], "coco/acc")
    assert step_in(tmp_path / "best.pt") == 2
    with pytest.raises(CheckpointError, match=r"has no metric 'coco/acc'; it has \['acc'\]"):
        evaluated(handler, [0.9])


def test_by_itself_without_a_metric_it_says_what_to_do(tmp_path: Path) -> None:
    handler = best_checkpoint(counter(), tmp_path)
    with pytest.raises(ValueError, match="follows no metric: pass it to EvalHook"):
        evaluated(handler, [0.5])


def test_by_itself_a_restart_puts_the_earlier_runs_files_aside(tmp_path: Path) -> None:
    evaluated(best_checkpoint(counter(), tmp_path, score_name="acc", alias="copy"), [0.5, 0.9])
    earlier = best_json(tmp_path)["run_id"]
    evaluated(best_checkpoint(counter(), tmp_path, score_name="acc", alias="copy"), [0.3])
    assert best_files(tmp_path) == ["best.pt", "best_model_1_acc=0.3.pt"]
    assert best_files(tmp_path / "earlier" / earlier) == ["best.pt", "best_model_2_acc=0.9.pt"]
    assert find_best(tmp_path / "earlier" / earlier).score == 0.9


def test_by_itself_a_loaded_state_goes_on_with_its_files(tmp_path: Path) -> None:
    first = best_checkpoint(counter(), tmp_path, score_name="acc", n_saved=2)
    evaluated(first, [0.5, 0.9, 0.7])
    again = best_checkpoint(counter(), tmp_path, score_name="acc", n_saved=2)
    again.load_state_dict(first.state_dict())
    evaluated(again, [0.6, 0.8])
    assert best_files(tmp_path) == ["best_model_2_acc=0.8.pt", "best_model_2_acc=0.9.pt"]
    assert find_best(tmp_path).score == 0.9
    assert not (tmp_path / "earlier").exists()


def test_by_itself_it_warns_instead_of_raising_if_asked_to(tmp_path: Path) -> None:
    handler = InMemory(OSError(28, "No space left on device"))
    evaluated(best_checkpoint(counter(), handler, score_name="acc", on_save_error="warn"), [0.5])
    with pytest.raises(CheckpointError, match="No space left"):
        evaluated(best_checkpoint(counter(), handler, score_name="acc"), [0.5])


def test_a_score_that_is_no_number_is_an_error_by_itself(tmp_path: Path) -> None:
    handler = best_checkpoint(counter(), tmp_path, score_name="acc")
    with pytest.raises((CheckpointError, ValueError, TypeError)):
        evaluated(handler, ["good"])
