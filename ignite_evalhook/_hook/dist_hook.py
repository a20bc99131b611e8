"""MMCV's name and defaults for a hook on several processes."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from ignite.engine import Engine
from torch import nn

from .hook import EvalHook
from .settings import Function

__all__ = ["DistEvalHook"]


class DistEvalHook(EvalHook):
    """:class:`EvalHook` under the name and with the knobs that MMCV's users know.

    It exists for those who come from MMCV.  ``EvalHook`` is as right on any number of processes,
    and this one runs on a single process as well.

    Args:
        dataloader: As for ``EvalHook``.
        evaluator: As for ``EvalHook``.
        broadcast_bn_buffer: Give every rank rank 0's buffers before an evaluation (all buffers,
            not only those of BatchNorm), and its own back afterwards; ``sync_buffers=`` of
            ``EvalHook``.
        tmpdir: Collect predictions through files in a private folder within this one, which all
            ranks must share; ``None``: through the processes' own connections.
        gpu_collect: Collect predictions through the devices, by the process group's backend.
        **options: Every other argument of ``EvalHook``, and those of ``compute_metrics``.

    Raises:
        TypeError: As for ``EvalHook``.
        ValueError: As for ``EvalHook``.

    Source:
        ``DistEvalHook`` of MMCV 1.x (open-mmlab/mmcv#739).
    """

    def __init__(
        self,
        dataloader: Iterable[Any] | None,
        evaluator: Engine | nn.Module | Function,
        *,
        broadcast_bn_buffer: bool = True,
        tmpdir: str | PathLike[str] | None = None,
        gpu_collect: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            dataloader,
            evaluator,
            broadcast_bn_buffer=broadcast_bn_buffer,
            tmpdir=tmpdir,
            gpu_collect=gpu_collect,
            **options,
        )
