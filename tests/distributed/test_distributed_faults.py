"""What goes wrong on one rank is raised on every one, at once; nobody waits, nothing is lost."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from helpers.ranks import Outcome, die, on_ranks
from ignite_evalhook import (
    EvalEvents,
    EvalHook,
    EvaluationError,
    create_evaluator,
    find_best,
    load_best,
)

WORDS = "vyčerpáno 耗尽 💥"


# -- one run that can fail anywhere ---------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Trap:
    """Raises where it was set; does nothing elsewhere."""

    def __init__(self) -> None:
        self.place = self.place_too = ""
        self.error: BaseException = ValueError()
        self.action: Callable[[], object] | None = None

    def set(self, place: str = "", error: BaseException | None = None) -> None:
        self.place, self.place_too = place, ""
        self.error = ValueError(f"{WORDS} in {place}") if error is None else error

    def __call__(self, place: str) -> bool:
        if place == self.place_too:
            raise OSError("a second failure hides the first")
        if place != self.place:
            return False
        if self.action is not None:
            self.action()
        raise self.error


class Data(Dataset[Any]):
    def __init__(self, trap: Trap, size: int) -> None:
        self.trap, self.size = trap, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.trap("dataset")
        return torch.tensor([float(index), 1.0]), index % 2


class Order(Sampler[int]):
    """Of the user's own, so rank 0 draws."""

    def __init__(self, trap: Trap, size: int) -> None:
        self.trap, self.size = trap, size

    def __iter__(self) -> Iterator[int]:
        self.trap("sampler")
        return iter(range(self.size))

    def __len__(self) -> int:
        return self.size


class Model(nn.Module):
    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self.trap = trap
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        nn.init.ones_(self.linear.weight)

    def forward(self, x: Any) -> Any:
        self.trap("forward")
        return self.norm(self.linear(x))


class Wary(Accuracy):
    def __init__(self, trap: Trap, **options: Any) -> None:
        self.trap = trap
        super().__init__(**options)

    def update(self, output: Any) -> None:
        self.trap("update")
        super().update(output)

    def compute(self) -> float:
        self.trap("compute")
        return super().compute()


class Counter:
    """Something to save."""

    def __init__(self, trap: Trap) -> None:
        self.trap, self.count = trap, 0

    def state_dict(self) -> dict[str, Any]:
        self.trap("state_dict")
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trap("load_state_dict")
        self.count = state["count"]


class Run:
    """A training run on this rank; each evaluation is better than the one before."""

    def __init__(self, rank: int, folder: Path, *, size: int = 14, **options: Any) -> None:
        self.rank, self.folder = rank, folder
        self.trap = trap = Trap()
        self.model = Model(trap)
        self.trainer = Engine(lambda engine, batch: None)
        self.evaluator = create_evaluator(self.model, step=self._step)
        Wary(trap, output_transform=self._transform).attach(self.evaluator, "accuracy")
        for event in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
            self.evaluator.add_event_handler(event, partial(trap, f"on {event.name}"))
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._on_iteration)
        data = Data(trap, size)
        self.loader: DataLoader[Any] = DataLoader(
            data, batch_size=2, sampler=Order(trap, size), collate_fn=self._collate
        )

        class Hook(EvalHook):
            rule_map = {"greater": self._is_greater, "less": lambda new, old: new < old}  # noqa: RUF012

        self.hook = Hook(
            self.loader,
            self.evaluator,
            **{
                "model": self.model,
                "to_save": {"model": self.model, "counter": Counter(trap)},
                "save_best": "score",
                "rule": "greater",
                "out_dir": folder,
                "compute_metrics": self._compute,
                "pre_eval": self._pre_eval,
                "derive": {"twice": self._derive},
                "context": self._context,
                "preflight": False,
                **options,
            },
        )
        self.hook.attach(self.trainer)
        self.stopper = self.hook.early_stopping(1000)
        for event in EvalEvents:
            self.hook.on(event, lambda record, event=event: trap(event.name))
        self._spy_on_disk()

    def _step(self, engine: Engine, batch: Any) -> Any:
        self.trap("process")
        x, y = batch
        return self.model(x), y

    def _transform(self, output: Any) -> Any:
        self.trap("output_transform")
        return output[0], output[1]

    def _on_iteration(self) -> None:
        if self.trap.place in ("terminate", "interrupt"):
            getattr(self.evaluator, self.trap.place)()
        self.trap("on ITERATION_COMPLETED")

    def _collate(self, items: Any) -> Any:
        self.trap("collate")
        return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])

    def _is_greater(self, new: float, old: float) -> bool:
        self.trap("comparison")
        return new > old

    def _pre_eval(self, output: Any, indices: Any) -> list[Any]:
        self.trap("pre_eval")
        if self.trap.place == "unpicklable":
            return [lambda: 0] * len(output[0])
        return list(output[0])

    def _compute(self, results: Any) -> dict[str, Any]:
        self.trap("compute_metrics")
        return {"score": float(self.trainer.state.iteration), "results": float(len(results))}

    def _derive(self, metrics: Any) -> float:
        self.trap("derive")
        return 2.0 * float(metrics["score"])

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        self.trap("context enter")
        try:
            yield
        finally:
            self.trap("context exit")

    def _spy_on_disk(self) -> None:
        from helpers.private import _storage_local

        trap, write, append = self.trap, _storage_local._write_new, _storage_local._append

        def write_or_fail(path: Path, save: Any, **more: Any) -> str | None:
            def full(file: Any) -> None:
                save(file)
                name = path.name.lstrip(".")  # of a temporary file
                kinds = [kind for kind in ("last.pt", "best.json") if name.startswith(kind)]
                trap(f"writing {kinds[0] if kinds else 'the best'}")

            return write(path, full, **more)

        def append_or_fail(handle: int, data: bytes, size: int) -> None:
            trap("writing the history")
            append(handle, data, size)

        _storage_local._write_new = write_or_fail
        _storage_local._append = append_or_fail

    def advance(self) -> None:
        """Let the trainer do one more epoch."""
        self.trainer.state.epoch += 1
        self.trainer.state.iteration += 1
        self.trainer.state.epoch_length = 1

    def observed(self) -> dict[str, Any]:
        """Return all that a failed evaluation must leave as it was."""
        hook, modules = self.hook, list(self.model.modules())
        return {
            "history": [record.to_dict() for record in hook.history],
            "best": copy.copy(hook.best),
            "bests": {name: list(bests) for name, bests in hook.bests.items()},
            "state": hook.state_dict(),
            "files": content(self.folder) if self.rank == 0 else {},  # the others may still be told
            "training": [module.training for module in modules],
            "tensors": {k: v.tolist() for k, v in self.model.state_dict().items()},
            "random": hash(bytes(torch.get_rng_state().tolist())),
            "handlers": {str(e): len(h) for e, h in self.evaluator._event_handlers.items()},
            "counter": self.stopper.counter,
        }

    def attempt(self, **options: Any) -> dict[str, Any] | None:
        """Evaluate, and describe what was raised."""
        return raised_by(partial(self.hook.evaluate, **options), self.trap.error)


def raised_by(action: Callable[[], object], mine: BaseException | None = None) -> Any:
    """Return what an action raises, as plain values."""
    try:
        action()
    except (EvaluationError, KeyboardInterrupt, OSError) as error:
        return {
            "type": type(error).__name__,
            "words": str(error),
            "failures": [tuple(f) for f in getattr(error, "failures", ())],
            "notes": getattr(error, "__notes__", []),
            "shown": "".join(traceback.format_exception(error)),
            "caused by mine": error.__cause__ is mine,
            "mine": error is mine,
        }
    return None


def content(folder: Path) -> dict[str, str]:
    """Return the files in a folder, the lock left out, with a hash of each."""
    if not folder.is_dir():
        return {}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "lock" not in path.name
    }


# -- every place, every rank ----------------------------------------------------------------------

EVERYWHERE = (0, 1, 2)
PLACES: list[tuple[str, tuple[int, ...]]] = [
    ("dataset", EVERYWHERE),
    ("collate", EVERYWHERE),
    ("sampler", EVERYWHERE),
    ("forward", EVERYWHERE),
    ("process", EVERYWHERE),
    ("update", EVERYWHERE),
    ("output_transform", EVERYWHERE),
    ("compute", (0,)),
    ("compute_metrics", (0,)),
    ("pre_eval", EVERYWHERE),
    ("derive", (0,)),
    ("comparison", (0,)),
    ("context enter", EVERYWHERE),
    ("context exit", EVERYWHERE),
    ("EVAL_STARTED", EVERYWHERE),
    ("on STARTED", EVERYWHERE),
    ("on ITERATION_COMPLETED", EVERYWHERE),
    ("on EPOCH_COMPLETED", EVERYWHERE),
    ("on COMPLETED", EVERYWHERE),
    ("state_dict", EVERYWHERE),
    ("writing the best", (0,)),
    ("writing best.json", (0,)),
    ("writing the history", (0,)),
]
# Where the words are not the trap's own.
OTHER_WORDS: list[tuple[str, tuple[int, ...], str, str]] = [
    ("terminate", EVERYWHERE, "EvaluationError", "cut short after 1"),
    ("interrupt", EVERYWHERE, "EvaluationError", "cut short after 1"),
    ("unpicklable", (1, 2), "TypeError", "<lambda>"),
]


def fail_in_turn(
    rank: int, folder: Path, table: list[tuple[str, int, str]], size: int = 14
) -> list[Any]:
    """Fail at each place in turn, and evaluate again after each failure."""
    run = Run(rank, folder, size=size)
    run.advance()
    run.hook.evaluate()
    seen = []
    for place, who, what in table:
        run.advance()
        before = run.observed()
        error = {"interrupt": KeyboardInterrupt(), "unprintable": Unprintable()}.get(what)
        run.trap.set(place if rank == who else "", error)
        run.trap.place_too = "context exit" if what == "twice" and rank == who else ""
        found = run.attempt()
        run.trap.set()
        after = run.observed()
        changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
        record = run.hook.evaluate()
        seen.append((found, changed, record.to_dict()))
    return seen


@pytest.fixture(scope="module")
def turns() -> list[tuple[str, int, str]]:
    """Place, rank, and what happens there, of each failure."""
    table = [(place, who, "error") for place, ranks in PLACES for who in ranks]
    table += [(place, who, "other words") for place, ranks, *_ in OTHER_WORDS for who in ranks]
    # Not within a run: Ignite prints what ends one.
    table += [("EVAL_STARTED", who, "unprintable") for who in EVERYWHERE]
    table += [("forward", who, "interrupt") for who in EVERYWHERE]
    table += [("compute_metrics", 0, "interrupt"), ("context exit", 1, "interrupt")]
    table += [("writing the best", 0, "interrupt"), ("on COMPLETED", 2, "interrupt")]
    # A context that fails while another failure passes through it.
    table += [("forward", who, "twice") for who in EVERYWHERE]
    table += [("sampler", 0, "twice"), ("compute_metrics", 0, "twice")]
    return table


@pytest.fixture(scope="module")
def seen(
    turns: list[tuple[str, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> list[list[Any]]:
    """What each rank has seen of each failure."""
    folder = tmp_path_factory.mktemp("faults") / "läufe 中文"
    return on_ranks(3, fail_in_turn, folder, turns, group_timeout=300)


def test_a_failure_is_raised_on_every_rank_with_rank_type_words_and_trace(
    turns: list[tuple[str, int, str]], seen: list[list[Any]]
) -> None:
    other = {place: (kind, words) for place, _, kind, words in OTHER_WORDS}
    for number, (place, who, what) in enumerate(turns):
        kind, words = other.get(place, ("ValueError", f"{WORDS} in {place}"))
        if place.startswith("writing"):
            kind = "CheckpointError"
        if what == "unprintable":
            kind, words = "Unprintable", "cannot be shown"
        if what == "interrupt":
            kind, words = "KeyboardInterrupt", ""
        for rank in EVERYWHERE:
            case = (place, who, what, rank)
            found = seen[rank][number][0]
            assert found is not None, case
            if what == "interrupt" and rank == who:
                assert (found["type"], found["mine"]) == ("KeyboardInterrupt", True), case
                continue
            if what == "twice" and place != "compute_metrics":
                kind, words = "OSError", "a second failure hides the first"
            elif what == "twice" and rank == who:  # all have been told of the first by then
                assert found["type"] == "OSError", (case, found)
                continue
            assert found["type"] == "EvaluationError", (case, found)
            assert len(found["failures"]) == 1, (case, found)
            where, told_kind, message, trace = found["failures"][0]
            assert (where, told_kind) == (who, kind), (case, found)
            assert words in message, (case, found)
            assert f"rank {who} failed: {kind}: " in found["words"], (case, found)
            assert "Traceback" in trace, (case, found)
            assert len(found["words"].splitlines()) == 1, (case, found)
            assert found["notes"] == ([] if rank == who else [f"On rank {who}:\n{trace}"]), case
            if what == "error":
                shows = rank == who or sys.version_info >= (3, 11)
                assert found["shown"].count("raise self.error") == shows, (case, found)
            if rank == who and what == "error" and kind == "ValueError":
                assert found["caused by mine"], (case, found)


def test_a_failed_evaluation_leaves_everything_as_it_was(
    turns: list[tuple[str, int, str]], seen: list[list[Any]]
) -> None:
    for number, (place, who, what) in enumerate(turns):
        for rank in EVERYWHERE:
            assert seen[rank][number][1] == {}, (place, who, what, rank)


def test_after_a_failure_the_ranks_go_on_together(
    turns: list[tuple[str, int, str]], seen: list[list[Any]]
) -> None:
    for number in range(len(turns)):
        records = [seen[rank][number][2] for rank in EVERYWHERE]
        assert records[1] == records[0], turns[number]
        assert records[2] == records[0], turns[number]
        record = records[0]
        assert record["epoch"] == number + 2
        assert record["metrics"]["score"] == number + 2
        assert record["metrics"]["results"] == 14
        assert record["samples"] == 14
        assert record["is_best"]


def test_a_rank_without_a_batch_fails_and_hears_like_the_others(tmp_path: Path) -> None:
    places = [("process", 0), ("on EPOCH_COMPLETED", 1), ("context exit", 1), ("state_dict", 1)]
    table = [(place, who, "error") for place, who in places]
    for outcome in on_ranks(2, fail_in_turn, tmp_path / "run", table, 2):
        for (place, who), (found, changed, record) in zip(places, outcome, strict=True):
            assert found["failures"][0][:3] == (who, "ValueError", f"{WORDS} in {place}")
            assert changed == {}, place
            assert record["samples"] == 2


# -- what comes after the record ------------------------------------------------------------------


def fail_in_listeners(rank: int, folder: Path) -> list[Any]:
    """Fail in listeners on a record, and in an evaluation that one of them asks for."""
    run = Run(rank, folder)
    seen = []
    batch = (torch.ones(2, 2), torch.tensor([0, 1]))
    other = EvalHook([batch] * 5, run.evaluator, model=run.model, name="other")

    def ask(record: Any) -> None:
        run.trap.place = armed
        other.evaluate()

    armed = ""
    for event in ("EVAL_COMPLETED", "NEW_BEST", "asks", "asks interrupted"):
        for who in EVERYWHERE:
            run.advance()
            if event == "asks":
                run.hook.on(EvalEvents.EVAL_COMPLETED, ask)
            here = event if event in EvalEvents.__members__ else ""
            armed = "process" if rank == who and not here else ""
            error = KeyboardInterrupt() if event == "asks interrupted" else None
            run.trap.set(here if rank == who else "", error)
            found = run.attempt()
            run.trap.set()
            armed = ""
            seen.append((event, who, found, len(run.hook.history), run.stopper.counter))
            again = run.hook.evaluate()
            assert again is run.hook.history[-1]
            assert again.epoch == run.trainer.state.epoch
    return seen


def test_a_failing_listener_ends_all_ranks_and_the_record_stays(tmp_path: Path) -> None:
    outcomes = on_ranks(3, fail_in_listeners, tmp_path / "run")
    for rank, outcome in enumerate(outcomes):
        for number, (event, who, found, records, counter) in enumerate(outcome, start=1):
            case = (rank, event, who, found)
            assert found is not None, case
            if event == "asks interrupted" and rank == who:
                assert found["type"] == "KeyboardInterrupt", case
            else:
                assert found["type"] == "EvaluationError", case
                assert [failure[0] for failure in found["failures"]] == [who], case
            assert (records, counter) == (number, 0), case


# -- the start of a run, and the last checkpoint --------------------------------------------------


def fail_at_the_start(rank: int, folder: Path) -> dict[str, Any]:
    """Fail where a run starts; in each folder or with each place anew."""
    seen: dict[str, Any] = {}

    def start(name: str, place: str = "", who: int = 0, **options: Any) -> Run:
        run = Run(rank, folder / name, **options)
        run.trap.set(place if rank == who else "")
        seen[name] = raised_by(lambda: run.trainer.run([0], max_epochs=1))
        run.trap.set()
        return run

    for who in EVERYWHERE:
        run = start(f"preflight {who}", "forward", who, preflight=True)
        run.hook.evaluate()  # and they go on together
        seen[f"after {who}"] = len(run.hook.history)
        start(f"in the run {who}", "on COMPLETED", who)
        start(f"state {who}", "state_dict", who, preflight=True)
    start("a file/run")
    start("foreign")
    start("never due", interval=500)
    return seen


def test_a_failure_at_the_start_of_a_run_ends_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("no folder")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "best.json").write_text('{"somebody": "else\'s"}')
    expected = {
        "a file/run": ([0], "CheckpointError", "a file"),
        "foreign": ([0], "StateError", "move it away"),
        "never due": ([0, 1, 2], "ValueError", "500"),
    }
    for who in EVERYWHERE:
        expected[f"preflight {who}"] = ([who], "ValueError", WORDS)
        expected[f"in the run {who}"] = ([who], "ValueError", WORDS)
        expected[f"state {who}"] = ([who], "ValueError", WORDS)
    for seen in on_ranks(3, fail_at_the_start, tmp_path):
        for name, (ranks, kind, words) in expected.items():
            found = seen[name]
            assert found is not None, name
            assert found["type"] == "EvaluationError", found
            assert [failure[0] for failure in found["failures"]] == ranks, found
            assert {failure[1] for failure in found["failures"]} == {kind}, found
            assert words in found["words"]
        assert [seen[f"after {who}"] for who in EVERYWHERE] == [1, 1, 1]


LAST = [("writing last.pt", 0), *(("state_dict", who) for who in EVERYWHERE)]


def fail_with_last(rank: int, folder: Path) -> list[Any]:
    """Fail while the last checkpoint is written, and while it is read; start again each time."""
    seen: list[Any] = []

    def begin(place: str = "", who: int = 0) -> tuple[Run, Callable[[], bool]]:
        run = Run(rank, folder)
        here = place if rank == who else ""
        run.hook.on(EvalEvents.EVAL_COMPLETED, lambda record: run.trap.set(here))
        return run, partial(run.hook.keep_last, {"counter": Counter(run.trap)})

    run, keep_last = begin()
    assert not keep_last()
    run.trainer.run([0], max_epochs=2)
    for place, who in LAST:
        before = content(folder).get("last.pt") if rank == 0 else ""
        run.hook.detach()
        run, keep_last = begin(place, who)
        assert keep_last()
        assert run.hook.history[-1].epoch == 2
        found = raised_by(partial(run.trainer.run, [0], max_epochs=3), run.trap.error)
        run.trap.set()
        after = content(folder).get("last.pt") if rank == 0 else ""
        seen.append((place, who, found, before == after))
    for who in EVERYWHERE:
        run.hook.detach()
        run, keep_last = begin()
        run.trap.set("load_state_dict" if rank == who else "")
        seen.append(("load_state_dict", who, raised_by(keep_last, run.trap.error), True))
        run.trap.set()
        assert keep_last()
    run.trainer.run([0], max_epochs=3)
    assert [record.epoch for record in run.hook.history] == [1, 2, 3]
    return seen


def test_a_failure_of_the_last_checkpoint_ends_all_ranks_and_keeps_the_earlier_one(
    tmp_path: Path,
) -> None:
    for rank, seen in enumerate(on_ranks(3, fail_with_last, tmp_path / "run")):
        assert len(seen) == 7
        for place, who, found, kept in seen:
            case = (rank, place, who, found)
            assert kept, case
            assert found is not None, case
            assert [failure[0] for failure in found["failures"]] == [who], case
            assert WORDS in found["words"], case


# -- a function evaluator, and what each rank does differently ------------------------------------


def use_functions(rank: int, folder: Path) -> dict[str, Any]:
    """Evaluate by a function that says something else on each rank, and fails on each in turn."""
    trainer = Engine(lambda engine, batch: None)
    trap = Trap()

    def measure(engine: Engine | None) -> dict[str, float]:
        trap("function")
        return {"précision moyenne": 0.5 if rank == 0 else float(trainer.state.epoch)}

    hook = EvalHook(
        None,
        measure,
        to_save={"model": nn.Linear(1, 1)},
        save_best="précision moyenne",
        rule="greater",
        out_dir=folder,
        name="évaluation à part",
    )
    hook.attach(trainer)
    hook.early_stopping(2)
    trainer.run([0], max_epochs=10)
    found: dict[str, Any] = {
        "records": [(r.epoch, dict(r.metrics), r.is_best) for r in hook.history],
        "stopped at": trainer.state.epoch,
        "best": (hook.best.score, str(hook.best.path)) if hook.best is not None else None,
    }
    for who in EVERYWHERE:
        trainer.state.epoch += 1
        trainer.state.iteration += 1
        trap.set("function" if rank == who else "")
        found[f"error {who}"] = raised_by(hook.evaluate, trap.error)
        trap.set()
        found[f"after {who}"] = hook.evaluate().metrics
    return found


def test_rank_0_decides_on_best_and_stop_and_any_rank_may_fail(tmp_path: Path) -> None:
    folder = tmp_path / "läufe 中文"
    found = on_ranks(3, use_functions, folder)
    assert {str(f["best"]) for f in found} == {str(found[0]["best"])}
    assert find_best(folder).score == 0.5
    for rank, seen in enumerate(found):
        assert seen["stopped at"] == 3
        assert seen["records"] == [
            (epoch, {"précision moyenne": 0.5}, epoch == 1) for epoch in (1, 2, 3)
        ]
        for who in EVERYWHERE:
            error = seen[f"error {who}"]
            assert error["type"] == "EvaluationError"
            assert [failure[:3] for failure in error["failures"]] == [
                (who, "ValueError", f"{WORDS} in function")
            ]
            assert error["caused by mine"] == (rank == who)
            assert seen[f"after {who}"] == {"précision moyenne": 0.5}


def call_differently(rank: int, folder: Path) -> dict[str, Any]:
    """Do on one rank what the others do not."""
    seen: dict[str, Any] = {}
    run = Run(rank, folder)
    run.advance()
    run.hook.evaluate()
    run.advance()
    seen["track"] = run.attempt(track=rank != 1)
    if rank == 1:
        run.stopper.counter += 5
    seen["counters"] = run.attempt()
    if rank == 1:
        run.stopper.counter -= 5
    run.hook.evaluate()
    state = run.hook.state_dict()
    run.advance()
    run.hook.evaluate()

    run.advance()
    if rank == 2:  # as if it had loaded an older checkpoint
        run.hook.load_state_dict(state)
    seen["state"] = run.attempt()

    run = Run(rank, folder / "another")  # and the same at the start of a run
    run.advance()
    if rank == 1:
        run.hook.load_state_dict(state)
    seen["start"] = run.attempt()
    return seen


def test_ranks_that_do_not_call_alike_are_told_so(tmp_path: Path) -> None:
    for rank, seen in enumerate(on_ranks(3, call_differently, tmp_path / "run")):
        assert seen["track"]["type"] == "EvaluationError", rank
        assert "different places: rank 0 at 'val" in seen["track"]["words"], rank
        assert "rank 1 at 'val: an answer" in seen["track"]["words"], rank
        assert "rank 1 stands at" in seen["counters"]["words"], rank
        assert seen["state"]["type"] == "EvaluationError", rank
        assert "rank 2 stands at" in seen["state"]["words"], rank
        assert "load the same checkpoint on every rank" in seen["state"]["words"], rank
        assert seen["start"]["type"] == "EvaluationError", rank
        assert "rank 1" in seen["start"]["words"], rank


def leave_early(rank: int, folder: Path) -> Any:
    """Train longer on some ranks than on rank 1."""
    run = Run(rank, folder)
    run.trainer.run([0], max_epochs=2 if rank == 1 else 4)
    return [record.epoch for record in run.hook.history]


def test_a_rank_that_leaves_early_ends_the_others(tmp_path: Path) -> None:
    outcomes = on_ranks(3, leave_early, tmp_path / "run", check=False, group_timeout=120)
    assert outcomes[1].value == [1, 2]
    for rank in (0, 2):
        assert outcomes[rank].error is not None, rank
        assert outcomes[rank].error[0] == "EvaluationError"
        assert "rank 1 failed: ConnectionError" in outcomes[rank].error[1]


# -- promptness -----------------------------------------------------------------------------------

LONG = 2000  # batches a rank
WORK = 0.002  # seconds each


def fail_in_the_first_batch(rank: int) -> list[tuple[int, str]]:
    """Fail on rank 1 at once, while the others have much to do; then all have little to do."""
    done = 0

    def step(engine: Engine, batch: int) -> int:
        nonlocal done
        done += 1
        if rank == 1 and batch < 3 * LONG - 3:
            raise ValueError(WORDS)
        threading.Event().wait(WORK)
        return batch

    seen = []
    hook = EvalHook(list(range(3 * LONG)), Engine(step), model=nn.Linear(1, 1))
    for _ in range(2):
        done = 0
        found = raised_by(hook.evaluate)
        seen.append((done, found["words"]))
        short = EvalHook([3 * LONG] * 4, Engine(step), model=nn.Linear(1, 1))
        short.evaluate()
    return seen


def test_a_failure_in_the_first_batch_stops_the_others_long_before_their_last() -> None:
    for rank, seen in enumerate(on_ranks(3, fail_in_the_first_batch)):
        for done, words in seen:
            assert f"rank 1 failed: ValueError: {WORDS}" in words
            assert done == 1 if rank == 1 else 1 <= done < LONG // 2, (rank, done)


# -- death, and patience --------------------------------------------------------------------------


def be_killed(rank: int, folder: Path, place: str, who: int) -> None:
    """Evaluate twice; be killed on one rank in the third evaluation."""
    run = Run(rank, folder)
    for _ in range(2):
        run.advance()
        run.hook.evaluate()
    run.advance()
    if rank == who:
        run.trap.action = die
        run.trap.set(place)
    run.hook.evaluate()


@pytest.mark.parametrize(
    ("place", "who"),
    [
        ("process", 0),
        ("process", 1),
        ("process", 2),
        ("compute_metrics", 0),
        ("writing the best", 0),
        ("context exit", 1),  # while rank 0 writes the best
    ],
)
def test_a_killed_rank_ends_the_others_and_the_best_stays(
    tmp_path: Path, place: str, who: int
) -> None:
    folder = tmp_path / "run"
    outcomes: list[Outcome] = on_ranks(
        3, be_killed, folder, place, who, check=False, group_timeout=300
    )
    for rank, outcome in enumerate(outcomes):
        if rank == who:
            assert outcome.code == -signal.SIGKILL
            continue
        assert outcome.error is not None, rank
        assert outcome.error[0] == "EvaluationError", outcome
        assert f"rank {who} failed: ConnectionError" in outcome.error[1], outcome
        assert outcome.seconds < 30, outcome
    model = Model(Trap())
    best = load_best(folder, {"model": model})
    assert (best.score, best.epoch) == (2.0, 2)


def wait_for_rank_0(rank: int, folder: Path) -> Any:
    """Let rank 0 compute until the others have waited for longer than the timeout."""
    from helpers.private import _waiting

    computing, looked = folder.with_name("computing"), folder.with_name("looked")
    absent = _waiting.Watch._absent

    def limit() -> float:
        return 0.1 if computing.exists() else 1e9  # seconds

    def look(self: Any) -> Any:
        found = absent(self)
        if computing.exists():
            looked.with_suffix(f".{rank}").touch()
        return found

    def compute(results: list[Any]) -> dict[str, Any]:
        computing.touch()
        for other in (1, 2):
            wait_for(looked.with_suffix(f".{other}"))
        return compute_for(0.3)

    _waiting.Watch.__init__.__kwdefaults__["limit"] = limit
    _waiting.Watch._absent = look  # type: ignore[method-assign]
    _waiting._LOOK_SECONDS = 0.02
    run = Run(rank, folder, compute_metrics=compute)
    run.advance()
    return run.hook.evaluate().metrics["score"]


def wait_for(file: Path) -> None:
    """Wait until a file exists; for a minute at most, on a machine however busy."""
    for _ in range(6000):
        if file.exists():
            return
        threading.Event().wait(0.01)


def compute_for(seconds: float) -> dict[str, Any]:
    """Take some time, and return more than fits into one message."""
    threading.Event().wait(seconds)
    return {"score": 1.0, "curve": list(range(10_000))}


def test_a_rank_0_that_computes_for_longer_than_the_timeout_kills_nobody(tmp_path: Path) -> None:
    assert on_ranks(3, wait_for_rank_0, tmp_path / "run") == [1.0, 1.0, 1.0]


def be_interrupted(rank: int, folder: Path) -> Any:
    """Get an interrupt of the system on rank 1, while it waits for rank 0."""
    sent = folder.with_name("sent")

    def compute(results: list[Any]) -> dict[str, Any]:
        wait_for(sent)
        return compute_for(0.7)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sent.touch()

    run = Run(rank, folder, compute_metrics=compute)
    run.advance()
    if rank == 1:
        # A shell lets what it starts in the background ignore interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = threading.Timer(0.3, interrupt)
        with run.evaluator.add_event_handler(Events.EPOCH_STARTED, timer.start):
            found = run.attempt()
    else:
        found = run.attempt()
    return found, run.hook.evaluate().to_dict()


def test_an_interrupt_of_a_rank_that_waits_ends_all_and_mixes_up_nothing(tmp_path: Path) -> None:
    outcomes = on_ranks(3, be_interrupted, tmp_path / "run")
    assert [found["type"] for found, _ in outcomes] == [
        "EvaluationError",
        "KeyboardInterrupt",
        "EvaluationError",
    ]
    assert "rank 1 failed: KeyboardInterrupt" in outcomes[0][0]["words"]
    assert outcomes[0][1] == outcomes[1][1] == outcomes[2][1]
