"""Evaluate while training with PyTorch-Ignite, and be right about it."""

from __future__ import annotations

from ._decide.best import Best
from ._decide.history import EvalRecord, History
from ._decide.rules import Rule, infer_rule
from ._decide.schedule import Schedule
from ._evaluate.evaluator import create_evaluator
from ._evaluate.val_loss import ValLoss, split_val_loss
from ._files.best_checkpoint import BestCheckpoint
from ._files.load import find_best, load_best
from ._hook.command_line_args import add_eval_args
from ._hook.dist_hook import DistEvalHook
from ._hook.events import EvalEvents
from ._hook.hook import EvalHook
from ._ranks.share import shard_batches
from .exceptions import (
    CheckpointError,
    EvalHookError,
    EvaluationError,
    RuleInferenceError,
    StateError,
)
from .openmmlab._config import eval_hook_from_config
from .openmmlab._mmcv import create_mmcv_evaluator

__all__ = [
    "Best",
    "BestCheckpoint",
    "CheckpointError",
    "DistEvalHook",
    "EvalEvents",
    "EvalHook",
    "EvalHookError",
    "EvalRecord",
    "EvaluationError",
    "History",
    "Rule",
    "RuleInferenceError",
    "Schedule",
    "StateError",
    "ValLoss",
    "add_eval_args",
    "create_evaluator",
    "create_mmcv_evaluator",
    "eval_hook_from_config",
    "find_best",
    "infer_rule",
    "load_best",
    "shard_batches",
    "split_val_loss",
]


def __getattr__(name: str) -> str:
    """Return ``__version__``, read from the installed distribution when somebody asks."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # asked for rarely, and slow to import

    return version("ignite-evalhook")
