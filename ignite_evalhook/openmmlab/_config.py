"""Accept the ``evaluation = dict(...)`` block of an OpenMMLab 1.x-era config.

The block held the arguments of MMCV's ``EvalHook`` and, beside them, those of the dataset's
``evaluate``; each project added habits of its own.  Old names are brought to ours here, and the
rest goes to :class:`EvalHook` as it stands.  No config library is imported, and no config is
changed.

Source:
    The names, defaults and meanings are those of ``EvalHook`` in MMCV 1.x (open-mmlab/mmcv#739)
    and of the hooks and training scripts in MMDetection 2.x, MMDetection3D 1.0 and the 0.x
    versions of MMClassification, MMAction2, MMSegmentation, MMPose, MMEditing.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, NamedTuple

from ignite.engine import Engine
from torch import nn

from .._hook.hook import EvalHook
from .._hook.settings import Function, OutDir
from .._log import logger

__all__ = ["eval_hook_from_config"]


def eval_hook_from_config(
    cfg: Any,
    dataloader: Iterable[Any] | None,
    evaluator: Engine | nn.Module | Function,
    *,
    preset: str | None = None,
    out_dir: OutDir = None,
    to_save: Mapping[str, Any] | None = None,
    **more: Any,
) -> EvalHook:
    """Construct a hook from an ``evaluation`` block, or from a whole config that holds one.

    Keys of the block mean what they meant: ``interval``, ``start``, ``by_epoch``,
    ``dynamic_intervals``, ``save_best``, ``rule``, ``greater_keys``, ``less_keys``, ``pre_eval``,
    ``gpu_collect``, ``tmpdir``, ``broadcast_bn_buffer`` are the hook's.  ``key_indicator`` is the
    old name of ``save_best``; ``save_best=True`` follows it, and ``False`` is ``None``.
    ``should_evaluate_before_run=True`` is ``start=0``.  What the hook does not know goes to
    ``dataset.evaluate``: ``metric``, ``metric_options``, ``classwise``, ``pipeline`` and so on.
    What means nothing here is left out, and one log line says so.

    Of a whole config the ``runner`` (iterations for an ``IterBasedRunner``, else epochs) and the
    ``work_dir`` (for ``out_dir``) are read too, where the block does not say.

    Args:
        cfg: The block, a mapping; or a whole config, a mapping or an object with attributes such
            as ``mmcv.Config``.  It is never changed, nor what it holds.
        dataloader: As for ``EvalHook``.
        evaluator: As for ``EvalHook``.
        preset: A project, ``"mmaction2"`` say: its keys for the rule, and its own defaults.  For
            ``"mmaction2"`` these are ``save_best="auto"`` and ``topk`` as one of
            ``metric_options``; for ``"mmseg"`` iterations; ``save_best=True`` alone means
            ``"AP"`` for ``"mmpose"``, ``"top1_acc"`` for ``"mmaction2"``.
        out_dir: As for ``EvalHook``; by default the block's, put together with the last part of
            ``work_dir`` as MMCV does, else the ``work_dir``.
        to_save: As for ``EvalHook``.
        **more: Further arguments of ``EvalHook`` and ``dataset.evaluate``.  They win over the
            config.

    Returns:
        The hook, not attached yet.

    Raises:
        TypeError: If ``cfg`` or its block is of the wrong kind, or as for ``EvalHook``.
        ValueError: If there is no block, if it contradicts itself, or as for ``EvalHook``.
        RuleInferenceError: If the name of a metric does not tell its rule.
    """
    config = _read(cfg)
    block = _Block(_own_containers(config.block), more)
    if preset is None:
        preset = block.take("preset")
    options: dict[str, Any] = {
        "out_dir": _out_dir(block, config, out_dir, by_expert=more.get("checkpoint") is not None),
        "preset": preset,
        **_by_epoch(block, config, preset),
        **_save_best(block, preset),
        **_start(block),
        **_keys(block),
        **_metric_options(block, preset),
    }
    _leave_out(block)
    if to_save is not None:
        options["to_save"] = to_save
    hook = EvalHook(dataloader, evaluator, **{**block.left, **options, **more})
    block.say(hook.name)
    return hook


class _Config(NamedTuple):
    """What a config says: the block, and of a whole config where and what to count."""

    block: Mapping[str, Any]
    runner: str | None = None
    counts_epochs: bool | None = None
    work_dir: Any = None


class _Block:
    """The part of a block that is not dealt with yet, and what was left out of it so far."""

    def __init__(self, block: dict[str, Any], more: Mapping[str, Any]) -> None:
        """Begin with all of ``block`` but what ``more`` says better."""
        self.left = {name: value for name, value in block.items() if name not in more}
        self._ignored: list[str] = []
        self._level = logging.INFO

    def take(self, name: str, default: Any = None) -> Any:
        """Return the value of a key, which is then dealt with."""
        return self.left.pop(name, default)

    def ignore(self, name: str, why: str, *, matters: bool = False) -> None:
        """Note that a key is left out; ``matters``: something else happens than it asked for."""
        self._ignored.append(f"{name} ({why})")
        if matters:
            self._level = logging.WARNING

    def say(self, hook_name: str) -> None:
        """Say in one line what was left out, if anything was."""
        if self._ignored:
            logger.log(
                self._level, "%s: ignores in the config: %s", hook_name, "; ".join(self._ignored)
            )


# Keys that only a whole config has.
_OF_A_WHOLE_CONFIG = (
    *("_base_", "checkpoint_config", "data", "log_config", "lr_config", "optimizer", "runner"),
    *("total_epochs", "total_iters", "work_dir", "train_cfg", "val_cfg", "val_dataloader"),
    "val_evaluator",
)
_OF_MMENGINE = ("val_evaluator", "val_dataloader", "val_cfg")

_IGNORED = {
    "efficient_test": "pre_eval=True is what keeps few predictions in memory",
    "priority": "handlers act in the order in which they are attached",
    "_delete_": "it tells how configs are merged",
    "save_optimizer": "to_save= says what a checkpoint holds",
    "file_client_args": "out_dir says where files go, and may be a URL",
    "save_image": "the evaluator's own handlers save images",
    "save_path": "the evaluator's own handlers save images",
}
_HOOKS = ("EvalHook", "DistEvalHook", "EvalIterHook", "DistEvalIterHook")

# What `save_best=True` followed, by default, before it became a name.
_OLD_KEY_INDICATOR = {"mmaction2": "top1_acc", "mmpose": "AP"}


def _read(cfg: Any) -> _Config:
    if isinstance(cfg, Mapping) and not any(
        key in cfg for key in ("evaluation", *_OF_A_WHOLE_CONFIG)
    ):
        return _Config(_checked(cfg, "cfg"))
    if cfg is None or isinstance(cfg, (str, bytes, PathLike, list, tuple)):
        raise TypeError(
            "cfg must be an evaluation block, a mapping such as dict(interval=1, metric='mIoU'), "
            f"or a whole config that holds one, got {cfg!r:.80}; a file is read by mmcv's "
            "Config.fromfile, and several blocks need one hook each, with its own name="
        )
    if not _has(cfg, "evaluation"):
        if any(_has(cfg, name) for name in _OF_MMENGINE):
            raise ValueError(
                "this config is of MMEngine's time (val_dataloader, val_evaluator) and has no "
                "evaluation block; pass the block: cfg=dict(interval=…, save_best='…')"
            )
        raise ValueError(
            f"the config ({type(cfg).__name__}) has no evaluation; write evaluation="
            "dict(interval=1), or pass the block itself"
        )
    block = _get(cfg, "evaluation")
    if block is None:
        raise ValueError(
            "evaluation is None in the config, which leaves nothing to do; write evaluation="
            "dict(interval=1), or interval=None to evaluate on demand only"
        )
    runner, counts_epochs = _what_it_counts(cfg)
    return _Config(
        _checked(block, "evaluation"), runner, counts_epochs, _get(cfg, "work_dir") or None
    )


def _checked(block: Any, what: str) -> Mapping[str, Any]:
    if isinstance(block, (list, tuple)):
        raise TypeError(
            f"{what} must be one mapping, got {len(block)} in a {type(block).__name__}; each needs "
            "a hook of its own, with its own name="
        )
    if not isinstance(block, Mapping):
        raise TypeError(
            f"{what} must be a mapping such as dict(interval=1, metric='mIoU'), got {block!r:.80}"
        )
    for name in block:
        if not isinstance(name, str):
            raise TypeError(f"{what} must have names as keys, got {name!r}")
    return block


def _has(cfg: Any, name: str) -> bool:
    return name in cfg if isinstance(cfg, Mapping) else hasattr(cfg, name)


def _get(cfg: Any, name: str) -> Any:
    return cfg.get(name) if isinstance(cfg, Mapping) else getattr(cfg, name, None)


def _what_it_counts(cfg: Any) -> tuple[str | None, bool | None]:
    """Return the runner in words, and whether a whole config counts epochs."""
    runner = _get(cfg, "runner")
    if runner is not None:
        kind = _get(runner, "type")
        if kind is not None:
            name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
            return f"runner={name}", "IterBased" not in name
        # A part of a config that inherits the type: what it limits is what it counts.
        for limit, epochs in (("max_iters", False), ("max_epochs", True)):
            if _get(runner, limit) is not None:
                return f"runner={limit}", epochs
    for limit, epochs in (("total_iters", False), ("total_epochs", True)):
        if _get(cfg, limit) is not None:
            return limit, epochs
    return None, None


def _own_containers(value: Any) -> Any:
    """Return ``value`` with dicts, lists and tuples of its own, so that nobody changes the given.

    ``dataset.evaluate`` may set defaults in its options, for one.
    """
    if isinstance(value, dict):
        twin = copy.copy(value)  # a config's own kind of dict stays one
        for name, item in value.items():
            twin[name] = _own_containers(item)
        return twin
    if isinstance(value, Mapping):
        return {name: _own_containers(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_own_containers(item) for item in value)
    return value


def _out_dir(block: _Block, config: _Config, given: OutDir, *, by_expert: bool) -> Any:
    """Return the folder: what was given, else the block's, else the work_dir."""
    of_block = block.take("out_dir")
    if given is not None or by_expert:
        return given
    if not of_block or config.work_dir is None or of_block == config.work_dir:
        return of_block or config.work_dir
    last = os.path.basename(os.fspath(config.work_dir).rstrip("/" + os.sep))
    return f"{os.fspath(of_block).rstrip('/')}/{last}" if last else of_block


def _by_epoch(block: _Block, config: _Config, preset: str | None) -> dict[str, Any]:
    """Return what is counted: as the block says, else as the runner does."""
    if "by_epoch" in block.left:
        by_epoch = block.take("by_epoch")
        if config.counts_epochs is not None and by_epoch is not config.counts_epochs:
            block.ignore(
                str(config.runner),
                f"by_epoch={by_epoch!r} in the evaluation block decides what is counted",
                matters=True,
            )
        return {"by_epoch": by_epoch}
    if config.counts_epochs is not None:
        return {"by_epoch": config.counts_epochs}
    return {"by_epoch": False} if preset == "mmseg" else {}


def _save_best(block: _Block, preset: str | None) -> dict[str, Any]:
    """Return the metric to follow, by its present or its older name.

    Raises:
        ValueError: If the two differ, or ``True`` does not say which metric.
    """
    given = "save_best" in block.left
    save_best, indicator = block.take("save_best"), block.take("key_indicator")
    if save_best is False:
        if indicator is not None:
            block.ignore("key_indicator", "save_best=False")
        return {}
    if save_best is True:
        save_best = None
        indicator = indicator or _OLD_KEY_INDICATOR.get(str(preset))
        if indicator is None:
            raise ValueError(
                "save_best=True does not say which metric; write its name, save_best='auto' for "
                "the first one, or key_indicator='…' beside it"
            )
    if indicator is not None:
        if save_best not in (None, indicator):
            raise ValueError(
                f"save_best={save_best!r} and key_indicator={indicator!r} name two metrics; "
                "key_indicator is the older name of save_best: write one of them"
            )
        return {"save_best": indicator}
    if save_best is None and not given and preset == "mmaction2":
        return {"save_best": "auto"}
    return {} if save_best is None else {"save_best": save_best}


def _start(block: _Block) -> dict[str, Any]:
    """Return the first step.

    Raises:
        ValueError: If two keys contradict each other.
    """
    before = block.take("should_evaluate_before_run", False)
    start = block.take("start")
    if before and start not in (None, 0):
        raise ValueError(
            f"should_evaluate_before_run={before!r} and start={start!r} contradict each other; "
            "start=0 evaluates before training"
        )
    if before:
        return {"start": 0}
    return {} if start is None else {"start": start}


def _keys(block: _Block) -> dict[str, Any]:
    """Return the keys for the rule."""
    found = {name: block.take(name) for name in ("greater_keys", "less_keys")}
    return {name: keys for name, keys in found.items() if keys is not None}


def _metric_options(block: _Block, preset: str | None) -> dict[str, Any]:
    """Return MMAction2's ``topk`` where it belongs since open-mmlab/mmaction2#286.

    Raises:
        ValueError: If it is said twice.
    """
    if preset != "mmaction2" or "topk" not in block.left:
        return {}
    topk = block.take("topk")
    options = dict(block.take("metric_options") or {})
    of_metric = dict(options.get("top_k_accuracy") or {})
    if of_metric.setdefault("topk", topk) != topk:
        raise ValueError(
            f"topk={topk!r} and metric_options both say top_k_accuracy's topk, and differently: "
            f"{of_metric['topk']!r}; leave topk out"
        )
    return {"metric_options": {**options, "top_k_accuracy": of_metric}}


def _leave_out(block: _Block) -> None:
    """Leave out what means nothing here.

    Raises:
        ValueError: If it must not be left out.
    """
    if block.take("test_fn") is not None:
        raise ValueError(
            "test_fn goes through the data by itself, which EvalHook does not let it; pass "
            "create_mmcv_evaluator(test_fn=…) as evaluator, and leave test_fn out of the block"
        )
    kind = block.take("type")
    if kind is not None:
        name = str(kind if isinstance(kind, str) else getattr(kind, "__name__", kind))
        if name.rpartition(".")[2] not in _HOOKS:
            raise ValueError(
                f"type={name!r}: the block is for another hook than {', '.join(_HOOKS)}, and its "
                "keys may mean other things; if they do not, leave type out"
            )
        block.ignore("type", "it is this hook")
    for name, why in _IGNORED.items():
        if name in block.left:
            block.ignore(name, why, matters=_matters(name, block.take(name)))


def _matters(name: str, value: Any) -> bool:
    if name == "save_image":
        return bool(value)
    if name == "file_client_args":
        backend = value.get("backend") if isinstance(value, Mapping) else value
        return backend not in (None, "disk")
    return False
