"""Tests of taking over an old run of MMCV or MMEngine."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from helpers.private import OldRun, read_old_run, take_over
from helpers.ranks import on_ranks
from helpers.scripted import scripted
from ignite_evalhook import Best, CheckpointError, EvalHook, find_best, load_best

LENGTH = 10  # iterations an epoch


def weights(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((1, 1), value), "bias": torch.zeros(1)}


def mmcv(score: Any = 0.5, best: str = "best_mAP_epoch_2.pth", **meta: Any) -> dict[str, Any]:
    """Return a checkpoint as MMCV 1.x writes it."""
    messages = {"best_score": score, "best_ckpt": best, "last_ckpt": "epoch_3.pth"}
    return {
        "meta": {"epoch": 3, "iter": 30, "mmcv_version": "1.7.1", "hook_msgs": messages, **meta},
        "state_dict": OrderedDict(weights(3.0)),
        "optimizer": {},
    }


def mmengine(info: dict[str, Any], **meta: Any) -> dict[str, Any]:
    """Return a checkpoint as MMEngine writes it, without its log."""
    hub = {"log_scalars": {}, "runtime_info": OrderedDict(info), "resumed_keys": {}}
    return {
        "meta": {"epoch": 3, "iter": 30, "experiment_name": "x", **meta},
        "state_dict": OrderedDict(weights(3.0)),
        "message_hub": hub,
    }


# -- reading ----------------------------------------------------------------------------------

READ: list[tuple[str, dict[str, Any], str | None, OldRun]] = [
    (
        "mmcv by epochs",
        mmcv(0.5, "/old/best_bbox_mAP_50_epoch_2.pth"),
        None,
        OldRun(
            3, 30, (Best("bbox_mAP_50", 0.5, 2, 20, Path("/old/best_bbox_mAP_50_epoch_2.pth")),)
        ),
    ),
    (
        "a score of zero",
        mmcv(0.0),
        None,
        OldRun(3, 30, (Best("mAP", 0.0, 2, 20, Path("best_mAP_epoch_2.pth")),)),
    ),
    (
        "mmcv by iterations notes one iteration too few",
        mmcv(0.5, "w/best_mIoU_iter_20.pth", iter=39, epoch=4),
        None,
        OldRun(4, 40, (Best("mIoU", 0.5, 2, 20, Path("w/best_mIoU_iter_20.pth")),)),
    ),
    (
        "the name of the file is right about iterations",
        mmcv(0.5, "w/best_mIoU_iter_20.pth", iter=39, epoch=4),
        "iter_40.pth",
        OldRun(4, 40, (Best("mIoU", 0.5, 2, 20, Path("w/best_mIoU_iter_20.pth")),)),
    ),
    (
        "a best of the first version of the hook has no step in its name",
        mmcv(0.5, "best_top1_acc.pth"),
        None,
        OldRun(3, 30, (Best("top1_acc", 0.5, 3, 30, Path("best_top1_acc.pth")),)),
    ),
    ("mmcv without a best", mmcv(float("-inf")), None, OldRun(3, 30, ())),
    ("mmcv without messages", mmcv() | {"meta": {"epoch": 3, "iter": 30}}, None, OldRun(3, 30, ())),
    (
        "mmengine with one metric",
        mmengine({"best_score": 0.25, "best_ckpt": "w/best_coco_AP_epoch_1.pth"}),
        None,
        OldRun(3, 30, (Best("coco_AP", 0.25, 1, 10, Path("w/best_coco_AP_epoch_1.pth")),)),
    ),
    (
        "mmengine with several",
        mmengine(
            {
                "best_score_coco/AP": 0.25,
                "best_ckpt_coco/AP": "w/best_coco_AP_epoch_1.pth",
                "best_score_loss": 1.5,
                "best_ckpt_loss": "w/best_loss_epoch_3-0a1b2c3d.pth",
                "epoch": 2,
            }
        ),
        None,
        OldRun(
            3,
            30,
            (
                Best("coco/AP", 0.25, 1, 10, Path("w/best_coco_AP_epoch_1.pth")),
                Best("loss", 1.5, 3, 30, Path("w/best_loss_epoch_3-0a1b2c3d.pth")),
            ),
        ),
    ),
    (
        "mmengine by iterations counts completed epochs",
        mmengine({"best_score": 1.0, "best_ckpt": "best_acc_iter_15.pth"}, epoch=2, iter=25),
        None,
        OldRun(3, 25, (Best("acc", 1.0, 2, 15, Path("best_acc_iter_15.pth")),)),
    ),
    ("mmengine without a best", mmengine({"epoch": 2}), None, OldRun(3, 30, ())),
]


@pytest.mark.parametrize(("checkpoint", "file", "run"), [row[1:] for row in READ],
                         ids=[row[0] for row in READ])  # fmt: skip
def test_progress_and_bests_are_read(
    checkpoint: dict[str, Any], file: str | None, run: OldRun, tmp_path: Path
) -> None:
    if file is None:
        assert read_old_run(checkpoint) == run
        file = "latest.pth"
    torch.save(checkpoint, tmp_path / file)
    assert read_old_run(tmp_path / file) == run


def test_the_link_latest_leads_to_the_name_that_tells_the_iterations(tmp_path: Path) -> None:
    torch.save(mmcv(0.5, "", iter=39), tmp_path / "iter_40.pth")
    (tmp_path / "latest.pth").symlink_to("iter_40.pth")
    assert read_old_run(tmp_path / "latest.pth").iteration == 40


def test_a_best_that_was_moved_with_the_checkpoint_is_found_beside_it(tmp_path: Path) -> None:
    torch.save(mmcv(0.5, "/gone/work_dirs/best_mAP_epoch_2.pth"), tmp_path / "latest.pth")
    torch.save({}, tmp_path / "best_mAP_epoch_2.pth")
    assert read_old_run(tmp_path / "latest.pth").bests[0].path == tmp_path / "best_mAP_epoch_2.pth"


def test_the_scores_of_numpy_are_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    meta = {"seed": numpy.int64(3), "time": numpy.arange(3)}
    torch.save(mmcv(numpy.float64(0.75), **meta), tmp_path / "latest.pth")
    assert read_old_run(tmp_path / "latest.pth").bests[0].score == 0.75


class Surprise:
    """Runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("surprise"),))


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(mmcv(more=Surprise()), "latest.pth")
    with pytest.raises(CheckpointError, match=r"pass what torch.load\(file, weights_only=False\)"):
        read_old_run("latest.pth")
    assert not Path("surprise").exists()


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ({"model": {}}, r"meta\['iter'\]; got one with the keys \['model'\]"),
        ({"meta": {"epoch": 1}}, "meta"),
        (mmcv("high"), "best_score of the checkpoint is no number: 'high'"),
        (mmcv(None), "best_score of the checkpoint is no number: None"),
    ],
)
def test_what_is_no_checkpoint_of_theirs_is_refused(checkpoint: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_old_run(checkpoint)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        read_old_run(tmp_path / "latest.pth")


def test_a_checkpoint_of_the_real_mmengine_is_read(tmp_path: Path) -> None:
    """Its log holds objects of MMEngine's own, and NumPy's."""
    pytest.importorskip("mmengine")
    from mmengine.hooks import CheckpointHook
    from mmengine.logging import HistoryBuffer, MessageHub

    hub = MessageHub("test_take_over")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("best_score", 0.125)
    hub.update_info("best_ckpt", str(tmp_path / "best_acc_epoch_2.pth"))
    state = hub.state_dict()
    assert isinstance(state["log_scalars"]["train/loss"], HistoryBuffer)
    assert CheckpointHook(save_best="acc").key_indicators == ["acc"]
    torch.save(mmengine({}) | {"message_hub": state}, tmp_path / "epoch_3.pth")
    best = Best("acc", 0.125, 2, 20, tmp_path / "best_acc_epoch_2.pth")
    assert read_old_run(tmp_path / "epoch_3.pth") == OldRun(3, 30, (best,))


# -- taking over ------------------------------------------------------------------------------


class Run:
    """A trainer whose model's weight counts iterations, and a hook that reads scores off a list."""

    def __init__(self, folder: Path, scores: list[float], **options: Any) -> None:
        self.model = nn.Linear(1, 1)
        self.trainer = Engine(lambda engine, batch: None)
        options = {"save_best": "mAP", **options}
        metric = options.pop("metric", options["save_best"])
        said = [{metric: score} for score in scores]
        self.hook, _ = scripted(
            said, folder, model=self.model, trainer=self.trainer, preflight=False, **options
        )

    def go_on(self, run: OldRun, epochs: int) -> None:
        state = {"iteration": run.iteration, "epoch_length": LENGTH, "max_epochs": epochs}
        self.trainer.load_state_dict(state)
        self.hook.attach(self.trainer)
        self.trainer.run([None] * LENGTH, max_epochs=epochs)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of an old run that stands at epoch 3 and had its best, 0.5, at epoch 2."""
    folder = tmp_path / "old"
    folder.mkdir()
    torch.save(mmcv(0.5, "/gone/best_mAP_epoch_2.pth"), folder / "latest.pth")
    torch.save(mmcv() | {"state_dict": weights(2.0)}, folder / "best_mAP_epoch_2.pth")
    return folder


def test_the_old_best_is_the_one_to_beat(old: Path, tmp_path: Path) -> None:
    new = Run(tmp_path / "new", [0.25, 0.5, 0.75])
    run = take_over(new.hook, old / "latest.pth")
    assert new.hook.best is not None
    assert (new.hook.best.score, new.hook.best.epoch, new.hook.best.iteration) == (0.5, 2, 20)
    # Epoch 3 was evaluated by the old run, which did not say what came of it: it is made up.
    new.go_on(run, 5)
    assert [(r.epoch, r.is_best) for r in new.hook.history] == [
        (2, True), (3, False), (4, False), (5, True),
    ]  # fmt: skip
    assert find_best(tmp_path / "new").score == 0.75
    assert sorted(file.name for file in old.iterdir()) == ["best_mAP_epoch_2.pth", "latest.pth"]


def test_the_old_best_can_be_loaded_until_it_is_beaten(old: Path, tmp_path: Path) -> None:
    new = Run(tmp_path / "new", [0.25, 0.5])
    new.go_on(take_over(new.hook, old / "latest.pth"), 4)
    model = nn.Linear(1, 1)
    best = load_best(tmp_path / "new", {"model": model})
    assert (best.score, best.epoch) == (0.5, 2)
    assert best.path == new.hook.best.path == tmp_path / "new" / "best_model_2_mAP=0.5.pt"  # type: ignore[union-attr]
    assert model.weight.item() == 2.0
    assert new.hook.load_best() == best
    assert new.model.weight.item() == 2.0


def test_a_run_that_was_taken_over_can_be_broken_and_resumed(old: Path, tmp_path: Path) -> None:
    scores = [0.25, 0.5, 0.75, 0.125]

    def go(folder: Path, *, until: int, used: int) -> EvalHook:
        new = Run(folder, scores[used:])
        new.hook.attach(new.trainer)
        if not new.hook.keep_last({"model": new.model}):
            run = take_over(new.hook, old / "latest.pth")
            state = {"iteration": run.iteration, "epoch_length": LENGTH, "max_epochs": until}
            new.trainer.load_state_dict(state)
        new.trainer.run([None] * LENGTH, max_epochs=until)
        return new.hook

    unbroken = go(tmp_path / "unbroken", until=6, used=0)
    go(tmp_path / "broken", until=4, used=0)
    broken = go(tmp_path / "broken", until=6, used=2)

    def told(hook: EvalHook) -> list[Any]:
        return [(r.epoch, dict(r.metrics), r.best_of) for r in hook.history]

    assert told(broken) == told(unbroken)
    assert [epoch for epoch, _, _ in told(broken)] == [2, 3, 4, 5, 6]
    assert broken.best is not None
    assert broken.best.epoch == 5
    assert find_best(tmp_path / "broken").score == 0.75


def test_a_best_whose_file_is_gone_is_still_the_one_to_beat(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (old / "best_mAP_epoch_2.pth").unlink()
    new = Run(tmp_path / "new", [0.25, 0.5, 0.75])
    with caplog.at_level(logging.WARNING, "ignite_evalhook"):
        run = take_over(new.hook, old / "latest.pth")
    assert "there is no best to load before it is beaten" in caplog.text
    assert new.hook.best == Best("mAP", 0.5, 2, 20)
    new.go_on(run, 5)
    assert [r.epoch for r in new.hook.history if r.is_best] == [2, 5]


def test_auto_takes_the_old_metric(old: Path, tmp_path: Path) -> None:
    new = Run(tmp_path / "new", [0.25, 0.75], save_best="auto", metric="mAP")
    new.go_on(take_over(new.hook, old / "latest.pth"), 4)
    assert [r.best_of for r in new.hook.history] == [("mAP",), (), ("mAP",)]


def test_a_name_with_a_slash_is_found_by_its_file(tmp_path: Path) -> None:
    checkpoint = mmengine({"best_score": 0.5, "best_ckpt": "best_coco_AP_epoch_2.pth"})
    new = Run(tmp_path / "new", [], save_best="coco/AP")
    take_over(new.hook, checkpoint)
    assert new.hook.best == Best("coco/AP", 0.5, 2, 20)


def test_several_metrics_are_taken_over_each_with_its_own_step(tmp_path: Path) -> None:
    info = {
        "best_score_coco/AP": 0.25,
        "best_ckpt_coco/AP": "w/best_coco_AP_epoch_1.pth",
        "best_score_loss": 1.5,
        "best_ckpt_loss": "w/best_loss_epoch_3.pth",
        "best_score_other": 1.0,
    }
    new = Run(tmp_path / "new", [], save_best=["loss", "coco/AP"], metric="loss")
    take_over(new.hook, mmengine(info))
    bests = {metric: best for metric, (best,) in new.hook.bests.items()}
    assert bests == {"loss": Best("loss", 1.5, 3, 30), "coco/AP": Best("coco/AP", 0.25, 1, 10)}
    assert [(r.epoch, r.best_of) for r in new.hook.history] == [(1, ("coco/AP",)), (3, ("loss",))]


def test_a_run_without_a_best_only_says_where_it_stands(tmp_path: Path) -> None:
    new = Run(tmp_path / "new", [0.25, 0.125])
    new.go_on(take_over(new.hook, mmengine({})), 4)
    assert [(r.epoch, r.is_best) for r in new.hook.history] == [(3, True), (4, False)]


def test_weights_with_other_names_can_be_converted(old: Path, tmp_path: Path) -> None:
    renamed = {f"head.{name}": value for name, value in weights(2.0).items()}
    torch.save({"state_dict": renamed}, old / "best_mAP_epoch_2.pth")
    new = Run(tmp_path / "new", [])
    with pytest.raises(ValueError, match=r"the model has no 'head.weight'.*pass convert="):
        take_over(new.hook, old / "latest.pth")
    assert new.hook.history == type(new.hook.history)()
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").glob("best*"))
    take_over(
        new.hook,
        old / "latest.pth",
        convert=lambda state: {name.removeprefix("head."): v for name, v in state.items()},
    )
    assert new.hook.best is not None


def test_weights_of_another_shape_are_refused(old: Path, tmp_path: Path) -> None:
    wide = weights(2.0) | {"weight": torch.zeros(1, 2)}
    torch.save({"state_dict": wide}, old / "best_mAP_epoch_2.pth")
    words = r"'weight' is \(1, 2\) in the old file, \(1, 1\) now"
    with pytest.raises(ValueError, match=words):
        take_over(Run(tmp_path / "new", []).hook, old / "latest.pth")


@pytest.mark.parametrize(
    "content",
    [{"state_dict": 3}, {"state_dict": [1.0]}, {"state_dict": {"weight": 1.0}},
     {"state_dict": {"weight": torch.zeros(1, 1), 3: torch.zeros(1)}}, [1], {}],
)  # fmt: skip
def test_a_best_that_holds_something_else_is_refused_with_its_name(
    content: Any, old: Path, tmp_path: Path
) -> None:
    torch.save(content, old / "best_mAP_epoch_2.pth")
    hook = Run(tmp_path / "new", []).hook
    with pytest.raises((ValueError, CheckpointError), match=r"old.best_mAP_epoch_2\.pth"):
        take_over(hook, old / "latest.pth")
    assert hook.best is None


def test_another_metric_is_refused(old: Path, tmp_path: Path) -> None:
    words = r"the old run followed \['mAP'\], the hook follows \['accuracy'\]"
    with pytest.raises(ValueError, match=words):
        take_over(Run(tmp_path / "new", [], save_best="accuracy").hook, old / "latest.pth")


def test_a_best_without_a_name_is_of_the_metric_that_the_hook_follows(tmp_path: Path) -> None:
    new = Run(tmp_path / "new", [])
    take_over(new.hook, mmcv(0.5, "link_to_best.pth"))
    assert new.hook.best == Best("mAP", 0.5, 3, 30)
    auto = Run(tmp_path / "auto", [], save_best="auto", metric="mAP")
    with pytest.raises(ValueError, match="neither does save_best='auto'"):
        take_over(auto.hook, mmcv(0.5, "link_to_best.pth"))


def test_a_hook_with_a_history_is_refused(old: Path, tmp_path: Path) -> None:
    new = Run(tmp_path / "new", [0.25])
    new.hook.attach(new.trainer)
    new.trainer.run([None], max_epochs=1)
    with pytest.raises(ValueError, match="has a history of 1 records already"):
        take_over(new.hook, old / "latest.pth")


def on_one_rank(rank: int, folder: Path) -> Any:
    new = Run(folder / "new", [0.25, 0.5, 0.75])
    run = take_over(new.hook, folder / "old" / "latest.pth")
    new.go_on(run, 5)
    return run, new.hook.best, [(r.epoch, dict(r.metrics), r.best_of) for r in new.hook.history]


def test_all_ranks_take_over_the_same(old: Path, tmp_path: Path) -> None:
    one, other = on_ranks(2, on_one_rank, tmp_path)
    assert one == other
    assert one[0].bests[0].score == 0.5
    assert one[1].score == 0.75
