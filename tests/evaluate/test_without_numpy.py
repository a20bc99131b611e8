"""Several ranks evaluate, and collect predictions, where NumPy is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, sys, warnings
sys.modules["numpy"] = None  # as if it were not there
warnings.filterwarnings("ignore")
rank, folder = int(sys.argv[1]), sys.argv[2]
os.environ["LOCAL_RANK"] = str(rank)
import torch
import torch.distributed as dist
from ignite.metrics import Accuracy
from ignite_evalhook import EvalHook, create_evaluator

dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
x, y = torch.arange(20.0).reshape(5, 4), torch.tensor([0, 1, 0, 1, 1])
torch.manual_seed(0)
evaluator = create_evaluator(
    torch.nn.Linear(4, 2), metrics={"accuracy": Accuracy()}, loss_fn=torch.nn.CrossEntropyLoss()
)
batches = [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:], y[4:])]
hook = EvalHook(
    batches,
    evaluator,
    interval=None,
    compute_metrics=lambda results: {"labels": [int(label) for _, label in results]},
)
print(json.dumps(hook.evaluate().metrics))
dist.destroy_process_group()
"""


def test_two_ranks_evaluate_without_numpy(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in ranks]
    told = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert told[0] == told[1]
    assert told[0]["labels"] == [0.0, 1.0, 0.0, 1.0, 1.0]
    assert {"accuracy", "val_loss"} < set(told[0])
