"""Evaluate while training with PyTorch-Ignite, and be right about it."""

from __future__ import annotations

from ._args import add_eval_args
from ._best import Best
from ._checkpoint import BestCheckpoint
from ._dist_hook import DistEvalHook
from ._eval_config import eval_hook_from_config
from ._evaluator import create_evaluator
from ._events import EvalEvents
from ._history import EvalRecord, History
from ._hook import EvalHook
from ._load_best import find_best, load_best
from ._mmcv import create_mmcv_evaluator
from ._rules import Rule, infer_rule
from ._schedule import Schedule
from ._sharding import shard_batches
from ._val_loss import ValLoss, split_val_loss
from .exceptions import (
    CheckpointError,
    EvalHookError,
    EvaluationError,
    RuleInferenceError,
    StateError,
)

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
