"""Runs whose scores are written down beforehand, and whose model tells which step it is of.

An evaluation reads its metrics off a list; the model's only weight counts the iterations, so
that a file shows when it was written.  Nothing here knows which tests use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from ignite_evalhook import EvalHook


def counter() -> nn.Module:
    """Return a model whose weight is 0.0 and counts iterations of :func:`scripted`'s trainer."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def scripted(
    scores: Iterable[Any],
    out_dir: Any = False,
    *,
    hook_class: type[EvalHook] = EvalHook,
    model: nn.Module | None = None,
    trainer: Engine | None = None,
    **options: Any,
) -> tuple[EvalHook, Engine]:
    """Return a hook, not attached yet, and a trainer of one iteration an epoch.

    Args:
        scores: What the evaluations say: a mapping of metrics, a value of ``"acc"``, or an
            exception to raise.
        out_dir: As for the hook.
        hook_class: The class of the hook.
        model: What is trained; by default a new :func:`counter`.
        trainer: The engine to use; by default a new one that trains ``model``.
        **options: Further options of the hook; ``save_best`` is ``"acc"`` by default.
    """
    model = counter() if model is None else model
    script = iter(scores)

    def evaluate(engine: Engine | None) -> dict[str, Any]:
        said = next(script)
        if isinstance(said, BaseException):
            raise said
        return dict(said) if isinstance(said, dict) else {"acc": said}

    def train(engine: Engine, batch: Any) -> None:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)

    options = {"model": model, "save_best": "acc", **options}
    if options.get("checkpoint") is not None:
        out_dir = None
    hook = hook_class(None, evaluate, out_dir=out_dir, **options)
    return hook, trainer or Engine(train)


def run(scores: Iterable[Any], out_dir: Any = False, **options: Any) -> EvalHook:
    """Run one epoch for each of ``scores`` and return the hook."""
    scores = list(scores)
    hook, trainer = scripted(scores, out_dir, **options)
    hook.attach(trainer)
    trainer.run([0], max_epochs=len(scores))
    return hook


def step_in(path: Any, name: str | None = None) -> float:
    """Return the step that a checkpoint's model is of."""
    state = torch.load(path, weights_only=True)
    state = state if name is None else state[name]
    return float(state["weight"])


def best_files(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder."""
    return sorted(path.name for path in folder.glob("*.pt"))


def best_json(folder: Path, name: str = "best.json") -> dict[str, Any]:
    """Return the content of ``best.json``, read by nothing but :mod:`json`."""
    document: dict[str, Any] = json.loads((folder / name).read_text("utf-8"))
    return document
