"""What ranks were given is compared, and what differs is named."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.metrics import Accuracy, Loss, Metric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from helpers.private import WEIGHTS, Given, check_alike, data_of, fingerprint, held_indices, weigh
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, EvaluationError, create_evaluator

# -- fingerprints ---------------------------------------------------------------------------------


class Box:
    """A batch of a user's own class."""

    def __init__(self, x: Any) -> None:
        self.x = x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        (True, 1),
        (None, 0),
        ("a", "b"),
        (b"a", b"b"),
        (torch.zeros(3), torch.zeros(3, 1)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.arange(3), torch.tensor([0, 2, 1])),
        (torch.zeros(200_000), torch.arange(200_000.0)),
        (torch.tensor([True, False]), torch.tensor([False, True])),
        (torch.tensor(1 + 2j), torch.tensor(2 + 1j)),
        (np.zeros(3), np.ones(3)),
        (np.array(["a", None]), np.array(["b", None])),
        ([1, 2], [2, 1]),
        ({"x": 1}, {"y": 1}),
        ((torch.zeros(1), 1), (torch.zeros(1), 2)),
        (Box(torch.zeros(2)), Box(torch.ones(2))),
        ([Box([1])], [Box([2])]),
    ],
)
def test_different_values_have_different_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.arange(6).view(2, 3), torch.arange(6).view(2, 3).t().contiguous().t()),
        ("/node1/data/cat/7.png", "C:\\data\\7.png"),
        (Box(object()), Box(object())),
        (torch.empty(3, device="meta"), torch.empty(3, device="meta")),
        (torch.eye(2).to_sparse(), torch.eye(2).to_sparse()),
        (torch.zeros(0), torch.zeros(0)),
    ],
)
def test_equal_values_have_equal_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(other)


def test_a_value_that_holds_itself_has_a_fingerprint() -> None:
    box = Box([1])
    box.x.append(box)
    assert fingerprint(box) == fingerprint(box)


@pytest.mark.parametrize("batches", [[0, 1, 2, 3], [[3, 1], [2, 0]], [np.int64(3), 2, 1, 0]])
def test_indices_count_regardless_of_their_order(batches: list[Any]) -> None:
    assert held_indices(batches) == held_indices([[0], [1, 2], 3])
    assert held_indices(batches) != held_indices([[0], [1, 2], 4])
    assert held_indices(batches) != held_indices([[0], [1, 2], 3, 3])


def test_indices_may_be_anything() -> None:
    assert held_indices([slice(0, 2), "a"]) == held_indices(["a", slice(0, 2)])
    assert held_indices(["a", "b"]) != held_indices(["a", "c"])


# -- data -----------------------------------------------------------------------------------------


class Files(Dataset[int]):
    """A dataset that keeps a list for its samples, as most do, and cannot be read here."""

    def __init__(self, files: Any) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        raise AssertionError("the workers are the first to open files")


class Computed(Dataset[Any]):
    """A dataset that keeps nothing."""

    def __init__(self, sample: Callable[[int], Any]) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


class Cached(Computed):
    """A dataset that keeps samples that it has been asked for."""

    def __init__(self, known: int) -> None:
        super().__init__(lambda index: torch.tensor(index))
        self.cache = [torch.tensor(index) if index < known else None for index in range(4)]


X = torch.arange(8.0).view(8, 1)

# What each of two ranks is given, of equal lengths, and what is said of it.
PARTS: dict[str, tuple[Callable[[int], Any], str]] = {
    "a Subset": (lambda r: Subset(TensorDataset(X), range(r, 8, 2)), "the 4 indices 1, 3, 5, …"),
    "a Subset in other order": (lambda r: Subset(TensorDataset(X), [[0, 1], [1, 0]][r]), "1, 0"),
    "a Subset that differs late": (
        lambda r: Subset(TensorDataset(X), [0, 1, 2, 3 + r]), "4 indices 0, 1, 2"
    ),
    "a Subset of a Subset": (
        lambda r: Subset(Subset(TensorDataset(X), range(r, 8, 2)), range(3)), "indices 1, 3, 5"
    ),
    "tensors": (lambda r: TensorDataset(X[r::2]), "'tensors[0]'"),
    "a list of samples": (lambda r: [*X[r::2]], "samples with the fingerprint"),
    "parts of a ConcatDataset": (
        lambda r: ConcatDataset([TensorDataset(X), TensorDataset(X[r::2])]), "'tensors[0]'"
    ),
    "a list of files": (lambda r: Files([f"{i}.png" for i in range(r, 8, 2)]), "'files'"),
    "an array": (lambda r: Files(np.arange(r, 8, 2)), "'files'"),
    "a tensor": (lambda r: Files(X[r::2]), "'files'"),
    "files in other order": (lambda r: Files([["a", "b"], ["b", "a"]][r]), "'files'"),
    "computed samples": (lambda r: Computed(lambda i: 2 * i + r), "first sample"),
    "lengths": (lambda r: Subset(TensorDataset(X), range(r, 8 - r)), "a dataset of 6 samples"),
    "kinds": (lambda r: [TensorDataset(X), [*X]][r], "a DataLoader of a list"),
}  # fmt: skip
LOADERS: dict[str, tuple[Callable[[int], Any], str]] = {
    **{
        name: (lambda r, make=make: DataLoader(make(r), 2), words)
        for name, (make, words) in PARTS.items()
    },
    "batch sizes": (lambda r: DataLoader(TensorDataset(X), 2 + r), "batches of 3 samples"),
    "drop_last": (lambda r: DataLoader(TensorDataset(X), 3, drop_last=r == 1), "drop_last=True"),
    "shuffled on one": (
        lambda r: DataLoader(TensorDataset(X), 2, shuffle=r == 1), "order of a RandomSampler"
    ),
    "a sampler of indices": (
        lambda r: DataLoader(TensorDataset(X), 2, sampler=SubsetRandomSampler(range(r, 8, 2))),
        "a sampler of the 4 indices 1, 3, 5",
    ),
    "a list of batches": (lambda r: [*X[r::2].split(2)], "batches with the fingerprint"),
    "lists of batches of other lengths": (lambda r: [*X[: 8 - 3 * r].split(2)], "3 batches"),
    "a list and a loader": (lambda r: [DataLoader(TensorDataset(X), 2), [X]][r], "a list of batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_data_of_which_each_rank_has_a_part_are_told_apart(name: str) -> None:
    make, words = LOADERS[name]
    ranks = [{"the data": data_of(make(rank), read=True)} for rank in range(2)]
    with pytest.raises(EvaluationError) as caught:
        check_alike(Given(ranks[0]), ranks)
    assert str(caught.value).startswith("rank 1 has ")
    assert words in str(caught.value)
    assert "shard=False" in str(caught.value)


def by_chance(rank: int) -> DataLoader[Any]:
    torch.manual_seed(rank), random.seed(rank), np.random.seed(rank)
    draws = (lambda: torch.rand(()).round(), random.random, np.random.rand)
    return DataLoader(Computed(lambda index: [draw() for draw in draws]), 2)


# What may differ.
ALIKE: dict[str, Callable[[int], Any]] = {
    "samples drawn by chance": by_chance,
    "a cache": lambda rank: DataLoader(Cached(known=4 * rank), 2),
    "hosts": lambda rank: DataLoader(Files([f"/host{rank}/{i}.png" for i in range(4)]), 2),
    "ranks of a sampler": lambda rank: DataLoader(
        TensorDataset(X), 2, sampler=DistributedSampler(TensorDataset(X), 2, rank)
    ),
    "seeds": lambda rank: DataLoader(
        TensorDataset(X), 2, shuffle=True, generator=torch.Generator().manual_seed(rank)
    ),
    "workers": lambda rank: DataLoader(TensorDataset(X), 2, num_workers=rank),
    "other files": lambda rank: DataLoader(Files([]), 2),
    "empty lists": lambda rank: [],
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_may_differ_between_ranks_is_not_compared(name: str) -> None:
    ranks = [{"the data": data_of(ALIKE[name](rank), read=True)} for rank in range(2)]
    check_alike(Given(ranks[0]), ranks)


def test_to_look_at_data_draws_nothing_and_reads_only_where_it_may() -> None:
    read: list[int] = []
    loader = DataLoader(Computed(lambda index: read.append(index) or torch.rand(())), shuffle=True)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    data_of(loader, read=False)
    assert read == []
    data_of(loader, read=True)
    assert set(read) == {0}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    read.clear()
    data_of(DataLoader(loader.dataset, num_workers=1), read=True)
    assert read == []


# -- weights --------------------------------------------------------------------------------------


def compare_weights(one: nn.Module, other: nn.Module) -> None:
    (names, own), (_, theirs) = weigh([one]), weigh([other])
    ranks = [{WEIGHTS: own}, {WEIGHTS: own}, {WEIGHTS: theirs}]
    check_alike(Given(ranks[0], names), ranks)


def linear(seed: int, *sizes: int, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*map(lambda a, b: nn.Linear(a, b, **options), sizes, sizes[1:]))


def test_weights_that_differ_are_named() -> None:
    one, other = linear(0, 4, 8, 2), linear(0, 4, 8, 2)
    other[1].weight.data[0, 0] += 0.01  # type: ignore[index, union-attr, operator]
    with pytest.raises(EvaluationError, match=r"^rank 2 has other weights: 1\.weight \(2, 8\) has"):
        compare_weights(one, other)
    with pytest.raises(EvaluationError, match="sync_buffers=None if each rank"):
        compare_weights(one, linear(1, 4, 8, 2))


def test_stages_of_a_pipeline_are_named() -> None:
    words = r"^rank 2 has a model of 2 weights, rank 0 one of 2 weights, with '0\.weight \(8, 4\)'"
    with pytest.raises(EvaluationError, match=words):
        compare_weights(linear(0, 4, 8), linear(0, 8, 2))
    with pytest.raises(EvaluationError, match=r"2 weights, rank 0 one of 4 weights, with '1\.wei"):
        compare_weights(linear(0, 4, 8, 2), linear(0, 4, 8))


def test_weights_that_are_the_same_but_for_rounding_pass() -> None:
    one, other = linear(0, 4, 8, 2), linear(0, 4, 8, 2)
    for weight in other.parameters():
        weight.data *= 1 + 1e-7
    compare_weights(one, other)
    one[0].weight.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
    compare_weights(one, one)
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.complex64)
    for dtype in kinds:
        compare_weights(linear(0, 4, 3, dtype=dtype), linear(0, 4, 3, dtype=dtype))
        with pytest.raises(EvaluationError, match="other weights"):
            compare_weights(linear(0, 4, 3, dtype=dtype), linear(1, 4, 3, dtype=dtype))


def test_models_without_weights_to_compare_pass() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    compare_weights(nn.ReLU(), nn.Tanh())
    compare_weights(lazy, lazy)
    compare_weights(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, device="meta"))


# -- on several ranks -----------------------------------------------------------------------------


class Own(Sampler[Any]):
    """A sampler of a user's own class."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


class Again:
    """Gives batches, again and again, and does not tell how many."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Stream(IterableDataset[Tensor]):
    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.samples)


def of_own(make: Callable[[], Any]) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X), 2, sampler=Own(make))


def of_batches(sampler: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X), batch_sampler=sampler)


def shuffled(indices: Any) -> Callable[[], list[int]]:
    return lambda: random.sample(list(indices), len(indices))


# What ranks are given -> words of the refusal, or the samples that all evaluate together.
RUNS: dict[str, tuple[Callable[[int, int], Any], dict[str, Any], str | int]] = {
    "an own sampler of a part": (
        lambda r, w: of_own(lambda: range(r, 8, w)), {}, "the Own of rank 1 names other samples"
    ),
    "that shuffles its part": (lambda r, w: of_own(shuffled(range(r, 8, w))), {}, "the Own of"),
    "a list of indices": (
        lambda r, w: DataLoader(TensorDataset(X), 2, sampler=list(range(r, 8, w))), {},
        "the list of rank 1",
    ),
    "batches of a part": (lambda r, w: of_batches([[r], [r + w]]), {}, "the list of rank 1"),
    "an own sampler of batches of a part": (
        lambda r, w: of_batches(Own(lambda: [[r, r + w], [r + 2 * w]])), {}, "the Own of rank 1"
    ),
    "batches of a sampler of a part": (
        lambda r, w: of_batches(BatchSampler(Own(lambda: range(r, 8, w)), 2, False)), {}, "the Own"
    ),
    "a part, and a limit": (
        lambda r, w: of_own(lambda: range(r, 8, w)), {"limit_batches": 2}, "the Own of rank 1"
    ),
    "a re-iterable of a part": (
        lambda r, w: Again(X[r::w].split(1)[:2]), {}, "their first batches differ"
    ),
    "a Subset": (
        lambda r, w: DataLoader(Subset(TensorDataset(X), range(r, 8, w)), 1), {}, "rank 1 has"
    ),
    "a Subset, and it is said": (
        lambda r, w: DataLoader(Subset(TensorDataset(X), range(r, 8, w)), 1), {"shard": False}, 8
    ),
    "orders of their own": (lambda r, w: of_own(shuffled(range(8))), {}, 8),
    "samples by chance": (lambda r, w: of_own(lambda: random.choices(range(8), k=5)), {}, 5),
    "random ones, and a limit": (
        lambda r, w: of_own(shuffled(range(8))), {"limit_batches": 2}, 4
    ),
    "by a random sampler": (
        lambda r, w: DataLoader(
            TensorDataset(X), 2, sampler=RandomSampler(TensorDataset(X), True, num_samples=5)
        ), {}, 5,
    ),
    "a re-iterable of other batches each time": (
        lambda r, w: Again(Own(lambda: torch.rand(4, 2, 1))), {}, 8
    ),
    "a re-iterable": (lambda r, w: Again(X.split(2)), {}, 8),
    "streams of their own": (lambda r, w: DataLoader(Stream([*X[r::w]]), 1), {}, 8),
    "streams that are the same": (lambda r, w: DataLoader(Stream([*X]), 1), {}, 0),
    "a limit of all streams": (
        lambda r, w: DataLoader(Stream([*X[r::w]]), 1), {"limit_batches": 3}, 3
    ),
    "a limit below the number of ranks": (
        lambda r, w: DataLoader(Stream([*X[r::w]]), 1, num_workers=0), {"limit_batches": 1}, 1
    ),
    "a limit of all parts": (
        lambda r, w: DataLoader(Subset(TensorDataset(X), range(r, 8, w)), 1),
        {"limit_batches": 4, "shard": False}, 4,
    ),
}  # fmt: skip


def evaluate_given(rank: int, world: int) -> dict[str, Any]:
    """Return what each case gives: words, or samples and what was logged of them."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ignite_evalhook")
    logger.addHandler(handler)
    found = {}
    for name, (make, options, _) in RUNS.items():
        random.seed(rank)
        torch.manual_seed(rank)
        batches: list[Any] = []

        def step(engine: Engine, batch: Any, batches: list[Any] = batches) -> Tensor:
            x = batch[0] if isinstance(batch, list) else batch
            batches.append(x)
            return x

        evaluator = create_evaluator(nn.Linear(1, 1), step=step)
        hook = EvalHook(
            make(rank, world), evaluator, sync_buffers=None, **options,
            compute_metrics=lambda results: {"sum": float(sum(results))},
        )  # fmt: skip
        logged.clear()
        try:
            answers = [hook.evaluate() for _ in range(2)]
        except EvaluationError as error:
            found[name] = str(error), len(batches)
        else:
            warnings = [words for words in logged if "same batch" in words]
            found[name] = [each.samples for each in answers], warnings
    logger.removeHandler(handler)
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_parts_of_ranks_are_refused_and_all_else_is_evaluated(world: int) -> None:
    ranks = on_ranks(world, evaluate_given, world)
    for name, (_, _, expected) in RUNS.items():
        for rank, said in enumerate(ranks):
            found, more = said[name]
            if isinstance(expected, str):
                assert expected in found, (name, found)
                assert "shard=False" in found, name
                assert more == 0 or "re-iterable" in name, name
                continue
            repeats = name == "streams that are the same"
            assert found == [8 * world if repeats else expected] * 2, name
            assert len(more) == (rank == 0 and repeats), (name, more)
            if more:
                assert f"all {world} ranks began with the same batch" in more[0]


def never(metrics: Any) -> float:
    return 0.0


# Settings of a rank, and what is said of them where rank 0 has those of a plain hook.
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "interval": ({"interval": 2}, "has schedule='every 2 epochs', rank 0 schedule='every epoch'"),
    "start": ({"start": 1}, "schedule="),
    "by_epoch": ({"by_epoch": False}, "schedule="),
    "at_end": ({"at_end": True}, "has at_end=True, rank 0 at_end=False"),
    "limit_batches": ({"limit_batches": 1}, "limit_batches=1"),
    "save_best": ({"save_best": "accuracy"}, "save_best={'accuracy': 1}"),
    "n_saved": ({"n_saved": 2}, "save_best={'val_loss': 2}"),
    "rule": ({"rule": "greater"}, "rule={'val_loss': 'greater'}"),
    "derive": ({"derive": {"none": never}}, "derive=['none']"),
    "compute_metrics": ({"compute_metrics": never}, "has a compute_metrics, rank 0 no compute_"),
    "preflight": ({"preflight": False}, "preflight=False"),
    "shard": ({"shard": False}, "shard=False"),
    "sync_buffers": ({"sync_buffers": "mean"}, "sync_buffers='mean'"),
}
OTHERS = {
    "metrics": "metrics={'accuracy': 'Accuracy', 'more': 'Accuracy'}",
    "classes": "metrics={'accuracy': 'Loss'}",
    "patience": "early_stopping=[(None, 3)]",
    "stopping": "early_stopping=[(None, 2), ('accuracy', 2)]",
    "folder": "has out_dir=",
    "weights": "has other weights: 0.weight (8, 4) has the norm ",
    "layers": "has a model of 2 weights, rank 0 one of 4 weights",
}


def differ(rank: int, folder: Path) -> dict[str, Any]:
    """Return for each setting the error, and how many batches were trained before."""
    found = {}
    for name in (*SETTINGS, *OTHERS, "nothing", "ensemble"):
        is_other = rank == 1
        options = {"save_best": "val_loss", "out_dir": folder / name}
        if is_other and name in SETTINGS:
            options |= SETTINGS[name][0]
        if is_other and name == "folder":
            options["out_dir"] = folder / name / "below"
        torch.manual_seed(1 + (is_other and name in ("weights", "ensemble")))
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        if is_other and name == "layers":
            model = nn.Sequential(nn.Linear(4, 2))
        if name == "ensemble":
            options["sync_buffers"] = None
        metrics: dict[str, Metric] = {"accuracy": Accuracy()}
        if is_other and name == "metrics":
            metrics["more"] = Accuracy()
        if is_other and name == "classes":
            metrics["accuracy"] = Loss(nn.functional.cross_entropy)
        if name == "nothing":
            model = DistributedDataParallel(model)
        evaluator = create_evaluator(model, metrics, loss_fn=nn.functional.cross_entropy)
        data = TensorDataset(torch.ones(6, 4), torch.zeros(6, dtype=torch.long))
        hook = EvalHook(DataLoader(data, 2), evaluator, **options)  # type: ignore[arg-type]
        trained: list[int] = []
        trainer = Engine(lambda engine, batch, trained=trained: trained.append(batch))
        hook.attach(trainer)
        hook.early_stopping(3 if is_other and name == "patience" else 2)
        if is_other and name == "stopping":
            hook.early_stopping(2, metric="accuracy", rule="greater")
        words = None
        try:
            trainer.run([0, 1], max_epochs=2)
        except EvaluationError as error:
            words = str(error)
        found[name] = words, len(trained), len(hook.history)
        hook.detach()
    return found


def test_what_ranks_were_given_differently_is_named_before_the_first_step(tmp_path: Path) -> None:
    ranks = on_ranks(3, differ, tmp_path)
    for found in ranks:
        for name in (*SETTINGS, *OTHERS):
            words, trained, evaluated = found[name]
            expected = SETTINGS[name][1] if name in SETTINGS else OTHERS[name]
            assert "rank 1 has " in words, name
            assert expected in words, (name, words)
            assert (trained, evaluated) == (0, 0), name
        for name in ("nothing", "ensemble"):
            assert found[name] == (None, 4, 2), name


def evaluate_other_data(rank: int) -> Any:
    """Return what is said of other data than the hook's, and how many records there are."""
    evaluator = create_evaluator(DistributedDataParallel(nn.Linear(1, 1)), step=lambda e, b: b[0])
    hook = EvalHook(DataLoader(TensorDataset(X), 2), evaluator)
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0], max_epochs=1)
    trainer.state.iteration += 1
    words = []
    for track in (True, False):
        with pytest.raises(EvaluationError) as caught:
            hook.evaluate(DataLoader(TensorDataset(X[rank::2]), 2), track=track)
        words.append(str(caught.value))
    with pytest.raises(EvaluationError) as caught:
        evaluator.run([X[rank::2]])
    whole = hook.evaluate(DataLoader(TensorDataset(X[:5]), 2), track=False)
    return [*words, str(caught.value)], len(hook.history), whole.samples


def test_other_data_than_the_hooks_are_compared_too() -> None:
    for words, records, samples in on_ranks(2, evaluate_other_data):
        for each in words:
            assert "rank 1 has " in each
            assert "fingerprint" in each
        assert records == 1
        assert samples == 5
