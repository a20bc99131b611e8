"""Models and optimizers inside wrappers: evaluated exactly, and saved whole under plain names."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, create_supervised_trainer
from ignite.handlers import EMAHandler
from ignite.metrics import Accuracy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset, TensorDataset

from helpers.private import load_whole, unwrap
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, EvaluationError, ValLoss, create_evaluator, load_best

CRITERION = nn.CrossEntropyLoss()


def plain_model() -> nn.Sequential:
    """Return a model, the same each time."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def samples(count: int = 20) -> TensorDataset:
    """Return samples, the same each time."""
    torch.manual_seed(5)
    x = torch.randn(count, 4)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


def train(
    model: nn.Module,
    out_dir: Path,
    *,
    rank: int = 0,
    world: int = 1,
    evaluated: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    to_save: dict[str, Any] | None = None,
    val: int = 13,
    **options: Any,
) -> EvalHook:
    """Train three epochs, evaluate after each, and return the hook."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 0.05)
    trainer = create_supervised_trainer(model, optimizer, CRITERION)
    evaluator = create_evaluator(
        evaluated or model, metrics={"accuracy": Accuracy()}, loss_fn=CRITERION
    )
    hook = EvalHook(
        DataLoader(TensorDataset(*samples()[:val]), batch_size=3),
        evaluator,
        model=model,
        save_best="val_loss",
        to_save=to_save or {"model": model},
        out_dir=out_dir,
        **options,
    )
    hook.attach(trainer)
    x, y = samples()[:]
    trainer.run([(x[rank::world], y[rank::world])], max_epochs=3)
    return hook


def said(hook: EvalHook) -> list[Any]:
    """Return what the hook's history says, but for the time it took."""
    return [(r.epoch, r.metrics, r.best_of, r.samples) for r in hook.history]


def scored_by_the_file(out_dir: Path, val: int = 13) -> float:
    """Load the best file into a plain model, and evaluate that on this process."""
    return scored_by(plain_model(), out_dir, val)


def scored_by(model: nn.Module, out_dir: Path, val: int) -> float:
    """Load the best file into a model, sharded or not, and evaluate it."""
    load_best(out_dir, {"model": model})
    hook = EvalHook(
        DataLoader(TensorDataset(*samples()[:val]), batch_size=3),
        create_evaluator(model, loss_fn=CRITERION),
        interval=None,
    )
    return hook.evaluate().metrics["val_loss"]


# -- wrappers -------------------------------------------------------------------------------------


def with_ddp(rank: int, world: int, out_dir: Path) -> Any:
    hook = train(DistributedDataParallel(plain_model()), out_dir, rank=rank, world=world)
    return said(hook), hook.best


@pytest.mark.parametrize("world", [2, 3])
def test_a_model_in_ddp_is_scored_and_saved_without_it(world: int, tmp_path: Path) -> None:
    told = on_ranks(world, with_ddp, world, tmp_path)
    assert all(one == told[0] for one in told)
    best = told[0][1]
    assert torch.load(best.path, weights_only=True).keys() == plain_model().state_dict().keys()
    assert scored_by_the_file(tmp_path) == pytest.approx(best.score, rel=1e-6)


def with_sync_batchnorm(rank: int) -> Any:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(plain_model())
    evaluator = create_evaluator(model, loss_fn=CRITERION)
    hook = EvalHook(DataLoader(samples(5), batch_size=2), evaluator, interval=None)
    return hook.evaluate().metrics["val_loss"]


def test_sync_batchnorm_in_eval_mode_needs_no_other_rank() -> None:
    told = on_ranks(4, with_sync_batchnorm)  # one rank has no batch
    assert told == on_ranks(1, with_sync_batchnorm) * 4


def test_a_model_in_data_parallel_is_saved_without_it(tmp_path: Path) -> None:
    hook = train(nn.DataParallel(plain_model()), tmp_path)
    assert hook.best is not None
    assert scored_by_the_file(tmp_path) == hook.best.score


def test_a_compiled_model_is_saved_under_its_own_names(tmp_path: Path) -> None:
    compiled: Any = torch.compile(plain_model(), backend="eager")
    hook = train(compiled, tmp_path)
    assert hook.best is not None
    assert scored_by_the_file(tmp_path) == pytest.approx(hook.best.score, rel=1e-6)
    hook.load_best()  # into the compiled one as well
    assert hook.evaluate(track=False).metrics["val_loss"] == pytest.approx(hook.best.score)


class Child(nn.Module):
    """Has a child that may be wrapped."""

    def __init__(self, wrap: Callable[[nn.Module], Any] = lambda module: module) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = wrap(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
        self.head = nn.ModuleList([wrap(nn.Linear(8, 2))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head[0](self.net(x))


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


WRAPS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": compiled,
    "data parallel": nn.DataParallel,
    "both": lambda module: compiled(nn.DataParallel(module)),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks at it
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_wrapped_children_are_saved_under_plain_names_and_load_into_any(
    wrap: Callable[[nn.Module], Any], tmp_path: Path
) -> None:
    model = Child(wrap)
    names = list(model.state_dict())
    hook = train(model, tmp_path)
    assert hook.best is not None
    assert list(model.state_dict()) == names  # its wrappers are where they were
    saved = torch.load(hook.best.path, weights_only=True)
    assert list(saved) == list(Child().state_dict())
    assert list(saved._metadata) == list(Child().state_dict()._metadata)
    for other in (Child(), Child(wrap), Child(compiled)):
        assert scored_by(other, tmp_path, 13) == pytest.approx(hook.best.score, rel=1e-6)
    hook.load_best()


def test_an_older_file_with_the_names_of_wrappers_loads_into_any(tmp_path: Path) -> None:
    hook = train(Child(), tmp_path)
    assert hook.best is not None
    saved = torch.load(hook.best.path, weights_only=True)
    older = {key.replace("net.", "net._orig_mod.", 1): value for key, value in saved.items()}
    for model in (Child(), Child(compiled)):
        load_whole(model, older)
        assert torch.equal(unwrap(model.net)[0].weight, saved["net.0.weight"])  # type: ignore[index]


# -- TorchScript and lazy modules ---------------------------------------------------------------


class Scripted(nn.Module):
    """Remembers in every way that scripted code can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(2)
        self.register_buffer("seen", torch.zeros(1))
        self.calls, self.sizes, self.memory = 0, [1], torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.sizes.append(x.shape[0])
        self.memory += 1
        self.seen = self.seen + 1
        return self.norm(self.layer(x))


def holder(inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), inner)


EXAMPLE = torch.randn(3, 4)
SCRIPTS: dict[str, Callable[[], Any]] = {
    "scripted": lambda: torch.jit.script(Scripted()),
    "traced": lambda: torch.jit.trace(plain_model().eval(), EXAMPLE),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(plain_model().eval())),
    "read from a file": lambda: through_a_file(torch.jit.script(Scripted())),
    "a scripted child": lambda: holder(torch.jit.script(Scripted())),
    "a traced child": lambda: holder(torch.jit.trace(plain_model().eval(), EXAMPLE)),
    "a frozen child": lambda: holder(torch.jit.freeze(torch.jit.script(plain_model().eval()))),
}


def through_a_file(module: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
@pytest.mark.parametrize("how", ["create_evaluator", "model="])
@pytest.mark.parametrize("make", SCRIPTS.values(), ids=SCRIPTS)
def test_torchscript_is_evaluated_saved_and_put_back(
    make: Callable[[], Any], how: str, tmp_path: Path
) -> None:
    model = make()
    flags = [getattr(module, "training", None) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    inner = model[1] if isinstance(model, nn.Sequential) else model
    remembered = [getattr(inner, name, None) for name in ("calls", "sizes", "memory")]
    x, y = samples(13)[:]
    if how == "model=":
        evaluator = Engine(lambda engine, batch: (model(batch[0]), batch[1]))
        Accuracy().attach(evaluator, "accuracy")
    else:
        evaluator = create_evaluator(model, {"accuracy": Accuracy()}, loss_fn=CRITERION)
        evaluator.run([(x, y)])
    hook = EvalHook([(x, y)], evaluator, model=model, save_best="accuracy", out_dir=tmp_path)
    hook.attach(Engine(lambda engine, batch: None))
    record = hook.evaluate()
    assert [getattr(module, "training", None) for module in model.modules()] == flags
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert [getattr(inner, name, None) for name in ("calls", "sizes", "memory")] == remembered
    hook.load_best()
    assert hook.evaluate(track=False).metrics == record.metrics


def test_lazy_modules_run_and_are_left_out_of_the_trial_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 2))
    seen: list[bool] = []

    def step(engine: Engine, batch: Any) -> Any:
        seen.append(isinstance(model[0], nn.LazyLinear))
        return model(batch[0]), batch[1]

    trainer = Engine(lambda engine, batch: model(batch[0]))
    evaluator = create_evaluator(model, {"accuracy": Accuracy()}, step=step)
    hook = EvalHook([samples(13)[:]], evaluator, save_best="accuracy", out_dir=tmp_path)
    hook.attach(trainer)
    hook.keep_last({"model": model})
    with caplog.at_level("INFO", "ignite_evalhook"):
        trainer.run([samples()[:]], max_epochs=2)
    assert seen == [False, False]
    assert [line.message for line in caplog.records if "lazy modules" in line.message] == [
        "val: no trial batch before training, since the model has lazy modules, which take their "
        "shapes from training's first batch"
    ]
    again = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 2))
    resumed = Engine(lambda engine, batch: again(batch[0]))
    hook = EvalHook([samples(13)[:]], create_evaluator(again, {"accuracy": Accuracy()}),
                    save_best="accuracy", out_dir=tmp_path)  # fmt: skip
    hook.attach(resumed)
    assert hook.keep_last({"model": again})
    assert torch.equal(again[0].weight, model[0].weight)


# -- averaged weights -----------------------------------------------------------------------------


def test_averaged_weights_are_scored_and_saved_and_training_keeps_its_own(tmp_path: Path) -> None:
    def run(*, evaluate: bool) -> tuple[nn.Module, EvalHook | None, EMAHandler]:
        model = plain_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        trainer = create_supervised_trainer(model, optimizer, CRITERION)
        ema = EMAHandler(model, momentum=0.3)
        ema.attach(trainer)
        hook = None
        if evaluate:
            hook = EvalHook(
                DataLoader(TensorDataset(*samples()[:13]), batch_size=3),
                create_evaluator(model, loss_fn=CRITERION),
                save_best="val_loss",
                out_dir=tmp_path,
                context=ema,
            ).attach(trainer)
        trainer.run([samples()[:]], max_epochs=3)
        return model, hook, ema

    model, hook, ema = run(evaluate=True)
    bare, _, bare_ema = run(evaluate=False)
    assert hook is not None
    assert hook.best is not None
    for own, other in ((model, bare), (ema.ema_model, bare_ema.ema_model)):
        for name, value in own.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert hook.best.epoch == 3
    saved = torch.load(hook.best.path, weights_only=True)
    for name, value in ema.ema_model.state_dict().items():
        assert torch.equal(saved[name], value), name
    assert scored_by_the_file(tmp_path) == hook.best.score


def test_averaged_weights_are_put_back_also_after_an_error() -> None:
    model = plain_model()
    ema = EMAHandler(model, momentum=0.3)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    before = [value.clone() for value in model.state_dict().values()]

    def fail(engine: Engine, batch: Any) -> None:
        raise ValueError("no")

    hook = EvalHook(
        [0], create_evaluator(model, step=fail), interval=None, context=ema, model=model
    )
    with pytest.raises(ValueError, match="no"):
        hook.evaluate()
    for value, was in zip(model.state_dict().values(), before, strict=True):
        assert torch.equal(value, was)


# -- what is sharded ------------------------------------------------------------------------------


def with_zero(rank: int, world: int, out_dir: Path) -> Any:
    model = DistributedDataParallel(plain_model())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.05)
    hook = train(
        model, out_dir, rank=rank, world=world, optimizer=optimizer,
        to_save={"model": model, "optimizer": optimizer},
    )  # fmt: skip
    return said(hook), hook.best


def test_an_optimizer_sharded_by_zero_is_saved_whole(tmp_path: Path) -> None:
    told = on_ranks(2, with_zero, 2, tmp_path)
    assert told[0] == told[1]
    saved = torch.load(told[0][1].path, weights_only=True)["optimizer"]
    optimizer = torch.optim.Adam(plain_model().parameters(), 0.05)
    optimizer.load_state_dict(saved)
    assert len(optimizer.state) == 6  # every parameter has its moments


def shard(model: nn.Module, world: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (world,))
    for layer in (model[0], model[3]):  # type: ignore[index]
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def with_fsdp(rank: int, world: int, out_dir: Path, val: int) -> Any:
    model = shard(plain_model(), world)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    hook = train(
        model, out_dir, rank=rank, world=world, optimizer=optimizer, val=val,
        to_save={"model": model, "optimizer": optimizer},
    )  # fmt: skip
    dist.barrier()
    hook.load_best(to_load={"model": model, "optimizer": optimizer})
    again = hook.evaluate(track=False).metrics["val_loss"]
    return said(hook), hook.best, again


@pytest.mark.parametrize(("world", "val"), [(2, 13), (3, 13), (2, 2)])
def test_a_model_sharded_by_fsdp_is_scored_in_lockstep_and_saved_whole(
    world: int, val: int, tmp_path: Path
) -> None:
    told = on_ranks(world, with_fsdp, world, tmp_path, val)
    assert all(one == told[0] for one in told)
    records, best, again = told[0]
    assert [samples_seen for *_, samples_seen in records] == [val] * 3
    assert again == pytest.approx(best.score, rel=1e-5)
    saved = torch.load(best.path, weights_only=True)
    assert {type(value) for value in saved["model"].values()} == {torch.Tensor}
    # A file of the whole loads on one process, and on another number of ranks.
    assert scored_by_the_file(tmp_path, val) == pytest.approx(best.score, rel=1e-5)
    other = on_ranks(5 - world, load_sharded, 5 - world, tmp_path, val)
    assert other == [pytest.approx(best.score, rel=1e-5)] * (5 - world)


def load_sharded(rank: int, world: int, out_dir: Path, val: int) -> Any:
    return scored_by(shard(plain_model(), world), out_dir, val)


def failing_in_lockstep(rank: int, place: str) -> Any:
    """Fail on rank 1 while a sharded model is evaluated; return what each rank raises."""
    model = shard(plain_model(), 2)

    def step(engine: Engine, batch: Any) -> Any:
        if place == "model" and rank == 1 and engine.state.iteration == 2:
            raise ValueError("no room")
        return model(batch)

    def broken(batch: Any) -> Any:
        if place == "loader" and rank == 1 and batch[0][0][0] > 6.0:
            raise ValueError("no room")
        return torch.stack([item[0] for item in batch])

    data = TensorDataset(torch.arange(12.0).reshape(12, 1).expand(12, 4))
    loader = DataLoader(data, batch_size=2, collate_fn=broken)
    hook = EvalHook(loader, create_evaluator(model, step=step), interval=None, preflight=False)
    with pytest.raises(EvaluationError) as caught:
        hook.evaluate()
    return [(failure.rank, failure.kind) for failure in caught.value.failures]


@pytest.mark.parametrize("place", ["loader", "model"])
def test_a_failure_of_one_rank_ends_an_evaluation_in_lockstep(place: str) -> None:
    # Inside of a forward pass the other ranks wait until the group's timeout.
    timeout = 60.0 if place == "loader" else 3.0
    for failures in on_ranks(2, failing_in_lockstep, place, group_timeout=timeout):
        assert (1, "ValueError") in failures


class Part(IterableDataset[Any]):
    """A stream of some samples, of which each rank has its own."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = list(numbers)

    def __iter__(self) -> Iterator[Any]:
        data = samples()
        return (data[number] for number in self.numbers)


# What each rank is given -> the samples that all ranks together evaluate.
UNEQUAL: dict[str, tuple[Callable[[int, int], Any], dict[str, Any], list[int]]] = {
    "a sampler of ranks that leaves a rank nothing": (
        lambda rank, world: DataLoader(
            Subset(samples(), range(6)), 4, drop_last=True,
            sampler=DistributedSampler(Subset(samples(), range(6)), world, rank, shuffle=False),
        ), {}, [0, 1, 2, 3],
    ),
    "fewer batches than ranks": (
        lambda rank, world: DataLoader(Subset(samples(), range(3)), 4), {}, [0, 1, 2],
    ),
    "one batch of a list": (lambda rank, world: [samples()[:5]], {}, list(range(5))),
    "streams": (
        lambda rank, world: DataLoader(Part(range(rank, 7, world)), 2), {}, list(range(7)),
    ),
    "one stream that is not empty, and not of rank 0": (
        lambda rank, world: DataLoader(Part(range(5) if rank == 1 else ()), 2), {}, list(range(5)),
    ),
    "one stream that is much longer": (
        lambda rank, world: DataLoader(Part(range(15) if rank == 0 else [15 + rank]), 2), {},
        [*range(15), 16, 17],
    ),
    "parts that are given": (
        lambda rank, world: DataLoader(Subset(samples(), [range(4), [4], []][rank]), 1),
        {"shard": False}, [0, 1, 2, 3, 4],
    ),
}  # fmt: skip


def with_fsdp_in_unequal_parts(rank: int, world: int) -> list[Any]:
    found = []
    for make, options, _ in UNEQUAL.values():
        evaluator = create_evaluator(
            shard(plain_model(), world), {"accuracy": Accuracy()}, loss_fn=CRITERION
        )
        for preflight in (True, False):
            hook = EvalHook(make(rank, world), evaluator, preflight=preflight, **options)
            trainer = Engine(lambda engine, batch: None)
            hook.attach(trainer)
            trainer.run([0], max_epochs=1)
            found.append((hook.history[-1].metrics, hook.history[-1].samples))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_a_model_sharded_by_fsdp_is_exact_whatever_each_rank_has(world: int) -> None:
    told = on_ranks(world, with_fsdp_in_unequal_parts, world)
    assert all(one == told[0] for one in told)
    model = plain_model().eval()
    for (name, (_, _, numbers)), *found in zip(
        UNEQUAL.items(), told[0][::2], told[0][1::2], strict=True
    ):
        if world == 2 and name == "one stream that is much longer":
            numbers = numbers[:-1]
        x, y = samples()[numbers]
        with torch.no_grad():
            output = model(x)
        for metrics, count in found:
            assert count == len(numbers), name
            assert metrics["accuracy"] == (output.argmax(1) == y).double().mean().item(), name
            assert metrics["val_loss"] == pytest.approx(CRITERION(output, y).item()), name


# -- what ranks share -----------------------------------------------------------------------------


def across(model: nn.Module, mesh: Any) -> nn.Module:
    plan = {
        "0": ColwiseParallel(output_layouts=Replicate()),
        "3": RowwiseParallel(input_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, plan)


def in_two_ways(mesh: Any, *, reshard: bool) -> nn.Module:
    model = across(plain_model(), mesh["model"])
    fully_shard(model[0], mesh=mesh["data"], reshard_after_forward=reshard)  # type: ignore[index]
    return fully_shard(model, mesh=mesh["data"], reshard_after_forward=reshard)


def hybrid(mesh: Any, *, reshard: bool) -> nn.Module:
    model = plain_model()
    fully_shard(model[0], mesh=mesh, reshard_after_forward=reshard)
    return fully_shard(model, mesh=mesh, reshard_after_forward=reshard)


def with_shared_weights(rank: int) -> dict[str, Any]:
    """Return the refusal of each model, or its loss."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    models = {
        "tensor parallel": across(plain_model(), init_device_mesh("cpu", (4,))),
        "tensor parallel in DDP": DistributedDataParallel(
            across(plain_model(), mesh["model"]), device_mesh=mesh["data"]
        ),
        **{f"FSDP and tensor parallel {r}": in_two_ways(mesh, reshard=r) for r in (True, False)},
        **{f"hybrid FSDP {r}": hybrid(mesh, reshard=r) for r in (True, False)},
    }
    found: dict[str, Any] = {}
    for name, model in models.items():
        for after in (False, True) if "FSDP" in name else (False,):
            if after:
                with torch.no_grad():  # else torch warns of views
                    model.eval()(samples()[:4][0])
            batches: list[Any] = []

            def step(
                engine: Engine, batch: Any, model: Any = model, batches: list[Any] = batches
            ) -> Any:
                batches.append(batch)
                output = model(batch[0])
                return output, batch[1], ValLoss(CRITERION(output, batch[1]))

            evaluator = Engine(step)
            hook = EvalHook(DataLoader(samples(11), 2), evaluator, model=model, preflight=False)
            trainer = Engine(lambda engine, batch: None)
            hook.attach(trainer)
            for number, begin in enumerate((hook.evaluate, partial(trainer.run, [0]))):
                try:
                    begin()
                except EvaluationError as error:
                    found[f"{name}, {after}, {number}"] = (str(error), len(batches))
                else:
                    found[f"{name}, {after}, {number}"] = hook.history[-1].metrics["val_loss"]
    return found


def test_a_model_that_ranks_share_is_refused_by_name_before_the_first_batch() -> None:
    told = on_ranks(4, with_shared_weights)
    model = plain_model().eval()
    x, y = samples(11)[:]
    loss = CRITERION(model(x), y).item()
    assert len(told[0]) == 20
    for name in told[0]:
        if name.startswith("hybrid"):
            assert [one[name] for one in told] == [pytest.approx(loss)] * 4
            continue
        for words, batches in (one[name] for one in told):
            assert "0.weight' of " in words, name
            assert "tensor parallelism" in words
            assert "shard=False" in words
            assert batches == 0


def with_all_of_a_shared_model(rank: int) -> Any:
    model = across(plain_model(), init_device_mesh("cpu", (2,)))
    evaluator = create_evaluator(model, loss_fn=CRITERION)
    hook = EvalHook(DataLoader(samples(11), 2), evaluator, shard=False)
    return hook.evaluate().metrics["val_loss"]


def test_a_model_that_ranks_share_is_evaluated_where_each_is_given_all_batches() -> None:
    x, y = samples(11)[:]
    loss = CRITERION(plain_model().eval()(x), y).item()
    assert on_ranks(2, with_all_of_a_shared_model) == [pytest.approx(loss)] * 2
