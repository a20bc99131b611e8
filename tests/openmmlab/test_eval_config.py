"""The ``evaluation`` blocks of OpenMMLab's configs: what becomes of a hundred real ones."""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.utils.data import DataLoader, Dataset

from helpers.openmmlab_configs import (
    EPOCHS,
    ITERATIONS,
    LINES,
    NEVER_DUE,
    RETURNED,
    SIGNATURES,
    TOP_1_5,
    Line,
)
from helpers.private import eval_hook_from_config
from ignite_evalhook import (
    BestCheckpoint,
    EvalHook,
    RuleInferenceError,
    Schedule,
    create_evaluator,
    infer_rule,
)

SAMPLES = 4


class Evaluate:
    """A data set's ``evaluate`` with the signature that the project's had."""

    def __init__(self, signature: str, returns: Mapping[str, Any]) -> None:
        function = eval(f"lambda {signature}: None")
        self.__signature__ = inspect.signature(function)
        self.returns = returns
        self.passed: list[dict[str, Any]] = []

    def __call__(self, results: list[Any], **kwargs: Any) -> dict[str, Any]:
        self.__signature__.bind(results, **kwargs)
        assert len(results) == SAMPLES
        kwargs.pop("logger", None)
        self.passed.append(kwargs)
        return dict(self.returns)


class Data(Dataset[torch.Tensor]):
    """Four samples, and the methods that OpenMMLab's data sets have."""

    def __init__(self, evaluate: Evaluate | None) -> None:
        self.pre_evaluated: list[int] = []
        if evaluate is not None:
            self.evaluate = evaluate

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index)])

    def pre_eval(self, output: torch.Tensor, indices: list[int]) -> list[int]:
        self.pre_evaluated += indices
        return list(indices)


def loader(signature: str = "results, metric=None, **kwargs", **returns: Any) -> DataLoader[Any]:
    return DataLoader(Data(Evaluate(signature, returns or {"mIoU": 0.5})), batch_size=2)


def loader_of(line: Line) -> DataLoader[Any]:
    return loader(SIGNATURES[line.dataset], **line.returns)


def hook_of(cfg: Any, **more: Any) -> EvalHook:
    """Return a hook on a model that gives back its input."""
    data = more.pop("dataloader", None) or loader()
    return eval_hook_from_config(cfg, data, nn.Identity(), **more)


def evaluator() -> Engine:
    model = nn.Linear(1, 1)
    return create_evaluator(model, step=lambda engine, batch: model(batch))


def due_steps(hook: EvalHook, last: int) -> list[int]:
    """Return all due steps up to ``last``."""
    schedule = hook._plan.schedule
    steps = [0] if schedule.before_training else []
    step = schedule.next_due(0)
    while step is not None and step <= last:
        steps.append(step)
        step = schedule.next_due(step)
    return steps


def run_to(hook: EvalHook, step: int) -> None:
    """Run a training of one iteration an epoch that stands just before ``step``."""
    trainer = Engine(lambda engine, batch: None)
    last = max(step, 1)
    state = {"epoch_length": 1, "max_epochs": last, "iteration": last - 1}
    if step > 1:
        trainer.load_state_dict(state)
    hook.attach(trainer)
    trainer.run([0], max_epochs=last)
    hook.detach()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


def follows(line: Line) -> bool:
    """Return whether the line itself follows a metric."""
    return bool({"save_best", "key_indicator"} & set(line.block)) or line.preset == "mmaction2"


def config_of(line: Line, folder: Path) -> dict[str, Any]:
    config = {"evaluation": line.block, "work_dir": str(folder), "model": {"type": "SomeNet"}}
    return config if line.runner is None else {**config, "runner": line.runner}


def names_of_lines() -> list[str]:
    return [f"{number}-{line.source[:60]}" for number, line in enumerate(LINES)]


every_line = pytest.mark.parametrize("line", LINES, ids=names_of_lines())


# -- a hundred real lines -------------------------------------------------------------------------


def test_the_table_is_whole() -> None:
    assert len({(repr(line.block), line.dataset) for line in LINES}) == len(LINES) > 90
    projects = [line.source.split()[0] for line in LINES]
    main = ("mmclassification", "mmdetection", "mmdetection3d", "mmaction2", "mmsegmentation",
            "mmpose")  # fmt: skip
    assert all(projects.count(project) >= 5 for project in main)
    assert set().union(*(line.block for line in LINES)) == {
        *("interval", "start", "by_epoch", "dynamic_intervals", "save_best", "key_indicator"),
        *("rule", "greater_keys", "less_keys", "gpu_collect", "pre_eval", "efficient_test"),
        *("metric", "metrics", "metric_options", "topk", "classwise", "class_splits", "pipeline"),
        *("rle_score", "recall_threshold", "body_part", "save_image"),
    }


@every_line
def test_a_line_is_due_when_it_was(line: Line, tmp_path: Path) -> None:
    hook = hook_of(config_of(line, tmp_path), dataloader=loader_of(line), preset=line.preset)
    expected = list(line.due)
    assert due_steps(hook, expected[-1]) == expected
    assert [step for step in due_in_mmcv(line.block, expected[-1]) if step] == [
        # MMCV counts the grid from `start` too, but says 0 and evaluates it only where interval=1.
        step for step in expected if step
    ]  # fmt: skip


@every_line
def test_a_line_evaluates_saves_and_passes_on_what_it_did(line: Line, tmp_path: Path) -> None:
    data = loader_of(line)
    block = copy.deepcopy(line.block)
    more: dict[str, Any] = {} if follows(line) else {"save_best": "auto"}
    hook = eval_hook_from_config(
        config_of(line, tmp_path), data, evaluator(), preset=line.preset, **more
    )
    step = next(iter(line.due))
    if line.best is None:
        with pytest.raises(RuleInferenceError, match="pass rule='greater' or rule='less'"):
            run_to(hook, step)
        assert files(tmp_path) == []
    else:
        run_to(hook, step)
        assert files(tmp_path) == [line.best]
        assert hook.best is not None
        assert_safe(line.best, hook.best.metric)
    assert data.dataset.evaluate.passed == [line.passed]  # type: ignore[attr-defined]
    assert line.block == block
    reduced = data.dataset.pre_evaluated  # type: ignore[attr-defined]
    assert reduced == ([0, 1, 2, 3] if line.block.get("pre_eval") else [])


ONE_OF_EACH_PROJECT = {line.preset: line for line in LINES if not follows(line)}.values()


@pytest.mark.parametrize("line", ONE_OF_EACH_PROJECT, ids=lambda line: line.source[:60])
def test_a_line_that_follows_nothing_saves_nothing(line: Line, tmp_path: Path) -> None:
    hook = eval_hook_from_config(
        config_of(line, tmp_path), loader_of(line), evaluator(), preset=line.preset
    )
    run_to(hook, next(iter(line.due)))
    assert files(tmp_path) == []
    assert hook.history[-1].metrics == line.returns


@pytest.mark.parametrize(("source", "block", "runner", "last"), NEVER_DUE)
def test_a_line_that_was_never_due_is_told_at_the_start(
    source: str, block: Mapping[str, Any], runner: Mapping[str, Any], last: int
) -> None:
    config = {"evaluation": block, "runner": runner}
    hook = hook_of(config, dataloader=loader("results, metric=None"))
    assert due_steps(hook, last) == []
    hook.attach(trainer := Engine(lambda engine, batch: None))
    with pytest.raises(ValueError, match=r"this run has \d+"):
        trainer.run([0], max_epochs=last)
    on_demand = hook_of(config, dataloader=loader("results, metric=None"), interval=None,
                        start=None)  # fmt: skip
    on_demand.attach(trainer := Engine(lambda engine, batch: None))
    trainer.run([0], max_epochs=3)
    assert len(on_demand.history) == 0


def assert_safe(file: str, metric: str) -> None:
    """Check that every system takes the name of a file, and that it tells the metric."""
    assert not re.search(r'[<>:"/\\|?*%\x00-\x1f ]', file)
    assert len(file.encode()) < 255
    assert not file.startswith(".")
    assert not file.endswith((".", " "))
    assert re.sub(r"[^\w.@+-]", "_", metric) in file


def due_in_mmcv(block: Mapping[str, Any], last: int) -> Iterator[int]:
    """Yield the steps at which the hooks of MMCV and MMDetection evaluated."""
    start, changes = block.get("start"), list(block.get("dynamic_intervals") or ())
    interval = block.get("interval", 1)
    for step in range(1, last + 1):
        for from_step, changed in changes:
            if step >= from_step:
                interval = changed
        if (step if start is None else step - start) % interval == 0 and step >= (start or 0):
            yield step


# -- the direction, compared with MMCV's ----------------------------------------------------------

MMCV_KEYS = (
    ("acc", "top", "AR@", "auc", "precision", "mAP", "mDice", "mIoU", "mAcc", "aAcc"),
    ("loss",),
)
MMPOSE_KEYS = (
    ("acc", "ap", "ar", "pck", "auc", "3dpck", "p-3dpck", "3dauc", "p-3dauc", "pcp"),
    ("loss", "epe", "nme", "mpjpe", "p-mpjpe", "n-mpjpe"),
)


def rule_in_mmcv(name: str, keys: tuple[tuple[str, ...], tuple[str, ...]]) -> str:
    """Return the direction that MMCV's hook inferred, or ``error``."""
    greater, less = ([key.lower() for key in some] for some in keys)
    name = name.lower()
    if name in greater:
        return "greater"
    if name in less:
        return "less"
    if any(key in name for key in greater):
        return "greater"
    return "less" if any(key in name for key in less) else "error"


def our_rule(name: str, preset: str | None) -> str:
    try:
        return infer_rule(name, preset=preset).value
    except RuleInferenceError:
        return "error"


# Names for which MMCV's hook had no answer, so that `save_best` was an error: now they have one.
KNOWN_SINCE = {
    r"AP|_ap\b|_ap_": "AP is a word of its own; MMCV knows mAP only",
    r"AR|PCK|3DAUC|rec_|[Rr]ecall|RECALL|Rcll|Prcn|R@1|eao": "so are recall and its kin",
    r"[PSR]Q|JI|HOTA|MOTA|IDF1|MT\b|success|NDS": "and the scores of panoptic, tracking, driving",
    r"C[PR]|O[PR]|F1|f1|hmean|NED|N\.E\.D": "and of several labels and of text",
    r"KITTI/.*(easy|moderate|hard)": "the preset of MMDetection3D knows the difficulties",
    r"IoU|Dice|Fscore|averageScore|\ba[123]$|SSIM|PSNR": "images and parts of them, by class",
    r"FN|FP|IDSw|ML|num_fails|mMR|Md?R\b|MnR": "mistakes are counted downwards",
    r"_err\b|error|m(ATE|ASE|AOE|AVE|AAE)": "so are errors",
    r"MRRPE|MPJPE|PVE|MSE|rmse|abs_rel|sq_rel|silog|log_10": "and distances, by their names",
}

# Names that MMCV's hook followed the wrong way, by a key that is a part of another word.
TURNED_ROUND = {
    ("mmpose", "heatmap_loss"): "'ap' in heatmap",
    ("mmpose", "regression_heatmap_loss"): "'ap' in heatmap",
    ("mmpose", "loss_pose3d_heatmap"): "'ap' in heatmap",
    ("mmdet", "loss_center_heatmap"): "'mAP' in heatmap",
    ("mmdet3d", "task0.loss_heatmap"): "'mAP' in heatmap",
}


@cache
def compared() -> list[tuple[str | None, str, str, str]]:
    """Return preset, name, MMCV's direction and ours for every name that we know of."""
    names = [(line.preset, name) for line in LINES for name in line.returns]
    for preset, of_rules in RETURNED.items():
        names += [(preset, name) for of_rule in of_rules.values() for name in of_rule]
    keys = {preset: MMPOSE_KEYS if preset == "mmpose" else MMCV_KEYS for preset, _ in names}
    return [
        (preset, name, rule_in_mmcv(name, keys[preset]), our_rule(name, preset))
        for preset, name in dict.fromkeys(names)
    ]


def test_a_direction_differs_from_mmcvs_only_where_it_was_wrong() -> None:
    both = [row for row in compared() if "error" not in row[2:]]
    assert len(both) > 100
    assert {(preset, name) for preset, name, was, now in both if was != now} == set(TURNED_ROUND)
    assert {now for preset, name, _, now in both if (preset, name) in TURNED_ROUND} == {"less"}


def test_no_name_is_refused_that_mmcv_took() -> None:
    assert [row for row in compared() if row[2] != "error" and row[3] == "error"] == []


def test_every_name_that_is_new_has_its_reason_and_every_reason_a_name() -> None:
    new = {name for _, name, was, now in compared() if was == "error" != now}
    found = {pattern: [n for n in new if re.search(pattern, n)] for pattern in KNOWN_SINCE}
    assert len(new) > 100
    assert new - {name for names in found.values() for name in names} == set()
    assert all(found.values())


# -- what becomes of each key ---------------------------------------------------------------------


def made(block: Mapping[str, Any], **more: Any) -> tuple[EvalHook, dict[str, Any]]:
    """Return the hook of a block, and what it passes to ``dataset.evaluate``."""
    hook = hook_of(block, out_dir=more.pop("out_dir", False), **more)
    return hook, dict(hook._plan.evaluation.eval_kwargs)


def schedule_of(cfg: Any, **more: Any) -> Schedule:
    return hook_of(cfg, out_dir=False, **more)._plan.schedule


def followed(block: Mapping[str, Any], **more: Any) -> list[str]:
    return list(made(block, **more)[0]._plan.follower.wanted)


@pytest.mark.parametrize(
    ("block", "preset", "names"),
    [
        ({}, None, []),
        ({"save_best": None}, None, []),
        ({"save_best": False}, None, []),
        ({"save_best": "mIoU"}, None, ["mIoU"]),
        ({"key_indicator": "mIoU"}, None, ["mIoU"]),
        ({"key_indicator": None}, None, []),
        ({"save_best": "mIoU", "key_indicator": "mIoU"}, None, ["mIoU"]),
        ({"save_best": None, "key_indicator": "mIoU"}, None, ["mIoU"]),
        ({"save_best": True, "key_indicator": "mIoU"}, None, ["mIoU"]),
        ({"save_best": False, "key_indicator": "mIoU"}, None, []),
        ({"save_best": ["mIoU", "mAcc"]}, None, ["mIoU", "mAcc"]),
        ({}, "mmaction2", ["auto"]),
        ({"save_best": None}, "mmaction2", []),
        ({"save_best": False}, "mmaction2", []),
        ({"save_best": "top1_acc"}, "mmaction2", ["top1_acc"]),
        ({"key_indicator": "top5_acc"}, "mmaction2", ["top5_acc"]),
        ({"save_best": True}, "mmaction2", ["top1_acc"]),
        ({"save_best": True}, "mmpose", ["AP"]),
        ({"save_best": True, "key_indicator": "NME"}, "mmpose", ["NME"]),
        ({}, "mmpose", []),
    ],
)
def test_what_is_followed_by_its_present_and_its_older_name(
    block: dict[str, Any], preset: str | None, names: list[str]
) -> None:
    assert followed(block, preset=preset) == names


@pytest.mark.parametrize(
    ("config", "preset", "by_epoch"),
    [
        ({"evaluation": {}}, None, True),
        ({}, "mmseg", False),
        ({"by_epoch": True}, "mmseg", True),
        ({"by_epoch": False}, None, False),
        ({"evaluation": {}, "runner": ITERATIONS}, None, False),
        ({"evaluation": {}, "runner": EPOCHS}, None, True),
        ({"evaluation": {}, "runner": EPOCHS}, "mmseg", True),
        ({"evaluation": {}, "runner": {"type": "EpochBasedRunnerAmp"}}, None, True),
        ({"evaluation": {}, "runner": {"type": "DynamicIterBasedRunner"}}, None, False),
        ({"evaluation": {}, "runner": {"type": nn.Linear}}, None, True),
        ({"evaluation": {}, "runner": {"max_iters": 100}}, None, False),
        ({"evaluation": {}, "runner": {"max_epochs": 100}}, "mmseg", True),
        ({"evaluation": {}, "runner": {}}, None, True),
        ({"evaluation": {}, "total_epochs": 100}, "mmseg", True),
        ({"evaluation": {}, "total_iters": 100}, None, False),
        ({"evaluation": {"by_epoch": True}, "runner": ITERATIONS}, None, True),
        ({"evaluation": {"by_epoch": False}, "runner": EPOCHS}, None, False),
    ],
)
def test_what_is_counted_is_said_by_the_block_then_the_runner_then_the_project(
    config: dict[str, Any], preset: str | None, by_epoch: bool
) -> None:
    assert schedule_of(config, preset=preset).by_epoch is by_epoch


def test_evaluating_before_the_run_is_start_0() -> None:
    assert schedule_of({"should_evaluate_before_run": True, "interval": 3}).start == 0
    assert schedule_of({"should_evaluate_before_run": True, "start": 0}).start == 0
    assert schedule_of({"should_evaluate_before_run": False, "start": 2}).start == 2
    with pytest.raises(ValueError, match="should_evaluate_before_run=True and start=4 contradict"):
        schedule_of({"should_evaluate_before_run": True, "start": 4})


def test_one_key_may_be_a_bare_string_as_in_mmcv() -> None:
    hook, _ = made({"greater_keys": "quality", "less_keys": ["badness"], "save_best": "quality"})
    assert hook._plan.follower.targets[0].rule.value == "greater"
    assert hook._keys == (("quality",), ("badness",))


def test_topk_belongs_into_metric_options_for_mmaction2_only() -> None:
    signature = "results, metric_options=None, topk=None"
    for preset, passed in (
        ("mmaction2", {"metric_options": TOP_1_5}),
        ("mmcls", {"topk": (1, 5)}),
        (None, {"topk": (1, 5)}),
    ):
        block = {"topk": (1, 5)}
        assert made(block, preset=preset, dataloader=loader(signature))[1] == passed
    block = {"topk": (1, 5), "metric_options": {"top_k_accuracy": {"topk": (1, 5)}, "other": {}}}
    _, passed = made(block, preset="mmaction2", dataloader=loader(signature))
    assert passed == {"metric_options": {**TOP_1_5, "other": {}}}
    block = {"topk": (1,), "metric_options": TOP_1_5}
    with pytest.raises(ValueError, match=r"topk=\(1,\) and metric_options both say .* \(1, 5\)"):
        made(block, preset="mmaction2", dataloader=loader(signature))


def test_the_knobs_of_dist_eval_hook_are_taken_too(tmp_path: Path) -> None:
    block = {"tmpdir": str(tmp_path), "gpu_collect": True, "broadcast_bn_buffer": False}
    hook, passed = made(block)
    evaluation = hook._plan.evaluation
    assert (evaluation.tmpdir, evaluation.gpu_collect) == (str(tmp_path), True)
    assert (evaluation.sync_buffers, passed) == (None, {})


def test_what_the_hook_does_not_know_goes_to_the_data_set_as_it_is() -> None:
    marker = object()
    block = {"metric": ["PCK", "EPE"], "res_folder": "out", "rle_score": True, "x": marker}
    _hook, passed = made(block, dataloader=loader("results, res_folder=None, metric='', **kwargs"))
    assert passed == block
    assert passed["x"] is marker


def test_what_neither_knows_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"neither EvalHook nor compute_metrics has .*'rle_score'"):
        hook_of({"rle_score": True}, dataloader=loader("results, metric=None"))
    with pytest.raises(TypeError, match="no argument 'intervall'; did you mean interval="):
        hook_of({"intervall": 3})
    with pytest.raises(TypeError, match="no argument 'metric', and there is no compute_metrics"):
        hook_of({"metric": "mIoU"}, dataloader=DataLoader(Data(None)))


# -- where files go -------------------------------------------------------------------------------


def folder_of(hook: EvalHook) -> str | None:
    folder = hook._plan.folder
    return None if folder is None else str(folder.storage.location)


def test_the_work_dir_of_the_config_is_the_folder_unless_one_is_given(tmp_path: Path) -> None:
    config = {"evaluation": {}, "work_dir": str(tmp_path / "work")}
    assert folder_of(hook_of(config)) == str(tmp_path / "work")
    assert folder_of(hook_of(config, out_dir=tmp_path / "mine")) == str(tmp_path / "mine")
    assert folder_of(hook_of(config, out_dir=False)) is None
    assert folder_of(hook_of({"evaluation": {}})) is None
    assert folder_of(hook_of({"evaluation": {}, "work_dir": None})) is None


def test_the_blocks_out_dir_gets_the_last_part_of_the_work_dir_as_in_mmcv(tmp_path: Path) -> None:
    block = {"out_dir": f"{tmp_path}/best/"}
    for work_dir in ("work_dirs/resnet", "work_dirs/resnet/"):
        hook = hook_of({"evaluation": block, "work_dir": work_dir})
        assert folder_of(hook) == f"{tmp_path}/best/resnet"
    assert folder_of(hook_of(block)) == f"{tmp_path}/best"
    same = {"evaluation": {"out_dir": str(tmp_path)}, "work_dir": str(tmp_path)}
    assert folder_of(hook_of(same)) == str(tmp_path)
    assert folder_of(hook_of({"evaluation": block}, out_dir=tmp_path / "x")) == f"{tmp_path}/x"


def test_a_checkpoint_of_the_users_own_says_where_files_go(tmp_path: Path) -> None:
    checkpoint = BestCheckpoint({"model": nn.Linear(1, 1)}, tmp_path / "own")
    config = {"evaluation": {"save_best": "mIoU"}, "work_dir": str(tmp_path / "work")}
    hook = hook_of(config, checkpoint=checkpoint)
    assert folder_of(hook) == str(tmp_path / "own")
    assert not (tmp_path / "work").exists()


def test_save_best_without_a_folder_is_the_hooks_own_error() -> None:
    for block in ({"save_best": "mIoU"}, {"key_indicator": "mIoU"}):
        with pytest.raises(ValueError, match=r"save_best='mIoU' needs out_dir='…'; out_dir=False"):
            hook_of(block)
    with pytest.raises(ValueError, match="save_best='auto' needs out_dir"):
        hook_of({}, preset="mmaction2")


def test_to_save_and_the_rest_of_the_hooks_arguments_are_passed_on(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    block = {"save_best": "mIoU"}
    hook = hook_of(block, out_dir=tmp_path, to_save={"net": net}, name="test", at_end=True)
    assert dict(hook._plan.to_save) == {"net": net}
    assert (hook.name, hook._plan.at_end) == ("test", True)


# -- more wins ------------------------------------------------------------------------------------


def test_further_arguments_win_over_the_config() -> None:
    config = {
        "evaluation": {"interval": 5, "by_epoch": True, "start": 3, "metric": "mIoU",
                       "save_best": "mIoU", "rule": "less", "greater_keys": ["x"],
                       "pre_eval": True},
        "runner": ITERATIONS,
    }  # fmt: skip
    more = {"interval": 2, "by_epoch": False, "start": None, "metric": "mDice",
            "save_best": "mDice", "rule": "greater", "greater_keys": ["y"],
            "pre_eval": None}  # fmt: skip
    hook, passed = made(config, **more)
    schedule = hook._plan.schedule
    assert (schedule.interval, schedule.by_epoch, schedule.start) == (2, False, None)
    assert passed == {"metric": "mDice"}
    assert list(hook._plan.follower.wanted) == ["mDice"]
    assert hook._plan.follower.targets[0].rule.value == "greater"
    assert hook._keys[0] == ("y",)
    assert hook._plan.evaluation.pre_eval is None


def test_further_arguments_win_over_older_names_and_over_what_would_be_an_error() -> None:
    block = {"save_best": "a", "key_indicator": "b", "should_evaluate_before_run": True,
             "topk": (1,), "metric_options": {}}  # fmt: skip
    signature = "results, metric_options=None"
    more = {"save_best": "mIoU", "start": 4, "metric_options": {"c": 1}}
    hook, passed = made(block, preset="mmaction2", dataloader=loader(signature), **more)
    assert list(hook._plan.follower.wanted) == ["mIoU"]
    assert hook._plan.schedule.start == 4
    assert passed == {"metric_options": {"c": 1}}
    assert followed({"save_best": True}, save_best=None) == []
    assert followed({}, preset="mmaction2", save_best=None) == []


def test_the_preset_may_stand_in_the_block_and_the_argument_wins() -> None:
    assert followed({"preset": "mmaction2"}) == ["auto"]
    assert followed({"preset": "mmaction2"}, preset="mmpose") == []
    with pytest.raises(ValueError, match=r"preset must be one of .*got 'mmtrack'"):
        hook_of({}, preset="mmtrack")


# -- what is left out is said ---------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture, cfg: Any, **more: Any) -> list[tuple[str, str]]:
    with caplog.at_level(logging.INFO, logger="ignite_evalhook"):
        caplog.clear()
        hook_of(cfg, out_dir=False, **more)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_one_line_names_what_is_left_out_and_why(caplog: pytest.LogCaptureFixture) -> None:
    block = {
        "interval": 5, "efficient_test": True, "priority": "LOW", "type": "EvalHook",
        "save_optimizer": False, "_delete_": True, "file_client_args": {"backend": "disk"},
        "save_image": False, "save_path": None, "save_best": False, "key_indicator": "mIoU",
    }  # fmt: skip
    ((level, line),) = said(caplog, block, name="test")
    assert level == "INFO"
    assert line.startswith("test: ignores in the config: ")
    for name in set(block) - {"interval", "save_best"}:
        assert re.search(rf"\b{name} \([^()]+\)", line), name
    assert "\n" not in line


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"file_client_args": {"backend": "petrel"}}, r"file_client_args \(out_dir says where"),
        ({"save_image": True}, r"save_image \(the evaluator's own handlers save images\)"),
        (
            {"evaluation": {"by_epoch": True}, "runner": ITERATIONS},
            r"runner=IterBasedRunner \(by_epoch=True in the evaluation block decides",
        ),
    ],
)
def test_the_line_is_a_warning_where_something_else_happens_than_asked_for(
    config: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    ((level, line),) = said(caplog, config)
    assert level == "WARNING"
    assert re.search(words, line)


def test_nothing_is_said_where_nothing_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, {"interval": 5, "metric": "mIoU", "save_best": "mIoU"}) == []
    assert said(caplog, {"evaluation": {"by_epoch": False}, "runner": ITERATIONS}) == []
    assert said(caplog, {"evaluation": {"by_epoch": True}, "runner": ITERATIONS},
                by_epoch=False) == []  # fmt: skip
    assert said(caplog, {"test_fn": None, "type": None}) == []


@every_line
def test_of_a_real_line_only_these_are_left_out(
    line: Line, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = said(caplog, config_of(line, tmp_path), dataloader=loader_of(line),
                 preset=line.preset)  # fmt: skip
    names = set(line.block) & {"efficient_test", "save_image"}
    assert len(lines) == len(names)
    assert all(name in lines[0][1] for name in names)


# -- configs of every kind ------------------------------------------------------------------------

BLOCK = {"interval": 5, "metric": "mIoU", "metric_options": {"topk": [1, 5]}}


class LikeMmcv:
    """A config as mmcv's: no mapping, but attributes and items; a missing name is an error."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._content:
            raise AttributeError(f"'ConfigDict' object has no attribute '{name}'")
        return self._content[name]

    def __getitem__(self, name: str) -> Any:
        return self._content[name]


def mmengine_config(content: dict[str, Any]) -> Any:
    return pytest.importorskip("mmengine").Config(content)


def mmengine_config_dict(content: dict[str, Any]) -> Any:
    return pytest.importorskip("mmengine").ConfigDict(content)


@pytest.mark.parametrize(
    "kind",
    [
        dict,
        LikeMmcv,
        mmengine_config,
        mmengine_config_dict,
        lambda content: SimpleNamespace(**content),
        lambda content: MappingProxyType(content),
    ],
)
def test_a_whole_config_may_be_a_mapping_or_an_object_with_attributes(
    kind: Any, tmp_path: Path
) -> None:
    content = {"evaluation": BLOCK, "runner": ITERATIONS, "work_dir": str(tmp_path), "model": {}}
    hook = hook_of(kind(content), dataloader=loader("results, metric=None, metric_options=None"))
    assert hook._plan.schedule == Schedule(5, by_epoch=False)
    assert hook._plan.evaluation.eval_kwargs == {k: BLOCK[k] for k in ("metric", "metric_options")}
    assert folder_of(hook) == str(tmp_path)


@pytest.mark.parametrize("kind", [dict, mmengine_config_dict, MappingProxyType])
def test_the_config_is_not_changed_even_by_a_data_set_that_changes_its_options(
    kind: Any, tmp_path: Path
) -> None:
    class Careless(Data):
        def evaluate(self, results: Any, metric: Any, metric_options: Any, pipeline: Any) -> Any:
            metric_options["topk"].append(7)
            metric_options["new"] = 1
            pipeline[0]["type"] = "Other"
            metric.clear()
            return {"mIoU": 0.5}

    block = {"metric": ["mIoU"], "metric_options": {"topk": [1, 5]}, "key_indicator": "mIoU",
             "pipeline": ({"type": "Load"}, {"type": "Collect"}), "type": "EvalHook"}  # fmt: skip
    block = kind(block)
    kept = repr(block)
    hook = eval_hook_from_config(
        block, DataLoader(Careless(None), batch_size=2), evaluator(), out_dir=tmp_path
    )
    run_to(hook, 1)
    assert files(tmp_path) == ["best_model_1_mIoU=0.5.pt"]
    assert repr(block) == kept


def test_a_configs_own_kind_of_dict_reaches_the_data_set() -> None:
    block = mmengine_config_dict({"metric_options": {"top_k_accuracy": {"topk": (1, 5)}}})
    _, passed = made(block, dataloader=loader("results, metric_options=None"))
    assert passed["metric_options"].top_k_accuracy.topk == (1, 5)
    assert passed["metric_options"] is not block["metric_options"]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "error", "words"),
    [
        (None, TypeError, "cfg must be an evaluation block, .* got None"),
        ("config.py", TypeError, "got 'config.py'; a file is read by mmcv's Config.fromfile"),
        (Path("config.py"), TypeError, "a file is read by mmcv's"),
        ([{"interval": 1}], TypeError, "several blocks need one hook each"),
        (3, ValueError, r"the config \(int\) has no evaluation"),
        ({"model": {}, "data": {}}, ValueError, r"the config \(dict\) has no evaluation; write"),
        (SimpleNamespace(model={}), ValueError, r"config \(SimpleNamespace\) has no evaluation"),
        (LikeMmcv({"model": {}}), ValueError, r"the config \(LikeMmcv\) has no evaluation"),
        ({"evaluation": None}, ValueError, "evaluation is None in the config"),
        (SimpleNamespace(evaluation=None), ValueError, "evaluation is None in the config"),
        ({"evaluation": [{}, {}]}, TypeError, "evaluation must be one mapping, got 2 in a list"),
        ({"evaluation": "auto"}, TypeError, "evaluation must be a mapping .* got 'auto'"),
        ({"evaluation": True}, TypeError, "evaluation must be a mapping .* got True"),
        ({"evaluation": {3: 1}}, TypeError, "evaluation must have names as keys, got 3"),
        ({3: 1}, TypeError, "cfg must have names as keys, got 3"),
        ({"val_evaluator": {}, "train_cfg": {}}, ValueError, "this config is of MMEngine's time"),
        ({"save_best": True}, ValueError, "save_best=True does not say which metric; .*'auto'"),
        (
            {"save_best": "AP", "key_indicator": "AR"},
            ValueError,
            "save_best='AP' and key_indicator='AR' name two metrics; key_indicator is the older",
        ),
        (
            {"save_best": "auto", "key_indicator": "AR"},
            ValueError,
            "save_best='auto' and key_indicator='AR' name two metrics",
        ),
        ({"test_fn": print}, ValueError, r"pass create_mmcv_evaluator\(test_fn=…\) as evaluator"),
        ({"type": "GenerativeEvalHook"}, ValueError, "type='GenerativeEvalHook': the block is for"),
        ({"interval": 0}, ValueError, "interval must be a positive integer, got 0"),
        ({"by_epoch": 1}, TypeError, "by_epoch must be True or False, got 1"),
        ({"start": -1}, ValueError, "start must be a non-negative integer, got -1"),
        ({"rule": "max"}, ValueError, "rule must be 'greater' or 'less', got 'max'"),
        ({"greater_keys": 3}, TypeError, "greater_keys must be a list or tuple of strings, got 3"),
        ({"dynamic_intervals": [285, 1]}, TypeError, "dynamic_intervals"),
        ({"pre_eval": "yes"}, TypeError, "pre_eval must be a function, got str"),
        ({"save_best": "quality"}, RuleInferenceError, "cannot infer .*'quality' is better"),
    ],
)  # fmt: skip
def test_bad_input_is_told_at_construction(cfg: Any, error: type[Exception], words: str) -> None:
    kept = repr(cfg)
    with pytest.raises(error, match=words):
        hook_of(cfg, out_dir=False)
    assert repr(cfg) == kept


@pytest.mark.parametrize("kind", ["EvalHook", "DistEvalHook", "mmdet.EvalHook", EvalHook])
def test_a_type_that_is_this_hook_is_fine(kind: Any) -> None:
    assert made({"type": kind})[1] == {}


def test_a_block_that_is_empty_evaluates_every_epoch() -> None:
    for cfg in ({}, {"evaluation": {}}):
        assert schedule_of(cfg) == Schedule(1)


def test_no_config_library_is_needed() -> None:
    source = Path(inspect.getfile(eval_hook_from_config)).read_text("utf-8")
    assert not re.search(r"^\s*(import|from) (mm|addict|omegaconf)", source, re.MULTILINE)
