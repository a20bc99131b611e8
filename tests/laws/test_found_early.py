"""Mistakes about files are found at construction, or at the latest before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import DiskSaver
from torch import nn

from helpers.scripted import best_json, counter, run, scripted, step_in
from ignite_evalhook import BestCheckpoint, EvalHook, find_best, load_best


def train(*hooks: EvalHook, trainer: Engine | None = None, epochs: int = 1) -> int:
    """Attach all hooks to one trainer, and return how many steps it has trained."""
    trainer = Engine(lambda engine, batch: None) if trainer is None else trainer
    for hook in hooks:
        hook.attach(trainer)
    try:
        trainer.run([0, 1], max_epochs=epochs)
    finally:
        steps.append(trainer.state.iteration)
    return steps[-1]


steps: list[int] = []


# -- what is about the best needs save_best -------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_saved": 3}, r"n_saved= needs save_best='…', which says what is best"),
        ({"n_saved": None}, r"n_saved= needs save_best='…'"),
        ({"to_save": {"m": counter()}}, r"to_save= needs save_best='…'.*model= names"),
    ],
)
@pytest.mark.parametrize("out_dir", ["run", False, None])
def test_an_option_of_saving_without_save_best_is_refused(
    options: dict[str, Any], words: str, out_dir: Any, tmp_path: Path
) -> None:
    where = tmp_path / out_dir if out_dir else out_dir
    with pytest.raises(ValueError, match=words):
        scripted([], where, save_best=None, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "less"}, r"rule= needs save_best='…', or a metric= in hook\.early_stopping\(\)"),
        ({"rule": {"acc": "less"}}, "rule= needs save_best='…'"),
        ({"on_bad_score": "skip"}, "on_bad_score= needs save_best='…'"),
        ({"rule": "less", "on_bad_score": "skip"}, r"rule=, on_bad_score= needs"),
    ],
)
def test_an_option_that_early_stopping_may_use_is_refused_before_the_first_step(
    options: dict[str, Any], words: str
) -> None:
    hook, trainer = scripted([], save_best=None, **options)
    with pytest.raises(ValueError, match=words):
        train(hook, trainer=trainer)
    assert steps[-1] == 0


USES: dict[str, Callable[[EvalHook], object]] = {
    "early stopping": lambda hook: hook.early_stopping(9, metric="acc"),
    "a plateau": lambda hook: hook.step_on_plateau(
        torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(counter().parameters())),
        metric="acc",
    ),
    "a score function": lambda hook: hook.score_function_for("acc"),
}


@pytest.mark.parametrize("use", USES)
def test_it_is_taken_where_somebody_names_a_metric(use: str) -> None:
    hook, trainer = scripted([0.5, 0.25], save_best=None, rule="less", on_bad_score="skip")
    USES[use](hook)
    assert train(hook, trainer=trainer) == 2
    hook, _ = scripted([], save_best=None, rule={"zorp": "less"})
    assert hook.early_stopping(2, metric="zorp").counter == 0  # its rule is the one given


def test_to_save_may_tell_which_modules_are_put_into_eval_mode() -> None:
    model = counter()
    hook = EvalHook([1], Engine(lambda engine, batch: None), to_save={"model": model})
    assert train(hook) == 2


# -- objects to save ------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Any, Path], object]] = {
    "a hook": lambda to_save, folder: scripted([], folder, to_save=to_save),
    "a checkpoint": BestCheckpoint,
}


@pytest.mark.parametrize(
    ("to_save", "words"),
    [
        (
            {"model": counter(), "epochs": 3},
            r"to_save\['epochs'\] must be an object with a",
        ),
        ({"model": nn.Linear}, r"to_save\['model'\] .*got the class Linear"),
        ({"cfg": {"lr": 0.1}}, r"to_save\['cfg'\]\['lr'\] .*got 0\.1"),
        ({"all": [counter(), None]}, r"to_save\['all'\]\[1\] .*got None"),
        ({"all": []}, r"to_save\['all'\] "),
        ({1: counter()}, "to_save must have strings as names, got 1"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_without_a_state_is_named(
    to_save: Any, words: str, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=words):
        KINDS[kind](to_save, tmp_path)


def test_objects_may_be_in_mappings_and_lists(tmp_path: Path) -> None:
    models = {"both": {"a": counter(), "b": [counter()]}}
    hook, trainer = scripted([0.5], tmp_path, to_save=models)
    train(hook, trainer=trainer)
    assert isinstance(hook.best.path, Path)
    assert list(torch.load(hook.best.path, weights_only=True)) == ["a", "b"]


# -- names of files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "/abs_{global_step}.pt",
        "../{global_step}.pt",
        "a/../../{global_step}.pt",
        "{filename_prefix}/../../x_{global_step}.pt",
        "C:/x_{global_step}.pt",
        "C:x_{global_step}.pt",
        "\\\\server\\share\\{global_step}.pt",
        "\\{global_step}.pt",
        "..\\{global_step}.pt",
        "{global_step}\0.pt",
        "{global_step}/..",
    ],
)
def test_a_pattern_that_leaves_the_folder_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"filename_pattern=.*stay within the folder"):
        BestCheckpoint({"model": counter()}, tmp_path, filename_pattern=pattern)


def test_a_folder_that_a_disk_saver_does_not_make_has_to_be_there(tmp_path: Path) -> None:
    where = DiskSaver(str(tmp_path), create_dir=True)
    with pytest.raises(ValueError, match=r"names a folder in .* that is not there"):
        BestCheckpoint({"m": counter()}, where, filename_pattern="a/{global_step}.pt")
    (tmp_path / "a").mkdir()
    BestCheckpoint({"m": counter()}, where, filename_pattern="a/{global_step}.pt")


@pytest.mark.parametrize(
    "pattern",
    [
        "x" * 250 + "{global_step}",
        "ž" * 125 + "{global_step}",
        "x" * 256 + "/{global_step}",
        "{global_step:0250d}",
    ],
)
def test_a_pattern_that_is_too_long_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"255 bytes in UTF-8.*use shorter names"):
        BestCheckpoint({"m": counter()}, tmp_path, filename_pattern=pattern)


def test_one_that_is_too_long_with_the_names_in_it_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    checkpoint = BestCheckpoint(
        {"m": counter()}, tmp_path, filename_pattern="{filename_prefix}" * 4 + "{global_step}"
    )
    hook, trainer = scripted([], checkpoint=checkpoint, name="n" * 80)
    with pytest.raises(ValueError, match="255 bytes"):
        train(hook, trainer=trainer)
    assert steps[-1] == 0


@pytest.mark.parametrize("letter", ["x", "ž", "评"])
def test_names_of_any_length_and_kind_give_files_that_every_system_takes(
    letter: str, tmp_path: Path
) -> None:
    long = letter * 300
    checkpoint = BestCheckpoint({f"../{long}": counter()}, tmp_path, alias="copy")
    metrics = [f"acc {long} {kind}" for kind in "ab"]
    hook, trainer = scripted(
        [dict.fromkeys(metrics, -1.23456e-101)], checkpoint=checkpoint, save_best=metrics,
        rule="greater", name=f"hook {long}",
    )  # fmt: skip
    train(hook, trainer=trainer)
    for metric in metrics:
        best = find_best(tmp_path, metric)
        assert isinstance(best.path, Path)
        assert best.path.parent == tmp_path
    assert len(list(tmp_path.rglob("*.pt"))) == 4  # two bests and their aliases


def test_a_folder_whose_own_name_is_too_long_is_found_before_the_first_step(tmp_path: Path) -> None:
    hook, trainer = scripted([], tmp_path / ("x" * 300))
    with pytest.raises(OSError, match="File name too long"):
        train(hook, trainer=trainer)
    assert steps[-1] == 0


# -- two hooks in one folder ----------------------------------------------------------------------


def step(model: nn.Module) -> float:
    return float(next(model.parameters()).detach())


def both(first: dict[str, Any], second: dict[str, Any], folders: tuple[Any, Any]) -> list[EvalHook]:
    """Run two hooks on two models whose weights are 1 and 2, and return the hooks."""
    hooks = []
    for weight, (options, folder) in enumerate(zip((first, second), folders, strict=True), 1):
        model = counter()
        nn.init.constant_(model.weight, weight)  # type: ignore[arg-type]
        more = _with_checkpoint(options, model, folder)
        hooks.append(EvalHook(None, lambda trainer: {"acc": 1.0}, model=model, **more))
    train(*hooks, epochs=2)
    return hooks


def _with_checkpoint(options: dict[str, Any], model: nn.Module, folder: Any) -> dict[str, Any]:
    options = dict(options)
    to_save = {options.pop("saves", "model"): model}
    pattern = options.pop("pattern", None)
    late = options.pop("late", False)
    checkpoint = BestCheckpoint(to_save, folder, filename_pattern=pattern, async_save=late)
    return {**options, "save_best": "acc", "checkpoint": checkpoint}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"saves": "ema_model"}, {"name": "ema"}),
        ({"saves": "ema_model", "late": True}, {"name": "ema", "late": True}),
        ({"saves": "b_c", "name": "a"}, {"saves": "c", "name": "a_b"}),
        ({"saves": "EMA_Model"}, {"name": "ema"}),
        ({"pattern": "best_ema_{global_step}.pt"},
         {"name": "ema", "pattern": "{filename_prefix}_{global_step}.pt"}),
        ({"pattern": "best_ema/{global_step}.pt"},
         {"name": "ema", "pattern": "{filename_prefix}/{global_step}.pt"}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("spelled", ["alike", "otherwise", "by a link"])
def test_two_hooks_whose_files_would_meet_have_a_file_each(
    first: dict[str, Any], second: dict[str, Any], spelled: str, tmp_path: Path
) -> None:
    folder: Path = tmp_path / "run"
    folder.mkdir()
    other: Any = folder
    if spelled == "otherwise":
        other = f"{folder}/../run/"
    elif spelled == "by a link":
        other = tmp_path / "link"
        os.symlink(folder, other)
    one, two = both(first, second, (folder, other))
    for weight, hook in enumerate((one, two), 1):
        model = counter()
        load_best(folder, {"model": model}, name=hook.name)
        assert step(model) == weight
        hook.load_best()
    assert len({str(hook.best.path).lower() for hook in (one, two)}) == 2


def test_a_run_that_is_resumed_finds_its_own_spelling_again(tmp_path: Path) -> None:
    for _ in range(2):
        one, trainer = scripted([1.0, 2.0, 3.0], tmp_path, to_save={"ema_model": counter()})
        two, _ = scripted([1.0, 2.0, 3.0], tmp_path, name="ema")
        for hook in (one, two):
            hook.attach(trainer)
        one.keep_last({"nothing": counter()})
        two.keep_last({"nothing": counter()})
        trainer.run([0], max_epochs=2 if _ == 0 else 3)
    assert best_json(tmp_path)["file"] == "best_ema_model_3_acc=3.pt"
    assert sorted(path.name for path in tmp_path.glob("best*.pt")) == [
        "best_ema_model_3_acc=3-2.pt", "best_ema_model_3_acc=3.pt"
    ]  # fmt: skip


def test_stable_names_that_would_meet_are_refused_at_attach(tmp_path: Path) -> None:
    def hook(name: str, *metrics: str, folder: str = "", alias: str | None = "copy") -> EvalHook:
        checkpoint = BestCheckpoint({"m": counter()}, tmp_path / folder, alias=alias)
        return scripted([], checkpoint=checkpoint, name=name, save_best=metrics, rule="greater")[0]

    one = hook("val", "acc", "ema")
    trainer = Engine(lambda engine, batch: None)
    one.attach(trainer)
    with pytest.raises(ValueError, match=r"'EMA' and 'val' would both write .*best_ema\.pt.*alias"):
        hook("EMA", "acc").attach(trainer)
    hook("ema", "acc", folder="another").attach(trainer)
    hook("EMA", "acc", alias=None).attach(trainer)


def test_a_named_hook_and_a_plain_one_keep_their_names_where_nothing_meets(tmp_path: Path) -> None:
    run([1.0], tmp_path)
    run([1.0], tmp_path, name="ema")
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "best_ema_model_1_acc=1.pt", "best_model_1_acc=1.pt"
    ]  # fmt: skip
    assert step_in(tmp_path / "best_ema_model_1_acc=1.pt") == 1
