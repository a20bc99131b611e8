"""Any number of processes: the same numbers, one decision, and training that notices nothing.

Real processes talk by gloo; a test starts few of them and has them check much.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from ignite.metrics import (
    ROC_AUC,
    Accuracy,
    ConfusionMatrix,
    EpochMetric,
    Metric,
    MetricsLambda,
    Precision,
    Recall,
    RunningAverage,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
)

from helpers.private import _wire, apart
from helpers.ranks import die, on_ranks
from ignite_evalhook import (
    DistEvalHook,
    EvalEvents,
    EvalHook,
    EvaluationError,
    ValLoss,
    create_evaluator,
    shard_batches,
)

WORLDS = (2, 3, 4)
CLASSES = 3


def bits(value: Any) -> Any:
    """Turn nested values into something that is equal only bit for bit."""
    if isinstance(value, Tensor):
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), bytes(flat.tolist())
    if isinstance(value, np.ndarray):
        return bits(torch.from_numpy(value))
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [bits(item) for item in value]
    return value.hex() if isinstance(value, float) else value


# -- law 2: the same numbers on any number of processes -------------------------------------------


class Samples(Dataset[Any]):
    """Sample i is all about i: image, target, names, ragged boxes, and nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return index


@dataclass(frozen=True)
class Case:
    """One evaluation: which data, how they are served, and what is measured."""

    kind: str
    size: int
    batch_size: int
    drop_last: bool = False
    limit: int | None = None
    loss: str = "scalar"
    hook: str = "results"


def predict(form: str, engine: Engine, batch: Any) -> dict[str, Any]:
    """Return what a model might say of some samples, with a loss of that form."""
    index = torch.as_tensor(batch).reshape(-1)
    number = index.double()
    scores = torch.stack([(number * (3 + c)).sin() for c in range(CLASSES)], dim=1).float()
    y = index * 7 % 5 % CLASSES
    each = nn.functional.cross_entropy(scores, y, reduction="none")
    boxes = [{"xy": torch.arange(int(i) % 4) / 7, "tag": f"€{i}"} for i in index]
    forms: dict[str, Callable[[], ValLoss]] = {
        "scalar": lambda: ValLoss(each.mean()),
        "per sample": lambda: ValLoss(each),
        "weight": lambda: ValLoss(each.mean(), weight=number.sum().float() + 0.1),
        "components": lambda: ValLoss(
            {"loss_cls": each, "loss_box": [each.mean(), each.sum() / 3], "acc": y.float().mean()}
        ),
        "weights": lambda: ValLoss(
            {"loss_a": each.mean(), "loss_b": each.square().mean()},
            weight={"loss_a": len(index), "loss_b": number.sum() + 0.3},
        ),
    }
    return {
        "y_pred": scores,
        "y": y,
        "name": [f"sample {i}" for i in index],
        "boxes": boxes,
        "nothing": None,
        "loss": forms[form](),
    }


def look(results: Sequence[Any]) -> dict[str, Any]:
    """Say everything there is to say about predictions."""
    return {"everything": repr(bits(list(results))), "n": len(results)}


def reduced(output: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
    return [(list(indices), name) for name in output["name"]]


def doubled(output: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
    return [item for name in output["name"] for item in (name, len(indices))]


def make_hooks(form: str) -> dict[str, EvalHook]:
    """Return hooks on one evaluator that measures much."""

    def pick(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return output["y_pred"], output["y"]

    def of_class_1(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return output["y_pred"][:, 1], (output["y"] == 1).long()

    def area(scores: Tensor, targets: Tensor) -> float:
        places = torch.arange(1, len(scores) + 1)  # the order of the samples counts
        return float((scores.double() * targets * places).sum())

    precision, recall = Precision(pick, average=False), Recall(pick, average=False)
    f1 = MetricsLambda(lambda p, r: (2 * p * r / (p + r + 1e-9)).mean(), precision, recall)
    metrics: dict[str, Metric] = {
        "accuracy": Accuracy(pick),
        "precision": precision,
        "recall": recall,
        "confusion": ConfusionMatrix(CLASSES, output_transform=pick),
        "area": EpochMetric(area, of_class_1, check_compute_fn=False),
        "f1": f1,
    }
    model = nn.Linear(1, 1)
    step = partial(predict, form)
    evaluator = create_evaluator(model, metrics, step=step)
    with_roc = create_evaluator(model, {**metrics, "roc_auc": ROC_AUC(of_class_1)}, step=step)
    derive = {"half": lambda metrics: metrics["val_loss"] / 2}
    return {
        "results": EvalHook([], evaluator, compute_metrics=look, derive=derive),
        "roc": EvalHook([], with_roc),
        "pre_eval": EvalHook([], evaluator, compute_metrics=look, pre_eval=reduced),
        "doubled": EvalHook([], evaluator, compute_metrics=look, pre_eval=doubled),
        "own part": EvalHook([], evaluator, compute_metrics=look, shard=False),
        **{
            f"limit {n}": EvalHook([], evaluator, compute_metrics=look, limit_batches=n)
            for n in (1, 2, 3, 5)
        },
    }


class Backwards(Sampler[Any]):
    """Draws batches of growing size, the last sample first, some samples by chance again."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(range(self.size - 1, -1, -1))
        for count in itertools.count(1):
            batch = list(itertools.islice(indices, count))
            if not batch:
                return
            yield [*batch, int(torch.randint(self.size, ()))]


class Again:
    """Gives batches, again and again, and does not tell how many."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Stream(IterableDataset[Any]):
    """One rank's own samples."""

    def __init__(self, samples: Iterable[int]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.samples)


def batches_of(case: Case) -> list[Tensor]:
    """Return the batches of one process."""
    batches = list(torch.arange(case.size).split(case.batch_size)) if case.size else []
    whole = [batch for batch in batches if len(batch) == case.batch_size]
    return whole if case.drop_last else batches


def neighbours(items: Sequence[Any], rank: int, world: int) -> Sequence[Any]:
    """Return this rank's part of some batches: the first rank has the first ones."""
    part = -(-len(items) // world)
    return items[rank * part : (rank + 1) * part]


def sequential(case: Case, rank: int, world: int) -> Any:
    return DataLoader(Samples(case.size), case.batch_size, drop_last=case.drop_last)


def workers(case: Case, rank: int, world: int) -> Any:
    return DataLoader(
        Samples(case.size),
        case.batch_size,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",  # the tests' own way would import torch in each
    )


def distributed_sampler(case: Case, rank: int, world: int) -> Any:
    data = Samples(case.size)
    if world == 1:  # what such a sampler shuffles and fills up is put right
        return DataLoader(data, case.batch_size, drop_last=case.drop_last)
    sampler = DistributedSampler(data, world, rank, shuffle=case.size % 2 == 1)
    return DataLoader(data, case.batch_size, sampler=sampler, drop_last=case.drop_last)


def auto_dataloader(case: Case, rank: int, world: int) -> Any:
    data = Samples(case.size)
    shuffle = {"shuffle": False} if world == 1 or case.batch_size % 2 else {}
    # Ignite takes a batch size for all processes together.
    return idist.auto_dataloader(
        data, batch_size=case.batch_size * world, drop_last=case.drop_last, **shuffle
    )


def random_order(case: Case, rank: int, world: int) -> Any:
    torch.manual_seed(100 * rank)
    return DataLoader(Samples(case.size), case.batch_size, shuffle=True, drop_last=case.drop_last)


def random_own_generator(case: Case, rank: int, world: int) -> Any:
    data, generator = Samples(case.size), torch.Generator().manual_seed(rank)
    sampler = RandomSampler(data, replacement=True, num_samples=17, generator=generator)
    return DataLoader(data, case.batch_size, sampler=sampler, drop_last=case.drop_last)


def batch_sampler(case: Case, rank: int, world: int) -> Any:
    torch.manual_seed(100 * rank)
    return DataLoader(Samples(case.size), batch_sampler=Backwards(case.size))


def no_batch_size(case: Case, rank: int, world: int) -> Any:
    return DataLoader(batches_of(case), batch_size=None)


def list_of_batches(case: Case, rank: int, world: int) -> Any:
    return batches_of(case)


def reiterable(case: Case, rank: int, world: int) -> Any:
    return Again(batches_of(case))


def own_shard(case: Case, rank: int, world: int) -> Any:
    return shard_batches(sequential(case, rank, world))


def stream(case: Case, rank: int, world: int) -> Any:
    own = neighbours(batches_of(case), rank, world)
    return DataLoader(Stream([int(i) for batch in own for i in batch]), case.batch_size)


def own_part(case: Case, rank: int, world: int) -> Any:
    return list(neighbours(batches_of(case), rank, world))


def own_part_of_dataset(case: Case, rank: int, world: int) -> Any:
    own = [int(i) for batch in neighbours(batches_of(case), rank, world) for i in batch]
    return DataLoader(Subset(Samples(case.size), own), case.batch_size)


def own_part_by_turn(case: Case, rank: int, world: int) -> Any:
    own = [batch.tolist() for batch in batches_of(case)[rank::world]]
    return DataLoader(Samples(case.size), batch_sampler=own)


KINDS: dict[str, Callable[[Case, int, int], Any]] = {
    function.__name__: function
    for function in (
        sequential, distributed_sampler, auto_dataloader, random_order, random_own_generator,
        batch_sampler, no_batch_size, list_of_batches, reiterable, own_shard, workers,
    )
}  # fmt: skip
OWN_PARTS: dict[str, Callable[[Case, int, int], Any]] = {
    function.__name__: function
    for function in (own_part, own_part_of_dataset, own_part_by_turn, stream)
}
FORMS = ("scalar", "per sample", "weight", "components", "weights")
HOOKS = ("results", "pre_eval", "doubled", "limit 1", "limit 2", "limit 3", "limit 5")


def make_cases() -> list[Case]:
    """Return a table in which each size, kind, form and hook meets many of the others."""
    forms, hooks = itertools.cycle(FORMS), itertools.cycle(HOOKS)
    cases = [
        Case("sequential", size, 1 + (size + more) % 4, more == 2, None, next(forms), next(hooks))
        for size in range(21)
        for more in range(4)
    ]
    cases += [
        Case(kind, size, 1 + (size + at) % 4, size % 3 == 0, None, next(forms), next(hooks))
        for at, kind in enumerate(KINDS)
        for size in (0, 1, 2, 3, 6, 11, 20)
        if kind != "workers"
    ]
    cases += [
        Case(kind, size, batch_size, False, None, next(forms), "own part")
        for kind in OWN_PARTS
        for size, batch_size in ((1, 1), (5, 2), (6, 3), (9, 2), (20, 4))
    ]
    cases += [Case(kind, 13, size, hook="roc") for kind in KINDS for size in (2, 4)]
    cases += [Case("workers", 7, 2)]
    told_indices = [kind for kind in KINDS if kind not in ("list_of_batches", "reiterable")]
    return [
        case
        for case in cases
        if (case.size > 0 or not case.kind.startswith("random"))  # which torch refuses
        and (case.hook != "pre_eval" or case.kind in told_indices)
    ]


CASES = make_cases()


def evaluate_all(rank: int, world: int, cases: Sequence[Case]) -> list[Any]:
    """Return what each evaluation says, or the words of its error."""
    logging.disable()  # of every run that fails, and of every loader made
    hooks = {form: make_hooks(form) for form in FORMS}
    found: list[Any] = []
    for number, case in enumerate(cases):
        torch.manual_seed(1000 * number + rank)
        make = KINDS.get(case.kind) or OWN_PARTS[case.kind]
        hook = hooks[case.loss][case.hook]
        try:
            loader = make(case, rank, world)
            kept = torch.get_rng_state()
            record = hook.evaluate(loader)
            if case.kind == "workers":
                record = hook.evaluate(loader)
                stop_workers(loader)
        except (EvaluationError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}".partition("\n")[0])
            continue
        assert torch.equal(kept, torch.get_rng_state())
        metrics = dict(record.metrics)
        if case.kind == "own_part_by_turn":
            del metrics["area"]  # nobody knows but that it is one rank after another
        found.append((bits(metrics), record.samples, list(metrics)))
        assert not hook.history
    return found


def stop_workers(loader: DataLoader[Any]) -> None:
    """End workers now: the garbage collector takes seconds for each."""
    for each in (loader, apart(loader)):
        each._iterator = None


@pytest.fixture(scope="module")
def on_one_process() -> list[Any]:
    """What each evaluation of the table says on one process."""
    [found] = on_ranks(1, evaluate_all, 1, CASES)
    return found


@pytest.mark.parametrize("world", WORLDS)
def test_any_data_give_what_they_give_on_one_process(world: int, on_one_process: list[Any]) -> None:
    empty = 0
    ranks = on_ranks(world, evaluate_all, world, CASES)
    for number, (case, expected) in enumerate(zip(CASES, on_one_process, strict=True)):
        for rank, found in enumerate(ranks):
            if isinstance(expected, str):
                empty += 1
                assert "EvaluationError: the evaluation data is empty: no batch" in expected
                assert "EvaluationError: rank 0 failed: " in found[number]
                assert "the evaluation data is empty: no batch" in found[number]
            else:
                assert found[number] == expected, f"rank {rank}, {case}"
    assert 10 * world < empty < len(CASES) * world / 5


def test_the_table_has_what_one_process_is_not_like() -> None:
    def counts(case: Case) -> int:
        return -(-case.size // case.batch_size)

    for world in WORLDS:
        assert any(0 < counts(case) < world for case in CASES)
        assert any(counts(case) % world for case in CASES)
    assert {case.kind for case in CASES} == {*KINDS, *OWN_PARTS}
    assert {case.size for case in CASES} == {*range(21)}
    assert {(case.loss, case.hook) for case in CASES} >= {*itertools.product(FORMS, HOOKS)}


# -- law 4: all ranks agree -----------------------------------------------------------------------


def blobs(size: int, seed: int = 5) -> TensorDataset:
    """Return points and their classes, the same on all ranks."""
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x[:, :CLASSES].argmax(dim=1))


def small_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, CLASSES)
    )


def make_trainer(model: nn.Module, lr: float) -> Engine:
    optimizer = torch.optim.SGD(model.parameters(), lr)

    def step(engine: Engine, batch: Any) -> float:
        model.train()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return Engine(step)


WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
          "os.chmod", "os.utime")  # fmt: skip


def note_writes(folder: str) -> list[str]:
    """Return a list that grows with whatever this process does to files in a folder."""
    writes: list[str] = []

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            written = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            written = event in WRITES
        if written and any(isinstance(arg, str) and arg.startswith(folder) for arg in args):
            writes.append(event)

    sys.addaudithook(audit)
    return writes


def train_apart(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Let each rank train a model of its own, and return what its hooks say of it."""
    writes = note_writes(folder)
    torch.manual_seed(rank)
    model = small_model()
    trainer = make_trainer(model, lr=1.0 + rank)
    evaluator = create_evaluator(
        model, {"accuracy": Accuracy()}, loss_fn=nn.functional.cross_entropy
    )
    loader = DataLoader(blobs(23), 4)
    hook = EvalHook(
        loader, evaluator, save_best=["accuracy", "val_loss"], n_saved=2, out_dir=folder,
        compute_metrics=lambda results: {"first": float(results[-1][0][0])}, sync_buffers=None,
    )  # fmt: skip
    other = EvalHook(
        DataLoader(blobs(3), 1), evaluator, interval=2, save_best="auto", name="other",
        out_dir=f"{folder}/žluť 🐎", derive={"rank": lambda metrics: float(rank)},
        sync_buffers=None,
    )  # fmt: skip
    asked = EvalHook(
        None, lambda engine: {"rank": rank, "at": engine.state.iteration}, name="asked",
        save_best="rank", rule="less", out_dir=False, model=model,
    )  # fmt: skip
    clocked = EvalHook(
        DataLoader(blobs(3), 1), evaluator, name="clocked", interval=timedelta(seconds=2),
        clock=itertools.count(step=1.0 + 100 * rank).__next__, sync_buffers=None,
    )  # fmt: skip
    hooks = [hook, other, asked, clocked]
    stopper = hook.early_stopping(3)
    aside = other.early_stopping(50, metric="rank", rule="less")
    lines = io.StringIO()
    with redirect_stderr(lines):
        for each in hooks:
            each.attach(trainer)
        last = hook.keep_last({"model": model})
        trainer.run(DataLoader(blobs(12, seed=rank), 6), max_epochs=40)
        answer = hook.evaluate(DataLoader(blobs(7, seed=8), 3))
        again = hook.evaluate()
    return {
        "writes": writes,
        "lines": lines.getvalue(),
        "own": bits(model.state_dict()),
        "agreed": {
            "histories": [[r.to_dict() for r in each.history] for each in hooks],
            "best": [each.best for each in hooks],
            "bests": [dict(each.bests) for each in (hook, other)],
            "states": [each.state_dict() for each in hooks],
            "stopped at": [trainer.state.epoch, trainer.state.iteration],
            "patience": [stopper.counter, stopper.best_score, aside.counter],
            "score": [hook.score_function(trainer), other.score_function(trainer)],
            "answers": [answer, again],
            "resumed": last,
        },
    }


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_whose_models_differ_agree_on_all_that_follows(world: int, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    ranks = on_ranks(world, train_apart, world, folder)
    agreed = ranks[0]["agreed"]
    for rank, said in enumerate(ranks):
        for what, value in said["agreed"].items():
            assert value == agreed[what], f"rank {rank}: {what}"
    assert len({str(said["own"]) for said in ranks}) == world, "the test needs ranks that differ"
    history = agreed["histories"][0]
    assert agreed["stopped at"][0] == len(history) < 40, "the test needs a run that is stopped"
    assert agreed["patience"][0] == 3
    assert {record["metrics"]["rank"] for record in agreed["histories"][2]} == {0.0}
    assert len(agreed["histories"][3]) > 1

    assert len(ranks[0]["writes"]) > 10
    assert [said["writes"] for said in ranks[1:]] == [[]] * (world - 1)
    assert [said["lines"] for said in ranks[1:]] == [""] * (world - 1)
    lines = ranks[0]["lines"].splitlines()
    for record in history:
        [line] = [at for at in lines if at.startswith(f"val at epoch {record['epoch']} ")]
        assert f"accuracy {record['metrics']['accuracy']:.6g}" in line

    for bests in agreed["bests"]:
        for metric, kept in bests.items():
            assert 1 <= len(kept) <= 2, metric
            assert all(best.path.is_file() for best in kept)
    named = [
        best.path.name for bests in agreed["bests"] for kept in bests.values() for best in kept
    ]
    assert sorted(named) == sorted(file.name for file in tmp_path.rglob("*best*.pt"))
    assert agreed["best"][1].metric == "accuracy"  # which "auto" has chosen


# -- buffers --------------------------------------------------------------------------------------


class Buffered(nn.Module):
    """Returns what its buffers hold, and each rank's hold something else."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.norm.running_mean.fill_(rank + 1.0)
        self.norm.num_batches_tracked.fill_(10 + rank)
        self.register_buffer("flag", torch.tensor(rank == 0))
        self.register_buffer("small", torch.tensor([1.5, rank]).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        held = [norm.running_mean[0], norm.num_batches_tracked, self.flag, *self.small]
        return torch.stack([item.double() for item in held]).expand(len(x), -1)


def held_by(rank: float, whole: int) -> list[float]:
    """Return the values of ``Buffered(rank)``, with the counters of rank ``whole``."""
    return [rank + 1.0, 10.0 + whole, float(whole == 0), 1.5, float(rank)]


def evaluate_buffered(rank: int, folder: str) -> list[Any]:
    found = []
    for number, (kind, options) in enumerate(BUFFERED):
        model = Buffered(rank)
        own = bits(model.state_dict())
        tensors = list(model.buffers())
        trainer = Engine(lambda engine, batch: None)
        hook = kind(
            DataLoader(blobs(5), 1), create_evaluator(model), save_best="n", rule="greater",
            out_dir=f"{folder}/{number}", **options,
            compute_metrics=lambda results: {"n": 1.0, "held": [y.tolist() for y, _ in results]},
        )  # fmt: skip
        hook.attach(trainer)
        trainer.run([torch.zeros(2, 1)], max_epochs=1)
        same = all(a is b for a, b in zip(tensors, model.buffers(), strict=True))
        saved = torch.load(hook.best.path, weights_only=True)
        restored = Buffered(7)
        restored.load_state_dict(saved)
        found.append(
            (hook.history[0].metrics["held"], restored(torch.zeros(1, 1))[0].tolist(),
             same, bits(model.state_dict()) == own)
        )  # fmt: skip
    return found


BUFFERED: list[tuple[type[EvalHook], dict[str, Any]]] = [
    (EvalHook, {}),
    (EvalHook, {"sync_buffers": "broadcast"}),
    (DistEvalHook, {}),
    (EvalHook, {"sync_buffers": "mean"}),
    (EvalHook, {"sync_buffers": None}),
    (EvalHook, {"broadcast_bn_buffer": False}),
    (DistEvalHook, {"broadcast_bn_buffer": False}),
]


def test_the_buffers_scored_are_those_asked_for_and_saved_and_each_rank_gets_its_own_back(
    tmp_path: Path,
) -> None:
    ranks = on_ranks(3, evaluate_buffered, str(tmp_path))
    for (_, options), *found in zip(BUFFERED, *ranks, strict=True):
        how = options.get("sync_buffers", "broadcast")
        how = None if options.get("broadcast_bn_buffer") is False else how
        if how is None:
            expected = [held_by(batch % 3, batch % 3) for batch in range(5)]
        else:
            expected = [held_by(1.0 if how == "mean" else 0.0, 0)] * 5
        for scored, saved, same_tensors, own_again in found:
            assert scored == expected, options
            assert saved == expected[0], options
            assert same_tensors, options
            assert own_again, options


def evaluate_wrapped(rank: int) -> list[Any]:
    """Evaluate where one rank has no batch, and train on all ranks, in turn."""
    torch.manual_seed(3)
    model = DistributedDataParallel(small_model())
    found: list[Any] = []
    for given in (model, model.module, None):
        evaluator = Engine(lambda engine, batch: (model(batch[0]), batch[1]))
        Accuracy().attach(evaluator, "accuracy")
        options = {"to_save": {"model": model}} if given is None else {"model": given}
        hook = EvalHook(DataLoader(blobs(7), 4), evaluator, **options)
        found.append(bits(hook.evaluate().metrics))
        model(blobs(4, seed=rank)[:][0]).square().mean().backward()
        found.append(bits([parameter.grad for parameter in model.parameters()]))
    return [*found, model.broadcast_buffers, model.training]


def test_a_wrapped_model_in_an_engine_of_the_users_waits_for_no_rank_without_a_batch() -> None:
    ranks = on_ranks(3, evaluate_wrapped)
    assert ranks == [ranks[0]] * 3
    assert ranks[0][-2:] == [True, True]
    [scores] = {str(ranks[0][at]) for at in (0, 2, 4)}
    assert "accuracy" in scores


# -- law 1: training notices nothing --------------------------------------------------------------


def train_together(rank: int, hooked: bool, folder: str) -> dict[str, Any]:
    """Train one model on all ranks, and return what is left behind."""
    torch.manual_seed(7)
    model = DistributedDataParallel(small_model())
    torch.manual_seed(100 + rank), random.seed(rank), np.random.seed(rank)
    data = blobs(21)
    sampler = DistributedSampler(data, shuffle=True, seed=3)
    loader = DataLoader(data, 4, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses: list[float] = []

    def step(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    trainer = Engine(step)
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch)
    )
    if hooked:
        watch_together(trainer, model, loader, optimizer, folder)
    trainer.run(loader, max_epochs=3)
    left = {
        "weights and buffers": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": losses,
        "counters": dict(trainer.state_dict()),
        "flags": [module.training for module in model.modules()],
        "broadcasts": model.broadcast_buffers,
        "random": [torch.rand(3), random.random(), float(np.random.rand())],
        "sampler": [list(sampler), sampler.epoch],
    }
    return {name: bits(value) for name, value in left.items()}


def watch_together(
    trainer: Engine, model: nn.Module, loader: Any, optimizer: Any, folder: str
) -> None:
    """Attach hooks that evaluate much, at odd moments, with all that draws and touches."""

    def disturb(engine: Engine) -> None:
        torch.rand(2), random.random(), np.random.rand()

    evaluator = create_evaluator(
        model, {"accuracy": Accuracy()}, loss_fn=nn.functional.cross_entropy
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, disturb)
    shuffled = DataLoader(blobs(5), 2, shuffle=True)
    hook = EvalHook(
        shuffled, evaluator, interval=2, by_epoch=False, save_best="val_loss", start=0,
        out_dir=folder, compute_metrics=lambda results: {"n": float(torch.rand(1)) + len(results)},
    )  # fmt: skip
    hook.attach(trainer)
    hook.keep_last({"model": model, "optimizer": optimizer})
    own = Engine(lambda engine, batch: (model(batch[0]), batch[1]))
    Accuracy().attach(own, "accuracy")
    on_train = EvalHook(
        loader, own, model=model, name="train", interval=3, by_epoch=False, sync_buffers="mean",
        limit_batches=1, save_best="accuracy", out_dir=f"{folder}/train",
    )  # fmt: skip
    on_train.attach(trainer)


def train_twice(rank: int, folder: str) -> list[dict[str, Any]]:
    return [train_together(rank, hooked, folder) for hooked in (False, True)]


def test_training_on_several_ranks_is_the_same_bit_for_bit_with_and_without(
    tmp_path: Path,
) -> None:
    ranks = on_ranks(2, train_twice, str(tmp_path / "run"))
    for rank, (without, hooked) in enumerate(ranks):
        for name, value in without.items():
            assert hooked[name] == value, f"rank {rank}: {name}"
    assert (tmp_path / "run" / "last.pt").is_file()
    own = [without["weights and buffers"] for without, _ in ranks]
    assert own[0] != own[1], "the test needs ranks whose buffers differ"


# -- ways to collect ------------------------------------------------------------------------------


COLLECTS: list[dict[str, Any]] = [{}, {"tmpdir": True}, {"gpu_collect": True},
                                  {"tmpdir": True, "gpu_collect": True}]  # fmt: skip


def collect(rank: int, world: int, folder: str, least: int = 8 << 20) -> list[Any]:
    _wire._LENT = least  # bytes that are lent to rank 0 instead of sent
    found = []
    evaluator = create_evaluator(nn.Linear(1, 1), step=partial(predict, "components"))
    for given in COLLECTS:
        options = {**given, **({"tmpdir": folder} if "tmpdir" in given else {})}
        hook = DistEvalHook([], evaluator, compute_metrics=look, **options)
        for size in (1, 11):
            loader = DataLoader(Samples(size), 2)
            found.append(bits(hook.evaluate(loader).metrics))
    return found


def test_predictions_are_the_same_by_whatever_way_they_were_collected(tmp_path: Path) -> None:
    folder = tmp_path / "žluť 🐎"
    [expected] = on_ranks(1, collect, 1, str(folder))
    assert not folder.exists()
    assert expected == expected[:2] * len(COLLECTS)
    folder.mkdir()
    (folder / ".ignite_evalhook-notes").write_text("a file, not a folder of ours")
    (folder / ".ignite_evalhook-0123").mkdir()  # not locked, and never was
    (folder / "mine").mkdir()
    (folder / "mine" / "0.bin").write_bytes(b"0")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for least in (8 << 20, 1):
        assert on_ranks(3, collect, 3, str(folder), least) == [expected] * 3
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def die_collecting(rank: int, folder: str) -> None:
    def stop(results: Sequence[Any]) -> dict[str, Any]:
        return die()  # type: ignore[func-returns-value]

    evaluator = create_evaluator(nn.Linear(1, 1), step=partial(predict, "scalar"))
    hook = DistEvalHook([], evaluator, compute_metrics=stop, tmpdir=folder)
    hook.evaluate(DataLoader(Samples(7), 1))


def test_what_a_killed_run_left_in_tmpdir_is_removed_by_the_next_evaluation(
    tmp_path: Path,
) -> None:
    outcomes = on_ranks(2, die_collecting, str(tmp_path), check=False)
    assert outcomes[0].code == -9
    assert "rank 0 failed: ConnectionError" in outcomes[1].error[1]
    [left] = tmp_path.iterdir()
    assert left.is_dir()
    (tmp_path / "mine").write_text("mine")
    assert len(on_ranks(2, collect, 2, str(tmp_path))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# -- what cannot be made exact is refused ---------------------------------------------------------


class Unreduced(Metric):
    """Counts samples, and never asks the other ranks."""

    def reset(self) -> None:
        self.count = 0

    def update(self, output: Any) -> None:
        self.count += len(output[0])

    def compute(self) -> int:
        return self.count


def metric_of_rank(evaluator: Engine, rank: int) -> None:
    @evaluator.on(Events.EPOCH_COMPLETED)
    def write(engine: Engine) -> None:
        engine.state.metrics["mine"] = 10.0 + rank


def running_average(evaluator: Engine, rank: int) -> None:
    RunningAverage(output_transform=lambda output: output[0].mean()).attach(evaluator, "running")


def batch_wise(evaluator: Engine, rank: int) -> None:
    Accuracy().attach(evaluator, "each", usage="batch_wise")


def unreduced(evaluator: Engine, rank: int) -> None:
    Unreduced().attach(evaluator, "seen")


class Direct(Unreduced):
    """Calls a collective of torch's, which waits for ranks that need not come."""

    def compute(self) -> int:
        count = torch.tensor(self.count)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(count)
        return int(count)


class DirectUpdate(Unreduced):
    def update(self, output: Any) -> None:
        dist.all_gather_object([None] * dist.get_world_size(), self.count)


class ReducingUpdate(Unreduced):
    def update(self, output: Any) -> None:
        self.count = int(idist.all_reduce(self.count + len(output[0])))


class OnlyHere(Unreduced):
    """Fails on the last rank, while the others ask."""

    def compute(self) -> int:
        if idist.get_rank() == idist.get_world_size() - 1:
            raise ZeroDivisionError("only here")
        return int(idist.all_reduce(self.count))


class Different(Unreduced):
    def compute(self) -> Any:
        return (idist.all_reduce if idist.get_rank() == 0 else idist.all_gather)(self.count)


def attached(make: Callable[[], Metric]) -> Callable[[Engine, int], None]:
    return lambda evaluator, rank: make().attach(evaluator, "mine")


def collective(evaluator: Engine, rank: int) -> None:
    @evaluator.on(Events.ITERATION_COMPLETED(every=1))
    def reduce(engine: Engine) -> None:
        idist.all_reduce(1.0)


def nothing(evaluator: Engine, rank: int) -> None:
    pass


@dataclass(frozen=True)
class Refusal:
    """What is wrong, the words in which it is refused, and whether batches come before."""

    spoil: Callable[[Engine, int], None]
    words: tuple[str, ...]
    after_batches: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    data: Callable[[int], Any] = lambda rank: DataLoader(blobs(5), 1)
    in_trial: bool = False  # by the trial batch of a run, after the batches of an evaluation


def with_indices(output: Any, indices: Sequence[int]) -> list[Any]:
    return list(indices)


REFUSALS: dict[str, Refusal] = {
    "a handler writes what differs": Refusal(
        metric_of_rank, ("'mine'", "10.0 on rank 0 and 11.0 on rank 1", "derive="), True
    ),
    "a running average": Refusal(running_average, ("'running'", "RunningAverage", "Average")),
    "a metric for each batch": Refusal(batch_wise, ("'each'", "Accuracy", "usage='epoch_wise'")),
    "a metric that never reduces": Refusal(
        unreduced, ("'seen'", "Unreduced", "never asks", "sync_all_reduce"), in_trial=True
    ),
    "a metric that calls torch's collectives": Refusal(
        attached(Direct),
        ("'mine' (Direct) calls all_reduce of torch", "idist.all_reduce"),
        in_trial=True,
    ),
    "a metric that does so in its updates": Refusal(
        attached(DirectUpdate), ("'mine' (DirectUpdate) calls all_gather_object",), in_trial=True
    ),
    "a metric that reduces in its updates": Refusal(
        attached(ReducingUpdate), ("idist.all_reduce was called while batches",), in_trial=True
    ),
    "a metric that fails on one rank": Refusal(
        attached(OnlyHere), ("rank 2 failed: ZeroDivisionError: only here",), after_batches=True
    ),
    "ranks that ask different things": Refusal(
        attached(Different), ("'mine' (Different) cannot", "ask different things"), True
    ),
    "a collective between batches": Refusal(
        collective, ("idist.all_reduce was called while batches are evaluated",), True
    ),
    "other data on each rank": Refusal(
        nothing,
        ("rank 1 has a dataset of 6 samples, rank 0 a dataset of 5", "shard=False"),
        data=lambda rank: DataLoader(blobs(5 + rank), 1),
    ),
    "indices that nobody knows": Refusal(
        nothing,
        ("pre_eval asks for indices",),
        True,
        (("compute_metrics", look), ("pre_eval", with_indices)),
        data=lambda rank: [blobs(5)[at : at + 1] for at in range(5)],
    ),
}


def be_refused(rank: int) -> dict[str, Any]:
    """Return for each refusal the errors and how many batches were evaluated before."""
    logging.disable()
    found: dict[str, Any] = {}
    for name, refusal in REFUSALS.items():
        torch.manual_seed(3)
        model = small_model()
        batches: list[int] = []

        def step(engine: Engine, batch: Any, model: Any = model, seen: Any = batches) -> Any:
            seen.append(1)
            return model(batch[0]), batch[1]

        evaluator = create_evaluator(model, {"accuracy": Accuracy()}, step=step)
        sound = create_evaluator(model, {"accuracy": Accuracy()})
        refusal.spoil(evaluator, rank)
        data = refusal.data(rank)
        hook = EvalHook(data, evaluator, save_best=None, **dict(refusal.options))
        attached = EvalHook(
            data, evaluator, model=model, save_best="accuracy", out_dir=False,
            **dict(refusal.options),
        )  # fmt: skip
        trainer = make_trainer(model, lr=0.1)
        attached.attach(trainer)
        errors, before = [], []
        for action in (
            hook.evaluate,
            lambda trainer=trainer: trainer.run([blobs(6)[:]], max_epochs=1),
        ):
            batches.clear()
            try:
                action()
            except EvaluationError as error:
                errors.append(str(error))
                before.append(len(batches))
        # The ranks go on together, with the very same model.
        after = EvalHook(DataLoader(blobs(5), 1), sound).evaluate()
        found[name] = errors, before, trainer.state.iteration, after.metrics, len(attached.history)
    return found


def test_what_cannot_be_exact_is_refused_by_name_on_every_rank() -> None:
    ranks = on_ranks(3, be_refused)
    for name, refusal in REFUSALS.items():
        for said in ranks:
            errors, before, iteration, metrics, evaluated = said[name]
            assert len(errors) == 2, name
            for error in errors:
                assert error.startswith("rank "), name
                assert all(word in error for word in refusal.words), (name, error)
            if not refusal.after_batches:
                assert iteration == 0, name
                assert before[1] <= refusal.in_trial, name
                assert before[0] == 0 or refusal.in_trial, name
            assert evaluated == 0, name
            assert metrics == ranks[0][name][3], name
            assert set(metrics) == {"accuracy"}


# -- who listens to the evaluator sees everything -------------------------------------------------


def listen(rank: int) -> list[Any]:
    torch.manual_seed(rank)
    model = small_model()
    trainer = make_trainer(model, lr=1.0 + rank)
    evaluator = create_evaluator(
        model, {"accuracy": Accuracy()}, loss_fn=nn.functional.cross_entropy
    )
    hook = EvalHook(
        DataLoader(blobs(5), 2), evaluator, compute_metrics=lambda results: {"n": len(results)},
        derive={"half": lambda metrics: metrics["val_loss"] / 2}, save_best="val_loss",
        out_dir=False, sync_buffers=None,
    )  # fmt: skip
    hook.attach(trainer)
    heard: list[Any] = []
    scores: list[float] = []

    def log(engine: Engine) -> None:
        heard.append(dict(engine.state.metrics))
        scores.append(hook.score_function(engine))

    def score(engine: Engine) -> float:
        return -float(engine.state.metrics["half"])

    stopper = EarlyStopping(2, score, trainer)
    evaluator.add_event_handler(Events.COMPLETED, stopper)
    evaluator.add_event_handler(Events.COMPLETED, log)
    told: list[Any] = []
    trainer.add_event_handler(
        EvalEvents.EVAL_COMPLETED, lambda engine: told.append(dict(evaluator.state.metrics))
    )
    trainer.run(DataLoader(blobs(12, seed=rank), 6), max_epochs=30)
    logged = [record.metrics for record in hook.history]
    return [heard, told, logged, scores, trainer.state.epoch, stopper.counter]


def test_handlers_of_the_evaluator_see_the_complete_metrics_the_same_on_every_rank() -> None:
    ranks = on_ranks(3, listen)
    heard, told, logged, scores, epoch, counter = ranks[0]
    assert ranks == [ranks[0]] * 3
    assert heard == told == logged
    assert list(heard[0]) == ["accuracy", "val_loss", "n", "half"]
    assert scores == [-metrics["val_loss"] for metrics in heard]
    assert counter == 2
    assert epoch == len(heard) < 30


def dealt_to_one(rank: int) -> Any:
    """Evaluate loaders that came with a DistributedSampler, on one process."""
    data = TensorDataset(torch.arange(9.0).reshape(9, 1))
    sums = []
    for replicas, limit in ((1, 2), (2, None)):
        sampler = DistributedSampler(data, replicas, 0, shuffle=True)
        evaluator = create_evaluator(nn.Linear(1, 1), step=lambda engine, batch: batch[0])
        hook = EvalHook(
            DataLoader(data, batch_size=2, sampler=sampler),
            evaluator,
            interval=None,
            limit_batches=limit,
            compute_metrics=lambda results: {"all": [float(row) for row in results]},
        )
        sums.append(hook.evaluate().metrics["all"])
    return sums


def test_a_distributed_sampler_is_put_right_on_one_process_as_well() -> None:
    one = on_ranks(1, dealt_to_one)
    assert one == [[[0.0, 1.0, 2.0, 3.0], [float(number) for number in range(9)]]]
    assert on_ranks(2, dealt_to_one) == one * 2


def sharded_by_name(rank: int, world: int) -> Any:
    """Shuffle with another seed on each rank, and say which rank of how many this is."""
    torch.manual_seed(rank)
    loader = DataLoader(TensorDataset(torch.arange(7)), batch_size=2, shuffle=True)
    shard = shard_batches(loader, rank=rank, world_size=world)
    return [batch.tolist() for (batch,) in shard]


def test_a_shuffled_loader_is_shared_also_by_ranks_that_say_who_they_are() -> None:
    first, second = on_ranks(2, sharded_by_name, 2)
    assert [len(batch) for batch in (*first, *second)] == [2, 2, 2, 1]
    assert sorted(number for batch in (*first, *second) for number in batch) == list(range(7))


def by_hand(rank: int) -> Any:
    """Run an evaluator without a hook."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
        model(torch.randn(8, 2))  # other statistics on each rank
    own = model[1].running_mean.clone()
    x = torch.arange(14.0).reshape(7, 2)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    metrics: dict[str, Any] = {"accuracy": Accuracy(), "epoch": EpochMetric(lambda p, t: p.sum())}
    evaluator = create_evaluator(model, metrics, loss_fn=nn.CrossEntropyLoss())
    state = evaluator.run(DataLoader(TensorDataset(x, y), batch_size=3))
    found = {name: float(value) for name, value in state.metrics.items()}
    return found, torch.equal(model[1].running_mean, own)


def test_an_evaluator_run_by_hand_is_exact_on_several_processes_too() -> None:
    alone = on_ranks(1, by_hand)[0]
    for world in (2, 4):
        assert on_ranks(world, by_hand) == [alone] * world
