"""Read what an old checkpoint of MMCV or MMEngine knows: progress, best score, best file.

MMCV 1.x keeps it in ``meta["hook_msgs"]``, MMEngine in ``message_hub``.  Neither is imported:
what their checkpoints hold besides tensors is read as plain data, and no code in them is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._decide.best import Best
from ..exceptions import CheckpointError

__all__ = ["OldRun", "read_old_run"]

# `best_bbox_mAP_epoch_12.pth`; published by MMEngine with eight digits of its checksum.
_BEST_NAME = re.compile(
    r"best_(?P<metric>.+?)(_(?P<unit>epoch|iter)_(?P<step>\d{1,15}))?(-\w{8})?\.pth"
)
_LAST_NAME = re.compile(r".*?(?P<unit>epoch|iter)_(?P<step>\d{1,15})(-\w{8})?\.pth")


@dataclass(frozen=True)
class OldRun:
    """What an old checkpoint knows of its run.

    Attributes:
        epoch: Epoch of the checkpoint, 1-based: the one that was completed, or under way.
        iteration: Iterations that were completed.
        bests: The best of each metric.  Its ``metric`` comes from the name of its file where
            the checkpoint does not say it: MMEngine writes ``coco/AP`` as ``coco_AP`` there;
            it is empty if nothing tells.  Its ``path`` is where the file is now, if it lies
            beside the checkpoint, else as the checkpoint says.
    """

    epoch: int
    iteration: int
    bests: tuple[Best, ...]


def read_old_run(checkpoint: str | PathLike[str] | Mapping[str, Any]) -> OldRun:
    """Read progress and bests from a checkpoint of MMCV 1.x or MMEngine.

    Args:
        checkpoint: The file, such as ``work_dirs/run/latest.pth``; or what it holds, loaded.

    Raises:
        CheckpointError: If it cannot be read.
        ValueError: If it is no checkpoint of either.

    Source:
        ``EvalHook`` and the runners of MMCV 1.x, ``CheckpointHook`` and ``Runner`` of MMEngine.
    """
    if isinstance(checkpoint, Mapping):
        return _read(checkpoint, None)
    path = Path(os.path.expanduser(checkpoint))
    content = load_old(path)
    try:
        return _read(content, path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(content: Mapping[str, Any], path: Path | None) -> OldRun:
    meta = content.get("meta")
    counts = [meta.get("iter"), meta.get("epoch") or 0] if isinstance(meta, Mapping) else [None]
    if not isinstance(meta, Mapping) or not all(map(_is_count, counts)):
        raise ValueError(
            "checkpoint must be one of an MMCV 1.x or MMEngine run, with meta['epoch'] and "
            f"meta['iter']; got one with the keys {list(content)!r:.200} and {counts!r:.80}"
        )
    told = _told(content, meta)
    epoch, iteration = _progress(content, meta, path, told)
    return OldRun(
        epoch,
        iteration,
        tuple(
            _best(name, score, file, path, (epoch, iteration))
            for name, (score, file) in told.items()
            if math.isfinite(score)  # before the first one, it is infinite
        ),
    )


def load_old(file: str | PathLike[str]) -> Mapping[str, Any]:
    """Load a checkpoint of MMCV or MMEngine without running code from it.

    Raises:
        CheckpointError: If it cannot be read, or holds more than plain data.
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for
            raise ValueError("it is a folder, a pipe or a device")
        with _known_classes():
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"cannot read the checkpoint {file}: {error}\nIf it holds objects and you trust who "
            "made it, pass what torch.load(file, weights_only=False) returns instead of the file"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, no dict")
    return content


class _Buffer:
    """Stands for MMEngine's ``HistoryBuffer``, of which nothing is needed."""


def _nothing(item: object, name: str) -> None:
    """Stand for ``getattr``, which is to find nothing in a file."""


@contextmanager
def _known_classes() -> Iterator[None]:
    """Let NumPy's numbers and arrays be loaded, under the old names too, and MMEngine's logs."""
    allowed: list[Any] = [(_Buffer, "mmengine.logging.history_buffer.HistoryBuffer")]
    # A buffer names its own methods, which pickle looks up by `getattr`.
    allowed += [(_nothing, f"{package}getattr") for package in ("", "builtins.", "__builtin__.")]
    if importlib.util.find_spec("numpy") is not None:
        import numpy  # an extra, and only these files may need it

        array, number = numpy.zeros(1), numpy.float64(0.0)
        rebuild, scalar = array.__reduce__()[0], number.__reduce__()[0]
        for package in ("numpy.core", "numpy._core"):
            allowed += [(rebuild, f"{package}.multiarray._reconstruct")]
            allowed += [(scalar, f"{package}.multiarray.scalar")]
        kinds = (numpy.float64, numpy.float32, numpy.int64, numpy.int32, numpy.bool_)
        allowed += [numpy.ndarray, numpy.dtype, *(type(numpy.dtype(kind)) for kind in kinds)]
    with contextlib.ExitStack() as stack:
        if hasattr(torch.serialization, "safe_globals"):  # since torch 2.5
            stack.enter_context(torch.serialization.safe_globals(allowed))
        yield


def _told(content: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Return score and file of each best by metric; the metric is empty where it is not said."""
    messages = meta.get("hook_msgs")
    hub = content.get("message_hub")
    info: Any = hub.get("runtime_info") if isinstance(hub, Mapping) else messages
    if not isinstance(info, Mapping):
        return {}
    found: dict[str, tuple[float, str]] = {}
    for key, score in info.items():
        if key != "best_score" and not str(key).startswith("best_score_"):
            continue
        name = str(key)[len("best_score_") :]
        file = info.get("best_ckpt" if key == "best_score" else f"best_ckpt_{name}")
        try:
            found[name] = (float(score), "" if file is None else str(file))
        except (ArithmeticError, TypeError, ValueError):
            raise ValueError(f"{key} of the checkpoint is no number: {score!r:.80}") from None
    return found


def _progress(
    content: Mapping[str, Any],
    meta: Mapping[str, Any],
    path: Path | None,
    told: Mapping[str, tuple[float, str]],
) -> tuple[int, int]:
    """Return the epoch, 1-based, and the completed iterations."""
    epoch, iteration = int(meta.get("epoch") or 0), int(meta["iter"])
    name = None if path is None else _LAST_NAME.fullmatch(path.resolve().name)
    units = [match["unit"] for _, file in told.values() if (match := _match_best(file))]
    by_iteration = (name["unit"] if name else next(iter(units), "epoch")) == "iter"
    if not by_iteration:
        return epoch, iteration
    if "message_hub" in content:  # MMEngine counts completed epochs here
        return epoch + 1, iteration
    # MMCV's IterBasedRunner notes one iteration too few; the name of its file is right.
    return epoch, int(name["step"]) if name else iteration + 1


def _best(name: str, score: float, file: str, beside: Path | None, at: tuple[int, int]) -> Best:
    """Return a best, with the step that its file's name tells; else that of the checkpoint."""
    match = _match_best(file)
    epoch, iteration = at
    if match and match["unit"]:
        step = int(match["step"])
        length = at[1] / max(at[0], 1)  # iterations an epoch, as far as this file can tell
        if match["unit"] == "epoch":
            epoch, iteration = step, min(at[1], round(step * length))
        else:
            epoch, iteration = min(at[0], math.ceil(step / max(length, 1))), step
    path: Path | None = Path(file) if file else None
    # os.path, since a name that no file can have is no error there.
    if path is not None and beside is not None and not os.path.exists(path):
        moved = beside.resolve().parent / path.name
        path = moved if os.path.exists(moved) else path
    return Best(name or (match["metric"] if match else ""), score, epoch, iteration, path)


def _match_best(file: str) -> re.Match[str] | None:
    return _BEST_NAME.fullmatch(re.split(r"[/\\]", file)[-1])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**53
