"""Bugs of other libraries that one process can show, each with the right answer as a test.

A test is named after the library that has (or had) the bug and says what is right.  The
libraries themselves are not needed here.
"""

from __future__ import annotations

import copy
import errno
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from ignite.handlers.checkpoint import BaseSaveHandler
from ignite.metrics import Accuracy, MeanAbsoluteError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.private import LocalStorage
from helpers.scripted import best_files, best_json, counter, run, scripted, step_in
from ignite_evalhook import (
    CheckpointError,
    EvalHook,
    EvaluationError,
    RuleInferenceError,
    ValLoss,
    create_evaluator,
    find_best,
    infer_rule,
)

NAN, INF = math.nan, math.inf


def best_of(hook: EvalHook) -> tuple[float, int] | None:
    return None if hook.best is None else (hook.best.score, hook.best.epoch)


@contextmanager
def full_disk(where: str = ".pt") -> Iterator[None]:
    """Let writing of files with ``where`` in their name end half-way."""
    real = LocalStorage.write

    def write(self: LocalStorage, name: str, save: Any, **more: Any) -> str | None:
        if where not in name:
            return real(self, name, save)

        def half(file: Any) -> None:
            file.write(b"half a fi")
            raise OSError(errno.ENOSPC, "No space left on device")

        return real(self, name, half)

    LocalStorage.write = write  # type: ignore[method-assign]
    try:
        yield
    finally:
        LocalStorage.write = real  # type: ignore[method-assign]


# ---------------------------------------------------------------------------- the score, as it is


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.0, 0.0, 0.0], (0.0, 1)), ([-0.5, 0.0], (0.0, 2)), ([0.0, -0.5], (0.0, 1)),
     ([0, -1], (0.0, 1))],
)  # fmt: skip
def test_mmcv_a_score_of_exactly_zero_is_a_score(
    scores: list[float], best: tuple[float, int], tmp_path: Path
) -> None:
    hook = run(scores, tmp_path)
    assert best_of(hook) == best
    assert step_in(find_best(tmp_path).path) == best[1]


@pytest.mark.parametrize("first", [NAN, INF, -INF])
def test_ignite_monai_keras_a_first_score_of_nan_is_replaced_by_the_first_number(
    first: float, tmp_path: Path
) -> None:
    hook = run([first, 0.1, 0.2], tmp_path)
    assert best_of(hook) == (0.2, 3)
    assert best_files(tmp_path) == ["best_model_3_acc=0.2.pt"]


def test_lightning_a_run_of_nothing_but_nan_saves_no_best(tmp_path: Path) -> None:
    hook = run([NAN, NAN, NAN], tmp_path)
    assert hook.best is None
    assert best_files(tmp_path) == []


def test_mmdet_a_metric_rounded_to_ties_keeps_the_first(tmp_path: Path) -> None:
    assert best_of(run([0.123, 0.123, 0.123], tmp_path)) == (0.123, 1)


def test_ignite_scores_that_are_equal_to_four_decimals_do_not_collide(tmp_path: Path) -> None:
    run([0.50001, 0.50002, 0.50003], tmp_path, n_saved=2)
    assert sorted(step_in(tmp_path / name) for name in best_files(tmp_path)) == [2, 3]


def test_monai_a_value_that_is_no_number_is_no_score_of_minus_one(tmp_path: Path) -> None:
    hook = run([[0.1, 0.2], "x", 0.3], tmp_path, on_bad_score="skip")
    assert best_of(hook) == (0.3, 3)
    assert len(best_files(tmp_path)) == 1


def test_coco_a_sentinel_of_minus_one_is_an_ordinary_low_score() -> None:
    assert best_of(run([-1, 0.0, -1])) == (0.0, 2)


def test_keras_an_epoch_without_the_monitored_value_leaves_the_best_alone(tmp_path: Path) -> None:
    hook = run([{"acc": 0.5}, {}, {"acc": 0.4}, {}], tmp_path)
    assert best_of(hook) == (0.5, 1)
    assert step_in(find_best(tmp_path).path) == 1


def test_mmcv_mmdet_an_empty_result_does_not_end_training() -> None:
    hook = run([{}, {"bbox_mAP": 0.1}, {}], save_best="bbox_mAP")
    assert [len(record.metrics) for record in hook.history] == [0, 1, 0]
    assert best_of(hook) == (0.1, 2)


def test_composer_strings_and_mappings_among_the_metrics_are_no_trouble() -> None:
    said = {"acc": 0.5, "bbox_mAP_copypaste": "0.1 0.2", "per_class": {"a": 0.1, "b": 0.9}}
    hook, trainer = scripted([said] * 3)
    hook.early_stopping(2)
    hook.attach(trainer)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 3


# --------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    "name",
    [
        *("heatmap_loss", "val_heatmap_loss", "MAPE", "stop_loss", "accumulated_loss"),
        *("topology_loss", "accel_err"),  # MMCV
        *("wer", "perplexity", "rmse", "mse", "mae", "nll", "fid"),  # Transformers, Composer
    ],
)
def test_mmcv_mmengine_hf_composer_a_metric_that_falls_is_not_maximised(name: str) -> None:
    assert infer_rule(name).value == "less"
    assert best_of(run([{name: 0.2}, {name: 0.1}, {name: 0.3}], save_best=name)) == (0.1, 2)


@pytest.mark.parametrize("name", ["f1", "recall", "dice", "PSNR", "SSIM", "AP", "AR", "PCK"])
def test_mmcv_the_names_of_our_field_need_no_rule(name: str) -> None:
    assert infer_rule(name).value == "greater"


@pytest.mark.parametrize("name", ["val_acc", "val_accuracy", "mAP"])
def test_lightning_an_accuracy_is_not_minimised_by_default(name: str) -> None:
    assert best_of(run([{name: 0.2}, {name: 0.3}, {name: 0.1}], save_best=name)) == (0.3, 2)


def test_ignite_lightning_hf_an_unknown_name_is_an_error_and_no_guess() -> None:
    with pytest.raises(RuleInferenceError, match="zorkness"):
        scripted([], save_best="zorkness")


class Recalls(EvalHook):
    greater_keys: ClassVar = ["zorkness"]


def test_mmaction2_keys_overridden_in_a_subclass_are_not_dead() -> None:
    hook = run([{"zorkness": 1}, {"zorkness": 2}], save_best="zorkness", hook_class=Recalls)
    assert best_of(hook) == (2.0, 2)


def test_mmcv_a_bare_string_of_keys_is_one_key() -> None:
    hook = run([{"zorkness": 2}, {"zorkness": 1}], save_best="zorkness", less_keys="zorkness")
    assert best_of(hook) == (1.0, 2)


# ------------------------------------------------------------------- found before hours are spent


DATA = [(torch.full((2, 1), 1.0), torch.zeros(2, 1)), (torch.full((1, 1), 4.0), torch.zeros(1, 1))]


def never_trained(hook: EvalHook) -> Engine:
    def train(engine: Engine, batch: Any) -> None:
        pytest.fail("a training step was taken")

    trainer = Engine(train)
    hook.attach(trainer)
    return trainer


def test_all_a_misspelled_metric_is_found_before_the_first_step() -> None:
    evaluator = create_evaluator(counter(), {"accuracy_top": MeanAbsoluteError()})
    hook = EvalHook(DATA, evaluator, save_best="acuracy_top", rule="greater", out_dir=False)
    trainer = never_trained(hook)
    with pytest.raises(ValueError, match=r"no metric 'acuracy_top'.*did you mean 'accuracy_top'"):
        trainer.run([0], max_epochs=1)


def test_mmcv_auto_with_a_name_without_a_rule_is_found_before_the_first_step() -> None:
    evaluator = create_evaluator(counter(), {"zorkness": MeanAbsoluteError()})
    trainer = never_trained(EvalHook(DATA, evaluator, save_best="auto", out_dir=False))
    with pytest.raises(RuleInferenceError, match="zorkness"):
        trainer.run([0], max_epochs=1)


def test_mmcv_mmengine_a_typo_in_an_argument_is_refused_at_construction() -> None:
    with pytest.raises(TypeError, match="did you mean save_best="):
        EvalHook(DATA, create_evaluator(counter()), save_bests="acc", out_dir=False)


def test_mmcv_a_missing_key_says_which_ones_there_are() -> None:
    with pytest.raises(EvaluationError, match=r"no metric 'mAP' in the result, which has \['acc'"):
        run([{"acc": 0.5}], save_best="mAP")


# ------------------------------------------------------------------------------- the file, always


def test_mmcv_mmengine_ignite_monai_keras_a_full_disk_keeps_the_old_best(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.7], tmp_path)
    hook.attach(trainer)
    with full_disk("model_2"), pytest.raises(CheckpointError, match="No space left"):
        trainer.run([0], max_epochs=2)
    assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt"]
    assert step_in(find_best(tmp_path).path) == 1
    assert best_of(hook) == (0.5, 1)


def test_ignite_after_a_failed_save_the_next_one_works(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.7, 0.6], tmp_path, interval=None)
    hook.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine: Engine) -> None:
        if engine.state.epoch != 2:
            hook.evaluate()
            return
        with full_disk(), pytest.raises(CheckpointError):
            hook.evaluate()

    trainer.run([0], max_epochs=3)
    assert best_of(hook) == (0.6, 3)
    assert best_files(tmp_path) == ["best_model_3_acc=0.6.pt"]


def test_lightning_the_new_best_is_complete_before_the_old_one_is_removed(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.7], tmp_path)
    hook.attach(trainer)
    seen: list[tuple[str, list[str]]] = []
    real = LocalStorage.remove

    def remove(self: LocalStorage, name: str) -> None:
        if name.startswith("best"):
            seen.append((name, best_files(tmp_path)))
            assert step_in(find_best(tmp_path).path) == 2
        real(self, name)

    LocalStorage.remove = remove  # type: ignore[method-assign]
    try:
        trainer.run([0], max_epochs=2)
    finally:
        LocalStorage.remove = real  # type: ignore[method-assign]
    old, new = "best_model_1_acc=0.5.pt", "best_model_2_acc=0.7.pt"
    assert seen == [(old, [old, new])]


def test_monai_keras_an_interrupted_write_damages_no_file(tmp_path: Path) -> None:
    run([0.5], tmp_path)
    before = (tmp_path / "best_model_1_acc=0.5.pt").read_bytes()
    hook, trainer = scripted([0.5], tmp_path)
    hook.attach(trainer)
    with full_disk(), pytest.raises(CheckpointError):
        trainer.run([0], max_epochs=1)
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert (earlier / "best_model_1_acc=0.5.pt").read_bytes() == before
    assert not any(path.suffix == ".tmp" for path in tmp_path.rglob(".*"))


def test_ignite_an_old_file_that_is_missing_does_not_end_training(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.7], tmp_path)
    hook.attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda engine: Path(hook.best.path).unlink()
    )
    trainer.run([0], max_epochs=2)
    assert best_of(hook) == (0.7, 2)


class Raising(BaseSaveHandler):
    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, checkpoint: Any, filename: str, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.calls += 1
        raise TypeError("the true cause")

    def remove(self, filename: str) -> None:
        raise AssertionError("nothing to remove")


def test_ignite_a_type_error_while_saving_is_not_hidden_by_a_second_try() -> None:
    handler = Raising()
    with pytest.raises(CheckpointError, match="TypeError: the true cause"):
        run([0.5], handler)
    assert handler.calls == 1


@pytest.mark.parametrize("metric", ["coco/AP", "KITTI/Car_3D_moderate_strict", "mAP@0.5IOU", "a b"])
def test_ignite_mmengine_a_slash_in_a_metrics_name_breaks_no_path(
    metric: str, tmp_path: Path
) -> None:
    hook = run([{metric: 0.5}], tmp_path, save_best=metric, rule="greater")
    assert find_best(tmp_path) == hook.best
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_ignite_a_restart_in_a_folder_that_is_not_empty_works(tmp_path: Path) -> None:
    run([0.9], tmp_path)
    (tmp_path / "mine.pt").write_bytes(b"x")
    assert best_of(run([0.1], tmp_path)) == (0.1, 1)
    assert best_files(tmp_path) == ["best_model_1_acc=0.1.pt", "mine.pt"]


def test_lightning_a_fresh_run_never_deletes_another_runs_files(tmp_path: Path) -> None:
    hook = run([0.9], tmp_path)
    run([0.1, 0.2, 0.3], tmp_path)
    earlier = tmp_path / "earlier" / hook.state_dict()["run_id"]
    assert find_best(earlier).score == 0.9
    assert step_in(find_best(earlier).path) == 1


def test_mmengine_a_best_writes_no_other_checkpoint_and_only_when_it_is_one(tmp_path: Path) -> None:
    written: list[str] = []
    real = LocalStorage.write

    def write(self: LocalStorage, name: str, save: Any, **more: Any) -> str | None:
        written.append(name)
        return real(self, name, save)

    LocalStorage.write = write  # type: ignore[method-assign]
    try:
        run([0.5, 0.4, 0.6, 0.3, 0.2], tmp_path)
    finally:
        LocalStorage.write = real  # type: ignore[method-assign]
    assert len([name for name in written if name.endswith(".pt")]) == 2


def test_mmcv_mmaction2_what_is_loaded_as_the_best_is_the_best_and_not_the_latest(
    tmp_path: Path,
) -> None:
    model = counter()
    hook = run([0.9, 0.1, 0.2], tmp_path, model=model, n_saved=3)
    hook.load_best()
    assert float(model.weight.detach()) == 1  # type: ignore[operator]


def test_keras_lightning_the_k_best_are_kept_and_not_the_k_last(tmp_path: Path) -> None:
    run([0.9, 0.1, 0.8, 0.2], tmp_path, n_saved=2)
    assert best_files(tmp_path) == ["best_model_1_acc=0.9.pt", "best_model_3_acc=0.8.pt"]


# -------------------------------------------------------------------------- more than one of them


def test_mmcv_mmengine_two_validation_sets_keep_a_best_each(tmp_path: Path) -> None:
    model = counter()
    percent, trainer = scripted([80.0, 70.0], tmp_path, model=model)
    fraction, _ = scripted([0.1, 0.9], tmp_path, model=model, name="test")
    percent.attach(trainer)
    fraction.attach(trainer)
    trainer.run([0], max_epochs=2)
    assert (best_of(percent), best_of(fraction)) == ((80.0, 1), (0.9, 2))
    assert step_in(find_best(tmp_path, name="val").path) == 1
    assert step_in(find_best(tmp_path, name="test").path) == 2


def test_mmcv_mmengine_two_metrics_keep_a_best_each(tmp_path: Path) -> None:
    said = [{"mIoU": 80.0, "acc": 0.1}, {"mIoU": 70.0, "acc": 0.9}]
    run(said, tmp_path, save_best=["mIoU", "acc"])
    assert step_in(find_best(tmp_path, "mIoU").path) == 1
    assert step_in(find_best(tmp_path, "acc").path) == 2


# -------------------------------------------------------------------------------- after a restart


def started(folder: Path, scores: list[Any], *, saves: str = "last", patience: int = 99) -> Any:
    """Build everything anew, as a new process would, and resume if there is something to."""
    model = counter()
    hook, trainer = scripted(scores, folder, model=model)
    stopper = hook.early_stopping(patience)
    to_save = {"model": model, "trainer": trainer, "eval_hook": hook}
    mine = Checkpoint(to_save, DiskSaver(folder / "mine", require_empty=False), n_saved=1)
    if saves == "before":
        trainer.add_event_handler(Events.EPOCH_COMPLETED, mine)
    hook.attach(trainer)
    if saves == "after":
        trainer.add_event_handler(Events.EPOCH_COMPLETED, mine)
    if saves == "last":
        hook.keep_last({"model": model})
    else:
        for path in (folder / "mine").glob("*.pt"):
            Checkpoint.load_objects(to_save, path)
    return hook, trainer, stopper


@pytest.mark.parametrize("saves", ["before", "after", "last"])
def test_mmcv_monai_keras_lightning_a_worse_epoch_after_a_restart_is_not_the_best(
    saves: str, tmp_path: Path
) -> None:
    _, trainer, _ = started(tmp_path, [0.5, 0.9], saves=saves)
    trainer.run([0], max_epochs=2)
    # Saved before the hook, epoch 2 has no evaluation in the state: it is made up for.
    scores = [0.9, 0.6, 0.7] if saves == "before" else [0.6, 0.7]
    hook, trainer, _ = started(tmp_path, scores, saves=saves)
    trainer.run([0], max_epochs=4)
    assert best_of(hook) == (0.9, 2)
    assert [record.iteration for record in hook.history] == [1, 2, 3, 4]
    assert [record.is_best for record in hook.history] == [True, True, False, False]
    assert step_in(find_best(tmp_path).path) == 2
    assert best_files(tmp_path) == [
        *(["best_model_2_acc=0.9.pt"]), *(["last.pt"] if saves == "last" else []),
    ]  # fmt: skip


def test_ignite_a_restart_leaves_one_best_and_not_two(tmp_path: Path) -> None:
    _, trainer, _ = started(tmp_path, [0.5])
    trainer.run([0], max_epochs=1)
    _, trainer, _ = started(tmp_path, [0.7])
    trainer.run([0], max_epochs=2)
    assert best_files(tmp_path) == ["best_model_2_acc=0.7.pt", "last.pt"]


def test_lightning_a_moved_folder_keeps_its_best(tmp_path: Path) -> None:
    _, trainer, _ = started(tmp_path / "old", [0.9])
    trainer.run([0], max_epochs=1)
    shutil.move(tmp_path / "old", tmp_path / "new")
    hook, trainer, _ = started(tmp_path / "new", [0.2])
    trainer.run([0], max_epochs=2)
    assert best_of(hook) == (0.9, 1)
    assert find_best(tmp_path / "new") == hook.best
    assert hook.best.path.parent == tmp_path / "new"


def test_mmengine_monai_keras_patience_goes_on_counting_after_a_restart(tmp_path: Path) -> None:
    _, trainer, _ = started(tmp_path, [0.9, 0.5, 0.5], patience=4)
    trainer.run([0], max_epochs=3)
    _, trainer, stopper = started(tmp_path, [0.5, 0.5, 0.5], patience=4)
    assert (stopper.counter, stopper.best_score) == (2, 0.9)
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 5


def test_lightning_a_patience_raised_at_a_restart_is_obeyed(tmp_path: Path) -> None:
    _, trainer, _ = started(tmp_path, [0.9, 0.5], patience=2)
    trainer.run([0], max_epochs=2)
    _, trainer, stopper = started(tmp_path, [0.5] * 9, patience=10)
    assert stopper.patience == 10
    trainer.run([0], max_epochs=9)
    assert trainer.state.epoch == 9


# --------------------------------------------------------------------------------- early stopping


def epochs_run(scores: list[Any], patience: int, **options: Any) -> int:
    hook, trainer = scripted(scores)
    hook.early_stopping(patience, **options)
    hook.attach(trainer)
    trainer.run([0], max_epochs=len(scores))
    return int(trainer.state.epoch)


def test_mmengine_a_constant_metric_stops() -> None:
    assert epochs_run([0.5] * 10, 3) == 4


def test_mmengine_a_small_but_steady_gain_does_not_stop_by_default() -> None:
    assert epochs_run([0.5 + 0.02 * n for n in range(10)], 3) == 10


def test_hf_small_gains_add_up_to_the_threshold_if_it_is_cumulative() -> None:
    scores = [0.5 + 0.02 * n for n in range(10)]
    assert epochs_run(scores, 3, threshold=0.03) == 4
    assert epochs_run(scores, 3, threshold=0.03, cumulative=True) == 10


def test_ignite_monai_a_diverged_run_stops() -> None:
    assert epochs_run([NAN] * 30, 2) == 2
    assert epochs_run([0.5, *[NAN] * 30], 2) == 3


def test_ignite_monai_a_nan_now_and_then_does_not_defeat_patience() -> None:
    assert epochs_run([0.5, 0.4, NAN, 0.4, NAN, 0.4], 3) == 4


def test_keras_a_first_nan_does_not_stop_a_healthy_run() -> None:
    assert epochs_run([NAN, 0.5, 0.6, 0.7, 0.8], 2) == 5


def test_ignite_a_relative_threshold_does_not_accept_ever_worse_negative_scores() -> None:
    scores = [-1.0, -1.05, -1.1, -1.15]
    assert epochs_run(scores, 2, threshold=0.1, threshold_mode="rel") == 3


def test_ignite_its_own_handler_fed_with_our_score_gets_these_right_too() -> None:
    for scores, epochs in (([NAN] * 9, 3), ([0.5, NAN, 0.4, 0.4], 3), ([0.5] * 9, 3)):
        hook, trainer = scripted(scores)
        stopper = EarlyStopping(2, hook.score_function, trainer)
        hook.evaluator.add_event_handler(Events.COMPLETED, stopper)
        hook.attach(trainer)
        trainer.run([0], max_epochs=len(scores))
        assert trainer.state.epoch == epochs


# ----------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_mmcv_an_evaluation_before_training_happens_and_is_called_step_0(
    interval: int, tmp_path: Path
) -> None:
    hook, trainer = scripted([0.9, 0.1, 0.1, 0.1], tmp_path, start=0, interval=interval)
    hook.attach(trainer)
    trainer.run([0, 0], max_epochs=3)
    assert (hook.history[0].epoch, hook.history[0].iteration) == (0, 0)
    assert best_files(tmp_path) == ["best_model_0_acc=0.9.pt"]
    assert step_in(tmp_path / "best_model_0_acc=0.9.pt") == 0


def test_hf_lightning_the_evaluation_before_training_counts_for_the_best() -> None:
    assert best_of(run_from_0([0.9, 0.5, 0.4])) == (0.9, 0)


def run_from_0(scores: list[float]) -> EvalHook:
    hook, trainer = scripted(scores, start=0)
    hook.attach(trainer)
    trainer.run([0], max_epochs=len(scores) - 1)
    return hook


def test_monai_evaluations_in_the_middle_of_an_epoch_carry_their_own_step(tmp_path: Path) -> None:
    hook, trainer = scripted([0.1, 0.2, 0.3], tmp_path, interval=2, by_epoch=False, n_saved=None)
    hook.attach(trainer)
    trainer.run([0] * 6, max_epochs=1)
    assert [record.iteration for record in hook.history] == [2, 4, 6]
    assert [step_in(tmp_path / name) for name in best_files(tmp_path)] == [2, 4, 6]


def test_lightning_an_evaluation_at_the_end_off_the_grid_can_be_had_and_is_the_best() -> None:
    hook, trainer = scripted([0.1, 0.2], interval=3, at_end=True)
    hook.attach(trainer)
    trainer.run([0], max_epochs=4)
    assert best_of(hook) == (0.2, 4)


# -------------------------------------------------------------------------- the evaluation itself


class Net(nn.Module):
    """Predicts its input; with dropout and BatchNorm that training would notice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(self.drop(self.norm(x)))
        return result


class Echo(nn.Module):
    """Returns what it is given: the "loss" of a sample is written in the data."""

    def __init__(self, wrap: Any = ValLoss) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.wrap = wrap

    def val_step(self, batch: torch.Tensor) -> Any:
        return batch, self.wrap(batch.mean())


def losses(values: list[float], batch_size: int) -> DataLoader[Any]:
    return DataLoader(values, batch_size=batch_size, collate_fn=torch.tensor)  # type: ignore[arg-type]


def metrics_of(model: nn.Module, loader: Any, **options: Any) -> Mapping[str, Any]:
    return EvalHook(loader, model, **options).evaluate().metrics


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
def test_mmengine_the_loss_of_five_samples_does_not_depend_on_the_batch_size(
    batch_size: int,
) -> None:
    found = metrics_of(Echo(), losses([1.0, 1.0, 1.0, 3.0, 4.0], batch_size))
    assert found["val_loss"] == 2.0


def test_mmengine_a_list_of_losses_is_summed_as_in_training() -> None:
    model = Echo(lambda mean: ValLoss({"loss_rpn": [mean, mean * 2]}))
    found = metrics_of(model, losses([1.0], 1))
    assert (found["loss_rpn"], found["val_loss"]) == (3.0, 3.0)


def test_mmengine_a_loss_per_sample_is_accepted() -> None:
    model = Echo(lambda mean: ValLoss({"loss": mean.expand(2)}))
    assert metrics_of(model, losses([1.0, 2.0], 2))["val_loss"] == 1.5


def test_mmengine_a_total_that_the_model_returns_is_not_counted_again() -> None:
    parts = {"loss_cls": 1.0, "loss_box": 2.0, "loss": 3.0}
    tensors = {name: torch.tensor(value) for name, value in parts.items()}
    model = Echo(lambda mean: ValLoss(tensors, total="loss"))
    assert metrics_of(model, losses([1.0], 1))["val_loss"] == 3.0


@pytest.mark.parametrize("output", [{}, [], {"a": torch.ones(1)}, None, "text", (), 3.0])
def test_mmengine_an_output_without_a_loss_is_left_alone(output: Any) -> None:
    class Plain(Echo):
        def val_step(self, batch: torch.Tensor) -> Any:
            return output

    assert metrics_of(Plain(), losses([1.0], 1)) == {}


def test_mmengine_a_result_of_none_is_kept_and_five_samples_are_five() -> None:
    class Nones(Echo):
        def val_step(self, batch: torch.Tensor) -> Any:
            return [None if value > 2 else float(value) for value in batch]

    seen: list[list[Any]] = []

    def compute(results: list[Any]) -> dict[str, float]:
        seen.append(results)
        return {"n": len(results)}

    found = metrics_of(Nones(), losses([1.0, 2.0, 3.0, 4.0, 1.0], 2), compute_metrics=compute)
    assert found["n"] == 5
    assert seen == [[1.0, 2.0, None, None, 1.0]]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_hf_a_batch_of_nan_or_infinity_is_not_filtered_out_of_the_loss(bad: float) -> None:
    hook = run([{"val_loss": 0.5}], save_best="val_loss")
    found = metrics_of(Echo(), losses([0.1, *[bad] * 9], 1))["val_loss"]
    assert not math.isfinite(found)
    assert best_of(hook) == (0.5, 1)
    again = run([{"val_loss": 0.5}, {"val_loss": found}], save_best="val_loss")
    assert best_of(again) == (0.5, 1)


def test_ignite_the_sum_of_many_losses_is_exact_and_not_that_of_float32() -> None:
    values = [0.1] * 4000 + [1e4] + [0.1] * 4000
    found = metrics_of(Echo(), losses(values, 1))["val_loss"]
    assert found == math.fsum(torch.tensor(values).tolist()) / len(values)


def trainer_of(model: Net, seed: int = 0) -> Engine:
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def train(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        model(batch[0]).pow(2).mean().backward()
        optimizer.step()

    return Engine(train)


def test_all_weights_are_bit_identical_with_and_without_evaluation() -> None:
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(12, 1))
    start = Net()
    found = []
    for evaluate in (False, True):
        model = copy.deepcopy(start)
        trainer = trainer_of(model)
        if evaluate:
            val = DataLoader(TensorDataset(torch.randn(5, 1), torch.randn(5, 1)), batch_size=2)
            EvalHook(val, create_evaluator(model, {"mae": MeanAbsoluteError()})).attach(trainer)
            torch.manual_seed(0)
        trainer.run(DataLoader(data, batch_size=3, shuffle=True), max_epochs=4)
        found.append((model.state_dict(), torch.get_rng_state()))
    (plain, plain_random), (watched, watched_random) = found
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert torch.equal(plain_random, watched_random)


def test_monai_composer_ignite_mmcv_a_frozen_batchnorm_stays_frozen() -> None:
    model = Net()
    model.train()
    model.norm.eval()
    flags = [module.training for module in model.modules()]
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    hook = EvalHook(DATA, create_evaluator(model))
    hook.evaluate()
    assert [module.training for module in model.modules()] == flags
    assert seen == [False] * len(DATA)


def test_ignite_the_model_is_back_in_training_mode_also_when_the_evaluation_raises() -> None:
    model = Net()
    hook = EvalHook(DATA, create_evaluator(model), compute_metrics=lambda results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hook.evaluate()
    assert all(module.training for module in model.modules())


def test_mmengine_lightning_keras_swapped_weights_come_back_when_the_evaluation_raises() -> None:
    model = counter()

    @contextmanager
    def swapped() -> Iterator[None]:
        raw = copy.deepcopy(model.state_dict())
        nn.init.constant_(model.weight, 7.0)  # type: ignore[arg-type]
        try:
            yield
        finally:
            model.load_state_dict(raw)

    hook, trainer = scripted([RuntimeError("boom")], model=model, context=swapped)
    hook.attach(trainer)
    with pytest.raises(RuntimeError, match="boom"):
        trainer.run([0], max_epochs=1)
    assert float(model.weight.detach()) == 1  # type: ignore[operator]


def test_keras_monai_the_best_checkpoint_holds_the_weights_that_were_scored(tmp_path: Path) -> None:
    model = counter()

    @contextmanager
    def swapped() -> Iterator[None]:
        raw = copy.deepcopy(model.state_dict())
        nn.init.constant_(model.weight, 7.0)  # type: ignore[arg-type]
        yield
        model.load_state_dict(raw)

    run([0.5], tmp_path, model=model, context=swapped)
    assert step_in(find_best(tmp_path).path) == 7


def test_ignite_an_evaluation_after_one_that_raised_sees_all_the_data() -> None:
    class Broken(Echo):
        broken = True

        def val_step(self, batch: torch.Tensor) -> Any:
            if self.broken and float(batch[0]) == 3.0:
                raise RuntimeError("boom")
            return super().val_step(batch)

    model = Broken()
    hook = EvalHook(losses([1.0, 3.0, 5.0], 1), model)
    with pytest.raises(RuntimeError, match="boom"):
        hook.evaluate()
    model.broken = False
    record = hook.evaluate()
    assert (record.samples, record.metrics["val_loss"]) == (3, 3.0)


def test_ignite_metrics_work_beside_an_appended_loss_and_are_there_when_it_is_completed() -> None:
    class Classifier(Echo):
        def val_step(self, batch: torch.Tensor) -> Any:
            wanted = torch.zeros(len(batch), dtype=torch.long)
            scores = torch.stack([batch < 2, batch >= 2], dim=1).float()
            return scores, wanted, ValLoss(batch.mean())

    model = Classifier()
    evaluator = create_evaluator(model, {"accuracy": Accuracy()})
    seen: list[dict[str, Any]] = []
    evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: seen.append(dict(engine.state.metrics))
    )
    hook = EvalHook(losses([1.0, 1.0, 4.0, 2.0], 3), evaluator, save_best="auto", out_dir=False)
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0], max_epochs=1)
    assert seen == [{"accuracy": 0.5, "val_loss": 2.0}]
    assert best_of(hook) == (0.5, 1)


def test_mmengine_an_evaluation_without_training_works_also_with_save_best(tmp_path: Path) -> None:
    hook = EvalHook(losses([1.0, 3.0], 1), Echo(), save_best="val_loss", out_dir=tmp_path)
    assert hook.evaluate().metrics["val_loss"] == 2.0
    assert hook.best is None
    assert list(tmp_path.iterdir()) == []


def test_mmcv_what_best_json_says_is_on_the_disk_at_every_moment(tmp_path: Path) -> None:
    hook, trainer = scripted([0.1, 0.5, 0.3, 0.7], tmp_path)
    hook.attach(trainer)

    @trainer.on(Events.EPOCH_STARTED | Events.EPOCH_COMPLETED)
    def look(engine: Engine) -> None:
        if hook.best is not None:
            said = best_json(tmp_path)
            assert step_in(tmp_path / said["file"]) == said["iteration"] == hook.best.iteration

    trainer.run([0], max_epochs=4)
