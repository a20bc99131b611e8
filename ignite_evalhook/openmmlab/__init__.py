"""What those who come from OpenMMLab need.

From MMEngine (``pip install "ignite-evalhook[openmmlab]"``): its models, metrics and evaluators in
ours.  From MMCV 1.x (nothing to install): its way to call a model, and the ``evaluation`` of its
configs.  From both: an old run is taken over by its last checkpoint.
"""

from __future__ import annotations

from ._config import eval_hook_from_config
from ._mmcv import create_mmcv_evaluator
from ._mmengine import (
    MMEngineMetric,
    MMEngineTrainer,
    create_mmengine_evaluator,
    create_mmengine_trainer,
)
from ._old_run import OldRun, read_old_run
from ._take_over import take_over

__all__ = [
    "MMEngineMetric",
    "MMEngineTrainer",
    "OldRun",
    "create_mmcv_evaluator",
    "create_mmengine_evaluator",
    "create_mmengine_trainer",
    "eval_hook_from_config",
    "read_old_run",
    "take_over",
]
