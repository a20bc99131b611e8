"""Read a hook's options from the command line."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_eval_args"]

_OPTIONS = {
    "eval_interval": "interval",
    "eval_start": "start",
    "eval_by_epoch": "by_epoch",
    "eval_at_end": "at_end",
    "eval_limit_batches": "limit_batches",
    "save_best": "save_best",
    "rule": "rule",
    "n_saved": "n_saved",
    "out_dir": "out_dir",
}


def add_eval_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of evaluating while training to ``parser``.

    An option that is not given on the command line leaves ``EvalHook.from_args`` to its other
    arguments.

    Returns:
        The parser.

    Source:
        ``--validate/--no-validate`` is how OpenMMLab's training scripts switch ``EvalHook``.
    """
    group = parser.add_argument_group("evaluation while training")
    flag = argparse.BooleanOptionalAction
    group.add_argument(
        "--validate", action=flag, default=True, help="evaluate while training (default: yes)"
    )
    group.add_argument(
        "--eval-interval",
        type=_interval,
        metavar="N",
        help="steps between evaluations; 0.25 is four times an epoch; 1,2,10 is a list of steps",
    )
    group.add_argument(
        "--eval-start", type=int, metavar="N", help="first step; 0 evaluates before training"
    )
    group.add_argument(
        "--eval-by-epoch",
        action=flag,
        default=None,
        help="steps are epochs (default) or, with --no-eval-by-epoch, iterations",
    )
    group.add_argument(
        "--eval-at-end", action=flag, default=None, help="evaluate when the run ends, too"
    )
    group.add_argument(
        "--eval-limit-batches", type=int, metavar="N", help="evaluate the first N batches only"
    )
    group.add_argument(
        "--save-best", type=_names, metavar="METRIC", help="metric (or a,b,c) whose best to keep"
    )
    group.add_argument("--rule", choices=("greater", "less"), help="which way the metric is better")
    group.add_argument("--n-saved", type=int, metavar="N", help="best checkpoints to keep")
    group.add_argument("--out-dir", metavar="DIR", help="folder for checkpoints and history")
    return parser


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a hook that were given on the command line."""
    given = {ours: getattr(args, theirs, None) for theirs, ours in _OPTIONS.items()}
    options = {name: value for name, value in given.items() if value is not None}
    if getattr(args, "validate", True) is False:
        options |= {"interval": None, "start": None, "dynamic_intervals": None, "at_end": False}
    return options


def _interval(text: str) -> int | float | list[int]:
    try:
        if "," in text:
            return [int(part) for part in text.split(",")]
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be an integer, a part of an epoch such as 0.25, or steps such as 1,2,10; got "
            f"{text!r}"
        ) from error


def _names(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("must name a metric")
    return names[0] if len(names) == 1 else names
