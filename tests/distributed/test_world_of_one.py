"""What runs on rank 0 alone sees a world of one process, and leaves the others' as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import pytest
import torch
import torch.distributed as dist
from ignite.distributed import get_world_size as ignite_world_size
from ignite.engine import Engine
from ignite.metrics import Accuracy, ConfusionMatrix, EpochMetric, Precision
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.utils.data import DataLoader, TensorDataset

from helpers.private import world_of_one
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, EvaluationError, create_evaluator

Results = Sequence[tuple[Tensor, Tensor]]
SIZE = 14  # samples in 7 batches, so no rank has as many as the others


def fill(metric: Any, results: Results) -> Any:
    """Fill a metric of Ignite, and compute it."""
    metric.reset()
    for scores, y in results:
        metric.update((scores[None], y[None]))
    return metric.compute()


def of_torchmetrics(metric: Any, results: Results) -> float:
    metric.reset()
    for scores, y in results:
        metric.update(scores[None], y[None])
    return float(metric.compute())


def everywhere() -> list[Any]:
    """Where the process believes to be."""
    initialised = dist.is_initialized()
    return [
        initialised, is_initialized(), ignite_world_size(), idist.get_rank(),
        idist.get_local_rank(), idist.get_nproc_per_node(), idist.get_node_rank(),
        idist.model_name(), str(idist.device()), idist.backend(),
        [dist.get_world_size(), dist.get_rank()] if initialised else [],
    ]  # fmt: skip


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SIZE, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (SIZE,), generator=generator)), 2)


def make_hook(**options: Any) -> EvalHook:
    torch.manual_seed(0)
    return EvalHook(data(), create_evaluator(nn.Linear(4, 3)), **options)


def compute_all(rank: int, world: int) -> dict[str, Any]:
    """Compute with metrics of two libraries, made there or before, and look where it is."""
    from torchmetrics.classification import MulticlassAccuracy  # slow to import: here alone

    before = everywhere()
    kept, kept_too = Accuracy(), MulticlassAccuracy(3, average="micro")
    seen: dict[str, Any] = {}

    def compute(results: Results) -> dict[str, Any]:
        seen["rank"] = rank
        seen["inside"] = everywhere()
        seen["torch"] = [
            dist.get_world_size(), dist.get_rank(), dist.get_world_size(dist.group.WORLD)
        ] if world > 1 else [1, 0, 1]  # fmt: skip
        other: list[Any] = []
        thread = threading.Thread(target=lambda: other.append(dist.is_initialized()))
        thread.start()
        thread.join()
        seen["other thread"] = other[0]
        x = torch.arange(3.0)
        return {
            "n": len(results),
            "made": fill(Accuracy(), results),
            "made of several": fill(Precision(average=False), results),
            "kept": fill(kept, results),
            "counts": fill(ConfusionMatrix(3), results),
            "epoch": fill(EpochMetric(lambda scores, y: float(scores.sum() + y.sum())), results),
            "torchmetrics": of_torchmetrics(MulticlassAccuracy(3, average="micro"), results),
            "kept of torchmetrics": of_torchmetrics(kept_too, results),
            "reduced": idist.all_reduce(x).tolist(),
            "gathered": idist.all_gather(x).tolist(),
            "words": idist.all_gather("é"),
            "broadcast": idist.broadcast(2.5, src=0),
            "barrier": idist.barrier(),
        }

    def derived(metrics: Any) -> float:
        seen["derive"] = everywhere()
        return 2.0 * float(metrics["made"])

    hook = make_hook(compute_metrics=compute, derive={"twice": derived})
    metrics = hook.evaluate(track=False).metrics
    assert everywhere() == before
    return {"metrics": metrics, **seen}


def test_metrics_inside_compute_metrics_count_every_sample_once_on_any_number_of_processes() -> (
    None
):
    alone = on_ranks(1, compute_all, 1)[0]
    assert alone["metrics"]["n"] == SIZE
    assert torch.tensor(alone["metrics"]["counts"]).sum() == SIZE
    of_one = [False, False, 1, 0, 0, 1, 0, "serial", "cpu", None, []]
    assert alone["inside"] == of_one
    assert alone["torch"] == [1, 0, 1]
    for rank, found in enumerate(on_ranks(2, compute_all, 2)):
        assert found["metrics"] == alone["metrics"]
        assert ("rank" in found) == (rank == 0)
        if rank == 0:
            assert found["inside"] == found["derive"] == of_one
            assert found["torch"] == [1, 0, 1]
            assert found["other thread"] is True


def judge_with_a_metric(rank: int) -> list[Any]:
    """Compare scores by a function that uses a metric, and tells where it is."""
    seen: list[Any] = []

    class Hook(EvalHook):
        rule_map = {  # noqa: RUF012
            "greater": lambda new, old: seen.append(idist.get_world_size()) or new > old,
            "less": lambda new, old: new < old,
        }

    accuracy = {"accuracy": Accuracy()}
    hook = Hook(
        data(), create_evaluator(nn.Linear(4, 3), accuracy), save_best="accuracy", out_dir=False
    )
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    return seen


def test_what_judges_sees_a_world_of_one_too() -> None:
    first, second = on_ranks(2, judge_with_a_metric)
    assert set(first) == {1}
    assert second == []


def all_reduce(group: Any) -> None:
    dist.all_reduce(torch.ones(1), group=group)


def barrier(group: Any) -> None:
    dist.barrier(group=group)


def gather(group: Any) -> None:
    dist.all_gather_object([None, None], 1, group=group)


def send(group: Any) -> None:
    dist.send(torch.ones(1), 1, group=group)


ASKING: list[Callable[[Any], None]] = [all_reduce, barrier, gather, send]


def ask_others(rank: int) -> list[Any]:
    """Ask the other ranks all the same, by the default group and by another one; then go on."""
    group = dist.new_group()
    found: list[Any] = []
    for ask in ASKING:
        for chosen in (None, group):
            hook = make_hook(compute_metrics=lambda results, go=(ask, chosen): go[0](go[1]))
            try:
                hook.evaluate(track=False)
            except EvaluationError as error:
                found.append((ask.__name__, error.failures[0].message))
    ones = torch.ones(1)
    dist.all_reduce(ones)  # and nothing is left in the way
    dist.all_reduce(ones, group=group)
    return [*found, ones.item(), idist.all_reduce(1), is_initialized()]


def test_what_asks_other_ranks_there_is_refused_at_once_with_words() -> None:
    for found in on_ranks(2, ask_others):
        assert found[-3:] == [4.0, 2, True]
        assert len(found) == 2 * len(ASKING) + 3
        for asked, words in found[:-3]:
            assert words.startswith("torch.distributed has no other ranks here: what"), asked


def evaluate_inside(rank: int) -> list[Any]:
    """Run other evaluators inside compute_metrics: that too is a world of one."""
    model = nn.Linear(4, 3)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    other = create_evaluator(model, {"accuracy": Accuracy()})

    def compute(results: Results) -> dict[str, Any]:
        return {"other": other.run(data()).metrics["accuracy"]}

    inside = make_hook(compute_metrics=compute).evaluate(track=False).metrics["other"]
    return [inside, other.run(data()).metrics["accuracy"]]


def test_another_evaluator_run_there_evaluates_all_by_itself() -> None:
    for inside, outside in on_ranks(3, evaluate_inside):
        assert inside == outside


def leave_by_an_error(rank: int) -> list[Any]:
    before = everywhere()
    groups = type(dist.distributed_c10d._world)
    try:
        with world_of_one(), world_of_one():
            assert not is_initialized()
            raise ValueError("on the way out")
    except ValueError:
        pass
    return [everywhere() == before, type(dist.distributed_c10d._world) is groups]


def test_all_is_put_back_after_an_error() -> None:
    assert on_ranks(2, leave_by_an_error) == [[True, True]] * 2


def test_on_one_process_nothing_is_replaced() -> None:
    before = dist.get_rank, dist.get_world_size
    with world_of_one():
        assert (dist.get_rank, dist.get_world_size) == before


def test_the_argument_that_chose_all_ranks_says_what_to_do_instead() -> None:
    with pytest.raises(TypeError, match=r"no argument 'compute_on'; use compute_metrics= alone"):
        make_hook(compute_metrics=lambda results, **options: {}, compute_on="all")
