"""An evaluation's loop waits for no device, on one process or on several (law 8)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, ValLoss, create_evaluator

READS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "equal", "is_nonzero", "unique", "masked_select",
    "__bool__", "__float__", "__int__", "__index__", "__contains__", "__repr__",
}  # fmt: skip


class Elsewhere(Tensor):
    """A tensor that is not known to be on the host, as one on a device."""


class Spy(TorchFunctionMode):
    """Note each call that needs the values of a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        targets = [*args[1:], *(kwargs or {}).values()]
        if name in READS or (name == "to" and any(str(t).startswith("cpu") for t in targets)):
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


def evaluate(rank: int, careless: bool) -> Any:
    """Evaluate seven batches; return what was read by the end of the last one, and in all."""
    model = nn.Linear(4, 2)

    def step(engine: Engine, batch: Any) -> Any:
        loss = model(batch).square().mean(dim=1).as_subclass(Elsewhere)
        if careless:
            loss.sum().item()
        return loss, ValLoss({"loss_a": loss, "loss_b": loss.mean()})

    evaluator = create_evaluator(model, step=step)
    spy, in_batches = Spy(), []
    evaluator.add_event_handler(Events.EPOCH_STARTED, spy.__enter__)
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: in_batches.append(len(spy.reads))
    )
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: spy.__exit__(None, None, None))
    hook = EvalHook([torch.ones(2, 4)] * 7, evaluator, interval=None)
    record = hook.evaluate()
    return in_batches, len(spy.reads), record.samples


@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_value_is_read_before_the_last_batch_is_done(world: int) -> None:
    for rank, (in_batches, in_all, samples) in enumerate(on_ranks(world, evaluate, False)):
        assert in_batches == [0] * len(range(rank, 7, world))
        assert (in_all > 0) is (world > 1)  # what is told to the other ranks is read then
        assert samples == 14


def test_the_spy_sees_a_model_that_reads() -> None:
    assert on_ranks(2, evaluate, True)[0][0] == [1, 2, 3, 4]


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_with_nccl_the_batches_never_synchronise(tmp_path: Path) -> None:
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).cuda()
        criterion = nn.CrossEntropyLoss()
        evaluator = create_evaluator(
            model, metrics={"accuracy": Accuracy(device="cuda")}, loss_fn=criterion
        )

        def step_by_step(engine: Engine) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def done(engine: Engine) -> None:
            if engine.state.iteration == 9:
                torch.cuda.set_sync_debug_mode("default")

        evaluator.add_event_handler(Events.EPOCH_STARTED, step_by_step)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, done)
        batches = [
            (torch.randn(16, 4).pin_memory(), torch.randint(2, (16,)).pin_memory())
            for _ in range(9)
        ]
        hook = EvalHook(batches, evaluator, save_best="val_loss", out_dir=tmp_path / "run")
        hook.attach(Engine(lambda engine, batch: None))
        record = hook.evaluate(track=False)
        assert record.samples == 144
        assert set(record.metrics) == {"accuracy", "val_loss"}
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()
